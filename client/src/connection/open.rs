//! How a connection is made: socket, TLS, Hello, who is asking, and the first link.
//!
//! Called by the client.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use hidb::frame::{FrameKind, encode_frame};
use hidb::{Error, ErrorCode, Result, proto};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;

use super::links::{HOME, Links};
use super::{Connection, Shared, decode, error_of, liveness, outbox, unexpected};
use crate::address::Address;
use crate::authenticate::authenticate;
use crate::credentials::{Credentials, no_authority};
use crate::fabric;
use crate::fabric::protection::Protection;
use crate::notice::Herald;
use crate::options::ConnectOptions;
use crate::receive::FrameReceiver;
use crate::transport::Transport;

/// The protocol version this client speaks.
pub(crate) const PROTOCOL_VERSION: u32 = 1;

/// The feature name of Arrow `Decimal64`.
pub(crate) const FEATURE_DECIMAL64: &str = "decimal64";
/// The feature of cells that keep tables in an order.
pub(crate) const FEATURE_ORDER: &str = "order";

/// Receive buffer asked of the kernel when it allows that much: four result frames.
const SOCKET_BUFFER_BYTES: u32 = 4 << 20;

impl Connection {
    /// Connects, over TLS unless the address is plain, and shakes hands. `is_first` when the client had no connection
    /// before.
    pub(crate) async fn open(
        address: &Address,
        options: &ConnectOptions,
        herald: &Herald,
        is_first: bool,
    ) -> Result<Arc<Connection>> {
        let attempt = Self::open_unbounded(address, options, herald, is_first);
        tokio::time::timeout(options.connect_timeout, attempt).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorCode::Unavailable,
                format!(
                    "{address} did not answer the handshake within {:?}: is it a Heliostat cell?",
                    options.connect_timeout
                ),
            ))
        })
    }

    async fn open_unbounded(
        address: &Address,
        options: &ConnectOptions,
        herald: &Herald,
        is_first: bool,
    ) -> Result<Arc<Connection>> {
        let mut refused = None;
        let mut connected = None;
        for socket_address in address.resolve().await? {
            match connect_socket(socket_address).await {
                Ok(stream) => {
                    connected = Some(stream);
                    break;
                }
                Err(error) => refused = Some(error),
            }
        }
        let stream = match (connected, refused) {
            (Some(stream), _) => stream,
            (None, refused) => {
                let why = refused.map_or_else(|| "no address".to_string(), |error| error.to_string());
                return Err(Error::new(
                    ErrorCode::Unavailable,
                    format!(
                        "no cell answers at {address} ({why}): start one with `heliostat dev`, or give its address with --connect"
                    ),
                ));
            }
        };

        let credentials = options.credentials.as_ref();
        let transport = match address.is_plain() {
            true => Transport::plain(stream),
            false => {
                let config = credentials.map_or_else(|| Err(no_authority()), Credentials::tls)?;
                Transport::with_tls(stream, heliostat_tls::Channel::connect(config, address.host())?).await?
            }
        };
        let transport = Arc::new(transport);
        let mut receiver = FrameReceiver::new(transport.clone());
        let hello = proto::Hello {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            client_name: options.name.clone(),
            features: [(FEATURE_DECIMAL64, options.decimal64), (FEATURE_ORDER, true)]
                .iter()
                .filter(|(_, wanted)| *wanted)
                .map(|(feature, _)| feature.to_string())
                .collect(),
            result_image_bytes_max: options.result_image_bytes_max,
        };
        transport.write_all(&encode_frame(FrameKind::Hello, 0, &hello, &[])?).await?;
        let frame = receiver.next().await?;
        let hello: proto::HelloAck = match frame.kind {
            FrameKind::HelloAck => decode(&frame)?,
            FrameKind::AuthenticationRequired => {
                authenticate(address, credentials, &frame, &transport, &mut receiver).await?
            }
            FrameKind::Error => return Err(error_of(&frame)),
            other => return Err(unexpected(other, "HelloAck")),
        };
        if hello.version != PROTOCOL_VERSION {
            return Err(Error::new(
                ErrorCode::UnsupportedVersion,
                format!(
                    "cell {} speaks protocol {}, this client {PROTOCOL_VERSION}: use versions that match",
                    hello.cell_name, hello.version
                ),
            ));
        }

        let shared = Arc::new(Shared {
            transport,
            outbox: Mutex::default(),
            outbox_filled: Notify::new(),
            outbox_drained: Notify::new(),
            routes: Mutex::default(),
            next_request: AtomicU64::new(1),
            failure: Mutex::default(),
            draining: AtomicBool::new(false),
            started: Instant::now(),
            last_received_ms: AtomicU64::new(0),
            notices: herald.begin_session(is_first),
            links: Links::default(),
        });
        let limits = hello.limits.unwrap_or_default();
        let tasks = vec![
            tokio::spawn(liveness::read_frames(shared.clone(), receiver)),
            tokio::spawn(outbox::write_frames(shared.clone())),
            tokio::spawn(liveness::beat(shared.clone(), limits.heartbeat_interval_ms, limits.dead_peer_timeout_ms)),
        ];
        let connection = Arc::new(Connection { shared, hello, tasks });
        let protection = Protection::of(options, &connection.shared.transport)?;
        let (choice, why) = fabric::choose(&options.transport, &connection.hello.fabric)?;
        tracing::info!("transport {why}");
        if let Some(choice) = choice {
            connection.shared.links.is_optional.store(options.transport == fabric::Transport::Auto, Ordering::Relaxed);
            let opened = match connection.open_fabric(&choice, options, protection) {
                Ok(()) => connection.open_link(HOME).await,
                Err(error) => Err(error),
            };
            connection.shared.links.or_tcp(opened)?;
        }
        Ok(connection)
    }
}

async fn connect_socket(address: std::net::SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A fixed buffer turns the kernel's own tuning off, and is cut to net.core.rmem_max: only worth it
    // where that limit was raised.
    let allowed = std::fs::read_to_string("/proc/sys/net/core/rmem_max").ok().and_then(|text| text.trim().parse().ok());
    if allowed.is_some_and(|allowed: u32| allowed >= SOCKET_BUFFER_BYTES) {
        socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
