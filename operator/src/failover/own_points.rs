//! Points of a run's own moment. Whoever starts a run expects what was written until then: each server whose latest
//! point is wanted is asked for one of that moment, and the run waits for it a little.
//!
//! In: what is heard of each server, when the run was made, what its status remembers of the vault. Out: of whom a point
//! is waited for, whether the wait is over, and why a server's point is older than the run after all.
//!
//! While the vault gives no answer no point can come either, so the wait begins anew, once, when it is back. Agents may have
//! to connect anew by then: those that nothing is heard of are waited for as well.

use std::{collections::BTreeMap, time::Duration};

use lifeboat_crds::{
    FailoverRunSpec, FailoverRunStatus, Time,
    run::{RecoveryPointKind, ResolvedPoint},
};

use super::{resolve::choice, servers::seconds};

/// A point takes a second or two where the uplink is free, and this is little beside the time that a machine takes to
/// boot.
pub const OWN_POINT_LIMIT: Duration = Duration::from_secs(30);

/// What is heard of a server while its point of the run's own moment may be on its way.
#[derive(Debug, Clone, Default)]
pub struct OwnPoint {
    /// Until when the vault holds everything, and its newest point too; `None` when its agent is not connected, unless the
    /// server was shut down with everything in the vault.
    pub recoverable_until: Option<Time>,
    /// What the agent has answered to the run's request.
    pub answer: Option<PointAnswer>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PointAnswer {
    /// The point is in the vault.
    Taken,
    /// There is none, and why.
    Refused(String),
}

/// One run's wait.
#[derive(Debug, Clone, Copy)]
pub struct OwnPoints<'a> {
    pub(super) spec: &'a FailoverRunSpec,
    created: Time,
    vault_was_silent: bool,
    vault_back_at: Option<Time>,
}

impl<'a> OwnPoints<'a> {
    pub fn new(spec: &'a FailoverRunSpec, created: Time, status: &FailoverRunStatus) -> Self {
        let FailoverRunStatus { vault_was_silent, vault_back_at, .. } = *status;
        Self { spec, created, vault_was_silent, vault_back_at }
    }

    /// What the vault must hold. Kubernetes leaves out the fraction of the second.
    pub fn moment(&self) -> Time {
        self.created.checked_add(Duration::from_secs(1)).unwrap_or(self.created)
    }

    /// Whether the latest point of a server is wanted.
    fn wants(&self, name: &str) -> bool {
        let kind = choice(self.spec, name).kind;
        matches!(kind, RecoveryPointKind::Latest | RecoveryPointKind::LatestCrashConsistent)
    }

    /// Servers of which a point of the run's own moment is to come.
    pub fn awaited(&self, heard: &BTreeMap<String, OwnPoint>) -> Vec<String> {
        let waits = |(name, own): &(&String, &OwnPoint)| {
            let to_come = match own.recoverable_until {
                Some(until) => until < self.moment(),
                None => self.vault_was_silent,
            };
            self.wants(name) && own.answer.is_none() && to_come
        };
        heard.iter().filter(waits).map(|(name, _)| name.clone()).collect()
    }

    /// Whether points are waited for before the vault is asked what it has: asking reads whole logs.
    pub fn waits_unasked(&self, now: Time) -> bool {
        !self.vault_was_silent && self.waits(now)
    }

    /// Whether points are waited for, of a vault that answers.
    pub fn waits(&self, now: Time) -> bool {
        let from = if self.vault_was_silent { self.vault_back_at } else { Some(self.created) };
        // It is back just now: the engine takes down when.
        from.is_none_or(|from| now < from.checked_add(OWN_POINT_LIMIT).unwrap_or(from))
    }

    /// Until when a server's latest point holds all that it wrote, if that is later than the point.
    pub fn complete_until(&self, name: &str, own: Option<&OwnPoint>, point: &ResolvedPoint) -> Option<Time> {
        own?.recoverable_until.filter(|until| self.wants(name) && *until > point.time)
    }

    /// Why a server's latest point is older than the run, for people; `None` when it is not, or older by choice.
    pub fn note(&self, name: &str, own: Option<&OwnPoint>, point: &ResolvedPoint) -> Option<String> {
        let own = own?;
        if !self.wants(name) || point.time >= self.created {
            return None;
        }
        let (why, remedy) = match (&own.answer, own.recoverable_until) {
            (Some(PointAnswer::Taken), _) => return None,
            // What the server wrote since is nothing: the vault holds everything until then.
            (_, Some(until)) if until >= self.moment() => return None,
            (Some(PointAnswer::Refused(why)), _) => {
                (format!("no point of this run's moment could be taken ({why})"), NEWER_BY_ANOTHER_RUN)
            }
            (None, None) => (
                "its agent is not connected, so there is no point of this run's moment".to_owned(),
                "what it wrote since is on the server alone",
            ),
            (None, Some(_)) => (
                format!(
                    "its point of this run's moment did not reach the vault within {} s",
                    OWN_POINT_LIMIT.as_secs()
                ),
                NEWER_BY_ANOTHER_RUN,
            ),
        };
        let older = seconds(self.created.duration_since(point.time));
        Some(format!("{why}: the newest in the vault was chosen, {older} s older than the run; {remedy}"))
    }
}

const NEWER_BY_ANOTHER_RUN: &str =
    "for a newer one see the server's conditions, clean this run up and start another";
