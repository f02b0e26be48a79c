//! A hundred mixed requests over one connection, by clients that people use.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::harness::*;
use crate::nginx::Nginx;
use crate::proxy::Proxy;

/// A request: its method, its target, one header field, its body, and the status of its answer.
type Exchange = (
    &'static str,
    &'static str,
    (&'static str, &'static str),
    &'static str,
    u16,
);

const NONE: (&str, &str) = ("Accept", "*/*");

/// Ten requests of each kind.
fn mixed() -> impl Iterator<Item = Exchange> + Clone {
    let kinds = [
        ("GET", "/", NONE, "", 200),
        ("POST", "/", ("Content-Type", "text/plain"), "hello", 201),
        ("GET", "/?history&limit=2", NONE, "", 200),
        ("GET", "/?history&limit=0", NONE, "", 400),
        ("GET", "/metrics", NONE, "", 404),
        ("GET", "/readyz", NONE, "", 200),
        ("DELETE", "/", NONE, "", 405),
        ("OPTIONS", "/lobby", NONE, "", 204),
        ("POST", "/?wait=delivered", NONE, "waited for", 201),
        ("GET", "/lobby", ("If-None-Match", "*"), "", 304),
    ];
    std::iter::repeat_n(kinds, 10).flatten()
}

fn statuses() -> Vec<u16> {
    mixed().map(|(.., code)| code).collect()
}

/// Runs a client that is a program, which gets `input`, against a server behind a proxy, and asserts
/// that it got the right answers over `connections` at most. Left out where it is missing, which
/// `WSCAST_TEST_ALL` does not allow.
async fn ask(
    program: &str,
    arguments: &[&str],
    connections: usize,
    input: impl Fn(&str) -> String,
) {
    let server = TestServer::quiet(|_| {}).await;
    let proxy = Proxy::to(server.address).await;
    let spawned = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            assert!(
                std::env::var_os("WSCAST_TEST_ALL").is_none(),
                "{program} does not start: {error}"
            );
            eprintln!("left out: {program} does not start: {error}");
            return;
        }
    };
    let input = input(&proxy.address.to_string());
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = timeout(PATIENCE, child.wait_with_output()).await;
    let output = output.expect("it does not end").unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let codes: Vec<u16> = text
        .split_whitespace()
        .map(|it| it.parse().unwrap())
        .collect();
    assert_eq!(codes, statuses(), "{program}");
    assert!(proxy.accepted() <= connections, "{}", proxy.accepted());
}

/// The requests as JSON, for the scripts.
fn as_json(address: &str) -> String {
    let requests: Vec<Value> = mixed()
        .map(|(method, target, (name, value), body, _)| {
            json!({"method": method, "target": target, "fields": {name: value}, "body": body})
        })
        .collect();
    json!({"address": address, "requests": requests}).to_string()
}

#[tokio::test]
async fn http_client_of_python_asks_a_hundred_times_over_one_connection() {
    const SCRIPT: &str = r#"
import http.client, json, sys
order = json.load(sys.stdin)
connection = http.client.HTTPConnection(order["address"], timeout=10)
for it in order["requests"]:
    connection.request(it["method"], it["target"], it["body"] or None, it["fields"])
    answer = connection.getresponse()
    answer.read()
    print(answer.status)
"#;
    ask("python3", &["-c", SCRIPT], 1, as_json).await;
}

#[tokio::test]
async fn fetch_of_node_asks_a_hundred_times_over_a_connection_or_two() {
    const SCRIPT: &str = r#"
const order = JSON.parse(require("fs").readFileSync(0));
(async () => {
    for (const it of order.requests) {
        const options = { method: it.method, headers: it.fields, body: it.body || undefined };
        const answer = await fetch(`http://${order.address}${it.target}`, options);
        await answer.text();
        console.log(answer.status);
    }
})();
"#;
    // Its pool may open a second one while it is not yet done with the first answer.
    ask("node", &["-e", SCRIPT], 2, as_json).await;
}

#[tokio::test]
async fn curl_asks_a_hundred_times_over_one_connection() {
    let config = |address: &str| {
        let requests = mixed().map(|(method, target, (name, value), body, _)| {
            let data = match body {
                "" => String::new(),
                body => format!("data = \"{body}\"\n"),
            };
            format!(
                "url = \"http://{address}{target}\"\nrequest = {method}\nheader = \"{name}: {value}\"\n\
                 {data}silent\noutput = /dev/null\nwrite-out = \"%{{http_code}}\\n\"\n"
            )
        });
        requests.collect::<Vec<_>>().join("next\n")
    };
    ask("curl", &["--config", "-"], 1, config).await;
}

#[tokio::test]
async fn nginx_asks_a_hundred_times_over_one_connection_and_passes_events_on_at_once() {
    for buffering in ["proxy_buffering on;", "proxy_buffering off;"] {
        let server = TestServer::quiet(|_| {}).await;
        let proxy = Proxy::to(server.address).await;
        let Some(nginx) = Nginx::configured(proxy.address, buffering).await else {
            return;
        };
        let mut client = RawClient::connect(nginx.address).await;
        for (method, target, (name, value), body, code) in mixed() {
            let fields = format!("{ALIVE}{name}: {value}\r\n");
            let line = format!("{method} {target}");
            let answer = client.request(&line, &fields, body).await;
            assert_eq!(answer.code, code, "{line}: {answer:?}");
        }
        assert_eq!(proxy.accepted(), 1);

        let mut events = RawClient::connect(nginx.address).await;
        events
            .send("GET /live HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
            .await;
        events.read_head().await;
        for text in ["one", "two"] {
            assert_eq!(client.request("POST /live", ALIVE, text).await.code, 201);
            events.read_to(&format!("data: {text}\n\n")).await;
        }
        let mut websocket = RawClient::connect(nginx.address).await;
        websocket.upgrade("/live").await;
        assert_eq!(websocket.read_frame().await.0, FIN | TEXT);
    }
}
