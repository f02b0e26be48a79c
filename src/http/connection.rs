//! One HTTP/1.1 connection: its requests, one after the other, until it closes or becomes a client.

use std::convert::Infallible;
use std::error::Error as _;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::OptionFuture;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::select;
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::exchange::Exchange;
use super::head::{HEAD_MAX, explain};
use super::idle::IdleConnections;
use super::phase::{Joined, Link};
use super::refusal::Refusal;
use super::refusal_log::RefusalLog;
use super::routes::Routes;
use super::socket::Socket;
use crate::admission::Grant;
use crate::config::Times;
use crate::hub::Membership;
use crate::transport::write::linger;
use crate::transport::{Peer, Transport};

/// What all HTTP connections of a server share.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    pub(super) routes: Arc<Routes>,
    pub(super) refusals: Arc<RefusalLog>,
    idle: Arc<IdleConnections>,
    times: Times,
    draining: CancellationToken,
}

/// The connection of a client that has joined a room.
#[derive(Debug)]
pub(crate) struct Upgraded<S> {
    /// The stream.
    pub(crate) stream: S,
    /// The client's membership of the room.
    pub(crate) membership: Membership,
    /// What follows on the stream.
    pub(crate) protocol: Protocol,
    /// What the client may do.
    pub(crate) grant: Arc<Grant>,
}

/// What a connection has been upgraded to.
#[derive(Debug)]
pub(crate) enum Protocol {
    /// A WebSocket, whose 101 has been written.
    WebSocket {
        /// What was read behind the request.
        ahead: Vec<u8>,
    },
    /// An event stream.
    EventStream {
        /// The head of the answer, which is still to be written.
        head: Bytes,
    },
}

impl Http {
    /// Answers by `routes`, and refuses new requests once `draining` is cancelled.
    pub(crate) fn new(routes: Arc<Routes>, times: Times, draining: CancellationToken) -> Self {
        Self {
            routes,
            refusals: Arc::default(),
            idle: Arc::default(),
            times,
            draining,
        }
    }

    /// Closes the connection that has been idle between requests for longest; returns whether there was
    /// one.
    pub(crate) fn evict_idle(&self) -> bool {
        self.idle.evict_longest()
    }

    /// Serves the requests of `peer` until the connection closes, or is that of a client that has joined
    /// a room. A connection without a permit of `--max-connections` has an `eviction`: it cannot join,
    /// has one request, and is evicted once that ends.
    pub(crate) async fn serve<S: Transport>(
        self,
        stream: S,
        peer: Peer,
        eviction: Option<oneshot::Receiver<Infallible>>,
    ) -> Option<Upgraded<S>> {
        let has_permit = eviction.is_none();
        let link = Arc::new(Link::new(has_permit.then(|| self.idle.clone())));
        let exchange = Exchange::new(&self, &link, peer, has_permit);
        let mut evicted = pin!(OptionFuture::from(eviction).fuse());
        let patience = self.times.write_timeout.get();
        let mut connection = http1::Builder::new()
            .max_buf_size(HEAD_MAX)
            // A peer that has half-closed behind its request still gets the answer.
            .half_close(true)
            .keep_alive(has_permit)
            .header_read_timeout(None)
            .serve_connection(
                TokioIo::new(Socket::new(stream, link.clone(), patience)),
                exchange,
            );

        let ended = {
            let mut overdue = pin!(link.overdue(self.times.open_timeout.get()));
            let mut place_needed = pin!(link.evicted.notified().fuse());
            let draining = async {
                self.draining.cancelled().await;
                // The runtime reports what has arrived and was not noticed yet.
                yield_now().await;
            };
            let mut draining = pin!(draining.fuse());
            loop {
                select! {
                    biased;
                    served = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break match served {
                        Ok(()) => Ended::Served,
                        Err(error) if error.is_parse() && !link.is_answering() => {
                            Ended::Malformed { is_too_large: error.is_parse_too_large() }
                        }
                        Err(error) if is_stalled(&error) => Ended::Stalled,
                        Err(_) => Ended::Served,
                    },
                    Some(_) = &mut evicted => break Ended::Evicted,
                    () = &mut draining => match link.awaits_request() {
                        true => break Ended::Draining,
                        // What is being answered is answered to the end.
                        false => Pin::new(&mut connection).graceful_shutdown(),
                    },
                    () = &mut place_needed => match link.is_idle() {
                        true => return None,
                        false => Pin::new(&mut connection).graceful_shutdown(),
                    },
                    () = &mut overdue => break Ended::Overdue,
                }
            }
        };
        let is_answered = link.is_answering();
        let head = link.take_head();
        let parts = connection.into_parts();
        let Socket { mut stream, .. } = parts.io.into_inner();
        if let Some(joined) = link.take_joined() {
            let Joined {
                membership,
                grant,
                head,
            } = *joined;
            let protocol = match head {
                None => Protocol::WebSocket {
                    ahead: parts.read_buf.to_vec(),
                },
                Some(head) => Protocol::EventStream { head },
            };
            return Some(Upgraded {
                stream,
                membership,
                protocol,
                grant,
            });
        }
        // The answer to HEAD has no body (RFC 9110, section 9.3.2).
        let is_head = head.as_ref().is_some_and(|it| it.starts_with(b"HEAD "));
        let refusal = match ended {
            Ended::Malformed { is_too_large } => {
                Some(explain(&head.unwrap_or_default(), is_too_large))
            }
            Ended::Evicted if !is_answered => Some(Refusal::full()),
            // A connection that asks for nothing is closed in silence: a browser has some in reserve, and
            // would take what came unasked for the answer to its next request.
            Ended::Draining => head.map(|_| Refusal::draining()),
            Ended::Overdue => head.map(|_| Refusal::timed_out()),
            Ended::Evicted | Ended::Served | Ended::Stalled => None,
        };
        let answer = refusal.map_or_else(Vec::new, |refusal| {
            self.refusals.record(&refusal, peer, None);
            refusal.last_response(!is_head)
        });
        if matches!(ended, Ended::Evicted | Ended::Stalled) {
            let write = async {
                stream.write_all(&answer).await?;
                stream.flush().await
            };
            write.now_or_never();
            return None;
        }
        let close = async {
            stream.write_all(&answer).await.ok();
            linger(&mut stream).await;
        };
        select! {
            () = close => {}
            () = sleep(self.times.close_timeout.get()) => {}
            Some(_) = evicted => {}
        }
        None
    }
}

/// Whether [`Socket`] gave a write up.
fn is_stalled(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|it| it.downcast_ref::<io::Error>());
    cause.is_some_and(|it| it.kind() == io::ErrorKind::TimedOut)
}

/// How the HTTP of a connection ended.
enum Ended {
    /// By the peer, behind the last answer, or by an error.
    Served,
    /// As the peer took nothing of an answer for the write timeout.
    Stalled,
    /// With bytes that are not a request.
    Malformed { is_too_large: bool },
    /// At a drain, before a request was complete.
    Draining,
    /// Without a request, or with an incomplete one, for the open timeout.
    Overdue,
    /// By eviction, as it has no permit.
    Evicted,
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};
    use std::time::Duration;

    use tokio::io::{AsyncRead, AsyncReadExt, duplex};
    use tokio::task::JoinHandle;
    use tokio::time::{Instant, timeout};
    use tracing::Span;

    use super::*;
    use crate::admission::Admission;
    use crate::client::Settings;
    use crate::client::budget::Budget;
    use crate::client::session::Session;
    use crate::config::{Config, Mode};
    use crate::hub::Hub;
    use crate::room::reader::{Part, Piece};
    use crate::room::{Behaviour, Follow};
    use crate::store::Store;
    use crate::transport::Stream;
    use crate::transport::doubles::{Buffered, tcp_pair};

    const PEER: Peer = Peer::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1));

    /// A broadcast server without sockets.
    struct Server {
        http: Http,
        settings: Arc<Settings>,
        hub: Arc<Hub>,
        budget: Arc<Budget>,
    }

    impl Server {
        fn new() -> Self {
            Self::with(Grant::ALL)
        }

        /// With this grant for each client.
        fn with(grant: Grant) -> Self {
            let config = Config::with(|config| config.service.mode = Mode::Broadcast);
            let settings = Arc::new(Settings::from(&config));
            let hub = Hub::new(&config, Store::memory());
            let budget = Arc::new(Budget::new(1 << 20, Duration::from_secs(1)));
            let routes = Routes::new(
                settings.clone(),
                hub.clone(),
                budget.clone(),
                Admission::new(&config.access, "localhost", false).granting(grant),
                CancellationToken::new(),
            );
            Self {
                http: Http::new(Arc::new(routes), config.times, CancellationToken::new()),
                settings,
                hub,
                budget,
            }
        }

        /// Serves a connection: its requests, and then its WebSocket.
        fn serve(&self, stream: impl Transport + Send + Sync + 'static) -> JoinHandle<()> {
            let http = self.http.clone();
            let (settings, budget) = (self.settings.clone(), self.budget.clone());
            tokio::spawn(async move {
                if let Some(it) = http.serve(stream, PEER, None).await {
                    let Protocol::WebSocket { ahead } = it.protocol else {
                        panic!("no WebSocket");
                    };
                    let span = Span::none();
                    let mut session = Session::new(
                        it.stream,
                        ahead,
                        it.membership,
                        it.grant,
                        settings,
                        budget,
                        span,
                    );
                    session.run().await;
                }
            })
        }
    }

    /// Reads until `end` has come; returns all that was read.
    async fn read_up_to(stream: &mut (impl AsyncRead + Unpin), end: &[u8]) -> Vec<u8> {
        let mut read = Vec::new();
        let complete = async {
            while !read.ends_with(end) {
                read.push(stream.read_u8().await.unwrap());
            }
        };
        let complete = timeout(Duration::from_secs(10), complete).await;
        let shown = || String::from_utf8_lossy(&read).into_owned();
        complete.unwrap_or_else(|_| panic!("no {end:?} behind {:?}", shown()));
        read
    }

    const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
        Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    #[tokio::test]
    async fn what_a_stream_holds_back_waits_for_no_further_packet() {
        let head = "HEAD /readyz HTTP/1.1\r\nHost: x\r\n\r\n";
        let post = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody";
        let mut sent = format!("{head}{post}{UPGRADE}").into_bytes();
        let frames: [&[u8]; 4] = [
            b"\x81\x83\0\0\0\0one",
            b"\x89\x83\0\0\0\0two",
            b"\x81\x83\0\0\0\0six",
            b"\x81\x83\0\0\0\0ten",
        ];
        sent.extend(frames.concat());
        for record in [1, 9, 64, 4096] {
            let server = Server::new();
            let (stream, mut peer) = tcp_pair().await;
            let served = server.serve(Buffered::new(stream, record));
            peer.write_all(&sent).await.unwrap();
            read_up_to(&mut peer, b"\x81\x0eBroadcast: ten").await;
            // A ping alone: its answer is flushed, too.
            peer.write_all(b"\x89\x83\0\0\0\0end").await.unwrap();
            read_up_to(&mut peer, b"\x8a\x03end").await;
            peer.write_all(b"\x88\x82\0\0\0\0\x03\xe8").await.unwrap();
            read_up_to(&mut peer, b"\x88\x02\x03\xe8").await;
            drop(peer);
            served.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_websocket_reads_what_came_during_an_earlier_answer() {
        let post = "POST /?wait=delivered&timeout=0.1 HTTP/1.1\r\nHost: x\r\n\
            Content-Length: 4\r\n\r\nbody";
        let mut sent = format!("{post}{UPGRADE}").into_bytes();
        // More than is read with the requests.
        sent.extend(b"\x82\xfe\xf0\x00\0\0\0\0");
        sent.extend([b'.'; 0xf000]);
        sent.extend(b"\x81\x83\0\0\0\0end");
        for is_buffered in [false, true] {
            let server = Server::new();
            // A client that confirms nothing: the answer has to wait.
            let _silent = server.hub.join("/", Follow::default()).await.unwrap();
            let (stream, mut peer) = tcp_pair().await;
            match is_buffered {
                false => server.serve(Stream::Tcp(stream)),
                true => server.serve(Buffered::new(stream, 4096)),
            };
            let exchange = async {
                peer.write_all(&sent).await.unwrap();
                read_up_to(&mut peer, b"\x81\x0eBroadcast: end").await;
            };
            timeout(Duration::from_secs(10), exchange).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_sends_nothing_of_what_it_took_is_given_up() {
        for upgrades in [false, true] {
            let server = Server::new();
            // What the stream takes, and the pipe does not.
            let (mut peer, stream) = duplex(64);
            let served = server.serve(Buffered::new(stream, 4096));
            let request = match upgrades {
                true => UPGRADE,
                false => "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n",
            };
            for part in request.as_bytes().chunks(32) {
                peer.write_all(part).await.unwrap();
            }
            if upgrades {
                read_up_to(&mut peer, b"\r\n\r\n").await;
                let (mut publisher, stream) = duplex(4096);
                server.serve(stream);
                let head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n";
                publisher.write_all(head.as_bytes()).await.unwrap();
                publisher.write_all(&[b'.'; 500]).await.unwrap();
            }
            let start = Instant::now();
            timeout(Duration::from_secs(60), served)
                .await
                .unwrap()
                .unwrap();
            assert_eq!(start.elapsed(), server.settings.times.write_timeout.get());
        }
    }

    /// A broadcast hub, and the HTTP of its server, with this grant for each client.
    fn http(grant: Grant) -> (Http, Arc<Hub>) {
        let server = Server::with(grant);
        (server.http, server.hub)
    }

    #[tokio::test]
    async fn the_receivers_of_a_post_run_before_the_next_one_is_read() {
        let (http, hub) = http(Grant::ALL);
        let mut receivers = Vec::new();
        for _ in 0..100 {
            receivers.push(hub.join("/", Follow::default()).await.unwrap());
        }
        let (mut client, server) = duplex(1 << 16);
        let post = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi";
        client.write_all(post.repeat(2).as_bytes()).await.unwrap();
        let served = tokio::spawn(http.serve(server, PEER, None));
        let published = tokio::spawn(async move {
            match hub.read("/", Part::Last, 1).await.unwrap().next().await {
                Some(Piece::Messages(_, positions)) => positions.start,
                _ => 0,
            }
        });
        assert_eq!(published.await.unwrap(), 1);
        served.abort();
    }

    /// The status of the answer to a request of a client with this grant.
    async fn status(grant: Grant, line: &str, fields: &str) -> String {
        let (http, hub) = http(grant);
        hub.open_as("/echo", Behaviour::Echo);
        let (mut client, server) = duplex(1 << 16);
        let request = format!("{line} HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let served = tokio::spawn(async move { drop(http.serve(server, PEER, None).await) });
        let mut answer = [0; 12];
        let read = client.read_exact(&mut answer);
        let status = match timeout(Duration::from_secs(10), read).await.unwrap() {
            Ok(_) => String::from_utf8_lossy(&answer[9..]).into_owned(),
            // The event stream writes its own answer.
            Err(_) => "joined".into(),
        };
        served.abort();
        status
    }

    #[tokio::test]
    async fn a_room_and_not_the_server_says_whether_it_takes_a_post() {
        for (line, expected) in [("POST /", "201"), ("POST /echo", "405")] {
            let answer = status(Grant::ALL, line, "Content-Length: 0\r\n").await;
            assert_eq!(answer, expected, "{line}");
        }
    }

    #[tokio::test]
    async fn a_request_without_the_right_is_answered_403() {
        const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        const EVENTS: &str = "Accept: text/event-stream\r\n";
        let reader = Grant {
            may_publish: false,
            ..Grant::ALL
        };
        let publisher = Grant {
            may_read: false,
            ..Grant::ALL
        };
        let expired = Grant {
            until: Some(Instant::now()),
            ..Grant::ALL
        };
        for (line, fields, by_reader, by_publisher) in [
            ("GET /", UPGRADE, "101", "403"),
            ("GET /", EVENTS, "joined", "403"),
            ("HEAD /", EVENTS, "200", "403"),
            ("GET /?history", "", "200", "403"),
            ("HEAD /?history", "", "200", "403"),
            ("POST /", "Content-Length: 0\r\n", "403", "201"),
        ] {
            assert_eq!(status(reader, line, fields).await, by_reader, "{line}");
            assert_eq!(
                status(publisher, line, fields).await,
                by_publisher,
                "{line}"
            );
            assert_eq!(status(expired, line, fields).await, "403", "{line}");
        }
        for (line, expected) in [
            ("GET /", "200"),
            ("OPTIONS /", "204"),
            ("GET /livez", "200"),
        ] {
            assert_eq!(status(Grant::NONE, line, "").await, expected, "{line}");
        }
    }

    #[tokio::test]
    async fn earlier_answers_are_written_before_an_event_stream_takes_over() {
        // So small a window that no answer is written at once.
        let (client, stream) = duplex(64);
        let (mut answers, mut requests) = tokio::io::split(client);
        let served = tokio::spawn(Server::new().http.serve(stream, PEER, None));
        let head = "HEAD /readyz HTTP/1.1\r\nHost: x\r\n\r\n";
        let events = "GET / HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n";
        let pipelined = format!("{head}{head}{events}");
        let exchange = async {
            requests.write_all(pipelined.as_bytes()).await.unwrap();
            read_up_to(&mut answers, b"\r\n\r\n").await;
            read_up_to(&mut answers, b"\r\n\r\n").await;
        };
        timeout(Duration::from_secs(10), exchange).await.unwrap();
        let protocol = served.await.unwrap().unwrap().protocol;
        assert!(matches!(protocol, Protocol::EventStream { head } if !head.is_empty()));
    }
}
