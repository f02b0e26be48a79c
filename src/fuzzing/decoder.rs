//! What a client sends means the same to the decoder, however it is cut, as to tungstenite alone.

use std::io::{self, Cursor, Read, Write};
use std::mem;

use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocket, WebSocketConfig};

use crate::disconnect::Disconnect;
use crate::message::Kind;
use crate::protocol::decoder::{Decoder, Received};
use crate::protocol::frame::{CONTROL_MAX, Header};
use crate::protocol::slow_path::reason;

/// The lengths of messages that are allowed, for the first byte of an input to choose from.
const LIMITS: [usize; 4] = [10, 50, 300, 66_000];

/// The longest stream, in bytes: with more, pings could be left unanswered.
const STREAM_MAX: usize = 4096;

/// Compares a stream that the input describes: the first byte chooses the limit and the number of cuts,
/// the bytes behind it are the distances between these, and the rest is the stream.
pub fn decoder(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else {
        return;
    };
    let max_message = LIMITS[usize::from(first & 3)];
    let count = usize::from(first >> 2).min(rest.len());
    let (distances, stream) = rest.split_at(count);
    let stream = &stream[..stream.len().min(STREAM_MAX)];
    let cuts: Vec<usize> = distances
        .iter()
        .scan(0, |at, distance| {
            *at = stream.len().min(*at + usize::from(*distance));
            Some(*at)
        })
        .collect();
    check_stream(stream, &cuts, max_message);
}

/// Checks that `stream`, cut at these places, gives the same messages, pongs and answers, and ends for
/// the same reason, as it does without the fast path.
pub(crate) fn check_stream(stream: &[u8], cuts: &[usize], max_message: usize) {
    let outcome = through_the_decoder(stream, cuts, max_message);
    let mut alone = through_tungstenite(stream.to_vec(), max_message);
    // A violation is found before its whole frame is received.
    if alone.end == "Gone" && ["TooBig", "NotUtf8", "Protocol"].contains(&&*outcome.end) {
        alone = through_tungstenite(completed(stream), max_message);
    }
    assert_eq!(outcome.received, alone.received);
    // Tungstenite does not know this code, which the registry has.
    if outcome.end == "ByClient(Some(1014))" {
        assert_eq!(alone.end, "Protocol");
        return;
    }
    assert_eq!(outcome.end, alone.end);
    // The close frame of an error is the session's to send.
    match &*outcome.end {
        "Protocol" => assert!(alone.answers.starts_with(&outcome.answers)),
        _ => assert_eq!(outcome.answers, alone.answers),
    }
}

/// What a stream means.
struct Outcome {
    received: Vec<Item>,
    end: String,
    answers: Vec<u8>,
}

/// As [`Received`], owned.
#[derive(Debug, PartialEq, Eq)]
enum Item {
    Message(Kind, Vec<u8>),
    Pong(Vec<u8>),
}

fn through_the_decoder(stream: &[u8], cuts: &[usize], max_message: usize) -> Outcome {
    let mut decoder = Decoder::new(max_message);
    let (mut received, mut answers) = (Vec::new(), Vec::new());
    let mut at = 0;
    for cut in cuts.iter().chain([&stream.len()]) {
        let mut bytes = [decoder.kept(), &stream[at..*cut]].concat();
        at = *cut;
        decoder.decode(&mut bytes, &mut |it| {
            received.push(match it {
                Received::Message(kind, payload) => Item::Message(kind, payload.to_vec()),
                Received::Pong(payload) => Item::Pong(payload.to_vec()),
            });
        });
        answers.extend(decoder.answers().map(mem::take).unwrap_or_default());
        let held = decoder.unfinished().map_or(0, |(held, _)| held);
        // Of a frame whose payload has not begun, or of a control frame, it holds the header, too.
        let header_max = 14;
        assert!(held <= max_message + header_max + CONTROL_MAX as usize);
    }
    decoder.end(Disconnect::Gone);
    let end = decoder.take_end().expect("it has ended");
    decoder.close(None);
    answers.extend(decoder.answers().map(mem::take).unwrap_or_default());
    Outcome {
        received,
        end: format!("{end:?}"),
        answers,
    }
}

fn through_tungstenite(stream: Vec<u8>, max_message: usize) -> Outcome {
    let limits = WebSocketConfig::default()
        .max_message_size(Some(max_message))
        .max_frame_size(Some(max_message.max(CONTROL_MAX as usize)));
    let stream = Whole(Cursor::new(stream), Vec::new());
    let mut websocket = WebSocket::from_raw_socket(stream, Role::Server, Some(limits));
    let mut received = Vec::new();
    let end = loop {
        match websocket.read() {
            Ok(Message::Text(text)) => {
                received.push(Item::Message(Kind::Text, text.as_bytes().to_vec()));
            }
            Ok(Message::Binary(bytes)) => {
                received.push(Item::Message(Kind::Binary, bytes.to_vec()));
            }
            Ok(Message::Pong(payload)) => received.push(Item::Pong(payload.to_vec())),
            Ok(Message::Close(Some(frame))) if frame.reason == "Protocol violation" => {
                break Disconnect::Protocol;
            }
            Ok(Message::Close(frame)) => {
                break Disconnect::ByClient(frame.map(|it| it.code.into()));
            }
            Ok(_) => {}
            Err(error) => break reason(error),
        }
    };
    websocket.flush().ok();
    Outcome {
        received,
        end: format!("{end:?}"),
        answers: mem::take(&mut websocket.get_mut().1),
    }
}

/// `stream` with what is missing of its last frame.
fn completed(stream: &[u8]) -> Vec<u8> {
    let mut at = 0_usize;
    while let Some(header) = stream.get(at..).and_then(Header::parse) {
        let length = header.length.saturating_add(header.payload);
        at = at.saturating_add(length as usize);
    }
    let mut stream = stream.to_vec();
    // A frame that claims more than this is too big for either.
    let missing = at.saturating_sub(stream.len()).min(1 << 20);
    stream.resize(stream.len() + missing, 0);
    stream
}

/// A stream of bytes for tungstenite alone, and what is written to it.
struct Whole(Cursor<Vec<u8>>, Vec<u8>);

impl Read for Whole {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Whole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
