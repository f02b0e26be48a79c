//! `wscast`: a WebSocket echo and broadcast server.
//!
//! A room is one ordered log, broadcasting is appending to it, and a client is a cursor into it.
//! The modules stand in layers; a module imports from lower layers only, and a test checks that:
//!
//! | layer | modules |
//! |---|---|
//! | 7 | [`server`]: bind, accept, drain |
//! | 6 | [`http`]: one exchange; [`session`]: one WebSocket from the 101 to the close frame; [`follower`]: one stream of Server-Sent Events |
//! | 5 | [`routes`]: what a request is answered |
//! | 4 | [`hub`]: the rooms by name |
//! | 3 | [`admission`]: who may come in; [`content`]: what a body is; [`head`]: what is wrong with a request; [`refusal_log`]: what the log says of refusals; [`request`]: what a request says; [`backend`]: where logs live; [`socket`]: reads and writes of the kernel |
//! | 2 | [`room`]: one log, joining, catching up, fan-out; [`decoder`]: from bytes to messages; [`refusal`]: a request that is not granted |
//! | 1 | [`history`]: the tail of a log; [`queue`]: what waits for one client; [`wire`]: formats; [`door`]: which bytes go past tungstenite; [`page`]: the client page; [`farewell`]: what the log says of a client; [`message_log`]: what it says of messages; [`heartbeat`]: pings and patience; [`listener`]: every address of a host; [`ops`]: log, signals, descriptors, what is said at start |
//! | 0 | [`config`], [`disconnect`], [`excerpt`]: what is shown of a peer's words; [`incoming`]: what is not a message yet, [`message`], [`port_owner`]: what has a port already; [`ranking`]: the largest of many; [`room_name`]: one spelling of each |
//!
//! A message flows like this: a [`session`] takes from its [`socket`] what one read brought, and
//! publishes it as one batch; the [`wire`] format encodes it, once; the [`backend`] has the
//! [`room`] number it, remember it and queue it for everybody; each session writes what its
//! [`queue`] holds.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by it"))]

pub mod admission;
pub mod backend;
pub mod config;
pub mod content;
pub mod decoder;
pub mod disconnect;
pub mod door;
pub mod excerpt;
pub mod farewell;
pub mod follower;
pub mod head;
pub mod heartbeat;
pub mod history;
pub mod http;
pub mod hub;
pub mod incoming;
pub mod listener;
pub mod message;
pub mod message_log;
pub mod ops;
pub mod page;
pub mod port_owner;
pub mod queue;
pub mod ranking;
pub mod refusal;
pub mod refusal_log;
pub mod request;
pub mod room;
pub mod room_name;
pub mod routes;
pub mod server;
pub mod session;
pub mod socket;
pub mod wire;
