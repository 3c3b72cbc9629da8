//! RDMA on the client: which device, and links to the cores of a cell.
//!
//! Owns [`Transport`] (what the caller wants), [`choose`] (what it gets), [`device`] (the device as a connection has it
//! open, and the task that takes completions), [`link`] (one queue pair with its result ring) and [`protection`] (what
//! protects links). Called by the connection.
//!
//! Invariants
//! - The cell may write into result rings only, and into each only while its link is open.
//! - A batch that a caller holds keeps its slot, or was copied out of it; the memory of a ring outlives the last batch in it.

#[cfg(test)]
mod attacks;
pub(crate) mod device;
pub(crate) mod link;
pub(crate) mod protection;

use std::fmt;
use std::net::{IpAddr, UdpSocket};
use std::str::FromStr;

use hidb::proto::FabricPort;
use hidb::proto::fabric_port::Provider as CellProvider;
use hidb::{Error, ErrorCode, Result};
use verbs_shim::{DeviceAttributes, Provider};

/// How answers travel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// RDMA where both sides have hardware for it, else TCP.
    #[default]
    Auto,
    /// TCP.
    Tcp,
    /// RDMA, by hardware, else by the kernel's soft-RoCE, else by the user-space one; an error where there is none.
    Rdma,
    /// RDMA by this device: `mlx5_0`, `rxe0`, `soft`, `soft:eth0`, `soft:10.0.0.7`.
    Device(String),
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Transport::Auto),
            "tcp" => Ok(Transport::Tcp),
            "rdma" => Ok(Transport::Rdma),
            "" => Err("a transport is auto, rdma, tcp, or the name of an RDMA device".into()),
            name => Ok(Transport::Device(name.into())),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Auto => "auto",
            Transport::Tcp => "tcp",
            Transport::Rdma => "rdma",
            Transport::Device(name) => name,
        })
    }
}

/// A device of this machine, and the one of the cell that it talks to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Index into the cell's ports.
    pub port: u32,
    /// What to open here.
    pub device: String,
}

/// What a transport comes to with this cell; with why, for the log.
///
/// # Errors
/// `Unavailable` when RDMA was asked for and there is no way; it says what there is.
pub(crate) fn choose(wanted: &Transport, cell: &[FabricPort]) -> Result<(Option<Choice>, String)> {
    let local = || verbs_shim::devices().map_err(|error| unavailable(error.to_string()));
    match wanted {
        Transport::Tcp => Ok((None, "tcp: asked for".into())),
        Transport::Auto => {
            // Listing devices costs something, and without hardware there the answer is known.
            if !cell.iter().any(|port| port.provider() == CellProvider::Hardware) {
                return Ok((None, "tcp: the cell serves no RDMA hardware".into()));
            }
            Ok(match pick(&local().unwrap_or_default(), cell, CellProvider::Hardware) {
                Some(choice) => {
                    let why = format!("rdma: hardware on both sides, {} here", choice.device);
                    (Some(choice), why)
                }
                None => (None, "tcp: no RDMA hardware on this side".into()),
            })
        }
        Transport::Rdma => {
            let local = local()?;
            for provider in [CellProvider::Hardware, CellProvider::Rxe, CellProvider::Soft] {
                if let Some(choice) = pick(&local, cell, provider) {
                    let why = format!("rdma: asked for, {} here", choice.device);
                    return Ok((Some(choice), why));
                }
            }
            Err(no_way("no RDMA device", cell))
        }
        Transport::Device(name) => {
            let choice =
                named(name, cell)?.ok_or_else(|| no_way(&format!("{name} suits none of the cell's devices"), cell))?;
            let why = format!("rdma: {} asked for", choice.device);
            Ok((Some(choice), why))
        }
    }
}

fn unavailable(text: String) -> Error {
    Error::new(ErrorCode::Unavailable, text)
}

fn no_way(what: &str, cell: &[FabricPort]) -> Error {
    let ports: Vec<&str> = cell.iter().map(|port| port.device.as_str()).collect();
    let offer = match ports.is_empty() {
        true => "serves none (start it with --fabric DEVICE)".to_string(),
        false => format!("serves {}", ports.join(", ")),
    };
    unavailable(format!("no RDMA to this cell: {what}; the cell {offer}: use --transport tcp"))
}

fn address_of(port: &FabricPort) -> Option<IpAddr> {
    port.address.parse().ok()
}

/// A device here for a port of this provider.
fn pick(local: &[DeviceAttributes], cell: &[FabricPort], provider: CellProvider) -> Option<Choice> {
    let ports = cell.iter().enumerate().filter(|(_, port)| port.provider() == provider);
    for (index, port) in ports {
        let peer = address_of(port)?;
        let device = match provider {
            CellProvider::Soft => soft_towards(peer),
            _ => local
                .iter()
                .filter(|device| device.active && device.provider == Provider::Ibv)
                .filter(|device| device.is_hardware() == (provider == CellProvider::Hardware))
                .find(|device| device.gids.iter().any(|gid| gid.to_ipv4_mapped().is_some() == peer.is_ipv4()))
                .map(|device| device.name.clone()),
        };
        if let Some(device) = device {
            return Some(Choice { port: index as u32, device });
        }
    }
    None
}

/// The soft device of the address that this machine uses towards a peer.
fn soft_towards(peer: IpAddr) -> Option<String> {
    let any: IpAddr = if peer.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    // Connecting a datagram socket sends nothing: it only looks up the way.
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((peer, 9)).ok()?;
    Some(format!("soft:{}", socket.local_addr().ok()?.ip()))
}

/// A device by name. Soft ones talk to soft ones; the others to each other.
fn named(name: &str, cell: &[FabricPort]) -> Result<Option<Choice>> {
    let is_soft = name == "soft" || name.starts_with("soft:");
    let suits = |port: &&FabricPort| (port.provider() == CellProvider::Soft) == is_soft;
    let Some((port, peer)) = cell.iter().enumerate().find(|(_, port)| suits(port)) else { return Ok(None) };
    let device = match (name, address_of(peer)) {
        ("soft", Some(peer)) => {
            soft_towards(peer).ok_or_else(|| unavailable(format!("no address of this machine leads to {peer}")))?
        }
        _ => name.to_string(),
    };
    Ok(Some(Choice { port: port as u32, device }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(device: &str, provider: CellProvider, address: &str) -> FabricPort {
        FabricPort { device: device.into(), provider: provider as i32, address: address.into() }
    }

    #[test]
    fn auto_is_tcp_unless_both_sides_have_hardware() {
        let soft = [port("soft:127.0.0.1", CellProvider::Soft, "127.0.0.1")];
        for cell in [&soft[..], &[]] {
            let (choice, why) = choose(&Transport::Auto, cell).unwrap();
            assert_eq!(choice, None);
            assert!(why.starts_with("tcp: "), "{why}");
        }
    }

    #[test]
    fn soft_devices_are_found_by_the_way_to_the_cell() {
        let cell = [
            port("mlx5_0", CellProvider::Hardware, "10.9.9.9"),
            port("soft:127.0.0.1", CellProvider::Soft, "127.0.0.1"),
        ];
        for transport in ["rdma", "soft", "soft:127.0.0.1"] {
            let (choice, _) = choose(&transport.parse().unwrap(), &cell).unwrap();
            assert_eq!(choice, Some(Choice { port: 1, device: "soft:127.0.0.1".into() }), "{transport}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_said() {
        let error =
            choose(&Transport::Device("rxe0".into()), &[port("soft:::1", CellProvider::Soft, "::1")]).unwrap_err();
        assert!(error.message.contains("soft:::1") && error.message.contains("--transport tcp"), "{error}");
        let error = choose(&Transport::Rdma, &[]).unwrap_err();
        assert!(error.message.contains("--fabric"), "{error}");
        assert!("".parse::<Transport>().is_err());
    }
}
