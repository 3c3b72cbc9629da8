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

use std::net::IpAddr;

use hidb::proto::fabric_port::Provider;
use hidb::{Error, ErrorCode, Result, proto};
use verbs_shim::{Context, DeviceAttributes, OpenOptions, Progress};

/// A device that links are served on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What to open it by.
    pub name: String,
    /// Who drives it.
    pub provider: Provider,
    /// The address of the GID it uses.
    pub address: IpAddr,
}

/// The devices that links are served on, in the order of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices(Vec<Device>);

impl Devices {
    /// The devices that the option `fabric` names: `none`, `auto` (all hardware that is up), or a list of names
    /// separated by commas. Each that is named is opened once, to say now what is wrong with it.
    ///
    /// # Errors
    /// `Io` with what verbs-shim says of the device.
    pub fn find(wanted: &str) -> Result<Devices> {
        match wanted.trim() {
            "none" | "" => Ok(Devices::default()),
            "auto" => Ok(Devices(hardware())),
            names => names.split(',').map(|name| open(name.trim())).collect::<Result<_>>().map(Devices),
        }
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
        };
        self.0.iter().map(port).collect()
    }
}

/// How cores open their devices.
pub(super) fn open_options() -> OpenOptions {
    OpenOptions { progress: Progress::Polled, ..OpenOptions::default() }
}

fn open(name: &str) -> Result<Device> {
    let context = Context::open(name, &open_options()).map_err(|error| failed(name, &error))?;
    describe(context.attributes()).ok_or_else(|| {
        let text = format!("fabric device {name} can't serve links: it needs a RoCEv2 address, immediate data and shared receive queues");
        Error::new(ErrorCode::Io, text)
    })
}

fn hardware() -> Vec<Device> {
    let found = verbs_shim::devices().unwrap_or_else(|error| {
        tracing::warn!(%error, "RDMA devices can't be listed: links are not served");
        Vec::new()
    });
    let up = found.iter().filter(|device| device.active);
    up.filter_map(describe).filter(|device| device.provider == Provider::Hardware).collect()
}

fn describe(attributes: &DeviceAttributes) -> Option<Device> {
    let can = attributes.capabilities;
    if !(can.immediate && can.endpoints && can.shared_receive_queues) {
        return None;
    }
    let gid = attributes.gids.first()?;
    let address = gid.to_ipv4_mapped().map_or(IpAddr::V6(*gid), IpAddr::V4);
    Some(Device { name: attributes.name.clone(), provider: provider_of(attributes), address })
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
        assert_eq!(Devices::find("none").unwrap(), Devices::default());
        let soft = Devices::find("soft:127.0.0.1").unwrap();
        assert_eq!(soft.all()[0].address, IpAddr::from([127, 0, 0, 1]));
        assert_eq!(soft.to_proto()[0].provider(), Provider::Soft);
        let error = Devices::find("soft:127.0.0.1, mlx5_77").unwrap_err();
        assert!(error.message.contains("mlx5_77"), "{error}");
    }
}
