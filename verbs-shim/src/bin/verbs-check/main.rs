//! `verbs-check`: tries every operation between two devices, and says what worked. One side listens, the other connects;
//! each side takes both roles. Device and machine may differ: a soft device against rxe, say.

mod cases;
mod link;

use std::net::TcpListener;
use std::process::ExitCode;

use clap::Parser;
use verbs_shim::{GidChoice, Mtu, OpenOptions};

use self::link::{Link, Setup};

/// Try every RDMA operation between two devices: SEND, WRITE, READ, atomics, errors, at sizes from 1 byte to 8 MiB.
#[derive(Parser)]
struct Options {
    /// Device: rxe0, mlx5_0, soft:eth0, soft:10.0.0.7
    #[arg(long, default_value = "soft:lo")]
    device: String,
    /// UDP port of a soft device: 4791 to talk to hardware or rxe, 0 for any
    #[arg(long, default_value_t = 0)]
    udp_port: u16,
    /// Index of the GID to use
    #[arg(long)]
    gid: Option<u32>,
    /// Wait for the other side here (TCP)
    #[arg(long, conflicts_with = "connect")]
    listen: Option<String>,
    /// Connect to the side that listens
    #[arg(long, required_unless_present = "listen")]
    connect: Option<String>,
    /// Largest message, in bytes
    #[arg(long, default_value_t = 8 << 20)]
    size_max: usize,
    /// Largest path MTU, in bytes (256, 512, 1024, 2048 or 4096)
    #[arg(long, default_value_t = 4096)]
    mtu: u32,
    /// Local ACK timeout as verbs code it: 4.096 us * 2^n
    #[arg(long, default_value_t = 14)]
    timeout: u8,
    /// Only the cases whose name contains this (the connecting side decides)
    #[arg(long)]
    only: Option<String>,
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            println!("{failed} failed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("verbs-check: {error}");
            if let (_, Some(failure)) = verbs_shim::devices_and_failure() {
                eprintln!("verbs-check: libibverbs fails: {failure}");
            }
            ExitCode::from(2)
        }
    }
}

fn run(options: Options) -> link::Result<usize> {
    let mtu =
        Mtu::ALL.into_iter().find(|mtu| mtu.bytes() == options.mtu).ok_or("--mtu is 256, 512, 1024, 2048 or 4096")?;
    let gid = options.gid.map_or(GidChoice::First, GidChoice::Index);
    let open = OpenOptions { udp_port: options.udp_port, gid, ..OpenOptions::default() };
    let setup = Setup { mtu, timeout: options.timeout, size_max: options.size_max };
    if let Some(address) = &options.listen {
        let listener = TcpListener::bind(address)?;
        let context = verbs_shim::Context::open(&options.device, &open)?;
        println!("listening on {}", listener.local_addr()?);
        let (stream, _) = listener.accept()?;
        cases::follow(&mut Link::new(stream, context, setup)?)
    } else {
        let context = verbs_shim::Context::open(&options.device, &open)?;
        let stream = link::connect(options.connect.as_deref().unwrap_or_default())?;
        cases::lead(&mut Link::new(stream, context, setup)?, options.only.as_deref())
    }
}
