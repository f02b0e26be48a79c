//! One HTTP/1 exchange on the WebSocket port, and what becomes of the connection then.

use std::future::{pending, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::select;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::hub::Membership;
use crate::message::Format;
use crate::page::Body;
use crate::routes::{Answer, Join, Routes};
use crate::socket::linger;

/// Bytes that the head of a request may have; hyper answers 431 beyond.
const HEAD_MAX: usize = 16 * 1024;

/// What every HTTP exchange of a server needs to know.
#[derive(Debug, Clone)]
pub struct Http {
    routes: Arc<Routes>,
    open_timeout: Duration,
    close_timeout: Duration,
    draining: CancellationToken,
}

/// A connection on which somebody follows a room from now on.
#[derive(Debug)]
pub struct Guest<S> {
    /// The stream: of a WebSocket right behind the 101, else with nothing written to it yet.
    pub stream: S,
    /// What the client sent right behind its request.
    pub ahead: Vec<u8>,
    /// The head of the answer, where that is still to be written.
    pub head: Bytes,
    /// The name of its room.
    pub room: String,
    /// Its place in that room.
    pub membership: Membership,
}

impl Http {
    /// Answers as `routes` say, and refuses everybody once `draining` is cancelled.
    pub fn new(
        routes: Arc<Routes>,
        open_timeout: Duration,
        close_timeout: Duration,
        draining: CancellationToken,
    ) -> Self {
        Self {
            routes,
            open_timeout,
            close_timeout,
            draining,
        }
    }

    /// Serves one request, which has to be there within `--open-timeout`; returns the connection if
    /// it is that of a guest now, and closes it otherwise. Where the server has no `place` left,
    /// nobody is let in.
    pub async fn serve<S>(self, stream: S, place: bool) -> Option<Guest<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let progress = Progress::default();
        let exchange = Exchange {
            routes: self.routes,
            place,
            progress: progress.clone(),
        };
        let mut connection = http1::Builder::new()
            .max_buf_size(HEAD_MAX)
            // Who has sent a request may close its side, and still gets the answer.
            .half_close(true)
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(Explaining::new(stream, &progress)), exchange);

        let mut served = pin!(poll_fn(|cx| match connection.poll_without_shutdown(cx) {
            // No answer will come from there: it is for the guest to give.
            Poll::Pending if progress.is_taken_over() => Poll::Ready(Ok(())),
            served => served,
        }));
        let interrupted = select! {
            biased;
            // hyper says nothing to a peer that speaks HTTP/2.
            served = &mut served => served
                .is_err_and(|it| it.is_parse() && progress.allowance().is_none())
                .then_some(MALFORMED),
            () = self.draining.cancelled() => Some(DRAINING),
            () = sleep(self.open_timeout) => Some(TIMED_OUT),
        };
        // Once it is being answered, a request is answered to the end.
        let answered = progress.allowance();
        if let (Some(more), Some(_)) = (answered, interrupted)
            && timeout(self.open_timeout + more, served).await.is_err()
        {
            return None;
        }

        let parts = connection.into_parts();
        let Explaining {
            mut stream, words, ..
        } = parts.io.into_inner();
        if let State::Joined(guest) = std::mem::take(&mut *progress.0.lock()) {
            return Some(Guest {
                stream,
                ahead: parts.read_buf.to_vec(),
                head: guest.head,
                room: guest.room,
                membership: guest.membership,
            });
        }
        let close = async {
            if let (None, None, Some(dismissal)) = (answered, words, interrupted) {
                stream.write_all(&dismissal.head_and_body()).await.ok();
            }
            linger(&mut stream).await;
        };
        timeout(self.close_timeout, close).await.ok();
        None
    }
}

/// What is said to a peer without a look at its request: status, with further fields, and reason.
#[derive(Debug, Clone, Copy)]
struct Dismissal(&'static str, &'static str);

const DRAINING: Dismissal = Dismissal(
    "503 Service Unavailable\r\nretry-after: 1",
    "the server is shutting down",
);
const TIMED_OUT: Dismissal = Dismissal("408 Request Timeout", "the request took too long");
const MALFORMED: Dismissal = Dismissal("400 Bad Request", "this is no HTTP/1.1 request");
const URI_TOO_LONG: Dismissal = Dismissal("414 URI Too Long", "the address is too long");
const HEAD_TOO_LARGE: Dismissal = Dismissal(
    "431 Request Header Fields Too Large",
    "the head of a request has at most 16 KiB and 100 fields",
);

impl Dismissal {
    fn head_and_body(self) -> Bytes {
        let Self(status, reason) = self;
        let length = reason.len() + 1;
        format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: text/plain; charset=utf-8\r\n\
             content-length: {length}\r\n\r\n{reason}\n"
        )
        .into()
    }
}

/// A stream on which what hyper answers by itself, without a word, gets a reason.
struct Explaining<S> {
    stream: S,
    progress: Progress,
    /// What is said in the place of hyper's answer, as far as it is not written yet.
    words: Option<Bytes>,
}

impl<S> Explaining<S> {
    fn new(stream: S, progress: &Progress) -> Self {
        Self {
            stream,
            progress: progress.clone(),
            words: None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Explaining<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Explaining<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let status = bytes.get("HTTP/1.1 ".len()..).and_then(<[u8]>::first_chunk);
        if this.words.is_none() && this.progress.allowance().is_none() && status != Some(b"100") {
            let dismissal = match status {
                Some(b"414") => URI_TOO_LONG,
                Some(b"431") => HEAD_TOO_LARGE,
                _ => MALFORMED,
            };
            this.words = Some(dismissal.head_and_body());
        }
        let Some(words) = &mut this.words else {
            return Pin::new(&mut this.stream).poll_write(cx, bytes);
        };
        while !words.is_empty() {
            match ready!(Pin::new(&mut this.stream).poll_write(cx, words))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => words.advance(written),
            }
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// How far an exchange has come, as its two sides know it.
#[derive(Debug, Clone, Default)]
struct Progress(Arc<Mutex<State>>);

#[derive(Debug, Default)]
enum State {
    #[default]
    Reading,
    /// It is being answered, which may take so long.
    Answering(Duration),
    Joined(Box<Joined>),
}

#[derive(Debug)]
struct Joined {
    room: String,
    membership: Membership,
    head: Bytes,
}

impl Progress {
    /// How long the answer may take, once there is to be one.
    fn allowance(&self) -> Option<Duration> {
        match &*self.0.lock() {
            State::Reading => None,
            State::Answering(time) => Some(*time),
            State::Joined(_) => Some(Duration::ZERO),
        }
    }

    /// Whether the guest gives the answer itself.
    fn is_taken_over(&self) -> bool {
        matches!(&*self.0.lock(), State::Joined(guest) if !guest.head.is_empty())
    }
}

/// One exchange, as hyper sees it.
struct Exchange {
    routes: Arc<Routes>,
    place: bool,
    progress: Progress,
}

type Answering = dyn Future<Output = hyper::http::Result<Response<Body>>> + Send;

impl Service<Request<Incoming>> for Exchange {
    type Response = Response<Body>;
    type Error = hyper::http::Error;
    type Future = Pin<Box<Answering>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (routes, progress, place) = (self.routes.clone(), self.progress.clone(), self.place);
        Box::pin(async move {
            let answering = |time| *progress.0.lock() = State::Answering(time);
            let answer = routes.answer(request, place, answering).await;
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
                    } = *join;
                    let response = response?;
                    let is_websocket = membership.subscription.format() != Format::EventStream;
                    let head = match is_websocket {
                        true => Bytes::new(),
                        false => head_of(&response),
                    };
                    *progress.0.lock() = State::Joined(Box::new(Joined {
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

/// The head of `response` as it goes to a socket (RFC 9112, section 4).
fn head_of(response: &Response<Body>) -> Bytes {
    let mut head = format!("HTTP/1.1 {}\r\n", response.status()).into_bytes();
    for (name, value) in response.headers() {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head.into()
}
