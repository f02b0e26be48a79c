//! A room: one ordered log, and the clients that follow it.

pub(crate) mod archive;
pub(crate) mod behaviour;
pub(crate) mod copies;
pub(crate) mod history;
pub(crate) mod ids;
pub(crate) mod join;
pub(crate) mod keys;
pub(crate) mod log;
#[cfg(test)]
mod models;
pub(crate) mod name;
pub(crate) mod presence;
pub(crate) mod queue;
pub(crate) mod reader;
pub(crate) mod receipts;
pub(crate) mod subscription;
mod sync;
pub(crate) mod total;

pub(crate) use archive::Archive;
pub(crate) use behaviour::Behaviour;
pub(crate) use join::{Follow, OnGap, Start};
pub(crate) use keys::{Claim, Claimed};
pub(crate) use log::{Announced, Delivery, Origin, Placed, Room, Sealed};
pub(crate) use name::RoomName;
pub(crate) use presence::{Clients, Headcount};
pub(crate) use subscription::Subscription;
pub(crate) use total::Total;
