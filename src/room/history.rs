//! The tail of a room's log, bounded by messages and memory.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::format::Batch;

/// The newest messages of a log, in order, without holes.
///
/// What it remembers for those who join is bounded by `--history-limit` and `--history-bytes`. What
/// a client that is behind still needs it forgets a little later, within a bound of its own.
///
/// It holds whole batches: the memory of one is given back with its last message.
#[derive(Debug)]
pub struct History {
    batches: VecDeque<Arc<Batch>>,
    /// What is remembered for those who join, at most.
    limit: Limit,
    /// What may stay besides for those who are behind.
    behind_bytes: usize,
    /// Sequence number of the oldest message that is not forgotten.
    oldest: u64,
    /// Sequence number of the oldest message that is remembered for those who join.
    first: u64,
    /// Sequence number that the next message will have.
    next: u64,
    /// What all batches cost.
    bytes: usize,
    /// The part of it that belongs to the messages from `first` on.
    remembered_bytes: usize,
}

/// So many messages, and bytes of memory.
#[derive(Debug, Clone, Copy)]
struct Limit {
    messages: u64,
    bytes: usize,
}

/// A list that has more slots than this gives back those that it no longer needs.
const KEPT_SLOTS: usize = 64;

impl History {
    /// An empty history that remembers at most so many messages and bytes of memory, and
    /// `behind_bytes` more while a client needs them.
    pub fn new(messages: usize, bytes: usize, behind_bytes: usize) -> Self {
        let messages = if bytes == 0 { 0 } else { messages as u64 };
        Self {
            batches: VecDeque::new(),
            limit: Limit { messages, bytes },
            behind_bytes,
            oldest: 1,
            first: 1,
            next: 1,
            bytes: 0,
            remembered_bytes: 0,
        }
    }

    /// Sequence number of the oldest message for those who join; that of the next one where there
    /// is none.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Sequence number of the oldest message that is not forgotten.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Sequence number that the next message will have.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Bytes of memory that all batches take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends the messages that follow, and [forgets](Self::forget) those that no longer fit.
    pub fn push(&mut self, batch: &Arc<Batch>, needed: Option<u64>) {
        debug_assert_eq!(batch.seqs().start, self.next);
        self.next = batch.seqs().end;
        if self.limit.messages == 0 && self.batches.is_empty() && needed.is_none() {
            // There is no need to remember what is forgotten at once.
            (self.oldest, self.first) = (self.next, self.next);
            return;
        }
        let cost = batch.cost();
        self.bytes += cost;
        self.remembered_bytes += cost;
        self.batches.push_back(batch.clone());
        self.forget(needed);
    }

    /// Forgets the oldest messages that no longer fit, but for those from `needed` on, as far as
    /// they may stay.
    pub fn forget(&mut self, needed: Option<u64>) {
        self.remember_less();
        let needed = needed.unwrap_or(self.first).min(self.first);
        while let Some(batch) = self.batches.front()
            && (batch.seqs().end <= needed
                || (batch.seqs().end <= self.first
                    && self.bytes - self.remembered_bytes > self.behind_bytes))
        {
            self.forget_batch();
        }
        // The batch that holds `first` has to stay; a message before it may be forgotten alone.
        self.oldest = match self.bytes - self.remembered_bytes > self.behind_bytes {
            true => self.first,
            false => self.oldest.max(needed),
        };
        self.give_slots_back();
    }

    /// Forgets the oldest batches until those that are left take at most `bytes` of memory.
    pub fn trim_to(&mut self, bytes: usize) {
        while self.bytes > bytes {
            self.forget_batch();
        }
        self.give_slots_back();
    }

    /// The batches from sequence number `seq` on, oldest first; the first may begin before `seq`.
    pub fn batches_from(&self, seq: u64) -> impl Iterator<Item = &Arc<Batch>> {
        self.batches.range(self.position(seq)..)
    }

    fn remember_less(&mut self) {
        let Limit { messages, bytes } = self.limit;
        let mut at = self.position(self.first);
        // Whole batches first, which is all there is to do where nothing or little is remembered.
        while let Some(batch) = self.batches.get(at)
            && batch.seqs().start == self.first
            && (self.next - batch.seqs().end >= messages
                || self.remembered_bytes - batch.cost() > bytes)
        {
            self.remembered_bytes -= batch.cost();
            self.first = batch.seqs().end;
            at += 1;
        }
        while self.first < self.next
            && (self.remembered_bytes > bytes || self.next - self.first > messages)
        {
            let batch = &self.batches[at];
            self.remembered_bytes -= batch.cost_from(self.first) - batch.cost_from(self.first + 1);
            self.first += 1;
            if self.first == batch.seqs().end {
                at += 1;
            }
        }
    }

    /// Forgets the oldest batch.
    fn forget_batch(&mut self) {
        let batch = self.batches.pop_front().expect("what it holds has a cost");
        let end = batch.seqs().end;
        if self.first < end {
            self.remembered_bytes -= batch.cost_from(self.first);
        }
        self.bytes -= batch.cost();
        (self.oldest, self.first) = (end, self.first.max(end));
    }

    fn give_slots_back(&mut self) {
        let (len, slots) = (self.batches.len(), self.batches.capacity());
        if slots > KEPT_SLOTS && len < slots / 4 {
            self.batches.shrink_to(len * 2);
        }
    }

    /// Where the batch stands that has the message `seq`.
    fn position(&self, seq: u64) -> usize {
        self.batches
            .partition_point(|batch| batch.seqs().end <= seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Frames, Mark};
    use crate::message::{Kind, MessageId};
    use proptest::prelude::*;

    /// A batch of messages with so many payload bytes each.
    fn batch(first: u64, sizes: &[usize]) -> Arc<Batch> {
        let mut end = 0;
        let marks = sizes
            .iter()
            .map(|payload| {
                end += payload + 2;
                Mark {
                    kind: Kind::Binary,
                    end,
                    payload: *payload,
                }
            })
            .collect();
        let frames = Frames::new(vec![0; end], marks);
        Arc::new(Batch::new(
            MessageId {
                epoch: 1,
                seq: first,
            },
            frames,
        ))
    }

    #[test]
    fn zero_messages_or_bytes_keep_nothing() {
        for (messages, bytes) in [(0, 100), (100, 0)] {
            let mut history = History::new(messages, bytes, 100);
            history.push(&batch(1, &[0, 5]), None);
            assert_eq!(
                (history.first(), history.next(), history.bytes()),
                (3, 3, 0)
            );
            assert_eq!(history.batches_from(1).count(), 0);
        }
    }

    #[test]
    fn what_is_needed_stays_a_little_longer() {
        let cost = batch(1, &[10]).cost();
        let mut history = History::new(1, 10 * cost, 2 * cost);
        for seq in 1..=3 {
            history.push(&batch(seq, &[10]), Some(1));
        }
        assert_eq!(
            (history.oldest(), history.first(), history.bytes()),
            (1, 3, 3 * cost)
        );
        history.push(&batch(4, &[10]), Some(1));
        assert_eq!((history.oldest(), history.first()), (2, 4));
        history.forget(Some(3));
        assert_eq!((history.oldest(), history.first()), (3, 4));
        history.forget(None);
        assert_eq!((history.oldest(), history.bytes()), (4, cost));
        // One alone may be too much.
        history.push(&batch(5, &[2 * cost]), Some(4));
        history.push(&batch(6, &[1]), Some(4));
        assert_eq!((history.oldest(), history.first()), (6, 6));
    }

    #[test]
    fn messages_without_a_payload_are_bounded_by_bytes_as_well() {
        let limit = 1 << 20;
        for each in [1, 256] {
            let mut history = History::new(usize::MAX, limit, 0);
            let sizes = vec![0; each];
            while history.next() < 100_000 {
                history.push(&batch(history.next(), &sizes), None);
            }
            let most = history.batches_from(1).map(|it| it.cost()).max().unwrap();
            assert!(history.bytes() <= limit + most);
            assert!(history.bytes() > limit - most, "{}", history.bytes());
        }
    }

    #[test]
    fn the_list_of_a_history_that_was_longer_is_given_back() {
        let mut history = History::new(usize::MAX, usize::MAX, 0);
        for seq in 1..=10_000 {
            history.push(&batch(seq, &[0]), None);
        }
        history.trim_to(10 * batch(1, &[0]).cost());
        assert_eq!(history.batches.len(), 10);
        assert!(history.batches.capacity() <= KEPT_SLOTS);
    }

    proptest! {
        /// Against the obvious model: a list of (seq, cost) cut from the front.
        #[test]
        fn it_remembers_the_newest_that_fit(
            batches in prop::collection::vec(
                (prop::collection::vec(0_usize..20, 1..5), prop::option::of(1_u64..60)),
                0..30,
            ),
            max_messages in 0_usize..20,
            max_bytes in 1_usize..3000,
            behind_bytes in 0_usize..1000,
        ) {
            let mut history = History::new(max_messages, max_bytes, behind_bytes);
            let mut model: VecDeque<(u64, usize)> = VecDeque::new();
            let mut next = 1;
            for (sizes, needed) in &batches {
                let batch = batch(next, sizes);
                history.push(&batch, *needed);
                for seq in batch.seqs() {
                    model.push_back((seq, batch.cost_from(seq) - batch.cost_from(seq + 1)));
                }
                next = batch.seqs().end;
                while model.len() > max_messages
                    || model.iter().map(|(_, cost)| cost).sum::<usize>() > max_bytes
                {
                    model.pop_front();
                }
                let first = model.front().map_or(next, |(seq, _)| *seq);
                prop_assert_eq!((history.first(), history.next()), (first, next));
                prop_assert!(history.oldest() == first || needed.is_some_and(|it| it <= history.oldest()));
                for seq in history.oldest()..history.next() {
                    let run: Vec<u64> = history
                        .batches_from(seq)
                        .flat_map(|batch| batch.seqs())
                        .skip_while(|it| *it < seq)
                        .collect();
                    prop_assert_eq!(run, (seq..next).collect::<Vec<_>>());
                }
                // What it says it costs is what it holds, and no more than it may.
                let held: Vec<usize> = history.batches_from(1).map(|it| it.cost()).collect();
                prop_assert_eq!(history.bytes(), held.iter().sum::<usize>());
                let remembered: usize = model.iter().map(|(_, cost)| cost).sum();
                let shared = held.iter().max().copied().unwrap_or_default();
                prop_assert!(history.bytes() <= remembered + behind_bytes.max(shared));
            }
            history.trim_to(0);
            prop_assert_eq!((history.bytes(), history.first()), (0, next));
        }
    }
}
