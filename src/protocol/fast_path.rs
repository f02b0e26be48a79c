//! The fast path: whole data frames and control frames, decoded where they stand.

use std::ops::Range;

use super::frame::{CONTROL_MAX, Control, FIN, Header, unmask};
use crate::message::Kind;

/// What stands at the front of the bytes that a client sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Front {
    /// A whole message: where its payload stands, unmasked by now, and how long its frame is.
    Message(Kind, Range<usize>, usize),
    /// A whole control frame, likewise.
    Control(Control, Range<usize>, usize),
    /// A frame of so many bytes that is the slow path's, unchanged, to say what is wrong with it.
    Other(usize),
    /// A part of a data frame that belongs to a message in several parts: tungstenite gets it as a
    /// frame of its own, of this header and the payload that stands in this range, behind which
    /// the next begins.
    Part(PartHeader, Range<usize>),
    /// A frame would make its message longer than allowed.
    TooLong,
    /// A frame that may not stand here, whatever its payload.
    Wrong,
    /// The beginning of a frame; at least so many bytes must come before anything can be said.
    Partial(u64),
}

/// Tells complete, unfragmented, masked data frames and control frames, which nearly all frames are,
/// from all others.
///
/// It follows the frames (RFC 6455, section 5.2) closely enough to know where each begins, and
/// judges none: everything that is rare or wrong is tungstenite's. Long frames it cuts into parts,
/// so that tungstenite holds no more than the message.
#[derive(Debug)]
pub struct FastPath {
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
    /// FIN and the opcode of the frame, as far as no part has had them yet.
    first: u8,
    mask: [u8; 4],
    length: u64,
}

/// A frame that is not here in full yet is waited for if it has at most so many bytes; a longer one
/// is passed on in parts.
pub const PARTIAL_MAX: usize = 64 * 1024;

/// The most that a part holds, as tungstenite has a copy of it beside the message.
const PART_MAX: usize = 64 * 1024;

impl FastPath {
    /// The fast path of a connection whose first frame is still to come.
    pub fn new(max_message: usize) -> Self {
        Self {
            max_message: max_message as u64,
            rest: None,
            fragmented: false,
            held: 0,
        }
    }

    /// Looks at the bytes that follow those it told of before.
    pub fn front(&mut self, bytes: &mut [u8]) -> Front {
        match self.whole_message(bytes) {
            Some(message) => message,
            None => self.other(bytes),
        }
    }

    /// The message at the front, where it is all of one frame, which nearly always is so.
    fn whole_message(&self, bytes: &mut [u8]) -> Option<Front> {
        if !self.is_between_messages() {
            return None;
        }
        let header = Header::parse(bytes)?;
        let (kind, mask) = (header.message()?, header.mask?);
        if header.payload > self.max_message {
            return None;
        }
        let payload = header.length as usize..(header.length + header.payload) as usize;
        let there = bytes.get_mut(payload.clone())?;
        let is_ascii = unmask(there, mask);
        if is_ascii || kind == Kind::Binary || std::str::from_utf8(there).is_ok() {
            let length = payload.end;
            return Some(Front::Message(kind, payload, length));
        }
        // As it came, for tungstenite to say what is wrong.
        unmask(there, mask);
        None
    }

    /// All else that may stand at the front.
    #[cold]
    fn other(&mut self, bytes: &mut [u8]) -> Front {
        if bytes.is_empty() {
            return Front::Partial(1);
        }
        if self.rest.is_some() {
            return self.part(bytes, 0);
        }
        let Some(header) = Header::parse(bytes) else {
            return Front::Partial(1);
        };
        if header.is_reserved() {
            return Front::Wrong;
        }
        if header.payload > self.max_message.max(CONTROL_MAX) {
            return Front::TooLong;
        }
        let end = header.length + header.payload;
        let missing = end.saturating_sub(bytes.len() as u64);
        let Some(mask) = header.mask else {
            return Front::Wrong;
        };
        if let Some(control) = header.control() {
            if missing > 0 {
                return Front::Partial(missing);
            }
            let payload = header.length as usize..end as usize;
            unmask(&mut bytes[payload.clone()], mask);
            if control != Control::Close || is_valid_close(&bytes[payload.clone()]) {
                return Front::Control(control, payload, end as usize);
            }
            unmask(&mut bytes[payload], mask);
            return Front::Other(end as usize);
        }
        if !header.is_data(self.fragmented) {
            return Front::Wrong;
        }
        if header.payload > self.max_message - self.held {
            return Front::TooLong;
        }
        let is_short = header.is_final() && end <= PARTIAL_MAX as u64;
        if missing > 0 && (missing == header.payload || (!self.fragmented && is_short)) {
            return Front::Partial(missing);
        }
        self.fragmented = true;
        self.rest = Some(Rest {
            first: header.first,
            mask,
            length: header.payload,
        });
        self.part(bytes, header.length as usize)
    }

    /// What is there of the current frame, as a frame of its own; its payload begins at `start`.
    fn part(&mut self, bytes: &[u8], start: usize) -> Front {
        let rest = self.rest.take().expect("the rest of a frame is to come");
        let there = (bytes.len() - start).min(PART_MAX);
        let there = rest.length.min(there as u64) as usize;
        let is_last = there as u64 == rest.length;
        let first = if is_last {
            rest.first
        } else {
            rest.first & !FIN
        };
        let header = PartHeader {
            first,
            mask: rest.mask,
            length: there,
        };
        if !is_last {
            let mut mask = rest.mask;
            mask.rotate_left(there % 4);
            self.rest = Some(Rest {
                // What comes then continues this.
                first: rest.first & FIN,
                mask,
                length: rest.length - there as u64,
            });
        }
        self.held += there as u64;
        if is_last && rest.first & FIN != 0 {
            self.fragmented = false;
            self.held = 0;
        }
        Front::Part(header, start..start + there)
    }

    /// The longest message that passes, in bytes.
    pub fn max_message(&self) -> usize {
        self.max_message as usize
    }

    /// Whether the next byte begins a message, as far as the bytes go that were shown.
    pub fn is_between_messages(&self) -> bool {
        !self.fragmented
    }

    /// Bytes that tungstenite holds of a message that is not complete.
    pub fn held(&self) -> usize {
        self.held as usize
    }

    /// Bytes that must come, or at most may, until the message is complete of which the slow path holds
    /// a part.
    pub fn missing(&self) -> u64 {
        match self.rest {
            Some(rest) if rest.first & FIN != 0 => rest.length,
            _ => self.max_message - self.held,
        }
    }
}

/// The header of a part of a frame, as tungstenite gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartHeader {
    first: u8,
    mask: [u8; 4],
    length: usize,
}

impl PartHeader {
    /// Appends it (RFC 6455, section 5.2).
    pub fn write(&self, frame: &mut Vec<u8>) {
        frame.extend([self.first, 0x80 | 127]);
        frame.extend((self.length as u64).to_be_bytes());
        frame.extend(self.mask);
    }
}

/// Whether the payload of a close frame may be sent (RFC 6455, sections 5.5.1 and 7.4): nothing, or
/// a code, and a reason in UTF-8.
fn is_valid_close(payload: &[u8]) -> bool {
    match payload.split_first_chunk() {
        None => payload.is_empty(),
        Some((code, reason)) => {
            let code = u16::from_be_bytes(*code);
            // 1004 to 1006 and 1015 stand for what is not sent; what is below 3000 else is reserved.
            matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
                && std::str::from_utf8(reason).is_ok()
        }
    }
}
