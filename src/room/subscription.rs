//! A subscription: the place of one client in the log of a room.

use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::log::{Log, Room};
use super::queue::{Batches, Receiver, Taken};
use crate::config::Mode;
use crate::disconnect::Disconnect;
use crate::format::{self, Event, Format, Outbox};
use crate::message::MessageId;

/// One client's place in the log of a room; it leaves when dropped.
///
/// What it gives is one contiguous run of the log. It reads the history in pieces, no larger than
/// what may wait for one client, as fast as it is asked; with the piece that reaches the end of the
/// log, under the same lock, its queue is attached.
#[derive(Debug)]
pub struct Subscription {
    pub(super) room: Arc<Room>,
    pub(super) receiver: Receiver,
    /// Its key among the registry of the room, until it has left.
    pub(super) key: Option<usize>,
    /// The epoch of the log.
    pub(super) epoch: u64,
    pub(super) format: Format,
    pub(super) source: Source,
    /// How many messages were forgotten before it got them, and it was not told yet.
    pub(super) missed: u64,
    /// Whether receipts are asked for, of all that was given.
    pub(super) asked: bool,
    /// Sequence number of the message to give next.
    pub(super) next: u64,
    /// The last message given.
    pub(super) last: Option<MessageId>,
    /// Sequence number of the first message after it joined.
    pub(super) joined_at: u64,
    /// Taken from history or queue, and not given yet.
    pub(super) taken: Batches,
}

/// Where a subscription finds what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    History,
    Queue,
    /// The queue, and the task that asked last is woken when there is more.
    WatchedQueue,
}

impl Subscription {
    /// Appends to `frames` what is to be written next; returns how many messages that is, which may
    /// be none where receipts are asked for.
    ///
    /// # Errors
    /// [`Disconnect::Behind`] when the room has forgotten what should come next and the format cannot
    /// say so, and [`Disconnect::ShuttingDown`] when all was given and the room is sealed.
    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        frames: &mut Outbox,
    ) -> Poll<Result<u64, Disconnect>> {
        while self.taken.is_empty() && self.missed == 0 && !self.asked {
            if self.source == Source::History {
                self.lock_and_read()?;
                continue;
            }
            match ready!(self.receiver.poll_recv(cx, &mut self.taken)) {
                Taken::All { asked, watched } => {
                    self.asked = asked;
                    self.source = match watched {
                        true => Source::WatchedQueue,
                        false => Source::Queue,
                    };
                }
                Taken::End => self.source = Source::History,
            }
        }
        Poll::Ready(Ok(self.give(frames)))
    }

    /// Whether the task that asked last is woken when there is more, so that it need not ask again
    /// before.
    pub fn is_watched(&self) -> bool {
        self.source == Source::WatchedQueue
    }

    /// Appends to `frames` the next piece of what the history held when it joined; returns how many
    /// messages that is, 0 at the end.
    ///
    /// # Errors
    /// As [`poll_next`](Self::poll_next).
    pub fn replay(&mut self, frames: &mut Outbox) -> Result<u64, Disconnect> {
        if self.taken.is_empty() && self.next < self.joined_at {
            self.lock_and_read()?;
        }
        Ok(self.give(frames))
    }

    /// Leaves the room; nothing more is queued from here on.
    pub fn leave(&mut self) {
        if let Some(key) = self.key.take() {
            let mut log = self.room.log.lock();
            log.place(key, None);
            log.registry.remove(key);
            self.receiver.abandon();
            // What only it still needed may go.
            let needed = log.needed();
            log.history.forget(needed);
            self.room.account(&log.history);
        }
    }

    /// Whether somebody has asked for a receipt of all that was given, once.
    pub fn take_asked(&mut self) -> bool {
        mem::take(&mut self.asked)
    }

    /// The client has all messages up to `id`; what it was not given yet it cannot have.
    pub fn acknowledge(&self, id: MessageId) {
        if self
            .last
            .is_some_and(|last| id.epoch == last.epoch && id <= last)
        {
            self.receiver.acknowledge(id.seq);
        }
    }

    /// How its events look.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The epoch of the ids in this log.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The last message given, if any was.
    pub fn last(&self) -> Option<MessageId> {
        self.last
    }

    pub(super) fn lock_and_read(&mut self) -> Result<(), Disconnect> {
        let room = self.room.clone();
        let mut log = room.log.lock();
        self.read_history(&mut log)
    }

    /// Takes the next piece of the history; goes live where that reaches the end of the log.
    pub(super) fn read_history(&mut self, log: &mut Log) -> Result<(), Disconnect> {
        // In echo mode what came after the join was answered to its sender and concerns nobody else.
        let end = match self.room.mode {
            Mode::Echo => self.joined_at,
            Mode::Broadcast => log.history.next(),
        };
        let missed = log.history.oldest().min(end).saturating_sub(self.next);
        if missed > 0 && self.format == Format::Plain {
            return Err(Disconnect::Behind);
        }
        if missed > 0 {
            self.receiver.forgo(&(self.next..self.next + missed));
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
            log.place(key, None);
        } else if self.taken.is_empty() && self.missed == 0 {
            return Err(Disconnect::ShuttingDown);
        } else {
            log.place(key, Some(reached));
        }
        Ok(())
    }

    /// Moves on over what was taken; returns how many messages that is.
    fn give(&mut self, frames: &mut Outbox) -> u64 {
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

/// A list that grew longer than this in a burst is given back, so that idle clients stay small.
const KEPT_CAPACITY: usize = 16;

impl Drop for Subscription {
    fn drop(&mut self) {
        self.leave();
    }
}
