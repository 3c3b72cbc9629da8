//! The provider against a device in memory: what it hands to libibverbs, and what it makes of the answers.

mod connect;
mod devices;
mod fast_path;
mod leaks;
mod safe_layer;

use std::sync::Arc;

use super::stub::Stub;
use super::*;
use crate::connect::QueuePairOptions;
use crate::device::OpenOptions;
use crate::verbs::Access;

/// A stub, and one of each object on it. Dropped in an order that is wrong for libibverbs: parents first.
struct Bench {
    context: Arc<Context>,
    domain: Domain,
    send: CompletionQueue,
    receive: CompletionQueue,
    queue_pair: QueuePair,
    stub: Stub,
}

impl Bench {
    fn new() -> Bench {
        Bench::on(Stub::new(), &QueuePairOptions::default())
    }

    fn on(stub: Stub, options: &QueuePairOptions) -> Bench {
        let context = stub.open(&OpenOptions::default()).unwrap();
        let domain = context.create_domain().unwrap();
        let send = context.create_completion_queue(64).unwrap();
        let receive = context.create_completion_queue(64).unwrap();
        let queue_pair = domain.create_queue_pair(&send, &receive, None, options).unwrap();
        Bench { context, domain, send, receive, queue_pair, stub }
    }

    /// With the queue pair in Init.
    fn initialised() -> Bench {
        let bench = Bench::new();
        bench.queue_pair.to_init(Access::ALL).unwrap();
        bench
    }

    /// Connected to itself.
    fn connected() -> Bench {
        let bench = Bench::initialised();
        bench.queue_pair.connect(&bench.queue_pair.endpoint(), &Default::default()).unwrap();
        bench
    }
}

#[test]
fn all_objects_may_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Context>();
    shared::<Domain>();
    shared::<Region>();
    shared::<CompletionQueue>();
    shared::<SharedReceiveQueue>();
    shared::<QueuePair>();
    shared::<cm::Listener>();
    shared::<cm::Request>();
    shared::<cm::Route>();
    shared::<cm::Connection>();
}
