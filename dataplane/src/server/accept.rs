//! The control thread's side of a connection: accept, Hello and HelloAck, and the move to a core.
//!
//! Owns the listener and the handshake. Called by `server::serve`. From the move on the connection belongs to
//! `session` on its core.
//!
//! Invariants
//! - A connection counts against `sessions_max` from accept to its end.
//! - A client that has not said Hello within `handshake_timeout` is closed; until then it costs one task and one
//!   frame decoder that has allocated nothing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hidb::frame::{self, Frame, FrameDecoder, FrameKind};
use hidb::{Error, ErrorCode, Result, convert, proto};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::core::CoreServer;
use super::session::{self, Agreed};
use super::{Cell, catalog};

/// Features a client may ask for.
const FEATURES: &[&str] = &["decimal64"];
/// Tables whose schema hashes the handshake names.
const HELLO_TABLES_MAX: usize = 1_000;
/// The smallest result image a client may ask for.
const IMAGE_BYTES_MIN: usize = 64 << 10;

/// Accepts connections until it is dropped.
pub async fn accept(cell: Arc<Cell>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                tokio::task::spawn_local(welcome(cell.clone(), stream));
            }
            Err(error) => {
                // Out of descriptors or memory: more of the same would spin.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn welcome(cell: Arc<Cell>, mut stream: TcpStream) {
    if !cell.session_begins() {
        cell.metrics.sessions_refused.fetch_add(1, Relaxed);
        let limit = cell.config.sessions_max;
        let error = Error::new(ErrorCode::Overloaded, format!("{limit} sessions are open: sessions_max is {limit}"));
        refuse(&mut stream, &error).await;
        return;
    }
    let timeout = cell.config.handshake_timeout.0;
    let agreed = match tokio::time::timeout(timeout, handshake(&cell, &mut stream)).await {
        Ok(Ok(Some(agreed))) => agreed,
        Ok(Ok(None)) => {
            cell.session_ended();
            return;
        }
        Ok(Err(error)) => {
            cell.metrics.protocol_errors.fetch_add(1, Relaxed);
            tracing::info!(%error, "connection refused: bad handshake");
            refuse(&mut stream, &error).await;
            cell.session_ended();
            return;
        }
        Err(_) => {
            let message = format!("no Hello within {} ms of connecting", timeout.as_millis());
            refuse(&mut stream, &Error::new(ErrorCode::Protocol, message)).await;
            cell.session_ended();
            return;
        }
    };
    let stream = match stream.into_std() {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%error, "cannot take the connection from the control thread");
            cell.session_ended();
            return;
        }
    };
    let core = cell.next_core();
    tracing::debug!(session = agreed.session_id, client = agreed.client_name, core, "session begins");
    let on_core = cell.clone();
    let run = cell
        .cores
        .live_on(core, move || async move { session::run(CoreServer::of(&on_core, core), stream, agreed).await });
    if let Err(error) = run.await {
        tracing::error!(%error, core, "a session failed");
    }
    cell.session_ended();
}

/// Says why and closes, leaving the peer a moment to read it.
async fn refuse(stream: &mut TcpStream, error: &Error) {
    let Ok(bytes) = frame::encode_frame(FrameKind::Error, 0, &convert::error_to_proto(error), &[]) else { return };
    let _ = tokio::time::timeout(Duration::from_secs(1), async {
        stream.write_all(&bytes).await?;
        stream.shutdown().await?;
        // Unread input would turn the close into a reset, which could overtake the error.
        let mut discarded = [0; 4096];
        while stream.read(&mut discarded).await? > 0 {}
        io::Result::Ok(())
    })
    .await;
}

/// `None` when the peer went away.
async fn handshake(cell: &Arc<Cell>, stream: &mut TcpStream) -> Result<Option<Agreed>> {
    let Some(frame) = read_hello(stream).await? else { return Ok(None) };
    if frame.kind != FrameKind::Hello {
        let message = format!("the first frame must be Hello, not {}", frame.kind.name());
        return Err(Error::new(ErrorCode::Protocol, message));
    }
    let hello: proto::Hello = frame.message()?;
    let version = u32::from(frame::PROTOCOL_VERSION);
    if hello.version_min > version || hello.version_max < version {
        return Err(Error::new(
            ErrorCode::UnsupportedVersion,
            format!(
                "the client speaks versions {} to {} of HIDB, this cell speaks {version}",
                hello.version_min, hello.version_max
            ),
        ));
    }
    if cell.is_draining() {
        return Err(Error::new(ErrorCode::Draining, "the cell is draining: connect to it again later"));
    }
    let features: Vec<String> =
        FEATURES.iter().filter(|name| hello.features.iter().any(|f| f == *name)).map(|f| f.to_string()).collect();
    let image_bytes_max = match hello.result_image_bytes_max as usize {
        0 => cell.image_bytes_max(),
        asked => asked.clamp(IMAGE_BYTES_MIN.min(cell.image_bytes_max()), cell.image_bytes_max()),
    };
    let config = &cell.config;
    let session_id = cell.next_session_id();
    let mut ack = proto::HelloAck {
        version,
        cell_name: cell.name.clone(),
        session_id,
        features: features.clone(),
        limits: Some(proto::Limits {
            frame_bytes_max: config.frame_bytes_max.bytes() as u32,
            requests_in_flight_max: config.requests_in_flight_max,
            result_image_bytes_max: image_bytes_max as u32,
            request_memory_bytes_max: config.request_memory.bytes(),
            heartbeat_interval_ms: config.heartbeat_interval.0.as_millis() as u64,
            dead_peer_timeout_ms: config.dead_peer_timeout.0.as_millis() as u64,
            initial_credits: config.initial_credits,
            load_window_bytes: config.load_window.bytes().min(u64::from(u32::MAX)) as u32,
        }),
        tables: catalog::summaries(cell).into_iter().take(HELLO_TABLES_MAX).collect(),
        cell_version: env!("CARGO_PKG_VERSION").into(),
        volume_uuid: cell.store.volume().into(),
        cores: cell.cores.count() as u32,
        fabric: cell.devices.to_proto(),
    };
    let bytes = match frame::encode_frame(FrameKind::HelloAck, frame.request_id, &ack, &[]) {
        Ok(bytes) => bytes,
        // Very long table names; the client can still list them.
        Err(_) => {
            ack.tables.clear();
            frame::encode_frame(FrameKind::HelloAck, frame.request_id, &ack, &[])?
        }
    };
    if stream.write_all(&bytes).await.is_err() {
        return Ok(None);
    }
    Ok(Some(Agreed {
        session_id,
        client_name: hello.client_name.chars().take(100).collect(),
        decimal64: features.iter().any(|feature| feature == "decimal64"),
        image_bytes_max,
    }))
}

/// Reads exactly one frame: what a fast client sends behind its Hello stays in the socket for the core.
async fn read_hello(stream: &mut TcpStream) -> Result<Option<Frame>> {
    let mut decoder = FrameDecoder::new();
    loop {
        match stream.read(decoder.space()).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(count) => {
                if let Some(frame) = decoder.advance(count)? {
                    return Ok(Some(frame));
                }
            }
        }
    }
}
