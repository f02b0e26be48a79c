//! The end of an event stream: closed, half-closed and vanished clients, and of a WebSocket that vanished.

use std::time::Duration;

use socket2::{SockFilter, SockRef};
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};
use wscast::config::Config;

use crate::harness::*;

const EVENTS: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";

/// A client that follows the default room by an event stream.
async fn follow(server: &TestServer) -> RawClient {
    let mut client = server.raw().await;
    client.send(EVENTS).await;
    client.read_head().await;
    client
}

async fn post(server: &TestServer, text: &str) {
    assert_eq!(server.request("POST /", "", text).await.code, 201);
}

/// Waits until no connection has a place, which takes at most `limit`.
async fn free_within(limit: Duration, server: &TestServer) {
    let free = async {
        while server.monitor.connections() > 0 {
            sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(timeout(limit, free).await.is_ok(), "a place is not free");
}

/// Has the kernel drop all that comes for `client`, as if its machine were cut off.
#[cfg(target_os = "linux")]
fn vanish(client: &RawClient) {
    /// BPF_RET | BPF_K: let so many bytes of a packet pass.
    const RETURN: u16 = 0x06;
    let nothing = SockFilter::new(RETURN, 0, 0, 0);
    SockRef::from(&client.stream)
        .attach_filter(&[nothing])
        .unwrap();
}

#[tokio::test]
async fn the_place_of_a_closed_event_stream_is_free_at_once_after_stray_bytes_as_well() {
    let server = TestServer::quiet(|_| {}).await;
    for stray in [&b""[..], b"x", &[b'x'; 1000]] {
        let mut client = follow(&server).await;
        client.send(stray).await;
        post(&server, "x").await;
        client.read_to("data: x\n\n").await;
        drop(client);
        free_within(Duration::from_secs(1), &server).await;
    }
}

#[tokio::test]
async fn a_half_closed_event_stream_goes_on_until_it_is_closed() {
    let server = TestServer::quiet(|_| {}).await;
    for stray in [&b""[..], b"x"] {
        let mut client = follow(&server).await;
        client.send(stray).await;
        client.stream.shutdown().await.unwrap();
        client.read_to(":\n\n").await;
        for text in ["1", "2"] {
            post(&server, text).await;
            let event = client.read_to("\n\n").await;
            assert!(event.ends_with(&format!("data: {text}\n\n")), "{event}");
        }
        client.stream.set_zero_linger().unwrap();
        drop(client);
        free_within(Duration::from_secs(1), &server).await;
    }
}

#[tokio::test]
async fn a_client_that_half_closes_behind_its_request_gets_its_events() {
    let server = TestServer::quiet(|_| {}).await;
    let mut client = server.raw().await;
    client.send(EVENTS).await;
    client.stream.shutdown().await.unwrap();
    client.read_head().await;
    post(&server, "hi").await;
    client.read_to("data: hi\n\n").await;
}

#[tokio::test]
async fn stray_bytes_do_not_turn_the_end_into_a_reset() {
    let server = TestServer::quiet(|config| config.times.close_timeout = millis(100)).await;
    let mut client = follow(&server).await;
    client.send("stray").await;
    post(&server, "x").await;
    client.read_to("data: x\n\n").await;
    server.stop().await;
    assert!(client.read_to_end().await.ends_with(b"retry: 1000\n\n"));
    let error = client.stream.take_error().unwrap();
    assert!(error.is_none(), "{error:?}");
}

/// Serves an event stream and a WebSocket whose peers vanish, and asserts that both places are free
/// within `limit`.
#[cfg(target_os = "linux")]
async fn vanished_peers_are_noticed(limit: Duration, change: impl FnOnce(&mut Config)) {
    let server = TestServer::quiet(change).await;
    let (events, websocket) = (follow(&server).await, server.raw_websocket().await);
    vanish(&events);
    vanish(&websocket);
    free_within(limit, &server).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_vanished_peer_is_noticed_soon_after_the_write_timeout() {
    // --ping-interval and --write-timeout, and eight seconds.
    vanished_peers_are_noticed(Duration::from_millis(200 + 200 + 8000), |config| {
        config.times.ping_interval = millis(200);
        config.times.write_timeout = millis(200);
    })
    .await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "takes a minute"]
async fn without_pings_a_vanished_peer_is_noticed_within_a_minute() {
    vanished_peers_are_noticed(Duration::from_secs(60), |config| {
        config.times.ping_interval = millis(0);
    })
    .await;
}

#[tokio::test]
async fn a_browser_that_cannot_be_served_now_gets_a_stream_that_ends() {
    let server = TestServer::quiet(|config| config.limits.max_connections = 1).await;
    let _client = server.raw_websocket().await;
    let events = "Accept: text/event-stream\r\n";
    for of_browser in [
        "Sec-Fetch-Mode: cors\r\n",
        "Origin: http://localhost\r\n",
        "Referer: http://test/page\r\n",
    ] {
        let answer = server
            .request("GET /", &format!("{events}{of_browser}"), "")
            .await;
        assert_eq!(answer.code, 200, "{of_browser}");
        assert_eq!(answer.field("content-type"), Some("text/event-stream"));
        assert_eq!(
            answer.body,
            "retry: 1000\n: no place left (--max-connections), try again later\n\n"
        );
        // Or a browser would not let a page of another origin have it.
        let is_of_origin = of_browser.starts_with("Origin");
        let allowed = answer.field("access-control-allow-origin");
        assert_eq!(allowed, is_of_origin.then_some("http://localhost"));
    }
    assert_eq!(server.request("GET /", events, "").await.code, 503);
    let refused = format!("{events}Origin: http://elsewhere.example\r\n");
    assert_eq!(server.request("GET /", &refused, "").await.code, 403);
}
