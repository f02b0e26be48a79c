//! A room: one ordered log, and the clients that follow it.

pub(crate) mod history;
pub(crate) mod log;
#[cfg(test)]
mod models;
pub(crate) mod name;
pub(crate) mod queue;
pub(crate) mod reader;
pub(crate) mod receipts;
pub(crate) mod subscription;
mod sync;

pub(crate) use log::{Delivery, Follow, Room, Sealed, Start};
pub(crate) use name::RoomName;
pub(crate) use receipts::Collector;
pub(crate) use subscription::Subscription;
