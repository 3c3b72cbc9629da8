//! Devices: the list, their attributes, and an opened one.
//!
//! Owns: the `ibv_context` of each opened device, and the choice of port and GID that its queue pairs use.
//!
//! Invariants
//! - On RoCE only RoCEv2 GIDs are ever used. A version 1 GID has the same address and another wire format.
//! - Nothing here panics, whatever libraries, providers, devices and permissions are there or missing.

use std::ffi::{CStr, c_int};
use std::net::{IpAddr, Ipv6Addr};
use std::ptr::NonNull;
use std::sync::Arc;

use super::abi::{ibv_context, ibv_device, ibv_device_attr, ibv_port_attr, value};
use super::completion_queue::CompletionQueue;
use super::library::{ConnectionManager, Verbs};
use super::memory::Domain;
use super::sysfs::{Gid, Sysfs};
use crate::Error;
use crate::device::{Capabilities, DeviceAttributes, GidChoice, OpenOptions, Provider, Transport};
use crate::soft::engine::ControlError;
use crate::verbs::{Mtu, SGE_MAX};

/// The devices that libibverbs can drive, as their first ports are, and why the first of the others cannot be driven:
/// [`Error::Os`]. None of either if the library is not there.
pub(crate) fn list() -> (Vec<DeviceAttributes>, Option<Error>) {
    match Verbs::get() {
        Ok(verbs) => list_by(verbs, &Sysfs::default()),
        Err(_) => (Vec::new(), None),
    }
}

pub(super) fn list_by(verbs: &'static Verbs, sysfs: &Sysfs) -> (Vec<DeviceAttributes>, Option<Error>) {
    let devices = match Devices::get(verbs) {
        Ok(devices) => devices,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let (mut listed, mut first_error) = (Vec::new(), None);
    for (name, device) in devices.iter() {
        let opened = Opened::open(verbs, &name, device);
        match opened.and_then(|opened| opened.describe(&name, 1, sysfs)) {
            Ok(Some(description)) => listed.push(description.attributes),
            Ok(None) => {}
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    (listed, first_error)
}

/// What `ibv_get_device_list` returns; freed when dropped.
struct Devices {
    verbs: &'static Verbs,
    list: *mut *mut ibv_device,
    count: usize,
}

impl Devices {
    fn get(verbs: &'static Verbs) -> Result<Devices, Error> {
        let mut count: c_int = 0;
        // SAFETY: the function takes a pointer to where it puts the count.
        let list = unsafe { (verbs.get_device_list)(&mut count) };
        if list.is_null() {
            let error = std::io::Error::last_os_error();
            return match error.raw_os_error() {
                // The kernel has no InfiniBand support, or its modules are not loaded: no devices.
                Some(libc::ENOSYS | libc::ENOENT | libc::ENODEV) => Ok(Devices { verbs, list, count: 0 }),
                _ => Err(Error::os("libibverbs", "ibv_get_device_list", error)),
            };
        }
        Ok(Devices { verbs, list, count: count.max(0) as usize })
    }

    fn iter(&self) -> impl Iterator<Item = (String, *mut ibv_device)> {
        (0..self.count).map(|index| {
            // SAFETY: the list has `count` devices, each with a name, until it is freed.
            unsafe {
                let device = *self.list.add(index);
                (CStr::from_ptr((self.verbs.get_device_name)(device)).to_string_lossy().into_owned(), device)
            }
        })
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        if !self.list.is_null() {
            // SAFETY: from `ibv_get_device_list`, freed once. Opened devices stay (ibv_get_device_list(3)).
            unsafe { (self.verbs.free_device_list)(self.list) };
        }
    }
}

/// An `ibv_context`, closed when dropped.
struct Opened {
    verbs: &'static Verbs,
    raw: NonNull<ibv_context>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: opened by `ibv_open_device`; all that was made from it holds it and is gone.
        unsafe { (self.verbs.close_device)(self.raw.as_ptr()) };
    }
}

/// What is known of a port before a GID is chosen.
struct Description {
    attributes: DeviceAttributes,
    gids: Vec<Gid>,
    lid: u16,
    message_bytes_max: u32,
    responder_depth_max: u8,
    initiator_depth_max: u8,
}

impl Opened {
    fn open(verbs: &'static Verbs, name: &str, device: *mut ibv_device) -> Result<Opened, Error> {
        // SAFETY: the device is of a list that is not freed yet.
        let raw = unsafe { (verbs.open_device)(device) };
        let raw = NonNull::new(raw).ok_or_else(|| Error::last(name, "ibv_open_device"))?;
        Ok(Opened { verbs, raw })
    }

    /// `None` for a device without reliable connections (usNIC, EFA).
    fn describe(&self, name: &str, port: u8, sysfs: &Sysfs) -> Result<Option<Description>, Error> {
        let context = self.raw.as_ptr();
        // SAFETY: plain integers, for which zero is a value.
        let (mut device, mut at_port): (ibv_device_attr, ibv_port_attr) = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open, the structure as large as the function fills.
        super::checked(unsafe { (self.verbs.query_device)(context, &mut device) })
            .map_err(|error| Error::os(name, "ibv_query_device", error))?;
        if port == 0 || port > device.phys_port_cnt {
            let rule = "physical ports are numbered from 1 (0 takes the first), see `rdma link`";
            return Err(ControlError::Attribute { name: "port", value: port as u64, rule }.into());
        }
        // SAFETY: as above.
        super::checked(unsafe { (self.verbs.query_port)(context, port, &mut at_port) })
            .map_err(|error| Error::os(name, "ibv_query_port", error))?;
        // SAFETY: an open context points to its device.
        let transport = match unsafe { (*(*context).device).transport_type } {
            value::TRANSPORT_IWARP => Transport::Iwarp,
            value::TRANSPORT_IB if at_port.link_layer == value::LINK_LAYER_ETHERNET => Transport::RoceV2,
            value::TRANSPORT_IB => Transport::InfiniBand,
            _ => return Ok(None),
        };
        let iwarp = transport == Transport::Iwarp;
        let mut gids = match transport {
            Transport::Iwarp => Vec::new(),
            // The field of `struct ibv_ah_attr` that names the GID has eight bits.
            _ => sysfs.gids(name, port, at_port.gid_tbl_len.clamp(0, 256) as u32),
        };
        let interface = sysfs.interface(name, &gids);
        gids.retain(|gid| gid.roce_v2 || transport == Transport::InfiniBand);
        let depth = |limit: c_int| limit.clamp(0, 128) as u8;
        let at_most = |limit: c_int| limit.max(0) as u32;
        let attributes = DeviceAttributes {
            name: name.to_string(),
            provider: Provider::Ibv,
            transport,
            capabilities: Capabilities {
                immediate: !iwarp,
                atomics: !iwarp && device.atomic_cap != value::ATOMIC_NONE,
                shared_receive_queues: device.max_srq > 0,
                endpoints: !iwarp,
                rdma_cm: ConnectionManager::get().is_ok(),
            },
            interface,
            gids: gids.iter().map(|gid| gid.address).collect(),
            active: at_port.state == value::PORT_ACTIVE,
            mtu: mtu(at_port.active_mtu),
            queue_pairs_max: at_most(device.max_qp),
            queue_depth_max: at_most(device.max_qp_wr),
            completions_max: at_most(device.max_cqe),
            regions_max: at_most(device.max_mr),
            pieces_max: at_most(device.max_sge).min(SGE_MAX as u32),
            read_atomic_depth_max: depth(device.max_qp_rd_atom.min(device.max_qp_init_rd_atom)),
        };
        Ok(Some(Description {
            attributes,
            gids,
            lid: if transport == Transport::InfiniBand { at_port.lid } else { 0 },
            message_bytes_max: at_port.max_msg_sz,
            responder_depth_max: depth(device.max_qp_rd_atom),
            initiator_depth_max: depth(device.max_qp_init_rd_atom),
        }))
    }
}

/// From `enum ibv_mtu`. A port that is down, or iWARP, may say nothing useful: then what all can.
fn mtu(number: c_int) -> Mtu {
    usize::try_from(number - 1).ok().and_then(|index| Mtu::ALL.get(index).copied()).unwrap_or(Mtu::Bytes1024)
}

/// An opened device: one port of it, and the GID that its queue pairs use.
pub(crate) struct Context {
    opened: Opened,
    attributes: DeviceAttributes,
    pub(super) port: u8,
    pub(super) gid: Ipv6Addr,
    pub(super) gid_index: u8,
    pub(super) lid: u16,
    pub(super) message_bytes_max: u32,
    pub(super) responder_depth_max: u8,
    pub(super) initiator_depth_max: u8,
}

// SAFETY: libibverbs may be called from any thread at any time on any object (ibverbs is thread safe but for
// destruction, which happens once, in `drop`); the rest of the fields is plain data.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("name", &self.attributes.name).field("gid", &self.gid).finish_non_exhaustive()
    }
}

impl Context {
    /// Opens a device by its name in libibverbs. On iWARP, which has none, the choice of GID means nothing.
    ///
    /// # Errors
    /// [`Error::NoLibrary`], [`Error::NoDevice`], [`Error::NoAddress`] if no GID fits the choice, and
    /// [`Error::Os`].
    pub(crate) fn open(name: &str, options: &OpenOptions) -> Result<Arc<Context>, Error> {
        Context::open_by(Verbs::get().map_err(Error::from)?, &Sysfs::default(), name, options)
    }

    pub(super) fn open_by(
        verbs: &'static Verbs,
        sysfs: &Sysfs,
        name: &str,
        options: &OpenOptions,
    ) -> Result<Arc<Context>, Error> {
        let devices = Devices::get(verbs)?;
        let Some((_, device)) = devices.iter().find(|(other, _)| other == name) else {
            if sysfs.has(name) {
                let reason = "the kernel has this device and libibverbs has no provider for it: install its provider \
                              (Debian: ibverbs-providers)";
                return Err(Error::Unsupported { device: name.into(), operation: "opening", reason });
            }
            let available = devices.iter().map(|(name, _)| name).collect();
            return Err(Error::NoDevice { name: name.into(), available });
        };
        let opened = Opened::open(verbs, name, device)?;
        let port = options.port.max(1);
        let Some(description) = opened.describe(name, port, sysfs)? else {
            let reason = "it is neither InfiniBand, RoCE nor iWARP";
            return Err(Error::Unsupported { device: name.into(), operation: "reliable connections", reason });
        };
        let (gid_index, gid) = choose(&description, port, options.gid)?;
        let Description { attributes, lid, message_bytes_max, responder_depth_max, initiator_depth_max, .. } =
            description;
        Ok(Arc::new(Context {
            opened,
            attributes,
            port,
            gid,
            gid_index,
            lid,
            message_bytes_max,
            responder_depth_max,
            initiator_depth_max,
        }))
    }

    /// What the device can do, and the limits of the port that was opened.
    pub(crate) fn attributes(&self) -> &DeviceAttributes {
        &self.attributes
    }

    /// The address of its GID.
    pub(crate) fn ip(&self) -> IpAddr {
        shown(self.gid)
    }

    /// Bytes of one message at most, by the port.
    #[cfg(test)]
    pub(crate) fn message_bytes_max(&self) -> u32 {
        self.message_bytes_max
    }

    /// Makes a protection domain.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub(crate) fn create_domain(self: &Arc<Self>) -> Result<Domain, Error> {
        Domain::create(self)
    }

    /// Makes a completion queue of at least `capacity` places, with a channel of its own.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub(crate) fn create_completion_queue(self: &Arc<Self>, capacity: u32) -> Result<CompletionQueue, Error> {
        CompletionQueue::create(self, capacity)
    }

    pub(super) fn verbs(&self) -> &'static Verbs {
        self.opened.verbs
    }

    pub(super) fn raw(&self) -> *mut ibv_context {
        self.opened.raw.as_ptr()
    }

    /// The last error of the operating system, by a call on this device.
    pub(super) fn last_error(&self, call: &'static str) -> Error {
        Error::last(&self.attributes.name, call)
    }

    pub(super) fn error(&self, call: &'static str, error: std::io::Error) -> Error {
        Error::os(&self.attributes.name, call, error)
    }
}

fn choose(port_has: &Description, port: u8, choice: GidChoice) -> Result<(u8, Ipv6Addr), Error> {
    let Description { attributes, gids, .. } = port_has;
    let found = match (attributes.transport, choice) {
        (Transport::Iwarp, _) => return Ok((0, Ipv6Addr::UNSPECIFIED)),
        (Transport::InfiniBand, GidChoice::First) => gids.iter().find(|gid| gid.index == 0),
        (Transport::RoceV2, GidChoice::First) => {
            gids.iter().find(|gid| !gid.address.is_unicast_link_local()).or(gids.first())
        }
        (_, GidChoice::Index(index)) => gids.iter().find(|gid| gid.index == index),
        (_, GidChoice::Address(address)) => {
            let address = match address {
                IpAddr::V4(address) => address.to_ipv6_mapped(),
                IpAddr::V6(address) => address,
            };
            gids.iter().find(|gid| gid.address == address)
        }
    };
    if let Some(gid) = found {
        return Ok((gid.index as u8, gid.address));
    }
    let kind = if attributes.transport == Transport::RoceV2 { "RoCEv2 GID" } else { "GID" };
    let wanted = match choice {
        GidChoice::First => String::new(),
        GidChoice::Index(index) => format!(" at index {index}"),
        GidChoice::Address(address) => format!(" for address {address}"),
    };
    let interface = attributes.interface.as_deref().unwrap_or("INTERFACE");
    let what_to_do = match (attributes.transport, gids.is_empty()) {
        (Transport::InfiniBand, true) => "check that the port is up and a subnet manager runs (ibstat)".to_string(),
        (_, true) => format!(
            "give interface {interface} an address (ip address add ADDRESS/PREFIX dev {interface}) and set it up (ip \
             link set {interface} up)"
        ),
        (_, false) => {
            let there: Vec<String> = gids.iter().map(|gid| format!("{}: {}", gid.index, shown(gid.address))).collect();
            format!(
                "choose one of those that are there ({}), or give interface {interface} that address",
                there.join(", ")
            )
        }
    };
    let reason = format!("port {port} has no {kind}{wanted}: {what_to_do}");
    Err(Error::NoAddress { device: attributes.name.clone(), reason })
}

/// An IPv4 GID as the IPv4 address that it is.
fn shown(gid: Ipv6Addr) -> IpAddr {
    gid.to_ipv4_mapped().map_or(IpAddr::V6(gid), IpAddr::V4)
}
