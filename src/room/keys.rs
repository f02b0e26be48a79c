//! Keys: a message that its publisher sends again under the same key is published once.

use std::sync::Arc;

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::log::{Delivery, Room};
use super::receipts::Collector;
use crate::message::Key;

/// What is known of a message with a key, as long as the history retains it.
#[derive(Debug)]
pub(super) struct Keyed {
    /// Its position.
    pub(super) position: u64,
    /// How many clients the room had when it was published.
    pub(super) clients: usize,
    /// The receipts for it, whether a publisher waits for them or not.
    pub(super) receipts: Arc<Collector>,
}

/// What a publisher may do that has a key.
#[derive(Debug)]
pub(crate) enum Claim {
    /// Publish its message.
    Granted(Claimed),
    /// Nothing until another publisher with this key has published its message, or failed to.
    Pending(WaitForCancellationFutureOwned),
    /// Nothing: the message is in the log. The receipts are those for it.
    Published(Delivery),
}

/// Keeps a key to one publisher until its message is in the log, or is refused.
#[derive(Debug)]
pub(crate) struct Claimed {
    room: Arc<Room>,
    key: Key,
}

impl Room {
    /// Claims `key`; the receipts of a message that is published are collected if `receipts`.
    pub(crate) fn claim(self: &Arc<Self>, key: &Key, receipts: bool) -> Claim {
        let mut log = self.log.lock();
        if let Some((batch, keyed)) = log.history.find(key) {
            return Claim::Published(Delivery {
                batch: batch.clone(),
                queues: 0,
                clients: keyed.clients,
                receipts: receipts.then(|| keyed.receipts.clone()),
            });
        }
        if let Some(done) = log.claims.get(key) {
            return Claim::Pending(done.clone().cancelled_owned());
        }
        log.claims.insert(key.clone(), CancellationToken::new());
        Claim::Granted(Claimed {
            room: self.clone(),
            key: key.clone(),
        })
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        let done = self.room.log.lock().claims.remove(&self.key);
        done.inspect(CancellationToken::cancel);
    }
}
