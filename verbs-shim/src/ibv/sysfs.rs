//! What the kernel tells of a device in `/sys/class/infiniband`: its GIDs, their types, its network interface.
//!
//! libibverbs has had calls for typed GIDs since version 32 only, and none for interfaces; the files are as old as
//! RoCEv2 itself (Linux 4.5).

use std::fs;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

/// An entry of a port's GID table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gid {
    pub index: u32,
    pub address: Ipv6Addr,
    pub roce_v2: bool,
    pub interface: Option<String>,
}

/// Where devices are described. A type of its own so that tests can have a tree of theirs.
#[derive(Debug, Clone)]
pub(super) struct Sysfs(pub PathBuf);

impl Default for Sysfs {
    fn default() -> Self {
        Sysfs("/sys/class/infiniband".into())
    }
}

impl Sysfs {
    /// Whether the kernel has this device, whatever libibverbs makes of it.
    pub(super) fn has(&self, device: &str) -> bool {
        !device.is_empty() && !device.contains('/') && self.0.join(device).join("ports").is_dir()
    }

    /// The GIDs of a port that are set, by index; `table_length` entries are looked at.
    pub(super) fn gids(&self, device: &str, port: u8, table_length: u32) -> Vec<Gid> {
        let port = self.0.join(device).join("ports").join(port.to_string());
        let at = |folder: &str, index: u32| line(&port.join(folder).join(index.to_string()));
        (0..table_length)
            .filter_map(|index| {
                let address = at("gids", index)?.parse::<Ipv6Addr>().ok()?;
                // An unset entry is all zero, or nothing but the link-local prefix.
                if address.is_unspecified() || address == Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0) {
                    return None;
                }
                let roce_v2 = at("gid_attrs/types", index).is_some_and(|kind| kind == "RoCE v2");
                Some(Gid { index, address, roce_v2, interface: at("gid_attrs/ndevs", index) })
            })
            .collect()
    }

    /// The network interface below a device: of a GID, of the PCI function, or of a software device.
    pub(super) fn interface(&self, device: &str, gids: &[Gid]) -> Option<String> {
        if let Some(interface) = gids.iter().find_map(|gid| gid.interface.clone()) {
            return Some(interface);
        }
        let device = self.0.join(device);
        let mut of_function: Vec<String> = fs::read_dir(device.join("device/net"))
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        of_function.sort();
        of_function.into_iter().next().or_else(|| line(&device.join("parent")))
    }
}

/// The first line of a file that is there and not empty. Attributes of unset entries answer EINVAL.
fn line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_string())
}
