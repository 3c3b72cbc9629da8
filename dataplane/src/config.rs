//! The cell's configuration: one TOML file, and a flag for every option that overrides the file.
//!
//! Owns [`Config`] (every option with its default and its doc line), [`Overrides`] (the same options as
//! flags), and the forms options are written in: [`Size`], [`Interval`], [`LinkIntegrity`].
//!
//! Invariants
//! - An option exists once, in the `options!` list below: field, flag, default and doc line come from it,
//!   so that `--print-config`, `--help` and the parser can't disagree.
//! - A key the file has and this version does not know is an error that names it.
//!
//! Called by `main` and by tests; calls nothing of ours but `hidb`.

use std::fmt;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hidb::session::seal::Integrity;
use serde::{Deserialize, Deserializer};

/// A configuration that can't be used. The message names the option and the file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, has an unknown key, or a value of the wrong kind.
    #[error("the configuration {path} is not valid: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and key.
        message: String,
    },
    /// A value outside what is allowed.
    #[error("option {option}: {message}")]
    Value {
        /// The option.
        option: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
}

/// A number of bytes (`512MiB`, `4GiB`, `1000000`), or a share of the machine's memory (`25%`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the machine's memory.
    PercentOfMemory(u8),
}

impl Size {
    /// The size in bytes on this machine.
    pub fn bytes(self) -> u64 {
        match self {
            Size::Bytes(bytes) => bytes,
            Size::PercentOfMemory(percent) => memory_bytes() / 100 * u64::from(percent),
        }
    }
}

const SIZE_UNITS: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a size: write bytes, or a number with KiB, MiB, GiB, TiB or %");
        let text = text.trim();
        if let Some(percent) = text.strip_suffix('%') {
            let percent = percent.trim().parse().map_err(|_| wrong())?;
            return if percent <= 90 { Ok(Size::PercentOfMemory(percent)) } else { Err(wrong()) };
        }
        for (unit, factor) in SIZE_UNITS {
            if text.len() > unit.len()
                && text.is_char_boundary(text.len() - unit.len())
                && text[text.len() - unit.len()..].eq_ignore_ascii_case(unit)
            {
                let number: u64 = text[..text.len() - unit.len()].trim().parse().map_err(|_| wrong())?;
                return number.checked_mul(factor).map(Size::Bytes).ok_or_else(wrong);
            }
        }
        text.parse().map(Size::Bytes).map_err(|_| wrong())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Size::PercentOfMemory(percent) => write!(f, "{percent}%"),
            Size::Bytes(bytes) => {
                let unit = SIZE_UNITS[..4].iter().find(|(_, factor)| *bytes >= *factor && bytes % factor == 0);
                match unit {
                    Some((unit, factor)) => write!(f, "{}{unit}", bytes / factor),
                    None => write!(f, "{bytes}"),
                }
            }
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(bytes) => Ok(Size::Bytes(bytes)),
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// A length of time (`200ms`, `10s`, `5m`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval(pub Duration);

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a length of time: write a number with ms, s, m or h");
        let text = text.trim();
        for (unit, milliseconds) in [("ms", 1u64), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)] {
            if let Some(number) = text.strip_suffix(unit)
                && let Ok(number) = number.trim().parse::<u64>()
            {
                let total = number.checked_mul(milliseconds).ok_or_else(wrong)?;
                return Ok(Interval(Duration::from_millis(total)));
            }
        }
        Err(wrong())
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_millis();
        if milliseconds >= 1_000 && milliseconds.is_multiple_of(1_000) {
            write!(f, "{}s", milliseconds / 1_000)
        } else {
            write!(f, "{milliseconds}ms")
        }
    }
}

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What protects RDMA links (`none`, `hmac`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkIntegrity(pub Integrity);

impl FromStr for LinkIntegrity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(LinkIntegrity)
    }
}

impl fmt::Display for LinkIntegrity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for LinkIntegrity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How an option's value is written in the printed configuration.
trait TomlValue {
    fn to_toml(&self) -> String;
}

macro_rules! toml_value {
    (bare $($bare:ty)*; text $($text:ty)*) => {
        $(impl TomlValue for $bare { fn to_toml(&self) -> String { self.to_string() } })*
        $(impl TomlValue for $text { fn to_toml(&self) -> String { format!("{:?}", self.to_string()) } })*
    };
}
toml_value!(bare u16 u32 u64 usize bool; text String Size Interval LinkIntegrity SocketAddr);

impl TomlValue for PathBuf {
    fn to_toml(&self) -> String {
        format!("{:?}", self.to_string_lossy())
    }
}

macro_rules! options {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:expr $(, arg($($arg:tt)+))?;)+) => {
        /// Every option of a cell.
        #[derive(Clone, Debug, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Config { $($(#[doc = $doc])+ pub $name: $type,)+ }

        /// Every option of a cell as a flag; what is given overrides the file.
        #[derive(Clone, Debug, Default, clap::Args)]
        pub struct Overrides { $($(#[doc = $doc])+ #[arg(long $(, $($arg)+)?)] pub $name: Option<$type>,)+ }

        impl Default for Config {
            fn default() -> Self { Config { $($name: $default,)+ } }
        }

        impl Config {
            /// Takes over the options that were given as flags.
            pub fn apply(&mut self, overrides: &Overrides) {
                $(if let Some(value) = &overrides.$name { self.$name = value.clone(); })+
            }

            /// This configuration as a TOML file with every option's doc line above it.
            pub fn to_commented_toml(&self) -> String {
                let mut text = String::from("# Configuration of heliostat-cell.\n");
                $(
                    text.push('\n');
                    for line in [$($doc),+] { let _ = writeln!(text, "#{line}"); }
                    let _ = writeln!(text, "{} = {}", stringify!($name), self.$name.to_toml());
                )+
                text
            }
        }
    };
}

options! {
    /// Address to serve HIDB on. Other addresses than loopback need tls_certificate and tls_key, or insecure.
    listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7400));
    /// The volume: a block device, an NVMe namespace past the block layer (/dev/ngXnY), or a file; `heliostat-cell format`
    /// makes one.
    volume: PathBuf = PathBuf::from("heliostat.volume");
    /// Poll for the completions of a volume that is /dev/ngXnY with poll queues (nvme.poll_queues=N on the kernel's command
    /// line), in place of interrupts: a core that reads does not sleep.
    nvme_poll: bool = false, arg(num_args = 0..=1, default_missing_value = "true");
    /// Folder of the manifest (RocksDB). Empty: the volume's path with `.meta` appended.
    metadata: PathBuf = PathBuf::new();
    /// Make and format the volume when it does not exist (for development).
    auto_format: bool = false, arg(num_args = 0..=1, default_missing_value = "true");
    /// Size of a volume made by auto_format; the file is sparse.
    auto_format_size: Size = Size::Bytes(64 << 30);
    /// Name of this cell, for logs and clients. Empty: the host's name.
    name: String = String::new();
    /// Cores to run on: one pinned executor each. 0: every core this process may use.
    cores: usize = 0;
    /// Memory of the block cache, over all cores: a size, or a share of the machine's memory.
    cache: Size = Size::PercentOfMemory(25);
    /// Memory that graphs of vectors may take, all together: kind auto makes an IVF index, which stays on the volume, of
    /// what does not fit. A size, or a share of the machine's memory.
    graph_memory: Size = Size::PercentOfMemory(25);
    /// Memory one request may use for groups, sorting and results.
    request_memory: Size = Size::Bytes(256 << 20);
    /// Deadline of a request that brings none of its own. 0ms: none.
    request_timeout: Interval = Interval(Duration::ZERO);
    /// Requests one session may have in flight.
    requests_in_flight_max: u32 = 64;
    /// Sessions at a time; more are refused with Overloaded.
    sessions_max: u32 = 4096;
    /// Largest result frame: header, body and payload. At most 1MiB, at least 64KiB.
    frame_bytes_max: Size = Size::Bytes(1 << 20);
    /// Result frames a request may have sent before the client returns credit.
    initial_credits: u32 = 16;
    /// RDMA devices to serve links on: names separated by commas (mlx5_0, rxe0, soft:10.0.0.7), auto for all hardware
    /// that is up, or none.
    fabric: String = String::from("auto");
    /// RDMA links per core; past that, batches go by the session's home core, or over TCP.
    links_max: u32 = 1024;
    /// What RDMA links must have: hmac, a MAC over everything that travels on them, keyed from TLS; or none, which leaves
    /// it to the client. For networks on which others can send.
    rdma_integrity: LinkIntegrity = LinkIntegrity(Integrity::None);
    /// Prepared statements kept per session; the least recently used one goes first.
    statements_max: usize = 256;
    /// Bytes of load batches a client may have sent and not seen received.
    load_window: Size = Size::Bytes(32 << 20);
    /// Raw bytes of rows that a load puts in order together, in tables that have an order: the more, the closer equal
    /// keys lie. At least 1MiB, at most 1GiB. Clients keep what is not durable, 512MiB unless they say otherwise: where
    /// that is less than two runs, runs end early.
    sort_run: Size = Size::Bytes(192 << 20);
    /// Memory for the runs of all loads and merges of tables that have an order. A run takes four times its size; where
    /// many loads would take more than this together, each has shorter runs, of 16MiB at least.
    sort_memory: Size = Size::Bytes(1 << 30);
    /// A load without traffic for this long has its rows made durable and acknowledged.
    load_idle_flush: Interval = Interval(Duration::from_millis(200));
    /// An open load without traffic for this long is aborted and its space freed.
    load_expiry: Interval = Interval(Duration::from_secs(24 * 3600));
    /// Time a client has to say Hello after it connected.
    handshake_timeout: Interval = Interval(Duration::from_secs(10));
    /// How often a quiet session is asked whether it is still there.
    heartbeat_interval: Interval = Interval(Duration::from_secs(10));
    /// A client that neither reads nor answers for this long is disconnected.
    dead_peer_timeout: Interval = Interval(Duration::from_secs(30));
    /// How long running requests may go on after SIGTERM.
    drain_timeout: Interval = Interval(Duration::from_secs(30));
    /// Small segments are merged in the background this often. 0ms: never.
    merge_interval: Interval = Interval(Duration::from_secs(10));
    /// The cell's certificate chain (PEM), for TLS. `heliostat-cell tls init` makes one. Empty: no TLS, loopback only.
    tls_certificate: PathBuf = PathBuf::new();
    /// The private key of tls_certificate (PEM), a file that only its owner can read.
    tls_key: PathBuf = PathBuf::new();
    /// Authority of client certificates (PEM). Whose certificate it signed is the user in the certificate's common
    /// name, without a password. Empty: users have passwords.
    tls_client_ca: PathBuf = PathBuf::new();
    /// Refuse plain connections on loopback, too; other addresses take TLS only in any case.
    tls_required: bool = false, arg(num_args = 0..=1, default_missing_value = "true");
    /// Take everybody who connects, with or without TLS, for an administrator. For tests on a closed network.
    insecure: bool = false, arg(num_args = 0..=1, default_missing_value = "true");
    /// Address of Prometheus metrics over HTTP (path /metrics). Port 0: any free port. Loopback only.
    metrics_listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7401));
    /// Serve metrics.
    metrics: bool = true, arg(num_args = 0..=1, default_missing_value = "true");
    /// Which log lines are written to standard error (tracing's filter syntax).
    log: String = String::from("info");
    /// Form of log lines: text or json.
    log_format: String = String::from("text");
    /// File that receives the readiness line once the cell serves. Empty: none (standard output always does).
    ready_file: PathBuf = PathBuf::new();
}

/// Which cell a tool works on, one that is not running.
#[derive(Clone, Debug, clap::Args)]
pub struct Where {
    /// The volume: a block device, an NVMe namespace past the block layer (/dev/ngXnY), or a file.
    #[arg(long)]
    volume: PathBuf,
    /// Folder of the manifest; the volume's path with `.meta` appended when left out.
    #[arg(long)]
    metadata: Option<PathBuf>,
}

impl Where {
    /// The configuration that says so.
    pub fn config(self) -> Config {
        Config { volume: self.volume, metadata: self.metadata.unwrap_or_default(), ..Config::default() }
    }
}

impl Config {
    /// Reads the file (or the defaults when there is none), applies the flags, checks the values.
    pub fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Config, ConfigError> {
        let mut config = match file {
            None => Config::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
                Config::parse(&text, path)?
            }
        };
        config.apply(overrides);
        config.check()?;
        Ok(config)
    }

    /// Parses a configuration; `path` is for the error.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.to_path_buf(),
            message: error.to_string().trim_end().replace('\n', " "),
        })
    }

    /// Checks what types alone do not: addresses, ranges.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |option, message: String| Err(ConfigError::Value { option, message });
        self.check_security()?;
        let frame_bytes_max = self.frame_bytes_max.bytes();
        if !(64 << 10..=1 << 20).contains(&frame_bytes_max) {
            return wrong("frame_bytes_max", format!("{frame_bytes_max} bytes: must be 64KiB to 1MiB"));
        }
        for (option, value) in [
            ("requests_in_flight_max", self.requests_in_flight_max),
            ("sessions_max", self.sessions_max),
            ("initial_credits", self.initial_credits),
            ("links_max", self.links_max),
        ] {
            if value == 0 {
                return wrong(option, "must be at least 1".into());
            }
        }
        for (option, interval) in [
            ("handshake_timeout", self.handshake_timeout),
            ("heartbeat_interval", self.heartbeat_interval),
            ("dead_peer_timeout", self.dead_peer_timeout),
            ("load_idle_flush", self.load_idle_flush),
        ] {
            if interval.0.is_zero() {
                return wrong(option, "must be longer than 0ms".into());
            }
        }
        if self.request_memory.bytes() < 1 << 20 {
            return wrong("request_memory", format!("{}: must be at least 1MiB", self.request_memory));
        }
        let sort_run = self.sort_run.bytes();
        if !(1 << 20..=1 << 30).contains(&sort_run) {
            return wrong("sort_run", format!("{sort_run} bytes: must be 1MiB to 1GiB"));
        }
        if !["text", "json"].contains(&self.log_format.as_str()) {
            return wrong("log_format", format!("{:?}: must be text or json", self.log_format));
        }
        Ok(())
    }

    /// Nothing that is not encrypted leaves the machine, unless `insecure` says so.
    fn check_security(&self) -> Result<(), ConfigError> {
        let wrong = |option, message: String| Err(ConfigError::Value { option, message });
        let given = |path: &Path| !path.as_os_str().is_empty();
        if given(&self.tls_certificate) != given(&self.tls_key) {
            return wrong("tls_certificate", "needs tls_key, and the other way round".into());
        }
        for (option, wanted) in [
            ("tls_client_ca", given(&self.tls_client_ca)),
            ("tls_required", self.tls_required),
            ("rdma_integrity", self.rdma_integrity.0 == Integrity::Hmac),
        ] {
            if wanted && !self.has_tls() {
                return wrong(option, "needs tls_certificate and tls_key".into());
            }
        }
        if !self.listen.ip().is_loopback() && !self.has_tls() && !self.insecure {
            return wrong(
                "listen",
                format!(
                    "{} is not a loopback address: for TLS give tls_certificate and tls_key (`heliostat-cell tls init` makes them), or say --insecure",
                    self.listen
                ),
            );
        }
        if !self.metrics_listen.ip().is_loopback() {
            let message = format!("{} is not a loopback address: metrics have no TLS", self.metrics_listen);
            return wrong("metrics_listen", message);
        }
        Ok(())
    }

    /// Whether the cell has a certificate.
    pub fn has_tls(&self) -> bool {
        !self.tls_certificate.as_os_str().is_empty()
    }

    /// How clients write the address: with TLS when there is any.
    pub fn scheme(&self) -> &'static str {
        if self.has_tls() { "hidb" } else { "hidb+plain" }
    }

    /// The manifest's folder.
    pub fn metadata_folder(&self) -> PathBuf {
        if self.metadata.as_os_str().is_empty() {
            let mut path = self.volume.clone().into_os_string();
            path.push(".meta");
            return path.into();
        }
        self.metadata.clone()
    }

    /// The cell's name.
    pub fn cell_name(&self) -> String {
        if !self.name.is_empty() {
            return self.name.clone();
        }
        std::fs::read_to_string("/proc/sys/kernel/hostname")
            .map(|name| name.trim().to_string())
            .unwrap_or_else(|_| "heliostat".into())
    }
}

/// The machine's memory in bytes; 4 GiB when the kernel does not say.
fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB").and_then(|kib| kib.trim().parse::<u64>().ok())
    });
    kib.map_or(4 << 30, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_configuration_parses_to_the_defaults() {
        let text = Config::default().to_commented_toml();
        assert_eq!(Config::parse(&text, Path::new("x")).unwrap(), Config::default());
        assert!(text.contains("# Memory of the block cache"));
    }

    #[test]
    fn unknown_keys_are_named() {
        let error = Config::parse("cahce = \"4GiB\"", Path::new("cell.toml")).unwrap_err().to_string();
        assert!(error.contains("cahce") && error.contains("cell.toml"), "{error}");
    }

    #[test]
    fn other_addresses_than_loopback_need_tls_or_the_word_insecure() {
        let listen = "0.0.0.0:7400".parse().unwrap();
        let config = Config { listen, ..Config::default() };
        let error = config.check().unwrap_err().to_string();
        assert!(
            error.contains("loopback") && error.contains("tls_certificate") && error.contains("--insecure"),
            "{error}"
        );
        Config { insecure: true, ..config.clone() }.check().unwrap();
        let (tls_certificate, tls_key) = (PathBuf::from("cell.crt"), PathBuf::from("cell.key"));
        let with_tls = Config { tls_certificate, tls_key, ..config };
        with_tls.check().unwrap();
        assert_eq!((with_tls.scheme(), Config::default().scheme()), ("hidb", "hidb+plain"));
        for half in [
            Config { tls_key: PathBuf::new(), ..with_tls.clone() },
            Config { tls_certificate: PathBuf::new(), ..with_tls.clone() },
            Config { tls_client_ca: "ca.crt".into(), ..Config::default() },
            Config { tls_required: true, ..Config::default() },
            Config { rdma_integrity: LinkIntegrity(Integrity::Hmac), ..Config::default() },
            Config { metrics_listen: listen, ..with_tls },
        ] {
            assert!(half.check().is_err());
        }
    }

    #[test]
    fn sizes_of_runs_that_can_t_work_are_refused() {
        let with = |sort_run: Size| Config { sort_run, ..Config::default() }.check();
        for right in [1 << 20, 192 << 20, 1 << 30] {
            with(Size::Bytes(right)).unwrap();
        }
        for wrong in [Size::Bytes(0), Size::Bytes((1 << 20) - 1), Size::Bytes((1 << 30) + 1)] {
            let error = with(wrong).unwrap_err().to_string();
            assert!(error.contains("sort_run") && error.contains("1MiB to 1GiB"), "{error}");
        }
    }

    #[test]
    fn flags_override_the_file() {
        let mut config = Config::parse("cores = 4\ncache = \"1GiB\"", Path::new("x")).unwrap();
        config.apply(&Overrides { cores: Some(2), ..Overrides::default() });
        assert_eq!((config.cores, config.cache), (2, Size::Bytes(1 << 30)));
    }

    #[test]
    fn sizes_and_intervals_print_as_they_parse() {
        for text in ["4GiB", "25%", "123", "64KiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        for text in ["200ms", "10s", "0ms"] {
            assert_eq!(text.parse::<Interval>().unwrap().to_string(), text);
        }
        assert!("4 furlongs".parse::<Size>().is_err());
        assert!("10".parse::<Interval>().is_err());
        assert!("18446744073709551615GiB".parse::<Size>().is_err());
    }
}
