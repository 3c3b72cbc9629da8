//! Any four messages: neither side of a SCRAM exchange panics, and without the password nobody gets in.
#![no_main]

use hidb::auth::scram::message::ServerFirst;
use hidb::auth::scram::{SCRAM_SHA_256, SCRAM_SHA_256_PLUS, Verifier, client, server};
use hidb::proto;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

const KEY: [u8; 32] = [7; 32];

fuzz_target!(|bytes: &[u8]| {
    // The first byte says over what the exchange runs; each message has its length in two bytes before it.
    let Some((how, mut rest)) = bytes.split_first() else { return };
    let mut message = || {
        let (length, after) = rest.split_first_chunk::<2>().unwrap_or((&[0; 2], &[]));
        let (message, after) = after.split_at(usize::from(u16::from_le_bytes(*length)).min(after.len()));
        rest = after;
        message
    };
    let exported = (how & 1 != 0).then_some(&KEY);
    let mechanism = if how & 2 == 0 && exported.is_some() { SCRAM_SHA_256_PLUS } else { SCRAM_SHA_256 };
    let (first, last, challenge, signature) = (message(), message(), message(), message());

    if let Ok(asked) = server::begin(mechanism, first, exported) {
        let (challenged, sent) = asked.challenge(Verifier::of_nobody(b"fuzz", "ada"), "more");
        assert!(sent.starts_with(b"r="));
        assert!(challenged.finish(last).is_err(), "nobody has that password");
    }
    // Hashing as often as a challenge says would leave little time for others.
    if ServerFirst::parse(challenge).map_or(true, |first| first.iterations <= 5_000) {
        let begun = client::begin("ada", "pencil", server::mechanisms(exported.is_some()), exported, "nonce");
        if let Ok(responded) = begun.and_then(|begun| begun.respond(challenge)) {
            assert!(responded.verify(signature).is_err(), "nobody knows that key");
        }
    }
    if let Ok(verifier) = proto::ScramVerifier::decode(first) {
        if let Ok(verifier) = Verifier::from_proto(&verifier) {
            assert_eq!(Verifier::from_proto(&verifier.to_proto()).ok(), Some(verifier));
        }
    }
    if let Ok(message) = proto::AddUser::decode(first) {
        let _ = hidb::auth::check_user_name(&message.name);
    }
});
