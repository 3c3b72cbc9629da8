//! Making, connecting and destroying queue pairs and queues: the control path of [`Engine`].

use std::net::{Ipv4Addr, SocketAddr};

use super::attributes::{ControlError, QueuePairConfig, ReceiveAttributes, SendAttributes, in_range};
use super::memory::RegionMemory;
use super::queue_pair::QueuePair;
use super::queues::{CompletionQueue, ReceiveQueue};
use super::shared::{Link, Shared};
use super::{CompletionQueueId, Engine, SharedReceiveQueueId};
use crate::soft::icrc::{NetworkHeader, PathCrc};
use crate::soft::packet::{MASK_24, PAYLOAD_BYTES_MAX};
use crate::verbs::{Access, QueuePairNumber, QueuePairState, WcStatus};

const DEPTH_MAX: usize = 32_768;
const RESPONDER_DEPTH_MAX: u8 = 128;

/// Puts `made` into the first free place; its index.
fn place<T>(places: &mut Vec<Option<T>>, limit: usize, made: T) -> Result<u32, ControlError> {
    if let Some(index) = places.iter().position(Option::is_none) {
        places[index] = Some(made);
        return Ok(index as u32);
    }
    if places.len() >= limit {
        return Err(ControlError::TooMany(limit));
    }
    places.push(Some(made));
    Ok(places.len() as u32 - 1)
}

impl<M: RegionMemory> Engine<M> {
    /// A completion queue of `capacity` places. Every posted request holds one from posting until its
    /// completion is polled, so that the queue cannot overflow: give it the sum of the depths of the queues
    /// that complete there.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn create_completion_queue(&mut self, capacity: usize) -> Result<CompletionQueueId, ControlError> {
        let rule = "a completion queue has 1 to 4,194,304 places";
        in_range("capacity", capacity as u64, 1 << 22, rule)?;
        let queue = CompletionQueue::new(capacity.max(1));
        let limit = self.config.completion_queues_max;
        place(&mut self.shared.completion_queues, limit, queue).map(CompletionQueueId)
    }

    /// Destroys a completion queue that no queue pair uses.
    ///
    /// # Errors
    /// [`ControlError::Unknown`], [`ControlError::InUse`].
    pub fn destroy_completion_queue(&mut self, queue: CompletionQueueId) -> Result<(), ControlError> {
        let entry = self.shared.completion_queues.get_mut(queue.0 as usize).ok_or(ControlError::Unknown)?;
        match entry {
            None => Err(ControlError::Unknown),
            Some(queue) if queue.users > 0 => Err(ControlError::InUse(queue.users)),
            Some(_) => {
                *entry = None;
                Ok(())
            }
        }
    }

    /// A receive queue that several queue pairs take from. Its requests may name memory of any protection
    /// domain; the queue pair that takes one must be of that domain.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn create_shared_receive_queue(&mut self, depth: usize) -> Result<SharedReceiveQueueId, ControlError> {
        in_range("depth", depth as u64, DEPTH_MAX as u64, "a shared receive queue has 1 to 32,768 places")?;
        let limit = self.config.shared_receive_queues_max;
        place(&mut self.shared.receive_queues, limit, ReceiveQueue::new(depth.max(1))).map(SharedReceiveQueueId)
    }

    /// Destroys a shared receive queue that no queue pair uses; its requests are forgotten.
    ///
    /// # Errors
    /// [`ControlError::Unknown`], [`ControlError::InUse`].
    pub fn destroy_shared_receive_queue(&mut self, queue: SharedReceiveQueueId) -> Result<(), ControlError> {
        let entry = self.shared.receive_queues.get_mut(queue.0 as usize).ok_or(ControlError::Unknown)?;
        match entry {
            None => Err(ControlError::Unknown),
            Some(queue) if queue.users > 0 => Err(ControlError::InUse(queue.users)),
            Some(_) => {
                *entry = None;
                Ok(())
            }
        }
    }

    /// Asks for one [`super::Event::SharedReceiveLimit`] when fewer than `limit` requests are left (`srq_limit`);
    /// 0 for none. The event comes when a queue pair takes a request.
    ///
    /// # Errors
    /// [`ControlError::Unknown`].
    pub fn set_shared_receive_limit(&mut self, queue: SharedReceiveQueueId, limit: usize) -> Result<(), ControlError> {
        self.shared.receive_queue(queue.0).ok_or(ControlError::Unknown)?.limit = limit;
        Ok(())
    }

    /// A queue pair in the state RESET, with a number drawn at random.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn create_queue_pair(&mut self, config: QueuePairConfig) -> Result<QueuePairNumber, ControlError> {
        let depth = "a queue has at most 32,768 places";
        in_range("send_depth", config.send_depth as u64, DEPTH_MAX as u64, depth)?;
        in_range("receive_depth", config.receive_depth as u64, DEPTH_MAX as u64, depth)?;
        let inline = config.inline_bytes_max as u64;
        in_range("inline_bytes_max", inline, PAYLOAD_BYTES_MAX as u64, "at most 4,096 bytes are sent inline")?;
        let cx = &mut self.shared;
        if cx.completion_queue(config.send_completions.0).is_none()
            || cx.completion_queue(config.receive_completions.0).is_none()
            || config.shared_receives.is_some_and(|queue| cx.receive_queue(queue.0).is_none())
        {
            return Err(ControlError::Unknown);
        }
        let slot = self.queue_pairs.iter().position(Option::is_none);
        let slot = slot.ok_or(ControlError::TooMany(self.queue_pairs.len()))?;
        let number = self.draw_number(slot as u32);
        count_users(&mut self.shared, &config, |users| *users += 1);
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let path = PathCrc::new(NetworkHeader::new(nowhere, nowhere));
        let link = Link {
            number,
            domain: config.domain,
            send_completions: config.send_completions.0,
            receive_completions: config.receive_completions.0,
            shared_receives: config.shared_receives.map(|queue| queue.0),
            partition_key: self.config.partition_key,
            destination: 0,
            mtu: 1024,
            peer: nowhere,
            outgoing: path.clone(),
            incoming: path,
        };
        self.queue_pairs[slot] = Some(Box::new(QueuePair::new(config, link, slot as u32)));
        Ok(number)
    }

    /// Destroys a queue pair: what is outstanding, and completions not polled yet, vanish without a trace. To
    /// get them, step to the error state and poll first.
    ///
    /// # Errors
    /// [`ControlError::Unknown`].
    pub fn destroy_queue_pair(&mut self, number: QueuePairNumber) -> Result<(), ControlError> {
        let (pair, cx) = self.both(number).ok_or(ControlError::Unknown)?;
        pair.reset(cx);
        let config = pair.config.clone();
        count_users(cx, &config, |users| *users -= 1);
        let slot = number.0 & self.slot_mask;
        self.shared.ready.retain(|&ready| ready != slot);
        self.queue_pairs[slot as usize] = None;
        Ok(())
    }

    /// RESET to INIT. `access` is what the peer may do through this queue pair, beside each region's rights.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn to_init(&mut self, number: QueuePairNumber, access: Access) -> Result<(), ControlError> {
        let (pair, _) = self.both(number).ok_or(ControlError::Unknown)?;
        if pair.state != QueuePairState::Reset {
            return Err(ControlError::State(pair.state));
        }
        pair.responder.access = access;
        pair.state = QueuePairState::Init;
        Ok(())
    }

    /// INIT to RTR: the peer's packets are taken from now on.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn to_ready_to_receive(
        &mut self,
        number: QueuePairNumber,
        attributes: &ReceiveAttributes,
    ) -> Result<(), ControlError> {
        let (pair, _) = self.both(number).ok_or(ControlError::Unknown)?;
        if pair.state != QueuePairState::Init {
            return Err(ControlError::State(pair.state));
        }
        in_range("destination", attributes.destination.0 as u64, MASK_24 as u64, "it has 24 bits")?;
        in_range("receive_psn", attributes.receive_psn as u64, MASK_24 as u64, "it has 24 bits")?;
        let depth = attributes.responder_depth as u64;
        in_range("responder_depth", depth, RESPONDER_DEPTH_MAX as u64, "it is 0 to 128")?;
        in_range("rnr_timer", attributes.rnr_timer as u64, 31, "it is a code of 5 bits")?;
        if attributes.local.is_ipv4() != attributes.peer.is_ipv4() {
            let rule = "both addresses must be of one family";
            return Err(ControlError::Attribute { name: "local", value: 0, rule });
        }
        let link = &mut pair.link;
        link.destination = attributes.destination.0;
        link.mtu = attributes.mtu.bytes() as u64;
        link.peer = attributes.peer;
        let outgoing = NetworkHeader { source: attributes.local, destination: attributes.peer, ipv4: attributes.ipv4 };
        link.outgoing = PathCrc::new(outgoing);
        link.incoming = PathCrc::new(NetworkHeader::new(attributes.peer, attributes.local));
        pair.responder.connect(attributes);
        pair.state = QueuePairState::ReadyToReceive;
        Ok(())
    }

    /// RTR to RTS: work requests are taken from now on.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn to_ready_to_send(
        &mut self,
        number: QueuePairNumber,
        attributes: &SendAttributes,
    ) -> Result<(), ControlError> {
        let (pair, _) = self.both(number).ok_or(ControlError::Unknown)?;
        if pair.state != QueuePairState::ReadyToReceive {
            return Err(ControlError::State(pair.state));
        }
        in_range("send_psn", attributes.send_psn as u64, MASK_24 as u64, "it has 24 bits")?;
        in_range("timeout", attributes.timeout as u64, 31, "it is a code of 5 bits")?;
        in_range("retry_count", attributes.retry_count as u64, 7, "it is 0 to 7")?;
        in_range("rnr_retry_count", attributes.rnr_retry_count as u64, 7, "it is 0 to 7")?;
        let depth = attributes.initiator_depth as u64;
        in_range("initiator_depth", depth, RESPONDER_DEPTH_MAX as u64, "it is 0 to 128")?;
        let packet = pair.link.mtu + super::HEADER_CHARGE_BYTES + attributes.packet_overhead_bytes as u64;
        for (name, value) in
            [("window_bytes", attributes.window_bytes), ("read_window_bytes", attributes.read_window_bytes)]
        {
            if value < packet {
                let rule = "it must hold one packet: the MTU, HEADER_CHARGE_BYTES and packet_overhead_bytes";
                return Err(ControlError::Attribute { name, value, rule });
            }
        }
        pair.requester.connect(attributes, pair.link.mtu);
        pair.state = QueuePairState::ReadyToSend;
        Ok(())
    }

    /// RTS to SQD: what is begun is finished, then [`super::Event::SendQueueDrained`] comes.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn to_drain(&mut self, number: QueuePairNumber) -> Result<(), ControlError> {
        let (pair, cx) = self.both(number).ok_or(ControlError::Unknown)?;
        if pair.state != QueuePairState::ReadyToSend {
            return Err(ControlError::State(pair.state));
        }
        pair.state = QueuePairState::SendQueueDrain;
        pair.requester.draining = true;
        pair.requester.report_drained(cx, &pair.link);
        Ok(())
    }

    /// SQD back to RTS.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn resume(&mut self, number: QueuePairNumber) -> Result<(), ControlError> {
        let (pair, cx) = self.both(number).ok_or(ControlError::Unknown)?;
        if pair.state != QueuePairState::SendQueueDrain {
            return Err(ControlError::State(pair.state));
        }
        pair.state = QueuePairState::ReadyToSend;
        pair.requester.draining = false;
        pair.mark_ready(cx);
        Ok(())
    }

    /// To the error state, from any but RESET: everything outstanding completes as flushed.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn to_error(&mut self, number: QueuePairNumber) -> Result<(), ControlError> {
        let (pair, cx) = self.both(number).ok_or(ControlError::Unknown)?;
        if pair.state == QueuePairState::Reset {
            return Err(ControlError::State(pair.state));
        }
        pair.flush(cx, WcStatus::WrFlushErr, WcStatus::WrFlushErr);
        pair.responder.replies.clear();
        Ok(())
    }

    /// To RESET from any state; as with destroying, what is outstanding vanishes.
    ///
    /// # Errors
    /// [`ControlError::Unknown`].
    pub fn to_reset(&mut self, number: QueuePairNumber) -> Result<(), ControlError> {
        let (pair, cx) = self.both(number).ok_or(ControlError::Unknown)?;
        pair.reset(cx);
        Ok(())
    }
}

fn count_users<M: RegionMemory>(cx: &mut Shared<M>, config: &QueuePairConfig, change: impl Fn(&mut usize)) {
    for queue in [config.send_completions, config.receive_completions] {
        if let Some(queue) = cx.completion_queue(queue.0) {
            change(&mut queue.users);
        }
    }
    if let Some(queue) = config.shared_receives.and_then(|queue| cx.receive_queue(queue.0)) {
        change(&mut queue.users);
    }
}
