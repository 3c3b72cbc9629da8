//! The two things that are read out of a certificate: its common name, and when it ends (X.509, RFC 5280, section 4.1).
//!
//! Called by `config` and `authority`, for certificates that rustls has checked or an operator has named. It reads as
//! much DER as that takes, and never panics on what it is given.

use hidb::calendar::{days_from_civil, days_in_month};

/// A length of more than one byte.
const LONG_FORM: u8 = 0x80;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
/// `id-at-commonName`, 2.5.4.3.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// What is read out of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The subject's common names; most certificates have one.
    pub common_names: Vec<String>,
    /// `notAfter`, in seconds since 1970.
    pub ends_unix_s: i64,
}

/// Bytes of DER that are still to be read.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next value: its tag and its contents.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (tag, rest) = self.0.split_first()?;
        let (first, mut rest) = rest.split_first()?;
        let mut length = usize::from(*first);
        if *first >= LONG_FORM {
            let count = usize::from(first & 0x7f);
            if !(1..=3).contains(&count) {
                return None;
            }
            let (bytes, after) = rest.split_at_checked(count)?;
            length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            rest = after;
        }
        let (contents, after) = rest.split_at_checked(length)?;
        self.0 = after;
        Some((*tag, contents))
    }

    /// The contents of the next value, which must have this tag.
    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, contents)| contents)
    }
}

/// Reads a certificate; `None` when it is none.
pub fn read(der: &[u8]) -> Option<Certificate> {
    let mut signed = Der(Der(der).expect(SEQUENCE)?);
    let mut certificate = Der(signed.expect(SEQUENCE)?);
    if certificate.0.first() == Some(&VERSION) {
        certificate.next()?;
    }
    // Serial number, signature algorithm, issuer.
    for _ in 0..3 {
        certificate.next()?;
    }
    let mut validity = Der(certificate.expect(SEQUENCE)?);
    validity.next()?;
    let (tag, moment) = validity.next()?;
    let ends_unix_s = unix_s(tag, moment)?;
    let mut subject = Der(certificate.expect(SEQUENCE)?);
    let mut common_names = Vec::new();
    while !subject.0.is_empty() {
        let mut attributes = Der(subject.expect(SET)?);
        while !attributes.0.is_empty() {
            let mut attribute = Der(attributes.expect(SEQUENCE)?);
            if attribute.expect(OBJECT_IDENTIFIER)? == COMMON_NAME {
                let (tag, name) = attribute.next()?;
                let is_text = [UTF8_STRING, PRINTABLE_STRING, IA5_STRING].contains(&tag);
                common_names.push(std::str::from_utf8(name).ok().filter(|_| is_text)?.to_string());
            }
        }
    }
    Some(Certificate { common_names, ends_unix_s })
}

fn unix_s(tag: u8, text: &[u8]) -> Option<i64> {
    let text = text.strip_suffix(b"Z")?;
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |part: &[u8]| part.iter().fold(0, |number, digit| number * 10 + i64::from(digit - b'0'));
    let (year, rest) = match (tag, text.len()) {
        (UTC_TIME, 12) => {
            let year = number(&text[..2]);
            (if year < 50 { 2000 + year } else { 1900 + year }, &text[2..])
        }
        (GENERALIZED_TIME, 14) => (number(&text[..4]), &text[4..]),
        _ => return None,
    };
    let part = |at: usize| number(&rest[at..at + 2]);
    let (month, day) = (part(0) as u32, part(2) as u32);
    if !(1..=12).contains(&month) || !(1..=days_in_month(year, month)).contains(&day) {
        return None;
    }
    Some(days_from_civil(year, month, day) * 86_400 + part(4) * 3_600 + part(6) * 60 + part(8))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;

    use super::*;
    use crate::authority::{Authority, Validity};

    fn issued(name: &str, to_unix_s: i64) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_make(folder.path(), 1_700_000_000).unwrap();
        let validity = Validity { from_unix_s: 1_600_000_000, to_unix_s };
        let issued = authority.issue_client(name, validity).unwrap();
        CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap().to_vec()
    }

    #[test]
    fn name_and_end_are_those_it_was_made_with() {
        // The second needs the other form of time, which begins in 2050.
        for (name, ends) in [("ada", 1_800_000_000), ("Åsa.b@example.org", 3_000_000_000)] {
            let read = read(&issued(name, ends)).unwrap();
            assert_eq!((read.common_names, read.ends_unix_s), (vec![name.to_string()], ends));
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }

        #[test]
        fn nor_does_damage(at in any::<prop::sample::Index>(), flip in 1u8..=255, cut in any::<prop::sample::Index>()) {
            static GOOD: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
            let mut bytes = GOOD.get_or_init(|| issued("ada", 1_800_000_000)).clone();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let _ = read(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            let _ = read(&bytes);
        }
    }
}
