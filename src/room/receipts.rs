//! Receipts: how many clients acknowledge a message.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

/// The receipts for one message.
#[derive(Debug)]
pub(crate) struct Receipts {
    pub(super) clients: usize,
    pub(super) answers: mpsc::Receiver<()>,
}

impl Receipts {
    /// How many clients were in the room when it was published.
    pub(crate) fn clients(&self) -> usize {
        self.clients
    }

    /// Waits until every client that can acknowledge has done so or left, at most for `limit`; returns
    /// how many acknowledged.
    pub(crate) async fn collect(mut self, limit: Duration) -> usize {
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
