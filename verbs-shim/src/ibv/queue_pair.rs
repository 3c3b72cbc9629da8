//! Reliable-connected queue pairs and their states, and shared receive queues.
//!
//! Owns: `ibv_qp` and `ibv_srq`.
//!
//! Invariants
//! - The state kept here is the one that this side moved the queue pair to. The device may have moved it to the
//!   error state since ([`QueuePair::state`] asks it); posting is allowed there, and is flushed.
//! - A queue pair holds its domain, both completion queues and its shared receive queue.
//! - The first PSN is drawn once per queue pair, so that late packets of a predecessor fall out of the window.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use super::abi::{
    ibv_ah_attr, ibv_gid, ibv_qp, ibv_qp_attr, ibv_qp_cap, ibv_qp_init_attr, ibv_srq, ibv_srq_init_attr, value,
};
use super::completion_queue::CompletionQueue;
use super::device::Context;
use super::memory::Domain;
use super::post;
use crate::Error;
use crate::connect::{ConnectOptions, Endpoint, QueuePairOptions, ROCE_PORT};
use crate::device::{Capabilities, Transport};
use crate::random::random_psn;
use crate::soft::engine::ControlError;
use crate::verbs::{Access, PostError, QueuePairNumber, QueuePairState, ReceiveRequest, WorkRequest};

/// Routers that a RoCEv2 packet may pass.
const HOP_LIMIT: u8 = 64;

/// A reliable-connected queue pair.
pub(crate) struct QueuePair {
    raw: NonNull<ibv_qp>,
    /// Destroying was tried.
    destroyed: bool,
    number: QueuePairNumber,
    psn: u32,
    inline_bytes_max: u32,
    /// Of the device, here so that posting need not look for them.
    message_bytes_max: u32,
    capabilities: Capabilities,
    state: AtomicU8,
    initiator_depth: AtomicU8,
    /// What the peer may do, as `to_init` was told.
    access: AtomicU32,
    shared: Option<SharedReceiveQueue>,
    _send: CompletionQueue,
    _receive: CompletionQueue,
    domain: Domain,
}

// SAFETY: libibverbs is thread safe: posting locks within the queue pair; the rest is atomic, plain or `Sync`.
unsafe impl Send for QueuePair {}
// SAFETY: as above.
unsafe impl Sync for QueuePair {}

impl Drop for QueuePair {
    fn drop(&mut self) {
        self.destroy();
    }
}

impl QueuePair {
    /// Destroys it; whether the device has let go of the memory of its requests. Only the first call does something; after
    /// it only dropping is allowed.
    pub(crate) fn destroy(&mut self) -> bool {
        if std::mem::replace(&mut self.destroyed, true) {
            return false;
        }
        // SAFETY: made by `ibv_create_qp`, destroyed once, before everything that it uses.
        let answer = unsafe { (self.context().verbs().destroy_qp)(self.raw()) };
        if answer != 0 {
            super::leaked(&self.context().attributes().name, "ibv_destroy_qp", answer);
            let used = (self.shared.clone(), self._send.clone(), self._receive.clone(), self.domain.clone());
            std::mem::forget(used);
        }
        answer == 0
    }

    pub(super) fn create(
        domain: &Domain,
        send: &CompletionQueue,
        receive: &CompletionQueue,
        shared: Option<&SharedReceiveQueue>,
        options: &QueuePairOptions,
    ) -> Result<QueuePair, Error> {
        let context = domain.context();
        let foreign = |other: &Arc<Context>| !Arc::ptr_eq(context, other);
        if foreign(send.context()) || foreign(receive.context()) || shared.is_some_and(|s| foreign(s.context())) {
            return Err(Error::Mismatch {
                local: format!("a domain of {}", context.attributes().name),
                remote: "queues of another context".into(),
                reason: "make domain, completion queues and shared receive queue from one opened device",
            });
        }
        let depth_max = context.attributes().queue_depth_max;
        for (name, depth) in [("send_depth", options.send_depth), ("receive_depth", options.receive_depth)] {
            if depth > depth_max {
                let rule = "the device's queue_depth_max bounds it";
                return Err(ControlError::Attribute { name, value: depth as u64, rule }.into());
            }
        }
        let psn = random_psn().map_err(|error| Error::os(&context.attributes().name, "getrandom", error))?;
        let pieces = context.attributes().pieces_max;
        let mut inline_bytes_max = options.inline_bytes_max;
        let raw = loop {
            let mut attributes = ibv_qp_init_attr {
                qp_context: std::ptr::null_mut(),
                send_cq: send.raw(),
                recv_cq: receive.raw(),
                srq: shared.map_or(std::ptr::null_mut(), SharedReceiveQueue::raw),
                cap: ibv_qp_cap {
                    max_send_wr: options.send_depth.max(1),
                    max_recv_wr: if shared.is_some() { 0 } else { options.receive_depth.max(1) },
                    max_send_sge: pieces,
                    max_recv_sge: if shared.is_some() { 0 } else { pieces },
                    max_inline_data: inline_bytes_max,
                },
                qp_type: value::QPT_RC,
                sq_sig_all: 0,
            };
            // SAFETY: all objects are alive and of one context; the attributes outlive the call.
            let raw = unsafe { (context.verbs().create_qp)(domain.raw(), &mut attributes) };
            if let Some(raw) = NonNull::new(raw) {
                break raw;
            }
            // No query tells how much inline data a device takes: siw refuses more than 80 bytes.
            let error = context.last_error("ibv_create_qp");
            match &error {
                Error::Os { source, .. } if source.raw_os_error() == Some(libc::EINVAL) && inline_bytes_max > 0 => {
                    inline_bytes_max = if inline_bytes_max > 16 { inline_bytes_max / 2 } else { 0 };
                }
                _ => return Err(error),
            }
        };
        // SAFETY: `ibv_create_qp` filled the number, which never changes.
        let number = QueuePairNumber(unsafe { (*raw.as_ptr()).qp_num });
        Ok(QueuePair {
            raw,
            destroyed: false,
            number,
            psn,
            inline_bytes_max,
            message_bytes_max: context.message_bytes_max,
            capabilities: context.attributes().capabilities,
            state: AtomicU8::new(QueuePairState::Reset as u8),
            initiator_depth: AtomicU8::new(0),
            access: AtomicU32::new(0),
            shared: shared.cloned(),
            _send: send.clone(),
            _receive: receive.clone(),
            domain: domain.clone(),
        })
    }

    /// Its number.
    pub(crate) fn number(&self) -> QueuePairNumber {
        self.number
    }

    /// Bytes of one inline request: as many as asked for, or fewer if the device takes no more.
    pub(crate) fn inline_bytes_max(&self) -> u32 {
        self.inline_bytes_max
    }

    /// What a peer must know to connect. The same at every call. On iWARP it is of no use: see `cm`.
    pub(crate) fn endpoint(&self) -> Endpoint {
        let context = self.context();
        Endpoint {
            queue_pair: self.number,
            psn: self.psn,
            gid: context.gid,
            lid: context.lid,
            mtu: context.attributes().mtu,
            responder_depth: context.responder_depth_max,
            soft: None,
            memory: None,
        }
    }

    /// To the state Init, with what the peer may do: receive requests can be posted, and then it can be connected.
    ///
    /// # Errors
    /// [`Error::Control`] after it was connected, [`Error::Os`].
    pub(crate) fn to_init(&self, access: Access) -> Result<(), Error> {
        self.before_connection()?;
        self.access.store(access.0, Ordering::Relaxed);
        let context = self.context();
        let attributes = ibv_qp_attr {
            qp_state: value::QPS_INIT,
            qp_access_flags: access.0,
            port_num: context.port,
            ..zeroed_attributes()
        };
        let mut mask = value::QP_STATE | value::QP_PORT | value::QP_ACCESS_FLAGS;
        if context.attributes().transport != Transport::Iwarp {
            mask |= value::QP_PKEY_INDEX;
        }
        self.modify(attributes, mask)
    }

    pub(super) fn access(&self) -> Access {
        Access(self.access.load(Ordering::Relaxed))
    }

    /// Connects to the peer: from Init to ready-to-receive, to ready-to-send.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if this transport and the peer's cannot talk, [`Error::Unsupported`] on iWARP,
    /// [`Error::Control`] if it is not in Init or an option is out of its range, and [`Error::Os`].
    pub(crate) fn connect(&self, remote: &Endpoint, options: &ConnectOptions) -> Result<(), Error> {
        options.check()?;
        self.before_connecting()?;
        self.check_peer(remote)?;
        let context = self.context();
        let mtu = context.attributes().mtu.min(remote.mtu).min(options.mtu);
        let infiniband = context.attributes().transport == Transport::InfiniBand;
        let other_subnet = context.gid.octets()[..8] != remote.gid.octets()[..8];
        let ready_to_receive = ibv_qp_attr {
            qp_state: value::QPS_RTR,
            path_mtu: mtu as i32 + 1,
            dest_qp_num: remote.queue_pair.0,
            rq_psn: remote.psn,
            qp_access_flags: self.access().0,
            max_dest_rd_atomic: context.responder_depth_max,
            min_rnr_timer: options.rnr_timer,
            ah_attr: ibv_ah_attr {
                dgid: ibv_gid(remote.gid.octets()),
                sgid_index: context.gid_index,
                hop_limit: HOP_LIMIT,
                dlid: remote.lid,
                is_global: (!infiniband || other_subnet) as u8,
                port_num: context.port,
                ..zeroed_attributes().ah_attr
            },
            ..zeroed_attributes()
        };
        self.modify(
            ready_to_receive,
            value::QP_STATE
                | value::QP_AV
                | value::QP_PATH_MTU
                | value::QP_DEST_QPN
                | value::QP_RQ_PSN
                | value::QP_ACCESS_FLAGS
                | value::QP_MAX_DEST_RD_ATOMIC
                | value::QP_MIN_RNR_TIMER,
        )?;
        let initiator_depth = options.initiator_depth.min(remote.responder_depth).min(context.initiator_depth_max);
        let ready_to_send = ibv_qp_attr {
            qp_state: value::QPS_RTS,
            sq_psn: self.psn,
            timeout: options.timeout,
            retry_cnt: options.retry_count,
            rnr_retry: options.rnr_retry_count,
            max_rd_atomic: initiator_depth,
            ..zeroed_attributes()
        };
        self.set_initiator_depth(initiator_depth);
        self.modify(
            ready_to_send,
            value::QP_STATE
                | value::QP_SQ_PSN
                | value::QP_TIMEOUT
                | value::QP_RETRY_CNT
                | value::QP_RNR_RETRY
                | value::QP_MAX_QP_RD_ATOMIC,
        )
    }

    fn check_peer(&self, remote: &Endpoint) -> Result<(), Error> {
        let context = self.context();
        let name = &context.attributes().name;
        let refuse = |reason| Err(Error::Mismatch { local: name.clone(), remote: peer_name(remote), reason });
        match context.attributes().transport {
            Transport::Iwarp => {
                let reason = "iWARP is connected by rdma_cm only: resolve the peer's address and connect by that";
                return Err(Error::Unsupported { device: name.clone(), operation: "connecting by endpoints", reason });
            }
            Transport::InfiniBand if remote.soft.is_some() || remote.lid == 0 => {
                return refuse("this device is on InfiniBand and the peer on RoCE: use devices of one kind");
            }
            Transport::InfiniBand => return Ok(()),
            Transport::RoceV2 => {}
        }
        if remote.lid != 0 {
            return refuse("this device is on RoCE and the peer on InfiniBand: use devices of one kind");
        }
        if remote.gid.is_unspecified() {
            return refuse("the peer has no GID: on iWARP it is connected by rdma_cm only");
        }
        let ipv4 = remote.gid.to_ipv4_mapped().is_some();
        if ipv4 != context.gid.to_ipv4_mapped().is_some() {
            return refuse("one side has an IPv4 GID and the other an IPv6 one: choose GIDs of one family (GidChoice)");
        }
        match remote.soft {
            Some(soft) if soft.port != ROCE_PORT => refuse(
                "kernel and hardware RoCE send to UDP port 4791 only: open the soft device on that port (in another \
                 network namespace if the kernel holds it)",
            ),
            Some(soft) if soft.plain_socket && ipv4 => refuse(
                "over IPv4 a plain socket cannot check the packets of kernel and hardware RoCE: use IPv6 addresses, \
                 or give the soft side a raw socket (CAP_NET_RAW)",
            ),
            _ => Ok(()),
        }
    }

    /// To the error state: what is outstanding is flushed.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub(crate) fn to_error(&self) -> Result<(), Error> {
        self.modify(ibv_qp_attr { qp_state: value::QPS_ERR, ..zeroed_attributes() }, value::QP_STATE)
    }

    /// The state that the device has it in.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub(crate) fn state(&self) -> Result<QueuePairState, Error> {
        let mut attributes = zeroed_attributes();
        // SAFETY: integers and pointers, for which zero is a value.
        let mut initial: ibv_qp_init_attr = unsafe { std::mem::zeroed() };
        let query = self.context().verbs().query_qp;
        // SAFETY: the queue pair is alive; both structures outlive the call.
        let answer = unsafe { query(self.raw(), &mut attributes, value::QP_STATE, &mut initial) };
        super::checked(answer).map_err(|error| self.context().error("ibv_query_qp", error))?;
        Ok(state_of(attributes.qp_state))
    }

    /// Posts work requests in order, in chains of up to 16.
    ///
    /// # Errors
    /// How many were accepted, and why the next one was not.
    ///
    /// # Safety
    /// All pieces name memory that stays registered, and that nobody else touches as the operation forbids,
    /// until the request is complete: its own completion, or that of a later signalled one, or the queue pair's end.
    #[inline]
    pub(crate) unsafe fn post_send(&self, requests: &[WorkRequest<'_>]) -> Result<(), (usize, PostError)> {
        let state = self.state.load(Ordering::Relaxed);
        if state < QueuePairState::ReadyToSend as u8 {
            return if requests.is_empty() { Ok(()) } else { Err((0, PostError::State)) };
        }
        // SAFETY: the queue pair is alive; for the memory the caller vouches.
        unsafe { post::send(self.raw(), requests, &self.limits()) }
    }

    /// The same for one request.
    ///
    /// # Errors
    /// As above; (1, _) if it may be posted all the same.
    ///
    /// # Safety
    /// As above.
    #[inline]
    pub(crate) unsafe fn post_send_one(&self, request: &WorkRequest<'_>) -> Result<(), (usize, PostError)> {
        if self.state.load(Ordering::Relaxed) < QueuePairState::ReadyToSend as u8 {
            return Err((0, PostError::State));
        }
        // SAFETY: as above.
        unsafe { post::send_one(self.raw(), request, &self.limits()) }
    }

    #[inline]
    fn limits(&self) -> post::Limits {
        post::Limits {
            inline_bytes: self.inline_bytes_max as usize,
            message_bytes: self.message_bytes_max as u64,
            reads_and_atomics: self.initiator_depth.load(Ordering::Relaxed) > 0,
            immediate: self.capabilities.immediate,
            atomics: self.capabilities.atomics,
        }
    }

    /// Posts receive requests in order, in chains of up to 16.
    ///
    /// # Errors
    /// How many were accepted, and why the next one was not.
    ///
    /// # Safety
    /// All pieces name memory that stays registered and that nobody else touches until the completion, or the
    /// queue pair's end.
    #[inline]
    pub(crate) unsafe fn post_receive(&self, requests: &[ReceiveRequest<'_>]) -> Result<(), (usize, PostError)> {
        if requests.is_empty() {
            return Ok(());
        }
        if self.shared.is_some() {
            return Err((0, PostError::UsesSharedReceiveQueue));
        }
        if self.state.load(Ordering::Relaxed) == QueuePairState::Reset as u8 {
            return Err((0, PostError::State));
        }
        // SAFETY: the queue pair is alive; for the memory the caller vouches.
        unsafe { post::receive(self.raw(), requests) }
    }

    #[inline]
    pub(super) fn raw(&self) -> *mut ibv_qp {
        self.raw.as_ptr()
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        self.domain.context()
    }

    pub(super) fn uses_shared_receive_queue(&self) -> bool {
        self.shared.is_some()
    }

    pub(super) fn set_initiator_depth(&self, depth: u8) {
        self.initiator_depth.store(depth, Ordering::Relaxed);
    }

    /// Notes a step that the kernel took by itself (iWARP).
    pub(super) fn note_state(&self, state: QueuePairState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// The state, if it is one before the connection.
    fn before_connection(&self) -> Result<QueuePairState, Error> {
        match QueuePairState::ALL[self.state.load(Ordering::Relaxed) as usize] {
            state @ (QueuePairState::Reset | QueuePairState::Init) => Ok(state),
            state => Err(ControlError::State(state).into()),
        }
    }

    /// Fails unless the state is Init: the peer's rights come with it.
    pub(super) fn before_connecting(&self) -> Result<(), Error> {
        match self.before_connection()? {
            QueuePairState::Init => Ok(()),
            state => Err(ControlError::State(state).into()),
        }
    }

    /// `ibv_modify_qp`, to another state.
    pub(super) fn modify(&self, mut attributes: ibv_qp_attr, mask: i32) -> Result<(), Error> {
        let context = self.context();
        // SAFETY: the queue pair is alive; the attributes outlive the call.
        let answer = unsafe { (context.verbs().modify_qp)(self.raw(), &mut attributes, mask) };
        let state = state_of(attributes.qp_state);
        let call = match state {
            QueuePairState::Init => "ibv_modify_qp(INIT)",
            QueuePairState::ReadyToReceive => "ibv_modify_qp(RTR)",
            QueuePairState::ReadyToSend => "ibv_modify_qp(RTS)",
            _ => "ibv_modify_qp",
        };
        super::checked(answer).map_err(|error| context.error(call, error))?;
        self.note_state(state);
        Ok(())
    }
}

trait AllStates {
    const ALL: [QueuePairState; 6];
}

impl AllStates for QueuePairState {
    const ALL: [QueuePairState; 6] = [
        QueuePairState::Reset,
        QueuePairState::Init,
        QueuePairState::ReadyToReceive,
        QueuePairState::ReadyToSend,
        QueuePairState::SendQueueDrain,
        QueuePairState::Error,
    ];
}

/// From `enum ibv_qp_state`. The send-queue error state (5) is one of datagrams.
fn state_of(number: i32) -> QueuePairState {
    match number {
        value::QPS_RESET => QueuePairState::Reset,
        value::QPS_INIT => QueuePairState::Init,
        value::QPS_RTR => QueuePairState::ReadyToReceive,
        value::QPS_RTS => QueuePairState::ReadyToSend,
        value::QPS_SQD => QueuePairState::SendQueueDrain,
        _ => QueuePairState::Error,
    }
}

pub(super) fn zeroed_attributes() -> ibv_qp_attr {
    // SAFETY: integers only, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn peer_name(remote: &Endpoint) -> String {
    match (remote.lid, remote.soft) {
        (0, Some(_)) => format!("soft endpoint {}", remote.socket_address()),
        (0, None) => format!("RoCE endpoint {}", remote.ip()),
        (lid, _) => format!("InfiniBand endpoint of LID {lid}"),
    }
}

/// A shared receive queue. A clone is the same one.
#[derive(Clone)]
pub(crate) struct SharedReceiveQueue(Arc<OwnedSharedQueue>);

struct OwnedSharedQueue {
    raw: NonNull<ibv_srq>,
    destroyed: bool,
    domain: Domain,
}

// SAFETY: libibverbs is thread safe: posting locks within the queue.
unsafe impl Send for OwnedSharedQueue {}
// SAFETY: as above.
unsafe impl Sync for OwnedSharedQueue {}

impl OwnedSharedQueue {
    /// As [`QueuePair::destroy`].
    fn destroy(&mut self) -> bool {
        if std::mem::replace(&mut self.destroyed, true) {
            return false;
        }
        let context = self.domain.context();
        // SAFETY: made by `ibv_create_srq`, destroyed once; queue pairs hold it, so that none is left.
        let answer = unsafe { (context.verbs().destroy_srq)(self.raw.as_ptr()) };
        if answer != 0 {
            super::leaked(&context.attributes().name, "ibv_destroy_srq", answer);
            std::mem::forget(self.domain.clone());
        }
        answer == 0
    }
}

impl Drop for OwnedSharedQueue {
    fn drop(&mut self) {
        self.destroy();
    }
}

impl SharedReceiveQueue {
    pub(super) fn create(domain: &Domain, depth: u32) -> Result<SharedReceiveQueue, Error> {
        let context = domain.context();
        let device = context.attributes();
        if !device.capabilities.shared_receive_queues {
            let reason = "it has none: give each queue pair a receive queue of its own";
            return Err(Error::Unsupported { device: device.name.clone(), operation: "shared receive queues", reason });
        }
        let mut attributes = ibv_srq_init_attr {
            srq_context: std::ptr::null_mut(),
            max_wr: depth.max(1),
            max_sge: device.pieces_max,
            srq_limit: 0,
        };
        // SAFETY: the domain is alive; the attributes outlive the call.
        let raw = unsafe { (context.verbs().create_srq)(domain.raw(), &mut attributes) };
        let raw = NonNull::new(raw).ok_or_else(|| context.last_error("ibv_create_srq"))?;
        Ok(SharedReceiveQueue(Arc::new(OwnedSharedQueue { raw, destroyed: false, domain: domain.clone() })))
    }

    /// Posts receive requests in order, in chains of up to 16.
    ///
    /// # Errors
    /// How many were accepted, and why the next one was not.
    ///
    /// # Safety
    /// As for [`QueuePair::post_receive`], until the completion or the end of the shared receive queue.
    #[inline]
    pub(crate) unsafe fn post_receive(&self, requests: &[ReceiveRequest<'_>]) -> Result<(), (usize, PostError)> {
        // SAFETY: the queue is alive; for the memory the caller vouches.
        unsafe { post::receive_shared(self.raw(), requests) }
    }

    /// Destroys it, if nobody else has it; whether the device has let go of the memory of its requests. After it only
    /// dropping is allowed.
    pub(crate) fn destroy(&mut self) -> bool {
        Arc::get_mut(&mut self.0).is_some_and(OwnedSharedQueue::destroy)
    }

    #[inline]
    fn raw(&self) -> *mut ibv_srq {
        self.0.raw.as_ptr()
    }

    fn context(&self) -> &Arc<Context> {
        self.0.domain.context()
    }
}
