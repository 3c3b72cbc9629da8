//! Chains of work requests, completions, and what both cost.

use super::*;
use crate::ibv::abi::{ibv_sge, ibv_wc, value};
use crate::ibv::stub::{self, Posted};
use crate::verbs::{
    Data, MemoryKey, Operation, PostError, QueuePairNumber, ReceiveRequest, Sge, WcOpcode, WcStatus, WorkCompletion,
    WorkRequest,
};

const PIECES: [Sge; 5] = [
    Sge { address: 0x1000, length: 8, key: MemoryKey(0x77) },
    Sge { address: 0x2000, length: 100, key: MemoryKey(0x88) },
    Sge { address: 0x3000, length: 0, key: MemoryKey(0x99) },
    Sge { address: 0x4000, length: 5, key: MemoryKey(0xaa) },
    Sge { address: 0x5000, length: 5, key: MemoryKey(0xbb) },
];
const REMOTE: (u64, MemoryKey) = (0xdead_beef_0000, MemoryKey(0xfeed));

fn request<'a>(id: u64, operation: Operation, data: Data<'a>) -> WorkRequest<'a> {
    WorkRequest { id, operation, data, signalled: false, fence: false, solicited: false }
}

fn write(id: u64) -> WorkRequest<'static> {
    let (remote_address, remote_key) = REMOTE;
    request(id, Operation::Write { remote_address, remote_key, immediate: None }, Data::Pieces(&PIECES[..1]))
}

fn send(bench: &Bench, requests: &[WorkRequest<'_>]) -> Result<(), (usize, PostError)> {
    // SAFETY: the stub reads inline data during the call, and no other memory.
    unsafe { bench.queue_pair.post_send(requests) }
}

fn receive(bench: &Bench, requests: &[ReceiveRequest<'_>]) -> Result<(), (usize, PostError)> {
    // SAFETY: the stub touches no memory.
    unsafe { bench.queue_pair.post_receive(requests) }
}

fn pieces(count: usize) -> Vec<ibv_sge> {
    PIECES[..count].iter().map(|p| ibv_sge { addr: p.address, length: p.length, lkey: p.key.0 }).collect()
}

fn sent(bench: &Bench, request: WorkRequest<'_>) -> Posted {
    send(bench, &[request]).unwrap();
    let posted = bench.stub.record().sent.pop().unwrap();
    assert_eq!((posted.queue, posted.id), (bench.queue_pair.number().0, request.id));
    posted
}

#[test]
fn each_operation_is_the_right_work_request() {
    let bench = Bench::connected();
    let (remote_address, remote_key) = REMOTE;
    let four = Data::Pieces(&PIECES[..4]);
    let plain = sent(&bench, request(1, Operation::Send { immediate: None }, four));
    assert_eq!((plain.opcode, plain.flags, plain.imm_data), (value::WR_SEND, 0, 0));
    assert_eq!(plain.pieces, pieces(4));

    let immediate = Some(0x0102_0304);
    let with_immediate = sent(&bench, request(2, Operation::Send { immediate }, Data::Pieces(&[])));
    assert_eq!((with_immediate.opcode, with_immediate.pieces.len()), (value::WR_SEND_WITH_IMM, 0));
    assert_eq!(with_immediate.imm_data.to_ne_bytes(), [1, 2, 3, 4], "big endian on the wire");

    let inline = sent(&bench, request(3, Operation::Send { immediate: None }, Data::Inline(b"inline")));
    assert_eq!((inline.flags, inline.inline.as_slice(), inline.pieces.len()), (8, &b"inline"[..], 1));

    for (immediate, opcode) in [(None, value::WR_RDMA_WRITE), (Some(9), value::WR_RDMA_WRITE_WITH_IMM)] {
        let posted = sent(&bench, request(4, Operation::Write { remote_address, remote_key, immediate }, four));
        assert_eq!((posted.opcode, posted.remote_addr, posted.rkey), (opcode, REMOTE.0, REMOTE.1.0));
        assert_eq!(posted.imm_data, immediate.unwrap_or(0u32).to_be());
        assert_eq!(posted.pieces, pieces(4));
    }
    let read = sent(&bench, request(5, Operation::Read { remote_address, remote_key }, four));
    assert_eq!((read.opcode, read.remote_addr, read.rkey), (value::WR_RDMA_READ, REMOTE.0, REMOTE.1.0));

    let one = Data::Pieces(&PIECES[..1]);
    let operation = Operation::CompareSwap { remote_address, remote_key, compare: 11, swap: 22 };
    let posted = sent(&bench, request(6, operation, one));
    assert_eq!((posted.opcode, posted.compare_add, posted.swap), (value::WR_ATOMIC_CMP_AND_SWP, 11, 22));
    assert_eq!((posted.remote_addr, posted.rkey, posted.pieces), (REMOTE.0, REMOTE.1.0, pieces(1)));
    let operation = Operation::FetchAdd { remote_address, remote_key, add: u64::MAX };
    let posted = sent(&bench, request(7, operation, one));
    assert_eq!((posted.opcode, posted.compare_add), (value::WR_ATOMIC_FETCH_AND_ADD, u64::MAX));

    for (signalled, fence, solicited) in [(true, false, false), (false, true, false), (false, false, true)] {
        let posted = sent(&bench, WorkRequest { signalled, fence, solicited, ..write(8) });
        assert_eq!(posted.flags, signalled as u32 * 2 + fence as u32 + solicited as u32 * 4);
    }
}

#[test]
fn many_requests_go_in_order_and_in_chains_of_sixteen() {
    let bench = Bench::connected();
    let requests: Vec<_> = (0..50).map(write).collect();
    send(&bench, &requests).unwrap();
    send(&bench, &[]).unwrap();
    let record = bench.stub.record();
    assert_eq!(record.sent.iter().map(|posted| posted.id).collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
    assert_eq!(
        record.sent.iter().map(|posted| posted.chain).collect::<Vec<_>>(),
        [[1; 16], [2; 16], [3; 16]].concat().into_iter().chain([4, 4]).collect::<Vec<_>>()
    );
}

#[test]
fn inline_requests_of_one_chain_keep_their_bytes_apart() {
    let bench = Bench::connected();
    let texts: Vec<String> = (0..20).map(|number| format!("text {number}")).collect();
    let requests: Vec<_> = texts
        .iter()
        .map(|text| request(0, Operation::Send { immediate: None }, Data::Inline(text.as_bytes())))
        .collect();
    send(&bench, &requests).unwrap();
    for (posted, text) in bench.stub.record().sent.iter().zip(&texts) {
        assert_eq!(posted.inline, text.as_bytes());
    }
}

#[test]
fn a_refusal_tells_how_many_were_accepted() {
    for accepted in [0, 1, 15, 16, 17, 39] {
        for (number, error) in [(libc::ENOMEM, PostError::QueueFull), (libc::EINVAL, PostError::Os(libc::EINVAL))] {
            let bench = Bench::connected();
            let requests: Vec<_> = (0..40).map(write).collect();
            // Some providers answer with negative error numbers.
            let number = if accepted == 17 { -number } else { number };
            bench.stub.record().refuse_after = Some((accepted, number));
            assert_eq!(send(&bench, &requests), Err((accepted, error)));
            assert_eq!(bench.stub.record().sent.len(), accepted);
            let receives: Vec<_> = (0..40).map(|id| ReceiveRequest { id, pieces: &PIECES[..2] }).collect();
            bench.stub.record().refuse_after = Some((accepted, number));
            assert_eq!(receive(&bench, &receives), Err((accepted, error)));
            assert_eq!(bench.stub.record().received.len(), accepted);
        }
    }
}

#[test]
fn what_no_device_takes_is_refused_before_it_is_asked() {
    let bench = Bench::connected();
    let (remote_address, remote_key) = REMOTE;
    let long = Sge { address: 0, length: u32::MAX, key: MemoryKey(1) };
    let above_port = Sge { address: 0, length: (1 << 23) + 1, key: MemoryKey(1) };
    let add = Operation::FetchAdd { remote_address, remote_key, add: 1 };
    let (too_long, above_the_ports) = ([long, long], [above_port]);
    let cases = [
        (request(9, Operation::Send { immediate: None }, Data::Pieces(&PIECES)), PostError::TooManyPieces(5)),
        (
            request(9, Operation::Send { immediate: None }, Data::Inline(&[0; 129])),
            PostError::InlineTooLong { bytes: 129, limit: 128 },
        ),
        (
            request(9, Operation::Read { remote_address, remote_key }, Data::Inline(b"12345678")),
            PostError::InlineResult,
        ),
        (request(9, add, Data::Inline(b"12345678")), PostError::InlineResult),
        (request(9, add, Data::Pieces(&PIECES[1..2])), PostError::AtomicLength(100)),
        (
            request(9, Operation::Send { immediate: None }, Data::Pieces(&too_long)),
            PostError::MessageTooLong(2 * u32::MAX as u64),
        ),
        (
            request(9, Operation::Send { immediate: None }, Data::Pieces(&above_the_ports)),
            PostError::Os(libc::EMSGSIZE),
        ),
    ];
    for (wrong, error) in cases {
        let before = bench.stub.record().sent.len();
        assert_eq!(send(&bench, &[write(1), write(2), wrong, write(3)]), Err((2, error)));
        assert_eq!(bench.stub.record().sent.len(), before + 2, "those before it are posted, those after it are not");
        assert_eq!(send(&bench, &[wrong]), Err((0, error)));
    }
    let fine = ReceiveRequest { id: 1, pieces: &PIECES[..4] };
    let wrong = ReceiveRequest { id: 2, pieces: &PIECES };
    assert_eq!(receive(&bench, &[fine, wrong, fine]), Err((1, PostError::TooManyPieces(5))));
    assert_eq!(bench.stub.record().received.len(), 1);
}

#[test]
fn states_that_do_not_allow_posting_refuse_it() {
    let bench = Bench::new();
    let receives = [ReceiveRequest { id: 5, pieces: &PIECES[..1] }];
    assert_eq!(send(&bench, &[write(1)]), Err((0, PostError::State)));
    assert_eq!(receive(&bench, &receives), Err((0, PostError::State)));
    bench.queue_pair.to_init(Access::ALL).unwrap();
    assert_eq!(send(&bench, &[write(1)]), Err((0, PostError::State)));
    receive(&bench, &receives).unwrap();
    bench.queue_pair.connect(&bench.queue_pair.endpoint(), &Default::default()).unwrap();
    send(&bench, &[write(1)]).unwrap();
    bench.queue_pair.to_error().unwrap();
    send(&bench, &[write(1)]).unwrap();
    receive(&bench, &receives).unwrap();
    assert_eq!(bench.stub.record().received[0].pieces, pieces(1));
}

#[test]
fn reads_and_atomics_need_a_depth() {
    let bench = Bench::initialised();
    let options = crate::connect::ConnectOptions { initiator_depth: 0, ..Default::default() };
    bench.queue_pair.connect(&bench.queue_pair.endpoint(), &options).unwrap();
    let (remote_address, remote_key) = REMOTE;
    let one = Data::Pieces(&PIECES[..1]);
    for operation in
        [Operation::Read { remote_address, remote_key }, Operation::FetchAdd { remote_address, remote_key, add: 1 }]
    {
        assert_eq!(send(&bench, &[request(1, operation, one)]), Err((0, PostError::ReadAtomicDisabled)));
    }
}

#[test]
fn what_iwarp_lacks_is_not_passed_on() {
    let bench = Bench::on(Stub::with_transport(value::TRANSPORT_IWARP), &Default::default());
    bench.queue_pair.note_state(crate::verbs::QueuePairState::ReadyToSend);
    bench.queue_pair.set_initiator_depth(1);
    let (remote_address, remote_key) = REMOTE;
    let one = Data::Pieces(&PIECES[..1]);
    for operation in [
        Operation::Send { immediate: Some(1) },
        Operation::Write { remote_address, remote_key, immediate: Some(1) },
        Operation::CompareSwap { remote_address, remote_key, compare: 1, swap: 2 },
    ] {
        assert_eq!(send(&bench, &[request(1, operation, one)]), Err((0, PostError::Os(libc::EOPNOTSUPP))));
    }
    send(&bench, &[request(1, Operation::Read { remote_address, remote_key }, one)]).unwrap();
}

#[test]
fn a_shared_receive_queue_takes_the_receive_requests() {
    let bench = Bench::new();
    let shared = bench.domain.create_shared_receive_queue(16).unwrap();
    let pair = bench.domain.create_queue_pair(&bench.send, &bench.receive, Some(&shared), &Default::default()).unwrap();
    let requests: Vec<_> = (0..20).map(|id| ReceiveRequest { id, pieces: &PIECES[..3] }).collect();
    // SAFETY: the stub touches no memory.
    unsafe {
        assert_eq!(pair.post_receive(&requests), Err((0, PostError::UsesSharedReceiveQueue)));
        shared.post_receive(&requests).unwrap();
    }
    let record = bench.stub.record();
    assert_eq!(record.received.iter().map(|posted| posted.id).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
    assert!(record.received.iter().all(|posted| posted.pieces == pieces(3)));
}

fn raw_completion(id: u64, opcode: i32, status: i32) -> ibv_wc {
    ibv_wc {
        wr_id: id,
        status,
        opcode,
        vendor_err: 0,
        byte_len: 4321,
        imm_data: 0x0a0b_0c0d_u32.to_be(),
        qp_num: 99,
        src_qp: 1,
        wc_flags: 0,
        pkey_index: 0,
        slid: 0,
        sl: 0,
        dlid_path_bits: 0,
    }
}

const EMPTY: WorkCompletion = WorkCompletion {
    id: 0,
    status: WcStatus::Success,
    opcode: WcOpcode::Send,
    length_bytes: 0,
    immediate: None,
    queue_pair: QueuePairNumber(0),
};

fn polled(bench: &Bench, raw: ibv_wc) -> WorkCompletion {
    bench.stub.record().completions.push_back(raw);
    let mut into = [EMPTY; 2];
    assert_eq!(bench.send.poll(&mut into).unwrap(), 1);
    into[0]
}

#[test]
fn completions_carry_all_fields() {
    let bench = Bench::new();
    let cases = [
        (value::WC_SEND, WcOpcode::Send, 0),
        (value::WC_RDMA_WRITE, WcOpcode::RdmaWrite, 0),
        (value::WC_RDMA_READ, WcOpcode::RdmaRead, 4321),
        (value::WC_COMP_SWAP, WcOpcode::CompSwap, 8),
        (value::WC_FETCH_ADD, WcOpcode::FetchAdd, 8),
        (value::WC_RECV, WcOpcode::Recv, 4321),
        (value::WC_RECV_RDMA_WITH_IMM, WcOpcode::RecvRdmaWithImm, 4321),
    ];
    for (number, opcode, length_bytes) in cases {
        let expected = WorkCompletion { id: 7, opcode, length_bytes, queue_pair: QueuePairNumber(99), ..EMPTY };
        assert_eq!(polled(&bench, raw_completion(7, number, 0)), expected);
        let arrived = number >= value::WC_RECV;
        let raw = ibv_wc { wc_flags: value::WC_WITH_IMM | 1, ..raw_completion(7, number, 0) };
        assert_eq!(polled(&bench, raw), WorkCompletion { immediate: arrived.then_some(0x0a0b_0c0d), ..expected });
    }
}

/// Names from `enum ibv_wc_status`, by number.
#[test]
fn every_status_has_the_name_of_its_number() {
    let bench = Bench::new();
    let names = [
        (1, "LOC_LEN_ERR"),
        (2, "LOC_QP_OP_ERR"),
        (4, "LOC_PROT_ERR"),
        (5, "WR_FLUSH_ERR"),
        (6, "MW_BIND_ERR"),
        (7, "BAD_RESP_ERR"),
        (8, "LOC_ACCESS_ERR"),
        (9, "REM_INV_REQ_ERR"),
        (10, "REM_ACCESS_ERR"),
        (11, "REM_OP_ERR"),
        (12, "RETRY_EXC_ERR"),
        (13, "RNR_RETRY_EXC_ERR"),
        (16, "REM_ABORT_ERR"),
        (19, "FATAL_ERR"),
        (20, "RESP_TIMEOUT_ERR"),
        (21, "GENERAL_ERR"),
    ];
    for number in 1..=30 {
        let completion = polled(&bench, raw_completion(3, value::WC_RECV, number));
        let name = names.iter().find(|(other, _)| *other == number).map_or("GENERAL_ERR", |(_, name)| name);
        assert_eq!(completion.status.name().strip_prefix("IBV_WC_"), Some(name));
        let WorkCompletion { id, opcode, length_bytes, immediate, queue_pair, .. } = completion;
        // What a failed request was, some devices do not say; the safe layer knows.
        assert_eq!((id, opcode, length_bytes, immediate), (3, WcOpcode::Send, 0, None));
        assert_eq!(queue_pair, QueuePairNumber(99));
    }
    let unset = polled(&bench, raw_completion(3, -1, 5));
    assert_eq!((unset.opcode, unset.status), (WcOpcode::Send, WcStatus::WrFlushErr));
}

#[test]
fn polling_fills_what_there_is_room_for() {
    let bench = Bench::new();
    let all: Vec<u64> = (0..50).collect();
    bench.stub.record().completions.extend(all.iter().map(|id| raw_completion(*id, value::WC_RDMA_WRITE, 0)));
    let mut got = Vec::new();
    for (room, expected) in [(0, 0), (1, 1), (16, 16), (20, 20), (40, 13), (40, 0)] {
        let mut into = vec![EMPTY; room];
        assert_eq!(bench.send.poll(&mut into).unwrap(), expected);
        got.extend(into[..expected].iter().map(|completion| completion.id));
    }
    assert_eq!(got, all);
}

#[test]
fn a_broken_device_is_an_error_of_polling() {
    let bench = Bench::new();
    for (answer, text) in [(-1, "Input/output error"), (-libc::EFAULT, "Bad address")] {
        bench.stub.record().refuse_poll = Some(answer);
        let error = bench.send.poll(&mut [EMPTY]).unwrap_err().to_string();
        assert!(error.contains("ibv_poll_cq failed") && error.contains(text), "{error}");
    }
}

/// Prints the cost of one signalled 8-byte WRITE, posted and polled: bare, and through this layer. Run it with
/// `cargo test --release -- --ignored --nocapture what_the_raw_layer_adds`. The least of many rounds
/// is what counts.
#[test]
#[ignore = "a measurement"]
fn what_the_raw_layer_adds() {
    let bench = Bench::connected();
    bench.stub.quick();
    const ROUNDS: u64 = 200_000;
    let mut least = [f64::INFINITY; 2];
    for _ in 0..20 {
        let piece = ibv_sge { addr: 0x1000, length: 8, lkey: 0x77 };
        let start = std::time::Instant::now();
        for id in 0..ROUNDS {
            assert_eq!(stub::raw_round(&bench.queue_pair, &bench.send, std::hint::black_box(id), piece), id);
        }
        least[0] = least[0].min(start.elapsed().as_nanos() as f64 / ROUNDS as f64);
        let start = std::time::Instant::now();
        for id in 0..ROUNDS {
            assert_eq!(shim_round(&bench, std::hint::black_box(id)), id);
        }
        least[1] = least[1].min(start.elapsed().as_nanos() as f64 / ROUNDS as f64);
    }
    println!("bare {:.1} ns, this layer {:.1} ns, adds {:.1} ns", least[0], least[1], least[1] - least[0]);
}

#[inline(never)]
fn shim_round(bench: &Bench, id: u64) -> u64 {
    let mut into = [EMPTY];
    send(bench, &[WorkRequest { signalled: true, ..write(id) }]).unwrap();
    assert_eq!(bench.send.poll(&mut into).unwrap(), 1);
    into[0].id
}
