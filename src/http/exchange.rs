//! One request and its answer, as hyper asks for it.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderValue};
use hyper::service::Service;
use hyper::{Request as HyperRequest, Response};
use tracing::info;

use super::connection::Http;
use super::cors::Cors;
use super::phase::{BusyGuard, Joined, Link};
use super::refusal::{Refusal, head_of};
use super::refusal_log::RefusalLog;
use super::request::Request;
use super::response::Body;
use super::routes::{Answer, Join, Routes, retry_later};
use crate::excerpt::excerpt;
use crate::transport::Peer;

/// Answers the requests of one connection.
#[derive(Debug, Clone)]
pub(super) struct Exchange {
    routes: Arc<Routes>,
    refusals: Arc<RefusalLog>,
    link: Arc<Link>,
    peer: Peer,
    has_permit: bool,
}

/// hyper's part of the connection ends without an answer: the event stream writes it.
#[derive(Debug, thiserror::Error)]
#[error("an event stream writes its own answer")]
pub(super) struct HandedOver;

impl Exchange {
    pub(super) fn new(http: &Http, link: &Arc<Link>, peer: Peer, has_permit: bool) -> Self {
        Self {
            routes: http.routes.clone(),
            refusals: http.refusals.clone(),
            link: link.clone(),
            peer,
            has_permit,
        }
    }

    async fn answer(&self, request: HyperRequest<Incoming>) -> Result<Response<Body>, HandedOver> {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let request = Request::new(head, &body);
        let (cors, answer) = match self.routes.admit(&request) {
            Ok((cors, grant)) => {
                let answer =
                    self.routes
                        .answer(&request, &grant, body, self.has_permit, &self.link);
                (cors, answer.await)
            }
            Err(refusal) => (Cors::default(), Err(refusal)),
        };
        let mut response = match answer {
            Ok(Answer::Response(response)) => response,
            Ok(Answer::WebSocket(join)) => return Ok(self.upgrade(*join, cors)),
            Ok(Answer::EventStream(join)) => return Err(self.hand_over(*join, cors)),
            Err(refusal) => {
                // Without the query, which may hold a secret.
                let line = format!("{} {path}", request.method);
                let line = excerpt(line.as_bytes());
                self.refusals.record(&refusal, self.peer, Some(&line));
                refuse(&request, &refusal)
            }
        };
        cors.add_to(&mut response);
        Ok(response)
    }

    /// Hands the connection over to a WebSocket; returns its 101, which hyper writes.
    fn upgrade(&self, join: Join, cors: Cors) -> Response<Body> {
        let Join {
            mut response,
            membership,
            grant,
            unknown_protocols,
        } = join;
        cors.add_to(&mut response);
        if let Some(protocols) = unknown_protocols {
            info!(peer = %self.peer, "unknown subprotocols are ignored: {protocols:?}");
        }
        let head = None;
        self.link.join(Joined {
            membership,
            grant,
            head,
        });
        response
    }

    /// Hands the connection over to an event stream, which writes the head of the answer itself.
    fn hand_over(&self, join: Join, cors: Cors) -> HandedOver {
        let Join {
            mut response,
            membership,
            grant,
            ..
        } = join;
        cors.add_to(&mut response);
        // hyper has written all earlier answers: it calls for the next one only then.
        let head = Some(head_of(&response).into());
        self.link.join(Joined {
            membership,
            grant,
            head,
        });
        HandedOver
    }
}

/// The answer that refuses `request`.
fn refuse(request: &Request, refusal: &Refusal) -> Response<Body> {
    if let Some(time) = refusal.retry_after()
        && request.is_of_event_source()
    {
        return retry_later(refusal, time);
    }
    let mut response = refusal.response();
    if request.has_body {
        // The rest of the body is not read.
        let close = HeaderValue::from_static("close");
        response.headers_mut().append(header::CONNECTION, close);
    }
    response
}

impl Service<HyperRequest<Incoming>> for Exchange {
    type Response = Response<Answering>;
    type Error = HandedOver;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answering>, HandedOver>> + Send>>;

    fn call(&self, request: HyperRequest<Incoming>) -> Self::Future {
        let (this, guard) = (self.clone(), self.link.begin());
        Box::pin(async move {
            let response = this.answer(request).await?;
            Ok(response.map(|body| Answering {
                body,
                _guard: guard,
            }))
        })
    }
}

/// The body of an answer, which is complete when hyper drops it.
#[derive(Debug)]
pub(super) struct Answering {
    body: Body,
    _guard: BusyGuard,
}

impl hyper::body::Body for Answering {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
