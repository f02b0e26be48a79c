//! What follows a room: a WebSocket or an event stream, one task each.

pub mod event_stream;
pub mod heartbeat;
pub mod incoming;
pub mod message_log;
pub mod record;
pub mod session;
pub mod websocket;
