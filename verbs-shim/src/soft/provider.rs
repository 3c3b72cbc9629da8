//! The provider `soft` behind the crate's API: devices, and the objects that hold on to a [`Driver`].
//!
//! Every object keeps what it was made from alive. Called by the safe layer (`context`, `queue_pair`, ...) only.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use super::engine::{
    self, CompletionQueueId, EngineConfig, HEADER_CHARGE_BYTES, ReceiveAttributes, SendAttributes, SharedReceiveQueueId,
};
use super::interfaces;
use super::memory::RawMemory;
use super::node::{Driver, Node, PACKET_OVERHEAD_BYTES, eventfd};
use super::socket::Socket;
use crate::Error;
use crate::connect::{ConnectOptions, Endpoint, QueuePairOptions, ROCE_PORT, SoftEndpoint};
use crate::device::{Capabilities, DeviceAttributes, GidChoice, OpenOptions, Progress, Provider, Transport};
use crate::random::{random_psn, random_u64};
use crate::verbs::{
    Access, MemoryKey, Mtu, PostError, QueuePairNumber, QueuePairState, ReceiveRequest, SGE_MAX, WorkCompletion,
    WorkRequest,
};

/// READs and atomics that a queue pair answers at a time.
const RESPONDER_DEPTH: u8 = 16;
/// What a window must hold beside the overhead that the peer counts: a packet of the largest MTU.
const WINDOW_BYTES_MIN: u64 = 4096 + HEADER_CHARGE_BYTES + PACKET_OVERHEAD_BYTES as u64;
/// Bytes in flight towards a peer that grants nothing: hardware and rxe take packets in as they come.
const WINDOW_BYTES: u64 = 256 << 10;

/// The soft devices: one per interface that is up and has an address.
pub(crate) fn list() -> Vec<DeviceAttributes> {
    interfaces::all().into_iter().map(|interface| attributes(&interface)).collect()
}

fn attributes(interface: &interfaces::Interface) -> DeviceAttributes {
    let limits = EngineConfig::default();
    DeviceAttributes {
        name: format!("soft:{}", interface.name),
        provider: Provider::Soft,
        transport: Transport::RoceV2,
        capabilities: Capabilities {
            immediate: true,
            atomics: true,
            shared_receive_queues: true,
            endpoints: true,
            rdma_cm: false,
        },
        interface: Some(interface.name.clone()),
        gids: interface.addresses.iter().map(|&address| gid(address)).collect(),
        active: true,
        mtu: mtu(interface.mtu_bytes),
        queue_pairs_max: limits.queue_pairs_max as u32,
        queue_depth_max: 32_768,
        completions_max: 1 << 22,
        regions_max: limits.regions_max as u32,
        pieces_max: SGE_MAX as u32,
        read_atomic_depth_max: RESPONDER_DEPTH,
    }
}

fn gid(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn mtu(interface_bytes: usize) -> Mtu {
    // The headers of IPv6 and UDP.
    Mtu::fitting(interface_bytes.saturating_sub(48)).unwrap_or(Mtu::Bytes256)
}

/// A soft device at work.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    driver: Arc<Driver>,
    attributes: Arc<DeviceAttributes>,
}

impl Context {
    /// Opens `soft`, `soft:INTERFACE`, `soft:ADDRESS` or `soft:ADDRESS:PORT`.
    pub(crate) fn open(name: &str, options: &OpenOptions) -> Result<Self, Error> {
        let wanted =
            name.strip_prefix("soft").and_then(|rest| rest.strip_prefix(':').or((rest.is_empty()).then_some("")));
        let all = interfaces::all();
        let by_socket: Option<SocketAddr> = wanted.and_then(|wanted| wanted.parse().ok());
        let udp_port = by_socket.map_or(options.udp_port, |socket| socket.port());
        let by_address: Option<IpAddr> =
            by_socket.map(|socket| socket.ip()).or_else(|| wanted.and_then(|wanted| wanted.parse().ok()));
        let found = match (wanted, by_address) {
            (None, _) => None,
            (Some(""), _) => all.iter().find(|i| !i.is_loopback).or(all.first()),
            (_, Some(address)) => all.iter().find(|i| i.addresses.contains(&address)),
            (Some(wanted), None) => all.iter().find(|i| i.name == wanted),
        };
        let Some(interface) = found else {
            if let Some(wanted) = wanted.filter(|_| by_address.is_none())
                && interfaces::exists(wanted)
            {
                let reason = format!(
                    "it is down or has no address: ip link set {wanted} up; ip address add ADDRESS/LENGTH dev {wanted}"
                );
                return Err(Error::NoAddress { device: name.into(), reason });
            }
            return Err(Error::NoDevice { name: name.into(), available: list().into_iter().map(|d| d.name).collect() });
        };
        let address = match (by_address, options.gid) {
            (Some(address), _) => address,
            (None, GidChoice::First) => interface.addresses[0],
            (None, GidChoice::Index(index)) => {
                let reason = || format!("it has {} addresses, none of index {index}", interface.addresses.len());
                let address = interface.addresses.get(index as usize).copied();
                address.ok_or_else(|| Error::NoAddress { device: name.into(), reason: reason() })?
            }
            (None, GidChoice::Address(address)) => {
                let reason = || format!("it has not the address {address} but {:?}", interface.addresses);
                let found = interface.addresses.contains(&address).then_some(address);
                found.ok_or_else(|| Error::NoAddress { device: name.into(), reason: reason() })?
            }
        };
        let socket = match address {
            IpAddr::V4(address) if udp_port == ROCE_PORT && !options.plain_socket => Socket::raw(address, ROCE_PORT)?,
            address => Socket::plain(interface.socket_address(address, udp_port))?,
        };
        let seed = random_u64().map_err(|error| Error::os(name, "getrandom", error))?;
        let config = EngineConfig { seed, ..EngineConfig::default() };
        let driver = Driver::start(socket, config, options.progress == Progress::Thread)?;
        let mut attributes = attributes(interface);
        attributes.gids.retain(|&known| known == gid(address));
        Ok(Context { driver, attributes: Arc::new(attributes) })
    }

    pub(crate) fn attributes(&self) -> &DeviceAttributes {
        &self.attributes
    }

    pub(crate) fn socket_address(&self) -> SocketAddr {
        self.driver.lock().socket().local()
    }

    pub(crate) fn create_domain(&self) -> Domain {
        let id = self.driver.lock().engine.create_domain();
        Domain { context: self.clone(), id }
    }

    pub(crate) fn create_completion_queue(&self, capacity: u32) -> Result<CompletionQueue, Error> {
        let signal = eventfd().map_err(|error| Error::os(&self.attributes.name, "eventfd", error.into()))?;
        let signal = Arc::new(signal);
        let sleeper = self.driver.sleeper(&signal);
        let sleeper = sleeper.map_err(|error| Error::os(&self.attributes.name, "epoll_create", error.into()))?;
        let mut node = self.driver.lock();
        let id = node.engine.create_completion_queue(capacity as usize)?;
        node.watch(id, signal.clone());
        drop(node);
        Ok(CompletionQueue(Arc::new(CompletionQueueHold { driver: self.driver.clone(), id, sleeper })))
    }

    /// What happened so far, for metrics.
    pub(crate) fn counters(&self) -> engine::Counters {
        let node = self.driver.lock();
        engine::Counters { socket_errors: node.socket_errors, ..*node.engine.counters() }
    }
}

/// A protection domain.
#[derive(Debug, Clone)]
pub(crate) struct Domain {
    context: Context,
    id: engine::ProtectionDomain,
}

impl Domain {
    /// # Safety
    /// The range stays mapped, and writable if `access` allows writing, until the region is dropped.
    pub(crate) unsafe fn register(&self, start: *mut u8, bytes: usize, access: Access) -> Result<Region, Error> {
        let pointer = NonNull::new(start).unwrap_or(NonNull::dangling());
        // SAFETY: what the caller promises.
        let memory = unsafe { RawMemory::new(pointer, bytes) };
        let mut node = self.context.driver.lock();
        let key = node.engine.register(self.id, memory, start as u64, access).map_err(|(error, _)| error)?;
        Ok(Region { driver: self.context.driver.clone(), key })
    }

    pub(crate) fn create_shared_receive_queue(&self, depth: u32) -> Result<SharedReceiveQueue, Error> {
        let id = self.context.driver.lock().engine.create_shared_receive_queue(depth as usize)?;
        Ok(SharedReceiveQueue(Arc::new(SharedReceiveQueueHold { driver: self.context.driver.clone(), id })))
    }

    pub(crate) fn create_queue_pair(
        &self,
        send: &CompletionQueue,
        receive: &CompletionQueue,
        shared: Option<&SharedReceiveQueue>,
        options: &QueuePairOptions,
    ) -> Result<QueuePair, Error> {
        let name = &self.context.attributes.name;
        let ours = |driver| Arc::ptr_eq(driver, &self.context.driver);
        if !ours(&send.0.driver) || !ours(&receive.0.driver) || shared.is_some_and(|queue| !ours(&queue.0.driver)) {
            return Err(Error::Mismatch {
                local: name.clone(),
                remote: "a queue of another context".into(),
                reason: "make domain, completion queues and shared receive queues from one context",
            });
        }
        let psn = random_psn().map_err(|error| Error::os(name, "getrandom", error))?;
        let mut node = self.context.driver.lock();
        let number = node.engine.create_queue_pair(engine::QueuePairConfig {
            domain: self.id,
            send_completions: send.0.id,
            receive_completions: receive.0.id,
            shared_receives: shared.map(|queue| queue.0.id),
            send_depth: options.send_depth as usize,
            receive_depth: options.receive_depth as usize,
            inline_bytes_max: options.inline_bytes_max as usize,
            signal_all: false,
        })?;
        let grant = node.grant();
        drop(node);
        let queues = (send.clone(), receive.clone(), shared.cloned());
        Ok(QueuePair { context: self.context.clone(), number, psn, grant, _queues: queues })
    }
}

/// A registered range; deregistered when dropped.
#[derive(Debug)]
pub(crate) struct Region {
    driver: Arc<Driver>,
    key: MemoryKey,
}

impl Region {
    pub(crate) fn key(&self) -> MemoryKey {
        self.key
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.driver.lock().engine.deregister(self.key);
    }
}

#[derive(Debug)]
struct CompletionQueueHold {
    driver: Arc<Driver>,
    id: CompletionQueueId,
    /// What there is to sleep on.
    sleeper: OwnedFd,
}

impl Drop for CompletionQueueHold {
    fn drop(&mut self) {
        let mut node = self.driver.lock();
        node.unwatch(self.id);
        let destroyed = node.engine.destroy_completion_queue(self.id);
        debug_assert!(destroyed.is_ok(), "queue pairs hold their completion queues");
    }
}

/// A completion queue.
#[derive(Debug, Clone)]
pub(crate) struct CompletionQueue(Arc<CompletionQueueHold>);

impl CompletionQueue {
    /// Takes completions; makes progress first when none wait.
    #[inline]
    pub(crate) fn poll(&self, out: &mut [WorkCompletion]) -> usize {
        let mut node = self.0.driver.lock();
        let taken = node.engine.poll_completions(self.0.id, out);
        if taken > 0 {
            return taken;
        }
        node.progress_for(self.0.id);
        node.engine.poll_completions(self.0.id, out)
    }

    /// Asks for the descriptor to become readable with the next completion; false if one waits already.
    pub(crate) fn arm(&self) -> bool {
        self.0.driver.lock().arm(self.0.id)
    }

    pub(crate) fn clear_events(&self) {
        self.0.driver.lock().woke(self.0.id);
    }

    /// Readable when a completion was announced, and when there is something to do that may bring one.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.sleeper.as_fd()
    }
}

#[derive(Debug)]
struct SharedReceiveQueueHold {
    driver: Arc<Driver>,
    id: SharedReceiveQueueId,
}

impl Drop for SharedReceiveQueueHold {
    fn drop(&mut self) {
        let destroyed = self.driver.lock().engine.destroy_shared_receive_queue(self.id);
        debug_assert!(destroyed.is_ok(), "queue pairs hold their shared receive queue");
    }
}

/// A receive queue that several queue pairs take from.
#[derive(Debug, Clone)]
pub(crate) struct SharedReceiveQueue(Arc<SharedReceiveQueueHold>);

impl SharedReceiveQueue {
    /// Destroys it; false if somebody else has it.
    pub(crate) fn destroy(self) -> bool {
        Arc::into_inner(self.0).is_some()
    }

    /// # Safety
    /// The memory of the requests belongs to them until they complete or the queue is gone.
    pub(crate) unsafe fn post_receive(&self, requests: &[ReceiveRequest<'_>]) -> Result<(), (usize, PostError)> {
        let mut node = self.0.driver.lock();
        for (index, request) in requests.iter().enumerate() {
            node.engine.post_shared_receive(self.0.id, request).map_err(|error| (index, error))?;
        }
        Ok(())
    }
}

/// A queue pair; destroyed when dropped.
#[derive(Debug)]
pub(crate) struct QueuePair {
    context: Context,
    number: QueuePairNumber,
    psn: u32,
    grant: u64,
    _queues: (CompletionQueue, CompletionQueue, Option<SharedReceiveQueue>),
}

impl QueuePair {
    pub(crate) fn number(&self) -> QueuePairNumber {
        self.number
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        let node = self.context.driver.lock();
        let socket = node.socket();
        Endpoint {
            queue_pair: self.number,
            psn: self.psn,
            gid: gid(socket.local().ip()),
            lid: 0,
            mtu: self.context.attributes.mtu,
            responder_depth: RESPONDER_DEPTH,
            soft: Some(SoftEndpoint {
                port: socket.local().port(),
                window_bytes: Node::windows(self.grant).0,
                packet_overhead_bytes: PACKET_OVERHEAD_BYTES,
                plain_socket: socket.is_plain(),
            }),
            memory: None,
        }
    }

    pub(crate) fn to_init(&self, access: Access) -> Result<(), Error> {
        Ok(self.context.driver.lock().engine.to_init(self.number, access)?)
    }

    pub(crate) fn connect(&self, remote: &Endpoint, options: &ConnectOptions) -> Result<(), Error> {
        let mut node = self.context.driver.lock();
        let local = node.socket().local();
        options.check()?;
        self.check(remote, local, node.socket().is_plain())?;
        let mtu = remote.mtu.min(self.context.attributes.mtu).min(options.mtu);
        let mut peer = remote.socket_address();
        if let (SocketAddr::V6(ours), SocketAddr::V6(theirs)) = (local, &mut peer) {
            // A link-local peer is on our link.
            theirs.set_scope_id(if interfaces::is_link_local(IpAddr::V6(*theirs.ip())) { ours.scope_id() } else { 0 });
        }
        let ipv4 = node.socket().ipv4_fields();
        node.engine.to_ready_to_receive(
            self.number,
            &ReceiveAttributes {
                local,
                peer,
                ipv4,
                destination: remote.queue_pair,
                mtu,
                receive_psn: remote.psn,
                responder_depth: RESPONDER_DEPTH,
                rnr_timer: options.rnr_timer,
            },
        )?;
        node.engine.to_ready_to_send(
            self.number,
            &SendAttributes {
                send_psn: self.psn,
                timeout: options.timeout,
                retry_count: options.retry_count,
                rnr_retry_count: options.rnr_retry_count,
                initiator_depth: options.initiator_depth.min(remote.responder_depth),
                window_bytes: remote.soft.map_or(WINDOW_BYTES, |soft| soft.window_bytes),
                read_window_bytes: Node::windows(self.grant).1,
                packet_overhead_bytes: remote
                    .soft
                    .map_or(0, |soft| soft.packet_overhead_bytes)
                    .max(PACKET_OVERHEAD_BYTES),
                ack_every_packets: 32,
            },
        )?;
        Ok(())
    }

    fn check(&self, remote: &Endpoint, local: SocketAddr, plain: bool) -> Result<(), Error> {
        let mismatch = |reason| Error::Mismatch {
            local: format!("{} ({local})", self.context.attributes.name),
            remote: remote.socket_address().to_string(),
            reason,
        };
        if remote.ip().is_ipv4() != local.is_ipv4() {
            return Err(mismatch("one side uses IPv4, the other IPv6: choose addresses of one family on both"));
        }
        match remote.soft {
            None if local.port() != ROCE_PORT => {
                Err(mismatch("hardware and rxe send to UDP port 4791 only: open the soft device with that port"))
            }
            None if local.is_ipv4() && plain => Err(mismatch(
                "over IPv4, hardware and rxe need the raw socket (CAP_NET_RAW), because the invariant CRC covers the \
                 identification of the IP header; or use IPv6",
            )),
            Some(soft) if soft.window_bytes < WINDOW_BYTES_MIN + soft.packet_overhead_bytes as u64 => {
                Err(mismatch("it grants a window that holds no packet: that is no record of this crate"))
            }
            Some(soft) if local.is_ipv4() && soft.plain_socket != plain => Err(mismatch(
                "over IPv4 both soft sides need the same kind of socket: raw (port 4791) or plain (any other port)",
            )),
            _ => Ok(()),
        }
    }

    pub(crate) fn to_error(&self) -> Result<(), Error> {
        let mut node = self.context.driver.lock();
        node.engine.to_error(self.number)?;
        node.notify();
        Ok(())
    }

    pub(crate) fn state(&self) -> QueuePairState {
        self.context.driver.lock().engine.state(self.number).unwrap_or(QueuePairState::Error)
    }

    /// # Safety
    /// The memory of the requests belongs to them until they complete or the queue pair is gone.
    #[inline]
    pub(crate) unsafe fn post_send(&self, requests: &[WorkRequest<'_>]) -> Result<(), (usize, PostError)> {
        let mut node = self.context.driver.lock();
        let mut result = Ok(());
        for (index, request) in requests.iter().enumerate() {
            if let Err(error) = node.engine.post_send(self.number, request) {
                result = Err((index, error));
                break;
            }
        }
        node.transmit();
        node.notify();
        result
    }

    /// # Safety
    /// As for [`Self::post_send`].
    #[inline]
    pub(crate) unsafe fn post_receive(&self, requests: &[ReceiveRequest<'_>]) -> Result<(), (usize, PostError)> {
        let mut node = self.context.driver.lock();
        let mut result = Ok(());
        for (index, request) in requests.iter().enumerate() {
            if let Err(error) = node.engine.post_receive(self.number, request) {
                result = Err((index, error));
                break;
            }
        }
        // In the error state it completes at once.
        node.notify();
        result
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        let mut node = self.context.driver.lock();
        // Acknowledgements that wait for company: the peer would wait for them, and then try in vain.
        node.transmit();
        let destroyed = node.engine.destroy_queue_pair(self.number);
        debug_assert!(destroyed.is_ok(), "nobody else destroys it");
        node.return_grant(self.grant);
    }
}
