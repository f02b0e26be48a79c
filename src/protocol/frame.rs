//! Frames (RFC 6455, section 5.2): headers read and written, opcodes, masks.

use std::fmt::Display;

use bytes::Bytes;

use crate::message::Kind;

/// The last frame of a message, or the only one.
pub(crate) const FIN: u8 = 0x80;

/// The longest payload of a control frame (RFC 6455, section 5.5).
pub(crate) const CONTROL_MAX: u64 = 125;

/// The control frames of RFC 6455, section 5.5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// Must be answered with a pong.
    Ping,
    /// Answers a ping, or is unsolicited.
    Pong,
    /// Ends the connection.
    Close,
}

impl Control {
    /// The first byte of its frame: FIN and the opcode.
    fn first_byte(self) -> u8 {
        match self {
            Self::Close => 0x88,
            Self::Ping => 0x89,
            Self::Pong => 0x8a,
        }
    }
}

/// The first byte of an unfragmented data frame: FIN and the opcode.
fn first_byte(kind: Kind) -> u8 {
    match kind {
        Kind::Text => 0x81,
        Kind::Binary => 0x82,
    }
}

/// The header of a frame.
#[derive(Debug)]
pub(crate) struct Header {
    /// FIN, reserved bits and opcode.
    pub(crate) first: u8,
    /// The mask of the payload, if it is masked.
    pub(crate) mask: Option<[u8; 4]>,
    /// Bytes of the header itself.
    pub(crate) length: u64,
    /// Bytes of the payload.
    pub(crate) payload: u64,
}

impl Header {
    /// Reads the header at the beginning of `bytes`, if it is complete.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
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

    /// Whether it ends its message.
    pub(crate) fn is_final(&self) -> bool {
        self.first & FIN != 0
    }

    /// The kind of its message, if the frame is the whole message.
    pub(crate) fn message(&self) -> Option<Kind> {
        let kinds = [Kind::Text, Kind::Binary];
        kinds.into_iter().find(|it| first_byte(*it) == self.first)
    }

    /// Whether its opcode is reserved (RFC 6455, section 5.2).
    pub(crate) fn is_reserved(&self) -> bool {
        matches!(self.first & 0x0f, 0x3..=0x7 | 0xb..=0xf)
    }

    /// Which valid control frame it is, if any.
    pub(crate) fn control(&self) -> Option<Control> {
        let controls = [Control::Close, Control::Ping, Control::Pong];
        let control = controls
            .into_iter()
            .find(|it| it.first_byte() == self.first);
        control.filter(|_| self.payload <= CONTROL_MAX)
    }

    /// Whether it is a data frame that is allowed here: a continuation frame amid fragments, else the
    /// first frame of a message.
    pub(crate) fn is_data(&self, amid_fragments: bool) -> bool {
        match self.first & !FIN {
            0 => amid_fragments,
            1 | 2 => !amid_fragments,
            _ => false,
        }
    }
}

/// Masks or unmasks a payload (RFC 6455, section 5.3), by words that the compiler can vectorize;
/// returns whether the result is ASCII, as most texts are: the check on the way costs nothing.
pub(crate) fn unmask(payload: &mut [u8], mask: [u8; 4]) -> bool {
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

/// Appends the header of a frame: without a mask, as a server sends it, or with one, as a client does.
pub(crate) fn write_header(first: u8, mask: Option<[u8; 4]>, payload: usize, frames: &mut Vec<u8>) {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    match payload {
        0..126 => frames.extend_from_slice(&[first, masked | payload as u8]),
        126..0x1_0000 => {
            let [high, low] = (payload as u16).to_be_bytes();
            frames.extend_from_slice(&[first, masked | 126, high, low]);
        }
        _ => {
            frames.extend_from_slice(&[first, masked | 127]);
            frames.extend_from_slice(&(payload as u64).to_be_bytes());
        }
    }
    if let Some(mask) = mask {
        frames.extend_from_slice(&mask);
    }
}

/// A ping whose payload is the id of the last message written before it; empty if there is none.
pub(crate) fn ping(written: Option<impl Display>) -> Bytes {
    let payload = written.map(|id| id.to_string()).unwrap_or_default();
    let mut frame = Vec::with_capacity(2 + payload.len());
    write_header(Control::Ping.first_byte(), None, payload.len(), &mut frame);
    frame.extend_from_slice(payload.as_bytes());
    frame.into()
}

/// Appends the frame of a message as a server sends it; its payload is `prefix`, then `payload`.
///
/// Every message passes through it, and tungstenite's own writer costs twice as much.
pub(crate) fn encode(kind: Kind, prefix: &str, payload: &[u8], frames: &mut Vec<u8>) {
    let length = prefix.len() + payload.len();
    write_header(first_byte(kind), None, length, frames);
    frames.extend_from_slice(prefix.as_bytes());
    frames.extend_from_slice(payload);
}

/// A frame as a client sends it, whose first byte is `first`.
pub(crate) fn encode_masked(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut frame = Vec::new();
    write_header(first, Some(mask), payload.len(), &mut frame);
    let header = frame.len();
    frame.extend_from_slice(payload);
    unmask(&mut frame[header..], mask);
    frame
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

    use super::*;
    use crate::message::MessageId;

    #[test]
    fn a_ping_carries_the_last_id() {
        assert_eq!(
            ping(Some(MessageId { epoch: 17, seq: 4 })),
            b"\x89\x0417-4"[..]
        );
        assert_eq!(ping(None::<MessageId>), b"\x89\0"[..]);
    }

    #[test]
    fn tungstenite_parses_the_encoded_frames() {
        for (length, header_length) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let payload = vec![b'x'; length];
            for (kind, opcode) in [(Kind::Text, Data::Text), (Kind::Binary, Data::Binary)] {
                let mut bytes = Vec::new();
                encode(kind, "", &payload, &mut bytes);
                let mut frame = Cursor::new(&bytes[..]);
                let (header, stated) = FrameHeader::parse(&mut frame).unwrap().unwrap();
                assert_eq!((stated, frame.position()), (length as u64, header_length));
                assert_eq!(header.opcode, OpCode::Data(opcode));
                assert!(header.is_final && header.mask.is_none());
                assert_eq!(bytes.len() as u64, header_length + stated);
            }
        }
    }

    #[test]
    fn a_header_is_read_as_it_was_written_in_either_direction() {
        for payload in [0, 1, 125, 126, 65_535, 65_536, 1 << 40] {
            for mask in [None, Some([1, 2, 3, 4])] {
                let mut bytes = Vec::new();
                write_header(0x81, mask, payload, &mut bytes);
                let header = Header::parse(&bytes).unwrap();
                assert_eq!(header.length, bytes.len() as u64);
                assert_eq!((header.first, header.mask), (0x81, mask));
                assert_eq!(header.payload, payload as u64);
                for cut in 0..bytes.len() {
                    assert!(Header::parse(&bytes[..cut]).is_none());
                }
            }
        }
    }

    #[test]
    fn tungstenite_reads_what_a_client_sends() {
        let mask = [9, 8, 7, 6];
        for payload in ["", "hi", &"long ".repeat(30)] {
            let bytes = encode_masked(0x81, payload.as_bytes(), mask);
            let mut rest = Cursor::new(&bytes[..]);
            let (header, length) = FrameHeader::parse(&mut rest).unwrap().unwrap();
            assert_eq!((header.mask, length), (Some(mask), payload.len() as u64));
            let mut content = bytes[rest.position() as usize..].to_vec();
            unmask(&mut content, mask);
            assert_eq!(content, payload.as_bytes());
        }
    }
}
