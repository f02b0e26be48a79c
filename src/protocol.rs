//! RFC 6455: frames and their contents. No IO, no room, no options.

mod answers;
pub(crate) mod decoder;
pub(crate) mod fast_path;
pub(crate) mod frame;
pub(crate) mod handshake;
pub(crate) mod slow_path;
