//! `wscast`: a WebSocket echo and broadcast server.
//!
//! ARCHITECTURE.md tells what each folder holds, which imports which, and the way of a message. In
//! short: a room is one ordered log, broadcasting is appending to it, and a client is a cursor into it.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by it"))]

pub mod admission;
#[doc(hidden)]
pub mod audience;
pub mod client;
pub mod config;
pub mod disconnect;
pub mod excerpt;
pub mod format;
pub mod http;
pub mod hub;
pub mod message;
pub mod ops;
pub mod protocol;
pub mod room;
pub mod server;
pub mod store;
pub mod transport;
