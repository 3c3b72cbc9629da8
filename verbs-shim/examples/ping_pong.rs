//! Round trip times of SENDs, or with --write of WRITEs, polled: one side with --listen, the other with --connect.
//!
//!     ping_pong --device soft:lo --listen 127.0.0.1:7500 --size 8 &
//!     ping_pong --device soft:lo --connect 127.0.0.1:7500 --size 8

mod common;

use std::time::{Duration, Instant};

use clap::Parser;
use common::{End, Options, buffers};
use verbs_shim::verbs::WcOpcode;
use verbs_shim::{Error, Receive, SendRequest};

#[derive(Parser)]
struct PingPong {
    #[command(flatten)]
    options: Options,
    /// WRITE into the peer's memory, which looks at it all the time (8 bytes, as ib_write_lat does)
    #[arg(long)]
    write: bool,
}

/// Each side writes the number of the round into the other's memory as soon as it sees it in its own.
fn writes(end: &mut End, client: bool, count: u64) -> Result<Vec<Duration>, Box<dyn std::error::Error>> {
    let to = end.peer.memory.ok_or("the peer told of no memory")?;
    let mut times = Vec::with_capacity(count as usize);
    let mut done = Vec::new();
    for round in 1..=count {
        let start = Instant::now();
        let number = round.to_ne_bytes();
        let request = SendRequest::write_inline(&number, to).unsignalled();
        if client {
            end.queue_pair.post_send(request).map_err(Error::from)?;
            while end.memory.load(0) < round {
                end.completions.poll(&mut done)?;
            }
            times.push(start.elapsed());
        } else {
            while end.memory.load(0) < round {
                end.completions.poll(&mut done)?;
            }
            end.queue_pair.post_send(request).map_err(Error::from)?;
        }
        if let Some(failed) = done.drain(..).find(|done| done.status.name() != "IBV_WC_SUCCESS") {
            return Err(failed.status.name().into());
        }
    }
    Ok(times)
}

fn report(what: &str, size: usize, mut times: Vec<Duration>) {
    times.sort();
    let us = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_nanos() as f64 / 1000.0;
    let (count, p50, p99, rare) = (times.len(), us(0.5), us(0.99), us(0.999));
    println!("{what}, {size} bytes, {count} round trips: p50 {p50:.1} us, p99 {p99:.1} us, p99.9 {rare:.1} us");
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let PingPong { options, write } = PingPong::parse();
    let mut end = End::new(&options)?;
    let client = options.connect.is_some();
    if write {
        end.barrier()?;
        let times = writes(&mut end, client, options.count)?;
        if client {
            report("WRITE", 8, times);
        }
        return end.finish();
    }
    for buffer in buffers(&end, options.size, 8)? {
        end.queue_pair.post_receive(Receive::new(buffer))?;
    }
    let mut spare = buffers(&end, options.size, 8)?;
    let mut times = Vec::with_capacity(options.count as usize);
    let mut done = Vec::new();
    end.barrier()?;
    let mut rounds = 0;
    let mut start = Instant::now();
    if client {
        end.queue_pair.post_send(SendRequest::send(spare.remove(0)))?;
    }
    // The last answer is acknowledged before the peer goes away.
    let mut unacknowledged = client as u64;
    while rounds < options.count || unacknowledged > 0 {
        end.completions.poll(&mut done)?;
        for completion in done.drain(..) {
            if completion.status.name() != "IBV_WC_SUCCESS" {
                return Err(format!("{:?}: {}", completion.opcode, completion.status.name()).into());
            }
            let Some(buffer) = completion.buffer else { continue };
            if completion.opcode == WcOpcode::Send {
                spare.push(buffer);
                unacknowledged -= 1;
                continue;
            }
            end.queue_pair.post_receive(Receive::new(buffer))?;
            if client {
                times.push(start.elapsed());
                start = Instant::now();
            }
            rounds += 1;
            if !client || rounds < options.count {
                let buffer = spare.pop().ok_or("no spare buffer: the peer answers faster than it acknowledges")?;
                end.queue_pair.post_send(SendRequest::send(buffer))?;
                unacknowledged += 1;
            }
        }
    }
    if client {
        report("SEND", options.size, times);
    }
    end.finish()
}
