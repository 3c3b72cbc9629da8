//! The guard in front of devices: writing to one that holds something needs `--allow-destructive=/dev/NAME`.
//!
//! [`signature`] is pure and knows magic bytes by their places; [`holds`] asks the machine as well: mounts
//! (/proc/self/mountinfo), swap (/proc/swaps), and holders in /sys (LVM, RAID, dm-crypt) of the device and its partitions.
//! When the machine can't be asked the answer is that the device is in use.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

/// Bytes at the start of a device that [`signature`] looks at.
pub(crate) const HEAD_BYTES: usize = 128 << 10;

/// Magic bytes: where, what, and what they mean.
const MAGICS: &[(usize, &[u8], &str)] = &[
    (0, b"HELIOVOL", "a Heliostat volume"),
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
    (1080, &[0x53, 0xef], "an ext2, ext3 or ext4 file system"),
    (0, b"XFSB", "an XFS file system"),
    (0x10040, b"_BHRfS_M", "a btrfs file system"),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], "an F2FS file system"),
    (3, b"NTFS    ", "an NTFS file system"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (54, b"FAT1", "a FAT file system"),
    (82, b"FAT32", "a FAT file system"),
    (0, b"hsqs", "a squashfs"),
    (0x8001, b"CD001", "an ISO 9660 file system"),
    (0x10034, b"ReIsEr", "a ReiserFS"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (24, b"LVM2 001", "an LVM physical volume"),
    (536, b"LVM2 001", "an LVM physical volume"),
    (0, &[0xfc, 0x4e, 0x2b, 0xa9], "a Linux RAID member"),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a Linux RAID member"),
    (0, b"bcachefs", "a bcachefs"),
    (4096 + 24, &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca], "a bcache device"),
    (4086, b"SWAPSPACE2", "swap space"),
    (0, b"BLUESTORE", "a Ceph BlueStore"),
    (0, b"bluestore block device", "a Ceph BlueStore"),
];

/// What the first bytes of a device say it is; `tail` is its last 64 KiB, where old RAID superblocks and copies of ours are.
pub(crate) fn signature(head: &[u8], tail: &[u8]) -> Option<&'static str> {
    let at = |bytes: &[u8], offset: usize, magic: &[u8]| bytes.get(offset..offset + magic.len()) == Some(magic);
    if let Some((_, _, meaning)) = MAGICS.iter().find(|(offset, magic, _)| at(head, *offset, magic)) {
        return Some(meaning);
    }
    // ZFS writes uberblocks (0x00bab10c in either byte order) from 128 KiB of each label on, in steps of 1 KiB.
    let zfs = |bytes: &[u8]| {
        bytes
            .chunks(1024)
            .any(|block| at(block, 0, &0x00ba_b10c_u64.to_le_bytes()) || at(block, 0, &0x00ba_b10c_u64.to_be_bytes()))
    };
    if zfs(head) || zfs(tail) {
        return Some("a ZFS member");
    }
    // MD 0.90 ends in the last 64 KiB, 1.0 in the last 8 KiB; ours in the last 4 KiB.
    if (0..tail.len()).step_by(512).any(|offset| at(tail, offset, &[0xfc, 0x4e, 0x2b, 0xa9])) {
        return Some("a Linux RAID member");
    }
    if (0..tail.len()).step_by(4096).any(|offset| at(tail, offset, b"HELIOVOL")) {
        return Some("a Heliostat volume");
    }
    // A boot signature alone is not enough: an MBR has at least one partition of a known status.
    if at(head, 510, &[0x55, 0xaa]) {
        let entries = head[446..510].chunks(16);
        let used = entries.clone().filter(|entry| entry[4] != 0).count();
        if used > 0 && entries.into_iter().all(|entry| matches!(entry[0], 0 | 0x80)) {
            return Some("an MBR partition table");
        }
    }
    None
}

/// Device numbers ("259:0") in the text of /proc/self/mountinfo, with their mount points.
fn mounts(mountinfo: &str) -> impl Iterator<Item = (&str, &str)> {
    mountinfo.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(2);
        Some((words.next()?, words.nth(1)?))
    })
}

/// What a device (or a file that is a Heliostat volume) holds; nothing when it may be overwritten.
pub(crate) fn holds(path: &Path) -> io::Result<Option<String>> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let is_device = metadata.file_type().is_block_device();
    if !is_device && !metadata.file_type().is_file() {
        return Ok(None);
    }
    if is_device && let Some(use_) = in_use(metadata.rdev())? {
        return Ok(Some(use_));
    }
    let file = File::open(path)?;
    let size = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?;
    let (mut head, mut tail) = (vec![0; HEAD_BYTES.min(size as usize)], vec![0; 65_536.min(size as usize)]);
    file.read_exact_at(&mut head, 0)?;
    let tail_at = size - tail.len() as u64;
    file.read_exact_at(&mut tail, tail_at)?;
    // Files are what people benchmark on; only a volume of ours in one is a thing to lose.
    Ok(signature(&head, &tail).filter(|what| is_device || *what == "a Heliostat volume").map(str::to_string))
}

fn in_use(device: u64) -> io::Result<Option<String>> {
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let folder = Path::new("/sys/dev/block").join(&number);
    let mut parts = vec![(number, folder.clone())];
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.join("partition").exists() {
            parts.push((fs::read_to_string(path.join("dev"))?.trim().to_string(), path));
        }
    }
    if parts.len() > 1 {
        return Ok(Some(format!("{} partitions", parts.len() - 1)));
    }
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    let swaps = fs::read_to_string("/proc/swaps")?;
    for (number, folder) in parts {
        if let Some((_, place)) = mounts(&mountinfo).find(|(mounted, _)| *mounted == number) {
            return Ok(Some(format!("a file system mounted on {place}")));
        }
        if let Some(holder) = fs::read_dir(folder.join("holders")).ok().and_then(|mut entries| entries.next()) {
            return Ok(Some(format!("a member of {}", holder?.file_name().to_string_lossy())));
        }
        let swap = |line: &str| {
            let name = line.split_whitespace().next()?;
            let metadata = fs::metadata(name).ok()?;
            Some(format!("{}:{}", rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev())) == number)
        };
        if swaps.lines().skip(1).any(|line| swap(line) == Some(true)) {
            return Ok(Some("swap space in use".into()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magic_bytes_are_found_at_their_places() {
        for (offset, magic, meaning) in MAGICS {
            let mut head = vec![0; HEAD_BYTES];
            head[*offset..offset + magic.len()].copy_from_slice(magic);
            assert_eq!(signature(&head, &[]), Some(*meaning));
        }
        assert_eq!(signature(&vec![0; HEAD_BYTES], &vec![0; 65_536]), None);
        assert_eq!(signature(&[], &[]), None);
        assert_eq!(signature(&[0; 300], &[0; 300]), None);
    }

    #[test]
    fn superblocks_at_the_end_are_found() {
        let mut tail = vec![0; 65_536];
        tail[61_440..61_448].copy_from_slice(b"HELIOVOL");
        assert_eq!(signature(&[0; 4096], &tail), Some("a Heliostat volume"));
        let mut tail = vec![0; 65_536];
        tail[..4].copy_from_slice(&[0xfc, 0x4e, 0x2b, 0xa9]);
        assert_eq!(signature(&[0; 4096], &tail), Some("a Linux RAID member"));
    }

    #[test]
    fn an_mbr_needs_a_partition() {
        let mut head = vec![0; 4096];
        head[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(signature(&head, &[]), None);
        head[450] = 0x83;
        assert_eq!(signature(&head, &[]), Some("an MBR partition table"));
    }

    #[test]
    fn real_file_systems_are_recognised() {
        let folder = tempfile::tempdir().unwrap();
        for maker in ["mkfs.ext4", "mkswap", "mkfs.xfs", "mkfs.btrfs"] {
            let path = folder.path().join(maker);
            File::create(&path).unwrap().set_len(512 << 20).unwrap();
            match std::process::Command::new(maker).arg("-q").arg(&path).output() {
                Ok(output) if output.status.success() => {}
                _ => continue, // not installed, or without -q
            }
            let mut head = vec![0; HEAD_BYTES];
            File::open(&path).unwrap().read_exact_at(&mut head, 0).unwrap();
            assert!(signature(&head, &[]).is_some(), "{maker}");
        }
    }

    #[test]
    fn mount_points_are_read_from_mountinfo() {
        let text = "22 1 254:0 / / rw,noatime - ext4 /dev/vda rw\n25 22 0:5 /x /dev rw shared:2 - devtmpfs none rw\n";
        assert_eq!(mounts(text).collect::<Vec<_>>(), [("254:0", "/"), ("0:5", "/dev")]);
    }
}
