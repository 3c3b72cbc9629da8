//! Shared receive queues, from which several queue pairs take.

use std::collections::VecDeque;
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use crate::completion::SharedTable;
use crate::memory::{Buffer, Registered};
use crate::provider::RawSharedReceiveQueue;
use crate::request::{CHUNK, Pieces, Receive, Refused, in_chunks, pieces_of};
use crate::verbs::{PostError, ReceiveRequest};

pub(crate) struct SharedHold<B> {
    pub(crate) raw: ManuallyDrop<RawSharedReceiveQueue>,
    pub(crate) table: Arc<SharedTable<B>>,
}

impl<B> Drop for SharedHold<B> {
    fn drop(&mut self) {
        // SAFETY: taken once, here. Queue pairs hold this, so that none is left that holds the queue itself.
        if !unsafe { ManuallyDrop::take(&mut self.raw) }.destroy() {
            // The device may still write to what its requests own.
            std::mem::forget(self.table.clone());
        }
    }
}

/// A receive queue that several queue pairs take from. Cheap to clone.
pub struct SharedReceiveQueue<B = Buffer> {
    pub(crate) hold: Arc<SharedHold<B>>,
}

impl<B: Registered> SharedReceiveQueue<B> {
    pub(crate) fn new(raw: RawSharedReceiveQueue, depth: u32) -> Self {
        let (raw, table) = (ManuallyDrop::new(raw), SharedTable::new(depth));
        SharedReceiveQueue { hold: Arc::new(SharedHold { raw, table }) }
    }

    /// Posts a receive request; it completes on the completion queue of whichever queue pair takes it.
    ///
    /// # Errors
    /// [`Refused`], with the request.
    pub fn post_receive(&self, request: Receive<B>) -> Result<(), Refused<Receive<B>>> {
        let mut pieces = Pieces::NONE;
        if let Err(error) = pieces.fill(&request.buffer) {
            return Err(Refused { error, request });
        }
        let (mut request, mut id) = (Some(request), 0);
        self.hold.table.put(|| request.take(), |given| id = given);
        if let Some(request) = request {
            return Err(Refused { error: PostError::QueueFull, request });
        }
        // SAFETY: the table owns the buffer until its completion, or until it is dropped, after the queue was destroyed.
        let result = unsafe { self.hold.raw.post_receive(&[ReceiveRequest { id, pieces: pieces.as_slice() }]) };
        let Err((0, error)) = result else { return Ok(()) };
        Err(Refused { error, request: self.take_back(id) })
    }

    /// Posts requests from the front, in few calls of the device, until one is refused; those that were posted are taken
    /// out. How many.
    ///
    /// # Errors
    /// Why the request that is now first was refused, if none before it was posted.
    pub fn post_receives(&self, requests: &mut VecDeque<Receive<B>>) -> Result<usize, PostError> {
        in_chunks(requests, |requests| {
            let mut pieces = [Pieces::NONE; CHUNK];
            let (fitting, mut error) = pieces_of(requests, &mut pieces);
            let mut raw = [ReceiveRequest { id: 0, pieces: &[] }; CHUNK];
            let mut count = 0;
            let mut left = fitting;
            let mut next = || {
                left = left.checked_sub(1)?;
                requests.pop_front()
            };
            self.hold.table.put(&mut next, |id| {
                raw[count] = ReceiveRequest { id, pieces: pieces[count].as_slice() };
                count += 1;
            });
            if count < fitting {
                error = Some(PostError::QueueFull);
            }
            if count == 0 {
                return (0, error);
            }
            // SAFETY: as in `post_receive`.
            let Err((accepted, refused)) = (unsafe { self.hold.raw.post_receive(&raw[..count]) }) else {
                return (count, error);
            };
            raw[accepted..count].iter().rev().for_each(|raw| requests.push_front(self.take_back(raw.id)));
            (accepted, Some(refused))
        })
    }

    fn take_back(&self, id: u64) -> Receive<B> {
        self.hold.table.take(id as u32).expect("put in, and never posted").into_receive()
    }
}

impl<B> Clone for SharedReceiveQueue<B> {
    fn clone(&self) -> Self {
        SharedReceiveQueue { hold: self.hold.clone() }
    }
}

impl<B> fmt::Debug for SharedReceiveQueue<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedReceiveQueue").finish_non_exhaustive()
    }
}
