//! RFC 6455: frames, and what they say. No IO, no room, no options.

pub mod decoder;
pub mod fast_path;
pub mod frame;
pub mod handshake;
pub mod slow_path;
