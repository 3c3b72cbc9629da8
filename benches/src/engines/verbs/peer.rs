//! The other end of a `verbs` job: answers what must be answered, and lends memory for the rest.
//!
//! Called by `heliostat-bench serve-verbs`, and by jobs without `hostname`, whose peer is a thread beside them.

use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use verbs_shim::verbs::WcOpcode;
use verbs_shim::{Completion, Error, SendRequest};

use super::end::{End, is_good};
use super::protocol::{Verb, Wish};

/// Jobs that are served at a time.
const JOBS_MAX: usize = 64;
/// How often a peer that waits looks whether its job has ended.
const LOOK: Duration = Duration::from_millis(50);
/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a peer ended early.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The TCP connection that jobs come by.
    #[error("the job's connection: {0}")]
    Stream(#[from] io::Error),
    /// The device.
    #[error(transparent)]
    Verbs(#[from] Error),
    /// A request failed.
    #[error("a request of the peer failed: {0}")]
    Failed(&'static str),
}

/// Serves one job after another for ever, at most [`JOBS_MAX`] beside each other, and says on standard error what went
/// wrong with one.
pub fn serve(listener: &TcpListener, device: &str) -> io::Result<()> {
    let running = Arc::new(());
    for stream in listener.incoming() {
        let (device, running) = (device.to_string(), running.clone());
        let served = stream.and_then(|stream| {
            if Arc::strong_count(&running) > JOBS_MAX + 1 {
                return Err(io::Error::other(format!("more than {JOBS_MAX} jobs at once")));
            }
            std::thread::Builder::new().name("verbs-peer".into()).spawn(move || {
                let _running = running;
                if let Err(error) = serve_one(stream, &device) {
                    eprintln!("heliostat-bench: a job: {error}");
                }
            })
        });
        if let Err(error) = served {
            eprintln!("heliostat-bench: a job that came by: {error}");
            // Out of descriptors, say: not as fast as the processor can.
            std::thread::sleep(LOOK);
        }
    }
    Ok(())
}

/// Serves the job at the other end of `stream` until it ends.
pub fn serve_one(mut stream: TcpStream, device: &str) -> Result<(), PeerError> {
    // A client whose machine went away says nothing more, and what it was lent must not stay lent.
    let keepalive = TcpKeepalive::new().with_time(PATIENCE).with_interval(PATIENCE).with_retries(3);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let wish = Wish::receive(&mut stream)?;
    let answers = wish.ping_pong || wish.verb == Verb::Send;
    let end = End::open(device, &wish, answers, &mut stream)?;
    if !answers {
        stream.set_read_timeout(None)?;
        return wait_for_end(&mut stream);
    }
    let (ended, served) = (AtomicBool::new(false), AtomicBool::new(false));
    let watched = stream.try_clone()?;
    watched.set_read_timeout(Some(LOOK))?;
    std::thread::scope(|scope| {
        let (ended, served) = (&ended, &served);
        scope.spawn(move || {
            let mut watched = watched;
            // Anything but silence is the end.
            while !served.load(Ordering::Relaxed) && watched.read(&mut [0]).is_err_and(|error| is_silence(&error)) {}
            ended.store(true, Ordering::Relaxed);
        });
        let done = match (wish.verb, wish.ping_pong) {
            (Verb::Write, true) => answer_writes(&end, &wish, ended),
            (_, ping_pong) => take_messages(&end, &wish, ping_pong, ended),
        };
        served.store(true, Ordering::Relaxed);
        done
    })
}

fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

fn wait_for_end(stream: &mut TcpStream) -> Result<(), PeerError> {
    match stream.read(&mut [0]) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn checked(completion: &Completion) -> Result<(), PeerError> {
    match is_good(completion) {
        true => Ok(()),
        false => Err(PeerError::Failed(completion.status.name())),
    }
}

/// Takes messages, and answers each if asked to.
fn take_messages(end: &End, wish: &Wish, ping_pong: bool, ended: &AtomicBool) -> Result<(), PeerError> {
    let mut answer = end.domain.allocate(wish.bytes as usize).map(Some)?;
    let (mut done, mut unanswered) = (Vec::new(), 0);
    while !ended.load(Ordering::Relaxed) {
        end.completions.poll(&mut done)?;
        for completion in done.drain(..) {
            if ended.load(Ordering::Relaxed) {
                return Ok(());
            }
            checked(&completion)?;
            if completion.opcode == WcOpcode::Recv {
                end.receive_again(completion)?;
                unanswered += u32::from(ping_pong);
            } else {
                answer = completion.buffer;
            }
        }
        // The next message may come before the last answer's own completion.
        if unanswered > 0
            && let Some(buffer) = answer.take()
        {
            unanswered -= 1;
            end.pair.post_send(SendRequest::send(buffer)).map_err(Error::from)?;
        }
    }
    Ok(())
}

/// Waits for each WRITE, by its last word, and writes it back.
fn answer_writes(end: &End, wish: &Wish, ended: &AtomicBool) -> Result<(), PeerError> {
    let last_word = wish.bytes as usize - 8;
    let mut answer = end.domain.allocate(wish.bytes as usize).map(Some)?;
    let (mut done, mut seen) = (Vec::new(), 0);
    while !ended.load(Ordering::Relaxed) {
        let written = end.memory.load(last_word);
        if written != seen
            && let Some(mut buffer) = answer.take()
        {
            seen = written;
            buffer[last_word..].copy_from_slice(&written.to_ne_bytes());
            end.pair.post_send(SendRequest::write(buffer, end.target)).map_err(Error::from)?;
        }
        end.completions.poll(&mut done)?;
        for completion in done.drain(..) {
            if ended.load(Ordering::Relaxed) {
                return Ok(());
            }
            checked(&completion)?;
            answer = completion.buffer;
        }
    }
    Ok(())
}
