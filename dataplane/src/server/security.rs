//! What a start says and checks about who may connect.
//!
//! Called by `startup`.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use heliostat_tls::{ServerConfig, config as tls_config};
use hidb::{Error, ErrorCode, Result};

use crate::config::Config;
use crate::store::Store;

/// A certificate that ends sooner is warned of.
const WARN_BEFORE_S: i64 = 30 * 24 * 3600;

/// Seconds since 1970.
pub fn now_unix_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// Reads the certificate and its key, if there are any.
///
/// # Errors
/// What is wrong with them, with the file.
pub fn prepare(config: &Config) -> Result<Option<Arc<ServerConfig>>> {
    if !config.has_tls() {
        return Ok(None);
    }
    let client_ca = (!config.tls_client_ca.as_os_str().is_empty()).then_some(config.tls_client_ca.as_path());
    let tls = tls_config::of_cell(&config.tls_certificate, &config.tls_key, client_ca)?;
    let path = config.tls_certificate.display().to_string();
    let pem = std::fs::read(&config.tls_certificate)
        .map_err(|error| Error::new(ErrorCode::Io, format!("reading {path} failed: {error}")))?;
    let left_s = tls_config::ends_unix_s(&pem, &path)? - now_unix_s();
    if left_s < 0 {
        tracing::warn!(
            "the certificate {path} has expired: clients refuse it; `heliostat-cell tls init` makes another"
        );
    } else if left_s < WARN_BEFORE_S {
        tracing::warn!("the certificate {path} expires in {} days", left_s / (24 * 3600));
    }
    Ok(Some(tls))
}

/// Warns of what an operator may not have meant.
pub fn warn_of(config: &Config, store: &Store) {
    if config.insecure {
        tracing::warn!(
            listen = %config.listen,
            "INSECURE: whoever reaches this cell may read, load and drop everything; without --insecure it asks for users"
        );
    } else if store.users().is_empty() {
        tracing::warn!(
            "there are no users, so nobody can connect: stop the cell and make one with `heliostat-cell user add NAME --role admin`"
        );
    }
}
