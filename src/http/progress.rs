//! How far an exchange has come: known on both sides of hyper, which tells it to neither.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::hub::Membership;

/// A stream that keeps the head of a request, to find what is wrong with it, and that discards hyper's
/// own answers, which have no body.
pub(super) struct HeadRecorder<S> {
    pub(super) stream: S,
    pub(super) progress: Progress,
    pub(super) bytes: Vec<u8>,
}

impl<S> HeadRecorder<S> {
    pub(super) fn new(stream: S, progress: &Progress) -> Self {
        Self {
            stream,
            progress: progress.clone(),
            bytes: Vec::new(),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HeadRecorder<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        if this.progress.is_reading_head() {
            this.bytes.extend_from_slice(&buffer.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HeadRecorder<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.progress.is_reading_head() {
            true => Poll::Ready(Ok(bytes.len())),
            false => Pin::new(&mut self.stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The state of an exchange, shared by its service and its connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress(pub(super) Arc<Mutex<State>>);

#[derive(Debug, Default)]
pub(super) enum State {
    #[default]
    ReadingHead,
    ReadingBody,
    /// It is being answered, which may take this long.
    Answering(Duration),
    HandedOver(Box<Handover>),
}

#[derive(Debug)]
pub(super) struct Handover {
    pub(super) room: String,
    pub(super) membership: Membership,
    pub(super) head: Bytes,
}

impl Progress {
    /// How long the answer may take; `None` before the request is complete.
    pub(super) fn allowance(&self) -> Option<Duration> {
        match &*self.0.lock() {
            State::ReadingHead | State::ReadingBody => None,
            State::Answering(time) => Some(*time),
            State::HandedOver(_) => Some(Duration::ZERO),
        }
    }

    /// Whether the head of the request is incomplete.
    pub(super) fn is_reading_head(&self) -> bool {
        matches!(&*self.0.lock(), State::ReadingHead)
    }

    /// Whether the answer is handed over as well, for the event stream to write.
    pub(super) fn is_handed_over(&self) -> bool {
        matches!(&*self.0.lock(), State::HandedOver(handover) if !handover.head.is_empty())
    }
}
