//! `ping-pong`: the bare round trip that a question and its answer would take, without any work.
//!
//! Two threads of this process, over TCP on loopback or over SENDs of an RDMA device. Both sides poll, or both sleep. What
//! a point read costs above it is ours.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use verbs_shim::verbs::{Access, WcOpcode, WcStatus};
use verbs_shim::{
    Buffer, CompletionQueue, ConnectOptions, Context, OpenOptions, Progress, ProtectionDomain, QueuePair,
    QueuePairOptions, Receive, RemoteBuffer, RemoteMemory, SendRequest,
};

use crate::latency::percentiles;

/// How the sides wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Wait {
    /// They look all the time; each needs a CPU for itself.
    Polled,
    /// They sleep until something comes.
    Sleeping,
}

/// Bytes of a question and of its answer.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Sizes {
    /// Bytes of each question
    #[arg(long, default_value_t = 36)]
    there: usize,
    /// Bytes of each answer
    #[arg(long, default_value_t = 3590)]
    back: usize,
    /// RDMA: WRITE the answers with immediate data, instead of sending them
    #[arg(long)]
    write: bool,
}

/// One side: sends and receives whole messages.
trait Side {
    fn send(&mut self, bytes: usize) -> Result<()>;
    fn receive(&mut self, bytes: usize) -> Result<()>;
}

/// Prints one JSON object with microseconds.
pub(crate) fn ping_pong(transport: &str, wait: Wait, sizes: Sizes, count: u32) -> Result<()> {
    let times = match transport {
        "tcp" => {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let here = TcpStream::connect(listener.local_addr()?)?;
            let there = listener.accept()?.0;
            run(Tcp::new(here, wait)?, Tcp::new(there, wait)?, sizes, count)?
        }
        device => {
            let name = if device == "soft" { "soft:127.0.0.1" } else { device };
            let here = Rdma::open(name, wait, sizes.there, sizes.back)?;
            let mut there = Rdma::open(name, wait, sizes.back, sizes.there)?;
            there.target = sizes.write.then(|| here.memory.remote());
            here.pair.connect(&there.pair.endpoint(), &ConnectOptions::default())?;
            there.pair.connect(&here.pair.endpoint(), &ConnectOptions::default())?;
            run(here, there, sizes, count)?
        }
    };
    println!("{}", percentiles(times));
    Ok(())
}

fn run(mut here: impl Side, mut there: impl Side + Send + 'static, sizes: Sizes, count: u32) -> Result<Vec<Duration>> {
    let rounds = count + count / 10;
    let answering = std::thread::spawn(move || -> Result<()> {
        for _ in 0..rounds {
            there.receive(sizes.there)?;
            there.send(sizes.back)?;
        }
        // Its last acknowledgements.
        std::thread::sleep(Duration::from_millis(50));
        Ok(())
    });
    let mut times = Vec::with_capacity(rounds as usize);
    for _ in 0..rounds {
        let started = Instant::now();
        here.send(sizes.there)?;
        here.receive(sizes.back)?;
        times.push(started.elapsed());
    }
    match answering.join() {
        Ok(result) => result?,
        Err(_) => bail!("the answering side panicked"),
    }
    Ok(times.split_off((count / 10) as usize))
}

struct Tcp {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Tcp {
    fn new(stream: TcpStream, wait: Wait) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(wait == Wait::Polled)?;
        Ok(Tcp { stream, buffer: vec![0; 64 << 10] })
    }
}

/// Tries until as many bytes were moved, or an error other than that it would have to wait.
fn all(bytes: usize, mut some: impl FnMut(usize, usize) -> std::io::Result<usize>) -> Result<()> {
    let mut done = 0;
    while done < bytes {
        match some(done, bytes) {
            Ok(0) => bail!("the other side closed the connection"),
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

impl Side for Tcp {
    fn send(&mut self, bytes: usize) -> Result<()> {
        all(bytes, |from, to| self.stream.write(&self.buffer[from..to]))
    }

    fn receive(&mut self, bytes: usize) -> Result<()> {
        all(bytes, |from, to| self.stream.read(&mut self.buffer[from..to]))
    }
}

/// Messages that may be on the way to a side.
const RECEIVES: u32 = 8;

struct Rdma {
    pair: QueuePair,
    completions: CompletionQueue,
    wait: Wait,
    spare: Vec<Buffer>,
    /// Bytes of messages that have come.
    arrived: VecDeque<usize>,
    /// Where the peer may write.
    memory: RemoteBuffer,
    /// Where to write messages to; `None`: they are sent.
    target: Option<RemoteMemory>,
    _domain: ProtectionDomain,
    _context: Context,
}

impl Rdma {
    /// A side that sends messages of `out` bytes and receives those of up to `into`.
    fn open(name: &str, wait: Wait, out: usize, into: usize) -> Result<Self> {
        let options = OpenOptions { progress: Progress::Polled, ..OpenOptions::default() };
        let context = Context::open(name, &options).with_context(|| format!("RDMA device {name}"))?;
        let domain = context.create_domain()?;
        let completions = context.create_completion_queue(4 * RECEIVES)?;
        let depth = QueuePairOptions { send_depth: RECEIVES, receive_depth: RECEIVES, ..QueuePairOptions::default() };
        let pair = domain.create_queue_pair(&completions, &completions, &depth)?;
        let mut spare = Vec::new();
        for _ in 0..RECEIVES {
            pair.post_receive(Receive::new(domain.allocate(into)?)).map_err(verbs_shim::Error::from)?;
            spare.push(domain.allocate(out)?);
        }
        let memory = domain.expose(into, Access::ALL)?;
        let (arrived, target) = (VecDeque::new(), None);
        Ok(Rdma { pair, completions, wait, spare, arrived, memory, target, _domain: domain, _context: context })
    }

    /// Takes completions, at least one.
    fn turn(&mut self) -> Result<()> {
        let mut done = Vec::new();
        match self.wait {
            Wait::Polled => while self.completions.poll(&mut done)? == 0 {},
            Wait::Sleeping => {
                if self.completions.wait(&mut done, Duration::from_secs(10))? == 0 {
                    bail!("nothing came for 10 s");
                }
            }
        }
        for completion in done {
            if completion.status != WcStatus::Success {
                bail!("{:?}: {}", completion.opcode, completion.status.name());
            }
            let Some(buffer) = completion.buffer else { continue };
            if matches!(completion.opcode, WcOpcode::Recv | WcOpcode::RecvRdmaWithImm) {
                self.arrived.push_back(completion.length_bytes as usize);
                self.pair.post_receive(Receive::new(buffer)).map_err(verbs_shim::Error::from)?;
            } else {
                self.spare.push(buffer);
            }
        }
        Ok(())
    }
}

impl Side for Rdma {
    fn send(&mut self, bytes: usize) -> Result<()> {
        let buffer = loop {
            match self.spare.pop() {
                Some(buffer) => break buffer,
                None => self.turn()?,
            }
        };
        debug_assert_eq!(buffer.len(), bytes);
        let request = match self.target {
            Some(target) => SendRequest::write(buffer, target).immediate(0),
            None => SendRequest::send(buffer),
        };
        self.pair.post_send(request).map_err(verbs_shim::Error::from)?;
        Ok(())
    }

    fn receive(&mut self, bytes: usize) -> Result<()> {
        let arrived = loop {
            match self.arrived.pop_front() {
                Some(arrived) => break arrived,
                None => self.turn()?,
            }
        };
        if arrived != bytes {
            bail!("a message of {arrived} bytes where {bytes} were expected");
        }
        Ok(())
    }
}
