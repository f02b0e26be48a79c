//! Bytes in and out of the kernel; no messages.

#[cfg(test)]
pub(crate) mod doubles;
pub(crate) mod listener;
mod peer;
mod port_owner;
pub(crate) mod read;
mod socket;
mod stream;
pub(crate) mod write;

pub(crate) use peer::Peer;
pub(crate) use stream::{Stream, Transport};
