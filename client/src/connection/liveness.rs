//! The tasks that hear of the cell: one reads frames, one sees to it that there is something to hear.
//!
//! Called by [`super::open`]. Both end with the connection.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hidb::frame::{FrameKind, encode_frame};
use hidb::{Error, ErrorCode, proto};

use super::Shared;
use crate::receive::FrameReceiver;

pub(super) async fn read_frames(shared: Arc<Shared>, mut receiver: FrameReceiver) {
    loop {
        let outcome = match receiver.next().await {
            Ok(frame) => {
                let now = shared.started.elapsed().as_millis() as u64;
                shared.last_received_ms.store(now, Ordering::Relaxed);
                shared.dispatch(frame, None)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, "connection ends");
            shared.fail(error);
            return;
        }
    }
}

/// Sends a heartbeat when the cell has been silent for an interval; gives the connection up when it stays
/// silent.
pub(super) async fn beat(shared: Arc<Shared>, interval_ms: u64, dead_ms: u64) {
    let interval_ms = if interval_ms == 0 { 5_000 } else { interval_ms.clamp(50, 60_000) };
    let dead_ms = if dead_ms == 0 { 4 * interval_ms } else { dead_ms.max(2 * interval_ms) };
    let mut nonce = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(interval_ms)).await;
        let now = shared.started.elapsed().as_millis() as u64;
        let silent_ms = now.saturating_sub(shared.last_received_ms.load(Ordering::Relaxed));
        if silent_ms > dead_ms {
            shared.fail(Error::new(
                ErrorCode::Unavailable,
                format!("the cell has been silent for {silent_ms} ms: the connection is given up"),
            ));
            return;
        }
        if silent_ms >= interval_ms {
            nonce += 1;
            let body = proto::Heartbeat { nonce, reply: false };
            let Ok(frame) = encode_frame(FrameKind::Heartbeat, 0, &body, &[]) else { return };
            if shared.send(frame.into()).is_err() {
                return;
            }
        }
    }
}
