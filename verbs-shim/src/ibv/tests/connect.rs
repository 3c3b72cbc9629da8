//! States, connection attributes, and peers that cannot be connected to.

use super::*;
use crate::Error;
use crate::connect::{ConnectOptions, Endpoint, SoftEndpoint};
use crate::device::GidChoice;
use crate::ibv::abi::{ibv_gid, value};
use crate::verbs::{Mtu, QueuePairNumber, QueuePairState};

fn peer() -> Endpoint {
    Endpoint {
        queue_pair: QueuePairNumber(0x1234),
        psn: 0xabcdef,
        gid: "::ffff:192.0.2.9".parse().unwrap(),
        lid: 0,
        mtu: Mtu::Bytes4096,
        responder_depth: 16,
        soft: None,
        memory: None,
    }
}

fn soft(port: u16, plain_socket: bool) -> Option<SoftEndpoint> {
    Some(SoftEndpoint { port, window_bytes: 1 << 20, packet_overhead_bytes: 800, plain_socket })
}

#[test]
fn an_endpoint_tells_what_the_peer_must_know() {
    let bench = Bench::new();
    let endpoint = bench.queue_pair.endpoint();
    assert_eq!(endpoint.queue_pair, bench.queue_pair.number());
    assert_eq!((endpoint.gid, endpoint.lid, endpoint.mtu), (bench.context.gid, 0, Mtu::Bytes2048));
    assert_eq!((endpoint.responder_depth, endpoint.soft), (16, None));
    assert!(endpoint.psn < 1 << 24);
    assert_eq!(bench.queue_pair.endpoint(), endpoint);
    let psns: std::collections::HashSet<u32> = (0..20)
        .map(|_| {
            let pair = bench.domain.create_queue_pair(&bench.send, &bench.send, None, &Default::default()).unwrap();
            pair.endpoint().psn
        })
        .collect();
    assert!(psns.len() > 15, "{psns:?}");
}

#[test]
fn connecting_takes_the_three_steps_with_the_negotiated_attributes() {
    let bench = Bench::initialised();
    let options = ConnectOptions { mtu: Mtu::Bytes1024, initiator_depth: 99, timeout: 18, ..Default::default() };
    bench.queue_pair.connect(&peer(), &options).unwrap();
    let record = bench.stub.record();
    let [(init, init_mask), (rtr, rtr_mask), (rts, rts_mask)] = record.modified[..] else { panic!() };
    let required = value::QP_STATE | value::QP_PKEY_INDEX | value::QP_PORT | value::QP_ACCESS_FLAGS;
    assert_eq!(init_mask, required);
    assert_eq!((init.qp_state, init.port_num, init.qp_access_flags, init.pkey_index), (1, 1, 15, 0));
    // IBA 11.2.5.2, table 91: what RTR and RTS ask for.
    let required = value::QP_STATE
        | value::QP_AV
        | value::QP_PATH_MTU
        | value::QP_DEST_QPN
        | value::QP_RQ_PSN
        | value::QP_MAX_DEST_RD_ATOMIC
        | value::QP_MIN_RNR_TIMER;
    assert_eq!(rtr_mask, required | value::QP_ACCESS_FLAGS);
    assert_eq!((rtr.qp_state, rtr.path_mtu, rtr.dest_qp_num, rtr.rq_psn), (2, 3, 0x1234, 0xabcdef));
    assert_eq!((rtr.max_dest_rd_atomic, rtr.min_rnr_timer), (16, 12));
    let path = rtr.ah_attr;
    assert_eq!((path.is_global, path.sgid_index, path.port_num, path.dlid), (1, 2, 1, 0));
    assert_eq!(path.dgid, ibv_gid(peer().gid.octets()));
    assert!(path.hop_limit > 1);
    let required = value::QP_STATE
        | value::QP_TIMEOUT
        | value::QP_RETRY_CNT
        | value::QP_RNR_RETRY
        | value::QP_SQ_PSN
        | value::QP_MAX_QP_RD_ATOMIC;
    assert_eq!(rts_mask, required);
    assert_eq!((rts.qp_state, rts.sq_psn), (3, bench.queue_pair.endpoint().psn));
    assert_eq!((rts.timeout, rts.retry_cnt, rts.rnr_retry, rts.max_rd_atomic), (18, 7, 7, 12));
}

#[test]
fn the_smallest_mtu_and_depth_of_both_sides_count() {
    let bench = Bench::initialised();
    let remote = Endpoint { mtu: Mtu::Bytes512, responder_depth: 3, ..peer() };
    bench.queue_pair.connect(&remote, &ConnectOptions::default()).unwrap();
    let record = bench.stub.record();
    assert_eq!((record.modified[1].0.path_mtu, record.modified[2].0.max_rd_atomic), (2, 3));
}

#[test]
fn infiniband_peers_are_addressed_by_lid() {
    let stub = Stub::new();
    stub.record().link_layer = value::LINK_LAYER_INFINIBAND;
    let bench = Bench::on(stub, &Default::default());
    bench.queue_pair.to_init(Access::ALL).unwrap();
    let error = bench.queue_pair.connect(&peer(), &Default::default()).unwrap_err();
    assert!(error.to_string().contains("on InfiniBand and the peer on RoCE"), "{error}");
    let remote = Endpoint { lid: 44, gid: "fe80::9".parse().unwrap(), ..peer() };
    bench.queue_pair.connect(&remote, &Default::default()).unwrap();
    let path = bench.stub.record().modified[1].0.ah_attr;
    assert_eq!((path.is_global, path.dlid), (0, 44));
}

#[test]
fn states_are_kept_and_asked_for() {
    let bench = Bench::new();
    let pair = &bench.queue_pair;
    assert_eq!(pair.state().unwrap(), QueuePairState::Reset);
    assert!(pair.connect(&peer(), &Default::default()).unwrap_err().to_string().contains("Reset"));
    pair.to_init(Access::REMOTE_WRITE).unwrap();
    assert_eq!(pair.state().unwrap(), QueuePairState::Init);
    pair.connect(&peer(), &Default::default()).unwrap();
    assert_eq!(pair.state().unwrap(), QueuePairState::ReadyToSend);
    for again in [pair.to_init(Access::ALL), pair.connect(&peer(), &Default::default())] {
        assert!(again.unwrap_err().to_string().contains("ReadyToSend"));
    }
    pair.to_error().unwrap();
    assert_eq!(pair.state().unwrap(), QueuePairState::Error);
}

#[test]
fn a_refused_step_names_itself() {
    let bench = Bench::initialised();
    bench.stub.record().refuse_step = Some((value::QPS_RTR, libc::EINVAL));
    let text = bench.queue_pair.connect(&peer(), &Default::default()).unwrap_err().to_string();
    assert_eq!(text, "stub0: ibv_modify_qp(RTR) failed: Invalid argument (os error 22)");
}

#[test]
fn options_out_of_range_are_typed_errors() {
    let bench = Bench::initialised();
    let wrong = [
        ConnectOptions { timeout: 32, ..Default::default() },
        ConnectOptions { retry_count: 8, ..Default::default() },
        ConnectOptions { rnr_retry_count: 8, ..Default::default() },
        ConnectOptions { rnr_timer: 32, ..Default::default() },
    ];
    for options in wrong {
        assert!(matches!(bench.queue_pair.connect(&peer(), &options), Err(Error::Control(_))), "{options:?}");
    }
    assert_eq!(bench.stub.record().modified.len(), 1, "Init only");
    let deep = QueuePairOptions { send_depth: 9000, ..Default::default() };
    let error = bench.domain.create_queue_pair(&bench.send, &bench.send, None, &deep).err().unwrap();
    assert!(error.to_string().contains("attribute send_depth is 9000"), "{error}");
}

#[test]
fn peers_that_cannot_be_talked_to_are_refused_before_anything_changes() {
    let bench = Bench::initialised();
    let v6 = "2001:db8::9".parse().unwrap();
    let cases = [
        (Endpoint { soft: soft(4792, false), ..peer() }, "UDP port 4791 only"),
        (Endpoint { soft: soft(4791, true), ..peer() }, "raw socket"),
        (Endpoint { gid: v6, ..peer() }, "choose GIDs of one family"),
        (Endpoint { lid: 7, ..peer() }, "on RoCE and the peer on InfiniBand"),
        (Endpoint { gid: "::".parse().unwrap(), ..peer() }, "no GID"),
    ];
    for (remote, reason) in cases {
        let error = bench.queue_pair.connect(&remote, &Default::default()).unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }) && error.to_string().contains(reason), "{error}");
    }
    assert_eq!(bench.stub.record().modified.len(), 1, "Init only");
    bench.queue_pair.connect(&Endpoint { soft: soft(4791, false), ..peer() }, &Default::default()).unwrap();
}

#[test]
fn a_soft_peer_with_a_plain_socket_is_fine_over_ipv6() {
    let stub = Stub::new();
    let options = OpenOptions { gid: GidChoice::Index(3), ..Default::default() };
    let context = stub.open(&options).unwrap();
    let queue = context.create_completion_queue(8).unwrap();
    let domain = context.create_domain().unwrap();
    let pair = domain.create_queue_pair(&queue, &queue, None, &Default::default()).unwrap();
    let remote = Endpoint { soft: soft(4791, true), gid: "2001:db8::9".parse().unwrap(), ..peer() };
    pair.to_init(Access::ALL).unwrap();
    pair.connect(&remote, &Default::default()).unwrap();
}

#[test]
fn iwarp_is_not_connected_by_endpoints() {
    let bench = Bench::on(Stub::with_transport(value::TRANSPORT_IWARP), &Default::default());
    bench.queue_pair.to_init(Access::ALL).unwrap();
    let error = bench.queue_pair.connect(&peer(), &Default::default()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains("rdma_cm only"), "{error}");
    assert_eq!(bench.stub.record().modified[0].1 & value::QP_PKEY_INDEX, 0);
}

#[test]
fn less_inline_room_is_taken_where_the_device_has_less() {
    let bench = Bench::on(Stub::new(), &QueuePairOptions { inline_bytes_max: 1000, ..Default::default() });
    assert_eq!(bench.queue_pair.inline_bytes_max(), 250);
}
