//! A blob's lease, as the store keeps it.
//!
//! ```text
//!               acquire                    time
//!   Available ───────────► Held (active) ────────► Held (expired) ──┐ acquire, renew (same id, nothing written since)
//!       ▲                    │ break                  │ break       └──► Held (active)
//!       │ release, any       ▼                        ▼
//!       └ write          ── Broken ◄──────────────────┘     acquire ──► Held (active)
//! ```

use std::time::Duration;

use tokio::time::Instant;

use crate::store::{LeaseId, LeaseState};

#[derive(Debug, Clone, Default)]
pub(super) enum Lease {
    #[default]
    Available,
    Held {
        id: LeaseId,
        term: Duration,
        until: Instant,
    },
    Broken {
        id: LeaseId,
    },
}

/// Code under which Azure would refuse.
type Denied = &'static str;

impl Lease {
    fn active(&self) -> Option<&LeaseId> {
        match self {
            Self::Held { id, until, .. } if Instant::now() < *until => Some(id),
            _ => None,
        }
    }

    pub(super) fn state(&self) -> LeaseState {
        if self.active().is_some() { LeaseState::Leased } else { LeaseState::Free }
    }

    /// A call that changes the blob: without the lease it is refused while somebody holds it.
    pub(super) fn allows_write(&self, given: Option<&LeaseId>) -> Result<(), Denied> {
        match (self.active(), given) {
            (Some(_), None) => Err("LeaseIdMissing"),
            _ => self.allows_read(given),
        }
    }

    /// A call that changes nothing: a lease that is given must be held.
    pub(super) fn allows_read(&self, given: Option<&LeaseId>) -> Result<(), Denied> {
        match (self.active(), given) {
            (Some(held), Some(given)) if held != given => Err("LeaseIdMismatchWithBlobOperation"),
            (None, Some(_)) => Err("LeaseLost"),
            _ => Ok(()),
        }
    }

    /// An allowed write ends what is expired or broken: it cannot be renewed any more.
    pub(super) fn written(&mut self) {
        if self.active().is_none() {
            *self = Self::Available;
        }
    }

    pub(super) fn acquire(&mut self, id: &LeaseId, term: Duration) -> Result<(), Denied> {
        if self.active().is_some_and(|held| held != id) {
            return Err("LeaseAlreadyPresent");
        }
        *self = Self::Held { id: id.clone(), term, until: Instant::now() + term };
        Ok(())
    }

    pub(super) fn renew(&mut self, given: &LeaseId) -> Result<(), Denied> {
        match self {
            Self::Held { id, term, until } if id == given => {
                *until = Instant::now() + *term;
                Ok(())
            }
            Self::Broken { id } if id == given => Err("LeaseIsBrokenAndCannotBeRenewed"),
            _ => Err("LeaseIdMismatchWithLeaseOperation"),
        }
    }

    pub(super) fn release(&mut self, given: &LeaseId) -> Result<(), Denied> {
        match self {
            Self::Held { id, .. } | Self::Broken { id } if id == given => {
                *self = Self::Available;
                Ok(())
            }
            _ => Err("LeaseIdMismatchWithLeaseOperation"),
        }
    }

    pub(super) fn end(&mut self) {
        if let Self::Held { id, .. } = self {
            *self = Self::Broken { id: id.clone() };
        }
    }
}
