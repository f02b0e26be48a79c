//! What a person does with the file of a database: `sqlite3` beside a running server, backups, `docs/database.md`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::harness::*;
use crate::process::{Process, next_line, output, wscast};
use crate::tools::is_installed;

const PAGE: &str = include_str!("../../docs/database.md");

/// A folder with a database in it, and the server that writes that.
struct Running {
    folder: TempDir,
    process: Process,
}

impl Running {
    /// A new database.
    async fn start(options: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let process = serve(folder.path(), options).await;
        Self { folder, process }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Ends the server as an operator does.
    async fn stop(&mut self) {
        self.process.signal("-TERM").await;
        assert_eq!(self.process.exit_code().await, Some(0));
    }

    async fn post(&self, path: &str, body: impl AsRef<[u8]>) -> Value {
        let request = format!("POST {path}");
        let answer = self.process.request(&request, "", body).await;
        assert_eq!(answer.code, 201, "{answer:?}");
        answer.json()
    }

    /// The messages of a room.
    async fn history(&self, room: &str) -> Vec<Value> {
        history(&self.process, room).await
    }

    /// Runs an example of the page; returns what it writes.
    async fn run(&self, example: &Example) -> String {
        let command = match example.language {
            "sh" => {
                let address = self.process.address.to_string();
                let code = example.code.replace("localhost:8765", &address);
                let mut command = Command::new("bash");
                command.args(["-e", "-o", "pipefail", "-c", &code]);
                command
            }
            _ => sqlite3(&["-readonly", "chat.db", &example.code]),
        };
        self.output(command).await
    }

    /// The output of a command in the folder.
    async fn output(&self, mut command: Command) -> String {
        command.current_dir(&self.folder).kill_on_drop(true);
        let written = output(command).await;
        let errors = String::from_utf8_lossy(&written.stderr);
        assert!(written.status.success() && errors.is_empty(), "{errors}");
        String::from_utf8(written.stdout).unwrap()
    }

    async fn check_integrity(&self, name: &str) {
        let check = sqlite3(&["-readonly", name, "PRAGMA integrity_check"]);
        assert_eq!(self.output(check).await, "ok\n", "{name}");
    }
}

/// A server of the database `chat.db` in `folder`.
async fn serve(folder: &Path, options: &str) -> Process {
    serve_file(folder, "chat.db", options).await
}

async fn serve_file(folder: &Path, name: &str, options: &str) -> Process {
    let arguments =
        format!("--host 127.0.0.1 --port 0 --mode broadcast --database {name} {options}");
    let mut command = wscast(&arguments);
    command.current_dir(folder);
    Process::spawn(command).await
}

async fn history(process: &Process, room: &str) -> Vec<Value> {
    let request = format!("GET {room}?history&limit=10000");
    let answer = process.request(&request, "", "").await;
    answer.json().as_array().unwrap().clone()
}

/// The messages of a room behind the one with the id `id`.
async fn messages_after(process: &Process, room: &str, id: &str) -> Vec<Value> {
    let (mut found, mut last) = (Vec::new(), id.to_owned());
    loop {
        let request = format!("GET {room}?history&limit=10000&since={last}");
        let answer = process.request(&request, "", "").await;
        assert_eq!(answer.field("wscast-resumed"), Some("true"));
        let Value::Array(part) = answer.json() else {
            panic!("no array");
        };
        let Some(end) = part.last() else {
            return found;
        };
        end["id"].as_str().unwrap().clone_into(&mut last);
        found.extend(part);
    }
}

fn sqlite3(arguments: &[&str]) -> Command {
    let mut command = Command::new("sqlite3");
    command.args(arguments);
    command
}

/// A publisher that posts without a pause, until it is ended.
struct Publisher {
    posting: JoinHandle<(usize, Duration)>,
    end: tokio::sync::watch::Sender<bool>,
}

impl Publisher {
    /// Posts to the room `/busy`.
    fn start(server: &Running, body: Vec<u8>) -> Self {
        let (end, ended) = tokio::sync::watch::channel(false);
        let address = server.process.address;
        let posting = tokio::spawn(async move {
            let (mut posted, mut slowest) = (0, Duration::ZERO);
            let mut client = RawClient::connect(address).await;
            while !*ended.borrow() {
                let begun = Instant::now();
                let answer = client.request("POST /busy", ALIVE, &body).await;
                assert_eq!(answer.code, 201, "{answer:?}");
                posted += 1;
                slowest = slowest.max(begun.elapsed());
            }
            (posted, slowest)
        });
        Self { posting, end }
    }

    /// How many it has posted, and the longest time that one took.
    async fn end(self) -> (usize, Duration) {
        self.end.send(true).unwrap();
        self.posting.await.unwrap()
    }
}

/// A block of the page that can be run.
#[derive(Debug)]
struct Example {
    heading: &'static str,
    language: &'static str,
    code: String,
    /// What the page says that it writes.
    shown: Option<String>,
}

/// The examples of the page, in order.
fn examples() -> Vec<Example> {
    let (mut heading, mut found) = ("", Vec::<Example>::new());
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        if let Some(text) = line.strip_prefix("## ") {
            heading = text;
        }
        let Some(language) = line.strip_prefix("```") else {
            continue;
        };
        let block: Vec<_> = lines.by_ref().take_while(|it| *it != "```").collect();
        let code = block.join("\n") + "\n";
        match language {
            "sh" | "sql" => found.push(Example {
                heading,
                language,
                code,
                shown: None,
            }),
            "text" => found.last_mut().unwrap().shown = Some(code),
            other => panic!("a block that nothing runs: {other}"),
        }
    }
    found
}

/// The examples below a heading.
fn examples_of(heading: &str) -> Vec<Example> {
    let examples = examples().into_iter();
    let found: Vec<_> = examples.filter(|it| it.heading == heading).collect();
    assert!(!found.is_empty(), "{heading}");
    found
}

/// A text without its times and ids, which are other ones in each run.
fn timeless(text: &str) -> String {
    let is_separator = |it: char| "|\",\n".contains(it);
    let fields = text.split_inclusive(is_separator).map(|field| {
        let digits = field.chars().filter(char::is_ascii_digit).count();
        match digits >= 8 {
            true => field.replace(|it: char| it.is_ascii_digit(), "0"),
            false => field.to_owned(),
        }
    });
    fields.collect()
}

/// Overwrites two pages in the middle of a database.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 8192].fill(0xa5);
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn files_that_were_moved_or_deleted_are_a_fault_until_they_are_back() {
    let mut server = Running::start("--store-sync always").await;
    server.post("/lobby", "before").await;
    for file in ["chat.db", "chat.db-wal"] {
        let (path, away) = (server.path(file), server.path("away"));
        fs::rename(&path, &away).unwrap();
        // What a file takes that has no name is lost with the server: nothing may be acknowledged.
        let refused = server.process.request("POST /lobby", "", "lost").await;
        assert_eq!(refused.code, 503, "{file}");
        let line = next_line(&mut server.process.log, "cannot be written").await;
        assert!(line.contains("put them back"), "{line}");
        // Nor is another file one of this database.
        fs::copy(&away, &path).unwrap();
        assert_eq!(
            server.process.request("GET /readyz", "", "").await.code,
            503
        );
        fs::rename(&away, &path).unwrap();
        next_line(&mut server.process.log, "can be written again").await;
        server.post("/lobby", "after").await;
    }
    let texts = |history: Vec<Value>| -> Vec<Value> {
        history.iter().map(|it| it["text"].clone()).collect()
    };
    assert_eq!(
        texts(server.history("/lobby").await),
        ["before", "after", "after"]
    );
    server.process.child.kill().await.unwrap();
    server.process = serve(server.folder.path(), "").await;
    assert_eq!(
        texts(server.history("/lobby").await),
        ["before", "after", "after"]
    );
}

#[tokio::test]
async fn each_example_of_the_page_writes_what_it_shows() {
    if !is_installed("sqlite3") {
        return;
    }
    let mut server = Running::start("").await;
    let (mut queries, mut shown) = (0, 0);
    let today = server.output(sqlite3(&[":memory:", "SELECT date('now')"]));
    let today = today.await;
    for mut example in examples() {
        let needs_stop = ["Restore", "A damaged file"].contains(&example.heading);
        if needs_stop {
            server.stop().await;
        }
        if example.heading == "A damaged file" {
            fill(&server.folder).await;
            damage(&server.path("chat.db"));
            let arguments = format!("--port 0 --database {}", server.path("chat.db").display());
            let refused = output(wscast(&arguments)).await;
            let why = String::from_utf8(refused.stderr).unwrap();
            assert_eq!(refused.status.code(), Some(1), "{why}");
            assert!(why.contains("damaged") && why.lines().count() == 1, "{why}");
        }
        example.code = example.code.replace("2026-11-25", today.trim());
        let written = server.run(&example).await;
        if let Some(text) = &example.shown {
            assert_eq!(timeless(&written), timeless(text), "{}", example.code);
            shown += 1;
        }
        queries += usize::from(example.language == "sql");
        server.check_integrity("chat.db").await;
        if needs_stop {
            server.process = serve(server.folder.path(), "").await;
        }
    }
    assert!(queries >= 6 && shown >= 8, "{queries} {shown}");
    // Nearly all of what was damaged; clients learn how many messages are missing.
    let all = "GET /many?history&limit=10000&since=";
    let first = sqlite3(&[
        "-readonly",
        "chat.db",
        "SELECT id FROM history WHERE room = '/many' LIMIT 1",
    ]);
    let first = server.output(first).await;
    let answer = server
        .process
        .request(&format!("{all}{}", first.trim()), "", "")
        .await;
    let saved = answer.json();
    let saved = saved.as_array().unwrap();
    assert_eq!(saved.last().unwrap()["text"], "2999");
    let missed: u64 = saved.iter().filter_map(|it| it["missed"].as_u64()).sum();
    assert!((1..300).contains(&missed), "{missed}");
    assert_eq!(saved.len() as u64 - 1 + missed, 2999);
}

/// Adds 3,000 messages to the room `/many` of the database in `folder`, which no server has open.
async fn fill(folder: &TempDir) {
    let mut process = serve(folder.path(), "").await;
    let mut client = Client::connect(process.address, "/many").await.unwrap().0;
    client
        .expect("Welcome! You’re now in the broadcast room.")
        .await;
    for number in 0..3000 {
        client.send(&number.to_string()).await;
    }
    for number in 0..3000 {
        client.expect(&format!("Broadcast: {number}")).await;
    }
    process.signal("-TERM").await;
    client.expect_close(1001).await;
    assert_eq!(process.exit_code().await, Some(0));
}

#[tokio::test]
async fn sqlite3_reads_while_the_server_is_published_to() {
    if !is_installed("sqlite3") {
        return;
    }
    let mut server = Running::start("").await;
    let publisher = Publisher::start(&server, b"a message".to_vec());
    let count = "SELECT count(*) FROM history WHERE room = '/busy'";
    let count = async || {
        let written = server.output(sqlite3(&["-readonly", "chat.db", count]));
        written.await.trim().parse::<usize>().unwrap()
    };
    let mut last = 0;
    for _ in 0..20 {
        eventually_async("more is there", async || count().await > last).await;
        last = count().await;
        server.check_integrity("chat.db").await;
    }
    let (posted, _) = publisher.end().await;
    eventually_async("all is there", async || count().await == posted).await;
    server.stop().await;
    server.check_integrity("chat.db").await;
}

/// `sqlite3` with a transaction that reads, until it is ended.
struct HeldReader(Child);

impl HeldReader {
    async fn begin(folder: &Path) -> Self {
        let mut child = sqlite3(&["-readonly", "chat.db"])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdin = child.stdin.as_mut().unwrap();
        let begin = b"BEGIN; SELECT count(*) FROM message; SELECT 'holds';\n";
        stdin.write_all(begin).await.unwrap();
        let mut held = Vec::new();
        let stdout = child.stdout.as_mut().unwrap();
        while !held.ends_with(b"holds\n") {
            held.push(tokio::io::AsyncReadExt::read_u8(stdout).await.unwrap());
        }
        Self(child)
    }

    /// Ends the transaction, not the program.
    async fn commit(&mut self) {
        let stdin = self.0.stdin.as_mut().unwrap();
        stdin.write_all(b"COMMIT;\n").await.unwrap();
    }
}

#[tokio::test]
async fn a_reader_that_holds_a_transaction_stops_no_publisher_and_the_log_says_why_the_wal_grows() {
    if !is_installed("sqlite3") {
        return;
    }
    let mut server = Running::start("").await;
    server.post("/busy", "first").await;
    let mut reader = HeldReader::begin(server.folder.path()).await;
    let publisher = Publisher::start(&server, vec![b'x'; 1_000_000]);
    let line = next_line(&mut server.process.log, "-wal has grown to ").await;
    assert!(
        line.contains("WARN") && line.contains("another program has been reading"),
        "{line}"
    );
    let (posted, slowest) = publisher.end().await;
    assert!(
        posted >= 60 && slowest < Duration::from_secs(1),
        "{posted} {slowest:?}"
    );
    let size = || fs::metadata(server.path("chat.db-wal")).unwrap().len();
    assert!(size() > 64 << 20, "{}", size());
    reader.commit().await;
    server.post("/busy", "last").await;
    eventually("the log is short again", || size() <= 16 << 20).await;
    server.stop().await;
    server.check_integrity("chat.db").await;
}

#[tokio::test]
async fn a_reader_that_holds_a_transaction_does_not_hold_up_a_stop() {
    if !is_installed("sqlite3") {
        return;
    }
    let mut server = Running::start("").await;
    server.post("/lobby", "first").await;
    let reader = HeldReader::begin(server.folder.path()).await;
    server.post("/lobby", "last").await;
    let stopping = Instant::now();
    server.stop().await;
    assert!(
        stopping.elapsed() < Duration::from_secs(3),
        "{:?}",
        stopping.elapsed()
    );
    // Its end counts as a clean one.
    server.process = serve(server.folder.path(), "").await;
    let history = server.history("/lobby").await;
    let epoch = |message: &Value| {
        message["id"]
            .as_str()
            .unwrap()
            .split_once('-')
            .unwrap()
            .0
            .to_owned()
    };
    let next = server.post("/lobby", "next").await;
    assert_eq!((history.len(), epoch(&next)), (2, epoch(&history[0])));
    drop(reader);
}

#[tokio::test]
#[ignore = "takes more than a minute"]
async fn a_reader_that_holds_a_transaction_for_a_minute_stops_no_publisher() {
    if !is_installed("sqlite3") {
        return;
    }
    let mut server = Running::start("--store-sync always").await;
    server.post("/busy", "first").await;
    let reader = HeldReader::begin(server.folder.path()).await;
    let publisher = Publisher::start(&server, vec![b'x'; 1000]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let (posted, slowest) = publisher.end().await;
    assert!(
        posted >= 1000 && slowest < Duration::from_secs(1),
        "{posted} {slowest:?}"
    );
    drop(reader);
    server.post("/busy", "last").await;
    let size = || fs::metadata(server.path("chat.db-wal")).unwrap().len();
    eventually("the log is short again", || size() <= 64 << 20).await;
    server.stop().await;
    server.check_integrity("chat.db").await;
}

#[tokio::test]
async fn each_documented_backup_that_is_made_while_publishing_goes_on_serves_the_same_history() {
    if !is_installed("sqlite3") {
        return;
    }
    // What is acknowledged is in the file.
    let server = Running::start("--store-sync always").await;
    // More than is copied between two writes.
    for _ in 0..20 {
        server.post("/large", vec![b'x'; 1_000_000]).await;
    }
    let before = server.post("/busy", "before").await;
    let before = before["id"].as_str().unwrap();
    let publisher = Publisher::start(&server, b"a message".to_vec());
    let mut ways = examples_of("Backup");
    // The last one only reads a backup.
    ways.pop();
    assert_eq!(ways.len(), 2);
    for way in &ways {
        server.run(way).await;
    }
    let (posted, _) = publisher.end().await;
    let whole = messages_after(&server.process, "/busy", before).await;
    assert_eq!(whole.len(), posted);
    for name in ["backup.db", "backup2.db"] {
        server.check_integrity(name).await;
        let second = serve_file(server.folder.path(), name, "").await;
        let kept = messages_after(&second, "/busy", before).await;
        assert_eq!(kept[..], whole[..kept.len()], "{name}");
        assert_eq!(history(&second, "/large").await.len(), 20, "{name}");
    }
}

#[tokio::test]
async fn a_backup_that_is_restored_as_documented_gives_no_id_twice() {
    if !is_installed("sqlite3") {
        return;
    }
    // Of all policies the one that would give the same ids again.
    let options = "--store-sync always";
    let mut server = Running::start(options).await;
    let kept = server.post("/lobby", "kept").await;
    server.run(&examples_of("Backup")[0]).await;
    let lost = server.post("/lobby", "lost").await;
    server.stop().await;
    for example in examples_of("Restore") {
        server.run(&example).await;
    }
    server.process = serve(server.folder.path(), options).await;
    let since = format!("GET /lobby?history&since={}", lost["id"].as_str().unwrap());
    let answer = server.process.request(&since, "", "").await;
    assert_eq!(answer.field("wscast-resumed"), Some("false"));
    assert_eq!(answer.json().as_array().unwrap().len(), 1);
    let next = server.post("/lobby", "next").await;
    assert_ne!(next["id"], lost["id"]);
    let messages = server.history("/lobby").await;
    let ids: Vec<_> = messages.iter().map(|it| &it["id"]).collect();
    assert_eq!(ids, [&kept["id"], &next["id"]]);
    server.check_integrity("chat.db").await;
}

#[tokio::test]
async fn a_second_server_on_the_same_file_says_so_and_exits_1() {
    let server = Running::start("").await;
    let path = server.path("chat.db");
    let refused = output(wscast(&format!("--port 0 --database {}", path.display()))).await;
    let why = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{why}");
    let expected = format!(
        "error: --database {}: another server has it open: stop that one, or name another file\n",
        path.display()
    );
    assert_eq!(why, expected);
    server.post("/", "the first one goes on").await;
}

#[tokio::test]
async fn the_file_is_at_most_twice_as_large_as_what_its_bounds_count() {
    for size in [100, 1200, 2000] {
        let mut server = Running::start("").await;
        let address = server.process.address;
        let mut client = Client::connect(address, "/many?echo=off").await.unwrap().0;
        client
            .expect("Welcome! You’re now in the broadcast room.")
            .await;
        let text = "x".repeat(size);
        for _ in 0..2_000_000 / size {
            client.send(&text).await;
        }
        client.close().await;
        server.stop().await;
        let counted = "SELECT sum(bytes) FROM room";
        let database = Connection::open(server.path("chat.db")).unwrap();
        let counted: u64 = database.query_row(counted, [], |it| it.get(0)).unwrap();
        let file = fs::metadata(server.path("chat.db")).unwrap().len();
        assert!(
            counted >= 2_000_000 && file < counted * 21 / 10,
            "{size}: {file} {counted}"
        );
    }
}

#[tokio::test]
async fn options_that_need_a_store_or_contradict_each_other_are_refused_with_their_names() {
    let refused = [
        ("--store-sync off", "--store-sync", "--database FILE"),
        (
            "--on-store-error refuse",
            "--on-store-error",
            "--database FILE",
        ),
        (
            "--retain-messages 1",
            "--retain-messages",
            "--database FILE",
        ),
        ("--retain-bytes 1", "--retain-bytes", "--database FILE"),
        ("--retain-age 1", "--retain-age", "--database FILE"),
        ("--retain-total 1", "--retain-total", "--database FILE"),
        ("--retain-rooms 1", "--retain-rooms", "--database FILE"),
        (
            "--database x.db --retain-messages 0",
            "--retain-messages",
            "at least 1",
        ),
        (
            "--database x.db --retain-age 0",
            "--retain-age",
            "leave it out",
        ),
        (
            "--database x.db --store-sync always --on-store-error continue",
            "--on-store-error",
            "leave one of them out",
        ),
    ];
    let folder = TempDir::new().unwrap();
    for (arguments, option, remedy) in refused {
        let mut command = wscast(&format!("--port 0 {arguments}"));
        command.current_dir(&folder);
        let ended = output(command).await;
        let why = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(2), "{arguments}: {why}");
        assert!(
            why.contains(option) && why.contains(remedy) && why.lines().count() == 1,
            "{why}"
        );
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

#[tokio::test]
async fn a_file_of_schema_version_1_is_opened_and_has_everything() {
    let folder = TempDir::new().unwrap();
    let old = Connection::open(folder.path().join("chat.db")).unwrap();
    old.execute_batch(include_str!("database_v1.sql")).unwrap();
    old.close().unwrap();
    let process = serve(folder.path(), "").await;
    let server = Running { folder, process };

    let lobby = server.history("/lobby").await;
    let expected = serde_json::json!([
        {"type": "message", "id": "1795627683166985-5", "time": "2026-11-25T17:28:03.366Z", "name": "Ann", "text": "message 5"},
        {"type": "message", "id": "1795627683166985-6", "time": "2026-11-25T17:28:03.382Z", "name": "Ann", "text": "message 6"},
        {"type": "message", "id": "1795627683166985-7", "time": "2026-11-25T17:28:03.418Z", "name": "Émile", "binary": "AAH/"},
        {"type": "message", "id": "1795627683166985-8", "time": "2026-11-25T17:28:04.263Z", "from": "cf8GVwpbWJ9OEX6H",
         "name": "Bob", "text": "by WebSocket"},
        {"type": "message", "id": "1795627683166985-9", "time": "2026-11-25T17:28:04.263Z", "from": "cf8GVwpbWJ9OEX6H",
         "name": "Bob", "binary": "AAE="},
    ]);
    assert_eq!(Value::from(lobby), expected);
    for (room, text) in [
        ("/", "the first room"),
        ("/%C3%A9", "zwei\nZeilen: „äöü“ it's"),
        ("/empty", ""),
        ("/orders", "ordered once"),
    ] {
        assert_eq!(server.history(room).await[0]["text"], text, "{room}");
    }
    // A second try after the restart.
    let key = "Idempotency-Key: order-17\r\n";
    let again = server
        .process
        .request("POST /orders", key, "ordered once")
        .await;
    assert_eq!(
        (again.code, again.json()["clients"].clone()),
        (200, 0.into())
    );
    let other = server.process.request("POST /orders", key, "twice").await;
    assert_eq!(other.code, 422);
    // It ended cleanly: clients resume, and ids go on.
    let since = "GET /lobby?history&since=1795627683166985-8";
    let answer = server.process.request(since, "", "").await;
    assert_eq!(answer.field("wscast-resumed"), Some("true"));
    assert_eq!(answer.json().as_array().unwrap().len(), 1);
    let next = server.post("/lobby", "next").await;
    assert_eq!(next["id"], "1795627683166985-10");
}
