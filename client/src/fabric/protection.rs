//! What protects a connection's links: checksums against flipped bits, integrity against others on the network.
//!
//! Owns [`Protection`]. Called by the connection, which makes one from what the caller asked for, and by links.
//!
//! Invariant: what was asked for is what a link has, or there is no link.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hidb::session::frames::Checksum;
use hidb::session::seal::{Integrity, LinkSecret};
use hidb::{Error, ErrorCode, Result, proto};

use crate::options::ConnectOptions;
use crate::transport::Transport;

/// What protects the links of one connection, and how often it had to.
#[derive(Clone, Debug)]
pub(crate) struct Protection {
    checksum: Checksum,
    /// What keys come from; none without integrity.
    secret: Option<LinkSecret>,
    corrupted: Arc<AtomicU64>,
}

impl Protection {
    /// What the caller asked for, with what this connection has for it.
    ///
    /// # Errors
    /// `Unauthenticated` when integrity is asked for, and there is no TLS that keys could come from.
    pub(crate) fn of(options: &ConnectOptions, transport: &Transport) -> Result<Self> {
        let secret = match options.integrity {
            Integrity::None => None,
            Integrity::Hmac => Some(transport.link_secret()?.ok_or_else(|| {
                let text =
                    "--rdma-integrity hmac takes its keys from TLS, and hidb+plain:// has none: connect with hidb://";
                Error::new(ErrorCode::Unauthenticated, text)
            })?),
        };
        Ok(Protection::new(options.checksum, secret))
    }

    /// With a secret there is integrity, and no checksum beside it.
    pub(crate) fn new(checksum: Checksum, secret: Option<LinkSecret>) -> Self {
        let mut protection = Protection { checksum, secret, corrupted: Arc::default() };
        protection.checksum = protection.integrity().checksum(checksum);
        protection
    }

    /// The checksum policy.
    pub(crate) fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// The integrity.
    pub(crate) fn integrity(&self) -> Integrity {
        if self.secret.is_some() { Integrity::Hmac } else { Integrity::None }
    }

    /// What the keys of a link come from that the cell has opened.
    ///
    /// # Errors
    /// `UnsupportedVersion` when it is not the link that was asked for.
    pub(crate) fn agreed(&self, opened: &proto::LinkOpened) -> Result<Option<&LinkSecret>> {
        if opened.integrity == self.integrity().number() {
            return Ok(self.secret.as_ref());
        }
        let text = format!(
            "the cell does not know --rdma-integrity {}: update it, or connect with --transport tcp",
            self.integrity()
        );
        Err(Error::new(ErrorCode::UnsupportedVersion, text))
    }

    /// Counts a link that ended because something arrived that was not what the cell sent.
    pub(crate) fn count_corrupted(&self) {
        self.corrupted.fetch_add(1, Ordering::Relaxed);
    }

    /// How many did.
    pub(crate) fn corrupted(&self) -> u64 {
        self.corrupted.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_that_does_not_know_of_integrity_is_not_used_without() {
        let asked = Protection::new(Checksum::Full, Some(LinkSecret::new([7; 32])));
        assert_eq!((asked.integrity(), asked.checksum()), (Integrity::Hmac, Checksum::None));
        let mut opened = proto::LinkOpened { link: 1, ..Default::default() };
        let error = asked.agreed(&opened).unwrap_err();
        assert_eq!(error.code, ErrorCode::UnsupportedVersion);
        assert!(error.message.contains("--transport tcp"), "{error}");
        opened.integrity = 1;
        assert!(asked.agreed(&opened).unwrap().is_some());
        // Nor the other way round.
        assert!(Protection::new(Checksum::Full, None).agreed(&opened).is_err());
    }
}
