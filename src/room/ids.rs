//! The ids of a log: which message each position has.

use crate::message::MessageId;

/// The ids of the messages of a log. A new epoch goes on with the sequence numbers, or begins anew.
#[derive(Debug)]
pub(super) struct Ids {
    /// What a position is beyond the sequence number there, modulo 2^64: 0 until the log begins anew.
    offset: u64,
    /// The first id of the epoch, as far as it is known.
    first: MessageId,
    /// The earliest epoch since whose beginning nothing has been lost, as far as is known.
    certain_since: u64,
}

/// Where the message behind a given one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Located {
    /// At this position, which may be that of the next message.
    At(u64),
    /// At this position, if an archive has the given one: it comes before all that is known here.
    Earlier(u64),
    /// At this position of an archive, which has the given one; others may have been lost behind that.
    Uncertain(u64),
    /// The given one is not in this log.
    Nowhere,
}

impl Ids {
    /// The ids of a log whose epoch begins, as far as it is known, with `first` at `position`: that may be
    /// the next message.
    pub(super) fn new(position: u64, first: MessageId) -> Self {
        Self {
            offset: position.wrapping_sub(first.seq),
            first,
            certain_since: first.epoch,
        }
    }

    /// The same log in a new epoch, which goes on at `position` with `first`: right behind the last message.
    pub(super) fn continued(&self, position: u64, first: MessageId) -> Self {
        Self {
            certain_since: self.certain_since,
            ..Self::new(position, first)
        }
    }

    /// Whether nothing can have been lost behind `id`, if the log has that.
    pub(super) fn is_certain(&self, id: MessageId) -> bool {
        id.epoch >= self.certain_since
    }

    /// The id of the message at `position`; of one before the epoch, only the sequence number is right.
    pub(super) fn at(&self, position: u64) -> MessageId {
        MessageId {
            seq: position.wrapping_sub(self.offset),
            ..self.first
        }
    }

    /// What a position is beyond the sequence number there, modulo 2^64.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The position of the message with the sequence number `seq`.
    pub(super) fn position(&self, seq: u64) -> u64 {
        seq.wrapping_add(self.offset)
    }

    /// Where the message behind `id` is, in a log whose next message is at `next`.
    pub(super) fn locate(&self, id: MessageId, next: u64) -> Located {
        let Self { first, .. } = *self;
        // Before its first message is where a log begins.
        let begins = if first.seq == 1 { 0 } else { first.seq };
        if id.epoch == first.epoch && (begins..self.at(next).seq).contains(&id.seq) {
            Located::At(self.position(id.seq + 1))
        } else if id.epoch <= first.epoch && id.seq < first.seq {
            Located::Earlier(self.position(id.seq + 1))
        } else {
            Located::Nowhere
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
    fn only_an_archive_knows_what_was_before_the_epoch() {
        let ids = Ids::new(110, id(8, 110));
        assert_eq!((ids.at(109).seq, ids.at(110)), (109, id(8, 110)));
        for (asked, expected) in [
            (id(7, 50), Located::Earlier(51)),
            (id(8, 109), Located::Earlier(110)),
            (id(9, 109), Located::Nowhere),
            // The message 110 is one of the other epoch.
            (id(7, 110), Located::Nowhere),
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
        assert_eq!((ids.at(49).seq, ids.position(30)), (30, 49));
        assert_eq!(ids.locate(id(8, 32), 60), Located::At(52));
        assert_eq!(ids.locate(id(7, 30), 60), Located::Earlier(50));
        assert_eq!(ids.locate(id(7, 40), 60), Located::Nowhere);
    }
}
