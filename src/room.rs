//! A room: one ordered log, and the clients that follow it.

pub mod history;
pub mod log;
pub mod name;
pub mod queue;
pub mod receipts;
pub mod subscription;

pub use log::{Follow, Room, Sealed, Start};
pub use name::RoomName;
pub use receipts::Receipts;
pub use subscription::Subscription;
