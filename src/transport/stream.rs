//! What a connection asks of its stream, and the streams that are accepted.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::socket::Socket;

/// A stream of bytes whose readiness can be asked for.
///
/// A stream may keep a buffer above its socket, as TLS does: bytes that are decrypted and not yet read,
/// or taken and not yet sent. The socket reports nothing of the former, so the stream answers for both.
/// What it has taken and not sent is for [`poll_flush`](AsyncWrite::poll_flush): writers flush before
/// they wait for anything else. It is so little that a flush is about as long as one write.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Waits until a read may bring bytes or the end, as a read does, at a lower cost.
    ///
    /// It is ready while the stream itself holds bytes to be read, whatever the socket reports. It may be
    /// ready in vain: only a read that is pending means that there is nothing.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Waits until the peer sends no more, after a FIN or a reset, whatever of it is unread: in the kernel
    /// or in the stream.
    ///
    /// It takes nothing away: reads that follow bring each byte, and need no further one to be woken. So
    /// an end that only a read can find (`close_notify` of TLS) is noticed with the FIN behind it.
    fn poll_read_closed(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Waits until the connection is broken: by a reset, or as the peer acknowledges nothing.
    ///
    /// A peer that closed answers the next byte with a reset; one that only half-closed reads on.
    fn broken(&self) -> impl Future<Output = io::Error> + Send;

    /// Writes `slices`, as many at once as the stream takes; returns how many bytes it took. Registers no
    /// wake-up.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if it takes nothing now.
    fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// The same, even if the kernel has not yet reported that it is writable: it reports that only once
    /// much of its buffer is free.
    ///
    /// # Errors
    /// As [`try_write`](Self::try_write).
    fn try_write_anyway(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.try_write(slices)
    }
}

/// The stream of an accepted connection.
#[derive(Debug)]
pub(crate) enum Stream {
    /// TCP, as it comes.
    Tcp(Socket<TcpStream>),
}

/// Evaluates an expression for the stream of any kind.
macro_rules! with {
    ($stream:expr, $it:ident => $call:expr) => {
        match $stream {
            Stream::Tcp($it) => $call,
        }
    };
}

impl Transport for Stream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        with!(self, it => it.poll_readable(cx))
    }

    fn poll_read_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        with!(self, it => it.poll_read_closed(cx))
    }

    async fn broken(&self) -> io::Error {
        with!(self, it => it.broken().await)
    }

    fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        with!(self, it => it.try_write(slices))
    }

    fn try_write_anyway(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        with!(self, it => it.try_write_anyway(slices))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        with!(self.get_mut(), it => Pin::new(it).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        with!(self.get_mut(), it => Pin::new(it).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        with!(self.get_mut(), it => Pin::new(it).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        with!(self, it => it.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(self.get_mut(), it => Pin::new(it).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(self.get_mut(), it => Pin::new(it).poll_shutdown(cx))
    }
}
