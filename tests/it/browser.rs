//! The page in a real browser, against the real binary.

use std::time::{Duration, Instant};

use fantoccini::actions::KeyAction;
use fantoccini::key::Key;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::{WebSocketStream, accept_async, accept_hdr_async};

use crate::chromium::*;
use crate::database::Place;
use crate::harness::*;
use crate::process::*;
use crate::proxy::Proxy;

const GREETING: &str = "Welcome! You’re now in the broadcast room.";
const ATTACK: &str = "<img src=x onerror='window.broken = true'>";

/// Exchanges messages between two windows, opened with one URL each.
async fn exchange_messages(browser: &Browser, first: &str, second: &str) {
    let a = browser.open(first).await;
    a.until_last(GREETING).await;
    a.say(ATTACK).await;
    a.click("text").await;
    let line_break = [
        vec![KeyAction::Down {
            value: Key::Shift.into(),
        }],
        press(Key::Enter),
        vec![KeyAction::Up {
            value: Key::Shift.into(),
        }],
    ];
    a.keys(
        &[
            typed("two"),
            line_break.concat(),
            typed("lines"),
            press(Key::Enter),
        ]
        .concat(),
    )
    .await;
    a.until_last("two\nlines").await;

    let b = browser.open_another(second).await;
    b.until_last("two\nlines").await;
    b.click("hello").await;
    let said = [GREETING, ATTACK, "two\nlines", "Hello"];
    for page in [&a, &b] {
        page.until_last("Hello").await;
        assert_eq!(page.rows().await, said);
        let harm = page
            .run("return [window.broken ?? null, document.querySelectorAll('img').length]")
            .await;
        assert_eq!(harm, serde_json::json!([null, 0]));
        assert_eq!(
            page.text_of("return document.getElementById('text').value")
                .await,
            ""
        );
    }
}

#[tokio::test]
async fn two_windows_see_each_other_and_the_history() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let server = Process::start("--mode broadcast").await;
    let url = format!("http://{}/", server.address);
    exchange_messages(&browser, &url, &url).await;
}

#[tokio::test]
async fn the_page_works_as_a_file_too() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let server = Process::start("--mode broadcast").await;
    let link = page_file(&format!("?server=ws://{}/", server.address));
    // The address is typed into the field.
    let page = browser.open(&page_file("?server=ws://127.0.0.1:1")).await;
    page.until("document.getElementById('head').dataset.state === 'waiting'")
        .await;
    page.run("document.getElementById('server').value = ''")
        .await;
    page.click("server").await;
    page.keys(&[typed(&server.address.to_string()), press(Key::Enter)].concat())
        .await;
    page.until_last(GREETING).await;
    let address = page.text_of("return location.href").await;
    assert!(
        address.ends_with(&server.address.to_string().replace(':', "%3A")),
        "{address}"
    );
    exchange_messages(&browser, &address, &link).await;
    // Without an address, the default of a server.
    let page = browser.open(&page_file("")).await;
    assert_eq!(
        page.text_of("return document.getElementById('address').textContent")
            .await,
        "ws://localhost:8765"
    );
}

#[tokio::test]
async fn a_path_is_a_room_and_echo_answers_its_sender_alone() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let server = Process::start("--mode echo --history-limit 0").await;
    let lobby = browser
        .open(&format!("http://{}/lobby", server.address))
        .await;
    let other = browser
        .open_another(&format!("http://{}/lobby", server.address))
        .await;
    let state =
        "return ['room', 'address'].map((id) => document.getElementById(id).textContent).join(' ')";
    assert_eq!(
        lobby.text_of(state).await,
        format!("/lobby ws://{}/lobby", server.address)
    );
    lobby.click("hello").await;
    lobby.until_last("Hello").await;
    other.say("mine").await;
    other.until_last("mine").await;
    assert_eq!(
        other.rows().await,
        ["Welcome to the WebSocket server!", "mine"]
    );
}

#[tokio::test]
async fn both_windows_reconnect_and_send_queued_messages_once() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let mut server = Process::start("--mode broadcast").await;
    let url = format!("http://{}/", server.address);
    let a = browser.open(&url).await;
    let b = browser.open_another(&url).await;
    a.until_open().await;
    b.until_open().await;
    for page in [&a, &b] {
        page.run(
            "window.states = []; new MutationObserver(() => states.push(document.getElementById('state').textContent))
                .observe(document.getElementById('state'), { childList: true });",
        )
        .await;
    }
    server.signal("-TERM").await;
    assert_eq!(server.exit_code().await, Some(0));
    for page in [&a, &b] {
        page.until("states[0].startsWith('Closed (1001, the server is going away') && states.includes('No connection. Reconnecting')").await;
        page.until("/^in [0-9]+ s$/.test(document.getElementById('countdown').textContent)")
            .await;
    }
    a.say("typed while away").await;
    a.say("not to be sent").await;
    a.until("document.querySelectorAll('#waiting li').length === 2")
        .await;
    let waiting = a
        .text_of("return document.getElementById('waiting').innerText")
        .await;
    assert!(
        waiting.contains("typed while away") && waiting.contains("waits for the connection"),
        "{waiting}"
    );
    a.run("document.querySelectorAll('#waiting button')[1].click()")
        .await;

    let again = format!(
        "--host 127.0.0.1 --mode broadcast --port {}",
        server.address.port()
    );
    let server = Process::spawn(wscast(&again)).await;
    b.until_open().await;
    b.until_last("typed while away").await;
    a.until_last("typed while away").await;
    a.until("document.querySelectorAll('#waiting li').length === 0")
        .await;
    // The fence: the next message is the next one in the room, so nothing was sent twice.
    b.say("and now this").await;
    a.until_last("and now this").await;
    let mut client = Client::connect(server.address, "/").await.unwrap().0;
    for text in [
        GREETING,
        "Broadcast: typed while away",
        "Broadcast: and now this",
    ] {
        client.expect(text).await;
    }
}

#[tokio::test]
async fn the_page_goes_on_across_a_restart_of_a_server_with_a_database() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let place = Place::new();
    let options = format!("--mode broadcast --database {}", place.file().display());
    let mut server = Process::start(&options).await;
    let page = browser.open(&format!("http://{}/", server.address)).await;
    page.until_open().await;
    page.say("before").await;
    page.until_last("before").await;
    server.signal("-TERM").await;
    assert_eq!(server.exit_code().await, Some(0));
    let port = server.address.port();
    let server = Process::spawn(wscast(&format!("--host 127.0.0.1 --port {port} {options}"))).await;
    page.until_open().await;
    server.request("POST /", "", "after").await;
    page.until_last("after").await;
    let rows = page.rows().await;
    let again = "Connected again. Nothing is missing.";
    assert_eq!(rows[rows.len() - 3..], ["before", again, "after"]);
    page.picture("restart").await;
    // A new window has both.
    let other = browser
        .open_another(&format!("http://{}/", server.address))
        .await;
    other.until_last("after").await;
    let rows = other.rows().await;
    assert_eq!(rows[rows.len() - 2..], ["before", "after"]);
}

/// A server whose every connection the test accepts and closes; it accepts any subprotocol.
struct FakeServer(TcpListener);

impl FakeServer {
    async fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn page(&self) -> String {
        page_file(&format!("?server=ws://{}/", self.0.local_addr().unwrap()))
    }

    #[expect(clippy::result_large_err, reason = "tungstenite wants it so")]
    async fn accept(&self) -> WebSocketStream<TcpStream> {
        let (stream, _) = timeout(PATIENCE, self.0.accept())
            .await
            .expect("a client")
            .unwrap();
        let choose = |request: &Request, mut response: Response| {
            if let Some(offer) = request.headers().get("sec-websocket-protocol") {
                let chosen = offer.clone();
                response
                    .headers_mut()
                    .insert("sec-websocket-protocol", chosen);
            }
            Ok(response)
        };
        accept_hdr_async(stream, choose).await.unwrap()
    }

    /// Accepts the page and closes it with this code and reason; returns when.
    async fn accept_and_close(&self, code: u16, reason: &'static str) -> Instant {
        let mut websocket = self.accept().await;
        let frame = CloseFrame {
            code: code.into(),
            reason: reason.into(),
        };
        let when = Instant::now();
        websocket.close(Some(frame)).await.unwrap();
        while websocket.next().await.is_some_and(|it| it.is_ok()) {}
        when
    }
}

#[tokio::test]
async fn the_page_as_a_file_works_with_servers_without_the_json_format() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let fake = FakeServer::new().await;
    let page = browser.open(&fake.page()).await;
    // Most servers accept without a subprotocol; the browser then fails the connection.
    let (stream, _) = fake.0.accept().await.unwrap();
    let _failed = accept_async(stream).await.unwrap();
    let (stream, _) = timeout(PATIENCE, fake.0.accept()).await.unwrap().unwrap();
    let mut client = accept_async(stream).await.unwrap();
    client
        .send(Message::text("{\"type\":\"message\"}"))
        .await
        .unwrap();
    page.until_last("{\"type\":\"message\"}").await;
    client.close(None).await.unwrap();
    let mut again = fake.accept().await;
    page.until_last("Connected again. The server may repeat what is above.")
        .await;
    again.send(Message::text("more")).await.unwrap();
    page.until_last("more").await;
}

#[tokio::test]
async fn the_page_does_not_reconnect_after_a_policy_or_application_close() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let fake = FakeServer::new().await;
    let page = browser.open(&fake.page()).await;
    for (code, reason, words) in [
        (
            1008,
            "too fast",
            "Closed (1008, refused by policy: too fast)",
        ),
        (4000, "", "Closed (4000, closed by the application)"),
        (4999, "go", "Closed (4999, closed by the application: go)"),
    ] {
        fake.accept_and_close(code, reason).await;
        let words = Value::from(words);
        page.until(&format!(
            "document.getElementById('state').textContent === {words}"
        ))
        .await;
        // No retry is scheduled; the button reconnects.
        page.until("retry === null && document.getElementById('head').dataset.state === 'closed'")
            .await;
        page.run("window.dispatchEvent(new Event('online'))").await;
        page.until("socket === null").await;
        page.click("connect").await;
    }
    let _open = fake.accept().await;
    page.until_open().await;
}

#[tokio::test]
async fn reconnects_back_off_obey_retry_after_and_start_at_once_when_online_or_visible() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let fake = FakeServer::new().await;
    let page = browser.open(&fake.page()).await;
    let mut before = fake.accept_and_close(1013, "").await;
    for shortest in [250, 500, 1000] {
        let now = fake.accept_and_close(1013, "").await;
        let waited = now - before;
        assert!(
            waited >= Duration::from_millis(shortest),
            "{waited:?} instead of {shortest}"
        );
        before = now;
    }
    let asked = fake.accept_and_close(1013, "busy, retry after 5.5 s").await;
    let waited = fake.accept_and_close(1013, "retry-after=3600").await - asked;
    assert!(waited >= Duration::from_millis(5500), "{waited:?}");
    page.until("document.getElementById('countdown').textContent.match(/in 3[5-9][0-9]{2} s/)")
        .await;
    page.run("window.dispatchEvent(new Event('online'))").await;
    fake.accept_and_close(1013, "retry after 3600").await;
    page.until("retry").await;
    page.run("document.dispatchEvent(new Event('visibilitychange'))")
        .await;
    let _open = fake.accept().await;
    page.until_open().await;
}

#[tokio::test]
async fn ten_thousand_messages_do_not_freeze_the_page() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let server = Process::start("--mode broadcast --welcome= --prefix=").await;
    let page = browser.open(&format!("http://{}/", server.address)).await;
    page.until_open().await;
    // The longest time for which the page was busy.
    page.run(
        "window.longest = 0; let last = performance.now();
         setInterval(() => { const now = performance.now(); longest = Math.max(longest, now - last); last = now; }, 10);",
    )
    .await;
    let mut client = Client::connect(server.address, "/").await.unwrap().0;
    for number in 0..10_000 {
        let text = Message::text(format!("message {number}"));
        client.websocket.feed(text).await.unwrap();
    }
    client.websocket.flush().await.unwrap();
    page.until_last("message 9999").await;
    page.until("incoming.length === 0").await;
    let longest = page.run("return longest").await.as_f64().unwrap();
    assert!(longest < 1000.0, "frozen for {longest} ms");
    let rows = page.rows().await;
    let expected: Vec<String> = (8000..10_000).map(|it| format!("message {it}")).collect();
    assert_eq!(rows, expected);
    let bottom = "(({scrollHeight, scrollTop, clientHeight}) => scrollHeight - scrollTop - clientHeight < 2)(document.getElementById('log'))";
    page.until(bottom).await;

    // A log that is scrolled up stays in place.
    page.run("document.getElementById('log').scrollTop = 1000")
        .await;
    page.until("!sticks").await;
    client.send("one more").await;
    page.until("!document.getElementById('newer').hidden").await;
    assert_eq!(page.run("return sticks").await, Value::Bool(false));
    page.picture("newer.png").await;
    page.click("newer").await;
    page.until(bottom).await;
    page.until("document.getElementById('newer').hidden").await;
    client.send("the last").await;
    page.until_last("the last").await;
    page.until(bottom).await;
}

/// A server, its page in a connected window, and another client.
async fn page_and_client(browser: &Browser) -> (Process, Page<'_>, Client) {
    let server = Process::start("--mode broadcast --welcome= --prefix=").await;
    let page = browser.open(&format!("http://{}/", server.address)).await;
    page.until_open().await;
    let (client, _) = Client::connect(server.address, "/").await.unwrap();
    (server, page, client)
}

/// A message that the page folds.
fn long_text() -> String {
    format!("begins{} ends", " and goes on".repeat(5000))
}

#[tokio::test]
async fn binary_and_long_messages_are_folded() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let (_server, page, mut client) = page_and_client(&browser).await;
    client.send_binary(&[0xff]).await;
    client.send_binary(&[7; 1234]).await;
    client.send(&long_text()).await;
    client.send("last").await;
    page.until_last("last").await;
    let rows = page.rows().await;
    assert_eq!(rows[0], "Binary, 1 byte: ff");
    assert_eq!(
        rows[1],
        format!("Binary, 1,234 bytes:{} …", " 07".repeat(32))
    );
    assert!(
        rows[2].starts_with("begins and goes on") && rows[2].ends_with("… (60,011 characters)"),
        "{}",
        rows[2]
    );
    assert!(rows[2].len() < 300);
    page.run("document.querySelector('summary').click()").await;
    page.until("document.querySelector('details div').textContent.endsWith('goes on ends')")
        .await;
}

#[tokio::test]
async fn only_rows_that_match_the_filter_are_copied_and_exported() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let (_server, page, mut client) = page_and_client(&browser).await;
    let long = long_text();
    client.send(&long).await;
    client.send("Apples").await;
    page.until_last("Apples").await;
    let visible = "return [...document.querySelectorAll('#messages tr')].filter((row) => row.checkVisibility()).length";
    page.click("filter").await;
    // Upper and lower case are the same.
    page.keys(&typed("APPLES")).await;
    page.until("document.getElementById('count').textContent === '1 of 2 rows'")
        .await;
    assert_eq!(page.run(visible).await, 1);
    client.send("Pears").await;
    page.until("document.getElementById('count').textContent === '1 of 3 rows'")
        .await;
    client.send("more apples").await;
    page.until("document.getElementById('count').textContent === '2 of 4 rows'")
        .await;
    page.run("window.copied = ''; document.execCommand = () => { copied = document.activeElement.value; return true; }; navigator.clipboard.writeText = () => Promise.reject();").await;
    page.click("copy").await;
    page.until("copied").await;
    page.until("document.getElementById('copy').textContent === 'Copied'")
        .await;
    let copied = page.text_of("return copied").await;
    let texts: Vec<&str> = copied
        .lines()
        .map(|it| it.split_once('\t').unwrap().1)
        .collect();
    assert_eq!(texts, ["Apples", "more apples"]);

    // Folded messages are searched as well.
    page.run("document.getElementById('filter').value = 'goes on'; document.getElementById('filter').oninput()").await;
    page.click("export").await;
    eventually("a file is downloaded", || !browser.downloads().is_empty()).await;
    let exported = std::fs::read_to_string(&browser.downloads()[0]).unwrap();
    assert_eq!(exported.lines().count(), 1, "{} bytes", exported.len());
    assert!(
        exported.ends_with(&format!("\t{long}\n")),
        "{} bytes",
        exported.len()
    );
}

#[tokio::test]
async fn messages_can_be_cleared() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let (_server, page, mut client) = page_and_client(&browser).await;
    client.send("Apples").await;
    page.until_last("Apples").await;
    page.click("clear").await;
    page.until("document.getElementById('count').textContent === '0 rows' && characters === 0")
        .await;
}

#[tokio::test]
async fn line_breaks_in_a_message_forge_no_exported_message() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let (_server, page, mut client) = page_and_client(&browser).await;
    let breaks = [
        "\n", "\r", "\r\n", "\n\r", "\u{b}", "\u{c}", "\u{85}", "\u{2028}", "\u{2029}",
    ];
    let forged = "2026-01-01T00:00:00.000Z\tforged";
    for it in breaks {
        client.send(&format!("said{it}{forged}")).await;
    }
    // Control characters would let a terminal overwrite the line.
    client.send("\u{1b}[2K\u{8}\u{7f}\u{9b}\tend").await;
    page.until_last("\u{1b}[2K\u{8}\u{7f}\u{9b}\tend").await;
    page.click("export").await;
    eventually("a file is downloaded", || !browser.downloads().is_empty()).await;
    let exported = std::fs::read_to_string(&browser.downloads()[0]).unwrap();
    // Split at every character that any program takes for a line break.
    let lines = exported.split(|it: char| breaks.concat().contains(it));
    let messages: Vec<&str> = lines
        .filter(|it| !it.starts_with('\t') && !it.is_empty())
        .map(|it| it.split_once('\t').unwrap().1)
        .collect();
    let mut expected = vec!["said"; breaks.len()];
    expected.push("\u{241b}[2K\u{2408}\u{fffd}\u{fffd}\tend");
    assert_eq!(messages, expected);
    assert_eq!(
        exported.matches(&format!("\n\t{forged}\n")).count(),
        breaks.len()
    );
    page.run(
        "window.copied = ''; navigator.clipboard.writeText = async (text) => { copied = text; };",
    )
    .await;
    page.click("copy").await;
    page.until("copied").await;
    assert_eq!(page.text_of("return copied").await, exported);
}

#[tokio::test]
async fn a_message_is_shown_in_its_own_text_direction() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let (_server, page, mut client) = page_and_client(&browser).await;
    let long = "שלום עולם ".repeat(100);
    for text in ["שלום (hello)!", "hello (שלום)!", &long, "last"] {
        client.send(text).await;
    }
    page.until_last("last").await;
    let directions = "return [...document.querySelectorAll('#messages td:first-child')]
        .map((cell) => getComputedStyle(cell.querySelector('summary') ?? cell).direction).join()";
    assert_eq!(page.text_of(directions).await, "rtl,ltr,rtl,ltr");
    let times = "return [...document.querySelectorAll('#messages td:last-child')]
        .every((cell) => getComputedStyle(cell).direction === 'ltr')";
    assert_eq!(page.run(times).await, true);
}

/// Malformed events, and how many of them are still messages with the text `said`.
fn odd_events() -> (Vec<String>, usize) {
    let odd = [
        json!(null),
        json!(true),
        json!(-1.5),
        json!(1e300),
        json!({}),
        json!({"toString": 1, "valueOf": 1, "length": 1, "split": 1}),
        json!(["1-1"]),
        json!(""),
        json!("\u{0}&since=="),
        json!("+999999-01-01T00:00:00Z"),
        json!("+275760-09-13T00:00:00Z"),
        json!("9".repeat(1000)),
    ];
    let fields = ["type", "id", "time", "text", "binary", "missed", "resumed"];
    let mut said = 0;
    let mut say = Vec::new();
    for kind in ["message", "gap", "welcome"] {
        for field in fields {
            let fine = json!({"type": kind, "id": "1-1", "time": "2026-11-22T18:31:57.123Z",
                "text": "said", "missed": 1, "resumed": false});
            for value in &odd {
                let mut event = fine.clone();
                event[field] = value.clone();
                say.push(event.to_string());
            }
            let mut event = fine.clone();
            event.as_object_mut().unwrap().remove(field);
            say.push(event.to_string());
            if kind == "message" && field != "type" && field != "text" {
                said += odd.len() + 1;
            }
        }
        // Neither text nor binary, or no base64.
        say.push(json!({"type": kind}).to_string());
        say.push(json!({"type": kind, "binary": "no base64"}).to_string());
    }
    say.extend(["", "{", "null", "5", "[]", "\"message\""].map(str::to_owned));
    (say, said)
}

#[tokio::test]
async fn malformed_events_do_not_break_the_page() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let fake = FakeServer::new().await;
    let page = browser.open(&fake.page()).await;
    page.run(
        "window.faults = []; addEventListener('error', ({ message }) => faults.push(message));",
    )
    .await;
    let mut server = fake.accept().await;
    let (events, said) = odd_events();
    for text in events {
        server.send(Message::text(text)).await.unwrap();
    }
    // A valid id is kept for the reconnect, an invalid one is not.
    for (id, kept) in [(json!("12-34"), json!("12-34")), (json!({}), json!(null))] {
        let last = format!("the id {id}");
        let event = json!({"type": "message", "id": id, "text": last});
        server.send(Message::text(event.to_string())).await.unwrap();
        page.until_last(&last).await;
        assert_eq!(page.run("return lastId").await, kept);
    }
    assert_eq!(page.run("return faults").await, json!([]));
    let rows = page.rows().await;
    let found = rows.iter().filter(|it| *it == "said").count();
    assert!(found >= said, "{found} of {said} messages");
    for shown in [
        "{",
        "null",
        "5",
        "\"message\"",
        "A message that this page cannot read.",
    ] {
        assert!(rows.iter().any(|it| it == shown), "{shown}: {rows:?}");
    }
    page.click("export").await;
    page.click("copy").await;
    page.run("document.getElementById('filter').oninput()")
        .await;
    assert_eq!(page.run("return faults").await, json!([]));
}

/// Has an `EventSource` on a page of the server, whose name is `host`, follow a room.
async fn event_source(page: &Page<'_>, host: &str, server: &Process) {
    let port = server.address.port();
    page.goto(&format!("http://{host}:{port}/livez")).await;
    page.run(
        "window.got = []; window.source = new EventSource('/room'); \
         source.onmessage = (event) => got.push(event.data)",
    )
    .await;
}

#[tokio::test]
async fn an_event_source_comes_back_to_a_server_that_was_full_or_restarted() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let page = browser.open("about:blank").await;
    // To the public name over http, Chromium tells of itself by `Referer` alone.
    for host in ["127.0.0.1", PUBLIC_NAME] {
        let options = format!("--mode broadcast --max-connections 2 --allow-host {PUBLIC_NAME}");
        let mut server = Process::start(&options).await;
        let address = server.address;
        let mut clients = [
            RawClient::connect(address).await,
            RawClient::connect(address).await,
        ];
        clients[0].upgrade("/").await;
        clients[1].upgrade("/").await;
        // All places are taken, and it is refused.
        event_source(&page, host, &server).await;
        next_line(&mut server.log, "no place left").await;
        next_line(&mut server.log, "no place left").await;
        drop(clients);
        page.until("source.readyState === EventSource.OPEN").await;
        server.request("POST /room", "", "one").await;
        page.until("got.at(-1) === 'one'").await;
        // It is shut down, and started again.
        server.signal("-TERM").await;
        assert_eq!(server.exit_code().await, Some(0));
        page.until("source.readyState === EventSource.CONNECTING")
            .await;
        let again = format!("--host 127.0.0.1 --port {} {options}", address.port());
        let server = Process::spawn(wscast(&again)).await;
        page.until("source.readyState === EventSource.OPEN").await;
        server.request("POST /room", "", "two").await;
        page.until("got.at(-1) === 'two'").await;
    }
}

#[tokio::test]
async fn the_page_and_an_event_source_resume_after_a_disconnect() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let server = Process::start("--mode broadcast --welcome= --history-limit 2").await;
    let proxy = Proxy::to(server.address).await;
    let page = browser
        .open(&format!("http://{}/lobby", proxy.address))
        .await;
    page.until_open().await;
    page.run(
        "window.events = []; const source = new EventSource('/lobby');
         for (const kind of ['message', 'binary', 'gap']) source.addEventListener(kind, ({ type, data }) => events.push(`${type} ${data}`));
         source.onopen = () => events.push('open');",
    )
    .await;
    page.until("events.length === 1").await;
    let mut client = Client::connect(server.address, "/lobby?name=Ann")
        .await
        .unwrap()
        .0;
    client.send("one").await;
    client.send_binary(&[0, 255, 7]).await;
    page.until("events.length === 3 && lastId").await;
    page.until_last("Binary, 3 bytes: 00 ff 07").await;

    let cut = proxy.cut().await;
    client.send("while away").await;
    client.next().await;
    client.next().await;
    client.expect("Broadcast: while away").await;
    let proxy = cut.restore(server.address).await;
    page.until_last("while away").await;
    page.until("events.length === 5").await;
    let again = "Connected again. Nothing is missing.";
    let rows = ["one", "Binary, 3 bytes: 00 ff 07", again, "while away"];
    assert_eq!(page.rows().await, rows);
    let times = page
        .run("return [...document.querySelectorAll('time')].map((it) => it.dateTime)")
        .await;

    // More messages than the server remembers.
    let cut = proxy.cut().await;
    for text in ["lost", "kept", "kept too"] {
        client.send(text).await;
        client.next().await;
    }
    let proxy = cut.restore(server.address).await;
    page.until_last("kept too").await;
    page.until("events.length === 9").await;
    let rows = page.rows().await;
    assert_eq!(
        rows[4..],
        ["1 message is missing here.", "kept", "kept too"]
    );

    // Another server, whose log is a new one.
    let cut = proxy.cut().await;
    let server = Process::start("--mode broadcast --welcome=").await;
    let mut client = Client::connect(server.address, "/lobby?name=Ann")
        .await
        .unwrap()
        .0;
    client.send("new").await;
    client.next().await;
    let _proxy = cut.restore(server.address).await;
    page.until_last("new").await;
    page.until("events.length === 12").await;
    let events = [
        "open",
        "message one",
        "binary AP8H",
        "open",
        "message while away",
        "open",
        r#"gap {"missed":1}"#,
        "message kept",
        "message kept too",
        "open",
        r#"gap {"missed":null}"#,
        "message new",
    ];
    assert_eq!(page.run("return events").await, serde_json::json!(events));
    let rows = page.rows().await;
    assert_eq!(
        rows[7..],
        ["What was said meanwhile may be missing here.", "new"]
    );
    // The times are the server's, and do not change on a replay.
    let later = page
        .run("return [...document.querySelectorAll('time')].map((it) => it.dateTime)")
        .await;
    assert_eq!(
        times.as_array().unwrap()[..],
        later.as_array().unwrap()[..4]
    );
}

#[tokio::test]
async fn queued_messages_survive_a_close_with_1013() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let fake = FakeServer::new().await;
    let page = browser.open(&fake.page()).await;
    fake.accept_and_close(1013, "").await;
    page.until("retry").await;
    page.say("first").await;
    page.say("second").await;
    fake.accept_and_close(1013, "").await;
    let mut open = fake.accept().await;
    for expected in ["first", "second"] {
        let message = timeout(PATIENCE, open.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(message, Message::text(expected));
    }
    page.until("document.querySelectorAll('#waiting li').length === 0")
        .await;
    page.say("third").await;
    let message = timeout(PATIENCE, open.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(message, Message::text("third"));
}

#[tokio::test]
async fn a_new_message_does_not_move_a_log_that_is_scrolled_up() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let server = Process::start("--mode broadcast --welcome=").await;
    let page = browser.open(&format!("http://{}/", server.address)).await;
    page.until_open().await;
    let mut client = Client::connect(server.address, "/").await.unwrap().0;
    for number in 0..100 {
        client.send(&format!("message {number}")).await;
    }
    page.until_last("message 99").await;
    // The smallest step of a touchpad, followed by a message.
    let place = json!({"type": "mouseWheel", "x": 640, "y": 450, "deltaX": 0, "deltaY": -10});
    page.devtools("Input.dispatchMouseEvent", place.clone())
        .await;
    page.until("!sticks").await;
    let before = page
        .run("return document.getElementById('log').scrollTop")
        .await;
    client.send("one more").await;
    page.until_last("one more").await;
    page.until("!document.getElementById('newer').hidden").await;
    let top = page
        .run("return document.getElementById('log').scrollTop")
        .await;
    assert!(top.as_f64() <= before.as_f64(), "{before} became {top}");
}

/// Checks the rules of WCAG 2.2 AA that can be computed; returns the violations.
const AUDIT: &str = r#"
const wrong = [];
const visible = [...document.body.querySelectorAll("*")].filter((it) => it.checkVisibility() && !it.closest(".heard"));
const nameOf = (it) => (it.ariaLabel || [...(it.labels ?? [])].map((label) => label.textContent).join(" ") || it.textContent).trim();
const channels = (color) => color.match(/[\d.]+/g).map(Number);
const light = (color) => {
  const [r, g, b] = channels(color).map((it) => it / 255).map((it) => (it <= 0.04045 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (one, other) => {
  const [dark, bright] = [light(one), light(other)].sort((x, y) => x - y);
  return (bright + 0.05) / (dark + 0.05);
};
const backOf = (it) => {
  for (; it; it = it.parentElement) {
    const color = getComputedStyle(it).backgroundColor;
    if ((channels(color)[3] ?? 1) === 1) return color;
  }
  return "rgb(255, 255, 255)";
};
// 1.4.3 and 1.4.11: contrast of texts, and of the edges of what can be operated.
let texts = 0;
for (const it of visible) {
  const style = getComputedStyle(it);
  if ([...it.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim())) {
    texts += 1;
    const found = contrast(style.color, backOf(it));
    if (found < 4.5) wrong.push(`contrast ${found.toFixed(2)}: ${it.outerHTML.slice(0, 80)}`);
  }
  if (it.matches("input, textarea")) {
    const found = contrast(style.borderTopColor, backOf(it.parentElement));
    if (found < 3) wrong.push(`edge ${found.toFixed(2)}: ${it.id}`);
    const placeholder = contrast(getComputedStyle(it, "::placeholder").color, backOf(it));
    if (it.placeholder && placeholder < 4.5) wrong.push(`placeholder ${placeholder.toFixed(2)}: ${it.id}`);
  }
}
if (texts < 10) wrong.push("hardly any text was looked at");
// 4.1.2: every control and region has a name.
for (const it of visible.filter((it) => it.matches("button, input, textarea, summary, [role=region], ul"))) {
  if (!nameOf(it)) wrong.push(`no name: ${it.outerHTML.slice(0, 80)}`);
  // 2.5.8: and can be hit.
  const { width, height } = it.getBoundingClientRect();
  if (it.matches("button, input, textarea") && (width < 24 || height < 24)) wrong.push(`small: ${it.id} ${width} × ${height}`);
}
// 3.1.1, 2.4.2, 1.3.1: language, title, headings, landmarks, headers of the table; ids once.
if (document.documentElement.lang !== "en") wrong.push("no language");
if (!document.title.includes("wscast")) wrong.push("no title");
for (const one of ["h1", "main", "header", "[role=status]", "[aria-live=polite]"]) {
  if (document.querySelectorAll(one).length !== 1) wrong.push(`not one ${one}`);
}
if (document.querySelectorAll("th[scope=col]").length !== 2) wrong.push("no headers");
const ids = [...document.querySelectorAll("[id]")].map((it) => it.id);
if (new Set(ids).size !== ids.length) wrong.push("an id twice");
if (document.querySelector("[tabindex]:not([tabindex='0'])")) wrong.push("an order of its own");
// 1.4.4 and 1.4.10: zoom is allowed, and nothing stands out to the side.
if (/user-scalable|maximum-scale/.test(document.querySelector("meta[name=viewport]").content)) wrong.push("no zoom");
if (document.documentElement.scrollWidth > innerWidth) wrong.push(`wider than the window: ${document.documentElement.scrollWidth}`);
for (const it of visible) {
  const { left, right } = it.getBoundingClientRect();
  if (right > innerWidth + 0.5 || left < -0.5) wrong.push(`stands out: ${it.outerHTML.slice(0, 80)}`);
}
return wrong;
"#;

#[tokio::test]
async fn the_page_is_accessible() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let mut server = Process::start("--mode broadcast").await;
    let page = browser
        .open(&format!("http://{}/lobby", server.address))
        .await;
    page.until_open().await;
    page.say("Hello everybody, is anyone here?").await;
    let mut client = Client::connect(server.address, "/lobby").await.unwrap().0;
    client.send_binary(b"\x00\x01binary").await;
    client
        .send(&"A long message that is folded. ".repeat(40))
        .await;
    client.send(&"wide".repeat(100)).await;
    page.until("document.querySelectorAll('#messages tr').length === 5")
        .await;
    // The live region announces it to screen readers.
    page.until("document.getElementById('heard').textContent")
        .await;

    let mut tops = Vec::new();
    for open in [true, false] {
        if !open {
            server.signal("-TERM").await;
            server.exit_code().await;
            page.until("document.getElementById('head').dataset.state === 'waiting'")
                .await;
            page.say("I will wait").await;
        }
        for width in [360, 1280] {
            for scheme in ["light", "dark"] {
                page.appear(width, scheme).await;
                page.until(&format!("innerWidth === {width} && matchMedia('(prefers-color-scheme: {scheme})').matches")).await;
                let top = "return document.getElementById('log').getBoundingClientRect().top";
                tops.push((width, page.run(top).await));
                let wrong: Vec<String> = serde_json::from_value(page.run(AUDIT).await).unwrap();
                assert_eq!(wrong, [] as [&str; 0], "{width} px, {scheme}, open: {open}");
                page.picture(&format!(
                    "{width}-{scheme}-{}.png",
                    if open { "open" } else { "waiting" }
                ))
                .await;
            }
        }
    }
    // The log does not move with the state of the connection.
    tops.sort_by_key(|(width, _)| *width);
    tops.dedup();
    assert_eq!(tops.len(), 2, "{tops:?}");
}

#[tokio::test]
async fn every_control_is_reachable_by_keyboard_and_shows_its_focus() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let (mut server, page, mut client) = page_and_client(&browser).await;
    client
        .send(&"A long message that is folded. ".repeat(40))
        .await;
    page.until("document.querySelectorAll('summary').length === 1")
        .await;
    // A queued message has a button that removes it.
    server.signal("-TERM").await;
    server.exit_code().await;
    page.until("document.getElementById('head').dataset.state === 'waiting'")
        .await;
    page.say("I will wait").await;
    let stops = page.tab_stops().await;
    for id in [
        "connect", "filter", "copy", "export", "clear", "log", "text", "hello", "BUTTON", "SUMMARY",
    ] {
        assert!(stops.contains(id), "no way to {id}: {stops:?}");
    }
    page.run("document.getElementById('filter').focus()").await;
    page.keys(&press(Key::Tab)).await;
    let outline = page
        .text_of("return getComputedStyle(document.activeElement).outlineStyle")
        .await;
    assert_eq!(outline, "solid");
}

#[tokio::test]
async fn injected_scripts_styles_and_images_are_blocked() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let server = Process::start("--mode broadcast").await;
    let page = browser.open(&format!("http://{}/", server.address)).await;
    // The page's own style and script run.
    page.until_open().await;
    assert_eq!(
        page.text_of("return getComputedStyle(document.body).display")
            .await,
        "flex"
    );
    page.run(
        "window.violations = []; document.addEventListener('securitypolicyviolation', (it) => violations.push(it.effectiveDirective));
         const script = document.createElement('script'); script.textContent = 'window.broken = true'; document.body.append(script);
         const style = document.createElement('style'); style.textContent = 'body { display: none }'; document.body.append(style);
         const image = document.createElement('img'); image.src = '/healthz'; document.body.append(image);",
    )
    .await;
    page.until("violations.length === 3").await;
    let violations = page.text_of("return violations.sort().join()").await;
    assert_eq!(violations, "img-src,script-src-elem,style-src-elem");
    assert_eq!(page.run("return window.broken ?? null").await, Value::Null);
}
