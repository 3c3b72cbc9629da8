//! What a drive answers to a command: the status field of its completion. Pure.
//!
//! Codes follow the NVM Express Base Specification 2.0, figures 94 to 99 (4.5.1). Linux gives the field without its phase
//! bit, so that the status code is bits 7:0, its type 10:8, More 13 and Do Not Retry 14.

use std::fmt;

/// A status that is not success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(u16);

const GENERIC: u8 = 0;
const COMMAND_SPECIFIC: u8 = 1;
const MEDIA: u8 = 2;
const PATH: u8 = 3;

/// Type and code, what they mean, and what an operator can do about it.
const MEANINGS: &[(u8, u8, &str, &str)] = &[
    (GENERIC, 0x01, "the drive does not know the command", "use the block device instead"),
    (GENERIC, 0x02, "a field of the command is not valid for this drive", "use the block device instead"),
    (GENERIC, 0x04, "the data did not arrive", "look at the kernel's log for errors of the bus"),
    (GENERIC, 0x05, "the drive lost power", "check its power supply"),
    (GENERIC, 0x06, "the drive failed internally", "see `nvme smart-log`; replace it if this comes back"),
    (GENERIC, 0x07, "the command was aborted", "look at the kernel's log for a timeout or a reset"),
    (GENERIC, 0x08, "the drive's queue was deleted", "look at the kernel's log for a reset"),
    (GENERIC, 0x0b, "the drive has no such namespace any more", "see `nvme list`"),
    (GENERIC, 0x15, "the command is denied", "see `nvme get-feature` for locks"),
    (GENERIC, 0x1d, "the drive is being sanitised", "wait until `nvme sanitize-log` says that it is done"),
    (GENERIC, 0x20, "the namespace is write protected", "see `nvme get-feature -f 0x84`"),
    (GENERIC, 0x80, "the range is behind the end of the namespace", "see `nvme id-ns`: was it made smaller?"),
    (GENERIC, 0x81, "the drive has no room left", "see `nvme id-ns`: the namespace is thinly provisioned"),
    (GENERIC, 0x82, "the namespace is not ready", "try again later"),
    (GENERIC, 0x83, "another host has reserved the namespace", "see `nvme resv-report`"),
    (GENERIC, 0x84, "the drive is being formatted", "wait until it is done: what it held is lost"),
    (COMMAND_SPECIFIC, 0x82, "the range can only be read", "see `nvme id-ns`"),
    (MEDIA, 0x80, "the drive could not write it", "see `nvme smart-log`; replace the drive"),
    (MEDIA, 0x81, "the drive could not read it back", "see `nvme smart-log`; what was there is lost"),
    (MEDIA, 0x82, "the drive found a wrong checksum", "see `nvme smart-log`; what was there is lost"),
    (MEDIA, 0x86, "access is denied", "unlock the drive"),
    (MEDIA, 0x87, "it was deallocated or never written", "see `nvme id-ns`"),
    (PATH, 0x70, "the path to the drive was lost", "look at the kernel's log"),
    (PATH, 0x71, "the kernel aborted the command", "look at the kernel's log for a timeout or a reset"),
];

impl Status {
    /// The status that Linux reports as a positive result; `None` for success.
    pub(in crate::device) fn of(result: u16) -> Option<Self> {
        (result & 0x7ff != 0).then_some(Status(result))
    }

    /// The status code type.
    pub fn kind(self) -> u8 {
        (self.0 >> 8 & 7) as u8
    }

    /// The status code.
    pub fn code(self) -> u8 {
        self.0 as u8
    }

    /// Whether the drive's memory is at fault, or what is in it.
    pub(in crate::device) fn is_of_media(self) -> bool {
        self.kind() == MEDIA
    }

    /// Whether the same command may succeed later: the drive did not set Do Not Retry.
    pub fn may_be_tried_again(self) -> bool {
        self.0 & 0x4000 == 0
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = MEANINGS.iter().find(|(kind, code, ..)| (*kind, *code) == (self.kind(), self.code()));
        let (meaning, advice) = known.map_or(
            ("the drive gave a status that is not known here", "look it up in the NVMe specification"),
            |(_, _, meaning, advice)| (*meaning, *advice),
        );
        write!(f, "{meaning} (NVMe status {:x}h/{:02x}h): {advice}", self.kind(), self.code())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bits_are_where_linux_has_them() {
        assert_eq!(Status::of(0), None);
        // More and Do Not Retry alone are no failure.
        assert_eq!(Status::of(0x6000), None);
        // NVME_SC_UNRECOVERED and NVME_SC_DNR of the kernel's nvme.h.
        let lost = Status::of(0x281 | 0x4000).unwrap();
        assert_eq!((lost.kind(), lost.code(), lost.may_be_tried_again()), (2, 0x81, false));
        // NVME_SC_HOST_ABORTED_CMD
        let aborted = Status::of(0x371).unwrap();
        assert_eq!((aborted.kind(), aborted.code(), aborted.may_be_tried_again()), (3, 0x71, true));
    }

    #[test]
    fn an_operator_reads_what_happened_and_what_to_do() {
        let text = Status::of(0x4281).unwrap().to_string();
        assert_eq!(
            text,
            "the drive could not read it back (NVMe status 2h/81h): see `nvme smart-log`; what was there is lost"
        );
        assert!(Status::of(0x7c0).unwrap().to_string().contains("7h/c0h"));
    }

    proptest! {
        #[test]
        fn every_status_has_a_text_with_its_numbers(result: u16) {
            let Some(status) = Status::of(result) else {
                prop_assert_eq!(result & 0x7ff, 0);
                return Ok(());
            };
            prop_assert_eq!(u16::from(status.kind()) << 8 | u16::from(status.code()), result & 0x7ff);
            let numbers = format!("{:x}h/{:02x}h", status.kind(), status.code());
            prop_assert!(status.to_string().contains(&numbers));
        }
    }
}
