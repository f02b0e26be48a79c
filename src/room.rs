//! A room: one ordered log, who follows it, joining, catching up and fan-out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use parking_lot::Mutex;
use slab::Slab;

use crate::config::{Config, Mode};
use crate::disconnect::Disconnect;
use crate::history::History;
use crate::message::{Batch, Frames, MessageId};
use crate::queue::{Bound, Queue};

/// One ordered log. Its tail is the history; whoever has read up to its end has a queue that gets
/// what comes next.
#[derive(Debug)]
pub struct Room {
    mode: Mode,
    bound: Bound,
    log: Mutex<Log>,
    /// Payload bytes that this room's history holds, for those who look without the lock.
    bytes: AtomicUsize,
    /// Payload bytes that all histories hold; this room keeps its part of it true.
    total: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Log {
    epoch: u64,
    history: History,
    live: Slab<Arc<Queue>>,
    sealed: bool,
}

/// The room takes no more messages: the server is shutting down.
#[derive(Debug, thiserror::Error)]
#[error("the room is sealed")]
pub struct Sealed;

impl Room {
    /// An empty room whose ids begin with `epoch`; `total` counts the bytes of all rooms.
    pub fn new(config: &Config, epoch: u64, total: Arc<AtomicUsize>) -> Self {
        let history = History::new(config.history_limit, config.history_bytes.bytes());
        Self {
            mode: config.mode,
            bound: Bound {
                messages: config.max_queue,
                bytes: config.max_queue_bytes.bytes(),
            },
            log: Mutex::new(Log {
                epoch,
                history,
                live: Slab::new(),
                sealed: false,
            }),
            bytes: AtomicUsize::new(0),
            total,
        }
    }

    /// Appends messages to the log and, in broadcast mode, queues them for everybody; returns them
    /// with their ids. Never waits for a client.
    ///
    /// # Errors
    /// [`Sealed`] after [`seal`](Self::seal); the messages are not in the log then.
    pub fn deliver(&self, frames: Frames) -> Result<Arc<Batch>, Sealed> {
        let mut log = self.log.lock();
        if log.sealed {
            return Err(Sealed);
        }
        let first = MessageId {
            epoch: log.epoch,
            seq: log.history.next(),
        };
        let batch = Arc::new(Batch::new(first, frames));
        log.history.push(batch.clone());
        self.account(&log.history);
        if self.mode == Mode::Broadcast {
            log.live.retain(|_, queue| queue.push(&batch, self.bound));
        }
        Ok(batch)
    }

    /// Begins to follow the log: what the history holds, then what comes. From here on nothing is
    /// missed.
    pub fn subscribe(self: &Arc<Self>) -> Subscription {
        let mut log = self.log.lock();
        let mut subscription = Subscription {
            room: self.clone(),
            queue: Arc::default(),
            live: None,
            next: log.history.first(),
            last: None,
            joined_at: log.history.next(),
            taken: Vec::new(),
        };
        // Where nothing is left to read the room is sealed, which it says again when asked.
        subscription.read_history(&mut log).ok();
        subscription
    }

    /// Takes no more messages. Whoever follows the log gets the rest of it, then its end.
    pub fn seal(&self) {
        let mut log = self.log.lock();
        log.sealed = true;
        log.live.drain().for_each(|queue| queue.detach());
    }

    /// Payload bytes that the history holds.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether the history holds no message.
    pub fn is_empty(&self) -> bool {
        let log = self.log.lock();
        log.history.first() == log.history.next()
    }

    /// Lets the oldest messages go until at most `bytes` of payload are left.
    pub fn trim_to(&self, bytes: usize) {
        let mut log = self.log.lock();
        log.history.trim_to(bytes);
        self.account(&log.history);
    }

    /// Makes both counts of bytes true again.
    fn account(&self, history: &History) {
        let before = self.bytes.swap(history.bytes(), Ordering::Relaxed);
        self.total
            .fetch_add(history.bytes().wrapping_sub(before), Ordering::Relaxed);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes(), Ordering::Relaxed);
    }
}

/// One client's place in the log of a room; it leaves when dropped.
///
/// What it gives is one contiguous run of the log. It reads the history in pieces, no larger than
/// what may wait for one client, as fast as it is asked; with the piece that reaches the end of the
/// log, under the same lock, its queue is attached.
#[derive(Debug)]
pub struct Subscription {
    room: Arc<Room>,
    queue: Arc<Queue>,
    /// The key of its queue in the room while it is not known to be detached.
    live: Option<usize>,
    /// Sequence number of the message to give next.
    next: u64,
    /// The last message given.
    last: Option<MessageId>,
    /// Sequence number of the first message after it joined.
    joined_at: u64,
    /// Taken from history or queue, and not given yet.
    taken: Vec<Arc<Batch>>,
}

impl Subscription {
    /// Appends to `frames` what is to be written next; returns how many messages that is.
    ///
    /// # Errors
    /// [`Disconnect::Behind`] when the room has forgotten what should come next, and
    /// [`Disconnect::ShuttingDown`] when all was given and the room is sealed.
    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        frames: &mut Vec<Bytes>,
    ) -> Poll<Result<u64, Disconnect>> {
        while self.taken.is_empty() {
            if self.live.is_none() {
                self.lock_and_read()?;
            } else if !ready!(self.queue.poll_take(cx, &mut self.taken)) {
                self.live = None;
            }
        }
        Poll::Ready(Ok(self.give(frames)))
    }

    /// Appends to `frames` the next piece of what the history held when it joined; returns how many
    /// messages that is, 0 at the end.
    ///
    /// # Errors
    /// As [`poll_next`](Self::poll_next).
    pub fn replay(&mut self, frames: &mut Vec<Bytes>) -> Result<u64, Disconnect> {
        if self.taken.is_empty() && self.next < self.joined_at {
            self.lock_and_read()?;
        }
        Ok(self.give(frames))
    }

    /// The last message given, if any was.
    pub fn last(&self) -> Option<MessageId> {
        self.last
    }

    fn lock_and_read(&mut self) -> Result<(), Disconnect> {
        let room = self.room.clone();
        let mut log = room.log.lock();
        self.read_history(&mut log)
    }

    /// Takes the next piece of the history; goes live where that reaches the end of the log.
    fn read_history(&mut self, log: &mut Log) -> Result<(), Disconnect> {
        // In echo mode what came after the join was answered to its sender and concerns nobody else.
        let end = match self.room.mode {
            Mode::Echo => self.joined_at,
            Mode::Broadcast => log.history.next(),
        };
        if self.next < end && self.next < log.history.first() {
            return Err(Disconnect::Behind);
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
        if reached >= end && !log.sealed {
            self.queue.attach();
            self.live = Some(log.live.insert(self.queue.clone()));
        } else if self.taken.is_empty() {
            return Err(Disconnect::ShuttingDown);
        }
        Ok(())
    }

    /// Moves on over what was taken; returns how many messages that is.
    fn give(&mut self, frames: &mut Vec<Bytes>) -> u64 {
        let before = self.next;
        for batch in self.taken.drain(..) {
            let seqs = batch.seqs();
            frames.push(batch.frames_from(self.next));
            self.next = seqs.end;
            self.last = Some(batch.id(seqs.end - 1));
        }
        if self.taken.capacity() > KEPT_CAPACITY {
            self.taken = Vec::new();
        }
        self.next - before
    }
}

/// A list that grew longer than this in a burst is given back, so that idle clients stay small.
const KEPT_CAPACITY: usize = 16;

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(key) = self.live {
            let mut log = self.room.log.lock();
            // A detached queue is no longer in the room, and its key may be another's by now.
            if self.queue.is_attached() {
                log.live.remove(key);
            }
        }
    }
}
