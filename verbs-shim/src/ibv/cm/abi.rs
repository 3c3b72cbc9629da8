//! The structures and numbers of `<rdma/rdma_cma.h>` that this provider uses. See [`super::super::abi`].

#![allow(non_camel_case_types)]

use std::ffi::{c_int, c_void};

use crate::ibv::abi::{assert_layout, ibv_context, ibv_qp};

/// `struct rdma_event_channel`.
#[repr(C)]
pub struct rdma_event_channel {
    pub fd: c_int,
}

/// `struct rdma_cm_id` up to its port. `src_addr` and `dst_addr` are the beginning of its `struct rdma_route`.
#[repr(C)]
pub struct rdma_cm_id {
    pub verbs: *mut ibv_context,
    pub channel: *mut rdma_event_channel,
    pub context: *mut c_void,
    pub qp: *mut ibv_qp,
    pub src_addr: libc::sockaddr_storage,
    pub dst_addr: libc::sockaddr_storage,
    pub _route: [u64; 7],
    pub ps: c_int,
    pub port_num: u8,
    pub _after: [u64; 8],
}

/// `struct rdma_conn_param`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct rdma_conn_param {
    pub private_data: *const c_void,
    pub private_data_len: u8,
    pub responder_resources: u8,
    pub initiator_depth: u8,
    pub flow_control: u8,
    pub retry_count: u8,
    pub rnr_retry_count: u8,
    pub srq: u8,
    pub qp_num: u32,
}

/// `struct rdma_cm_event`, with the member `conn` of its union.
#[repr(C)]
pub struct rdma_cm_event {
    pub id: *mut rdma_cm_id,
    pub listen_id: *mut rdma_cm_id,
    pub event: c_int,
    pub status: c_int,
    pub conn: rdma_conn_param,
    pub _rest_of_union: [u64; 4],
}

/// `RDMA_PS_TCP`: reliable connected.
pub const PORT_SPACE_TCP: c_int = 0x0106;

/// `enum rdma_cm_event_type`: those that are told apart.
#[allow(dead_code, reason = "errors are recognised by not being what was waited for")]
pub mod event {
    use std::ffi::c_int;

    pub const ADDR_RESOLVED: c_int = 0;
    pub const ADDR_ERROR: c_int = 1;
    pub const ROUTE_RESOLVED: c_int = 2;
    pub const ROUTE_ERROR: c_int = 3;
    pub const CONNECT_REQUEST: c_int = 4;
    pub const CONNECT_RESPONSE: c_int = 5;
    pub const CONNECT_ERROR: c_int = 6;
    pub const UNREACHABLE: c_int = 7;
    pub const REJECTED: c_int = 8;
    pub const ESTABLISHED: c_int = 9;
    pub const DISCONNECTED: c_int = 10;
    pub const DEVICE_REMOVAL: c_int = 11;
    pub const TIMEWAIT_EXIT: c_int = 15;
}

assert_layout!(rdma_event_channel, 4, { fd: 0 });
assert_layout!(rdma_cm_id, 416, {
    verbs: 0, channel: 8, context: 16, qp: 24, src_addr: 32, dst_addr: 160, ps: 344, port_num: 348, _after: 352,
});
assert_layout!(rdma_conn_param, 24, {
    private_data: 0, private_data_len: 8, responder_resources: 9, initiator_depth: 10, flow_control: 11,
    retry_count: 12, rnr_retry_count: 13, srq: 14, qp_num: 16,
});
assert_layout!(rdma_cm_event, 80, { id: 0, listen_id: 8, event: 16, status: 20, conn: 24 });
