//! Rooms in a database: what survives, what is kept, and what reading it costs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Barrier;
use wscast::config::{Config, Mode, OnStoreError, Size, StoreSync, Time};

use crate::harness::*;
use crate::process::Process;

/// The file of a database, in a folder of its own.
pub(crate) struct Place {
    folder: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
        }
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("rooms.db")
    }

    /// A broadcast server without texts on this file, with these changes to its defaults.
    async fn serve(&self, change: impl FnOnce(&mut Config)) -> TestServer {
        TestServer::quiet(|config| {
            config.service.prefix = Some(String::new());
            config.storage.database = Some(self.file());
            change(config);
        })
        .await
    }

    /// What a query of one number finds.
    pub(crate) fn number(&self, query: &str) -> i64 {
        number(&self.file(), query)
    }

    fn bytes(&self) -> u64 {
        self.file().metadata().unwrap().len()
    }
}

pub(crate) fn number(file: &Path, query: &str) -> i64 {
    let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    connection.busy_timeout(PATIENCE).unwrap();
    connection.query_row(query, [], |row| row.get(0)).unwrap()
}

/// A client of the JSON format, and its welcome.
async fn json_client(server: &TestServer, path: &str) -> (Client, Value) {
    let mut client = Client::json(server.address, path).await;
    let welcome = client.event().await;
    assert_eq!(welcome["type"], "welcome");
    (client, welcome)
}

/// Publishes these texts, one a POST.
async fn post(server: &TestServer, path: &str, texts: impl IntoIterator<Item = String>) {
    let mut client = server.raw().await;
    for text in texts {
        let answer = client.request(&format!("POST {path}"), ALIVE, text).await;
        assert_eq!(answer.code, 201, "{answer:?}");
    }
}

/// The texts of `GET <path>`, a history.
async fn texts(server: &TestServer, path: &str) -> Vec<String> {
    let history = server.request(&format!("GET {path}"), "", "").await.json();
    let messages = history.as_array().unwrap().iter();
    messages
        .map(|it| {
            it["text"]
                .as_str()
                .unwrap_or_else(|| panic!("{it}"))
                .to_owned()
        })
        .collect()
}

fn numbers(range: impl IntoIterator<Item = u64>) -> Vec<String> {
    range.into_iter().map(|it| it.to_string()).collect()
}

#[tokio::test]
async fn all_that_a_message_has_survives_a_restart_and_clients_resume_across_it() {
    for sync in [StoreSync::Always, StoreSync::Everysec, StoreSync::Off] {
        let place = Place::new();
        let change = |config: &mut Config| config.storage.sync = Some(sync);
        let server = place.serve(change).await;
        let (mut client, welcome) = json_client(&server, "/lobby?name=Ann").await;
        let you = welcome["you"].clone();
        client.send("hello \0 \"'ü👩‍🚀").await;
        client.send_binary(b"\0\xff").await;
        let keyed = |server: &TestServer| {
            let address = server.address;
            async move {
                let mut client = RawClient::connect(address).await;
                let line = "POST /lobby?name=job&wait=delivered&timeout=0.1";
                client
                    .request(line, "Idempotency-Key: k\r\n", "keyed")
                    .await
            }
        };
        let mut events = vec![client.event().await, client.event().await];
        let first = keyed(&server).await;
        assert_eq!((first.code, &first.json()["clients"]), (201, &json!(1)));
        events.push(client.event().await);
        assert_eq!(
            (&events[0]["from"], &events[0]["name"]),
            (&you, &json!("Ann"))
        );
        assert_eq!(events[1]["binary"], "AP8=");
        assert_eq!(events[2]["name"], "job");
        drop(client);
        server.stop().await;

        let server = place.serve(change).await;
        let (mut client, welcome) = json_client(&server, "/lobby").await;
        assert_eq!(welcome["last_id"], events[2]["id"]);
        for event in &events {
            assert_eq!(client.event().await, *event, "{sync:?}");
        }
        // The first answer, again, without receipts, which no client of this process has sent.
        let again = keyed(&server).await;
        assert_eq!(again.code, 200);
        assert_eq!(again.json(), json!({"id": events[2]["id"], "clients": 1}));
        let other = server
            .request("POST /lobby", "Idempotency-Key: k\r\n", "another text")
            .await;
        assert_eq!(other.code, 422);
        let since = events[1]["id"].as_str().unwrap();
        let (mut resumed, welcome) = json_client(&server, &format!("/lobby?since={since}")).await;
        assert_eq!(
            (&welcome["resumed"], &welcome["missed"]),
            (&json!(true), &json!(0))
        );
        assert_eq!(resumed.event().await, events[2]);
        post(&server, "/lobby", ["next".to_owned()]).await;
        let next = client.event().await;
        assert_eq!(resumed.event().await, next);
        let (epoch, seq) = events[2]["id"].as_str().unwrap().rsplit_once('-').unwrap();
        let seq: u64 = seq.parse().unwrap();
        assert_eq!(next["id"], format!("{epoch}-{}", seq + 1));
    }
}

#[tokio::test]
async fn rooms_without_messages_and_histories_of_nothing_leave_the_right_rows() {
    let place = Place::new();
    let server = place.serve(|config| config.history.limit = 0).await;
    drop(server.client_at("/silent").await);
    post(&server, "/", numbers(1..=3)).await;
    // Kept, not replayed.
    let (mut client, welcome) = json_client(&server, "/").await;
    let last = welcome["last_id"].as_str().unwrap();
    let epoch = last.strip_suffix("-3").unwrap();
    let (mut resumed, welcome) = json_client(&server, &format!("/?since={epoch}-1")).await;
    assert_eq!(welcome["resumed"], true);
    for text in ["2", "3"] {
        assert_eq!(resumed.event().await["text"], text);
    }
    let keyed = "Idempotency-Key: k\r\n";
    for code in [201, 200] {
        assert_eq!(server.request("POST /", keyed, "4").await.code, code);
    }
    assert_eq!(client.event().await["text"], "4");
    drop((client, resumed));
    server.stop().await;
    assert_eq!(place.number("SELECT count(*) FROM room"), 1);
    assert_eq!(place.number("SELECT count(*) FROM history"), 4);
}

#[tokio::test]
async fn echo_rooms_are_kept_as_well() {
    for sync in [StoreSync::Always, StoreSync::Everysec] {
        let place = Place::new();
        for round in 0..2 {
            let server = place
                .serve(|config| {
                    config.service.mode = Mode::Echo;
                    config.storage.sync = Some(sync);
                })
                .await;
            let mut client = server.client().await;
            for before in 0..round {
                client.expect(&before.to_string()).await;
            }
            client.send(&round.to_string()).await;
            client.expect(&round.to_string()).await;
            client.close().await;
            server.stop().await;
        }
    }
}

#[tokio::test]
async fn the_oldest_messages_of_a_room_go_and_the_file_shrinks() {
    let place = Place::new();
    let text = "x".repeat(20_000);
    let server = place.serve(|_| {}).await;
    post(&server, "/", (0..500).map(|it| format!("{it:05}{text}"))).await;
    server.stop().await;
    let before = place.bytes();
    assert!(before > 10_000_000, "{before}");
    // By number, and those that were kept under another bound go as well.
    let server = place
        .serve(|config| config.storage.retain_messages = Some(100))
        .await;
    eventually("the rest is gone", || {
        place.number("SELECT count(*) FROM message") == 100
    })
    .await;
    eventually("the space is given back", || {
        place.number("SELECT page_count FROM pragma_page_count") < 1000
    })
    .await;
    let kept = texts(&server, "/?history").await;
    assert!(
        kept.len() == 100 && kept[0].starts_with("00400x"),
        "{}",
        kept.len()
    );
    post(&server, "/", (500..520).map(|it| format!("{it:05}{text}"))).await;
    server.stop().await;
    assert!(place.bytes() < before / 2, "{}", place.bytes());
    assert_eq!(
        place.number("SELECT min(substr(body, 1, 5) + 0) FROM message"),
        420
    );
    assert_eq!(place.number("SELECT first_seq FROM room"), 421);

    // By bytes: text, and 64 for the rest.
    let each = 64 + 5 + text.len();
    let server = place
        .serve(|config| config.storage.retain_bytes = Some(Size::from(10 * each)))
        .await;
    post(&server, "/", (520..525).map(|it| format!("{it:05}{text}"))).await;
    server.stop().await;
    assert_eq!(
        place.number("SELECT min(substr(body, 1, 5) + 0) FROM message"),
        515
    );
    assert_eq!(place.number("SELECT bytes FROM room"), 10 * each as i64);
    assert_eq!(
        place.number("SELECT sum(octet_length(body)) + 64 * count(*) FROM message"),
        10 * each as i64
    );
}

#[tokio::test]
async fn old_messages_go_and_ids_stay() {
    let place = Place::new();
    let server = place.serve(|_| {}).await;
    post(&server, "/", numbers(1..=3)).await;
    let (_, welcome) = json_client(&server, "/").await;
    let last = welcome["last_id"].as_str().unwrap().to_owned();
    server.stop().await;
    let server = place
        .serve(|config| config.storage.retain_age = Some(millis(1)))
        .await;
    eventually("all are gone", || {
        place.number("SELECT count(*) FROM message") == 0
    })
    .await;
    server.stop().await;
    let server = place.serve(|_| {}).await;
    // It is the last one that there was, so nothing is missing behind it.
    let (mut client, welcome) = json_client(&server, &format!("/?since={last}")).await;
    assert_eq!(
        (&welcome["resumed"], &welcome["last_id"]),
        (&json!(true), &json!(last))
    );
    post(&server, "/", numbers([4])).await;
    assert_eq!(client.event().await["id"], last.replace("-3", "-4"));
}

#[tokio::test]
async fn beyond_the_total_the_oldest_messages_of_all_rooms_go() {
    let place = Place::new();
    let text = "x".repeat(50_000);
    let server = place
        .serve(|config| config.storage.retain_total = Some(Size::from(5_000_000)))
        .await;
    // In seconds, as the oldest are found by these.
    post(&server, "/old", (0..60).map(|_| text.clone())).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    post(&server, "/new", (0..60).map(|_| text.clone())).await;
    server.stop().await;
    let kept = |room: &str| {
        place.number(&format!(
            "SELECT count(*) FROM history WHERE room = '{room}'"
        ))
    };
    let total = place.number("SELECT sum(bytes) FROM room");
    assert!((4_000_000..=5_000_000).contains(&total), "{total}");
    assert_eq!(kept("/new"), 60);
    assert!((20..40).contains(&kept("/old")), "{}", kept("/old"));
}

#[tokio::test]
async fn large_messages_cannot_outrun_the_deletion_of_small_ones() {
    const TOTAL: usize = 1 << 20;
    let place = Place::new();
    let file = place.file();
    let options = format!(
        "--mode broadcast --store-sync always --retain-total {TOTAL} --database {}",
        file.display()
    );
    let server = Process::start(&options).await;
    let mut publisher = RawClient::connect(server.address).await;
    publisher.upgrade("/small?echo=off").await;
    publisher.send(&frame(FIN | TEXT, b"").repeat(16_000)).await;
    eventually_async("all small ones are written", async || {
        place.number("SELECT ifnull(max(last_seq), 0) FROM room") == 16_000
    })
    .await;
    // Of the small ones, a go deletes 10,000: fewer bytes than these.
    let large = "x".repeat(800_000);
    let answer = server.request("POST /large", "", &large).await;
    assert_eq!(answer.code, 201);
    let total = place.number("SELECT sum(bytes) FROM room");
    assert!(total <= TOTAL as i64, "{total}");
}

#[tokio::test]
async fn a_new_client_is_given_no_more_bytes_after_a_restart_than_before() {
    let place = Place::new();
    let given = async || {
        let server = place
            .serve(|config| config.history.bytes = Size::from(3_000_000))
            .await;
        if place.number("SELECT count(*) FROM room") == 0 {
            post(&server, "/", (0..200).map(|_| "x".repeat(30_000))).await;
        }
        let (mut client, welcome) = json_client(&server, "/").await;
        let last = welcome["last_id"].as_str().unwrap();
        let mut given = 1;
        while message(&mut client).await["id"] != *last {
            given += 1;
        }
        server.stop().await;
        given
    };
    for _ in 0..2 {
        let given = given().await;
        assert!((90..=100).contains(&given), "{given}");
    }
}

#[tokio::test]
async fn the_room_silent_for_longest_goes_and_begins_again_in_a_new_epoch() {
    let place = Place::new();
    let change = |config: &mut Config| {
        config.storage.retain_rooms = Some(2);
        config.limits.max_rooms = 1;
    };
    let server = place.serve(change).await;
    let mut ids = Vec::new();
    for room in ["/a", "/b", "/a", "/c", "/b"] {
        let answer = server.request(&format!("POST {room}"), "", "hi").await;
        let id = answer.json()["id"].as_str().unwrap().to_owned();
        let (epoch, seq) = id.split_once('-').unwrap();
        ids.push((epoch.parse::<u64>().unwrap(), seq.parse::<u64>().unwrap()));
        // The times of rooms are in seconds.
        tokio::time::sleep(Duration::from_millis(1010)).await;
    }
    assert_eq!(ids[2], (ids[0].0, 2));
    // When c came, b was silent for longest.
    assert!(ids[4].0 > ids[1].0 && ids[4].1 == 1, "{ids:?}");
    server.stop().await;
    assert_eq!(place.number("SELECT count(*) FROM room"), 2);
    assert_eq!(
        place.number("SELECT count(*) FROM room WHERE name = '/a'"),
        0
    );
    assert_eq!(place.number("SELECT count(*) FROM message"), 2);
}

#[tokio::test]
async fn ten_thousand_rooms_opened_in_turn_cost_their_rows() {
    const ROOMS: u64 = 10_000;
    let place = Place::new();
    let file = place.file();
    let options = format!(
        "--mode broadcast --database {} --max-rooms 50",
        file.display()
    );
    let mut server = Process::start(&options).await;
    let mut client = RawClient::connect(server.address).await;
    let mut before = 0;
    for room in 0..ROOMS {
        let answer = client
            .request(&format!("POST /{room}"), ALIVE, room.to_string())
            .await;
        assert_eq!(answer.code, 201);
        if room == 1000 {
            before = server.memory();
        }
    }
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 20 << 20, "{grown}");
    for room in (0..ROOMS).step_by(97) {
        let line = format!("GET /{room}?history");
        let history = client.request(&line, ALIVE, "").await.json();
        assert_eq!(history[0]["text"], room.to_string());
    }
    server.signal("-TERM").await;
    assert_eq!(server.exit_code().await, Some(0));
    assert_eq!(place.number("SELECT count(*) FROM room"), ROOMS as i64);
}

/// Publishes `count` messages through one WebSocket, and waits until all are in the log.
async fn publish_many(server: &Process, count: usize) {
    let mut publisher = RawClient::connect(server.address).await;
    publisher.upgrade("/?echo=off").await;
    let mut next = 0;
    while next < count {
        let mut frames = Vec::new();
        for number in next..count.min(next + 1000) {
            let text = format!("{number:0>100}");
            frames.extend(frame(FIN | TEXT, text.as_bytes()));
        }
        publisher.send(&frames).await;
        next += 1000;
    }
    let last = format!("{:0>100}", count - 1);
    eventually_async("all are in the log", async || {
        let history = server.request("GET /?history&limit=1", "", "").await.json();
        history[0]["text"] == last
    })
    .await;
}

/// A client that reads nothing until `count` messages are published gets them all, at its pace.
async fn read_after_all_is_published(count: usize) {
    let place = Place::new();
    let file = place.file();
    let options = format!(
        "--mode broadcast --welcome= --prefix= --write-timeout 600 --ping-interval 0 \
         --database {} --retain-messages {count}",
        file.display(),
    );
    let server = Process::start(&options).await;
    let mut slow = RawClient::with_small_window(server.address).await;
    slow.upgrade("/").await;
    let start = Instant::now();
    publish_many(&server, count).await;
    let published = start.elapsed();
    let mut most = server.memory();
    // A tenth of the pace at which they were published.
    let start = Instant::now();
    let pause = Duration::from_millis(20);
    for number in 0..count {
        let (_, text) = slow.read_frame().await;
        assert_eq!(text, format!("{number:0>100}").as_bytes());
        if number % 1000 == 0 {
            most = most.max(server.memory());
            let due = published.mul_f64(10.0 * number as f64 / count as f64);
            if start.elapsed() + pause < due.min(Duration::from_secs(60)) {
                tokio::time::sleep_until((start + due).into()).await;
            }
        }
    }
    let megabytes = most >> 20;
    println!("{count} messages, published in {published:.1?}: at most {megabytes} MiB");
    assert!(megabytes < 100, "{megabytes} MiB");
    // It is live again.
    server.request("POST /", "", "live").await;
    assert_eq!(slow.read_frame().await.1, b"live");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_later_gets_all_that_the_disk_has() {
    read_after_all_is_published(100_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: 2 minutes"]
async fn a_client_that_reads_later_gets_a_million_messages() {
    read_after_all_is_published(1_000_000).await;
}

#[tokio::test]
async fn a_room_of_100_000_messages_is_joined_at_once() {
    let place = Place::new();
    let file = place.file();
    let options = format!("--mode broadcast --welcome= --database {}", file.display());
    let mut server = Process::start(&options).await;
    publish_many(&server, 100_000).await;
    server.signal("-TERM").await;
    assert_eq!(server.exit_code().await, Some(0));
    // However much of it a new client is given.
    for limit in ["1000", "100000"] {
        let server = Process::start(&format!("{options} --history-limit {limit}")).await;
        let before = server.memory();
        let mut best = Duration::MAX;
        for round in 0..3 {
            let mut client = RawClient::connect(server.address).await;
            let start = Instant::now();
            client.upgrade("/").await;
            client.read_frame().await;
            best = best.min(start.elapsed());
            println!("{limit}, client {round}: {:?}", start.elapsed());
        }
        assert!(best < Duration::from_millis(20), "{best:?}");
        let grown = server.memory().saturating_sub(before) >> 20;
        assert!(grown < 20, "{grown} MiB");
    }
}

#[tokio::test]
async fn a_server_that_cannot_listen_leaves_the_database_alone() {
    let place = Place::new();
    let taken = Process::start("").await;
    let options = format!(
        "--host 127.0.0.1 --port {} --database {}",
        taken.address.port(),
        place.file().display()
    );
    let output = crate::process::output(crate::process::wscast(&options)).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(!place.file().exists());
}

#[tokio::test]
async fn options_of_the_store_need_one_and_exclude_each_other_where_they_must() {
    let refused = |change: fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        config.validate().unwrap_err()
    };
    type Change = fn(&mut Config);
    let store: [(&str, Change); 7] = [
        ("--store-sync", |it| it.storage.sync = Some(StoreSync::Off)),
        ("--on-store-error", |it| {
            it.storage.on_error = Some(OnStoreError::Refuse);
        }),
        ("--retain-messages", |it| {
            it.storage.retain_messages = Some(5)
        }),
        ("--retain-bytes", |it| {
            it.storage.retain_bytes = Some(Size::from(5));
        }),
        ("--retain-age", |it| {
            it.storage.retain_age = Some(Time::from(Duration::from_secs(5)));
        }),
        ("--retain-total", |it| {
            it.storage.retain_total = Some(Size::from(5));
        }),
        ("--retain-rooms", |it| it.storage.retain_rooms = Some(5)),
    ];
    for (option, change) in store {
        let why = refused(change);
        assert!(
            why.starts_with(option) && why.contains("--database FILE"),
            "{why}"
        );
        let mut config = Config::default();
        change(&mut config);
        config.storage.database = Some("x.db".into());
        config.validate().unwrap();
    }
    let why = refused(|config| {
        config.storage.database = Some("x.db".into());
        config.storage.sync = Some(StoreSync::Always);
        config.storage.on_error = Some(OnStoreError::Continue);
    });
    assert!(
        why.contains("--on-store-error continue") && why.contains("leave one"),
        "{why}"
    );
    let output = crate::process::output(crate::process::wscast("--retain-rooms 5")).await;
    assert_eq!(output.status.code(), Some(2));
}

/// The next event, which is a message.
async fn message(client: &mut Client) -> Value {
    let event = client.event().await;
    assert_eq!(event["type"], "message", "{event}");
    event
}

/// The sequence number of the id of a message.
fn seq(event: &Value) -> u64 {
    let (_, seq) = event["id"].as_str().unwrap().split_once('-').unwrap();
    seq.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_see_one_run_wherever_its_messages_are() {
    const PUBLISHERS: u64 = 4;
    const MESSAGES: u64 = 500;
    const ALL: u64 = PUBLISHERS * MESSAGES;
    for sync in [StoreSync::Always, StoreSync::Everysec] {
        let place = Place::new();
        let server = place
            .serve(|config| {
                config.storage.sync = Some(sync);
                // Memory has next to nothing, and rooms are forgotten at once.
                config.history.limit = 3;
                config.limits.max_queue = 2;
                config.limits.max_rooms = 1;
            })
            .await;
        let address = server.address;
        let publish = move |number: u64| async move {
            let mut client = RawClient::connect(address).await;
            for message in 0..MESSAGES {
                let body = format!("{number} {message}");
                let answer = client.request("POST /", ALIVE, body).await;
                assert_eq!(answer.code, 201);
            }
        };
        // One that stays, and one that comes back after every few messages.
        let all_joined = Arc::new(Barrier::new(3));
        let joined = all_joined.clone();
        let follow = move || async move {
            let mut client = Client::json(address, "/").await;
            client.event().await;
            joined.wait().await;
            let mut events = Vec::new();
            while events.len() < ALL as usize {
                events.push(message(&mut client).await);
            }
            events
        };
        let joined_too = all_joined.clone();
        let hop = move || async move {
            let (mut events, mut hops) = (Vec::<Value>::new(), 0);
            let mut random = fastrand::Rng::with_seed(7);
            while events.len() < ALL as usize {
                let since = events.last().map_or(String::new(), |it| {
                    format!("?since={}", it["id"].as_str().unwrap())
                });
                let mut client = Client::json(address, &format!("/{since}")).await;
                let welcome = client.event().await;
                assert_eq!(welcome["resumed"], !events.is_empty(), "{welcome}");
                if hops == 0 {
                    joined_too.wait().await;
                }
                hops += 1;
                for _ in 0..random.usize(1..40).min(ALL as usize - events.len()) {
                    events.push(message(&mut client).await);
                }
            }
            assert!(hops > 30, "{hops}");
            events
        };
        let (stays, hops) = (tokio::spawn(follow()), tokio::spawn(hop()));
        all_joined.wait().await;
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|it| tokio::spawn(publish(it)))
            .collect();
        for publisher in publishers {
            publisher.await.unwrap();
        }
        let (stays, hops) = (stays.await.unwrap(), hops.await.unwrap());
        assert_eq!(
            stays.iter().map(seq).collect::<Vec<_>>(),
            (1..=ALL).collect::<Vec<_>>()
        );
        assert_eq!(stays, hops);
        let history = server
            .request("GET /?history&limit=10000", "", "")
            .await
            .json();
        assert_eq!(history, Value::from(stays));
    }
}

#[tokio::test]
async fn a_room_with_clients_goes_on_where_the_database_has_forgotten_it() {
    for sync in [StoreSync::Always, StoreSync::Everysec] {
        let place = Place::new();
        let server = place
            .serve(|config| {
                config.storage.sync = Some(sync);
                config.storage.retain_rooms = Some(1);
            })
            .await;
        let (mut client, _) = json_client(&server, "/a").await;
        let mut plain = server.client_at("/a").await;
        post(&server, "/a", numbers([1])).await;
        let first = client.event().await;
        // The times of rooms are in seconds.
        tokio::time::sleep(Duration::from_millis(1010)).await;
        post(&server, "/b", numbers([1])).await;
        eventually("the row is gone", || {
            place.number("SELECT count(*) FROM room WHERE name = '/a'") == 0
        })
        .await;
        post(&server, "/a", numbers([2])).await;
        let second = client.event().await;
        let epoch = first["id"].as_str().unwrap().strip_suffix("-1").unwrap();
        assert_eq!(second["id"], format!("{epoch}-2"));
        for text in ["1", "2"] {
            plain.expect(text).await;
        }
    }
}
