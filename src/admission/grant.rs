//! A grant: what a client may do, and until when.

use tokio::time::Instant;

use crate::disconnect::Disconnect;

/// What a client may do in its room, and until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Whether it may receive messages: live ones and the history.
    pub(crate) may_read: bool,
    /// Whether it may send messages.
    pub(crate) may_publish: bool,
    /// When all of this expires, if ever.
    pub(crate) until: Option<Instant>,
}

/// Why a grant does not permit an action; a [`Disconnect::Policy`] of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forbidden {
    /// It does not include reading.
    Read,
    /// It does not include publishing.
    Publish,
    /// It has expired.
    Expired,
}

impl Grant {
    /// Everything, for ever.
    pub(crate) const ALL: Self = Self {
        may_read: true,
        may_publish: true,
        until: None,
    };

    /// Nothing, for requests that need no rights.
    pub(crate) const NONE: Self = Self {
        may_read: false,
        may_publish: false,
        until: None,
    };

    /// Whether messages may be read now.
    ///
    /// # Errors
    /// [`Forbidden`].
    pub(crate) fn check_read(&self) -> Result<(), Forbidden> {
        self.check(self.may_read, Forbidden::Read)
    }

    /// Whether messages may be published now.
    ///
    /// # Errors
    /// [`Forbidden`].
    pub(crate) fn check_publish(&self) -> Result<(), Forbidden> {
        self.check(self.may_publish, Forbidden::Publish)
    }

    /// Whether the grant has not expired yet.
    ///
    /// # Errors
    /// [`Forbidden::Expired`].
    pub(crate) fn check_expiry(&self) -> Result<(), Forbidden> {
        match self.until {
            Some(until) if until <= Instant::now() => Err(Forbidden::Expired),
            _ => Ok(()),
        }
    }

    fn check(&self, is_permitted: bool, otherwise: Forbidden) -> Result<(), Forbidden> {
        if !is_permitted {
            return Err(otherwise);
        }
        self.check_expiry()
    }
}

impl Forbidden {
    /// It in a few words.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Read => "reading is not permitted",
            Self::Publish => "publishing is not permitted",
            Self::Expired => "the permission has expired",
        }
    }
}

impl From<Forbidden> for Disconnect {
    fn from(forbidden: Forbidden) -> Self {
        Self::Policy(forbidden.reason())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_grant_permits_what_it_names_until_it_expires() {
        let until = Some(Instant::now() + Duration::from_secs(1));
        let reader = Grant {
            may_publish: false,
            until,
            ..Grant::ALL
        };
        let publisher = Grant {
            may_read: false,
            until,
            ..Grant::ALL
        };
        let checks = |grant: Grant| {
            (
                grant.check_read(),
                grant.check_publish(),
                grant.check_expiry(),
            )
        };
        let (no_read, no_publish) = (Err(Forbidden::Read), Err(Forbidden::Publish));
        assert_eq!(checks(Grant::ALL), (Ok(()), Ok(()), Ok(())));
        assert_eq!(checks(Grant::NONE), (no_read, no_publish, Ok(())));
        assert_eq!(checks(reader), (Ok(()), no_publish, Ok(())));
        assert_eq!(checks(publisher), (no_read, Ok(()), Ok(())));
        tokio::time::advance(Duration::from_secs(1)).await;
        let expired = Err(Forbidden::Expired);
        assert_eq!(checks(reader), (expired, no_publish, expired));
        assert_eq!(checks(publisher), (no_read, expired, expired));
        assert_eq!(checks(Grant::ALL), (Ok(()), Ok(()), Ok(())));
    }
}
