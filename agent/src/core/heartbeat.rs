//! What a heartbeat says: the machine, the progress, what is wrong, and whether everything is in the vault.

use lifeboat_replication::{env::Micros, resync::Cause, wire::v1};
use tokio::time::Instant;

use super::{
    issue,
    session::{Session, SessionError, up},
};

impl Session<'_> {
    pub(super) fn heartbeat(&mut self) -> Result<v1::Up, SessionError> {
        let now = Instant::now();
        let clean_at = self.clean_at(now)?;
        self.kept.shutdown.clean(clean_at);
        let date = self.parts.env.wall.now();
        let machine = &self.options.machine;
        let reason = self.parts.map.copy_reason();
        let mut issues: Vec<_> = self.kept.issues.values().cloned().collect();
        issues.extend(self.parts.map.issues());
        issues.extend(reason.as_deref().map(|reason| self.copy_issue(reason)));
        let message = v1::Heartbeat {
            agent_time_micros: self.clock.sending(date, now).0,
            clean_at_micros: clean_at.0,
            disks: self.kept.progress.of(
                &self.disks,
                &self.slots,
                &self.tracker,
                self.policy.paused,
                match &reason {
                    Some(_) if self.waits => "Waiting",
                    Some(_) => "Resynchronizing",
                    None => "Copying",
                },
                now,
            ),
            tracking: self.parts.map.tracking(),
            freezes: self.kept.freezes.count,
            worst_freeze_micros: u64::try_from(self.kept.freezes.worst.as_micros()).unwrap_or(u64::MAX),
            issues,
            hostname: machine.hostname.clone(),
            os: machine.os.clone(),
            kernel: machine.kernel.clone(),
            machine_id: machine.machine_id.clone(),
            resynchronization: reason
                .map_or_else(String::new, |reason| Cause::of(&reason).0.code().to_owned()),
            agent_version: machine.agent_version.clone(),
            agent_sha256: machine.program_sha256.clone(),
            points: self.kept.requests.answers(),
            not_freezable: self.not_freezable.clone(),
            shutdown: self.kept.shutdown.answer(),
        };
        Ok(up(v1::up::Message::Heartbeat(message)))
    }

    /// Why disks are compared with the vault, or copied, again.
    fn copy_issue(&self, reason: &str) -> v1::AgentIssue {
        let (cause, words) = Cause::of(reason);
        let remedy = format!(
            "nothing to do: points made before stay usable, new ones follow when it is complete ({})",
            cause.code()
        );
        if self.waits {
            let remedy = "wait for spec.resynchronization.window of its ReplicationPolicy, or set spec.resynchronize of the ProtectedServer to a new value";
            let message = format!("{words}: the disks have to be compared with the vault");
            return issue("ResynchronizationRequired", "Warning", message, remedy);
        }
        let (code, what) = match &self.kept.not_compared {
            None => ("Resynchronizing", "only what differs from the vault is copied".to_owned()),
            Some(why) => ("FullCopy", format!("everything is copied again, since {why}")),
        };
        issue(code, "Warning", format!("{words}: {what}"), &remedy)
    }

    /// The process server's time at `now` when since before it nothing is dirty, in flight or unacknowledged and
    /// the log ends with a point; else 0.
    ///
    /// The order matters: a write in flight marks its completion before it leaves the count, so the count is read
    /// first and the marks after it. A write issued during this check is later than `now`.
    pub(super) fn clean_at(&mut self, now: Instant) -> Result<Micros, SessionError> {
        self.check_lost()?;
        let clean = self.tracker.is_clean()
            && !self.need_point
            && self.parts.map.in_flight() == Some(0)
            && self.parts.map.dirty_now()? == 0;
        Ok(if clean { self.clock.at(now) } else { Micros(0) })
    }
}
