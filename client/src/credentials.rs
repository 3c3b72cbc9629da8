//! Who a client is, and how it knows the cell: the profile file.
//!
//! Owns [`Credentials`]. Called by the connection and by the command line.
//!
//! Invariants
//! - A profile is written with mode 0600, and one that others can read is refused.
//! - A password goes to the address of its profile, or to a cell whose certificate the profile's authority signed;
//!   nowhere else.
//! - Neither `Debug` nor any error shows a password or a key.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use heliostat_tls::{ClientConfig, config, private_file};
use hidb::{Error, ErrorCode, Result};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::address::Address;

/// The environment variable that names a profile.
pub const CREDENTIALS_VARIABLE: &str = "HELIOSTAT_CREDENTIALS";

/// A profile as its file has it.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Profile {
    #[serde(skip_serializing_if = "Option::is_none")]
    made_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<Zeroizing<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_certificate: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_certificate: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_key: Option<Zeroizing<String>>,
}

/// Who a client is, and how it knows the cell. Cheap to clone.
#[derive(Clone, Default)]
pub struct Credentials {
    profile: Arc<Profile>,
    address: Option<Address>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("address", &self.address)
            .field("user", &self.profile.user)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// A user and their password.
    pub fn password(user: impl Into<String>, password: impl Into<String>) -> Self {
        let profile =
            Profile { user: Some(user.into()), password: Some(Zeroizing::new(password.into())), ..Profile::default() };
        Credentials { profile: Arc::new(profile), address: None }
    }

    /// A client certificate and its key, in PEM: its common name is the user.
    pub fn certificate(certificate: impl Into<String>, key: impl Into<String>) -> Self {
        let profile = Profile {
            client_certificate: Some(certificate.into()),
            client_key: Some(Zeroizing::new(key.into())),
            ..Profile::default()
        };
        Credentials { profile: Arc::new(profile), address: None }
    }

    /// These credentials, for cells whose certificate this authority signed (PEM).
    pub fn with_ca(mut self, ca_certificate: impl Into<String>) -> Self {
        Arc::make_mut(&mut self.profile).ca_certificate = Some(ca_certificate.into());
        self
    }

    /// These credentials, for the cell at this address.
    pub fn with_address(mut self, address: Address) -> Self {
        Arc::make_mut(&mut self.profile).address = Some(address.to_string());
        self.address = Some(address);
        self
    }

    /// These credentials, made by a program that may write them anew.
    pub fn with_maker(mut self, name: &str) -> Self {
        Arc::make_mut(&mut self.profile).made_by = Some(name.to_string());
        self
    }

    /// Which program made them, if one did.
    pub fn made_by(&self) -> Option<&str> {
        self.profile.made_by.as_deref()
    }

    /// Where their cell is, if they say so.
    pub fn address(&self) -> Option<&Address> {
        self.address.as_ref()
    }

    /// The authority of their cell, in PEM.
    pub fn ca_certificate(&self) -> Option<&str> {
        self.profile.ca_certificate.as_deref()
    }

    /// The user and the password, unless the user has a certificate.
    pub fn user_and_password(&self) -> Option<(&str, &str)> {
        Some((self.profile.user.as_deref()?, self.profile.password.as_ref()?.as_str()))
    }

    /// The profile of a person, `$XDG_CONFIG_HOME/heliostat/default.toml`, or below `~/.config`.
    pub fn default_path() -> Option<PathBuf> {
        let from_home =
            || std::env::var_os("HOME").filter(|home| !home.is_empty()).map(|home| Path::new(&home).join(".config"));
        let base = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        Some(base.or_else(from_home)?.join("heliostat/default.toml"))
    }

    /// The credentials of this file, or of the one that `HELIOSTAT_CREDENTIALS` names, or of the default profile when
    /// there is one.
    ///
    /// # Errors
    /// Those of [`Credentials::read`].
    pub fn find(file: Option<&Path>) -> Result<Option<Self>> {
        let named = std::env::var_os(CREDENTIALS_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        match file.map(Path::to_path_buf).or(named) {
            Some(path) => Self::read(&path).map(Some),
            None => match Self::default_path().filter(|path| path.exists()) {
                Some(path) => Self::read(&path).map(Some),
                None => Ok(None),
            },
        }
    }

    /// Reads a profile.
    ///
    /// # Errors
    /// `Io`; `PermissionDenied` when others can read it; `InvalidParameter` when it is not a profile.
    pub fn read(path: &Path) -> Result<Self> {
        let invalid = |why: String| {
            Error::new(ErrorCode::InvalidParameter, format!("{} is not a profile: {why}", path.display()))
        };
        let bytes = Zeroizing::new(private_file::read(path)?);
        let text = std::str::from_utf8(&bytes).map_err(|_| invalid("it is not UTF-8".into()))?;
        // The error's own text would show the line, and with it perhaps a password.
        let profile: Profile = toml::from_str(text).map_err(|error: toml::de::Error| {
            invalid(error.message().lines().next().unwrap_or_default().to_string())
        })?;
        let address = profile.address.as_deref().map(str::parse).transpose()?;
        if profile.client_certificate.is_some() != profile.client_key.is_some() {
            return Err(invalid("client_certificate needs client_key, and the other way round".into()));
        }
        if profile.password.is_some() && profile.user.is_none() {
            return Err(invalid("there is a password, but no user".into()));
        }
        Ok(Credentials { profile: Arc::new(profile), address })
    }

    /// Writes a profile that only its owner can read, making its folder.
    ///
    /// # Errors
    /// `Io`.
    pub fn write(&self, path: &Path) -> Result<()> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::new(ErrorCode::Io, format!("writing {} failed: {error}", path.display()))
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| failed(&error))?;
        }
        let text = Zeroizing::new(toml::to_string(&*self.profile).map_err(|error| failed(&error))?);
        private_file::write(path, text.as_bytes())
    }

    /// Whether a password may be shown to what answers at this address: over TLS the authority vouches for it, else it
    /// must be the very address of the profile.
    pub(crate) fn are_for(&self, address: &Address) -> bool {
        let is_own = |own: &Address| (own.host(), own.port()) == (address.host(), address.port());
        !address.is_plain() || self.address.as_ref().is_none_or(is_own)
    }

    /// What the client's side of TLS trusts and shows.
    pub(crate) fn tls(&self) -> Result<Arc<ClientConfig>> {
        let profile = &self.profile;
        let Some(ca) = &profile.ca_certificate else { return Err(no_authority()) };
        let own = profile.client_certificate.as_deref().zip(profile.client_key.as_ref().map(|key| key.as_str()));
        config::of_client(ca, own)
    }
}

/// There is nothing to check a cell's certificate against.
pub(crate) fn no_authority() -> Error {
    Error::new(
        ErrorCode::InvalidParameter,
        "no CA certificate says which cell to trust: give a profile with --credentials FILE (`heliostat dev` writes one); a cell without TLS on this machine is reached with hidb+plain://",
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_profile_survives_its_file_and_shows_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("heliostat/default.toml");
        let address: Address = "hidb://127.0.0.1:7400".parse().unwrap();
        let written = Credentials::password("ada", "sesame").with_ca("PEM\nPEM\n").with_address(address.clone());
        written.with_maker("a test").write(&path).unwrap();
        let read = Credentials::read(&path).unwrap();
        assert_eq!(read.user_and_password(), Some(("ada", "sesame")));
        assert_eq!((read.ca_certificate(), read.address()), (Some("PEM\nPEM\n"), Some(&address)));
        assert_eq!(read.made_by(), Some("a test"));
        assert!(!format!("{read:?}").contains("sesame"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = Credentials::read(&path).unwrap_err();
        assert_eq!(error.code, ErrorCode::PermissionDenied);
        assert!(error.message.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_profile_that_is_none_says_why_without_its_secrets() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile");
        for text in
            ["password = \"sesame\" user", "password = \"sesame\"", "passwort = \"sesame\"", "client_key = \"sesame\""]
        {
            private_file::write(&path, text.as_bytes()).unwrap();
            let error = Credentials::read(&path).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidParameter, "{text}");
            assert!(!error.message.contains("sesame"), "{error}");
        }
    }

    #[test]
    fn a_password_goes_to_its_cell_or_over_tls() {
        let address = |text: &str| text.parse::<Address>().unwrap();
        let own = Credentials::password("ada", "sesame").with_address(address("hidb://127.0.0.1:7400"));
        assert!(own.are_for(&address("hidb+plain://127.0.0.1:7400")));
        assert!(own.are_for(&address("hidb://elsewhere:1")));
        assert!(!own.are_for(&address("hidb+plain://127.0.0.1:7401")));
        assert!(Credentials::password("ada", "sesame").are_for(&address("hidb+plain://127.0.0.1:7401")));
    }
}
