//! From a client's bytes to messages and answers: the fast path, and the slow path behind it. No IO.

use std::mem;

use bytes::Bytes;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;

use super::answers::Answers;
use super::fast_path::{FastPath, Next};
use super::frame::Control;
use super::slow_path::SlowPath;
use crate::disconnect::Disconnect;
use crate::message::Kind;

/// What the decoder passes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received<'a> {
    /// A message of this kind and payload.
    Message(Kind, &'a [u8]),
    /// The payload of a pong.
    Pong(&'a [u8]),
}

/// Decodes what one client sends.
///
/// The fast path decodes whole data frames in place, and control frames are answered. Fragments and
/// violations go to the slow path.
#[derive(Debug)]
pub(crate) struct Decoder {
    fast_path: FastPath,
    /// Allocated only while it holds something: most clients rarely need it.
    pending: Option<Box<Pending>>,
}

/// Incomplete input, answers that wait, and the end.
#[derive(Debug, Default)]
struct Pending {
    /// Exists only while a message is incomplete: its buffers never shrink.
    slow_path: Option<Box<SlowPath>>,
    /// The beginning of an incomplete frame.
    kept: Vec<u8>,
    /// Bytes that this frame still needs, at least.
    kept_missing: u64,
    answers: Answers,
    /// The answer to the client's close frame.
    echo: Option<Frame>,
    /// Why nothing more is decoded.
    ended: Option<Disconnect>,
}

impl Decoder {
    /// Decodes messages of at most `max_message` bytes.
    pub(crate) fn new(max_message: usize) -> Self {
        Self {
            fast_path: FastPath::new(max_message),
            pending: None,
        }
    }

    /// Whether nothing is incomplete, and nothing waits to be taken.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_none()
    }

    /// The beginning of an incomplete frame, to be put before the bytes that come next.
    pub(crate) fn kept(&self) -> &[u8] {
        self.pending.as_ref().map_or(&[], |it| &it.kept)
    }

    /// Of an incomplete message, the bytes that are held, and those that it still needs (a bound, where
    /// the number is not known). `None` between messages.
    pub(crate) fn unfinished(&self) -> Option<(usize, u64)> {
        let pending = self.pending.as_deref()?;
        let held = self.fast_path.held() + pending.kept.len();
        if pending.ended.is_some() || (held == 0 && self.fast_path.is_between_messages()) {
            return None;
        }
        let missing = match self.fast_path.is_between_messages() {
            true => pending.kept_missing,
            false => self.fast_path.missing(),
        };
        Some((held, missing))
    }

    /// Passes the messages and pongs in `bytes` to `sink`, in order.
    pub(crate) fn decode(&mut self, bytes: &mut [u8], sink: &mut impl FnMut(Received<'_>)) {
        if let Some(pending) = &mut self.pending {
            pending.kept = Vec::new();
        }
        let mut slow = Vec::new();
        let mut at = 0;
        while !self.has_ended() {
            let next = self.fast_path.next(&mut bytes[at..]);
            match next {
                Next::Other(length) => {
                    slow.extend_from_slice(&bytes[at..at + length]);
                    at += length;
                    continue;
                }
                Next::Part(header, payload) => {
                    header.write(&mut slow);
                    slow.extend_from_slice(&bytes[at..][payload.clone()]);
                    at += payload.end;
                    continue;
                }
                // The slow path comes first, as it is earlier in order; it may end the decoding.
                _ if !slow.is_empty() => {
                    self.decode_slowly(mem::take(&mut slow), sink);
                    if self.has_ended() {
                        break;
                    }
                }
                _ => {}
            }
            match next {
                Next::Message(kind, payload, length) => {
                    sink(Received::Message(kind, &bytes[at..][payload]));
                    at += length;
                }
                Next::Control(control, payload, length) => {
                    self.handle_control(control, &bytes[at..][payload], sink);
                    at += length;
                }
                Next::TooLong => self.pending().ended = Some(Disconnect::TooBig),
                Next::Wrong => self.pending().ended = Some(Disconnect::Protocol),
                Next::Incomplete(missing) => {
                    if at < bytes.len() {
                        let pending = self.pending();
                        pending.kept = bytes[at..].to_vec();
                        pending.kept_missing = missing;
                    }
                    break;
                }
                Next::Other(_) | Next::Part(..) => {}
            }
        }
        self.release();
    }

    /// Why nothing more is decoded, once.
    pub(crate) fn take_end(&mut self) -> Option<Disconnect> {
        self.pending.as_mut()?.ended.take()
    }

    /// Ends the decoding because of `why`, unless it has ended before.
    pub(crate) fn end(&mut self, why: Disconnect) {
        self.pending().ended.get_or_insert(why);
    }

    /// Whether it has ended: nothing more is decoded.
    pub(crate) fn has_ended(&self) -> bool {
        self.pending.as_ref().is_some_and(|it| it.ended.is_some())
    }

    /// Answers to be written before anything else, if there are any; the writer removes them.
    pub(crate) fn answers(&mut self) -> Option<&mut Vec<u8>> {
        self.release();
        let answers = self.pending.as_mut()?.answers.next();
        (!answers.is_empty()).then_some(answers)
    }

    /// Adds a close frame as the last answer: `frame`, or else the answer to the client's own.
    pub(crate) fn close(&mut self, frame: Option<CloseFrame>) {
        let pending = self.pending();
        let echo = pending.echo.take();
        let frame = frame.map(|frame| Frame::close(Some(frame))).or(echo);
        if let Some(frame) = frame {
            pending.answers.close(frame);
        }
    }

    /// Drops the incomplete message; nothing can be decoded after that.
    pub(crate) fn abandon(&mut self) {
        let pending = self.pending();
        pending.slow_path = None;
        pending.kept = Vec::new();
    }

    /// Handles a control frame (RFC 6455, section 5.5).
    fn handle_control(
        &mut self,
        control: Control,
        payload: &[u8],
        sink: &mut impl FnMut(Received<'_>),
    ) {
        match control {
            Control::Ping => {
                let pong = Frame::pong(Bytes::copy_from_slice(payload));
                self.pending().answers.pong(pong);
            }
            Control::Pong => sink(Received::Pong(payload)),
            Control::Close => {
                let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                let echo = code.map(|code| CloseFrame {
                    code: code.into(),
                    reason: String::from_utf8_lossy(&payload[2..]).into_owned().into(),
                });
                let pending = self.pending();
                // It follows the answers to the messages before it.
                pending.echo = Some(Frame::close(echo));
                pending.ended = Some(Disconnect::ByClient(code));
            }
        }
    }

    /// Decodes `bytes` by the slow path.
    fn decode_slowly(&mut self, bytes: Vec<u8>, sink: &mut impl FnMut(Received<'_>)) {
        let max_message = self.fast_path.max_message();
        let pending = self.pending();
        let slow_path = pending
            .slow_path
            .get_or_insert_with(|| Box::new(SlowPath::new(max_message)));
        pending.ended = slow_path.decode(bytes, sink);
    }

    fn pending(&mut self) -> &mut Pending {
        self.pending.get_or_insert_default()
    }

    /// Frees what is no longer needed.
    fn release(&mut self) {
        let Some(pending) = &mut self.pending else {
            return;
        };
        if self.fast_path.is_between_messages() && pending.ended.is_none() {
            pending.slow_path = None;
            if pending.kept.is_empty() && pending.answers.are_empty() && pending.echo.is_none() {
                self.pending = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::answers::ANSWERS_MAX;
    use super::*;
    use crate::fuzzing::check_stream;

    /// The messages, the end, and the answers.
    type Outcome = (Vec<(Kind, Vec<u8>)>, String, Vec<u8>);

    /// Adds each received message to `messages`.
    fn collect(messages: &mut Vec<(Kind, Vec<u8>)>) -> impl FnMut(Received<'_>) {
        |received| match received {
            Received::Message(kind, payload) => messages.push((kind, payload.to_vec())),
            Received::Pong(_) => {}
        }
    }

    fn through_the_decoder<'a>(chunks: impl Iterator<Item = &'a [u8]>, max: usize) -> Outcome {
        let mut decoder = Decoder::new(max);
        let mut messages = Vec::new();
        for chunk in chunks {
            let mut bytes = [decoder.kept(), chunk].concat();
            decoder.decode(&mut bytes, &mut collect(&mut messages));
        }
        decoder.end(Disconnect::Gone);
        let end = decoder.take_end().unwrap();
        decoder.close(None);
        let answers = decoder.answers().map(mem::take).unwrap_or_default();
        (messages, format!("{end:?}"), answers)
    }

    /// One frame: mostly valid, sometimes invalid in one of several ways.
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
    fn each_close_code_is_echoed_or_an_error() {
        let close = |code: u16| {
            let payload = [&code.to_be_bytes()[..], b"why"].concat();
            through_the_decoder([&masked(0x88, &payload)[..]].into_iter(), 10)
        };
        for code in (1000..=1003).chain(1007..=1014).chain([3000, 4999]) {
            let (_, end, answer) = close(code);
            assert_eq!(end, format!("ByClient(Some({code}))"));
            let echo = [&[0x88, 5], &code.to_be_bytes()[..], b"why"].concat();
            assert_eq!(answer, echo);
        }
        for code in [
            0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535,
        ] {
            assert_eq!(close(code).1, "Protocol", "{code}");
        }
        let (_, end, answer) = through_the_decoder([&masked(0x88, b"")[..]].into_iter(), 10);
        assert_eq!(
            (end.as_str(), &answer[..]),
            ("ByClient(None)", &[0x88, 0][..])
        );
    }

    #[test]
    fn control_frames_may_be_longer_than_the_longest_message() {
        let ping = masked(0x89, b"as long as the id of a message");
        let (_, end, answer) = through_the_decoder([&ping[..]].into_iter(), 10);
        assert_eq!((&answer[2..], end.as_str()), (&ping[14..], "Gone"));
    }

    #[test]
    fn unwritten_pongs_do_not_accumulate_and_the_last_one_is_kept() {
        let mut decoder = Decoder::new(1000);
        for number in 0..100_000_u32 {
            let ping = masked(0x89, &number.to_be_bytes().repeat(20));
            decoder.decode(&mut ping.clone(), &mut |_| {});
        }
        assert!(decoder.pending().answers.next().len() <= ANSWERS_MAX);
        // The last one is returned once the others are taken.
        let mut all = Vec::new();
        while let Some(answers) = decoder.answers() {
            all.append(answers);
        }
        assert!(all.len() <= 2 * ANSWERS_MAX);
        assert!(all.ends_with(&99_999_u32.to_be_bytes().repeat(20)));
    }

    #[test]
    fn a_close_frame_is_the_last_answer() {
        let mut decoder = Decoder::new(10);
        let mut bytes = [masked(0x89, b"1"), masked(0x89, b"2")].concat();
        decoder.decode(&mut bytes, &mut |_| {});
        decoder.close(Disconnect::ShuttingDown.close_frame());
        decoder.decode(&mut masked(0x89, b"3"), &mut |_| {});
        decoder.decode(&mut masked(0x88, &1000_u16.to_be_bytes()), &mut |_| {});
        let answers = decoder.answers().map(mem::take).unwrap();
        assert!(
            answers.starts_with(b"\x8a\x011\x8a\x012\x88"),
            "{answers:?}"
        );
        assert_eq!(answers.len(), 6 + usize::from(answers[7]) + 2);
        assert!(decoder.answers().is_none());
        assert!(matches!(
            decoder.take_end(),
            Some(Disconnect::ByClient(Some(1000)))
        ));
    }

    #[test]
    fn an_invalid_frame_fails_at_its_header() {
        let fragment = masked(0x01, b"x");
        let long = &masked(0x81, &[b'x'; 1000])[..14];
        let mut unmasked = masked(0x81, b"");
        unmasked[1] = 0x7f;
        for bytes in [
            [&fragment, long].concat(),
            unmasked[..10].to_vec(),
            vec![0x83, 0x80, 0, 0, 0, 0],
        ] {
            assert_eq!(
                through_the_decoder([&bytes[..]].into_iter(), 10_000).1,
                "Protocol"
            );
        }
    }

    #[test]
    fn nothing_is_retained_after_a_large_message() {
        let mut decoder = Decoder::new(1 << 20);
        let (mut messages, large) = (Vec::new(), masked(0x82, &vec![7; 1 << 20]));
        for chunk in large.chunks(200 * 1024) {
            let mut bytes = [decoder.kept(), chunk].concat();
            decoder.decode(&mut bytes, &mut collect(&mut messages));
        }
        assert!(messages == [(Kind::Binary, vec![7; 1 << 20])]);
        assert!(decoder.pending.is_none());
        decoder.decode(&mut masked(0x89, b"hi"), &mut |_| {});
        assert_eq!(decoder.answers().unwrap(), b"\x8a\x02hi");
    }

    #[test]
    fn the_size_of_an_unfinished_message_is_exact() {
        let mut decoder = Decoder::new(1 << 20);
        let mut feed = |chunk: &[u8]| {
            let mut bytes = [decoder.kept(), chunk].concat();
            decoder.decode(&mut bytes, &mut |_| {});
            decoder.unfinished()
        };
        assert_eq!(feed(b""), None);
        // A short frame is kept as it is, a long one by its payload.
        let short = masked(0x82, &[7; 100]);
        assert_eq!(feed(&short[..1]), Some((1, 1)));
        assert_eq!(feed(&short[1..50]), Some((50, 64)));
        assert_eq!(feed(&short[50..]), None);
        let long = masked(0x82, &[7; 100_000]);
        assert_eq!(feed(&long[..14]), Some((14, 100_000)));
        assert_eq!(feed(&long[14..5014]), Some((5000, 95_000)));
        assert_eq!(feed(&long[5014..]), None);
        // The length of a fragmented message is unknown; control frames between fragments do not count.
        assert_eq!(
            feed(&masked(0x02, &[7; 1000])),
            Some((1000, (1 << 20) - 1000))
        );
        assert_eq!(feed(&masked(0x89, b"hi")), Some((1000, (1 << 20) - 1000)));
        assert_eq!(
            feed(&masked(0x00, &[7; 24])),
            Some((1024, (1 << 20) - 1024))
        );
        assert_eq!(feed(&masked(0x80, &[7; 24])), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        /// The same bytes, however they are cut, give the same messages, the same end and the same
        /// answers with the fast path as without.
        #[test]
        fn the_fast_path_changes_nothing(
            frames in prop::collection::vec(frame(), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
            lost in prop_oneof![3 => Just(0_usize), 1 => 0_usize..30],
            max in prop_oneof![Just(50_usize), Just(300), Just(66_000), Just(1 << 20)],
        ) {
            let mut bytes = frames.concat();
            bytes.truncate(bytes.len().saturating_sub(lost));
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.sort_unstable();
            check_stream(&bytes, &cuts, max);
        }
    }
}
