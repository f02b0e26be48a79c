//! The fast path: whole data frames and control frames, decoded in place.

use std::ops::Range;

use super::frame::{CONTROL_MAX, Control, FIN, Header, unmask, write_header};
use crate::message::Kind;

/// What comes next in the bytes of a client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// A whole message: the range of its payload, unmasked, and the length of its frame.
    Message(Kind, Range<usize>, usize),
    /// A whole control frame, likewise.
    Control(Control, Range<usize>, usize),
    /// An invalid frame of this length, for the slow path: unchanged, so that tungstenite finds the
    /// error.
    Other(usize),
    /// A part of a data frame: tungstenite gets it as a frame of its own, with this header and the
    /// payload in this range. The next frame or part begins behind the range.
    Part(PartHeader, Range<usize>),
    /// A frame would make its message longer than allowed.
    TooLong,
    /// A frame that is not allowed here, whatever its payload.
    Wrong,
    /// The beginning of a frame; it needs at least this many bytes more.
    Incomplete(u64),
}

/// Decodes complete, unfragmented, masked data frames and control frames in place. Nearly all frames
/// are such.
///
/// Of all other frames (RFC 6455, section 5.2) it finds the beginning and the length; tungstenite
/// decodes them. It cuts long frames into parts, so that tungstenite holds no more than the message.
#[derive(Debug)]
pub(crate) struct FastPath {
    max_message: u64,
    /// The rest of a data frame that is passed on in parts.
    rest: Option<Rest>,
    /// Whether the current message is in fragments.
    fragmented: bool,
    /// Bytes that tungstenite holds of the current message.
    held: u64,
}

/// What is still to come of a data frame.
#[derive(Debug, Clone, Copy)]
struct Rest {
    /// FIN, and the opcode of the frame until the first part has carried it.
    first: u8,
    mask: [u8; 4],
    length: u64,
}

/// The longest incomplete data frame that is buffered; a longer one is passed on in parts.
pub(crate) const PARTIAL_MAX: usize = 64 * 1024;

/// The longest payload of a part: tungstenite holds a copy of it beside the message.
const PART_MAX: usize = 64 * 1024;

impl FastPath {
    /// Begins at the first frame of a connection.
    pub(crate) fn new(max_message: usize) -> Self {
        Self {
            max_message: max_message as u64,
            rest: None,
            fragmented: false,
            held: 0,
        }
    }

    /// Decodes what comes next; `bytes` begin behind what it returned before.
    pub(crate) fn next(&mut self, bytes: &mut [u8]) -> Next {
        match self.whole_message(bytes) {
            Some(message) => message,
            None => self.other(bytes),
        }
    }

    /// The next message, if it is one complete frame.
    fn whole_message(&self, bytes: &mut [u8]) -> Option<Next> {
        if !self.is_between_messages() {
            return None;
        }
        let header = Header::parse(bytes)?;
        let (kind, mask) = (header.message()?, header.mask?);
        if header.payload > self.max_message {
            return None;
        }
        let payload = header.length as usize..(header.length + header.payload) as usize;
        let content = bytes.get_mut(payload.clone())?;
        let is_ascii = unmask(content, mask);
        if is_ascii || kind == Kind::Binary || std::str::from_utf8(content).is_ok() {
            let length = payload.end;
            return Some(Next::Message(kind, payload, length));
        }
        // Masked again, as tungstenite expects it; tungstenite finds the error.
        unmask(content, mask);
        None
    }

    /// What comes next where it is not a whole message.
    #[cold]
    fn other(&mut self, bytes: &mut [u8]) -> Next {
        if bytes.is_empty() {
            return Next::Incomplete(1);
        }
        if self.rest.is_some() {
            return self.part(bytes, 0);
        }
        let Some(header) = Header::parse(bytes) else {
            return Next::Incomplete(1);
        };
        if header.is_reserved() {
            return Next::Wrong;
        }
        if header.payload > self.max_message.max(CONTROL_MAX) {
            return Next::TooLong;
        }
        let end = header.length + header.payload;
        let missing = end.saturating_sub(bytes.len() as u64);
        let Some(mask) = header.mask else {
            return Next::Wrong;
        };
        if let Some(control) = header.control() {
            if missing > 0 {
                return Next::Incomplete(missing);
            }
            let payload = header.length as usize..end as usize;
            unmask(&mut bytes[payload.clone()], mask);
            if control != Control::Close || is_valid_close(&bytes[payload.clone()]) {
                return Next::Control(control, payload, end as usize);
            }
            unmask(&mut bytes[payload], mask);
            return Next::Other(end as usize);
        }
        if !header.is_data(self.fragmented) {
            return Next::Wrong;
        }
        if header.payload > self.max_message - self.held {
            return Next::TooLong;
        }
        let is_short = header.is_final() && end <= PARTIAL_MAX as u64;
        if missing > 0 && (missing == header.payload || (!self.fragmented && is_short)) {
            return Next::Incomplete(missing);
        }
        self.fragmented = true;
        self.rest = Some(Rest {
            first: header.first,
            mask,
            length: header.payload,
        });
        self.part(bytes, header.length as usize)
    }

    /// The next part of the current frame; its payload begins at `start`.
    fn part(&mut self, bytes: &[u8], start: usize) -> Next {
        let rest = self.rest.take().expect("the rest of a frame is to come");
        let length = (bytes.len() - start).min(PART_MAX);
        let length = rest.length.min(length as u64) as usize;
        let is_last = length as u64 == rest.length;
        let first = if is_last {
            rest.first
        } else {
            rest.first & !FIN
        };
        let header = PartHeader {
            first,
            mask: rest.mask,
            length,
        };
        if !is_last {
            let mut mask = rest.mask;
            mask.rotate_left(length % 4);
            self.rest = Some(Rest {
                // The parts that follow are continuation frames.
                first: rest.first & FIN,
                mask,
                length: rest.length - length as u64,
            });
        }
        self.held += length as u64;
        if is_last && rest.first & FIN != 0 {
            self.fragmented = false;
            self.held = 0;
        }
        Next::Part(header, start..start + length)
    }

    /// The longest message that is allowed, in bytes.
    pub(crate) fn max_message(&self) -> usize {
        self.max_message as usize
    }

    /// Whether the next byte begins a message.
    pub(crate) fn is_between_messages(&self) -> bool {
        !self.fragmented
    }

    /// Bytes that tungstenite holds of a message that is not complete.
    pub(crate) fn held(&self) -> usize {
        self.held as usize
    }

    /// Bytes that the incomplete message in the slow path still needs; their upper bound, while its last
    /// fragment has not begun.
    pub(crate) fn missing(&self) -> u64 {
        match self.rest {
            Some(rest) if rest.first & FIN != 0 => rest.length,
            _ => self.max_message - self.held,
        }
    }
}

/// The header of a part of a frame, as tungstenite gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartHeader {
    first: u8,
    mask: [u8; 4],
    length: usize,
}

impl PartHeader {
    /// Appends it.
    pub(crate) fn write(&self, frame: &mut Vec<u8>) {
        write_header(self.first, Some(self.mask), self.length, frame);
    }
}

/// Whether the payload of a close frame is valid (RFC 6455, sections 5.5.1 and 7.4): empty, or a
/// code and a reason in UTF-8.
fn is_valid_close(payload: &[u8]) -> bool {
    match payload.split_first_chunk() {
        None => payload.is_empty(),
        Some((code, reason)) => {
            let code = u16::from_be_bytes(*code);
            // 1004 to 1006 and 1015 are never sent; all others below 3000 are reserved.
            matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
                && std::str::from_utf8(reason).is_ok()
        }
    }
}
