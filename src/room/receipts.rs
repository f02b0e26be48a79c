//! Receipts: how many clients have a message.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

/// The receipts for a message, as they come in.
#[derive(Debug)]
pub struct Receipts {
    pub(super) clients: usize,
    pub(super) answers: mpsc::Receiver<()>,
}

impl Receipts {
    /// How many clients were in the room.
    pub fn clients(&self) -> usize {
        self.clients
    }

    /// Waits until every client that can has given its receipt or is gone, but not for longer than
    /// `limit`; returns how many have given it.
    pub async fn collect(mut self, limit: Duration) -> usize {
        let mut delivered = 0;
        let all = async {
            while self.answers.recv().await.is_some() {
                delivered += 1;
            }
        };
        timeout(limit, all).await.ok();
        delivered
    }
}
