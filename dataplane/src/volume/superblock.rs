//! The superblock: what says that a device is a Heliostat volume, which one, and how it is laid out.
//!
//! Two copies, in the first and in the last 4 KiB of the volume. Fields, little-endian: magic (8), format version
//! (4), extent unit (4), volume UUID (16), secret (16), generation (8), size in bytes (8), CRC32C of the 64 bytes
//! before it (4).
//!
//! Invariants
//! - A volume opens when one copy is whole; [`crate::store::check`] reports a missing or different second one.
//! - A copy is written and flushed before the other is touched.

use std::path::Path;

use super::{BLANK_BYTES, EXTENT_UNIT_BYTES, FORMAT_VERSION, VOLUME_BYTES_MIN};
use crate::device::file::FileDevice;
use crate::device::{AlignedBuf, Device, Medium};
use crate::store::error::{Result, StoreError};

const MAGIC: [u8; 8] = *b"HELIOVOL";
const BODY_BYTES: usize = 64;

/// What both superblocks say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Which volume it is.
    pub volume_uuid: [u8; 16],
    /// Random bytes in every object header of the volume, never shown to a client.
    pub secret: [u8; 16],
    /// Counts rewrites of the superblock.
    pub generation: u64,
    /// Size of the volume in bytes, a multiple of the extent unit.
    pub size_bytes: u64,
}

/// Why 4 KiB are not a superblock of this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotASuperblock {
    /// No magic, or a checksum that does not match.
    Absent,
    /// A superblock of another format version.
    Version(u32),
}

impl Superblock {
    /// A superblock for a new volume.
    pub fn new(size_bytes: u64) -> Self {
        Superblock {
            volume_uuid: uuid::Uuid::new_v4().into_bytes(),
            secret: uuid::Uuid::new_v4().into_bytes(),
            generation: 1,
            size_bytes: size_bytes / EXTENT_UNIT_BYTES * EXTENT_UNIT_BYTES,
        }
    }

    /// The volume's UUID as text.
    pub fn uuid_text(&self) -> String {
        uuid::Uuid::from_bytes(self.volume_uuid).to_string()
    }

    /// The block as it is on the volume.
    pub fn encode(&self) -> AlignedBuf {
        let mut body = Vec::with_capacity(BODY_BYTES + 4);
        body.extend_from_slice(&MAGIC);
        body.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        body.extend_from_slice(&(EXTENT_UNIT_BYTES as u32).to_le_bytes());
        body.extend_from_slice(&self.volume_uuid);
        body.extend_from_slice(&self.secret);
        body.extend_from_slice(&self.generation.to_le_bytes());
        body.extend_from_slice(&self.size_bytes.to_le_bytes());
        body.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        AlignedBuf::from_slice(&body)
    }

    /// Reads one copy.
    ///
    /// # Errors
    /// [`NotASuperblock`].
    pub fn decode(block: &[u8]) -> Result<Self, NotASuperblock> {
        let (Some(body), Some(crc)) = (block.get(..BODY_BYTES), block.get(BODY_BYTES..BODY_BYTES + 4)) else {
            return Err(NotASuperblock::Absent);
        };
        let array = |from: usize| -> [u8; 16] { std::array::from_fn(|i| body[from + i]) };
        let number = |from: usize| u64::from_le_bytes(std::array::from_fn(|i| body[from + i]));
        let short = |from: usize| u32::from_le_bytes(std::array::from_fn(|i| body[from + i]));
        if body[..8] != MAGIC {
            return Err(NotASuperblock::Absent);
        }
        // The version comes before the checksum: a newer layout may keep its checksum elsewhere.
        if short(8) != FORMAT_VERSION {
            return Err(NotASuperblock::Version(short(8)));
        }
        let size_bytes = number(56);
        let whole = crc == crc32c::crc32c(body).to_le_bytes();
        let sane = u64::from(short(12)) == EXTENT_UNIT_BYTES
            && size_bytes >= VOLUME_BYTES_MIN
            && size_bytes.is_multiple_of(EXTENT_UNIT_BYTES);
        if !whole || !sane {
            return Err(NotASuperblock::Absent);
        }
        Ok(Superblock { volume_uuid: array(16), secret: array(32), generation: number(48), size_bytes })
    }

    /// Units of the volume; the first and last hold superblocks.
    pub fn units(&self) -> u64 {
        self.size_bytes / EXTENT_UNIT_BYTES
    }

    /// Byte offsets of the two copies.
    pub fn offsets(&self) -> [u64; 2] {
        [0, self.size_bytes - EXTENT_UNIT_BYTES]
    }
}

/// Reads the superblocks of a device and checks that the device holds the volume they describe.
///
/// # Errors
/// [`StoreError::NotFormatted`], [`StoreError::UnsupportedVersion`], [`StoreError::Truncated`], or the device's.
pub async fn open<D: Device>(device: &D) -> Result<Superblock> {
    let copies = read_copies(device).await?;
    let path = device.path().to_path_buf();
    let found = copies.iter().flatten().max_by_key(|copy| copy.generation).copied();
    let Some(superblock) = found else { return Err(StoreError::NotFormatted { path }) };
    if device.size_bytes() < superblock.size_bytes {
        return Err(StoreError::Truncated {
            path,
            expected_bytes: superblock.size_bytes,
            found_bytes: device.size_bytes(),
        });
    }
    Ok(superblock)
}

/// Both copies, `None` where there is none. The second is looked for where the first says it is, else at the end
/// of the device.
///
/// # Errors
/// [`StoreError::UnsupportedVersion`], or the device's.
pub async fn read_copies<D: Device>(device: &D) -> Result<[Option<Superblock>; 2]> {
    let decode = |block: &[u8]| match Superblock::decode(block) {
        Ok(superblock) => Ok(Some(superblock)),
        Err(NotASuperblock::Absent) => Ok(None),
        Err(NotASuperblock::Version(found)) => Err(StoreError::UnsupportedVersion {
            what: format!("the volume {}", device.path().display()),
            found,
            supported: FORMAT_VERSION,
        }),
    };
    let unit = EXTENT_UNIT_BYTES;
    let device_bytes = device.size_bytes() / unit * unit;
    if device_bytes < unit {
        return Ok([None, None]);
    }
    let first = decode(&device.read(0, unit as usize).await?)?;
    let second_at = first.map_or(device_bytes - unit, |copy| copy.offsets()[1]);
    let second = if second_at + unit > device_bytes || second_at == 0 {
        None
    } else {
        decode(&device.read(second_at, unit as usize).await?)?
    };
    Ok([first, second.filter(|copy| first.is_none_or(|other| other.volume_uuid == copy.volume_uuid))])
}

/// Formats a file (made and extended to `size_bytes`, sparse) or a block device (its whole size when `size_bytes`
/// is `None`), and returns what was written.
///
/// # Errors
/// [`StoreError::AlreadyFormatted`] and [`StoreError::NotEmpty`] unless `force`, [`StoreError::VolumeTooSmall`], [`StoreError::InUse`], or I/O.
pub fn format_file(path: &Path, size_bytes: Option<u64>, force: bool) -> Result<Superblock> {
    let too_small = |bytes| StoreError::VolumeTooSmall { path: path.to_path_buf(), bytes, min: VOLUME_BYTES_MIN };
    if let Some(bytes) = size_bytes.filter(|bytes| *bytes < VOLUME_BYTES_MIN) {
        return Err(too_small(bytes));
    }
    let _lock = super::VolumeLock::acquire_or_create(path)?;
    let mut device = FileDevice::open(path)?;
    let found_bytes = device.end();
    if found_bytes >= EXTENT_UNIT_BYTES && !force {
        let mut block = vec![0; EXTENT_UNIT_BYTES as usize];
        for at in [0, found_bytes / EXTENT_UNIT_BYTES * EXTENT_UNIT_BYTES - EXTENT_UNIT_BYTES] {
            device.read_exact_at(&mut block, at)?;
            if Superblock::decode(&block) != Err(NotASuperblock::Absent) {
                return Err(StoreError::AlreadyFormatted { path: path.to_path_buf() });
            }
        }
    }
    if !force && !is_blank(&device)? {
        return Err(StoreError::NotEmpty { path: path.to_path_buf() });
    }
    let wanted_bytes = size_bytes.unwrap_or(found_bytes);
    if wanted_bytes < VOLUME_BYTES_MIN {
        return Err(too_small(wanted_bytes));
    }
    let is_file = device.medium() == Medium::File;
    if !is_file && wanted_bytes > found_bytes {
        return Err(StoreError::Truncated { path: path.to_path_buf(), expected_bytes: wanted_bytes, found_bytes });
    }
    let superblock = Superblock::new(wanted_bytes);
    if is_file {
        device.make_hole(superblock.size_bytes)?;
    }
    let block = superblock.encode();
    for at in superblock.offsets() {
        device.write_all_at(&block, at)?;
        device.sync()?;
    }
    Ok(superblock)
}

/// Whether the first and the last bytes are zero: file systems, partition tables and files of other programs are not.
fn is_blank(device: &FileDevice) -> Result<bool> {
    let bytes = device.end();
    let length = bytes.min(BLANK_BYTES);
    let mut buffer = vec![0; length as usize];
    for at in [0, bytes - length] {
        device.read_exact_at(&mut buffer, at)?;
        if buffer.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superblocks_survive_encoding_and_flipped_bits_are_found() {
        let superblock = Superblock::new(5 << 20);
        let block = superblock.encode();
        assert_eq!(Superblock::decode(&block), Ok(superblock));
        for bit in (0..(BODY_BYTES + 4) * 8).filter(|bit| !(64..96).contains(bit)) {
            let mut flipped = block.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Superblock::decode(&flipped), Err(NotASuperblock::Absent), "bit {bit}");
        }
        assert_eq!(Superblock::decode(&block[..20]), Err(NotASuperblock::Absent));
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut block = Superblock::new(1 << 20).encode();
        block[8..12].copy_from_slice(&9u32.to_le_bytes());
        assert_eq!(Superblock::decode(&block), Err(NotASuperblock::Version(9)));
    }
}
