//! A subscription: the cursor of one client in the log of a room.

use std::fmt;
use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::archive::{self, Reading};
use super::behaviour::Behaviour;
use super::join::OnGap;
use super::log::{Log, Reads, Room};
use super::presence::Headcount;
use super::queue::{Batches, Receiver, Taken};
use super::receipts::Unacknowledged;
use crate::disconnect::Disconnect;
use crate::format::{Batch, Encoding, Event, Outbox};
use crate::message::{Author, ConnectionId, MessageId};

/// One client's cursor in the log of a room; it leaves the room when dropped.
///
/// It yields one contiguous run of the log. It reads the archive, if there is one, up to where the
/// history begins, and the history in steps within the bound of a queue; the step that reaches the end of
/// the log makes the queue live under the same lock, so nothing is missed or repeated.
pub(crate) struct Subscription {
    pub(super) room: Arc<Room>,
    pub(super) receiver: Receiver,
    /// The key in the registry of the room; none after leaving.
    pub(super) key: Option<usize>,
    pub(super) encoding: Encoding,
    pub(super) on_gap: OnGap,
    pub(super) source: Source,
    /// Whether it begins with what the archive has: what is not there from before the join is not missed.
    pub(super) is_anywhere: bool,
    /// How often the log has begun anew, as far as this client has noticed.
    pub(super) restarts: u32,
    /// What is being read from the archive; boxed, as it is mostly none.
    pub(super) reading: Option<Box<Reading>>,
    /// Messages evicted before they were read, and not yet reported by a gap event; [`UNKNOWN`] if
    /// their number is not known.
    pub(super) missed: u64,
    /// What it still has to acknowledge.
    pub(super) unacknowledged: Unacknowledged,
    /// The author of the messages of this client, once it has one.
    pub(super) author: Option<Arc<Author>>,
    /// Whether it gets its own messages.
    pub(super) hears_itself: bool,
    /// The number of clients, if this one follows it.
    pub(super) headcount: Option<Box<Headcount>>,
    /// Position of the next message.
    pub(super) next: u64,
    /// The last message yielded, and its position; position 0 and the epoch of the log before the first.
    pub(super) last: (MessageId, u64),
    /// Position of the first message after the join.
    pub(super) joined_at: u64,
    /// Taken from history or queue, and not yet yielded.
    pub(super) taken: Batches,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("Subscription");
        fields
            .field("next", &self.next)
            .field("source", &self.source);
        fields.finish_non_exhaustive()
    }
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
    /// [`Disconnect::Behind`] when the next messages were evicted and the client is not to go on behind a gap, and
    /// [`Disconnect::ShuttingDown`] at the end of a sealed log.
    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        frames: &mut Outbox,
    ) -> Poll<Result<u64, Disconnect>> {
        ready!(self.poll_take(cx, false))?;
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
    pub(crate) fn poll_replay(
        &mut self,
        cx: &mut Context<'_>,
        frames: &mut Outbox,
    ) -> Poll<Result<u64, Disconnect>> {
        ready!(self.poll_take(cx, true))?;
        Poll::Ready(Ok(self.render_taken(frames)))
    }

    /// Takes the next messages, or finds that some are missing. Of a `replay` nothing may be left.
    fn poll_take(&mut self, cx: &mut Context<'_>, replay: bool) -> Poll<Result<(), Disconnect>> {
        while self.taken.is_empty() && self.missed == 0 {
            if replay && self.next >= self.joined_at {
                break;
            }
            if let Some(reading) = &mut self.reading {
                let batches = ready!(reading.as_mut().as_mut().poll(cx));
                self.reading = None;
                self.take_archived(batches)?;
                continue;
            }
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
                Taken::Asked => {
                    self.unacknowledged.ask_again();
                    break;
                }
                Taken::End => self.source = Source::History,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Leaves the room; the room queues nothing more.
    pub(crate) fn leave(&mut self) {
        if let Some(key) = self.key.take() {
            let mut log = self.room.log.lock();
            log.set_reads(key, Reads::Archive);
            log.registry.remove(key);
            let clients = log.registry.len();
            self.room.presence.leave(self.author.as_deref(), clients);
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
        let (_, position) = self.last;
        let receipts = &self.room.receipts;
        receipts.take_ping_request(&mut self.unacknowledged, position)
    }

    /// The client acknowledged all messages up to `id`; an id beyond the last message yielded is ignored,
    /// and one of an earlier epoch.
    pub(crate) fn acknowledge(&mut self, id: MessageId) {
        let (last, position) = self.last;
        if self.key.is_some()
            && position > 0
            && id.epoch == last.epoch
            && let Some(later) = last.seq.checked_sub(id.seq)
        {
            let receipts = &self.room.receipts;
            let acknowledged = position.saturating_sub(later);
            receipts.acknowledge(&mut self.unacknowledged, acknowledged);
        }
    }

    /// The author of the messages of this client.
    pub(crate) fn author(&mut self) -> &Arc<Author> {
        self.author.get_or_insert_with(|| Author::connection(None))
    }

    /// The connection that its messages come from, once it has an author.
    pub(crate) fn connection(&self) -> Option<ConnectionId> {
        self.author.as_ref().and_then(|it| it.connection)
    }

    /// The number of clients, if this one follows it.
    pub(crate) fn headcount(&self) -> Option<&Headcount> {
        self.headcount.as_deref()
    }

    /// The same, to be changed.
    pub(crate) fn headcount_mut(&mut self) -> Option<&mut Headcount> {
        self.headcount.as_deref_mut()
    }

    /// The encoding of its events.
    pub(crate) fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// The messages of `batch`, which this client has published to an echo room, as their answer.
    pub(crate) fn echo(&mut self, batch: &Arc<Batch>) -> Bytes {
        let Range { start, end } = batch.positions();
        self.last = (batch.last_id(), end - 1);
        self.encode(batch, start)
    }

    /// The messages of `batch` from position `from` on, in the encoding of this client.
    fn encode(&self, batch: &Arc<Batch>, from: u64) -> Bytes {
        let encoded = self.room.encoded(batch, self.encoding);
        encoded.messages_from(batch.index(from))
    }

    /// The epoch of the last message yielded; before the first one, that of the log.
    pub(crate) fn epoch(&self) -> u64 {
        self.last.0.epoch
    }

    /// The last message yielded, if any.
    pub(crate) fn last(&self) -> Option<MessageId> {
        let (id, position) = self.last;
        (position > 0).then_some(id)
    }

    pub(super) fn lock_and_read(&mut self) -> Result<(), Disconnect> {
        let room = self.room.clone();
        let mut log = room.log.lock();
        self.read_history(&mut log)
    }

    /// Takes the next step of the history, or begins to read the archive; goes live where that reaches
    /// the end of the log.
    pub(super) fn read_history(&mut self, log: &mut Log) -> Result<(), Disconnect> {
        // In an echo room a message after the join is answered to its sender only.
        let end = match self.room.behaviour {
            Behaviour::Echo => self.joined_at,
            Behaviour::Broadcast => log.history.next(),
        };
        if self.restarts != log.restarts {
            self.restarts = log.restarts;
            // What was in the log before is not in it any more.
            if self.next < log.restarted_at {
                self.skip(log.restarted_at, UNKNOWN)?;
            }
        }
        let retained_from = log.history.retained_from().min(end);
        if self.next < retained_from
            && let (Some(archive), Some(key)) = (&self.room.archive, self.key)
        {
            let reading = archive::read(archive, log.ids.offset(), self.next..retained_from);
            self.reading = Some(Box::new(reading));
            log.set_reads(key, Reads::Archive);
            return Ok(());
        }
        if self.next < retained_from {
            self.skip(retained_from, retained_from - self.next)?;
        }
        let (mut messages, mut bytes, mut reached) = (0, 0, self.next);
        for batch in log.history.batches_from(self.next) {
            messages += batch.len();
            bytes += batch.frame_bytes();
            let fits = self.taken.is_empty() || self.room.bound.allows(messages, bytes);
            if reached >= end || !fits {
                break;
            }
            reached = batch.positions().end;
            self.taken.push(batch.clone());
        }
        let Some(key) = self.key else { return Ok(()) };
        if reached >= end && !log.is_ended() {
            self.receiver.open();
            self.source = Source::Queue;
            log.set_reads(key, Reads::Queue);
        } else if self.taken.is_empty() && self.missed == 0 {
            return Err(Disconnect::ShuttingDown);
        } else {
            log.set_reads(key, Reads::History(reached));
        }
        Ok(())
    }

    /// Takes what was read from the archive. What that has not is missing, up to what the history has.
    fn take_archived(&mut self, batches: Vec<Arc<Batch>>) -> Result<(), Disconnect> {
        let (retained_from, restarts) = {
            let log = self.room.log.lock();
            (log.history.retained_from(), log.restarts)
        };
        if self.restarts != restarts {
            // They may be of another log.
            return Ok(());
        }
        let first = batches.first().map(|batch| batch.positions().start);
        let first = first.map_or(retained_from, |it| it.min(retained_from));
        if self.next < first {
            self.skip(first, first - self.next)?;
        }
        self.taken.extend(batches);
        Ok(())
    }

    /// Moves on to `position`; so many messages before it are missing.
    fn skip(&mut self, position: u64, missed: u64) -> Result<(), Disconnect> {
        let skipped = self.next..position;
        self.room.receipts.skip(&mut self.unacknowledged, skipped);
        self.next = position;
        if self.is_anywhere && self.last.1 == 0 && position <= self.joined_at {
            return Ok(());
        }
        if self.on_gap == OnGap::Close {
            return Err(Disconnect::Behind);
        }
        self.missed = self.missed.saturating_add(missed);
        Ok(())
    }

    /// Whether this client has published `batch`.
    fn is_own(&self, batch: &Batch) -> bool {
        let (Some(own), Some(author)) = (&self.author, batch.author()) else {
            return false;
        };
        own.connection == author.connection
    }

    /// Renders what was taken and moves the cursor; returns how many messages the client gets.
    fn render_taken(&mut self, frames: &mut Outbox) -> u64 {
        if self.missed > 0 {
            let missed = Some(mem::take(&mut self.missed)).filter(|it| *it != UNKNOWN);
            frames.extend(self.encoding.event(&Event::Gap { missed }));
        }
        let mut given = 0;
        let mut taken = mem::take(&mut self.taken);
        for batch in taken.drain(..) {
            let (from, last, end) = (self.next, batch.last_id(), batch.positions().end);
            if self.hears_itself || !self.is_own(&batch) {
                frames.push(self.encode(&batch, from));
                given += end - from;
            }
            self.next = end;
            self.last = (last, end - 1);
        }
        if taken.capacity() <= KEPT_CAPACITY {
            self.taken = taken;
        }
        given
    }
}

/// A number of messages that is not known.
const UNKNOWN: u64 = u64::MAX;

/// A list that grew beyond this in a burst is freed, so that idle clients stay small.
const KEPT_CAPACITY: usize = 16;

impl Drop for Subscription {
    fn drop(&mut self) {
        self.leave();
    }
}
