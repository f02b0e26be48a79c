//! HTTP on the same port.

use tokio::io::AsyncWriteExt;

use crate::harness::*;

/// Sends a request line with `more` header lines; returns status line, head and body.
async fn ask(server: &TestServer, line: &str, more: &str) -> (String, String, String) {
    let request = format!("{line} HTTP/1.1\r\nHost: test\r\n{more}\r\n");
    let response = server.raw().await.request(&request).await;
    let (head, body) = response.split_once("\r\n\r\n").expect("a head");
    let (status, fields) = head.split_once("\r\n").expect("a status line");
    (status.to_owned(), fields.to_lowercase(), body.to_owned())
}

#[tokio::test]
async fn every_room_path_serves_the_page() {
    let server = TestServer::echo().await;
    let page = include_str!("../../static/client.html");
    for path in ["/", "/lobby", "/a/b%20c?x=y"] {
        let (status, head, body) = ask(&server, &format!("GET {path}"), "").await;
        assert_eq!(status, "HTTP/1.1 200 OK");
        assert!(
            head.contains("content-type: text/html; charset=utf-8"),
            "{head}"
        );
        assert_eq!(body, page);
    }
    let (status, head, body) = ask(&server, "HEAD /", "").await;
    assert_eq!((status.as_str(), body.as_str()), ("HTTP/1.1 200 OK", ""));
    assert!(
        head.contains(&format!("content-length: {}", page.len())),
        "{head}"
    );
    for field in [
        "content-security-policy: default-src 'none'; style-src 'sha256-",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cache-control: no-cache",
    ] {
        assert!(head.contains(field), "{head}");
    }
    assert!(!head.contains("unsafe"), "{head}");
    // Another protocol than ours is not asked for in vain.
    let (status, ..) = ask(&server, "GET /", "Connection: Upgrade\r\nUpgrade: h2c\r\n").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn a_page_that_is_known_is_not_sent_again() {
    let server = TestServer::echo().await;
    let (_, head, _) = ask(&server, "GET /", "").await;
    let (_, rest) = head.split_once("etag: ").unwrap();
    let etag = rest.split("\r\n").next().unwrap();
    for known in [
        etag,
        &format!("W/{etag}"),
        &format!("\"other\", {etag}"),
        "*",
    ] {
        let (status, head, body) =
            ask(&server, "GET /", &format!("If-None-Match: {known}\r\n")).await;
        assert_eq!(
            (status.as_str(), body.as_str()),
            ("HTTP/1.1 304 Not Modified", "")
        );
        assert!(head.contains(etag), "{head}");
    }
    let (status, ..) = ask(&server, "GET /", "If-None-Match: \"other\"\r\n").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn health_is_ok_while_the_server_is_up() {
    let server = TestServer::echo().await;
    let (status, _, body) = ask(&server, "GET /healthz", "").await;
    assert_eq!((status.as_str(), body.as_str()), ("HTTP/1.1 200 OK", "ok"));
}

#[tokio::test]
async fn other_methods_are_answered_405() {
    let server = TestServer::echo().await;
    for (line, more) in [
        ("POST /", "Content-Length: 5\r\n"),
        ("PUT /lobby", ""),
        ("DELETE /healthz", ""),
        ("BREW /", ""),
        ("POST /", "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    ] {
        let (status, head, _) = ask(&server, line, more).await;
        assert_eq!(status, "HTTP/1.1 405 Method Not Allowed", "{line}");
        assert!(head.contains("allow: get, head"), "{head}");
    }
}

#[tokio::test]
async fn the_name_of_a_room_has_at_most_1024_bytes() {
    let server = TestServer::echo().await;
    let longest = format!("/{}", "x".repeat(1023));
    server.client_at(&longest).await.close().await;
    assert_eq!(
        ask(&server, &format!("GET {longest}"), "").await.0,
        "HTTP/1.1 200 OK"
    );
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for more in ["", upgrade] {
        let (status, _, body) = ask(&server, &format!("GET {longest}x"), more).await;
        assert_eq!(status, "HTTP/1.1 414 URI Too Long");
        assert!(body.contains("at most 1024 bytes"), "{body}");
    }
}

#[tokio::test]
async fn a_handshake_is_answered_as_the_rfc_says() {
    let server = TestServer::echo().await;
    let mut client = server.raw().await;
    client
        .send(RawClient::handshake(
            "/",
            "Sec-WebSocket-Protocol: chat, soap\r\n",
        ))
        .await;
    let head = client.read_head().await.to_lowercase();
    assert!(
        head.starts_with("http/1.1 101 switching protocols\r\n"),
        "{head}"
    );
    assert!(
        head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"),
        "{head}"
    );
    assert!(head.contains("\r\nupgrade: websocket\r\n"), "{head}");
    assert_eq!(head.matches("connection:").count(), 1, "{head}");
    assert!(head.contains("\r\nconnection: upgrade\r\n"), "{head}");
    assert!(!head.contains("sec-websocket-protocol"), "{head}");

    // Lists and letter case, as browsers and proxies send them.
    let mut client = server.raw().await;
    let odd = RawClient::handshake("/", "")
        .replace("Upgrade: websocket", "Upgrade: foo, WebSocket")
        .replace("Connection: Upgrade", "Connection: keep-alive, upgrade");
    client.send(odd).await;
    assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
}

#[tokio::test]
async fn a_handshake_that_is_not_one_is_refused_with_the_reason() {
    let server = TestServer::echo().await;
    let good = RawClient::handshake("/", "");
    let version = "Sec-WebSocket-Version: 13\r\n";
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (from, to, status) in [
        (version, "Sec-WebSocket-Version: 8\r\n", 426),
        (version, "", 426),
        (key, "", 400),
        (key, "Sec-WebSocket-Key: c2hvcnQ=\r\n", 400),
        (key, "Sec-WebSocket-Key: !\r\n", 400),
        (key, &key.repeat(2), 400),
        ("Connection: Upgrade\r\n", "", 400),
        ("HTTP/1.1", "HTTP/1.0", 400),
        ("Host:", "Content-Length: 3\r\nHost:", 400),
        ("GET / HTTP/1.1", "GET /", 400),
        ("Host: localhost", "Host localhost", 400),
    ] {
        let response = server.raw().await.request(&good.replace(from, to)).await;
        let expected = format!(" {status} ");
        assert!(
            response[8..].starts_with(&expected),
            "{from} -> {to}: {response}"
        );
        let advertised = response
            .to_lowercase()
            .contains("sec-websocket-version: 13");
        assert_eq!(advertised, status == 426, "{response}");
    }
    assert_eq!(server.monitor.rooms(), 0);
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_answered_408() {
    let server = TestServer::with(|config| config.open_timeout = millis(100)).await;
    for sent in ["", "GET / HTTP/1.1\r\nHost: te"] {
        let response = server.raw().await.request(sent).await;
        assert!(
            response.starts_with("HTTP/1.1 408 Request Timeout\r\n"),
            "{response}"
        );
        assert!(
            response.ends_with("\r\n\r\nthe request took too long\n"),
            "{response}"
        );
    }
}

#[tokio::test]
async fn who_has_sent_a_request_may_close_its_side() {
    let server = TestServer::echo().await;
    for (request, status) in [
        ("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "200"),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "200"),
        (RawClient::handshake("/", ""), "101"),
    ] {
        for _ in 0..20 {
            let mut client = server.raw().await;
            client.send(&request).await;
            client.stream.shutdown().await.unwrap();
            let response = client.read_to_end().await;
            assert!(
                response.starts_with(format!("HTTP/1.1 {status} ").as_bytes()),
                "{request}"
            );
        }
    }
}

#[tokio::test]
async fn what_is_no_path_is_no_room() {
    let server = TestServer::echo().await;
    let star = RawClient::handshake("*", "");
    let response = server.raw().await.request(&star).await;
    assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
}

#[tokio::test]
async fn what_is_no_request_is_told_so() {
    let server = TestServer::echo().await;
    for (request, code, reason) in [
        ("GARBAGE\r\n\r\n".to_owned(), 400, "no HTTP/1.1 request"),
        (
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n".to_owned(),
            400,
            "Content-Length is not one number",
        ),
        (
            "GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            400,
            "no HTTP/1.1 request",
        ),
        (
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
            400,
            "no HTTP/1.1 request",
        ),
        (
            format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20_000)),
            431,
            "16 KiB",
        ),
        (
            format!("GET / HTTP/1.1\r\n{}\r\n", "X: x\r\n".repeat(200)),
            431,
            "100 fields",
        ),
    ] {
        let response = server.raw().await.request(&request).await;
        let (head, body) = response.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with(&format!("HTTP/1.1 {code} ")), "{head}");
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "{head}"
        );
        assert!(body.contains(reason) && body.lines().count() == 1, "{body}");
    }
}
