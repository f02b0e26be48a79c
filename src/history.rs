//! The tail of a room's log, bounded by messages and bytes.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::message::Batch;

/// The newest messages of a log, in order, without holes.
///
/// What it remembers for those who join is bounded by `--history-limit` and `--history-bytes`. What
/// somebody who is behind still needs it forgets a little later, within a bound of its own.
///
/// It holds whole batches: the bytes of one stay until its last message is forgotten.
#[derive(Debug)]
pub struct History {
    batches: VecDeque<Arc<Batch>>,
    limit: Limit,
    behind_limit: Limit,
    /// Sequence number of the oldest message that is not forgotten.
    oldest: u64,
    /// Sequence number of the oldest message that is remembered for those who join.
    first: u64,
    /// Sequence number that the next message will have.
    next: u64,
    /// Payload bytes from `oldest` on, and from `first` on.
    bytes: usize,
    remembered_bytes: usize,
}

/// So many messages, and payload bytes.
#[derive(Debug, Clone, Copy)]
struct Limit {
    messages: u64,
    bytes: usize,
}

/// What a message costs at least, so that empty ones are bounded by a number of bytes as well.
const MESSAGE_COST: usize = 64;

impl History {
    /// An empty history that remembers at most so many messages and payload bytes, and
    /// `behind_bytes` more while somebody needs them.
    pub fn new(messages: usize, bytes: usize, behind_bytes: usize) -> Self {
        let messages = if bytes == 0 { 0 } else { messages as u64 };
        Self {
            batches: VecDeque::new(),
            limit: Limit { messages, bytes },
            behind_limit: Limit {
                messages: (behind_bytes / MESSAGE_COST) as u64,
                bytes: behind_bytes,
            },
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

    /// Payload bytes of all messages that are not forgotten.
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
        let bytes = batch.payload_bytes_of_all();
        self.bytes += bytes;
        self.remembered_bytes += bytes;
        self.batches.push_back(batch.clone());
        self.forget(needed);
    }

    /// Forgets the oldest messages that no longer fit, but for those from `needed` on, as far as
    /// they may stay.
    pub fn forget(&mut self, needed: Option<u64>) {
        self.remember_less(self.limit.bytes);
        let needed = needed.unwrap_or(self.first).min(self.first);
        while let Some(batch) = self.batches.front()
            && batch.seqs().start == self.oldest
            && batch.seqs().end <= needed
        {
            self.bytes -= batch.payload_bytes_of_all();
            self.oldest = batch.seqs().end;
            self.batches.pop_front();
        }
        while self.oldest < self.first
            && (self.oldest < needed
                || self.first - self.oldest > self.behind_limit.messages
                || self.bytes - self.remembered_bytes > self.behind_limit.bytes)
        {
            self.forget_oldest();
        }
    }

    /// Forgets the oldest messages until at most `bytes` of payload are left.
    pub fn trim_to(&mut self, bytes: usize) {
        while self.bytes > bytes {
            self.forget_oldest();
        }
    }

    /// The batches from sequence number `seq` on, oldest first; the first may begin before `seq`.
    pub fn batches_from(&self, seq: u64) -> impl Iterator<Item = &Arc<Batch>> {
        self.batches.range(self.position(seq)..)
    }

    fn remember_less(&mut self, bytes: usize) {
        let mut at = self.position(self.first);
        // Whole batches first, which is all there is to do where nothing or little is remembered.
        while let Some(batch) = self.batches.get(at)
            && batch.seqs().start == self.first
            && (self.next - batch.seqs().end >= self.limit.messages
                || self.remembered_bytes - batch.payload_bytes_of_all() > bytes)
        {
            self.remembered_bytes -= batch.payload_bytes_of_all();
            self.first = batch.seqs().end;
            at += 1;
        }
        while self.first < self.next
            && (self.remembered_bytes > bytes || self.next - self.first > self.limit.messages)
        {
            let batch = &self.batches[at];
            self.remembered_bytes -= batch.payload_bytes(self.first);
            self.first += 1;
            if self.first == batch.seqs().end {
                at += 1;
            }
        }
    }

    fn forget_oldest(&mut self) {
        let batch = &self.batches[0];
        let bytes = batch.payload_bytes(self.oldest);
        self.bytes -= bytes;
        if self.first == self.oldest {
            self.first += 1;
            self.remembered_bytes -= bytes;
        }
        self.oldest += 1;
        if self.oldest == batch.seqs().end {
            self.batches.pop_front();
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
    use crate::message::{Frames, Kind, Mark, MessageId};
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
        let mut history = History::new(1, 100, 2 * MESSAGE_COST);
        for seq in 1..=3 {
            history.push(&batch(seq, &[10]), Some(1));
        }
        assert_eq!(
            (history.oldest(), history.first(), history.bytes()),
            (1, 3, 30)
        );
        history.push(&batch(4, &[10]), Some(1));
        assert_eq!((history.oldest(), history.first()), (2, 4));
        history.forget(Some(3));
        assert_eq!((history.oldest(), history.first()), (3, 4));
        history.forget(None);
        assert_eq!((history.oldest(), history.bytes()), (4, 10));
        // By bytes as well.
        history.push(&batch(5, &[2 * MESSAGE_COST + 1]), Some(4));
        history.push(&batch(6, &[1]), Some(4));
        assert_eq!((history.oldest(), history.first()), (6, 6));
    }

    proptest! {
        /// Against the obvious model: a list of (seq, size) cut from the front.
        #[test]
        fn it_remembers_the_newest_that_fit(
            batches in prop::collection::vec(
                (prop::collection::vec(0_usize..20, 1..5), prop::option::of(1_u64..60)),
                0..30,
            ),
            max_messages in 0_usize..20,
            max_bytes in 1_usize..100,
        ) {
            let mut history = History::new(max_messages, max_bytes, 4 * MESSAGE_COST);
            let mut model: VecDeque<(u64, usize)> = VecDeque::new();
            let mut next = 1;
            for (sizes, needed) in &batches {
                history.push(&batch(next, sizes), *needed);
                for size in sizes {
                    model.push_back((next, *size));
                    next += 1;
                }
                while model.len() > max_messages
                    || model.iter().map(|(_, size)| size).sum::<usize>() > max_bytes
                {
                    model.pop_front();
                }
                prop_assert_eq!(history.next(), next);
                prop_assert_eq!(history.first(), model.front().map_or(next, |(seq, _)| *seq));
                prop_assert!(history.oldest() + 4 >= history.first());
                prop_assert!(history.oldest() == history.first() || needed.is_some());
                for seq in history.oldest()..history.next() {
                    let run: Vec<u64> = history
                        .batches_from(seq)
                        .flat_map(|batch| batch.seqs())
                        .skip_while(|it| *it < seq)
                        .collect();
                    prop_assert_eq!(run, (seq..next).collect::<Vec<_>>());
                }
            }
            history.trim_to(0);
            prop_assert_eq!(history.bytes(), 0);
        }
    }
}
