//! A room in all interleavings of a publisher and a client: what each of them waits for comes.

use std::task::Poll;

use super::log::tests::{Numbers, config};
use super::sync::model::{block_on, explore, spawn};
use super::{Follow, Subscription};
use crate::config::Mode;
use crate::disconnect::Disconnect;
use crate::format::Outbox;

/// A room with a history, and a queue of one message for each client.
fn room() -> Numbers {
    Numbers::new(&config(Mode::Broadcast, 10, 1))
}

/// Has a client read until it `is_done`, or to the end of a sealed room. It polls only where it has to.
fn follow(client: &mut Subscription, mut is_done: impl FnMut(&mut Subscription) -> bool) {
    block_on(|cx| {
        loop {
            match client.poll_next(cx, &mut Outbox::new()) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(Disconnect::ShuttingDown)) => return Poll::Ready(()),
                Poll::Ready(given) => assert!(given.is_ok()),
            }
            if is_done(client) {
                return Poll::Ready(());
            }
            if client.is_watched() {
                return Poll::Pending;
            }
        }
    });
}

/// The sequence number of the last message that a client has.
fn last(client: &Subscription) -> u64 {
    client.last().map_or(0, |id| id.seq)
}

#[test]
fn a_client_that_joins_and_overflows_amid_publications_gets_all_of_them() {
    for is_sealed in [false, true] {
        explore(move || {
            let mut room = room();
            let joined = room.room.clone();
            let publisher = spawn(move || {
                room.publish(1);
                room.publish(1);
                if is_sealed {
                    room.room.seal();
                }
            });
            let (mut client, _) = joined.subscribe(Follow::default(), false);
            follow(&mut client, |client| !is_sealed && last(client) == 2);
            assert_eq!(last(&client), 2);
            publisher.join().unwrap();
        });
    }
}

#[test]
fn a_publisher_waits_for_a_client_until_it_acknowledges_or_leaves() {
    for leaves in [false, true] {
        explore(move || {
            let mut room = room();
            let (mut client, _) = room.room.subscribe(Follow::default(), false);
            let reader = spawn(move || {
                if leaves {
                    return;
                }
                follow(&mut client, Subscription::take_ping_request);
                client.acknowledge(client.last().unwrap());
            });
            room.publish(1);
            let collector = room.publish_with_receipts();
            let mut wait = Box::pin(collector.wait());
            block_on(|cx| wait.as_mut().poll(cx));
            assert_eq!(collector.delivered(), usize::from(!leaves));
            reader.join().unwrap();
        });
    }
}
