//! A batch: messages that are published together and encoded once for all clients.

use std::collections::VecDeque;
use std::mem;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;

use super::Encoding;
use crate::message::{Author, Kind, MessageId};
use crate::protocol::frame::Header;

/// At least one message, one behind the other, in one encoding.
#[derive(Debug, Clone)]
pub(crate) struct Encoded {
    bytes: Bytes,
    /// Where each message but the last one ends.
    ends: Box<[usize]>,
    /// Bytes of memory of both.
    cost: usize,
}

impl Encoded {
    /// Takes encoded messages; `ends` are the offsets at which all but the last one end.
    pub(super) fn new(bytes: Vec<u8>, ends: Vec<usize>) -> Self {
        Self {
            cost: bytes.capacity() + size_of_val(&ends[..]),
            bytes: bytes.into(),
            ends: ends.into(),
        }
    }

    /// The message at `index`.
    pub(crate) fn message(&self, index: usize) -> Bytes {
        self.bytes.slice(self.range(index))
    }

    /// The messages from `index` on. All clients share the bytes.
    pub(crate) fn messages_from(&self, index: usize) -> Bytes {
        match index {
            0 => self.bytes.clone(),
            index => self.bytes.slice(self.ends[index - 1]..),
        }
    }

    fn range(&self, index: usize) -> Range<usize> {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        start..self.ends.get(index).copied().unwrap_or(self.bytes.len())
    }
}

/// The same messages in one encoding, and in others.
#[derive(Debug, Clone)]
struct Encodings {
    encoding: Encoding,
    encoded: Encoded,
    /// Those in other encodings, made when a client first needs them.
    others: OnceLock<Box<Self>>,
}

impl Encodings {
    fn new(encoding: Encoding, encoded: Encoded) -> Self {
        Self {
            encoding,
            encoded,
            others: OnceLock::new(),
        }
    }

    /// Bytes of memory of the first.
    fn cost(&self) -> usize {
        size_of::<Self>() + OVERHEAD + self.encoded.cost
    }
}

/// A few messages of one author encoded once, as the WebSocket frames that every client of the plain
/// format gets.
#[derive(Debug, Clone)]
pub(crate) struct Frames {
    encodings: Encodings,
    /// Length of the prefix of each text.
    prefix: usize,
    author: Option<Arc<Author>>,
}

impl Frames {
    /// The same messages by `author`.
    pub(crate) fn by(self, author: Option<Arc<Author>>) -> Self {
        Self { author, ..self }
    }

    /// Their author, if that is known.
    pub(crate) fn author(&self) -> Option<&Arc<Author>> {
        self.author.as_ref()
    }

    /// How many messages.
    pub(crate) fn len(&self) -> usize {
        self.plain().ends.len() + 1
    }

    /// Bytes of all frames.
    pub(crate) fn bytes(&self) -> usize {
        self.plain().bytes.len()
    }

    /// Each of the messages by itself.
    #[cfg(test)]
    pub(crate) fn singles(&self) -> impl Iterator<Item = Self> {
        (0..self.len()).map(|index| {
            let bytes = self.plain().message(index).to_vec();
            let encoded = Encoded::new(bytes, Vec::new());
            Self {
                encodings: Encodings::new(Encoding::Plain, encoded),
                prefix: self.prefix,
                author: self.author.clone(),
            }
        })
    }

    /// The messages as their sender sent them.
    pub(crate) fn payloads(&self) -> impl ExactSizeIterator<Item = (Kind, &[u8])> {
        (0..self.len()).map(|index| {
            let frame = &self.plain().bytes[self.plain().range(index)];
            let header = Header::parse(frame).expect("a frame has a header");
            let kind = header.message().expect("it is a whole message");
            let prefix = match kind {
                Kind::Text => self.prefix,
                Kind::Binary => 0,
            };
            (kind, &frame[header.length as usize + prefix..])
        })
    }

    fn plain(&self) -> &Encoded {
        &self.encodings.encoded
    }
}

/// Messages that were published together: consecutive ids, encoded once, shared by all
/// clients.
#[derive(Debug)]
pub(crate) struct Batch {
    position: u64,
    first: MessageId,
    time: SystemTime,
    frames: Frames,
}

/// Memory of messages in one encoding besides the struct: the header that shares their bytes, a place in
/// a list or tree of the history, which has some to spare, the counters of an [`Arc`](std::sync::Arc), and
/// the rounding of three allocations.
const OVERHEAD: usize = 96;

impl Batch {
    /// Gives `frames` their ids, `first` and those that follow, and their places in a log, from
    /// `position` on; `time` is when they were published.
    pub(crate) fn new(position: u64, first: MessageId, time: SystemTime, frames: Frames) -> Self {
        Self {
            position,
            first,
            time,
            frames,
        }
    }

    /// When they were published.
    pub(crate) fn time(&self) -> SystemTime {
        self.time
    }

    /// Its messages in `encoding`; and, where they were encoded only now, how many bytes of memory that
    /// copy takes: the history has to count it.
    pub(crate) fn encoded(&self, encoding: Encoding) -> (&Encoded, usize) {
        let (mut at, mut made) = (&self.frames.encodings, 0);
        while at.encoding != encoding {
            at = at.others.get_or_init(|| {
                let encodings = Encodings::new(encoding, encoding.messages(self));
                made = encodings.cost();
                Box::new(encodings)
            });
        }
        (&at.encoded, made)
    }

    /// Their author, if that is known.
    pub(crate) fn author(&self) -> Option<&Arc<Author>> {
        self.frames.author()
    }

    /// Its messages in the plain encoding.
    pub(crate) fn frames(&self) -> &Frames {
        &self.frames
    }

    /// Number of messages.
    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    /// Gives its messages the places from `position` on.
    pub(crate) fn at(self, position: u64) -> Self {
        Self { position, ..self }
    }

    /// The places of its messages in the log, as this process counts them: their sequence numbers, as
    /// long as those of the log go on from one epoch to the next.
    pub(crate) fn positions(&self) -> Range<u64> {
        self.position..self.position + self.len() as u64
    }

    /// The id of its first message.
    pub(crate) fn first_id(&self) -> MessageId {
        self.first
    }

    /// The id of its last message.
    pub(crate) fn last_id(&self) -> MessageId {
        self.id(self.positions().end - 1)
    }

    /// The id of its message at `position`.
    pub(crate) fn id(&self, position: u64) -> MessageId {
        MessageId {
            seq: self.first.seq + (position - self.position),
            ..self.first
        }
    }

    /// The index of the first of its messages from `position` on.
    pub(crate) fn index(&self, position: u64) -> usize {
        position.saturating_sub(self.position) as usize
    }

    /// Bytes of all its frames.
    pub(crate) fn frame_bytes(&self) -> usize {
        self.frames.bytes()
    }

    /// The same messages without the copies in other encodings.
    pub(crate) fn without_copies(&self) -> Self {
        let Encodings {
            encoding, encoded, ..
        } = &self.frames.encodings;
        Self {
            frames: Frames {
                encodings: Encodings::new(*encoding, encoded.clone()),
                author: self.frames.author.clone(),
                ..self.frames
            },
            ..*self
        }
    }

    /// Bytes of memory that it takes without the copies in other encodings. Its author counts in each
    /// batch of a connection, as each may be the last one to keep it.
    pub(crate) fn cost(&self) -> usize {
        let author = self.author().map_or(0, |author| author.cost());
        size_of::<Self>() + OVERHEAD + author + self.frames.plain().cost
    }

    /// Bytes of memory that it takes with the copies in other encodings.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> usize {
        let mut memory = self.cost();
        let mut at = &self.frames.encodings;
        while let Some(other) = at.others.get() {
            memory += other.cost();
            at = other;
        }
        memory
    }

    /// The part of [`cost`](Self::cost) that belongs to its messages from `position` on;
    /// what they share belongs to the last one.
    pub(crate) fn cost_from(&self, position: u64) -> usize {
        match self.index(position) {
            0 => self.cost(),
            skipped if skipped >= self.len() => 0,
            skipped => {
                let end = self.frames.plain().ends[skipped - 1];
                self.cost() - skipped * size_of::<usize>() - end
            }
        }
    }
}

/// Encoded messages that wait to be published, in batches.
#[derive(Debug, Default)]
pub(crate) struct BatchBuilder {
    /// Batches of the full size.
    pub(super) full: VecDeque<Frames>,
    pub(super) bytes: Vec<u8>,
    /// Where each message but the last one ends.
    pub(super) ends: Vec<usize>,
    prefix: u32,
    /// Numbers of ends and bytes of the last batch: the capacity that the next one begins with.
    last_size: (u32, u32),
}

/// A batch ends at so many messages or bytes: enough to share its cost, and few enough that one
/// retained message does not keep much else in memory.
pub(super) const MAX_BATCH: usize = 256;
pub(super) const MAX_BATCH_BYTES: usize = 16 * 1024;

impl BatchBuilder {
    /// Takes the oldest batch.
    pub(crate) fn take(&mut self) -> Option<Frames> {
        self.full
            .pop_front()
            .or_else(|| (!self.bytes.is_empty()).then(|| self.cut()))
    }

    /// Begins a message whose prefix, if it is a text, has this length. A batch begins with what it will
    /// probably need allocated.
    pub(super) fn begin(&mut self, prefix: usize) {
        if self.bytes.is_empty() {
            self.ends = Vec::with_capacity(self.last_size.0 as usize);
            self.bytes = Vec::with_capacity(self.last_size.1 as usize);
            self.prefix = prefix as u32;
        } else {
            self.ends.push(self.bytes.len());
        }
    }

    /// Ends the current batch.
    pub(super) fn cut(&mut self) -> Frames {
        let (mut bytes, ends) = (mem::take(&mut self.bytes), mem::take(&mut self.ends));
        self.last_size = (ends.len() as u32, bytes.len() as u32);
        // The history may retain it for long.
        if bytes.capacity() / 2 > bytes.len() {
            bytes.shrink_to_fit();
        }
        Frames {
            encodings: Encodings::new(Encoding::Plain, Encoded::new(bytes, ends)),
            prefix: self.prefix as usize,
            author: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::testing::{batch, plain};

    const BATCH_COST: usize = size_of::<Batch>() + OVERHEAD;

    #[test]
    fn a_batch_knows_its_ids() {
        let three = [(Kind::Binary, &b"x"[..]); 3];
        let batch = batch(&plain(""), 5, &three);
        assert_eq!((batch.positions(), batch.last_id().seq), (5..8, 7));
        assert_eq!([1, 5, 7].map(|position| batch.index(position)), [0, 0, 2]);
        assert_eq!(batch.id(6).to_string(), "1-6");
    }

    #[test]
    fn the_cost_of_a_batch_is_all_of_its_memory() {
        let plain = plain("");
        let one = batch(&plain, 5, &[(Kind::Text, b"")]);
        assert_eq!(one.cost(), BATCH_COST + 2);
        // Little spare memory is kept and counts, much is freed.
        let [two, _] = [(10, 10), (1000, 6)].map(|(expected, cost)| {
            let mut builder = BatchBuilder {
                last_size: (5, expected),
                ..BatchBuilder::default()
            };
            for _ in 0..2 {
                plain.encode(Kind::Text, b"x", &mut builder);
            }
            let first = MessageId { epoch: 7, seq: 5 };
            let two = Batch::new(5, first, SystemTime::now(), builder.take().unwrap());
            assert_eq!(two.cost(), BATCH_COST + size_of::<usize>() + cost);
            two
        });
        let costs: Vec<usize> = (4..8).map(|position| two.cost_from(position)).collect();
        let second = two.cost() - size_of::<usize>() - 3;
        assert_eq!(costs, [two.cost(), two.cost(), second, 0]);
    }

    #[test]
    fn messages_are_cut_into_batches() {
        let plain = plain("");
        let mut builder = BatchBuilder::default();
        for number in 0..=MAX_BATCH {
            plain.encode(Kind::Text, number.to_string().as_bytes(), &mut builder);
        }
        let sizes: Vec<usize> = std::iter::from_fn(|| builder.take())
            .map(|frames| frames.payloads().len())
            .collect();
        assert_eq!(sizes, [MAX_BATCH, 1]);
    }
}
