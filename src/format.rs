//! Encodings of events, and the batches that cache them.

pub(crate) mod batch;
pub(crate) mod event;
pub(crate) mod json;
pub(crate) mod plain;
pub(crate) mod sse;

use bytes::Bytes;
use smallvec::SmallVec;

pub(crate) use batch::{Batch, BatchBuilder, Encoded, Frames};
pub(crate) use event::{ErrorCode, Event, Seconds, StoreStatus};
pub(crate) use json::JSON_PROTOCOL;
pub(crate) use plain::{PLAIN_PROTOCOL, Plain};

/// What the events of a client look like in bytes: the key of what a [`Batch`] caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Encoding {
    /// WebSocket messages: what was sent, behind the prefix. Any client understands them.
    #[default]
    Plain,
    /// WebSocket messages in JSON, with ids: the subprotocol `wscast.v1.json`.
    Json,
    /// Server-Sent Events.
    EventStream,
}

/// Bytes to be written to one client: mostly one chunk, which needs no allocation.
pub(crate) type Outbox = SmallVec<[Bytes; 1]>;

impl Encoding {
    /// One event; none where the encoding has nothing for it.
    pub(crate) fn event(self, event: &Event<'_>) -> Option<Bytes> {
        let mut bytes = Vec::new();
        self.append(event, &mut bytes);
        (!bytes.is_empty()).then(|| bytes.into())
    }

    /// All messages of `batch`. In the plain encoding they are encoded before they are published.
    fn messages(self, batch: &Batch) -> Encoded {
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(batch.len() - 1));
        for event in event::messages(batch) {
            if !bytes.is_empty() {
                ends.push(bytes.len());
            }
            self.append(&event, &mut bytes);
        }
        bytes.shrink_to_fit();
        Encoded::new(bytes, ends)
    }

    fn append(self, event: &Event<'_>, bytes: &mut Vec<u8>) {
        match self {
            Self::Plain => plain::append(event, bytes),
            Self::Json => json::append(event, bytes),
            Self::EventStream => sse::append(event, bytes),
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::time::SystemTime;

    use super::{Batch, BatchBuilder, Plain};
    use crate::config::Config;
    use crate::message::{Kind, MessageId};

    /// The plain format with this prefix.
    pub(crate) fn plain(prefix: &str) -> Plain {
        Plain::new(&Config::with(|config| config.service.prefix = Some(prefix.into())).service)
    }

    /// A batch of these messages, whose ids begin at 1-`first`.
    pub(crate) fn batch(plain: &Plain, first: u64, messages: &[(Kind, &[u8])]) -> Batch {
        let mut builder = BatchBuilder::default();
        for (kind, payload) in messages {
            plain.encode(*kind, payload, &mut builder);
        }
        let id = MessageId {
            epoch: 1,
            seq: first,
        };
        Batch::new(first, id, SystemTime::now(), builder.take().unwrap())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::testing::{batch, plain};
    use super::*;
    use crate::message::Kind;

    #[test]
    fn an_error_is_an_event_of_the_json_format_alone() {
        let render = |retry_after, encoding: Encoding| {
            let (code, message) = (ErrorCode::Forbidden, 17);
            let error = Event::Error {
                code,
                message,
                retry_after,
            };
            encoding.event(&error)
        };
        let frame = render(None, Encoding::Json).unwrap();
        let expected = br#"{"type":"error","code":"forbidden","message":17}"#;
        assert_eq!(frame[2..], expected[..]);
        let frame = render(Some(2.0), Encoding::Json).unwrap();
        let expected = br#"{"type":"error","code":"forbidden","message":17,"retry_after":2.0}"#;
        assert_eq!(frame[2..], expected[..]);
        for encoding in [Encoding::Plain, Encoding::EventStream] {
            assert_eq!(render(Some(2.0), encoding), None);
        }
    }

    #[test]
    fn the_events_of_a_store_are_those_that_the_test_of_the_papers_knows() {
        let error = |code, message, retry_after| Event::Error {
            code,
            message,
            retry_after,
        };
        let events = [
            error(ErrorCode::Forbidden, 17, None),
            error(ErrorCode::Unavailable, 18, Some(2.0)),
            Event::Gap { missed: None },
            Event::Status {
                store: StoreStatus::Unavailable,
            },
            Event::Status {
                store: StoreStatus::Ok,
            },
        ];
        let lines = events.map(|event| json::to_string(&event) + "\n");
        let known = include_str!("../tests/it/events_of_a_store.jsonl");
        assert_eq!(lines.concat(), known);
        // A new event or code has to be in that file, or in what tests/it/recording.rs provokes.
        let (Event::Welcome { .. }
        | Event::Message { .. }
        | Event::Gap { .. }
        | Event::Alive
        | Event::Large { .. }
        | Event::Clients { .. }
        | Event::Status {
            store: StoreStatus::Ok | StoreStatus::Unavailable,
        }
        | Event::Error {
            code: ErrorCode::Forbidden | ErrorCode::Unavailable,
            ..
        }) = Event::Alive;
    }

    #[test]
    fn a_batch_is_encoded_once_per_encoding() {
        let messages = [(Kind::Text, &b"hi"[..]), (Kind::Binary, b"\0")];
        let batch = batch(&plain("> "), 1, &messages);
        // The first lookup says what the encoding costs, unless the batch came with it.
        let all = [Encoding::Json, Encoding::Plain, Encoding::EventStream];
        let costs = all.map(|it| batch.encoded(it).1);
        assert_eq!(costs.map(|it| it > 0), [true, false, true]);
        assert_eq!(all.map(|it| batch.encoded(it).1), [0, 0, 0]);
        let messages_from = |encoding, index| batch.encoded(encoding).0.messages_from(index);
        for encoding in all {
            let [one, other] = [(), ()].map(|()| messages_from(encoding, 0));
            assert_eq!(one.as_ptr(), other.as_ptr());
            let second = messages_from(encoding, 1);
            assert_eq!(second.as_ptr_range().end, one.as_ptr_range().end);
            assert_eq!(batch.encoded(encoding).0.message(1), second);
        }
        assert_eq!(
            messages_from(Encoding::Plain, 0),
            b"\x81\x04> hi\x82\x01\0"[..]
        );
        let second = messages_from(Encoding::EventStream, 1);
        assert_eq!(second, b"id: 1-2\nevent: binary\ndata: AA==\n\n"[..]);
        let second = messages_from(Encoding::Json, 1);
        let json: serde_json::Value = serde_json::from_slice(&second[2..]).unwrap();
        assert_eq!(
            (&json["id"], &json["binary"]),
            (&"1-2".into(), &"AA==".into())
        );
    }

    #[test]
    fn a_large_message_is_announced_in_json_and_by_itself_in_a_history() {
        let text = vec![b'x'; 70_000];
        let batch = batch(
            &plain("> "),
            1,
            &[(Kind::Text, b"small"), (Kind::Text, &text)],
        );
        let encoded = batch.encoded(Encoding::Json).0;
        let objects: Vec<_> = json::objects(encoded, 0..2).collect();
        let parsed: Vec<serde_json::Value> = objects
            .iter()
            .map(|it| serde_json::from_slice(it).unwrap())
            .collect();
        assert_eq!(
            (&parsed[0]["id"], &parsed[1]["id"]),
            (&"1-1".into(), &"1-2".into())
        );
        let large = encoded.message(1);
        let announcement = format!("{{\"type\":\"large\",\"bytes\":{}}}", objects[1].len());
        assert_eq!(large[2..2 + announcement.len()], *announcement.as_bytes());
        assert!(large.ends_with(&objects[1]));
        assert_eq!(encoded.message(0).len(), 2 + objects[0].len());
        // Others see a large message as it comes.
        let stream = batch.encoded(Encoding::EventStream).0.message(1);
        assert!(stream.starts_with(b"id: 1-2\n"));
    }

    #[test]
    fn a_greeting_is_the_first_event_of_each_encoding() {
        let welcome = |text| Event::Welcome {
            text,
            room: "/",
            mode: "echo",
            you: None,
            last_id: None,
            resumed: false,
            missed: Some(0),
            clients: 1,
            max_message_size: 1,
            ping_interval: Seconds(Duration::from_secs(10)),
            ping_timeout: Seconds(Duration::from_millis(500)),
        };
        let greeting = |encoding: Encoding, text| encoding.event(&welcome(text));
        assert_eq!(
            greeting(Encoding::Plain, "hello").unwrap(),
            b"\x81\x05hello"[..]
        );
        assert_eq!(
            greeting(Encoding::EventStream, "hello").unwrap(),
            b": hello\n\n"[..]
        );
        // An empty text is no greeting; a JSON client gets the rest of it.
        assert_eq!(greeting(Encoding::Plain, ""), None);
        assert_eq!(greeting(Encoding::EventStream, ""), None);
        assert!(greeting(Encoding::Json, "").is_some());
        // The plain encoding cannot say that messages are missing.
        let gap = Event::Gap { missed: Some(1) };
        assert_eq!(Encoding::Plain.event(&gap), None);
    }
}
