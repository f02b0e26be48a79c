//! What publishing allocates: as much for a thousand clients as for one.

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use wscast::audience::Audience;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Allocations of one message to `clients` clients that keep up.
fn allocations_of_a_message(clients: usize) -> usize {
    let mut audience = Audience::new(clients);
    let mut allocations = 0;
    // The first rounds allocate the queues.
    for _ in 0..3 {
        let region = Region::new(ALLOCATOR);
        audience.publish(b"hello");
        allocations = region.change().allocations;
        assert_eq!(audience.receive(), clients);
    }
    allocations
}

#[test]
fn publishing_allocates_per_message_and_not_per_client() {
    let for_one = allocations_of_a_message(1);
    assert!((1..10).contains(&for_one), "{for_one}");
    assert_eq!(allocations_of_a_message(1000), for_one);
}
