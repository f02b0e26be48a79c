//! The ids of a log: which message each position has.

use smallvec::{SmallVec, smallvec};

use crate::message::MessageId;

/// The ids of the messages of a log, whose sequence numbers go on from one epoch to the next.
#[derive(Debug)]
pub(super) struct Ids {
    /// What a position is beyond the sequence number there: 0 until the log begins anew.
    offset: u64,
    /// The first ids of the epochs, in order; the last epoch has the ids to come.
    epochs: SmallVec<[MessageId; 1]>,
}

/// Where the message behind a given one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Located {
    /// At this position, which may be that of the next message.
    At(u64),
    /// At this position, if an archive has the given one: it comes before all that is known here.
    Earlier(u64),
    /// The given one is not in this log.
    Nowhere,
}

/// Epochs that are remembered; of earlier ones, an archive may know the ids.
const EPOCHS_MAX: usize = 8;

impl Ids {
    /// The ids of a log whose first known message, which may be the next one, is `first`, at `position`.
    pub(super) fn new(position: u64, first: MessageId) -> Self {
        Self {
            offset: position.wrapping_sub(first.seq),
            epochs: smallvec![first],
        }
    }

    /// From the message `first` on, its epoch is that of the ids.
    pub(super) fn begin(&mut self, first: MessageId) {
        if self.epochs.len() == EPOCHS_MAX {
            self.epochs.remove(0);
        }
        self.epochs.push(first);
    }

    /// The id of the message at `position`; of one before all that is known, the epoch is a guess.
    pub(super) fn at(&self, position: u64) -> MessageId {
        let seq = self.seq(position);
        let first = self.epochs.iter().rfind(|first| first.seq <= seq);
        let epoch = first.unwrap_or(&self.epochs[0]).epoch;
        MessageId { epoch, seq }
    }

    /// What a position is beyond the sequence number there, modulo 2^64.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The sequence number at `position`.
    pub(super) fn seq(&self, position: u64) -> u64 {
        position.wrapping_sub(self.offset)
    }

    /// The position of the message with the sequence number `seq`.
    pub(super) fn position(&self, seq: u64) -> u64 {
        seq.wrapping_add(self.offset)
    }

    /// Where the message behind `id` is, in a log whose next message is at `next`.
    pub(super) fn locate(&self, id: MessageId, next: u64) -> Located {
        let mut end = self.seq(next);
        for first in self.epochs.iter().rev() {
            // Before its first message is where a log begins.
            let begins = if first.seq == 1 { 0 } else { first.seq };
            if id.epoch == first.epoch && id.seq >= begins {
                return match id.seq < end {
                    true => Located::At(self.position(id.seq + 1)),
                    false => Located::Nowhere,
                };
            }
            end = first.seq;
        }
        let earliest = self.epochs[0];
        match id.epoch <= earliest.epoch && id.seq < earliest.seq {
            true => Located::Earlier(self.position(id.seq + 1)),
            false => Located::Nowhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(epoch: u64, seq: u64) -> MessageId {
        MessageId { epoch, seq }
    }

    #[test]
    fn a_log_in_memory_knows_all_of_its_ids() {
        let ids = Ids::new(1, id(7, 1));
        assert_eq!(ids.at(3), id(7, 3));
        for (asked, expected) in [
            (id(7, 0), Located::At(1)),
            (id(7, 1), Located::At(2)),
            (id(7, 9), Located::At(10)),
            (id(7, 10), Located::Nowhere),
            (id(7, u64::MAX), Located::Nowhere),
            (id(8, 1), Located::Nowhere),
            (id(6, 1), Located::Nowhere),
        ] {
            assert_eq!(ids.locate(asked, 10), expected, "{asked}");
        }
    }

    #[test]
    fn sequence_numbers_go_on_in_a_new_epoch() {
        let mut ids = Ids::new(100, id(7, 100));
        ids.begin(id(8, 110));
        assert_eq!((ids.at(109), ids.at(110)), (id(7, 109), id(8, 110)));
        for (asked, expected) in [
            (id(7, 50), Located::Earlier(51)),
            (id(5, 50), Located::Earlier(51)),
            (id(8, 50), Located::Nowhere),
            (id(7, 100), Located::At(101)),
            (id(7, 109), Located::At(110)),
            // The message 110 is one of the other epoch.
            (id(7, 110), Located::Nowhere),
            (id(8, 109), Located::Nowhere),
            (id(8, 110), Located::At(111)),
            (id(8, 120), Located::Nowhere),
        ] {
            assert_eq!(ids.locate(asked, 115), expected, "{asked}");
        }
    }

    #[test]
    fn positions_go_on_where_sequence_numbers_begin_anew() {
        let ids = Ids::new(50, id(8, 31));
        assert_eq!(ids.at(51), id(8, 32));
        assert_eq!((ids.seq(49), ids.position(30)), (30, 49));
        assert_eq!(ids.locate(id(8, 32), 60), Located::At(52));
        assert_eq!(ids.locate(id(7, 30), 60), Located::Earlier(50));
        assert_eq!(ids.locate(id(7, 40), 60), Located::Nowhere);
    }
}
