//! What publishing allocates: as much for a thousand clients as for one.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::alloc::System;
use std::sync::Arc;
use std::task::{Context, Waker};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use wscast::config::{Config, Mode};
use wscast::format::Outbox;
use wscast::format::{BatchBuilder, Plain};
use wscast::message::Kind;
use wscast::room::{Follow, Room, Subscription};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Allocations of one message to so many clients that keep up.
fn allocations_of_a_message(clients: usize) -> usize {
    let config = Config::with(|config| {
        config.service.mode = Mode::Broadcast;
        config.history.limit = 0;
    });
    let plain = Plain::new(&config);
    let room = Arc::new(Room::new(&config, 1, Arc::default()));
    let mut subscriptions: Vec<Subscription> = (0..clients)
        .map(|_| room.subscribe(Follow::default()).0)
        .collect();
    let mut draft = BatchBuilder::default();
    let mut allocations = 0;
    // The first rounds set the queues up.
    for _ in 0..3 {
        let region = Region::new(ALLOCATOR);
        plain.encode(Kind::Text, b"hello", &mut draft);
        room.deliver(draft.take().unwrap()).unwrap();
        allocations = region.change().allocations;
        for subscription in &mut subscriptions {
            let mut frames = Outbox::new();
            let mut cx = Context::from_waker(Waker::noop());
            assert!(subscription.poll_next(&mut cx, &mut frames).is_ready());
        }
    }
    allocations
}

#[test]
fn publishing_allocates_for_a_message_and_not_for_a_client() {
    let for_one = allocations_of_a_message(1);
    assert!((1..10).contains(&for_one), "{for_one}");
    assert_eq!(allocations_of_a_message(1000), for_one);
}
