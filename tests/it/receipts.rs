//! What it costs that many publishers wait for receipts.

use std::fs;

use crate::harness::*;
use crate::process::Process;

/// CPU time that a process has used, in clock ticks.
fn cpu_ticks(server: &Process) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.id())).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<_> = fields.split(' ').collect();
    // proc_pid_stat(5): utime and stime, the 14th and the 15th field.
    let ticks = |field: usize| fields[field - 3].parse::<u64>().unwrap();
    ticks(14) + ticks(15)
}

/// CPU time of as many posts, each on a connection of its own that stays open.
async fn ticks_of_posts(server: &Process, posts: usize, query: &str) -> u64 {
    let mut follower = Client::connect(server.address, "/").await.unwrap().0;
    let mut publishers = Vec::new();
    for _ in 0..posts {
        publishers.push(RawClient::connect(server.address).await);
    }
    let post = format!("POST /{query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx");
    let before = cpu_ticks(server);
    for publisher in &mut publishers {
        publisher.send(&post).await;
    }
    for _ in 0..posts {
        follower.expect("x").await;
    }
    cpu_ticks(server) - before
}

async fn waiting_costs_no_work_for_each_client(clients: usize, posts: usize) {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let server = Process::start(
        "--mode broadcast --welcome= --prefix= --history-limit 0 --ping-interval 0 --max-queue 10000",
    )
    .await;
    // They read nothing, so that no receipt comes.
    let mut silent = Vec::new();
    for _ in 0..clients {
        let mut client = RawClient::connect(server.address).await;
        client.upgrade("/").await;
        silent.push(client);
    }
    // The first round differs in how many messages a client gets at once.
    ticks_of_posts(&server, posts, "").await;
    let plain = ticks_of_posts(&server, posts, "").await;
    let waiting = ticks_of_posts(&server, posts, "?wait=delivered&timeout=60").await;
    println!("{posts} posts to {clients} clients: {plain} ticks, {waiting} ticks where they wait");
    // For each client and each waiting publisher it was more than six times as much.
    assert!(waiting <= 3 * plain, "{waiting} ticks instead of {plain}");
    drop(silent);
}

#[tokio::test]
async fn a_wait_for_receipts_costs_no_work_for_each_client() {
    waiting_costs_no_work_for_each_client(400, 1500).await;
}

#[tokio::test]
#[ignore = "long: 2,500 clients and as many publishers"]
async fn a_wait_for_receipts_costs_no_work_for_each_of_2500_clients() {
    waiting_costs_no_work_for_each_client(2500, 2500).await;
}
