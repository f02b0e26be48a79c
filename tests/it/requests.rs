//! Requests beside the rooms: health, OPTIONS, codings, and the fields of every response.

use tokio::time::{Duration, timeout};
use tokio_tungstenite::tungstenite::Message;
use wscast::config::{Mode, Size};

use crate::harness::*;
use crate::process::*;

#[tokio::test]
async fn health_has_three_paths() {
    let server = TestServer::broadcast().await;
    for path in ["/livez", "/healthz", "/readyz"] {
        let Answer { code, head, body } = server.request(&format!("GET {path}"), "", b"").await;
        assert_eq!((code, body.as_str()), (200, "ok"), "{path}");
        assert!(head.contains("cache-control: no-store\r\n"), "{head}");
        let Answer { code, body, .. } = server.request(&format!("HEAD {path}"), "", b"").await;
        assert_eq!((code, body.as_str()), (200, ""), "{path}");
        let Answer { code, head, .. } = server.request(&format!("OPTIONS {path}"), "", b"").await;
        assert_eq!(code, 204, "{path}");
        assert!(head.contains("allow: get, head, options\r\n"), "{head}");
        let Answer { code, head, .. } = server.request(&format!("POST {path}"), "", b"x").await;
        assert_eq!(code, 405, "{path}");
        assert!(head.contains("allow: get, head, options\r\n"), "{head}");
    }
    assert_eq!(server.monitor.rooms(), 0);
}

#[tokio::test]
async fn health_is_answered_at_max_connections_beside_many_silent_connections() {
    let server = TestServer::with(|config| {
        config.limits.max_connections = 1;
        config.times.open_timeout = millis(600_000);
        config.times.close_timeout = millis(600_000);
    })
    .await;
    let _client = server.client().await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(server.raw().await);
    }
    for path in ["/livez", "/healthz"] {
        let Answer { code, .. } = server.request(&format!("GET {path}"), "", b"").await;
        assert_eq!(code, 200, "{path}");
    }
    let Answer { code, head, body } = server.request("GET /", "", b"").await;
    assert_eq!(
        (code, body.as_str()),
        (503, "no place left (--max-connections), try again later\n")
    );
    assert!(head.contains("retry-after: 1\r\n"), "{head}");
    // The connection silent for longest was closed with the reason.
    let Answer { code, body, .. } = silent[0].answer().await;
    assert_eq!(
        (code, body.as_str()),
        (503, "no place left (--max-connections), try again later\n")
    );
    // The newest was not.
    let newest = silent.last_mut().unwrap().read_to_end();
    assert!(timeout(Duration::from_millis(20), newest).await.is_err());
}

#[tokio::test]
async fn options_lists_the_methods() {
    for (mode, allow) in [
        (Mode::Echo, "allow: get, head, options\r\n"),
        (Mode::Broadcast, "allow: get, head, post, options\r\n"),
    ] {
        let server = TestServer::with(|config| config.service.mode = mode).await;
        for line in ["OPTIONS /", "OPTIONS /lobby", "OPTIONS *"] {
            let Answer { code, head, body } = server.request(line, "", b"").await;
            assert_eq!((code, body.as_str()), (204, ""), "{line}");
            assert!(head.contains(allow), "{head}");
        }
        let Answer { head, .. } = server.request("PUT /", "", b"x").await;
        assert!(head.contains(allow), "{head}");
        assert_eq!(server.monitor.rooms(), 0);
    }
}

#[tokio::test]
async fn a_preflight_allows_the_headers_that_the_server_reads() {
    let server = TestServer::broadcast().await;
    let more = "Origin: http://localhost:3000\r\nAccess-Control-Request-Method: POST\r\n\
                Access-Control-Request-Headers: content-type, idempotency-key\r\n";
    let Answer { code, head, .. } = server.request("OPTIONS /lobby", more, b"").await;
    assert_eq!(code, 204);
    for line in [
        "access-control-allow-origin: http://localhost:3000\r\n",
        "access-control-allow-headers: authorization, content-type, idempotency-key, last-event-id, if-match\r\n",
        "access-control-allow-methods: get, post\r\n",
        "vary: origin\r\n",
    ] {
        assert!(head.contains(line), "{head}");
    }
}

#[tokio::test]
async fn a_body_in_an_unsupported_coding_is_refused() {
    let server = TestServer::quiet(|_| {}).await;
    let mut client = server.client().await;
    for coding in ["gzip", "br", "identity, gzip", "GZIP", "\u{e4}"] {
        let more = format!("Content-Encoding: {coding}\r\n");
        let Answer { code, head, body } = server.request("POST /", &more, b"\x1f\x8b\x08").await;
        assert_eq!(code, 415, "{coding}: {body}");
        assert!(head.contains("accept-encoding: identity\r\n"), "{head}");
    }
    for coding in ["gzip, chunked", "chunked, chunked", "gzip"] {
        let more = format!("Transfer-Encoding: {coding}\r\n");
        let chunk = "1\r\nx\r\n0\r\n\r\n";
        let request = format!("POST / HTTP/1.1\r\nHost: localhost\r\n{more}\r\n{chunk}");
        let Answer { code, body, .. } = server.raw().await.exchange(request).await;
        assert_eq!(code, 501, "{coding}: {body}");
        assert!(body.contains("chunked"), "{body}");
    }
    let more = "Content-Type: text/plain; charset=klingon\r\n";
    let Answer { code, body, .. } = server.request("POST /", more, b"x").await;
    assert_eq!(code, 415, "{body}");
    assert!(body.contains("charset"), "{body}");
    // A client that waits for 100 Continue is refused before it sends the body.
    let head = "POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\
                Content-Encoding: gzip\r\n\r\n";
    assert_eq!(server.raw().await.exchange(head).await.code, 415);

    let more = "Content-Encoding: identity\r\nContent-Type: text/plain; charset=iso-8859-1\r\n";
    assert_eq!(
        server.request("POST /", more, b"gr\xfc\xdfe").await.code,
        201
    );
    client.expect("Broadcast: grüße").await;
    let more = "Content-Type: application/x-protobuf\r\n";
    assert_eq!(server.request("POST /", more, b"text").await.code, 201);
    assert_eq!(client.next().await, Message::binary(b"text".to_vec()));
}

#[tokio::test]
async fn a_text_beyond_the_limit_once_decoded_is_answered_413() {
    let server = TestServer::quiet(|config| config.limits.max_message_size = Size::from(10)).await;
    let more = "Content-Type: text/plain; charset=iso-8859-1\r\n";
    assert_eq!(server.request("POST /", more, &[0xe4; 5]).await.code, 201);
    let Answer { code, body, .. } = server.request("POST /", more, &[0xe4; 6]).await;
    assert_eq!(code, 413);
    assert!(body.contains("--max-message-size"), "{body}");
}

#[tokio::test]
async fn requests_refused_by_hyper_are_answered_with_the_reason() {
    let server = TestServer::quiet(|_| {}).await;
    for (fields, code, reason) in [
        (
            "Content-Length: 18446744073709551613\r\n",
            413,
            "--max-message-size",
        ),
        (
            "Content-Length: 18446744073709551615\r\n",
            413,
            "--max-message-size",
        ),
        (
            "content-length: 99999999999999999999\r\n",
            413,
            "--max-message-size",
        ),
        ("Content-Length: -1\r\n", 400, "Content-Length"),
        (
            "Content-Length: 1\r\nContent-Length: 2\r\n",
            400,
            "Content-Length",
        ),
        ("Transfer-Encoding: gzip\r\n", 501, "chunked"),
        ("X y\r\n", 400, "no HTTP/1.1 request"),
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: localhost\r\n{fields}\r\nx");
        let answer = server.raw().await.exchange(request).await;
        let (head, body) = (&answer.head, &answer.body);
        assert_eq!(answer.code, code, "{fields}: {body}");
        assert!(body.contains(reason) && body.lines().count() == 1, "{body}");
        assert!(head.contains("\r\ndate: "), "{head}");
        assert_eq!(head.matches("content-length: ").count(), 1, "{head}");
    }
    let endless = format!("GET /{}", "x".repeat(20_000));
    let Answer { code, body, .. } = server.raw().await.exchange(endless).await;
    assert_eq!(
        (code, body.as_str()),
        (414, "an address has at most 16 KiB\n")
    );
}

#[tokio::test]
async fn every_response_has_a_date_and_no_refusal_is_cached() {
    let server = TestServer::quiet(|config| config.times.open_timeout = millis(100)).await;
    let long = format!(
        "GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "x".repeat(2000)
    );
    for (request, code) in [
        ("GET /healthz HTTP/1.1\r\n\r\n", 200),
        ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        ("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        ("PUT / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        ("GET", 408),
        (&long, 414),
        ("nonsense\r\n\r\n", 400),
    ] {
        let answer = server.raw().await.exchange(request).await;
        let head = &answer.head;
        assert_eq!(answer.code, code, "{request}");
        assert_eq!(head.matches("\r\ndate: ").count(), 1, "{head}");
        let is_refusal = code >= 400;
        if is_refusal {
            assert!(head.contains("\r\ncache-control: no-store\r\n"), "{head}");
        }
    }
    for request in [
        RawClient::handshake("/", ""),
        "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".to_owned(),
    ] {
        let mut client = server.raw().await;
        client.send(&request).await;
        let head = client.read_head().await.to_lowercase();
        assert_eq!(head.matches("\r\ndate: ").count(), 1, "{head}");
    }
}

#[tokio::test]
async fn a_key_of_16_bytes_is_accepted_whatever_its_unused_bits() {
    let server = TestServer::echo().await;
    let ask = async |key: &str| {
        let request = RawClient::handshake("/", "").replace("dGhlIHNhbXBsZSBub25jZQ==", key);
        let mut client = server.raw().await;
        client.send(request).await;
        client.read_head().await
    };
    // The example of RFC 6455, section 4.1, and other digits whose used bits are the same.
    for last in ["A", "C", "E", "Z", "f", "9", "+", "/"] {
        let head = ask(&format!("AQIDBAUGBwgJCgsMDQ4PE{last}==")).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{last}: {head}");
    }
    for key in [
        "AQIDBAUGBwgJCgsMDQ4PEC",
        "AQIDBAUGBwgJCgsMDQ4=",
        "AQIDBAUGBwgJCgsMDQ4PEBE=",
        "!",
    ] {
        assert!(ask(key).await.starts_with("HTTP/1.1 400 "), "{key}");
    }
}

#[tokio::test]
async fn an_empty_since_is_ignored_and_an_invalid_last_event_id_resumes_nothing() {
    let server = TestServer::quiet(|_| {}).await;
    assert_eq!(server.request("POST /", "", b"kept").await.code, 201);
    server
        .client_at("/?since=")
        .await
        .expect("Broadcast: kept")
        .await;
    let Answer { code, head, body } = server
        .request("GET /?history", "Last-Event-ID: x\r\n", b"")
        .await;
    assert_eq!(code, 200, "{body}");
    assert!(head.contains("wscast-resumed: false\r\n"), "{head}");
    let Answer { code, .. } = server.request("GET /?history&since=x", "", b"").await;
    assert_eq!(code, 400);
}

#[tokio::test]
async fn every_refusal_is_logged() {
    let mut process = Process::start("--open-timeout 100ms --max-connections 2").await;
    for (request, line) in [
        ("nonsense\r\n\r\n", "status=400"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "status=400"),
        (
            "GET /metrics?token=s HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "status=404 request=\"GET /metrics\"",
        ),
        (
            "PUT /x HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "status=405 request=\"PUT /x\"",
        ),
        ("GET / HT", "status=408"),
    ] {
        let mut client = RawClient::connect(process.address).await;
        client.send(request).await;
        assert!(
            client.read_to_end().await.starts_with(b"HTTP/1.1 4"),
            "{request}"
        );
        let found = next_line(&mut process.log, "refused: ").await;
        assert!(found.contains(line), "{found}");
        assert!(found.contains("peer=127.0.0.1:"), "{found}");
    }
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = RawClient::connect(process.address).await;
        client.upgrade("/").await;
        clients.push(client);
    }
    assert_eq!(process.request("GET /?history", "", "").await.code, 503);
    let found = next_line(&mut process.log, "refused: ").await;
    assert!(
        found.contains("status=503") && found.contains("WARN"),
        "{found}"
    );
}
