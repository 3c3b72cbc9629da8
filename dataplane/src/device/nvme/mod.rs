//! NVMe passthrough: a namespace by its character device `/dev/ngXnY`, past the kernel's block layer.
//!
//! Owns what a command looks like (`command`), what a drive answers ([`Status`]), and what is known of a namespace
//! ([`Namespace`]). Commands that may block go by ioctl; those of a core go by its ring (`IORING_OP_URING_CMD`,
//! [`super::ring`]), which takes their encoding from `Addressing`.
//!
//! Invariants:
//! - The page cache knows nothing of what is written here. Whoever uses a namespace this way holds its block device
//!   exclusively ([`block_device_of`], [`crate::volume::VolumeLock`]), so that nobody mounts it or caches what changes.
//! - A transfer fits into one command: no more than the drive takes, and no more pages than the kernel maps. The block
//!   layer, which would split, is not there.
//! - Data is the namespace's own: formats with metadata or protection information are refused.
//!
//! The kernel does not try passthrough commands again, unlike those of the block layer: the ring does; blocking ones of
//! tools are not.
//!
//! Follows Joshi et al., "I/O Passthru: Upstreaming a flexible and efficient I/O Path in Linux", FAST '24. Needs Linux 5.19;
//! polled completions and registered buffers need 6.1.

mod command;
mod ioctl;
mod namespace;
mod status;

pub(super) use command::COMMAND_BYTES;
pub(super) use ioctl::NVME_URING_CMD_IO;
pub(super) use namespace::Addressing;
pub use namespace::{Namespace, block_device_of};
pub use status::Status;
