//! The stream of a connection: TCP, or a pipe in tests.

use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::TcpStream;

/// A stream of bytes whose readiness can be asked for.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Waits until a read may bring bytes, as a read does, at a lower cost.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Hands `slices` to the kernel, as many at once as it takes; returns how many bytes it took.
    /// Registers no wake-up.
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

impl Transport for TcpStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        // The readiness that the runtime knows already needs no lock.
        match self.try_io(Interest::READABLE, || Ok(())) {
            Ok(()) => Poll::Ready(()),
            Err(_) => self.poll_read_ready(cx).map(|_| ()),
        }
    }

    fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match slices {
            // The plain call is cheaper than the vectored one.
            [only] => Self::try_write(self, only),
            slices => self.try_write_vectored(slices),
        }
    }

    fn try_write_anyway(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        SockRef::from(&*self).send_vectored(slices)
    }
}
