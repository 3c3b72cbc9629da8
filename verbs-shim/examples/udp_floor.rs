//! What UDP alone takes, for comparison: datagrams of the sizes that a soft device sends, polled, without anything of
//! RoCE in them. No provider in user space over UDP sockets can be faster than this.
//!
//!     udp_floor --listen 127.0.0.1:7500 &
//!     udp_floor --connect 127.0.0.1:7500                a stream of 64 KiB messages, acknowledged every second one
//!     udp_floor --connect 127.0.0.1:7500 --round-trips  datagrams of 40 bytes (a WRITE of 8) there and back
//!
//! Addresses are of UDP; both sides take the same options.

#![allow(unsafe_code, reason = "segmentation offload has no safe call")]

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use clap::Parser;

/// A WRITE of 64 KiB: a packet with an RDMA header, 15 without, and where segmentation makes two datagrams of it.
const FIRST_BYTES: usize = 4128;
const PACKET_BYTES: usize = 4112;
const RUNS: [(usize, usize); 2] = [(FIRST_BYTES, FIRST_BYTES + PACKET_BYTES), (PACKET_BYTES, 14 * PACKET_BYTES)];
const MESSAGE_BYTES: usize = 65_536;
/// Messages on the way at a time, and how many one acknowledgement is for.
const DEPTH: u64 = 16;
const ACKNOWLEDGED: u64 = 2;
const ANSWER_BYTES: usize = 20;
const SMALL_BYTES: usize = 40;
/// A side that hears nothing for so long gives up.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Parser)]
struct Options {
    /// Wait for the other side here
    #[arg(long, conflicts_with = "connect")]
    listen: Option<SocketAddr>,
    /// Send to the side that listens
    #[arg(long, required_unless_present = "listen")]
    connect: Option<SocketAddr>,
    /// Bind to this address first
    #[arg(long)]
    from: Option<SocketAddr>,
    /// Measure times instead of bandwidth
    #[arg(long)]
    round_trips: bool,
    /// Messages, or round trips
    #[arg(long, default_value_t = 100_000)]
    count: u64,
}

fn option(socket: &UdpSocket, level: i32, name: i32, value: i32) -> std::io::Result<()> {
    let bytes = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the pointer and the length are those of `value`.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), bytes) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Calls until something has come.
fn poll<T>(mut receive: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    let start = Instant::now();
    for turn in 1u64.. {
        match receive() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            result => return result,
        }
        if turn.is_multiple_of(1 << 12) && start.elapsed() > PATIENCE {
            break;
        }
    }
    Err(std::io::Error::new(ErrorKind::TimedOut, "the other side says nothing: is it there, is something lost?"))
}

/// Sends the two datagrams of one message in one call; the kernel cuts them into packets.
fn send_message(socket: &UdpSocket, bytes: &[u8]) -> std::io::Result<()> {
    let mut controls = [[0u64; 3]; RUNS.len()];
    // SAFETY: all zeros are valid values of these C structures.
    let (mut parts, mut messages) =
        unsafe { (std::mem::zeroed::<[libc::iovec; RUNS.len()]>(), std::mem::zeroed::<[libc::mmsghdr; RUNS.len()]>()) };
    for (index, (segment, length)) in RUNS.into_iter().enumerate() {
        parts[index] = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: length };
        // `struct cmsghdr`: length (8), level (4), type (4), then the data.
        const { assert!(cfg!(target_endian = "little")) };
        controls[index] = [18, libc::SOL_UDP as u64 | (libc::UDP_SEGMENT as u64) << 32, segment as u64];
        let header = &mut messages[index].msg_hdr;
        (header.msg_iov, header.msg_iovlen) = (&raw mut parts[index], 1);
        (header.msg_control, header.msg_controllen) = ((&raw mut controls[index]).cast(), 24);
    }
    let mut sent = 0;
    while sent < RUNS.len() {
        // SAFETY: the messages and what they point to are here until the call returns, and `bytes` is longer than a run.
        let done =
            unsafe { libc::sendmmsg(socket.as_raw_fd(), messages[sent..].as_mut_ptr(), (RUNS.len() - sent) as u32, 0) };
        if done < 0 {
            let error = std::io::Error::last_os_error();
            if error.kind() != ErrorKind::WouldBlock {
                return Err(error);
            }
        }
        sent += done.max(0) as usize;
    }
    Ok(())
}

fn main() -> std::io::Result<()> {
    let options = Options::parse();
    let any = match options.connect {
        Some(SocketAddr::V6(_)) => "[::]:0",
        _ => "0.0.0.0:0",
    };
    let any: SocketAddr = any.parse().map_err(std::io::Error::other)?;
    let socket = UdpSocket::bind(options.listen.or(options.from).unwrap_or(any))?;
    socket.set_nonblocking(true)?;
    for (forced, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        option(&socket, libc::SOL_SOCKET, forced, 16 << 20)
            .or_else(|_| option(&socket, libc::SOL_SOCKET, plain, 16 << 20))?;
    }
    if !options.round_trips {
        option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1)?;
    }
    let mut buffer = vec![7u8; 1 << 16];
    match (options.connect, options.round_trips) {
        (None, true) => {
            println!("listening on {}", socket.local_addr()?);
            // Connected sockets are the cheapest.
            socket.connect(poll(|| socket.peek_from(&mut buffer))?.1)?;
            for _ in 0..options.count {
                let bytes = poll(|| socket.recv(&mut buffer))?;
                socket.send(&buffer[..bytes])?;
            }
        }
        (None, false) => {
            println!("listening on {}", socket.local_addr()?);
            let message: usize = RUNS.iter().map(|run| run.1).sum();
            let (mut taken, mut acknowledged) = (0, 0);
            while acknowledged < options.count / ACKNOWLEDGED {
                let (bytes, from) = poll(|| socket.recv_from(&mut buffer))?;
                taken += bytes;
                if taken / message / ACKNOWLEDGED as usize > acknowledged as usize {
                    acknowledged += 1;
                    socket.send_to(&[0; ANSWER_BYTES], from)?;
                }
            }
        }
        (Some(to), true) => {
            socket.connect(to)?;
            let mut times = Vec::with_capacity(options.count as usize);
            for _ in 0..options.count {
                let start = Instant::now();
                socket.send(&buffer[..SMALL_BYTES])?;
                poll(|| socket.recv(&mut buffer))?;
                times.push(start.elapsed());
            }
            times.sort();
            let us = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_nanos() as f64 / 1000.0;
            println!("UDP, {SMALL_BYTES} bytes: p50 {:.1} us, p99 {:.1} us", us(0.5), us(0.99));
        }
        (Some(to), false) => {
            socket.connect(to)?;
            let mut answer = [0; 32 * ANSWER_BYTES];
            let (mut sent, mut acknowledged) = (0, 0);
            let start = Instant::now();
            while acknowledged < options.count / ACKNOWLEDGED * ACKNOWLEDGED {
                while sent < options.count && sent - acknowledged < DEPTH {
                    send_message(&socket, &buffer)?;
                    sent += 1;
                }
                // The kernel may join several.
                acknowledged += (poll(|| socket.recv(&mut answer))? / ANSWER_BYTES) as u64 * ACKNOWLEDGED;
            }
            let bytes = (options.count * MESSAGE_BYTES as u64) as f64;
            println!("UDP, {MESSAGE_BYTES} bytes: {:.3} GB/s", bytes / start.elapsed().as_secs_f64() / 1e9);
        }
    }
    Ok(())
}
