//! What waits to be written.

use std::collections::{HashMap, HashSet, VecDeque};
use std::mem;
use std::sync::Arc;

use crate::format::{Batch, Frames};
use crate::message::Key;
use crate::store::{Found, Ticket};

/// Publications on their way to the database: each stays here until it is safe there, so that whoever reads a
/// room finds it in the one or in the other.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Messages that rooms have numbered, by room and in order.
    kept: HashMap<Arc<str>, VecDeque<Kept>>,
    /// The rooms of those, the one that has waited for longest first.
    order: VecDeque<Arc<str>>,
    /// Messages that are to be numbered.
    appended: VecDeque<Appended>,
    messages: usize,
    bytes: usize,
    /// Rooms of which messages were dropped from here.
    lost: HashSet<Arc<str>>,
    /// How many messages those were.
    dropped: usize,
}

/// A batch that its room has numbered.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) batch: Arc<Batch>,
    /// How many clients the room had.
    pub(super) clients: usize,
}

/// A publication that is to be numbered.
#[derive(Debug)]
pub(super) struct Appended {
    pub(super) name: Arc<str>,
    pub(super) frames: Frames,
    pub(super) clients: usize,
    pub(super) ticket: Ticket,
}

/// What is written in one transaction.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) kept: Vec<(Arc<str>, Vec<Kept>)>,
    pub(super) appended: Vec<Appended>,
    /// Rooms that have to begin a new epoch.
    pub(super) lost: HashSet<Arc<str>>,
}

/// What one transaction writes, and what the queue holds before publishers wait.
const TRANSACTION_MESSAGES: usize = 4096;
const TRANSACTION_BYTES: usize = 8 << 20;

impl Queue {
    pub(super) fn keep(&mut self, name: &Arc<str>, batch: Arc<Batch>, clients: usize) {
        self.messages += batch.len();
        self.bytes += batch.cost();
        let waiting = self.kept.entry(name.clone()).or_default();
        if waiting.is_empty() {
            self.order.push_back(name.clone());
        }
        waiting.push_back(Kept { batch, clients });
    }

    pub(super) fn append(&mut self, appended: Appended) {
        self.messages += appended.frames.len();
        self.bytes += appended.frames.bytes();
        self.appended.push_back(appended);
    }

    /// Whether publishers need not wait.
    pub(super) fn has_space(&self) -> bool {
        self.messages < TRANSACTION_MESSAGES && self.bytes < TRANSACTION_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages == 0 && self.lost.is_empty()
    }

    /// How many messages wait.
    pub(super) fn messages(&self) -> usize {
        self.messages
    }

    /// The work of the next transaction. What rooms have numbered stays here until it is
    /// [done](Self::done).
    pub(super) fn work(&mut self) -> Work {
        let mut work = Work {
            lost: mem::take(&mut self.lost),
            ..Work::default()
        };
        let (mut messages, mut bytes) = (0, 0);
        let mut has_space = |len, cost| {
            let has_space = messages < TRANSACTION_MESSAGES && bytes < TRANSACTION_BYTES;
            messages += len;
            bytes += cost;
            has_space
        };
        for name in &self.order {
            let waiting = self.kept[name].iter();
            let taken: Vec<Kept> = waiting
                .take_while(|it| has_space(it.batch.len(), it.batch.cost()))
                .cloned()
                .collect();
            if taken.is_empty() {
                break;
            }
            work.kept.push((name.clone(), taken));
        }
        while let Some(next) = self.appended.front()
            && has_space(next.frames.len(), next.frames.bytes())
            && let Some(next) = self.appended.pop_front()
        {
            self.messages -= next.frames.len();
            self.bytes -= next.frames.bytes();
            work.appended.push(next);
        }
        work
    }

    /// The transaction is over: its messages are in the database.
    pub(super) fn done(&mut self, work: &Work) {
        for (name, taken) in &work.kept {
            let last = taken.last().map(|it| it.batch.last_id());
            while self
                .kept
                .get(name)
                .and_then(VecDeque::front)
                .is_some_and(|it| Some(it.batch.last_id()) <= last)
            {
                self.drop_first(name);
            }
        }
        // A room that waits on goes behind the others.
        let written: HashSet<&Arc<str>> = work.kept.iter().map(|(name, _)| name).collect();
        let mut behind = Vec::new();
        self.order.retain(|name| {
            let waits = self.kept.contains_key(name);
            let is_behind = waits && written.contains(name);
            if is_behind {
                behind.push(name.clone());
            }
            waits && !is_behind
        });
        self.order.extend(behind);
    }

    /// The transaction has failed: what rooms have lost is still to be noted.
    pub(super) fn failed(&mut self, work: &Work) {
        self.lost.extend(work.lost.iter().cloned());
    }

    /// Drops the oldest batches until the rest takes at most `bytes` of memory.
    pub(super) fn drop_beyond(&mut self, bytes: usize) {
        let before = self.messages;
        while self.bytes > bytes
            && let Some(name) = self.order.front().cloned()
        {
            self.drop_first(&name);
            if !self.kept.contains_key(&name) {
                self.order.pop_front();
            }
            self.lost.insert(name);
        }
        self.dropped += before - self.messages;
    }

    /// How many messages were dropped since the last time.
    pub(super) fn take_dropped(&mut self) -> usize {
        mem::take(&mut self.dropped)
    }

    /// All that is to be numbered.
    pub(super) fn take_appended(&mut self) -> VecDeque<Appended> {
        for it in &self.appended {
            self.messages -= it.frames.len();
            self.bytes -= it.frames.bytes();
        }
        mem::take(&mut self.appended)
    }

    /// The batches of a room that wait.
    pub(super) fn waiting(&self, name: &str) -> Vec<Arc<Batch>> {
        let waiting = self.kept.get(name).into_iter().flatten();
        waiting.map(|it| it.batch.clone()).collect()
    }

    /// The message of a room that waits and has this key.
    pub(super) fn find(&self, name: &str, key: &Key) -> Option<Found> {
        let mut waiting = self.kept.get(name)?.iter();
        let has_key = |it: &&Kept| {
            it.batch
                .author()
                .is_some_and(|it| it.key.as_ref() == Some(key))
        };
        waiting.find(has_key).map(|it| Found {
            batch: it.batch.without_copies(),
            clients: it.clients,
        })
    }

    /// Drops the first batch of a room.
    fn drop_first(&mut self, name: &Arc<str>) {
        let Some(waiting) = self.kept.get_mut(name) else {
            return;
        };
        if let Some(first) = waiting.pop_front() {
            self.messages -= first.batch.len();
            self.bytes -= first.batch.cost();
        }
        if waiting.is_empty() {
            self.kept.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::config::Config;
    use crate::format::{BatchBuilder, Plain};
    use crate::message::{Kind, MessageId};

    fn batch(seq: u64) -> Arc<Batch> {
        let plain = Plain::new(&Config::default().service);
        let mut builder = BatchBuilder::default();
        plain.encode(Kind::Text, b"x", &mut builder);
        let id = MessageId { epoch: 7, seq };
        let frames = builder.take().unwrap();
        Arc::new(Batch::new(seq, id, SystemTime::now(), frames))
    }

    #[test]
    fn what_is_dropped_during_a_transaction_is_noted_by_the_next_one() {
        let mut queue = Queue::default();
        let name: Arc<str> = "/lobby".into();
        queue.keep(&name, batch(1), 0);
        queue.drop_beyond(0);
        queue.keep(&name, batch(2), 0);
        let work = queue.work();
        assert!(work.lost.contains(&name));
        // The transaction has 2, and 3 is in none.
        queue.keep(&name, batch(3), 0);
        queue.drop_beyond(0);
        queue.keep(&name, batch(4), 0);
        queue.done(&work);
        let work = queue.work();
        assert!(work.lost.contains(&name));
        // One that fails notes nothing.
        queue.failed(&work);
        assert!(queue.work().lost.contains(&name));
        assert_eq!(queue.take_dropped(), 3);
    }
}
