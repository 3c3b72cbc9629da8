//! The server: sessions over TCP, the requests they make, drain, metrics.
//!
//! Owns [`Cell`] (what all threads of a running cell share) and [`serve`] (the control thread). Called by `main`.
//!
//! A connection is accepted, greeted and asked who it is on the control thread (`accept`, `authenticate`), then moves to a
//! core (`session`), where its requests run (`requests`, `catalog`, `questions`, `deletes`, `loads`, `administration`), each after
//! `access` has seen whether its user may make it. A session may open RDMA links (`links`). Answers leave through
//! one bounded queue per session (`outbox`), or by its links.
//!
//! Invariants
//! - The control thread is not on the request path.
//! - Changes of the store run to their end even when the client that asked for them goes away.

pub mod accept;
pub mod access;
pub mod administration;
pub mod authenticate;
pub mod background;
pub mod catalog;
pub mod channel;
pub mod control;
pub mod core;
pub mod deletes;
pub mod indexes;
pub mod links;
pub mod loads;
pub mod metrics_http;
pub mod outbox;
pub mod questions;
pub mod requests;
pub mod searches;
pub mod security;
pub mod session;
pub mod setup_channel;
pub mod startup;
pub mod statements;

use std::future::Future;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use heliostat_tls::ServerConfig;
use hidb::{Error, ErrorCode, Result, proto};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use self::core::CoreServer;
use crate::config::Config;
use crate::cores::{self, Cores};
use crate::fabric::Devices;
use crate::metrics::Metrics;
use crate::search::index::keeper::Keeper;
use crate::store::Store;

/// What all threads of a running cell share.
pub struct Cell {
    /// Its configuration.
    pub config: Config,
    /// Its name.
    pub name: String,
    /// How it shows itself over TLS; `None` without TLS.
    pub tls: Option<Arc<ServerConfig>>,
    /// Its tables and users.
    pub store: Arc<Store>,
    /// RDMA devices that links are served on.
    pub devices: Devices,
    /// Its executors.
    pub cores: Cores,
    /// What keeps its vector indexes.
    pub indexes: Keeper,
    /// What it counts.
    pub metrics: Metrics,
    /// When it started.
    pub started: Instant,
    draining: AtomicBool,
    sessions: AtomicU64,
    next_session: AtomicU64,
    next_core: AtomicUsize,
}

impl Cell {
    /// A cell over an open store and running cores.
    pub fn new(
        config: Config,
        tls: Option<Arc<ServerConfig>>,
        devices: Devices,
        store: Arc<Store>,
        cores: Cores,
    ) -> Arc<Self> {
        Arc::new(Cell {
            name: config.cell_name(),
            metrics: Metrics::new(cores.count()),
            indexes: Keeper::new(config.graph_memory.bytes()),
            config,
            tls,
            store,
            devices,
            cores,
            started: Instant::now(),
            draining: AtomicBool::new(false),
            sessions: AtomicU64::new(0),
            next_session: AtomicU64::new(1),
            next_core: AtomicUsize::new(0),
        })
    }

    /// Whether the cell takes no new requests any more.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Sessions open now, those that are still shaking hands included.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// The largest result image: what fits one frame.
    pub fn image_bytes_max(&self) -> usize {
        self.config.frame_bytes_max.bytes() as usize - (hidb::frame::FRAME_BYTES_MAX - hidb::frame::PAYLOAD_BYTES_MAX)
    }

    /// Counts a session in; false when there are as many as may be.
    fn session_begins(&self) -> bool {
        let before = self.sessions.fetch_add(1, Ordering::Relaxed);
        if before >= u64::from(self.config.sessions_max) {
            self.session_ended();
            return false;
        }
        true
    }

    fn session_ended(&self) {
        self.sessions.fetch_sub(1, Ordering::Relaxed);
    }

    fn next_session_id(&self) -> u64 {
        self.next_session.fetch_add(1, Ordering::Relaxed)
    }

    /// The core with the fewest sessions; ties take turns.
    fn next_core(&self) -> usize {
        let first = self.next_core.fetch_add(1, Ordering::Relaxed);
        let count = self.cores.count();
        let load = |core: &usize| self.metrics.core(*core).sessions.load(Ordering::Relaxed);
        (0..count).map(|index| (first + index) % count).min_by_key(load).unwrap_or(0)
    }

    /// Tells every session on every core, in order of the changes. Waits for the cores, not for the clients.
    pub async fn announce(self: &Arc<Self>, notice: proto::CacheInvalidationNotice) {
        self.tell_cores(move |core| core.announce(&notice)).await;
    }

    /// Tells every session of a user that what it may read has changed.
    pub async fn rights_changed(self: &Arc<Self>, user: String) {
        self.tell_cores(move |core| core.rights_changed(&user)).await;
    }

    async fn tell_cores(self: &Arc<Self>, tell: impl Fn(&CoreServer) + Clone + Send + 'static) {
        for core in 0..self.cores.count() {
            let (on_core, tell) = (self.clone(), tell.clone());
            let told = self.cores.run_on(core, move || async move { tell(&CoreServer::of(&on_core, core)) });
            if let Err(error) = told.await {
                tracing::warn!(%error, core, "could not send a notice to the sessions of a core");
            }
        }
    }

    /// Brings counters that others keep up to date before metrics are shown.
    pub async fn refresh_metrics(self: &Arc<Self>) {
        background::refresh_metrics(self).await;
    }
}

/// Runs a change of the store on this core to its end, even when the caller is dropped meanwhile.
pub async fn to_the_end<T: 'static>(work: impl Future<Output = Result<T>> + 'static) -> Result<T> {
    let (done, answer) = futures::channel::oneshot::channel();
    glommio::spawn_local(async move {
        let result = cores::catch_panics(work).await.and_then(|result| result);
        let _ = done.send(result);
    })
    .detach();
    answer.await.map_err(|_| Error::new(ErrorCode::Draining, "the cell is stopping"))?
}

/// Serves until SIGTERM or SIGINT, then drains. Runs on the control thread.
pub fn serve(cell: Arc<Cell>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("control")
        .build()
        .map_err(|error| io_error("starting the control thread", &error))?;
    let result = tokio::task::LocalSet::new().block_on(&runtime, serve_on_control(cell.clone()));
    cell.cores.stop();
    result
}

fn io_error(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorCode::Io, format!("{what} failed: {error}"))
}

async fn serve_on_control(cell: Arc<Cell>) -> Result<()> {
    let failed = |what: String| move |error: std::io::Error| io_error(&what, &error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed("waiting for SIGTERM".into()))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("waiting for SIGINT".into()))?;
    let listen = cell.config.listen;
    let listener = TcpListener::bind(listen).await.map_err(failed(format!("listening on {listen}")))?;
    let address = listener.local_addr().map_err(failed("asking for the port".into()))?;
    if cell.config.metrics {
        let wanted = cell.config.metrics_listen;
        match TcpListener::bind(wanted).await {
            Ok(listener) => {
                if let Ok(address) = listener.local_addr() {
                    tracing::info!("metrics on http://{address}/metrics");
                }
                tokio::task::spawn_local(metrics_http::serve(cell.clone(), listener));
            }
            // Two development cells on one machine: the second one still serves.
            Err(error) => tracing::warn!(%error, "no metrics: cannot listen on {wanted}"),
        }
    }
    let background = tokio::task::spawn_local(background::run(cell.clone()));
    let accepting = tokio::task::spawn_local(accept::accept(cell.clone(), listener));
    if let Some(listener) = control::listen(&cell.config) {
        tokio::task::spawn_local(control::serve(cell.clone(), listener));
    }
    announce_ready(&cell, &format!("ready {}://{address}", cell.config.scheme()))?;
    tracing::info!(%address, cores = cell.cores.count(), volume = %cell.store.volume(), "serving");

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    accepting.abort();
    background.abort();
    tokio::select! {
        () = drain(&cell) => {}
        _ = terminate.recv() => tracing::warn!("second signal: not waiting for running requests"),
        _ = interrupt.recv() => tracing::warn!("second signal: not waiting for running requests"),
    }
    control::remove(&control::socket_path(&cell.config));
    Ok(())
}

fn announce_ready(cell: &Cell, line: &str) -> Result<()> {
    let path = &cell.config.ready_file;
    if !path.as_os_str().is_empty() {
        std::fs::write(path, format!("{line}\n"))
            .map_err(|error| io_error(&format!("writing the ready file {}", path.display()), &error))?;
    }
    // Standard output may be closed; the cell serves all the same.
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    Ok(())
}

/// Tells every client, then waits until the running requests have ended or their time is up.
async fn drain(cell: &Arc<Cell>) {
    cell.draining.store(true, Ordering::Relaxed);
    tracing::info!(requests = cell.metrics.requests_in_flight(), "draining");
    cell.announce(proto::CacheInvalidationNotice {
        reason: proto::cache_invalidation_notice::Reason::CellDraining as i32,
        ..Default::default()
    })
    .await;
    let deadline = Instant::now() + cell.config.drain_timeout.0;
    while cell.metrics.requests_in_flight() > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Answers and notices that are queued get a moment to leave.
    tokio::time::sleep(Duration::from_millis(50)).await;
    tracing::info!(requests_left = cell.metrics.requests_in_flight(), "drained");
}

/// A failed request: the error, and the schema to use instead when the client's is stale.
#[derive(Debug)]
pub struct Failure {
    error: Error,
    current: Option<Arc<hidb::Schema>>,
}

impl Failure {
    /// The client's schema is stale: this is the current one.
    pub fn stale(table: &str, current: &Arc<hidb::Schema>, found: u64) -> Self {
        let message = format!(
            "the schema of table {table:?} is not the one the request was made for (its hash is {:#018x}, the request's {found:#018x}): use the current schema, which comes with this error",
            current.hash()
        );
        Failure { error: Error::new(ErrorCode::StaleSchema, message), current: Some(current.clone()) }
    }

    /// Its message.
    pub fn to_proto(&self) -> proto::Error {
        match &self.current {
            Some(schema) => hidb::convert::stale_schema_to_proto(&self.error, schema),
            None => hidb::convert::error_to_proto(&self.error),
        }
    }
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure { error: error.into(), current: None }
    }
}
