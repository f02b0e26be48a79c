//! The default store: each log lives in the memory of its room, and ends with it.

use super::Opened;
use super::epochs::Epochs;
use crate::message::MessageId;

/// Keeps nothing: it only gives each new log an epoch.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    epochs: Epochs,
}

impl Memory {
    /// A new log.
    pub(super) fn open(&self) -> Opened {
        let epoch = self.epochs.begin();
        Opened {
            next: MessageId { epoch, seq: 1 },
            tail: Vec::new(),
            replay_from: 1,
        }
    }
}
