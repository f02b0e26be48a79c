//! Where the logs live: who numbers a message, and when it may be delivered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::message::{Batch, Frames};
use crate::room::{Room, Sealed};

/// The seam between rooms and the place where their logs are kept.
#[derive(Debug)]
pub enum Backend {
    /// In the memory of this process: a message has its id, and is delivered, at once.
    Memory {
        /// The newest epoch given to a room.
        last_epoch: AtomicU64,
    },
}

impl Backend {
    /// Logs that live as long as this process.
    pub fn memory() -> Self {
        Self::Memory {
            last_epoch: AtomicU64::new(0),
        }
    }

    /// The epoch of a log that begins now: Unix time in milliseconds, and later than any before, so
    /// that ids never repeat.
    pub fn begin(&self) -> u64 {
        let Self::Memory { last_epoch } = self;
        let since_1970 = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now = since_1970.as_millis() as u64;
        let last = last_epoch
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(now.max(last + 1))
            })
            .expect("the update always gives a value");
        now.max(last + 1)
    }

    /// Appends messages to the log of `room`; returns them with their ids once they are in it.
    ///
    /// # Errors
    /// [`Sealed`] when the room takes no more; the messages are not in the log then.
    pub fn publish(&self, room: &Room, frames: Frames) -> Result<Arc<Batch>, Sealed> {
        match self {
            Self::Memory { .. } => room.deliver(frames),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_only_grow_even_within_a_millisecond() {
        let backend = Backend::memory();
        let epochs: Vec<u64> = (0..1000).map(|_| backend.begin()).collect();
        assert!(epochs.is_sorted_by(|one, next| one < next));
    }
}
