//! Bytes that are not HIDB, or not what the protocol allows: the cell says so, closes, and goes on serving others.

mod cell;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use cell::{PATIENCE, TestCell, Wire};
use hidb::frame::{FrameKind, encode_frame};
use hidb::{ErrorCode, proto};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Sends bytes and gives the error the cell answers before it closes.
fn error_for(wire: &mut Wire, bytes: &[u8]) -> proto::Error {
    wire.stream.write_all(bytes).unwrap();
    let frame = wire.receive().expect("an Error frame before the end");
    assert_eq!(frame.kind, FrameKind::Error);
    assert_eq!(frame.request_id, 0);
    assert!(wire.receive().is_none(), "the connection must end after a protocol error");
    frame.message().unwrap()
}

fn frame() -> Vec<u8> {
    encode_frame(FrameKind::ListTables, 5, &proto::ListTables {}, b"payload").unwrap()
}

#[test]
fn damaged_frames_are_answered_with_a_typed_error_and_the_end_of_the_connection() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &[]);
    let mut bystander = Wire::connect(cell.address);
    let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = frame();
        change(&mut bytes);
        bytes
    };
    let cases: Vec<(&str, Vec<u8>, ErrorCode)> = vec![
        ("magic", damaged(&|b| b[0] = b'X'), ErrorCode::Protocol),
        ("version", damaged(&|b| b[4] = 99), ErrorCode::UnsupportedVersion),
        ("kind", damaged(&|b| b[5] = 250), ErrorCode::Protocol),
        ("flags", damaged(&|b| b[6] = 1), ErrorCode::Protocol),
        ("body length", damaged(&|b| b[16..20].copy_from_slice(&u32::MAX.to_le_bytes())), ErrorCode::LimitExceeded),
        (
            "payload length",
            damaged(&|b| b[20..24].copy_from_slice(&(1u32 << 20).to_le_bytes())),
            ErrorCode::LimitExceeded,
        ),
        ("header crc", damaged(&|b| b[8] ^= 1), ErrorCode::Corruption),
        ("payload", damaged(&|b| *b.last_mut().unwrap() ^= 1), ErrorCode::Corruption),
        ("garbage after a frame", damaged(&|b| b.extend([0xAA; 40])), ErrorCode::Protocol),
    ];
    for (what, bytes, code) in cases {
        // As the first frame, and after the handshake.
        let before = if what == "garbage after a frame" { vec![] } else { vec![Wire::open(cell.address)] };
        for mut wire in before.into_iter().chain([Wire::connect(cell.address)]) {
            if what == "garbage after a frame" {
                wire.stream.write_all(&bytes).unwrap();
                let frames: Vec<_> = std::iter::from_fn(|| wire.receive()).collect();
                let last: proto::Error = frames.last().unwrap().message().unwrap();
                assert_eq!(ErrorCode::from_number(last.code), code, "{what}: {}", last.message);
                continue;
            }
            let error = error_for(&mut wire, &bytes);
            assert_eq!(ErrorCode::from_number(error.code), code, "{what}: {}", error.message);
        }
        assert!(bystander.tables().is_empty());
    }
    assert!(cell.stop().success());
}

#[test]
fn random_bytes_neither_end_nor_hang_the_cell() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &[]);
    let mut bystander = Wire::connect(cell.address);
    let mut random = ChaCha8Rng::seed_from_u64(20261121);
    for round in 0..200 {
        let mut wire = if round % 2 == 0 { Wire::open(cell.address) } else { Wire::connect(cell.address) };
        let mut bytes: Vec<u8> = (0..random.random_range(1..3000)).map(|_| random.random()).collect();
        if round % 3 == 0 {
            // A whole frame with random bits flipped, so that some get past the header.
            bytes = encode_frame(FrameKind::PredicatePushdownRequest, 9, &proto::ListTables {}, &bytes).unwrap();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..bytes.len());
                bytes[at] ^= 1 << random.random_range(0..8);
            }
        }
        let _ = wire.stream.write_all(&bytes);
        let _ = wire.stream.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = wire.stream.read_to_end(&mut rest);
    }
    // Valid frames whose bodies are random.
    for kind in FrameKind::ALL {
        let mut wire = Wire::connect(cell.address);
        for id in 1..4 {
            let body: Vec<u8> = (0..random.random_range(1..200)).map(|_| random.random()).collect();
            let bytes = raw_frame(*kind, id, &body);
            let _ = wire.stream.write_all(&bytes);
        }
        let _ = wire.stream.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = wire.stream.read_to_end(&mut rest);
    }
    assert!(bystander.tables().is_empty());
    assert!(cell.stop().success());
}

/// A frame with right checksums around any body.
fn raw_frame(kind: FrameKind, id: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"HIDB".to_vec();
    bytes.extend([1, kind as u8, 0, 0]);
    bytes.extend(id.to_le_bytes());
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend([0; 8]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), body);
    bytes.extend(crc.to_le_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn a_client_that_says_nothing_is_closed_and_told_why() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &["--handshake-timeout", "300ms"]);
    let mut wire = Wire::open(cell.address);
    let began = Instant::now();
    let error: proto::Error = wire.receive().unwrap().message().unwrap();
    assert!(error.message.contains("no Hello within 300 ms"), "{}", error.message);
    assert!(wire.receive().is_none());
    assert!(began.elapsed() >= Duration::from_millis(290) && began.elapsed() < PATIENCE);
}

#[test]
fn the_first_frame_must_be_a_hello_of_a_version_the_cell_speaks() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &[]);
    let error = error_for(&mut Wire::open(cell.address), &frame());
    assert!(error.message.contains("must be Hello, not ListTables"), "{}", error.message);
    let hello = proto::Hello { version_min: 7, version_max: 9, ..Default::default() };
    let bytes = encode_frame(FrameKind::Hello, 0, &hello, &[]).unwrap();
    let error = error_for(&mut Wire::open(cell.address), &bytes);
    assert_eq!(ErrorCode::from_number(error.code), ErrorCode::UnsupportedVersion);
    assert!(error.message.contains("7 to 9"), "{}", error.message);
}
