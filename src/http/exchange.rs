//! One HTTP/1 exchange on the WebSocket port, and the hand-over of an upgraded connection.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::OptionFuture;
use httpdate::fmt_http_date;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::select;
use tokio::sync::oneshot;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::head::{HEAD_MAX, explain};
use super::progress::{Handover, HeadRecorder, Progress, State};
use super::refusal::Refusal;
use super::refusal_log::RefusalLog;
use super::response::Body;
use super::routes::{Answer, Join, Routes};
use crate::excerpt::excerpt;
use crate::format::Format;
use crate::hub::Membership;
use crate::transport::write::linger;

/// What all HTTP exchanges of a server share.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    routes: Arc<Routes>,
    refusals: Arc<RefusalLog>,
    open_timeout: Duration,
    close_timeout: Duration,
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
    /// The name of the room.
    pub(crate) room: String,
    /// The client's membership of the room.
    pub(crate) membership: Membership,
}

impl Http {
    /// Answers by `routes`, and refuses new requests once `draining` is cancelled.
    pub(crate) fn new(
        routes: Arc<Routes>,
        open_timeout: Duration,
        close_timeout: Duration,
        draining: CancellationToken,
    ) -> Self {
        Self {
            routes,
            refusals: Arc::default(),
            open_timeout,
            close_timeout,
            draining,
        }
    }

    /// Serves one request of `peer`, which has to be complete within `--open-timeout`; returns the
    /// connection if the client has joined a room, and closes it otherwise. A connection without a
    /// permit of `--max-connections` has an `eviction`: it cannot join, and is evicted once that ends.
    pub(crate) async fn serve<S>(
        self,
        stream: S,
        peer: SocketAddr,
        eviction: Option<oneshot::Receiver<Infallible>>,
    ) -> Option<Upgraded<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let progress = Progress::default();
        let exchange = Exchange {
            routes: self.routes,
            refusals: self.refusals.clone(),
            peer,
            has_permit: eviction.is_none(),
            progress: progress.clone(),
        };
        let mut evicted = pin!(OptionFuture::from(eviction).fuse());
        let mut connection = http1::Builder::new()
            .max_buf_size(HEAD_MAX)
            // A peer that has half-closed behind its request still gets the answer.
            .half_close(true)
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(HeadRecorder::new(stream, &progress)), exchange);

        let mut served = pin!(poll_fn(|cx| match connection.poll_without_shutdown(cx) {
            // hyper writes no answer here: the event stream writes it.
            Poll::Pending if progress.is_handed_over() => Poll::Ready(Ok(())),
            served => served,
        }));
        let ended = select! {
            biased;
            served = &mut served => match served {
                Err(error) if error.is_parse() && progress.is_reading_head() => {
                    Ended::Malformed { is_too_large: error.is_parse_too_large() }
                }
                _ => Ended::Served,
            },
            Some(_) = &mut evicted => Ended::Evicted,
            () = self.draining.cancelled() => Ended::Early(draining()),
            () = sleep(self.open_timeout) => Ended::Early(timed_out()),
        };
        // A request that is being answered is answered to the end.
        let answered = progress.allowance();
        match (answered, &ended) {
            (Some(more), Ended::Early(_)) => select! {
                _ = served => {}
                () = sleep(self.open_timeout + more) => return None,
                Some(_) = &mut evicted => return None,
            },
            (Some(_), Ended::Evicted) => return None,
            _ => {}
        }

        let parts = connection.into_parts();
        let HeadRecorder {
            mut stream, bytes, ..
        } = parts.io.into_inner();
        if let State::HandedOver(handover) = std::mem::take(&mut *progress.0.lock()) {
            return Some(Upgraded {
                stream,
                ahead: parts.read_buf.to_vec(),
                head: handover.head,
                room: handover.room,
                membership: handover.membership,
            });
        }
        let is_evicted = matches!(ended, Ended::Evicted);
        let refusal = match ended {
            Ended::Early(refusal) if answered.is_none() => Some(refusal),
            Ended::Malformed { is_too_large } => Some(explain(&bytes, is_too_large)),
            Ended::Evicted => Some(full()),
            _ => None,
        };
        let answer = refusal.map(|refusal| {
            self.refusals.record(&refusal, peer, None);
            encode_refusal(&refusal)
        });
        let answer = answer.unwrap_or_default();
        if is_evicted {
            stream.write_all(&answer).now_or_never();
            return None;
        }
        let close = async {
            stream.write_all(&answer).await.ok();
            linger(&mut stream).await;
        };
        select! {
            () = close => {}
            () = sleep(self.close_timeout) => {}
            Some(_) = evicted => {}
        }
        None
    }
}

/// How an exchange ended.
enum Ended {
    /// With an answer, or with the connection.
    Served,
    /// With bytes that are not a request.
    Malformed { is_too_large: bool },
    /// Before the request was complete.
    Early(Refusal),
    /// By eviction, as it has no permit.
    Evicted,
}

fn full() -> Refusal {
    Refusal::unavailable("no place left, try again later")
}

fn draining() -> Refusal {
    Refusal::unavailable("the server is shutting down")
}

fn timed_out() -> Refusal {
    Refusal::new(StatusCode::REQUEST_TIMEOUT, "the request took too long")
}

/// The bytes of a refusal, for a socket that hyper has not written to.
fn encode_refusal(refusal: &Refusal) -> Vec<u8> {
    let Ok(response) = refusal.response() else {
        return Vec::new();
    };
    let mut answer = head_of(&response);
    answer.extend_from_slice(refusal.line().as_bytes());
    answer
}

/// One exchange, as hyper sees it.
struct Exchange {
    routes: Arc<Routes>,
    refusals: Arc<RefusalLog>,
    peer: SocketAddr,
    has_permit: bool,
    progress: Progress,
}

type Answering = dyn Future<Output = hyper::http::Result<Response<Body>>> + Send;

impl Service<Request<Incoming>> for Exchange {
    type Response = Response<Body>;
    type Error = hyper::http::Error;
    type Future = Pin<Box<Answering>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (routes, progress) = (self.routes.clone(), self.progress.clone());
        let has_permit = self.has_permit;
        let (refusals, peer) = (self.refusals.clone(), self.peer);
        *progress.0.lock() = State::ReadingBody;
        Box::pin(async move {
            let answering = |time| *progress.0.lock() = State::Answering(time);
            let (method, uri) = (request.method().clone(), request.uri().clone());
            let answer = match routes.answer(request, has_permit, answering).await {
                Ok(answer) => answer,
                Err(refusal) => {
                    // Without the query, which may hold a secret.
                    let request = format!("{method} {}", uri.path());
                    refusals.record(&refusal, peer, Some(&excerpt(request.as_bytes())));
                    Answer::Response(refusal.response())
                }
            };
            match answer {
                Answer::Response(response) => {
                    answering(Duration::ZERO);
                    response
                }
                Answer::Join(join) => {
                    let Join {
                        response,
                        room,
                        membership,
                        unknown_protocols,
                    } = *join;
                    let response = response?;
                    if let Some(protocols) = unknown_protocols {
                        info!(%peer, "unknown subprotocols are ignored: {protocols:?}");
                    }
                    let is_websocket = membership.subscription.format() != Format::EventStream;
                    let head = match is_websocket {
                        true => Bytes::new(),
                        false => head_of(&response).into(),
                    };
                    *progress.0.lock() = State::HandedOver(Box::new(Handover {
                        room,
                        membership,
                        head,
                    }));
                    if !is_websocket {
                        return pending().await;
                    }
                    Ok(response)
                }
            }
        })
    }
}

/// The bytes of the head of `response`, for a socket that hyper does not write to (RFC 9112, section
/// 4).
fn head_of(response: &Response<Body>) -> Vec<u8> {
    let date = fmt_http_date(SystemTime::now());
    let mut head = format!("HTTP/1.1 {}\r\ndate: {date}\r\n", response.status()).into_bytes();
    for (name, value) in response.headers() {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}
