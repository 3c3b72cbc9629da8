//! The ioctls of an NVMe namespace's character device: the way of commands that may block.
//!
//! Numbers are those of `include/uapi/linux/nvme_ioctl.h`. Called by [`super::namespace`] only.

use std::{fs::File, io, os::fd::AsRawFd};

use super::{
    command::{COMMAND_BYTES, Command, Transfer},
    status::Status,
};

/// `_IO('N', 0x40)`: the namespace's number.
const NVME_IOCTL_ID: libc::Ioctl = 0x4e40;
/// `_IOWR('N', 0x41, struct nvme_admin_cmd)`
const NVME_IOCTL_ADMIN_CMD: libc::Ioctl = read_write(0x41);
/// `_IOWR('N', 0x43, struct nvme_passthru_cmd)`
const NVME_IOCTL_IO_CMD: libc::Ioctl = read_write(0x43);
/// `_IOWR('N', 0x80, struct nvme_uring_cmd)`: what a submission entry of `IORING_OP_URING_CMD` names.
pub(in crate::device) const NVME_URING_CMD_IO: u32 = read_write(0x80) as u32;

const fn read_write(number: u32) -> libc::Ioctl {
    (3 << 30 | (COMMAND_BYTES as u32) << 16 | (b'N' as u32) << 8 | number) as libc::Ioctl
}

/// Which queue of the drive a command goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    Admin,
    Io,
}

/// The data of a command.
pub(super) enum Data<'a> {
    None,
    Send(&'a [u8]),
    Receive(&'a mut [u8]),
}

/// The namespace's number.
pub(super) fn namespace_id(device: &File) -> io::Result<u32> {
    // SAFETY: this ioctl takes no argument.
    let id = unsafe { libc::ioctl(device.as_raw_fd(), NVME_IOCTL_ID) };
    u32::try_from(id).map_err(|_| io::Error::last_os_error())
}

/// Sends a command and waits until it completed; what the drive answered, when that is not success.
///
/// # Errors
/// The kernel's; `InvalidInput` when the data goes the other way than the command's.
pub(super) fn submit(device: &File, queue: Queue, command: &Command, data: Data<'_>) -> io::Result<Option<Status>> {
    let (transfer, address, length) = match data {
        Data::None => (Transfer::None, 0, 0),
        Data::Send(bytes) => (Transfer::ToDrive, bytes.as_ptr() as u64, bytes.len()),
        Data::Receive(bytes) => (Transfer::FromDrive, bytes.as_mut_ptr() as u64, bytes.len()),
    };
    let length = u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    if transfer != command.transfer() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut command = command.encode(address, length);
    let request = match queue {
        Queue::Admin => NVME_IOCTL_ADMIN_CMD,
        Queue::Io => NVME_IOCTL_IO_CMD,
    };
    // SAFETY: the command has the bytes that the request's number says; its data is borrowed for as long as the call
    // takes, exclusively when it is written to, and goes the way of the command (just compared).
    let result = unsafe { libc::ioctl(device.as_raw_fd(), request, command.as_mut_ptr()) };
    match u16::try_from(result) {
        Ok(status) => Ok(Status::of(status)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_numbers_of_the_kernels_header() {
        // As `strace` prints them.
        assert_eq!(NVME_IOCTL_ADMIN_CMD as u32, 0xc048_4e41);
        assert_eq!(NVME_IOCTL_IO_CMD as u32, 0xc048_4e43);
        assert_eq!(NVME_URING_CMD_IO, 0xc048_4e80);
    }

    #[test]
    fn what_is_no_drive_and_data_that_goes_the_wrong_way_are_refused() {
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        assert_eq!(namespace_id(&null).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        let mut block = [7; 512];
        let read = submit(&null, Queue::Io, &Command::read(1, 0, 1), Data::Receive(&mut block));
        assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        let wrong = submit(&null, Queue::Io, &Command::read(1, 0, 1), Data::Send(&block));
        assert_eq!(wrong.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(block, [7; 512]);
    }
}
