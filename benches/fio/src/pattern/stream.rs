//! The stream of ops of one clone.
//!
//! Invariants
//! - Every op lies inside its file's region, and its length is at least 1.
//! - With a random map each block of a region is hit once before any is hit again.
//! - Without `time_based` the stream ends after `io_size` (or the regions' size) times `loops` bytes, or after
//!   `number_ios` ops.

use super::distribution::Drawn;
use super::permutation::Permutation;
use super::random_map::RandomMap;
use super::rng::{Rng, mix};
use crate::engine::OpKind;
use crate::job::{BlockSizes, Distribution, FileService, Job};

/// The part of a file that a clone works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub start: u64,
    pub bytes: u64,
}

/// An op without its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub kind: OpKind,
    pub file: u32,
    pub offset: u64,
    pub length: u32,
}

pub(crate) struct OpStream {
    rng: Rng,
    kinds: Kinds,
    sizes: [BlockSizes; 2],
    unaligned: bool,
    files: Vec<FileState>,
    service: FileService,
    /// Which file, and how many ops it still gets.
    turn: (usize, u32),
    bytes_left: u64,
    ops_left: u64,
    key: u64,
}

#[derive(Clone, Copy)]
enum Kinds {
    Reads,
    Writes,
    Mix(u32),
}

struct FileState {
    region: Region,
    order: Order,
    rounds: u64,
    /// A file under file_service_type=sequential that is through.
    done: bool,
}

enum Order {
    /// Next offset within the region, of reads and of writes; bytes left out after each op.
    Sequential { next: [u64; 2], hole: u64 },
    /// Blocks of one size, each once.
    Permuted { order: Permutation, next: u64, blocks: u64, bytes: u64 },
    /// Blocks of several sizes, each once.
    Mapped { map: RandomMap, unit_bytes: u64 },
    /// Any block at any time; now and then the one that follows on.
    Drawn { drawn: Drawn, unit_bytes: u64, every: u64, since: u64, random_percent: [u32; 2], next: u64 },
}

impl OpStream {
    /// The stream of a clone with this seed; each region holds at least one block of every size that occurs.
    pub(crate) fn new(job: &Job<'_>, regions: &[Region], seed: u64) -> OpStream {
        let options = &job.options;
        let kinds = match (options.direction.read, options.direction.write) {
            (true, true) => Kinds::Mix(job.read_percent),
            (false, _) => Kinds::Writes,
            (true, false) => Kinds::Reads,
        };
        let key = mix(seed);
        let files = regions.iter().enumerate().map(|(index, region)| FileState {
            region: *region,
            order: order(job, *region, mix(key ^ index as u64)),
            rounds: 0,
            done: false,
        });
        let whole: u64 = regions.iter().map(|region| region.bytes).sum();
        let wanted = options.io_size.map_or(whole, |size| size.of(whole));
        let endless = options.time_based;
        OpStream {
            rng: Rng::new(seed),
            kinds,
            sizes: job.blocks.clone(),
            unaligned: options.unaligned_sizes,
            files: files.collect(),
            service: options.file_service,
            turn: (0, 0),
            bytes_left: if endless { u64::MAX } else { wanted.saturating_mul(options.loops) },
            ops_left: options.op_count.unwrap_or(u64::MAX),
            key,
        }
    }

    /// The next op; nothing when the job is through.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<Planned> {
        if self.bytes_left == 0 || self.ops_left == 0 {
            return None;
        }
        let kind = match self.kinds {
            Kinds::Reads => OpKind::Read,
            Kinds::Writes => OpKind::Write,
            Kinds::Mix(read_percent) => match self.rng.below(100) < read_percent.into() {
                true => OpKind::Read,
                false => OpKind::Write,
            },
        };
        let direction = usize::from(kind == OpKind::Write);
        let length = self.length(direction);
        let file = if self.files.len() == 1 { 0 } else { self.file() };
        let (offset, length) = self.place(file, direction, length);
        // A smaller rest than a block is not done, as in fio.
        if self.bytes_left < length && self.bytes_left != u64::MAX {
            self.bytes_left = 0;
            return None;
        }
        if self.bytes_left != u64::MAX {
            self.bytes_left -= length;
        }
        self.ops_left -= 1;
        Some(Planned { kind, file: file as u32, offset, length: length as u32 })
    }

    #[inline]
    fn length(&mut self, direction: usize) -> u64 {
        match &self.sizes[direction] {
            BlockSizes::Fixed(bytes) => *bytes,
            BlockSizes::Range { min, max } => {
                let bytes = min + self.rng.below(max - min + 1);
                if self.unaligned { bytes } else { (bytes / min * min).max(*min) }
            }
            BlockSizes::Split(parts) => {
                let mut draw = self.rng.below(100) as u32;
                for (bytes, percent) in parts {
                    if draw < *percent {
                        return *bytes;
                    }
                    draw -= percent;
                }
                parts[parts.len() - 1].0
            }
        }
    }

    fn file(&mut self) -> usize {
        let count = self.files.len();
        let (file, left) = self.turn;
        match self.service {
            FileService::RoundRobin(ops) => {
                self.turn = if left > 1 { (file, left - 1) } else { ((file + 1) % count, ops) };
                file
            }
            FileService::Random(ops) => {
                let (file, left) = if left == 0 { (self.rng.below(count as u64) as usize, ops) } else { (file, left) };
                self.turn = (file, left - 1);
                file
            }
            FileService::Sequential => {
                if self.files[file].done {
                    self.files[file].done = false;
                    self.turn.0 = (file + 1) % count;
                }
                self.turn.0
            }
        }
    }

    /// Offset in the file, and the length that fits there.
    #[inline]
    fn place(&mut self, file: usize, direction: usize, length: u64) -> (u64, u64) {
        let key = self.key;
        let FileState { region, order, rounds, done } = &mut self.files[file];
        let mut new_key = || {
            *rounds += 1;
            mix(key ^ mix(*rounds) ^ file as u64)
        };
        let (at, length) = match order {
            Order::Sequential { next, hole } => {
                let next = &mut next[direction];
                if *next + length > region.bytes {
                    *next = 0;
                }
                let at = *next;
                *next += length + *hole;
                *done = *next + length > region.bytes;
                (at, length)
            }
            Order::Permuted { order, next, blocks, bytes } => {
                if *next == *blocks {
                    *order = Permutation::new(*blocks, new_key());
                    *next = 0;
                }
                let block = order.at(*next);
                *next += 1;
                *done = *next == *blocks;
                (block * *bytes, *bytes)
            }
            Order::Mapped { map, unit_bytes } => {
                let wanted = (length / *unit_bytes).max(1);
                let (unit, count) = match map.take(wanted) {
                    Some(extent) => extent,
                    None => {
                        *done = true;
                        *map = RandomMap::new(region.bytes / *unit_bytes, new_key());
                        map.take(wanted).unwrap_or((0, 1))
                    }
                };
                (unit * *unit_bytes, count * *unit_bytes)
            }
            Order::Drawn { drawn, unit_bytes, every, since, random_percent, next } => {
                let share = random_percent[direction];
                let jumps = *since == 0 && (share == 100 || self.rng.below(100) < share.into());
                *since = (*since + 1) % *every;
                let at = if jumps { drawn.next(&mut self.rng) * *unit_bytes } else { *next };
                // Drawn over the smallest block: a larger one may not fit at the end.
                let fits = region.bytes - length;
                let at = if jumps {
                    at.min(fits / *unit_bytes * *unit_bytes)
                } else if at > fits {
                    0
                } else {
                    at
                };
                *next = at + length;
                (at, length)
            }
        };
        (region.start + at, length)
    }
}

fn order(job: &Job<'_>, region: Region, key: u64) -> Order {
    let options = &job.options;
    if !options.direction.random {
        return Order::Sequential { next: [0, 0], hole: options.sequence.unwrap_or(0) };
    }
    let used = [options.direction.read, options.direction.write];
    let used: Vec<usize> = (0..2).filter(|direction| used[*direction]).collect();
    let unit_bytes = used
        .iter()
        .map(|direction| options.align_bytes[*direction].unwrap_or(job.blocks[*direction].min()))
        .min()
        .unwrap_or(4096)
        .max(1);
    let units = (region.bytes / unit_bytes).max(1);
    let mapped = !options.no_random_map
        && options.distribution == Distribution::Random
        && options.align_bytes == [None, None]
        && options.percentage_random == [100, 100]
        && options.sequence.is_none_or(|every| every <= 1)
        && !options.unaligned_sizes;
    if !mapped {
        return Order::Drawn {
            drawn: Drawn::new(&options.distribution, units, unit_bytes, key),
            unit_bytes,
            every: options.sequence.unwrap_or(1).max(1),
            since: 0,
            random_percent: options.percentage_random,
            next: 0,
        };
    }
    let one_size = used.iter().all(|direction| job.blocks[*direction] == BlockSizes::Fixed(unit_bytes));
    match one_size {
        true => Order::Permuted { order: Permutation::new(units, key), next: 0, blocks: units, bytes: unit_bytes },
        false => Order::Mapped { map: RandomMap::new(units, key), unit_bytes },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::null::Null;
    use crate::job::parse_job_file;

    fn ops(text: &str, regions: &[Region], seed: u64) -> Vec<Planned> {
        let set = parse_job_file(&format!("[a]\nioengine=null\n{text}"), &[&Null]).unwrap_or_else(|e| panic!("{e}"));
        let mut stream = OpStream::new(&set.jobs[0], regions, seed);
        std::iter::from_fn(|| stream.next()).take(100_000).collect()
    }

    fn covers(ops: &[Planned], region: Region) -> bool {
        let mut extents: Vec<(u64, u64)> = ops.iter().map(|op| (op.offset, op.length.into())).collect();
        extents.sort_unstable();
        let mut at = region.start;
        for (offset, length) in extents {
            if offset != at {
                return false;
            }
            at += length;
        }
        at == region.start + region.bytes
    }

    const REGION: Region = Region { start: 8192, bytes: 1 << 20 };

    #[test]
    fn sequential_ops_follow_each_other_and_start_over() {
        let of = ops("rw=read\nbs=256k\nloops=2", &[REGION], 1);
        let offsets: Vec<u64> = of.iter().map(|op| op.offset).collect();
        let k = 1024;
        assert_eq!(offsets, [8 * k, 264 * k, 520 * k, 776 * k, 8 * k, 264 * k, 520 * k, 776 * k]);
        let holes = ops("rw=read:256k\nbs=256k\nnumber_ios=3", &[REGION], 1);
        assert_eq!(holes.iter().map(|op| op.offset).collect::<Vec<_>>(), [8 * k, 520 * k, 8 * k]);
    }

    #[test]
    fn random_ops_hit_each_block_once_whatever_the_sizes() {
        for sizes in ["bs=4k", "bsrange=4k-16k", "bssplit=4k/10:64k/50:32k/40", "bs=4k,8k\nrw=randrw"] {
            let of = ops(&format!("rw=randread\n{sizes}"), &[REGION], 5);
            assert!(covers(&of, REGION), "{sizes}");
            assert!(of.windows(2).any(|pair| pair[1].offset < pair[0].offset));
        }
    }

    #[test]
    fn the_seed_decides_and_nothing_else() {
        let text = "rw=randrw\nbs=4k\nrandom_distribution=zipf:1.1";
        assert_eq!(ops(text, &[REGION], 7), ops(text, &[REGION], 7));
        assert_ne!(ops(text, &[REGION], 7), ops(text, &[REGION], 8));
    }

    #[test]
    fn a_mix_has_its_share_of_reads() {
        let of = ops("rw=randrw\nrwmixread=70\nbs=4k\nloops=100", &[REGION], 3);
        let reads = of.iter().filter(|op| op.kind == OpKind::Read).count() as f64 / of.len() as f64;
        assert!((reads - 0.7).abs() < 0.02, "{reads}");
    }

    #[test]
    fn files_take_turns() {
        let regions = [Region { start: 0, bytes: 16384 }; 3];
        let files = |service: &str| -> Vec<u32> {
            ops(&format!("rw=read\nbs=4k\n{service}"), &regions, 1).iter().map(|op| op.file).collect()
        };
        assert_eq!(files("file_service_type=roundrobin")[..6], [0, 1, 2, 0, 1, 2]);
        assert_eq!(files("file_service_type=sequential"), [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]);
    }

    #[test]
    fn io_size_and_number_ios_end_the_stream() {
        assert_eq!(ops("rw=randread\nbs=4k\nio_size=64k", &[REGION], 1).len(), 16);
        assert_eq!(ops("rw=randread\nbs=4k\nio_size=4m", &[REGION], 1).len(), 1024);
        assert_eq!(ops("rw=read\nbs=4k\nnumber_ios=5", &[REGION], 1).len(), 5);
        assert_eq!(ops("rw=read\nbs=4k\nio_size=50%", &[REGION], 1).len(), 128);
    }

    proptest::proptest! {
        #[test]
        fn every_op_lies_in_its_region(
            seed: u64, start in 0u64..1000, kib in 64u64..2000,
            order in "(rand)?(read|write|rw)", sizes in "(bs=4k|bsrange=1k-9k|bssplit=512/50:64k/50|bsrange=1k-9k\nbs_unaligned=1)",
            more in "(|norandommap|random_distribution=zipf:0\\.9|random_distribution=normal:30|percentage_random=30|blockalign=2k)",
        ) {
            let region = Region { start: start * 512, bytes: kib << 10 };
            for op in ops(&format!("rw={order}\n{sizes}\n{more}\nloops=3\nnumber_ios=2000"), &[region], seed) {
                proptest::prop_assert!(op.length > 0 && op.offset >= region.start);
                proptest::prop_assert!(op.offset + u64::from(op.length) <= region.start + region.bytes);
            }
        }
    }
}
