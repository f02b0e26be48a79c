//! A subscription: the cursor of one client in the log of a room.

use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::behaviour::Behaviour;
use super::log::{Log, Room};
use super::queue::{Batches, Receiver, Taken};
use super::receipts::Unacknowledged;
use crate::disconnect::Disconnect;
use crate::format::{self, Event, Format, Outbox};
use crate::message::MessageId;

/// One client's cursor in the log of a room; it leaves the room when dropped.
///
/// It yields one contiguous run of the log. It reads the history in steps within the bound of a queue;
/// the step that reaches the end of the log makes the queue live under the same lock, so nothing is
/// missed or repeated.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub(super) room: Arc<Room>,
    pub(super) receiver: Receiver,
    /// The key in the registry of the room; none after leaving.
    pub(super) key: Option<usize>,
    /// The epoch of the log.
    pub(super) epoch: u64,
    pub(super) format: Format,
    pub(super) source: Source,
    /// Messages evicted before they were read, and not yet reported by a gap event.
    pub(super) missed: u64,
    /// What it still has to acknowledge.
    pub(super) unacknowledged: Unacknowledged,
    /// Sequence number of the next message.
    pub(super) next: u64,
    /// The last message yielded.
    pub(super) last: Option<MessageId>,
    /// Sequence number of the first message after the join.
    pub(super) joined_at: u64,
    /// Taken from history or queue, and not yet yielded.
    pub(super) taken: Batches,
}

/// Where the next messages are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    History,
    Queue,
    /// The queue, which wakes the last task for later messages.
    WatchedQueue,
}

impl Subscription {
    /// Appends the next messages to `frames`; returns how many, which may be 0 where some are missing.
    ///
    /// # Errors
    /// [`Disconnect::Behind`] when the next messages were evicted and the format has no gap event, and
    /// [`Disconnect::ShuttingDown`] at the end of a sealed log.
    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        frames: &mut Outbox,
    ) -> Poll<Result<u64, Disconnect>> {
        while self.taken.is_empty() && self.missed == 0 {
            if self.source == Source::History {
                self.lock_and_read()?;
                continue;
            }
            match ready!(self.receiver.poll_recv(cx, &mut self.taken)) {
                Taken::All { watched } => {
                    self.source = match watched {
                        true => Source::WatchedQueue,
                        false => Source::Queue,
                    };
                }
                Taken::End => self.source = Source::History,
            }
        }
        Poll::Ready(Ok(self.render_taken(frames)))
    }

    /// Whether the last task is woken for later messages, so that it need not poll before that.
    pub(crate) fn is_watched(&self) -> bool {
        self.source == Source::WatchedQueue
    }

    /// Appends to `frames` the next messages from before the join; returns how many, 0 at the end.
    ///
    /// # Errors
    /// As [`poll_next`](Self::poll_next).
    pub(crate) fn replay(&mut self, frames: &mut Outbox) -> Result<u64, Disconnect> {
        if self.taken.is_empty() && self.next < self.joined_at {
            self.lock_and_read()?;
        }
        Ok(self.render_taken(frames))
    }

    /// Leaves the room; the room queues nothing more.
    pub(crate) fn leave(&mut self) {
        if let Some(key) = self.key.take() {
            let mut log = self.room.log.lock();
            log.set_behind(key, None);
            log.registry.remove(key);
            log.acknowledging -= usize::from(self.unacknowledged.is_possible());
            self.room.receipts.leave(&self.unacknowledged);
            // Messages that only this client still needed can be evicted.
            let needed = log.needed();
            log.history.evict(needed);
            self.room.account(&log.history);
        }
    }

    /// Whether a receipt is requested for all messages yielded so far; resets the request.
    pub(crate) fn take_ping_request(&mut self) -> bool {
        self.last.is_some_and(|last| {
            let receipts = &self.room.receipts;
            receipts.take_ping_request(&mut self.unacknowledged, last.seq)
        })
    }

    /// The client acknowledged all messages up to `id`; an id beyond the last message yielded is ignored.
    pub(crate) fn acknowledge(&mut self, id: MessageId) {
        let is_yielded = |last: MessageId| id.epoch == last.epoch && id <= last;
        if self.key.is_some() && self.last.is_some_and(is_yielded) {
            let receipts = &self.room.receipts;
            receipts.acknowledge(&mut self.unacknowledged, id.seq);
        }
    }

    /// The format of its events.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// The epoch of the ids in this log.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The last message yielded, if any.
    pub(crate) fn last(&self) -> Option<MessageId> {
        self.last
    }

    pub(super) fn lock_and_read(&mut self) -> Result<(), Disconnect> {
        let room = self.room.clone();
        let mut log = room.log.lock();
        self.read_history(&mut log)
    }

    /// Takes the next step of the history; goes live where that reaches the end of the log.
    pub(super) fn read_history(&mut self, log: &mut Log) -> Result<(), Disconnect> {
        // In an echo room a message after the join is answered to its sender only.
        let end = match self.room.behaviour {
            Behaviour::Echo => self.joined_at,
            Behaviour::Broadcast => log.history.next(),
        };
        let missed = log
            .history
            .retained_from()
            .min(end)
            .saturating_sub(self.next);
        if missed > 0 && self.format == Format::Plain {
            return Err(Disconnect::Behind);
        }
        if missed > 0 {
            let skipped = self.next..self.next + missed;
            self.room.receipts.skip(&mut self.unacknowledged, skipped);
            self.missed += missed;
            self.next += missed;
        }
        let (mut messages, mut bytes, mut reached) = (0, 0, self.next);
        for batch in log.history.batches_from(self.next) {
            messages += batch.len();
            bytes += batch.frame_bytes();
            let fits = self.taken.is_empty() || self.room.bound.allows(messages, bytes);
            if reached >= end || !fits {
                break;
            }
            reached = batch.seqs().end;
            self.taken.push(batch.clone());
        }
        let Some(key) = self.key else { return Ok(()) };
        if reached >= end && !log.sealed {
            self.receiver.open();
            self.source = Source::Queue;
            log.set_behind(key, None);
        } else if self.taken.is_empty() && self.missed == 0 {
            return Err(Disconnect::ShuttingDown);
        } else {
            log.set_behind(key, Some(reached));
        }
        Ok(())
    }

    /// Renders what was taken and moves the cursor; returns how many messages.
    fn render_taken(&mut self, frames: &mut Outbox) -> u64 {
        if self.missed > 0 {
            let missed = Some(mem::take(&mut self.missed));
            frames.push(format::render_event(&Event::Gap { missed }, self.format).into());
        }
        let before = self.next;
        for batch in self.taken.drain(..) {
            let (from, last) = (self.next, batch.last_id());
            frames.push(format::render(batch, self.format, from));
            self.next = last.seq + 1;
            self.last = Some(last);
        }
        if self.taken.capacity() > KEPT_CAPACITY {
            self.taken = Batches::new();
        }
        self.next - before
    }
}

/// A list that grew beyond this in a burst is freed, so that idle clients stay small.
const KEPT_CAPACITY: usize = 16;

impl Drop for Subscription {
    fn drop(&mut self) {
        self.leave();
    }
}
