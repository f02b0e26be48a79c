//! The plain format, which any WebSocket client understands.

use bytes::Bytes;

use super::batch::{BatchBuilder, MAX_BATCH, MAX_BATCH_BYTES, Mark};
use crate::config::Service;
use crate::message::Kind;
use crate::protocol::frame;

/// The plain format: a greeting, then each text behind a prefix and each binary message as it is.
#[derive(Debug)]
pub(crate) struct Plain {
    greeting: Option<Bytes>,
    prefix: String,
}

impl Plain {
    /// The format with the texts of `service`.
    pub(crate) fn new(service: &Service) -> Self {
        let mut greeting = Vec::new();
        if !service.welcome().is_empty() {
            frame::encode(Kind::Text, "", service.welcome().as_bytes(), &mut greeting);
        }
        Self {
            greeting: Some(greeting.into()).filter(|frame: &Bytes| !frame.is_empty()),
            prefix: service.prefix().to_owned(),
        }
    }

    /// The frame that greets a client, unless the text is empty.
    pub(crate) fn greeting(&self) -> Option<Bytes> {
        self.greeting.clone()
    }

    /// Encodes a message as one unfragmented frame, at the end of `builder`; this is the only copy of
    /// its payload.
    pub(crate) fn encode(&self, kind: Kind, payload: &[u8], builder: &mut BatchBuilder) {
        builder.begin();
        let prefix = match kind {
            Kind::Text => &self.prefix,
            Kind::Binary => "",
        };
        frame::encode(kind, prefix, payload, &mut builder.bytes);
        builder.marks.push(Mark {
            kind,
            end: builder.bytes.len(),
            payload: payload.len(),
        });
        if builder.marks.len() == MAX_BATCH || builder.bytes.len() >= MAX_BATCH_BYTES {
            let batch = builder.cut();
            builder.full.push_back(batch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::testing::{batch, plain};

    #[test]
    fn text_follows_the_prefix_and_binary_stands_alone() {
        let messages = [(Kind::Text, &b"hi"[..]), (Kind::Binary, b"\0\xff")];
        let batch = batch(&plain("", "> "), &messages);
        let all = batch.clone().frames_from(1);
        assert_eq!(*all, b"\x81\x04> hi\x82\x02\0\xff"[..]);
        assert_eq!(*batch.clone().frames_from(2), b"\x82\x02\0\xff"[..]);
        let payloads: Vec<_> = batch.frames().payloads().collect();
        assert_eq!(payloads, messages);
    }

    #[test]
    fn an_empty_welcome_sends_no_greeting() {
        assert_eq!(plain("", "").greeting(), None);
        assert_eq!(plain("hello", "").greeting().unwrap(), b"\x81\x05hello"[..]);
    }
}
