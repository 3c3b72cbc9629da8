//! What each side of a connection trusts and shows.
//!
//! Called by the cell's start and by clients. Certificates and keys are PEM.

use std::io::BufRead as _;
use std::path::Path;
use std::sync::Arc;

use hidb::{Error, ErrorCode, Result};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::{ALPN, certificate, private_file};

fn invalid(message: String) -> Error {
    Error::new(ErrorCode::InvalidParameter, message)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path)
        .map_err(|error| Error::new(ErrorCode::Io, format!("reading {} failed: {error}", path.display())))
}

/// The certificates of a PEM text; `what` names it in errors.
fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(invalid(format!("{what} holds no certificate in PEM"))),
        Err(error) => Err(invalid(format!("{what} is not PEM: {error}"))),
    }
}

fn key(pem: &[u8], what: &str) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| invalid(format!("{what} holds no private key in PEM: {error}")))
}

fn roots(pem: &[u8], what: &str) -> Result<Arc<RootCertStore>> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(pem, what)? {
        store
            .add(certificate)
            .map_err(|error| invalid(format!("{what} holds a certificate that is no authority's: {error}")))?;
    }
    Ok(Arc::new(store))
}

fn refused(error: rustls::Error) -> Error {
    invalid(format!("the TLS configuration is not valid: {error}"))
}

/// The cell's side: its certificate chain and key, and the authority of client certificates when there are any.
///
/// # Errors
/// `Io` and `InvalidParameter`, with the file in them; a key that others can read is refused.
pub fn of_cell(certificate: &Path, private_key: &Path, client_ca: Option<&Path>) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates(&read(certificate)?, &certificate.display().to_string())?;
    let private_key = key(&private_file::read(private_key)?, &private_key.display().to_string())?;
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&TLS13]).map_err(refused)?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = roots(&read(path)?, &path.display().to_string())?;
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                .allow_unauthenticated()
                .build()
                .map_err(|error| invalid(format!("{}: {error}", path.display())))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, private_key).map_err(refused)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// A client's side: the authority of the cell, and the client's own certificate and key when it has them. All PEM.
///
/// # Errors
/// `InvalidParameter`.
pub fn of_client(ca: &str, own: Option<(&str, &str)>) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(refused)?
        .with_root_certificates(roots(ca.as_bytes(), "the CA certificate")?);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, private_key)) => builder
            .with_client_auth_cert(
                certificates(certificate.as_bytes(), "the client certificate")?,
                key(private_key.as_bytes(), "the client key")?,
            )
            .map_err(refused)?,
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The one common name of a certificate.
pub(crate) fn common_name(der: &CertificateDer<'_>) -> Result<String> {
    let wrong = |why: &str| Error::new(ErrorCode::Unauthenticated, format!("the client certificate {why}"));
    let mut names = certificate::read(der).ok_or_else(|| wrong("can't be read"))?.common_names;
    match (names.pop(), names.len()) {
        (Some(name), 0) => Ok(name),
        (None, _) => Err(wrong("has no common name, which says who the user is")),
        (Some(_), _) => Err(wrong("has several common names: which of them is the user?")),
    }
}

/// When a certificate in PEM ends, in seconds since 1970.
///
/// # Errors
/// `InvalidParameter`.
pub fn ends_unix_s(pem: &[u8], what: &str) -> Result<i64> {
    let chain = certificates(pem, what)?;
    let read = chain.first().and_then(|der| certificate::read(der));
    Ok(read.ok_or_else(|| invalid(format!("{what} holds a certificate that can't be read")))?.ends_unix_s)
}

/// The first line of a file: a password.
///
/// # Errors
/// `Io`; files that others can read are refused.
pub fn first_line(path: &Path) -> Result<zeroize::Zeroizing<String>> {
    let bytes = zeroize::Zeroizing::new(private_file::read(path)?);
    let mut line = zeroize::Zeroizing::new(String::new());
    bytes
        .as_slice()
        .read_line(&mut line)
        .map_err(|error| Error::new(ErrorCode::Io, format!("reading {} failed: {error}", path.display())))?;
    let length = line.trim_end_matches(['\n', '\r']).len();
    line.truncate(length);
    Ok(line)
}
