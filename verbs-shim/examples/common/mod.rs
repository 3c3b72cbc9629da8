//! What the examples share: options, and a connected pair of queue pairs over a TCP stream.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use verbs_shim::verbs::Access;
use verbs_shim::{
    Buffer, CompletionQueue, ConnectOptions, Context, Endpoint, GidChoice, OpenOptions, Progress, ProtectionDomain,
    QueuePair, QueuePairOptions, RemoteBuffer,
};

/// Options of both sides. One side listens, the other connects.
#[derive(Debug, Clone, clap::Parser)]
pub struct Options {
    /// Device: rxe0, mlx5_0, soft:eth0, soft:127.0.0.1 (see the example device_list)
    #[arg(long, default_value = "soft:lo")]
    pub device: String,
    /// UDP port of a soft device: 4791 to talk to hardware or rxe, 0 for any
    #[arg(long, default_value_t = 0)]
    pub udp_port: u16,
    /// Index of the GID to use
    #[arg(long)]
    pub gid: Option<u32>,
    /// Wait for a peer here (TCP address, for the exchange of endpoints)
    #[arg(long, conflicts_with = "connect")]
    pub listen: Option<String>,
    /// Connect to a peer that listens
    #[arg(long, required_unless_present = "listen")]
    pub connect: Option<String>,
    /// Bytes of a message
    #[arg(long, default_value_t = 65_536)]
    pub size: usize,
    /// Messages
    #[arg(long, default_value_t = 100_000)]
    pub count: u64,
    /// Messages on the way at a time
    #[arg(long, default_value_t = 64)]
    pub depth: u32,
}

/// One connected end.
pub struct End {
    pub domain: ProtectionDomain,
    pub completions: CompletionQueue,
    pub queue_pair: QueuePair,
    /// The peer writes here.
    #[allow(dead_code, reason = "not every example looks at it")]
    pub memory: RemoteBuffer,
    #[allow(dead_code, reason = "not every example needs it")]
    pub peer: Endpoint,
    pub stream: TcpStream,
    #[allow(dead_code, reason = "not every example needs it")]
    pub context: Context,
}

impl End {
    pub fn new(options: &Options) -> Result<Self, Box<dyn std::error::Error>> {
        let mut stream = match (&options.listen, &options.connect) {
            (Some(address), _) => {
                let listener = TcpListener::bind(address)?;
                println!("listening on {}", listener.local_addr()?);
                listener.accept()?.0
            }
            (None, Some(address)) => connect(address)?,
            (None, None) => return Err("--listen or --connect".into()),
        };
        stream.set_nodelay(true)?;
        let gid = options.gid.map_or(GidChoice::First, GidChoice::Index);
        let open =
            OpenOptions { udp_port: options.udp_port, progress: Progress::Polled, gid, ..OpenOptions::default() };
        let context = Context::open(&options.device, &open)?;
        let domain = context.create_domain()?;
        let depth = options.depth.max(16);
        let completions = context.create_completion_queue(2 * depth)?;
        let pair = QueuePairOptions { send_depth: depth, receive_depth: depth, ..QueuePairOptions::default() };
        let queue_pair = domain.create_queue_pair(&completions, &completions, &pair)?;
        let memory = domain.expose(options.size.max(8), Access::ALL)?;
        let mut mine = queue_pair.endpoint();
        mine.memory = Some(memory.remote());
        let peer = mine.exchange(&mut stream)?;
        queue_pair.connect(&peer, &ConnectOptions::default())?;
        let mut end = End { domain, completions, queue_pair, memory, peer, stream, context };
        end.barrier()?;
        Ok(end)
    }

    /// Waits until the peer is here too. Takes no completions: the peer's first message may come at once.
    pub fn barrier(&mut self) -> std::io::Result<()> {
        self.stream.write_all(b".")?;
        self.stream.read_exact(&mut [0])
    }

    /// At the end: waits for the peer, and polls meanwhile. It may wait for our acknowledgements, and nobody else sends
    /// them on a device without a progress thread.
    #[allow(dead_code, reason = "not every example needs it")]
    pub fn finish(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        self.stream.write_all(b".")?;
        self.stream.set_nonblocking(true)?;
        let mut done = Vec::new();
        loop {
            self.completions.poll(&mut done)?;
            match self.stream.read(&mut [0]) {
                Ok(0) => return Err("the peer is gone".into()),
                Ok(_) => break,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.stream.set_nonblocking(false)?)
    }
}

fn connect(address: &str) -> std::io::Result<TcpStream> {
    let mut tries = 0;
    loop {
        match TcpStream::connect(address) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused && tries < 50 => {
                tries += 1;
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            result => return result,
        }
    }
}

/// Buffers of `size` bytes each.
#[allow(dead_code, reason = "not every example needs it")]
pub fn buffers(end: &End, size: usize, count: u32) -> Result<Vec<Buffer>, verbs_shim::Error> {
    let mut rest = end.domain.allocate(size * count as usize)?;
    let mut buffers = Vec::new();
    for _ in 0..count {
        let next = rest.split_off(size);
        buffers.push(std::mem::replace(&mut rest, next));
    }
    Ok(buffers)
}
