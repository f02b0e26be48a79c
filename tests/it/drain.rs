//! Stopping a server in the middle of traffic.

use std::time::{Duration, Instant};

use futures_util::SinkExt;
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::*;

#[tokio::test]
async fn every_client_gets_the_rest_of_its_room_then_1001() {
    const MESSAGES: usize = 500;
    let mut server = TestServer::quiet(|config| config.limits.max_queue = 4).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(server.client().await);
    }
    let mut publisher = server.client().await;
    for number in 0..MESSAGES {
        publisher
            .websocket
            .feed(Message::text(number.to_string()))
            .await
            .unwrap();
    }
    publisher.websocket.flush().await.unwrap();
    publisher.expect("Broadcast: 0").await;
    server.begin_stop();
    // Every client gets exactly the messages up to the last one that the room accepted.
    let mut runs = Vec::new();
    clients.push(publisher);
    for client in &mut clients {
        let mut run = Vec::new();
        loop {
            match client.next().await {
                Message::Text(text) => run.push(text.to_string()),
                Message::Close(Some(frame)) => {
                    assert_eq!(u16::from(frame.code), 1001);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        client.expect_end().await;
        runs.push(run);
    }
    let publishers_run = runs.pop().unwrap();
    for run in runs {
        assert_eq!(run[1..], publishers_run);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_drain_completes_a_replay_in_progress() {
    let server = TestServer::quiet(|_| {}).await;
    let message = vec![7; 512 * 1024];
    let mut publisher = server.client().await;
    for _ in 0..20 {
        publisher.send_binary(&message).await;
        publisher.expect_binary(&message).await;
    }
    let mut late = RawClient::with_small_window(server.address).await;
    late.upgrade("/").await;
    let reading = async {
        for _ in 0..20 {
            assert_eq!(late.read_frame().await, (FIN | BINARY, message.clone()));
        }
        let (first, payload) = late.read_frame().await;
        assert_eq!(
            (first, &payload[..2]),
            (FIN | CLOSE, &1001_u16.to_be_bytes()[..])
        );
        late.send(frame(FIN | CLOSE, &payload)).await;
    };
    let leaving = async { publisher.expect_close(1001).await };
    tokio::join!(server.stop(), reading, leaving);
}

#[tokio::test]
async fn incomplete_requests_are_answered_503_and_what_asks_for_nothing_is_closed_in_silence() {
    let mut server = TestServer::echo().await;
    let mut clients = Vec::new();
    for sent in [
        "",
        "GET / HTTP/1.1\r\nUpgrade: webso",
        "GET /healthz HTTP/1.1\r\nHost: x\r\n",
    ] {
        let mut client = server.raw().await;
        client.send(sent).await;
        clients.push(client);
    }
    eventually("all are there", || server.monitor.connections() == 3).await;
    server.begin_stop();
    // A browser would take an answer for that to the next request, of another server.
    assert_eq!(clients[0].read_to_end().await, b"");
    for client in &mut clients[1..] {
        let response = String::from_utf8(client.read_to_end().await).unwrap();
        assert!(
            response.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
            "{response}"
        );
        assert!(response.contains("\r\nretry-after: 1\r\n"), "{response}");
        assert!(
            response.ends_with("\r\n\r\nthe server is shutting down\n"),
            "{response}"
        );
    }
    drop(clients);
    server.stop().await;
}

#[tokio::test]
async fn no_client_delays_the_exit_beyond_the_drain_timeout() {
    let mut server = TestServer::quiet(|config| {
        config.service.drain_timeout = millis(500);
        // None of these timeouts may end the drain.
        config.times.close_timeout = millis(600_000);
        config.times.write_timeout = millis(600_000);
        config.times.open_timeout = millis(600_000);
    })
    .await;
    let address = server.address;
    let mut half = server.raw().await;
    half.send("GET / HTTP").await;
    let _silent = server.raw_websocket().await;
    let mut stuck = RawClient::with_small_window(address).await;
    stuck.upgrade("/").await;
    let mut fast = server.client().await;
    for _ in 0..40 {
        fast.send_binary(&[0; 256 * 1024]).await;
        fast.expect_binary(&[0; 256 * 1024]).await;
    }
    let mut flood = server.raw_websocket().await;
    let flooding = tokio::spawn(async move {
        let text = frame(FIN | TEXT, b"x").repeat(1000);
        while tokio::io::AsyncWriteExt::write_all(&mut flood.stream, &text)
            .await
            .is_ok()
        {}
    });
    let start = Instant::now();
    server.begin_stop();
    // Only the drain's own timeout can end it: the others are far longer than a test waits.
    server.stop().await;
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(500),
        "the stuck client had {took:?}"
    );
    // The port is free again although clients are still connected.
    TcpListener::bind(address).await.unwrap();
    tokio::time::timeout(PATIENCE, flooding)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_client_with_unwritten_pongs_gets_1001_after_them() {
    let mut server = TestServer::quiet(|config| {
        config.service.drain_timeout = millis(20_000);
        config.times.ping_interval = millis(0);
    })
    .await;
    let mut client = RawClient::with_small_window(server.address).await;
    client.upgrade("/").await;
    let pings = frame(FIN | PING, &[b'x'; 125]).repeat(1000);
    for _ in 0..100 {
        client.send(&pings).await;
    }
    client.send(frame(FIN | TEXT, b"behind the pings")).await;
    let mut other = server.client().await;
    other.expect("Broadcast: behind the pings").await;
    server.begin_stop();
    let reading = async {
        let mut last = client.read_frame().await;
        while last.0 != FIN | CLOSE {
            last = client.read_frame().await;
        }
        assert_eq!(last.1[..2], 1001_u16.to_be_bytes());
        client.send(frame(FIN | CLOSE, &last.1)).await;
    };
    tokio::join!(reading, async { other.expect_close(1001).await });
    server.stop().await;
}
