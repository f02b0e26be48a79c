//! What the log says of a client when it is gone.

use tokio::time::Instant;
use tracing::{Span, error, info};

use crate::disconnect::Disconnect;

/// What the log says of a client when it is gone, whichever way it goes.
#[derive(Debug)]
pub struct ConnectionRecord {
    /// What tells its log lines from others'.
    pub span: Span,
    since: Instant,
    /// Messages that came from it.
    pub received: u64,
    /// Messages that were to go to it.
    pub sent: u64,
    /// Why it is gone, once it is.
    pub why: Option<Disconnect>,
}

impl ConnectionRecord {
    /// Says that a client has come, and will say when it is gone.
    pub fn new(span: Span) -> Self {
        info!(parent: &span, "client connected");
        Self {
            span,
            since: Instant::now(),
            received: 0,
            sent: 0,
            why: None,
        }
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        let Self {
            span,
            since,
            received,
            sent,
            why,
        } = self;
        let seconds = since.elapsed().as_millis() as f64 / 1000.0;
        match why {
            Some(why) => {
                let code = why.close_code();
                info!(parent: &*span, code, seconds, received, sent, "client left: {why}");
            }
            None if std::thread::panicking() => {
                error!(parent: &*span, seconds, received, sent, "client dropped: the server failed");
            }
            None => {
                info!(parent: &*span, seconds, received, sent, "client dropped: time to drain is over");
            }
        }
    }
}
