//! HTTP on the same port.

use tokio::io::AsyncWriteExt;

use crate::harness::*;

#[tokio::test]
async fn every_room_path_serves_the_page() {
    let server = TestServer::echo().await;
    let page = include_str!("../../static/client.html");
    for path in ["/", "/lobby", "/a/b%20c?x=y"] {
        let Answer { code, head, body } = server.request(&format!("GET {path}"), "", "").await;
        assert_eq!(code, 200);
        assert!(
            head.contains("content-type: text/html; charset=utf-8"),
            "{head}"
        );
        assert_eq!(body, page);
    }
    let Answer { code, head, body } = server.request("HEAD /", "", "").await;
    assert_eq!((code, body.as_str()), (200, ""));
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
    // An upgrade to another protocol is ignored.
    let upgrade = "Connection: Upgrade\r\nUpgrade: h2c\r\n";
    assert_eq!(server.request("GET /", upgrade, "").await.code, 200);
}

#[tokio::test]
async fn a_cached_page_is_answered_304() {
    let server = TestServer::echo().await;
    let page = server.request("GET /", "", "").await;
    let etag = page.field("etag").unwrap();
    for known in [
        etag,
        &format!("W/{etag}"),
        &format!("\"other\", {etag}"),
        "*",
    ] {
        let known = format!("If-None-Match: {known}\r\n");
        let answer = server.request("GET /", &known, "").await;
        assert_eq!((answer.code, answer.body.as_str()), (304, ""));
        assert_eq!(answer.field("etag"), Some(etag));
    }
    let other = "If-None-Match: \"other\"\r\n";
    assert_eq!(server.request("GET /", other, "").await.code, 200);
}

#[tokio::test]
async fn health_is_ok_while_the_server_is_up() {
    let server = TestServer::echo().await;
    let Answer { code, body, .. } = server.request("GET /healthz", "", "").await;
    assert_eq!((code, body.as_str()), (200, "ok"));
}

#[tokio::test]
async fn other_methods_are_answered_405() {
    let server = TestServer::echo().await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    for (line, more, body) in [
        ("POST /", "", "hello"),
        ("PUT /lobby", "", ""),
        ("DELETE /healthz", "", ""),
        ("BREW /", "", ""),
        ("POST /", upgrade, ""),
    ] {
        let Answer { code, head, .. } = server.request(line, more, body).await;
        assert_eq!(code, 405, "{line}");
        assert!(head.contains("allow: get, head"), "{head}");
    }
}

#[tokio::test]
async fn the_name_of_a_room_has_at_most_1024_bytes() {
    let server = TestServer::echo().await;
    let longest = format!("/{}", "x".repeat(1023));
    server.client_at(&longest).await.close().await;
    let page = server.request(&format!("GET {longest}"), "", "").await;
    assert_eq!(page.code, 200);
    for more in ["", HANDSHAKE] {
        let line = format!("GET {longest}x");
        let Answer { code, body, .. } = server.request(&line, more, "").await;
        assert_eq!(code, 414);
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
async fn an_invalid_handshake_is_answered_400_or_426() {
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
        let answer = server.raw().await.exchange(good.replace(from, to)).await;
        assert_eq!(answer.code, status, "{from} -> {to}: {answer:?}");
        let advertised = answer.field("sec-websocket-version");
        let expected = (status == 426).then_some("13");
        assert_eq!(advertised, expected, "{answer:?}");
    }
    assert_eq!(server.monitor.rooms(), 0);
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_answered_408() {
    let server = TestServer::with(|config| config.times.open_timeout = millis(100)).await;
    for sent in ["G", "GET / HTTP/1.1\r\nHost: te"] {
        let Answer { code, body, .. } = server.raw().await.exchange(sent).await;
        assert_eq!(
            (code, body.as_str()),
            (408, "the request took too long: see --open-timeout\n")
        );
    }
}

#[tokio::test]
async fn a_head_that_is_refused_before_it_is_complete_has_no_body_either() {
    let server = TestServer::with(|config| config.times.open_timeout = millis(100)).await;
    let many = format!("HEAD / HTTP/1.1\r\n{}\r\n", "Field: x\r\n".repeat(101));
    for (sent, expected) in [("HEAD / HTTP/1.1\r\nHost: te", 408), (&*many, 431)] {
        let Answer { code, body, .. } = server.raw().await.exchange(sent).await;
        assert_eq!((code, body.as_str()), (expected, ""));
    }
}

#[tokio::test]
async fn a_client_may_half_close_after_its_request() {
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
async fn a_handshake_without_a_path_is_answered_400() {
    let server = TestServer::echo().await;
    let star = RawClient::handshake("*", "");
    assert_eq!(server.raw().await.exchange(star).await.code, 400);
}

#[tokio::test]
async fn an_invalid_request_is_answered_with_the_reason() {
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
        let answer = server.raw().await.exchange(&request).await;
        assert_eq!(answer.code, code, "{answer:?}");
        let body = &answer.body;
        let length = body.len().to_string();
        assert_eq!(answer.field("content-length"), Some(length.as_str()));
        assert!(body.contains(reason) && body.lines().count() == 1, "{body}");
    }
}
