//! Reading: one buffer for all connections of a thread.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::protocol::fast_path::PARTIAL_MAX;

/// The most bytes of one read while messages are large, as these are cheap by the byte. So many bytes
/// of small messages would occupy the thread too long.
pub(crate) const READ_OF_LARGE_MESSAGES: usize = 512 * 1024;
/// The same while messages are small.
pub(crate) const READ_OF_SMALL_MESSAGES: usize = 32 * 1024;

thread_local! {
    /// Shared, so that an idle connection needs no buffer.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; PARTIAL_MAX + READ_OF_LARGE_MESSAGES].into());
}

/// Calls `f` with the buffer of this thread.
pub(crate) fn with_buffer<T>(f: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| f(buffer))
}

/// Reads and discards bytes; returns whether there were any.
pub(crate) fn poll_discard<S: AsyncRead + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
) -> Poll<bool> {
    with_buffer(|buffer| {
        let mut read = ReadBuf::new(&mut buffer[..READ_OF_SMALL_MESSAGES]);
        let outcome = ready!(Pin::new(stream).poll_read(cx, &mut read));
        Poll::Ready(outcome.is_ok() && !read.filled().is_empty())
    })
}
