//! Log lines of refused requests, at a bounded rate for each status.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use parking_lot::Mutex;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::http::refusal::Refusal;
use crate::transport::Peer;

/// Refusals with one status that are logged in one [`WINDOW`]; the others are only counted.
const LOGGED: u64 = 5;

/// How long refusals of one status are counted together.
const WINDOW: Duration = Duration::from_secs(1);

/// Logs refusals: a flood of them costs a few lines a second.
#[derive(Debug, Default)]
pub(crate) struct RefusalLog {
    /// How many there are in the current window; at most one entry for each status.
    counts: Mutex<HashMap<StatusCode, u64>>,
}

impl RefusalLog {
    /// Logs a refusal of `peer`; or, after several with its status, counts it for a line within a
    /// second. `request` is its method and path, as the peer sent them.
    pub(crate) fn record(self: &Arc<Self>, refusal: &Refusal, peer: Peer, request: Option<&str>) {
        let status = refusal.status();
        let count = {
            let mut counts = self.counts.lock();
            let count = counts.entry(status).or_default();
            *count += 1;
            *count
        };
        if count <= LOGGED {
            let (code, reason) = (status.as_u16(), refusal.reason());
            match is_for_the_operator(status) {
                true => warn!(%peer, status = code, request, "refused: {reason}"),
                false => info!(%peer, status = code, request, "refused: {reason}"),
            }
        }
        if count == 1 {
            let log = self.clone();
            tokio::spawn(async move {
                sleep(WINDOW).await;
                let count = log.counts.lock().remove(&status);
                log_rest(status, count.unwrap_or_default());
            });
        }
    }
}

impl Drop for RefusalLog {
    fn drop(&mut self) {
        for (status, count) in self.counts.get_mut().drain() {
            log_rest(status, count);
        }
    }
}

/// Logs how many of `count` refusals have no line of their own.
fn log_rest(status: StatusCode, count: u64) {
    let more = count.saturating_sub(LOGGED);
    let code = status.as_u16();
    match more {
        0 => {}
        _ if is_for_the_operator(status) => {
            warn!(status = code, "refused: … and {more} more like it")
        }
        _ => info!(status = code, "refused: … and {more} more like it"),
    }
}

/// Whether an option or a larger machine may help; otherwise the fault is the peer's.
fn is_for_the_operator(status: StatusCode) -> bool {
    status == StatusCode::FORBIDDEN || status == StatusCode::SERVICE_UNAVAILABLE
}
