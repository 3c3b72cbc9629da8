//! Work completions.

use super::QueuePairNumber;

/// How a work request ended. Names and meaning are those of `enum ibv_wc_status` (see [`Self::name`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum WcStatus {
    /// It was done.
    Success = 0,
    /// The message is longer than the receive request.
    LocLenErr = 1,
    /// Internal inconsistency of the queue pair.
    LocQpOpErr = 2,
    /// A local piece names a wrong key, range or right.
    LocProtErr = 4,
    /// The queue pair went to the error state before the request was done.
    WrFlushErr = 5,
    /// A memory window could not be bound.
    MwBindErr = 6,
    /// The peer answered with something that does not fit the request.
    BadRespErr = 7,
    /// The peer violated the access rights of this receive request's queue pair.
    LocAccessErr = 8,
    /// The peer refused the request as malformed, not enabled or too long.
    RemInvReqErr = 9,
    /// The peer refused key, range or right.
    RemAccessErr = 10,
    /// The peer could not do it for a reason of its own.
    RemOpErr = 11,
    /// The peer did not answer: all retries are used up.
    RetryExcErr = 12,
    /// The peer had no receive request: all RNR retries are used up.
    RnrRetryExcErr = 13,
    /// The peer aborted the request.
    RemAbortErr = 16,
    /// The device failed.
    FatalErr = 19,
    /// The device did not answer in time.
    RespTimeoutErr = 20,
    /// Anything else.
    GeneralErr = 21,
}

impl WcStatus {
    /// The name in `<infiniband/verbs.h>`.
    pub const fn name(self) -> &'static str {
        match self {
            WcStatus::Success => "IBV_WC_SUCCESS",
            WcStatus::LocLenErr => "IBV_WC_LOC_LEN_ERR",
            WcStatus::LocQpOpErr => "IBV_WC_LOC_QP_OP_ERR",
            WcStatus::LocProtErr => "IBV_WC_LOC_PROT_ERR",
            WcStatus::WrFlushErr => "IBV_WC_WR_FLUSH_ERR",
            WcStatus::MwBindErr => "IBV_WC_MW_BIND_ERR",
            WcStatus::BadRespErr => "IBV_WC_BAD_RESP_ERR",
            WcStatus::LocAccessErr => "IBV_WC_LOC_ACCESS_ERR",
            WcStatus::RemInvReqErr => "IBV_WC_REM_INV_REQ_ERR",
            WcStatus::RemAccessErr => "IBV_WC_REM_ACCESS_ERR",
            WcStatus::RemOpErr => "IBV_WC_REM_OP_ERR",
            WcStatus::RetryExcErr => "IBV_WC_RETRY_EXC_ERR",
            WcStatus::RnrRetryExcErr => "IBV_WC_RNR_RETRY_EXC_ERR",
            WcStatus::RemAbortErr => "IBV_WC_REM_ABORT_ERR",
            WcStatus::FatalErr => "IBV_WC_FATAL_ERR",
            WcStatus::RespTimeoutErr => "IBV_WC_RESP_TIMEOUT_ERR",
            WcStatus::GeneralErr => "IBV_WC_GENERAL_ERR",
        }
    }
}

/// What a completion completes (`enum ibv_wc_opcode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WcOpcode {
    /// A SEND.
    Send,
    /// A WRITE.
    RdmaWrite,
    /// A READ.
    RdmaRead,
    /// A compare-and-swap.
    CompSwap,
    /// A fetch-and-add.
    FetchAdd,
    /// A receive request, by the peer's SEND.
    Recv,
    /// A receive request, by the peer's WRITE with immediate.
    RecvRdmaWithImm,
}

/// A work completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkCompletion {
    /// The identifier that the request was posted with.
    pub id: u64,
    /// How it ended.
    pub status: WcStatus,
    /// What it was. For a flushed receive request, [`WcOpcode::Recv`].
    pub opcode: WcOpcode,
    /// Bytes received, written by the peer (WRITE with immediate), or of the request; 0 on failure.
    pub length_bytes: u32,
    /// The peer's immediate data.
    pub immediate: Option<u32>,
    /// The queue pair.
    pub queue_pair: QueuePairNumber,
}
