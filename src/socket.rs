//! A socket: what one read brought becomes messages, and shared frames leave in few writes.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{Sink, SinkExt, Stream};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::task::yield_now;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{Error, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

use crate::config::Config;
use crate::decode::{Door, Front};
use crate::disconnect::Disconnect;
use crate::message::Kind;

/// What one read of the kernel may bring: many messages of common sizes.
const READ_BUFFER: usize = 256 * 1024;

/// How often a client may be read before the others of its thread have their turn; without this
/// bound one client that never pauses starves them.
const READS_PER_TURN: u8 = 4;

/// tungstenite's own read buffer, one a connection, for the few frames that it decodes.
const FRAME_BUFFER: usize = 512;

/// What may wait of tungstenite's own answers, which are pongs and a close frame.
const ANSWER_BUFFER: usize = 4 * 1024;

/// How many batches one write hands to the kernel.
const SLICES_PER_WRITE: usize = 64;

thread_local! {
    /// One buffer for all connections of a thread, so that an idle one needs none of its own.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BUFFER].into());
}

/// One WebSocket on the server's side.
///
/// What is read goes through the [`Door`]: whole data frames become messages where they stand, in
/// the thread's buffer; the rest is tungstenite's, which also answers pings and close frames. Frames
/// that are shared by many clients are written past it; nothing else is done until such a write is
/// complete, so frames cannot be torn.
#[derive(Debug)]
pub struct Socket<S> {
    websocket: WebSocketStream<Behind<S>>,
    door: Door,
    /// The beginning of a frame, or what came right behind the handshake.
    ahead: Bytes,
    /// Whether the door has not seen `ahead` yet.
    unseen: bool,
    /// Why there is nothing more to read, where that came behind messages.
    ended: Option<Disconnect>,
    /// Whether anything was read.
    heard: bool,
    /// Reads since the client last had nothing to say.
    turns: u8,
    /// A write was given up, maybe amid a frame: nothing can follow.
    torn: bool,
    write_timeout: Duration,
    close_timeout: Duration,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// A socket whose handshake is done; `ahead` is what the client sent right behind it.
    pub async fn new(stream: S, ahead: Bytes, config: &Config) -> Self {
        let behind = Behind {
            stream,
            input: Bytes::new(),
            answers: Vec::new(),
            full: false,
        };
        let max = config.max_message_size.bytes();
        let limits = WebSocketConfig::default()
            .read_buffer_size(FRAME_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(ANSWER_BUFFER)
            .max_message_size(Some(max))
            .max_frame_size(Some(max));
        Self {
            websocket: WebSocketStream::from_raw_socket(behind, Role::Server, Some(limits)).await,
            door: Door::new(max),
            unseen: !ahead.is_empty(),
            ahead,
            ended: None,
            heard: false,
            turns: 0,
            torn: false,
            write_timeout: config.write_timeout.get(),
            close_timeout: config.close_timeout.get(),
        }
    }

    /// Gives `sink` the messages of the next read that brings any.
    ///
    /// # Errors
    /// Why there will be no more, once all messages before that were given.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        mut sink: impl FnMut(Kind, &[u8]),
    ) -> Poll<Result<(), Disconnect>> {
        for _ in 0..READS_PER_TURN {
            let mut messages = 0;
            let read = self.take_read(cx, &mut |kind, payload| {
                messages += 1;
                sink(kind, payload);
            });
            self.answer(cx);
            if messages > 0 {
                self.turns += 1;
                return Poll::Ready(Ok(()));
            }
            if let Some(why) = self.ended.take() {
                return Poll::Ready(Err(why));
            }
            if read.is_pending() {
                self.turns = 0;
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads the kernel once, and gives `sink` all messages that this completes.
    fn take_read(&mut self, cx: &mut Context<'_>, sink: &mut impl FnMut(Kind, &[u8])) -> Poll<()> {
        if self.ended.is_some() {
            return Poll::Ready(());
        }
        BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            read.put_slice(&self.ahead);
            if !mem::take(&mut self.unseen) {
                match ready!(Pin::new(&mut self.behind().stream).poll_read(cx, &mut read)) {
                    Ok(()) if read.filled().len() > self.ahead.len() => self.heard = true,
                    Ok(()) => self.end(io::ErrorKind::UnexpectedEof.into()),
                    Err(error) => self.end(error),
                }
            }
            self.ahead = Bytes::new();
            self.decode(cx, read.filled_mut(), sink);
            Poll::Ready(())
        })
    }

    /// Gives `sink` the messages in `bytes`, and keeps the beginning of one that is not complete.
    fn decode(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &mut [u8],
        sink: &mut impl FnMut(Kind, &[u8]),
    ) {
        let (mut foreign, mut at) = (0, 0);
        while self.ended.is_none() {
            let front = self.door.front(&mut bytes[at..]);
            if let Front::Foreign(length) = front {
                at += length;
                continue;
            }
            if foreign < at {
                self.ask_tungstenite(cx, &bytes[foreign..at], sink);
                // Which may have ended it.
                if self.ended.is_some() {
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
                    self.ahead = Bytes::copy_from_slice(&bytes[at..]);
                    break;
                }
            }
        }
    }

    /// Has tungstenite decode `bytes`, and gives `sink` the messages that this completes.
    fn ask_tungstenite(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        sink: &mut impl FnMut(Kind, &[u8]),
    ) {
        self.behind().input = Bytes::copy_from_slice(bytes);
        while self.ended.is_none() {
            match Pin::new(&mut self.websocket).poll_next(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(Message::Text(text)))) => sink(Kind::Text, text.as_bytes()),
                Poll::Ready(Some(Ok(Message::Binary(bytes)))) => sink(Kind::Binary, &bytes),
                Poll::Ready(Some(Ok(Message::Close(frame)))) => self.ended = Some(closed(frame)),
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => self.ended = Some(reason(error)),
                Poll::Ready(None) => self.ended = Some(Disconnect::ByClient(None)),
            }
        }
        self.behind().input = Bytes::new();
    }

    /// Writes tungstenite's answers as far as the kernel takes them; the rest waits for the next
    /// chance.
    fn answer(&mut self, cx: &mut Context<'_>) {
        if let Err(error) = self.behind().poll_answer(cx) {
            self.end(error);
        }
        if mem::take(&mut self.behind().full) {
            // What tungstenite kept back; whether it fits now is its own business.
            let _ = Pin::new(&mut self.websocket).poll_flush(cx);
        }
    }

    /// The connection is broken, unless the client has ended it in order before.
    fn end(&mut self, error: io::Error) {
        self.ended.get_or_insert(Disconnect::Transport(error));
    }

    /// Lets others have their turn if this client was read often without a pause.
    pub async fn end_turn(&mut self) {
        if self.turns >= READS_PER_TURN {
            self.turns = 0;
            yield_now().await;
        }
    }

    /// Whether anything came from the client since this was asked last.
    pub fn heard(&mut self) -> bool {
        mem::take(&mut self.heard)
    }

    /// Writes and removes whole frames, in as few writes as possible; returns whether the client
    /// kept them waiting.
    ///
    /// # Errors
    /// [`Disconnect::Stalled`] when the client took nothing for the write timeout, and
    /// [`Disconnect::Transport`].
    pub async fn write(&mut self, frames: &mut Vec<Bytes>) -> Result<bool, Disconnect> {
        let answers = mem::take(&mut self.behind().answers);
        if !answers.is_empty() {
            frames.insert(0, answers.into());
        }
        self.torn = true;
        let mut waited = false;
        let mut rest = frames.as_mut_slice();
        while !rest.is_empty() {
            let written = match self.write_once(rest).await {
                Poll::Ready(written) => written,
                Poll::Pending => {
                    waited = true;
                    let limit = self.write_timeout;
                    let write = poll_fn(|cx| self.behind().poll_write_frames(cx, rest));
                    timeout(limit, write)
                        .await
                        .map_err(|_| Disconnect::Stalled)?
                }
            };
            rest = advance(rest, written.map_err(Disconnect::Transport)?);
        }
        self.torn = false;
        frames.clear();
        Ok(waited)
    }

    /// Writes what the kernel takes at once, without the cost of a timer.
    async fn write_once(&mut self, frames: &[Bytes]) -> Poll<io::Result<usize>> {
        poll_fn(|cx| Poll::Ready(self.behind().poll_write_frames(cx, frames))).await
    }

    /// Ends the connection for the reason `why`: tells the client, lets it answer, closes.
    ///
    /// Takes at most the close timeout, and a moment where there is nobody to be told.
    pub async fn finish(&mut self, why: &Disconnect) {
        if !self.torn && !matches!(why, Disconnect::Transport(_)) {
            let limit = self.close_timeout;
            timeout(limit, self.close(why)).await.ok();
        }
    }

    /// The closing handshake (RFC 6455, section 7.1.2), as far as the client takes part in it.
    async fn close(&mut self, why: &Disconnect) {
        let close = why.close_frame();
        let ours = close.is_some();
        if let Some(frame) = close {
            // Fails where the client was first; the answer to its close frame is ready then.
            self.websocket.close(Some(frame)).await.ok();
        }
        self.websocket.flush().await.ok();
        if self.write(&mut Vec::new()).await.is_err() || !ours {
            return;
        }
        if why.is_violation() {
            return linger(&mut self.behind().stream).await;
        }
        while poll_fn(|cx| self.poll_read(cx, |_, _| {})).await.is_ok() {
            self.end_turn().await;
        }
    }

    fn behind(&mut self) -> &mut Behind<S> {
        self.websocket.get_mut()
    }
}

/// Closes our side and reads until the peer closes its own, so that what we wrote last is not lost
/// to a reset that unread data would cause (RFC 6455, section 7.1.1).
pub async fn linger<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    if stream.shutdown().await.is_ok() {
        tokio::io::copy(stream, &mut tokio::io::sink()).await.ok();
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
        frame => Disconnect::ByClient(frame),
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
        Error::Io(error) => Disconnect::Transport(error),
        other => Disconnect::Transport(io::Error::other(other)),
    }
}

/// Takes `written` bytes off the front of `frames`; returns those that are left.
fn advance(mut frames: &mut [Bytes], mut written: usize) -> &mut [Bytes] {
    while let Some(first) = frames.first_mut() {
        if written < first.len() {
            first.advance(written);
            break;
        }
        written -= first.len();
        frames = &mut frames[1..];
    }
    frames
}

/// What stands behind tungstenite in the place of a stream: it reads what the door leaves to it, and
/// its answers are held together.
#[derive(Debug)]
struct Behind<S> {
    stream: S,
    /// For tungstenite to read.
    input: Bytes,
    /// Answers of tungstenite's that are to be written before anything else.
    answers: Vec<u8>,
    /// Whether there was no space for an answer.
    full: bool,
}

impl<S: AsyncWrite + Unpin> Behind<S> {
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while !self.answers.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.answers) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => drop(self.answers.drain(..written?)),
                Poll::Pending => return Ok(()),
            }
        }
        self.answers = Vec::new();
        Ok(())
    }

    fn poll_write_frames(
        &mut self,
        cx: &mut Context<'_>,
        frames: &[Bytes],
    ) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); SLICES_PER_WRITE];
        let count = frames.len().min(SLICES_PER_WRITE);
        for (slice, frame) in slices.iter_mut().zip(frames) {
            *slice = IoSlice::new(frame);
        }
        match Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..count]) {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            poll => poll,
        }
    }
}

impl<S: Unpin> AsyncRead for Behind<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.input.is_empty() {
            // Whoever filled it asks again when there is more.
            return Poll::Pending;
        }
        let length = self.input.len().min(buf.remaining());
        buf.put_slice(&self.input.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Behind<S> {
    /// Takes an answer of tungstenite's; it is written together with others.
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.answers.len() + buf.len() > ANSWER_BUFFER {
            self.full = true;
            return Poll::Pending;
        }
        self.answers.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    /// Leaves the answers where they are: [`Socket`] writes them.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::{Cursor, Read, Write};

    use proptest::prelude::*;
    use tokio_tungstenite::tungstenite::WebSocket;

    use super::*;
    use crate::config::Size;

    /// A client that sends its bytes in these pieces and then closes the connection.
    struct Pieces {
        pieces: VecDeque<Vec<u8>>,
        written: Vec<u8>,
    }

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if let Some(mut piece) = self.pieces.pop_front() {
                let rest = piece.split_off(piece.len().min(buf.remaining()));
                buf.put_slice(&piece);
                if !rest.is_empty() {
                    self.pieces.push_front(rest);
                }
            }
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Pieces {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.written.extend(buf);
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// The same client for tungstenite alone.
    struct Whole(Cursor<Vec<u8>>, Vec<u8>);

    impl Read for Whole {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            Read::read(&mut self.0, buf)
        }
    }

    impl Write for Whole {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            Write::write(&mut self.1, buf)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The messages, how it ended, and what was answered.
    type Outcome = (Vec<(Kind, Vec<u8>)>, String, Vec<u8>);

    fn through_the_door(pieces: Vec<Vec<u8>>, config: &Config) -> Outcome {
        let stream = Pieces {
            pieces: pieces.into(),
            written: Vec::new(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut messages = Vec::new();
            let mut socket = Socket::new(stream, Bytes::new(), config).await;
            let end = loop {
                let sink = |kind, payload: &[u8]| messages.push((kind, payload.to_vec()));
                let mut sink = sink;
                if let Err(end) = poll_fn(|cx| socket.poll_read(cx, &mut sink)).await {
                    break end;
                }
            };
            // The answer to a close frame is ready, but waits for `finish`.
            socket.websocket.flush().await.ok();
            socket.write(&mut Vec::new()).await.unwrap();
            (
                messages,
                format!("{end:?}"),
                mem::take(&mut socket.behind().stream.written),
            )
        })
    }

    fn through_tungstenite(bytes: Vec<u8>, max: usize) -> Outcome {
        let config = WebSocketConfig::default()
            .max_message_size(Some(max))
            .max_frame_size(Some(max));
        let stream = Whole(Cursor::new(bytes), Vec::new());
        let mut websocket = WebSocket::from_raw_socket(stream, Role::Server, Some(config));
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        /// The same bytes, however they are cut, give the same messages, the same end and the same
        /// answers with the door as without.
        #[test]
        fn the_door_changes_nothing(
            frames in prop::collection::vec(frame(), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
            lost in prop_oneof![3 => Just(0_usize), 1 => 0_usize..30],
            max in prop_oneof![Just(300_usize), Just(66_000), Just(1 << 20)],
        ) {
            let mut bytes = frames.concat();
            bytes.truncate(bytes.len().saturating_sub(lost));
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.push(0);
            cuts.push(bytes.len());
            cuts.sort_unstable();
            cuts.dedup();
            let pieces = cuts.windows(2).map(|cut| bytes[cut[0]..cut[1]].to_vec()).collect();
            let config = Config { max_message_size: Size::from(max), ..Config::default() };
            let without = through_tungstenite(bytes, max);
            prop_assert_eq!(through_the_door(pieces, &config), without);
        }
    }
}
