//! A socket: what one read brought becomes messages, and shared frames leave in few writes.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use smallvec::SmallVec;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::select;
use tokio::task::coop::has_budget_remaining;
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use crate::config::Config;
use crate::decoder::{Decoder, Received};
use crate::disconnect::Disconnect;
use crate::door::PARTIAL_MAX;
use crate::heartbeat::time_to_read;
use crate::incoming::{Incoming, Unfinished};
use crate::message::{Outbox, Piece};

/// What one read of the kernel may bring. Large messages are cheap by the byte; of small ones this
/// many bytes would be thousands, and keep the thread from all others for too long.
const READ_OF_LARGE_MESSAGES: usize = 512 * 1024;
const READ_OF_SMALL_MESSAGES: usize = 32 * 1024;

/// Bytes of a message that is not small.
const LARGE_MESSAGE: usize = 1024;

/// How many batches one write hands to the kernel.
const SLICES_PER_WRITE: usize = 64;

thread_local! {
    /// One buffer for all connections of a thread, so that an idle one needs none of its own.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; PARTIAL_MAX + READ_OF_LARGE_MESSAGES].into());
}

/// What carries a WebSocket.
pub trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Waits until a read may bring something; a read that brings nothing does the same, and costs
    /// more.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Hands `frames` to the kernel, as many at once as it takes; returns how many bytes it took.
    /// Nobody is woken when it would take more.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) when it takes nothing now.
    fn try_write(&mut self, frames: &[Piece]) -> io::Result<usize>;

    /// The same, also where the kernel did not say yet that it takes more: that it says only once
    /// much of its buffer is free.
    ///
    /// # Errors
    /// As [`try_write`](Self::try_write).
    fn try_write_anyway(&mut self, frames: &[Piece]) -> io::Result<usize> {
        self.try_write(frames)
    }
}

impl Transport for TcpStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        // What the runtime has noticed already is known without a lock.
        match self.try_io(Interest::READABLE, || Ok(())) {
            Ok(()) => Poll::Ready(()),
            Err(_) => self.poll_read_ready(cx).map(|_| ()),
        }
    }

    fn try_write(&mut self, frames: &[Piece]) -> io::Result<usize> {
        match frames {
            // The plain call is the cheaper one, here as in `poll_write`.
            [only] => Self::try_write(self, only),
            frames => with_slices(frames, |slices| self.try_write_vectored(slices)),
        }
    }

    fn try_write_anyway(&mut self, frames: &[Piece]) -> io::Result<usize> {
        with_slices(frames, |slices| SockRef::from(&*self).send_vectored(slices))
    }
}

/// One WebSocket on the server's side.
///
/// Nothing but the rest of a write follows it, so frames cannot be torn.
#[derive(Debug)]
pub struct Socket<S> {
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
    /// How many bytes of it there are; none where it has begun anew.
    held: Option<usize>,
    /// When the last byte of it came; time in which nothing was read is added.
    since: Instant,
    alarm: Pin<Box<Sleep>>,
}

/// Bytes of an unfinished message from which on it is counted. Fewer are a part of what a client
/// costs, and are there often: a read mostly ends somewhere amid a message when many come.
const COUNTED_FROM: usize = 1024;

impl<S: Transport> Socket<S> {
    /// A socket whose handshake is done.
    pub fn new(stream: S, config: Arc<Config>, incoming: Arc<Incoming>) -> Self {
        Self {
            stream,
            decoder: Decoder::new(config.max_message_size.bytes()),
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
            if messages > 0
                && let Some(progress) = &mut self.unfinished
            {
                progress.held = None;
            }
            if messages + pongs > 0 {
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
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(_)) => Poll::Ready(Err(self.abandon(Disconnect::NoSpace))),
            Poll::Pending => {
                progress.since = Instant::now();
                // It cannot be judged by what is not read.
                self.heard = true;
                Poll::Pending
            }
        }
    }

    /// Waits for more of the message that the client is amid of, if it is amid of one, and not for
    /// longer than the write timeout.
    fn poll_unfinished(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Disconnect>> {
        let Some((held, missing)) = self.decoder.unfinished() else {
            self.unfinished = None;
            return Poll::Pending;
        };
        let now = Instant::now();
        let patience = self.config.write_timeout.get();
        let progress = self.unfinished.get_or_insert_with(|| {
            Box::new(Progress {
                share: None,
                held: None,
                since: now,
                alarm: Box::pin(sleep_until(now + patience)),
            })
        });
        if progress.held.replace(held) != Some(held) {
            progress.since = now;
            if progress.share.is_none() && held >= COUNTED_FROM {
                progress.share = Some(self.incoming.begin());
            }
            if let Some(share) = &progress.share {
                share.update(held, missing);
                // It may be the one that is cut.
                if let Poll::Ready(Err(_)) = share.poll_room(cx) {
                    return Poll::Ready(Err(self.abandon(Disconnect::NoSpace)));
                }
            }
        }
        // The alarm is set anew only when it goes off.
        while progress.alarm.as_mut().poll(cx).is_ready() {
            let due = progress.since + patience;
            if due <= now {
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
        BUFFER.with_borrow_mut(|buffer| {
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
        match not_zero(self.stream.try_write(frames)) {
            Ok(written) => {
                self.written += written as u64;
                let left = advance(frames, written).len();
                frames.drain(..frames.len() - left);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(Disconnect::from_io(error)),
        }
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
        let write = write(&mut self.stream, frames, self.config.write_timeout.get());
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
        if let Some(progress) = &mut self.unfinished {
            // Meanwhile nothing was read.
            progress.since = Instant::now();
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
        self.decoder.close(why.close_frame());
        if self.write(&mut Outbox::new()).await.is_ok() {
            let limit = self.config.close_timeout.get();
            let limit = match why {
                Disconnect::NoPong => limit,
                _ => limit.max(time_to_read(unread)),
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

/// Closes our side and reads until the peer closes its own, so that what we wrote last is not lost
/// to a reset that unread data would cause (RFC 6455, section 7.1.1).
pub async fn linger<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    if stream.shutdown().await.is_ok() {
        while poll_fn(|cx| poll_discard(stream, cx)).await {
            // One that never stops sending takes turns with the others.
            yield_now().await;
        }
    }
}

/// Reads something and discards it; returns whether there was anything.
fn poll_discard<S: AsyncRead + Unpin>(stream: &mut S, cx: &mut Context<'_>) -> Poll<bool> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut read = ReadBuf::new(&mut buffer[..READ_OF_SMALL_MESSAGES]);
        let outcome = ready!(Pin::new(stream).poll_read(cx, &mut read));
        Poll::Ready(outcome.is_ok() && !read.filled().is_empty())
    })
}

/// Writes and removes all of `frames`, in as few writes as possible; returns whether the peer kept
/// them waiting.
///
/// # Errors
/// [`Disconnect::Stalled`] when the peer took nothing for so long, and [`Disconnect::Transport`].
pub async fn write<S: Transport>(
    stream: &mut S,
    frames: &mut Outbox,
    patience: Duration,
) -> Result<bool, Disconnect> {
    let mut waited = false;
    let mut rest = frames.as_mut_slice();
    while !rest.is_empty() {
        // At first without the cost of a timer.
        let once = poll_fn(|cx| Poll::Ready(poll_write(stream, cx, rest))).await;
        let written = match once {
            Poll::Ready(written) => written,
            Poll::Pending => {
                // Unless it is our own scheduler that wants a pause.
                waited |= has_budget_remaining();
                let write = poll_fn(|cx| poll_write(stream, cx, rest));
                match timeout(patience, write).await {
                    Ok(written) => written,
                    // The kernel may have taken bytes that it did not tell of.
                    Err(_) => match not_zero(stream.try_write_anyway(rest)) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            return Err(Disconnect::Stalled);
                        }
                        written => written,
                    },
                }
            }
        };
        rest = advance(rest, written.map_err(Disconnect::from_io)?);
    }
    frames.clear();
    Ok(waited)
}

/// Hands `frames` to the kernel, as many at once as it takes.
fn poll_write<S: AsyncWrite + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
    frames: &[Piece],
) -> Poll<io::Result<usize>> {
    let stream = Pin::new(stream);
    let written = match frames {
        [only] => stream.poll_write(cx, only),
        frames => with_slices(frames, |slices| stream.poll_write_vectored(cx, slices)),
    };
    written.map(not_zero)
}

/// Writes with as much of `frames` as one write hands to the kernel.
fn with_slices<T>(frames: &[Piece], write: impl FnOnce(&[IoSlice<'_>]) -> T) -> T {
    let mut slices = SmallVec::<[_; SLICES_PER_WRITE]>::new();
    let frames = frames.iter().take(SLICES_PER_WRITE);
    slices.extend(frames.map(|frame| IoSlice::new(frame)));
    write(&slices)
}

/// The outcome of a write that had something to write: nothing written is an error.
fn not_zero(written: io::Result<usize>) -> io::Result<usize> {
    match written {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        written => written,
    }
}

/// Takes `written` bytes off the front of `frames`; returns those that are left.
fn advance(mut frames: &mut [Piece], mut written: usize) -> &mut [Piece] {
    while let Some(first) = frames.first_mut() {
        let length = first.len();
        if written < length {
            first.advance(written);
            break;
        }
        written -= length;
        frames = &mut frames[1..];
    }
    frames
}

#[cfg(test)]
pub(crate) mod tests {
    use std::task::Waker;

    use tokio::io::DuplexStream;
    use tokio::net::TcpListener;

    use super::*;

    /// A socket and its client.
    async fn pair() -> (Socket<TcpStream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        let socket = Socket::new(accepted.unwrap().0, Arc::default(), incoming());
        (socket, client.unwrap())
    }

    fn incoming() -> Arc<Incoming> {
        Arc::new(Incoming::new(1 << 20, Duration::from_secs(10)))
    }

    /// A frame of text, masked with zeros.
    const FRAME: &[u8] = b"\x81\x82\0\0\0\0hi";

    /// Reads the one message that `client` sends while a task of its own waits for it, which nothing
    /// but the socket wakes.
    async fn exchange(mut socket: Socket<TcpStream>, client: &mut TcpStream) -> Socket<TcpStream> {
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

        fn try_write(&mut self, frames: &[Piece]) -> io::Result<usize> {
            write_now(self, frames)
        }

        fn try_write_anyway(&mut self, frames: &[Piece]) -> io::Result<usize> {
            self.takes |= self.takes_in_silence;
            let written = self.try_write(frames);
            self.takes = false;
            written
        }
    }

    impl Transport for DuplexStream {
        fn poll_readable(&self, _: &mut Context<'_>) -> Poll<()> {
            Poll::Ready(())
        }

        fn try_write(&mut self, frames: &[Piece]) -> io::Result<usize> {
            write_now(self, frames)
        }
    }

    fn write_now<S: AsyncWrite + Unpin>(stream: &mut S, frames: &[Piece]) -> io::Result<usize> {
        let mut cx = Context::from_waker(Waker::noop());
        match poll_write(stream, &mut cx, frames) {
            Poll::Ready(written) => written,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    #[test]
    fn a_pong_that_had_to_wait_leaves_as_soon_as_it_can() {
        let ping = Stub::new(b"\x89\x82\0\0\0\0hi");
        let mut socket = Socket::new(ping, Arc::default(), incoming());
        let mut cx = Context::from_waker(Waker::noop());
        for takes in [false, true] {
            socket.stream.takes = takes;
            assert!(socket.poll_read(&mut cx, |_| {}).is_pending());
        }
        assert_eq!(socket.stream.taken, b"\x8a\x02hi");
    }

    #[tokio::test]
    async fn what_a_full_socket_does_not_take_is_written_later() {
        let mut socket = Socket::new(Stub::new(b""), Arc::default(), incoming());
        let mut frames: Outbox = [Piece::from("one"), Piece::from("two")]
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
            let mut frames: Outbox = [Piece::from("one"), Piece::from("two")]
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
