//! The scan driver: one request over the row groups of a table, on every core.
//!
//! Owns the loop between the engine (pure) and the cache and device of each core. Called by the session that asked,
//! on its home core, which also merges what the cores computed.
//!
//! Invariants:
//! - A core lets others run after 100 us of work, and looks at cancellation and deadline before each step: a dropped
//!   or cancelled request stops everywhere within one step.
//! - Images wait in a channel of [`IMAGES_PER_CORE`] per core: a slow client stops its scan, not the cell's memory.
//! - Bytes that a core reads ahead are bounded ([`super::read_ahead`]).

use std::{
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt;
use futures::future::{LocalBoxFuture, try_join, try_join_all};
use futures_lite::future::or;
use heliostat_engine::{CompiledScan, CorePartial, CoreScan, Merge, MergeStep, ScanStats, SharedScan, Step};
use heliostat_segment::membership_number;
use hidb::{Error, ErrorCode, Result, image::ResultImage};

use super::{
    Core, Cores, Turn,
    positions::FoundRows,
    read_ahead::ReadAhead,
    work::{self, GroupWork, Work},
};
use crate::store::TableSnapshot;

/// Images of one core that wait for the home core.
const IMAGES_PER_CORE: usize = 2;

/// The way of a core's images when it sends them itself.
pub trait ImageSink {
    /// Sends one; waits as long as the client takes none.
    fn send(&self, image: ResultImage) -> LocalBoxFuture<'_, Result<()>>;

    /// What was sent.
    fn sent(&self) -> Sent;
}

/// Who knows whether a core sends its images itself.
pub trait Direct: Send + Sync {
    /// The way from this core; `None`: by the home core.
    fn sink(&self, core: usize) -> Option<Box<dyn ImageSink>>;
}

/// What a core sent itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// The link's number within the session.
    pub link: u32,
    /// Frames.
    pub frames: u64,
    /// Rows.
    pub rows: u64,
    /// Bytes of payload.
    pub bytes: u64,
}

/// One question to one table.
#[derive(Clone)]
pub struct ScanRequest {
    /// The table as the request sees it.
    pub snapshot: Arc<TableSnapshot>,
    /// The plan.
    pub compiled: Arc<CompiledScan>,
    /// What the cores of the request share; cancelling it stops them.
    pub shared: Arc<SharedScan>,
    /// When the request is no longer wanted.
    pub deadline: Option<Instant>,
    /// Reads everything from the device and leaves the cache alone.
    pub bypass_cache: bool,
    /// Which cores send their images themselves.
    pub direct: Option<Arc<dyn Direct>>,
    /// The core that asks.
    pub home: usize,
    /// Whether images that it gives to the sink are written in its arena; elsewhere they lie on the heap.
    pub home_lends: bool,
}

/// What a scan did, over all cores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanStatistics {
    /// The engine's counters.
    pub engine: ScanStats,
    /// Bytes read from the device for this request: chunks, padding and the gaps between them.
    pub bytes_read_device: u64,
    /// Bytes of the images that were handed to the sink.
    pub bytes_returned: u64,
    /// Images handed to the sink.
    pub images: u64,
    /// What cores sent themselves.
    pub sent: Vec<Sent>,
}

/// What one core hands to the home core at the end.
struct CoreOutcome {
    partial: CorePartial,
    found: Vec<FoundRows>,
    bytes_read_device: u64,
    sent: Option<Sent>,
}

/// Stops the other cores when the request ends early, by an error or because it was dropped.
struct CancelUnlessFinished(Option<Arc<SharedScan>>);

impl Drop for CancelUnlessFinished {
    fn drop(&mut self) {
        if let Some(shared) = self.0.take() {
            shared.cancel();
        }
    }
}

/// How long an image may wait to be taken before its scan lets go of what it has read ahead.
const STALL: Duration = Duration::from_secs(1);

/// Scans on all cores that have work and hands every image to `sink` as it comes. Runs on the home core; dropping the
/// future stops all cores.
///
/// # Errors
/// The engine's; `Io` and `Corruption` from the device; `Cancelled`, `DeadlineExceeded`; those of `sink`.
pub async fn scan_table(
    cores: &Cores,
    request: ScanRequest,
    work: Work,
    mut sink: impl AsyncFnMut(ResultImage) -> Result<()>,
) -> Result<ScanStatistics> {
    let mut guard = CancelUnlessFinished(Some(request.shared.clone()));
    let (outcomes, pruned, mut statistics) = run(cores, &request, work, &mut sink).await?;
    let mut turn = Turn::default();
    let mut merge = Merge::new(request.compiled.clone(), request.shared.clone());
    if let (true, Some(core)) = (request.home_lends, Core::current()) {
        merge.lend(Rc::new(core.arena.clone()));
    }
    for outcome in outcomes {
        statistics.bytes_read_device += outcome.bytes_read_device;
        statistics.sent.extend(outcome.sent);
        merge.push(outcome.partial)?;
        turn.yield_if_due().await;
    }
    loop {
        check(&request)?;
        match merge.step()? {
            MergeStep::Image(image) => {
                hand_over(image, &mut statistics, &mut sink).await?;
                turn.restart();
            }
            MergeStep::Progress => {}
            MergeStep::Finished => break,
        }
        turn.yield_if_due().await;
    }
    statistics.engine = merge.stats();
    statistics.engine.add(&pruned);
    guard.0 = None;
    Ok(statistics)
}

/// Finds the rows of a scan made by [`CompiledScan::positions`], by row group, in the order of the snapshot; row groups of
/// which no row passes are left out. Runs as [`scan_table`] does.
///
/// # Errors
/// As [`scan_table`]; `MemoryExceeded` when the bitmaps outgrow the request's memory.
pub(super) async fn scan_positions(
    cores: &Cores,
    request: ScanRequest,
    work: Work,
) -> Result<(Vec<FoundRows>, ScanStatistics)> {
    let mut guard = CancelUnlessFinished(Some(request.shared.clone()));
    let no_images = async |_| Err(Error::new(ErrorCode::Internal, "a scan for positions gave out an image"));
    let (outcomes, pruned, mut statistics) = run(cores, &request, work, no_images).await?;
    let mut found = Vec::new();
    let mut merge = Merge::new(request.compiled.clone(), request.shared.clone());
    for outcome in outcomes {
        statistics.bytes_read_device += outcome.bytes_read_device;
        found.extend(outcome.found);
        merge.push(outcome.partial)?;
    }
    found.sort_unstable_by_key(|rows: &FoundRows| rows.ordinal);
    statistics.engine = merge.stats();
    statistics.engine.add(&pruned);
    guard.0 = None;
    Ok((found, statistics))
}

/// Runs every core's part, and hands on the images that cores send to the home core. Gives what they computed, and what
/// was pruned before they began.
async fn run(
    cores: &Cores,
    request: &ScanRequest,
    mut work: Work,
    mut sink: impl AsyncFnMut(ResultImage) -> Result<()>,
) -> Result<(Vec<CoreOutcome>, ScanStats, ScanStatistics)> {
    if let (false, Some(home)) = (request.bypass_cache, Core::current()) {
        work.keep_if_hot(&home, &request.compiled)?;
    }
    let (images, arriving) = flume::bounded(cores.count() * IMAGES_PER_CORE);
    let (shares, pruned) = work.into_shares(request.home);
    let is_alone = shares.len() == 1;
    let workers = shares.into_iter().map(|(core, share)| {
        let (home, request, images) = (request.home, request.clone(), images.clone());
        let work = move || scan_core(request, share, images);
        match is_alone && core == home {
            // Here and now: by the core's queue it would take two more turns of the executor, 20 us each.
            true => work().boxed_local(),
            false => {
                let work = cores.run_while_wanted(core, work);
                async move { work.await? }.boxed_local()
            }
        }
    });
    let gather = try_join_all(workers.collect::<Vec<_>>());
    drop(images);
    let mut statistics = ScanStatistics::default();
    let deliver = async {
        while let Ok(image) = arriving.recv_async().await {
            hand_over(image, &mut statistics, &mut sink).await?;
        }
        Ok(())
    };
    let (outcomes, ()) = try_join(gather, deliver).await?;
    Ok((outcomes, pruned, statistics))
}

async fn hand_over(
    image: ResultImage,
    statistics: &mut ScanStatistics,
    sink: &mut impl AsyncFnMut(ResultImage) -> Result<()>,
) -> Result<()> {
    statistics.images += 1;
    statistics.bytes_returned += image.bytes.len() as u64;
    sink(image).await
}

/// Whether the request is still wanted.
fn check(request: &ScanRequest) -> Result<()> {
    if request.shared.is_cancelled() {
        return Err(Error::new(ErrorCode::Cancelled, "the request was cancelled"));
    }
    if request.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
        return Err(Error::new(
            ErrorCode::DeadlineExceeded,
            "the scan did not end before its deadline: narrow the question or raise the timeout",
        ));
    }
    Ok(())
}

/// One core's part of a scan.
async fn scan_core(
    request: ScanRequest,
    share: Option<Vec<GroupWork>>,
    images: flume::Sender<ResultImage>,
) -> Result<CoreOutcome> {
    let (core, cache, _) = Core::with_volume()?;
    let mut turn = Turn::default();
    let work = match share {
        Some(share) => share,
        None => work::of_core(&request.snapshot, &request.compiled, (core.id, core.count), &mut turn).await,
    };
    // Chunks of the columns, row ids, and a membership filter per column.
    let columns = membership_number(request.snapshot.schema.len(), request.snapshot.schema.len());
    let mut read_ahead = ReadAhead::new(cache, request.bypass_cache, core.arena.bytes(), columns);
    let mut scan = CoreScan::new(request.compiled.clone(), request.shared.clone());
    let direct = request.direct.as_ref().and_then(|direct| direct.sink(core.id));
    if direct.is_some() || (request.home_lends && request.home == core.id) {
        scan.lend(Rc::new(core.arena.clone()));
    }
    let mut found = Vec::new();
    for (index, group) in work.iter().enumerate() {
        if request.shared.is_satisfied() {
            break;
        }
        read_ahead.begin(index);
        scan.start_row_group(group.ordinal, group.segment.footer.clone(), group.row_group, group.among.clone())?;
        loop {
            check(&request)?;
            match scan.step()? {
                Step::Need(columns) => {
                    for (column, bytes) in read_ahead.need(&work, index, &columns).await? {
                        scan.supply(column, bytes)?;
                    }
                    turn.restart();
                }
                Step::Image(image) => {
                    let gone = |_| Error::new(ErrorCode::Cancelled, "nobody waits for the result any more");
                    let release = || read_ahead.release(index);
                    match &direct {
                        Some(sink) => with_patience(sink.send(image), release).await?,
                        None => with_patience(images.send_async(image), release).await.map_err(gone)?,
                    }
                    turn.restart();
                }
                Step::Rows(rows) => found.push(group.found(rows)),
                Step::Progress => {}
                Step::RowGroupDone | Step::Finished => break,
            }
            turn.yield_if_due().await;
        }
        turn.yield_if_due().await;
    }
    let sent = direct.map(|sink| sink.sent());
    Ok(CoreOutcome { partial: scan.finish()?, found, bytes_read_device: read_ahead.bytes_read_device, sent })
}

/// Waits until an image is taken. When that takes long, `release` is called first: memory that a stalled request holds
/// is missing to all others.
async fn with_patience<T>(sending: impl Future<Output = T>, release: impl FnOnce()) -> T {
    let mut sending = pin!(sending);
    if let Some(sent) = futures_lite::future::poll_once(sending.as_mut()).await {
        return sent;
    }
    let patience = async {
        glommio::timer::sleep(STALL).await;
        None
    };
    match or(async { Some(sending.as_mut().await) }, patience).await {
        Some(sent) => sent,
        None => {
            release();
            sending.await
        }
    }
}
