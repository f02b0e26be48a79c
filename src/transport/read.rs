//! Reading: one buffer for all connections of a thread.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// Bytes of the buffer of a thread.
pub(crate) const BUFFER: usize = 576 * 1024;

/// The most bytes of one read that are discarded.
const DISCARDED_AT_ONCE: usize = 32 * 1024;

thread_local! {
    /// Shared, so that an idle connection needs no buffer.
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into());
}

/// Calls `f` with the buffer of this thread.
pub(crate) fn with_buffer<T>(f: impl FnOnce(&mut [u8]) -> T) -> T {
    SHARED.with_borrow_mut(|buffer| f(buffer))
}

/// Reads and discards bytes; returns whether there were any.
pub(crate) fn poll_discard<S: AsyncRead + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
) -> Poll<bool> {
    with_buffer(|buffer| {
        let mut read = ReadBuf::new(&mut buffer[..DISCARDED_AT_ONCE]);
        let outcome = ready!(Pin::new(stream).poll_read(cx, &mut read));
        Poll::Ready(outcome.is_ok() && !read.filled().is_empty())
    })
}
