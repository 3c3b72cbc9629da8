//! The ring and its device against real files, on a real executor.
//!
//! And against the NVMe namespace that `HELIOSTAT_NVME_NAMESPACE` names, `/dev/ngXnY`, what is on it is lost; polled when it
//! has poll queues. `hw/vm/passthrough` runs them so, one after another.

use std::{
    fs::File,
    future::Future,
    io::Write,
    path::{Path, PathBuf},
    rc::Rc,
};

use futures_lite::future::poll_once;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    AlignedBuf, BLOCK_BYTES, Device, DeviceError,
    file::FileDevice,
    nvme::{self, Namespace},
    requests::{Buffer, Failure, Operation},
    ring::Ring,
    uring::UringDevice,
};
use crate::arena::Arena;

/// A folder on the file system of the build, which has O_DIRECT where `/tmp` may be a tmpfs.
fn folder() -> tempfile::TempDir {
    let beside_the_test = std::env::current_exe().unwrap().parent().map(Path::to_owned);
    tempfile::Builder::new().prefix("ring-").tempdir_in(beside_the_test.unwrap_or_else(std::env::temp_dir)).unwrap()
}

fn on_executor<T: 'static>(test: impl Future<Output = T> + 'static) -> T {
    glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound).io_memory(1 << 20).make().unwrap().run(test)
}

/// The byte at an offset of a pattern file.
fn pattern(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn pattern_file(folder: &tempfile::TempDir, bytes: u64) -> PathBuf {
    let path = folder.path().join("volume");
    let content: Vec<u8> = (0..bytes).map(pattern).collect();
    let mut file = File::create(&path).unwrap();
    file.write_all(&content).unwrap();
    file.sync_all().unwrap();
    path
}

/// The namespace that may be overwritten.
fn namespace() -> Option<PathBuf> {
    std::env::var_os("HELIOSTAT_NVME_NAMESPACE").map(PathBuf::from)
}

/// A file with the pattern, and the namespace, if there is one, with as much of it.
fn pattern_volumes(folder: &tempfile::TempDir, bytes: u64) -> Vec<PathBuf> {
    let file = pattern_file(folder, bytes);
    let namespace = namespace().inspect(|path| {
        let content = std::fs::read(&file).unwrap();
        FileDevice::open(path).unwrap().write_all_at(&content, 0).unwrap();
    });
    [file].into_iter().chain(namespace).collect()
}

fn is_pattern(offset: u64, bytes: &[u8]) -> bool {
    bytes.iter().zip(offset..).all(|(byte, at)| *byte == pattern(at))
}

fn open(path: &Path, arena_bytes: usize, queue_depth: u32) -> (Arena, UringDevice) {
    let arena = Arena::new(arena_bytes).unwrap();
    let is_polled = Namespace::can_be_polled(path);
    let ring = if is_polled { Ring::polled(&arena, queue_depth) } else { Ring::new(&arena, queue_depth) }.unwrap();
    let device = UringDevice::open(path, &ring).unwrap();
    (arena, device)
}

#[test]
fn what_is_written_and_flushed_is_read_back_whatever_its_length() {
    let folder = folder();
    let path = folder.path().join("volume");
    File::create(&path).unwrap().set_len(64 << 20).unwrap();
    [path].into_iter().chain(namespace()).for_each(write_and_read_back);
}

fn write_and_read_back(path: PathBuf) {
    on_executor(async move {
        // The arena spans three registered regions, so that long reads cross their borders.
        let (_arena, device) = open(&path, 40 << 20, 16);
        assert!(device.size_bytes() >= 64 << 20);
        for (offset, length) in [(0, 4096), (4096, 5 << 20), ((9 << 20) + 4096, (33 << 20) + 12288)] {
            let content: Vec<u8> = (offset..offset + length as u64).map(pattern).collect();
            device.write(offset, AlignedBuf::from_slice(&content)).await.unwrap();
            device.flush().await.unwrap();
            let back = device.read(offset, length).await.unwrap();
            assert!(back == content, "{length} bytes at {offset} came back different");
        }
        // Read in another way.
        let mut start = [0; 1000];
        FileDevice::open(&path).unwrap().read_exact_at(&mut start, (9 << 20) + 4096).unwrap();
        assert!(is_pattern(9 << 20 | 4096, &start));
    });
}

#[test]
fn many_concurrent_random_reads_return_their_own_bytes() {
    let folder = folder();
    pattern_volumes(&folder, 8 << 20).into_iter().for_each(read_at_random);
}

fn read_at_random(path: PathBuf) {
    on_executor(async move {
        let (arena, device) = open(&path, 64 << 20, 8);
        let mut random = StdRng::seed_from_u64(7);
        for _ in 0..4 {
            let reads = (0..500).map(|_| {
                let length = random.random_range(1..20) * BLOCK_BYTES;
                let offset = random.random_range(0..(8 << 20) / BLOCK_BYTES as u64 - 20) * BLOCK_BYTES as u64;
                let device = device.clone();
                async move { is_pattern(offset, &device.read(offset, length).await.unwrap()) }
            });
            assert!(futures::future::join_all(reads).await.into_iter().all(|right| right));
        }
        assert_eq!(arena.bytes_in_use(), 0);
    });
}

#[test]
fn adjacent_parts_live_and_die_by_themselves() {
    let folder = folder();
    pattern_volumes(&folder, 1 << 20).into_iter().for_each(read_parts);
}

fn read_parts(path: PathBuf) {
    on_executor(async move {
        let (arena, device) = open(&path, 1 << 20, 8);
        let mut parts = device.read_parts(8192, &[4096, 12288, 4096]).await.unwrap();
        assert!(is_pattern(8192, &parts[0]) && is_pattern(12288, &parts[1]) && is_pattern(24576, &parts[2]));
        assert_eq!(arena.bytes_in_use(), 5 * 4096);
        parts.remove(1);
        assert_eq!(arena.bytes_in_use(), 2 * 4096);
        assert!(matches!(device.read_parts(0, &[4096, 5]).await, Err(DeviceError::Unaligned { .. })));
    });
}

#[test]
fn futures_dropped_in_flight_lend_no_memory_that_the_kernel_still_writes() {
    let folder = folder();
    pattern_volumes(&folder, 16 << 20).into_iter().for_each(drop_in_flight);
}

fn drop_in_flight(path: PathBuf) {
    on_executor(async move {
        let (arena, device) = open(&path, 24 << 20, 4);
        for round in 0..50u64 {
            for lost in 0..4 {
                let mut read = Box::pin(device.read(lost << 20, 1 << 20));
                // Started, and dropped before or after it went to the kernel.
                assert!(poll_once(&mut read).await.is_none());
                if round % 2 == 0 {
                    glommio::executor().yield_now().await;
                }
            }
            // These get other memory, or memory that came back: their bytes must be their own to the end.
            let kept = futures::future::join_all((0..4).map(|at| device.read((8 + at) << 20, 1 << 20))).await;
            for (at, bytes) in kept.into_iter().enumerate() {
                assert!(is_pattern((8 + at as u64) << 20, &bytes.unwrap()), "round {round}");
            }
        }
        while arena.bytes_in_use() > 0 {
            glommio::timer::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert!(arena.allocate(24 << 20).is_some());
    });
}

#[test]
fn a_ring_that_is_dropped_waits_for_the_kernel() {
    let folder = folder();
    pattern_volumes(&folder, 16 << 20).into_iter().for_each(drop_ring);
}

fn drop_ring(path: PathBuf) {
    on_executor(async move {
        let (arena, device) = open(&path, 16 << 20, 64);
        let mut reads: Vec<_> = (0..12)
            .map(|at| {
                let device = device.clone();
                Box::pin(async move { device.read(at << 20, 1 << 20).await })
            })
            .collect();
        for read in &mut reads {
            assert!(poll_once(read).await.is_none());
        }
        glommio::executor().yield_now().await;
        drop((reads, device));
        assert_eq!(arena.bytes_in_use(), 0);
    });
}

#[test]
fn errors_say_where_they_were() {
    let folder = folder();
    let path = pattern_file(&folder, 1 << 20);
    on_executor(async move {
        let (_arena, device) = open(&path, 1 << 20, 8);
        assert!(matches!(device.read(1, 4096).await, Err(DeviceError::Unaligned { operation: "read", .. })));
        let past = device.read((1 << 20) - 4096, 8192).await.unwrap_err();
        assert_eq!(past, DeviceError::Short { path: path.clone(), offset: (1 << 20) - 4096, length: 8192, got: 4096 });
        let past = device.write(1 << 20, AlignedBuf::zeroed(4096)).await.unwrap_err();
        assert!(matches!(past, DeviceError::Short { got: 0, .. }), "{past}");
        assert!(matches!(device.read(0, 1 << 20).await, Ok(bytes) if bytes.len() == 1 << 20));
        let _held = device.read(0, 512 << 10).await.unwrap();
        let full = device.read(0, 1 << 20).await.unwrap_err();
        assert!(matches!(full, DeviceError::ArenaFull { in_use: 524_288, limit: 1_048_576, .. }), "{full}");
        // Truncated behind the device's back: the kernel's short read is found.
        File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
        let cut = device.read(4096, 16384).await.unwrap_err();
        assert!(matches!(cut, DeviceError::Short { offset: 4096, length: 16384, got: 4096, .. }), "{cut}");
        let missing =
            UringDevice::open(Path::new("/dev/heliostat-missing"), &Ring::new(&Arena::new(4096).unwrap(), 1).unwrap());
        assert!(matches!(missing, Err(DeviceError::Io { operation: "open", errno: libc::ENOENT, .. })));
    });
}

#[test]
fn a_device_is_shared_by_tasks_of_its_core() {
    let folder = folder();
    pattern_volumes(&folder, 4 << 20).into_iter().for_each(share_by_tasks);
}

fn share_by_tasks(path: PathBuf) {
    on_executor(async move {
        let (_arena, device) = open(&path, 8 << 20, 2);
        let done = Rc::new(std::cell::Cell::new(0));
        let tasks: Vec<_> = (0..8u64)
            .map(|task| {
                let (device, done) = (device.clone(), done.clone());
                glommio::spawn_local(async move {
                    for at in 0..32 {
                        let offset = (at * 8 + task) * 4096;
                        assert!(is_pattern(offset, &device.read(offset, 4096).await.unwrap()));
                    }
                    done.set(done.get() + 1);
                })
            })
            .collect();
        futures::future::join_all(tasks).await;
        assert_eq!(done.get(), 8);
    });
}

#[test]
fn a_namespace_and_its_block_device_are_the_same_bytes() {
    let Some(path) = namespace() else { return };
    let block_device = nvme::block_device_of(&path).unwrap().unwrap();
    on_executor(async move {
        let (_arena, past) = open(&path, 8 << 20, 8);
        let (_other, through) = open(&block_device, 8 << 20, 8);
        assert_eq!(past.size_bytes(), through.size_bytes());
        let mut random = StdRng::seed_from_u64(11);
        let end = past.size_bytes() / BLOCK_BYTES as u64;
        for round in 0..40u8 {
            // The last blocks of the drive, too.
            let blocks = random.random_range(1..700);
            let first = if round == 0 { end - blocks } else { random.random_range(0..end - blocks) };
            let (offset, length) = (first * BLOCK_BYTES as u64, blocks as usize * BLOCK_BYTES);
            let content: Vec<u8> = (0..length).map(|_| random.random()).collect();
            let (writer, reader) = if round % 2 == 0 { (&past, &through) } else { (&through, &past) };
            writer.write(offset, AlignedBuf::from_slice(&content)).await.unwrap();
            writer.flush().await.unwrap();
            assert!(reader.read(offset, length).await.unwrap() == content, "round {round}: {length} bytes at {offset}");
        }
    });
}

#[test]
fn a_drive_that_refuses_a_command_says_why() {
    let Some(path) = namespace() else { return };
    on_executor(async move {
        let (arena, device) = open(&path, 1 << 20, 8);
        let end = device.size_bytes();
        // As if the namespace had become smaller since it was opened: past the check of the range.
        let buffer = Buffer::Arena(arena.allocate(8192).unwrap());
        let refused = device.ring().start(Operation::Read, device.target(), end - 4096, buffer).await;
        let Err(failure @ Failure::Status { status, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!((status.kind(), status.code()), (0, 0x80));
        let text = device.error("read", end - 4096, 8192, failure).to_string();
        assert!(text.contains("behind the end of the namespace") && text.contains("ng"), "{text}");
        assert!(matches!(device.read(end, 4096).await, Err(DeviceError::Short { got: 0, .. })));
        let blocking = FileDevice::open(&path).unwrap().read_exact_at(&mut [0; 8192], end - 4096).unwrap_err();
        assert!(matches!(blocking, DeviceError::Command { status: again, .. } if again == status), "{blocking}");
    });
}
