//! What publishing costs by the number of clients that follow the room.

use std::cell::RefCell;

use divan::Bencher;
use wscast::audience::Audience;

fn main() {
    divan::main();
}

#[divan::bench(args = [1, 100, 10_000])]
fn publish(bencher: Bencher<'_, '_>, clients: usize) {
    let audience = RefCell::new(Audience::new(clients));
    bencher
        .with_inputs(|| audience.borrow_mut().receive())
        .bench_local_values(|_| audience.borrow_mut().publish(&[b'x'; 64]));
}
