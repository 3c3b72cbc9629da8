//! What an answer was: its bytes, and its digest when the job wants to know that it is right.
//!
//! Owns [`Expected`] and the digest. Called by the engines that ask.
//!
//! The digest of an answer does not depend on the order of its rows, nor on how they are cut into batches: each row is hashed
//! (XXH64, over arrow's row format), and the sums of the hashes and of their squares are taken, beside the number of rows.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::str::FromStr;

use arrow_array::RecordBatch;
use arrow_row::{RowConverter, SortField};
use futures::TryStreamExt;
use heliostat_client::ScanStream;
use hidb::{Error, ErrorCode, Result};
use twox_hash::XxHash64;

/// Of the rows of an answer, as a multiset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    rows: u64,
    sum: u64,
    squares: u64,
}

impl Digest {
    /// Takes the rows of a batch in; `converter` is of the answer's schema.
    fn add(&mut self, converter: &RowConverter, batch: &RecordBatch) -> Result<()> {
        let rows = converter.convert_columns(batch.columns()).map_err(unhashable)?;
        for row in &rows {
            let hash = XxHash64::oneshot(0, row.as_ref());
            self.rows += 1;
            self.sum = self.sum.wrapping_add(hash);
            self.squares = self.squares.wrapping_add(hash.wrapping_mul(hash));
        }
        Ok(())
    }
}

fn unhashable(error: arrow_schema::ArrowError) -> Error {
    Error::new(ErrorCode::Internal, format!("the digest of an answer could not be taken: {error}"))
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}{:016x}", self.rows, self.sum, self.squares)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected a digest as heliostat-bench prints it, rows-hash, or `first`".to_string();
        let (rows, hash) = text.split_once('-').ok_or_else(wrong)?;
        let part = |range| hash.get(range).and_then(|part| u64::from_str_radix(part, 16).ok()).ok_or_else(wrong);
        if hash.len() != 32 {
            return Err(wrong());
        }
        Ok(Digest { rows: rows.parse().map_err(|_| wrong())?, sum: part(0..16)?, squares: part(16..32)? })
    }
}

/// What a job knows of its answers.
#[derive(Clone, Debug, Default)]
pub enum Expected {
    /// Nothing: batches are received, checked as the session does, and dropped.
    #[default]
    Anything,
    /// All have this digest.
    Digest(Digest),
    /// All are like the first one.
    First(Rc<RefCell<Option<Digest>>>),
}

impl FromStr for Expected {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "first" => Ok(Expected::First(Rc::default())),
            digest => digest.parse().map(Expected::Digest),
        }
    }
}

impl Expected {
    /// Takes an answer to its end, and says how many bytes it had.
    ///
    /// # Errors
    /// The stream's; `Corruption` when it is not what was expected.
    pub async fn take(&self, mut stream: ScanStream) -> Result<u64> {
        let mut bytes = 0;
        let mut digest = Digest::default();
        let converter = match self {
            Expected::Anything => None,
            _ => {
                let schema = stream.schema();
                let fields = schema.fields().iter().map(|field| SortField::new(field.data_type().clone()));
                Some(RowConverter::new(fields.collect()).map_err(unhashable)?)
            }
        };
        while let Some(batch) = stream.try_next().await? {
            if let Some(converter) = &converter {
                digest.add(converter, &batch)?;
            }
        }
        if let Some(statistics) = stream.statistics() {
            bytes = statistics.bytes_returned;
        }
        self.compare(digest)?;
        Ok(bytes)
    }

    fn compare(&self, found: Digest) -> Result<()> {
        let expected = match self {
            Expected::Anything => return Ok(()),
            Expected::Digest(digest) => *digest,
            Expected::First(first) => *first.borrow_mut().get_or_insert_with(|| {
                eprintln!("the first answer has the digest {found}");
                found
            }),
        };
        match expected == found {
            true => Ok(()),
            false => Err(Error::new(
                ErrorCode::Corruption,
                format!("wrong answer: its digest is {found}, expected was {expected}"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{Int64Array, StringArray};

    use super::*;

    fn batch(rows: &[(i64, Option<&str>)]) -> RecordBatch {
        let ids = Int64Array::from_iter_values(rows.iter().map(|row| row.0));
        let texts = StringArray::from_iter(rows.iter().map(|row| row.1));
        RecordBatch::try_from_iter_with_nullable([
            ("id", Arc::new(ids) as _, true),
            ("text", Arc::new(texts) as _, true),
        ])
        .unwrap()
    }

    fn digest(batches: &[RecordBatch]) -> Digest {
        let schema = batch(&[]).schema();
        let fields = schema.fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
        let converter = RowConverter::new(fields).unwrap();
        let mut digest = Digest::default();
        batches.iter().for_each(|batch| digest.add(&converter, batch).unwrap());
        digest
    }

    #[test]
    fn order_and_batches_do_not_matter_and_everything_else_does() {
        let whole = digest(&[batch(&[(1, Some("a")), (2, None), (3, Some("")), (3, Some(""))])]);
        let parts = [batch(&[(3, Some(""))]), batch(&[(2, None), (1, Some("a"))]), batch(&[(3, Some(""))])];
        assert_eq!(whole, digest(&parts));
        for other in [
            batch(&[(1, Some("a")), (2, None), (3, Some(""))]),
            batch(&[(1, Some("a")), (2, Some("")), (3, Some("")), (3, Some(""))]),
            batch(&[(2, Some("a")), (1, None), (3, Some("")), (3, Some(""))]),
            batch(&[(1, Some("a")), (1, Some("a")), (2, None), (3, Some(""))]),
        ] {
            assert_ne!(whole, digest(&[other]));
        }
        assert_eq!(whole.to_string().parse(), Ok(whole));
    }

    #[test]
    fn a_wrong_answer_is_an_error_with_both_digests() {
        let (one, other) = (digest(&[batch(&[(1, None)])]), digest(&[batch(&[(2, None)])]));
        let expected: Expected = one.to_string().parse().unwrap();
        expected.compare(one).unwrap();
        let text = expected.compare(other).unwrap_err().to_string();
        assert!(text.contains(&one.to_string()) && text.contains(&other.to_string()), "{text}");
        let first: Expected = "first".parse().unwrap();
        first.compare(one).unwrap();
        first.compare(one).unwrap();
        first.compare(other).unwrap_err();
        for wrong in ["", "5", "5-12", "x-00000000000000000000000000000000", "5-0000000000000000000000000000000g"] {
            assert!(wrong.parse::<Expected>().is_err(), "{wrong}");
        }
    }
}
