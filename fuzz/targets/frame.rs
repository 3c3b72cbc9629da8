//! Any byte stream, cut anywhere, gives frames or a typed error; what it gives encodes to the same bytes.
#![no_main]

use hidb::convert;
use hidb::frame::{Frame, FrameDecoder, FrameKind, HEADER_BYTES};
use hidb::proto;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // The first byte says where the stream is cut.
    let Some((cut, stream)) = bytes.split_first() else { return };
    let whole = decode(stream, stream.len().max(1));
    let pieces = decode(stream, usize::from(*cut) + 1);
    assert_eq!(whole, pieces);
    // A fuzzer does not guess checksums: set them right, so that what they guard is reached.
    let mut mended = stream.to_vec();
    mend(&mut mended);
    for frame in decode(&mended, mended.len().max(1)) {
        read_body(&frame);
    }
});

/// Puts the right checksums into every whole frame.
fn mend(mut stream: &mut [u8]) {
    while let Some((header, rest)) = stream.split_at_mut_checked(HEADER_BYTES) {
        let length =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize;
        let (body, payload) = (length(16), length(20));
        if body.checked_add(payload).is_none_or(|total| total > rest.len()) {
            return;
        }
        let payload_crc = crc32c::crc32c(&rest[body..body + payload]);
        header[24..28].copy_from_slice(&payload_crc.to_le_bytes());
        let head_crc = crc32c::crc32c_append(crc32c::crc32c(&header[..28]), &rest[..body]);
        header[28..].copy_from_slice(&head_crc.to_le_bytes());
        stream = &mut rest[body + payload..];
    }
}

fn decode(stream: &[u8], piece: usize) -> Vec<Frame> {
    let mut decoder = FrameDecoder::new();
    let mut frames = Vec::new();
    for mut piece in stream.chunks(piece) {
        loop {
            match decoder.push(&mut piece) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return frames,
            }
        }
    }
    frames
}

fn read_body(frame: &Frame) {
    match frame.kind {
        FrameKind::Error => drop(frame.message::<proto::Error>().map(|error| convert::error_from_proto(&error))),
        FrameKind::CreateTable => {
            let message = frame.message::<proto::CreateTable>();
            drop(message.map(|create| create.schema.as_ref().map(convert::schema_from_proto)));
        }
        FrameKind::LoadBegin => drop(frame.message::<proto::LoadBegin>()),
        FrameKind::Execute => drop(frame.message::<proto::Execute>()),
        FrameKind::VectorSearchRequest => drop(frame.message::<proto::VectorSearchRequest>()),
        FrameKind::DeleteRows => drop(frame.message::<proto::DeleteRows>()),
        FrameKind::CreateIndex => drop(frame.message::<proto::CreateIndex>()),
        _ => drop(frame.message::<proto::PredicatePushdownRequest>()),
    }
}
