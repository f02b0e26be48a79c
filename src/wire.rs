//! How events look on a WebSocket: the plain format, and the control frames that are ours to send.

use std::collections::VecDeque;
use std::fmt::Display;
use std::mem;

use bytes::Bytes;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::frame::{Frame, FrameHeader};

use crate::config::Config;
use crate::message::{Frames, Kind, Mark};

/// The plain format: a greeting, then each text behind a prefix and each binary message as it is.
#[derive(Debug)]
pub struct Plain {
    greeting: Option<Bytes>,
    prefix: String,
}

impl Plain {
    /// The format with the texts of `config`.
    pub fn new(config: &Config) -> Self {
        let mut greeting = Vec::new();
        if !config.welcome().is_empty() {
            encode(Data::Text, "", config.welcome().as_bytes(), &mut greeting);
        }
        Self {
            greeting: Some(greeting.into()).filter(|frame: &Bytes| !frame.is_empty()),
            prefix: config.prefix().to_owned(),
        }
    }

    /// The frame that greets a client, if there is to be one.
    pub fn greeting(&self) -> Option<Bytes> {
        self.greeting.clone()
    }

    /// Encodes a message as one unfragmented frame, behind what `draft` holds; this is the one copy
    /// that its payload ever gets.
    pub fn encode(&self, kind: Kind, payload: &[u8], draft: &mut Draft) {
        draft.begin();
        match kind {
            Kind::Text => encode(Data::Text, &self.prefix, payload, &mut draft.bytes),
            Kind::Binary => encode(Data::Binary, "", payload, &mut draft.bytes),
        }
        draft.marks.push(Mark {
            kind,
            end: draft.bytes.len(),
            payload: payload.len(),
        });
        if draft.marks.len() == MAX_BATCH || draft.bytes.len() >= MAX_BATCH_BYTES {
            let batch = draft.cut();
            draft.full.push_back(batch);
        }
    }
}

/// Messages that are encoded already and wait to be published, in batches.
#[derive(Debug, Default)]
pub struct Draft {
    /// Batches of the full size.
    full: VecDeque<Frames>,
    bytes: Vec<u8>,
    marks: Vec<Mark>,
    /// Size of the last batch in messages and bytes: what the next one probably needs, at once.
    usual: (usize, usize),
}

/// Messages of a batch, and bytes that end it: enough to share its cost, and few enough that one of
/// its messages, remembered alone, does not keep much else in memory.
const MAX_BATCH: usize = 256;
const MAX_BATCH_BYTES: usize = 16 * 1024;

impl Draft {
    /// Takes out the oldest batch.
    pub fn take(&mut self) -> Option<Frames> {
        self.full
            .pop_front()
            .or_else(|| (!self.marks.is_empty()).then(|| self.cut()))
    }

    /// Sets aside for a batch that begins what it will probably need.
    fn begin(&mut self) {
        if self.marks.is_empty() {
            self.marks.reserve_exact(self.usual.0);
            self.bytes.reserve_exact(self.usual.1);
        }
    }

    /// Ends the current batch.
    fn cut(&mut self) -> Frames {
        let (mut bytes, mut marks) = (mem::take(&mut self.bytes), mem::take(&mut self.marks));
        self.usual = (marks.len(), bytes.len());
        // It may be remembered for long.
        if bytes.capacity() / 2 > bytes.len() {
            bytes.shrink_to_fit();
            marks.shrink_to_fit();
        }
        Frames::new(bytes.into(), marks)
    }
}

/// A ping that carries the name of what was written before it; empty where nothing was.
pub fn ping(written: Option<impl Display>) -> Bytes {
    let payload = written.map(|id| id.to_string()).unwrap_or_default();
    let mut frame = Vec::with_capacity(FRAME_HEADER_MAX + payload.len());
    Frame::ping(payload)
        .format(&mut frame)
        .expect("a Vec takes every write");
    frame.into()
}

/// The header of an unmasked frame has at most so many bytes (RFC 6455, section 5.2).
const FRAME_HEADER_MAX: usize = 10;

/// Appends one unmasked data frame whose payload is `prefix`, then `payload`.
fn encode(opcode: Data, prefix: &str, payload: &[u8], frames: &mut Vec<u8>) {
    let header = FrameHeader {
        opcode: OpCode::Data(opcode),
        ..FrameHeader::default()
    };
    let length = (prefix.len() + payload.len()) as u64;
    header
        .format(length, frames)
        .expect("a Vec takes every write");
    frames.extend_from_slice(prefix.as_bytes());
    frames.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Batch, MessageId};

    fn plain(welcome: &str, prefix: &str) -> Plain {
        Plain::new(&Config {
            welcome: Some(welcome.into()),
            prefix: Some(prefix.into()),
            ..Config::default()
        })
    }

    fn batch(plain: &Plain, messages: &[(Kind, &[u8])]) -> Batch {
        let mut draft = Draft::default();
        for (kind, payload) in messages {
            plain.encode(*kind, payload, &mut draft);
        }
        Batch::new(MessageId { epoch: 1, seq: 1 }, draft.take().unwrap())
    }

    #[test]
    fn text_stands_behind_the_prefix_and_binary_alone() {
        let messages = [(Kind::Text, &b"hi"[..]), (Kind::Binary, b"\0\xff")];
        let batch = batch(&plain("", "> "), &messages);
        assert_eq!(batch.frames_from(1), b"\x81\x04> hi\x82\x02\0\xff"[..]);
        assert_eq!(batch.frames_from(2), b"\x82\x02\0\xff"[..]);
        assert_eq!((batch.payload_bytes(1), batch.payload_bytes(2)), (2, 2));
    }

    #[test]
    fn a_draft_is_cut_into_batches() {
        let mut draft = Draft::default();
        for number in 0..=MAX_BATCH {
            plain("", "").encode(Kind::Text, number.to_string().as_bytes(), &mut draft);
        }
        let sizes: Vec<usize> = std::iter::from_fn(|| draft.take())
            .map(|frames| frames.payloads().len())
            .collect();
        assert_eq!(sizes, [MAX_BATCH, 1]);
    }

    #[test]
    fn an_empty_welcome_sends_no_greeting() {
        assert_eq!(plain("", "").greeting(), None);
        assert_eq!(plain("hello", "").greeting().unwrap(), b"\x81\x05hello"[..]);
    }

    #[test]
    fn a_ping_carries_the_last_id() {
        assert_eq!(
            ping(Some(MessageId { epoch: 17, seq: 4 })),
            b"\x89\x0417-4"[..]
        );
        assert_eq!(ping(None::<MessageId>), b"\x89\0"[..]);
    }

    #[test]
    fn long_payloads_have_the_longer_headers() {
        for (length, header) in [(125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let payload = vec![0; length];
            let batch = batch(&plain("", ""), &[(Kind::Binary, &payload)]);
            assert_eq!(batch.frame_bytes(), header + length);
        }
    }
}
