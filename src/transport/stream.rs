//! The stream of a connection: TCP, or a pipe in tests.

use std::future::Future;
use std::io::{self, IoSlice, Read};
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::TcpStream;

/// A stream of bytes whose readiness can be asked for.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Waits until a read may bring bytes, as a read does, at a lower cost.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Waits until the peer sends no more, after a FIN or a reset, whatever of it is unread; reads
    /// nothing.
    ///
    /// A plain read that follows may miss bytes that are there already, and wait for the next ones:
    /// the kernel reports only what is new. [`try_read_anyway`](Self::try_read_anyway) misses none.
    fn poll_read_closed(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Waits until the connection is broken: by a reset, or as the peer acknowledges nothing.
    ///
    /// A peer that closed answers the next byte with a reset; one that only half-closed reads on.
    fn broken(&self) -> impl Future<Output = io::Error> + Send;

    /// Reads what there is, even if the kernel has not reported it since
    /// [`poll_read_closed`](Self::poll_read_closed); 0 at the end. Registers no wake-up.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is nothing now.
    fn try_read_anyway(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

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

    fn poll_read_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        while ready!(self.poll_read_ready(cx)).is_ok() {
            match self.ready(Interest::READABLE).now_or_never() {
                Some(Ok(ready)) if !ready.is_read_closed() => {}
                _ => break,
            }
            // What is unread has to be forgotten, or the wait for more would be over at once.
            let forget = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            self.try_io(Interest::READABLE, forget).ok();
        }
        Poll::Ready(())
    }

    async fn broken(&self) -> io::Error {
        match self.ready(Interest::ERROR).await {
            Ok(_) => match self.take_error() {
                Ok(Some(error)) | Err(error) => error,
                // A write has reported it already.
                Ok(None) => io::ErrorKind::ConnectionReset.into(),
            },
            Err(error) => error,
        }
    }

    fn try_read_anyway(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*SockRef::from(&*self)).read(buffer)
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    /// A connection: the server's side and the peer's.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap());
        let (accepted, peer) = tokio::join!(listener.accept(), peer);
        (accepted.unwrap().0, peer.unwrap())
    }

    async fn soon<F: Future>(future: F) -> F::Output {
        timeout(Duration::from_secs(10), future).await.unwrap()
    }

    /// Waits until a byte is there to be read, and leaves it there.
    async fn byte_arrives(stream: &TcpStream) {
        assert_eq!(soon(stream.peek(&mut [0])).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_fin_is_noticed_behind_unread_bytes_or_none() {
        for stray in [&b""[..], b"stray"] {
            let (mut stream, mut peer) = pair().await;
            let mut closed = poll_fn(|cx| stream.poll_read_closed(cx));
            peer.write_all(stray).await.unwrap();
            if !stray.is_empty() {
                byte_arrives(&stream).await;
            }
            assert!((&mut closed).now_or_never().is_none());
            peer.shutdown().await.unwrap();
            soon(closed).await;
            let mut bytes = [0; 8];
            assert_eq!(stream.try_read_anyway(&mut bytes).unwrap(), stray.len());
            assert_eq!(&bytes[..stray.len()], stray);
        }
    }

    #[tokio::test]
    async fn a_reset_is_noticed() {
        for half_closed in [false, true] {
            let (stream, mut peer) = pair().await;
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
        let (mut stream, mut peer) = pair().await;
        let mut buffer = [0; 8];
        for bytes in [b"first", b"again"] {
            peer.write_all(bytes).await.unwrap();
            byte_arrives(&stream).await;
            let closed = poll_fn(|cx| stream.poll_read_closed(cx));
            assert!(closed.now_or_never().is_none());
            assert_eq!(stream.try_read_anyway(&mut buffer).unwrap(), bytes.len());
            assert_eq!(&buffer[..bytes.len()], bytes);
            let nothing = stream.try_read_anyway(&mut buffer).unwrap_err();
            assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        }
    }
}
