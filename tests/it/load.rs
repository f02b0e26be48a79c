//! Many clients, joins in the middle of traffic, and slow clients.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use wscast::config::Size;

use crate::harness::*;

/// All messages that a client gets, up to the message `end`.
async fn read_until(client: &mut Client, end: &str) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.last().is_none_or(|last| last != end) {
        texts.push(client.next_text().await);
    }
    texts
}

const PUBLISHERS: usize = 4;
const EACH: usize = 5000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_join_in_the_middle_of_traffic_get_all_of_it_in_one_order() {
    let (all, runs) = join_in_the_middle_of_traffic(PUBLISHERS * EACH + 1).await;
    for run in runs {
        assert!(run == all, "{} of {} messages", run.len(), all.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_short_history_each_client_gets_one_contiguous_run_up_to_the_same_end() {
    let (all, runs) = join_in_the_middle_of_traffic(1000).await;
    for run in runs {
        assert!(
            all.ends_with(&run),
            "{} of {} messages",
            run.len(),
            all.len()
        );
    }
}

/// Joins 50 clients while others publish at full speed; returns the messages of a client that
/// joined before, complete and in order, and those of each of the 50.
async fn join_in_the_middle_of_traffic(history_limit: usize) -> (Vec<String>, Vec<Vec<String>>) {
    let server = Arc::new(
        TestServer::quiet(|config| {
            config.service.prefix = Some(String::new());
            config.history.limit = history_limit;
        })
        .await,
    );
    let mut first = server.client().await;
    let first = tokio::spawn(async move { read_until(&mut first, "end").await });
    let (progress, watched) = watch::channel(0);
    let mut joiners = Vec::new();
    for joiner in 0..50 {
        let (server, mut watched) = (server.clone(), watched.clone());
        // Spread over the whole of the traffic.
        let moment = (joiner * 7919) % (PUBLISHERS * EACH);
        joiners.push(tokio::spawn(async move {
            watched.wait_for(|sent| *sent >= moment).await.unwrap();
            let mut client = server.client().await;
            read_until(&mut client, "end").await
        }));
    }
    let mut publishers = Vec::new();
    for publisher in 0..PUBLISHERS {
        let (client, progress) = (server.client().await, progress.clone());
        publishers.push(tokio::spawn(async move {
            let (mut sink, mut stream) = client.websocket.split();
            let read = tokio::spawn(async move { while let Some(Ok(_)) = stream.next().await {} });
            for number in 0..EACH {
                sink.feed(Message::text(format!("{publisher} {number}")))
                    .await
                    .unwrap();
                if number % 50 == 49 {
                    sink.flush().await.unwrap();
                    progress.send_modify(|sent| *sent += 50);
                }
            }
            sink.close().await.unwrap();
            read.await.unwrap();
        }));
    }
    for publisher in publishers {
        timeout(PATIENCE, publisher).await.unwrap().unwrap();
    }
    server.client().await.send("end").await;

    let all = timeout(PATIENCE, first).await.unwrap().unwrap();
    assert_eq!(all.len(), PUBLISHERS * EACH + 1);
    for publisher in 0..PUBLISHERS {
        let prefix = format!("{publisher} ");
        let numbers = all
            .iter()
            .filter_map(|text| text.strip_prefix(&prefix)?.parse::<usize>().ok());
        assert!(numbers.eq(0..EACH), "publisher {publisher} is out of order");
    }
    let mut runs = Vec::new();
    for joiner in joiners {
        runs.push(timeout(PATIENCE, joiner).await.unwrap().unwrap());
    }
    (all, runs)
}

// On one thread, so that the order of the tasks decides, not the number of free processors.
#[tokio::test]
async fn no_client_falls_behind_on_one_write_of_many_messages() {
    const MANY: usize = 100_000;
    // A queue holds at most what one turn publishes, and there is no history: a client that falls
    // behind is closed before it has them all.
    let server = TestServer::quiet(|config| {
        config.service.prefix = Some(String::new());
        config.history.limit = 0;
        config.limits.max_queue = MANY;
        config.limits.max_queue_bytes = Size::from(30_000);
    })
    .await;
    let mut other = server.raw_websocket().await;
    let mut flood = server.raw_websocket().await;
    let many = frame(FIN | TEXT, b"x").repeat(MANY);
    let expected = b"\x81\x01x".repeat(MANY);
    let (mut read, mut write) = flood.stream.split();
    let mut own = vec![0; expected.len()];
    let mut others = vec![0; expected.len()];
    let all = async {
        tokio::try_join!(
            write.write_all(&many),
            read.read_exact(&mut own),
            other.stream.read_exact(&mut others),
        )
    };
    timeout(PATIENCE, all)
        .await
        .expect("some are missing")
        .unwrap();
    assert!(
        own == expected && others == expected,
        "not all were received"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_everything_and_delays_no_other_client() {
    const ROUNDS: usize = 1500;
    let server = TestServer::quiet(|config| {
        config.limits.max_queue = 8;
        config.history.limit = 2 * ROUNDS;
        config.history.bytes = Size::from(64 << 20);
    })
    .await;
    let filler = "x".repeat(16 * 1024);
    let mut fast = server.client().await;
    for number in 0..ROUNDS {
        round_trip(&mut fast, &format!("{number} {filler}")).await;
    }
    // The slow client gets the history first, and falls further behind with each round.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(server.address).await.unwrap();
    let (mut slow, _) = Client::over(stream, server.address, "/").await.unwrap();
    let mut got = 0;
    for number in ROUNDS..2 * ROUNDS {
        // The round trip completes although the slow client has most messages still to read.
        round_trip(&mut fast, &format!("{number} {filler}")).await;
        if number % 10 == 0 {
            expect_number(&mut slow, &mut got).await;
        }
    }
    while got < 2 * ROUNDS {
        expect_number(&mut slow, &mut got).await;
    }
}

async fn round_trip(client: &mut Client, text: &str) {
    client.send(text).await;
    assert_eq!(
        client.next_text().await.len(),
        "Broadcast: ".len() + text.len()
    );
}

async fn expect_number(client: &mut Client, number: &mut usize) {
    let text = client.next_text().await;
    assert!(
        text.starts_with(&format!("Broadcast: {number} ")),
        "{}",
        &text[..20]
    );
    *number += 1;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_is_dropped_and_delays_no_other_client() {
    let server = TestServer::quiet(|config| {
        config.times.write_timeout = millis(300);
        config.times.ping_interval = millis(0);
    })
    .await;
    let mut stuck = RawClient::with_small_window(server.address).await;
    stuck.send(RawClient::handshake("/", "")).await;
    stuck.read_head().await;
    let mut fast = server.client().await;
    let message = vec![0; 256 * 1024];
    let start = Instant::now();
    // Far more than kernel and queue together hold.
    for _ in 0..100 {
        fast.send_binary(&message).await;
        fast.expect_binary(&message).await;
    }
    eventually("the stuck client is dropped", || {
        server.monitor.connections() == 1
    })
    .await;
    assert!(start.elapsed() >= Duration::from_millis(300));
    fast.send_binary(&message).await;
    fast.expect_binary(&message).await;
}

#[tokio::test]
async fn a_client_behind_the_history_is_closed_with_1013() {
    let server = TestServer::quiet(|config| {
        config.limits.max_queue = 1;
        config.limits.max_queue_bytes = Size::from(1000);
        config.history.limit = 2;
    })
    .await;
    let mut slow = RawClient::with_small_window(server.address).await;
    slow.upgrade("/").await;
    let mut fast = server.client().await;
    let message = vec![0; 256 * 1024];
    for _ in 0..40 {
        fast.send_binary(&message).await;
        fast.expect_binary(&message).await;
    }
    let mut got = 0;
    let (first, payload) = loop {
        match slow.read_frame().await {
            (first, payload) if first == FIN | BINARY => assert_eq!(payload, message),
            other => break other,
        }
        got += 1;
    };
    assert_eq!(
        (first, &payload[..2]),
        (FIN | CLOSE, &1013_u16.to_be_bytes()[..])
    );
    assert!(got < 40, "it got all {got}");
}

#[tokio::test]
async fn a_client_that_reads_a_backlog_does_not_time_out() {
    let server = TestServer::quiet(|config| {
        config.times.ping_interval = millis(50);
        config.times.ping_timeout = millis(250);
    })
    .await;
    let mut fast = server.client().await;
    let message = vec![0; 64 * 1024];
    for _ in 0..60 {
        fast.send_binary(&message).await;
        fast.expect_binary(&message).await;
    }
    // The slow client reads its backlog for twenty ping intervals, counted by `clock`, and cannot
    // see a ping before that.
    let mut clock = server.raw().await;
    clock.upgrade("/clock").await;
    let mut slow = RawClient::with_small_window(server.address).await;
    slow.upgrade("/").await;
    let reading = async {
        for number in 0..60 {
            if number % 3 == 0 {
                assert_eq!(clock.read_frame().await.0, FIN | PING);
                clock.send(frame(FIN | PONG, b"")).await;
            }
            assert_eq!(slow.read_frame().await, (FIN | BINARY, message.clone()));
        }
        assert_eq!(slow.read_frame().await.0, FIN | PING);
        slow.send(frame(FIN | PONG, b"")).await;
        slow.send(frame(FIN | TEXT, b"caught up")).await;
    };
    let others = async { while fast.next().await != Message::text("Broadcast: caught up") {} };
    tokio::join!(reading, others);
}
