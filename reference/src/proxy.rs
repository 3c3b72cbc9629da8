//! A network between client and cell that does to frames what it is told: lose, repeat, cut, hold.
//!
//! Owns [`Proxy`]. Speaks HIDB over plain TCP only as far as it takes to find where frames begin.

use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hidb::frame::{Frame, HEADER_BYTES, parse_header};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What becomes of a frame on its way from the cell to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrives.
    Arrives,
    /// It gets lost; what follows does not.
    Lost,
    /// It arrives twice.
    Repeated,
    /// The connection ends in its place.
    Cut,
    /// It and everything after it is held up for ever, on every connection: the network is partitioned.
    Held,
}

type Decide = Arc<Mutex<dyn FnMut(&Frame) -> Fate + Send>>;

/// A listener that passes connections on to a cell.
pub struct Proxy {
    /// Where it listens.
    pub url: String,
    accepting: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Proxy {
    /// Listens on loopback, and asks `decide` about each frame of the cell.
    pub async fn start(cell_url: &str, decide: impl FnMut(&Frame) -> Fate + Send + 'static) -> Proxy {
        let cell = cell_url.strip_prefix("hidb+plain://").expect("a cell without TLS").to_string();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("hidb+plain://{}", listener.local_addr().expect("its address"));
        let decide: Decide = Arc::new(Mutex::new(decide));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (cell, decide) = (cell.clone(), decide.clone());
                tokio::spawn(async move {
                    let Ok(cell) = TcpStream::connect(cell).await else { return };
                    let (from_client, mut to_client) = client.into_split();
                    let (mut from_cell, to_cell) = cell.into_split();
                    tokio::select! {
                        _ = pass_all(from_client, to_cell) => {}
                        _ = pass_frames(&mut from_cell, &mut to_client, &decide) => {}
                    }
                });
            }
        });
        Proxy { url, accepting }
    }
}

async fn pass_all(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<u64> {
    tokio::io::copy(&mut from, &mut to).await
}

async fn pass_frames(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, decide: &Decide) -> io::Result<()> {
    loop {
        let mut raw = vec![0; HEADER_BYTES];
        from.read_exact(&mut raw).await?;
        let header = parse_header(raw[..].try_into().expect("a header's length")).expect("a frame of the cell");
        let body_at = HEADER_BYTES + header.body_len as usize;
        raw.resize(body_at + header.payload_len as usize, 0);
        from.read_exact(&mut raw[HEADER_BYTES..]).await?;
        let raw = Bytes::from(raw);
        let (body, payload) = (raw.slice(HEADER_BYTES..body_at), raw.slice(body_at..));
        let frame = Frame { kind: header.kind, request_id: header.request_id, body, payload };
        let fate = decide.lock().expect("no decision panics")(&frame);
        match fate {
            Fate::Arrives => to.write_all(&raw).await?,
            Fate::Lost => {}
            Fate::Repeated => {
                to.write_all(&raw).await?;
                to.write_all(&raw).await?;
            }
            Fate::Cut => return Ok(()),
            Fate::Held => std::future::pending().await,
        }
    }
}
