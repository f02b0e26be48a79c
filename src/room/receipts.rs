//! Receipts: how many clients acknowledge a message.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::timeout;

use super::log::Room;
use crate::format::Format;

/// The receipts that the publishers of a room wait for: one entry a message, one count a client.
///
/// Lock order: the log, then the receipts. An entry is made under both, so that it counts exactly the
/// clients that the message is delivered to. On a cache line of its own, as every client reads `asked`
/// and the log beside it changes all the time.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Receipts {
    /// The largest sequence number for which a publisher ever waited.
    asked: AtomicU64,
    /// By the sequence numbers of the messages.
    entries: Mutex<BTreeMap<u64, Entry>>,
}

#[derive(Debug)]
struct Entry {
    /// Clients that may still acknowledge the message.
    missing: usize,
    /// Clients that acknowledged it.
    delivered: usize,
    publisher: Option<Waker>,
}

/// What one client still has to acknowledge.
#[derive(Debug)]
pub(super) struct Unacknowledged {
    /// The sequence number up to which it acknowledged, or need not.
    acknowledged: u64,
    /// The sequence number up to which a ping was requested, or is not needed.
    pinged: u64,
    /// Messages beyond that were evicted before it read them: a later acknowledgement does not cover
    /// them.
    skipped: Vec<Range<u64>>,
}

impl Receipts {
    /// Waits for the receipts of `missing` clients for the message `seq`, which is not yet published.
    pub(super) fn expect(&self, seq: u64, missing: usize) {
        let entry = Entry {
            missing,
            delivered: 0,
            publisher: None,
        };
        self.entries.lock().insert(seq, entry);
        // The lock of the log, or of a queue, orders this before any read of the message.
        self.asked.store(seq, Ordering::Relaxed);
    }

    /// Whether `client`, which has the messages up to `last`, has to be pinged for a receipt; resets the
    /// request.
    pub(super) fn take_ping_request(&self, client: &mut Unacknowledged, last: u64) -> bool {
        if last <= client.pinged || !self.is_asked_beyond(client.pinged) {
            return false;
        }
        let unpinged = client.pinged + 1..=last;
        client.pinged = last;
        self.entries.lock().range(unpinged).next().is_some()
    }

    /// `client` acknowledged all messages up to `seq` that it has.
    pub(super) fn acknowledge(&self, client: &mut Unacknowledged, seq: u64) {
        if seq <= client.acknowledged {
            return;
        }
        if self.is_asked_beyond(client.acknowledged) {
            self.settle(client.owed(seq), true);
        }
        client.acknowledged = seq;
        client.skipped.retain(|skipped| skipped.end > seq + 1);
    }

    /// The messages `seqs` were evicted before `client` read them.
    pub(super) fn skip(&self, client: &mut Unacknowledged, seqs: Range<u64>) {
        if !self.is_asked_beyond(client.acknowledged) {
            return;
        }
        let owed = seqs.start.max(client.acknowledged + 1)..seqs.end;
        if self.settle([owed], false) {
            // Of messages that no publisher waits for any more, nothing needs to be remembered.
            let first = self.entries.lock().keys().next().copied();
            client.skipped.retain(|it| Some(it.end) > first);
            client.skipped.push(seqs);
        }
    }

    /// `client` left, and acknowledges nothing more.
    pub(super) fn leave(&self, client: &Unacknowledged) {
        if self.is_asked_beyond(client.acknowledged) {
            self.settle(client.owed(NEVER - 1), false);
        }
    }

    /// Whether a receipt was ever requested for a message after `seq`; takes no lock.
    fn is_asked_beyond(&self, seq: u64) -> bool {
        self.asked.load(Ordering::Relaxed) > seq
    }

    /// Counts one client less as missing for all messages in `owed`; returns whether there were any.
    fn settle(&self, owed: impl IntoIterator<Item = Range<u64>>, delivered: bool) -> bool {
        let mut entries = self.entries.lock();
        let mut any = false;
        for seqs in owed.into_iter().filter(|seqs| !seqs.is_empty()) {
            for (_, entry) in entries.range_mut(seqs) {
                any = true;
                entry.delivered += usize::from(delivered);
                entry.missing -= 1;
                if entry.missing == 0
                    && let Some(publisher) = entry.publisher.take()
                {
                    publisher.wake();
                }
            }
        }
        any
    }
}

impl Unacknowledged {
    /// A client that joins before the message `joined_at`.
    pub(super) fn new(format: Format, joined_at: u64) -> Self {
        let before = match format {
            Format::EventStream => NEVER,
            Format::Plain | Format::Json => joined_at - 1,
        };
        Self {
            acknowledged: before,
            pinged: before,
            skipped: Vec::new(),
        }
    }

    /// Whether the client can acknowledge at all.
    pub(super) fn is_possible(&self) -> bool {
        self.acknowledged != NEVER
    }

    /// The messages up to `seq` for which a receipt may be missing: those between the skipped ones.
    fn owed(&self, seq: u64) -> impl Iterator<Item = Range<u64>> {
        let ends = self.skipped.iter().map(move |it| it.start.min(seq + 1));
        let starts = self.skipped.iter().map(|it| it.end);
        [self.acknowledged + 1]
            .into_iter()
            .chain(starts)
            .zip(ends.chain([seq + 1]))
            .map(|(start, end)| start..end)
    }
}

/// Beyond all sequence numbers: no receipt is ever missing.
const NEVER: u64 = u64::MAX;

/// Collects the receipts for one message; gives up on them when dropped.
#[derive(Debug)]
pub(crate) struct Collector {
    pub(super) room: Arc<Room>,
    pub(super) seq: u64,
    pub(super) clients: usize,
}

impl Collector {
    /// How many clients were in the room when the message was published.
    pub(crate) fn clients(&self) -> usize {
        self.clients
    }

    /// Waits until every client that can acknowledge has done so or left, at most for `limit`; returns
    /// how many acknowledged.
    pub(crate) async fn collect(self, limit: Duration) -> usize {
        timeout(limit, self.wait()).await.ok();
        self.delivered()
    }

    /// Waits until every client that can acknowledge has done so or left.
    pub(crate) async fn wait(&self) {
        poll_fn(|cx| self.poll_all(cx)).await;
    }

    /// How many clients have acknowledged so far.
    pub(crate) fn delivered(&self) -> usize {
        self.with_entry(|entry| entry.delivered)
    }

    fn poll_all(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.with_entry(|entry| {
            if entry.missing == 0 {
                return Poll::Ready(());
            }
            entry.publisher = Some(cx.waker().clone());
            Poll::Pending
        })
    }

    fn with_entry<T>(&self, of: impl FnOnce(&mut Entry) -> T) -> T {
        let mut entries = self.room.receipts.entries.lock();
        of(entries.get_mut(&self.seq).expect("it stays until the drop"))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.room.receipts.entries.lock().remove(&self.seq);
    }
}
