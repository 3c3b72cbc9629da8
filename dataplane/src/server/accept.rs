//! The control thread's side of a connection: accept, TLS, Hello, who is asking, HelloAck, and the move to a core.
//!
//! Owns the listener and the handshake. Called by `server::serve`. From the move on the connection belongs to
//! `session` on its core.
//!
//! The first byte says what a connection is: a TLS handshake, or the `H` of a plain frame.
//!
//! Invariants
//! - A plain connection is taken on loopback only, both ends of it, unless the cell is `insecure`.
//! - Nothing about the cell, its tables or its users is said to a client that has not shown who it is, but the versions
//!   and mechanisms it speaks.
//! - A connection counts against `sessions_max` from accept to its end.
//! - A client that has not said Hello, and who it is, within `handshake_timeout` is closed; until then it costs one
//!   task, a small frame, and the state of its TLS.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use heliostat_tls::ServerConfig;
use hidb::frame::{self, FrameKind};
use hidb::{Error, ErrorCode, Result, proto};
use tokio::net::{TcpListener, TcpStream};

use super::access::Access;
use super::authenticate::{Authenticated, authenticate};
use super::core::CoreServer;
use super::session::{self, Agreed};
use super::setup_channel::SetupChannel;
use super::{Cell, catalog};

/// Features a client may ask for.
const FEATURES: &[&str] = &["decimal64", "order"];
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

async fn welcome(cell: Arc<Cell>, stream: TcpStream) {
    if !cell.session_begins() {
        cell.metrics.sessions_refused.fetch_add(1, Relaxed);
        let limit = cell.config.sessions_max;
        let error = Error::new(ErrorCode::Overloaded, format!("{limit} sessions are open: sessions_max is {limit}"));
        SetupChannel::plain(stream).refuse(&error).await;
        return;
    }
    serve(&cell, stream).await;
    cell.session_ended();
}

/// A connection from its first byte to its end.
async fn serve(cell: &Arc<Cell>, stream: TcpStream) {
    let deadline = tokio::time::Instant::now() + cell.config.handshake_timeout.0;
    let too_late = || {
        let timeout_ms = cell.config.handshake_timeout.0.as_millis();
        let message = format!("no Hello within {timeout_ms} ms of connecting, or no proof of who is asking");
        Error::new(ErrorCode::Protocol, message)
    };
    let mut channel = match tokio::time::timeout_at(deadline, open(cell, &stream)).await {
        Ok(Some(Opening::Tls(config))) => {
            match tokio::time::timeout_at(deadline, SetupChannel::accept_tls(stream, config)).await {
                Ok(Ok(channel)) => channel,
                Ok(Err(error)) => {
                    cell.metrics.protocol_errors.fetch_add(1, Relaxed);
                    tracing::info!(%error, "connection refused: TLS");
                    return;
                }
                Err(_) => return,
            }
        }
        Ok(Some(Opening::Plain)) => SetupChannel::plain(stream),
        Ok(Some(Opening::Refused(error))) => {
            cell.metrics.protocol_errors.fetch_add(1, Relaxed);
            tracing::info!(%error, "connection refused");
            return SetupChannel::plain(stream).refuse(&error).await;
        }
        Ok(None) => return,
        Err(_) => return SetupChannel::plain(stream).refuse(&too_late()).await,
    };
    let agreed = match tokio::time::timeout_at(deadline, handshake(cell, &mut channel)).await {
        Ok(Ok(Some(agreed))) => agreed,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => {
            cell.metrics.protocol_errors.fetch_add(1, Relaxed);
            tracing::info!(%error, "connection refused: bad handshake");
            return channel.refuse(&error).await;
        }
        Err(_) => return channel.refuse(&too_late()).await,
    };
    let moving = match channel.leave() {
        Ok(moving) => moving,
        Err(error) => {
            tracing::warn!(%error, "cannot take the connection from the control thread");
            return;
        }
    };
    let core = cell.next_core();
    let user = agreed.identity.as_ref().map_or("", |identity| identity.name.as_str());
    tracing::debug!(session = agreed.session_id, client = agreed.client_name, user, core, "session begins");
    let on_core = cell.clone();
    let run = cell
        .cores
        .live_on(core, move || async move { session::run(CoreServer::of(&on_core, core), moving, agreed).await });
    if let Err(error) = run.await {
        tracing::error!(%error, core, "a session failed");
    }
}

/// How a connection begins.
enum Opening {
    Plain,
    Tls(Arc<ServerConfig>),
    Refused(Error),
}

/// Looks at the first byte. `None` when the peer went away.
async fn open(cell: &Cell, stream: &TcpStream) -> Option<Opening> {
    let mut first = [0];
    if stream.peek(&mut first).await.ok()? == 0 {
        return None;
    }
    let refused = |message: &str| Some(Opening::Refused(Error::new(ErrorCode::Unauthenticated, message)));
    if first[0] == heliostat_tls::FIRST_BYTE {
        return match &cell.tls {
            Some(config) => Some(Opening::Tls(config.clone())),
            None => refused("this cell has no certificate, so no TLS: connect with hidb+plain:// on its own machine"),
        };
    }
    let local = [stream.local_addr().ok()?, stream.peer_addr().ok()?, cell.config.listen];
    if !cell.config.insecure && (cell.config.tls_required || !local.iter().all(|address| address.ip().is_loopback())) {
        return refused("this cell takes TLS only: connect with hidb://");
    }
    Some(Opening::Plain)
}

/// `None` when the peer went away.
async fn handshake(cell: &Arc<Cell>, channel: &mut SetupChannel) -> Result<Option<Agreed>> {
    let Some(frame) = channel.read_frame().await? else { return Ok(None) };
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
    let Some(Authenticated { identity, data }) = authenticate(cell, channel).await? else { return Ok(None) };
    let access = Access::of(cell, identity.as_ref())?;
    let role = match &access {
        Access::Insecure => proto::Role::Unspecified,
        Access::Of(user) => user.role.to_proto(),
    };
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
        tables: catalog::summaries(cell, &access).into_iter().take(HELLO_TABLES_MAX).collect(),
        cell_version: env!("CARGO_PKG_VERSION").into(),
        volume_uuid: cell.store.volume().into(),
        cores: cell.cores.count() as u32,
        fabric: cell.devices.to_proto(),
        authentication_data: data.into(),
        user: identity.as_ref().map_or_else(String::new, |identity| identity.name.clone()),
        role: role as i32,
    };
    let bytes = match frame::encode_frame(FrameKind::HelloAck, frame.request_id, &ack, &[]) {
        Ok(bytes) => bytes,
        // Very long table names; the client can still list them.
        Err(_) => {
            ack.tables.clear();
            frame::encode_frame(FrameKind::HelloAck, frame.request_id, &ack, &[])?
        }
    };
    if channel.write_all(&bytes).await.is_err() {
        return Ok(None);
    }
    Ok(Some(Agreed {
        session_id,
        identity,
        client_name: hello.client_name.chars().take(100).collect(),
        decimal64: features.iter().any(|feature| feature == "decimal64"),
        image_bytes_max,
        link_secret: channel.link_secret()?,
    }))
}
