//! A reader of a log that is no client: for `?history`.

use std::ops::Range;
use std::sync::{Arc, Weak};

use super::log::Room;
use crate::format::Batch;
use crate::message::MessageId;

/// Which messages of a log are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The last ones.
    Last,
    /// The first ones behind this.
    Since(MessageId),
    /// The last ones before this.
    Before(MessageId),
}

/// A cursor in the log of a room. It keeps nothing in memory: neither the room nor a message that it has
/// not reached.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    room: Weak<Room>,
    /// The sequence numbers that are still to be read.
    seqs: Range<u64>,
    /// Whether it begins right behind the id that was asked for.
    pub(crate) resumed: bool,
}

/// The next part of what a [`Reader`] reads.
#[derive(Debug)]
pub(crate) enum Piece {
    /// The messages of this batch that have these sequence numbers.
    Messages(Arc<Batch>, Range<u64>),
    /// So many messages were evicted before they were read.
    Gap(u64),
}

impl Room {
    /// Reads at most `limit` messages of `part`, of those for new clients or behind a given one.
    pub(crate) fn read(self: &Arc<Self>, part: Part, limit: u64) -> Reader {
        let log = self.log.lock();
        let (first, end) = (log.history.replay_from(), log.history.next());
        let last_before = |end: u64| end.saturating_sub(limit).max(first)..end.max(first);
        let (seqs, resumed) = match part {
            Part::Last => (last_before(end), false),
            Part::Since(id) => {
                let start = log.start(Some(id));
                let behind = start.next.saturating_add(limit).min(end);
                (start.next..behind, start.resumed)
            }
            // Ids of later logs are greater: all of this one is before them, or nothing.
            Part::Before(id) if id.epoch == log.epoch => (last_before(id.seq.min(end)), false),
            Part::Before(id) if id.epoch > log.epoch => (last_before(end), false),
            Part::Before(_) => (first..first, false),
        };
        Reader {
            room: Arc::downgrade(self),
            seqs,
            resumed,
        }
    }
}

impl Iterator for Reader {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.seqs.is_empty() {
            return None;
        }
        let (batch, retained_from) = self.room.upgrade().map_or((None, u64::MAX), |room| {
            let log = room.log.lock();
            let batch = log.history.batches_from(self.seqs.start).next().cloned();
            (batch, log.history.retained_from())
        });
        let (first, end) = (self.seqs.start, self.seqs.end);
        if retained_from > first {
            self.seqs.start = retained_from.min(end);
            return Some(Piece::Gap(self.seqs.start - first));
        }
        let batch = batch?;
        self.seqs.start = batch.seqs().end.min(end);
        Some(Piece::Messages(batch, first..self.seqs.start))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::config::{Config, Mode};
    use crate::format::{BatchBuilder, Plain};
    use crate::message::Kind;

    const EPOCH: u64 = 5;

    /// A room with two batches, of the messages 1 to 3 and 4 to 6.
    fn room() -> Arc<Room> {
        let config = Config::with(|config| config.service.mode = Mode::Broadcast);
        let total = Arc::<AtomicUsize>::default();
        let room = Room::new(
            config.service.mode.into(),
            &config.history,
            &config.limits,
            EPOCH,
            total,
        );
        let plain = Plain::new(&config.service);
        for _ in 0..2 {
            let mut builder = BatchBuilder::default();
            (0..3).for_each(|_| plain.encode(Kind::Text, b"hi", &mut builder));
            room.deliver(builder.take().unwrap()).unwrap();
        }
        Arc::new(room)
    }

    fn id(epoch: u64, seq: u64) -> MessageId {
        MessageId { epoch, seq }
    }

    /// Sequence numbers as `3` or `1-3`; gaps as `gap 2`.
    fn pieces(reader: Reader) -> Vec<String> {
        let show = |piece| match piece {
            Piece::Messages(_, seqs) => format!("{}-{}", seqs.start, seqs.end - 1),
            Piece::Gap(missed) => format!("gap {missed}"),
        };
        reader.map(show).collect()
    }

    #[test]
    fn each_part_is_read_in_order_up_to_its_limit() {
        let room = room();
        for (part, limit, expected) in [
            (Part::Last, 100, &["1-3", "4-6"][..]),
            (Part::Last, 4, &["3-3", "4-6"]),
            (Part::Last, 1, &["6-6"]),
            (Part::Since(id(EPOCH, 2)), 100, &["3-3", "4-6"]),
            (Part::Since(id(EPOCH, 2)), 2, &["3-3", "4-4"]),
            (Part::Since(id(EPOCH, 6)), 100, &[]),
            (Part::Since(id(1, 2)), 1, &["1-1"]),
            (Part::Before(id(EPOCH, 4)), 100, &["1-3"]),
            (Part::Before(id(EPOCH, 6)), 2, &["4-5"]),
            (Part::Before(id(EPOCH, 1)), 2, &[]),
            (Part::Before(id(EPOCH, 99)), 1, &["6-6"]),
            (Part::Before(id(EPOCH + 1, 1)), 1, &["6-6"]),
            (Part::Before(id(EPOCH - 1, 9)), 1, &[]),
        ] {
            let reader = room.read(part, limit);
            assert_eq!(
                reader.resumed,
                matches!(part, Part::Since(id) if id.epoch == EPOCH)
            );
            assert_eq!(pieces(reader), expected, "{part:?} {limit}");
        }
    }

    #[test]
    fn evicted_messages_become_a_gap_and_the_reader_keeps_none() {
        let room = room();
        let [mut reader, rest] = [(); 2].map(|()| room.read(Part::Last, 100));
        assert!(matches!(reader.next(), Some(Piece::Messages(..))));
        room.trim_to(room.bytes() / 2);
        assert_eq!(pieces(rest), ["gap 3", "4-6"]);
        assert_eq!(Arc::weak_count(&room), 1);
        assert_eq!(Arc::strong_count(&room), 1);
        // The room is forgotten.
        drop(room);
        assert_eq!(pieces(reader), ["gap 3"]);
    }
}
