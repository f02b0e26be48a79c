//! A batch: messages that are published together and encoded once for all clients.

use std::collections::VecDeque;
use std::mem;
use std::ops::{Deref, Range};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::{Buf, Bytes};
use smallvec::SmallVec;

use super::Format;
use crate::message::{Kind, MessageId};

/// A few messages encoded once, as the WebSocket frames that every client gets.
#[derive(Debug, Clone, Default)]
pub(crate) struct Frames {
    bytes: Vec<u8>,
    marks: Marks,
}

/// One for each frame; most batches have one message.
pub(crate) type Marks = SmallVec<[Mark; 1]>;

/// Where one frame of [`Frames`] ends, and how much of it is the sender's payload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    /// The kind of the message.
    pub(crate) kind: Kind,
    /// Offset in bytes behind the frame's last byte.
    pub(crate) end: usize,
    /// Length of the payload in bytes; it is the tail of the frame.
    pub(crate) payload: usize,
}

impl Frames {
    /// Takes encoded frames, one mark a frame, in order.
    pub(crate) fn new(bytes: Vec<u8>, marks: Marks) -> Self {
        debug_assert_eq!(marks.last().map_or(0, |mark| mark.end), bytes.len());
        Self { bytes, marks }
    }

    /// The messages, each with its kind, its frame, and its payload at the end of that.
    #[cfg(test)]
    pub(crate) fn frames(&self) -> impl Iterator<Item = (Kind, &[u8], &[u8])> {
        let starts = [0]
            .into_iter()
            .chain(self.marks.iter().map(|mark| mark.end));
        starts
            .zip(self.payloads())
            .zip(&self.marks)
            .map(|((start, (kind, payload)), mark)| (kind, &self.bytes[start..mark.end], payload))
    }

    /// The messages as their sender sent them.
    pub(crate) fn payloads(&self) -> impl ExactSizeIterator<Item = (Kind, &[u8])> {
        self.marks
            .iter()
            .map(|mark| (mark.kind, &self.bytes[mark.end - mark.payload..mark.end]))
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
    /// In JSON and as Server-Sent Events, encoded when a client first needs them.
    renditions: [OnceLock<Box<Rendition>>; 2],
}

/// Memory of a batch besides its frames and marks: the struct, the counters of its [`Arc`], its slot
/// in a list with spare capacity, and the rounding of two allocations.
const BATCH_COST: usize = size_of::<Batch>() + 64;

impl Batch {
    /// Gives `frames` their ids, `first` and those that follow, and their places in a log, from
    /// `position` on; `time` is when they were published.
    pub(crate) fn new(position: u64, first: MessageId, time: SystemTime, frames: Frames) -> Self {
        Self {
            position,
            first,
            time,
            frames,
            renditions: Default::default(),
        }
    }

    /// When they were published.
    pub(crate) fn time(&self) -> SystemTime {
        self.time
    }

    /// Its messages in a format other than the plain one, encoded by `encode` the first time.
    pub(crate) fn rendition(
        &self,
        format: Format,
        encode: impl FnOnce() -> Rendition,
    ) -> &Rendition {
        let kept = &self.renditions[usize::from(format == Format::EventStream)];
        kept.get_or_init(|| Box::new(encode()))
    }

    /// Its messages in the plain format.
    pub(crate) fn frames(&self) -> &Frames {
        &self.frames
    }

    /// Number of messages.
    pub(crate) fn len(&self) -> usize {
        self.frames.marks.len()
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

    /// The frames of all messages from `position` on.
    pub(crate) fn frames_from(self: Arc<Self>, position: u64) -> Chunk {
        let start = match position.saturating_sub(self.position) {
            0 => 0,
            skipped => self.end(skipped as usize),
        };
        Chunk::Batch(self, start)
    }

    /// Bytes of all its frames.
    pub(crate) fn frame_bytes(&self) -> usize {
        self.frames.bytes.len()
    }

    /// Bytes of memory that it takes, without its [renditions](Self::rendition).
    pub(crate) fn cost(&self) -> usize {
        let Frames { bytes, marks } = &self.frames;
        let marks = match marks.spilled() {
            true => marks.capacity() * size_of::<Mark>(),
            false => 0,
        };
        BATCH_COST + marks + bytes.capacity()
    }

    /// The part of [`cost`](Self::cost) that belongs to its messages from `position` on;
    /// what they share belongs to the last one.
    pub(crate) fn cost_from(&self, position: u64) -> usize {
        match position.saturating_sub(self.position) as usize {
            0 => self.cost(),
            skipped if skipped >= self.len() => 0,
            skipped => self.cost() - skipped * size_of::<Mark>() - self.end(skipped),
        }
    }

    /// Where the first `count` frames end.
    fn end(&self, count: usize) -> usize {
        self.frames.marks[count - 1].end
    }
}

/// Encoded messages, one behind the other.
#[derive(Debug)]
pub(crate) struct Rendition {
    /// All of them.
    pub(crate) bytes: Bytes,
    /// For each, the offset behind its last byte.
    pub(crate) ends: Vec<usize>,
}

impl Rendition {
    /// The message at `index`.
    pub(crate) fn message(&self, index: usize) -> Bytes {
        self.bytes.slice(self.start(index)..self.ends[index])
    }

    /// The messages from `index` on.
    pub(crate) fn messages_from(&self, index: usize) -> Bytes {
        self.bytes.slice(self.start(index)..)
    }

    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.ends[before])
    }
}

/// Chunks to be written to one client; mostly one, which needs no allocation.
pub(crate) type Outbox = SmallVec<[Chunk; 1]>;

/// Bytes that are to be written to one client.
#[derive(Debug, Clone)]
pub(crate) enum Chunk {
    /// Bytes of their own.
    Bytes(Bytes),
    /// The frames of a batch, from this offset on. Nearly all chunks are such; one costs a reference
    /// count, and keeps all of the batch in memory, its renditions too.
    Batch(Arc<Batch>, usize),
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        self
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Bytes(bytes) => bytes.advance(count),
            Self::Batch(_, from) => *from += count,
        }
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Batch(batch, from) => &batch.frames.bytes[*from..],
        }
    }
}

impl<T: Into<Bytes>> From<T> for Chunk {
    fn from(bytes: T) -> Self {
        Self::Bytes(bytes.into())
    }
}

/// Encoded messages that wait to be published, in batches.
#[derive(Debug, Default)]
pub(crate) struct BatchBuilder {
    /// Batches of the full size.
    pub(super) full: VecDeque<Frames>,
    pub(super) bytes: Vec<u8>,
    pub(super) marks: Marks,
    /// Size of the last batch in messages and bytes: the capacity that the next one begins with.
    last_size: (usize, usize),
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
            .or_else(|| (!self.marks.is_empty()).then(|| self.cut()))
    }

    /// Allocates what the next batch will probably need, if it is empty.
    pub(super) fn begin(&mut self) {
        if self.marks.is_empty() {
            self.marks = Marks::with_capacity(self.last_size.0);
            self.bytes = Vec::with_capacity(self.last_size.1);
        }
    }

    /// Ends the current batch.
    pub(super) fn cut(&mut self) -> Frames {
        let (mut bytes, mut marks) = (mem::take(&mut self.bytes), mem::take(&mut self.marks));
        self.last_size = (marks.len(), bytes.len());
        // The history may retain it for long.
        if bytes.capacity() / 2 > bytes.len() {
            bytes.shrink_to_fit();
            marks.shrink_to_fit();
        }
        Frames::new(bytes, marks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::testing::plain;

    #[test]
    fn a_batch_gives_the_frames_from_any_of_its_messages_on() {
        let mark = |end, payload| Mark {
            kind: Kind::Binary,
            end,
            payload,
        };
        let frames = Frames::new(
            b"abcdef".to_vec(),
            [mark(1, 1), mark(3, 0), mark(6, 2)].into_iter().collect(),
        );
        let first = MessageId { epoch: 7, seq: 5 };
        let batch = Arc::new(Batch::new(5, first, SystemTime::now(), frames));
        assert_eq!(batch.positions(), 5..8);
        for (position, expected) in [(5, "abcdef"), (6, "bcdef"), (7, "def")] {
            let mut frames = batch.clone().frames_from(position);
            assert_eq!(*frames, *expected.as_bytes());
            frames.advance(2);
            assert_eq!(*frames, expected.as_bytes()[2..]);
        }
        assert_eq!(batch.id(6).to_string(), "7-6");
    }

    #[test]
    fn the_cost_of_a_batch_is_all_of_its_memory() {
        let mark = |end| Mark {
            kind: Kind::Text,
            end,
            payload: 0,
        };
        let batch = |bytes: Vec<u8>, marks: &[Mark]| {
            let first = MessageId { epoch: 7, seq: 5 };
            Batch::new(
                5,
                first,
                SystemTime::now(),
                Frames::new(bytes, Marks::from_slice(marks)),
            )
        };
        let one = batch(vec![0; 2], &[mark(2)]);
        assert_eq!(one.cost(), BATCH_COST + 2);
        let mut spare = Vec::with_capacity(1000);
        spare.extend([0; 4]);
        let two = batch(spare, &[mark(2), mark(4)]);
        assert_eq!(two.cost(), BATCH_COST + 2 * size_of::<Mark>() + 1000);
        let costs: Vec<usize> = (4..8).map(|position| two.cost_from(position)).collect();
        let second = two.cost() - size_of::<Mark>() - 2;
        assert_eq!(costs, [two.cost(), two.cost(), second, 0]);
    }

    #[test]
    fn messages_are_cut_into_batches() {
        let plain = plain("", "");
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
