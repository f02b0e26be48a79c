//! What carries a connection: TCP, and in tests a pipe.

use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::TcpStream;

/// A stream of bytes whose readiness can be asked for.
pub trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Waits until a read may bring something; a read that brings nothing does the same, and costs
    /// more.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Hands `slices` to the kernel, as many at once as it takes; returns how many bytes it took.
    /// No task is woken when it would take more.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) when it takes nothing now.
    fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// The same, also where the kernel did not say yet that it takes more: that it says only once
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
        // What the runtime has noticed already is known without a lock.
        match self.try_io(Interest::READABLE, || Ok(())) {
            Ok(()) => Poll::Ready(()),
            Err(_) => self.poll_read_ready(cx).map(|_| ()),
        }
    }

    fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match slices {
            // The plain call is the cheaper one, here as in `poll_write`.
            [only] => Self::try_write(self, only),
            slices => self.try_write_vectored(slices),
        }
    }

    fn try_write_anyway(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        SockRef::from(&*self).send_vectored(slices)
    }
}
