//! `heliostat-cell tls`: a certificate authority in a folder, and what it signs.
//!
//! Called by `main`.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Subcommand;
use heliostat_tls::authority::{Authority, Validity};
use hidb::{Error, ErrorCode, Result};

use crate::config::Config;
use crate::server::security::now_unix_s;

/// The longest life of a certificate.
const DAYS_MAX: i64 = 3_650;

/// What can be done.
#[derive(Subcommand)]
pub enum TlsCommand {
    /// Makes an authority (unless the folder has one) and a certificate for a cell.
    Init {
        /// The authority's folder: ca.crt, ca.key, cell.crt, cell.key.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// A name or IP address by which clients reach the cell; may be repeated. Without it localhost, 127.0.0.1, ::1
        /// and the host's name.
        #[arg(long, value_name = "NAME")]
        host: Vec<String>,
        /// How long the certificate is good.
        #[arg(long, default_value_t = 730, value_parser = clap::value_parser!(i64).range(1..=DAYS_MAX))]
        days: i64,
    },
    /// Makes a certificate for a client: NAME.crt and NAME.key.
    Client {
        /// The user.
        name: String,
        /// The authority's folder.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// How long the certificate is good.
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(i64).range(1..=DAYS_MAX))]
        days: i64,
    },
}

fn hosts(given: Vec<String>) -> Vec<String> {
    if !given.is_empty() {
        return given;
    }
    let mut hosts: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(String::from).into();
    let own = Config::default().cell_name();
    let is_name = |name: &str| {
        !name.is_empty() && name.chars().all(|letter| letter.is_ascii_alphanumeric() || ".-".contains(letter))
    };
    if is_name(&own) && !hosts.contains(&own) {
        hosts.push(own);
    }
    hosts
}

/// Runs the command.
///
/// # Errors
/// `Io`, `InvalidParameter`.
pub fn run(command: TlsCommand) -> Result<()> {
    let now = now_unix_s();
    let mut output = std::io::stdout().lock();
    // Whoever closed standard output does not want to know.
    match command {
        TlsCommand::Init { ca, host, days } => {
            let authority = Authority::open_or_make(&ca, now)?;
            let issued = authority.issue_cell(&hosts(host), Validity::days(now, days))?;
            let (certificate, key) = authority.keep("cell", &issued)?;
            let _ = writeln!(output, "tls_certificate = {:?}\ntls_key = {:?}", certificate.display(), key.display());
        }
        TlsCommand::Client { name, ca, days } => {
            if !ca.join("ca.crt").exists() {
                let message = format!("{} is no authority's folder: `heliostat-cell tls init` makes one", ca.display());
                return Err(Error::new(ErrorCode::InvalidParameter, message));
            }
            if ["ca", "cell"].contains(&name.as_str()) {
                let message =
                    format!("{name:?} can't have a certificate here: its file would be that of the authority or cell");
                return Err(Error::new(ErrorCode::InvalidParameter, message));
            }
            let authority = Authority::open_or_make(&ca, now)?;
            let issued = authority.issue_client(&name, Validity::days(now, days))?;
            let (certificate, key) = authority.keep(&name, &issued)?;
            let _ = writeln!(output, "{}\n{}", certificate.display(), key.display());
        }
    }
    Ok(())
}
