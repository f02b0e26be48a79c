//! A socket of the kernel as a [`Transport`]: what its readiness does not tell.

use std::io::{self, IoSlice, Read};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::stream::Transport;

/// A socket of the runtime, `S`.
#[derive(Debug)]
pub(crate) struct Socket<S> {
    socket: S,
    /// Whether there may be bytes that the runtime does not report, as it reports only what is new: to
    /// wait for the end, it had to forget them.
    may_have_unread: AtomicBool,
}

impl<S> From<S> for Socket<S> {
    fn from(socket: S) -> Self {
        Self {
            socket,
            may_have_unread: AtomicBool::new(false),
        }
    }
}

/// Implements [`Transport`] for sockets of the runtime: they have methods in common, and no trait.
macro_rules! impl_transport {
    ($($socket:ty),+) => {$(
        impl Transport for Socket<$socket> {
            fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
                if self.may_have_unread.load(Ordering::Relaxed) {
                    return Poll::Ready(());
                }
                // The readiness that the runtime knows already needs no lock.
                match self.socket.try_io(Interest::READABLE, || Ok(())) {
                    Ok(()) => Poll::Ready(()),
                    Err(_) => self.socket.poll_read_ready(cx).map(|_| ()),
                }
            }

            fn poll_read_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
                while ready!(self.socket.poll_read_ready(cx)).is_ok() {
                    match self.socket.ready(Interest::READABLE).now_or_never() {
                        Some(Ok(ready)) if !ready.is_read_closed() => {}
                        _ => break,
                    }
                    // What is unread has to be forgotten, or the wait for more would be over at once.
                    self.may_have_unread.store(true, Ordering::Relaxed);
                    let forget = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                    self.socket.try_io(Interest::READABLE, forget).ok();
                }
                Poll::Ready(())
            }

            async fn broken(&self) -> io::Error {
                match self.socket.ready(Interest::ERROR).await {
                    Ok(_) => match self.socket.take_error() {
                        Ok(Some(error)) | Err(error) => error,
                        // A write has reported it already.
                        Ok(None) => io::ErrorKind::ConnectionReset.into(),
                    },
                    Err(error) => error,
                }
            }

            fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
                match slices {
                    // The plain call is cheaper than the vectored one.
                    [only] => self.socket.try_write(only),
                    slices => self.socket.try_write_vectored(slices),
                }
            }

            fn try_write_anyway(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
                SockRef::from(&self.socket).send_vectored(slices)
            }
        }
    )+};
}

impl_transport!(TcpStream);

impl<S: AsyncRead + AsFd + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let may_have_unread = this.may_have_unread.get_mut();
        if *may_have_unread {
            match (&*SockRef::from(&this.socket)).read(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    *may_have_unread = false;
                }
                read => {
                    buffer.advance(read?);
                    return Poll::Ready(Ok(()));
                }
            }
        }
        Pin::new(&mut this.socket).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future, poll_fn};
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;
    use crate::transport::doubles::tcp_pair;

    async fn soon<F: Future>(future: F) -> F::Output {
        timeout(Duration::from_secs(10), future).await.unwrap()
    }

    /// Waits until a byte is there to be read, and leaves it there.
    async fn byte_arrives(stream: &Socket<TcpStream>) {
        assert_eq!(soon(stream.socket.peek(&mut [0])).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_fin_is_noticed_behind_unread_bytes_or_none() {
        for stray in [&b""[..], b"stray"] {
            let (mut stream, mut peer) = tcp_pair().await;
            let mut closed = poll_fn(|cx| stream.poll_read_closed(cx));
            peer.write_all(stray).await.unwrap();
            if !stray.is_empty() {
                byte_arrives(&stream).await;
            }
            assert!((&mut closed).now_or_never().is_none());
            peer.shutdown().await.unwrap();
            soon(closed).await;
            let mut bytes = [0; 8];
            assert_eq!(soon(stream.read(&mut bytes)).await.unwrap(), stray.len());
            assert_eq!(&bytes[..stray.len()], stray);
        }
    }

    #[tokio::test]
    async fn a_reset_is_noticed() {
        for half_closed in [false, true] {
            let (stream, mut peer) = tcp_pair().await;
            if half_closed {
                peer.shutdown().await.unwrap();
                soon(poll_fn(|cx| stream.poll_read_closed(cx))).await;
            }
            let mut broken = Box::pin(stream.broken());
            assert!((&mut broken).now_or_never().is_none());
            peer.set_zero_linger().unwrap();
            drop(peer);
            let error = soon(broken).await.kind();
            let is_reset =
                [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe].contains(&error);
            assert!(is_reset, "{error:?}");
            soon(poll_fn(|cx| stream.poll_read_closed(cx))).await;
        }
    }

    #[tokio::test]
    async fn bytes_alone_do_not_end_the_wait_and_can_be_read_after_it() {
        let (mut stream, mut peer) = tcp_pair().await;
        let mut buffer = [0; 8];
        for bytes in [b"first", b"again"] {
            peer.write_all(bytes).await.unwrap();
            byte_arrives(&stream).await;
            let closed = poll_fn(|cx| stream.poll_read_closed(cx));
            assert!(closed.now_or_never().is_none());
            soon(poll_fn(|cx| stream.poll_readable(cx))).await;
            assert_eq!(soon(stream.read(&mut buffer)).await.unwrap(), bytes.len());
            assert_eq!(&buffer[..bytes.len()], bytes);
            assert!(stream.read(&mut buffer).now_or_never().is_none());
            let readable = poll_fn(|cx| stream.poll_readable(cx));
            assert!(readable.now_or_never().is_none());
        }
    }
}
