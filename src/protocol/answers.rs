//! Answers to pings and to the close frame: bounded, however many pings come.

use tokio_tungstenite::tungstenite::protocol::frame::Frame;

/// Bytes of answers to pings that may wait; beyond, only the last answer is kept (RFC 6455, section
/// 5.5.3).
pub(super) const ANSWERS_MAX: usize = 4 * 1024;

/// Control frames that wait to be written, in order.
#[derive(Debug, Default)]
pub(super) struct Answers {
    frames: Vec<u8>,
    /// The answer to the last ping, if `frames` had no space for it.
    late: Option<Frame>,
    /// Whether a close frame is among them, or was: it is the last frame of a connection.
    closed: bool,
}

impl Answers {
    /// Adds the answer to a ping.
    pub(super) fn pong(&mut self, pong: Frame) {
        if self.closed {
            return;
        }
        if self.late.is_some() || self.frames.len() + pong.len() > ANSWERS_MAX {
            self.late = Some(pong);
        } else {
            self.push(pong);
        }
    }

    /// Adds the last frame, unless there is one.
    pub(super) fn close(&mut self, close: Frame) {
        if self.closed {
            return;
        }
        if let Some(late) = self.late.take() {
            self.push(late);
        }
        self.push(close);
        self.closed = true;
    }

    /// The frames to be written next.
    pub(super) fn next(&mut self) -> &mut Vec<u8> {
        if self.frames.is_empty()
            && let Some(late) = self.late.take()
        {
            self.push(late);
        }
        &mut self.frames
    }

    /// Whether it holds no frame, and no close frame was among them.
    pub(super) fn are_empty(&self) -> bool {
        self.frames.is_empty() && self.late.is_none() && !self.closed
    }

    fn push(&mut self, frame: Frame) {
        frame
            .format(&mut self.frames)
            .expect("a Vec takes every write");
    }
}
