//! The ways in.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use heliostat_client::{Client, Credentials};
use heliostat_tls::authority::Authority;
use hidb::ErrorCode;
use hidb::auth::scram::{SCRAM_SHA_256, client, server};
use hidb::frame::{FrameKind, encode_frame};
use hidb::proto;

use crate::cell::{TestCell, Wire, tool, volume_of};
use crate::fixture::*;

const UNAUTHENTICATED: u32 = ErrorCode::Unauthenticated as u32;

#[tokio::test]
async fn the_right_password_opens_the_cell_over_tls_and_on_loopback() {
    let site = Site::new(&[]);
    let cell = site.start(&[]);
    let client = site.client(&cell, "root").await;
    let ack = client.hello().await.unwrap();
    assert_eq!((ack.user.as_str(), ack.role()), ("root", proto::Role::Admin));
    assert!(client.tables().await.unwrap().is_empty());
    let plain = format!("hidb+plain://{}", cell.address);
    let client = Client::connect(&plain, options(site.credentials("root", PASSWORD))).await.unwrap();
    assert_eq!(client.hello().await.unwrap().user, "root");
}

#[tokio::test]
async fn results_and_loads_of_many_megabytes_go_through_tls() {
    let site = Site::new(&[]);
    let cell = site.start(&[]);
    let client = site.client(&cell, "root").await;
    let schema = crate::cell::schema();
    let mut load = client.load("t", &schema, heliostat_client::LoadMode::Create).await.unwrap();
    for number in 0..20 {
        load.write(&crate::cell::batch(number, 20_000)).await.unwrap();
    }
    load.commit().await.unwrap();
    let mut rows = client.scan(heliostat_client::ScanRequest::table("t")).await.unwrap();
    let mut batches = Vec::new();
    while let Some(batch) = futures::StreamExt::next(&mut rows).await {
        batches.push(batch.unwrap());
    }
    crate::cell::assert_first_rows(&batches, 400_000);
}

#[test]
fn a_wrong_password_and_an_unknown_user_get_the_same_answer_in_the_same_time() {
    let site = Site::new(&[&["ada", "--role", "reader"]]);
    site.user_tool(&["add", "certified", "--role", "reader", "--certificate"]).unwrap();
    let cell = site.start(&[]);
    let mut answers = Vec::new();
    let mut medians = Vec::new();
    for user in ["ada", "nobody", "certified"] {
        let mut times: Vec<Duration> = (0..7)
            .map(|_| {
                let mut wire = site.wire(&cell);
                let began = Instant::now();
                let error = wire.log_in(user, "wrong").unwrap_err();
                answers.push((error.code, error.message));
                assert!(wire.receive().is_none(), "the connection ends");
                began.elapsed()
            })
            .collect();
        times.sort();
        medians.push(times[3]);
    }
    answers.dedup();
    assert_eq!(answers, [(UNAUTHENTICATED, "user or password is wrong".to_string())]);
    let apart = medians.iter().max().unwrap().abs_diff(*medians.iter().min().unwrap());
    assert!(apart < Duration::from_millis(60), "{medians:?}");
    // The challenge tells them apart no more: same iterations, a salt that stays.
    let mut salts = Vec::new();
    for _ in 0..2 {
        for user in ["ada", "nobody"] {
            let mut wire = site.wire(&cell);
            wire.hello();
            let first = format!("n,,n={user},r=nonce").into_bytes();
            wire.send(
                FrameKind::Authenticate,
                0,
                &proto::Authenticate { mechanism: SCRAM_SHA_256.into(), data: first.into() },
            );
            let challenge: proto::AuthenticateContinue = wire.receive().unwrap().message().unwrap();
            let text = String::from_utf8(challenge.data.to_vec()).unwrap();
            let parts: Vec<String> = text.split(',').map(str::to_string).collect();
            assert_eq!(parts[2], "i=16384");
            salts.push(parts[1].clone());
        }
    }
    assert_eq!((&salts[0], &salts[1]), (&salts[2], &salts[3]));
    assert_eq!(salts[0].len(), salts[1].len());
}

#[tokio::test]
async fn a_client_without_credentials_is_told_what_it_needs() {
    let site = Site::new(&[]);
    let cell = site.start(&[]);
    let options = heliostat_client::ConnectOptions::default();
    let error = Client::connect(&format!("hidb+plain://{}", cell.address), options.clone()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    assert!(error.message.contains("--credentials"), "{error}");
    let error = Client::connect(&format!("hidb://{}", cell.address), options).await.unwrap_err();
    assert!(error.message.contains("CA certificate"), "{error}");
    // Nor is a password shown where nothing vouches for the cell.
    let elsewhere = site.credentials("root", PASSWORD).with_address("hidb://127.0.0.1:1".parse().unwrap());
    let plain = format!("hidb+plain://{}", cell.address);
    let error = Client::connect(&plain, crate::fixture::options(elsewhere.clone())).await.unwrap_err();
    assert!(error.code == ErrorCode::Unauthenticated && error.message.contains("vouches"), "{error}");
    connect(&cell, elsewhere).await.unwrap();
}

#[test]
fn nothing_is_answered_before_the_client_has_shown_who_it_is() {
    let site = Site::new(&[]);
    let cell = site.start(&[]);
    for kind in FrameKind::ALL.iter().filter(|kind| **kind != FrameKind::Authenticate) {
        // Behind Hello, over TLS: a client that knows nothing of SCRAM.
        let mut wire = site.wire(&cell);
        assert_eq!(wire.hello(), ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]);
        wire.send(*kind, 1, &proto::Done {});
        let error = wire.error();
        assert_eq!(error.code, UNAUTHENTICATED, "{}: {}", kind.name(), error.message);
        assert!(wire.receive().is_none(), "the connection ends");
        // Without Hello.
        if *kind != FrameKind::Hello {
            let mut wire = site.wire(&cell);
            wire.send(*kind, 1, &proto::Done {});
            assert_eq!(wire.error().code, ErrorCode::Protocol as u32, "{}", kind.name());
        }
    }
    // In the middle of the exchange, and with a frame that is too long for it.
    let mut wire = site.wire(&cell);
    wire.hello();
    let first = proto::Authenticate { mechanism: SCRAM_SHA_256.into(), data: b"n,,n=root,r=nonce".to_vec().into() };
    wire.send(FrameKind::Authenticate, 0, &first);
    assert_eq!(wire.receive().unwrap().kind, FrameKind::AuthenticateContinue);
    wire.send(FrameKind::ListTables, 1, &proto::ListTables {});
    assert_eq!(wire.error().code, UNAUTHENTICATED);
    let mut wire = site.wire(&cell);
    let long = proto::Hello { client_name: "x".repeat(100_000), ..hello() };
    wire.send(FrameKind::Hello, 0, &long);
    assert_eq!(wire.error().code, ErrorCode::LimitExceeded as u32);
    // Once it is over, it is over.
    let mut wire = site.session(&cell, "root");
    wire.send(FrameKind::Authenticate, 0, &first);
    assert_eq!(wire.error().code, ErrorCode::Protocol as u32);
}

#[test]
fn what_a_fast_client_sends_behind_its_proof_moves_with_the_connection() {
    let site = Site::new(&[]);
    let cell = site.start(&[]);
    for tls in [true, false] {
        let mut wire = if tls { site.wire(&cell) } else { Raw::plain(cell.address) };
        wire.hello();
        let key = wire.exported_key();
        let begun = client::begin("root", PASSWORD, server::mechanisms(tls), key.as_ref(), "nonce").unwrap();
        let first = proto::Authenticate { mechanism: begun.mechanism.into(), data: begun.message.clone().into() };
        wire.send(FrameKind::Authenticate, 0, &first);
        let challenge: proto::AuthenticateContinue = wire.receive().unwrap().message().unwrap();
        let last = begun.respond(&challenge.data).unwrap().message;
        let last = proto::AuthenticateContinue { data: last.into() };
        // One record, or one segment.
        let mut bytes = encode_frame(FrameKind::AuthenticateContinue, 0, &last, &[]).unwrap();
        for id in 1..=3 {
            bytes.extend(encode_frame(FrameKind::ListTables, id, &proto::ListTables {}, &[]).unwrap());
        }
        wire.write(&bytes);
        assert_eq!(wire.receive().unwrap().kind, FrameKind::HelloAck);
        let answered: BTreeSet<_> = (0..3).map(|_| wire.receive().unwrap().request_id).collect();
        assert_eq!(answered, BTreeSet::from([1, 2, 3]));
    }
}

#[test]
fn a_cell_that_wants_tls_takes_nothing_else() {
    let site = Site::new(&[]);
    for options in [&["--tls-required"][..], &["--listen", "0.0.0.0:0"]] {
        let cell = site.start(options);
        let address = ([127, 0, 0, 1], cell.address.port()).into();
        let mut wire = Raw::plain(address);
        wire.send(FrameKind::Hello, 0, &hello());
        let error = wire.error();
        assert!(error.code == UNAUTHENTICATED && error.message.contains("TLS only"), "{}", error.message);
        drop(wire);
        cell.stop();
    }
}

/// A ClientHello of TLS 1.2, as OpenSSL would send it with `-tls1_2`.
fn hello_of_tls_12() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    // ECDHE-ECDSA and ECDHE-RSA with AES-128-GCM.
    body.extend([0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0]);
    let groups = [0, 10, 0, 4, 0, 2, 0, 0x17];
    let signatures = [0, 13, 0, 4, 0, 2, 4, 3];
    body.extend((groups.len() as u16 + signatures.len() as u16).to_be_bytes());
    body.extend(groups);
    body.extend(signatures);
    let mut message = vec![1, 0];
    message.extend((body.len() as u16).to_be_bytes());
    message.extend(body);
    let mut record = vec![0x16, 3, 1];
    record.extend((message.len() as u16).to_be_bytes());
    record.extend(message);
    record
}

#[test]
fn older_versions_of_tls_are_refused() {
    let site = Site::new(&[]);
    let cell = site.start(&[]);
    let mut stream = TcpStream::connect(cell.address).unwrap();
    stream.write_all(&hello_of_tls_12()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    // A fatal alert: protocol_version.
    assert_eq!((answer[0], &answer[5..]), (0x15, &[2, 70][..]), "{answer:02x?}");
    // Neither do bytes behind the first one that only looks like TLS.
    let mut stream = TcpStream::connect(cell.address).unwrap();
    stream.write_all(&[0x16; 100]).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer[0] == 0x15, "{answer:02x?}");
    site.session(&cell, "root");
}

#[test]
fn tls_to_a_cell_without_certificate_ends_with_the_reason() {
    let site = Site::new(&[]);
    let cell = TestCell::try_start_secure(site.path(), &[]).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let error = runtime.block_on(connect(&cell, site.credentials("root", PASSWORD))).unwrap_err();
    assert!(error.code == ErrorCode::Protocol && error.message.contains("hidb+plain://"), "{error}");
}

#[test]
fn a_list_of_mechanisms_that_somebody_shortened_is_noticed() {
    let site = Site::new(&[]);
    let cell = site.start(&[]);
    let mut wire = site.wire(&cell);
    wire.hello();
    let data = b"y,,n=root,r=nonce".to_vec().into();
    wire.send(FrameKind::Authenticate, 0, &proto::Authenticate { mechanism: SCRAM_SHA_256.into(), data });
    assert_eq!(wire.error().code, UNAUTHENTICATED);
}

#[test]
fn who_sits_in_the_middle_with_another_certificate_gains_nothing() {
    let site = Site::new(&[]);
    let cell = site.start(&[]);
    // The client's exchange, bound to its connection to the one in the middle, forwarded on another connection.
    let mut forwarded = site.wire(&cell);
    let error = forwarded.log_in_over("root", PASSWORD, Some(&[7; 32])).unwrap_err();
    assert_eq!((error.code, error.message.as_str()), (UNAUTHENTICATED, "user or password is wrong"));
}

#[tokio::test]
async fn a_cell_whose_certificate_is_old_or_not_of_the_authority_or_of_another_name_is_not_trusted() {
    let site = Site::new(&[]);
    let other = Authority::open_or_make(&site.path().join("other"), now()).unwrap();
    let hosts = ["127.0.0.1".to_string()];
    for issued in [
        site.authority.issue_cell(&hosts, last_week()).unwrap(),
        other.issue_cell(&hosts, week()).unwrap(),
        site.authority.issue_cell(&["elsewhere.example".to_string()], week()).unwrap(),
        site.authority.issue_client("root", week()).unwrap(),
    ] {
        let cell = site.start_as(&issued, &[]);
        let error = connect(&cell, site.credentials("root", PASSWORD)).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unauthenticated, "{error}");
        assert!(error.message.contains("certificate"), "{error}");
        cell.stop();
    }
}

#[tokio::test]
async fn a_client_certificate_is_the_user_it_names_if_the_authority_signed_it() {
    let site = Site::new(&[]);
    site.user_tool(&["add", "ada", "--role", "reader", "--certificate"]).unwrap();
    let ca = site.ca_path();
    let cell = site.start(&["--tls-client-ca", ca.to_str().unwrap()]);
    let good = site.authority.issue_client("ada", week()).unwrap();
    let client = connect(&cell, site.certificate(&good)).await.unwrap();
    let ack = client.hello().await.unwrap();
    assert_eq!((ack.user.as_str(), ack.role()), ("ada", proto::Role::Reader));

    let other = Authority::open_or_make(&site.path().join("other"), now()).unwrap();
    for issued in [
        site.authority.issue_client("ada", last_week()).unwrap(),
        other.issue_client("ada", week()).unwrap(),
        // One for a cell.
        site.authority.issue_cell(&["ada".to_string()], week()).unwrap(),
        // One for nobody.
        site.authority.issue_client("eve", week()).unwrap(),
    ] {
        let error = connect(&cell, site.certificate(&issued)).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unauthenticated, "{error}");
        assert!(error.message.contains("certificate"), "{error}");
    }
    // Passwords go on working beside it, and a cell that has no such authority does not look at certificates.
    site.client(&cell, "root").await;
    cell.stop();
    let cell = site.start(&[]);
    let error = connect(&cell, site.certificate(&good)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unauthenticated, "{error}");
}

/// Passes everything on to the cell; gives what the client sent, once the client has gone.
fn recording_proxy(cell: &TestCell) -> (std::net::SocketAddr, mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, to) = (listener.local_addr().unwrap(), cell.address);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut server = TcpStream::connect(to).unwrap();
        let (mut back, mut forth) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut back, &mut forth);
            let _ = forth.shutdown(Shutdown::Both);
        });
        let (mut recorded, mut buffer) = (Vec::new(), [0; 65_536]);
        while let Ok(count @ 1..) = client.read(&mut buffer) {
            recorded.extend_from_slice(&buffer[..count]);
            server.write_all(&buffer[..count]).unwrap();
        }
        let _ = server.shutdown(Shutdown::Both);
        sender.send(recorded).unwrap();
    });
    (address, receiver)
}

#[tokio::test]
async fn a_recorded_set_up_is_worth_nothing() {
    let site = Site::new(&[]);
    let cell = site.start(&[]);
    for scheme in ["hidb+plain", "hidb"] {
        let (address, recorded) = recording_proxy(&cell);
        let credentials = site.credentials("root", PASSWORD);
        let client = Client::connect(&format!("{scheme}://{address}"), options(credentials)).await.unwrap();
        client.tables().await.unwrap();
        drop(client);
        let recorded = tokio::task::spawn_blocking(move || recorded.recv().unwrap()).await.unwrap();
        assert!(!recorded.windows(PASSWORD.len()).any(|part| part == PASSWORD.as_bytes()));
        let mut again = TcpStream::connect(cell.address).unwrap();
        // The cell may have closed before it was all said.
        let _ = again.write_all(&recorded);
        let mut answer = Vec::new();
        let _ = again.read_to_end(&mut answer);
        let ack = encode_frame(FrameKind::HelloAck, 0, &proto::Done {}, &[]).unwrap();
        assert!(!answer.windows(6).any(|part| part == &ack[..6]), "{scheme}: no HelloAck");
        if scheme == "hidb+plain" {
            let text = String::from_utf8_lossy(&answer).into_owned();
            assert!(text.contains("user or password is wrong"), "{text}");
        }
    }
}

#[test]
fn a_cell_listens_beyond_loopback_with_tls_or_when_told_that_it_is_insecure() {
    let site = Site::new(&[]);
    let error = TestCell::try_start_secure(site.path(), &["--listen", "0.0.0.0:0"]).err().unwrap();
    assert!(error.contains("--insecure") && error.contains("tls_certificate"), "{error}");
    let cell = TestCell::try_start_secure(site.path(), &["--listen", "0.0.0.0:0", "--insecure"]).unwrap();
    let address = ([127, 0, 0, 1], cell.address.port()).into();
    Wire::connect(address).load("t", 1, 10);
}

#[test]
fn a_key_that_others_can_read_keeps_the_cell_from_starting() {
    use std::os::unix::fs::PermissionsExt as _;
    let site = Site::new(&[]);
    let issued = site.authority.issue_cell(&["127.0.0.1".into()], week()).unwrap();
    let (certificate, key) = site.authority.keep("cell", &issued).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let options = ["--tls-certificate", certificate.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let error = TestCell::try_start_secure(site.path(), &options).err().unwrap();
    assert!(error.contains("chmod 600"), "{error}");
}

#[test]
fn a_cell_without_users_says_so_and_lets_nobody_in() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::try_start_secure(folder.path(), &[]).unwrap();
    let error = Raw::plain(cell.address).log_in("admin", "admin").unwrap_err();
    assert_eq!(error.code, UNAUTHENTICATED);
}

#[tokio::test]
async fn neither_log_nor_profile_errors_show_a_secret() {
    let site = Site::new(&[]);
    let log = std::fs::File::create(site.path().join("log")).unwrap();
    let issued = site.authority.issue_cell(&["127.0.0.1".into()], week()).unwrap();
    let (certificate, key) = site.authority.keep("cell", &issued).unwrap();
    let ready = site.path().join("ready");
    let mut child = std::process::Command::new(crate::cell::CELL)
        .args(["--port", "0", "--metrics", "false", "--cache", "16MiB", "--cores", "1", "--log", "trace", "--volume"])
        .arg(volume_of(site.path()))
        .arg("--tls-certificate")
        .arg(certificate)
        .arg("--tls-key")
        .arg(key)
        .arg("--ready-file")
        .arg(&ready)
        .stdout(std::process::Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let url = loop {
        match std::fs::read_to_string(&ready) {
            Ok(line) if line.ends_with('\n') => break line.trim().trim_start_matches("ready ").to_string(),
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let client = Client::connect(&url, options(site.credentials("root", PASSWORD))).await.unwrap();
    client.add_user("ada", hidb::auth::Role::Reader, Some("open sesame"), &[]).await.unwrap();
    let wrong = Client::connect(&url, options(site.credentials("root", "not the password"))).await.unwrap_err();
    assert!(!wrong.message.contains("not the password"));
    let missing = Credentials::password("ada", "open sesame");
    assert!(!format!("{missing:?}").contains("sesame"));
    let _ = child.kill();
    let _ = child.wait();
    let log = std::fs::read_to_string(site.path().join("log")).unwrap();
    assert!(log.contains("users changed"), "{log}");
    for secret in [PASSWORD, "open sesame", "not the password", "stored_key", "BEGIN"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[test]
fn the_tools_make_an_authority_and_certificates_that_work() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca");
    let ca = ca.to_str().unwrap();
    let (code, out, err) = tool(&["tls", "init", "--ca", ca, "--host", "localhost", "--host", "127.0.0.1"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("tls_certificate = ") && out.contains("cell.key"), "{out}");
    let made = std::fs::read(folder.path().join("ca/ca.crt")).unwrap();
    let (code, out, err) = tool(&["tls", "client", "ada", "--ca", ca]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("ada.crt") && out.contains("ada.key"), "{out}");
    // Again: another certificate of the same authority.
    assert_eq!(tool(&["tls", "init", "--ca", ca]).0, 0);
    assert_eq!(std::fs::read(folder.path().join("ca/ca.crt")).unwrap(), made);
    for (arguments, word) in [
        (&["tls", "client", "ada", "--ca", "/nonexistent"][..], "tls init"),
        (&["tls", "client", "a b", "--ca", ca], "user's name"),
        (&["tls", "client", "ca", "--ca", ca], "can't have"),
    ] {
        let (code, _, err) = tool(arguments);
        assert!(code == 1 && err.contains(word), "{err}");
    }
}
