//! A socket: what one read brought becomes messages, and shared frames leave in few writes.

use std::future::poll_fn;
use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;
use tokio::select;
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::heartbeat::time_to_read;
use super::incoming::{Incoming, Unfinished};
use crate::config::Config;
use crate::disconnect::Disconnect;
use crate::format::Outbox;
use crate::protocol::decoder::{Decoder, Received};
use crate::transport::Transport;
use crate::transport::read::{READ_OF_LARGE_MESSAGES, READ_OF_SMALL_MESSAGES, with_buffer};
use crate::transport::write::{linger, try_write, write};

/// What a close frame may stand behind, in the buffers on its way, to be waited for.
const UNREAD_MAX: u64 = 1 << 20;

/// Bytes of a message that is not small.
const LARGE_MESSAGE: usize = 1024;

/// One WebSocket on the server's side.
///
/// Nothing but the rest of a write follows it, so frames cannot be torn.
#[derive(Debug)]
pub struct WebSocket<S> {
    stream: S,
    decoder: Decoder,
    /// How much the next read may bring.
    read_size: usize,
    /// Bytes read since the client last had nothing to say.
    turn: usize,
    /// Whether anything was read.
    heard: bool,
    /// A write is not done, maybe amid a frame: nothing but the rest of it can follow.
    torn: bool,
    /// Bytes that were written to the client.
    written: u64,
    /// There while the client is amid a message.
    unfinished: Option<Box<Progress>>,
    incoming: Arc<Incoming>,
    config: Arc<Config>,
}

/// How a message goes on that is not complete.
#[derive(Debug)]
struct Progress {
    /// Its share of what all clients together may hold, unless it is too small to be counted.
    share: Option<Unfinished>,
    /// How many bytes of it there are.
    held: usize,
    /// When the last byte of it came; time in which nothing was read is added.
    since: Instant,
    /// Since when it is not read for want of room.
    paused: Option<Instant>,
    alarm: Pin<Box<Sleep>>,
}

impl Progress {
    fn new(now: Instant, due: Instant) -> Self {
        Self {
            share: None,
            held: 0,
            since: now,
            paused: None,
            alarm: Box::pin(sleep_until(due)),
        }
    }
}

/// Bytes of an unfinished message from which on it is counted. Fewer are a part of what a client
/// costs, and are there often: a read mostly ends somewhere amid a message when many come.
const COUNTED_FROM: usize = 1024;

impl<S: Transport> WebSocket<S> {
    /// A socket whose handshake is done.
    pub fn new(stream: S, config: Arc<Config>, incoming: Arc<Incoming>) -> Self {
        Self {
            stream,
            decoder: Decoder::new(config.limits.max_message_size.bytes()),
            read_size: READ_OF_SMALL_MESSAGES,
            turn: 0,
            heard: false,
            torn: false,
            written: 0,
            unfinished: None,
            incoming,
            config,
        }
    }

    /// Gives `sink` what came right behind the handshake.
    pub fn decode_ahead(&mut self, mut ahead: Vec<u8>, mut sink: impl FnMut(Received<'_>)) {
        self.decoder.decode(&mut ahead, &mut sink);
    }

    /// Gives `sink` the messages and pongs of the next read that brings any.
    ///
    /// # Errors
    /// Why there will be no more, once all messages before that were given.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        mut sink: impl FnMut(Received<'_>),
    ) -> Poll<Result<(), Disconnect>> {
        // Most turns are the room's: then there is nothing here but to be woken when there is.
        if self.decoder.is_idle() && self.stream.poll_readable(cx).is_pending() {
            self.turn = 0;
            self.unfinished = None;
            return Poll::Pending;
        }
        if self.unfinished.is_some() {
            ready!(self.poll_room(cx))?;
        }
        while !self.is_turn_over() {
            let (mut messages, mut pongs, before) = (0, 0, self.turn);
            let read = self.poll_decode(cx, &mut |received| {
                match received {
                    Received::Message(..) => messages += 1,
                    Received::Pong(_) => pongs += 1,
                }
                sink(received);
            });
            self.answer(cx);
            if self.turn > before {
                // What comes next will probably be of the same kind.
                self.read_size = match self.turn - before >= messages * LARGE_MESSAGE {
                    true => READ_OF_LARGE_MESSAGES,
                    false => READ_OF_SMALL_MESSAGES,
                };
            }
            if messages + pongs > 0 {
                if !self.decoder.is_idle() || self.unfinished.is_some() {
                    self.count_unfinished(COUNTED_FROM, messages > 0);
                }
                return Poll::Ready(Ok(()));
            }
            if let Some(why) = self.decoder.take_end() {
                return Poll::Ready(Err(why));
            }
            if read.is_pending() {
                self.turn = 0;
                return self.poll_unfinished(cx);
            }
        }
        self.turn = 0;
        cx.waker().wake_by_ref();
        self.poll_unfinished(cx)
    }

    /// Waits until more of an unfinished message may be read.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Disconnect>> {
        let Some(progress) = &mut self.unfinished else {
            return Poll::Ready(Ok(()));
        };
        let Some(share) = &progress.share else {
            return Poll::Ready(Ok(()));
        };
        match share.poll_room(cx) {
            Poll::Ready(Ok(())) => {
                if let Some(paused) = progress.paused.take() {
                    progress.since += paused.elapsed();
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(_)) => Poll::Ready(Err(self.abandon(Disconnect::NoSpace))),
            Poll::Pending => {
                progress.paused.get_or_insert_with(Instant::now);
                // It cannot be judged by what is not read.
                self.heard = true;
                Poll::Pending
            }
        }
    }

    /// Counts what is there of a message that is not complete, if there is one, from `least` bytes on;
    /// `anew` says that it began after what was counted last.
    fn count_unfinished(&mut self, least: usize, anew: bool) -> Option<&mut Progress> {
        let Some((held, missing)) = self.decoder.unfinished() else {
            self.unfinished = None;
            return None;
        };
        if held < least && self.unfinished.is_none() {
            return None;
        }
        let now = Instant::now();
        let progress = self.unfinished.get_or_insert_with(|| {
            let due = now + self.config.times.write_timeout.get();
            Box::new(Progress::new(now, due))
        });
        if progress.held != held || anew {
            (progress.held, progress.since) = (held, now);
        }
        if progress.share.is_none() && held >= COUNTED_FROM {
            progress.share = Some(self.incoming.begin());
        }
        if let Some(share) = &progress.share {
            share.update(held, missing);
        }
        Some(progress)
    }

    /// Waits for more of the message that the client is amid of, if it is amid of one, and not for
    /// longer than the write timeout.
    fn poll_unfinished(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Disconnect>> {
        if self.count_unfinished(0, false).is_none() {
            return Poll::Pending;
        }
        // It may be the one that is cut.
        ready!(self.poll_room(cx))?;
        let patience = self.config.times.write_timeout.get();
        let Some(progress) = &mut self.unfinished else {
            return Poll::Pending;
        };
        // The alarm is set anew only when it goes off.
        while progress.alarm.as_mut().poll(cx).is_ready() {
            let due = progress.since + patience;
            if due <= Instant::now() {
                return Poll::Ready(Err(self.abandon(Disconnect::Unfinished)));
            }
            progress.alarm.as_mut().reset(due);
        }
        Poll::Pending
    }

    /// Drops what there is of an unfinished message; nothing more is decoded.
    fn abandon(&mut self, why: Disconnect) -> Disconnect {
        self.decoder.abandon();
        self.unfinished = None;
        why
    }

    /// Reads the kernel once, and decodes what it brought.
    fn poll_decode(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut impl FnMut(Received<'_>),
    ) -> Poll<()> {
        if self.decoder.has_ended() {
            return Poll::Ready(());
        }
        with_buffer(|buffer| {
            let kept = self.decoder.kept();
            let mut read = ReadBuf::new(&mut buffer[..kept.len() + self.read_size]);
            read.put_slice(kept);
            let before = read.filled().len();
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read)) {
                Ok(()) if read.filled().len() > before => {
                    self.heard = true;
                    self.turn += read.filled().len() - before;
                }
                Ok(()) => self.decoder.end(Disconnect::Gone),
                Err(error) => self.decoder.end(Disconnect::from_io(error)),
            }
            self.decoder.decode(read.filled_mut(), sink);
            Poll::Ready(())
        })
    }

    /// Writes answers as far as the kernel takes them; the rest waits for the next chance.
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
    }

    /// Ends this client's turn, if it was read for long without a pause; returns whether others are to
    /// have theirs before more is read.
    pub fn end_turn(&mut self) -> bool {
        let over = self.is_turn_over();
        if over {
            self.turn = 0;
        }
        over
    }

    /// Whether as much was read without a pause as one read may bring: without this bound one
    /// client that never pauses starves the others of its thread.
    fn is_turn_over(&self) -> bool {
        self.turn >= self.read_size
    }

    /// Bytes that were written to the client so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Whether anything came from the client since this was asked last.
    pub fn heard(&mut self) -> bool {
        mem::take(&mut self.heard)
    }

    /// Hands `frames` to the kernel, once, and removes what it takes; returns whether that is all of
    /// them. What is left is to be [written](Self::write) next.
    ///
    /// # Errors
    /// [`Disconnect::Transport`].
    pub fn try_write(&mut self, frames: &mut Outbox) -> Result<bool, Disconnect> {
        self.put_answers_first(frames);
        if frames.is_empty() {
            return Ok(true);
        }
        let (written, left) = try_write(&mut self.stream, frames)?;
        self.written += written as u64;
        frames.drain(..frames.len() - left);
        self.torn = !frames.is_empty();
        Ok(!self.torn)
    }

    /// Writes and removes whole frames, in as few writes as possible; returns whether the client
    /// kept them waiting.
    ///
    /// # Errors
    /// [`Disconnect::Stalled`] when the client took nothing for the write timeout, and
    /// [`Disconnect::Transport`].
    pub async fn write(&mut self, frames: &mut Outbox) -> Result<bool, Disconnect> {
        // Behind the rest of a frame there is no place for answers.
        if !self.torn {
            self.put_answers_first(frames);
        }
        self.torn = true;
        self.written += frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
        let started = self.unfinished.as_ref().map(|_| Instant::now());
        let write = write(
            &mut self.stream,
            frames,
            self.config.times.write_timeout.get(),
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
                    _ = cut => return Err(self.abandon(Disconnect::NoSpace)),
                }
            }
        };
        frames.clear();
        if let (Some(progress), Some(started)) = (&mut self.unfinished, started) {
            // Meanwhile nothing was read.
            progress.since += started.elapsed();
        }
        self.torn = false;
        Ok(waited)
    }

    fn put_answers_first(&mut self, frames: &mut Outbox) {
        if let Some(answers) = self.decoder.answers() {
            frames.insert(0, mem::take(answers).into());
        }
    }

    /// Ends the connection for the reason `why`: tells the client, lets it answer, closes.
    ///
    /// Takes a moment where there is no connection any more. Else the client has the close timeout to
    /// answer, or what a slow one needs to read the `unread` bytes that the close frame stands
    /// behind.
    pub async fn finish(&mut self, why: &Disconnect, unread: u64) {
        // Answers that wait could leave no space for the close frame.
        if self.torn
            || matches!(why, Disconnect::Gone | Disconnect::Transport(_))
            || self.write(&mut Outbox::new()).await.is_err()
        {
            return;
        }
        if why.ends_reading() {
            self.unfinished = None;
            self.decoder.abandon();
        }
        self.decoder.close(why.close_frame());
        if self.write(&mut Outbox::new()).await.is_ok() {
            let limit = self.config.times.close_timeout.get();
            let limit = match why {
                Disconnect::ShuttingDown | Disconnect::Behind => {
                    limit.max(time_to_read(unread.min(UNREAD_MAX)))
                }
                _ => limit,
            };
            timeout(limit, self.close(why)).await.ok();
        }
    }

    /// The closing handshake (RFC 6455, section 7.1.2), as far as the client takes part in it.
    async fn close(&mut self, why: &Disconnect) {
        if why.ends_reading() {
            return linger(&mut self.stream).await;
        }
        while poll_fn(|cx| self.poll_read(cx, |_| {})).await.is_ok() {
            if self.end_turn() {
                yield_now().await;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::IoSlice;
    use std::task::Waker;
    use std::time::Duration;

    use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::format::Chunk;

    /// A socket and its client.
    async fn pair() -> (WebSocket<TcpStream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        let socket = WebSocket::new(accepted.unwrap().0, Arc::default(), incoming());
        (socket, client.unwrap())
    }

    fn incoming() -> Arc<Incoming> {
        Arc::new(Incoming::new(1 << 20, Duration::from_secs(10)))
    }

    /// A frame of text, masked with zeros.
    const FRAME: &[u8] = b"\x81\x82\0\0\0\0hi";

    /// Reads the one message that `client` sends while a task of its own waits for it, which nothing
    /// but the socket wakes.
    async fn exchange(
        mut socket: WebSocket<TcpStream>,
        client: &mut TcpStream,
    ) -> WebSocket<TcpStream> {
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
        // Lets it wait first.
        yield_now().await;
        client.write_all(FRAME).await.unwrap();
        let read = timeout(Duration::from_secs(10), reader).await;
        read.expect("the socket is woken").unwrap()
    }

    /// A client that says `input`, once or forever, and takes all there is or nothing.
    pub(crate) struct Stub {
        input: &'static [u8],
        pub(crate) repeats: bool,
        takes: bool,
        /// Whether it takes something though it does not say so.
        takes_in_silence: bool,
        taken: Vec<u8>,
    }

    impl Stub {
        pub(crate) fn new(input: &'static [u8]) -> Self {
            Self {
                input,
                repeats: false,
                takes: true,
                takes_in_silence: false,
                taken: Vec::new(),
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
            if !self.takes {
                return Poll::Pending;
            }
            self.taken.extend_from_slice(bytes);
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

        fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            write_now(self, slices)
        }

        fn try_write_anyway(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            self.takes |= self.takes_in_silence;
            let written = self.try_write(slices);
            self.takes = false;
            written
        }
    }

    impl Transport for DuplexStream {
        fn poll_readable(&self, _: &mut Context<'_>) -> Poll<()> {
            Poll::Ready(())
        }

        fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            write_now(self, slices)
        }
    }

    fn write_now<S: AsyncWrite + Unpin>(
        stream: &mut S,
        slices: &[IoSlice<'_>],
    ) -> io::Result<usize> {
        let mut cx = Context::from_waker(Waker::noop());
        let stream = Pin::new(stream);
        let written = match slices {
            [only] => stream.poll_write(&mut cx, only),
            slices => stream.poll_write_vectored(&mut cx, slices),
        };
        match written {
            Poll::Ready(written) => written,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    #[test]
    fn a_pong_that_had_to_wait_leaves_as_soon_as_it_can() {
        let ping = Stub::new(b"\x89\x82\0\0\0\0hi");
        let mut socket = WebSocket::new(ping, Arc::default(), incoming());
        let mut cx = Context::from_waker(Waker::noop());
        for takes in [false, true] {
            socket.stream.takes = takes;
            assert!(socket.poll_read(&mut cx, |_| {}).is_pending());
        }
        assert_eq!(socket.stream.taken, b"\x8a\x02hi");
    }

    #[tokio::test]
    async fn what_a_full_socket_does_not_take_is_written_later() {
        let mut socket = WebSocket::new(Stub::new(b""), Arc::default(), incoming());
        let mut frames: Outbox = [Chunk::from("one"), Chunk::from("two")]
            .into_iter()
            .collect();
        socket.stream.takes = false;
        assert!(!socket.try_write(&mut frames).unwrap());
        socket.stream.takes = true;
        assert!(!socket.try_write(&mut frames).unwrap());
        socket.write(&mut frames).await.unwrap();
        assert!(frames.is_empty());
        assert_eq!(socket.stream.taken, b"onetwo");
    }

    #[tokio::test(start_paused = true)]
    async fn when_patience_is_over_one_more_try_decides() {
        for (takes_in_silence, taken) in [(true, &b"onetwo"[..]), (false, b"")] {
            let mut stub = Stub::new(b"");
            (stub.takes, stub.takes_in_silence) = (false, takes_in_silence);
            let mut frames: Outbox = [Chunk::from("one"), Chunk::from("two")]
                .into_iter()
                .collect();
            let written = write(&mut stub, &mut frames, Duration::from_secs(1)).await;
            assert_eq!(written.is_ok(), takes_in_silence);
            assert_eq!(stub.taken, taken);
        }
    }

    #[tokio::test]
    async fn a_message_is_heard_however_often_there_was_none() {
        let (mut socket, mut client) = pair().await;
        for _ in 0..3 {
            socket = exchange(socket, &mut client).await;
        }
    }
}
