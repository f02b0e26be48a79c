//! What `Room::deliver` costs by the number of clients that follow the room.

#![allow(clippy::unwrap_used, reason = "a benchmark that fails says where")]

use std::cell::RefCell;
use std::sync::Arc;
use std::task::{Context, Waker};

use divan::Bencher;
use wscast::config::{Config, Mode, Size};
use wscast::format::Outbox;
use wscast::format::{BatchBuilder, Plain};
use wscast::message::Kind;
use wscast::room::{Follow, Room, Subscription};

fn main() {
    divan::main();
}

#[divan::bench(args = [1, 100, 10_000])]
fn publish(bencher: Bencher<'_, '_>, clients: usize) {
    let config = Config::with(|config| {
        config.service.mode = Mode::Broadcast;
        config.limits.max_queue = usize::MAX;
        config.limits.max_queue_bytes = Size::from(isize::MAX as usize);
    });
    let plain = Plain::new(&config);
    let room = Arc::new(Room::new(&config, 1, Arc::default()));
    let subscriptions: Vec<Subscription> = (0..clients)
        .map(|_| room.subscribe(Follow::default()).0)
        .collect();
    let subscriptions = RefCell::new(subscriptions);
    bencher
        .with_inputs(|| {
            let mut cx = Context::from_waker(Waker::noop());
            for subscription in subscriptions.borrow_mut().iter_mut() {
                let _ = subscription.poll_next(&mut cx, &mut Outbox::new());
            }
            let mut draft = BatchBuilder::default();
            plain.encode(Kind::Text, &[b'x'; 64], &mut draft);
            draft.take().unwrap()
        })
        .bench_local_values(|frames| room.deliver(frames).unwrap());
}
