//! Unfinished messages and bodies.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, interval, timeout};
use wscast::config::Size;

use crate::harness::*;
use crate::process::*;

/// A masked frame without its last `missing` bytes.
fn cut_short(first: u8, length: usize, missing: usize) -> Vec<u8> {
    let mut frame = frame(first, &vec![b'x'; length]);
    frame.truncate(frame.len() - missing);
    frame
}

/// How many dripping clients fill the space for unfinished messages, and at what pace.
struct Drip {
    largest: usize,
    clients: usize,
    /// Bytes of each message that are not sent at first.
    missing: usize,
    write_timeout: u64,
}

/// Fills the space of a server, then sends one message of the largest size from another client.
async fn send_beside(drip: &Drip) {
    let Drip {
        largest,
        clients,
        missing,
        write_timeout,
    } = *drip;
    let space = clients * (largest - missing);
    let server = TestServer::quiet(|config| {
        config.service.prefix = Some(String::new());
        config.history.limit = 0;
        config.limits.max_message_size = Size::from(largest);
        config.limits.max_incoming = Size::from(space);
        config.times.write_timeout = millis(write_timeout);
    })
    .await;
    let mut drippers = Vec::new();
    for _ in 0..clients {
        let mut dripper = server.raw_websocket().await;
        dripper
            .send(cut_short(FIN | BINARY, largest, missing))
            .await;
        drippers.push(dripper);
    }
    eventually("all space is taken", || server.monitor.incoming() == space).await;
    let dripping = async {
        // Just often enough not to stall.
        let mut pace = interval(Duration::from_millis(write_timeout * 9 / 10));
        loop {
            pace.tick().await;
            for dripper in &mut drippers {
                dripper.stream.write_all(b"x").await.ok();
            }
        }
    };
    let mut honest = server.raw_websocket().await;
    let message = vec![7; largest];
    let sending = async {
        let whole = frame(FIN | BINARY, &message);
        let start = Instant::now();
        for part in whole.chunks(5000) {
            honest.send(part).await;
            tokio::task::yield_now().await;
        }
        let echo = honest.read_frame().await;
        assert!(echo == (FIN | BINARY, message.clone()), "another message");
        start.elapsed()
    };
    let took = tokio::select! {
        () = dripping => unreachable!("it never ends"),
        took = sending => took,
    };
    assert!(took < Duration::from_millis(2 * write_timeout), "{took:?}");
    assert!(server.monitor.incoming() <= space);
    // At least one dripping client was cut, and its close frame has the code.
    let mut cut = 0;
    for mut dripper in drippers {
        let closed = timeout(Duration::from_millis(20), async {
            loop {
                let (first, payload) = dripper.read_frame().await;
                if first == FIN | CLOSE {
                    break payload;
                }
            }
        });
        if let Ok(payload) = closed.await {
            assert_eq!(payload[..2], 1013_u16.to_be_bytes());
            cut += 1;
        }
    }
    assert!((1..clients).contains(&cut), "{cut} were cut");
    eventually("nothing is left", || server.monitor.incoming() == 0).await;
}

#[tokio::test]
async fn an_honest_sender_succeeds_while_dripping_clients_fill_the_space() {
    send_beside(&Drip {
        largest: 64 * 1024,
        clients: 16,
        missing: 1000,
        write_timeout: 1000,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: 256 MiB"]
async fn an_honest_sender_succeeds_beside_256_dripping_clients_at_the_default_limits() {
    send_beside(&Drip {
        largest: 1 << 20,
        clients: 256,
        missing: 1000,
        write_timeout: 10_000,
    })
    .await;
}

#[tokio::test]
async fn a_body_cut_to_free_space_is_answered_503() {
    let server = TestServer::quiet(|config| {
        config.limits.max_message_size = Size::from(10_000);
        config.limits.max_incoming = Size::from(20_000);
    })
    .await;
    let head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n";
    let mut bodies = Vec::new();
    for number in 1..=2 {
        let mut body = server.raw().await;
        body.send([head.as_bytes(), &[b'x'; 9000]].concat()).await;
        eventually("it is counted", || {
            server.monitor.incoming() == number * 9000
        })
        .await;
        bodies.push(body);
    }
    let mut third = server.raw().await;
    third.send([head.as_bytes(), &[b'x'; 9000]].concat()).await;
    let mut outcomes = Vec::new();
    let answer = {
        let [one, other] = &mut bodies[..] else {
            unreachable!()
        };
        tokio::select! {
            answer = one.read_to_end() => answer,
            answer = other.read_to_end() => answer,
        }
    };
    outcomes.push(String::from_utf8(answer).unwrap());
    assert!(
        outcomes[0].starts_with("HTTP/1.1 503 ") && outcomes[0].contains("--max-incoming"),
        "{outcomes:?}"
    );
    // The last one is not cut, and is published.
    third.send([b'x'; 1000]).await;
    let answer = String::from_utf8(third.read_to_end().await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    drop(bodies);
    eventually("nothing is left", || server.monitor.incoming() == 0).await;
}

#[tokio::test]
async fn a_complete_message_takes_no_space_while_its_echo_is_read_slowly() {
    let server = TestServer::with(|config| config.service.welcome = Some(String::new())).await;
    let mut client = RawClient::with_small_window(server.address).await;
    client.upgrade("/").await;
    let whole = frame(FIN | BINARY, &vec![7; 1 << 20]);
    let (one, other) = whole.split_at(900_000);
    client.send(one).await;
    eventually("it is counted", || server.monitor.incoming() > 800_000).await;
    client.send(other).await;
    eventually("it is no longer counted once it is complete", || {
        server.monitor.incoming() == 0
    })
    .await;
    assert_eq!(client.read_frame().await.1.len(), 1 << 20);
}

#[tokio::test]
async fn a_violation_drops_the_unfinished_message_before_it() {
    let server = TestServer::quiet(|config| config.times.close_timeout = millis(600_000)).await;
    let mut client = server.raw_websocket().await;
    client.send(frame(TEXT, &vec![b'x'; 900_000])).await;
    eventually("it is counted", || server.monitor.incoming() == 900_000).await;
    client.send(frame(FIN | 0x3, b"")).await;
    assert_eq!(client.read_frame().await.0, FIN | CLOSE);
    // The connection lingers, its message does not.
    assert_eq!(server.monitor.incoming(), 0);
    assert_eq!(server.monitor.connections(), 1);
}

#[tokio::test]
async fn complete_messages_in_one_write_take_no_space() {
    let server = TestServer::quiet(|config| {
        config.limits.max_message_size = Size::from(10_000);
        config.limits.max_incoming = Size::from(10_000);
    })
    .await;
    let mut client = server.raw_websocket().await;
    let many = frame(FIN | TEXT, &[b'x'; 9000]).repeat(20);
    client.send(many).await;
    for _ in 0..20 {
        assert_eq!(client.read_frame().await.0, FIN | TEXT);
    }
}

#[tokio::test]
async fn an_unfinished_message_takes_about_its_size_in_memory() {
    const CLIENTS: usize = 32;
    const SIZE: usize = 1_000_000;
    let process = Process::start("--mode broadcast").await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = RawClient::connect(process.address).await;
        client.upgrade("/").await;
        clients.push(client);
    }
    let before = process.memory();
    for client in &mut clients {
        for part in [TEXT, CONTINUATION, CONTINUATION] {
            client.send(frame(part, &[b'x'; SIZE / 4])).await;
        }
        client
            .send(cut_short(FIN | CONTINUATION, SIZE / 4, 10))
            .await;
        // Its answer says that all before it was read.
        client.send(b"").await;
    }
    let all = CLIENTS * SIZE;
    eventually("all of it is received", || {
        process.memory().saturating_sub(before) > all * 9 / 10
    })
    .await;
    let grown = process.memory().saturating_sub(before);
    assert!(grown < all * 14 / 10, "{grown} bytes for {all}");
}

#[tokio::test]
async fn a_body_in_small_segments_takes_little_memory() {
    let process = Process::start("--mode broadcast").await;
    let before = process.memory();
    let mut bodies = Vec::new();
    for _ in 0..4 {
        let mut body = RawClient::connect(process.address).await;
        body.stream.set_nodelay(true).unwrap();
        let head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n";
        body.send(head).await;
        bodies.push(body);
    }
    // Slowly enough that each segment is read by itself.
    for _ in 0..2000 {
        for body in &mut bodies {
            body.send(b"x").await;
        }
        tokio::task::yield_now().await;
    }
    let grown = process.memory().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes for 8000");
}
