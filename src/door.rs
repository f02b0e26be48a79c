//! The door: which of a client's bytes are decoded here, in place, and which are tungstenite's.

use std::ops::Range;

use crate::message::Kind;

/// What stands at the front of the bytes that a client sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Front {
    /// A whole message: where its payload stands, unmasked by now, and how long its frame is.
    Message(Kind, Range<usize>, usize),
    /// So many bytes are tungstenite's, unchanged.
    Foreign(usize),
    /// The beginning of a frame; more must come before anything can be said.
    Partial,
}

/// Tells complete, unfragmented, masked data frames, which nearly all frames are, from all others.
///
/// It follows the frames (RFC 6455, section 5.2) closely enough to know where each begins, and
/// judges none: everything that is rare or wrong is tungstenite's.
#[derive(Debug)]
pub struct Door {
    max_message: u64,
    /// Bytes of the current frame that are still tungstenite's.
    foreign: u64,
    /// Whether the current message is in fragments.
    fragmented: bool,
}

/// A frame that is not here in full yet is waited for if it has at most so many bytes; of a longer
/// one tungstenite gets what there is.
pub const PARTIAL_MAX: usize = 64 * 1024;

impl Door {
    /// A door in front of a connection whose first frame is still to come.
    pub fn new(max_message: usize) -> Self {
        Self {
            max_message: max_message as u64,
            foreign: 0,
            fragmented: false,
        }
    }

    /// Looks at the bytes that follow those it told of before.
    pub fn front(&mut self, bytes: &mut [u8]) -> Front {
        if bytes.is_empty() {
            return Front::Partial;
        }
        if self.foreign > 0 {
            let foreign = self.foreign.min(bytes.len() as u64);
            self.foreign -= foreign;
            return Front::Foreign(foreign as usize);
        }
        let Some(header) = Header::parse(bytes) else {
            return Front::Partial;
        };
        let end = header.length.saturating_add(header.payload);
        let complete = end <= bytes.len() as u64;
        let kinds = [Kind::Text, Kind::Binary];
        let kind = kinds.into_iter().find(|it| it.first_byte() == header.first);
        if let (Some(kind), Some(mask), false) = (kind, header.mask, self.fragmented)
            && header.payload <= self.max_message
        {
            if !complete && end <= PARTIAL_MAX as u64 {
                return Front::Partial;
            }
            if complete {
                let payload = header.length as usize..end as usize;
                let is_ascii = unmask(&mut bytes[payload.clone()], mask);
                if is_ascii
                    || kind == Kind::Binary
                    || std::str::from_utf8(&bytes[payload.clone()]).is_ok()
                {
                    return Front::Message(kind, payload, end as usize);
                }
                // As it came, for tungstenite to say what is wrong.
                unmask(&mut bytes[payload], mask);
            }
        }
        if !header.is_control() {
            self.fragmented = !header.is_final();
        }
        self.foreign = end;
        self.front(bytes)
    }

    /// The longest message that passes, in bytes.
    pub fn max_message(&self) -> usize {
        self.max_message as usize
    }

    /// Whether the next byte begins a message, as far as the bytes go that were shown.
    pub fn is_between_messages(&self) -> bool {
        self.foreign == 0 && !self.fragmented
    }
}

/// The header of a frame.
struct Header {
    first: u8,
    mask: Option<[u8; 4]>,
    /// Bytes of the header itself.
    length: u64,
    /// Bytes of the payload.
    payload: u64,
}

impl Header {
    /// Reads the header at the front of `bytes`, if it is all there.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let [first, second, rest @ ..] = bytes else {
            return None;
        };
        let (payload, rest, extended) = match second & 0x7f {
            126 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u16::from_be_bytes(*length).into(), rest, 2)
            }
            127 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from_be_bytes(*length), rest, 8)
            }
            length => (length.into(), rest, 0),
        };
        let (mask, masked) = match second & 0x80 {
            0 => (None, 0),
            _ => (Some(*rest.first_chunk()?), 4),
        };
        Some(Self {
            first: *first,
            mask,
            length: 2 + extended + masked,
            payload,
        })
    }

    fn is_final(&self) -> bool {
        self.first & 0x80 != 0
    }

    fn is_control(&self) -> bool {
        self.first & 0x08 != 0
    }
}

/// Masks or unmasks a payload (RFC 6455, section 5.3), in words as long as the compiler likes; returns
/// whether it is ASCII now, which most texts are, and which costs nothing to see on the way.
fn unmask(payload: &mut [u8], mask: [u8; 4]) -> bool {
    let half = u64::from(u32::from_ne_bytes(mask));
    let mask_word = half << 32 | half;
    let mut all_bits = 0;
    let (words, rest) = payload.as_chunks_mut();
    for word in words {
        let unmasked = u64::from_ne_bytes(*word) ^ mask_word;
        all_bits |= unmasked;
        *word = unmasked.to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
        all_bits |= u64::from(*byte);
    }
    all_bits.to_ne_bytes().is_ascii()
}
