//! What is known of a namespace, and its blocking reads and writes. Owns the descriptor of `/dev/ngXnY`.
//!
//! Sizes come from the drive (Identify Namespace); limits of the kernel come from sysfs, from the queue of the sibling
//! block device `/dev/nvmeXnY`. Called by [`crate::device::file`] and [`crate::device::uring`].

use std::{
    fs::File,
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use super::{
    command::{BLOCKS_MAX, COMMAND_BYTES, Command},
    ioctl::{self, Data, Queue},
};
use crate::device::{AlignedBuf, BLOCK_BYTES, DeviceError, PIECE_BYTES_MAX, Result};

/// The largest transfer of a namespace whose limits are not known: 32 pages, which every drive takes.
const TRANSFER_BYTES_DEFAULT: usize = 128 << 10;
/// Bytes of the Identify Namespace data structure.
const IDENTIFY_BYTES: usize = 4096;

/// How bytes of a namespace become logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::device) struct Addressing {
    /// The namespace's number.
    pub id: u32,
    /// Bytes of a logical block, as a power of two: 9 to 12.
    pub block_bits: u32,
}

impl Addressing {
    /// The command that reads `length` bytes at `offset`, both whole blocks, into memory at `address`.
    pub fn read(self, offset: u64, address: u64, length: usize) -> [u8; COMMAND_BYTES] {
        self.read_command(offset, length).encode(address, length as u32)
    }

    /// The command that writes them.
    pub fn write(self, offset: u64, address: u64, length: usize) -> [u8; COMMAND_BYTES] {
        self.write_command(offset, length).encode(address, length as u32)
    }

    /// The command that makes what was written durable.
    pub fn flush(self) -> [u8; COMMAND_BYTES] {
        Command::flush(self.id).encode(0, 0)
    }

    fn read_command(self, offset: u64, length: usize) -> Command {
        Command::read(self.id, offset >> self.block_bits, length as u64 >> self.block_bits)
    }

    fn write_command(self, offset: u64, length: usize) -> Command {
        Command::write(self.id, offset >> self.block_bits, length as u64 >> self.block_bits)
    }

    fn block_bytes(self) -> u64 {
        1 << self.block_bits
    }
}

/// An open namespace.
#[derive(Debug)]
pub struct Namespace {
    pub(in crate::device) device: File,
    pub(in crate::device) addressing: Addressing,
    size_bytes: u64,
    transfer_bytes_max: usize,
    path: PathBuf,
}

impl Namespace {
    /// Opens `/dev/ngXnY` and asks the drive what it is.
    ///
    /// # Errors
    /// [`DeviceError::Unusable`] when it is no namespace or one that can't hold a volume, [`DeviceError::Io`] with
    /// operation `open`, [`DeviceError::Command`].
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |error: io::Error| DeviceError::of(path, "open", 0, 0, &error);
        let unusable = |reason: String| DeviceError::Unusable { path: path.to_owned(), reason };
        let (_, generic) = sysfs(path)
            .map_err(fail)?
            .ok_or_else(|| unusable("it is a character device, but not an NVMe namespace (/dev/ngXnY)".to_owned()))?;
        let device = File::options().read(true).write(true).open(path).map_err(fail)?;
        let id = ioctl::namespace_id(&device).map_err(fail)?;
        let mut answer = AlignedBuf::zeroed(IDENTIFY_BYTES);
        let status = ioctl::submit(&device, Queue::Admin, &Command::identify(id), Data::Receive(&mut answer));
        match status.map_err(fail)? {
            None => {}
            Some(status) => return Err(DeviceError::command(path, "identify", 0, IDENTIFY_BYTES as u64, status)),
        }
        let format = Format::parse(&answer).map_err(&unusable)?;
        let limits = Limits::of(generic.as_deref());
        if limits.is_zoned {
            return Err(unusable("it is zoned: a volume is written in place".to_owned()));
        }
        Ok(Namespace {
            device,
            addressing: Addressing { id, block_bits: format.block_bits },
            size_bytes: format.blocks << format.block_bits,
            transfer_bytes_max: limits.transfer_bytes_max,
            path: path.to_owned(),
        })
    }

    /// Its size in bytes, a multiple of its logical blocks.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The longest transfer of one command, a multiple of 4 KiB.
    pub fn transfer_bytes_max(&self) -> usize {
        self.transfer_bytes_max
    }

    /// Reads bytes from any offset, by blocking commands.
    ///
    /// # Errors
    /// [`DeviceError::Command`], [`DeviceError::Io`], [`DeviceError::Gone`].
    pub(in crate::device) fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let end = offset + bytes.len() as u64;
        let mut at = offset;
        // Blocks at both ends may be covered in part.
        let mut transfer = AlignedBuf::zeroed((bytes.len() + 2 * BLOCK_BYTES).min(self.transfer_bytes_max));
        while at < end {
            let first = at & !(self.addressing.block_bytes() - 1);
            let covered = (end - first).next_multiple_of(self.addressing.block_bytes());
            let longest = transfer.len() as u64;
            let piece = &mut transfer[..covered.min(longest) as usize];
            let command = self.addressing.read_command(first, piece.len());
            self.submit("read", &command, first, piece.len(), Data::Receive(&mut *piece))?;
            let wanted = &piece[(at - first) as usize..];
            let taken = wanted.len().min((end - at) as usize);
            let done = (at - offset) as usize;
            bytes[done..done + taken].copy_from_slice(&wanted[..taken]);
            at += taken as u64;
        }
        Ok(())
    }

    /// Writes whole 4 KiB blocks, by blocking commands.
    ///
    /// # Errors
    /// As [`Namespace::read_exact_at`].
    pub(in crate::device) fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        for (index, piece) in bytes.chunks(self.transfer_bytes_max).enumerate() {
            let at = offset + (index * self.transfer_bytes_max) as u64;
            let command = self.addressing.write_command(at, piece.len());
            self.submit("write", &command, at, piece.len(), Data::Send(piece))?;
        }
        Ok(())
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// As [`Namespace::read_exact_at`].
    pub(in crate::device) fn flush(&self) -> Result<()> {
        self.submit("flush", &Command::flush(self.addressing.id), 0, 0, Data::None)
    }

    fn submit(
        &self,
        operation: &'static str,
        command: &Command,
        offset: u64,
        length: usize,
        data: Data<'_>,
    ) -> Result<()> {
        match ioctl::submit(&self.device, Queue::Io, command, data) {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(DeviceError::command(&self.path, operation, offset, length as u64, status)),
            Err(error) => Err(DeviceError::of(&self.path, operation, offset, length as u64, &error)),
        }
    }

    /// Whether the namespace's queues can be polled for completions; see `nvme.poll_queues` of the kernel.
    pub fn can_be_polled(path: &Path) -> bool {
        sysfs(path).ok().flatten().is_some_and(|(_, queue)| Limits::of(queue.as_deref()).can_be_polled)
    }
}

/// The block device `/dev/nvmeXnY` of the namespace `/dev/ngXnY`, through which others would use it; `None` when the path
/// is no namespace's or there is no such device (a command set that the kernel has no block driver for).
///
/// # Errors
/// Those of looking at the path.
pub fn block_device_of(path: &Path) -> io::Result<Option<PathBuf>> {
    let name = sysfs(path)?.map(|(name, _)| name);
    let block = name.map(|name| Path::new("/dev").join(name));
    Ok(block.filter(|block| std::fs::metadata(block).is_ok_and(|metadata| metadata.file_type().is_block_device())))
}

/// The name of the sibling block device of a namespace's character device and, when the kernel has one, its folder of
/// queue limits; `None` when the path is something else. It may have any name: the kernel's is the one that counts.
fn sysfs(path: &Path) -> io::Result<Option<(String, Option<PathBuf>)>> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.file_type().is_char_device() {
        return Ok(None);
    }
    let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
    let Ok(device) = std::fs::canonicalize(format!("/sys/dev/char/{major}:{minor}")) else { return Ok(None) };
    let class = std::fs::canonicalize(device.join("subsystem")).unwrap_or_default();
    let name = device.file_name().and_then(|name| name.to_str()).and_then(block_name);
    let Some(name) = name.filter(|_| class.ends_with("nvme-generic")) else { return Ok(None) };
    let queue = Path::new("/sys/class/block").join(&name).join("queue");
    Ok(Some((name, queue.is_dir().then_some(queue))))
}

/// `nvme0n1` of `ng0n1`.
fn block_name(generic: &str) -> Option<String> {
    let rest = generic.strip_prefix("ng")?;
    let (controller, namespace) = rest.split_once('n')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(controller) && is_number(namespace)).then(|| format!("nvme{rest}"))
}

/// What of Identify Namespace matters (NVM Command Set Specification 1.0, figure 97).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Format {
    blocks: u64,
    block_bits: u32,
}

impl Format {
    /// Reads it; the error says why there can be no volume.
    fn parse(identify: &[u8]) -> Result<Self, String> {
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| identify[at + byte]));
        // NSZE; FLBAS, whose bits 6:5 are the upper ones; LBAFn: metadata bytes (16 bits) and the block's power of two.
        let (blocks, formatted) = (number(0), identify[26]);
        let index = usize::from(formatted & 0xf | (formatted & 0x60) >> 1);
        let format = number(128 + 4 * index);
        let (metadata_bytes, block_bits) = (format & 0xffff, (format >> 16 & 0xff) as u32);
        if metadata_bytes != 0 {
            return Err(format!(
                "its blocks have {metadata_bytes} bytes of metadata: format it without (nvme format --lbaf), or use the block device"
            ));
        }
        if !(9..=BLOCK_BYTES.ilog2()).contains(&block_bits) {
            return Err(format!("its blocks have 2^{block_bits} bytes: 512 to {BLOCK_BYTES} are possible"));
        }
        if blocks == 0 || blocks > u64::MAX >> block_bits {
            return Err(format!("it says that it has {blocks} blocks"));
        }
        Ok(Format { blocks, block_bits })
    }
}

/// What the kernel says of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    transfer_bytes_max: usize,
    can_be_polled: bool,
    is_zoned: bool,
}

impl Limits {
    fn of(queue: Option<&Path>) -> Self {
        let read = |name: &str| {
            let text = queue.and_then(|queue| std::fs::read_to_string(queue.join(name)).ok());
            text.map(|text| text.trim().to_owned())
        };
        let number = |name: &str| read(name).and_then(|text| text.parse::<usize>().ok());
        Limits {
            transfer_bytes_max: transfer_bytes_max(number("max_hw_sectors_kb"), number("max_segments")),
            can_be_polled: number("io_poll") == Some(1),
            is_zoned: read("zoned").is_some_and(|zoned| zoned != "none"),
        }
    }
}

/// The longest transfer: what the drive takes (MDTS, which is `max_hw_sectors_kb` to the kernel), and what the kernel can
/// map when no two of its pages are neighbours, which is less for many drives: 127 segments are 508 KiB.
fn transfer_bytes_max(hardware_kibibytes: Option<usize>, segments: Option<usize>) -> usize {
    let (Some(kibibytes), Some(segments)) = (hardware_kibibytes, segments) else { return TRANSFER_BYTES_DEFAULT };
    let bytes = kibibytes.saturating_mul(1024).min(segments.saturating_mul(BLOCK_BYTES));
    // The smallest blocks have 512 bytes.
    let bytes = bytes.min(BLOCKS_MAX as usize * 512).min(PIECE_BYTES_MAX);
    (bytes / BLOCK_BYTES * BLOCK_BYTES).max(BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identify(blocks: u64, flbas: u8, index: usize, metadata_bytes: u16, block_bits: u8) -> Vec<u8> {
        let mut bytes = vec![0; IDENTIFY_BYTES];
        bytes[..8].copy_from_slice(&blocks.to_le_bytes());
        bytes[26] = flbas;
        bytes[128 + 4 * index..][..2].copy_from_slice(&metadata_bytes.to_le_bytes());
        bytes[128 + 4 * index + 2] = block_bits;
        bytes
    }

    #[test]
    fn a_namespace_is_identified_by_the_format_it_has() {
        let format = Format::parse(&identify(16_777_216, 0, 0, 0, 9)).unwrap();
        assert_eq!(format, Format { blocks: 16_777_216, block_bits: 9 });
        // Format 18: bits 6:5 of FLBAS are bits 5:4 of the index. Bit 4 of it says where metadata would be.
        let format = Format::parse(&identify(1000, 0b0011_0010, 18, 0, 12)).unwrap();
        assert_eq!(format, Format { blocks: 1000, block_bits: 12 });
        for (identified, part) in [
            (identify(1000, 1, 1, 8, 12), "8 bytes of metadata"),
            (identify(1000, 0, 0, 0, 16), "2^16 bytes"),
            (identify(1000, 0, 0, 0, 0), "2^0 bytes"),
            (identify(0, 0, 0, 0, 9), "0 blocks"),
            (identify(u64::MAX, 0, 0, 0, 9), "blocks"),
        ] {
            let reason = Format::parse(&identified).unwrap_err();
            assert!(reason.contains(part), "{reason}");
        }
    }

    #[test]
    fn siblings_have_the_names_that_the_kernel_gives_them() {
        assert_eq!(block_name("ng0n1").as_deref(), Some("nvme0n1"));
        assert_eq!(block_name("ng12n345").as_deref(), Some("nvme12n345"));
        for other in ["ng0", "nvme0n1", "ng0n", "ngn1", "ng0n1p1", "null", "ng0c0n1"] {
            assert_eq!(block_name(other), None, "{other}");
        }
    }

    #[test]
    fn a_character_device_that_is_no_namespace_is_refused() {
        assert_eq!(block_device_of(Path::new("/dev/null")).unwrap(), None);
        assert!(!Namespace::can_be_polled(Path::new("/dev/null")));
        let error = Namespace::open(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(&error, DeviceError::Unusable { reason, .. } if reason.contains("/dev/ngXnY")), "{error}");
    }

    #[test]
    fn a_transfer_fits_the_drive_and_the_pages_that_the_kernel_maps() {
        assert_eq!(transfer_bytes_max(Some(512), Some(127)), 127 * 4096);
        assert_eq!(transfer_bytes_max(Some(128), Some(127)), 128 << 10);
        assert_eq!(transfer_bytes_max(None, Some(127)), TRANSFER_BYTES_DEFAULT);
    }

    proptest! {
        #[test]
        fn transfers_are_whole_pages_and_fit_into_a_command(kibibytes in 4usize..1 << 40, segments in 1usize..1 << 40) {
            let bytes = transfer_bytes_max(Some(kibibytes), Some(segments));
            prop_assert!(bytes.is_multiple_of(BLOCK_BYTES) && bytes > 0);
            prop_assert!(bytes <= kibibytes * 1024 && bytes / BLOCK_BYTES <= segments);
            prop_assert!(bytes as u64 / 512 <= BLOCKS_MAX);
        }

        #[test]
        fn any_answer_to_identify_is_a_format_or_a_reason(answer in proptest::collection::vec(any::<u8>(), IDENTIFY_BYTES)) {
            if let Ok(format) = Format::parse(&answer) {
                prop_assert!((9..=12).contains(&format.block_bits));
                prop_assert!((format.blocks << format.block_bits) >> format.block_bits == format.blocks);
            }
        }
    }
}
