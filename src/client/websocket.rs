//! A WebSocket: decodes messages from one read at a time, and writes shared frames in few writes.

use std::future::poll_fn;
use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;
use tokio::select;
use tokio::time::{Instant, timeout};

use super::budget::Budget;
use super::heartbeat::time_to_read;
use super::turn::READ_OF_LARGE_MESSAGES;
use super::turn::Turn;
use super::unfinished::{COUNTED_FROM, Progress};
use crate::client::Settings;
use crate::disconnect::Disconnect;
use crate::format::Outbox;
use crate::protocol::decoder::{Decoder, Received};
use crate::protocol::fast_path::PARTIAL_MAX;
use crate::transport::Transport;
use crate::transport::read::{BUFFER, with_buffer};
use crate::transport::write::{linger, try_flush, try_write, write};

/// Unread bytes ahead of a close frame for which the closing handshake waits, at most.
const UNREAD_MAX: u64 = 1 << 20;

// An incomplete frame and the read behind it share the buffer.
const _: () = assert!(PARTIAL_MAX + READ_OF_LARGE_MESSAGES as usize <= BUFFER);

/// One WebSocket on the server's side.
#[derive(Debug)]
pub(crate) struct WebSocket<S> {
    pub(super) stream: S,
    pub(super) decoder: Decoder,
    /// What was done since the task last waited or yielded.
    pub(super) turn: Turn,
    /// Whether bytes were received since the last [`take_received`](Self::take_received).
    pub(super) has_received: bool,
    /// A partial write, maybe within a frame, or one that is not flushed; only its rest may follow.
    pub(super) write_pending: bool,
    /// Bytes written to the client.
    pub(super) written: u64,
    /// The incoming message that is incomplete, if any.
    pub(super) unfinished: Option<Box<Progress>>,
    pub(super) budget: Arc<Budget>,
    pub(super) settings: Arc<Settings>,
}

impl<S: Transport> WebSocket<S> {
    /// A socket after its handshake.
    pub(crate) fn new(stream: S, settings: Arc<Settings>, budget: Arc<Budget>) -> Self {
        Self {
            stream,
            decoder: Decoder::new(settings.max_message_size),
            turn: Turn::default(),
            has_received: false,
            write_pending: false,
            written: 0,
            unfinished: None,
            budget,
            settings,
        }
    }

    /// Decodes the bytes read after the handshake request into `sink`.
    pub(crate) fn decode_ahead(&mut self, mut ahead: Vec<u8>, mut sink: impl FnMut(Received<'_>)) {
        self.decoder.decode(&mut ahead, &mut sink);
    }

    /// Decodes the next read with messages or pongs into `sink`; returns whether there are any, as there may
    /// be none at the end of a [`Turn`], which the caller has to check before.
    ///
    /// # Errors
    /// Why reading ended, after all messages before that were decoded.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        mut sink: impl FnMut(Received<'_>),
    ) -> Poll<Result<bool, Disconnect>> {
        self.flush(cx);
        // Most wakes come from the room and leave nothing to read: register for readiness only.
        if self.decoder.is_idle() && self.stream.poll_readable(cx).is_pending() {
            self.unfinished = None;
            return Poll::Pending;
        }
        if self.unfinished.is_some() {
            ready!(self.poll_budget(cx))?;
        }
        loop {
            let (mut messages, mut pongs) = (0, 0);
            let read = self.poll_decode(cx, &mut |received| {
                match received {
                    Received::Message(..) => messages += 1,
                    Received::Pong(_) => pongs += 1,
                }
                sink(received);
            });
            self.answer(cx);
            if let Poll::Ready(bytes @ 1..) = read {
                self.turn.spend_bytes(bytes, messages);
            }
            if messages + pongs > 0 {
                if !self.decoder.is_idle() || self.unfinished.is_some() {
                    self.count_unfinished(COUNTED_FROM, messages > 0);
                }
                return Poll::Ready(Ok(true));
            }
            if let Some(why) = self.decoder.take_end() {
                return Poll::Ready(Err(why));
            }
            if read.is_pending() {
                return self.poll_unfinished(cx).map_ok(|()| false);
            }
            if self.turn.is_over() {
                return match self.poll_unfinished(cx) {
                    Poll::Ready(Err(why)) => Poll::Ready(Err(why)),
                    _ => Poll::Ready(Ok(false)),
                };
            }
        }
    }

    /// Reads once from the stream, and decodes the bytes; returns how many were received.
    fn poll_decode(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut impl FnMut(Received<'_>),
    ) -> Poll<usize> {
        if self.decoder.has_ended() {
            return Poll::Ready(0);
        }
        with_buffer(|buffer| {
            let kept = self.decoder.kept();
            let mut read = ReadBuf::new(&mut buffer[..kept.len() + self.turn.read_size()]);
            read.put_slice(kept);
            let before = read.filled().len();
            let outcome = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read));
            let bytes = read.filled().len() - before;
            match outcome {
                Ok(()) if bytes > 0 => self.has_received = true,
                Ok(()) => self.decoder.end(Disconnect::Gone),
                Err(error) => self.decoder.end(Disconnect::from_io(error)),
            }
            self.decoder.decode(read.filled_mut(), sink);
            Poll::Ready(bytes)
        })
    }

    /// Writes pongs and close frames as far as the stream accepts them; the rest waits for the next call.
    fn answer(&mut self, cx: &mut Context<'_>) {
        while let Some(answers) = self.decoder.answers() {
            match Pin::new(&mut self.stream).poll_write(cx, answers) {
                Poll::Ready(Ok(written @ 1..)) => {
                    self.written += written as u64;
                    drop(answers.drain(..written));
                }
                Poll::Ready(ended) => {
                    let error = ended.err().unwrap_or(io::ErrorKind::WriteZero.into());
                    return self.decoder.end(Disconnect::from_io(error));
                }
                Poll::Pending => return,
            }
        }
        self.flush(cx);
    }

    /// Has the stream send what it holds back of pongs and close frames.
    fn flush(&mut self, cx: &mut Context<'_>) {
        if let Poll::Ready(Err(error)) = Pin::new(&mut self.stream).poll_flush(cx) {
            self.decoder.end(Disconnect::from_io(error));
        }
    }

    /// Bytes written to the client so far.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Whether bytes were received since the last call.
    pub(crate) fn take_received(&mut self) -> bool {
        mem::take(&mut self.has_received)
    }

    /// Writes `frames` once and removes what the stream accepts; returns whether that is all, and sent.
    /// The rest must be [written](Self::write) next.
    ///
    /// # Errors
    /// [`Disconnect::Transport`].
    pub(crate) fn try_write(&mut self, frames: &mut Outbox) -> Result<bool, Disconnect> {
        self.put_answers_first(frames);
        if frames.is_empty() {
            return Ok(true);
        }
        let (written, left) = try_write(&mut self.stream, frames)?;
        self.written += written as u64;
        frames.drain(..frames.len() - left);
        self.write_pending = !(frames.is_empty() && try_flush(&mut self.stream)?);
        Ok(!self.write_pending)
    }

    /// Writes and removes all frames, in as few writes as possible; returns whether the socket was not
    /// ready and the write had to wait.
    ///
    /// # Errors
    /// [`Disconnect::Stalled`] when the socket accepted nothing for the write timeout, and
    /// [`Disconnect::Transport`].
    pub(crate) async fn write(&mut self, frames: &mut Outbox) -> Result<bool, Disconnect> {
        // The rest of a frame must not be interrupted.
        if !self.write_pending {
            self.put_answers_first(frames);
        }
        self.write_pending = true;
        self.written += frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
        let started = self.unfinished.as_ref().map(|_| Instant::now());
        let write = write(
            &mut self.stream,
            frames,
            self.settings.times.write_timeout.get(),
        );
        let waited = match &self.unfinished {
            None => write.await?,
            Some(progress) => {
                let cut = poll_fn(|cx| match &progress.share {
                    Some(share) => share.poll_cut(cx),
                    None => Poll::Pending,
                });
                select! {
                    waited = write => waited?,
                    _ = cut => return Err(self.drop_unfinished(Disconnect::NoSpace)),
                }
            }
        };
        frames.clear();
        if let (Some(progress), Some(started)) = (&mut self.unfinished, started) {
            // Nothing was read during the write.
            progress.since += started.elapsed();
        }
        self.write_pending = false;
        Ok(waited)
    }

    fn put_answers_first(&mut self, frames: &mut Outbox) {
        if let Some(answers) = self.decoder.answers() {
            frames.insert(0, mem::take(answers).into());
        }
    }

    /// Ends the connection for the reason `why`: writes the close frame, waits for the answer, closes.
    ///
    /// Returns at once where the connection is gone. Else the wait is the close timeout, or as long as a
    /// slow client needs to read the `unread` bytes ahead of the close frame.
    pub(crate) async fn finish(&mut self, why: &Disconnect, unread: u64) {
        // Before anything is written: a cut of the message would end the write of the close frame.
        if why.ends_reading() {
            self.unfinished = None;
            self.decoder.abandon();
        }
        // Flushes pending answers, so that the close frame fits in the decoder's buffer.
        if self.write_pending
            || matches!(why, Disconnect::Gone | Disconnect::Transport(_))
            || self.write(&mut Outbox::new()).await.is_err()
        {
            return;
        }
        self.decoder.close(why.close_frame());
        if self.write(&mut Outbox::new()).await.is_ok() {
            let limit = self.settings.times.close_timeout.get();
            let limit = match why {
                Disconnect::ShuttingDown | Disconnect::Behind => {
                    limit.max(time_to_read(unread.min(UNREAD_MAX)))
                }
                _ => limit,
            };
            timeout(limit, self.close(why)).await.ok();
        }
    }

    /// Waits for the client's part of the closing handshake (RFC 6455, section 7.1.2).
    async fn close(&mut self, why: &Disconnect) {
        if why.ends_reading() {
            return linger(&mut self.stream).await;
        }
        while poll_fn(|cx| self.poll_read(cx, |_| {})).await.is_ok() {
            self.turn.end().await;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::future::pending;
    use std::io::IoSlice;
    use std::task::Waker;
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::task::yield_now;

    use super::*;
    use crate::config::Config;
    use crate::transport::Stream;
    use crate::transport::doubles::{Buffered, tcp_pair, write_now};

    /// A socket and its client.
    async fn pair() -> (WebSocket<Stream>, TcpStream) {
        let (stream, client) = tcp_pair().await;
        let socket = WebSocket::new(Stream::Tcp(stream), settings(), budget());
        (socket, client)
    }

    fn settings() -> Arc<Settings> {
        Arc::new(Settings::from(&Config::default()))
    }

    fn budget() -> Arc<Budget> {
        Arc::new(Budget::new(1 << 20, Duration::from_secs(10)))
    }

    /// A frame of text, masked with zeros.
    const FRAME: &[u8] = b"\x81\x82\0\0\0\0hi";

    /// Reads the one message that `client` sends, in a task that only the socket wakes.
    async fn exchange(mut socket: WebSocket<Stream>, client: &mut TcpStream) -> WebSocket<Stream> {
        let reader = tokio::spawn(async move {
            let mut messages = Vec::new();
            let mut sink = |received: Received<'_>| match received {
                Received::Message(_, payload) => messages.push(payload.to_vec()),
                Received::Pong(_) => {}
            };
            poll_fn(|cx| socket.poll_read(cx, &mut sink)).await.unwrap();
            assert_eq!(messages, [b"hi"]);
            socket
        });
        // The reader waits first.
        yield_now().await;
        client.write_all(FRAME).await.unwrap();
        let read = timeout(Duration::from_secs(10), reader).await;
        read.expect("the socket is woken").unwrap()
    }

    /// A client that sends `input`, once or forever, and accepts all bytes or none.
    pub(crate) struct Stub {
        input: &'static [u8],
        pub(crate) repeats: bool,
        accepts: bool,
        /// Whether `try_write_anyway` succeeds although the socket reported no space.
        accepts_anyway: bool,
        accepted: Vec<u8>,
    }

    impl Stub {
        pub(crate) fn new(input: &'static [u8]) -> Self {
            Self {
                input,
                repeats: false,
                accepts: true,
                accepts_anyway: false,
                accepted: Vec::new(),
            }
        }
    }

    impl AsyncRead for Stub {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.input.is_empty() {
                return Poll::Pending;
            }
            buffer.put_slice(self.input);
            if !self.repeats {
                self.input = &[];
            }
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Stub {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            if !self.accepts {
                return Poll::Pending;
            }
            self.accepted.extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Transport for Stub {
        fn poll_readable(&self, _: &mut Context<'_>) -> Poll<()> {
            match self.input {
                [] => Poll::Pending,
                _ => Poll::Ready(()),
            }
        }

        fn poll_read_closed(&self, _: &mut Context<'_>) -> Poll<()> {
            Poll::Pending
        }

        fn broken(&self) -> impl Future<Output = io::Error> + Send {
            pending()
        }

        fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            write_now(self, slices)
        }

        fn try_write_anyway(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            self.accepts |= self.accepts_anyway;
            let written = self.try_write(slices);
            self.accepts = false;
            written
        }
    }

    #[test]
    fn a_pong_that_had_to_wait_is_written_when_the_socket_is_ready() {
        let ping = Stub::new(b"\x89\x82\0\0\0\0hi");
        let mut socket = WebSocket::new(ping, settings(), budget());
        let mut cx = Context::from_waker(Waker::noop());
        for accepts in [false, true] {
            socket.stream.accepts = accepts;
            assert!(socket.poll_read(&mut cx, |_| {}).is_pending());
        }
        assert_eq!(socket.stream.accepted, b"\x8a\x02hi");
    }

    #[test]
    fn a_pong_that_the_stream_has_taken_is_sent_when_the_socket_is_ready() {
        let ping = Buffered::new(Stub::new(b"\x89\x82\0\0\0\0hi"), 64);
        let mut socket = WebSocket::new(ping, settings(), budget());
        let mut cx = Context::from_waker(Waker::noop());
        for accepts in [false, true] {
            socket.stream.below.accepts = accepts;
            assert!(socket.poll_read(&mut cx, |_| {}).is_pending());
            assert!(socket.decoder.is_idle());
        }
        assert_eq!(socket.stream.below.accepted, b"\x8a\x02hi");
    }

    #[tokio::test]
    async fn frames_that_a_full_socket_rejects_are_written_later() {
        let mut socket = WebSocket::new(Stub::new(b""), settings(), budget());
        let mut frames: Outbox = [Bytes::from("one"), Bytes::from("two")]
            .into_iter()
            .collect();
        socket.stream.accepts = false;
        assert!(!socket.try_write(&mut frames).unwrap());
        socket.stream.accepts = true;
        assert!(!socket.try_write(&mut frames).unwrap());
        socket.write(&mut frames).await.unwrap();
        assert!(frames.is_empty());
        assert_eq!(socket.stream.accepted, b"onetwo");
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_write_timeout_one_more_try_decides() {
        for (accepts_anyway, taken) in [(true, &b"onetwo"[..]), (false, b"")] {
            let mut stub = Stub::new(b"");
            (stub.accepts, stub.accepts_anyway) = (false, accepts_anyway);
            let mut frames: Outbox = [Bytes::from("one"), Bytes::from("two")]
                .into_iter()
                .collect();
            let written = write(&mut stub, &mut frames, Duration::from_secs(1)).await;
            assert_eq!(written.is_ok(), accepts_anyway);
            assert_eq!(stub.accepted, taken);
        }
    }

    #[tokio::test]
    async fn a_message_wakes_the_reader_after_any_number_of_idle_waits() {
        let (mut socket, mut client) = pair().await;
        for _ in 0..3 {
            socket = exchange(socket, &mut client).await;
        }
    }
}
