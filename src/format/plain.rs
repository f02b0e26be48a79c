//! The plain format, which any WebSocket client understands.

use super::Event;
use super::batch::{BatchBuilder, MAX_BATCH, MAX_BATCH_BYTES};
use crate::config::Service;
use crate::message::Kind;
use crate::protocol::frame;

/// The subprotocol of the plain format, for browsers that offer another one beside it and have to be answered
/// with one; other clients need not name it.
pub(crate) const PLAIN_PROTOCOL: &str = "wscast.v1.plain";

/// The plain format of messages: each text behind a prefix and each binary message as it is.
#[derive(Debug)]
pub(crate) struct Plain {
    prefix: String,
}

impl Plain {
    /// The format with the prefix of `service`.
    pub(crate) fn new(service: &Service) -> Self {
        Self {
            prefix: service.prefix().to_owned(),
        }
    }

    /// Encodes a message as one unfragmented frame, at the end of `builder`; this is the only copy of
    /// its payload.
    pub(crate) fn encode(&self, kind: Kind, payload: &[u8], builder: &mut BatchBuilder) {
        builder.begin(self.prefix.len());
        let prefix = match kind {
            Kind::Text => &self.prefix,
            Kind::Binary => "",
        };
        frame::encode(kind, prefix, payload, &mut builder.bytes);
        if builder.ends.len() + 1 == MAX_BATCH || builder.bytes.len() >= MAX_BATCH_BYTES {
            let batch = builder.cut();
            builder.full.push_back(batch);
        }
    }
}

/// Appends an event that is no message: only the greeting, unless its text is empty.
pub(super) fn append(event: &Event<'_>, frames: &mut Vec<u8>) {
    match event {
        Event::Welcome { text, .. } if !text.is_empty() => {
            frame::encode(Kind::Text, "", text.as_bytes(), frames);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Encoding;
    use crate::format::testing::{batch, plain};

    #[test]
    fn text_follows_the_prefix_and_binary_stands_alone() {
        let long = vec![b'x'; 70_000];
        let messages = [(Kind::Text, &b"hi"[..]), (Kind::Binary, b"\0\xff")];
        let batch = batch(
            &plain("> "),
            1,
            &[&messages[..], &[(Kind::Text, &long)]].concat(),
        );
        let (all, _) = batch.encoded(Encoding::Plain);
        assert_eq!(all.message(0), b"\x81\x04> hi"[..]);
        assert_eq!(all.message(1), b"\x82\x02\0\xff"[..]);
        assert!(
            all.messages_from(2)
                .starts_with(b"\x81\x7f\0\0\0\0\0\x01\x11\x72> xxx")
        );
        let payloads: Vec<_> = batch.frames().payloads().collect();
        assert_eq!(payloads[..2], messages);
        assert_eq!(payloads[2], (Kind::Text, &long[..]));
    }
}
