//! `heliostat dev`: the one-machine appliance.
//!
//! Makes what an appliance needs (volume, certificates, an administrator, a profile), starts the `heliostat-cell`
//! beside this executable, says what to type next, and takes it down again.
//!
//! Invariants
//! - The cell asks everybody who they are, here as anywhere. The administrator's password is random, made once per data
//!   folder, and in files of mode 0600 only.
//! - A default profile that something else wrote is not overwritten.
//! - The cell does not outlive this process, however this process ends (parent-death signal).
//! - A first Ctrl-C or SIGTERM drains the cell; a second one kills it.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use clap::Args;
use heliostat_client::{CREDENTIALS_VARIABLE, Credentials};
use hidb::{Error, ErrorCode};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

use zeroize::Zeroizing;

use super::user::made_up_password;
use super::{Failure, UnusedGlobal, quantity};

const CELL: &str = "heliostat-cell";

/// The profile in the data folder.
const PROFILE: &str = "credentials.toml";
/// The user of that profile.
const ADMINISTRATOR: &str = "admin";
/// Who wrote it.
const MAKER: &str = "heliostat dev";

/// The smallest volume the cell makes.
const VOLUME_BYTES_MIN: u64 = 1 << 20;

#[derive(Args)]
pub struct Arguments {
    /// The folder for the volume and its metadata; $XDG_DATA_HOME/heliostat/dev (without that variable
    /// ~/.local/share/heliostat/dev) when left out.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Cores the cell runs on; all of them when left out.
    #[arg(long, value_name = "N")]
    cores: Option<usize>,
    /// The port the cell listens on, on loopback; metrics take the next one. 0: any free ones.
    #[arg(long, default_value_t = heliostat_client::DEFAULT_PORT)]
    port: u16,
    /// Size of a new volume: bytes, or a number with K, M, G, T or KiB, MiB, GiB, TiB (64GiB, 64G), at least 1MiB. Its
    /// file is sparse: it takes what is loaded.
    #[arg(long, default_value = "64GiB", value_parser = parse_volume_size, value_name = "SIZE")]
    size: u64,
    /// Memory for the block cache: a size as above, or a share of the machine's memory (25%).
    #[arg(long, default_value = "4GiB", value_parser = parse_cache_size, value_name = "SIZE")]
    cache: String,
    #[command(flatten)]
    _unused: UnusedGlobal,
}

fn parse_volume_size(text: &str) -> Result<u64, String> {
    let bytes = quantity::parse_size(text)?;
    if bytes < VOLUME_BYTES_MIN { Err("a volume has at least 1MiB".into()) } else { Ok(bytes) }
}

/// The size as the cell takes it.
fn parse_cache_size(text: &str) -> Result<String, String> {
    match text.trim().strip_suffix('%').map(str::parse::<u8>) {
        Some(Ok(percent @ 1..=90)) => Ok(format!("{percent}%")),
        Some(_) => Err("expected 1% to 90% of the machine's memory".into()),
        None => quantity::parse_size(text).map(|bytes| bytes.to_string()),
    }
}

fn failed(code: ErrorCode, message: String) -> Failure {
    Failure::Request(Error::new(code, message))
}

fn default_folder() -> Result<PathBuf, Failure> {
    let from_home =
        || std::env::var_os("HOME").filter(|home| !home.is_empty()).map(|home| Path::new(&home).join(".local/share"));
    let base = std::env::var_os("XDG_DATA_HOME").filter(|path| Path::new(path).is_absolute()).map(PathBuf::from);
    base.or_else(from_home)
        .map(|base| base.join("heliostat/dev"))
        .ok_or_else(|| Failure::Usage("there is no home folder to keep data in: say where with --data DIR".into()))
}

fn cell_executable() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()
        .map_err(|error| failed(ErrorCode::Io, format!("the path of this executable is unknown: {error}")))?;
    let cell = own.with_file_name(CELL);
    if cell.is_file() {
        Ok(cell)
    } else {
        Err(failed(
            ErrorCode::Io,
            format!("{} is missing: install or build it beside {}", cell.display(), own.display()),
        ))
    }
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let executable = cell_executable()?;
    let folder = match arguments.data {
        Some(folder) => folder,
        None => default_folder()?,
    };
    std::fs::create_dir_all(&folder).map_err(|error| {
        failed(ErrorCode::Io, format!("{} can't be made: {error}: choose another --data DIR", folder.display()))
    })?;
    let folder = folder.canonicalize().unwrap_or(folder);
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut terminations = signal(SignalKind::terminate())?;
    let (certificate, credentials) = tokio::select! {
        prepared = prepare(&executable, &folder, arguments.size) => prepared?,
        _ = interrupts.recv() => return Ok(()),
        _ = terminations.recv() => return Ok(()),
    };

    let mut command = Command::new(&executable);
    let metrics_port = if arguments.port == 0 { 0 } else { arguments.port.wrapping_add(1) };
    command
        .args(place(&folder))
        .arg("--tls-certificate")
        .arg(&certificate)
        .arg("--tls-key")
        .arg(certificate.with_extension("key"))
        .arg("--listen")
        .arg(format!("127.0.0.1:{}", arguments.port))
        .arg("--metrics-listen")
        .arg(format!("127.0.0.1:{metrics_port}"))
        .arg("--cache")
        .arg(arguments.cache);
    if let Some(cores) = arguments.cores {
        command.arg("--cores").arg(cores.to_string());
    }
    // A group of its own: Ctrl-C reaches the cell through us, once.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).kill_on_drop(true);
    die_with_parent(&mut command);
    let mut cell = command
        .spawn()
        .map_err(|error| failed(ErrorCode::Io, format!("{} can't be started: {error}", executable.display())))?;

    let mut lines = match cell.stdout.take() {
        Some(stdout) => BufReader::new(stdout).lines(),
        None => return Err(failed(ErrorCode::Internal, "the cell's output is not connected".into())),
    };
    // Ends when the cell is ready, has ended, or is not wanted any more.
    let ready = async {
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some(address) = line.strip_prefix("ready ") {
                return Some(address.trim().to_string());
            }
        }
        None
    };
    let address = tokio::select! {
        address = ready => address,
        _ = interrupts.recv() => return drain(cell, &mut interrupts, &mut terminations).await,
        _ = terminations.recv() => return drain(cell, &mut interrupts, &mut terminations).await,
    };
    match address {
        Some(address) => {
            let profile = write_profiles(credentials.with_address(address.parse()?), &folder)?;
            greet(&address, &folder, &profile)?;
        }
        None => return ended(cell.wait().await?, false),
    }
    tokio::select! {
        status = cell.wait() => ended(status?, true),
        _ = interrupts.recv() => drain(cell, &mut interrupts, &mut terminations).await,
        _ = terminations.recv() => drain(cell, &mut interrupts, &mut terminations).await,
    }
}

/// Where earlier versions kept the manifest, if it still is there. Now it is beside the volume, where the cell's tools
/// look for it.
fn earlier_manifest(folder: &Path) -> Option<PathBuf> {
    let earlier = folder.join("manifest");
    (earlier.is_dir() && !folder.join("volume.meta").exists()).then_some(earlier)
}

/// Where volume and manifest are, as the cell and its tools take it.
fn place(folder: &Path) -> Vec<OsString> {
    let mut place = vec!["--volume".into(), folder.join("volume").into()];
    if let Some(manifest) = earlier_manifest(folder) {
        place.extend(["--metadata".into(), manifest.into()]);
    }
    place
}

/// Makes what is missing: volume, certificates, the administrator. Gives the cell's certificate, and the credentials to
/// which the address is still to be added.
async fn prepare(executable: &Path, folder: &Path, size: u64) -> Result<(PathBuf, Credentials), Failure> {
    if !folder.join("volume").exists() {
        let size = ["--size".into(), OsString::from(size.to_string())];
        tool(executable, ["format".into()].into_iter().chain(place(folder)).chain(size), None).await?;
    }
    let authority = folder.join("tls");
    tool(executable, ["tls".into(), "init".into(), "--ca".into(), authority.clone().into()], None).await?;
    let ca = std::fs::read_to_string(authority.join("ca.crt"))?;
    let earlier = folder.join(PROFILE);
    let earlier = if earlier.exists() { Some(Credentials::read(&earlier)?) } else { None };
    let password = match earlier.as_ref().and_then(Credentials::user_and_password) {
        Some((ADMINISTRATOR, password)) => Zeroizing::new(password.to_string()),
        _ => made_up_password()?,
    };
    let words = ["user", "add", ADMINISTRATOR, "--role", "admin", "--password-file", "-", "--replace"];
    tool(executable, words.map(OsString::from).into_iter().chain(place(folder)), Some(&password)).await?;
    let credentials = Credentials::password(ADMINISTRATOR, password.as_str()).with_ca(ca).with_maker(MAKER);
    // Before the cell starts: a password that it knows and nobody else would be of no use.
    credentials.write(&folder.join(PROFILE))?;
    Ok((authority.join("cell.crt"), credentials))
}

/// Runs one of the cell's tools; what goes wrong it says itself.
async fn tool(
    executable: &Path,
    arguments: impl IntoIterator<Item = OsString>,
    input: Option<&str>,
) -> Result<(), Failure> {
    let mut command = Command::new(executable);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true);
    let mut child = command
        .spawn()
        .map_err(|error| failed(ErrorCode::Io, format!("{} can't be started: {error}", executable.display())))?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // A tool that ended without reading has said why.
        let _ = stdin.write_all(format!("{input}\n").as_bytes()).await;
    }
    if child.wait().await?.success() {
        return Ok(());
    }
    Err(failed(ErrorCode::Unavailable, "the appliance can't be prepared: the line above says why".into()))
}

/// Writes the profile into the data folder, and as the default one unless that is somebody else's; gives the one to
/// use.
fn write_profiles(credentials: Credentials, folder: &Path) -> Result<Profile, Failure> {
    let own = folder.join(PROFILE);
    credentials.write(&own)?;
    let Some(default) = Credentials::default_path() else { return Ok(Profile::Named(own)) };
    // One that can't be read is not ours to replace either.
    let is_ours = |path: &Path| Credentials::read(path).is_ok_and(|found| found.made_by() == Some(MAKER));
    if default.exists() && !is_ours(&default) {
        return Ok(Profile::Named(own));
    }
    match credentials.write(&default) {
        Ok(()) => Ok(Profile::Default(default)),
        Err(_) => Ok(Profile::Named(own)),
    }
}

/// Which profile leads to this appliance.
enum Profile {
    /// The one that is taken without being told.
    Default(PathBuf),
    /// One that has to be named.
    Named(PathBuf),
}

fn greet(address: &str, folder: &Path, profile: &Profile) -> Result<(), Failure> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "Heliostat is ready at {address}; its data is in {}", folder.display())?;
    let (Profile::Default(path) | Profile::Named(path)) = profile;
    writeln!(output, "The administrator's profile is {}", path.display())?;
    writeln!(output, "\nIn another terminal:")?;
    if let Profile::Named(path) = profile {
        writeln!(output, "  export {CREDENTIALS_VARIABLE}={}", path.display())?;
    }
    writeln!(output, "  heliostat load lineitem --tpch lineitem --scale 1")?;
    writeln!(output, "  heliostat scan lineitem --where \"l_quantity < 5\" --select l_orderkey,l_quantity --limit 5")?;
    writeln!(output, "  heliostat table show lineitem")?;
    writeln!(output, "\nCtrl-C stops it; the data stays.")?;
    output.flush()?;
    Ok(())
}

/// Asks the cell to finish what it does, and waits; a second signal kills it.
async fn drain(mut cell: Child, interrupts: &mut Signal, terminations: &mut Signal) -> Result<(), Failure> {
    if let Some(id) = cell.id() {
        send_signal(id, libc::SIGTERM);
    }
    tokio::select! {
        status = cell.wait() => {
            let status = status?;
            if status.success() { Ok(()) } else { ended(status, true) }
        }
        _ = interrupts.recv() => kill(cell).await,
        _ = terminations.recv() => kill(cell).await,
    }
}

async fn kill(mut cell: Child) -> Result<(), Failure> {
    cell.kill().await?;
    Err(failed(ErrorCode::Cancelled, "the cell was killed before it had drained; what was committed is safe".into()))
}

fn ended(status: ExitStatus, was_ready: bool) -> Result<(), Failure> {
    let when = if was_ready { "ended by itself" } else { "did not start" };
    Err(failed(ErrorCode::Unavailable, format!("the cell {when} ({status}): its last lines above say why")))
}

/// Has the kernel end the child when this thread ends. Called from the main thread, which lives as long as the
/// process.
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let prepare = move || {
        // SAFETY: prctl and getppid are async-signal-safe system calls without pointers.
        let (set, current) = unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM), libc::getppid()) };
        if set != 0 {
            return Err(std::io::Error::last_os_error());
        }
        // The parent may have ended before the signal was set.
        if u32::try_from(current) != Ok(parent) {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    };
    // SAFETY: the closure only makes system calls; it neither allocates nor takes locks.
    unsafe {
        command.pre_exec(prepare);
    }
}

fn send_signal(process: u32, number: i32) {
    if let Ok(process) = libc::pid_t::try_from(process) {
        // SAFETY: kill takes no pointers; the child has not been waited for, so its id is still its own.
        unsafe {
            libc::kill(process, number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_of_an_earlier_version_is_used_until_there_is_one_beside_the_volume() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(earlier_manifest(folder.path()), None);
        let earlier = folder.path().join("manifest");
        std::fs::create_dir(&earlier).unwrap();
        assert_eq!(earlier_manifest(folder.path()), Some(earlier));
        std::fs::create_dir(folder.path().join("volume.meta")).unwrap();
        assert_eq!(earlier_manifest(folder.path()), None);
    }

    #[test]
    fn sizes_come_in_every_form_the_help_names() {
        for text in ["4G", "4GiB", "4096MiB", "4294967296"] {
            assert_eq!(parse_volume_size(text), Ok(4 << 30), "{text}");
            assert_eq!(parse_cache_size(text).as_deref(), Ok("4294967296"), "{text}");
        }
        assert_eq!(parse_cache_size("25%").as_deref(), Ok("25%"));
        for text in ["0%", "91%", "x%", "4 furlongs"] {
            assert!(parse_cache_size(text).is_err(), "{text}");
        }
        assert!(parse_volume_size("1023KiB").is_err());
    }
}
