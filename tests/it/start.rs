//! Starting and running: a blocked stderr, the environment, signals, the lines at start.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::*;
use crate::process::*;

/// A hundred of these make a log line of about 1 KiB.
const LONG_IN_THE_LOG: char = '\u{10fff0}';

/// Sends `count` messages that are logged.
async fn send_logged_messages(address: SocketAddr, count: usize) {
    let (client, _) = Client::connect(address, "/").await.unwrap();
    let (mut sink, mut stream) = client.websocket.split();
    let message = Message::text(LONG_IN_THE_LOG.to_string().repeat(100));
    let send = async {
        for _ in 0..count {
            sink.feed(message.clone()).await.unwrap();
        }
        sink.flush().await.unwrap();
    };
    let receive = async {
        for _ in 0..count {
            stream.next().await.unwrap().unwrap();
        }
    };
    tokio::join!(send, receive);
}

#[tokio::test]
async fn an_unread_log_takes_bounded_memory_and_reports_lost_lines() {
    let mut process = Process::start("--log-messages --welcome= --history-limit 0").await;
    send_logged_messages(process.address, 100).await;
    let before = process.memory();
    const LINES: usize = 30_000;
    send_logged_messages(process.address, LINES).await;
    let grown = process.memory().saturating_sub(before);
    let logged = LINES * 1024;
    assert!(grown < logged / 3, "{grown} bytes kept of {logged}");
    let line = next_line(&mut process.log, "lines of the log were lost").await;
    assert!(line.contains("stderr is read too slowly"), "{line}");
}

#[tokio::test]
async fn a_blocked_stderr_does_not_prevent_the_exit() {
    let mut process = Process::start("--log-messages --welcome= --history-limit 0").await;
    send_logged_messages(process.address, 1000).await;
    process.signal("-TERM").await;
    assert_eq!(process.exit_code().await, Some(0));
}

/// The write end of a full pipe, and its read end.
async fn full_pipe() -> (Stdio, tokio::net::unix::pipe::Receiver) {
    let (sender, receiver) = tokio::net::unix::pipe::pipe().unwrap();
    sender.writable().await.unwrap();
    while sender.try_write(&[b'x'; 4096]).is_ok() {}
    (sender.into_blocking_fd().unwrap().into(), receiver)
}

#[tokio::test]
async fn exit_codes_do_not_depend_on_stdout_and_stderr() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    for (arguments, code) in [
        ("--help".to_owned(), 0),
        ("--version".into(), 0),
        ("--port http".into(), 2),
        (format!("--host 127.0.0.1 --port {port}"), 1),
    ] {
        let full_disk = || File::create("/dev/full").unwrap();
        let without_reader = || tokio::net::unix::pipe::pipe().unwrap().0.into_blocking_fd();
        let (blocked, _unread) = full_pipe().await;
        let streams = [
            (full_disk().into(), full_disk().into()),
            (
                without_reader().unwrap().into(),
                without_reader().unwrap().into(),
            ),
            (Stdio::null(), blocked),
        ];
        for (stdout, stderr) in streams {
            let mut command = wscast(&arguments);
            command.stdout(stdout).stderr(stderr);
            let status = timeout(PATIENCE, command.status()).await;
            let status = status.expect("it does not end").unwrap();
            assert_eq!(status.code(), Some(code), "{arguments}");
        }
    }
}

/// The port on which a process listens, from /proc.
async fn port_of(id: u32) -> u16 {
    let mut port = None;
    eventually("the process listens", || {
        let files = fs::read_dir(format!("/proc/{id}/fd")).unwrap().flatten();
        let files: Vec<_> = files
            .filter_map(|it| fs::read_link(it.path()).ok())
            .collect();
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        port = table.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let socket = format!("socket:[{}]", fields[9]);
            let ours = fields[3] == "0A" && files.iter().any(|it| it == Path::new(&socket));
            let port = fields[1].split_once(':').unwrap().1;
            ours.then(|| u16::from_str_radix(port, 16).unwrap())
        });
        port.is_some()
    })
    .await;
    port.unwrap()
}

#[tokio::test]
async fn a_server_runs_when_stderr_cannot_be_written() {
    for level in ["info", "error"] {
        let mut command = wscast("--host 127.0.0.1 --port 0");
        command
            .env("RUST_LOG", level)
            .stderr(File::create("/dev/full").unwrap());
        let mut child = command.spawn().unwrap();
        let port = port_of(child.id().unwrap()).await;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let (mut client, _) = Client::connect(address, "/").await.unwrap();
        client.next().await;
        client.close().await;
        child.kill().await.unwrap();
    }
}

#[tokio::test]
async fn an_invalid_log_filter_is_reported_and_ignored() {
    let mut command = wscast("--host 127.0.0.1 --port 0");
    command.env("RUST_LOG", "wscast=loud");
    let mut child = command.spawn().unwrap();
    let mut log = lines_of(&mut child);
    next_line(&mut log, "RUST_LOG is passed over").await;
    next_line(&mut log, "listening on").await;
}

#[tokio::test]
async fn a_misspelt_variable_is_reported() {
    let mut command = wscast("--host 127.0.0.1 --port 0");
    command
        .env("WSCAST_MAX_CONECTIONS", "1")
        .env("WSCAST_SERVICE_HOST", "10.0.0.1");
    let mut child = command.spawn().unwrap();
    let mut log = lines_of(&mut child);
    let line = next_line(&mut log, "WSCAST_").await;
    assert!(
        line.contains("WSCAST_MAX_CONECTIONS sets no option: did you mean WSCAST_MAX_CONNECTIONS?")
    );
    let line = next_line(&mut log, "").await;
    assert!(line.contains("listening on"), "{line}");
}

#[tokio::test]
async fn an_error_names_the_variable_that_caused_it() {
    for (variable, value, code) in [
        ("WSCAST_PORT", "http", 2),
        ("WSCAST_PING_TIMEOUT", "0", 2),
        ("WSCAST_HOST", "no.such.host.invalid", 1),
    ] {
        let mut command = wscast("");
        command.env(variable, value);
        let output = output(command).await;
        let line = String::from_utf8(output.stderr).unwrap();
        assert!(
            line.starts_with("error: ") && line.contains(variable),
            "{line}"
        );
        assert!(!line.contains("--host") && !line.contains("--p"), "{line}");
        assert_eq!(output.status.code(), Some(code), "{line}");
    }
}

#[tokio::test]
async fn a_port_in_use_is_reported_with_the_process_that_owns_it() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let output = output(wscast(&format!("--host 127.0.0.1 --port {port}"))).await;
    let line = String::from_utf8(output.stderr).unwrap();
    let owner = format!("by process {} (", std::process::id());
    assert!(
        line.contains(&owner) && line.contains("choose another --port"),
        "{line}"
    );
}

#[tokio::test]
async fn an_error_shows_the_zone_with_the_address() {
    let output = output(wscast("--host fe80::1%lo --port 0")).await;
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(line.contains("cannot listen on [fe80::1%1]:0"), "{line}");
    assert!(!line.contains("Invalid argument"), "{line}");
}

#[tokio::test]
async fn the_listening_line_is_followed_by_the_page_and_what_a_restart_loses() {
    let mut process = Process::spawn(wscast("--port 0")).await;
    let port = process.address.port();
    let line = next_line(&mut process.log, "").await;
    assert!(
        line.ends_with(&format!(" open http://localhost:{port}/ in a browser")),
        "{line}"
    );
    let line = next_line(&mut process.log, "").await;
    assert!(
        line.contains("from this machine alone") && line.contains("--allow-host NAME"),
        "{line}"
    );
    let line = next_line(&mut process.log, "").await;
    assert!(
        line.contains("a restart loses it (--database FILE keeps it)"),
        "{line}"
    );
    let host = format!("Host: localhost:{port}\r\n");
    let page = process.request("GET /", &host, "").await;
    assert!(page.code == 200 && page.body.contains("<html"), "{page:?}");
}

#[tokio::test]
async fn messages_are_logged_only_with_log_messages() {
    for (switch, level, logged) in [
        ("--log-messages", "info", true),
        ("--log-messages off", "debug", false),
    ] {
        let mut command = wscast(&format!(
            "--host 127.0.0.1 --port 0 --mode broadcast {switch}"
        ));
        command.env("RUST_LOG", level);
        let mut process = Process::spawn(command).await;
        let (mut client, _) = Client::connect(process.address, "/").await.unwrap();
        client.next().await;
        client.send("hi").await;
        client.expect("Broadcast: hi").await;
        assert_eq!(process.request("POST /", "", "hey").await.code, 201);
        client.close().await;
        let mut seen = Vec::new();
        loop {
            let line = next_line(&mut process.log, "").await;
            if line.contains("client left") {
                break;
            }
            seen.push(line);
        }
        for what in [
            "Received from client: hi",
            "Broadcasting: hi",
            "Received from client: hey",
            "Broadcasting: hey",
        ] {
            let found = seen.iter().any(|it| it.ends_with(what));
            assert_eq!(found, logged, "{what}: {seen:?}");
        }
    }
}

#[tokio::test]
async fn usr1_usr2_xfsz_and_hup_do_not_end_the_server() {
    let mut process = Process::start("").await;
    let (mut client, _) = Client::connect(process.address, "/").await.unwrap();
    client.next().await;
    for name in ["-USR1", "-USR2", "-XFSZ", "-HUP", "-HUP"] {
        process.signal(name).await;
        if name == "-HUP" {
            next_line(&mut process.log, "SIGHUP: there is nothing to reload").await;
        }
        client.send("still here").await;
        client.expect("Server echo: still here").await;
    }
    process.signal("-TERM").await;
    client.expect_close(1001).await;
    assert_eq!(process.exit_code().await, Some(0));
}

#[tokio::test]
async fn a_sighup_ignored_at_start_stays_ignored() {
    let mut command = Command::new("sh");
    let script = format!(
        "trap '' HUP; exec {} --host 127.0.0.1 --port 0",
        env!("CARGO_BIN_EXE_wscast")
    );
    command
        .args(["-c", &script])
        .env_clear()
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut process = Process::spawn(command).await;
    process.signal("-HUP").await;
    process.signal("-TERM").await;
    loop {
        let line = next_line(&mut process.log, "").await;
        assert!(!line.contains("SIGHUP"), "{line}");
        if line.contains("stopped") {
            break;
        }
    }
    assert_eq!(process.exit_code().await, Some(0));
}

/// The shell command that runs the binary with its log in `file`.
fn logging_to(file: &Path, before: &str, arguments: &str) -> String {
    let binary = env!("CARGO_BIN_EXE_wscast");
    format!(
        "{before} exec {binary} --host 127.0.0.1 --port 0 {arguments} 2>{}",
        file.display()
    )
}

/// The address of a server that logs to `file`.
async fn address_in(file: &Path) -> SocketAddr {
    let mut address = None;
    eventually("the server listens", || {
        let log = fs::read_to_string(file).unwrap_or_default();
        let line = log
            .lines()
            .find_map(|it| it.split_once("listening on ws://"));
        address = line.and_then(|(_, it)| it.parse().ok());
        address.is_some()
    })
    .await;
    address.unwrap()
}

#[tokio::test]
async fn a_closed_terminal_drains_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let (file, id) = (folder.path().join("log"), folder.path().join("id"));
    // `script` gives the server a terminal, and closes it when it ends.
    let mut terminal = Command::new("script")
        .args([
            "--quiet",
            "--command",
            &logging_to(&file, &format!("echo $$ >{};", id.display()), ""),
            "/dev/null",
        ])
        .env_clear()
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let address = address_in(&file).await;
    let (mut client, _) = Client::connect(address, "/").await.unwrap();
    client.next().await;
    let id = fs::read_to_string(&id).unwrap();
    terminal.kill().await.unwrap();
    let drained = async {
        client.expect_close(1001).await;
        while !fs::read_to_string(&file).unwrap().contains("stopped") {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    if timeout(PATIENCE, drained).await.is_err() {
        // Nothing else ends it.
        Command::new("kill")
            .args(["-KILL", id.trim()])
            .status()
            .await
            .unwrap();
        panic!("the server does not stop");
    }
}

#[tokio::test]
async fn a_log_file_at_its_limit_does_not_end_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    let mut server = Command::new("sh")
        .args([
            "-c",
            &logging_to(&file, "ulimit -f 8;", "--log-messages --welcome="),
        ])
        .env_clear()
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let address = address_in(&file).await;
    let limit = 8 * 512;
    for _ in 0..2 {
        send_logged_messages(address, 50).await;
        eventually("the file is full", || {
            fs::metadata(&file).unwrap().len() == limit
        })
        .await;
    }
    let id = server.id().unwrap().to_string();
    assert!(
        Command::new("kill")
            .arg(&id)
            .status()
            .await
            .unwrap()
            .success()
    );
    assert_eq!(server.wait().await.unwrap().code(), Some(0));
}
