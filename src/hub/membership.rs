//! A client's membership of a room, and the welcome to it.

use bytes::Bytes;

use super::RoomGuard;
use crate::format::{self, Event, Format};
use crate::room::{Start, Subscription};

/// A client's membership of a room.
#[derive(Debug)]
pub(crate) struct Membership {
    /// Its place in the log of the room.
    pub(crate) subscription: Subscription,
    /// Where the subscription starts.
    pub(crate) start: Start,
    /// Keeps the room in the registry.
    pub(crate) room_guard: RoomGuard,
}

impl Membership {
    /// The first event for the client: the welcome, unless it is empty.
    pub(crate) fn greeting(&self) -> Option<Bytes> {
        let RoomGuard { hub, name, .. } = &self.room_guard;
        let format = self.subscription.format();
        if format == Format::Plain {
            return hub.plain.greeting();
        }
        let welcome = Event::Welcome {
            text: hub.service.welcome(),
            room: name,
            mode: self.room_guard.behaviour().name(),
            last_id: self.start.last.map(|id| id.to_string()),
            resumed: self.start.resumed,
            missed: self.start.missed,
        };
        Some(format::render_event(&welcome, format))
    }
}
