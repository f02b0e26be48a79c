//! Streams for tests: a pipe, and one with buffers above another stream.

use std::future::{Future, pending};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use super::Transport;
use super::socket::Socket;

/// A TCP connection: the server's side and the peer's.
pub(crate) async fn tcp_pair() -> (Socket<TcpStream>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap());
    let (accepted, peer) = tokio::join!(listener.accept(), peer);
    (accepted.unwrap().0.into(), peer.unwrap())
}

impl Transport for DuplexStream {
    fn poll_readable(&self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
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
}

/// Writes without a wait.
pub(crate) fn write_now<S: AsyncWrite + Unpin>(
    stream: &mut S,
    slices: &[IoSlice<'_>],
) -> io::Result<usize> {
    let mut cx = Context::from_waker(Waker::noop());
    match Pin::new(stream).poll_write_vectored(&mut cx, slices) {
        Poll::Ready(written) => written,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// A stream above another, as TLS is: it reads more than it passes on, and sends nothing unless it is
/// flushed.
#[derive(Debug)]
pub(crate) struct Buffered<S> {
    pub(crate) below: S,
    /// Bytes that were read and not passed on.
    received: Vec<u8>,
    /// The most bytes passed on by one read, as of one record of TLS.
    record: usize,
    /// Bytes that were taken and not sent.
    unsent: Vec<u8>,
}

/// The most bytes that are taken and not sent.
const UNSENT_MAX: usize = 1024;

impl<S: Transport> Buffered<S> {
    pub(crate) fn new(below: S, record: usize) -> Self {
        Self {
            below,
            received: Vec::new(),
            record,
            unsent: Vec::new(),
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let sent = ready!(Pin::new(&mut self.below).poll_write(cx, &self.unsent))?;
            self.unsent.drain(..sent);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Transport> Transport for Buffered<S> {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.received.is_empty() {
            true => self.below.poll_readable(cx),
            false => Poll::Ready(()),
        }
    }

    fn poll_read_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.below.poll_read_closed(cx)
    }

    fn broken(&self) -> impl Future<Output = io::Error> + Send {
        self.below.broken()
    }

    fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        write_now(self, slices)
    }
}

impl<S: Transport> AsyncRead for Buffered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.received.is_empty() {
            let mut bytes = [0; 4096];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.below).poll_read(cx, &mut read))?;
            self.received.extend_from_slice(read.filled());
        }
        let length = self.record.min(self.received.len()).min(buffer.remaining());
        buffer.put_slice(&self.received[..length]);
        self.received.drain(..length);
        Poll::Ready(Ok(()))
    }
}

impl<S: Transport> AsyncWrite for Buffered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.unsent.len() == UNSENT_MAX {
            ready!(self.poll_send(cx))?;
        }
        let length = bytes.len().min(UNSENT_MAX - self.unsent.len());
        self.unsent.extend_from_slice(&bytes[..length]);
        Poll::Ready(Ok(length))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.below).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.below).poll_shutdown(cx)
    }
}
