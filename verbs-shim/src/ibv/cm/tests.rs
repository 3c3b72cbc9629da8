//! The steps of both sides against a scripted librdmacm. The real one is tested in the VM, over rxe and siw.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::io;

use super::abi::*;
use super::*;
use crate::connect::QueuePairOptions;
use crate::ibv::abi::{ibv_qp_attr, value};
use crate::ibv::completion_queue::CompletionQueue;
use crate::ibv::stub::Stub;
use crate::verbs::MemoryKey;

/// Event, status, depths that the peer answers with, private data.
type Answer = (c_int, c_int, (u8, u8), Vec<u8>);

#[derive(Default)]
struct Script {
    calls: Vec<&'static str>,
    answers: VecDeque<Answer>,
    iwarp: bool,
    verbs: usize,
    parameters: Option<rdma_conn_param>,
    sent_private: Vec<u8>,
    ids: i32,
    channels: i32,
    unacknowledged: i32,
}

thread_local! {
    static SCRIPT: RefCell<Script> = RefCell::new(Script::default());
}

fn script<T>(with: impl FnOnce(&mut Script) -> T) -> T {
    SCRIPT.with_borrow_mut(with)
}

#[repr(C)]
struct StubChannel {
    raw: rdma_event_channel,
    events: VecDeque<StubEvent>,
}

#[repr(C)]
struct StubEvent {
    raw: rdma_cm_event,
    private: Vec<u8>,
}

static CM: ConnectionManager = ConnectionManager {
    create_event_channel,
    destroy_event_channel,
    create_id,
    destroy_id,
    bind_addr,
    listen,
    resolve_addr,
    resolve_route,
    init_qp_attr,
    connect,
    accept,
    reject,
    establish,
    disconnect,
    migrate_id,
    get_cm_event,
    ack_cm_event,
};

unsafe extern "C" fn create_event_channel() -> *mut rdma_event_channel {
    script(|script| script.channels += 1);
    // SAFETY: an eventfd that counts down one event a read.
    let fd = unsafe { libc::eventfd(0, libc::EFD_SEMAPHORE) };
    Box::into_raw(Box::new(StubChannel { raw: rdma_event_channel { fd }, events: VecDeque::new() })).cast()
}

unsafe extern "C" fn destroy_event_channel(channel: *mut rdma_event_channel) {
    script(|script| script.channels -= 1);
    // SAFETY: from `create_event_channel`.
    unsafe { libc::close(Box::from_raw(channel.cast::<StubChannel>()).raw.fd) };
}

fn new_id(channel: *mut rdma_event_channel) -> *mut rdma_cm_id {
    script(|script| script.ids += 1);
    // SAFETY: pointers and integers, for which zero is a value.
    let mut id: Box<rdma_cm_id> = Box::new(unsafe { std::mem::zeroed() });
    id.channel = channel;
    Box::into_raw(id)
}

unsafe extern "C" fn create_id(
    channel: *mut rdma_event_channel,
    into: *mut *mut rdma_cm_id,
    _: *mut c_void,
    space: c_int,
) -> c_int {
    assert_eq!(space, PORT_SPACE_TCP);
    // SAFETY: a place for the answer.
    unsafe { *into = new_id(channel) };
    0
}

unsafe extern "C" fn destroy_id(id: *mut rdma_cm_id) -> c_int {
    script(|script| {
        script.calls.push("destroy");
        script.ids -= 1;
        assert_eq!(script.unacknowledged, 0, "rdma_destroy_id would wait for ever");
    });
    // SAFETY: from `new_id`.
    drop(unsafe { Box::from_raw(id) });
    0
}

/// Queues an event of this id.
///
/// # Safety
/// Id and channel are alive.
unsafe fn happen(id: *mut rdma_cm_id, on: *mut rdma_event_channel, answer: Answer) {
    let (kind, status, (responder_resources, initiator_depth), private) = answer;
    let conn = rdma_conn_param {
        private_data: if private.is_empty() { std::ptr::null() } else { private.as_ptr().cast() },
        private_data_len: private.len() as u8,
        responder_resources,
        initiator_depth,
        flow_control: 0,
        retry_count: 0,
        rnr_retry_count: 0,
        srq: 0,
        qp_num: 5,
    };
    let raw = rdma_cm_event { id, listen_id: std::ptr::null_mut(), event: kind, status, conn, _rest_of_union: [0; 4] };
    // SAFETY: the caller's promise.
    unsafe {
        (*on.cast::<StubChannel>()).events.push_back(StubEvent { raw, private });
        libc::eventfd_write((*on).fd, 1);
    }
}

/// Logs the call, and queues the event that the script has next.
///
/// # Safety
/// The id is alive.
unsafe fn called(id: *mut rdma_cm_id, call: &'static str, event: bool) -> c_int {
    let next = script(|script| {
        script.calls.push(call);
        event.then(|| script.answers.pop_front()).flatten()
    });
    if let Some(answer) = next {
        // SAFETY: the caller's promise; an id is on a live channel.
        unsafe { happen(id, (*id).channel, answer) };
    }
    0
}

unsafe extern "C" fn bind_addr(id: *mut rdma_cm_id, address: *mut libc::sockaddr) -> c_int {
    // SAFETY: a live id; the address is a `sockaddr_storage` of ours.
    unsafe {
        (*id).src_addr = *address.cast();
        called(id, "bind", false)
    }
}

unsafe extern "C" fn listen(id: *mut rdma_cm_id, backlog: c_int) -> c_int {
    assert_eq!(backlog, 3);
    // SAFETY: a live id, as below.
    unsafe { called(id, "listen", false) }
}

unsafe extern "C" fn resolve_addr(
    id: *mut rdma_cm_id,
    _: *mut libc::sockaddr,
    to: *mut libc::sockaddr,
    timeout_ms: c_int,
) -> c_int {
    assert!(timeout_ms > 0);
    // SAFETY: as `bind_addr`.
    unsafe {
        (*id).dst_addr = *to.cast();
        (*id).verbs = script(|script| script.verbs) as *mut _;
        (*id).port_num = 1;
        called(id, "resolve address", true)
    }
}

unsafe extern "C" fn resolve_route(id: *mut rdma_cm_id, _: c_int) -> c_int {
    // SAFETY: a live id.
    unsafe { called(id, "resolve route", true) }
}

/// As the kernel fills them, with a bit of its own that must not reach `ibv_modify_qp`.
unsafe extern "C" fn init_qp_attr(_: *mut rdma_cm_id, into: *mut ibv_qp_attr, mask: *mut c_int) -> c_int {
    use value::*;
    // SAFETY: places for the answer.
    unsafe {
        let state = (*into).qp_state;
        *mask = match (state, script(|script| script.iwarp)) {
            (QPS_INIT, false) => QP_STATE | QP_ACCESS_FLAGS | QP_PKEY_INDEX | QP_PORT,
            (QPS_INIT, true) => QP_STATE | QP_ACCESS_FLAGS | QP_PORT,
            (_, true) => QP_PORT,
            (QPS_RTR, _) => {
                QP_STATE
                    | QP_AV
                    | QP_PATH_MTU
                    | QP_DEST_QPN
                    | QP_RQ_PSN
                    | QP_MAX_DEST_RD_ATOMIC
                    | QP_MIN_RNR_TIMER
                    | 1 << 21
            }
            _ => QP_STATE | QP_TIMEOUT | QP_RETRY_CNT | QP_RNR_RETRY | QP_SQ_PSN | QP_MAX_QP_RD_ATOMIC,
        };
        ((*into).port_num, (*into).dest_qp_num, (*into).path_mtu) = (1, 5, 3);
        ((*into).max_rd_atomic, (*into).timeout, (*into).min_rnr_timer) = (77, 19, 0);
    }
    0
}

/// # Safety
/// A live id, parameters to read.
unsafe fn with_parameters(id: *mut rdma_cm_id, parameters: *mut rdma_conn_param, call: &'static str) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let parameters = *parameters;
        let private = std::slice::from_raw_parts(parameters.private_data.cast(), parameters.private_data_len as usize);
        script(|script| (script.parameters, script.sent_private) = (Some(parameters), private.to_vec()));
        called(id, call, true)
    }
}

unsafe extern "C" fn connect(id: *mut rdma_cm_id, parameters: *mut rdma_conn_param) -> c_int {
    // SAFETY: as above.
    unsafe { with_parameters(id, parameters, "connect") }
}

unsafe extern "C" fn accept(id: *mut rdma_cm_id, parameters: *mut rdma_conn_param) -> c_int {
    // SAFETY: as above.
    unsafe { with_parameters(id, parameters, "accept") }
}

unsafe extern "C" fn reject(id: *mut rdma_cm_id, _: *const c_void, _: u8) -> c_int {
    // SAFETY: a live id, as below.
    unsafe { called(id, "reject", false) }
}

unsafe extern "C" fn establish(id: *mut rdma_cm_id) -> c_int {
    // SAFETY: as above.
    unsafe { called(id, "establish", false) }
}

unsafe extern "C" fn disconnect(id: *mut rdma_cm_id) -> c_int {
    // SAFETY: as above.
    unsafe { called(id, "disconnect", true) }
}

unsafe extern "C" fn migrate_id(id: *mut rdma_cm_id, channel: *mut rdma_event_channel) -> c_int {
    // SAFETY: as above.
    unsafe {
        (*id).channel = channel;
        called(id, "migrate", false)
    }
}

unsafe extern "C" fn get_cm_event(channel: *mut rdma_event_channel, into: *mut *mut rdma_cm_event) -> c_int {
    let mut count = 0;
    // SAFETY: a live channel, a place for the answer.
    unsafe {
        if libc::eventfd_read((*channel).fd, &mut count) != 0 {
            return -1;
        }
        let event = (*channel.cast::<StubChannel>()).events.pop_front().unwrap();
        script(|script| script.unacknowledged += 1);
        *into = Box::into_raw(Box::new(event)).cast();
    }
    0
}

unsafe extern "C" fn ack_cm_event(event: *mut rdma_cm_event) -> c_int {
    script(|script| script.unacknowledged -= 1);
    // SAFETY: from `get_cm_event`; the copy of private data goes with it.
    drop(unsafe { Box::from_raw(event.cast::<StubEvent>()) });
    0
}

const MEMORY: RemoteMemory = RemoteMemory { address: 0x1234_0000, length: 4096, key: MemoryKey(9) };
const SECOND: Duration = Duration::from_secs(1);

/// A device, a queue pair on it, and a librdmacm that leads there.
struct Machine {
    queue_pair: QueuePair,
    _completions: CompletionQueue,
    stub: Stub,
}

impl Machine {
    fn new(answers: Vec<Answer>, iwarp: bool) -> Machine {
        let stub = Stub::with_transport(if iwarp { value::TRANSPORT_IWARP } else { value::TRANSPORT_IB });
        let context = stub.open(&OpenOptions::default()).unwrap();
        let completions = context.create_completion_queue(16).unwrap();
        let domain = context.create_domain().unwrap();
        let queue_pair =
            domain.create_queue_pair(&completions, &completions, None, &QueuePairOptions::default()).unwrap();
        queue_pair.to_init(crate::verbs::Access::ALL).unwrap();
        stub.record().modified.clear();
        let verbs = stub.context() as usize;
        SCRIPT.set(Script { answers: answers.into(), iwarp, verbs, ..Script::default() });
        Machine { queue_pair, _completions: completions, stub }
    }

    fn route(&self) -> Result<Route, Error> {
        Route::resolve_by(&CM, "192.0.2.9:4000".parse().unwrap(), None, SECOND)
    }

    fn connect(&self) -> Result<Connection, Error> {
        self.route()?.connect(&self.queue_pair, &ConnectOptions::default(), Some(MEMORY), Duration::from_millis(50))
    }

    fn steps(&self) -> Vec<(ibv_qp_attr, c_int)> {
        self.stub.record().modified.clone()
    }
}

fn resolved() -> Vec<Answer> {
    vec![(event::ADDR_RESOLVED, 0, (0, 0), vec![]), (event::ROUTE_RESOLVED, 0, (0, 0), vec![])]
}

fn resolved_and(answer: Answer) -> Vec<Answer> {
    let mut answers = resolved();
    answers.push(answer);
    answers
}

fn all_gone() {
    script(|script| assert_eq!((script.ids, script.channels, script.unacknowledged), (0, 0, 0)));
}

#[test]
fn the_active_side_takes_the_steps_and_establishes() {
    let mut private = private_data::encode(Some(MEMORY));
    private.resize(56, 0);
    let machine = Machine::new(resolved_and((event::CONNECT_RESPONSE, 0, (16, 5), private)), false);
    let route = machine.route().unwrap();
    assert_eq!(route.device().unwrap(), ("stub0".to_string(), 1));
    let options = ConnectOptions { timeout: 15, ..Default::default() };
    let connection = route.connect(&machine.queue_pair, &options, None, SECOND).unwrap();
    assert_eq!(connection.remote_memory(), Some(MEMORY));
    let calls = script(|script| script.calls.clone());
    assert_eq!(calls, ["resolve address", "resolve route", "connect", "establish"]);
    let steps = machine.steps();
    assert_eq!(steps.iter().map(|(attributes, _)| attributes.qp_state).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(steps.iter().all(|(_, mask)| mask & 1 << 21 == 0));
    assert_eq!((steps[0].0.qp_access_flags, steps[1].0.min_rnr_timer, steps[1].0.dest_qp_num), (15, 12, 5));
    assert_eq!((steps[2].0.timeout, steps[2].0.max_rd_atomic), (15, 5), "the peer answers 5 at a time");
    let parameters = script(|script| script.parameters.unwrap());
    assert_eq!(parameters.qp_num, machine.queue_pair.number().0);
    assert_eq!((parameters.initiator_depth, parameters.responder_resources, parameters.srq), (12, 16, 0));
    script(|script| assert!(script.sent_private.is_empty()));
    assert!(!connection.ended().unwrap());
    script(|script| script.answers.push_back((event::DISCONNECTED, 0, (0, 0), vec![])));
    connection.disconnect().unwrap();
    assert!(connection.ended().unwrap());
    drop(connection);
    all_gone();
}

#[test]
fn on_iwarp_the_kernel_takes_the_steps() {
    let machine = Machine::new(resolved_and((event::ESTABLISHED, 0, (0, 0), vec![])), true);
    let connection = machine.connect().unwrap();
    assert_eq!(connection.remote_memory(), None);
    let steps = machine.steps();
    assert_eq!(steps.len(), 1, "Init only");
    assert_eq!(steps[0].0.qp_state, value::QPS_INIT);
    script(|script| assert_eq!(script.calls, ["resolve address", "resolve route", "connect"]));
    script(|script| assert_eq!(private_data::decode(&script.sent_private), Some(MEMORY)));
    // It may post: the state is ready-to-send.
    assert!(machine.queue_pair.to_init(crate::verbs::Access::ALL).is_err());
    drop(connection);
    all_gone();
}

#[test]
fn failures_name_the_step_and_leave_nothing() {
    let address = "192.0.2.9:4000";
    let cases = [
        (vec![(event::ADDR_ERROR, -libc::ENODEV, (0, 0), vec![])], "rdma_resolve_addr failed: No such device"),
        (resolved_and((event::REJECTED, 8, (0, 0), vec![])), "nothing listens on that port"),
        (resolved_and((event::REJECTED, -111, (0, 0), vec![])), "reason -111"),
        (resolved_and((event::UNREACHABLE, -110, (0, 0), vec![])), "does not answer"),
        (resolved_and((event::CONNECT_ERROR, -22, (0, 0), vec![])), "rdma_connect failed: Invalid argument"),
        (resolved(), "rdma_connect failed: no answer in time"),
    ];
    for (answers, reason) in cases {
        let machine = Machine::new(answers, false);
        let text = machine.connect().err().unwrap().to_string();
        assert!(text.contains(reason) && text.contains(address), "{text}");
        all_gone();
    }
    let machine = Machine::new(resolved_and((event::REJECTED, 8, (0, 0), vec![])), false);
    let Err(Error::Os { source, .. }) = machine.connect() else { panic!() };
    assert_eq!(source.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_queue_pair_on_another_device_is_refused() {
    let machine = Machine::new(resolved(), false);
    let other = Stub::new();
    // SAFETY: the name of a stub that nobody else looks at yet.
    unsafe { (*(*other.context()).device).name[0] = b'x' as _ };
    script(|script| script.verbs = other.context() as usize);
    let error = machine.connect().err().unwrap();
    assert!(matches!(error, Error::Mismatch { .. }) && error.to_string().contains("xtub0"), "{error}");
    assert!(machine.steps().is_empty());
    all_gone();
}

#[test]
fn the_passive_side_answers_what_is_asked() {
    let machine = Machine::new(vec![(event::ESTABLISHED, 0, (0, 0), vec![])], false);
    let listener = Listener::bind_by(&CM, "192.0.2.7:4000".parse().unwrap(), 3).unwrap();
    assert_eq!(listener.local_address(), "192.0.2.7:4000".parse().unwrap());
    assert!(listener.accept(Some(Duration::ZERO)).unwrap().is_none());
    let request = requested(&machine, &listener, (9, 4));
    assert_eq!(request.device().unwrap(), ("stub0".to_string(), 1));
    assert_eq!(request.peer_address(), "192.0.2.9:555".parse().unwrap());
    assert_eq!(request.remote_memory(), Some(MEMORY));
    let connection = request.accept(&machine.queue_pair, &Default::default(), Some(MEMORY), SECOND).unwrap();
    assert_eq!(connection.remote_memory(), Some(MEMORY));
    script(|script| assert_eq!(script.calls, ["bind", "listen", "migrate", "accept"]));
    let parameters = script(|script| script.parameters.unwrap());
    assert_eq!((parameters.responder_resources, parameters.initiator_depth), (9, 4));
    let steps = machine.steps();
    assert_eq!(steps.iter().map(|(attributes, _)| attributes.qp_state).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!((steps[1].0.max_dest_rd_atomic, steps[2].0.max_rd_atomic), (9, 4));
    drop((connection, listener));
    all_gone();
}

#[test]
fn a_request_that_is_dropped_or_rejected_leaves_nothing() {
    let machine = Machine::new(vec![], false);
    let listener = Listener::bind_by(&CM, "192.0.2.7:4000".parse().unwrap(), 3).unwrap();
    drop(requested(&machine, &listener, (1, 1)));
    requested(&machine, &listener, (1, 1)).reject().unwrap();
    script(|script| assert_eq!(script.calls[2..], ["migrate", "destroy", "migrate", "reject", "destroy"]));
    drop(listener);
    all_gone();
}

#[test]
fn a_peer_that_goes_away_before_the_connection_stands_is_an_error() {
    let machine = Machine::new(vec![(event::DISCONNECTED, 0, (0, 0), vec![])], false);
    let listener = Listener::bind_by(&CM, "192.0.2.7:4000".parse().unwrap(), 3).unwrap();
    let request = requested(&machine, &listener, (1, 1));
    let error = request.accept(&machine.queue_pair, &Default::default(), None, SECOND).err().unwrap();
    assert!(error.to_string().contains("the peer disconnected"), "{error}");
    drop(listener);
    all_gone();
}

/// A connection request, as the listener gives it out.
fn requested(machine: &Machine, listener: &Listener, depths: (u8, u8)) -> Request {
    let channel = listener.id.channel().raw();
    let id = new_id(channel);
    // SAFETY: the id is new and ours, the channel alive.
    unsafe {
        (*id).verbs = machine.stub.context();
        (*id).port_num = 1;
        let from = &raw mut (*id).dst_addr;
        let from = &mut *from.cast::<libc::sockaddr_in>();
        (from.sin_family, from.sin_port) = (libc::AF_INET as u16, 555u16.to_be());
        from.sin_addr.s_addr = u32::from_ne_bytes([192, 0, 2, 9]);
        // A device came first: that is no request.
        happen(id, channel, (14, 0, (0, 0), vec![]));
        happen(id, channel, (event::CONNECT_REQUEST, 0, depths, private_data::encode(Some(MEMORY))));
    }
    listener.accept(Some(SECOND)).unwrap().unwrap()
}
