//! Receipts under load: what many waiting publishers cost, and whom they delay.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, interval, timeout};

use crate::harness::*;
use crate::process::{Process, wscast};

/// Clients that read nothing, so that they acknowledge nothing.
async fn silent_clients(server: SocketAddr, count: usize) -> Vec<RawClient> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = RawClient::connect(server).await;
        client.upgrade("/").await;
        clients.push(client);
    }
    clients
}

/// Publishes on `count` connections, each of which then waits for receipts.
async fn posts(server: SocketAddr, count: usize, limit: &str) -> Vec<RawClient> {
    let wait = if std::env::var("NOWAIT").is_ok() {
        "?x"
    } else {
        "?wait=delivered"
    };
    let request = format!(
        "POST /{wait}&timeout={limit} HTTP/1.1\r\nHost: localhost\r\n\
         Connection: close\r\nContent-Length: 4\r\n\r\npost"
    );
    let mut publishers = Vec::new();
    let pace: u64 = std::env::var("PACE").map_or(0, |it| it.parse().unwrap());
    let start = Instant::now();
    for i in 0..count {
        if pace > 0 {
            tokio::time::sleep_until(start + Duration::from_micros(pace * i as u64)).await;
        }
        let mut publisher = RawClient::connect(server).await;
        publisher.send(&request).await;
        publishers.push(publisher);
    }
    publishers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: 2,500 clients and as many publishers"]
async fn thousands_of_publishers_that_wait_for_silent_clients_delay_no_other_client() {
    let count: usize = std::env::var("COUNT").map_or(2500, |it| it.parse().unwrap());
    let mut command = match std::env::var("WSCAST_BINARY") {
        Ok(path) => {
            let mut command = tokio::process::Command::new(path);
            command.args("--host 127.0.0.1 --port 0 --mode broadcast --ping-interval 0".split(' '));
            command
                .env_clear()
                .stdin(std::process::Stdio::null())
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::piped())
                .kill_on_drop(true);
            command
        }
        Err(_) => wscast("--host 127.0.0.1 --port 0 --mode broadcast --ping-interval 0"),
    };
    command.env("WSCAST_WELCOME", "");
    let server = Process::spawn(command).await;
    let address = server.address;
    let silent = silent_clients(address, count).await;
    let mut sender = Client::connect(address, "/").await.unwrap().0;
    let mut receiver = Client::connect(address, "/").await.unwrap().0;
    let receive = tokio::spawn(async move {
        loop {
            sender_drain(&mut receiver).await;
        }
    });
    let cpu = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.id())).unwrap();
        let fields: Vec<_> = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .collect();
        (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) as f64 / 100.0
    };
    let before = cpu();
    let start = Instant::now();
    let publishing = tokio::spawn(async move {
        let it = posts(address, count, "5").await;
        eprintln!("posted after {:?}", start.elapsed());
        it
    });
    let mut tick = interval(Duration::from_millis(
        std::env::var("TICK").map_or(100, |it| it.parse().unwrap()),
    ));
    let mut times = Vec::new();
    while start.elapsed() < Duration::from_secs(4) || !publishing.is_finished() {
        tick.tick().await;
        let sent = Instant::now();
        let text = format!("probe {}", times.len());
        sender.send(&text).await;
        while sender.next_text().await != format!("Broadcast: {text}") {}
        times.push(sent.elapsed());
    }
    eprintln!("cpu {:.2} after {:?}", cpu() - before, start.elapsed());
    eprintln!("{times:?}");
    let mut all = publishing.await.unwrap();
    let last = timeout(PATIENCE, all[count - 1].answer()).await.unwrap();
    eprintln!("{last:?} after {:?}", start.elapsed());
    let mut worst = times.clone();
    worst.sort();
    eprintln!(
        "worst {:?}, median {:?}, cpu {:.2}",
        worst.last().unwrap(),
        worst[worst.len() / 2],
        cpu() - before
    );
    receive.abort();
    drop(silent);
}

async fn sender_drain(client: &mut Client) {
    client.next_text().await;
}
