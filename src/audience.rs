//! What measurements need: a room and its clients without sockets, to see what publishing costs by itself,
//! and the frames of a client.

use std::sync::Arc;
use std::task::{Context, Waker};

use crate::config::{Config, Mode, Size};
use crate::format::{BatchBuilder, Outbox, Plain};
use crate::message::{Kind, MessageId};
use crate::protocol::frame::{Header, encode_masked};
use crate::room::{Follow, Origin, Room, Subscription};

/// Clients that keep up with one room, which keeps no history.
#[derive(Debug)]
pub struct Audience {
    plain: Plain,
    room: Arc<Room>,
    builder: BatchBuilder,
    subscriptions: Vec<Subscription>,
}

impl Audience {
    /// So many clients.
    pub fn new(clients: usize) -> Self {
        let config = Config::with(|config| {
            config.service.mode = Mode::Broadcast;
            config.history.limit = 0;
            config.limits.max_queue = usize::MAX;
            config.limits.max_queue_bytes = Size::from(isize::MAX as usize);
        });
        let room = Arc::new(Room::new(
            config.service.mode.into(),
            &config.history,
            &config.limits,
            Origin {
                next: MessageId { epoch: 1, seq: 1 },
                tail: Vec::new(),
                replay_from: 1,
                archive: None,
            },
            Arc::default(),
        ));
        let subscribe = || room.subscribe(Follow::default(), false).0;
        Self {
            plain: Plain::new(&config.service),
            builder: BatchBuilder::default(),
            subscriptions: (0..clients).map(|_| subscribe()).collect(),
            room,
        }
    }

    /// Publishes one text to all clients.
    pub fn publish(&mut self, text: &[u8]) {
        self.plain.encode(Kind::Text, text, &mut self.builder);
        let frames = self.builder.take().expect("it was encoded just now");
        let delivery = self.room.append(frames, false, |_, _| {});
        delivery.expect("the room is not sealed");
    }

    /// Has each client take what waits for it; returns how many had something.
    pub fn receive(&mut self) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        let ready = |it: &mut Subscription| it.poll_next(&mut cx, &mut Outbox::new()).is_ready();
        self.subscriptions
            .iter_mut()
            .map(ready)
            .filter(|it| *it)
            .count()
    }
}

/// A frame as a client sends it, whose first byte is `first`, masked with zeros.
pub fn masked_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    encode_masked(first, payload, [0; 4])
}

/// How long the frame at the beginning of `bytes` is, if all of it is there.
pub fn frame_length(bytes: &[u8]) -> Option<usize> {
    let header = Header::parse(bytes)?;
    let length = (header.length + header.payload) as usize;
    (length <= bytes.len()).then_some(length)
}
