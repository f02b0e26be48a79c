//! The stream below hyper. It does what hyper does not: it passes on the head of a request, to find what
//! is wrong with it; bounds how long a write stands still; and watches for the end of a peer that waits.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::phase::Link;
use crate::transport::Transport;

/// See the module.
#[derive(Debug)]
pub(super) struct Socket<S> {
    pub(super) stream: S,
    link: Arc<Link>,
    /// How long a write may stand still, and when one has done so.
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S: Transport> Socket<S> {
    pub(super) fn new(stream: S, link: Arc<Link>, patience: Duration) -> Self {
        Self {
            stream,
            link,
            patience,
            stalled: None,
        }
    }

    /// Writes; what hyper itself answers is discarded, as it has no body.
    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if !self.link.is_answering() {
            return Poll::Ready(Ok(slices.iter().map(|it| it.len()).sum()));
        }
        if let Poll::Ready(written) = write(Pin::new(&mut self.stream), cx) {
            self.stalled = None;
            return Poll::Ready(written);
        }
        ready!(self.poll_stalled(cx));
        // The kernel may take bytes before it reports that it is writable.
        match self.stream.try_write_anyway(slices) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            written => Poll::Ready(written),
        }
    }

    /// Waits as long as a write, or a flush, may stand still.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let patience = self.patience;
        let timer = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(timer.as_mut().poll(cx));
        self.stalled = None;
        Poll::Ready(())
    }
}

impl<S: Transport> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        let received = &buffer.filled()[before..];
        if !received.is_empty() {
            this.link.received(received);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Transport> AsyncWrite for Socket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, &[IoSlice::new(bytes)], |stream, cx| {
            stream.poll_write(cx, bytes)
        })
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, slices, |stream, cx| {
            stream.poll_write_vectored(cx, slices)
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes in each of its turns, once all is written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if Pin::new(&mut this.stream).poll_flush(cx)?.is_pending() {
            ready!(this.poll_stalled(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        this.stalled = None;
        this.link.flushed();
        // While it answers, hyper does not read, and would not notice the end.
        if this.link.is_busy()
            && !this.link.is_closed()
            && this.stream.poll_read_closed(cx).is_ready()
        {
            this.link.peer_closed();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
