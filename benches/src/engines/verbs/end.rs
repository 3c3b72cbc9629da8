//! One end of the queue pair that a `verbs` job measures.
//!
//! Owns [`End`]: device, queue pair, completion queue, and the memory that the other end may use. Called by the engine and
//! by the peer.

use std::net::TcpStream;

use verbs_shim::verbs::{Access, WcStatus};
use verbs_shim::{
    Completion, CompletionQueue, ConnectOptions, Context, Error, OpenOptions, Progress, ProtectionDomain, QueuePair,
    QueuePairOptions, Receive, RemoteBuffer, RemoteMemory,
};

use super::protocol::Wish;

/// The token of receives: no slot has it.
pub const RECEIVE: u64 = u64::MAX;
/// Requests beyond those of messages.
const SPARE: u32 = 16;

pub struct End {
    pub pair: QueuePair,
    pub completions: CompletionQueue,
    /// What the other end may use.
    pub memory: RemoteBuffer,
    /// What it may use of the other end.
    pub target: RemoteMemory,
    pub domain: ProtectionDomain,
    /// Open as long as what was made of it.
    _context: Context,
}

impl End {
    /// Opens the device and connects with whoever is at the other end of `stream`. `polls`: this end polls all the time.
    pub fn open(device: &str, wish: &Wish, polls: bool, stream: &mut TcpStream) -> Result<End, Error> {
        let progress = if polls { Progress::Polled } else { Progress::Thread };
        let context = Context::open(device, &OpenOptions { progress, ..OpenOptions::default() })?;
        let domain = context.create_domain()?;
        let receives = wish.receives();
        let completions = context.create_completion_queue(wish.depth + receives + SPARE)?;
        let depth = QueuePairOptions {
            send_depth: wish.depth.max(SPARE),
            receive_depth: receives.max(1),
            ..QueuePairOptions::default()
        };
        let pair = domain.create_queue_pair(&completions, &completions, &depth)?;
        for _ in 0..receives {
            let receive = Receive::new(domain.allocate(wish.bytes as usize)?).token(RECEIVE);
            pair.post_receive(receive).map_err(Error::from)?;
        }
        let memory = domain.expose(wish.depth as usize * wish.bytes as usize, Access::ALL)?;
        let mut endpoint = pair.endpoint();
        endpoint.memory = Some(memory.remote());
        let other = endpoint.exchange(stream)?;
        pair.connect(&other, &ConnectOptions::default())?;
        let target = other.memory.unwrap_or(RemoteMemory { length: 0, ..memory.remote() });
        Ok(End { pair, completions, memory, target, domain, _context: context })
    }

    /// Gives the buffer of a message that came back to the receive queue.
    pub fn receive_again(&self, message: Completion) -> Result<(), Error> {
        match message.buffer {
            Some(buffer) => self.pair.post_receive(Receive::new(buffer).token(RECEIVE)).map_err(Error::from),
            None => Ok(()),
        }
    }
}

/// Whether a request went well.
pub fn is_good(completion: &Completion) -> bool {
    completion.status == WcStatus::Success
}
