//! The cases: what the side that acts does, and what the side that is acted on checks.

use std::collections::VecDeque;

use verbs_shim::verbs::{MemoryKey, QueuePairState, WcOpcode, WcStatus};
use verbs_shim::{Capabilities, ConnectOptions, Receive, RemoteMemory, SendRequest};

use crate::link::{End, Link, Result, expect, fill};

/// Messages in the message cases, and places of the batch case.
const MESSAGES: usize = 8;
/// Above this size there are [`MESSAGES_LONG`] of them.
const LONG_BYTES: usize = 64 << 10;
const MESSAGES_LONG: usize = 2;
/// Queue pairs that share a receive queue.
const SHARING: usize = 2;
const ATOMICS: u64 = 64;

struct Case {
    name: &'static str,
    /// Whether sizes matter.
    sized: bool,
    needs: fn(&Capabilities) -> bool,
    act: fn(&mut Link, &mut End, usize) -> Result<()>,
    check: fn(&mut Link, &mut End, usize) -> Result<()>,
}

const CASES: &[Case] = &[
    Case { name: "send", sized: true, needs: always, act: send, check: sent },
    Case { name: "send inline with immediate", sized: false, needs: immediate, act: send_inline, check: sent_inline },
    Case { name: "write", sized: true, needs: always, act: write, check: written },
    Case {
        name: "write with immediate",
        sized: true,
        needs: immediate,
        act: write_immediate,
        check: written_immediate,
    },
    Case { name: "read", sized: true, needs: always, act: read, check: was_read },
    Case { name: "send to a shared receive queue", sized: true, needs: shared, act: send_shared, check: sent_shared },
    Case { name: "unsignalled writes in batches", sized: false, needs: always, act: batches, check: batched },
    Case { name: "fetch and add", sized: false, needs: atomics, act: fetch_add, check: added },
    Case { name: "compare and swap", sized: false, needs: atomics, act: compare_swap, check: swapped },
    Case { name: "wrong remote key", sized: false, needs: always, act: wrong_key, check: saw_error },
    Case { name: "range outside of the region", sized: false, needs: always, act: outside, check: saw_error },
    Case { name: "no receive request", sized: false, needs: always, act: not_ready, check: was_not_ready },
];

fn always(_: &Capabilities) -> bool {
    true
}

fn immediate(can: &Capabilities) -> bool {
    can.immediate
}

fn atomics(can: &Capabilities) -> bool {
    can.atomics
}

fn shared(can: &Capabilities) -> bool {
    can.shared_receive_queues
}

fn sizes(max: usize) -> Vec<usize> {
    [1, 7, 256, 4096, 4097, 65_536, 1 << 20, 8 << 20].into_iter().filter(|&size| size <= max).collect()
}

/// The side that decides: each case once in each direction. How many failed.
pub fn lead(link: &mut Link, only: Option<&str>) -> Result<usize> {
    let mut failed = 0;
    for (acting, arrow) in [(true, "->"), (false, "<-")] {
        for (index, case) in CASES.iter().enumerate() {
            if only.is_some_and(|only| !case.name.contains(only)) {
                continue;
            }
            if !(case.needs)(&link.context.attributes().capabilities) {
                println!("{arrow} {:<32} not with this device", case.name);
                continue;
            }
            let sizes = if case.sized { sizes(link.setup.size_max) } else { vec![4096] };
            for &size in &sizes {
                link.say(&format!("case {index} {size} {}", !acting))?;
                let mine = run(link, case, size, acting);
                let mine = mine.map_or_else(|error| error.to_string(), |()| "ok".to_string());
                let theirs = link.compare(&mine)?;
                let what = if case.sized { format!("{}, {size} bytes", case.name) } else { case.name.to_string() };
                if mine == "ok" && theirs == "ok" {
                    println!("{arrow} {what:<42} ok");
                } else {
                    failed += 1;
                    println!("{arrow} {what:<42} FAILED: here: {mine}; there: {theirs}");
                }
            }
        }
    }
    link.say("end")?;
    if let Some(counters) = link.context.soft_counters() {
        println!(
            "packets: {} received, {} sent, {} sent again, {} timeouts, {} wrong ICRC, {} malformed",
            counters.received,
            counters.transmitted,
            counters.retransmitted,
            counters.timeouts,
            counters.wrong_icrc,
            counters.malformed
        );
    }
    Ok(failed)
}

/// The side that does as it is told, until the other ends.
pub fn follow(link: &mut Link) -> Result<usize> {
    let mut failed = 0;
    while let Some(line) = link.hear()?.filter(|line| line != "end") {
        let words: Vec<&str> = line.split(' ').collect();
        let ["case", index, size, acting] = words[..] else { return Err(format!("not a case: {line}").into()) };
        let case = CASES.get(index.parse::<usize>()?).ok_or("a case of another version of this program")?;
        let mine = run(link, case, size.parse()?, acting.parse()?);
        let mine = mine.map_or_else(|error| error.to_string(), |()| "ok".to_string());
        failed += (mine != "ok") as usize;
        link.compare(&mine)?;
    }
    Ok(failed)
}

fn run(link: &mut Link, case: &Case, size: usize, acting: bool) -> Result<()> {
    // An empty receive queue is waited for, but in the case that is about it.
    let rnr_retry_count = if case.name == "no receive request" { 1 } else { 7 };
    let options = ConnectOptions { rnr_retry_count, ..link.options() };
    let mut end = link.open(size.max(MESSAGES * 64), &options)?;
    if acting { (case.act)(link, &mut end, size) } else { (case.check)(link, &mut end, size) }
}

fn post(end: &End, request: SendRequest<'_>) -> Result<()> {
    end.queue_pair.post_send(request).map_err(|refused| refused.error.into())
}

fn messages(size: usize) -> u64 {
    if size > LONG_BYTES { MESSAGES_LONG as u64 } else { MESSAGES as u64 }
}

fn send(link: &mut Link, end: &mut End, size: usize) -> Result<()> {
    link.meet()?;
    for seed in 0..messages(size) {
        let buffer = end.pattern(size, seed)?;
        post(end, SendRequest::send(buffer).token(seed))?;
    }
    for seed in 0..messages(size) {
        let done = end.succeed()?;
        if (done.token, done.opcode) != (seed, WcOpcode::Send) {
            return Err(format!("completion {done:?} instead of SEND {seed}").into());
        }
        expect(&done.buffer.ok_or("a buffer did not come back")?, seed)?;
    }
    link.meet()
}

fn sent(link: &mut Link, end: &mut End, size: usize) -> Result<()> {
    for _ in 0..messages(size) {
        end.receive(size)?;
    }
    link.meet()?;
    for seed in 0..messages(size) {
        let done = end.succeed()?;
        if (done.opcode, done.length_bytes as usize, done.immediate) != (WcOpcode::Recv, size, None) {
            return Err(format!("received {done:?}").into());
        }
        expect(&done.buffer.ok_or("a buffer did not come back")?, seed)?;
    }
    link.meet()
}

/// Each queue pair in turn.
fn send_shared(link: &mut Link, end: &mut End, size: usize) -> Result<()> {
    let pairs = link.more(end, SHARING, None)?;
    link.meet()?;
    for seed in 0..messages(size) {
        let request = SendRequest::send(end.pattern(size, seed)?).token(seed);
        pairs[seed as usize % SHARING].post_send(request).map_err(|refused| refused.error)?;
    }
    for _ in 0..messages(size) {
        let done = end.succeed()?;
        expect(&done.buffer.ok_or("a buffer did not come back")?, done.token)?;
    }
    link.meet()
}

fn sent_shared(link: &mut Link, end: &mut End, size: usize) -> Result<()> {
    let queue = end.domain.create_shared_receive_queue(MESSAGES as u32)?;
    let pairs = link.more(end, SHARING, Some(&queue))?;
    let receive = |_| Ok(Receive::new(end.domain.allocate(size)?));
    let mut receives = (0..messages(size)).map(receive).collect::<Result<VecDeque<_>>>()?;
    queue.post_receives(&mut receives)?;
    link.meet()?;
    let mut next: Vec<u64> = (0..SHARING as u64).collect();
    for _ in 0..messages(size) {
        let done = end.succeed()?;
        if (done.opcode, done.length_bytes as usize) != (WcOpcode::Recv, size) {
            return Err(format!("received {done:?}").into());
        }
        let pair = pairs.iter().position(|pair| pair.number() == done.queue_pair);
        let seed = &mut next[pair.ok_or("received by a queue pair that does not share")?];
        expect(&done.buffer.ok_or("a buffer did not come back")?, *seed)?;
        *seed += SHARING as u64;
    }
    link.meet()
}

fn send_inline(link: &mut Link, end: &mut End, _: usize) -> Result<()> {
    link.meet()?;
    for index in 0..MESSAGES as u32 {
        let mut bytes = [0; 64];
        fill(&mut bytes, index as u64);
        post(end, SendRequest::send_inline(&bytes).immediate(0x0102_0304 + index))?;
        bytes.fill(0);
    }
    for _ in 0..MESSAGES {
        end.succeed()?;
    }
    link.meet()
}

fn sent_inline(link: &mut Link, end: &mut End, _: usize) -> Result<()> {
    for _ in 0..MESSAGES {
        end.receive(100)?;
    }
    link.meet()?;
    for index in 0..MESSAGES as u32 {
        let done = end.succeed()?;
        if (done.length_bytes, done.immediate) != (64, Some(0x0102_0304 + index)) {
            return Err(format!("received {done:?}").into());
        }
        expect(&done.buffer.ok_or("a buffer did not come back")?[..64], index as u64)?;
    }
    link.meet()
}

fn memory_matches(end: &End, bytes: usize, seed: u64) -> Result<()> {
    let mut copy = vec![0; bytes];
    end.memory.read(0, &mut copy);
    expect(&copy, seed)
}

fn write(link: &mut Link, end: &mut End, size: usize) -> Result<()> {
    post(end, SendRequest::write(end.pattern(size, 41)?, end.peer))?;
    end.succeed()?;
    link.meet()?;
    link.meet()
}

fn written(link: &mut Link, end: &mut End, size: usize) -> Result<()> {
    link.meet()?;
    memory_matches(end, size, 41)?;
    link.meet()
}

fn write_immediate(link: &mut Link, end: &mut End, size: usize) -> Result<()> {
    link.meet()?;
    post(end, SendRequest::write(end.pattern(size, 42)?, end.peer).immediate(77))?;
    end.succeed()?;
    link.meet()
}

fn written_immediate(link: &mut Link, end: &mut End, size: usize) -> Result<()> {
    end.receive(8)?;
    link.meet()?;
    let done = end.succeed()?;
    if (done.opcode, done.immediate, done.length_bytes as usize) != (WcOpcode::RecvRdmaWithImm, Some(77), size) {
        return Err(format!("received {done:?}").into());
    }
    memory_matches(end, size, 42)?;
    link.meet()
}

fn read(link: &mut Link, end: &mut End, size: usize) -> Result<()> {
    link.meet()?;
    post(end, SendRequest::read(end.domain.allocate(size)?, end.peer))?;
    let done = end.succeed()?;
    expect(&done.buffer.ok_or("a buffer did not come back")?, 43)?;
    link.meet()
}

fn was_read(link: &mut Link, end: &mut End, size: usize) -> Result<()> {
    let mut bytes = vec![0; size];
    fill(&mut bytes, 43);
    end.memory.write(0, &bytes);
    link.meet()?;
    link.meet()
}

/// Writes of 64 bytes to eight places in turn: the last one to each place stays.
fn batches(link: &mut Link, end: &mut End, _: usize) -> Result<()> {
    let count = 1000;
    let mut requests = VecDeque::new();
    let (mut posted, mut completed) = (0, 0);
    while completed < count {
        while posted + requests.len() < count && requests.len() < 50 {
            let index = posted + requests.len();
            let buffer = end.pattern(64, index as u64)?;
            let to = end.peer.part((index % MESSAGES * 64) as u64, 64).ok_or("outside")?;
            let request = SendRequest::write(buffer, to).token(index as u64);
            requests.push_back(if index + 1 == count { request } else { request.unsignalled() });
        }
        match end.queue_pair.post_sends(&mut requests) {
            Ok(more) => posted += more,
            Err(verbs_shim::verbs::PostError::QueueFull) => {}
            Err(error) => return Err(error.into()),
        }
        if requests.is_empty() && posted < count {
            continue;
        }
        let done = end.succeed()?;
        if done.token != completed as u64 {
            return Err(format!("completion of {} instead of {completed}", done.token).into());
        }
        completed += 1;
    }
    link.meet()?;
    link.meet()
}

fn batched(link: &mut Link, end: &mut End, _: usize) -> Result<()> {
    link.meet()?;
    for place in 0..MESSAGES {
        let mut bytes = [0; 64];
        end.memory.read(place * 64, &mut bytes);
        expect(&bytes, (1000 - MESSAGES + place) as u64)?;
    }
    link.meet()
}

fn result(end: &mut End) -> Result<u64> {
    let buffer = end.succeed()?.buffer.ok_or("a buffer did not come back")?;
    Ok(u64::from_ne_bytes(buffer[..8].try_into()?))
}

fn fetch_add(link: &mut Link, end: &mut End, _: usize) -> Result<()> {
    link.meet()?;
    for _ in 0..ATOMICS / 8 {
        for _ in 0..8 {
            post(end, SendRequest::fetch_add(end.domain.allocate(8)?, end.peer, 3))?;
        }
        for _ in 0..8 {
            result(end)?;
        }
    }
    post(end, SendRequest::fetch_add(end.domain.allocate(8)?, end.peer, 0))?;
    let last = result(end)?;
    if last != 1000 + 3 * ATOMICS {
        return Err(format!("the counter stands at {last}, not {}", 1000 + 3 * ATOMICS).into());
    }
    link.meet()
}

fn added(link: &mut Link, end: &mut End, _: usize) -> Result<()> {
    end.memory.word(0).store(1000, std::sync::atomic::Ordering::Release);
    link.meet()?;
    link.meet()?;
    match end.memory.load(0) {
        sum if sum == 1000 + 3 * ATOMICS => Ok(()),
        sum => Err(format!("the counter stands at {sum}").into()),
    }
}

fn compare_swap(link: &mut Link, end: &mut End, _: usize) -> Result<()> {
    link.meet()?;
    for step in 0..ATOMICS {
        // Every other one must not match.
        let compare = if step % 2 == 0 { step / 2 } else { u64::MAX };
        post(end, SendRequest::compare_swap(end.domain.allocate(8)?, end.peer, compare, step / 2 + 1))?;
        let (seen, wanted) = (result(end)?, step.div_ceil(2));
        if seen != wanted {
            return Err(format!("step {step} saw {seen}, not {wanted}").into());
        }
    }
    link.meet()
}

fn swapped(link: &mut Link, end: &mut End, _: usize) -> Result<()> {
    link.meet()?;
    link.meet()?;
    match end.memory.load(0) {
        last if last == ATOMICS / 2 => Ok(()),
        last => Err(format!("the word is {last}").into()),
    }
}

/// A request that the peer refuses, and one behind it that is flushed.
fn refused(link: &mut Link, end: &mut End, to: RemoteMemory) -> Result<()> {
    post(end, SendRequest::write(end.pattern(64, 1)?, to))?;
    let first = end.next()?.status;
    // The second may find the queue pair in the error state already.
    let second = match end.queue_pair.post_send(SendRequest::write(end.pattern(64, 2)?, end.peer)) {
        Ok(()) => end.next()?.status,
        Err(_) => WcStatus::WrFlushErr,
    };
    if (first, second) != (WcStatus::RemAccessErr, WcStatus::WrFlushErr) {
        return Err(format!("{} and {}", first.name(), second.name()).into());
    }
    match end.queue_pair.state()? {
        QueuePairState::Error => link.meet(),
        state => Err(format!("the queue pair is in {state:?}").into()),
    }
}

fn wrong_key(link: &mut Link, end: &mut End, _: usize) -> Result<()> {
    let to = RemoteMemory { key: MemoryKey(end.peer.key.0 ^ 0x00ff_0000), ..end.peer };
    refused(link, end, to)
}

fn outside(link: &mut Link, end: &mut End, _: usize) -> Result<()> {
    let to = RemoteMemory { address: end.peer.address + end.peer.length - 63, ..end.peer };
    refused(link, end, to)
}

fn saw_error(link: &mut Link, end: &mut End, _: usize) -> Result<()> {
    link.meet()?;
    let mut bytes = vec![0; end.memory.len()];
    end.memory.read(0, &mut bytes);
    if bytes.iter().any(|&byte| byte != 0) { Err("a refused WRITE changed memory".into()) } else { Ok(()) }
}

fn not_ready(link: &mut Link, end: &mut End, _: usize) -> Result<()> {
    post(end, SendRequest::send(end.pattern(64, 1)?))?;
    match end.next()?.status {
        WcStatus::RnrRetryExcErr => link.meet(),
        status => Err(format!("{} instead of IBV_WC_RNR_RETRY_EXC_ERR", status.name()).into()),
    }
}

fn was_not_ready(link: &mut Link, _: &mut End, _: usize) -> Result<()> {
    link.meet()
}
