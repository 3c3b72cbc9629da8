//! Two sides meet by rdma_cm, on a device of the provider ibv: one writes into the other's memory and says so.
//!
//!     rdma_cm listen 10.77.0.1:7500 &
//!     rdma_cm connect 10.77.0.1:7500

use std::time::Duration;

use verbs_shim::rdma_cm::{Listener, Route};
use verbs_shim::verbs::{Access, WcStatus};
use verbs_shim::{Completion, CompletionQueue, ConnectOptions, QueuePairOptions, Receive, SendRequest};

const PATIENCE: Duration = Duration::from_secs(20);
const TEXT: &[u8] = b"written through rdma_cm";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn next(queue: &CompletionQueue) -> Result<Completion> {
    let mut done = Vec::new();
    queue.wait(&mut done, PATIENCE)?;
    let done = done.pop().ok_or("no completion in time")?;
    if done.status == WcStatus::Success { Ok(done) } else { Err(done.status.name().into()) }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [role, address] = &arguments[..] else { return Err("usage: rdma_cm listen|connect ADDRESS:PORT".into()) };
    // iWARP allows reads of its own memory only where remote writes are allowed too; this suits both.
    let rights = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ;
    let options = QueuePairOptions { access: rights, ..QueuePairOptions::default() };
    if role == "listen" {
        let listener = Listener::bind(address.parse()?, 8)?;
        println!("listening on {}", listener.local_address());
        let request = listener.accept(Some(PATIENCE))?.ok_or("nobody came")?;
        let context = request.open()?;
        println!("{} comes to {}", request.peer_address(), context.attributes().name);
        let domain = context.create_domain()?;
        let queue = context.create_completion_queue(256)?;
        let pair = domain.create_queue_pair(&queue, &queue, &options)?;
        pair.post_receive(Receive::new(domain.allocate(8)?))?;
        let memory = domain.expose(4096, rights)?;
        let _connection = request.accept(&pair, &ConnectOptions::default(), Some(memory.remote()), PATIENCE)?;
        next(&queue)?;
        let mut text = [0; TEXT.len()];
        memory.read(0, &mut text);
        if text != TEXT {
            return Err(format!("found {text:?}").into());
        }
        pair.post_send(SendRequest::send_inline(b"thanks"))?;
        next(&queue)?;
        println!("ok: {}", String::from_utf8_lossy(&text));
        return Ok(());
    }
    let route = Route::resolve(address.parse()?, None, PATIENCE)?;
    let context = route.open()?;
    let domain = context.create_domain()?;
    let queue = context.create_completion_queue(256)?;
    let pair = domain.create_queue_pair(&queue, &queue, &options)?;
    pair.post_receive(Receive::new(domain.allocate(8)?))?;
    let connection = route.connect(&pair, &ConnectOptions::default(), None, PATIENCE)?;
    let memory = connection.remote_memory().ok_or("the peer told of no memory")?;
    let mut buffer = domain.allocate(TEXT.len())?;
    buffer.copy_from_slice(TEXT);
    pair.post_send(SendRequest::write(buffer, memory).unsignalled())?;
    pair.post_send(SendRequest::send_inline(b"done"))?;
    // The SEND, with the WRITE before it, and the answer: in either order.
    let mut done = Vec::new();
    while done.len() < 3 {
        if queue.wait(&mut done, PATIENCE)? == 0 {
            return Err("no completion in time".into());
        }
    }
    if let Some(failed) = done.iter().find(|done| done.status != WcStatus::Success) {
        return Err(failed.status.name().into());
    }
    println!("ok: connected by rdma_cm over {}", context.attributes().name);
    Ok(())
}
