//! A cell process of a test.
//!
//! Owns [`Cell`]. Called by the tests of this crate.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use heliostat_client::{Client, ConnectOptions, Credentials, Integrity, Transport};

use crate::surroundings::Surroundings;

/// A cell process with a volume and a manifest in a temporary folder.
pub struct Cell {
    /// Where it listens, `hidb+plain://127.0.0.1:PORT`; it does not ask who is there. [`Cell::connect`] also reaches one
    /// that is not on loopback.
    pub url: String,
    process: Child,
    folder: tempfile::TempDir,
    surroundings: Surroundings,
    options: Vec<String>,
}

impl Cell {
    /// Formats a volume and starts a cell with this many cores.
    pub fn start(cores: usize) -> Self {
        Self::start_with(cores, &[])
    }

    /// The same, with more options, which it keeps when it is started again.
    pub fn start_with(cores: usize, options: &[&str]) -> Self {
        Self::start_in(Surroundings::of_environment(), cores, options)
    }

    /// The same in surroundings of the test's choice.
    pub fn start_in(surroundings: Surroundings, cores: usize, options: &[&str]) -> Self {
        let folder = tempfile::tempdir_in(surroundings.folder.clone().unwrap_or_else(build_folder));
        let folder = folder.expect("a temporary folder");
        let options: Vec<String> = options.iter().map(|option| option.to_string()).collect();
        let listen = SocketAddr::new(surroundings.address, 0);
        let (process, url) = spawn(folder.path(), &surroundings, cores, &[], listen, &options);
        Cell { url, process, folder, surroundings, options }
    }

    /// The cell's process.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Sends it a signal: `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        signal(self.process.id(), name);
    }

    /// Memory that it has, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("the cell runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its size");
        line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") << 10
    }

    /// Sessions that it knows, as `heliostat-cell sessions --json` tells them: no network is needed for that.
    pub fn sessions(&self) -> Vec<serde_json::Value> {
        let mut command = Command::new(command_of_this_build("heliostat-cell"));
        let output = command.args(["sessions", "--json"]).args(self.place()).output().expect("heliostat-cell runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout).expect("text");
        lines.lines().map(|line| serde_json::from_str(line).expect("one object per line")).collect()
    }

    /// Waits until it has let go of all sessions.
    ///
    /// # Panics
    /// When sessions are left after this time.
    pub fn wait_for_no_sessions(&self, patience: Duration) {
        let until = Instant::now() + patience;
        loop {
            let sessions = self.sessions();
            if sessions.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "sessions are left after {patience:?}: {sessions:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where its volume and manifest are, as options of `heliostat-cell`.
    pub fn place(&self) -> Vec<std::ffi::OsString> {
        let folder = self.folder.path();
        vec!["--volume".into(), folder.join("volume").into(), "--metadata".into(), folder.join("manifest").into()]
    }

    /// Ends the cell as an operator would (SIGTERM) and starts it on the same volume, perhaps with another number of
    /// cores or another environment (`HELIOSTAT_SIMD`).
    pub fn restart(&mut self, cores: usize, environment: &[(&str, &str)]) {
        self.signal("TERM");
        let status = self.process.wait().expect("the cell ends");
        assert!(status.success(), "the cell drained badly: {status}");
        self.start_again(cores, environment, SocketAddr::new(self.surroundings.address, 0));
    }

    /// Kills the cell (kill -9) and starts it again on the same volume and address.
    pub fn crash(&mut self, cores: usize) {
        self.process.kill().expect("the cell can be killed");
        self.process.wait().expect("the cell ends");
        let listen = self.url.strip_prefix("hidb+plain://").expect("a hidb+plain URL");
        self.start_again(cores, &[], listen.parse().expect("the address that it said"));
    }

    fn start_again(&mut self, cores: usize, environment: &[(&str, &str)], listen: SocketAddr) {
        (self.process, self.url) =
            spawn(self.folder.path(), &self.surroundings, cores, environment, listen, &self.options);
    }

    /// A client that goes one of the ways of [`crate::surroundings::transports`].
    ///
    /// # Errors
    /// The client's.
    pub async fn connect(&self, way: &str) -> hidb::Result<Client> {
        self.connect_with(way, ConnectOptions::default()).await
    }

    /// The same, with options.
    ///
    /// # Errors
    /// The client's.
    pub async fn connect_with(&self, way: &str, options: ConnectOptions) -> hidb::Result<Client> {
        let (way, integrity) = match way.strip_suffix("+hmac") {
            Some(device) => (device, Integrity::Hmac),
            None => (way, Integrity::None),
        };
        let transport = match way {
            "tcp" | "tls" => Transport::Tcp,
            device => Transport::Device(device.into()),
        };
        let mut options = ConnectOptions { transport, integrity, ..options };
        if way != "tls" && integrity == Integrity::None && self.surroundings.address.is_loopback() {
            return Client::connect(&self.url, options).await;
        }
        let authority = std::fs::read_to_string(authority_of(self.folder.path()).join("ca.crt"));
        let authority = authority.expect("the authority made a certificate of its own");
        options.credentials = Some(Credentials::password("anybody", "").with_ca(authority));
        Client::connect(&self.url.replace("hidb+plain://", "hidb://"), options).await
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sends a signal to a process that a test started.
pub fn signal(process: u32, name: &str) {
    let status = Command::new("kill").args([format!("-{name}"), process.to_string()]).status().expect("kill runs");
    assert!(status.success(), "kill -{name} {process}: {status}");
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

fn spawn(
    folder: &Path,
    surroundings: &Surroundings,
    cores: usize,
    environment: &[(&str, &str)],
    listen: SocketAddr,
    options: &[String],
) -> (Child, String) {
    let program = command_of_this_build("heliostat-cell");
    let authority = authority_of(folder);
    if !authority.exists() {
        let mut make = Command::new(&program);
        make.args(["tls", "init", "--host", &surroundings.address.to_string(), "--ca"]).arg(&authority);
        let made = make.output().expect("tls init runs");
        assert!(made.status.success(), "tls init: {}", String::from_utf8_lossy(&made.stderr));
    }
    let mut command = match surroundings.command.split_first() {
        None => Command::new(program),
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    };
    let mut child = command
        .arg("--tls-certificate")
        .arg(authority.join("cell.crt"))
        .arg("--tls-key")
        .arg(authority.join("cell.key"))
        .args(["--insecure", "--auto-format", "--auto-format-size", "8GiB", "--cache", "256MiB"])
        .args(["--listen", &listen.to_string(), "--metrics-listen", "127.0.0.1:0", "--fabric", &surroundings.fabric])
        .args(options)
        .args(["--cores", &cores.min(surroundings.cores_max).to_string()])
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
