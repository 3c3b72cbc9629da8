//! The two ends of a check: a TCP stream for agreeing, and a fresh connected queue pair for every case.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use verbs_shim::verbs::{Access, WcStatus};
use verbs_shim::{
    Buffer, Completion, CompletionQueue, ConnectOptions, Context, Endpoint, Mtu, ProtectionDomain, QueuePair,
    QueuePairOptions, Receive, RemoteBuffer, RemoteMemory, SharedReceiveQueue,
};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What both sides were started with.
pub struct Setup {
    pub mtu: Mtu,
    pub timeout: u8,
    pub size_max: usize,
}

/// How long anything may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(60);
const DEPTH: u32 = 256;
/// Of the queues of [`Link::more`] connections, and how many of these an end has at most.
const DEPTH_MORE: u32 = 16;
const MORE_MAX: u32 = 4;
const RESULT: &str = "result ";

pub struct Link {
    stream: BufReader<TcpStream>,
    /// What the other side said of a case that this side was still in.
    early: Option<String>,
    pub context: Context,
    pub setup: Setup,
}

/// One end of a connection, with memory that the peer may use.
pub struct End {
    pub domain: ProtectionDomain,
    pub completions: CompletionQueue,
    pub queue_pair: QueuePair,
    pub memory: RemoteBuffer,
    pub peer: RemoteMemory,
    done: Vec<Completion>,
}

impl Link {
    pub fn new(stream: TcpStream, context: Context, setup: Setup) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(2 * PATIENCE))?;
        Ok(Link { stream: BufReader::new(stream), early: None, context, setup })
    }

    pub fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.stream.get_mut(), "{line}")?;
        Ok(())
    }

    /// The peer's next line; `None` when it is gone.
    pub fn hear(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        let bytes = self.stream.read_line(&mut line)?;
        Ok((bytes > 0).then(|| line.trim_end().to_string()))
    }

    /// Waits until both sides are here.
    pub fn meet(&mut self) -> Result<()> {
        self.say("here")?;
        match self.hear()? {
            Some(line) if line == "here" => Ok(()),
            Some(line) if line.starts_with(RESULT) => {
                self.early = Some(line);
                Err("the other side gave up".into())
            }
            other => Err(format!("the other side said {other:?} instead of being here").into()),
        }
    }

    /// Tells how a case ended here, and hears how it ended there.
    pub fn compare(&mut self, mine: &str) -> Result<String> {
        self.say(&format!("{RESULT}{}", mine.replace('\n', " ")))?;
        loop {
            let line = match self.early.take() {
                Some(line) => line,
                None => self.hear()?.ok_or("the other side is gone")?,
            };
            // What else comes was meant for a step that this side did not reach.
            if let Some(theirs) = line.strip_prefix(RESULT) {
                return Ok(theirs.to_string());
            }
        }
    }

    /// A new connection, its memory of `bytes` open to the peer.
    pub fn open(&mut self, bytes: usize, options: &ConnectOptions) -> Result<End> {
        let domain = self.context.create_domain()?;
        let completions = self.context.create_completion_queue(2 * DEPTH + MORE_MAX * 2 * DEPTH_MORE)?;
        let depths = QueuePairOptions { send_depth: DEPTH, receive_depth: DEPTH, ..QueuePairOptions::default() };
        let queue_pair = domain.create_queue_pair(&completions, &completions, &depths)?;
        let rights = if self.context.attributes().capabilities.atomics {
            Access::ALL
        } else {
            Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ
        };
        let memory = domain.expose(bytes.max(8), rights)?;
        let peer = self.connect(&queue_pair, Some(memory.remote()), options)?;
        let peer = peer.ok_or("the other side told of no memory")?;
        Ok(End { domain, completions, queue_pair, memory, peer, done: Vec::new() })
    }

    /// Connects a queue pair to one of the other side, which does the same; the memory that the other side told of.
    fn connect(
        &mut self,
        queue_pair: &QueuePair,
        memory: Option<RemoteMemory>,
        options: &ConnectOptions,
    ) -> Result<Option<RemoteMemory>> {
        let mut mine = queue_pair.endpoint();
        mine.memory = memory;
        mine.mtu = mine.mtu.min(self.setup.mtu);
        let line: String = mine.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        self.say(&line)?;
        let theirs = self.hear()?.ok_or("the other side is gone")?;
        let theirs = parse(&theirs)?;
        queue_pair.connect(&theirs, options)?;
        self.meet()?;
        Ok(theirs.memory)
    }

    /// More connections of an end, as many as the other side makes; they take what they receive from `shared`, if given.
    pub fn more(&mut self, end: &End, count: usize, shared: Option<&SharedReceiveQueue>) -> Result<Vec<QueuePair>> {
        let depths = QueuePairOptions { send_depth: DEPTH_MORE, receive_depth: DEPTH_MORE, ..Default::default() };
        let (domain, queue) = (&end.domain, &end.completions);
        let open = |_| {
            let queue_pair = match shared {
                Some(shared) => domain.create_queue_pair_sharing(queue, queue, shared, &depths)?,
                None => domain.create_queue_pair(queue, queue, &depths)?,
            };
            self.connect(&queue_pair, None, &self.options())?;
            Ok(queue_pair)
        };
        (0..count).map(open).collect()
    }

    pub fn options(&self) -> ConnectOptions {
        ConnectOptions { mtu: self.setup.mtu, timeout: self.setup.timeout, ..ConnectOptions::default() }
    }
}

fn parse(line: &str) -> Result<Endpoint> {
    let bytes = (0..line.len() / 2)
        .map(|i| u8::from_str_radix(&line[2 * i..2 * i + 2], 16))
        .collect::<std::result::Result<Vec<_>, _>>()?;
    let bytes =
        <[u8; verbs_shim::connect::ENDPOINT_BYTES]>::try_from(bytes).map_err(|_| "an endpoint of another length")?;
    Ok(Endpoint::from_bytes(&bytes)?)
}

pub fn connect(address: &str) -> Result<TcpStream> {
    let start = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused && start.elapsed().as_secs() < 20 => {
                std::thread::sleep(Duration::from_millis(100));
            }
            result => return Ok(result?),
        }
    }
}

impl End {
    /// The next completion.
    pub fn next(&mut self) -> Result<Completion> {
        if self.done.is_empty() {
            self.completions.wait(&mut self.done, PATIENCE)?;
        }
        if self.done.is_empty() {
            return Err("no completion within a minute".into());
        }
        Ok(self.done.remove(0))
    }

    /// The next completion, which must be a success.
    pub fn succeed(&mut self) -> Result<Completion> {
        let done = self.next()?;
        match done.status {
            WcStatus::Success => Ok(done),
            status => Err(format!("{:?} ended with {}", done.opcode, status.name()).into()),
        }
    }

    /// Posts a receive request of `bytes`.
    pub fn receive(&self, bytes: usize) -> Result<()> {
        self.queue_pair.post_receive(Receive::new(self.domain.allocate(bytes)?)).map_err(|refused| refused.error)?;
        Ok(())
    }

    /// A buffer with the pattern of a seed.
    pub fn pattern(&self, bytes: usize, seed: u64) -> Result<Buffer> {
        let mut buffer = self.domain.allocate(bytes)?;
        fill(&mut buffer, seed);
        Ok(buffer)
    }
}

/// Bytes that differ at every offset and for every seed (splitmix64).
pub fn fill(bytes: &mut [u8], seed: u64) {
    for (index, chunk) in bytes.chunks_mut(8).enumerate() {
        let mut word = seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        chunk.copy_from_slice(&(word ^ (word >> 31)).to_le_bytes()[..chunk.len()]);
    }
}

/// Compares with the pattern of a seed.
pub fn expect(bytes: &[u8], seed: u64) -> Result<()> {
    let mut wanted = vec![0; bytes.len()];
    fill(&mut wanted, seed);
    match bytes.iter().zip(&wanted).position(|(found, wanted)| found != wanted) {
        None => Ok(()),
        Some(at) => {
            Err(format!("wrong byte at {at} of {}: {:#04x}, not {:#04x}", bytes.len(), bytes[at], wanted[at]).into())
        }
    }
}
