//! The stub's functions, as C calls them.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::MutexGuard;

use super::{CURRENT, Device, INLINE_BYTES_MAX, Kind, Posted, RING, Record};
use crate::ibv::abi::*;
use crate::ibv::library::Verbs;

pub(super) static VERBS: Verbs = Verbs {
    get_device_list,
    free_device_list,
    get_device_name,
    open_device,
    close_device,
    query_device,
    query_port,
    alloc_pd,
    dealloc_pd,
    reg_mr,
    dereg_mr,
    create_comp_channel,
    destroy_comp_channel,
    create_cq,
    destroy_cq,
    get_cq_event,
    ack_cq_events,
    create_srq,
    destroy_srq,
    create_qp,
    destroy_qp,
    modify_qp,
    query_qp,
};

pub(super) fn context() -> ibv_context {
    // SAFETY: pointers, integers and optional functions, for which zero is a value.
    let mut context: ibv_context = unsafe { std::mem::zeroed() };
    context.ops.poll_cq = Some(poll_cq);
    context.ops.req_notify_cq = Some(req_notify_cq);
    context.ops.post_send = Some(post_send);
    context.ops.post_recv = Some(post_recv);
    context.ops.post_srq_recv = Some(post_srq_recv);
    context
}

pub(super) fn device(name: &str, transport: c_int) -> ibv_device {
    // SAFETY: as above.
    let mut device: ibv_device = unsafe { std::mem::zeroed() };
    device.transport_type = transport;
    for (to, from) in device.name.iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    device
}

/// # Safety
/// The context is a live stub's, as those of all objects that the functions below are called with.
unsafe fn of<'a>(context: *mut ibv_context) -> &'a Device {
    // SAFETY: the context is the first field of its device.
    unsafe { &*context.cast::<Device>() }
}

/// # Safety
/// As [`of`].
unsafe fn record<'a>(context: *mut ibv_context) -> MutexGuard<'a, Record> {
    // SAFETY: the caller's promise.
    unsafe { of(context) }.record.lock().expect("no panic in the stub")
}

fn fail<T>(error: c_int) -> *mut T {
    // SAFETY: this thread's error number.
    unsafe { *libc::__errno_location() = error };
    std::ptr::null_mut()
}

fn made<T>(object: T) -> *mut T {
    Box::into_raw(Box::new(object))
}

/// Places of the list.
const LIST: usize = 2;

unsafe extern "C" fn get_device_list(count: *mut c_int) -> *mut *mut ibv_device {
    let device = CURRENT.get();
    if device.is_null() {
        return fail(libc::ENOSYS);
    }
    // SAFETY: a place for the answer, and a live device.
    unsafe {
        let mut record = (*device).record.lock().expect("no panic in the stub");
        if let Some(error) = record.refuse_list.take() {
            return fail(error);
        }
        *count = record.devices as c_int;
        made([&raw mut (*device).raw; LIST]).cast()
    }
}

unsafe extern "C" fn free_device_list(list: *mut *mut ibv_device) {
    // SAFETY: from `get_device_list`.
    drop(unsafe { Box::from_raw(list.cast::<[*mut ibv_device; LIST]>()) });
}

unsafe extern "C" fn get_device_name(device: *mut ibv_device) -> *const c_char {
    // SAFETY: a live device.
    unsafe { (&raw const (*device).name).cast() }
}

unsafe extern "C" fn open_device(_: *mut ibv_device) -> *mut ibv_context {
    let context = CURRENT.get().cast::<ibv_context>();
    // SAFETY: the caller got this device from the list.
    let mut record = unsafe { record(context) };
    if let Some(error) = counted_down(&mut record.refuse_open) {
        return fail(error);
    }
    record.live.contexts += 1;
    context
}

unsafe extern "C" fn close_device(context: *mut ibv_context) -> c_int {
    // SAFETY: a live context.
    let mut record = unsafe { record(context) };
    record.live.contexts -= 1;
    if record.live.contexts == 0 {
        record.destroyed(context as usize);
    }
    0
}

unsafe extern "C" fn query_device(context: *mut ibv_context, into: *mut ibv_device_attr) -> c_int {
    // SAFETY: a live context and a place for the answer; zero is a value.
    unsafe {
        *into = ibv_device_attr {
            max_qp: 1000,
            max_qp_wr: 8192,
            max_sge: 30,
            max_cqe: 65536,
            max_mr: 5000,
            max_qp_rd_atom: 16,
            max_qp_init_rd_atom: 12,
            atomic_cap: record(context).atomic_cap,
            max_srq: 100,
            phys_port_cnt: 1,
            ..std::mem::zeroed()
        };
    }
    0
}

unsafe extern "C" fn query_port(context: *mut ibv_context, port: u8, into: *mut ibv_port_attr) -> c_int {
    if port != 1 {
        return libc::EINVAL;
    }
    // SAFETY: as above.
    unsafe {
        let record = record(context);
        *into = ibv_port_attr {
            state: record.port_state,
            max_mtu: 5,
            active_mtu: 4,
            gid_tbl_len: 5,
            max_msg_sz: record.message_bytes_max,
            lid: 33,
            link_layer: record.link_layer,
            ..std::mem::zeroed()
        };
    }
    0
}

unsafe extern "C" fn alloc_pd(context: *mut ibv_context) -> *mut ibv_pd {
    let domain = made(ibv_pd { context, handle: 1 });
    // SAFETY: a live context.
    let mut record = unsafe { record(context) };
    record.live.domains += 1;
    record.made(domain as usize, &[context as usize]);
    domain
}

unsafe extern "C" fn dealloc_pd(domain: *mut ibv_pd) -> c_int {
    // SAFETY: from `alloc_pd`, of a live context.
    let mut record = unsafe { record(Box::from_raw(domain).context) };
    record.destroyed(domain as usize);
    record.live.domains -= 1;
    0
}

unsafe extern "C" fn reg_mr(domain: *mut ibv_pd, addr: *mut c_void, length: usize, access: c_int) -> *mut ibv_mr {
    if length == 0 || access & !15 != 0 {
        return fail(libc::EINVAL);
    }
    // SAFETY: a live domain of a live context.
    let (context, mut record) = unsafe { ((*domain).context, record((*domain).context)) };
    record.live.regions += 1;
    record.next_number += 1;
    let key = record.next_number;
    let region = made(ibv_mr { context, pd: domain, addr, length, handle: 0, lkey: key, rkey: key | 1 << 31 });
    record.made(region as usize, &[domain as usize]);
    region
}

unsafe extern "C" fn dereg_mr(region: *mut ibv_mr) -> c_int {
    // SAFETY: from `reg_mr`, of a live context.
    if let Some(error) = unsafe { stays((*region).context, Kind::Region) } {
        return error;
    }
    // SAFETY: as above.
    let mut record = unsafe { record(Box::from_raw(region).context) };
    record.destroyed(region as usize);
    record.live.regions -= 1;
    0
}

unsafe extern "C" fn create_comp_channel(context: *mut ibv_context) -> *mut ibv_comp_channel {
    // SAFETY: an eventfd that counts down one event a read.
    let fd = unsafe { libc::eventfd(0, libc::EFD_SEMAPHORE) };
    let channel = made(ibv_comp_channel { context, fd, refcnt: 0 });
    // SAFETY: a live context.
    let mut record = unsafe { record(context) };
    record.live.channels += 1;
    record.made(channel as usize, &[context as usize]);
    channel
}

unsafe extern "C" fn destroy_comp_channel(channel: *mut ibv_comp_channel) -> c_int {
    // SAFETY: from `create_comp_channel`, of a live context.
    let mut record = unsafe {
        libc::close((*channel).fd);
        record(Box::from_raw(channel).context)
    };
    record.destroyed(channel as usize);
    record.live.channels -= 1;
    0
}

unsafe extern "C" fn create_cq(
    context: *mut ibv_context,
    cqe: c_int,
    cq_context: *mut c_void,
    channel: *mut ibv_comp_channel,
    _vector: c_int,
) -> *mut ibv_cq {
    let queue = made(ibv_cq { context, channel, cq_context, handle: 0, cqe: cqe + 1 });
    // SAFETY: a live context.
    let mut record = unsafe { record(context) };
    record.live.completion_queues += 1;
    record.made(queue as usize, &[context as usize, channel as usize]);
    queue
}

unsafe extern "C" fn destroy_cq(queue: *mut ibv_cq) -> c_int {
    // SAFETY: from `create_cq`, of a live context.
    if let Some(error) = unsafe { stays((*queue).context, Kind::CompletionQueue) } {
        return error;
    }
    // SAFETY: as above.
    let mut record = unsafe { record(Box::from_raw(queue).context) };
    record.destroyed(queue as usize);
    record.live.completion_queues -= 1;
    0
}

unsafe extern "C" fn get_cq_event(
    channel: *mut ibv_comp_channel,
    queue: *mut *mut ibv_cq,
    _cookie: *mut *mut c_void,
) -> c_int {
    let mut count = 0;
    // SAFETY: a live channel, whose descriptor is an eventfd. The stub knows only one queue, that of the caller, who
    // asserts that it is: so the answer is left out where it cannot be known.
    unsafe {
        if libc::eventfd_read((*channel).fd, &mut count) != 0 {
            return -1;
        }
        *queue = EVENT_OF.get();
    }
    0
}

thread_local! {
    /// The queue that was armed last on this thread: whose events come.
    static EVENT_OF: std::cell::Cell<*mut ibv_cq> = const { std::cell::Cell::new(std::ptr::null_mut()) };
}

unsafe extern "C" fn ack_cq_events(queue: *mut ibv_cq, count: c_uint) {
    // SAFETY: a live queue of a live context.
    unsafe { record((*queue).context) }.acknowledged += count;
}

unsafe extern "C" fn create_srq(domain: *mut ibv_pd, _: *mut ibv_srq_init_attr) -> *mut ibv_srq {
    // SAFETY: a live domain of a live context.
    let context = unsafe { (*domain).context };
    let queue = made(ibv_srq { context, srq_context: std::ptr::null_mut(), pd: domain, handle: 0 });
    // SAFETY: as above.
    let mut record = unsafe { record(context) };
    record.live.shared_receive_queues += 1;
    record.made(queue as usize, &[domain as usize]);
    queue
}

unsafe extern "C" fn destroy_srq(queue: *mut ibv_srq) -> c_int {
    // SAFETY: from `create_srq`, of a live context.
    if let Some(error) = unsafe { stays((*queue).context, Kind::SharedReceiveQueue) } {
        return error;
    }
    // SAFETY: as above.
    let mut record = unsafe { record(Box::from_raw(queue).context) };
    record.destroyed(queue as usize);
    record.live.shared_receive_queues -= 1;
    0
}

/// A queue pair and what the beginning of `struct ibv_qp` has no field for.
#[repr(C)]
struct QueuePair {
    raw: ibv_qp,
    state: c_int,
}

unsafe extern "C" fn create_qp(domain: *mut ibv_pd, attributes: *mut ibv_qp_init_attr) -> *mut ibv_qp {
    // SAFETY: a live domain of a live context, attributes to read.
    unsafe {
        let ibv_qp_init_attr { send_cq, recv_cq, srq, cap, .. } = *attributes;
        if cap.max_inline_data > INLINE_BYTES_MAX {
            return fail(libc::EINVAL);
        }
        let context = (*domain).context;
        let mut record = record(context);
        record.live.queue_pairs += 1;
        record.next_number += 1;
        let raw = ibv_qp {
            context,
            qp_context: std::ptr::null_mut(),
            pd: domain,
            send_cq,
            recv_cq,
            srq,
            handle: 0,
            qp_num: record.next_number,
        };
        let pair: *mut ibv_qp = made(QueuePair { raw, state: value::QPS_RESET }).cast();
        record.made(pair as usize, &[domain as usize, send_cq as usize, recv_cq as usize, srq as usize]);
        pair
    }
}

unsafe extern "C" fn destroy_qp(queue_pair: *mut ibv_qp) -> c_int {
    // SAFETY: from `create_qp`, of a live context.
    if let Some(error) = unsafe { stays((*queue_pair).context, Kind::QueuePair) } {
        return error;
    }
    // SAFETY: as above.
    let mut record = unsafe { record(Box::from_raw(queue_pair.cast::<QueuePair>()).raw.context) };
    record.destroyed(queue_pair as usize);
    record.live.queue_pairs -= 1;
    0
}

unsafe extern "C" fn modify_qp(queue_pair: *mut ibv_qp, attributes: *mut ibv_qp_attr, mask: c_int) -> c_int {
    // SAFETY: a live queue pair of a live context, attributes to read.
    unsafe {
        let mut record = record((*queue_pair).context);
        if let Some((_, error)) = record.refuse_step.take_if(|(state, _)| *state == (*attributes).qp_state) {
            return error;
        }
        record.modified.push((*attributes, mask));
        if mask & value::QP_STATE != 0 {
            (*queue_pair.cast::<QueuePair>()).state = (*attributes).qp_state;
        }
    }
    0
}

unsafe extern "C" fn query_qp(
    queue_pair: *mut ibv_qp,
    into: *mut ibv_qp_attr,
    _: c_int,
    _: *mut ibv_qp_init_attr,
) -> c_int {
    // SAFETY: a live queue pair and a place for the answer.
    unsafe { (*into).qp_state = (*queue_pair.cast::<QueuePair>()).state };
    0
}

unsafe extern "C" fn poll_cq(queue: *mut ibv_cq, count: c_int, into: *mut ibv_wc) -> c_int {
    // SAFETY: a live queue of a live context, and room for `count` completions.
    unsafe {
        let device = of((*queue).context);
        if device.quick.get() {
            let (mut head, tail) = (device.head.get(), device.tail.get());
            let taken = (tail - head).min(count as usize);
            for index in 0..taken {
                let at = into.add(index);
                (*at).wr_id = device.ring[head % RING].get();
                ((*at).status, (*at).opcode, (*at).qp_num, (*at).wc_flags) = (0, value::WC_RDMA_WRITE, 18, 0);
                head += 1;
            }
            device.head.set(head);
            return taken as c_int;
        }
        let mut record = record((*queue).context);
        if let Some(answer) = record.refuse_poll.take() {
            return answer;
        }
        let mut taken = 0;
        while taken < count {
            let Some(completion) = record.completions.pop_front() else { break };
            let at = into.add(taken as usize);
            if completion.status == 0 {
                at.write(completion);
            } else {
                // As some devices do: what means nothing is not written.
                ((*at).wr_id, (*at).status, (*at).qp_num) = (completion.wr_id, completion.status, completion.qp_num);
                if completion.opcode >= 0 {
                    (*at).opcode = completion.opcode;
                }
            }
            taken += 1;
        }
        taken
    }
}

unsafe extern "C" fn req_notify_cq(queue: *mut ibv_cq, _solicited_only: c_int) -> c_int {
    EVENT_OF.set(queue);
    // SAFETY: a live queue of a live context.
    unsafe { record((*queue).context) }.armed += 1;
    0
}

unsafe extern "C" fn post_send(queue_pair: *mut ibv_qp, first: *mut ibv_send_wr, bad: *mut *mut ibv_send_wr) -> c_int {
    // SAFETY: a live queue pair of a live context, a chain that ends with null, a place for the first refused request.
    unsafe {
        let device = of((*queue_pair).context);
        let mut next = first;
        if device.quick.get() {
            let mut tail = device.tail.get();
            while !next.is_null() {
                device.ring[tail % RING].set((*next).wr_id);
                (tail, next) = (tail + 1, (*next).next);
            }
            device.tail.set(tail);
            return 0;
        }
        let mut record = record((*queue_pair).context);
        record.chains += 1;
        while !next.is_null() {
            if let Some(error) = refused(&mut record) {
                *bad = next;
                return error;
            }
            let wr = &*next;
            let inline = wr.send_flags & value::SEND_INLINE != 0;
            let mut posted = Posted {
                opcode: wr.opcode,
                flags: wr.send_flags,
                imm_data: wr.imm_data,
                ..posted((*queue_pair).qp_num, record.chains, wr.wr_id, wr.sg_list, wr.num_sge)
            };
            if inline {
                for piece in &posted.pieces {
                    let bytes = std::slice::from_raw_parts(piece.addr as *const u8, piece.length as usize);
                    posted.inline.extend_from_slice(bytes);
                }
            }
            if matches!(wr.opcode, value::WR_ATOMIC_CMP_AND_SWP | value::WR_ATOMIC_FETCH_AND_ADD) {
                let atomic = wr.wr.atomic;
                (posted.remote_addr, posted.rkey) = (atomic.remote_addr, atomic.rkey);
                (posted.compare_add, posted.swap) = (atomic.compare_add, atomic.swap);
            } else {
                (posted.remote_addr, posted.rkey) = (wr.wr.rdma.remote_addr, wr.wr.rdma.rkey);
            }
            record.sent.push(posted);
            next = wr.next;
        }
    }
    0
}

unsafe extern "C" fn post_recv(queue_pair: *mut ibv_qp, first: *mut ibv_recv_wr, bad: *mut *mut ibv_recv_wr) -> c_int {
    // SAFETY: a live queue pair; for the chain the caller vouches.
    unsafe { receive((*queue_pair).context, (*queue_pair).qp_num, first, bad) }
}

unsafe extern "C" fn post_srq_recv(queue: *mut ibv_srq, first: *mut ibv_recv_wr, bad: *mut *mut ibv_recv_wr) -> c_int {
    // SAFETY: as above.
    unsafe { receive((*queue).context, 0, first, bad) }
}

/// # Safety
/// A live context, a chain that ends with null, a place for the first refused request.
unsafe fn receive(context: *mut ibv_context, queue: u32, first: *mut ibv_recv_wr, bad: *mut *mut ibv_recv_wr) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let (mut record, mut next) = (record(context), first);
        record.chains += 1;
        while !next.is_null() {
            if let Some(error) = refused(&mut record) {
                *bad = next;
                return error;
            }
            let wr = &*next;
            let request = posted(queue, record.chains, wr.wr_id, wr.sg_list, wr.num_sge);
            record.received.push(request);
            next = wr.next;
        }
    }
    0
}

fn refused(record: &mut Record) -> Option<c_int> {
    counted_down(&mut record.refuse_after)
}

fn counted_down(refuse: &mut Option<(usize, c_int)>) -> Option<c_int> {
    let (left, _) = refuse.as_mut()?;
    if *left == 0 {
        return refuse.take().map(|(_, error)| error);
    }
    *left -= 1;
    None
}

/// Whether the next destroying of that kind is to fail.
///
/// # Safety
/// As [`of`].
unsafe fn stays(context: *mut ibv_context, kind: Kind) -> Option<c_int> {
    // SAFETY: the caller's promise.
    unsafe { record(context) }.refuse_destroy.take_if(|(refused, _)| *refused == kind).map(|(_, error)| error)
}

/// # Safety
/// `count` pieces from `list`.
unsafe fn posted(queue: u32, chain: usize, id: u64, list: *mut ibv_sge, count: c_int) -> Posted {
    // SAFETY: the caller's promise; a dangling list of none is not followed.
    let pieces = unsafe { std::slice::from_raw_parts(list, count as usize) }.to_vec();
    Posted {
        queue,
        id,
        opcode: -1,
        flags: 0,
        pieces,
        inline: Vec::new(),
        imm_data: 0,
        remote_addr: 0,
        rkey: 0,
        compare_add: 0,
        swap: 0,
        chain,
    }
}
