//! The clients of a room: WebSocket sessions and event streams, one task each.

pub(crate) mod event_stream;
pub(crate) mod heartbeat;
pub(crate) mod incoming;
pub(crate) mod message_log;
pub(crate) mod record;
pub(crate) mod session;
pub(crate) mod unfinished;
pub(crate) mod websocket;
