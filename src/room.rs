//! A room: one ordered log, and the clients that follow it.

pub(crate) mod archive;
pub(crate) mod behaviour;
pub(crate) mod copies;
pub(crate) mod history;
pub(crate) mod ids;
pub(crate) mod log;
#[cfg(test)]
mod models;
pub(crate) mod name;
pub(crate) mod queue;
pub(crate) mod reader;
pub(crate) mod receipts;
pub(crate) mod subscription;
mod sync;

pub(crate) use archive::Archive;
pub(crate) use behaviour::Behaviour;
pub(crate) use log::{Delivery, Follow, OnGap, Origin, Placed, Room, Sealed, Start, Total};
pub(crate) use name::RoomName;
pub(crate) use subscription::Subscription;
