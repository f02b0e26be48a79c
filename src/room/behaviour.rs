//! What a room does with a message.

use crate::config::Mode;

/// What a room does with a message, beside keeping it in its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// It is answered to its sender alone; clients that join later see it in the history.
    Echo,
    /// It goes to every client of the room, the sender included.
    Broadcast,
}

impl Behaviour {
    /// As the welcome of the JSON format has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Broadcast => "broadcast",
        }
    }
}

impl From<Mode> for Behaviour {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Echo => Self::Echo,
            Mode::Broadcast => Self::Broadcast,
        }
    }
}
