//! Any bytes in a slot or a SEND of a link are a frame or a typed error, and any credits move a link to a state that it
//! may be in. Of a link with integrity nothing opens that was not sealed, and what was sealed opens as it was.
#![no_main]

use bytes::Bytes;
use hidb::frame::FrameKind;
use hidb::proto;
use hidb::session::frames::{Checksum, read_send, read_slot};
use hidb::session::seal::{LinkSecret, TAG_BYTES, Way};
use hidb::session::{CellLink, ClientLink, State};
use libfuzzer_sys::fuzz_target;

const SLOTS: u32 = 8;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let slot = Bytes::copy_from_slice(rest);
    let written = rest.len() - usize::from(*first).min(rest.len());
    let mut cell = CellLink::new(1, SLOTS, 4);
    for policy in [Checksum::Full, Checksum::Header, Checksum::None] {
        let _ = read_slot(&slot, written, policy);
        let Ok(frame) = read_send(rest, policy) else { continue };
        if frame.kind == FrameKind::SlotsFree
            && let Ok(free) = frame.message::<proto::SlotsFree>()
        {
            let given = cell.slots_free(free.generation, &free.slots);
            assert!(given.is_ok() || cell.state() == State::Closed, "a lie ends the link");
        }
    }
    seal(u32::from(*first), rest, written);
    // Both ends, driven by the bytes.
    let (mut client, mut writing) = (ClientLink::new(1, SLOTS, 4), Vec::new());
    for byte in rest {
        let slot = u32::from(byte >> 3);
        match byte & 7 {
            0 => drop(cell.slots_free(1, &[slot])),
            1 => writing.extend(cell.begin_write(u64::from(slot))),
            2 => {
                if let Some(slot) = writing.pop() {
                    cell.write_completed(slot, None);
                }
            }
            3 => drop(client.open()),
            4 => drop(client.arrived(slot)),
            5 => drop(client.due_returns()),
            _ => drop(cell.slots_free(slot, &[slot; 2])),
        }
        let counts = cell.slots().counts();
        assert_eq!(counts.unarmed + counts.free + counts.writing + counts.filled, SLOTS);
        assert_eq!(counts.writing as usize, writing.len());
        while cell.next_action().is_some() || client.next_action().is_some() {}
    }
});

/// The bytes as a sealed message, which they are not; then what they hold, sealed, and sealed and cut.
fn seal(immediate: u32, bytes: &[u8], cut: usize) {
    let secret = LinkSecret::new([7; 32]);
    let read = |sealed: &[u8]| {
        let sealed = sealed.to_vec();
        move |offset: usize, target: &mut [u8]| target.copy_from_slice(&sealed[offset..offset + target.len()])
    };
    assert!(secret.cell_ends(1, 1).1.open_send(bytes).is_err());
    assert!(secret.client_ends(1, 1).1.open_slot(immediate, bytes.len(), read(bytes)).is_err());
    let (mut sealer, _) = secret.cell_ends(1, 1);
    let content = sealer.content(&[bytes]);
    let tag = sealer.seal(content, Way::Write { immediate });
    let sealed = [&tag[..], bytes].concat();
    let (_, mut opener) = secret.client_ends(1, 1);
    assert_eq!(opener.open_slot(immediate, sealed.len(), read(&sealed)).expect("it was sealed"), bytes);
    if cut < bytes.len() {
        let (_, mut opener) = secret.client_ends(1, 1);
        assert!(opener.open_slot(immediate, TAG_BYTES + cut, read(&sealed)).is_err());
        assert!(opener.open_slot(immediate, sealed.len(), read(&sealed)).is_err(), "nothing opens after that");
    }
}
