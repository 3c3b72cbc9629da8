//! The control socket: what an operator on the cell's own machine may look at and repair.
//!
//! Owns the UNIX socket beside the metadata folder, its two commands, and the tools that use it
//! (`heliostat-cell sessions`, `heliostat-cell session reset`). Runs on the control thread; asks the cores by message.
//!
//! One request per connection, one line of JSON each way. Who may open the socket (mode 0600) is who may read the
//! volume: no other authentication.
//!
//! Invariant: a request is at most [`LINE_BYTES_MAX`] bytes, and looking changes nothing.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::rc::Weak;
use std::sync::Arc;
use std::time::Duration;

use hidb::session::{CellSlot, SlotCounts};
use hidb::{Error, ErrorCode, Result};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::core::CoreServer;
use super::{Cell, io_error, links};
use crate::config::Config;
use crate::fabric::link::Link;

/// The longest request.
const LINE_BYTES_MAX: u64 = 4096;
/// How long an answer may take: cores are asked, and links flushed.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Command {
    Sessions,
    Reset { session: u64 },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Sessions(Vec<SessionReport>),
    Reset { links: usize },
    Error(String),
}

/// A session, as an operator sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionReport {
    /// Its number.
    pub session: u64,
    /// What the client calls itself.
    pub client: String,
    /// Its home core, counted from 0 as in the logs.
    pub core: usize,
    /// Requests under way.
    pub requests: usize,
    /// Credits that requests under way hold.
    pub credits: u64,
    /// Notices sent.
    pub notices: u64,
    /// Milliseconds since the client was heard of.
    pub silent_ms: u64,
    /// Its RDMA links.
    pub links: Vec<LinkReport>,
}

/// A link, as an operator sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinkReport {
    /// Its number within the session.
    pub link: u32,
    /// Its core.
    pub core: usize,
    /// Its device.
    pub device: String,
    /// opening, open, flushing, closed.
    pub state: String,
    /// The ring's generation.
    pub generation: u32,
    /// Checksum policy.
    pub checksum: String,
    /// What protects it from others on the network.
    pub integrity: String,
    /// Work requests outstanding.
    pub outstanding: u32,
    /// Slots that may be filled.
    pub free: u32,
    /// Slots being written.
    pub writing: u32,
    /// Slots that the client has.
    pub filled: u32,
    /// Slots that the client never gave.
    pub unarmed: u32,
    /// Every slot: `.` free, `w` being written, `e` given back early, `c` the client's, `-` never given.
    pub slots: String,
    /// Credits of earlier generations that came late.
    pub stale_credits: u64,
    /// Frames in SENDs.
    pub sends: u64,
    /// Frames in slots.
    pub writes: u64,
    /// Bytes of payloads.
    pub payload_bytes: u64,
    /// Bytes of payloads that were copied into registered memory.
    pub copied_bytes: u64,
}

/// Where the control socket of a cell is.
pub fn socket_path(config: &Config) -> PathBuf {
    let mut path = config.metadata_folder().into_os_string();
    path.push(".sock");
    path.into()
}

/// Listens, if that is possible: a cell serves without it, too.
pub fn listen(config: &Config) -> Option<UnixListener> {
    let path = socket_path(config);
    // The volume is locked by this process: whatever socket is there is a dead cell's.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)
        .and_then(|listener| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        })
        .inspect_err(|error| tracing::warn!(%error, "no control socket {}: `heliostat-cell sessions` does not work", path.display()));
    listener.ok()
}

/// Answers until it is dropped.
pub async fn serve(cell: Arc<Cell>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::task::spawn_local(tokio::time::timeout(PATIENCE, answer(cell.clone(), stream)));
            }
            Err(error) => {
                tracing::warn!(%error, "accept on the control socket failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(cell: Arc<Cell>, stream: UnixStream) -> std::io::Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut line = String::new();
    tokio::io::BufReader::new(reading.take(LINE_BYTES_MAX)).read_line(&mut line).await?;
    let answer = match serde_json::from_str(&line) {
        Ok(Command::Sessions) => sessions(&cell).await.map(Answer::Sessions),
        Ok(Command::Reset { session }) => reset(&cell, session).await.map(|links| Answer::Reset { links }),
        Err(error) => Err(Error::new(ErrorCode::Protocol, format!("not a command: {error}"))),
    };
    let answer = answer.unwrap_or_else(|error| Answer::Error(error.message));
    let mut text = serde_json::to_string(&answer)?;
    text.push('\n');
    writing.write_all(text.as_bytes()).await
}

/// All sessions, by number.
async fn sessions(cell: &Arc<Cell>) -> Result<Vec<SessionReport>> {
    let mut reports: Vec<SessionReport> = Vec::new();
    let mut by_session: Vec<(u64, LinkReport)> = Vec::new();
    for core in 0..cell.cores.count() {
        let on_core = cell.clone();
        let look = move || async move {
            let server = CoreServer::of(&on_core, core);
            let sessions: Vec<_> = server.sessions.borrow().values().filter_map(Weak::upgrade).collect();
            let reports: Vec<SessionReport> = sessions.iter().map(|session| session.report()).collect();
            let links = server.links.borrow();
            let links: Vec<_> = links.iter().map(|(session, link)| (*session, report(link, core))).collect();
            (reports, links)
        };
        let (found, links) = cell.cores.run_on(core, look).await?;
        reports.extend(found);
        by_session.extend(links);
    }
    for (session, link) in by_session {
        if let Some(report) = reports.iter_mut().find(|report| report.session == session) {
            report.links.push(link);
        }
    }
    reports.sort_by_key(|report| report.session);
    reports.iter_mut().for_each(|report| report.links.sort_by_key(|link| link.link));
    Ok(reports)
}

fn report(link: &Link, core: usize) -> LinkReport {
    let counters = link.counters();
    link.with_machine(|machine| {
        let SlotCounts { unarmed, free, writing, filled } = machine.slots().counts();
        let letter = |slot: &CellSlot| match slot {
            CellSlot::Unarmed => '-',
            CellSlot::Free => '.',
            CellSlot::Writing(_) => 'w',
            CellSlot::Early(_) => 'e',
            CellSlot::Filled(_) => 'c',
        };
        LinkReport {
            link: link.number(),
            core,
            device: link.device().to_string(),
            state: format!("{:?}", machine.state()).to_lowercase(),
            generation: link.generation(),
            checksum: link.checksum().to_string(),
            integrity: link.integrity().to_string(),
            outstanding: machine.outstanding(),
            free,
            writing,
            filled,
            unarmed,
            slots: machine.slots().slots().iter().map(letter).collect(),
            stale_credits: machine.slots().stale_returns(),
            sends: counters.sends,
            writes: counters.writes,
            payload_bytes: counters.payload_bytes,
            copied_bytes: counters.copied_bytes,
        }
    })
}

/// Resets the links of a session. How many there were.
async fn reset(cell: &Arc<Cell>, id: u64) -> Result<usize> {
    for core in 0..cell.cores.count() {
        let on_core = cell.clone();
        let work = move || async move {
            let session = CoreServer::of(&on_core, core).sessions.borrow().get(&id).and_then(Weak::upgrade)?;
            Some(links::reset(&session).await)
        };
        if let Some(count) = cell.cores.run_on(core, work).await? {
            tracing::info!(session = id, links = count, "links were reset by the operator");
            return Ok(count);
        }
    }
    let text = format!("there is no session {id}: `heliostat-cell sessions` lists them");
    Err(Error::new(ErrorCode::InvalidParameter, text))
}

fn ask(config: &Config, command: &Command) -> Result<Answer> {
    let path = socket_path(config);
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        let text =
            format!("{what} {}: {error}: is a cell running on this volume, and are you its user?", path.display());
        Error::new(ErrorCode::Unavailable, text)
    };
    let mut stream =
        std::os::unix::net::UnixStream::connect(&path).map_err(|error| failed("can't connect to", &error))?;
    let talk = |stream: &mut std::os::unix::net::UnixStream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut line = serde_json::to_string(command)?;
        line.push('\n');
        stream.write_all(line.as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok::<_, std::io::Error>(serde_json::from_str(&answer)?)
    };
    match talk(&mut stream).map_err(|error| failed("no answer from", &error))? {
        Answer::Error(message) => Err(Error::new(ErrorCode::InvalidParameter, message)),
        answer => Ok(answer),
    }
}

/// Lists the sessions of a running cell; the text to print.
pub fn list_sessions(config: &Config, json: bool) -> Result<String> {
    let Answer::Sessions(sessions) = ask(config, &Command::Sessions)? else {
        return Err(io_error("listing sessions", &"the cell answered something else"));
    };
    let mut text = String::new();
    for session in &sessions {
        if json {
            text.push_str(&serde_json::to_string(session).map_err(|error| io_error("printing a session", &error))?);
            text.push('\n');
            continue;
        }
        let SessionReport { session, client, core, requests, credits, notices, silent_ms, links } = session;
        let _ = writeln!(
            text,
            "session {session}: {client}, core {core}, {requests} requests with {credits} credits, {notices} notices, silent for {silent_ms} ms"
        );
        for link in links {
            let _ = writeln!(
                text,
                "  link {} on core {} by {}: {}, generation {}, checksum {}, integrity {}, {} outstanding; {} SENDs, {} WRITEs, {} bytes ({} copied)",
                link.link,
                link.core,
                link.device,
                link.state,
                link.generation,
                link.checksum,
                link.integrity,
                link.outstanding,
                link.sends,
                link.writes,
                link.payload_bytes,
                link.copied_bytes
            );
            let _ = writeln!(
                text,
                "    slots {}: {} free, {} being written, {} at the client, {} never given",
                link.slots, link.free, link.writing, link.filled, link.unarmed
            );
        }
    }
    if text.is_empty() && !json {
        text.push_str("no sessions\n");
    }
    Ok(text)
}

/// Resets the links of a session of a running cell; the text to print.
pub fn reset_session(config: &Config, session: u64) -> Result<String> {
    match ask(config, &Command::Reset { session })? {
        Answer::Reset { links: 0 } => Ok(format!("session {session} has no RDMA links: nothing to reset\n")),
        Answer::Reset { links } => Ok(format!("reset {links} links of session {session}\n")),
        _ => Err(io_error("resetting a session", &"the cell answered something else")),
    }
}

/// Removes the socket of a cell that ends.
pub fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}
