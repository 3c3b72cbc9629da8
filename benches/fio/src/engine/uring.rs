//! `ioengine=io_uring`: files and devices through one ring per job thread.
//!
//! Set up as fio sets up its own: one submitter, completions only when asked for (IORING_SETUP_SINGLE_ISSUER,
//! COOP_TASKRUN, DEFER_TASKRUN), plain read and write entries. Buffers and files are registered when `fixedbufs` and
//! `registerfiles` say so; `hipri` polls for completions, `sqthread_poll` lets a kernel thread submit.
//!
//! Invariant: the ring is dropped before the buffers (field order), and not before everything in flight has completed or
//! the kernel has cancelled it, so that the kernel never writes into memory that was given back.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring as Ring, opcode, squeue};

use super::memory::{Buffers, Pages};
use super::{Completion, Engine, EngineContext, EngineError, EngineFacts, EngineKind, EngineOption, Op, OpKind};
use crate::files::open_for_io;

/// The io_uring engine.
pub struct IoUring;

const OPTIONS: &[EngineOption] = &[
    EngineOption { name: "fixedbufs", takes: "0|1", default: "0", help: "Register buffers with the ring" },
    EngineOption { name: "registerfiles", takes: "0|1", default: "0", help: "Register files with the ring" },
    EngineOption {
        name: "hipri",
        takes: "0|1",
        default: "0",
        help: "Poll for completions; needs direct=1 and a device with poll queues",
    },
    EngineOption {
        name: "sqthread_poll",
        takes: "0|1",
        default: "0",
        help: "A kernel thread takes submissions; registers files",
    },
    EngineOption {
        name: "mem",
        takes: "malloc|mmap|mmaphuge",
        default: "malloc",
        help: "Buffers in 4 KiB pages (malloc and mmap are the same here), or in transparent huge pages",
    },
];

impl EngineKind for IoUring {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn help(&self) -> &'static str {
        "Files and devices through Linux io_uring; serves libaio, psync, sync, pvsync jobs, too"
    }

    fn facts(&self) -> EngineFacts {
        EngineFacts { uses_files: true, stores: true, writes: true, one_at_a_time: false, survives_errors: false }
    }

    fn options(&self) -> &'static [EngineOption] {
        OPTIONS
    }

    fn check(&self, options: &[(String, String)]) -> Result<(), String> {
        let Some((_, pages)) = options.iter().find(|(name, _)| name == "mem") else { return Ok(()) };
        let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        match pages.as_str() {
            "mmaphuge" if setting.contains("[never]") => Err("mem=mmaphuge: this kernel has transparent huge pages \
                 switched off: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
                .into()),
            "malloc" | "mmap" | "mmaphuge" => Ok(()),
            other => Err(format!("mem: `{other}` is none of malloc, mmap, mmaphuge")),
        }
    }

    fn open(&self, context: &EngineContext) -> Result<Box<dyn Engine>, EngineError> {
        Ok(Box::new(UringEngine::open(context)?))
    }
}

struct UringEngine {
    ring: Ring,
    files: Vec<File>,
    buffers: Buffers,
    fixed_buffers: bool,
    fixed_files: bool,
    poll: bool,
    in_flight: usize,
}

impl UringEngine {
    fn open(context: &EngineContext) -> Result<UringEngine, EngineError> {
        let files = context
            .files
            .iter()
            .map(|file| {
                open_for_io(&file.path, context).map_err(|cause| EngineError::Open { path: file.path.clone(), cause })
            })
            .collect::<Result<Vec<File>, EngineError>>()?;
        let poll = context.is_on("hipri");
        let kernel_thread = context.is_on("sqthread_poll");
        let ring = ring(context.depth, poll, kernel_thread).map_err(EngineError::system("io_uring_setup"))?;
        let pages = if context.option("mem") == Some("mmaphuge") { Pages::Huge } else { Pages::Small };
        let buffers = Buffers::new(context.depth, context.buffer_bytes, pages)
            .map_err(EngineError::system("allocating buffers"))?;
        let fixed_buffers = context.is_on("fixedbufs");
        if fixed_buffers {
            // SAFETY: the buffers outlive the ring: the engine drops the ring first.
            unsafe { ring.submitter().register_buffers(&buffers.io_vectors()) }
                .map_err(EngineError::system("registering buffers (see ulimit -l)"))?;
        }
        let fixed_files = kernel_thread || context.is_on("registerfiles");
        if fixed_files {
            let descriptors: Vec<i32> = files.iter().map(AsRawFd::as_raw_fd).collect();
            ring.submitter().register_files(&descriptors).map_err(EngineError::system("registering files"))?;
        }
        Ok(UringEngine { ring, files, buffers, fixed_buffers, fixed_files, poll, in_flight: 0 })
    }

    fn entry(&mut self, op: &Op) -> squeue::Entry {
        let file = match self.fixed_files {
            true => Fd(op.file as i32),
            false => Fd(self.files[op.file as usize].as_raw_fd()),
        };
        let entry = match op.kind {
            OpKind::Sync => opcode::Fsync::new(file).build(),
            OpKind::Datasync => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
            OpKind::Read => {
                let memory = self.buffers.lend(op.slot);
                match self.fixed_buffers {
                    true => opcode::ReadFixed::new(file, memory, op.length, op.slot as u16).offset(op.offset).build(),
                    false => opcode::Read::new(file, memory, op.length).offset(op.offset).build(),
                }
            }
            OpKind::Write => {
                let memory = self.buffers.lend(op.slot);
                match self.fixed_buffers {
                    true => opcode::WriteFixed::new(file, memory, op.length, op.slot as u16).offset(op.offset).build(),
                    false => opcode::Write::new(file, memory, op.length).offset(op.offset).build(),
                }
            }
        };
        let entry = if self.fixed_files { entry.flags(squeue::Flags::FIXED_FILE) } else { entry };
        entry.user_data(op.slot.into())
    }

    fn take(&mut self, max: usize, completions: &mut Vec<Completion>) -> usize {
        let before = completions.len();
        for entry in self.ring.completion().take(max) {
            let slot = entry.user_data() as u32;
            self.buffers.give_back(slot);
            completions.push(Completion { slot, outcome: entry.result().into() });
        }
        let taken = completions.len() - before;
        self.in_flight -= taken;
        taken
    }
}

fn ring(depth: u32, poll: bool, kernel_thread: bool) -> std::io::Result<Ring> {
    let mut builder = Ring::builder();
    builder.setup_clamp();
    if poll {
        builder.setup_iopoll();
    }
    if kernel_thread {
        builder.setup_sqpoll(1000);
        return builder.build(depth);
    }
    let mut lean = builder.clone();
    lean.setup_single_issuer().setup_coop_taskrun().setup_defer_taskrun();
    // Kernels before 6.1 do not know the flags.
    lean.build(depth).or_else(|_| builder.build(depth))
}

impl Engine for UringEngine {
    fn submit(&mut self, ops: &[Op]) -> Result<usize, EngineError> {
        let mut taken = 0;
        for op in ops {
            if self.ring.submission().is_full() {
                break;
            }
            let entry = self.entry(op);
            // SAFETY: the entry points into a lent slot of `buffers`, which outlives the ring, and to an open file.
            unsafe { self.ring.submission().push(&entry) }.expect("the queue has room, as was just checked");
            taken += 1;
        }
        self.in_flight += taken;
        match self.ring.submit() {
            Ok(_) => Ok(taken),
            // Busy: entries stay in the queue and are taken with the next call.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN | libc::EINTR)) => Ok(taken),
            Err(error) => Err(EngineError::System { what: "io_uring_enter", cause: error }),
        }
    }

    fn complete(
        &mut self,
        min: usize,
        max: usize,
        timeout: Duration,
        completions: &mut Vec<Completion>,
    ) -> Result<(), EngineError> {
        let mut taken = self.take(max, completions);
        let min = min.min(self.in_flight + taken).min(max);
        // Completions are only made when asked for (DEFER_TASKRUN), so a look asks, too.
        let mut asked = min > 0 && taken >= min;
        while !asked || taken < min {
            let waits = taken < min;
            let time = if waits { timeout } else { Duration::ZERO };
            let timespec = Timespec::new().sec(time.as_secs()).nsec(time.subsec_nanos());
            let arguments = SubmitArgs::new().timespec(&timespec);
            let want = if self.poll { usize::from(waits) } else { min - taken.min(min) };
            let ended = match self.ring.submitter().submit_with_args(want, &arguments) {
                Ok(_) => false,
                Err(error) => match error.raw_os_error() {
                    Some(libc::ETIME | libc::EINTR) => true,
                    Some(libc::EBUSY | libc::EAGAIN) => false,
                    _ => return Err(EngineError::System { what: "io_uring_enter", cause: error }),
                },
            };
            taken += self.take(max - taken, completions);
            asked = true;
            if ended {
                break;
            }
        }
        Ok(())
    }

    fn buffer(&mut self, slot: u32) -> &mut [u8] {
        self.buffers.slot(slot)
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        // Whoever leaves with ops in flight (an error, a second Ctrl-C) waits for them here, for a while; memory that
        // the kernel may still write to after that is leaked rather than given back.
        let mut completions = Vec::new();
        for _ in 0..50 {
            if self.in_flight == 0 {
                return;
            }
            completions.clear();
            if self.complete(1, usize::MAX, Duration::from_millis(100), &mut completions).is_err() {
                break;
            }
        }
        if let Ok(empty) = Buffers::new(1, 1, Pages::Small) {
            std::mem::forget(std::mem::replace(&mut self.buffers, empty));
        }
    }
}
