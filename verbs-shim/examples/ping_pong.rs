//! Round trip times of SENDs, polled: one side with --listen, the other with --connect.
//!
//!     ping_pong --device soft:lo --listen 127.0.0.1:7500 --size 8 &
//!     ping_pong --device soft:lo --connect 127.0.0.1:7500 --size 8

mod common;

use std::time::Instant;

use clap::Parser;
use common::{End, Options, buffers};
use verbs_shim::verbs::WcOpcode;
use verbs_shim::{Receive, SendRequest};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let mut end = End::new(&options)?;
    let client = options.connect.is_some();
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
        times.sort();
        let us = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_nanos() as f64 / 1000.0;
        println!(
            "{} bytes, {} round trips: p50 {:.1} us, p99 {:.1} us, p99.9 {:.1} us",
            options.size,
            times.len(),
            us(0.5),
            us(0.99),
            us(0.999)
        );
    }
    end.barrier()?;
    Ok(())
}
