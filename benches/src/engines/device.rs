//! The cell's own device layer, on a glommio executor: `ioengine=glommio` for files and block devices, `ioengine=nvme_cmd`
//! for NVMe namespaces by passthrough, past the kernel's block layer (what fio calls `io_uring_cmd`).
//!
//! What they measure beyond `io_uring` is what a core of a cell pays for each op: futures, the ring's reaping task, the
//! arena, and the executor's turns. Reads land in an arena of the job's; a write goes out of a buffer of its own, as a
//! segment does.
//!
//! Like the cell they go past the page cache only, in multiples of 4 KiB.
//!
//! glommio can fall asleep with tasks that are ready (see the cell's `cores/nudge.rs`); a timer that runs out while the
//! loop waits ends such a sleep after [`NAP_MAX`] at the latest.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use futures_lite::future::or;
use glommio::{LocalExecutor, LocalExecutorBuilder, Placement};
use heliostat_dataplane::arena::{Arena, ArenaBuf};
use heliostat_dataplane::device::nvme::{self, Namespace};
use heliostat_dataplane::device::ring::Ring;
use heliostat_dataplane::device::uring::UringDevice;
use heliostat_dataplane::device::{AlignedBuf, BLOCK_BYTES, Device, DeviceError, Medium};
use heliostat_fio::engine::{
    Completion, Engine, EngineContext, EngineError, EngineFacts, EngineFile, EngineKind, EngineOption, Op, OpKind,
};

/// How long the loop sleeps at a stretch.
const NAP_MAX: Duration = Duration::from_millis(10);

/// An engine of the cell's device layer.
pub struct DeviceLayer {
    name: &'static str,
    help: &'static str,
    /// Namespaces only, or files and block devices, which have to be opened with `direct=1`.
    is_passthrough: bool,
    options: &'static [EngineOption],
}

const SPIN: EngineOption = EngineOption {
    name: "spin_us",
    takes: "MICROSECONDS",
    default: "0",
    help: "How long the executor looks for completions before it sleeps",
};

/// Files and block devices.
pub const GLOMMIO: DeviceLayer = DeviceLayer {
    name: "glommio",
    help: "Files and devices through the cell's device layer; writes are copied into a buffer of their own, as segments are",
    is_passthrough: false,
    options: &[SPIN],
};

/// NVMe namespaces.
pub const NVME_CMD: DeviceLayer = DeviceLayer {
    name: "nvme_cmd",
    help: "NVMe passthrough through the cell's device layer: filename=/dev/ngXnY (fio's io_uring_cmd)",
    is_passthrough: true,
    options: &[
        SPIN,
        EngineOption {
            name: "hipri",
            takes: "0|1",
            default: "0",
            help: "Poll for completions; needs poll queues (nvme.poll_queues=N on the kernel's command line)",
        },
        EngineOption { name: "cmd_type", takes: "nvme", default: "nvme", help: "The kind of command, as in fio" },
    ],
};

impl EngineKind for DeviceLayer {
    fn name(&self) -> &'static str {
        self.name
    }

    fn help(&self) -> &'static str {
        self.help
    }

    fn facts(&self) -> EngineFacts {
        EngineFacts { uses_files: true, stores: true, writes: true, one_at_a_time: false, survives_errors: false }
    }

    fn options(&self) -> &'static [EngineOption] {
        self.options
    }

    fn check(&self, options: &[(String, String)]) -> Result<(), String> {
        match options.iter().find(|(name, _)| name == "cmd_type") {
            Some((_, kind)) if kind != "nvme" => Err(format!("cmd_type: `{kind}` is not nvme")),
            _ => Ok(()),
        }
    }

    fn block_device_of(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        if !self.is_passthrough {
            return Ok(None);
        }
        match nvme::block_device_of(path)? {
            Some(block_device) => Ok(Some(block_device)),
            None => Err(io::Error::other("not an NVMe namespace with a block device; say filename=/dev/ngXnY")),
        }
    }

    fn open(&self, context: &EngineContext) -> Result<Box<dyn Engine>, EngineError> {
        if !context.direct && !self.is_passthrough {
            return Err(context.error("the cell's device layer is O_DIRECT only: say direct=1"));
        }
        if !context.buffer_bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(
                context.error(format_args!("bs={}: the cell reads multiples of {BLOCK_BYTES}", context.buffer_bytes))
            );
        }
        let spin = context.option("spin_us").map_or(Ok(0), str::parse).map_err(|error| context.error(error))?;
        let builder = LocalExecutorBuilder::new(Placement::Unbound).spin_before_park(Duration::from_micros(spin));
        let executor =
            builder.make().map_err(|error| context.error(format_args!("starting a glommio executor: {error}")))?;
        let arena = Arena::new(arena_bytes(context))
            .map_err(|cause| EngineError::System { what: "reserving an arena", cause })?;
        let devices = executor.run(async {
            let ring =
                if context.is_on("hipri") { polled_ring(context, &arena) } else { Ring::new(&arena, context.depth) };
            let ring = ring.map_err(|error| context.error(format_args!("a ring: {error}")))?;
            let open = |file: &EngineFile| {
                if Medium::of(&file.path).ok() == Some(Medium::NvmeNamespace) && !self.is_passthrough {
                    return Err(context.error(format_args!("{}: is for ioengine=nvme_cmd", file.path.display())));
                }
                UringDevice::open(&file.path, &ring).map_err(|error| context.error(error))
            };
            context.files.iter().map(open).collect::<Result<Vec<_>, _>>()
        })?;
        let slots = (0..context.depth).map(|_| Content::Own(AlignedBuf::zeroed(context.buffer_bytes))).collect();
        let (running, failures, buffer_bytes) = (FuturesUnordered::new(), HashMap::new(), context.buffer_bytes);
        Ok(Box::new(DeviceEngine { running, devices, slots, failures, buffer_bytes, executor }))
    }
}

/// A ring for drives that do not interrupt.
fn polled_ring(context: &EngineContext, arena: &Arena) -> io::Result<Ring> {
    if let Some(file) = context.files.iter().find(|file| !Namespace::can_be_polled(&file.path)) {
        let path = file.path.display();
        return Err(io::Error::other(format!(
            "hipri: {path} has no poll queues: say nvme.poll_queues=N on the kernel's command line"
        )));
    }
    Ring::polled(arena, context.depth)
}

/// Room for the reads in flight and for those that were not looked at yet, in whole regions.
fn arena_bytes(context: &EngineContext) -> usize {
    (2 * context.depth as usize * context.buffer_bytes.next_power_of_two()).next_multiple_of(64 << 20)
}

/// What a slot holds between ops.
enum Content {
    /// What a write will send.
    Own(AlignedBuf),
    /// What a read brought.
    Read(ArenaBuf),
    /// Nothing: it is in flight, or its read failed.
    Away,
}

impl Content {
    fn bytes(&self) -> &[u8] {
        match self {
            Content::Own(buffer) => buffer,
            Content::Read(read) => read,
            Content::Away => &[],
        }
    }

    /// Its bytes in a buffer of full length, which the job may change: copied there when they were read.
    fn own(&mut self, buffer_bytes: usize) -> &mut [u8] {
        if !matches!(self, Content::Own(_)) {
            let mut buffer = AlignedBuf::zeroed(buffer_bytes);
            let read = self.bytes();
            buffer[..read.len()].copy_from_slice(read);
            *self = Content::Own(buffer);
        }
        match self {
            Content::Own(buffer) => buffer,
            _ => &mut [],
        }
    }
}

struct Ended {
    slot: u32,
    outcome: Result<i64, DeviceError>,
    content: Content,
}

struct DeviceEngine {
    /// Before the executor that it is driven by, as are the devices.
    running: FuturesUnordered<LocalBoxFuture<'static, Ended>>,
    devices: Vec<UringDevice>,
    slots: Vec<Content>,
    /// The newest failure of each number.
    failures: HashMap<i64, DeviceError>,
    buffer_bytes: usize,
    executor: LocalExecutor,
}

impl DeviceEngine {
    fn op(&mut self, op: &Op) -> LocalBoxFuture<'static, Ended> {
        let device = self.devices[op.file as usize].clone();
        let Op { kind, slot, length, offset, .. } = *op;
        let content = std::mem::replace(&mut self.slots[slot as usize], Content::Away);
        async move {
            match kind {
                OpKind::Read => {
                    drop(content);
                    match device.read_into_arena(offset, length as usize).await {
                        Ok(read) => Ended { slot, outcome: Ok(length.into()), content: Content::Read(read) },
                        Err(error) => Ended { slot, outcome: Err(error), content: Content::Away },
                    }
                }
                OpKind::Write => {
                    let mut data = AlignedBuf::zeroed(length as usize);
                    let bytes = content.bytes();
                    let filled = bytes.len().min(length as usize);
                    data[..filled].copy_from_slice(&bytes[..filled]);
                    let outcome = device.write(offset, data).await.map(|()| length.into());
                    Ended { slot, outcome, content }
                }
                OpKind::Sync | OpKind::Datasync => {
                    let outcome = device.flush().await.map(|()| 0);
                    Ended { slot, outcome, content }
                }
            }
        }
        .boxed_local()
    }
}

impl DeviceEngine {
    /// The number by which a failure is reported.
    fn number_of(&mut self, error: DeviceError) -> i64 {
        let errno = match &error {
            DeviceError::Io { errno, .. } => *errno,
            DeviceError::Short { .. } => libc::ENODATA,
            DeviceError::ArenaFull { .. } => libc::ENOMEM,
            DeviceError::Gone { .. } => libc::ENODEV,
            DeviceError::Unusable { .. } => libc::EINVAL,
            DeviceError::Command { .. }
            | DeviceError::Corruption { .. }
            | DeviceError::Unaligned { .. }
            | DeviceError::Ring { .. } => libc::EIO,
        };
        self.failures.insert(-i64::from(errno), error);
        -i64::from(errno)
    }
}

impl Engine for DeviceEngine {
    fn submit(&mut self, ops: &[Op]) -> Result<usize, EngineError> {
        for op in ops {
            let op = self.op(op);
            self.running.push(op);
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
        let running = &mut self.running;
        let min = min.min(running.len());
        let mut ended: Vec<Ended> = Vec::with_capacity(max);
        let deadline = Instant::now() + timeout;
        self.executor.run(async {
            if min == 0 {
                // The task that reaps, and the rings, get a turn.
                glommio::executor().yield_now().await;
            }
            while ended.len() < max {
                if ended.len() >= min {
                    match running.next().now_or_never() {
                        Some(Some(op)) => ended.push(op),
                        _ => return,
                    }
                    continue;
                }
                let rest = deadline.saturating_duration_since(Instant::now());
                if rest.is_zero() {
                    return;
                }
                let nap = async {
                    glommio::timer::sleep(rest.min(NAP_MAX)).await;
                    None
                };
                if let Some(op) = or(running.next(), nap).await {
                    ended.push(op);
                }
            }
        });
        for Ended { slot, outcome, content } in ended {
            self.slots[slot as usize] = content;
            let outcome = outcome.unwrap_or_else(|error| self.number_of(error));
            completions.push(Completion { slot, outcome });
        }
        Ok(())
    }

    fn buffer(&mut self, slot: u32) -> &mut [u8] {
        self.slots[slot as usize].own(self.buffer_bytes)
    }

    fn error_text(&self, outcome: i64) -> String {
        self.failures.get(&outcome).map_or_else(|| format!("error {outcome}"), ToString::to_string)
    }
}
