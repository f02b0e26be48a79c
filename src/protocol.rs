//! RFC 6455: frames and their contents. No IO, no room, no options.

pub mod decoder;
pub mod fast_path;
pub mod frame;
pub mod handshake;
pub mod slow_path;
