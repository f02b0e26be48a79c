//! The memory of histories, of one room and of all.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::history::History;
use super::log::Room;

/// Memory of all histories.
#[derive(Debug, Default)]
pub(crate) struct Total {
    bytes: AtomicUsize,
    /// Whether a room may have outgrown its rank by something else than a publication.
    pub(crate) outgrown: AtomicBool,
}

impl Total {
    /// Bytes of all histories.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Adds `bytes`, unless that would exceed `limit`; returns whether it did.
    pub(super) fn reserve(&self, bytes: usize, limit: usize) -> bool {
        let add = |total: usize| total.checked_add(bytes).filter(|it| *it <= limit);
        let added = self
            .bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        added.is_ok()
    }
}

impl Room {
    /// Drops the oldest copies, and then evicts the oldest messages, until the rest takes at most `bytes`
    /// of memory.
    pub(crate) fn trim_to(&self, bytes: usize) {
        let mut log = self.log.lock();
        log.history.trim_to(bytes);
        self.account(&log.history);
    }

    /// Subtracts the history from the total, before the room is dropped.
    pub(crate) fn write_off(&self) {
        // With the lock, as a reader may count a copy just now.
        let mut log = self.log.lock();
        log.evicted = true;
        let bytes = self.bytes.swap(0, Ordering::Relaxed);
        self.total.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes of memory of the history.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The rank that the hub assigns by these bytes; 0 for none.
    pub(crate) fn rank(&self) -> &AtomicUsize {
        &self.rank
    }

    /// Updates both counts of bytes after a change of the history.
    pub(super) fn account(&self, history: &History) {
        let (before, now) = (self.bytes(), history.bytes());
        if now != before {
            self.bytes.store(now, Ordering::Relaxed);
            self.total
                .bytes
                .fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.write_off();
    }
}
