//! `wscast`: a WebSocket echo and broadcast server.
//!
//! A room is one ordered log, broadcasting is appending to it, and a client is a cursor into it.
//! The modules stand in layers; a module imports from lower layers only, and a test checks that:
//!
//! | layer | modules |
//! |---|---|
//! | 6 | [`server`]: bind, accept, drain |
//! | 5 | [`http`]: routes and the upgrade; [`session`]: one WebSocket from the 101 to the close frame |
//! | 4 | [`hub`]: the rooms by name |
//! | 3 | [`backend`]: where logs live; [`socket`]: reads and writes of the kernel |
//! | 2 | [`room`]: one log, joining, catching up, fan-out; [`decoder`]: from bytes to messages |
//! | 1 | [`history`]: the tail of a log; [`queue`]: what waits for one client; [`wire`]: formats; [`door`]: which bytes go past tungstenite; [`page`]: the client page |
//! | 0 | [`config`], [`disconnect`], [`heartbeat`], [`message`] |
//!
//! A message flows like this: a [`session`] takes from its [`socket`] what one read brought, and
//! publishes it as one batch; the [`wire`] format encodes it, once; the [`backend`] has the
//! [`room`] number it, remember it and queue it for everybody; each session writes what its
//! [`queue`] holds.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by it"))]

pub mod backend;
pub mod config;
pub mod decoder;
pub mod disconnect;
pub mod door;
pub mod heartbeat;
pub mod history;
pub mod http;
pub mod hub;
pub mod message;
pub mod page;
pub mod queue;
pub mod room;
pub mod server;
pub mod session;
pub mod socket;
pub mod wire;
