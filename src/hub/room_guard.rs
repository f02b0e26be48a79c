//! A place in a room: it keeps the room open, and publishes to it.

use std::future::ready;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Hub, Publication, PublishError, State};
use crate::format::{Frames, Plain};
use crate::message::{Key, Unavailable};
use crate::room::{Announced, Behaviour, Claim, Claimed, Delivery, Room};
use crate::store::{Found, Health, NumberedBy, Publishing};

/// Keeps a room in the registry. When the last place is given back, a room without messages is removed,
/// and one with messages becomes evictable: a store does not forget it.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) hub: Arc<Hub>,
    pub(super) name: Arc<str>,
}

impl Drop for Place {
    fn drop(&mut self) {
        // Declared before the lock, so that the room is freed after the lock is released.
        let _removed;
        let mut rooms = self.hub.rooms.lock();
        let rooms = &mut *rooms;
        rooms.departures += 1;
        let entry = rooms
            .by_name
            .get_mut(&self.name)
            .expect("a room with a client stays");
        entry.clients -= 1;
        if entry.clients > 0 {
            return;
        }
        match &entry.state {
            State::Open(room) if !room.is_empty() => {
                entry.departed = rooms.departures;
                rooms.empty.insert(entry.departed, self.name.clone());
            }
            _ => _removed = rooms.remove(&self.name),
        }
    }
}

/// A place in a room that is open.
#[derive(Debug)]
pub(crate) struct RoomGuard {
    pub(super) place: Place,
    pub(super) room: Arc<Room>,
}

impl RoomGuard {
    /// The encoder of this room's messages.
    pub(crate) fn plain(&self) -> &Arc<Plain> {
        &self.place.hub.plain
    }

    /// What the room does with a message.
    pub(crate) fn behaviour(&self) -> Behaviour {
        self.room.behaviour()
    }

    /// The name of the room.
    pub(crate) fn name(&self) -> &str {
        &self.place.name
    }

    /// Publishes messages to the room, and requests receipts for the last of them if `receipts`. They are
    /// delivered when this returns, or when the store has placed them.
    ///
    /// # Errors
    /// [`PublishError`]; the messages are in no log then.
    pub(crate) fn publish(
        &self,
        frames: Frames,
        receipts: bool,
    ) -> Result<Publication, PublishError> {
        self.publish_claimed(frames, receipts, None)
    }

    /// Claims the key of a message that is to be published once; the store knows of messages that the room has
    /// evicted.
    ///
    /// # Errors
    /// [`Unavailable`] if the store cannot be asked.
    pub(crate) async fn claim(&self, key: &Key, receipts: bool) -> Result<Claim, Unavailable> {
        let claim = self.room.claim(key, receipts);
        let Place { hub, name } = &self.place;
        if let (Claim::Granted(_), Some(backend)) = (&claim, hub.store.backend())
            && let Some(Found { batch, clients }) = backend.find(name, key).await?
        {
            return Ok(Claim::Published(Delivery {
                batch: Arc::new(batch),
                queues: 0,
                clients,
                receipts: None,
            }));
        }
        Ok(claim)
    }

    /// Whether the store keeps what is published.
    pub(crate) fn is_store_well(&self) -> bool {
        self.place.hub.store.health() == Health::Well
    }

    /// [Publishes](Self::publish) a message whose key, if it has one, is claimed: others wait for the key until
    /// the message is delivered.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub(crate) fn publish_claimed(
        &self,
        frames: Frames,
        receipts: bool,
        claimed: Option<Claimed>,
    ) -> Result<Publication, PublishError> {
        let Place { hub, name } = &self.place;
        let backend = hub.store.backend();
        if let Some(backend) = backend
            && backend.admit()? == NumberedBy::Store
        {
            let Announced { clients, next } = self.room.announce()?;
            let publications = &hub.publications;
            let (ticket, pending) = publications.begin(self.again(), receipts, claimed);
            let publication = Publishing {
                frames,
                clients,
                next,
                ticket,
            };
            backend.append(name, publication);
            return Ok(Publication::Pending(pending));
        }
        let delivery = self.room.append(frames, receipts, |batch, clients| {
            if let Some(backend) = backend {
                backend.keep(name, batch, clients);
            }
        })?;
        hub.settle(&self.room);
        Ok(Publication::Delivered(delivery))
    }

    /// Whether the store keeps up: otherwise publishers wait.
    pub(crate) fn is_ready(&self) -> bool {
        self.place.hub.store.is_ready()
    }

    /// Waits until the store keeps up.
    pub(crate) fn ready(&self) -> BoxFuture<'static, ()> {
        match self.place.hub.store.backend() {
            Some(backend) => backend.ready(),
            None => ready(()).boxed(),
        }
    }

    /// Another place in the same room.
    fn again(&self) -> Self {
        let Place { hub, name } = &self.place;
        let mut rooms = hub.rooms.lock();
        let entry = rooms.by_name.get_mut(name).expect("this place keeps it");
        entry.clients += 1;
        let place = Place {
            hub: hub.clone(),
            name: name.clone(),
        };
        Self {
            place,
            room: self.room.clone(),
        }
    }
}
