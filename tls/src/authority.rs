//! A small certificate authority in a folder: for development, and for cells that have no other.
//!
//! Owns [`Authority`]: `ca.crt`, `ca.key` and what they sign. Called by `heliostat-cell tls` and by tests.
//!
//! Invariants
//! - Keys are ECDSA on P-256, and their files are private.
//! - A certificate for a cell can't be used by a client, nor one for a client by a cell (extended key usage).
//! - The authority signs no other authorities.

use std::path::{Path, PathBuf};

use hidb::{Error, ErrorCode, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use time::OffsetDateTime;

use crate::{certificate, private_file};

/// The common name of every authority made here.
const NAME: &str = "Heliostat CA";
const DAY_S: i64 = 24 * 3600;
/// How long an authority is good for.
const AUTHORITY_DAYS: i64 = 3_650;
/// Certificates begin this much before they are made, for clocks that are behind.
const BACKDATED_S: i64 = 3600;

/// When a certificate is good, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From here on.
    pub from_unix_s: i64,
    /// Up to here.
    pub to_unix_s: i64,
}

impl Validity {
    /// So many days from `now_unix_s` on.
    pub fn days(now_unix_s: i64, days: i64) -> Self {
        Validity { from_unix_s: now_unix_s - BACKDATED_S, to_unix_s: now_unix_s + days * DAY_S }
    }

    fn apply(self, params: &mut CertificateParams) -> Result<()> {
        let moment = |unix_s| {
            OffsetDateTime::from_unix_timestamp(unix_s).map_err(|error| failed("the time of a certificate", &error))
        };
        params.not_before = moment(self.from_unix_s)?;
        params.not_after = moment(self.to_unix_s)?;
        Ok(())
    }
}

/// A certificate and its key, in PEM.
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: zeroize::Zeroizing<String>,
}

/// An authority and its folder.
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorCode::Internal, format!("{what}: {error}"))
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

impl Authority {
    /// The authority of a folder; makes both when they are not there.
    ///
    /// # Errors
    /// `Io`, `InvalidParameter` for files that are not an authority's.
    pub fn open_or_make(folder: &Path, now_unix_s: i64) -> Result<Self> {
        let (certificate_path, key_path) = (folder.join("ca.crt"), folder.join("ca.key"));
        let io = |what: &str, path: &Path, error: std::io::Error| {
            Error::new(ErrorCode::Io, format!("{what} {} failed: {error}", path.display()))
        };
        if !certificate_path.exists() && !key_path.exists() {
            std::fs::create_dir_all(folder).map_err(|error| io("making", folder, error))?;
            let (certificate, key) = make_authority(now_unix_s)?;
            private_file::write(&key_path, key.serialize_pem().as_bytes())?;
            std::fs::write(&certificate_path, certificate).map_err(|error| io("writing", &certificate_path, error))?;
        }
        let certificate =
            std::fs::read_to_string(&certificate_path).map_err(|error| io("reading", &certificate_path, error))?;
        let key = zeroize::Zeroizing::new(String::from_utf8_lossy(&private_file::read(&key_path)?).into_owned());
        let invalid = |path: &Path, error: &dyn std::fmt::Display| {
            Error::new(ErrorCode::InvalidParameter, format!("{} is not an authority's: {error}", path.display()))
        };
        let key = KeyPair::from_pem(&key).map_err(|error| invalid(&key_path, &error))?;
        let read = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|error| invalid(&certificate_path, &error))
            .map(|der| certificate::read(&der).map(|read| read.common_names))?;
        // What it signs names it as the issuer: it must be the authority that is made here.
        if read.as_deref() != Some(&[NAME.to_string()]) {
            return Err(invalid(&certificate_path, &"it was not made by `heliostat-cell tls init`"));
        }
        let issuer = Issuer::new(authority_params(now_unix_s)?, key);
        Ok(Authority { folder: folder.to_path_buf(), issuer, certificate })
    }

    /// Its own certificate, in PEM: what the other side must trust.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A certificate for a cell that is reached by these names and IP addresses.
    ///
    /// # Errors
    /// `InvalidParameter` for a name that can't be in a certificate.
    pub fn issue_cell(&self, hosts: &[String], validity: Validity) -> Result<Issued> {
        let mut params = CertificateParams::new(hosts.to_vec()).map_err(|error| {
            Error::new(ErrorCode::InvalidParameter, format!("{hosts:?} can't be in a certificate: {error}"))
        })?;
        params.distinguished_name = named(hosts.first().map_or("cell", String::as_str));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params, validity)
    }

    /// A certificate for a client: its common name is the user.
    ///
    /// # Errors
    /// `InvalidParameter` for names that no user has.
    pub fn issue_client(&self, user: &str, validity: Validity) -> Result<Issued> {
        hidb::auth::check_user_name(user)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(user);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params, validity)
    }

    fn issue(&self, mut params: CertificateParams, validity: Validity) -> Result<Issued> {
        validity.apply(&mut params)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(|error| failed("making a key", &error))?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(|error| failed("signing", &error))?;
        Ok(Issued { certificate: certificate.pem(), key: key.serialize_pem().into() })
    }

    /// Writes an issued certificate and its key into the folder, as `NAME.crt` and `NAME.key`; gives the paths.
    ///
    /// # Errors
    /// `Io`.
    pub fn keep(&self, name: &str, issued: &Issued) -> Result<(PathBuf, PathBuf)> {
        let paths = (self.folder.join(format!("{name}.crt")), self.folder.join(format!("{name}.key")));
        private_file::write(&paths.1, issued.key.as_bytes())?;
        std::fs::write(&paths.0, &issued.certificate)
            .map_err(|error| Error::new(ErrorCode::Io, format!("writing {} failed: {error}", paths.0.display())))?;
        Ok(paths)
    }
}

fn authority_params(now_unix_s: i64) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Validity::days(now_unix_s, AUTHORITY_DAYS).apply(&mut params)?;
    Ok(params)
}

fn make_authority(now_unix_s: i64) -> Result<(String, KeyPair)> {
    let params = authority_params(now_unix_s)?;
    let key = KeyPair::generate().map_err(|error| failed("making a key", &error))?;
    let certificate = params.self_signed(&key).map_err(|error| failed("signing", &error))?;
    Ok((certificate.pem(), key))
}
