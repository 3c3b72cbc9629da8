//! The loop of one clone of a job: fill, submit, reap, until it is over.
//!
//! Owns the clone's engine, op stream, schedule and statistics; runs on a thread of its own and shares with others only
//! [`Shared`] (live counters, a copy of the statistics on demand) and [`Control`].
//!
//! Invariants
//! - A slot is in `free`, in `batch`, or in flight; `in_flight` counts the last.
//! - Nothing is measured before ramp_time is over, and everything that was in flight at the end is waited for.
//! - No wait is longer than [`WAIT`], so that a stop is seen even when the system under test is dead.
//!
//! Cost per op with ioengine=null and a batch of one: two clock reads (40 ns), three histogram increments (15 ns), a
//! block of the permutation (15 ns), bookkeeping.

use std::time::Duration;

use super::clock::{now_ns, wait_until};
use super::content::Content;
use super::pace::Pacer;
use super::verifier::Verifier;
use super::{Control, Shared, State};
use crate::engine::{Completion, Engine, EngineContext, EngineError, Op, OpKind};
use crate::files::{ClonePlan, sync_flag};
use crate::job::{ContinueOnError, Job};
use crate::measure::log::Logs;
use crate::measure::{CLAT, CpuUsage, DirectionStats, FirstError, JobStats, LAT, SLAT, Sampler, Steps};
use crate::pattern::{OpStream, Planned};

/// Longest wait for a completion.
pub(super) const WAIT: Duration = Duration::from_millis(250);
/// How long ops in flight are waited for when the job is over.
const DRAIN_NS: u64 = 30_000_000_000;

/// An op on its way.
#[derive(Clone, Copy)]
pub(super) struct Flight {
    pub(super) op: Op,
    /// In the schedule; without one, when it was made.
    intended_ns: u64,
    made_ns: u64,
    issued_ns: u64,
}

/// What a clone hands back.
pub(crate) struct Finished {
    pub stats: JobStats,
    pub logs: Option<Logs>,
}

pub(crate) struct Worker<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) control: &'a Control,
    shared: &'a Shared,
    pub(super) engine: Box<dyn Engine>,
    stream: OpStream,
    pacer: Option<Pacer>,
    content: Content,
    pub(super) verifier: Option<Verifier>,
    pub(super) slots: Vec<Flight>,
    pub(super) free: Vec<u32>,
    pub(super) batch: Vec<Op>,
    pub(super) completions: Vec<Completion>,
    pub(super) in_flight: usize,
    /// Planned but not yet due, with its intended start.
    pending: Option<(Planned, u64)>,
    /// Ops that order writes and are issued alone.
    barriers: Vec<Op>,
    exhausted: bool,
    files: u32,
    now: u64,
    measured_from: u64,
    ramping: bool,
    end_ns: u64,
    since_think: u64,
    since_sync: [u64; 2],
    measure: [bool; 3],
    survives: ContinueOnError,
    failed: bool,
    stats: JobStats,
    sampler: Sampler,
    cpu_before: CpuUsage,
    logs: Option<Logs>,
    status_seen: u64,
}

impl<'a> Worker<'a> {
    /// Opens the engine. Called on the clone's thread; time starts with [`Worker::run`].
    pub(crate) fn open(
        job: &'a Job<'a>,
        clone: u32,
        plan: &ClonePlan,
        seed: u64,
        control: &'a Control,
        shared: &'a Shared,
    ) -> Result<Worker<'a>, EngineError> {
        let options = &job.options;
        let used = [options.direction.read, options.direction.write];
        let largest = (0..2).filter(|d| used[*d]).map(|d| job.blocks[d].max()).max().unwrap_or(4096);
        let context = EngineContext {
            job: job.name.clone(),
            clone,
            depth: job.depth,
            buffer_bytes: largest as usize,
            files: plan.files.clone(),
            reads: options.direction.read,
            writes: options.direction.write,
            direct: options.direct,
            open_flags: sync_flag(options.sync),
            seed,
            options: options.of_engine.clone(),
        };
        let mut engine = job.engine.open(&context)?;
        let content = Content::new(options, seed);
        if options.direction.write {
            (0..job.depth).for_each(|slot| content.prepare(slot, engine.buffer(slot)));
        }
        let idle = Op { kind: OpKind::Read, slot: 0, file: 0, length: 0, offset: 0 };
        let survives = match job.engine.facts().survives_errors {
            true => ContinueOnError::All,
            false => ContinueOnError::None,
        };
        Ok(Worker {
            engine,
            content,
            stream: OpStream::new(job, &plan.regions, seed),
            pacer: None,
            verifier: options.verify.map(|checksum| Verifier::new(checksum, seed, options.direction.write)),
            slots: vec![Flight { op: idle, intended_ns: 0, made_ns: 0, issued_ns: 0 }; job.depth as usize],
            free: (0..job.depth).rev().collect(),
            batch: Vec::with_capacity(job.depth as usize),
            completions: Vec::with_capacity(job.depth as usize),
            in_flight: 0,
            pending: None,
            barriers: Vec::new(),
            exhausted: false,
            files: plan.files.len().max(1) as u32,
            now: 0,
            measured_from: 0,
            ramping: options.ramp_us > 0,
            end_ns: u64::MAX,
            since_think: 0,
            since_sync: [0, 0],
            measure: [!options.without_submission, !options.without_completion, !options.without_total],
            survives: options.continue_on_error.unwrap_or(survives),
            failed: false,
            stats: JobStats::default(),
            sampler: Sampler::new(options.sample_ms, 0),
            cpu_before: CpuUsage::default(),
            logs: Logs::for_job(options),
            status_seen: 0,
            job,
            control,
            shared,
        })
    }

    /// Runs the job to its end, and verifies what it wrote.
    pub(crate) fn run(mut self, seed: u64) -> Finished {
        let options = &self.job.options;
        self.shared.set(State::Waiting);
        wait_until(now_ns() + options.start_delay_us * 1000, || self.control.is_stopping());
        self.now = now_ns();
        self.start_measuring();
        let ramp_ns = options.ramp_us * 1000;
        let runtime_ns = options.runtime_us.map_or(u64::MAX, |us| us.saturating_mul(1000));
        self.end_ns = self.now.saturating_add(runtime_ns).saturating_add(ramp_ns);
        self.pacer = Pacer::new(self.job, seed, self.now);
        self.shared.set(if self.ramping { State::Ramping } else { State::Running });
        if let Err(error) = self.work(self.now + ramp_ns).and_then(|()| self.end()) {
            self.fail(error);
        }
        self.finish_stats();
        self.shared.set(State::Verifying);
        let reads_back = self.verifier.is_some() && options.direction.write && options.do_verify;
        if reads_back && !self.failed && !self.control.was_interrupted() {
            self.read_back();
        }
        self.stats.verify = self.verifier.take().map(|verifier| verifier.found);
        if let Some(first) = self.stats.verify.as_ref().and_then(|found| found.reports.first()) {
            self.stats.first_error.get_or_insert(FirstError { code: -i64::from(libc::EILSEQ), text: first.clone() });
        }
        if let Err(error) = self.engine.finish() {
            self.fail(error);
        }
        self.stats.findings = self.engine.findings();
        self.shared.set(State::Done);
        Finished { stats: self.stats, logs: self.logs }
    }

    fn work(&mut self, ramp_end_ns: u64) -> Result<(), EngineError> {
        while !self.is_over() {
            self.fill();
            if !self.batch.is_empty() {
                self.submit()?;
            }
            let full = self.in_flight + self.batch.len() >= self.slots.len()
                || !self.batch.is_empty()
                || !self.barriers.is_empty()
                || (self.exhausted && self.pending.is_none());
            match (full, self.pending) {
                (true, _) => loop {
                    self.reap(self.job.batch_complete_min as usize, self.job.batch_complete_max as usize, WAIT)?;
                    if self.in_flight <= self.job.depth_low as usize || self.is_over() {
                        break;
                    }
                },
                (false, Some((_, until))) => self.wait_for_schedule(until)?,
                (false, None) if self.job.batch_complete_min == 0 => self.reap(0, self.slots.len(), Duration::ZERO)?,
                (false, None) => {}
            }
            if self.ramping && self.now >= ramp_end_ns {
                self.ramping = false;
                self.start_measuring();
                self.shared.set(State::Running);
            }
            if self.job.options.think_us > 0 && self.since_think >= self.job.options.think_blocks {
                self.think()?;
            }
            if self.sampler.is_due(self.now) {
                self.sample();
            }
            if self.control.status_wanted() != self.status_seen {
                self.publish();
            }
        }
        Ok(())
    }

    #[inline]
    fn is_over(&self) -> bool {
        self.failed
            || self.now >= self.end_ns
            || self.control.is_stopping()
            || (self.exhausted
                && self.pending.is_none()
                && self.in_flight == 0
                && self.batch.is_empty()
                && self.barriers.is_empty())
    }

    /// Makes ops until the batch is full, nothing more is due, or the job is through.
    #[inline]
    fn fill(&mut self) {
        if !self.barriers.is_empty() {
            if self.in_flight == 0 && self.batch.is_empty() {
                self.make_barrier();
            }
            return;
        }
        let wanted = (self.job.batch_submit as usize).min(self.slots.len() - self.in_flight);
        let think = self.job.options.think_us > 0;
        while self.batch.len() < wanted {
            if think && self.since_think >= self.job.options.think_blocks {
                return;
            }
            let Some((planned, intended_ns)) = self.pending.take().or_else(|| self.plan()) else {
                self.exhausted = true;
                return;
            };
            if intended_ns > self.now || self.overlaps(&planned) {
                self.pending = Some((planned, intended_ns));
                return;
            }
            let Some(slot) = self.free.pop() else {
                self.pending = Some((planned, intended_ns));
                return;
            };
            let Planned { kind, file, offset, length } = planned;
            let op = Op { kind, slot, file, length, offset };
            if kind == OpKind::Write {
                let buffer = self.engine.buffer(slot);
                // An engine that makes what it writes has empty ones.
                let filled = buffer.len().min(length as usize);
                let buffer = &mut buffer[..filled];
                match &mut self.verifier {
                    Some(verifier) => verifier.stamp(buffer, file, offset),
                    None => self.content.renew(buffer),
                }
                self.count_towards_sync();
            }
            self.slots[slot as usize] = Flight { op, intended_ns, made_ns: self.now, issued_ns: 0 };
            self.batch.push(op);
            self.since_think += u64::from(think);
            if !self.barriers.is_empty() {
                return;
            }
        }
    }

    #[inline]
    fn plan(&mut self) -> Option<(Planned, u64)> {
        let planned = self.stream.next()?;
        let direction = usize::from(planned.kind == OpKind::Write);
        let intended = self.pacer.as_mut().and_then(|pacer| pacer.next(direction, planned.length));
        // Without a rate an op is due when it is made.
        Some((planned, intended.unwrap_or(self.now)))
    }

    /// Two verified writes of one block must not be in flight together: nobody could say which came last.
    fn overlaps(&self, planned: &Planned) -> bool {
        self.verifier.is_some()
            && planned.kind == OpKind::Write
            && self.slots.iter().enumerate().any(|(slot, flight)| {
                flight.op.offset == planned.offset
                    && flight.op.file == planned.file
                    && flight.op.length > 0
                    && !self.free.contains(&(slot as u32))
            })
    }

    fn count_towards_sync(&mut self) {
        let options = &self.job.options;
        let every = [(options.fsync_every, OpKind::Sync), (options.fdatasync_every, OpKind::Datasync)];
        for (since, (every, kind)) in self.since_sync.iter_mut().zip(every) {
            if every == 0 {
                continue;
            }
            *since += 1;
            if *since >= every {
                *since = 0;
                let barrier = |file| Op { kind, slot: 0, file, length: 0, offset: 0 };
                self.barriers.extend((0..self.files).map(barrier));
            }
        }
    }

    fn make_barrier(&mut self) {
        if let (Some(op), Some(slot)) = (self.barriers.pop(), self.free.pop()) {
            let op = Op { slot, ..op };
            self.slots[slot as usize] = Flight { op, intended_ns: self.now, made_ns: self.now, issued_ns: 0 };
            self.batch.push(op);
        }
    }

    #[inline]
    fn submit(&mut self) -> Result<(), EngineError> {
        let taken = self.engine.submit(&self.batch)?;
        self.now = now_ns();
        for op in &self.batch[..taken] {
            let flight = &mut self.slots[op.slot as usize];
            flight.issued_ns = self.now;
            self.in_flight += 1;
            self.stats.depth.count_depth(self.in_flight, 1);
            if self.measure[SLAT] && op.length > 0 {
                let direction = usize::from(op.kind == OpKind::Write);
                if let Some(latency) = &mut self.stats.directions[direction].latency {
                    latency[SLAT].record(self.now - flight.made_ns);
                }
            }
        }
        self.stats.submit.count_batch(taken);
        self.batch.drain(..taken);
        Ok(())
    }

    #[inline]
    fn reap(&mut self, min: usize, max: usize, timeout: Duration) -> Result<(), EngineError> {
        if self.in_flight == 0 {
            self.now = now_ns();
            return Ok(());
        }
        self.completions.clear();
        self.engine.complete(min.min(self.in_flight), max, timeout, &mut self.completions)?;
        self.now = now_ns();
        self.in_flight -= self.completions.len();
        self.stats.complete.count_batch(self.completions.len());
        let completions = std::mem::take(&mut self.completions);
        for completion in &completions {
            self.account(completion);
        }
        self.completions = completions;
        for (live, direction) in self.shared.live.iter().zip(&self.stats.directions) {
            live.set(direction.ops, direction.bytes);
        }
        Ok(())
    }

    #[inline]
    fn account(&mut self, completion: &Completion) {
        self.free.push(completion.slot);
        let Flight { op, intended_ns, made_ns, issued_ns } = self.slots[completion.slot as usize];
        if completion.outcome < 0 {
            return self.op_failed(&op, completion.outcome);
        }
        let (completion_ns, total_ns) = (self.now - issued_ns, self.now.saturating_sub(intended_ns));
        if !matches!(op.kind, OpKind::Read | OpKind::Write) {
            self.stats.syncs.get_or_insert_default().record(completion_ns);
            return;
        }
        let direction = usize::from(op.kind == OpKind::Write);
        let stats = &mut self.stats.directions[direction];
        let bytes = completion.outcome as u64;
        stats.ops += 1;
        stats.bytes += bytes;
        if bytes < op.length.into() && self.job.engine.facts().uses_files {
            stats.short_ops += 1;
        }
        if let Some(latency) = &mut stats.latency {
            if self.measure[CLAT] {
                latency[CLAT].record(completion_ns);
            }
            if self.measure[LAT] {
                latency[LAT].record(total_ns);
            }
        }
        if let Some(Logs { latency: Some([slat, clat, lat]), .. }) = &mut self.logs {
            let ms = (self.now - self.measured_from) / 1_000_000;
            for (log, value) in [(slat, issued_ns - made_ns), (clat, completion_ns), (lat, total_ns)] {
                log.add(ms, value, direction, op.length.into(), op.offset);
            }
        }
        if let (Some(verifier), OpKind::Read) = (&mut self.verifier, op.kind) {
            let buffer = &self.engine.buffer(op.slot)[..(bytes as usize).min(op.length as usize)];
            let whole = verifier.check(buffer, op.file, op.offset, op.length);
            self.failed |= !whole && self.job.options.verify_fatal;
        }
    }

    fn op_failed(&mut self, op: &Op, outcome: i64) {
        self.stats.count_error(self.now - self.measured_from);
        let what = match op.kind {
            OpKind::Read => "read",
            OpKind::Write => "write",
            OpKind::Sync | OpKind::Datasync => "sync",
        };
        self.stats.directions[usize::from(op.kind != OpKind::Read)].errors += 1;
        if self.stats.first_error.is_none() {
            let reason = self.engine.error_text(outcome);
            let text = format!("{what} of {} bytes at offset {}: {reason}", op.length, op.offset);
            self.stats.first_error = Some(FirstError { code: outcome, text });
        }
        let survives = match self.survives {
            ContinueOnError::All => true,
            ContinueOnError::Io => true,
            ContinueOnError::Read => op.kind == OpKind::Read,
            ContinueOnError::Write => op.kind == OpKind::Write,
            ContinueOnError::None | ContinueOnError::Verify => false,
        };
        self.failed |= !survives;
    }

    fn wait_for_schedule(&mut self, until: u64) -> Result<(), EngineError> {
        let until = until.min(self.end_ns);
        if self.in_flight > 0 {
            let left = Duration::from_nanos(until.saturating_sub(self.now)).min(WAIT);
            return self.reap(1, self.slots.len(), left);
        }
        let soon = until.min(self.now + WAIT.as_nanos() as u64);
        wait_until(soon, || self.control.is_stopping());
        self.now = now_ns();
        Ok(())
    }

    /// The pause after `thinktime_blocks`: nothing is in flight, the schedule moves.
    fn think(&mut self) -> Result<(), EngineError> {
        self.drain()?;
        let options = &self.job.options;
        let before = self.now;
        let until = (before + options.think_us * 1000).min(self.end_ns);
        let spin_from = until.saturating_sub(options.think_spin_us * 1000);
        wait_until(spin_from, || self.control.is_stopping());
        while now_ns() < until && !self.control.is_stopping() {
            std::hint::spin_loop();
        }
        self.now = now_ns();
        if let Some(pacer) = &mut self.pacer {
            pacer.shift(self.now - before);
        }
        self.since_think = 0;
        Ok(())
    }

    fn drain(&mut self) -> Result<(), EngineError> {
        let give_up = self.now + DRAIN_NS;
        while self.in_flight > 0 {
            self.reap(1, self.slots.len(), WAIT)?;
            if self.now > give_up || self.control.must_leave() {
                return Err(EngineError::Other(format!(
                    "{} ops did not complete; what they do to the data is not known",
                    self.in_flight
                )));
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), EngineError> {
        self.batch.clear();
        self.drain()?;
        let options = &self.job.options;
        if options.end_fsync && options.direction.write {
            self.sync_files()?;
        }
        Ok(())
    }

    fn sync_files(&mut self) -> Result<(), EngineError> {
        self.free = (0..self.slots.len() as u32).rev().collect();
        self.barriers.clear();
        let sync = |file| Op { kind: OpKind::Sync, slot: 0, file, length: 0, offset: 0 };
        self.barriers.extend((0..self.files).map(sync));
        while !self.barriers.is_empty() {
            self.make_barrier();
            self.submit()?;
            self.drain()?;
        }
        Ok(())
    }

    pub(super) fn fail(&mut self, error: EngineError) {
        self.failed = true;
        let code = match &error {
            EngineError::System { cause, .. } | EngineError::Open { cause, .. } => {
                cause.raw_os_error().unwrap_or(libc::EIO)
            }
            EngineError::Other(_) => libc::EIO,
        };
        self.stats.first_error.get_or_insert(FirstError { code: -i64::from(code), text: error.to_string() });
    }

    /// Forgets what was counted: the ramp is over, or the job begins.
    fn start_measuring(&mut self) {
        let options = &self.job.options;
        let used = [options.direction.read, options.direction.write];
        let first_error = self.stats.first_error.take();
        self.stats = JobStats {
            directions: used.map(|used| if used { DirectionStats::new() } else { DirectionStats::default() }),
            first_error,
            clones: 1,
            thread_id: rustix::thread::gettid().as_raw_nonzero().get(),
            depth: Steps::default(),
            ..JobStats::default()
        };
        self.measured_from = self.now;
        self.sampler = Sampler::new(options.sample_ms, self.now);
        self.cpu_before = CpuUsage::of_this_thread();
        self.engine.start_measuring();
    }

    fn sample(&mut self) {
        let options = &self.job.options;
        let used = [options.direction.read, options.direction.write];
        for direction in (0..2).filter(|direction| used[*direction]) {
            let DirectionStats { ops, bytes, series, .. } = &mut self.stats.directions[direction];
            let (bandwidth, iops) = self.sampler.sample(direction, *ops, *bytes, self.now, series);
            if let Some(logs) = &mut self.logs {
                let ms = (self.now - self.measured_from) / 1_000_000;
                let block = if options.log_average_ms > 0 { 0 } else { self.job.blocks[direction].min() };
                for (log, value) in [(&mut logs.bandwidth, bandwidth), (&mut logs.iops, iops)] {
                    if let Some(log) = log {
                        log.add(ms, value, direction, block, 0);
                    }
                }
            }
        }
        self.sampler.sampled(self.now);
    }

    fn finish_stats(&mut self) {
        self.now = now_ns();
        self.stats.runtime_ns = (self.now - self.measured_from).max(1);
        self.stats.clone_runtime_ns = self.stats.runtime_ns;
        self.stats.cpu = CpuUsage::of_this_thread().since(&self.cpu_before);
    }

    /// Copies the statistics for whoever asked for a status.
    fn publish(&mut self) {
        self.status_seen = self.control.status_wanted();
        let mut copy = Box::new(self.stats.clone());
        copy.runtime_ns = (self.now - self.measured_from).max(1);
        copy.clone_runtime_ns = copy.runtime_ns;
        copy.cpu = CpuUsage::of_this_thread().since(&self.cpu_before);
        copy.findings = self.engine.findings();
        self.shared.publish(copy);
    }
}
