//! The network interfaces of this machine: names, addresses, MTU.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::path::Path;

/// An interface that is up and has an address.
#[derive(Debug, Clone)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) index: u32,
    /// Global ones first.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) mtu_bytes: usize,
    pub(super) is_loopback: bool,
}

impl Interface {
    /// What to bind for an address of this interface.
    pub(super) fn socket_address(&self, address: IpAddr, port: u16) -> SocketAddr {
        match address {
            IpAddr::V6(address) if is_link_local(IpAddr::V6(address)) => {
                SocketAddrV6::new(address, port, 0, self.index).into()
            }
            address => SocketAddr::new(address, port),
        }
    }
}

pub(super) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.segments()[0] & 0xffc0 == 0xfe80,
    }
}

/// All of them; none if the kernel does not tell.
pub(super) fn all() -> Vec<Interface> {
    let mut found: Vec<Interface> = Vec::new();
    for entry in if_addrs::get_if_addrs().unwrap_or_default() {
        if is_down(&entry.name) {
            continue;
        }
        let address = entry.ip();
        match found.iter_mut().find(|interface| interface.name == entry.name) {
            Some(interface) => interface.addresses.push(address),
            None => found.push(Interface {
                index: entry.index.unwrap_or(0),
                addresses: vec![address],
                mtu_bytes: mtu_bytes(&entry.name),
                is_loopback: entry.is_loopback(),
                name: entry.name,
            }),
        }
    }
    for interface in &mut found {
        interface.addresses.sort_by_key(|&address| is_link_local(address));
    }
    found
}

/// Whether there is an interface of this name, up or not.
pub(super) fn exists(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && Path::new("/sys/class/net").join(name).exists()
}

/// Whether it is administratively down (IFF_UP is the lowest flag).
fn is_down(name: &str) -> bool {
    let path = Path::new("/sys/class/net").join(name).join("flags");
    let flags = std::fs::read_to_string(path).ok();
    let flags = flags.and_then(|text| u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok());
    flags.is_some_and(|flags| flags & 1 == 0)
}

fn mtu_bytes(name: &str) -> usize {
    let path = Path::new("/sys/class/net").join(name).join("mtu");
    std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1500)
}
