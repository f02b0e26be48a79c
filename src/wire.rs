//! How events look: the plain format and JSON on a WebSocket, Server-Sent Events, and the control
//! frames that are ours to send.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt::Display;
use std::mem;
use std::sync::Arc;

use bytes::Bytes;
use data_encoding::BASE64;
use serde::Serialize;
use tungstenite::protocol::frame::Frame;

use crate::config::Config;
use crate::message::{Batch, Format, Frames, Kind, Mark, Marks, Piece, Rendition};

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
            encode(Kind::Text, "", config.welcome().as_bytes(), &mut greeting);
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
        let prefix = match kind {
            Kind::Text => &self.prefix,
            Kind::Binary => "",
        };
        encode(kind, prefix, payload, &mut draft.bytes);
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
    marks: Marks,
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
            self.marks = Marks::with_capacity(self.usual.0);
            self.bytes = Vec::with_capacity(self.usual.1);
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
        Frames::new(bytes, marks)
    }
}

/// The subprotocol of the JSON format, as `Sec-WebSocket-Protocol` names it.
pub const JSON_PROTOCOL: &str = "wscast.v1.json";

/// The messages of `batch` from sequence number `from` on.
pub fn render(batch: Arc<Batch>, format: Format, from: u64) -> Piece {
    let encode: fn(&Event<'_>, &mut Vec<u8>) = match format {
        Format::Plain => return batch.frames_from(from),
        Format::Json => encode_json,
        Format::EventStream => encode_sse,
    };
    let rendition = batch.rendition(format, || {
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(batch.len()));
        for event in messages(&batch) {
            encode(&event, &mut bytes);
            ends.push(bytes.len());
        }
        bytes.shrink_to_fit();
        Rendition {
            bytes: bytes.into(),
            ends,
        }
    });
    let bytes = match from.saturating_sub(batch.seqs().start) as usize {
        0 => rendition.bytes.clone(),
        skipped => rendition.bytes.slice(rendition.ends[skipped - 1]..),
    };
    bytes.into()
}

/// An event in a format that is not the plain one.
pub fn render_event(event: &Event<'_>, format: Format) -> Bytes {
    let mut bytes = Vec::new();
    match format {
        Format::Plain => {}
        Format::Json => encode_json(event, &mut bytes),
        Format::EventStream => encode_sse(event, &mut bytes),
    }
    bytes.into()
}

/// What happens in a room, as a client is told that knows ids.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Event<'a> {
    /// The first event.
    Welcome {
        /// The greeting; may be empty.
        text: &'a str,
        /// The name of the room.
        room: &'a str,
        /// `echo` or `broadcast`.
        mode: &'a str,
        /// The newest message of the room when the client joined, if there ever was one.
        last_id: Option<String>,
        /// Whether what follows is, provably, all that came after the id the client asked with.
        resumed: bool,
        /// How many messages after that id are gone; none where nobody knows.
        missed: Option<u64>,
    },
    /// A message, as its sender sent it.
    Message {
        /// Its id.
        id: String,
        /// When it was published (RFC 3339, UTC, milliseconds).
        time: String,
        /// What it says, if it is a text.
        #[serde(skip_serializing_if = "Option::is_none")]
        text: Option<Cow<'a, str>>,
        /// Its bytes in base64, if it is binary.
        #[serde(skip_serializing_if = "Option::is_none")]
        binary: Option<String>,
    },
    /// Messages are missing here.
    Gap {
        /// How many; none where nobody knows.
        missed: Option<u64>,
    },
}

/// The messages of `batch`, in order.
pub fn messages(batch: &Batch) -> impl Iterator<Item = Event<'_>> {
    let time = humantime::format_rfc3339_millis(batch.time()).to_string();
    batch
        .seqs()
        .zip(batch.frames().payloads())
        .map(move |(seq, (kind, payload))| {
            let is_text = kind == Kind::Text;
            Event::Message {
                id: batch.id(seq).to_string(),
                time: time.clone(),
                text: is_text.then(|| String::from_utf8_lossy(payload)),
                binary: (!is_text).then(|| BASE64.encode(payload)),
            }
        })
}

/// Appends `event` as one WebSocket text message.
fn encode_json(event: &Event<'_>, frames: &mut Vec<u8>) {
    encode(Kind::Text, "", json(event).as_bytes(), frames);
}

/// `event` as a JSON object on one line.
pub fn json(event: &Event<'_>) -> String {
    serde_json::to_string(event).expect("an event has string keys, and a String takes every write")
}

/// Appends `event` as Server-Sent Events have it (WHATWG HTML, section 9.2.5); a greeting is a
/// comment.
fn encode_sse(event: &Event<'_>, stream: &mut Vec<u8>) {
    let mut line = |field: &str, value: &str| {
        stream.extend_from_slice(field.as_bytes());
        stream.extend_from_slice(value.as_bytes());
        stream.push(b'\n');
    };
    match event {
        Event::Welcome { text: "", .. } => return,
        Event::Welcome { text, .. } => sse_lines(text).for_each(|text| line(": ", text)),
        Event::Message {
            id, text, binary, ..
        } => {
            line("id: ", id);
            if let Some(text) = text {
                sse_lines(text).for_each(|text| line("data: ", text));
            }
            if let Some(base64) = binary {
                line("event: ", "binary");
                line("data: ", base64);
            }
        }
        Event::Gap { missed } => {
            let missed = missed.map_or("null".into(), |it| it.to_string());
            line("event: ", "gap");
            line("data: ", &format!("{{\"missed\":{missed}}}"));
        }
    }
    stream.push(b'\n');
}

/// The lines of a text, ended as Server-Sent Events know it: LF, CR, or both; the last may be empty.
fn sse_lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.find(['\n', '\r']) else {
            rest = None;
            return Some(text);
        };
        let behind = &text[end..];
        rest = Some(behind.strip_prefix("\r\n").unwrap_or(&behind[1..]));
        Some(&text[..end])
    })
}

/// A ping that carries the name of what was written before it; empty where nothing was.
pub fn ping(written: Option<impl Display>) -> Bytes {
    let payload = written.map(|id| id.to_string()).unwrap_or_default();
    let mut frame = Vec::with_capacity(2 + payload.len());
    Frame::ping(payload)
        .format(&mut frame)
        .expect("a Vec takes every write");
    frame.into()
}

/// Appends one unmasked frame (RFC 6455, section 5.2) whose payload is `prefix`, then `payload`.
///
/// Written here, as every message passes through it: with tungstenite's own writer it costs twice
/// as much.
fn encode(kind: Kind, prefix: &str, payload: &[u8], frames: &mut Vec<u8>) {
    let first = kind.first_byte();
    let length = prefix.len() + payload.len();
    match length {
        0..126 => frames.extend_from_slice(&[first, length as u8]),
        126..0x1_0000 => {
            let [high, low] = (length as u16).to_be_bytes();
            frames.extend_from_slice(&[first, 126, high, low]);
        }
        _ => {
            frames.extend_from_slice(&[first, 127]);
            frames.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frames.extend_from_slice(prefix.as_bytes());
    frames.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use tungstenite::protocol::frame::FrameHeader;
    use tungstenite::protocol::frame::coding::{Data, OpCode};

    use super::*;
    use crate::message::MessageId;

    fn plain(welcome: &str, prefix: &str) -> Plain {
        Plain::new(&Config {
            welcome: Some(welcome.into()),
            prefix: Some(prefix.into()),
            ..Config::default()
        })
    }

    fn batch(plain: &Plain, messages: &[(Kind, &[u8])]) -> Arc<Batch> {
        let mut draft = Draft::default();
        for (kind, payload) in messages {
            plain.encode(*kind, payload, &mut draft);
        }
        let first = MessageId { epoch: 1, seq: 1 };
        Arc::new(Batch::new(first, draft.take().unwrap()))
    }

    #[test]
    fn text_stands_behind_the_prefix_and_binary_alone() {
        let messages = [(Kind::Text, &b"hi"[..]), (Kind::Binary, b"\0\xff")];
        let batch = batch(&plain("", "> "), &messages);
        let all = batch.clone().frames_from(1);
        assert_eq!(*all, b"\x81\x04> hi\x82\x02\0\xff"[..]);
        assert_eq!(*batch.clone().frames_from(2), b"\x82\x02\0\xff"[..]);
        let payloads: Vec<_> = batch.frames().payloads().collect();
        assert_eq!(payloads, messages);
    }

    #[test]
    fn a_message_is_encoded_once_a_format_for_all() {
        let messages = [(Kind::Text, &b"hi"[..]), (Kind::Binary, b"\0")];
        let batch = batch(&plain("", "> "), &messages);
        for format in [Format::Plain, Format::Json, Format::EventStream] {
            let [one, other] = [(), ()].map(|()| render(batch.clone(), format, 1));
            assert_eq!(one.as_ptr(), other.as_ptr());
            let second = render(batch.clone(), format, 2);
            assert_eq!(second.as_ptr_range().end, one.as_ptr_range().end);
        }
        assert!(render(batch.clone(), Format::Plain, 1).starts_with(b"\x81\x04> hi"));
        let second = render(batch.clone(), Format::EventStream, 2);
        assert_eq!(*second, b"id: 1-2\nevent: binary\ndata: AA==\n\n"[..]);
        let second = render(batch, Format::Json, 2);
        let json: serde_json::Value = serde_json::from_slice(&second[2..]).unwrap();
        assert_eq!(
            (&json["id"], &json["binary"]),
            (&"1-2".into(), &"AA==".into())
        );
    }

    #[test]
    fn a_text_is_cut_into_lines_as_a_browser_does() {
        for (text, lines) in [
            ("", &[""][..]),
            ("one", &["one"]),
            ("one\n", &["one", ""]),
            ("\r\n\r\n", &["", "", ""]),
            ("a\rb\nc\r\nd\n\re", &["a", "b", "c", "d", "", "e"]),
        ] {
            assert_eq!(sse_lines(text).collect::<Vec<_>>(), lines, "{text:?}");
        }
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
    fn frames_are_what_tungstenite_takes_them_for() {
        for (length, header_length) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let payload = vec![b'x'; length];
            for (kind, opcode) in [(Kind::Text, Data::Text), (Kind::Binary, Data::Binary)] {
                let batch = batch(&plain("", ""), &[(kind, &payload)]);
                let frame = batch.clone().frames_from(1);
                let mut frame = Cursor::new(&*frame);
                let (header, told) = FrameHeader::parse(&mut frame).unwrap().unwrap();
                assert_eq!((told, frame.position()), (length as u64, header_length));
                assert_eq!(header.opcode, OpCode::Data(opcode));
                assert!(header.is_final && header.mask.is_none());
                assert_eq!(batch.frame_bytes() as u64, header_length + told);
            }
        }
    }
}
