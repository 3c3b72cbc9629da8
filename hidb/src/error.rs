//! Typed errors with stable codes.
//!
//! Owns [`ErrorCode`] (numbers that travel in `Error` messages and never change) and [`Error`] (what
//! happened, to what, what to do). Called by everything.

use std::fmt;

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal,)+) => {
        /// What kind of failure it was. The numbers are part of the protocol and never change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum ErrorCode { $($(#[doc = $doc])+ $name = $number,)+ }

        impl ErrorCode {
            /// Every code, for documentation and tests.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name),+];

            /// The code of this number; [`ErrorCode::Internal`] for numbers this version does not know.
            pub fn from_number(number: u32) -> Self {
                match number { $($number => ErrorCode::$name,)+ _ => ErrorCode::Internal }
            }

            /// The code's name, as printed.
            pub fn name(self) -> &'static str {
                match self { $(ErrorCode::$name => stringify!($name),)+ }
            }
        }
    };
}

error_codes! {
    /// A defect in Heliostat itself.
    Internal = 1,
    /// A frame or message that does not follow the protocol.
    Protocol = 2,
    /// A version of protocol or format this build does not speak.
    UnsupportedVersion = 3,
    /// A length or count over its limit.
    LimitExceeded = 4,
    /// The request's deadline passed.
    DeadlineExceeded = 5,
    /// The request was cancelled.
    Cancelled = 6,
    /// The cell is draining and takes no new work.
    Draining = 7,
    /// Too many sessions or requests: try again later.
    Overloaded = 8,
    /// The connection to the cell failed or was lost.
    Unavailable = 9,

    /// No table of that name.
    UnknownTable = 100,
    /// No column of that name.
    UnknownColumn = 101,
    /// No function of that name (or not with those argument types).
    UnknownFunction = 102,
    /// Operand types that do not go together.
    TypeMismatch = 103,
    /// Text that does not parse as an expression.
    Syntax = 104,
    /// A plan shape the cell can't run; the message lists what it can.
    UnsupportedPlan = 105,
    /// The schema hash of the request is not the table's: fetch the schema again.
    StaleSchema = 106,
    /// The table exists already.
    TableExists = 107,
    /// A schema that breaks a rule.
    InvalidSchema = 108,
    /// A prepared statement the cell no longer has: prepare it again.
    UnknownStatement = 109,
    /// A parameter is missing or of the wrong type.
    InvalidParameter = 110,
    /// No index on that column.
    UnknownIndex = 111,
    /// The column has an index already.
    IndexExists = 112,

    /// Arithmetic left the range of its type.
    NumericOverflow = 200,
    /// Division by zero.
    DivisionByZero = 201,
    /// A value that can't be cast to the wanted type.
    InvalidCast = 202,
    /// A value that breaks the table's schema (NULL in a NOT NULL column, too long, not UTF-8).
    InvalidValue = 203,
    /// The request outgrew its memory budget.
    MemoryExceeded = 204,

    /// The volume has no room.
    VolumeFull = 300,
    /// Bytes on the drive or in a frame do not match their checksum.
    Corruption = 301,
    /// The device failed.
    Io = 302,
    /// Not a Heliostat volume.
    NotFormatted = 303,
    /// The volume is in use by another process.
    VolumeInUse = 304,
    /// The manifest does not belong to the volume, or is lost: `heliostat-cell rebuild`.
    ManifestLost = 305,

    /// No load of that id.
    UnknownLoad = 400,
    /// The load is in a state that forbids the request (committed, aborted, another schema).
    LoadConflict = 401,
    /// Input that can't be read (a malformed Parquet or CSV file).
    MalformedInput = 402,
    /// An Arrow or Parquet type that Heliostat refuses.
    UnsupportedType = 403,

    /// The cell does not know who is asking: no credentials, or wrong ones.
    Unauthenticated = 500,
    /// The user may not do that.
    PermissionDenied = 501,
    /// No user of that name.
    UnknownUser = 502,
    /// The user exists already, or is the last administrator.
    UserConflict = 503,
}

/// What happened, to what, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Its stable kind.
    pub code: ErrorCode,
    /// One line for a person: facts first, then what to do.
    pub message: String,
}

impl Error {
    /// An error of this kind.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Error { code, message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code.name())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_their_number_and_unknown_numbers_are_internal() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_number(*code as u32), *code);
        }
        assert_eq!(ErrorCode::from_number(u32::MAX), ErrorCode::Internal);
    }
}
