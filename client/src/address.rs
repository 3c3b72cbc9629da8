//! Where a cell listens: `hidb://host:port` and what may be done with it.
//!
//! Owns [`Address`]. Called by the connection and by the command line.
//!
//! Invariant: until TLS comes, an address resolves to loopback or it is refused, so that nothing
//! ever crosses a network unencrypted.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use hidb::{Error, ErrorCode, Result};

/// The port a cell listens on unless told otherwise.
pub const DEFAULT_PORT: u16 = 7400;

/// The address of a cell: `hidb://host:port` or `hidb+plain://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// The host name or IP address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The socket addresses the host stands for; an error unless all of them are loopback.
    pub async fn resolve(&self) -> Result<Vec<SocketAddr>> {
        let found: Vec<SocketAddr> = match self.host.parse::<IpAddr>() {
            Ok(ip) => vec![SocketAddr::new(ip, self.port)],
            Err(_) => tokio::net::lookup_host((self.host.as_str(), self.port))
                .await
                .map_err(|error| {
                    Error::new(
                        ErrorCode::Unavailable,
                        format!("the host name {:?} can't be resolved: {error}: check the address", self.host),
                    )
                })?
                .collect(),
        };
        if found.is_empty() {
            return Err(Error::new(
                ErrorCode::Unavailable,
                format!("the host name {:?} has no address: check the name", self.host),
            ));
        }
        if let Some(remote) = found.iter().find(|address| !address.ip().is_loopback()) {
            return Err(Error::new(
                ErrorCode::InvalidParameter,
                format!(
                    "{} is not a loopback address, and connections are not encrypted yet: connect to 127.0.0.1, for example through `ssh -L {}:127.0.0.1:{} {}`",
                    remote.ip(),
                    DEFAULT_PORT,
                    self.port,
                    self.host
                ),
            ));
        }
        Ok(found)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "hidb://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "hidb://{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |why: &str| {
            Error::new(
                ErrorCode::InvalidParameter,
                format!("{text:?} is not the address of a cell ({why}): write it as hidb://127.0.0.1:{DEFAULT_PORT}"),
            )
        };
        let rest = match text.split_once("://") {
            Some(("hidb" | "hidb+plain", rest)) => rest,
            Some((scheme, _)) => return Err(invalid(&format!("unknown scheme {scheme:?}"))),
            None => text,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '@']) {
            return Err(invalid("nothing may follow the port"));
        }
        let (host, port) = if let Some(bracketed) = rest.strip_prefix('[') {
            let (host, after) = bracketed.split_once(']').ok_or_else(|| invalid("a bracket is not closed"))?;
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return Err(invalid("unexpected text after the bracket")),
            }
        } else {
            match rest.rsplit_once(':') {
                Some((host, _)) if host.contains(':') => {
                    return Err(invalid("an IPv6 address needs brackets"));
                }
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            }
        };
        if host.is_empty() {
            return Err(invalid("the host is missing"));
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => match port.parse() {
                Ok(port) if port != 0 => port,
                _ => return Err(invalid("the port is not a number from 1 to 65535")),
            },
        };
        Ok(Address { host: host.to_string(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_with_and_without_scheme_and_port() {
        for (text, host, port) in [
            ("hidb://127.0.0.1:7401", "127.0.0.1", 7401),
            ("hidb+plain://localhost", "localhost", DEFAULT_PORT),
            ("hidb://[::1]:9/", "::1", 9),
            ("127.0.0.1:7400", "127.0.0.1", 7400),
            ("hidb://cell-1", "cell-1", DEFAULT_PORT),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.host(), address.port()), (host, port), "{text}");
            assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
        }
    }

    #[test]
    fn malformed_addresses_say_how_to_write_one() {
        for text in
            ["http://x:1", "hidb://", "hidb://h:0", "hidb://h:99999", "hidb://h:1/db", "hidb://::1:5", "hidb://[::1"]
        {
            let error = text.parse::<Address>().unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidParameter, "{text}");
            assert!(error.message.contains("hidb://127.0.0.1:7400"), "{}", error.message);
        }
    }

    #[tokio::test]
    async fn addresses_beyond_loopback_are_refused_until_there_is_tls() {
        let error = "hidb://192.0.2.1:7400".parse::<Address>().unwrap().resolve().await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidParameter);
        assert!(error.message.contains("not encrypted"), "{}", error.message);
        assert!("hidb://127.0.0.1".parse::<Address>().unwrap().resolve().await.is_ok());
    }
}
