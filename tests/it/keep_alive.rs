//! Several requests over one connection.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use wscast::config::Size;

use crate::harness::*;

/// Waits until the server has closed the connection; returns what it has written before.
async fn end_of(client: &mut RawClient) -> Vec<u8> {
    client.read_to_end().await
}

#[tokio::test]
async fn a_publisher_posts_a_thousand_messages_over_one_connection() {
    let server = TestServer::quiet(|_| {}).await;
    let mut follower = server.client().await;
    let mut publisher = server.raw().await;
    for number in 0..1000 {
        let answer = publisher.request("POST /", ALIVE, number.to_string()).await;
        assert_eq!(answer.code, 201, "{answer:?}");
        follower.expect(&format!("Broadcast: {number}")).await;
    }
    assert_eq!(server.monitor.connections(), 2);
}

#[tokio::test]
async fn mixed_requests_are_answered_in_order_over_one_connection() {
    let server = TestServer::quiet(|_| {}).await;
    let mut client = server.raw().await;
    let long = format!("POST /{}", "x".repeat(2000));
    for _ in 0..10 {
        for (line, fields, body, code) in [
            ("GET /", "", "", 200),
            ("HEAD /", "If-None-Match: *\r\n", "", 304),
            ("POST /", "", "hello", 201),
            ("GET /?history&limit=1", "", "", 200),
            ("GET /?history&limit=0", "", "", 400),
            ("OPTIONS /", "", "", 204),
            ("GET /metrics", "", "", 404),
            ("GET /readyz", "", "", 200),
            ("DELETE /", "", "", 405),
            (&long, "", "", 414),
        ] {
            let fields = format!("{ALIVE}{fields}");
            let answer = client.request(line, &fields, body).await;
            assert_eq!(answer.code, code, "{line}: {answer:?}");
            assert_eq!(answer.field("connection"), None, "{line}: {answer:?}");
        }
    }
    // The connection then becomes a WebSocket.
    client.upgrade("/").await;
    assert_eq!(server.monitor.connections(), 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_before_an_event_stream_begins() {
    let server = TestServer::quiet(|_| {}).await;
    let mut client = server.raw().await;
    let get = "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n";
    let post = "POST /r HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi";
    let events = "GET /r HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n";
    client.send(format!("{get}{post}{get}{events}")).await;
    for code in [200, 201, 200] {
        assert_eq!(client.answer().await.code, code);
    }
    let answer = client.answer().await;
    assert_eq!(answer.field("content-type"), Some("text/event-stream"));
    let mut event = vec![0; 256];
    let read = timeout(PATIENCE, client.stream.read(&mut event)).await;
    event.truncate(read.unwrap().unwrap());
    let event = String::from_utf8(event).unwrap();
    assert!(event.contains("data: hi\n"), "{event}");
}

#[tokio::test]
async fn a_request_pipelined_behind_a_wait_is_answered() {
    let server = TestServer::quiet(|config| config.times.ping_interval = millis(0)).await;
    let mut silent = server.raw_websocket().await;
    let mut client = server.raw().await;
    let post =
        "POST /?wait=delivered&timeout=300ms HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi";
    client.send(post).await;
    // By the ping the server waits for the receipt, and does not read.
    while silent.read_frame().await.0 != FIN | PING {}
    client.send("GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(client.answer().await.json()["delivered"], 0);
    assert_eq!(client.answer().await.body, "ok");
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_silence() {
    let server = TestServer::quiet(|config| config.times.open_timeout = millis(200)).await;
    for requests in [0, 1, 2] {
        let start = Instant::now();
        let mut client = server.raw().await;
        for _ in 0..requests {
            client.request("GET /readyz", ALIVE, "").await;
        }
        assert_eq!(end_of(&mut client).await, b"");
        assert!(start.elapsed() >= Duration::from_millis(200));
    }
    // An incomplete second request is answered.
    let mut client = server.raw().await;
    client.request("GET /readyz", ALIVE, "").await;
    let answer = client.exchange("GET / HTTP/1.1\r\n").await;
    assert_eq!(answer.code, 408);
}

#[tokio::test]
async fn what_is_wrong_with_a_second_request_is_explained() {
    let server = TestServer::quiet(|_| {}).await;
    for (request, code, reason) in [
        (
            "nonsense\r\n\r\n",
            400,
            "this is no HTTP/1.1 request: use http:// or ws://, TLS ends at a proxy\n",
        ),
        (
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
            501,
            "of the transfer codings only chunked is understood\n",
        ),
    ] {
        let mut client = server.raw().await;
        client.request("GET /", ALIVE, "").await;
        let answer = client.exchange(request).await;
        assert_eq!((answer.code, &*answer.body), (code, reason));
    }
}

#[tokio::test]
async fn at_max_connections_the_longest_idle_connection_gives_way() {
    let server = TestServer::quiet(|config| config.limits.max_connections = 3).await;
    let mut client = server.raw_websocket().await;
    let mut idle = [server.raw().await, server.raw().await];
    for connection in &mut idle {
        connection.request("GET /readyz", ALIVE, "").await;
    }
    // The order in which they became idle counts, not that in which they came.
    idle[0].request("POST /", ALIVE, "one").await;
    client.read_frame().await;
    let mut next = server.raw().await;
    assert_eq!(next.request("POST /", ALIVE, "two").await.code, 201);
    assert_eq!(end_of(&mut idle[1]).await, b"");
    assert_eq!(idle[0].request("GET /readyz", ALIVE, "").await.code, 200);
    // A client is never idle.
    let mut after = server.raw_websocket().await;
    assert_eq!(end_of(&mut next).await, b"");
    let mut last = server.raw_websocket().await;
    assert_eq!(end_of(&mut idle[0]).await, b"");
    assert_eq!(server.request("POST /", "", "three").await.code, 503);
    for client in [&mut client, &mut after, &mut last] {
        client.send(frame(FIN | PING, b"")).await;
        while client.read_frame().await.0 != FIN | PONG {}
    }
}

#[tokio::test]
async fn connections_without_a_place_have_none_to_give() {
    let server = TestServer::quiet(|config| config.limits.max_connections = 1).await;
    let _client = server.raw_websocket().await;
    for _ in 0..40 {
        let start = Instant::now();
        let ask = || server.request("GET /livez", "", "");
        let answers = tokio::join!(ask(), ask(), ask());
        assert_eq!(
            (answers.0.code, answers.1.code, answers.2.code),
            (200, 200, 200)
        );
        // So long it would wait for a place.
        assert!(start.elapsed() < Duration::from_millis(900));
    }
}

#[tokio::test]
async fn a_malformed_end_of_a_body_does_not_swallow_the_next_request() {
    let server = TestServer::quiet(|_| {}).await;
    for end in ["0\r\n\n", "0\r\nA: b\n\n", "0\r\nA: b\r\n\r\n"] {
        let mut client = server.raw().await;
        let post = "POST / HTTP/1.1\r\nHost: x\r\n";
        client
            .send(format!(
                "{post}Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n{end}"
            ))
            .await;
        client
            .send(format!("{post}Content-Length: 6\r\n\r\nsecond"))
            .await;
        let answer = client.answer().await;
        assert_eq!(
            (answer.code, answer.field("connection")),
            (400, Some("close")),
            "{end:?}"
        );
    }
    assert_eq!(server.request("GET /?history", "", "").await.body, "[\n]\n");
}

#[tokio::test]
async fn a_drain_closes_idle_connections_in_silence() {
    // The drain ends by itself, and not by any of these.
    let mut server = TestServer::quiet(|config| {
        config.times.open_timeout = millis(600_000);
        config.service.drain_timeout = millis(600_000);
    })
    .await;
    let mut idle = server.raw().await;
    idle.request("POST /", ALIVE, "hi").await;
    server.begin_stop();
    assert_eq!(end_of(&mut idle).await, b"");
    drop(idle);
    server.stop().await;
}

#[tokio::test]
async fn http_1_0_closes_unless_asked_to_keep_alive() {
    let server = TestServer::quiet(|_| {}).await;
    let mut client = server.raw().await;
    client.send("GET /readyz HTTP/1.0\r\n\r\n").await;
    assert!(end_of(&mut client).await.ends_with(b"\r\n\r\nok"));
    let mut client = server.raw().await;
    for _ in 0..2 {
        let keep = "GET /readyz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
        let answer = client.exchange(keep).await;
        assert_eq!(answer.field("connection"), Some("keep-alive"));
    }
}

#[tokio::test]
async fn a_refused_body_that_is_not_read_closes_the_connection() {
    let server = TestServer::quiet(|config| config.limits.max_message_size = Size::from(10)).await;
    let mut client = server.raw().await;
    let fields = format!("{ALIVE}Content-Length: 1000000\r\n");
    let answer = client.request("POST /", &fields, "").await;
    assert_eq!(answer.code, 413);
    assert_eq!(answer.field("connection"), Some("close"));
}

#[tokio::test]
async fn publishers_that_hang_up_while_they_wait_give_their_places_back() {
    let server = TestServer::quiet(|config| config.times.ping_interval = millis(0)).await;
    let _silent = server.raw_websocket().await;
    let mut publishers = Vec::new();
    let post = "POST /?wait=delivered&timeout=60 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx";
    for _ in 0..20 {
        let mut publisher = server.raw().await;
        publisher.send(post).await;
        publishers.push(publisher);
    }
    eventually("all are there", || server.monitor.connections() == 21).await;
    // One that only closes its side gets the answer of that moment.
    let mut half = publishers.pop().unwrap();
    half.stream.shutdown().await.unwrap();
    assert_eq!(half.answer().await.json()["delivered"], 0);
    drop((half, publishers));
    eventually("the places are free", || server.monitor.connections() == 1).await;
}
