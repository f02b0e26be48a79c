//! HTTP on the WebSocket port: routes, the page, and the upgrade.

use std::future::{Ready, poll_fn, ready};
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use data_encoding::BASE64;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap, HeaderName};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::select;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tungstenite::handshake::derive_accept_key;

use crate::config::Config;
use crate::hub::{Hub, JoinError, Membership};
use crate::page::{self, NO_SNIFFING};
use crate::socket::linger;

/// The longest name of a room, in bytes of the path as it was sent.
const ROOM_NAME_MAX: usize = 256;

/// Bytes that the head of a request may have; hyper answers 431 beyond.
const HEAD_MAX: usize = 16 * 1024;

/// Paths that are no rooms.
const HEALTH: &str = "/healthz";
const METRICS: &str = "/metrics";

/// What every HTTP exchange of a server needs to know.
#[derive(Debug, Clone)]
pub struct Http {
    config: Arc<Config>,
    hub: Arc<Hub>,
    draining: CancellationToken,
}

/// A connection that became a WebSocket.
#[derive(Debug)]
pub struct Upgraded<S> {
    /// The stream, right behind the 101.
    pub stream: S,
    /// What the client sent right behind its handshake.
    pub ahead: Vec<u8>,
    /// The name of its room.
    pub room: String,
    /// Its place in that room, taken before the 101 was written.
    pub membership: Membership,
}

impl Http {
    /// Routes into the rooms of `hub`; refuses everybody once `draining` is cancelled.
    pub fn new(config: Arc<Config>, hub: Arc<Hub>, draining: CancellationToken) -> Self {
        Self {
            config,
            hub,
            draining,
        }
    }

    /// Serves one HTTP/1 request within `--open-timeout`; returns the WebSocket if it became one,
    /// and closes the connection otherwise. Where the server has no `place` left, nobody is let in.
    pub async fn serve<S>(self, stream: S, place: bool) -> Option<Upgraded<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let progress = Arc::new(Mutex::new(Progress::Reading));
        let exchange = Exchange {
            http: self.clone(),
            place,
            progress: progress.clone(),
        };
        let mut connection = http1::Builder::new()
            .max_buf_size(HEAD_MAX)
            // Who has sent a request may close its side, and still gets the answer.
            .half_close(true)
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(stream), exchange);

        let open_timeout = self.config.open_timeout.get();
        let mut served = pin!(poll_fn(|cx| connection.poll_without_shutdown(cx)));
        let interrupted = select! {
            biased;
            _ = &mut served => None,
            () = self.draining.cancelled() => Some(DRAINING),
            () = sleep(open_timeout) => Some(TIMED_OUT),
        };
        // Once it is being answered, a request is answered to the end.
        let answered = !matches!(*progress.lock(), Progress::Reading);
        if answered && interrupted.is_some() && timeout(open_timeout, served).await.is_err() {
            return None;
        }

        let parts = connection.into_parts();
        let mut stream = parts.io.into_inner();
        if let Progress::Joined(room, membership) = std::mem::take(&mut *progress.lock()) {
            let ahead = parts.read_buf.to_vec();
            return Some(Upgraded {
                stream,
                ahead,
                room,
                membership,
            });
        }
        let close = async {
            if let (false, Some(refusal)) = (answered, interrupted) {
                stream.write_all(refusal.as_bytes()).await.ok();
            }
            linger(&mut stream).await;
        };
        timeout(self.config.close_timeout.get(), close).await.ok();
        None
    }

    /// Answers `request`; with a 101, also says which room was joined.
    fn route(&self, request: &Request<Incoming>) -> Result<Answer, Refusal> {
        let path = request.uri().path();
        match *request.method() {
            _ if path == METRICS => Err(Refusal::new(
                StatusCode::NOT_FOUND,
                "this path is reserved, and no room",
            )),
            Method::GET | Method::HEAD if path == HEALTH => self.health(),
            Method::GET | Method::HEAD if !path.starts_with('/') => Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                "a path begins with /",
            )),
            Method::GET | Method::HEAD if path.len() > ROOM_NAME_MAX => {
                let reason = "the name of a room has at most 256 bytes";
                Err(Refusal::new(StatusCode::URI_TOO_LONG, reason))
            }
            Method::GET if has_token(request.headers(), header::UPGRADE, "websocket") => {
                let accept = check_handshake(request)?;
                let membership = self.hub.join(path)?;
                let response = Response::builder()
                    .status(StatusCode::SWITCHING_PROTOCOLS)
                    .header(header::CONNECTION, "Upgrade")
                    .header(header::UPGRADE, "websocket")
                    .header(header::SEC_WEBSOCKET_ACCEPT, accept);
                Ok((
                    response.body(Full::default()),
                    Some((path.to_owned(), membership)),
                ))
            }
            Method::GET | Method::HEAD => Ok((page::respond(request.headers()), None)),
            _ => Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "use GET")
                .with(header::ALLOW, "GET, HEAD")),
        }
    }

    fn health(&self) -> Result<Answer, Refusal> {
        if self.draining.is_cancelled() {
            return Err(Refusal::unavailable("the server is shutting down"));
        }
        let response = Response::builder()
            .header(header::CONTENT_TYPE, TEXT)
            .header(header::CONNECTION, "close")
            .body("ok".into());
        Ok((response, None))
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

/// What is said to a peer whose request is not there yet when the server stops.
const DRAINING: &str = "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n\
    connection: close\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 28\r\n\r\n\
    the server is shutting down\n";

/// What is said to a peer whose request takes longer than `--open-timeout`.
const TIMED_OUT: &str = "HTTP/1.1 408 Request Timeout\r\n\
    connection: close\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 27\r\n\r\n\
    the request took too long.\n";

/// A response, and with a 101 the room that was joined.
type Answer = (
    hyper::http::Result<Response<Full<Bytes>>>,
    Option<(String, Membership)>,
);

/// How far an exchange has come.
#[derive(Debug, Default)]
enum Progress {
    Reading,
    #[default]
    Answered,
    Joined(String, Membership),
}

/// One exchange, as hyper sees it.
struct Exchange {
    http: Http,
    place: bool,
    progress: Arc<Mutex<Progress>>,
}

impl Service<Request<Incoming>> for Exchange {
    type Response = Response<Full<Bytes>>;
    type Error = hyper::http::Error;
    type Future = Ready<hyper::http::Result<Self::Response>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let answer = if self.place || request.uri().path() == HEALTH {
            self.http.route(&request)
        } else {
            Err(Refusal::unavailable("no place left, try again later"))
        };
        let (response, joined) = answer.unwrap_or_else(|refusal| (refusal.into_response(), None));
        *self.progress.lock() = match joined {
            Some((room, membership)) => Progress::Joined(room, membership),
            None => Progress::Answered,
        };
        ready(response)
    }
}

/// Checks an opening handshake (RFC 6455, section 4.2.1); returns what `Sec-WebSocket-Accept` has to
/// say.
fn check_handshake(request: &Request<Incoming>) -> Result<String, Refusal> {
    let headers = request.headers();
    let malformed = |reason| Refusal::new(StatusCode::BAD_REQUEST, reason);
    if request.version() != Version::HTTP_11 {
        return Err(malformed("a WebSocket handshake needs HTTP/1.1"));
    }
    if !has_token(headers, header::CONNECTION, "upgrade") {
        return Err(malformed(
            "a WebSocket handshake needs the header Connection: Upgrade",
        ));
    }
    if !request.body().is_end_stream() {
        return Err(malformed("a WebSocket handshake has no body"));
    }
    if headers
        .get(header::SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        return Err(
            Refusal::new(StatusCode::UPGRADE_REQUIRED, "use WebSocket version 13")
                .with(header::SEC_WEBSOCKET_VERSION, "13"),
        );
    }
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
    let (Some(key), None) = (keys.next(), keys.next()) else {
        return Err(malformed(
            "a WebSocket handshake needs one Sec-WebSocket-Key",
        ));
    };
    if BASE64.decode(key.as_bytes()).map_or(0, |nonce| nonce.len()) != 16 {
        return Err(malformed("Sec-WebSocket-Key must be 16 bytes in base64"));
    }
    Ok(derive_accept_key(key.as_bytes()))
}

/// Whether a header that is a list of tokens has `token` among them, in any case.
fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|it| it.trim().eq_ignore_ascii_case(token))
}

/// A request that is not granted, with the reason in one line.
struct Refusal {
    status: StatusCode,
    reason: &'static str,
    header: Option<(HeaderName, &'static str)>,
}

impl Refusal {
    fn new(status: StatusCode, reason: &'static str) -> Self {
        Self {
            status,
            reason,
            header: None,
        }
    }

    fn unavailable(reason: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason).with(header::RETRY_AFTER, "1")
    }

    fn with(self, name: HeaderName, value: &'static str) -> Self {
        Self {
            header: Some((name, value)),
            ..self
        }
    }

    fn into_response(self) -> hyper::http::Result<Response<Full<Bytes>>> {
        let mut response = Response::builder()
            .status(self.status)
            .header(header::CONTENT_TYPE, TEXT)
            .header(NO_SNIFFING.0, NO_SNIFFING.1)
            .header(header::CONNECTION, "close");
        if let Some((name, value)) = self.header {
            response = response.header(name, value);
        }
        response.body(format!("{}\n", self.reason).into())
    }
}

impl From<JoinError> for Refusal {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Full => Self::unavailable("no place for another room, try again later"),
            JoinError::Sealed => Self::unavailable("the server is shutting down"),
        }
    }
}
