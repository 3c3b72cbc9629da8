//! The client: calls, deadlines, retries, reconnection.
//!
//! Owns [`Client`]. Called by engines and by the command line.
//!
//! Invariants
//! - At most one live connection per client; clones share it.
//! - Only calls whose repetition changes nothing are retried.
//! - What is remembered of the cell ([`crate::cache`]) is dropped before a change made here returns.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hidb::frame::FrameKind;
use hidb::order::TableOrder;
use hidb::proto::{CellStatus, ColumnStorage, TableSummary};
use hidb::{Error, ErrorCode, Result, Schema, convert, proto};
use rand::Rng;
use tokio::sync::broadcast;

use crate::address::Address;
use crate::cache::{Cache, CacheStatistics};
use crate::connection::{Connection, FEATURE_DECIMAL64, RdmaStatistics};
use crate::notice::{Herald, Notice};
use crate::options::ConnectOptions;

/// Notices that a subscriber may be behind.
const NOTICES_WAITING_MAX: usize = 256;

const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// A cell, as an engine sees it. Cheap to clone; clones share one connection.
///
/// ```no_run
/// # async fn example() -> hidb::Result<()> {
/// use futures::StreamExt;
/// use heliostat_client::{Client, ConnectOptions, Credentials, ScanRequest};
///
/// // The profile that `heliostat dev` writes.
/// let options = ConnectOptions { credentials: Credentials::find(None)?, ..ConnectOptions::default() };
/// let client = Client::connect("hidb://127.0.0.1:7400", options).await?;
/// let mut rows = client.scan(ScanRequest::table("lineitem").filter("l_quantity < 5").select(["l_orderkey"])).await?;
/// while let Some(batch) = rows.next().await {
///     println!("{} rows", batch?.num_rows());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    address: Address,
    options: ConnectOptions,
    live: tokio::sync::Mutex<Option<Arc<Connection>>>,
    cache: Arc<Cache>,
    herald: Herald,
}

/// A table's definition and what it takes on the volume.
#[derive(Clone, Debug)]
pub struct TableDescription {
    /// Name, rows, stored bytes, schema hash, id.
    pub summary: TableSummary,
    /// Its columns.
    pub schema: Schema,
    /// The order its rows are kept in, if in one.
    pub order: Option<TableOrder>,
    /// In how many parts it is spread over cores.
    pub shards: u32,
    /// Immutable files it is made of.
    pub segments: u64,
    /// Row groups in them.
    pub row_groups: u64,
    /// What its columns of fixed width would be as plain Arrow, in bytes; text and bytea are not counted.
    pub raw_bytes: u64,
    /// What each column takes.
    pub columns: Vec<ColumnStorage>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("address", &self.inner.address).finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to the cell at `address` (`hidb://host:port`, or `hidb+plain://host:port` without TLS on this machine)
    /// and shakes hands.
    pub async fn connect(address: &str, options: ConnectOptions) -> Result<Client> {
        let address: Address = address.parse()?;
        let patience = options.wait_for_cell;
        let cache = Arc::new(Cache::new(options.result_cache_bytes));
        let herald = Herald::new(cache.clone(), NOTICES_WAITING_MAX);
        let live = tokio::sync::Mutex::new(None);
        let client = Client { inner: Arc::new(Inner { address, options, live, cache, herald }) };
        let give_up = Instant::now() + patience;
        let mut backoff = Backoff::default();
        while let Err(error) = client.connection().await {
            if error.code != ErrorCode::Unavailable || !backoff.pause(Some(give_up)).await {
                return Err(error);
            }
        }
        Ok(client)
    }

    /// Where the cell is.
    pub fn address(&self) -> &Address {
        &self.inner.address
    }

    /// The choices this client was made with.
    pub fn options(&self) -> &ConnectOptions {
        &self.inner.options
    }

    /// What the cell says unasked from now on, and when changes may have gone unheard: [`Notice::EverythingChanged`].
    /// Whoever keeps something of a table drops it then. A subscriber that is more than 256 notices behind gets
    /// `Lagged`, which means the same to it.
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        self.inner.herald.subscribe()
    }

    /// What the client's cache of schemas and answers has done and holds.
    pub fn cache_statistics(&self) -> CacheStatistics {
        self.inner.cache.statistics()
    }

    pub(crate) fn cache(&self) -> &Arc<Cache> {
        &self.inner.cache
    }

    /// What the cell said of itself when the current connection was made.
    pub async fn hello(&self) -> Result<proto::HelloAck> {
        Ok(self.connection().await?.hello().clone())
    }

    /// The live connection, made anew when there is none.
    pub(crate) async fn connection(&self) -> Result<Arc<Connection>> {
        let mut live = self.inner.live.lock().await;
        if let Some(connection) = live.as_ref()
            && !connection.is_spent()
        {
            return Ok(connection.clone());
        }
        let Inner { address, options, herald, .. } = &*self.inner;
        // Rare and large: without the box every call's future would have room for it.
        let connection = Box::pin(Connection::open(address, options, herald, live.is_none())).await?;
        *live = Some(connection.clone());
        Ok(connection)
    }

    /// When a call that starts now must be over.
    pub(crate) fn deadline(&self, timeout: Option<Duration>) -> Option<Instant> {
        timeout.or(self.inner.options.timeout).map(|timeout| Instant::now() + timeout)
    }

    /// Runs `call` on a live connection until `deadline`; repeats it after failures that time may heal.
    pub(crate) async fn retrying<T, F, Fut>(&self, deadline: Option<Instant>, call: F) -> Result<T>
    where
        F: Fn(Arc<Connection>) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let retry_until = Instant::now() + self.inner.options.retry_for;
        let give_up = deadline.map_or(retry_until, |deadline| deadline.min(retry_until));
        let mut backoff = Backoff::default();
        loop {
            let attempt = async { call(self.connection().await?).await };
            match within(deadline, attempt).await {
                Err(error) if is_transient(error.code) => {
                    tracing::debug!(%error, "retrying");
                    if !backoff.pause(Some(give_up)).await {
                        return Err(error);
                    }
                }
                outcome => return outcome,
            }
        }
    }

    /// Runs `call` once on a live connection until `deadline`; only connecting is retried.
    pub(crate) async fn once<T, F, Fut>(&self, deadline: Option<Instant>, call: F) -> Result<T>
    where
        F: FnOnce(Arc<Connection>) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let connection = self.retrying(deadline, |connection| async { Ok(connection) }).await?;
        within(deadline, call(connection)).await
    }

    /// Every table of the cell, by name.
    pub async fn tables(&self) -> Result<Vec<TableSummary>> {
        let list = self
            .retrying(self.deadline(None), |connection| async move {
                connection
                    .request(FrameKind::ListTables, &proto::ListTables {}, None, None)?
                    .answer::<proto::TableList>(FrameKind::TableList)
                    .await
            })
            .await?;
        Ok(list.tables)
    }

    /// A table's columns, and what it takes on the volume.
    pub async fn describe(&self, table: &str) -> Result<TableDescription> {
        let body = proto::DescribeTable { name: table.to_string() };
        let (answer, stamp) = self
            .retrying(self.deadline(None), |connection| {
                let body = body.clone();
                async move {
                    let stamp = self.cache().stamp(connection.epoch());
                    let answer = connection
                        .request(FrameKind::DescribeTable, &body, None, None)?
                        .answer::<proto::TableDescription>(FrameKind::TableDescription)
                        .await?;
                    Ok((answer, stamp))
                }
            })
            .await?;
        let missing = || Error::new(ErrorCode::Protocol, "the cell described a table without its schema");
        let definition = answer.schema.as_ref().ok_or_else(missing)?;
        let schema = convert::schema_from_proto(definition)?;
        let order = convert::order_from_proto(definition, &schema)?;
        self.cache().keep_schema(table, Arc::new(schema.clone()), stamp);
        Ok(TableDescription {
            summary: answer.summary.unwrap_or_default(),
            schema,
            order,
            shards: answer.shards,
            segments: answer.segments,
            row_groups: answer.row_groups,
            raw_bytes: answer.raw_bytes,
            columns: answer.columns,
        })
    }

    /// A table's columns; from the cache when they are there.
    pub async fn schema(&self, table: &str) -> Result<Arc<Schema>> {
        match self.cache().schema(table) {
            Some(schema) => Ok(schema),
            None => Ok(Arc::new(self.describe(table).await?.schema)),
        }
    }

    /// Makes an empty table of `shards` parts; 0: the cell's default.
    pub async fn create_table(&self, name: &str, schema: &Schema, shards: u32) -> Result<()> {
        let body =
            proto::CreateTable { name: name.to_string(), schema: Some(convert::schema_to_proto(schema)), shards };
        self.change(name, FrameKind::CreateTable, body).await
    }

    /// Drops a table and its data. With `if_exists` a table that is not there is no error.
    pub async fn drop_table(&self, name: &str, if_exists: bool) -> Result<()> {
        let body = proto::DropTable { name: name.to_string(), if_exists };
        self.change(name, FrameKind::DropTable, body).await
    }

    /// Has a table changed. Whatever comes of it, what is remembered of the table is dropped before this returns: also
    /// a request that failed may have been carried out.
    async fn change(&self, table: &str, kind: FrameKind, body: impl prost::Message) -> Result<()> {
        let outcome = self
            .once(self.deadline(None), |connection| async move {
                connection.request(kind, &body, None, None)?.answer::<proto::Done>(FrameKind::Done).await
            })
            .await;
        self.cache().changed_here(table);
        outcome.map(drop)
    }

    /// The state of the cell.
    pub async fn cell(&self) -> Result<CellStatus> {
        self.retrying(self.deadline(None), |connection| async move {
            connection
                .request(FrameKind::DescribeCell, &proto::DescribeCell {}, None, None)?
                .answer(FrameKind::CellStatus)
                .await
        })
        .await
    }

    /// What came over RDMA on the current connection; no links, when it goes over TCP.
    pub async fn rdma_statistics(&self) -> Result<RdmaStatistics> {
        Ok(self.connection().await?.rdma_statistics())
    }

    /// Whether the current connection gives short decimals as Arrow `Decimal64`.
    pub async fn uses_decimal64(&self) -> Result<bool> {
        Ok(self.connection().await?.has_feature(FEATURE_DECIMAL64))
    }
}

/// Runs a future until `deadline`.
pub(crate) async fn within<T>(deadline: Option<Instant>, future: impl Future<Output = Result<T>>) -> Result<T> {
    match deadline {
        None => future.await,
        Some(deadline) => {
            let started = Instant::now();
            tokio::time::timeout_at(deadline.into(), future).await.unwrap_or_else(|_| Err(deadline_passed(started)))
        }
    }
}

pub(crate) fn deadline_passed(started: Instant) -> Error {
    Error::new(
        ErrorCode::DeadlineExceeded,
        format!(
            "no answer within {:.1} s: ask for less, or allow more time with --timeout",
            started.elapsed().as_secs_f64()
        ),
    )
}

/// Whether the same call may succeed a little later.
pub(crate) fn is_transient(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Unavailable | ErrorCode::Overloaded | ErrorCode::Draining)
}

/// Exponential backoff with full jitter.
#[derive(Default)]
pub(crate) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// Sleeps before the next attempt; false when `give_up` would have passed by then.
    pub(crate) async fn pause(&mut self, give_up: Option<Instant>) -> bool {
        let ceiling = BACKOFF_FIRST.saturating_mul(1 << self.attempts.min(10)).min(BACKOFF_MAX);
        self.attempts += 1;
        let pause = ceiling.mul_f64(rand::rng().random_range(0.5..1.0));
        if give_up.is_some_and(|give_up| Instant::now() + pause > give_up) {
            return false;
        }
        tokio::time::sleep(pause).await;
        true
    }
}
