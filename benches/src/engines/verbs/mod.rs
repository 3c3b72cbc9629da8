//! `ioengine=verbs`: SEND, WRITE, READ and atomics over RDMA, by either provider of `verbs-shim`.
//!
//! The peer is `heliostat-bench serve-verbs` on another machine (`hostname=`), or a thread of this process. Like perftest, a job
//! keeps `iodepth` requests of `bs` bytes under way on one queue pair and polls; an op ends when its request
//! completes. With `ping_pong=1` it ends when the peer's answer of as many bytes has come: half of that is what
//! `ib_write_lat` and `ib_send_lat` print.

mod end;
mod peer;
mod protocol;

use std::collections::HashMap;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use heliostat_fio::engine::{
    Completion, Engine, EngineContext, EngineError, EngineFacts, EngineKind, EngineOption, Op, OpKind,
};
use verbs_shim::{Buffer, Error, SendRequest};

use self::end::{End, RECEIVE, is_good};
pub use self::peer::serve;
use self::protocol::{Verb, Wish};

/// How long a peer may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The port of `serve-verbs`.
pub const PORT: u16 = 7480;

/// The RDMA engine.
pub struct Verbs;

impl EngineKind for Verbs {
    fn name(&self) -> &'static str {
        "verbs"
    }

    fn help(&self) -> &'static str {
        "RDMA: SEND, WRITE, READ and atomics, over libibverbs or user-space soft-RoCE"
    }

    fn facts(&self) -> EngineFacts {
        EngineFacts { uses_files: false, stores: false, writes: true, one_at_a_time: false, survives_errors: false }
    }

    fn options(&self) -> &'static [EngineOption] {
        &[
            EngineOption {
                name: "device",
                takes: "NAME",
                default: "soft:127.0.0.1",
                help: "The RDMA device of this side, as `verbs-check devices` names it",
            },
            EngineOption {
                name: "hostname",
                takes: "HOST[:PORT]",
                default: "",
                help: "Where heliostat-bench serve-verbs runs; left out: a thread of this process is the peer",
            },
            EngineOption {
                name: "verb",
                takes: "send|write|read|fetch_add|compare_swap",
                default: "",
                help: "What an op is; left out: WRITE for writes and READ for reads",
            },
            EngineOption {
                name: "ping_pong",
                takes: "0|1",
                default: "0",
                help: "The peer answers each message by one",
            },
            EngineOption {
                name: "events",
                takes: "0|1",
                default: "0",
                help: "Sleep until something completes; else poll",
            },
        ]
    }

    fn check(&self, options: &[(String, String)]) -> Result<(), String> {
        let verb = options.iter().find(|(name, _)| name == "verb");
        verb.map_or(Ok(()), |(_, text)| text.parse::<Verb>().map(drop).map_err(|error| format!("verb={text}: {error}")))
    }

    fn open(&self, context: &EngineContext) -> Result<Box<dyn Engine>, EngineError> {
        let verb = match context.option("verb") {
            Some(text) => {
                Some(text.parse::<Verb>().map_err(|error| context.error(format_args!("verb={text}: {error}")))?)
            }
            None if context.reads && context.writes => None,
            None if context.reads => Some(Verb::Read),
            None => Some(Verb::Write),
        };
        let ping_pong = context.is_on("ping_pong");
        if ping_pong && context.is_on("events") {
            return Err(context.error("ping_pong=1 polls: leave events=1 out"));
        }
        if verb.is_some_and(|verb| (verb == Verb::Read) != context.reads || context.reads && context.writes) {
            return Err(
                context.error("verb=read takes rw=read, the other verbs take rw=write; without verb= the op says it")
            );
        }
        let wish = Wish {
            verb: verb.unwrap_or(Verb::Write),
            ping_pong,
            depth: context.depth,
            bytes: context.buffer_bytes as u32,
        };
        wish.check().map_err(|error| context.error(error))?;
        let device = context.option("device").unwrap_or("soft:127.0.0.1");
        let device = if device == "soft" { "soft:127.0.0.1" } else { device };
        let mut stream = match context.option("hostname") {
            Some(host) => connect(host),
            None => beside(device),
        }
        .map_err(|error| context.error(error))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| context.error(error))?;
        let set_up = |error: Error| context.error(format_args!("device {device}: {error}"));
        wish.send(&mut stream).map_err(|error| context.error(format_args!("the peer: {error}")))?;
        let sleeps = context.is_on("events");
        let end = End::open(device, &wish, !sleeps, &mut stream).map_err(set_up)?;
        if end.target.length < u64::from(wish.depth) * u64::from(wish.bytes) {
            return Err(context.error("the peer lends too little memory: is it of the same version?"));
        }
        let slots = (0..context.depth).map(|_| {
            let buffer = end.domain.allocate(context.buffer_bytes)?;
            Ok(Slot { buffer: Some(buffer), rest: None, length: 0 })
        });
        let slots = slots.collect::<Result<Vec<_>, Error>>().map_err(set_up)?;
        let (done, texts) = (Vec::new(), HashMap::new());
        Ok(Box::new(VerbsEngine {
            end,
            verb,
            wish,
            sleeps,
            slots,
            ended: Vec::new(),
            awaited: None,
            answers: 0,
            done,
            texts,
            stream,
        }))
    }
}

/// Reaches a peer elsewhere.
fn connect(host: &str) -> Result<TcpStream, String> {
    let address = if host.contains(':') { host.to_string() } else { format!("{host}:{PORT}") };
    let fail = |error: std::io::Error| {
        format!("hostname={host}: {error}; does `heliostat-bench serve-verbs` run there, on port {PORT}?")
    };
    let mut last = None;
    for address in address.to_socket_addrs().map_err(fail)? {
        match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| format!("hostname={host}: no address"), fail))
}

/// Starts a peer beside this job.
fn beside(device: &str) -> Result<TcpStream, String> {
    let start = || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        let (theirs, _) = listener.accept()?;
        let device = device.to_string();
        std::thread::Builder::new().name("verbs-peer".into()).spawn(move || {
            if let Err(error) = peer::serve_one(theirs, &device) {
                eprintln!("heliostat-bench: the peer: {error}");
            }
        })?;
        Ok(stream)
    };
    start().map_err(|error: std::io::Error| format!("starting the peer's thread: {error}"))
}

struct Slot {
    /// `None` while in flight.
    buffer: Option<Buffer>,
    /// What a shorter message left of it.
    rest: Option<Buffer>,
    length: u32,
}

struct VerbsEngine {
    end: End,
    /// `None`: as the op says.
    verb: Option<Verb>,
    wish: Wish,
    sleeps: bool,
    slots: Vec<Slot>,
    /// Ops that ended, and were not handed out yet.
    ended: Vec<Completion>,
    /// The op of a ping-pong whose answer has not come.
    awaited: Option<u32>,
    /// Messages that came in answer.
    answers: u32,
    done: Vec<verbs_shim::Completion>,
    texts: HashMap<i64, String>,
    /// Its end ends the peer, and the peer's end ends it.
    stream: TcpStream,
}

impl VerbsEngine {
    fn request(&mut self, op: &Op) -> Result<SendRequest<'static, Buffer>, EngineError> {
        let defect = |what: &str| EngineError::Other(format!("verbs: {what}"));
        let verb = self.verb.unwrap_or(if op.kind == OpKind::Read { Verb::Read } else { Verb::Write });
        let place = u64::from(op.slot) * u64::from(self.wish.bytes);
        let target =
            self.end.target.part(place, u64::from(op.length)).ok_or_else(|| defect("memory of the peer is short"))?;
        let slot = &mut self.slots[op.slot as usize];
        let mut buffer = slot.buffer.take().ok_or_else(|| defect("a slot in flight was used"))?;
        slot.length = op.length;
        if (op.length as usize) < buffer.len() {
            slot.rest = Some(buffer.split_off(op.length as usize));
        }
        if self.wish.ping_pong && verb == Verb::Write {
            let last_word = buffer.len() - 8;
            let next = self.end.memory.load(last_word).wrapping_add(1);
            buffer[last_word..].copy_from_slice(&next.to_ne_bytes());
        }
        let request = match verb {
            Verb::Send => SendRequest::send(buffer),
            Verb::Write => SendRequest::write(buffer, target),
            Verb::Read => SendRequest::read(buffer, target),
            Verb::FetchAdd => SendRequest::fetch_add(buffer, target, 1),
            Verb::CompareSwap => SendRequest::compare_swap(buffer, target, 0, 0),
        };
        Ok(request.token(op.slot.into()))
    }

    /// Takes what has completed, and notes the ops that ended.
    fn take(&mut self) -> Result<(), EngineError> {
        let mut done = std::mem::take(&mut self.done);
        for completion in done.drain(..) {
            let good = is_good(&completion);
            if completion.token == RECEIVE {
                if good {
                    self.end.receive_again(completion).map_err(failed)?;
                    self.answers += 1;
                }
                // One that failed was flushed with the queue pair: the requests themselves say so.
                continue;
            }
            let outcome = match good {
                true => None,
                false => {
                    let number = -(completion.status as i64).max(1);
                    self.texts.insert(number, format!("{}: the queue pair is in error", completion.status.name()));
                    self.awaited = None;
                    Some(number)
                }
            };
            let number = completion.token as u32;
            let Some(slot) = self.slots.get_mut(number as usize) else { continue };
            slot.buffer = completion.buffer.map(|mut buffer| {
                if let Some(rest) = slot.rest.take() {
                    // Both are of one allocation: they fit.
                    let _ = buffer.join(rest);
                }
                buffer
            });
            match outcome {
                None if self.wish.ping_pong => {}
                _ => self.ended.push(Completion { slot: number, outcome: outcome.unwrap_or(slot.length.into()) }),
            }
        }
        self.done = done;
        Ok(())
    }

    /// Whether the peer is still there; asked when nothing has come for a while.
    fn check_peer(&self) -> Result<(), EngineError> {
        let looked = self.stream.set_nonblocking(true).and_then(|()| self.stream.peek(&mut [0]));
        match looked {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            _ => Err(EngineError::Other("verbs: the peer has ended: what it said stands in its own output".into())),
        }
    }

    /// Ends the awaited op of a ping-pong when its answer has come, and its own request has completed.
    fn take_answer(&mut self) {
        let Some(number) = self.awaited else { return };
        let Some(buffer) = &self.slots[number as usize].buffer else { return };
        let has_come = match self.wish.verb {
            Verb::Send => self.answers > 0,
            _ => {
                let last_word = buffer.len() - 8;
                self.end.memory.load(last_word).to_ne_bytes()[..] == buffer[last_word..]
            }
        };
        if has_come {
            self.answers = 0;
            self.awaited = None;
            self.ended.push(Completion { slot: number, outcome: self.wish.bytes.into() });
        }
    }
}

fn failed(error: Error) -> EngineError {
    EngineError::Other(format!("verbs: {error}"))
}

impl Engine for VerbsEngine {
    fn submit(&mut self, ops: &[Op]) -> Result<usize, EngineError> {
        for op in ops {
            if matches!(op.kind, OpKind::Sync | OpKind::Datasync) {
                return Err(EngineError::Other("verbs: a fabric has nothing to fsync: leave fsync out".into()));
            }
            let request = self.request(op)?;
            self.end.pair.post_send(request).map_err(|refused| failed(refused.into()))?;
            if self.wish.ping_pong {
                self.awaited = Some(op.slot);
            }
        }
        Ok(ops.len())
    }

    fn complete(
        &mut self,
        min: usize,
        max: usize,
        timeout: Duration,
        completions: &mut Vec<Completion>,
    ) -> Result<(), EngineError> {
        let (before, mut started) = (completions.len(), None);
        for turn in 1u64.. {
            match self.sleeps && min > 0 && self.ended.is_empty() {
                true => self.end.completions.wait(&mut self.done, timeout).map_err(failed)?,
                false => self.end.completions.poll(&mut self.done).map_err(failed)?,
            };
            self.take()?;
            self.take_answer();
            let room = max - (completions.len() - before);
            completions.extend(self.ended.drain(..room.min(self.ended.len())));
            if completions.len() - before >= min {
                return Ok(());
            }
            // A look at the clock may take longer than a look at the queue.
            if (self.sleeps || turn % 64 == 0) && started.get_or_insert_with(Instant::now).elapsed() >= timeout {
                return self.check_peer();
            }
        }
        Ok(())
    }

    fn buffer(&mut self, slot: u32) -> &mut [u8] {
        self.slots[slot as usize].buffer.as_deref_mut().unwrap_or_default()
    }

    fn error_text(&self, outcome: i64) -> String {
        self.texts.get(&outcome).cloned().unwrap_or_else(|| format!("error {outcome}"))
    }
}
