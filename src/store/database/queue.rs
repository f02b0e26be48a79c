//! What waits to be written.

use std::collections::{HashMap, HashSet, VecDeque};
use std::mem;
use std::ops::Range;
use std::sync::Arc;

use super::rows::{READ_BYTES, READ_MESSAGES};
use crate::format::Batch;
use crate::message::Key;
use crate::store::{Found, Publishing};

/// Publications on their way to the database: each stays here until it is safe there, so that a reader of a
/// room finds it in the one or in the other.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Messages that rooms have numbered, by room and in order.
    kept: HashMap<Arc<str>, VecDeque<Kept>>,
    /// The rooms of those, the one that has waited for longest first.
    order: VecDeque<Arc<str>>,
    /// Messages that are to be numbered.
    appended: VecDeque<(Arc<str>, Publishing)>,
    messages: usize,
    bytes: usize,
    /// Rooms of which messages were dropped from here.
    lost: HashSet<Arc<str>>,
    /// Those of them that a transaction notes just now.
    noting: HashSet<Arc<str>>,
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

/// What is written in one transaction.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) kept: Vec<(Arc<str>, Vec<Kept>)>,
    pub(super) appended: Vec<(Arc<str>, Publishing)>,
    /// Rooms that have to begin a new epoch.
    pub(super) lost: HashSet<Arc<str>>,
}

/// What one transaction writes, and what the queue holds before publishers wait.
const TRANSACTION_MESSAGES: usize = 4096;
const TRANSACTION_BYTES: usize = 8 << 20;

/// Rooms of which it is noted that they have lost messages.
const LOST_MAX: usize = 10_000;

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

    pub(super) fn append(&mut self, name: Arc<str>, messages: Publishing) {
        self.messages += messages.frames.len();
        self.bytes += messages.frames.bytes();
        self.appended.push_back((name, messages));
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
        self.noting.extend(self.lost.drain());
        let mut work = Work {
            lost: self.noting.clone(),
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
        while let Some((_, next)) = self.appended.front()
            && has_space(next.frames.len(), next.frames.bytes())
            && let Some((name, next)) = self.appended.pop_front()
        {
            self.messages -= next.frames.len();
            self.bytes -= next.frames.bytes();
            work.appended.push((name, next));
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
        self.noting.clear();
    }

    /// The transaction has failed: what rooms have lost is still to be noted.
    pub(super) fn failed(&mut self) {
        self.lost.extend(self.noting.drain());
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
    pub(super) fn take_appended(&mut self) -> VecDeque<(Arc<str>, Publishing)> {
        for (_, it) in &self.appended {
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

    /// Those with these sequence numbers, the first ones of them: as much as is read at a time.
    pub(super) fn waiting_in(&self, name: &str, seqs: Range<u64>) -> Vec<Arc<Batch>> {
        let Some(waiting) = self.kept.get(name) else {
            return Vec::new();
        };
        let from = waiting.partition_point(|it| it.batch.last_id().seq < seqs.start);
        let (mut messages, mut bytes) = (0, 0);
        let fits = |batch: &&Arc<Batch>| {
            let fits = messages < READ_MESSAGES as usize && bytes < READ_BYTES;
            messages += batch.len();
            bytes += batch.frame_bytes();
            fits && batch.first_id().seq < seqs.end
        };
        let waiting = waiting.range(from..).map(|it| &it.batch);
        waiting.take_while(fits).cloned().collect()
    }

    /// Whether messages of a room were dropped from here.
    pub(super) fn has_lost(&self, name: &str) -> bool {
        self.lost.contains(name) || self.noting.contains(name)
    }

    /// Whether so many rooms have lost messages that no more can be noted.
    pub(super) fn has_lost_too_many(&self) -> bool {
        self.lost.len() + self.noting.len() >= LOST_MAX
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
    use super::*;
    use crate::format::testing::{batch, plain};
    use crate::message::Kind;

    /// A batch of one message.
    fn one(seq: u64) -> Arc<Batch> {
        Arc::new(batch(&plain(""), seq, &[(Kind::Text, b"hi")]))
    }

    fn keep(queue: &mut Queue, room: &str, seq: u64) {
        queue.keep(&room.into(), one(seq), 0);
    }

    /// The messages of some work, as `/room 1 2`.
    fn of(work: &Work) -> Vec<String> {
        let rooms = work.kept.iter().map(|(name, kept)| {
            let seqs = kept.iter().map(|it| it.batch.first_id().seq.to_string());
            [&[name.to_string()][..], &seqs.collect::<Vec<_>>()]
                .concat()
                .join(" ")
        });
        rooms.collect()
    }

    #[test]
    fn what_is_being_written_can_still_be_found_until_it_is_done() {
        let mut queue = Queue::default();
        for (room, seq) in [("/a", 1), ("/b", 1), ("/a", 2)] {
            keep(&mut queue, room, seq);
        }
        let work = queue.work();
        assert_eq!(of(&work), ["/a 1 2", "/b 1"]);
        keep(&mut queue, "/a", 3);
        assert_eq!(queue.waiting("/a").len(), 3);
        queue.done(&work);
        assert_eq!((queue.waiting("/a").len(), queue.messages()), (1, 1));
        assert_eq!(of(&queue.work()), ["/a 3"]);
        let work = queue.work();
        queue.done(&work);
        assert!(queue.is_empty() && queue.bytes == 0 && queue.order.is_empty());
    }

    #[test]
    fn a_room_that_floods_lets_the_others_go_first() {
        let mut queue = Queue::default();
        for seq in 1..=2 * TRANSACTION_MESSAGES as u64 {
            keep(&mut queue, "/flood", seq);
        }
        keep(&mut queue, "/quiet", 1);
        assert!(!queue.has_space());
        let work = queue.work();
        assert_eq!(
            (work.kept.len(), work.kept[0].1.len()),
            (1, TRANSACTION_MESSAGES)
        );
        queue.done(&work);
        assert_eq!(of(&queue.work())[0], "/quiet 1");
    }

    #[test]
    fn beyond_the_memory_the_oldest_is_dropped_and_its_room_noted() {
        let mut queue = Queue::default();
        for (room, seq) in [("/a", 1), ("/b", 1), ("/a", 2)] {
            keep(&mut queue, room, seq);
        }
        let each = one(1).cost();
        // Also while it is being written.
        let _work = queue.work();
        queue.drop_beyond(2 * each);
        assert_eq!(of(&queue.work()), ["/a 2", "/b 1"]);
        queue.drop_beyond(each);
        assert_eq!(of(&queue.work()), ["/b 1"]);
        assert!(queue.has_lost("/a") && !queue.has_lost("/b"));
        queue.failed();
        assert!(!queue.is_empty(), "the epoch is still to be begun");
        let work = queue.work();
        assert_eq!(Vec::from_iter(&work.lost), [&"/a".into()]);
        assert!(queue.has_lost("/a"), "it is not yet begun");
        queue.done(&work);
        assert!(!queue.has_lost("/a"));
        assert!(queue.is_empty() && queue.bytes == 0);
    }

    #[test]
    fn what_is_dropped_during_a_transaction_is_noted_by_the_next_one() {
        let mut queue = Queue::default();
        let name: Arc<str> = "/lobby".into();
        queue.keep(&name, one(1), 0);
        queue.drop_beyond(0);
        queue.keep(&name, one(2), 0);
        let work = queue.work();
        assert!(work.lost.contains(&name));
        // The transaction has 2, and 3 is in none.
        queue.keep(&name, one(3), 0);
        queue.drop_beyond(0);
        queue.keep(&name, one(4), 0);
        queue.done(&work);
        let work = queue.work();
        assert!(work.lost.contains(&name));
        // One that fails notes nothing.
        queue.failed();
        assert!(queue.work().lost.contains(&name));
        assert_eq!(queue.take_dropped(), 3);
    }
}
