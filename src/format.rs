//! Encodings of events: the plain format, JSON, Server-Sent Events, and the batches that cache them.

pub(crate) mod batch;
pub(crate) mod event;
pub(crate) mod json;
pub(crate) mod plain;
pub(crate) mod sse;

use std::sync::Arc;

use bytes::Bytes;

pub(crate) use batch::{Batch, BatchBuilder, Chunk, Frames, Outbox};
pub(crate) use event::{ErrorCode, Event};
pub(crate) use json::JSON_PROTOCOL;
pub(crate) use plain::Plain;

use batch::Rendition;

/// The encoding of a client's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Format {
    /// WebSocket messages: what was sent, behind the prefix. Any client understands them.
    #[default]
    Plain,
    /// WebSocket messages in JSON, with ids: the subprotocol `wscast.v1.json`.
    Json,
    /// Server-Sent Events.
    EventStream,
}

/// The messages of `batch` from sequence number `from` on.
pub(crate) fn render(batch: Arc<Batch>, format: Format, from: u64) -> Chunk {
    if format == Format::Plain {
        return batch.frames_from(from);
    }
    let skipped = from.saturating_sub(batch.seqs().start) as usize;
    rendition(&batch, format).messages_from(skipped).into()
}

/// All messages of `batch` in a format other than the plain one, encoded the first time.
fn rendition(batch: &Batch, format: Format) -> &Rendition {
    batch.rendition(format, || {
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(batch.len()));
        for event in event::messages(batch) {
            encode(&event, format, &mut bytes);
            ends.push(bytes.len());
        }
        bytes.shrink_to_fit();
        Rendition {
            bytes: bytes.into(),
            ends,
        }
    })
}

/// An event in a format other than the plain one.
pub(crate) fn render_event(event: &Event<'_>, format: Format) -> Bytes {
    let mut bytes = Vec::new();
    encode(event, format, &mut bytes);
    bytes.into()
}

/// Appends `event` in a format other than the plain one, in which it is nothing.
fn encode(event: &Event<'_>, format: Format, bytes: &mut Vec<u8>) {
    match format {
        Format::Plain => {}
        Format::Json => json::encode(event, bytes),
        Format::EventStream => sse::encode(event, bytes),
    }
}

#[cfg(test)]
mod testing {
    use super::{Arc, Batch, BatchBuilder, Plain};
    use crate::config::Config;
    use crate::message::{Kind, MessageId};

    /// The plain format with these texts.
    pub(super) fn plain(welcome: &str, prefix: &str) -> Plain {
        Plain::new(
            &Config::with(|config| {
                config.service.welcome = Some(welcome.into());
                config.service.prefix = Some(prefix.into());
            })
            .service,
        )
    }

    /// A batch of these messages, whose ids begin at 1-1.
    pub(super) fn batch(plain: &Plain, messages: &[(Kind, &[u8])]) -> Arc<Batch> {
        let mut builder = BatchBuilder::default();
        for (kind, payload) in messages {
            plain.encode(*kind, payload, &mut builder);
        }
        let first = MessageId { epoch: 1, seq: 1 };
        Arc::new(Batch::new(first, builder.take().unwrap()))
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{batch, plain};
    use super::*;
    use crate::message::Kind;

    #[test]
    fn an_error_is_an_event_of_the_json_format_alone() {
        let render = |retry_after, format| {
            let (code, message) = (ErrorCode::Forbidden, 17);
            let error = Event::Error {
                code,
                message,
                retry_after,
            };
            render_event(&error, format)
        };
        let frame = render(None, Format::Json);
        let expected = br#"{"type":"error","code":"forbidden","message":17}"#;
        assert_eq!(frame[2..], expected[..]);
        let frame = render(Some(2.0), Format::Json);
        let expected = br#"{"type":"error","code":"forbidden","message":17,"retry_after":2.0}"#;
        assert_eq!(frame[2..], expected[..]);
        for format in [Format::Plain, Format::EventStream] {
            assert_eq!(render(Some(2.0), format), "");
        }
    }

    #[test]
    fn a_batch_is_encoded_once_per_format() {
        let messages = [(Kind::Text, &b"hi"[..]), (Kind::Binary, b"\0")];
        let batch = batch(&plain("", "> "), &messages);
        for format in [Format::Plain, Format::Json, Format::EventStream] {
            let [one, other] = [(), ()].map(|()| render(batch.clone(), format, 1));
            assert_eq!(one.as_ptr(), other.as_ptr());
            let second = render(batch.clone(), format, 2);
            assert_eq!(second.as_ptr_range().end, one.as_ptr_range().end);
        }
        assert!(render(batch.clone(), Format::Plain, 1).starts_with(b"\x81\x04> hi"));
        let second = render(batch.clone(), Format::EventStream, 2);
        assert_eq!(*second, b"id: 1-2\nevent: binary\ndata: AA==\n\n"[..]);
        let second = render(batch, Format::Json, 2);
        let json: serde_json::Value = serde_json::from_slice(&second[2..]).unwrap();
        assert_eq!(
            (&json["id"], &json["binary"]),
            (&"1-2".into(), &"AA==".into())
        );
    }
}
