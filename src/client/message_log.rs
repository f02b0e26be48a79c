//! Logs the beginning of each message, for `--log-messages`.

use std::fmt;

use tracing::{Span, info};

use crate::excerpt::excerpt;
use crate::format::Frames;
use crate::message::Kind;

/// Logs messages received from a client.
pub(crate) fn received(span: &Span, frames: &Frames) {
    log_each(span, "Received from client", frames);
}

/// Logs messages broadcast to a room.
pub(crate) fn broadcasting(span: &Span, frames: &Frames) {
    log_each(span, "Broadcasting", frames);
}

fn log_each(span: &Span, what: &str, frames: &Frames) {
    for (kind, payload) in frames.payloads() {
        info!(parent: span, "{what}: {}", Excerpt(kind, payload));
    }
}

/// The beginning of a message, escaped so that it stays on one log line.
struct Excerpt<'a>(Kind, &'a [u8]);

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(kind, bytes) = self;
        if *kind == Kind::Binary {
            return write!(f, "<{} bytes>", bytes.len());
        }
        write!(f, "{}", excerpt(bytes).escape_debug())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_shows_the_beginning_of_a_message_on_one_line() {
        let show = |text: &str| Excerpt(Kind::Text, text.as_bytes()).to_string();
        assert_eq!(
            show("two\nlines\u{7}\u{1b}[0m"),
            r"two\nlines\u{7}\u{1b}[0m"
        );
        let long = show(&"é".repeat(101));
        assert_eq!(long, format!("{}… (202 bytes)", "é".repeat(100)));
        assert_eq!(Excerpt(Kind::Binary, &[0; 3]).to_string(), "<3 bytes>");
    }
}
