//! What the tests of the server share: a real `heliostat-cell` process, and a client of plain frames over a blocking
//! socket, which knows nothing of the client library.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::{Array, ArrayRef, Decimal64Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::SchemaRef;
use bytes::Bytes;
use hidb::frame::{Frame, FrameDecoder, FrameKind, PAYLOAD_BYTES_MAX, encode_frame};
use hidb::plan::sql::{ScanText, parse_scan};
use hidb::plan::substrait::to_substrait;
use hidb::{DataType, Field, Schema, arrow_mapping, convert, image, proto};

pub const CELL: &str = env!("CARGO_BIN_EXE_heliostat-cell");
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running cell over a volume in a folder.
pub struct TestCell {
    child: Child,
    pub address: SocketAddr,
}

/// Where the cell of a folder keeps its volume.
pub fn volume_of(folder: &Path) -> PathBuf {
    folder.join("volume")
}

impl TestCell {
    /// Starts a cell (its volume is made when there is none) and waits until it serves.
    pub fn start(folder: &Path, options: &[&str]) -> Self {
        Self::try_start(folder, options).unwrap_or_else(|error| panic!("the cell did not start: {error}"))
    }

    /// Starts a cell that does not ask who is there; gives its standard error when it ends instead of serving.
    pub fn try_start(folder: &Path, options: &[&str]) -> Result<Self, String> {
        Self::try_start_secure(folder, &[&["--insecure"], options].concat())
    }

    /// Starts a cell that asks who is there, unless the options say otherwise.
    pub fn try_start_secure(folder: &Path, options: &[&str]) -> Result<Self, String> {
        let mut child = Command::new(CELL)
            .arg("run")
            .arg("--volume")
            .arg(volume_of(folder))
            .args(["--port", "0", "--metrics", "false", "--cache", "16MiB", "--cores", "2", "--log", "warn"])
            .args(["--auto-format", "true", "--auto-format-size", "256MiB"])
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        match line.trim().strip_prefix("ready ").and_then(|url| url.split_once("://")) {
            Some((_, address)) => Ok(TestCell { address: address.parse().unwrap(), child }),
            None => {
                let output = child.wait_with_output().unwrap();
                Err(String::from_utf8_lossy(&output.stderr).into_owned())
            }
        }
    }

    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, without waiting.
    pub fn ask_to_stop(&self) {
        let status = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// SIGTERM, and how it ended.
    pub fn stop(mut self) -> ExitStatus {
        self.ask_to_stop();
        self.wait()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "the cell does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for TestCell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `heliostat-cell` with a tool's arguments: exit code, standard output, standard error.
pub fn tool(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(CELL).args(arguments).output().unwrap();
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// Runs `heliostat-cell check` on a folder's volume and demands that it is clean.
pub fn assert_clean(folder: &Path) {
    let (code, out, err) = tool(&["check", "--deep", "--volume", volume_of(folder).to_str().unwrap()]);
    assert_eq!(code, 0, "check: {out}{err}");
}

/// A client of plain frames.
pub struct Wire {
    pub stream: TcpStream,
    decoder: FrameDecoder,
    next_id: u64,
    pub notices: Vec<proto::CacheInvalidationNotice>,
}

pub type Answer<T> = Result<T, proto::Error>;

impl Wire {
    /// Connects without saying anything.
    pub fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Wire { stream, decoder: FrameDecoder::new(), next_id: 1, notices: Vec::new() }
    }

    /// Connects and shakes hands.
    pub fn connect(address: SocketAddr) -> Self {
        let mut wire = Self::open(address);
        wire.hello();
        wire
    }

    pub fn hello(&mut self) -> proto::HelloAck {
        let hello = proto::Hello {
            version_min: 1,
            version_max: 1,
            client_name: "test".into(),
            features: vec!["decimal64".into()],
            result_image_bytes_max: 0,
        };
        self.send(FrameKind::Hello, 0, &hello, &[]);
        let frame = self.receive().expect("HelloAck");
        assert_eq!(frame.kind, FrameKind::HelloAck, "{:?}", frame.message::<proto::Error>());
        frame.message().unwrap()
    }

    pub fn send(&mut self, kind: FrameKind, id: u64, body: &impl prost::Message, payload: &[u8]) {
        self.try_send(kind, id, body, payload).unwrap();
    }

    pub fn try_send(
        &mut self,
        kind: FrameKind,
        id: u64,
        body: &impl prost::Message,
        payload: &[u8],
    ) -> std::io::Result<()> {
        self.stream.write_all(&encode_frame(kind, id, body, payload).unwrap())
    }

    pub fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// The next frame as it is; `None` at the end of the connection.
    pub fn receive_raw(&mut self) -> Option<Frame> {
        loop {
            match self.stream.read(self.decoder.space()) {
                Ok(0) => return None,
                Ok(count) => {
                    if let Some(frame) = self.decoder.advance(count).unwrap() {
                        return Some(frame);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no frame from the cell: {error}"),
            }
        }
    }

    /// The next frame that is neither heartbeat nor notice.
    pub fn receive(&mut self) -> Option<Frame> {
        loop {
            let frame = self.receive_raw()?;
            match frame.kind {
                FrameKind::Heartbeat => {
                    let heartbeat: proto::Heartbeat = frame.message().unwrap();
                    if !heartbeat.reply {
                        let reply = proto::Heartbeat { reply: true, ..heartbeat };
                        let _ = self.try_send(FrameKind::Heartbeat, 0, &reply, &[]);
                    }
                }
                FrameKind::CacheInvalidationNotice => self.notices.push(frame.message().unwrap()),
                _ => return Some(frame),
            }
        }
    }

    /// Sends a request and gives its one answer.
    pub fn ask<T: prost::Message + Default>(&mut self, kind: FrameKind, body: &impl prost::Message) -> Answer<T> {
        let id = self.id();
        self.send(kind, id, body, &[]);
        self.answer(id)
    }

    pub fn answer<T: prost::Message + Default>(&mut self, id: u64) -> Answer<T> {
        loop {
            let frame = self.receive().expect("the cell closed the connection");
            if frame.kind == FrameKind::Error {
                return Err(frame.message().unwrap());
            }
            if frame.request_id == id {
                return Ok(frame.message().unwrap());
            }
        }
    }

    pub fn tables(&mut self) -> Vec<proto::TableSummary> {
        self.ask::<proto::TableList>(FrameKind::ListTables, &proto::ListTables {}).unwrap().tables
    }

    pub fn load_begin(&mut self, load_id: [u8; 16], table: &str) -> Answer<proto::LoadState> {
        let begin = proto::LoadBegin {
            load_id: load_id.to_vec().into(),
            table: table.into(),
            schema: Some(convert::schema_to_proto(&schema())),
            mode: proto::load_begin::Mode::Create as i32,
            shards: 2,
        };
        self.ask(FrameKind::LoadBegin, &begin)
    }

    pub fn load_batch(&mut self, load_id: [u8; 16], number: u64, batch: &RecordBatch) -> std::io::Result<()> {
        let image = image::image_of_batch(batch).unwrap();
        let parts: Vec<&[u8]> = image.bytes.chunks(PAYLOAD_BYTES_MAX).collect();
        for (index, part) in parts.iter().enumerate() {
            let body = proto::LoadBatch {
                load_id: load_id.to_vec().into(),
                batch: number,
                more: index + 1 < parts.len(),
                rows: batch.num_rows() as u64,
            };
            self.try_send(FrameKind::LoadBatch, 1, &body, part)?;
        }
        Ok(())
    }

    pub fn load_commit(&mut self, load_id: [u8; 16], batches: u64) -> Answer<proto::LoadState> {
        self.ask(FrameKind::LoadCommit, &proto::LoadCommit { load_id: load_id.to_vec().into(), batches })
    }

    /// Loads batches `0..batches` of `rows` rows each into a new table.
    pub fn load(&mut self, table: &str, batches: u64, rows: usize) {
        let mut load_id = [7; 16];
        load_id[..8].copy_from_slice(&self.stream.local_addr().unwrap().port().to_le_bytes().repeat(4));
        load_id[8..8 + table.len().min(8)].copy_from_slice(&table.as_bytes()[..table.len().min(8)]);
        self.load_begin(load_id, table).unwrap();
        for number in 0..batches {
            self.load_batch(load_id, number, &batch(number, rows)).unwrap();
        }
        let state = self.load_commit(load_id, batches).unwrap();
        assert_eq!((state.state(), state.durable_batches), (proto::load_state::State::Committed, batches));
    }

    /// Starts a question and gives its id.
    pub fn start_scan(&mut self, text: &ScanText, credits: u32, timeout_ms: u64) -> u64 {
        let plan = parse_scan(text, &schema()).unwrap();
        let request = proto::PredicatePushdownRequest {
            table: text.table.clone(),
            schema_hash: schema().hash(),
            substrait_plan: to_substrait(&plan, &schema()).into(),
            initial_credits: credits,
            timeout_ms,
            ..Default::default()
        };
        let id = self.id();
        self.send(FrameKind::PredicatePushdownRequest, id, &request, &[]);
        id
    }

    /// Asks and gives the rows of the answer, in the order in which they came.
    pub fn scan(&mut self, text: &ScanText) -> Answer<Vec<RecordBatch>> {
        let id = self.start_scan(text, 4, 0);
        self.rows(id)
    }

    /// The same, with what the cell counted.
    pub fn scan_with_statistics(&mut self, text: &ScanText) -> Answer<(Vec<RecordBatch>, proto::ScanStatistics)> {
        let id = self.start_scan(text, 4, 0);
        self.rows_with_statistics(id)
    }

    /// The rest of an answer; returns credits.
    pub fn rows(&mut self, id: u64) -> Answer<Vec<RecordBatch>> {
        Ok(self.rows_with_statistics(id)?.0)
    }

    fn rows_with_statistics(&mut self, id: u64) -> Answer<(Vec<RecordBatch>, proto::ScanStatistics)> {
        let mut arrow: Option<SchemaRef> = None;
        let mut batches = Vec::new();
        let mut parts: Vec<u8> = Vec::new();
        let mut sequence = 0;
        loop {
            let frame = self.receive().expect("the cell closed the connection");
            if frame.kind == FrameKind::Error {
                return Err(frame.message().unwrap());
            }
            assert_eq!((frame.kind, frame.request_id), (FrameKind::FilteredResultSet, id));
            let message: proto::FilteredResultSet = frame.message().unwrap();
            assert_eq!(message.sequence, sequence);
            sequence += 1;
            let _ = self.try_send(FrameKind::Credit, id, &proto::Credit { request_id: id, count: 1 }, &[]);
            if message.more {
                parts.extend_from_slice(&frame.payload);
                continue;
            }
            parts.extend_from_slice(&frame.payload);
            let payload = Bytes::from(std::mem::take(&mut parts));
            match &arrow {
                None if !payload.is_empty() => arrow = Some(image::read_schema(&payload).unwrap()),
                Some(arrow) if !payload.is_empty() => batches.push(image::read_image(payload, arrow).unwrap()),
                _ => {}
            }
            if message.last {
                let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
                let statistics = message.statistics.unwrap();
                assert_eq!(statistics.rows, rows as u64);
                return Ok((batches, statistics));
            }
        }
    }
}

/// The table of these tests.
pub fn schema() -> Schema {
    Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("price", DataType::Decimal { precision: 12, scale: 2 }, false),
        Field::new("note", DataType::Text, true),
    ])
    .unwrap()
}

fn note(id: i64) -> Option<String> {
    (id % 7 != 3).then(|| format!("note {} of row {id}", id.wrapping_mul(2_654_435_761) % 1000))
}

/// Batch `number` of `rows` rows: what is in it follows from its number.
pub fn batch(number: u64, rows: usize) -> RecordBatch {
    let ids = (0..rows as i64).map(|row| number as i64 * rows as i64 + row);
    let prices: Vec<i64> = ids.clone().map(|id| id * 31 % 100_000).collect();
    let prices = Decimal64Array::from(prices).with_precision_and_scale(12, 2).unwrap();
    let notes: Vec<Option<String>> = ids.clone().map(note).collect();
    let columns: Vec<ArrayRef> =
        vec![Arc::new(Int64Array::from_iter_values(ids)), Arc::new(prices), Arc::new(StringArray::from(notes))];
    RecordBatch::try_new(arrow_mapping::to_arrow_schema(&schema(), true), columns).unwrap()
}

/// A question for all columns and rows of a table.
pub fn everything(table: &str) -> ScanText {
    ScanText { table: table.into(), ..ScanText::default() }
}

/// How many rows there are; fails when they are not exactly the first ones of the tests' table, each once.
/// The ids of its rows.
pub fn ids(batch: &RecordBatch) -> Vec<i64> {
    let column = batch.column_by_name("id").unwrap();
    column.as_any().downcast_ref::<Int64Array>().unwrap().values().to_vec()
}

/// Compares every cell of the table's first rows, in any order.
pub fn assert_first_rows(batches: &[RecordBatch], rows: usize) {
    let mut seen = vec![false; rows];
    for batch in batches {
        let column = |name: &str| batch.column_by_name(name).unwrap().clone();
        let (ids, prices, notes) = (column("id"), column("price"), column("note"));
        let ids = ids.as_any().downcast_ref::<Int64Array>().unwrap();
        let prices = prices.as_any().downcast_ref::<Decimal64Array>().unwrap();
        let notes = notes.as_any().downcast_ref::<StringArray>().unwrap();
        for row in 0..batch.num_rows() {
            let id = ids.value(row);
            assert!((id as usize) < rows && !seen[id as usize], "row {id} is wrong or came twice");
            seen[id as usize] = true;
            assert_eq!(prices.value(row), id * 31 % 100_000, "price of row {id}");
            assert_eq!(notes.is_valid(row).then(|| notes.value(row).to_string()), note(id), "note of row {id}");
        }
    }
    let missing = seen.iter().filter(|seen| !**seen).count();
    assert_eq!(missing, 0, "{missing} of {rows} rows are missing");
}
