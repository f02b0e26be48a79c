//! Clients that publish as fast as a server takes it, until it ends, and note what they saw.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt, stream};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Client, PATIENCE, eventually};

/// Epoch and sequence number.
pub(crate) type Id = (u64, u64);

/// The rooms, by index.
pub(crate) const ROOMS: [&str; 3] = ["/", "/lobby", "/lobby/2"];

/// Clients of each room that publish by WebSocket, and those that POST.
const TALKERS: usize = 2;
const POSTERS: usize = 2;

/// Messages that a WebSocket has under way.
const WINDOW: usize = 64;

/// A message that a client has got, or the answer to a POST.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) room: usize,
    pub(crate) id: Id,
    pub(crate) text: String,
    pub(crate) at: Instant,
}

/// What clients have noted.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    pub(crate) seen: Vec<Seen>,
    /// Room and text of POSTs that had no answer; the text is their key.
    pub(crate) unanswered: Vec<(usize, String)>,
    /// The last message that the follower of each room has got.
    pub(crate) followed: [Id; ROOMS.len()],
}

/// A client that follows a room over many lives of its server.
pub(crate) struct Follower {
    pub(crate) client: Client,
    pub(crate) room: usize,
    /// The last message that it has got.
    pub(crate) last: Id,
}

pub(crate) fn parse(id: &Value) -> Id {
    let (epoch, seq) = id.as_str().unwrap().split_once('-').unwrap();
    (epoch.parse().unwrap(), seq.parse().unwrap())
}

/// Clients of all rooms.
pub(crate) struct Load {
    running: JoinSet<Noted>,
    count: Arc<AtomicUsize>,
}

impl Load {
    /// Has `followers` go on, and others publish; `name` is new for each load.
    pub(crate) async fn start(address: SocketAddr, name: &str, followers: Vec<Follower>) -> Self {
        let mut load = Self {
            running: JoinSet::new(),
            count: Arc::default(),
        };
        for Follower { client, room, last } in followers {
            let following = talk(
                client,
                room,
                Some(last),
                String::new(),
                0,
                load.count.clone(),
            );
            load.running.spawn(async move {
                let mut noted = following.await;
                noted.followed[room] = noted.seen.last().map_or(last, |it| it.id);
                noted
            });
        }
        for (room, path) in ROOMS.iter().enumerate() {
            for it in 0..TALKERS {
                let mut client = Client::json(address, path).await;
                client.event().await;
                let (name, count) = (format!("{name} talker {room}.{it}"), load.count.clone());
                load.running
                    .spawn(talk(client, room, None, name, WINDOW, count));
            }
            for it in 0..POSTERS {
                let (name, count) = (format!("{name} poster {room}.{it}"), load.count.clone());
                load.running.spawn(post_on(address, room, name, count));
            }
        }
        load
    }

    /// Lets it run for some time, and until some messages were seen.
    pub(crate) async fn run_for(&self, time: Duration) {
        tokio::time::sleep(time).await;
        eventually("messages are published", || {
            self.count.load(Ordering::Relaxed) > 500
        })
        .await;
    }

    /// What was noted, when the server has ended.
    pub(crate) async fn noted(self) -> Noted {
        let noted = timeout(PATIENCE, self.running.join_all()).await;
        let mut all = Noted::default();
        for it in noted.expect("clients notice the end") {
            all.seen.extend(it.seen);
            all.unanswered.extend(it.unanswered);
            for (all, one) in all.followed.iter_mut().zip(it.followed) {
                *all = one.max(*all);
            }
        }
        all
    }
}

/// Reads `room`, from behind `last` on if that is given, to the end of the connection, and has `window` messages of
/// its own under way.
async fn talk(
    mut client: Client,
    room: usize,
    mut last: Option<Id>,
    name: String,
    mut window: usize,
    count: Arc<AtomicUsize>,
) -> Noted {
    let mut noted = Noted::default();
    let (mut sent, mut under_way) = (0, 0);
    loop {
        if under_way <= window / 2 && window > 0 {
            let texts = (under_way..window).map(|_| {
                sent += 1;
                Ok(Message::text(format!("{name}: {sent}")))
            });
            let mut texts = stream::iter(texts);
            if client.websocket.send_all(&mut texts).await.is_err() {
                // What has come is read nevertheless.
                window = 0;
            }
            under_way = window;
        }
        let text = match client.websocket.next().await {
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(_) | Err(_)) | None => return noted,
        };
        let event: Value = serde_json::from_str(&text).unwrap();
        match event["type"].as_str().unwrap() {
            "message" => {}
            "alive" => continue,
            other => panic!("{other} while {name} reads: {event}"),
        }
        let id = parse(&event["id"]);
        if let Some((epoch, seq)) = last {
            assert_eq!(id.1, seq + 1, "{event} after {epoch}-{seq}");
            assert!(id.0 >= epoch, "{event} after {epoch}-{seq}");
        }
        last = Some(id);
        let text = event["text"].as_str().unwrap().to_owned();
        if under_way > 0 && text.starts_with(&name) {
            under_way -= 1;
        }
        noted.seen.push(Seen {
            room,
            id,
            text,
            at: Instant::now(),
        });
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Publishes by POST until that fails.
async fn post_on(address: SocketAddr, room: usize, name: String, count: Arc<AtomicUsize>) -> Noted {
    let poster = Poster::new(address);
    let mut noted = Noted::default();
    for number in 1.. {
        let text = format!("{name}: {number}");
        match poster.post(room, &text).await {
            Some((201, id)) => noted.seen.push(Seen {
                room,
                id,
                text,
                at: Instant::now(),
            }),
            Some((code, _)) => panic!("{code} for {text:?}"),
            None => {
                noted.unanswered.push((room, text));
                break;
            }
        }
        count.fetch_add(1, Ordering::Relaxed);
    }
    noted
}

/// Publishes by POST.
pub(crate) struct Poster {
    client: legacy::Client<legacy::connect::HttpConnector, Full<bytes::Bytes>>,
    address: SocketAddr,
}

impl Poster {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let client = legacy::Client::builder(TokioExecutor::new()).build_http();
        Self { client, address }
    }

    /// Publishes `text` with itself as its key; the code and id of the answer, unless it is 503 or none.
    pub(crate) async fn post(&self, room: usize, text: &str) -> Option<(u16, Id)> {
        let request = hyper::Request::post(format!("http://{}{}", self.address, ROOMS[room]))
            .header("Idempotency-Key", text.replace(' ', "_"))
            .body(Full::from(text.to_owned()))
            .unwrap();
        let answer = timeout(PATIENCE, self.client.request(request)).await;
        let answer = answer.expect("an answer or the end").ok()?;
        let code = answer.status().as_u16();
        let body = answer.into_body().collect().await.ok()?.to_bytes();
        if code == 503 {
            return None;
        }
        let body: Value = serde_json::from_slice(&body).unwrap();
        Some((code, parse(&body["id"])))
    }
}
