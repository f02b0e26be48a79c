//! Reading: one buffer for all connections of a thread.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::protocol::fast_path::PARTIAL_MAX;

/// What one read of the kernel may bring. Large messages are cheap by the byte; of small ones this
/// many bytes would be thousands, and keep the thread from all others for too long.
pub const READ_OF_LARGE_MESSAGES: usize = 512 * 1024;
/// The same where messages are small.
pub const READ_OF_SMALL_MESSAGES: usize = 32 * 1024;

thread_local! {
    /// So that an idle connection needs no buffer of its own.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; PARTIAL_MAX + READ_OF_LARGE_MESSAGES].into());
}

/// Lends the buffer of this thread.
pub fn with_buffer<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| use_it(buffer))
}

/// Reads something and discards it; returns whether there was anything.
pub fn poll_discard<S: AsyncRead + Unpin>(stream: &mut S, cx: &mut Context<'_>) -> Poll<bool> {
    with_buffer(|buffer| {
        let mut read = ReadBuf::new(&mut buffer[..READ_OF_SMALL_MESSAGES]);
        let outcome = ready!(Pin::new(stream).poll_read(cx, &mut read));
        Poll::Ready(outcome.is_ok() && !read.filled().is_empty())
    })
}
