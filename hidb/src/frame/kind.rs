//! Which message a frame carries.
//!
//! Owns [`FrameKind`] and its numbers.
//!
//! Invariant: a number means the same message in every version; those of messages that are gone are not used again.

macro_rules! frame_kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal,)+) => {
        /// Which message a frame's body is. The numbers are part of the protocol and never change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum FrameKind { $($(#[doc = $doc])+ $name = $number,)+ }

        impl FrameKind {
            /// Every kind, for documentation and tests.
            pub const ALL: &'static [FrameKind] = &[$(FrameKind::$name),+];

            /// The kind of this number, if this version knows it.
            pub fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(FrameKind::$name),)+ _ => None }
            }

            /// The name of its message.
            pub fn name(self) -> &'static str {
                match self { $(FrameKind::$name => stringify!($name),)+ }
            }
        }
    };
}

frame_kinds! {
    /// First frame of a client.
    Hello = 1,
    /// The cell's answer to [`FrameKind::Hello`].
    HelloAck = 2,
    /// The cell wants to know who is asking.
    AuthenticationRequired = 3,
    /// Begins to say who is asking.
    Authenticate = 4,
    /// The next message of an authentication, from either side.
    AuthenticateContinue = 5,
    /// A request that has no other answer is done.
    Done = 9,
    /// Asks for all tables.
    ListTables = 10,
    /// All tables.
    TableList = 11,
    /// Asks about one table.
    DescribeTable = 12,
    /// One table.
    TableDescription = 13,
    /// Makes a table.
    CreateTable = 14,
    /// Drops a table.
    DropTable = 15,
    /// Asks about the cell.
    DescribeCell = 16,
    /// The cell.
    CellStatus = 17,
    /// A question.
    PredicatePushdownRequest = 20,
    /// Part of an answer.
    FilteredResultSet = 21,
    /// Plans a question with parameters.
    Prepare = 22,
    /// The statement planned.
    Prepared = 23,
    /// Runs a prepared statement.
    Execute = 24,
    /// Forgets a prepared statement.
    CloseStatement = 25,
    /// Nearest neighbours.
    VectorSearchRequest = 26,
    /// Deletes rows.
    DeleteRows = 27,
    /// How many rows were deleted.
    RowsDeleted = 28,
    /// Right to send more result frames.
    Credit = 30,
    /// Stops a request.
    Cancel = 31,
    /// Alive.
    Heartbeat = 32,
    /// A failure.
    Error = 33,
    /// Unasked: something a client may have cached changed.
    CacheInvalidationNotice = 34,
    /// Opens an RDMA link.
    OpenLink = 35,
    /// The link is connected.
    LinkOpened = 36,
    /// Credits: slots of a result ring.
    SlotsFree = 37,
    /// Ends a link.
    CloseLink = 38,
    /// Unasked: the cell has ended a link.
    LinkReset = 39,
    /// Begins or resumes a load.
    LoadBegin = 40,
    /// Rows of a load.
    LoadBatch = 41,
    /// Makes a load visible.
    LoadCommit = 42,
    /// Forgets a load.
    LoadAbort = 43,
    /// How far a load is.
    LoadState = 44,
    /// Asks how far a load is.
    LoadQuery = 45,
    /// Key-value request.
    KeyValueRequest = 50,
    /// Its answer.
    KeyValueResponse = 51,
    /// Replication between cells.
    ReplicationDataStream = 60,
    /// Makes a user.
    AddUser = 70,
    /// Changes a user's role or password.
    AlterUser = 71,
    /// Removes a user.
    RemoveUser = 72,
    /// Grants a user a table, or takes the grant back.
    GrantTable = 73,
    /// Asks for all users.
    ListUsers = 74,
    /// All users.
    UserList = 75,
    /// Has an index built.
    CreateIndex = 80,
    /// Drops an index.
    DropIndex = 81,
    /// Asks for indexes.
    ListIndexes = 82,
    /// Indexes.
    IndexList = 83,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_survive_their_number() {
        for kind in FrameKind::ALL {
            assert_eq!(FrameKind::from_number(*kind as u8), Some(*kind));
        }
    }
}
