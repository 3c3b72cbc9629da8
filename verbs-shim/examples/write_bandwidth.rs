//! WRITEs as fast as they go: one side with --listen (its core only polls), the other with --connect.
//!
//!     write_bandwidth --device soft:lo --listen 127.0.0.1:7500 --size 65536 &
//!     write_bandwidth --device soft:lo --connect 127.0.0.1:7500 --size 65536

mod common;

use std::collections::VecDeque;
use std::time::Instant;

use clap::Parser;
use common::{End, Options, buffers};
use verbs_shim::SendRequest;
use verbs_shim::verbs::WcStatus;

/// Requests posted in one call, the last of them signalled.
const BATCH: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let mut end = End::new(&options)?;
    if options.connect.is_none() {
        // The peer says on the TCP stream when it is done; until then our core moves its packets into memory.
        end.stream.set_nonblocking(true)?;
        let mut done = Vec::new();
        let mut polls = 0u64;
        loop {
            end.completions.poll(&mut done)?;
            polls += 1;
            if polls.is_multiple_of(1024) && std::io::Read::read(&mut end.stream, &mut [0]).is_ok() {
                return Ok(());
            }
        }
    }
    let to = end.peer.memory.ok_or("the peer told of no memory")?;
    let mut spare = buffers(&end, options.size, options.depth)?;
    let mut requests = VecDeque::with_capacity(BATCH);
    let mut done = Vec::with_capacity(options.depth as usize);
    let (mut posted, mut completed) = (0u64, 0u64);
    let start = Instant::now();
    while completed < options.count {
        let batch = BATCH.min(options.depth as usize / 2).max(1);
        while posted < options.count && spare.len() >= batch.min((options.count - posted) as usize) {
            let now = batch.min((options.count - posted) as usize);
            for index in 0..now {
                let Some(buffer) = spare.pop() else { break };
                let request = SendRequest::write(buffer, to);
                requests.push_back(if index + 1 == now { request } else { request.unsignalled() });
            }
            posted += end.queue_pair.post_sends(&mut requests)? as u64;
        }
        end.completions.poll(&mut done)?;
        for completion in done.drain(..) {
            if completion.status != WcStatus::Success {
                return Err(completion.status.name().into());
            }
            completed += 1;
            spare.extend(completion.buffer);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let bytes = (options.count * options.size as u64) as f64;
    println!(
        "{} bytes, {} WRITEs: {:.3} GB/s, {:.3} M/s",
        options.size,
        options.count,
        bytes / seconds / 1e9,
        options.count as f64 / seconds / 1e6
    );
    if let Some(counters) =
        end.context.soft_counters().filter(|counters| counters.retransmitted + counters.timeouts > 0)
    {
        println!("sent again: {} packets, {} timeouts", counters.retransmitted, counters.timeouts);
    }
    std::io::Write::write_all(&mut end.stream, b".")?;
    Ok(())
}
