//! Bytes in and out of the kernel; no messages.

pub mod listener;
pub mod port_owner;
pub mod read;
pub mod stream;
pub mod write;

pub use stream::Transport;
