//! Where a cell listens: `hidb://host:port`, over TLS, or `hidb+plain://host:port`.
//!
//! Owns [`Address`]. Called by the connection and by the command line.
//!
//! Invariant: a plain address resolves to loopback or it is refused, so that nothing ever crosses a network
//! unencrypted.

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
    plain: bool,
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

    /// Whether there is no TLS.
    pub fn is_plain(&self) -> bool {
        self.plain
    }

    /// The socket addresses the host stands for; of a plain one an error unless all of them are loopback.
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
        if let Some(remote) = found.iter().find(|address| self.plain && !address.ip().is_loopback()) {
            return Err(Error::new(
                ErrorCode::InvalidParameter,
                format!(
                    "{} is not a loopback address, and hidb+plain:// is not encrypted: connect with hidb://{}:{}",
                    remote.ip(),
                    self.host,
                    self.port
                ),
            ));
        }
        Ok(found)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.plain { "hidb+plain" } else { "hidb" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
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
        let (plain, rest) = match text.split_once("://") {
            Some(("hidb", rest)) => (false, rest),
            Some(("hidb+plain", rest)) => (true, rest),
            Some((scheme, _)) => return Err(invalid(&format!("unknown scheme {scheme:?}"))),
            None => (false, text),
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
        Ok(Address { host: host.to_string(), port, plain })
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
    async fn plain_addresses_beyond_loopback_are_refused() {
        let error = "hidb+plain://192.0.2.1:7400".parse::<Address>().unwrap().resolve().await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidParameter);
        assert!(error.message.contains("not encrypted"), "{}", error.message);
        assert!("hidb://192.0.2.1:7400".parse::<Address>().unwrap().resolve().await.is_ok());
        assert!("hidb://127.0.0.1".parse::<Address>().unwrap().resolve().await.is_ok());
    }
}
