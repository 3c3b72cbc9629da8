//! What the tests against an independent engine share: a real cell process, and answers in a form in which two
//! engines can be compared.
//!
//! Owns [`Cell`] (a `heliostat-cell` of its own on loopback, ended when dropped) and [`Rows`] (values, not types:
//! decimals by value, floats within a relative tolerance, rows sorted), and [`proxy`] (a network that loses things).
//! Called by the tests of this crate only.

pub mod proxy;

use std::cmp::Ordering;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use heliostat_client::{Client, ConnectOptions, Credentials, Integrity, Transport};

use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, TimeUnit};

/// Lets the kernel choose a port.
const ANY_PORT: &str = "127.0.0.1:0";

/// A cell process with a volume and a manifest in a temporary folder.
pub struct Cell {
    /// Where it listens, `hidb+plain://127.0.0.1:PORT`; it does not ask who is there.
    pub url: String,
    process: Child,
    folder: tempfile::TempDir,
}

impl Cell {
    /// Formats a volume and starts a cell with this many cores.
    pub fn start(cores: usize) -> Self {
        Self::start_with(cores, &[])
    }

    /// The same, with more options.
    pub fn start_with(cores: usize, options: &[&str]) -> Self {
        let folder = tempfile::tempdir_in(build_folder()).expect("a temporary folder");
        let (process, url) = spawn(folder.path(), cores, &[], ANY_PORT, options);
        Cell { url, process, folder }
    }

    /// The cell's process.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Where its volume and manifest are, as options of `heliostat-cell`.
    pub fn place(&self) -> Vec<std::ffi::OsString> {
        let folder = self.folder.path();
        vec!["--volume".into(), folder.join("volume").into(), "--metadata".into(), folder.join("manifest").into()]
    }

    /// Ends the cell as an operator would (SIGTERM) and starts it on the same volume, perhaps with another number of
    /// cores or another environment (`HELIOSTAT_SIMD`).
    pub fn restart(&mut self, cores: usize, environment: &[(&str, &str)]) {
        Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status().expect("kill runs");
        let status = self.process.wait().expect("the cell ends");
        assert!(status.success(), "the cell drained badly: {status}");
        (self.process, self.url) = spawn(self.folder.path(), cores, environment, ANY_PORT, &[]);
    }

    /// Kills the cell (kill -9) and starts it again on the same volume and address.
    pub fn crash(&mut self, cores: usize) {
        self.process.kill().expect("the cell can be killed");
        self.process.wait().expect("the cell ends");
        let listen = self.url.strip_prefix("hidb+plain://").expect("a hidb+plain URL").to_string();
        (self.process, self.url) = spawn(self.folder.path(), cores, &[], &listen, &[]);
    }
}

/// The ways to a cell: plain TCP, TLS, and RDMA by the user-space soft-RoCE, without and with a MAC over everything.
pub const TRANSPORTS: [&str; 4] = ["tcp", "tls", "soft", "soft+hmac"];

impl Cell {
    /// A client that goes one of [`TRANSPORTS`].
    ///
    /// # Errors
    /// The client's.
    pub async fn connect(&self, transport: &str) -> hidb::Result<Client> {
        self.connect_with(transport, ConnectOptions::default()).await
    }

    /// The same, with other options; the transport is put into them.
    ///
    /// # Errors
    /// The client's.
    pub async fn connect_with(&self, transport: &str, options: ConnectOptions) -> hidb::Result<Client> {
        let (is_soft, has_integrity) = (transport.starts_with("soft"), transport == "soft+hmac");
        let mut options = ConnectOptions {
            transport: if is_soft { Transport::Device("soft".into()) } else { Transport::Tcp },
            integrity: if has_integrity { Integrity::Hmac } else { Integrity::None },
            ..options
        };
        let mut url = self.url.clone();
        if transport == "tls" || has_integrity {
            let authority = std::fs::read_to_string(authority_of(self.folder.path()).join("ca.crt"));
            let authority = authority.expect("the authority made a certificate of its own");
            options.credentials = Some(Credentials::password("anybody", "").with_ca(authority));
            url = url.replace("hidb+plain://", "hidb://");
        }
        Client::connect(&url, options).await
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The folder of this build's commands: the test's own executable is in `deps/` below it.
fn build_folder() -> PathBuf {
    let mut folder = std::env::current_exe().expect("the test has a path");
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    folder
}

fn authority_of(folder: &Path) -> PathBuf {
    folder.join("tls")
}

/// A command of the build that the test belongs to.
pub fn command_of_this_build(name: &str) -> PathBuf {
    let command = build_folder().join(name);
    assert!(command.exists(), "{command:?} is not built: cargo build --release --workspace --bins");
    command
}

fn spawn(folder: &Path, cores: usize, environment: &[(&str, &str)], listen: &str, options: &[&str]) -> (Child, String) {
    let command = command_of_this_build("heliostat-cell");
    let authority = authority_of(folder);
    if !authority.exists() {
        let made =
            Command::new(&command).args(["tls", "init", "--ca"]).arg(&authority).output().expect("tls init runs");
        assert!(made.status.success(), "tls init: {}", String::from_utf8_lossy(&made.stderr));
    }
    let mut child = Command::new(command)
        .arg("--tls-certificate")
        .arg(authority.join("cell.crt"))
        .arg("--tls-key")
        .arg(authority.join("cell.key"))
        .args([
            "--insecure",
            "--fabric",
            "soft:127.0.0.1",
            "--auto-format",
            "--listen",
            listen,
            "--metrics-listen",
            ANY_PORT,
            "--auto-format-size",
            "8GiB",
            "--cache",
            "256MiB",
        ])
        .args(options)
        .args(["--cores", &cores.to_string()])
        .arg("--volume")
        .arg(folder.join("volume"))
        .arg("--metadata")
        .arg(folder.join("manifest"))
        .envs(environment.iter().copied())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the cell starts");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
    let url = lines
        .by_ref()
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("ready ").map(|rest| rest.trim().to_string()))
        .expect("the cell says that it is ready")
        .replace("hidb://", "hidb+plain://");
    std::thread::spawn(move || lines.for_each(drop));
    (child, url)
}

/// One value, by what it means and not by how it is represented.
#[derive(Clone, Debug)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// Boolean.
    Boolean(bool),
    /// Integers and decimals: unscaled value and digits after the point.
    Number(i128, u32),
    /// Floats.
    Float(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Days since 1970.
    Date(i32),
    /// Microseconds since 1970.
    Timestamp(i64),
}

impl Value {
    fn rank(&self) -> u8 {
        match self {
            Value::Null => 0,
            Value::Boolean(_) => 1,
            Value::Number(..) | Value::Float(_) => 2,
            Value::Text(_) => 3,
            Value::Bytes(_) => 4,
            Value::Date(_) => 5,
            Value::Timestamp(_) => 6,
        }
    }

    fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Number(unscaled, scale) => Some(*unscaled as f64 / 10f64.powi(*scale as i32)),
            Value::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// A total order in which near-equal numbers are neighbours; only used to sort rows.
    fn order(&self, other: &Value) -> Ordering {
        match (self, other) {
            (Value::Boolean(a), Value::Boolean(b)) => a.cmp(b),
            (Value::Text(a), Value::Text(b)) => a.cmp(b),
            (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
            (Value::Date(a), Value::Date(b)) => a.cmp(b),
            (Value::Timestamp(a), Value::Timestamp(b)) => a.cmp(b),
            _ => match (self.as_f64(), other.as_f64()) {
                (Some(a), Some(b)) => a.total_cmp(&b),
                _ => self.rank().cmp(&other.rank()),
            },
        }
    }

    /// Equal: exactly for everything but floats (relative 1e-9) and, when `quotients`, decimals that a division or
    /// an average made: engines keep different numbers of digits of those, so they may differ by one unit of the
    /// coarser scale.
    fn equals(&self, other: &Value, quotients: bool) -> bool {
        match (self, other) {
            (Value::Null, Value::Null) => true,
            (Value::Number(a, sa), Value::Number(b, sb)) => {
                let (coarse, fine) = ((*sa).min(*sb), (*sa).max(*sb));
                let up = |v: i128, s: u32| v.checked_mul(10i128.pow(fine - s));
                match (up(*a, *sa), up(*b, *sb)) {
                    (Some(a), Some(b)) => a == b || quotients && (a - b).abs() <= 10i128.pow(fine - coarse),
                    _ => false,
                }
            }
            (Value::Float(_), _) | (_, Value::Float(_)) => match (self.as_f64(), other.as_f64()) {
                (Some(a), Some(b)) => {
                    a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1e-6)
                }
                _ => false,
            },
            _ => self.rank() == other.rank() && self.order(other).is_eq(),
        }
    }
}

/// An answer as a sorted bag of rows.
#[derive(Clone)]
pub struct Rows(pub Vec<Vec<Value>>);

impl Rows {
    /// Reads batches of any of the Arrow types that either engine returns.
    pub fn from_batches(batches: &[RecordBatch]) -> Self {
        let mut rows = Vec::new();
        for batch in batches {
            let columns: Vec<ArrayRef> = batch.columns().iter().map(canonical).collect();
            for row in 0..batch.num_rows() {
                rows.push(columns.iter().map(|column| value(column, row)).collect());
            }
        }
        Rows(rows)
    }

    /// Sorts the rows, for answers without an order.
    pub fn sorted(mut self) -> Self {
        self.0.sort_by(|a: &Vec<Value>, b| {
            a.iter().zip(b).map(|(a, b)| a.order(b)).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
        });
        self
    }

    /// Says where two answers differ first, or nothing.
    pub fn difference(&self, other: &Rows, quotients: bool) -> Option<String> {
        if self.0.len() != other.0.len() {
            return Some(format!("{} rows against {}", self.0.len(), other.0.len()));
        }
        for (index, (a, b)) in self.0.iter().zip(&other.0).enumerate() {
            if a.len() != b.len() || !a.iter().zip(b).all(|(a, b)| a.equals(b, quotients)) {
                return Some(format!("row {index}: {a:?} against {b:?}"));
            }
        }
        None
    }
}

/// Casts to one of the few types that [`value`] reads.
fn canonical(column: &ArrayRef) -> ArrayRef {
    let target = match column.data_type() {
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 | DataType::UInt32 => {
            DataType::Int64
        }
        DataType::Float16 | DataType::Float32 => DataType::Float64,
        DataType::Decimal32(_, s) | DataType::Decimal64(_, s) => DataType::Decimal128(38, *s),
        DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(_, _) => DataType::Utf8,
        DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        DataType::Timestamp(_, _) => DataType::Timestamp(TimeUnit::Microsecond, None),
        other => other.clone(),
    };
    arrow_cast::cast(column, &target).expect("a cast that widens")
}

fn value(column: &ArrayRef, row: usize) -> Value {
    if column.is_null(row) {
        return Value::Null;
    }
    match column.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => Value::Boolean(column.as_boolean().value(row)),
        DataType::Int64 => Value::Number(column.as_primitive::<Int64Type>().value(row).into(), 0),
        DataType::UInt64 => Value::Number(column.as_primitive::<UInt64Type>().value(row).into(), 0),
        DataType::Decimal128(_, scale) => {
            Value::Number(column.as_primitive::<Decimal128Type>().value(row), *scale as u32)
        }
        DataType::Float64 => Value::Float(column.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => Value::Text(column.as_string::<i32>().value(row).to_string()),
        DataType::Binary => Value::Bytes(column.as_binary::<i32>().value(row).to_vec()),
        DataType::Date32 => Value::Date(column.as_primitive::<Date32Type>().value(row)),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            Value::Timestamp(column.as_primitive::<TimestampMicrosecondType>().value(row))
        }
        other => panic!("an answer of type {other} can't be compared yet"),
    }
}
