//! The clients of a room: WebSocket sessions and event streams, one task each.

pub mod event_stream;
pub mod heartbeat;
pub mod incoming;
pub mod message_log;
pub mod record;
pub mod session;
pub mod websocket;
