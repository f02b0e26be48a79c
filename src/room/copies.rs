//! Copies of messages in other encodings: made when a client first needs them, counted in the history.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::log::Room;
use crate::format::{Batch, Encoded, Encoding};

impl Room {
    /// The messages of `batch` in `encoding`.
    ///
    /// A copy is made without the lock, so that it delays no publisher, and counted right behind that.
    pub(super) fn encoded<'a>(&self, batch: &'a Arc<Batch>, encoding: Encoding) -> &'a Encoded {
        let (encoded, made) = batch.encoded(encoding);
        if made > 0 {
            self.keep_copy(batch, made);
        }
        encoded
    }

    /// Counts a new copy of `batch`, of `bytes`, which the history keeps if there is space.
    fn keep_copy(&self, batch: &Arc<Batch>, bytes: usize) {
        let mut log = self.log.lock();
        if log.evicted {
            return;
        }
        let fits = self.total.reserve(bytes, self.total_limit);
        if fits {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        log.history.keep_copy(batch, bytes, fits);
        // Returns what is reserved and not used.
        self.account(&log.history);
        if self.bytes() > self.rank.load(Ordering::Relaxed) {
            self.total.outgrown.store(true, Ordering::Relaxed);
        }
    }
}
