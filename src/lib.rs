//! `wscast`: a WebSocket echo and broadcast server.
//!
//! ARCHITECTURE.md tells what each folder holds, which imports which, and the way of a message. In
//! short: a room is one ordered log, broadcasting is appending to it, and a client is a cursor into it.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by it"))]

#[cfg(test)]
extern crate self as wscast;

pub(crate) mod admission;
#[doc(hidden)]
pub mod audience;
pub(crate) mod client;
pub mod config;
pub(crate) mod disconnect;
pub(crate) mod excerpt;
pub(crate) mod format;
#[doc(hidden)]
pub mod fuzzing;
pub(crate) mod http;
pub(crate) mod hub;
pub(crate) mod message;
pub mod ops;
pub(crate) mod protocol;
pub(crate) mod room;
pub mod server;
pub(crate) mod store;
pub mod tools;
pub(crate) mod transport;

#[cfg(test)]
#[allow(dead_code, reason = "the integration tests use the rest")]
#[path = "../tests/it/harness.rs"]
mod harness;
