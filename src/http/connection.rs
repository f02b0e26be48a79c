//! One HTTP/1.1 connection: its requests, one after the other, until it closes or becomes a client.

use std::convert::Infallible;
use std::error::Error as _;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
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
use crate::transport::Transport;
use crate::transport::write::linger;

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
    /// The stream: of a WebSocket behind the 101, of an event stream before the head of the answer.
    pub(crate) stream: S,
    /// What was read behind the request.
    pub(crate) ahead: Vec<u8>,
    /// The head of the answer, if it is still to be written.
    pub(crate) head: Bytes,
    /// The client's membership of the room.
    pub(crate) membership: Membership,
    /// What the client may do.
    pub(crate) grant: Grant,
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
        peer: SocketAddr,
        eviction: Option<oneshot::Receiver<Infallible>>,
    ) -> Option<Upgraded<S>> {
        let link = Arc::new(Link::new(self.idle.clone()));
        let has_permit = eviction.is_none();
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
            let mut draining = pin!(self.draining.cancelled().fuse());
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
                head,
                membership,
                grant,
            } = *joined;
            return Some(Upgraded {
                stream,
                ahead: parts.read_buf.to_vec(),
                head,
                membership,
                grant,
            });
        }
        let refusal = match ended {
            Ended::Malformed { is_too_large } => {
                Some(explain(&head.unwrap_or_default(), is_too_large))
            }
            Ended::Draining => Some(Refusal::draining()),
            Ended::Evicted if !is_answered => Some(Refusal::full()),
            // A connection that asks for nothing is closed in silence.
            Ended::Overdue => head.map(|_| Refusal::timed_out()),
            Ended::Evicted | Ended::Served | Ended::Stalled => None,
        };
        let answer = refusal.map_or_else(Vec::new, |refusal| {
            self.refusals.record(&refusal, peer, None);
            refusal.last_response()
        });
        if matches!(ended, Ended::Evicted | Ended::Stalled) {
            stream.write_all(&answer).now_or_never();
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
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, duplex};
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::admission::Admission;
    use crate::client::Settings;
    use crate::client::budget::Budget;
    use crate::config::{Config, Mode};
    use crate::hub::Hub;
    use crate::room::reader::{Part, Piece};
    use crate::room::{Behaviour, Follow};
    use crate::store::Store;

    /// A broadcast hub, and the HTTP of its server, with this grant for each client.
    fn http(grant: Grant) -> (Http, Arc<Hub>) {
        let config = Config::with(|config| config.service.mode = Mode::Broadcast);
        let hub = Arc::new(Hub::new(&config, Store::memory()));
        let routes = Routes::new(
            Arc::new(Settings::from(&config)),
            hub.clone(),
            Arc::new(Budget::new(1 << 20, Duration::from_secs(1))),
            Admission::new(&config.access, "localhost", false).granting(grant),
            CancellationToken::new(),
        );
        let http = Http::new(Arc::new(routes), config.times, CancellationToken::new());
        (http, hub)
    }

    #[tokio::test]
    async fn the_receivers_of_a_post_run_before_the_next_one_is_read() {
        let (http, hub) = http(Grant::ALL);
        let join = |_| hub.join("/", Follow::default()).unwrap();
        let _receivers: Vec<_> = (0..100).map(join).collect();
        let (mut client, server) = duplex(1 << 16);
        let post = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi";
        client.write_all(post.repeat(2).as_bytes()).await.unwrap();
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let served = tokio::spawn(http.serve(server, peer, None));
        let published = tokio::spawn(async move {
            match hub.read("/", Part::Last, 1).next() {
                Some(Piece::Messages(_, seqs)) => seqs.start,
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
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let served = tokio::spawn(async move { drop(http.serve(server, peer, None).await) });
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
        let (client, server) = duplex(64);
        let (mut answers, mut requests) = tokio::io::split(client);
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let served = tokio::spawn(http(Grant::ALL).0.serve(server, peer, None));
        let head = "HEAD /readyz HTTP/1.1\r\nHost: x\r\n\r\n";
        let events = "GET / HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n";
        let pipelined = format!("{head}{head}{events}");
        let exchange = async {
            requests.write_all(pipelined.as_bytes()).await.unwrap();
            let mut read = Vec::new();
            while read.windows(4).filter(|it| it == b"\r\n\r\n").count() < 2 {
                read.push(answers.read_u8().await.unwrap());
            }
        };
        timeout(Duration::from_secs(10), exchange).await.unwrap();
        assert!(!served.await.unwrap().unwrap().head.is_empty());
    }
}
