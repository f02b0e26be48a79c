//! The README's table of requests, line by line.

use wscast::config::Size;

use crate::harness::*;

const EVENTS: &str = "Accept: text/event-stream\r\n";
/// A handshake without its version.
const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\n";
const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const VERSION: &str = "Sec-WebSocket-Version: 13\r\n";

/// The first cells of the table: what each line is about.
fn lines_of_the_table() -> Vec<&'static str> {
    let readme = include_str!("../../README.md");
    let (_, table) = readme
        .split_once("| request | answer |\n|---|---|\n")
        .unwrap();
    let (table, _) = table.split_once("\n\n").unwrap();
    let cell = |line: &'static str| line.split(" | ").next().unwrap();
    table
        .lines()
        .map(|line| cell(line).trim_start_matches("| "))
        .collect()
}

/// A server whose bounds are small.
async fn small() -> TestServer {
    TestServer::quiet(|config| {
        config.limits.max_message_size = Size::from(10);
        config.times.open_timeout = millis(200);
    })
    .await
}

/// Asks one line of the table.
async fn ask(line: &str) {
    let server = small().await;
    // Whether this request has an answer with this status and this text in it.
    let check = async |request: &str, fields: &str, body: &str, code: u16, text: &str| {
        let answer = server.request(request, fields, body).await;
        assert_eq!(answer.code, code, "{line}: {answer:?}");
        let whole = format!("{}{}", answer.head, answer.body.to_lowercase());
        assert!(
            whole.contains(text),
            "{line}: {text:?} is not in {}",
            answer.head
        );
    };
    match line {
        "`GET /` or any room path, with `Upgrade: websocket`" => {
            for path in ["GET /", "GET /lobby"] {
                check(path, &format!("{UPGRADE}{KEY}{VERSION}"), "", 101, "").await;
            }
        }
        "`GET /` or any room path, plain" => {
            for path in ["GET /", "GET /lobby"] {
                check(path, "", "", 200, "<!doctype html>").await;
            }
        }
        "… with `Accept: text/event-stream`" => {
            check("GET /", EVENTS, "", 200, "content-type: text/event-stream").await;
        }
        "`GET /<room>?history`" => {
            check("POST /lobby", "", "kept", 201, "").await;
            let history = server.request("GET /lobby?history", "", "").await.json();
            assert_eq!(history[0]["text"], "kept");
        }
        "`POST /<room>`" => {
            check("POST /lobby", "", "hello", 201, "\"clients\":0").await;
            let echo = TestServer::echo().await;
            assert_eq!(echo.request("POST /lobby", "", "x").await.code, 405);
        }
        "`GET /<room>?clients`" => {
            let body = r#"{"clients":0,"names":[]}"#;
            check("GET /lobby?clients", "", "", 200, body).await;
        }
        "… again, with the same `Idempotency-Key`" => {
            for (body, code) in [("one", 201), ("one", 200), ("two", 422)] {
                check("POST /lobby", "Idempotency-Key: k\r\n", body, code, "").await;
            }
        }
        "`GET /-/wscast.js`, `GET /-/wscast.d.ts`" => {
            for (path, text) in [("js", "export class room"), ("d.ts", "export class room")] {
                check(&format!("GET /-/wscast.{path}"), "", "", 200, text).await;
            }
        }
        "`GET /livez`" => check("GET /livez", "", "", 200, "\r\n\r\nok").await,
        "`GET /healthz`, `GET /readyz`" => {
            let mut server = small().await;
            for path in ["/healthz", "/readyz"] {
                let answer = server.request(&format!("GET {path}"), "", "").await;
                assert_eq!((answer.code, &*answer.body), (200, "ok"));
            }
            // What has begun before the drain is answered by it.
            let mut clients = [server.raw().await, server.raw().await];
            for (client, path) in clients.iter_mut().zip(["healthz", "readyz"]) {
                client
                    .send(format!("GET /{path} HTTP/1.1\r\nHost: x\r\n"))
                    .await;
            }
            eventually("both are there", || server.monitor.connections() == 2).await;
            server.begin_stop();
            for client in &mut clients {
                assert_eq!(client.answer().await.code, 503);
            }
            server.stop().await;
        }
        "`OPTIONS`" => {
            check("OPTIONS /", "", "", 204, "allow: get, head, post, options").await;
            check("OPTIONS *", "", "", 204, "allow: ").await;
            let preflight = "Origin: http://localhost\r\nAccess-Control-Request-Method: POST\r\n";
            check(
                "OPTIONS /",
                preflight,
                "",
                204,
                "access-control-allow-methods: ",
            )
            .await;
        }
        "wrong WebSocket version" => {
            let old = format!("{UPGRADE}{KEY}Sec-WebSocket-Version: 8\r\n");
            check("GET /", &old, "", 426, "sec-websocket-version: 13").await;
            check("GET /", &old, "", 426, "upgrade: websocket").await;
        }
        "missing or malformed key, malformed request" => {
            check("GET /", &format!("{UPGRADE}{VERSION}"), "", 400, "").await;
            let short = format!("{UPGRADE}Sec-WebSocket-Key: short\r\n{VERSION}");
            check("GET /", &short, "", 400, "").await;
            let answer = server.raw().await.exchange("nonsense\r\n\r\n").await;
            assert_eq!(answer.code, 400);
        }
        "`HEAD`" => {
            check("HEAD /", "", "", 200, "content-type: text/html").await;
            check(
                "HEAD /?history",
                "",
                "",
                200,
                "content-type: application/json",
            )
            .await;
        }
        "other methods" => {
            for line in ["DELETE /", "CONNECT localhost:80"] {
                check(line, "", "", 405, "allow: get, head, post, options").await;
            }
        }
        "a web page of another origin, a host that is not the server's" => {
            let page = "Origin: http://elsewhere.example\r\n";
            check("POST /", page, "x", 403, "--allow-origin").await;
            check(
                "POST /",
                "Host: elsewhere.example\r\n",
                "x",
                403,
                "--allow-host",
            )
            .await;
        }
        "a name over 1024 bytes (with its `/`), an address over 16 KiB" => {
            check(&format!("GET /?{}", "x".repeat(17_000)), "", "", 414, "16").await;
            check(&format!("GET /{}", "x".repeat(1024)), "", "", 414, "1024").await;
        }
        "a path that is reserved" => {
            check("GET /socket.io/", "", "", 404, "plain websocket").await;
            check("GET /metrics", "", "", 404, "reserved").await;
        }
        "a body over `--max-message-size`" => {
            check("POST /", "", "12345678901", 413, "--max-message-size").await;
        }
        "a body with a `Content-Encoding`, or in an unknown charset" => {
            check("POST /", "Content-Encoding: gzip\r\n", "x", 415, "").await;
            let charset = "Content-Type: text/plain; charset=klingon\r\n";
            check("POST /", charset, "x", 415, "charset").await;
        }
        "a transfer coding other than `chunked`" => {
            check("POST /", "Transfer-Encoding: gzip\r\n", "x", 501, "chunked").await;
        }
        "a request whose head takes `--open-timeout`, or whose body stands still for so long" => {
            let head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n";
            for begun in [head.to_owned(), format!("{head}\r\nhalf")] {
                assert_eq!(server.raw().await.exchange(begun).await.code, 408);
            }
        }
        "more than 16 KiB or 100 fields of header" => {
            let long = format!("Field: {}\r\n", "x".repeat(16 * 1024));
            check("GET /", &long, "", 431, "").await;
            check("GET /", &"Field: x\r\n".repeat(101), "", 431, "").await;
        }
        "no place left (connections, rooms, draining)" => {
            let full = TestServer::quiet(|config| config.limits.max_connections = 1).await;
            let _client = full.raw_websocket().await;
            let answer = full.request("POST /", "", "x").await;
            assert_eq!((answer.code, answer.field("retry-after")), (503, Some("1")));
            let browser = format!("{EVENTS}Referer: http://test/\r\n");
            let answer = full.request("GET /", &browser, "").await;
            assert_eq!((answer.code, answer.body.contains("retry: ")), (200, true));
            let full = TestServer::quiet(|config| config.limits.max_rooms = 1).await;
            let _client = full.raw_websocket().await;
            assert_eq!(full.request("POST /other", "", "x").await.code, 503);
        }
        unknown => panic!("no test asks this line of the README's table: {unknown}"),
    }
}

#[tokio::test]
async fn each_line_of_the_table_of_requests_is_true() {
    let lines = lines_of_the_table();
    assert!(lines.len() >= 20, "{lines:?}");
    for line in lines {
        ask(line).await;
    }
}
