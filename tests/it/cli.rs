//! The binary as an operator uses it: arguments, the listening line, signals, exit codes.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::*;
use crate::process::*;

#[tokio::test]
async fn the_readme_shows_the_exact_help() {
    let help = output(wscast("--help")).await;
    assert!(help.status.success());
    let help = String::from_utf8(help.stdout).unwrap();
    let readme = include_str!("../../README.md");
    assert!(readme.contains(&help), "README.md lacks this:\n{help}");
}

#[tokio::test]
async fn completions_are_written_for_each_shell() {
    for (shell, line) in [
        ("bash", "complete -F _wscast"),
        ("fish", "-l history-limit"),
        ("zsh", "#compdef wscast"),
    ] {
        let script = output(wscast(&format!("completions {shell}"))).await;
        assert!(script.status.success());
        let script = String::from_utf8(script.stdout).unwrap();
        assert!(script.contains(line), "{script}");
    }
    for words in ["completions", "completions basic", "complete bash"] {
        let refused = output(wscast(words)).await;
        assert_eq!(refused.status.code(), Some(2), "{words}");
        let lines = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(lines.lines().count(), 1, "{lines}");
    }
}

#[tokio::test]
async fn the_listening_line_names_the_mode_and_the_real_port() {
    for (arguments, server) in [("", "WebSocket"), ("--mode broadcast", "Broadcast")] {
        let mut process = Process::spawn(wscast(&format!("--port 0 {arguments}"))).await;
        let port = process.address.port();
        let expected = format!(" {server} server is listening on ws://localhost:{port}");
        let line = &process.listening_line;
        assert!(line.ends_with(&expected), "{line}");
        // It is the real port.
        Client::connect(process.address, "/")
            .await
            .unwrap()
            .0
            .close()
            .await;
        process.signal("-TERM").await;
        assert_eq!(process.exit_code().await, Some(0));
    }
}

#[tokio::test]
async fn the_listening_line_does_not_depend_on_the_log_filter() {
    let mut command = wscast("--host 127.0.0.1 --port 0");
    command.env("RUST_LOG", "error");
    let process = Process::spawn(command).await;
    Client::connect(process.address, "/")
        .await
        .unwrap()
        .0
        .close()
        .await;
}

#[tokio::test]
async fn a_large_message_leaves_no_buffer_behind() {
    const CLIENTS: usize = 100;
    const SIZE: usize = 1 << 20;
    let process = Process::start("--welcome= --history-limit 0").await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client::connect(process.address, "/").await.unwrap().0);
    }
    let before = process.memory();
    for client in &mut clients {
        client.send_binary(&[7; SIZE]).await;
        // Not assert_eq, which would print 1 MiB.
        assert!(
            client.next().await == Message::binary(vec![7; SIZE]),
            "another message"
        );
    }
    let grown = process.memory().saturating_sub(before);
    let sent = CLIENTS * SIZE;
    assert!(grown < sent / 4, "{grown} bytes kept of {sent}");
}

#[tokio::test]
async fn the_server_listens_on_every_address_of_localhost() {
    let process = Process::spawn(wscast("--port 0")).await;
    let port = process.address.port();
    let addresses = tokio::net::lookup_host(("localhost", port)).await.unwrap();
    for address in addresses {
        Client::connect(address, "/").await.unwrap().0.close().await;
    }
}

#[tokio::test]
async fn options_can_be_set_in_the_environment() {
    let mut command = wscast("");
    command
        .env("WSCAST_HOST", "127.0.0.1")
        .env("WSCAST_PORT", "0")
        .env("WSCAST_WELCOME", "from the environment");
    let process = Process::spawn(command).await;
    let (mut client, _) = Client::connect(process.address, "/").await.unwrap();
    client.expect("from the environment").await;
}

#[tokio::test]
async fn a_failed_start_prints_one_line_with_the_option_and_the_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    for (arguments, code, words) in [
        (
            "--mode chat".to_owned(),
            2,
            vec!["--mode", "echo, broadcast"],
        ),
        ("--port http".into(), 2, vec!["--port", "http"]),
        (
            "--ping-interval soon".into(),
            2,
            vec!["--ping-interval", "seconds"],
        ),
        (
            "--ping-timeout 0".into(),
            2,
            vec!["--ping-timeout", "longer than 0"],
        ),
        (
            "--max-message-size much".into(),
            2,
            vec!["--max-message-size", "64KiB"],
        ),
        ("--verbose".into(), 2, vec!["--verbose", "--help"]),
        (
            format!("--host 127.0.0.1 --port {port}"),
            1,
            vec!["127.0.0.1", "in use", "--port"],
        ),
        (
            "--host no.such.host.invalid".into(),
            1,
            vec!["--host no.such.host.invalid", "address"],
        ),
        ("--host 192.0.2.1".into(), 1, vec!["192.0.2.1", "--host"]),
        (
            "--host localhost:8765".into(),
            2,
            vec!["--host", "write --host localhost --port 8765"],
        ),
    ] {
        let output = output(wscast(&arguments)).await;
        assert_eq!(output.status.code(), Some(code), "{arguments}");
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(line.trim_end().lines().count(), 1, "{arguments}: {line}");
        assert!(line.starts_with("error: "), "{line}");
        for word in words {
            assert!(
                line.contains(word),
                "{arguments}: {word:?} is not in {line}"
            );
        }
    }
}

#[tokio::test]
async fn the_log_shows_connections_messages_and_the_reason_of_each_end() {
    let mut process = Process::start("--mode broadcast --log-messages").await;
    let (mut client, _) = Client::connect(process.address, "/lobby").await.unwrap();
    client.send("hi\n\u{1b}[31m there").await;
    client.close().await;
    let line = next_line(&mut process.log, "client connected").await;
    assert!(
        line.contains("room=\"/lobby\"") && line.contains("peer=127.0.0.1:"),
        "{line}"
    );
    let escaped = r"hi\n\u{1b}[31m there";
    let line = next_line(&mut process.log, "Received from client: ").await;
    assert!(line.contains(escaped), "{line}");
    let line = next_line(&mut process.log, "Broadcasting: ").await;
    assert!(line.contains(escaped), "{line}");
    let line = next_line(&mut process.log, "client left: closed by the client").await;
    assert!(
        line.contains("received=1") && line.contains("seconds=0."),
        "{line}"
    );
}

#[tokio::test]
async fn a_dropped_connection_is_logged_as_gone() {
    let mut process = Process::start("--mode broadcast").await;
    for request in [
        "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".to_owned(),
        RawClient::handshake("/", ""),
    ] {
        let mut client = RawClient::connect(process.address).await;
        client.send(request).await;
        client.read_head().await;
        drop(client);
        let line = next_line(&mut process.log, "client left: ").await;
        assert!(line.contains("client left: gone"), "{line}");
    }
}

#[tokio::test]
async fn the_log_can_be_json() {
    let mut process = Process::start("--log-format json").await;
    Client::connect(process.address, "/")
        .await
        .unwrap()
        .0
        .close()
        .await;
    let line = next_line(&mut process.log, "client connected").await;
    assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    assert!(line.contains(r#""room":"/""#), "{line}");
}

#[tokio::test]
async fn an_unread_log_delays_no_client() {
    let Process {
        child: _child,
        log,
        address,
        ..
    } = Process::start("").await;
    // More lines than the pipe holds; then its read end is closed.
    for _ in 0..500 {
        Client::connect(address, "/").await.unwrap().0.close().await;
    }
    drop(log);
    for _ in 0..10 {
        Client::connect(address, "/").await.unwrap().0.close().await;
    }
}

#[tokio::test]
async fn sigterm_and_sigint_in_the_middle_of_traffic_drain_and_exit_0() {
    let arguments = "--host 127.0.0.1 --port 0 --mode broadcast --welcome= --drain-timeout 20";
    for (name, command) in [
        ("-TERM", wscast(arguments)),
        ("-INT", wscast_on_one_processor(arguments)),
    ] {
        let mut process = Process::spawn(command).await;
        let (mut one, _) = Client::connect(process.address, "/").await.unwrap();
        let (mut other, _) = Client::connect(process.address, "/").await.unwrap();
        for number in 0..100 {
            one.send(&number.to_string()).await;
        }
        one.expect("Broadcast: 0").await;
        process.signal(name).await;
        let (mut runs, mut ends) = (Vec::new(), Vec::new());
        for client in [&mut one, &mut other] {
            let mut run = 0;
            let frame = loop {
                match client.next().await {
                    Message::Close(frame) => break frame.unwrap(),
                    _ => run += 1,
                }
            };
            client.expect_end().await;
            runs.push(run);
            ends.push(u16::from(frame.code));
        }
        assert_eq!((runs[0] + 1, &ends[..]), (runs[1], &[1001, 1001][..]));
        assert_eq!(process.exit_code().await, Some(0), "{name}");
        // The port is free at once, although its connections are still in TIME_WAIT.
        let port = process.address.port();
        let mut again = Process::spawn(wscast(&format!("--host 127.0.0.1 --port {port}"))).await;
        again.signal("-TERM").await;
        assert_eq!(again.exit_code().await, Some(0));
    }
}

#[tokio::test]
async fn a_second_signal_exits_at_once() {
    let mut process = Process::start("--drain-timeout 10m --close-timeout 10m").await;
    let mut silent = RawClient::connect(process.address).await;
    silent.upgrade("/").await;
    process.signal("-INT").await;
    next_line(&mut process.log, "shutting down").await;
    process.signal("-INT").await;
    assert_eq!(process.exit_code().await, Some(130));
}

#[tokio::test]
async fn descriptors_and_memory_are_released() {
    const CLIENTS: usize = 500;
    const MESSAGES: usize = 100;
    const SIZE: usize = 512 * 1024;
    const ROUNDS: usize = 3;
    let process = Process::start(
        "--mode broadcast --history-limit 0 --write-timeout 500ms --close-timeout 500ms",
    )
    .await;
    let churn = async |stuck: usize| {
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(Client::connect(process.address, "/").await.unwrap().0);
        }
        let mut not_reading = Vec::new();
        for _ in 0..stuck {
            let mut client = RawClient::with_small_window(process.address).await;
            client.upgrade("/stuck").await;
            not_reading.push(client);
        }
        drop(clients);
        let (mut publisher, _) = Client::connect(process.address, "/stuck").await.unwrap();
        publisher.next().await;
        for _ in 0..MESSAGES {
            publisher.send_binary(&[7; SIZE]).await;
            publisher.expect_binary(&[7; SIZE]).await;
        }
        publisher.close().await;
    };
    let before = process.descriptors();
    churn(0).await;
    eventually("all descriptors are free", || {
        process.descriptors() == before
    })
    .await;
    let warm = process.memory();
    for _ in 0..ROUNDS {
        churn(10).await;
        eventually("all descriptors are free", || {
            process.descriptors() == before
        })
        .await;
    }
    let grown = process.memory().saturating_sub(warm);
    let passed = ROUNDS * MESSAGES * SIZE;
    assert!(grown < passed / 4, "{grown} bytes kept of {passed}");
}

#[tokio::test]
async fn a_server_without_descriptors_pauses_and_accepts_again() {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!(
            "ulimit -n 40; exec {} --host 127.0.0.1 --port 0",
            env!("CARGO_BIN_EXE_wscast")
        ))
        .env_clear()
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    next_line(&mut log, "too few for --max-connections 10000").await;
    let line = next_line(&mut log, "listening on").await;
    let address: SocketAddr = line.split_once("ws://").unwrap().1.parse().unwrap();
    let mut clients = Vec::new();
    for _ in 0..60 {
        clients.push(RawClient::connect(address).await);
    }
    next_line(&mut log, "cannot accept connections for now").await;
    drop(clients);
    let (mut client, _) = timeout(Duration::from_secs(10), Client::connect(address, "/"))
        .await
        .expect("it accepts again")
        .unwrap();
    client.next().await;
    client.close().await;
}

#[tokio::test]
async fn the_server_runs_the_configured_number_of_threads() {
    let threads = async |threads: usize| {
        let process = Process::start(&format!("--threads {threads}")).await;
        Client::connect(process.address, "/")
            .await
            .unwrap()
            .0
            .close()
            .await;
        std::fs::read_dir(format!("/proc/{}/task", process.id()))
            .unwrap()
            .count()
    };
    // With one thread, the main thread serves.
    let alone = threads(1).await;
    assert_eq!((threads(2).await, threads(5).await), (alone + 2, alone + 5));
}

#[tokio::test]
async fn a_flooding_client_does_not_starve_a_quiet_one() {
    const ROUND_TRIPS: usize = 500;
    // Both share one thread.
    let process = Process::start("--welcome= --prefix= --threads 1").await;
    let (mut quiet, _) = Client::connect(process.address, "/quiet").await.unwrap();
    let mut flood = RawClient::connect(process.address).await;
    flood.upgrade("/flood").await;

    // Two threads of the test write and read as fast as they can.
    let flood = flood.stream.into_std().unwrap();
    flood.set_nonblocking(false).unwrap();
    let (mut read, mut write) = (flood.try_clone().unwrap(), flood.try_clone().unwrap());
    let writing = std::thread::spawn(move || {
        let frames = frame(FIN | TEXT, &[b'x'; 64]).repeat(1000);
        while write.write_all(&frames).is_ok() {}
    });
    let echoed = Arc::new(AtomicUsize::new(0));
    let counter = echoed.clone();
    let reading = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        while let Ok(length @ 1..) = read.read(&mut buffer) {
            counter.fetch_add(length, Ordering::Relaxed);
        }
    });
    // Bytes echoed to the flood while the quiet client waits for its echo.
    let mut meanwhile = Vec::new();
    for number in 0..ROUND_TRIPS {
        let text = number.to_string();
        let before = echoed.load(Ordering::Relaxed);
        quiet.send(&text).await;
        quiet.expect(&text).await;
        meanwhile.push(echoed.load(Ordering::Relaxed) - before);
    }
    flood.shutdown(std::net::Shutdown::Both).unwrap();
    writing.join().unwrap();
    reading.join().unwrap();
    let all: usize = meanwhile.iter().sum();
    assert!(all > 1 << 20, "that was no flood: {all} bytes");
    meanwhile.sort();
    let median = meanwhile[ROUND_TRIPS / 2];
    assert!(median < 512 * 1024, "{median} bytes were echoed first");
}
