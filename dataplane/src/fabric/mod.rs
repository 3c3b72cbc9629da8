//! RDMA on the cell: devices, what each core opens of them, and links to clients.
//!
//! Owns [`Devices`] (what is served, known from the start), [`port`] (a device as one core has it open: completion
//! queue, shared receive queue, registered arena) and [`link`] (one client's queue pair and result ring). Called by
//! `server::links`, on the link's core; the protocol's side of a link is `hidb::session`.
//!
//! Invariants
//! - What a core opens it alone polls: no queue pair and no completion queue is shared between cores.
//! - A peer has no rights on the cell's memory: the arena and all buffers are registered without remote access.
//! - The memory of a work request belongs to it until its completion.

pub mod link;
pub mod memory;
pub mod port;

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use hidb::proto::fabric_port::Provider;
use hidb::{Error, ErrorCode, Result, proto};
use verbs_shim::{Context, DeviceAttributes, OpenOptions, Progress};

use crate::cores::{Core, Cores};

/// A device that links are served on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What to open it by.
    pub name: String,
    /// Who drives it.
    pub provider: Provider,
    /// The address of the GID it uses.
    pub address: IpAddr,
    /// The UDP port that a soft device was opened on by name; else 0.
    pub udp_port: u16,
}

/// The devices that links are served on, in the order of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices(Vec<Device>);

impl Devices {
    /// The devices that the option `fabric` names, for a cell of this many cores: `none`, `auto` (all hardware that is
    /// up), or a list of names separated by commas. Each is opened once, to say now what is wrong with it.
    ///
    /// # Errors
    /// `Io` with what verbs-shim says of the device, `InvalidParameter` for a soft device on a port that several cores
    /// would have to share.
    pub fn find(wanted: &str, cores: usize) -> Result<Devices> {
        match wanted.trim() {
            "none" | "" => Ok(Devices::default()),
            "auto" => Ok(Devices(hardware())),
            names => names.split(',').map(|name| named(name.trim(), cores)).collect::<Result<_>>().map(Devices),
        }
    }

    /// Opens them on every core, and leaves none of them out that was named: of `auto` those that fail are.
    ///
    /// # Errors
    /// `Io` with what verbs-shim says, for instance that too little memory may be locked.
    pub async fn open_on(self, cores: &Cores, wanted: &str, links_max: usize) -> Result<Devices> {
        let mut opened = Vec::with_capacity(self.0.len());
        for device in self.0 {
            match open_on_all(cores, &device, links_max).await {
                Ok(()) => opened.push(device),
                Err(error) if wanted.trim() == "auto" => {
                    tracing::warn!(%error, device = device.name, "an RDMA device is left out");
                    let close = |core: Rc<Core>, device: Device| {
                        core.fabric.close(&device.name);
                        Ok(())
                    };
                    on_all(cores, &device, close).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Devices(opened))
    }

    /// All of them.
    pub fn all(&self) -> &[Device] {
        &self.0
    }

    /// As the handshake names them.
    pub fn to_proto(&self) -> Vec<proto::FabricPort> {
        let port = |device: &Device| proto::FabricPort {
            device: device.name.clone(),
            provider: device.provider as i32,
            address: device.address.to_string(),
            udp_port: device.udp_port.into(),
        };
        self.0.iter().map(port).collect()
    }
}

/// Opens a device on every core.
async fn open_on_all(cores: &Cores, device: &Device, links_max: usize) -> Result<()> {
    on_all(cores, device, move |core, device| core.fabric.open(&core, &device, links_max)).await
}

/// Does something with a device on every core; the first error there was.
async fn on_all(
    cores: &Cores,
    device: &Device,
    act: impl FnOnce(Rc<Core>, Device) -> Result<()> + Clone + Send + 'static,
) -> Result<()> {
    let on_core = |number| {
        let (device, act) = (device.clone(), act.clone());
        cores.run_on(number, move || async move {
            let core = Core::current().ok_or_else(|| Error::new(ErrorCode::Internal, "this runs on a core"))?;
            act(core, device)
        })
    };
    for outcome in futures::future::join_all((0..cores.count()).map(on_core)).await {
        outcome.and_then(|outcome| outcome)?;
    }
    Ok(())
}

/// How cores open their devices.
pub(super) fn open_options() -> OpenOptions {
    OpenOptions { progress: Progress::Polled, ..OpenOptions::default() }
}

fn open(name: &str) -> Result<Device> {
    let context = Context::open(name, &open_options()).map_err(|error| failed(name, &error))?;
    let can = context.attributes().capabilities;
    if !(can.immediate && can.endpoints && can.shared_receive_queues) {
        let text = format!(
            "fabric device {name} can't serve links: it needs a RoCEv2 address, immediate data and shared receive queues"
        );
        return Err(Error::new(ErrorCode::Io, text));
    }
    let provider = provider_of(context.attributes());
    let socket = context.socket_address();
    // The port that a soft device got when it could take any is another one for each core.
    let has_port = name.strip_prefix("soft:").is_some_and(|rest| rest.parse::<SocketAddr>().is_ok());
    let udp_port = if has_port { socket.port() } else { 0 };
    Ok(Device { name: name.into(), provider, address: socket.ip(), udp_port })
}

fn named(name: &str, cores: usize) -> Result<Device> {
    let device = open(name)?;
    if device.udp_port != 0 && cores > 1 {
        let text = format!(
            "fabric device {name} has one UDP port, which {cores} cores can't share: use --cores 1, or soft:{} without a port",
            device.address
        );
        return Err(Error::new(ErrorCode::InvalidParameter, text));
    }
    Ok(device)
}

fn hardware() -> Vec<Device> {
    let found = verbs_shim::devices().unwrap_or_else(|error| {
        tracing::warn!(%error, "RDMA devices can't be listed: links are not served");
        Vec::new()
    });
    let up = found.iter().filter(|device| device.active && device.is_hardware());
    let opened = up.filter_map(|device| match open(&device.name) {
        Ok(opened) => Some(opened),
        Err(error) => {
            tracing::warn!(%error, device = device.name, "an RDMA device is left out");
            None
        }
    });
    opened.collect()
}

fn provider_of(attributes: &DeviceAttributes) -> Provider {
    match attributes.provider {
        verbs_shim::Provider::Soft => Provider::Soft,
        verbs_shim::Provider::Ibv if attributes.is_hardware() => Provider::Hardware,
        verbs_shim::Provider::Ibv => Provider::Rxe,
    }
}

pub(super) fn failed(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorCode::Io, format!("RDMA on {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_found_by_name_or_the_error_says_which_are_there() {
        assert_eq!(Devices::find("none", 2).unwrap(), Devices::default());
        let soft = Devices::find("soft:127.0.0.1", 2).unwrap();
        assert_eq!(soft.all()[0].address, IpAddr::from([127, 0, 0, 1]));
        assert_eq!(soft.to_proto()[0].provider(), Provider::Soft);
        assert_eq!(soft.to_proto()[0].udp_port, 0, "each core takes a port of its own");
        let error = Devices::find("soft:127.0.0.1, mlx5_77", 2).unwrap_err();
        assert!(error.message.contains("mlx5_77"), "{error}");
    }

    #[test]
    fn a_port_of_its_own_is_for_a_cell_of_one_core() {
        let devices = Devices::find("soft:[::1]:7479", 1).unwrap();
        let port = &devices.to_proto()[0];
        assert_eq!((port.device.as_str(), port.address.as_str(), port.udp_port), ("soft:[::1]:7479", "::1", 7479));
        let error = Devices::find("soft:[::1]:7479", 2).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidParameter);
        assert!(error.message.contains("--cores 1") && error.message.contains("soft:::1 "), "{error}");
    }
}
