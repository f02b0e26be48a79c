//! Why a connection ended: one value for the close frame and the log line.

use std::io;

use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// The one reason why a session ended; the error type of a session, so `?` ends it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Disconnect {
    /// The client sent a close frame, with this code if it has one; the code is echoed.
    #[error("closed by the client")]
    ByClient(Option<u16>),
    /// The server is shutting down.
    #[error("server is shutting down")]
    ShuttingDown,
    /// The client broke RFC 6455.
    #[error("protocol error")]
    Protocol,
    /// A text message was not UTF-8 (RFC 6455, section 8.1).
    #[error("text is not UTF-8")]
    NotUtf8,
    /// A message was larger than `--max-message-size`.
    #[error("message too big")]
    TooBig,
    /// Nothing came from the client within `--ping-timeout` of a ping.
    #[error("keepalive ping timeout")]
    NoPong,
    /// The client fell behind the history of the room.
    #[error("too slow: fell behind the history of the room")]
    Behind,
    /// The client took nothing for `--write-timeout`; what is unsent is lost.
    #[error("too slow: took nothing for the write timeout")]
    Stalled,
    /// A message was cut to keep `--max-incoming`.
    #[error("no space: too much has begun and is not complete")]
    NoSpace,
    /// An incomplete message did not grow for `--write-timeout`.
    #[error("too slow: sent nothing more of a message for the write timeout")]
    Unfinished,
    /// A message of the client could not be taken, and its format has no event that says so.
    #[error("store unavailable: a message was not taken")]
    Unavailable,
    /// The client may not do what it did, or may not stay, for this reason.
    #[error("{0}")]
    Policy(&'static str),
    /// The client closed the connection without a close frame, as a program that exits does.
    #[error("gone")]
    Gone,
    /// The TCP connection broke.
    #[error("connection lost: {0}")]
    Transport(#[source] io::Error),
}

impl Disconnect {
    /// The close code of the connection (RFC 6455, section 7.4.1): the server's, or the client's own.
    pub(crate) fn close_code(&self) -> Option<u16> {
        let code = match self {
            Self::ShuttingDown => CloseCode::Away,
            Self::Protocol => CloseCode::Protocol,
            Self::NotUtf8 => CloseCode::Invalid,
            Self::TooBig => CloseCode::Size,
            Self::Policy(_) => CloseCode::Policy,
            Self::NoPong => CloseCode::Error,
            Self::Behind | Self::Stalled | Self::NoSpace | Self::Unfinished | Self::Unavailable => {
                CloseCode::Again
            }
            Self::ByClient(code) => return *code,
            Self::Gone | Self::Transport(_) => return None,
        };
        Some(code.into())
    }

    /// The close frame that the server sends, if any.
    pub(crate) fn close_frame(&self) -> Option<CloseFrame> {
        match self {
            Self::ByClient(_) | Self::Gone | Self::Transport(_) => None,
            by_server => {
                let code = by_server.close_code()?.into();
                Some(CloseFrame {
                    code,
                    reason: by_server.to_string().into(),
                })
            }
        }
    }

    /// Whether the connection is gone, so that nothing can be written.
    pub(crate) fn is_of_transport(&self) -> bool {
        matches!(self, Self::Gone | Self::Transport(_) | Self::Stalled)
    }

    /// Whether the client's bytes are no longer read as WebSocket frames.
    pub(crate) fn ends_reading(&self) -> bool {
        matches!(
            self,
            Self::Protocol
                | Self::NotUtf8
                | Self::TooBig
                | Self::NoSpace
                | Self::Unfinished
                | Self::ByClient(_)
        )
    }

    /// The reason for an error of the connection: [`Gone`](Self::Gone) if the peer closed it.
    pub(crate) fn from_io(error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        match error.kind() {
            // Closing with unread data sends a reset.
            UnexpectedEof | ConnectionReset | BrokenPipe => Self::Gone,
            _ => Self::Transport(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_close_code() {
        let code = |why: Disconnect| why.close_code();
        assert_eq!(code(Disconnect::ByClient(None)), None);
        assert_eq!(code(Disconnect::ShuttingDown), Some(1001));
        assert_eq!(code(Disconnect::Protocol), Some(1002));
        assert_eq!(code(Disconnect::NotUtf8), Some(1007));
        assert_eq!(code(Disconnect::Policy("no right")), Some(1008));
        assert_eq!(code(Disconnect::TooBig), Some(1009));
        assert_eq!(code(Disconnect::NoPong), Some(1011));
        assert_eq!(code(Disconnect::Behind), Some(1013));
        assert_eq!(code(Disconnect::Stalled), Some(1013));
        assert_eq!(code(Disconnect::NoSpace), Some(1013));
        assert_eq!(code(Disconnect::Unfinished), Some(1013));
        assert_eq!(code(Disconnect::Unavailable), Some(1013));
        assert_eq!(code(Disconnect::Gone), None);
        assert_eq!(
            code(Disconnect::Transport(io::ErrorKind::BrokenPipe.into())),
            None
        );
    }

    #[test]
    fn protocol_md_has_each_close_code_with_its_reason() {
        let by_server = [
            Disconnect::ShuttingDown,
            Disconnect::Protocol,
            Disconnect::NotUtf8,
            Disconnect::Policy("what is not permitted, or no longer"),
            Disconnect::TooBig,
            Disconnect::NoPong,
            Disconnect::Behind,
            Disconnect::Stalled,
            Disconnect::Unfinished,
            Disconnect::NoSpace,
            Disconnect::Unavailable,
        ];
        let rows = by_server.map(|why| {
            // A new reason has to be among them.
            match &why {
                Disconnect::ByClient(_) | Disconnect::Gone | Disconnect::Transport(_) => {
                    unreachable!("the server sends none")
                }
                Disconnect::ShuttingDown
                | Disconnect::Protocol
                | Disconnect::NotUtf8
                | Disconnect::TooBig
                | Disconnect::NoPong
                | Disconnect::Behind
                | Disconnect::Stalled
                | Disconnect::NoSpace
                | Disconnect::Unfinished
                | Disconnect::Unavailable
                | Disconnect::Policy(_) => {}
            }
            let frame = why.close_frame().unwrap();
            format!("{} | {}", u16::from(frame.code), frame.reason)
        });
        let protocol = include_str!("../docs/protocol.md");
        let (_, table) = protocol.split_once("| code | reason | ").unwrap();
        let (table, _) = table.split_once("\n\n").unwrap();
        let described = table.lines().skip(2).map(|row| {
            let cells: Vec<_> = row.split(" | ").collect();
            format!("{} | {}", cells[0].trim_start_matches("| "), cells[1])
        });
        assert_eq!(described.collect::<Vec<_>>(), rows);
    }

    #[test]
    fn a_close_by_the_client_has_no_close_frame_of_ours() {
        let why = Disconnect::ByClient(Some(1000));
        assert_eq!((why.close_code(), why.close_frame()), (Some(1000), None));
    }
}
