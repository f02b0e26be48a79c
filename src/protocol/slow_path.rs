//! The slow path: fragments and violations, decoded by tokio-tungstenite.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{Error, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use super::decoder::Received;
use super::frame::CONTROL_MAX;
use crate::disconnect::Disconnect;
use crate::message::Kind;

/// The read buffer of tungstenite, for the few frames that it decodes.
const READ_BUFFER: usize = 4096;

/// A WebSocket over bytes in memory; it exists while a message is incomplete.
#[derive(Debug)]
pub(crate) struct SlowPath(WebSocketStream<Input>);

impl SlowPath {
    /// Decodes messages of at most `max_message` bytes.
    pub(crate) fn new(max_message: usize) -> Self {
        let limits = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .max_message_size(Some(max_message))
            .max_frame_size(Some(max_message.max(CONTROL_MAX as usize)));
        let stream = WebSocketStream::from_raw_socket(Input::default(), Role::Server, Some(limits));
        Self(stream.now_or_never().expect("it does not wait"))
    }

    /// Passes the messages that `bytes` complete to `sink`; returns the reason if no more can follow.
    pub(crate) fn decode(
        &mut self,
        bytes: Vec<u8>,
        sink: &mut impl FnMut(Received<'_>),
    ) -> Option<Disconnect> {
        self.0.get_mut().0 = bytes.into();
        loop {
            match self.0.next().now_or_never()? {
                Some(Ok(Message::Text(text))) => {
                    sink(Received::Message(Kind::Text, text.as_bytes()));
                }
                Some(Ok(Message::Binary(bytes))) => sink(Received::Message(Kind::Binary, &bytes)),
                // A close frame gets here only if its payload is invalid.
                Some(Ok(Message::Close(_))) => return Some(Disconnect::Protocol),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Some(reason(error)),
                None => return Some(Disconnect::Gone),
            }
        }
    }
}

/// The reason that an error of tungstenite stands for.
pub(crate) fn reason(error: Error) -> Disconnect {
    match error {
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Disconnect::Gone,
        Error::Protocol(_) => Disconnect::Protocol,
        Error::Utf8(_) => Disconnect::NotUtf8,
        Error::Capacity(_) => Disconnect::TooBig,
        Error::ConnectionClosed | Error::AlreadyClosed => Disconnect::ByClient(None),
        Error::Io(error) => Disconnect::Transport(error),
        other => Disconnect::Transport(io::Error::other(other)),
    }
}

/// The bytes for the slow path, as a stream. What is written to it is discarded, as the decoder
/// answers.
#[derive(Debug, Default)]
struct Input(Bytes);

impl AsyncRead for Input {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Pending;
        }
        let length = self.0.len().min(buffer.remaining());
        buffer.put_slice(&self.0.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Input {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
