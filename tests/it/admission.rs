//! Admission: names of the server, and origins of web pages.

use crate::harness::*;
use crate::process::*;

/// A server on loopback with the default hosts.
async fn plain() -> TestServer {
    TestServer::quiet(|config| config.access.allow_host.clear()).await
}

#[tokio::test]
async fn dns_rebinding_is_refused() {
    let server = plain().await;
    let port = server.address.port();
    let ways = [
        ("GET /", HANDSHAKE),
        ("GET /", "Accept: text/event-stream\r\n"),
        ("GET /?history", ""),
        ("POST /", ""),
        ("PUT /", ""),
        ("OPTIONS /", ""),
        ("OPTIONS *", ""),
    ];
    for (line, more) in ways {
        // As a browser sends it for a page of that name: the origins are the same.
        let more = format!("Host: evil.com:{port}\r\nOrigin: http://evil.com:{port}\r\n{more}");
        let Answer { code, body, .. } = server.request(line, &more, "").await;
        let reason = "host \"evil.com\" is not allowed: --allow-host evil.com would let it in\n";
        assert_eq!((code, body.as_str()), (403, reason), "{line}");
    }
    assert_eq!(server.monitor.rooms(), 0);
    // The page and the health checks are served to any host.
    for path in ["/", "/lobby", "/livez", "/healthz", "/readyz"] {
        let more = "Host: evil.com\r\nOrigin: http://evil.com\r\n";
        let answer = server.request(&format!("GET {path}"), more, "").await;
        assert_eq!(answer.code, 200, "{path}");
    }
    for host in [
        "localhost",
        "127.0.0.1",
        "[::1]",
        "app.localhost",
        "LOCALHOST.",
    ] {
        let more = format!("Host: {host}:{port}\r\nOrigin: http://{host}:{port}\r\n{HANDSHAKE}");
        let answer = server.request("GET /", &more, "").await;
        assert_eq!(answer.code, 101, "{host}: {answer:?}");
    }
    // No browser sends HTTP/1.0 without a host.
    let mut old = server.raw().await;
    let answer = old.exchange("GET /?history HTTP/1.0\r\n\r\n").await;
    assert_eq!(answer.code, 200, "{answer:?}");
    for host in ["a b", "user@localhost", "localhost:x", "localhost/", "[::1"] {
        let more = format!("Host: {host}\r\n");
        let answer = server.request("GET /?history", &more, "").await;
        assert_eq!(answer.code, 400, "{host}: {answer:?}");
    }
}

#[tokio::test]
async fn an_allowed_host_admits_its_own_page_and_no_page_of_this_machine() {
    let server = TestServer::quiet(|config| {
        config.access.allow_host = ["chat.example.com", "*.example.org"]
            .map(|it| it.parse().unwrap())
            .into();
    })
    .await;
    for (host, origin, code) in [
        ("chat.example.com", "https://chat.example.com", 101),
        ("a.example.org", "https://a.example.org", 101),
        ("localhost", "http://localhost:3000", 101),
        ("localhost", "null", 101),
        ("chat.example.com", "null", 403),
        ("chat.example.com", "file://", 403),
        ("chat.example.com", "http://localhost:3000", 403),
        ("chat.example.com", "http://127.0.0.1", 403),
        ("chat.example.com", "https://evil.com", 403),
        ("evil.com", "https://evil.com", 403),
        // Not a browser.
        ("chat.example.com", "", 101),
        ("chat.example.com", "wss://chat.example.com/lobby", 101),
        ("chat.example.com:8765", "ws://chat.example.com:8765", 101),
        ("chat.example.com:8765", "ws://chat.example.com", 403),
    ] {
        let origin = match origin {
            "" => String::new(),
            it => format!("Origin: {it}\r\n"),
        };
        let more = format!("Host: {host}\r\n{origin}{HANDSHAKE}");
        let answer = server.request("GET /", &more, "").await;
        assert_eq!(answer.code, code, "{host} {origin}: {answer:?}");
    }
}

#[tokio::test]
async fn a_cross_site_request_without_an_origin_is_refused() {
    let server = plain().await;
    let fetch = |site: &str, mode: &str| {
        format!("Host: localhost\r\nSec-Fetch-Site: {site}\r\nSec-Fetch-Mode: {mode}\r\n")
    };
    for (line, more) in [
        ("GET /", "Accept: text/event-stream\r\n"),
        ("GET /?history", ""),
    ] {
        for (site, mode, code) in [
            ("cross-site", "no-cors", 403),
            ("cross-site", "navigate", 200),
            ("same-origin", "cors", 200),
            ("none", "navigate", 200),
        ] {
            let more = format!("{}{more}", fetch(site, mode));
            let answer = server.request(line, &more, "").await;
            assert_eq!(answer.code, code, "{line} {site} {mode}: {answer:?}");
            let names_remedy = answer.body.contains("--allow-origin");
            assert_eq!(names_remedy, code == 403, "{answer:?}");
        }
    }
    // The page and the health checks are served to any site.
    for path in ["/", "/healthz"] {
        let more = fetch("cross-site", "no-cors");
        let answer = server.request(&format!("GET {path}"), &more, "").await;
        assert_eq!(answer.code, 200);
    }
}

#[tokio::test]
async fn origins_and_hosts_can_be_listed_in_the_environment() {
    let mut command = wscast("--host 127.0.0.1 --port 0");
    command.env("WSCAST_ALLOW_HOST", "a.test *.b.test").env(
        "WSCAST_ALLOW_ORIGIN",
        "capacitor://localhost,null http://c.test:*",
    );
    let process = Process::spawn(command).await;
    for (host, origin, code) in [
        ("a.test", "capacitor://localhost", 101),
        ("x.b.test", "null", 101),
        ("x.b.test", "http://c.test:3000", 101),
        ("x.b.test", "http://c.test", 101),
        ("c.test", "null", 403),
        ("a.test", "https://c.test", 403),
        // arduinoWebSockets sends this; `null` includes it.
        ("a.test", "file://", 101),
    ] {
        let more = format!("Host: {host}\r\nOrigin: {origin}\r\n{HANDSHAKE}");
        let answer = process.request("GET /", &more, "").await;
        assert_eq!(answer.code, code, "{host} {origin}: {answer:?}");
    }
}

#[tokio::test]
async fn long_input_of_a_refused_peer_is_shown_as_an_excerpt() {
    let mut process = Process::start("").await;
    let long = "\u{e4}\u{202e}".repeat(2900);
    for (host, origin, path) in [
        ("localhost", long.as_str(), "/"),
        ("localhost", &format!("http://{}", "x".repeat(15_000)), "/"),
        (&"x".repeat(15_000), "null", "/"),
        (
            "localhost",
            "http://evil.com",
            &format!("/{}", "x".repeat(200)),
        ),
    ] {
        let more = format!("Host: {host}\r\nOrigin: {origin}\r\n{HANDSHAKE}");
        let answer = process.request(&format!("GET {path}"), &more, "").await;
        assert_eq!(answer.code, 403);
        assert!(answer.body.len() < 2500, "{answer:?}");
        let line = next_line(&mut process.log, "refused: ").await;
        assert!(line.len() < 3000 && line.contains(" bytes)"), "{line}");
        assert!(
            line.contains("status=403") && line.contains("peer=127.0.0.1:"),
            "{line}"
        );
    }
    // The room of a client is shortened as well.
    let mut client = RawClient::connect(process.address).await;
    client.upgrade(&format!("/{}", "r".repeat(200))).await;
    let line = next_line(&mut process.log, "client connected").await;
    assert!(
        line.contains("r… (201 bytes)\"") && !line.contains(&"r".repeat(101)),
        "{line}"
    );
}

#[tokio::test]
async fn a_flood_of_refusals_is_logged_as_a_few_lines_and_a_count() {
    const MANY: usize = 200;
    let mut process = Process::start("").await;
    for _ in 0..MANY {
        let more = format!("Host: localhost\r\nOrigin: http://evil.com\r\n{HANDSHAKE}");
        assert_eq!(process.request("GET /", &more, "").await.code, 403);
    }
    // Refusals of another kind are logged and counted separately.
    assert_eq!(process.request("PUT /", "", "").await.code, 405);
    // The last count is logged at the exit at the latest.
    process.signal("-TERM").await;
    assert_eq!(process.exit_code().await, Some(0));
    let (mut lines, mut counted, mut others) = (0, 0, 0);
    while let Some(line) = process.log.next_line().await.unwrap() {
        if line.contains("status=405") {
            others += 1;
        } else if let Some((_, count)) = line.split_once("refused: … and ") {
            counted += count.split(' ').next().unwrap().parse::<usize>().unwrap();
        } else if line.contains("refused: ") {
            lines += 1;
        }
    }
    assert_eq!((lines + counted, others), (MANY, 1));
    // Five lines a second at most, for the few seconds that the test takes.
    assert!(lines < MANY / 2, "{lines} lines");
}

#[tokio::test]
async fn the_count_of_refusals_is_logged_without_a_further_refusal() {
    let mut process = Process::start("").await;
    for _ in 0..8 {
        assert_eq!(process.request("PUT /", "", "").await.code, 405);
    }
    for _ in 0..5 {
        next_line(&mut process.log, "refused: use GET").await;
    }
    next_line(&mut process.log, "refused: … and 3 more like it").await;
}

#[tokio::test]
async fn unknown_subprotocols_are_named_in_the_log() {
    let mut process = Process::start("").await;
    next_line(&mut process.log, "history").await;
    for (offered, shown) in [
        (
            "wscast.v1.json, graphql-ws, soap",
            Some("\"graphql-ws, soap\""),
        ),
        ("wscast.v1.json", None),
        (&"x".repeat(1000), Some("x… (1000 bytes)\"")),
    ] {
        let mut client = RawClient::connect(process.address).await;
        let more = format!("Sec-WebSocket-Protocol: {offered}\r\n");
        client.send(RawClient::handshake("/", &more)).await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
        let mut line = next_line(&mut process.log, "").await;
        while line.contains("client left") {
            line = next_line(&mut process.log, "").await;
        }
        let expected = shown.unwrap_or("client connected");
        assert!(line.contains(expected), "{line}");
        if shown.is_some() {
            assert!(line.contains("unknown subprotocols"), "{line}");
            next_line(&mut process.log, "client connected").await;
        }
    }
}
