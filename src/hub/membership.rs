//! A client's membership of a room, and the welcome to it.

use bytes::Bytes;

use super::{Place, RoomGuard};
use crate::format::{Event, Seconds};
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
    /// The first event for the client: the welcome, unless there is nothing to say.
    pub(crate) fn greeting(&self) -> Option<Bytes> {
        let Place { hub, name } = &self.room_guard.place;
        let times = &hub.times;
        let welcome = Event::Welcome {
            text: hub.service.welcome(),
            room: name,
            mode: self.room_guard.behaviour().name(),
            you: self.subscription.connection(),
            last_id: self.start.last.map(|id| id.to_string()),
            resumed: self.start.resumed,
            missed: self.start.missed,
            clients: self.start.clients,
            max_message_size: hub.limits.max_message_size.bytes(),
            ping_interval: Seconds(times.ping_interval.get()),
            ping_timeout: Seconds(times.ping_timeout.get()),
        };
        self.subscription.encoding().event(&welcome)
    }
}
