//! The structures and numbers of `<infiniband/verbs.h>` that this provider uses: the library's binary interface.
//!
//! libibverbs has kept this interface (symbol version IBVERBS_1.1) since 2006: what came later is in structures of
//! its own or in former padding. Only what is read or written here has a name; the rest is `_reserved`.
//!
//! Invariants
//! - Every size and offset is asserted at compile time. The numbers come from a C program (`sizeof`, `offsetof`)
//!   compiled against the headers of rdma-core 44, and hold for every 64-bit Linux.
//! - Objects that the library makes are only ever seen through a pointer that it returned; their true size may be
//!   larger than what is declared here.

#![allow(non_camel_case_types)]

use std::ffi::{c_char, c_int, c_uint, c_void};

/// `struct ibv_device`.
#[repr(C)]
pub struct ibv_device {
    _reserved: [usize; 2],
    pub node_type: c_int,
    pub transport_type: c_int,
    pub name: [c_char; 64],
    _names: [u8; 576],
}

pub type PollCq = unsafe extern "C" fn(*mut ibv_cq, c_int, *mut ibv_wc) -> c_int;
pub type ReqNotifyCq = unsafe extern "C" fn(*mut ibv_cq, c_int) -> c_int;
pub type PostSrqRecv = unsafe extern "C" fn(*mut ibv_srq, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int;
pub type PostSend = unsafe extern "C" fn(*mut ibv_qp, *mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int;
pub type PostRecv = unsafe extern "C" fn(*mut ibv_qp, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int;

/// `struct ibv_context_ops`: what libibverbs calls inline, so that it is no symbol of the library.
#[repr(C)]
pub struct ibv_context_ops {
    pub _before_poll: [usize; 11],
    pub poll_cq: Option<PollCq>,
    pub req_notify_cq: Option<ReqNotifyCq>,
    pub _before_srq: [usize; 7],
    pub post_srq_recv: Option<PostSrqRecv>,
    pub _before_send: [usize; 4],
    pub post_send: Option<PostSend>,
    pub post_recv: Option<PostRecv>,
    pub _after: [usize; 5],
}

/// `struct ibv_context`.
#[repr(C)]
pub struct ibv_context {
    pub device: *mut ibv_device,
    pub ops: ibv_context_ops,
    pub cmd_fd: c_int,
    pub async_fd: c_int,
    pub num_comp_vectors: c_int,
    pub _mutex: [u64; 5],
    pub _abi_compat: *mut c_void,
}

/// `struct ibv_device_attr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ibv_device_attr {
    pub fw_ver: [c_char; 64],
    pub node_guid: u64,
    pub sys_image_guid: u64,
    pub max_mr_size: u64,
    pub page_size_cap: u64,
    pub vendor_id: u32,
    pub vendor_part_id: u32,
    pub hw_ver: u32,
    pub max_qp: c_int,
    pub max_qp_wr: c_int,
    pub device_cap_flags: c_uint,
    pub max_sge: c_int,
    pub max_sge_rd: c_int,
    pub max_cq: c_int,
    pub max_cqe: c_int,
    pub max_mr: c_int,
    pub max_pd: c_int,
    pub max_qp_rd_atom: c_int,
    pub max_ee_rd_atom: c_int,
    pub max_res_rd_atom: c_int,
    pub max_qp_init_rd_atom: c_int,
    pub max_ee_init_rd_atom: c_int,
    pub atomic_cap: c_int,
    pub _reserved: [c_int; 11],
    pub max_srq: c_int,
    pub max_srq_wr: c_int,
    pub max_srq_sge: c_int,
    pub max_pkeys: u16,
    pub local_ca_ack_delay: u8,
    pub phys_port_cnt: u8,
}

/// `struct ibv_port_attr`. The symbol `ibv_query_port` fills it up to `link_layer`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ibv_port_attr {
    pub state: c_int,
    pub max_mtu: c_int,
    pub active_mtu: c_int,
    pub gid_tbl_len: c_int,
    pub port_cap_flags: u32,
    pub max_msg_sz: u32,
    pub bad_pkey_cntr: u32,
    pub qkey_viol_cntr: u32,
    pub pkey_tbl_len: u16,
    pub lid: u16,
    pub sm_lid: u16,
    pub lmc: u8,
    pub max_vl_num: u8,
    pub sm_sl: u8,
    pub subnet_timeout: u8,
    pub init_type_reply: u8,
    pub active_width: u8,
    pub active_speed: u8,
    pub phys_state: u8,
    pub link_layer: u8,
    pub flags: u8,
    pub port_cap_flags2: u16,
}

/// `struct ibv_pd`.
#[repr(C)]
pub struct ibv_pd {
    pub context: *mut ibv_context,
    pub handle: u32,
}

/// `struct ibv_mr`.
#[repr(C)]
pub struct ibv_mr {
    pub context: *mut ibv_context,
    pub pd: *mut ibv_pd,
    pub addr: *mut c_void,
    pub length: usize,
    pub handle: u32,
    pub lkey: u32,
    pub rkey: u32,
}

/// `struct ibv_comp_channel`.
#[repr(C)]
pub struct ibv_comp_channel {
    pub context: *mut ibv_context,
    pub fd: c_int,
    pub refcnt: c_int,
}

/// The beginning of `struct ibv_cq`.
#[repr(C)]
pub struct ibv_cq {
    pub context: *mut ibv_context,
    pub channel: *mut ibv_comp_channel,
    pub cq_context: *mut c_void,
    pub handle: u32,
    pub cqe: c_int,
}

/// The beginning of `struct ibv_srq`.
#[repr(C)]
pub struct ibv_srq {
    pub context: *mut ibv_context,
    pub srq_context: *mut c_void,
    pub pd: *mut ibv_pd,
    pub handle: u32,
}

/// `struct ibv_srq_init_attr`, with its `struct ibv_srq_attr` spread.
#[repr(C)]
pub struct ibv_srq_init_attr {
    pub srq_context: *mut c_void,
    pub max_wr: u32,
    pub max_sge: u32,
    pub srq_limit: u32,
}

/// The beginning of `struct ibv_qp`.
#[repr(C)]
pub struct ibv_qp {
    pub context: *mut ibv_context,
    pub qp_context: *mut c_void,
    pub pd: *mut ibv_pd,
    pub send_cq: *mut ibv_cq,
    pub recv_cq: *mut ibv_cq,
    pub srq: *mut ibv_srq,
    pub handle: u32,
    pub qp_num: u32,
}

/// `struct ibv_qp_cap`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ibv_qp_cap {
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline_data: u32,
}

/// `struct ibv_qp_init_attr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ibv_qp_init_attr {
    pub qp_context: *mut c_void,
    pub send_cq: *mut ibv_cq,
    pub recv_cq: *mut ibv_cq,
    pub srq: *mut ibv_srq,
    pub cap: ibv_qp_cap,
    pub qp_type: c_int,
    pub sq_sig_all: c_int,
}

/// `struct ibv_ah_attr`, with its `struct ibv_global_route` spread; the GID is aligned like its 64-bit halves.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ibv_ah_attr {
    pub dgid: ibv_gid,
    pub flow_label: u32,
    pub sgid_index: u8,
    pub hop_limit: u8,
    pub traffic_class: u8,
    pub dlid: u16,
    pub sl: u8,
    pub src_path_bits: u8,
    pub static_rate: u8,
    pub is_global: u8,
    pub port_num: u8,
}

/// `union ibv_gid`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ibv_gid(pub [u8; 16]);

/// `struct ibv_qp_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ibv_qp_attr {
    pub qp_state: c_int,
    pub cur_qp_state: c_int,
    pub path_mtu: c_int,
    pub path_mig_state: c_int,
    pub qkey: u32,
    pub rq_psn: u32,
    pub sq_psn: u32,
    pub dest_qp_num: u32,
    pub qp_access_flags: c_uint,
    pub cap: ibv_qp_cap,
    pub ah_attr: ibv_ah_attr,
    pub alt_ah_attr: ibv_ah_attr,
    pub pkey_index: u16,
    pub alt_pkey_index: u16,
    pub en_sqd_async_notify: u8,
    pub sq_draining: u8,
    pub max_rd_atomic: u8,
    pub max_dest_rd_atomic: u8,
    pub min_rnr_timer: u8,
    pub port_num: u8,
    pub timeout: u8,
    pub retry_cnt: u8,
    pub rnr_retry: u8,
    pub alt_port_num: u8,
    pub alt_timeout: u8,
    pub rate_limit: u32,
}

/// `struct ibv_sge`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ibv_sge {
    pub addr: u64,
    pub length: u32,
    pub lkey: u32,
}

/// `struct ibv_send_wr`, for SEND, WRITE, READ (`remote_addr`, `compare_add_or_rkey`) and atomics (all).
#[repr(C)]
pub struct ibv_send_wr {
    pub wr_id: u64,
    pub next: *mut ibv_send_wr,
    pub sg_list: *mut ibv_sge,
    pub num_sge: c_int,
    pub opcode: c_int,
    pub send_flags: c_uint,
    /// Big endian.
    pub imm_data: u32,
    pub wr: ibv_send_wr_union,
    pub _qp_type_and_bind: [u64; 7],
}

/// `union wr` of `struct ibv_send_wr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub union ibv_send_wr_union {
    pub rdma: ibv_wr_rdma,
    pub atomic: ibv_wr_atomic,
}

/// `wr.rdma`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ibv_wr_rdma {
    pub remote_addr: u64,
    pub rkey: u32,
}

/// `wr.atomic`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ibv_wr_atomic {
    pub remote_addr: u64,
    pub compare_add: u64,
    pub swap: u64,
    pub rkey: u32,
}

/// `struct ibv_recv_wr`.
#[repr(C)]
pub struct ibv_recv_wr {
    pub wr_id: u64,
    pub next: *mut ibv_recv_wr,
    pub sg_list: *mut ibv_sge,
    pub num_sge: c_int,
}

/// `struct ibv_wc`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ibv_wc {
    pub wr_id: u64,
    pub status: c_int,
    pub opcode: c_int,
    pub vendor_err: u32,
    pub byte_len: u32,
    /// Big endian.
    pub imm_data: u32,
    pub qp_num: u32,
    pub src_qp: u32,
    pub wc_flags: c_uint,
    pub pkey_index: u16,
    pub slid: u16,
    pub sl: u8,
    pub dlid_path_bits: u8,
}

/// The values of the enumerations and flags.
pub mod value {
    use std::ffi::{c_int, c_uint};

    pub const TRANSPORT_IB: c_int = 0;
    pub const TRANSPORT_IWARP: c_int = 1;
    #[cfg(test)]
    pub const LINK_LAYER_INFINIBAND: u8 = 1;
    pub const LINK_LAYER_ETHERNET: u8 = 2;
    pub const PORT_ACTIVE: c_int = 4;
    pub const ATOMIC_NONE: c_int = 0;
    pub const QPT_RC: c_int = 2;

    pub const QPS_RESET: c_int = 0;
    pub const QPS_INIT: c_int = 1;
    pub const QPS_RTR: c_int = 2;
    pub const QPS_RTS: c_int = 3;
    pub const QPS_SQD: c_int = 4;
    pub const QPS_ERR: c_int = 6;

    pub const QP_STATE: c_int = 1;
    pub const QP_ACCESS_FLAGS: c_int = 1 << 3;
    pub const QP_PKEY_INDEX: c_int = 1 << 4;
    pub const QP_PORT: c_int = 1 << 5;
    pub const QP_AV: c_int = 1 << 7;
    pub const QP_PATH_MTU: c_int = 1 << 8;
    pub const QP_TIMEOUT: c_int = 1 << 9;
    pub const QP_RETRY_CNT: c_int = 1 << 10;
    pub const QP_RNR_RETRY: c_int = 1 << 11;
    pub const QP_RQ_PSN: c_int = 1 << 12;
    pub const QP_MAX_QP_RD_ATOMIC: c_int = 1 << 13;
    pub const QP_MIN_RNR_TIMER: c_int = 1 << 15;
    pub const QP_SQ_PSN: c_int = 1 << 16;
    pub const QP_MAX_DEST_RD_ATOMIC: c_int = 1 << 17;
    pub const QP_DEST_QPN: c_int = 1 << 20;

    pub const WR_RDMA_WRITE: c_int = 0;
    pub const WR_RDMA_WRITE_WITH_IMM: c_int = 1;
    pub const WR_SEND: c_int = 2;
    pub const WR_SEND_WITH_IMM: c_int = 3;
    pub const WR_RDMA_READ: c_int = 4;
    pub const WR_ATOMIC_CMP_AND_SWP: c_int = 5;
    pub const WR_ATOMIC_FETCH_AND_ADD: c_int = 6;

    pub const SEND_FENCE: c_uint = 1;
    pub const SEND_SIGNALED: c_uint = 2;
    pub const SEND_SOLICITED: c_uint = 4;
    pub const SEND_INLINE: c_uint = 8;

    pub const WC_SEND: c_int = 0;
    pub const WC_RDMA_WRITE: c_int = 1;
    pub const WC_RDMA_READ: c_int = 2;
    pub const WC_COMP_SWAP: c_int = 3;
    pub const WC_FETCH_ADD: c_int = 4;
    pub const WC_RECV: c_int = 128;
    pub const WC_RECV_RDMA_WITH_IMM: c_int = 129;
    pub const WC_WITH_IMM: c_uint = 2;
}

/// Fails to compile unless the structure has this size and its fields these offsets.
macro_rules! assert_layout {
    ($structure:ty, $bytes:literal, { $($($field:ident).+ : $offset:literal),* $(,)? }) => {
        const _: () = {
            assert!(size_of::<$structure>() == $bytes);
            $(assert!(std::mem::offset_of!($structure, $($field).+) == $offset);)*
        };
    };
}
pub(super) use assert_layout;

assert_layout!(ibv_device, 664, { node_type: 16, transport_type: 20, name: 24 });
assert_layout!(ibv_context_ops, 256, {
    poll_cq: 88, req_notify_cq: 96, post_srq_recv: 160, post_send: 200, post_recv: 208,
});
assert_layout!(ibv_context, 328, {
    device: 0, ops: 8, cmd_fd: 264, async_fd: 268, num_comp_vectors: 272, _mutex: 280, _abi_compat: 320,
});
assert_layout!(ibv_device_attr, 232, {
    fw_ver: 0, node_guid: 64, sys_image_guid: 72, max_mr_size: 80, page_size_cap: 88, vendor_id: 96, hw_ver: 104,
    max_qp: 108, max_qp_wr: 112, device_cap_flags: 116, max_sge: 120, max_sge_rd: 124, max_cq: 128, max_cqe: 132,
    max_mr: 136, max_pd: 140, max_qp_rd_atom: 144, max_res_rd_atom: 152, max_qp_init_rd_atom: 156, atomic_cap: 164,
    max_srq: 212, max_srq_wr: 216, max_srq_sge: 220, max_pkeys: 224, local_ca_ack_delay: 226, phys_port_cnt: 227,
});
assert_layout!(ibv_port_attr, 52, {
    state: 0, max_mtu: 4, active_mtu: 8, gid_tbl_len: 12, port_cap_flags: 16, max_msg_sz: 20, pkey_tbl_len: 32,
    lid: 34, sm_lid: 36, lmc: 38, sm_sl: 40, active_width: 43, phys_state: 45, link_layer: 46, flags: 47,
    port_cap_flags2: 48,
});
assert_layout!(ibv_pd, 16, { context: 0, handle: 8 });
assert_layout!(ibv_mr, 48, { context: 0, pd: 8, addr: 16, length: 24, handle: 32, lkey: 36, rkey: 40 });
assert_layout!(ibv_comp_channel, 16, { context: 0, fd: 8, refcnt: 12 });
// The next three are declared up to the last field that is used; the mutex that follows is at 32, 32 and 64.
assert_layout!(ibv_cq, 32, { context: 0, channel: 8, cq_context: 16, handle: 24, cqe: 28 });
assert_layout!(ibv_srq, 32, { context: 0, srq_context: 8, pd: 16, handle: 24 });
assert_layout!(ibv_qp, 56, {
    context: 0, qp_context: 8, pd: 16, send_cq: 24, recv_cq: 32, srq: 40, handle: 48, qp_num: 52,
});
assert_layout!(ibv_srq_init_attr, 24, { srq_context: 0, max_wr: 8, max_sge: 12, srq_limit: 16 });
assert_layout!(ibv_qp_cap, 20, {
    max_send_wr: 0, max_recv_wr: 4, max_send_sge: 8, max_recv_sge: 12, max_inline_data: 16,
});
assert_layout!(ibv_qp_init_attr, 64, {
    qp_context: 0, send_cq: 8, recv_cq: 16, srq: 24, cap: 32, qp_type: 52, sq_sig_all: 56,
});
assert_layout!(ibv_ah_attr, 32, {
    dgid: 0, flow_label: 16, sgid_index: 20, hop_limit: 21, traffic_class: 22, dlid: 24, sl: 26, src_path_bits: 27,
    static_rate: 28, is_global: 29, port_num: 30,
});
assert_layout!(ibv_qp_attr, 144, {
    qp_state: 0, cur_qp_state: 4, path_mtu: 8, path_mig_state: 12, qkey: 16, rq_psn: 20, sq_psn: 24, dest_qp_num: 28,
    qp_access_flags: 32, cap: 36, ah_attr: 56, alt_ah_attr: 88, pkey_index: 120, alt_pkey_index: 122,
    en_sqd_async_notify: 124, sq_draining: 125, max_rd_atomic: 126, max_dest_rd_atomic: 127, min_rnr_timer: 128,
    port_num: 129, timeout: 130, retry_cnt: 131, rnr_retry: 132, alt_port_num: 133, alt_timeout: 134, rate_limit: 136,
});
assert_layout!(ibv_sge, 16, { addr: 0, length: 8, lkey: 12 });
assert_layout!(ibv_send_wr, 128, {
    wr_id: 0, next: 8, sg_list: 16, num_sge: 24, opcode: 28, send_flags: 32, imm_data: 36, wr: 40,
});
assert_layout!(ibv_wr_rdma, 16, { remote_addr: 0, rkey: 8 });
assert_layout!(ibv_wr_atomic, 32, { remote_addr: 0, compare_add: 8, swap: 16, rkey: 24 });
assert_layout!(ibv_recv_wr, 32, { wr_id: 0, next: 8, sg_list: 16, num_sge: 24 });
assert_layout!(ibv_wc, 48, {
    wr_id: 0, status: 8, opcode: 12, vendor_err: 16, byte_len: 20, imm_data: 24, qp_num: 28, src_qp: 32, wc_flags: 36,
    pkey_index: 40, slid: 42, sl: 44, dlid_path_bits: 45,
});
