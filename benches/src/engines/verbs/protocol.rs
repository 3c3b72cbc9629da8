//! What both ends of a `verbs` job agree on before they measure.
//!
//! Owns [`Wish`], which goes from the job to its peer over TCP; then both exchange endpoints ([`verbs_shim::Endpoint`]). The
//! connection stays open as long as the job runs: its end is the peer's sign to stop. Two kinds of this program's own
//! versions need not understand each other; the first bytes say so.

use std::io::{self, Read, Write};

/// The first bytes: name and version.
const MAGIC: [u8; 4] = *b"HVB1";
const BYTES: usize = 16;
/// Receives beyond the messages that may be under way.
const RECEIVES_SPARE: u32 = 16;
/// The most memory that a peer registers for a job.
const MEMORY_BYTES_MAX: u64 = 1 << 30;

/// What an op is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Send,
    Write,
    Read,
    FetchAdd,
    CompareSwap,
}

impl Verb {
    const NAMES: [(&'static str, Verb); 5] = [
        ("send", Verb::Send),
        ("write", Verb::Write),
        ("read", Verb::Read),
        ("fetch_add", Verb::FetchAdd),
        ("compare_swap", Verb::CompareSwap),
    ];

    pub fn is_atomic(self) -> bool {
        matches!(self, Verb::FetchAdd | Verb::CompareSwap)
    }
}

impl std::str::FromStr for Verb {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == text);
        found.map(|(_, verb)| *verb).ok_or_else(|| "expected send, write, read, fetch_add or compare_swap".into())
    }
}

/// What a job wants of its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    pub verb: Verb,
    /// Each message is answered by one like it.
    pub ping_pong: bool,
    /// Messages under way at most.
    pub depth: u32,
    /// Bytes of the longest message.
    pub bytes: u32,
}

impl Wish {
    /// Receives that each end posts: while some are posted again, others must be there.
    pub fn receives(&self) -> u32 {
        match self.verb {
            Verb::Send => self.depth.saturating_add(RECEIVES_SPARE),
            _ => 0,
        }
    }

    /// Why it can't be done, if so.
    pub fn check(&self) -> Result<(), String> {
        // What a peer registers: the memory that it lends, the receives, and an answer.
        let memory = (u64::from(self.depth) + u64::from(self.receives()) + 1) * u64::from(self.bytes);
        let wrong = match self {
            Wish { depth: 0, .. } | Wish { bytes: 0, .. } => "a job without messages".into(),
            Wish { depth: 16_385.., .. } => format!("iodepth={}: at most 16384", self.depth),
            _ if memory > MEMORY_BYTES_MAX => {
                format!("the peer would register {memory} bytes: at most {MEMORY_BYTES_MAX}; lower iodepth or bs")
            }
            Wish { verb, bytes, .. } if verb.is_atomic() && *bytes != 8 => "atomics have bs=8".into(),
            Wish { ping_pong: true, verb: Verb::Send | Verb::Write, depth: 1, bytes } if bytes % 8 == 0 => {
                return Ok(());
            }
            Wish { ping_pong: true, .. } => {
                "ping_pong=1 takes verb=send or verb=write, iodepth=1, and a bs that is a multiple of 8".into()
            }
            _ => return Ok(()),
        };
        Err(wrong)
    }

    pub fn send(&self, stream: &mut impl Write) -> io::Result<()> {
        let mut bytes = [0; BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = Verb::NAMES.iter().position(|(_, verb)| *verb == self.verb).unwrap_or_default() as u8;
        bytes[5] = self.ping_pong.into();
        bytes[8..12].copy_from_slice(&self.depth.to_le_bytes());
        bytes[12..].copy_from_slice(&self.bytes.to_le_bytes());
        stream.write_all(&bytes)
    }

    pub fn receive(stream: &mut impl Read) -> io::Result<Self> {
        let wrong = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_string());
        let mut bytes = [0; BYTES];
        stream.read_exact(&mut bytes)?;
        if bytes[..4] != MAGIC {
            return Err(wrong("this is no job of this version of heliostat-bench"));
        }
        let (_, verb) = *Verb::NAMES.get(usize::from(bytes[4])).ok_or_else(|| wrong("an unknown verb"))?;
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let wish = Wish { verb, ping_pong: bytes[5] != 0, depth: number(8), bytes: number(12) };
        wish.check().map_err(|text| wrong(&text))?;
        Ok(wish)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wishes_that_make_no_sense_are_refused_with_a_reason() {
        let wish = Wish { verb: Verb::Write, ping_pong: false, depth: 16, bytes: 65536 };
        assert_eq!(wish.check(), Ok(()));
        for (wish, part) in [
            (Wish { depth: 0, ..wish }, "without messages"),
            (Wish { depth: 20_000, ..wish }, "16384"),
            (Wish { depth: 16_384, bytes: 1 << 20, ..wish }, "bytes: at most"),
            (Wish { verb: Verb::FetchAdd, ..wish }, "bs=8"),
            (Wish { ping_pong: true, ..wish }, "iodepth=1"),
            (Wish { ping_pong: true, depth: 1, bytes: 12, ..wish }, "multiple of 8"),
            (Wish { ping_pong: true, depth: 1, verb: Verb::Read, ..wish }, "verb=send"),
        ] {
            assert!(wish.check().unwrap_err().contains(part), "{wish:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_wish_that_holds_or_an_error(bytes: [u8; BYTES], right in any::<bool>()) {
            let mut bytes = bytes;
            if right {
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[4] %= 5;
            }
            if let Ok(wish) = Wish::receive(&mut &bytes[..]) {
                prop_assert_eq!(wish.check(), Ok(()));
                let mut sent = Vec::new();
                wish.send(&mut sent).unwrap();
                prop_assert_eq!(Wish::receive(&mut &sent[..]).unwrap(), wish);
            }
        }
    }
}
