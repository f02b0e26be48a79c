//! A socket: what one read brought becomes messages, and shared frames leave in few writes.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::task::coop::has_budget_remaining;
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::config::Config;
use crate::decoder::Decoder;
use crate::disconnect::Disconnect;
use crate::door::PARTIAL_MAX;
use crate::message::{Kind, Outbox};

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

/// One WebSocket on the server's side.
///
/// A write is completed before anything else is done, so frames cannot be torn.
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

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
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
    pub fn try_write(
        &mut self,
        cx: &mut Context<'_>,
        frames: &mut Outbox,
    ) -> Result<bool, Disconnect> {
        self.put_answers_first(frames);
        if frames.is_empty() {
            return Ok(true);
        }
        if let Poll::Ready(written) = poll_write(&mut self.stream, cx, frames) {
            let left = advance(frames, written.map_err(Disconnect::Transport)?).len();
            let written = frames.len() - left;
            frames.drain(..written);
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
    frames: &[Bytes],
) -> Poll<io::Result<usize>> {
    let written = match frames {
        // The plain call is the cheaper one.
        [only] => ready!(Pin::new(stream).poll_write(cx, only)),
        frames => {
            let mut slices = [IoSlice::new(&[]); SLICES_PER_WRITE];
            let count = frames.len().min(SLICES_PER_WRITE);
            for (slice, frame) in slices.iter_mut().zip(frames) {
                *slice = IoSlice::new(frame);
            }
            ready!(Pin::new(stream).poll_write_vectored(cx, &slices[..count]))
        }
    };
    Poll::Ready(match written {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        written => written,
    })
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
