//! A reader of a log that is no client: for `?history`.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Weak};

use super::archive::{self, Archive, Reading};
use super::ids::Located;
use super::log::Room;
use crate::format::{Batch, Encoded, Encoding};
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
    archive: Option<Arc<dyn Archive>>,
    /// What a position is beyond the sequence number there.
    offset: u64,
    /// The positions that are still to be read.
    positions: Range<u64>,
    /// Messages read from the archive, and not yet given.
    taken: VecDeque<Arc<Batch>>,
    /// Whether it begins with what the archive has: nothing before its first message counts as missing.
    is_anywhere: bool,
    /// Whether it begins right behind the id that was asked for.
    pub(crate) resumed: bool,
}

/// The next part of what a [`Reader`] reads.
#[derive(Debug)]
pub(crate) enum Piece {
    /// The messages of this batch at these positions.
    Messages(Arc<Batch>, Range<u64>),
    /// So many messages were evicted before they were read.
    Gap(u64),
}

impl Room {
    /// Reads at most `limit` messages of `part`: of all that are kept, or without an archive of those for
    /// new clients or behind a given one. `is_archived` is as in [`subscribe`](Self::subscribe).
    pub(crate) fn read(self: &Arc<Self>, part: Part, limit: u64, is_archived: bool) -> Reader {
        let log = self.log.lock();
        let first = match self.archive {
            Some(_) => log.ids.position(1),
            None => log.history.replay_from(),
        };
        let end = log.history.next();
        let last_before = |end: u64| end.saturating_sub(limit).max(first)..end.max(first);
        let epoch = log.ids.at(end).epoch;
        let (positions, resumed) = match part {
            Part::Last => (last_before(end), false),
            Part::Since(id) => {
                let start = log.start(Some(self.find(&log, id, is_archived)));
                let behind = start.next.saturating_add(limit).min(end);
                (start.next..behind, start.resumed)
            }
            Part::Before(id) => match self.find(&log, id, is_archived) {
                Located::At(behind) | Located::Earlier(behind) | Located::Uncertain(behind) => {
                    (last_before(behind - 1), false)
                }
                // Ids of later logs are greater: all of this one is before them, or nothing.
                Located::Nowhere if id.epoch >= epoch => (last_before(end), false),
                Located::Nowhere => (first..first, false),
            },
        };
        Reader {
            room: Arc::downgrade(self),
            archive: self.archive.clone(),
            offset: log.ids.offset(),
            positions,
            taken: VecDeque::new(),
            is_anywhere: self.archive.is_some() && !resumed,
            resumed,
        }
    }
}

impl Reader {
    /// The messages of `batch`, which it read, in `encoding`.
    pub(crate) fn encoded<'a>(&self, batch: &'a Arc<Batch>, encoding: Encoding) -> &'a Encoded {
        match self.room.upgrade() {
            Some(room) => room.encoded(batch, encoding),
            None => batch.encoded(encoding).0,
        }
    }

    /// The next messages, or how many are missing; none at the end.
    pub(crate) async fn next(&mut self) -> Option<Piece> {
        while !self.positions.is_empty() {
            if let Some(batch) = self.taken.pop_front() {
                return Some(self.give(batch));
            }
            let first = self.positions.start;
            let kept_from = match self.look() {
                Look::Here(batch) => return Some(self.give(batch)),
                Look::Evicted { before, reading } => {
                    if let Some(reading) = reading {
                        self.taken = reading.await.into();
                    }
                    let archived = self.taken.front().map(|batch| batch.positions().start);
                    archived.map_or(before, |it| it.min(before))
                }
            };
            if kept_from > first {
                self.positions.start = kept_from;
                if !self.is_anywhere {
                    return Some(Piece::Gap(kept_from - first));
                }
            }
        }
        None
    }

    /// Looks for the next message.
    fn look(&self) -> Look {
        let Range { start: first, end } = self.positions;
        let mut before = end;
        // What memory has evicted, a room that is forgotten too.
        if let Some(room) = self.room.upgrade() {
            let log = room.log.lock();
            let batch = log.history.batches_from(first).next();
            match batch.filter(|_| first >= log.history.retained_from()) {
                Some(batch) => return Look::Here(batch.clone()),
                None => before = log.history.retained_from().min(end),
            }
        }
        let archive = self.archive.as_ref();
        let reading = archive.map(|it| archive::read(it, self.offset, first..before));
        Look::Evicted { before, reading }
    }

    /// Gives the messages of `batch` from the next position on.
    fn give(&mut self, batch: Arc<Batch>) -> Piece {
        let first = self.positions.start;
        self.is_anywhere = false;
        self.positions.start = batch.positions().end.min(self.positions.end);
        Piece::Messages(batch, first..self.positions.start)
    }
}

/// Where the next message is.
enum Look {
    /// In memory.
    Here(Arc<Batch>),
    /// Not in memory up to `before`; the archive may have it.
    Evicted {
        before: u64,
        reading: Option<Reading>,
    },
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::config::{Config, Mode};
    use crate::format::{BatchBuilder, Plain};
    use crate::message::Kind;
    use crate::room::Origin;

    const EPOCH: u64 = 5;

    /// A room with two batches, of the messages 1 to 3 and 4 to 6.
    fn room() -> Arc<Room> {
        let config = Config::with(|config| config.service.mode = Mode::Broadcast);
        let origin = Origin {
            next: id(EPOCH, 1),
            tail: Vec::new(),
            replay_from: 1,
            archive: None,
        };
        let room = Arc::new(Room::new(
            config.service.mode.into(),
            &config.history,
            &config.limits,
            origin,
            Arc::default(),
        ));
        let plain = Plain::new(&config.service);
        for _ in 0..2 {
            let mut builder = BatchBuilder::default();
            (0..3).for_each(|_| plain.encode(Kind::Text, b"hi", &mut builder));
            room.append(builder.take().unwrap(), false, |_, _| {})
                .unwrap();
        }
        room
    }

    fn id(epoch: u64, seq: u64) -> MessageId {
        MessageId { epoch, seq }
    }

    /// Sequence numbers as `3` or `1-3`; gaps as `gap 2`.
    fn pieces(mut reader: Reader) -> Vec<String> {
        let mut pieces = Vec::new();
        while let Some(piece) = reader.next().now_or_never().expect("memory never waits") {
            pieces.push(match piece {
                Piece::Messages(_, at) => format!("{}-{}", at.start, at.end - 1),
                Piece::Gap(missed) => format!("gap {missed}"),
            });
        }
        pieces
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
            let reader = room.read(part, limit, false);
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
        let [mut reader, rest] = [(); 2].map(|()| room.read(Part::Last, 100, false));
        assert!(matches!(
            reader.next().now_or_never(),
            Some(Some(Piece::Messages(..)))
        ));
        room.trim_to(room.bytes() / 2);
        assert_eq!(pieces(rest), ["gap 3", "4-6"]);
        assert_eq!(Arc::weak_count(&room), 1);
        assert_eq!(Arc::strong_count(&room), 1);
        // The room is forgotten.
        drop(room);
        assert_eq!(pieces(reader), ["gap 3"]);
    }
}
