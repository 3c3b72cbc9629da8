//! One TCP stream, for comparison with `write_bandwidth`: 64 KiB writes, the receiver reads into the same buffer.
//!
//!     tcp_stream --listen 127.0.0.1:7500 &
//!     tcp_stream --connect 127.0.0.1:7500 --count 100000

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use clap::Parser;

#[derive(Parser)]
struct Options {
    /// Wait for the sender here
    #[arg(long, conflicts_with = "connect")]
    listen: Option<String>,
    /// Send to a receiver that listens
    #[arg(long, required_unless_present = "listen")]
    connect: Option<String>,
    /// Bytes of a write
    #[arg(long, default_value_t = 65_536)]
    size: usize,
    /// Writes
    #[arg(long, default_value_t = 100_000)]
    count: u64,
}

fn main() -> std::io::Result<()> {
    let options = Options::parse();
    let mut buffer = vec![7u8; options.size];
    if let Some(address) = &options.listen {
        let listener = TcpListener::bind(address)?;
        println!("listening on {}", listener.local_addr()?);
        let (mut stream, _) = listener.accept()?;
        while stream.read(&mut buffer)? > 0 {}
        return stream.write_all(b".");
    }
    let mut stream = TcpStream::connect(options.connect.unwrap_or_default())?;
    let start = Instant::now();
    for _ in 0..options.count {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    let seconds = start.elapsed().as_secs_f64();
    let bytes = (options.count * options.size as u64) as f64;
    println!("{} bytes, {} writes: {:.2} GB/s", options.size, options.count, bytes / seconds / 1e9);
    Ok(())
}
