//! Rooms that are opened: at once, or when the store has been read.

use std::ops::Range;
use std::sync::Arc;

use futures_util::future::{BoxFuture, Shared};
use futures_util::{FutureExt, TryFutureExt};

use super::Hub;
use crate::format::Batch;
use crate::message::Unavailable;
use crate::room::{Archive, Behaviour, Origin, Room};
use crate::store::{Backend, Opened, Opening};

/// A room, or the wait for it.
#[derive(Debug, Clone)]
pub(super) enum State {
    Open(Arc<Room>),
    Opening(Shared<BoxFuture<'static, Result<Arc<Room>, Unavailable>>>),
}

/// The way of a room to its messages in the store.
#[derive(Debug)]
struct Shelf {
    backend: Arc<dyn Backend>,
    name: Arc<str>,
}

impl Archive for Shelf {
    fn read(&self, seqs: Range<u64>) -> BoxFuture<'static, Result<Vec<Batch>, Unavailable>> {
        self.backend.read(&self.name, seqs)
    }

    fn has_lost(&self) -> bool {
        self.backend.has_lost(&self.name)
    }
}

impl Hub {
    /// Opens the room `name` with this behaviour.
    pub(super) fn open(self: &Arc<Self>, name: &Arc<str>, behaviour: Behaviour) -> State {
        let archive = self.store.backend().map(|backend| {
            let (backend, name) = (backend.clone(), name.clone());
            Arc::new(Shelf { backend, name }) as Arc<dyn Archive>
        });
        let (history, limits) = (self.history.clone(), self.limits.clone());
        let total = self.total.clone();
        let room = move |opened| {
            let Opened {
                next,
                tail,
                replay_from,
            } = opened;
            let origin = Origin {
                next,
                tail,
                replay_from,
                archive,
            };
            Arc::new(Room::new(behaviour, &history, &limits, origin, total))
        };
        match self.store.open_room(name) {
            Opening::Now(opened) => State::Open(room(opened)),
            Opening::Later(opened) => State::Opening(opened.map_ok(room).boxed().shared()),
        }
    }

    /// The room `name` has been opened.
    pub(super) fn set_open(&self, name: &str, room: &Arc<Room>) {
        let mut rooms = self.rooms.lock();
        let is_sealed = rooms.sealed;
        let entry = rooms.by_name.get_mut(name).expect("a place keeps it");
        if let State::Opening(_) = entry.state {
            entry.state = State::Open(room.clone());
            if is_sealed {
                room.seal();
            }
            drop(rooms);
            self.settle(room);
        }
    }
}
