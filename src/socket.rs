//! A socket: tungstenite with the thread's read buffer under it and shared writes past it.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{SinkExt, Stream};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::task::yield_now;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{Error, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

use crate::config::Config;
use crate::disconnect::Disconnect;
use crate::message::Payload;

/// What one read of the kernel may bring: a few large messages or many small ones.
const READ_BUFFER: usize = 64 * 1024;

/// How often a client may be read before the others of its thread have their turn; without this
/// bound one client that never pauses starves them.
const READS_PER_TURN: u8 = 4;

/// tungstenite's own read buffer, one a connection: what it takes from the thread's at a time.
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
/// Messages are read through tungstenite, which also answers pings and close frames. Frames that
/// are shared by many clients are written past it; nothing else is done until such a write is
/// complete, so frames cannot be torn.
#[derive(Debug)]
pub struct Socket<S> {
    websocket: WebSocketStream<Buffered<S>>,
    write_timeout: Duration,
    close_timeout: Duration,
    /// Why there is nothing more to read, where that came behind messages.
    ended: Option<Disconnect>,
    /// Reads since the client last had nothing to say.
    turns: u8,
    /// A write was given up, maybe amid a frame: nothing can follow.
    torn: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// A socket whose handshake is done; `ahead` is what the client sent right behind it.
    pub async fn new(stream: S, ahead: Bytes, config: &Config) -> Self {
        let buffered = Buffered {
            stream,
            ahead,
            reads: 0,
            heard: false,
            answers: Vec::new(),
        };
        let max = Some(config.max_message_size.bytes());
        let limits = WebSocketConfig::default()
            .read_buffer_size(FRAME_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(ANSWER_BUFFER)
            .max_message_size(max)
            .max_frame_size(max);
        Self {
            websocket: WebSocketStream::from_raw_socket(buffered, Role::Server, Some(limits)).await,
            write_timeout: config.write_timeout.get(),
            close_timeout: config.close_timeout.get(),
            ended: None,
            turns: 0,
            torn: false,
        }
    }

    /// Appends to `messages` those of the next read that brings any.
    ///
    /// # Errors
    /// Why there will be no more, once all messages before that were given.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        messages: &mut Vec<Payload>,
    ) -> Poll<Result<(), Disconnect>> {
        for _ in 0..READS_PER_TURN {
            self.buffered().reads = 1;
            self.take_read(cx, messages);
            if let Err(why) = self.buffered().poll_answer(cx) {
                self.ended.get_or_insert(why);
            }
            if !messages.is_empty() {
                self.turns += 1;
                return Poll::Ready(Ok(()));
            }
            if let Some(why) = self.ended.take() {
                return Poll::Ready(Err(why));
            }
            if self.buffered().reads > 0 {
                self.turns = 0;
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes all messages that one read of the kernel brought.
    fn take_read(&mut self, cx: &mut Context<'_>, messages: &mut Vec<Payload>) {
        while self.ended.is_none() {
            match Pin::new(&mut self.websocket).poll_next(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(Message::Text(text)))) => messages.push(Payload::Text(text)),
                Poll::Ready(Some(Ok(Message::Binary(bytes)))) => {
                    messages.push(Payload::Binary(bytes));
                }
                Poll::Ready(Some(Ok(Message::Close(frame)))) => {
                    self.ended = Some(closed(frame));
                }
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => self.ended = Some(reason(error)),
                Poll::Ready(None) => self.ended = Some(Disconnect::ByClient(None)),
            }
        }
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
        mem::take(&mut self.buffered().heard)
    }

    /// Writes and removes whole frames, in as few writes as possible; returns whether the client
    /// kept them waiting.
    ///
    /// # Errors
    /// [`Disconnect::Stalled`] when the client took nothing for the write timeout, and
    /// [`Disconnect::Transport`].
    pub async fn write(&mut self, frames: &mut Vec<Bytes>) -> Result<bool, Disconnect> {
        let answers = mem::take(&mut self.buffered().answers);
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
                    let write = poll_fn(|cx| self.buffered().poll_write_frames(cx, rest));
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
        poll_fn(|cx| Poll::Ready(self.buffered().poll_write_frames(cx, frames))).await
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
        let mut unread = Vec::new();
        while poll_fn(|cx| self.poll_read(cx, &mut unread)).await.is_ok() {
            unread.clear();
            self.end_turn().await;
        }
        if why.is_violation() {
            linger(&mut self.buffered().stream).await;
        }
    }

    fn buffered(&mut self) -> &mut Buffered<S> {
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

/// The stream under tungstenite: read ahead into the thread's buffer, answers held together.
#[derive(Debug)]
struct Buffered<S> {
    stream: S,
    /// Read ahead, and not yet taken by tungstenite.
    ahead: Bytes,
    /// How many more reads of the kernel are allowed.
    reads: u8,
    /// Whether anything was read.
    heard: bool,
    /// Answers of tungstenite's that are to be written before anything else.
    answers: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Buffered<S> {
    /// Writes answers as far as the kernel takes them; the rest waits for the next chance.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Result<(), Disconnect> {
        while !self.answers.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.answers) {
                Poll::Ready(Ok(written)) if written > 0 => drop(self.answers.drain(..written)),
                Poll::Ready(Ok(_)) => {
                    return Err(Disconnect::Transport(io::ErrorKind::WriteZero.into()));
                }
                Poll::Ready(Err(error)) => return Err(Disconnect::Transport(error)),
                Poll::Pending => break,
            }
        }
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

impl<S: AsyncRead + Unpin> AsyncRead for Buffered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_empty() {
            if this.reads == 0 {
                // Whoever set this bound comes back by itself.
                return Poll::Pending;
            }
            return BUFFER.with_borrow_mut(|buffer| {
                let mut read = ReadBuf::new(buffer);
                std::task::ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
                this.reads -= 1;
                let bytes = read.filled();
                this.heard |= !bytes.is_empty();
                let (now, ahead) = bytes.split_at(bytes.len().min(buf.remaining()));
                buf.put_slice(now);
                if !ahead.is_empty() {
                    this.ahead = Bytes::copy_from_slice(ahead);
                }
                Poll::Ready(Ok(()))
            });
        }
        let now = this.ahead.split_to(this.ahead.len().min(buf.remaining()));
        buf.put_slice(&now);
        if this.ahead.is_empty() {
            this.ahead = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Buffered<S> {
    /// Takes an answer of tungstenite's; it is written together with others.
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.answers.len() + buf.len() > ANSWER_BUFFER {
            // The client takes none of them; tungstenite tries again when it reads.
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
