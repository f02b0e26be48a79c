//! Writing: shared bytes in few writes, bounded waits, and the end of a connection.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::task::coop::has_budget_remaining;
use tokio::task::yield_now;
use tokio::time::timeout;

use super::read::poll_discard;
use super::stream::Transport;
use crate::disconnect::Disconnect;

/// How many chunks one write hands to the kernel.
const SLICES_PER_WRITE: usize = 64;

/// Hands `chunks` to the stream, once, without waiting; returns how many bytes it took and how
/// many chunks are left.
///
/// # Errors
/// [`Disconnect::Transport`] and [`Disconnect::Gone`].
pub(crate) fn try_write(
    stream: &mut impl Transport,
    chunks: &mut [Bytes],
) -> Result<(usize, usize), Disconnect> {
    match not_zero(with_slices(chunks, |slices| stream.try_write(slices))) {
        Ok(written) => Ok((written, advance(chunks, written).len())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok((0, chunks.len())),
        Err(error) => Err(Disconnect::from_io(error)),
    }
}

/// Has the stream send what it holds back of earlier writes, as far as that needs no wait; returns
/// whether that is all.
///
/// # Errors
/// [`Disconnect::Transport`] and [`Disconnect::Gone`].
pub(crate) fn try_flush(stream: &mut (impl AsyncWrite + Unpin)) -> Result<bool, Disconnect> {
    match Pin::new(stream).poll_flush(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(flushed) => flushed.map(|()| true).map_err(Disconnect::from_io),
        Poll::Pending => Ok(false),
    }
}

/// Writes and flushes all of `chunks`, in as few writes as possible; returns whether the peer delayed
/// them.
///
/// # Errors
/// [`Disconnect::Stalled`] if the peer took nothing for `patience`, and [`Disconnect::Transport`].
pub(crate) async fn write<S: Transport>(
    stream: &mut S,
    chunks: &mut [Bytes],
    patience: Duration,
) -> Result<bool, Disconnect> {
    let mut waited = false;
    let mut rest = chunks;
    while !rest.is_empty() {
        // The first try costs no timer.
        let once = poll_fn(|cx| Poll::Ready(poll_write(stream, cx, rest))).await;
        let written = match once {
            Poll::Ready(written) => written,
            Poll::Pending => {
                // Without tokio's budget it is the scheduler that asks for a pause, and not the peer.
                waited |= has_budget_remaining();
                let write = poll_fn(|cx| poll_write(stream, cx, rest));
                match timeout(patience, write).await {
                    Ok(written) => written,
                    // The kernel may take bytes before it reports that it is writable.
                    Err(_) => {
                        match not_zero(with_slices(rest, |slices| stream.try_write_anyway(slices)))
                        {
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                                return Err(Disconnect::Stalled);
                            }
                            written => written,
                        }
                    }
                }
            }
        };
        rest = advance(rest, written.map_err(Disconnect::from_io)?);
    }
    if !try_flush(stream)? {
        waited = true;
        let flushed = timeout(patience, stream.flush()).await;
        flushed
            .map_err(|_| Disconnect::Stalled)?
            .map_err(Disconnect::from_io)?;
    }
    Ok(waited)
}

/// Hands `chunks` to the stream, as many at once as it takes.
fn poll_write<S: AsyncWrite + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
    chunks: &[Bytes],
) -> Poll<io::Result<usize>> {
    let stream = Pin::new(stream);
    let written = match chunks {
        [only] => stream.poll_write(cx, only),
        chunks => with_slices(chunks, |slices| stream.poll_write_vectored(cx, slices)),
    };
    written.map(not_zero)
}

/// Calls `write` with the first [`SLICES_PER_WRITE`] of `chunks`.
fn with_slices<T>(chunks: &[Bytes], write: impl FnOnce(&[IoSlice<'_>]) -> T) -> T {
    if let [only] = chunks {
        return write(&[IoSlice::new(only)]);
    }
    let mut slices = SmallVec::<[_; SLICES_PER_WRITE]>::new();
    let chunks = chunks.iter().take(SLICES_PER_WRITE);
    slices.extend(chunks.map(|chunk| IoSlice::new(chunk)));
    write(&slices)
}

/// Makes an error of a write of no bytes.
fn not_zero(written: io::Result<usize>) -> io::Result<usize> {
    match written {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        written => written,
    }
}

/// Removes the first `written` bytes of `chunks`; returns the chunks that are left.
fn advance(mut chunks: &mut [Bytes], mut written: usize) -> &mut [Bytes] {
    while let Some(first) = chunks.first_mut() {
        let length = first.len();
        if written < length {
            first.advance(written);
            break;
        }
        written -= length;
        chunks = &mut chunks[1..];
    }
    chunks
}

/// Shuts down the sending side and reads until the peer closes its own: unread data would cause a
/// reset, which loses what was written last (RFC 6455, section 7.1.1).
pub(crate) async fn linger<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    if stream.shutdown().await.is_ok() {
        while poll_fn(|cx| poll_discard(stream, cx)).await {
            // A peer that never stops sending must not occupy the thread.
            yield_now().await;
        }
    }
}
