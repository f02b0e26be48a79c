//! Bytes in and out of the kernel; no messages.

pub(crate) mod listener;
pub(crate) mod port_owner;
pub(crate) mod read;
pub(crate) mod stream;
pub(crate) mod write;

pub(crate) use stream::Transport;
