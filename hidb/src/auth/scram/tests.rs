//! The exchange against the vectors of RFC 7677, and against everyone who has no password.

use proptest::prelude::*;

use super::*;

const KEY: ExportedKey = [7; 32];
const OTHER_KEY: ExportedKey = [8; 32];

fn verifier() -> Verifier {
    Verifier::of_password("pencil", &[1; SALT_BYTES], ITERATIONS_MIN).unwrap()
}

/// Runs an exchange; both sides see their own key of the channel.
fn exchange(password: &str, verifier: Verifier, seen: Option<&ExportedKey>, given: Option<&ExportedKey>) -> Result<()> {
    let begun = client::begin("user", password, server::mechanisms(seen.is_some()), seen, "clientnonce")?;
    let asked = server::begin(begun.mechanism, &begun.message, given)?;
    assert_eq!(asked.user(), "user");
    let (challenged, challenge) = asked.challenge(verifier, "servernonce");
    let responded = begun.respond(&challenge)?;
    let last = challenged.finish(&responded.message)?;
    responded.verify(&last)
}

#[test]
fn the_example_of_rfc_7677_comes_out_byte_for_byte() {
    let begun = client::begin("user", "pencil", &[SCRAM_SHA_256], None, "rOprNGfwEbeRWgbNEkqO").unwrap();
    assert_eq!(begun.message, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
    let challenge = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    let asked = server::begin(SCRAM_SHA_256, &begun.message, None).unwrap();
    let salt = message::ServerFirst::parse(challenge).unwrap().salt;
    let verifier = Verifier::of_password("pencil", &salt, 4096).unwrap();
    let (challenged, ours) = asked.challenge(verifier, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0");
    assert_eq!(ours, challenge);
    let responded = begun.respond(challenge).unwrap();
    assert_eq!(
        std::str::from_utf8(&responded.message).unwrap(),
        "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    );
    let last = challenged.finish(&responded.message).unwrap();
    assert_eq!(last, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    responded.verify(&last).unwrap();
}

#[test]
fn the_right_password_is_taken_with_and_without_a_channel() {
    exchange("pencil", verifier(), None, None).unwrap();
    exchange("pencil", verifier(), Some(&KEY), Some(&KEY)).unwrap();
}

#[test]
fn a_wrong_password_an_unknown_user_and_another_channel_get_the_same_answer() {
    let wrong = exchange("pencils", verifier(), Some(&KEY), Some(&KEY)).unwrap_err();
    let nobody = exchange("pencil", Verifier::of_nobody(b"secret", "user"), Some(&KEY), Some(&KEY)).unwrap_err();
    let in_the_middle = exchange("pencil", verifier(), Some(&KEY), Some(&OTHER_KEY)).unwrap_err();
    assert_eq!(wrong.code, ErrorCode::Unauthenticated);
    assert_eq!((&wrong, &wrong), (&nobody, &in_the_middle));
}

#[test]
fn a_user_that_does_not_exist_has_a_salt_that_stays() {
    let (first, again) = (Verifier::of_nobody(b"secret", "ada"), Verifier::of_nobody(b"secret", "ada"));
    assert_eq!(first, again);
    assert_ne!(first.salt, Verifier::of_nobody(b"secret", "bob").salt);
    assert_ne!(first.salt, Verifier::of_nobody(b"other", "ada").salt);
    assert_eq!((first.salt.len(), first.iterations), (SALT_BYTES, ITERATIONS_DEFAULT));
}

#[test]
fn stripped_mechanisms_are_noticed_by_both_sides() {
    // A client of ours does not go on without binding when there is TLS.
    let stripped = client::begin("user", "pencil", &[SCRAM_SHA_256], Some(&KEY), "nonce").err().unwrap();
    assert_eq!(stripped.code, ErrorCode::Unauthenticated);
    // Another client says that it would have bound, and the cell knows better.
    let error = server::begin(SCRAM_SHA_256, b"y,,n=user,r=nonce", Some(&KEY)).unwrap_err();
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    // Without TLS that is true.
    server::begin(SCRAM_SHA_256, b"y,,n=user,r=nonce", None).unwrap();
    server::begin(SCRAM_SHA_256, b"n,,n=user,r=nonce", Some(&KEY)).unwrap();
    for (mechanism, first, key) in [
        (SCRAM_SHA_256_PLUS, &b"n,,n=user,r=nonce"[..], Some(&KEY)),
        (SCRAM_SHA_256_PLUS, b"y,,n=user,r=nonce", Some(&KEY)),
        (SCRAM_SHA_256_PLUS, b"p=tls-unique,,n=user,r=nonce", Some(&KEY)),
        (SCRAM_SHA_256_PLUS, b"p=tls-exporter,,n=user,r=nonce", None),
        (SCRAM_SHA_256, b"p=tls-exporter,,n=user,r=nonce", Some(&KEY)),
        ("PLAIN", b"n,,n=user,r=nonce", None),
        (SCRAM_SHA_256, b"n,a=root,n=user,r=nonce", None),
        (SCRAM_SHA_256, b"n,,m=x,n=user,r=nonce", None),
        (SCRAM_SHA_256, b"n,,n=us=er,r=nonce", None),
        (SCRAM_SHA_256, b"n,,n=user,r=", None),
        (SCRAM_SHA_256, b"n,,n=user", None),
        (SCRAM_SHA_256, b"", None),
    ] {
        let error = server::begin(mechanism, first, key).unwrap_err();
        assert_eq!(error.code, ErrorCode::Protocol, "{}", String::from_utf8_lossy(first));
    }
}

#[test]
fn a_proof_is_good_for_one_exchange() {
    let begun = client::begin("user", "pencil", &[SCRAM_SHA_256], None, "clientnonce").unwrap();
    let first = begun.message.clone();
    let (_, challenge) = server::begin(SCRAM_SHA_256, &first, None).unwrap().challenge(verifier(), "one");
    let recorded = begun.respond(&challenge).unwrap().message;
    // The same first message again: the cell's nonce is another one.
    let (challenged, _) = server::begin(SCRAM_SHA_256, &first, None).unwrap().challenge(verifier(), "two");
    assert_eq!(challenged.finish(&recorded).unwrap_err().code, ErrorCode::Unauthenticated);
}

#[test]
fn a_cell_that_does_not_know_the_password_is_found_out() {
    let begun = client::begin("user", "pencil", &[SCRAM_SHA_256], None, "nonce").unwrap();
    let asked = server::begin(SCRAM_SHA_256, &begun.message, None).unwrap();
    let (_, challenge) = asked.challenge(verifier(), "more");
    let responded = begun.respond(&challenge).unwrap();
    let guessed = format!("v={}", message::encode(&[0; 32]));
    assert_eq!(responded.verify(guessed.as_bytes()).unwrap_err().code, ErrorCode::Unauthenticated);
}

#[test]
fn challenges_that_make_guessing_cheap_or_the_client_busy_are_refused() {
    for challenge in
        ["r=noncemore,s=AAAA,i=1", "r=noncemore,s=AAAA,i=99999999", "r=other,s=AAAA,i=4096", "r=nonce,s=AAAA,i=4096"]
    {
        let begun = client::begin("user", "pencil", &[SCRAM_SHA_256], None, "nonce").unwrap();
        assert_eq!(begun.respond(challenge.as_bytes()).err().unwrap().code, ErrorCode::Protocol, "{challenge}");
    }
}

#[test]
fn passwords_are_normalised() {
    // RFC 4013, section 3: a soft hyphen is mapped to nothing, a roman numeral to its letters.
    let plain = Verifier::of_password("IX", &[1; SALT_BYTES], ITERATIONS_MIN).unwrap();
    assert_eq!(plain, Verifier::of_password("I\u{ad}X", &[1; SALT_BYTES], ITERATIONS_MIN).unwrap());
    assert_eq!(plain, Verifier::of_password("\u{2168}", &[1; SALT_BYTES], ITERATIONS_MIN).unwrap());
    for password in ["", "\u{7}", &"x".repeat(PASSWORD_BYTES_MAX + 1)] {
        let error = Verifier::of_password(password, &[1; SALT_BYTES], ITERATIONS_MIN).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidParameter);
    }
}

#[test]
fn verifiers_survive_their_message_and_bad_ones_are_refused() {
    let good = verifier().to_proto();
    assert_eq!(Verifier::from_proto(&good).unwrap(), verifier());
    assert!(!format!("{:?}", verifier()).contains("key"));
    for bad in [
        proto::ScramVerifier { iterations: 1, ..good.clone() },
        proto::ScramVerifier { iterations: u32::MAX, ..good.clone() },
        proto::ScramVerifier { salt: vec![].into(), ..good.clone() },
        proto::ScramVerifier { salt: vec![0; 65].into(), ..good.clone() },
        proto::ScramVerifier { stored_key: vec![0; 31].into(), ..good.clone() },
        proto::ScramVerifier { server_key: vec![].into(), ..good.clone() },
    ] {
        assert_eq!(Verifier::from_proto(&bad).unwrap_err().code, ErrorCode::InvalidParameter);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn one_changed_byte_anywhere_is_refused(which in 0usize..2, at in any::<prop::sample::Index>(), flip in 1u8..=255) {
        let begun = client::begin("user", "pencil", &[SCRAM_SHA_256_PLUS], Some(&KEY), "nonce").unwrap();
        let mut first = begun.message.clone();
        if which == 0 {
            let at = at.index(first.len());
            first[at] ^= flip;
        }
        let outcome = (|| {
            let (challenged, challenge) =
                server::begin(SCRAM_SHA_256_PLUS, &first, Some(&KEY))?.challenge(verifier(), "more");
            let mut last = begun.respond(&challenge)?.message;
            if which == 1 {
                let at = at.index(last.len());
                last[at] ^= flip;
            }
            challenged.finish(&last)
        })();
        prop_assert!(outcome.is_err());
    }
}
