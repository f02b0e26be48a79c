//! A socket: what one read brought becomes messages, and shared frames leave in few writes.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::coop::has_budget_remaining;
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::config::Config;
use crate::decoder::Decoder;
use crate::disconnect::Disconnect;
use crate::door::PARTIAL_MAX;
use crate::message::{Kind, Outbox, Piece};

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
    config: Arc<Config>,
}

impl<S: Transport> Socket<S> {
    /// A socket whose handshake is done.
    pub fn new(stream: S, config: Arc<Config>) -> Self {
        Self {
            stream,
            decoder: Decoder::new(config.max_message_size.bytes()),
            read_size: READ_OF_SMALL_MESSAGES,
            turn: 0,
            heard: false,
            torn: false,
            config,
        }
    }

    /// Gives `sink` the messages that came right behind the handshake.
    pub fn decode_ahead(&mut self, mut ahead: Vec<u8>, mut sink: impl FnMut(Kind, &[u8])) {
        self.decoder.decode(&mut ahead, &mut sink);
    }

    /// Gives `sink` the messages of the next read that brings any, or a pong.
    ///
    /// # Errors
    /// Why there will be no more, once all messages before that were given.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        mut sink: impl FnMut(Kind, &[u8]),
    ) -> Poll<Result<(), Disconnect>> {
        // Most turns are the room's: then there is nothing here but to be woken when there is.
        if self.decoder.is_idle() && self.stream.poll_readable(cx).is_pending() {
            self.turn = 0;
            return Poll::Pending;
        }
        while !self.is_turn_over() {
            let (mut messages, before) = (0, self.turn);
            let had_pong = self.decoder.has_pong();
            let read = self.poll_decode(cx, &mut |kind, payload| {
                messages += 1;
                sink(kind, payload);
            });
            self.answer(cx);
            if self.turn > before {
                // What comes next will probably be of the same kind.
                self.read_size = match self.turn - before >= messages * LARGE_MESSAGE {
                    true => READ_OF_LARGE_MESSAGES,
                    false => READ_OF_SMALL_MESSAGES,
                };
            }
            // Of a pong that nobody wants it is said once.
            if messages > 0 || (!had_pong && self.decoder.has_pong()) {
                return Poll::Ready(Ok(()));
            }
            if let Some(why) = self.decoder.take_end() {
                return Poll::Ready(Err(why));
            }
            if read.is_pending() {
                self.turn = 0;
                return Poll::Pending;
            }
        }
        self.turn = 0;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads the kernel once, and decodes what it brought.
    fn poll_decode(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut impl FnMut(Kind, &[u8]),
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
                Ok(()) => self.decoder.end(io::ErrorKind::UnexpectedEof.into()),
                Err(error) => self.decoder.end(error),
            }
            self.decoder.decode(read.filled_mut(), sink);
            Poll::Ready(())
        })
    }

    /// Writes answers as far as the kernel takes them; the rest waits for the next chance.
    fn answer(&mut self, cx: &mut Context<'_>) {
        while let Some(answers) = self.decoder.answers() {
            match Pin::new(&mut self.stream).poll_write(cx, answers) {
                Poll::Ready(Ok(0)) => return self.decoder.end(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => drop(answers.drain(..written)),
                Poll::Ready(Err(error)) => return self.decoder.end(error),
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

    /// The payload of the last pong that was read, once.
    pub fn take_pong(&mut self) -> Option<Bytes> {
        self.decoder.take_pong()
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
                let left = advance(frames, written).len();
                frames.drain(..frames.len() - left);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(Disconnect::Transport(error)),
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
        let waited = write(&mut self.stream, frames, self.config.write_timeout.get()).await?;
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
    /// Takes at most the close timeout, and a moment where there is nobody to be told.
    pub async fn finish(&mut self, why: &Disconnect) {
        if !self.torn && !matches!(why, Disconnect::Transport(_)) {
            let limit = self.config.close_timeout.get();
            timeout(limit, self.close(why)).await.ok();
        }
    }

    /// The closing handshake (RFC 6455, section 7.1.2), as far as the client takes part in it.
    async fn close(&mut self, why: &Disconnect) {
        // Answers that wait could leave no space for the close frame.
        if self.write(&mut Outbox::new()).await.is_err() {
            return;
        }
        let frame = why.close_frame();
        let ours = frame.is_some();
        self.decoder.close(frame);
        if self.write(&mut Outbox::new()).await.is_err() || !ours {
            return;
        }
        if why.is_violation() {
            return linger(&mut self.stream).await;
        }
        while poll_fn(|cx| self.poll_read(cx, |_, _| {})).await.is_ok() {
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
        tokio::io::copy(stream, &mut tokio::io::sink()).await.ok();
    }
}

/// Writes and removes all of `frames`, in as few writes as possible; returns whether the peer kept
/// them waiting.
///
/// # Errors
/// [`Disconnect::Stalled`] when the peer took nothing for so long, and [`Disconnect::Transport`].
pub async fn write<S: AsyncWrite + Unpin>(
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
                let written = timeout(patience, write).await;
                written.map_err(|_| Disconnect::Stalled)?
            }
        };
        rest = advance(rest, written.map_err(Disconnect::Transport)?);
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
        let socket = Socket::new(accepted.unwrap().0, Arc::default());
        (socket, client.unwrap())
    }

    /// A frame of text, masked with zeros.
    const FRAME: &[u8] = b"\x81\x82\0\0\0\0hi";

    /// Reads the one message that `client` sends while a task of its own waits for it, which nothing
    /// but the socket wakes.
    async fn exchange(mut socket: Socket<TcpStream>, client: &mut TcpStream) -> Socket<TcpStream> {
        let reader = tokio::spawn(async move {
            let mut messages = Vec::new();
            poll_fn(|cx| socket.poll_read(cx, |_, payload| messages.push(payload.to_vec())))
                .await
                .unwrap();
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
        taken: Vec<u8>,
    }

    impl Stub {
        pub(crate) fn new(input: &'static [u8]) -> Self {
            Self {
                input,
                repeats: false,
                takes: true,
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
        let mut socket = Socket::new(ping, Arc::default());
        let mut cx = Context::from_waker(Waker::noop());
        for takes in [false, true] {
            socket.stream.takes = takes;
            assert!(socket.poll_read(&mut cx, |_, _| {}).is_pending());
        }
        assert_eq!(socket.stream.taken, b"\x8a\x02hi");
    }

    #[tokio::test]
    async fn what_a_full_socket_does_not_take_is_written_later() {
        let mut socket = Socket::new(Stub::new(b""), Arc::default());
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

    #[tokio::test]
    async fn a_message_is_heard_however_often_there_was_none() {
        let (mut socket, mut client) = pair().await;
        for _ in 0..3 {
            socket = exchange(socket, &mut client).await;
        }
    }
}
