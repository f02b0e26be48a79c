//! From a client's bytes to messages and answers: the door, and tungstenite behind it. No IO.

use std::io::{self, Read, Write};
use std::mem;

use bytes::Bytes;
use tungstenite::error::{Error, ProtocolError};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Message, Role, WebSocket, WebSocketConfig};

use crate::disconnect::Disconnect;
use crate::door::{Door, Front};
use crate::message::Kind;

/// tungstenite's own read buffer, for the few frames that it decodes.
const READ_BUFFER: usize = 4096;

/// What may wait of tungstenite's answers, which are pongs and a close frame.
const ANSWERS_MAX: usize = 4 * 1024;

/// The longest payload of a control frame, whatever a message may have (RFC 6455, section 5.5).
const CONTROL_MAX: usize = 125;

/// Decodes what one client sends.
///
/// Whole data frames become messages where they stand; all else is tungstenite's, which also
/// answers pings and close frames, and tells what is wrong.
#[derive(Debug)]
pub struct Decoder {
    door: Door,
    /// There only while there is something in it: most clients need none of it most of the time.
    pending: Option<Box<Pending>>,
}

/// What is not done with.
#[derive(Debug, Default)]
struct Pending {
    /// There while it has something to do: its buffers keep the size of the largest frame they saw.
    tungstenite: Option<Box<WebSocket<Memory>>>,
    /// The beginning of a frame that is not complete.
    kept: Bytes,
    answers: Vec<u8>,
    /// What the last pong carried that carried anything.
    pong: Option<Bytes>,
    /// Why nothing more is decoded.
    ended: Option<Disconnect>,
}

impl Decoder {
    /// Decodes messages of at most `max_message` bytes.
    pub fn new(max_message: usize) -> Self {
        Self {
            door: Door::new(max_message),
            pending: None,
        }
    }

    /// Whether all that it was given is done with: nothing is kept, and nothing waits to be taken.
    pub fn is_idle(&self) -> bool {
        self.pending.is_none()
    }

    /// What must stand before the bytes that come next.
    pub fn kept(&self) -> &[u8] {
        self.pending.as_ref().map_or(&[], |it| &it.kept)
    }

    /// Gives `sink` the messages in `bytes`, in order.
    pub fn decode(&mut self, bytes: &mut [u8], sink: &mut impl FnMut(Kind, &[u8])) {
        if let Some(pending) = &mut self.pending {
            pending.kept = Bytes::new();
        }
        let (mut foreign, mut at) = (0, 0);
        while !self.has_ended() {
            let front = self.door.front(&mut bytes[at..]);
            if let Front::Foreign(length) = front {
                at += length;
                continue;
            }
            if foreign < at {
                self.ask_tungstenite(&bytes[foreign..at], sink);
                // Which may have ended it.
                if self.has_ended() {
                    break;
                }
            }
            match front {
                Front::Message(kind, payload, length) => {
                    sink(kind, &bytes[at..][payload]);
                    at += length;
                    foreign = at;
                }
                Front::Foreign(_) | Front::Partial => {
                    if at < bytes.len() {
                        self.pending().kept = Bytes::copy_from_slice(&bytes[at..]);
                    }
                    break;
                }
            }
        }
        self.tidy();
    }

    /// Whether a pong came that was not taken yet.
    pub fn has_pong(&self) -> bool {
        self.pending.as_ref().is_some_and(|it| it.pong.is_some())
    }

    /// The payload of the last pong, once.
    pub fn take_pong(&mut self) -> Option<Bytes> {
        let pong = self.pending.as_mut()?.pong.take();
        self.tidy();
        pong
    }

    /// Why nothing more is decoded, once.
    pub fn take_end(&mut self) -> Option<Disconnect> {
        self.pending.as_mut()?.ended.take()
    }

    /// The connection broke, unless the client has ended it in order before.
    pub fn end(&mut self, error: io::Error) {
        let ended = &mut self.pending().ended;
        ended.get_or_insert(Disconnect::Transport(error));
    }

    /// Whether there is a reason why nothing more is decoded.
    pub fn has_ended(&self) -> bool {
        self.pending.as_ref().is_some_and(|it| it.ended.is_some())
    }

    /// Answers that are to be written before anything else, if there are any; whoever writes them
    /// takes them out.
    pub fn answers(&mut self) -> Option<&mut Vec<u8>> {
        let tungstenite = self.pending.as_mut()?.tungstenite.as_mut();
        if tungstenite.is_some_and(|it| mem::take(&mut it.get_mut().full)) {
            self.consult(|tungstenite| {
                // First what it holds, then the answer that found no space in there either. If there
                // is no space yet, it says so again.
                tungstenite.flush().ok();
                tungstenite.flush().ok();
            });
        }
        self.tidy();
        let answers = &mut self.pending.as_mut()?.answers;
        (!answers.is_empty()).then_some(answers)
    }

    /// Adds a close frame to the answers: `frame`, or the answer to the client's own.
    pub fn close(&mut self, frame: Option<CloseFrame>) {
        self.consult(|tungstenite| {
            // A second close frame is refused, which is as it should be.
            frame.map(|frame| tungstenite.close(Some(frame)).ok());
            tungstenite.flush().ok();
        });
    }

    /// Has tungstenite decode `bytes`, and gives `sink` the messages that this completes.
    fn ask_tungstenite(&mut self, bytes: &[u8], sink: &mut impl FnMut(Kind, &[u8])) {
        let input = Bytes::copy_from_slice(bytes);
        let mut pong = None;
        let ended = self.consult(|tungstenite| {
            tungstenite.get_mut().input = input;
            loop {
                match tungstenite.read() {
                    Ok(Message::Text(text)) => sink(Kind::Text, text.as_bytes()),
                    Ok(Message::Binary(bytes)) => sink(Kind::Binary, &bytes),
                    Ok(Message::Close(frame)) => return Some(closed(frame)),
                    // An empty one says nothing, and is no receipt for what another one named.
                    Ok(Message::Pong(payload)) if payload.is_empty() => {}
                    Ok(Message::Pong(payload)) => pong = Some(payload),
                    Ok(_) => {}
                    Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                        return None;
                    }
                    Err(error) => return Some(reason(error)),
                }
            }
        });
        let pending = self.pending();
        pending.ended = ended;
        pending.pong = pong.or(pending.pong.take());
    }

    /// Asks tungstenite something, whose answers then are ours to write.
    fn consult<T>(&mut self, ask: impl FnOnce(&mut WebSocket<Memory>) -> T) -> T {
        let max_message = self.door.max_message();
        let pending = self.pending();
        let tungstenite = pending.tungstenite.get_or_insert_with(|| {
            let limits = WebSocketConfig::default()
                .read_buffer_size(READ_BUFFER)
                .write_buffer_size(0)
                .max_write_buffer_size(ANSWERS_MAX)
                .max_message_size(Some(max_message))
                .max_frame_size(Some(max_message.max(CONTROL_MAX)));
            Box::new(WebSocket::from_raw_socket(
                Memory::default(),
                Role::Server,
                Some(limits),
            ))
        });
        tungstenite.get_mut().answers = mem::take(&mut pending.answers);
        let told = ask(tungstenite);
        pending.answers = mem::take(&mut tungstenite.get_mut().answers);
        told
    }

    fn pending(&mut self) -> &mut Pending {
        self.pending.get_or_insert_default()
    }

    /// Lets go of what is done with.
    fn tidy(&mut self) {
        let Some(pending) = &mut self.pending else {
            return;
        };
        let idle = |it: &WebSocket<Memory>| it.can_write() && !it.get_ref().full;
        if self.door.is_between_messages()
            && pending.ended.is_none()
            && pending.tungstenite.as_deref().is_none_or(idle)
        {
            pending.tungstenite = None;
            if pending.kept.is_empty() && pending.answers.is_empty() && pending.pong.is_none() {
                self.pending = None;
            }
        }
    }
}

/// What a close frame of the client's says; tungstenite puts one of its own in the place of a frame
/// whose code may not be sent.
fn closed(frame: Option<CloseFrame>) -> Disconnect {
    match frame {
        Some(CloseFrame {
            code: CloseCode::Protocol,
            reason,
        }) if reason == "Protocol violation" => Disconnect::Protocol,
        frame => Disconnect::ByClient(frame.map(|it| it.code)),
    }
}

/// What an error of tungstenite's says about the client.
fn reason(error: Error) -> Disconnect {
    match error {
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
            Disconnect::Transport(io::ErrorKind::UnexpectedEof.into())
        }
        Error::Protocol(_) => Disconnect::Protocol,
        Error::Utf8(_) => Disconnect::NotUtf8,
        Error::Capacity(_) => Disconnect::TooBig,
        Error::ConnectionClosed | Error::AlreadyClosed => Disconnect::ByClient(None),
        Error::Io(error) => Disconnect::Transport(error),
        other => Disconnect::Transport(io::Error::other(other)),
    }
}

/// What stands in the place of a stream behind tungstenite.
#[derive(Debug, Default)]
struct Memory {
    input: Bytes,
    answers: Vec<u8>,
    /// Whether there was no space for an answer.
    full: bool,
}

impl Read for Memory {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let now = self.input.split_to(self.input.len().min(buffer.len()));
        buffer[..now.len()].copy_from_slice(&now);
        Ok(now.len())
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.answers.len() + bytes.len() > ANSWERS_MAX {
            self.full = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.answers.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    /// The messages, how it ended, and what was answered.
    type Outcome = (Vec<(Kind, Vec<u8>)>, String, Vec<u8>);

    fn through_the_door<'a>(pieces: impl Iterator<Item = &'a [u8]>, max: usize) -> Outcome {
        let mut decoder = Decoder::new(max);
        let mut messages = Vec::new();
        for piece in pieces {
            let mut bytes = [decoder.kept(), piece].concat();
            decoder.decode(&mut bytes, &mut |kind, payload| {
                messages.push((kind, payload.to_vec()))
            });
        }
        decoder.end(io::ErrorKind::UnexpectedEof.into());
        let end = decoder.take_end().unwrap();
        decoder.close(None);
        let answers = decoder.answers().map(mem::take).unwrap_or_default();
        (messages, format!("{end:?}"), answers)
    }

    /// A stream of bytes for tungstenite alone.
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

    fn through_tungstenite(bytes: Vec<u8>, max: usize) -> Outcome {
        let limits = WebSocketConfig::default()
            .max_message_size(Some(max))
            .max_frame_size(Some(max.max(CONTROL_MAX)));
        let stream = Whole(Cursor::new(bytes), Vec::new());
        let mut websocket = WebSocket::from_raw_socket(stream, Role::Server, Some(limits));
        let mut messages = Vec::new();
        let end = loop {
            match websocket.read() {
                Ok(Message::Text(text)) => messages.push((Kind::Text, text.as_bytes().to_vec())),
                Ok(Message::Binary(bytes)) => messages.push((Kind::Binary, bytes.to_vec())),
                Ok(Message::Close(frame)) => break closed(frame),
                Ok(_) => {}
                Err(error) => break reason(error),
            }
        };
        websocket.flush().ok();
        (
            messages,
            format!("{end:?}"),
            mem::take(&mut websocket.get_mut().1),
        )
    }

    /// One frame: mostly right, sometimes wrong in one of the ways there are.
    fn frame() -> impl Strategy<Value = Vec<u8>> {
        let first = prop_oneof![
            8 => prop_oneof![Just(0x81_u8), Just(0x82)],
            2 => prop_oneof![Just(0x01_u8), Just(0x02), Just(0x00), Just(0x80)],
            2 => prop_oneof![Just(0x89_u8), Just(0x8a)],
            1 => prop_oneof![Just(0x88_u8), Just(0xc1), Just(0x83), Just(0x09), any::<u8>()],
        ];
        let payload = prop_oneof![
            6 => "[a-z\u{20ac}\u{1f600}]{0,20}".prop_map(String::into_bytes),
            2 => prop::collection::vec(any::<u8>(), 0..40),
            1 => (100_usize..400).prop_map(|length| vec![b'x'; length]),
            1 => (65_000_usize..70_000).prop_map(|length| vec![b'y'; length]),
        ];
        let masked = prop::bool::weighted(0.97);
        // Lengths may be written longer than they need to be.
        let width = prop_oneof![8 => Just(0_usize), 1 => Just(2), 1 => Just(8)];
        (first, payload, masked, any::<[u8; 4]>(), width).prop_map(
            |(first, payload, masked, mask, width)| {
                let needed = match payload.len() {
                    0..126 => 0,
                    126..0x1_0000 => 2,
                    _ => 8,
                };
                let flag = if masked { 0x80 } else { 0 };
                let mut frame = vec![first];
                match needed.max(width) {
                    0 => frame.push(flag | payload.len() as u8),
                    2 => {
                        frame.push(flag | 126);
                        frame.extend((payload.len() as u16).to_be_bytes());
                    }
                    _ => {
                        frame.push(flag | 127);
                        frame.extend((payload.len() as u64).to_be_bytes());
                    }
                }
                if masked {
                    frame.extend(mask);
                    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
                } else {
                    frame.extend(payload);
                }
                frame
            },
        )
    }

    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first, 0xff];
        frame.extend((payload.len() as u64).to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn a_close_code_that_may_not_be_sent_is_a_protocol_error() {
        let (_, end, answer) =
            through_the_door([&[0x88, 0x82, 0, 0, 0, 0, 3, 237][..]].into_iter(), 10);
        assert_eq!(
            (end.as_str(), &answer[2..4]),
            ("Protocol", &1002_u16.to_be_bytes()[..])
        );
    }

    #[test]
    fn control_frames_may_be_longer_than_the_longest_message() {
        let ping = masked(0x89, b"as long as the id of a message");
        let (_, end, answer) = through_the_door([&ping[..]].into_iter(), 10);
        assert_eq!((&answer[2..], end.contains("Eof")), (&ping[14..], true));
    }

    #[test]
    fn answers_that_nobody_takes_do_not_pile_up_and_the_last_one_is_kept() {
        let mut decoder = Decoder::new(1000);
        for number in 0..100_000_u32 {
            let ping = masked(0x89, &number.to_be_bytes().repeat(20));
            decoder.decode(&mut ping.clone(), &mut |_, _| {});
        }
        assert!(decoder.pending().answers.len() <= ANSWERS_MAX);
        // Those that waited inside come out as space is made, and the last is the newest.
        let mut all = Vec::new();
        while let Some(answers) = decoder.answers() {
            all.append(answers);
        }
        assert!(all.len() <= 3 * ANSWERS_MAX);
        assert!(all.ends_with(&99_999_u32.to_be_bytes().repeat(20)));
    }

    #[test]
    fn after_a_large_message_no_more_is_held_than_before() {
        let mut decoder = Decoder::new(1 << 20);
        let (mut sizes, large) = (Vec::new(), masked(0x82, &vec![7; 1 << 20]));
        for piece in large.chunks(200 * 1024) {
            let mut bytes = [decoder.kept(), piece].concat();
            decoder.decode(&mut bytes, &mut |_, payload| sizes.push(payload.len()));
        }
        assert_eq!(sizes, [1 << 20]);
        assert!(decoder.pending.is_none());
        decoder.decode(&mut masked(0x89, b"hi"), &mut |_, _| {});
        assert_eq!(decoder.answers().unwrap(), b"\x8a\x02hi");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        /// The same bytes, however they are cut, give the same messages, the same end and the same
        /// answers with the door as without.
        #[test]
        fn the_door_changes_nothing(
            frames in prop::collection::vec(frame(), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
            lost in prop_oneof![3 => Just(0_usize), 1 => 0_usize..30],
            max in prop_oneof![Just(50_usize), Just(300), Just(66_000), Just(1 << 20)],
        ) {
            let mut bytes = frames.concat();
            bytes.truncate(bytes.len().saturating_sub(lost));
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]);
            let with = through_the_door(pieces, max);
            prop_assert_eq!(with, through_tungstenite(bytes, max));
        }
    }
}
