//! The tail of a room's log, bounded by messages and bytes.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::message::Batch;

/// The newest messages of a log, in order, without holes.
///
/// It holds whole batches; of the oldest one, messages that were trimmed away are no longer given
/// out although their bytes stay until the last message of that batch goes.
#[derive(Debug)]
pub struct History {
    batches: VecDeque<Arc<Batch>>,
    max_messages: u64,
    max_bytes: usize,
    /// Sequence number of the oldest message.
    first: u64,
    /// Sequence number that the next message will have.
    next: u64,
    bytes: usize,
}

impl History {
    /// An empty history of at most so many messages and payload bytes.
    pub fn new(max_messages: usize, max_bytes: usize) -> Self {
        Self {
            batches: VecDeque::new(),
            max_messages: if max_bytes == 0 {
                0
            } else {
                max_messages as u64
            },
            max_bytes,
            first: 1,
            next: 1,
            bytes: 0,
        }
    }

    /// Sequence number of the oldest message; that of the next one where there is none.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Sequence number that the next message will have.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Payload bytes of all messages.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends the messages that follow, and lets the oldest go that no longer fit.
    pub fn push(&mut self, batch: Arc<Batch>) {
        debug_assert_eq!(batch.seqs().start, self.next);
        self.next = batch.seqs().end;
        self.bytes += batch
            .seqs()
            .map(|seq| batch.payload_bytes(seq))
            .sum::<usize>();
        self.batches.push_back(batch);
        self.trim_to(self.max_bytes);
    }

    /// Lets the oldest messages go until at most `bytes` of payload are left.
    pub fn trim_to(&mut self, bytes: usize) {
        while self.first < self.next
            && (self.bytes > bytes || self.next - self.first > self.max_messages)
        {
            let oldest = &self.batches[0];
            self.bytes -= oldest.payload_bytes(self.first);
            self.first += 1;
            if self.first == oldest.seqs().end {
                self.batches.pop_front();
            }
        }
    }

    /// The batches from sequence number `seq` on, oldest first; the first may begin before `seq`.
    pub fn batches_from(&self, seq: u64) -> impl Iterator<Item = &Arc<Batch>> {
        let start = self
            .batches
            .partition_point(|batch| batch.seqs().end <= seq);
        self.batches.range(start..)
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
        let frames = Frames::new(vec![0; end].into(), marks);
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
            let mut history = History::new(messages, bytes);
            history.push(batch(1, &[0, 5]));
            assert_eq!(
                (history.first(), history.next(), history.bytes()),
                (3, 3, 0)
            );
            assert_eq!(history.batches_from(1).count(), 0);
        }
    }

    proptest! {
        /// Against the obvious model: a list of (seq, size) cut from the front.
        #[test]
        fn it_keeps_the_newest_that_fit(
            batches in prop::collection::vec(prop::collection::vec(0usize..20, 1..5), 0..30),
            max_messages in 0usize..20,
            max_bytes in 1usize..100,
        ) {
            let mut history = History::new(max_messages, max_bytes);
            let mut model: VecDeque<(u64, usize)> = VecDeque::new();
            let mut next = 1;
            for sizes in &batches {
                history.push(batch(next, sizes));
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
                prop_assert_eq!(history.bytes(), model.iter().map(|(_, size)| size).sum::<usize>());
                for seq in history.first()..history.next() {
                    let run: Vec<u64> = history
                        .batches_from(seq)
                        .flat_map(|batch| batch.seqs())
                        .skip_while(|it| *it < seq)
                        .collect();
                    prop_assert_eq!(run, (seq..next).collect::<Vec<_>>());
                }
            }
        }
    }
}
