//! A device in memory below the real code: a table of functions in place of libibverbs, and a `struct ibv_context` whose
//! post and poll functions record what they get.
//!
//! Owns: one [`Stub`] per thread at a time. For tests of what the provider hands to a device, and for counting what the
//! layers above cost ([`Stub::quick`], [`raw_round`]).
//!
//! Invariants
//! - Every object is made and destroyed exactly once, its children before it; [`Stub`] asserts it when it is dropped, but
//!   for those that a test wants leaked.
//! - In quick mode posting and polling take no lock and allocate nothing: a chain is walked and its ids go into a ring.
//!   Use it from one thread.

mod functions;

use std::cell::Cell;
use std::ffi::c_int;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::abi::*;
use super::completion_queue::CompletionQueue;
use super::device::Context;
use super::library::Verbs;
use super::queue_pair::QueuePair;
use super::sysfs::Sysfs;
use crate::Error;
use crate::device::OpenOptions;

/// The device's name.
pub(crate) const NAME: &str = "stub0";
/// Its GIDs: a version 1 one, link-local, IPv4, IPv6; then an unset entry.
pub(crate) const GIDS: [(&str, &str); 5] = [
    ("fe80:0000:0000:0000:5054:00ff:fe12:3456", "IB/RoCE v1"),
    ("fe80:0000:0000:0000:5054:00ff:fe12:3456", "RoCE v2"),
    ("0000:0000:0000:0000:0000:ffff:c000:0207", "RoCE v2"),
    ("2001:0db8:0000:0000:0000:0000:0000:0007", "RoCE v2"),
    ("0000:0000:0000:0000:0000:0000:0000:0000", ""),
];
/// The most inline bytes it takes.
pub(crate) const INLINE_BYTES_MAX: u32 = 300;

/// A posted work request, copied out of its chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Posted {
    pub queue: u32,
    pub id: u64,
    pub opcode: c_int,
    pub flags: u32,
    pub pieces: Vec<ibv_sge>,
    /// What inline pieces pointed to.
    pub inline: Vec<u8>,
    /// As it is in memory: big endian.
    pub imm_data: u32,
    pub remote_addr: u64,
    pub rkey: u32,
    pub compare_add: u64,
    pub swap: u64,
    /// Which chain it came in.
    pub chain: usize,
}

/// How many objects of each kind there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Live {
    pub contexts: u32,
    pub domains: u32,
    pub regions: u32,
    pub channels: u32,
    pub completion_queues: u32,
    pub shared_receive_queues: u32,
    pub queue_pairs: u32,
}

/// What may fail to be destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Region,
    CompletionQueue,
    SharedReceiveQueue,
    QueuePair,
}

/// What a stub was asked and will answer.
#[derive(Default)]
pub(crate) struct Record {
    pub live: Live,
    /// What is to be left when the stub is dropped.
    pub leaked: Live,
    pub sent: Vec<Posted>,
    pub received: Vec<Posted>,
    pub modified: Vec<(ibv_qp_attr, c_int)>,
    pub completions: std::collections::VecDeque<ibv_wc>,
    pub chains: usize,
    pub armed: u32,
    pub acknowledged: u32,
    /// Accept that many more requests, then answer with this error number.
    pub refuse_after: Option<(usize, c_int)>,
    /// Answer this to the next `ibv_modify_qp` of that state.
    pub refuse_step: Option<(c_int, c_int)>,
    /// Answer this to polling.
    pub refuse_poll: Option<c_int>,
    /// Answer this to the next request for the list.
    pub refuse_list: Option<c_int>,
    /// How often the list has the device.
    pub devices: usize,
    /// Open it that many times more, then fail once with this error number.
    pub refuse_open: Option<(usize, c_int)>,
    /// Answer this to the next destroying of an object of that kind, which stays.
    pub refuse_destroy: Option<(Kind, c_int)>,
    /// The largest message.
    pub message_bytes_max: u32,
    pub link_layer: u8,
    pub port_state: c_int,
    pub atomic_cap: c_int,
    /// Which object, by address, uses which.
    uses: Vec<(usize, usize)>,
    next_number: u32,
}

impl Record {
    fn made(&mut self, object: usize, uses: &[usize]) {
        self.uses.extend(uses.iter().map(|used| (object, *used)));
    }

    fn destroyed(&mut self, object: usize) {
        assert!(self.uses.iter().all(|(_, used)| *used != object), "destroyed before what uses it");
        self.uses.retain(|(user, _)| *user != object);
    }
}

const RING: usize = 4096;

/// What the C side sees: the context first, so that a pointer to it is a pointer to all.
#[repr(C)]
struct Device {
    context: ibv_context,
    raw: ibv_device,
    quick: Cell<bool>,
    ring: [Cell<u64>; RING],
    head: Cell<usize>,
    tail: Cell<usize>,
    record: Mutex<Record>,
}

thread_local! {
    /// Whose list `ibv_get_device_list` gives on this thread.
    static CURRENT: Cell<*mut Device> = const { Cell::new(std::ptr::null_mut()) };
}

/// A device in memory, found by `ibv_get_device_list` on the thread that made it.
pub(crate) struct Stub {
    device: *mut Device,
    sysfs: PathBuf,
}

impl Stub {
    /// One with RoCE.
    pub(crate) fn new() -> Stub {
        Stub::with_transport(value::TRANSPORT_IB)
    }

    /// One of any `enum ibv_transport_type`.
    pub(crate) fn with_transport(transport: c_int) -> Stub {
        let record = Record {
            message_bytes_max: 1 << 23,
            link_layer: value::LINK_LAYER_ETHERNET,
            port_state: value::PORT_ACTIVE,
            atomic_cap: 1,
            next_number: 17,
            devices: 1,
            ..Record::default()
        };
        let device = Box::into_raw(Box::new(Device {
            context: functions::context(),
            raw: functions::device(NAME, transport),
            quick: Cell::new(false),
            ring: [const { Cell::new(0) }; RING],
            head: Cell::new(0),
            tail: Cell::new(0),
            record: Mutex::new(record),
        }));
        // SAFETY: just made; nobody else has it.
        unsafe { (*device).context.device = &raw mut (*device).raw };
        CURRENT.set(device);
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let sysfs = std::env::temp_dir().join(format!("verbs-shim-stub-{}-{number}", std::process::id()));
        let stub = Stub { device, sysfs };
        for (index, (gid, kind)) in GIDS.into_iter().enumerate() {
            stub.describe(&format!("ports/1/gids/{index}"), gid);
            if !kind.is_empty() {
                stub.describe(&format!("ports/1/gid_attrs/types/{index}"), kind);
                stub.describe(&format!("ports/1/gid_attrs/ndevs/{index}"), "eth7");
            }
        }
        stub
    }

    /// Writes a file of the device's tree in `/sys`.
    pub(crate) fn describe(&self, path: &str, line: &str) {
        let path = self.sysfs.join(NAME).join(path);
        fs::create_dir_all(path.parent().expect("a path below the tree")).expect("a folder for the stub");
        fs::write(path, format!("{line}\n")).expect("a file for the stub");
    }

    /// Removes all GIDs.
    pub(crate) fn forget_gids(&self) {
        fs::remove_dir_all(self.sysfs.join(NAME).join("ports/1/gids")).expect("the stub's GIDs");
    }

    pub(super) fn verbs(&self) -> &'static Verbs {
        &functions::VERBS
    }

    pub(super) fn sysfs(&self) -> Sysfs {
        Sysfs(self.sysfs.clone())
    }

    /// Opens it.
    ///
    /// # Errors
    /// As [`Context::open`].
    pub(crate) fn open(&self, options: &OpenOptions) -> Result<Arc<Context>, Error> {
        Context::open_by(self.verbs(), &self.sysfs(), NAME, options)
    }

    /// What it was asked, and what it will answer.
    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        // SAFETY: the device lives until `self` is dropped.
        unsafe { &(*self.device).record }.lock().expect("no panic in the stub")
    }

    /// What an id of librdmacm points to once it is resolved to this device.
    pub(super) fn context(&self) -> *mut ibv_context {
        self.device.cast()
    }

    /// From now on every posted send request completes at once, at any completion queue of the device.
    pub(crate) fn quick(&self) {
        // SAFETY: as above.
        unsafe { (*self.device).quick.set(true) };
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        let Record { live, leaked, .. } = *self.record();
        if CURRENT.get() == self.device {
            CURRENT.set(std::ptr::null_mut());
        }
        let _ = fs::remove_dir_all(&self.sysfs);
        if !std::thread::panicking() {
            assert_eq!(live, leaked, "objects that were not destroyed before the stub");
            if leaked == Live::default() {
                // SAFETY: from `Box::into_raw`, and nothing points to it any more.
                drop(unsafe { Box::from_raw(self.device) });
            }
        }
    }
}

/// Makes the completion queue's descriptor readable, as an event would.
pub(crate) fn signal(queue: &CompletionQueue) {
    // SAFETY: the channel's descriptor is an eventfd.
    let written = unsafe { libc::eventfd_write(std::os::fd::AsRawFd::as_raw_fd(&queue.as_fd()), 1) };
    assert_eq!(written, 0);
}

/// What a program on bare libibverbs does for one signalled 8-byte WRITE: fills a request, posts it, polls once. To be
/// subtracted from the same through the layers above.
///
/// # Panics
/// If the stub does not complete it.
#[inline(never)]
pub(crate) fn raw_round(queue_pair: &QueuePair, completions: &CompletionQueue, id: u64, piece: ibv_sge) -> u64 {
    let mut piece = piece;
    let mut request = ibv_send_wr {
        wr_id: id,
        next: std::ptr::null_mut(),
        sg_list: &mut piece,
        num_sge: 1,
        opcode: value::WR_RDMA_WRITE,
        send_flags: value::SEND_SIGNALED,
        imm_data: 0,
        wr: ibv_send_wr_union { rdma: ibv_wr_rdma { remote_addr: 4096, rkey: 7 } },
        _qp_type_and_bind: [0; 7],
    };
    let mut bad = std::ptr::null_mut();
    // SAFETY: all objects are alive; request and piece outlive the call; `wc` is a place for one completion.
    unsafe {
        let (queue_pair, queue) = (queue_pair.raw(), completions.raw());
        let mut wc: ibv_wc = std::mem::zeroed();
        let posted = (*(*queue_pair).context).ops.post_send.map(|post| post(queue_pair, &mut request, &mut bad));
        let polled = (*(*queue).context).ops.poll_cq.map(|poll| poll(queue, 1, &mut wc));
        assert!(posted == Some(0) && polled == Some(1) && wc.status == 0);
        wc.wr_id
    }
}
