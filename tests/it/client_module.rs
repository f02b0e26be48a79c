//! The client module: its rules, and what it does in Node and in Chromium, over networks that break.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::chromium::Browser;
use crate::harness::*;
use crate::process::{Process, wscast};
use crate::relay::Relay;
use crate::tools::{path, tool};

const SCENARIOS: &str = include_str!("../module/scenarios.mjs");

/// What a scenario may take.
const SCENARIO_PATIENCE: Duration = Duration::from_secs(180);

/// A Node that has a WebSocket of its own.
fn node() -> Option<PathBuf> {
    tool("bin/node")
}

/// Runs a script in Node; returns what it prints.
async fn run_in_node(node: &PathBuf, script: &str, argument: &str) -> String {
    let child = Command::new(node)
        .arg(path(script))
        .arg(argument)
        .kill_on_drop(true)
        .output();
    let output = timeout(SCENARIO_PATIENCE, child).await;
    let output = output.expect("the script does not end").unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stdout}\n{stderr}");
    stdout
}

/// Where a client runs.
enum Client {
    Node(PathBuf),
    Chromium(Box<Browser>),
}

impl Client {
    fn node() -> Option<Self> {
        node().map(Self::Node)
    }

    async fn chromium() -> Option<Self> {
        let browser = Browser::start().await?;
        Some(Self::Chromium(Box::new(browser)))
    }

    /// What a scenario reports; a browser has the module from `server`.
    async fn run(&self, server: SocketAddr, scenario: &str, order: Value) -> Value {
        let mut order = order;
        order["scenario"] = scenario.into();
        let report = match self {
            Self::Node(node) => {
                run_in_node(node, "tests/module/node.mjs", &order.to_string()).await
            }
            Self::Chromium(browser) => {
                // A page of another origin, which may load what it wants.
                let page = browser
                    .open(&format!("http://localhost:{}/livez", server.port()))
                    .await;
                let source = Value::from(SCENARIOS);
                page.run(&format!(
                    "window.report = undefined;
                     const source = new Blob([{source}], {{ type: 'text/javascript' }});
                     const order = {order};
                     (async () => {{
                       const {{ Room }} = await import('http://{server}/-/wscast.js');
                       const {{ scenarios }} = await import(URL.createObjectURL(source));
                       return JSON.stringify(await scenarios[order.scenario](Room, order));
                     }})().then((it) => (window.report = it), (it) => (window.report = `failed: ${{it.stack}}`));"
                ))
                .await;
                let report = async {
                    loop {
                        let report = page.run("return window.report ?? null").await;
                        if let Value::String(report) = report {
                            return report;
                        }
                        sleep(Duration::from_millis(50)).await;
                    }
                };
                let report = timeout(SCENARIO_PATIENCE, report).await;
                report.expect("the scenario does not end")
            }
        };
        serde_json::from_str(&report).unwrap_or_else(|_| panic!("{scenario}: {report}"))
    }
}

#[derive(Debug, Deserialize)]
struct Seen {
    id: Option<String>,
    text: Option<String>,
    size: usize,
    from: Option<String>,
    name: Option<String>,
    mine: bool,
}

#[derive(Debug, Deserialize)]
struct Fate {
    text: String,
    id: Option<String>,
    code: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Closed {
    code: u16,
}

#[derive(Debug, Deserialize)]
struct Report {
    #[serde(default)]
    fates: Vec<Fate>,
    #[serde(default)]
    again: Vec<String>,
    seen: Vec<Seen>,
    gaps: Vec<Option<u64>>,
    closes: Vec<Closed>,
    opens: usize,
}

fn report(value: Value) -> Report {
    serde_json::from_value(value).unwrap()
}

// ---- The rules, the types, the size ----

#[tokio::test]
async fn the_rules_hold() {
    let Some(node) = node() else { return };
    run_in_node(&node, "tests/module/rules.mjs", "").await;
}

#[tokio::test]
async fn the_types_are_those_of_what_users_write() {
    let (Some(node), Some(tsc)) = (node(), tool("node_modules/typescript/bin/tsc")) else {
        return;
    };
    let mut check = Command::new(node);
    check.arg(tsc).current_dir(path("tests/module"));
    check.args("--strict --noEmit --target es2022 --module nodenext types.ts".split(' '));
    let output = timeout(SCENARIO_PATIENCE, check.output()).await.unwrap();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
}

#[test]
fn the_module_stays_small() {
    assert!(include_str!("../../static/wscast.js").len() < 12_000);
}

#[tokio::test]
async fn it_is_served_to_any_origin_and_any_host_and_not_sent_again() {
    let server = TestServer::broadcast().await;
    let elsewhere = "Host: elsewhere.example\r\nOrigin: https://elsewhere.example\r\n\
        Sec-Fetch-Site: cross-site\r\n";
    let files = [
        (
            "js",
            "text/javascript",
            include_str!("../../static/wscast.js"),
        ),
        (
            "d.ts",
            "text/plain",
            include_str!("../../static/wscast.d.ts"),
        ),
    ];
    for (name, kind, text) in files {
        let line = |method| format!("{method} /-/wscast.{name}?x");
        let answer = server.request(&line("GET"), elsewhere, "").await;
        assert_eq!((answer.code, &*answer.body), (200, text));
        let kind = format!("{kind}; charset=utf-8");
        let tag = answer.field("etag").unwrap();
        let fields = [
            ("content-type", &*kind),
            ("access-control-allow-origin", "*"),
            ("cross-origin-resource-policy", "cross-origin"),
            ("cache-control", "no-cache"),
            ("x-content-type-options", "nosniff"),
        ];
        for (name, value) in fields {
            assert_eq!(answer.field(name), Some(value));
        }
        let head = server.request(&line("HEAD"), elsewhere, "").await;
        assert_eq!((head.code, &*head.body), (200, ""));
        let fields = format!("{elsewhere}If-None-Match: W/{tag}\r\n");
        let known = server.request(&line("GET"), &fields, "").await;
        assert_eq!((known.code, &*known.body), (304, ""));
        assert_eq!(known.field("access-control-allow-origin"), Some("*"));
        let fields = format!("{elsewhere}If-None-Match: \"other\"\r\n");
        assert_eq!(server.request(&line("GET"), &fields, "").await.code, 200);
        let options = server.request(&line("OPTIONS"), elsewhere, "").await;
        let allowed = Some("get, head, options");
        assert_eq!((options.code, options.field("allow")), (204, allowed));
        let post = server.request(&line("POST"), elsewhere, "x").await;
        assert_eq!((post.code, post.field("allow")), (405, allowed));
    }
    // The files are no rooms, and what is beside them is nothing.
    assert_eq!(server.request("GET /-/wscast.css", "", "").await.code, 404);
    let upgrade = format!("{HANDSHAKE}Origin: http://localhost\r\nConnection: Upgrade\r\n");
    let answer = server.request("GET /-/wscast.js", &upgrade, "").await;
    assert_eq!(answer.code, 200);
}

// ---- Broken wires ----

/// How a connection comes to suffer.
#[derive(Debug, Clone, Copy)]
enum Harm {
    Torn,
    HalfOpen,
    Killed,
}

const HARMS: [Harm; 3] = [Harm::Torn, Harm::HalfOpen, Harm::Killed];
const POLICIES: [&str; 3] = ["never", "ask", "always"];

const SERVER: &str = "--mode broadcast --ping-interval 0.5 --ping-timeout 0.5 --history-limit 5000 --drain-timeout 0.1";

async fn serve(port: u16) -> Process {
    Process::spawn(wscast(&format!("--host 127.0.0.1 --port {port} {SERVER}"))).await
}

/// A direct client of a server; it ends with the server, and returns the ids and texts of all messages.
async fn observe(server: SocketAddr) -> JoinHandle<Vec<(String, String)>> {
    let client = crate::harness::Client::json(server, "/").await;
    tokio::spawn(read_all(client))
}

async fn read_all(mut client: crate::harness::Client) -> Vec<(String, String)> {
    let mut seen = Vec::new();
    loop {
        let next = futures_util::StreamExt::next(&mut client.websocket);
        let Ok(Some(Ok(message))) = timeout(PATIENCE, next).await else {
            return seen;
        };
        let Ok(text) = message.into_text() else {
            continue;
        };
        let event: Value = serde_json::from_str(&text).unwrap_or_default();
        if event["type"] == "message" {
            let field = |name: &str| event[name].as_str().unwrap().to_owned();
            seen.push((field("id"), field("text")));
        }
    }
}

/// Two hundred messages over a connection that suffers two times, at random moments.
async fn suffer(client: &Client, harm: Harm, policy: &str) {
    const COUNT: usize = 200;
    let mut server = serve(0).await;
    let address = server.address;
    let relay = Relay::to(address, None).await;
    let mut observers = vec![observe(address).await];
    let options = json!({"name": "Ann", "resend": policy});
    let url = format!("ws://{}/", relay.address);
    let order = json!({"url": url, "count": COUNT, "options": options, "leavesHalfOpen": true});
    let harming = async {
        eventually("a connection", || relay.accepted() > 0).await;
        for times in 1..3 {
            let moment = rand_between(50, 400);
            sleep(Duration::from_millis(moment)).await;
            let accepted = relay.accepted();
            match harm {
                Harm::Torn => relay.tear().await,
                Harm::HalfOpen => relay.half_open(),
                Harm::Killed => {
                    server.child.kill().await.unwrap();
                    server = serve(address.port()).await;
                    observers.push(observe(address).await);
                }
            }
            if times == 1 {
                eventually("a new connection", || relay.accepted() > accepted).await;
            }
        }
    };
    let (reported, ()) = tokio::join!(client.run(address, "cut", order), harming);
    let report = report(reported);
    server.child.kill().await.unwrap();
    let mut log: Vec<(String, String)> = Vec::new();
    for observer in observers {
        log.extend(observer.await.unwrap());
    }
    judge(&report, &log, COUNT, policy, matches!(harm, Harm::Killed));
}

/// Whether what a client says of its messages is true.
fn judge(report: &Report, log: &[(String, String)], count: usize, policy: &str, loses_log: bool) {
    let texts: HashSet<&str> = report.fates.iter().map(|it| &*it.text).collect();
    assert_eq!((texts.len(), report.fates.len()), (count, count));
    assert!(report.opens > 1, "nothing broke");
    // What one client has seen was in the log, even if it was lost before others saw it.
    let mut ids: HashMap<&str, HashSet<&str>> = HashMap::new();
    for (id, text) in log {
        ids.entry(text).or_default().insert(id);
    }
    let mut seen = HashSet::new();
    for it in &report.seen {
        let (id, text) = (it.id.as_deref().unwrap(), it.text.as_deref().unwrap());
        assert!(seen.insert(id), "{id} came twice");
        assert!(it.mine, "{it:?}");
        ids.entry(text).or_default().insert(id);
    }
    let none = HashSet::new();
    for Fate { text, id, code } in &report.fates {
        let found = ids.get(&**text).unwrap_or(&none);
        match (id, code.as_deref()) {
            (Some(id), None) => assert!(found.contains(&**id), "{text} is not in the log as {id}"),
            (None, Some("unconfirmed")) => assert_eq!(policy, "never"),
            (None, Some("discarded")) => assert_eq!(policy, "ask"),
            other => panic!("{text}: {other:?}"),
        }
        let may_double = policy == "always" || report.again.contains(text);
        assert!(found.len() <= 1 || may_double, "{text}: {found:?}");
        if policy == "always" {
            assert!(id.is_some());
        }
    }
    if loses_log {
        return;
    }
    let is_lost = |it: &Fate| it.code.is_some();
    assert!(
        policy != "never" || report.fates.iter().any(is_lost),
        "nothing was lost"
    );
    assert!(report.gaps.is_empty(), "{:?}", report.gaps);
    // Nothing is missing up to the end.
    let end = report.seen.last().unwrap().id.as_deref().unwrap();
    let end = log.iter().position(|(id, _)| id == end).unwrap();
    let expected: Vec<_> = log[..=end].iter().map(|(id, _)| &**id).collect();
    let seen: Vec<_> = report
        .seen
        .iter()
        .map(|it| it.id.as_deref().unwrap())
        .collect();
    assert_eq!(seen, expected);
}

/// A number that differs from run to run.
fn rand_between(least: u64, most: u64) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    least + RandomState::new().hash_one(0) % (most - least)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_over_a_broken_wire_are_accounted_for_in_node() {
    let Some(client) = Client::node() else {
        return;
    };
    for (harm, policy) in HARMS.into_iter().zip(POLICIES) {
        suffer(&client, harm, policy).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_over_a_broken_wire_are_accounted_for_in_chromium() {
    let Some(client) = Client::chromium().await else {
        return;
    };
    for (harm, policy) in HARMS.into_iter().zip(["always", "never", "ask"]) {
        suffer(&client, harm, policy).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: tests/run --long"]
async fn messages_over_broken_wires_are_accounted_for_many_times() {
    for client in [Client::node(), Client::chromium().await] {
        let Some(client) = client else { continue };
        for round in 0..20 {
            for harm in HARMS {
                suffer(&client, harm, POLICIES[round % 3]).await;
            }
        }
    }
}

// ---- Many clients ----

/// Ten clients in each of two rooms, with their names and their number.
async fn talk(client: &Client, options: Value) {
    let server = Process::start("--mode broadcast").await;
    let url = format!("ws://{}/", server.address);
    let order = json!({"url": url, "options": {}, "ws": options});
    let reported = client.run(server.address, "talk", order).await;
    assert!(reported["took"].as_f64().unwrap() < 5000.0, "{reported}");
    // It is told at most once a second.
    assert!(reported["noticed"].as_f64().unwrap() < 2000.0, "{reported}");
    assert_eq!(reported["gaps"], json!([]));
    let yous: Vec<String> = serde_json::from_value(reported["yous"].clone()).unwrap();
    let seen: Vec<Vec<Vec<Seen>>> = serde_json::from_value(reported["seen"].clone()).unwrap();
    for (number, room) in seen.iter().enumerate() {
        for (index, seen) in room.iter().enumerate() {
            let ids = |it: &[Seen]| it.iter().map(|it| it.id.clone()).collect::<Vec<_>>();
            assert_eq!(ids(seen), ids(&room[0]));
            assert_eq!(seen.len(), 20);
            for it in seen {
                let text = it.text.as_deref().unwrap();
                let author: usize = text.rsplit(' ').next().unwrap().parse().unwrap();
                assert_eq!(it.from.as_ref(), Some(&yous[author]));
                assert_eq!(author / 10, number);
                let name = format!("{}{} é", ["a", "b"][number], author % 10);
                assert_eq!(it.name.as_ref(), Some(&name));
                assert_eq!(it.mine, author == number * 10 + index);
            }
        }
    }
}

#[tokio::test]
async fn ten_clients_in_two_rooms_know_each_other_in_node() {
    let Some(client) = Client::node() else {
        return;
    };
    talk(&client, Value::Null).await;
}

#[tokio::test]
async fn ten_clients_in_two_rooms_know_each_other_over_a_websocket_that_is_given() {
    let (Some(client), Some(ws)) = (Client::node(), tool("node_modules/ws/wrapper.mjs")) else {
        return;
    };
    talk(&client, ws.to_str().unwrap().into()).await;
}

#[tokio::test]
async fn ten_clients_in_two_rooms_know_each_other_in_chromium() {
    let Some(client) = Client::chromium().await else {
        return;
    };
    talk(&client, Value::Null).await;
}

// ---- By POST ----

async fn post(client: &Client) {
    let server = Process::start("--mode broadcast").await;
    let order = json!({"url": format!("http://{}/lobby", server.address), "options": {}});
    let reported = client.run(server.address, "post", order).await;
    assert_eq!(reported["refused"], "too-big", "{reported}");
    let seen = |of: &str| serde_json::from_value::<Vec<Seen>>(reported[of].clone()).unwrap();
    // Each has what the other said, and nothing of its own.
    for (of, other, count) in [("a", "Bob", 20), ("b", "Ann", 21)] {
        let seen = seen(of);
        assert_eq!(seen.len(), count, "{of}: {seen:?}");
        assert!(
            seen.iter()
                .all(|it| it.name.as_deref() == Some(other) && !it.mine)
        );
        let texts: Vec<_> = seen.iter().map(|it| it.text.as_deref().unwrap()).collect();
        assert_eq!(texts[..3], ["0 é", "\u{feff}the same", "2 é"]);
    }
}

#[tokio::test]
async fn messages_by_post_are_left_out_of_what_their_sender_gets_in_node() {
    let Some(client) = Client::node() else {
        return;
    };
    post(&client).await;
}

#[tokio::test]
async fn messages_by_post_are_left_out_of_what_their_sender_gets_in_chromium() {
    let Some(client) = Client::chromium().await else {
        return;
    };
    post(&client).await;
}

// ---- Slow networks, and dead ones ----

/// Two large messages, one of the history and a live one, at this many bytes a second.
async fn read_slowly(client: &Client, rate: usize, times: &str) {
    const LARGE: usize = 1 << 20;
    let server = Process::start(&format!(
        "--mode broadcast --ping-interval {times} --ping-timeout {times}"
    ))
    .await;
    let relay = Relay::to(server.address, Some(rate)).await;
    let text = "x".repeat(LARGE);
    let publish = async |body: &str| {
        let answer = server
            .request("POST /", "Content-Type: text/plain\r\n", body)
            .await;
        assert_eq!(answer.code, 201);
        answer.json()["id"].as_str().unwrap().to_owned()
    };
    publish(&text).await;
    let order = json!({"url": format!("ws://{}/", relay.address), "options": {}});
    let publishing = async {
        eventually("a connection", || relay.accepted() > 0).await;
        // By then the history has been read, and signs of life have come.
        let reading = Duration::from_secs_f64(LARGE as f64 / rate as f64);
        sleep(reading + Duration::from_secs(1)).await;
        publish(&text).await;
        publish("end").await;
    };
    let (reported, ()) = tokio::join!(client.run(server.address, "read", order), publishing);
    let report = report(reported);
    let sizes: Vec<_> = report.seen.iter().map(|it| it.size).collect();
    assert_eq!(sizes[..3], [LARGE, LARGE, 3]);
    let codes: Vec<_> = report.closes.iter().map(|it| it.code).collect();
    assert_eq!((report.opens, &codes[..]), (1, &[1000][..]));
}

#[tokio::test]
async fn large_messages_over_a_slow_network_are_not_cut_in_node() {
    let Some(client) = Client::node() else {
        return;
    };
    read_slowly(&client, 500_000, "0.4").await;
}

#[tokio::test]
async fn large_messages_over_a_slow_network_are_not_cut_in_chromium() {
    let Some(client) = Client::chromium().await else {
        return;
    };
    read_slowly(&client, 500_000, "0.4").await;
}

#[tokio::test]
#[ignore = "takes two minutes: tests/run --long"]
async fn a_mebibyte_at_20_kb_a_second_is_not_cut() {
    let Some(client) = Client::node() else {
        return;
    };
    read_slowly(&client, 20_000, "5").await;
}

/// A network that swallows everything.
async fn swallow(client: &Client) {
    let server = Process::start("--mode broadcast --ping-interval 0.6 --ping-timeout 0.4").await;
    let relay = Relay::to(server.address, None).await;
    let order =
        json!({"url": format!("ws://{}/", relay.address), "options": {}, "leavesHalfOpen": true});
    let started = Instant::now();
    let swallowing = async {
        eventually("a connection", || relay.accepted() > 0).await;
        sleep(Duration::from_secs(2)).await;
        relay.swallow();
        Instant::now()
    };
    let (reported, swallowed) = tokio::join!(client.run(server.address, "wait", order), swallowing);
    let took = swallowed.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(
        started.elapsed() > Duration::from_secs(2),
        "a living one was cut"
    );
    assert_eq!(report(reported).closes[0].code, 1006);
}

#[tokio::test]
async fn a_network_that_swallows_everything_is_noticed_in_time_in_node() {
    let Some(client) = Client::node() else {
        return;
    };
    swallow(&client).await;
}

#[tokio::test]
async fn a_network_that_swallows_everything_is_noticed_in_time_in_chromium() {
    let Some(client) = Client::chromium().await else {
        return;
    };
    swallow(&client).await;
}

// ---- Plain servers ----

/// An echo server that knows no protocol.
async fn plain(client: &Client) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                use futures_util::{SinkExt, StreamExt};
                let mut websocket = tokio_tungstenite::accept_async(stream).await.unwrap();
                while let Some(Ok(message)) = websocket.next().await {
                    websocket.send(message).await.ok();
                }
            });
        }
    });
    let server = TestServer::broadcast().await;
    let order = json!({"url": format!("ws://{address}/"), "options": {}});
    let reported = client.run(server.address, "plain", order).await;
    serving.abort();
    let sent = json!({"confirmed": false});
    assert_eq!(reported["sent"], json!([sent, sent]));
    let seen = report(reported).seen;
    let seen: Vec<_> = seen
        .iter()
        .map(|it| (it.text.as_deref(), it.size))
        .collect();
    assert_eq!(seen, [(Some("one"), 3), (None, 3)]);
}

#[tokio::test]
async fn a_plain_server_works_as_well_in_node() {
    let Some(client) = Client::node() else {
        return;
    };
    plain(&client).await;
}

#[tokio::test]
async fn a_plain_server_works_as_well_in_chromium() {
    let Some(client) = Client::chromium().await else {
        return;
    };
    plain(&client).await;
}
