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
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::str::FromStr;

use hidb::proto::FabricPort;
use hidb::proto::fabric_port::Provider as CellProvider;
use hidb::{Error, ErrorCode, Result};
use verbs_shim::connect::ROCE_PORT;
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
    /// RDMA by this device: `mlx5_0`, `rxe0`, `rxe0@fd00::7`, `soft`, `soft:eth0`, `soft:10.0.0.7`, `soft:10.0.0.7:4791`.
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
            let choice = named(name, &local()?, cell);
            let choice = choice.ok_or_else(|| no_way(&format!("{name} suits none of the cell's devices"), cell))?;
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

/// A device here for a port of this provider.
fn pick(local: &[DeviceAttributes], cell: &[FabricPort], provider: CellProvider) -> Option<Choice> {
    let ports = cell.iter().enumerate().filter(|(_, port)| port.provider() == provider);
    for (index, port) in ports {
        let device = match provider {
            CellProvider::Soft => soft_towards(port),
            _ => local
                .iter()
                .filter(|device| device.active && device.provider == Provider::Ibv)
                .filter(|device| device.is_hardware() == (provider == CellProvider::Hardware))
                .find_map(|device| at_address_towards(device, port)),
        };
        if let Some(device) = device {
            return Some(Choice { port: index as u32, device });
        }
    }
    None
}

/// The address that this machine uses towards a port.
fn source_towards(port: &FabricPort) -> Option<IpAddr> {
    let peer: IpAddr = port.address.parse().ok()?;
    let any: IpAddr = if peer.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    // Connecting a datagram socket sends nothing: it only looks up the way.
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((peer, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Whether hardware and rxe can talk to a port.
fn takes_roce(port: &FabricPort) -> bool {
    port.provider() != CellProvider::Soft || port.udp_port == u32::from(ROCE_PORT)
}

/// The soft device for a port: of the address that leads there, and on RoCEv2's UDP port where others are not understood.
fn soft_towards(port: &FabricPort) -> Option<String> {
    let address = source_towards(port)?;
    // Over IPv4 a soft device on that port has a raw socket, which a peer must have, too.
    let is_soft = port.provider() == CellProvider::Soft;
    let needs_port = takes_roce(port) && (!is_soft || address.is_ipv4());
    Some(match needs_port {
        true => format!("soft:{}", SocketAddr::new(address, ROCE_PORT)),
        false => format!("soft:{address}"),
    })
}

/// A device of libibverbs, at the address that leads to a port, or else the first of the port's family: two GIDs of
/// different families do not talk to each other.
fn at_address_towards(device: &DeviceAttributes, port: &FabricPort) -> Option<String> {
    let peer: IpAddr = port.address.parse().ok()?;
    if device.transport != verbs_shim::Transport::RoceV2 {
        return Some(device.name.clone());
    }
    let addresses = || {
        let all = device.gids.iter().map(|gid| gid.to_ipv4_mapped().map_or(IpAddr::V6(*gid), IpAddr::V4));
        all.filter(|address| address.is_ipv4() == peer.is_ipv4())
    };
    let is_link_local = |address: &IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    let source = source_towards(port);
    let best = addresses().find(|address| Some(*address) == source);
    let best = best.or_else(|| addresses().find(|address| !is_link_local(address))).or_else(|| addresses().next());
    best.map(|address| format!("{}@{address}", device.name))
}

/// A device by name. Soft devices talk to soft ones, and those of libibverbs to each other; to one another only on
/// RoCEv2's UDP port.
fn named(name: &str, local: &[DeviceAttributes], cell: &[FabricPort]) -> Option<Choice> {
    let is_soft = name == "soft" || name.starts_with("soft:");
    let socket: Option<SocketAddr> = name.strip_prefix("soft:").and_then(|rest| rest.parse().ok());
    let can_roce = !is_soft || name == "soft" || socket.is_some_and(|socket| socket.port() == ROCE_PORT);
    let is_alike = |port: &FabricPort| (port.provider() == CellProvider::Soft) == is_soft;
    let alike = cell.iter().enumerate().filter(|(_, port)| is_alike(port));
    let others = cell.iter().enumerate().filter(|(_, port)| !is_alike(port) && can_roce && takes_roce(port));
    alike.chain(others).find_map(|(index, port)| {
        let here = local.iter().find(|device| device.name == name);
        let device = match here {
            _ if name == "soft" => soft_towards(port),
            Some(device) if !is_soft => at_address_towards(device, port),
            // A name that says more, or one that is not here, which the error of opening it tells.
            _ => Some(name.to_string()),
        };
        Some(Choice { port: index as u32, device: device? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(device: &str, provider: CellProvider, address: &str) -> FabricPort {
        FabricPort { device: device.into(), provider: provider as i32, address: address.into(), udp_port: 0 }
    }

    /// A device of libibverbs with these addresses.
    fn roce(name: &str, addresses: &[&str]) -> DeviceAttributes {
        let gid = |address: &&str| match address.parse().unwrap() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let soft = verbs_shim::Context::open("soft:127.0.0.1", &Default::default()).unwrap();
        let gids = addresses.iter().map(gid).collect();
        DeviceAttributes { name: name.into(), provider: Provider::Ibv, gids, ..soft.attributes().clone() }
    }

    #[test]
    fn a_device_is_used_at_an_address_of_the_cells_family() {
        let local = [roce("mlx5_0", &["fe80::1", "192.0.2.7", "2001:db8::7"])];
        for (peer, device) in [
            ("192.0.2.1", "mlx5_0@192.0.2.7"),
            ("2001:db8::1", "mlx5_0@2001:db8::7"),
            ("fe80::2", "mlx5_0@2001:db8::7"),
        ] {
            let cell = [port("mlx5_1", CellProvider::Hardware, peer)];
            assert_eq!(named("mlx5_0", &local, &cell).unwrap().device, device, "{peer}");
        }
        let cell = [port("mlx5_1", CellProvider::Hardware, "192.0.2.1")];
        assert_eq!(named("mlx5_0", &[roce("mlx5_0", &["fe80::1"])], &cell), None);
        // What was said is done, and what is not there is for the error of opening it.
        for name in ["mlx5_0@2001:db8::7", "mlx5_9"] {
            assert_eq!(named(name, &local, &cell).unwrap().device, name);
        }
    }

    #[test]
    fn soft_devices_and_others_meet_on_the_port_of_roce_only() {
        let soft = port("soft:::1", CellProvider::Soft, "::1");
        let on_port = FabricPort { udp_port: 4791, ..soft.clone() };
        let local = [roce("rxe0", &["::1"])];
        assert_eq!(named("rxe0", &local, std::slice::from_ref(&soft)), None);
        assert_eq!(
            named("rxe0", &local, &[soft.clone(), on_port.clone()]).unwrap(),
            Choice { port: 1, device: "rxe0@::1".into() }
        );
        let rxe = port("rxe0", CellProvider::Rxe, "127.0.0.1");
        assert_eq!(named("soft", &local, std::slice::from_ref(&rxe)).unwrap().device, "soft:127.0.0.1:4791");
        assert_eq!(named("soft:lo", &local, std::slice::from_ref(&rxe)), None);
        assert_eq!(named("soft:[::1]:4791", &local, std::slice::from_ref(&rxe)).unwrap().device, "soft:[::1]:4791");
        // Alike comes first; over IPv6 a plain socket on any port will do for both kinds of soft devices.
        let found = named("soft", &local, &[rxe, on_port]).unwrap();
        assert_eq!(found, Choice { port: 1, device: "soft:::1".into() });
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
