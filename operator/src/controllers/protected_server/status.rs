//! A server's status from what is known of it. Pure.

mod hindrance;
mod issues;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use lifeboat_crds::{
    ProtectedServer, ProtectedServerStatus, ReplicationPolicySpec, Time,
    appliance::Health,
    conditions::{self, ConditionType, Observation, Reason, met, unknown, unmet},
    server::{
        FailoverState, Issue, Move, Replication, RequestState, Rollback, Rpo, ServerPhase, Severity, Shutdown,
    },
};
use lifeboat_replication::{env::Micros, resync::Cause, wire::v1};

use super::{
    figures::{agent, disks, progress, recovery_points, rpo_seconds, rpo_since, storage, time, whole},
    group,
    places::Placed,
    request,
    rollback::{self, Seen},
    shutdown,
};
use crate::{
    control::{Applied, Figures, enrol::Enrolment},
    runtime::{Category, Failure},
};
use hindrance::Hindrance;

/// An agent sends a heartbeat every second.
const SILENT_SECONDS: u64 = 15;
/// A process server that is well reports every few seconds.
const UNHEARD_SECONDS: u64 = 8;
/// Within this time an agent is back whose process server has started anew.
const BACK_SECONDS: u64 = 45;
/// A server that was moved replicates again within this time.
const MOVE_SECONDS: i64 = 60;
/// The agent's code for a resynchronization that has to wait.
const RESYNCHRONIZATION_REQUIRED: &str = "ResynchronizationRequired";

/// What a pass has found.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    pub id: Option<String>,
    pub placed: Placed,
    pub policy: Option<ReplicationPolicySpec>,
    pub enrolment: Option<Enrolment>,
    pub figures: Option<Figures>,
    pub applied: Option<Applied>,
    /// Any applier of the appliance has been heard.
    pub appliers_heard: bool,
    pub failover: Option<FailoverState>,
    /// What the agent says to `spec.requestPoint`.
    pub answer: Option<v1::PointAnswer>,
    /// Of its consistency group.
    pub group: Option<group::Found>,
    /// The log's end; `None`: nothing new is known of it.
    pub seen: Option<Seen>,
    /// Bytes a second that its process server may upload now; 0: as many as it can.
    pub upload_limit: u64,
    /// What is missing or not ready: the pass did not come to its end.
    pub failure: Option<(Category, Reason, String)>,
}

impl Findings {
    pub fn fail(&mut self, failure: &Failure) {
        self.failure = Some(failure.into());
    }
}

/// Whether a move by choice would disturb nothing: protected and connected, nothing under way.
pub(super) fn is_quiet(server: &ProtectedServer, findings: &Findings) -> bool {
    let (Some(before), Some(figures)) = (&server.status, &findings.figures) else { return false };
    let report = &figures.report;
    let compares = report.heartbeat.as_ref().is_none_or(|heartbeat| !heartbeat.resynchronization.is_empty());
    let asked = before.requested_point.as_ref().is_some_and(|point| point.state == RequestState::Taking);
    before.phase == Some(ServerPhase::Protected)
        && server.spec.replication == Replication::Enabled
        && findings.failover.is_none()
        && report.connected
        && report.complete
        && report.error.is_empty()
        && !compares
        && !asked
}

/// The last move, as long as the new process server is given time to take over; then its silence is worth a word.
fn under_way(findings: &Findings, now: Time) -> Option<&Move> {
    let fresh = |last: &&Move| now.duration_since(last.time).as_secs() < MOVE_SECONDS;
    let taken =
        findings.figures.as_ref().is_some_and(|figures| figures.report.epoch > 0 && figures.report.connected);
    findings.placed.last_move.as_ref().filter(fresh).filter(|_| !taken)
}

pub fn status(server: &ProtectedServer, findings: &Findings, now: Time) -> ProtectedServerStatus {
    let moving = under_way(findings, now).is_some();
    let waits = findings.figures.as_ref().is_some_and(|figures| figures.report.epoch == 0);
    if moving && waits {
        // What it says while it waits for the log is nothing to wake anybody for: the server goes on where it was.
        return status(server, &Findings { figures: None, ..findings.clone() }, now);
    }
    let before = server.status.clone().unwrap_or_default();
    let report = findings.figures.as_ref().map(|figures| &figures.report);
    let enrolled =
        findings.enrolment.as_ref().is_some_and(|enrolment| !enrolment.public_key_sha256.is_empty());
    let known = || before.rpo.as_ref().map(|known| rpo_since(known, now));
    let rpo_seconds = findings.figures.as_ref().and_then(rpo_seconds).or_else(known);
    let disks = report.map(|report| disks(report, &before, now)).unwrap_or_else(|| before.disks.clone());
    let points = findings
        .applied
        .as_ref()
        .map(|applied| recovery_points(&applied.report, report, before.recovery_points.as_ref()))
        .or(before.recovery_points.clone());
    let phase = phase(server, findings, &before, enrolled);
    let seen = findings
        .seen
        .clone()
        .unwrap_or_else(|| Seen { head: before.last_seen_head.clone(), rollback: before.rollback.clone() });
    // A process server that was restarted in the middle of a copy knows of no point; since the rollback was noticed, what
    // was shown is of the new history.
    let shown = before.last_point_time.filter(|_| before.rollback.is_some());
    let newest = report.and_then(|report| time(report.last_point_micros)).or(shown);
    let policy = findings.policy.as_ref();
    let rollback = seen.rollback.filter(|rollback| {
        let mended = rollback::is_mended(rollback, newest);
        let over = mended && rollback::is_over(rollback, policy, now);
        !over && !rollback::is_acknowledged(server, rollback)
    });
    let rolled_back = rollback.as_ref().map(|rollback| (rollback, rollback::is_mended(rollback, newest)));
    let mut facts = Facts { server, findings, before: &before, enrolled, rpo_seconds, phase, rolled_back };
    if facts.switched_off().is_some() {
        facts.rpo_seconds = Some(0);
    }
    let issues = issues::issues(&facts, now);
    let observed = facts.observations(now);
    ProtectedServerStatus {
        observed_generation: if findings.failure.is_none() {
            server.metadata.generation
        } else {
            before.observed_generation
        },
        conditions: conditions::merge(&before.conditions, observed, server.metadata.generation, now),
        phase: Some(phase),
        replication_health: Some(facts.health(&issues)),
        id: findings.id.clone().or(before.id.clone()),
        epoch: report.map(|report| u64::from(report.epoch)).filter(|epoch| *epoch > 0).or(before.epoch),
        process_server: findings.placed.process_server.clone().or(before.process_server.clone()),
        applier: match &findings.applied {
            Some(applied) => Some(applied.applier.clone()).filter(|applier| !applier.is_empty()),
            None if findings.appliers_heard => None,
            None => before.applier.clone(),
        },
        last_move: findings.placed.last_move.clone().or(before.last_move.clone()),
        rpo: facts.rpo_seconds.map(|seconds| Rpo { seconds, observed_at: whole(now) }),
        last_point_time: report.and_then(|report| time(report.last_point_micros)).or(before.last_point_time),
        progress: progress(phase, &disks),
        agent: report.and_then(agent).or(before.agent.clone()),
        recovery_points: points,
        storage: findings
            .applied
            .as_ref()
            .and_then(|applied| storage(&applied.report))
            .or(before.storage.clone()),
        requested_point: request::state(server, findings.answer.as_ref(), now),
        shutdown: shutdown::state(server, said_of_shutdown(report), now),
        group_point: group::point(server, findings.group.as_ref(), before.group_point.as_ref()),
        last_seen_head: seen.head,
        rollback: rollback.clone(),
        disks,
        issues,
        failover: findings.failover.clone(),
    }
}

fn said_of_shutdown(report: Option<&v1::ServerReport>) -> Option<&v1::ShutdownAnswer> {
    report?.heartbeat.as_ref()?.shutdown.as_ref()
}

fn phase(
    server: &ProtectedServer,
    findings: &Findings,
    before: &ProtectedServerStatus,
    enrolled: bool,
) -> ServerPhase {
    let known = before.phase.unwrap_or_default();
    if server.spec.replication == Replication::Paused {
        return ServerPhase::Paused;
    }
    if findings.enrolment.is_none() && findings.failure.is_some() {
        return match known {
            ServerPhase::Enrolling => ServerPhase::Pending,
            known => known,
        };
    }
    if !enrolled {
        return ServerPhase::Enrolling;
    }
    let held = |figures: &&Figures| figures.report.epoch > 0 || figures.report.error.is_empty();
    let Some(figures) = findings.figures.as_ref().filter(|figures| held(figures) || is_failure(figures))
    else {
        // Nothing is heard at the moment, or only why the log is not taken yet; it goes on where it was.
        return if matches!(known, ServerPhase::Pending | ServerPhase::Enrolling | ServerPhase::Paused) {
            ServerPhase::InitialReplication
        } else {
            known
        };
    };
    let report = &figures.report;
    if is_failure(figures) {
        return ServerPhase::Failed;
    }
    let had_points = report.last_point_micros > 0
        || before.recovery_points.as_ref().is_some_and(|points| points.count > 0);
    let again = report
        .heartbeat
        .as_ref()
        .is_some_and(|heartbeat| !heartbeat.resynchronization.is_empty() && report.connected);
    match (report.complete && !again, report.last_point_micros > 0, had_points) {
        (true, true, _) => ServerPhase::Protected,
        (_, _, true) => ServerPhase::Resynchronizing,
        (_, _, false) => ServerPhase::InitialReplication,
    }
}

fn is_failure(figures: &Figures) -> bool {
    Hindrance::of(&figures.report).is_some_and(Hindrance::is_failure)
}

struct Facts<'a> {
    server: &'a ProtectedServer,
    findings: &'a Findings,
    before: &'a ProtectedServerStatus,
    enrolled: bool,
    rpo_seconds: Option<u64>,
    phase: ServerPhase,
    /// The vault was put back, and whether there is a newer point than those that were lost.
    rolled_back: Option<(&'a Rollback, bool)>,
}

impl Facts<'_> {
    fn report(&self) -> Option<&v1::ServerReport> {
        self.findings.figures.as_ref().map(|figures| &figures.report)
    }

    fn hindrance(&self) -> Option<Hindrance<'_>> {
        let backlog = |issue: &Issue| issue.code == Reason::UploadBacklog.as_str();
        let catches_up = || self.late() && self.connected() && self.before.issues.iter().any(backlog);
        self.report().and_then(Hindrance::of).or_else(|| catches_up().then_some(Hindrance::CATCHES_UP))
    }

    /// What spec.bandwidth of the appliance leaves to its process server now.
    fn upload_limit(&self) -> Option<u64> {
        Some(self.findings.upload_limit).filter(|limit| *limit > 0)
    }

    /// What hinders the server keeps its agent from being served.
    fn refused(&self) -> Option<Hindrance<'_>> {
        self.hindrance().filter(|hindrance| hindrance.refuses_agents() && !self.connected())
    }

    /// No process server here has it, and the vault holds points of it.
    fn is_replicated_elsewhere(&self) -> bool {
        let applied = self.findings.applied.as_ref();
        self.findings.placed.process_server.is_none()
            && applied.is_some_and(|applied| !applied.report.points.is_empty())
    }

    /// The vault is older than the policy allows.
    fn late(&self) -> bool {
        self.rpo_seconds.is_some_and(|seconds| seconds > self.threshold())
    }

    fn threshold(&self) -> u64 {
        self.findings.policy.as_ref().map(|policy| policy.rpo_threshold.as_secs()).unwrap_or(u64::MAX)
    }

    /// Seconds since the agent was heard; `None`: never, or nobody can say.
    fn silence(&self) -> Option<u64> {
        let figures = self.findings.figures.as_ref()?;
        let seen = Micros(figures.report.last_seen_micros);
        (seen.0 > 0).then(|| (figures.time.seconds_since(seen).max(0.0) + figures.age.as_secs_f64()) as u64)
    }

    /// A reconnection takes seconds, and so does the first connection after the enrolment: nothing to wake anybody for.
    fn overdue(&self, now: Time) -> bool {
        let away = under_way(self.findings, now).is_some() || self.unheard() || self.comes_back(now);
        if away || self.switched_off().is_some() {
            return false;
        }
        let since_enrolled = || {
            let is_enrolled = |known: &&Condition| {
                known.type_ == ConditionType::Enrolled.as_str() && known.status == "True"
            };
            let enrolled = self.before.conditions.iter().find(is_enrolled)?;
            Some(now.duration_since(enrolled.last_transition_time.0).as_secs().unsigned_abs())
        };
        self.silence().or_else(since_enrolled).is_some_and(|silence| silence >= SILENT_SECONDS)
    }

    /// A connection that has ended this moment is one that begins again the next.
    fn connected(&self) -> bool {
        match self.silence() {
            Some(silence) => silence < SILENT_SECONDS,
            None => self.report().is_some_and(|report| report.connected),
        }
    }

    /// It was shut down by order, and has not been heard since: nothing is written, so nothing could be lost.
    fn switched_off(&self) -> Option<&Shutdown> {
        shutdown::switched_off(self.server).filter(|_| !self.connected())
    }

    /// The process server says nothing at the moment, so nothing can be said of the agent.
    fn unheard(&self) -> bool {
        self.findings.figures.as_ref().is_some_and(|figures| figures.age.as_secs() >= UNHEARD_SECONDS)
    }

    /// Its process server has started anew: the agent that the former run knew has a while to find it.
    fn comes_back(&self, now: Time) -> bool {
        let Some(figures) = self.findings.figures.as_ref() else { return false };
        let known = self.before.agent.as_ref().and_then(|agent| agent.last_seen);
        figures.report.last_seen_micros == 0
            && known.is_some_and(|known| {
                let silent = now.duration_since(known).as_secs().unsigned_abs();
                silent.min(figures.since.as_secs()) < BACK_SECONDS
            })
    }

    fn health(&self, issues: &[Issue]) -> Health {
        let critical = issues.iter().any(|issue| issue.severity == Severity::Critical);
        match self.phase {
            ServerPhase::Pending | ServerPhase::Enrolling | ServerPhase::Paused => Health::Unknown,
            ServerPhase::Failed => Health::Critical,
            _ if critical => Health::Critical,
            _ if self.findings.figures.is_none() || self.unheard() => Health::Unknown,
            _ if !issues.is_empty() => Health::Warning,
            _ => Health::Healthy,
        }
    }

    fn observations(&self, now: Time) -> Vec<Observation> {
        let mut all = vec![
            self.is_enrolled(now),
            self.agent_connected(now),
            self.initial_replication_complete(),
            self.rpo_met(),
        ];
        if let Some((reason, message)) = self.resynchronization() {
            all.push(met(ConditionType::ResynchronizationRequired, reason, message));
        }
        if let Some((rollback, mended)) = self.rolled_back {
            let (message, remedy) = rollback::words(self.server, rollback, mended);
            let message = format!("{message}; {remedy}");
            all.push(met(ConditionType::VaultRolledBack, Reason::VaultRolledBack, message));
        }
        if let Some((message, remedy)) = self.findings.group.as_ref().and_then(group::Found::across) {
            let message = format!("{message}; {remedy}");
            all.push(met(ConditionType::ConsistencyGroupSplit, Reason::GroupAcrossAppliances, message));
        }
        let (ready, abnormal) = self.ready(&all);
        all.push(ready);
        all.extend(abnormal);
        all
    }

    fn ready(&self, others: &[Observation]) -> (Observation, Option<Observation>) {
        let unready = |reason, message: &str| unmet(ConditionType::Ready, reason, message);
        if let Some((category, reason, message)) = &self.findings.failure {
            let kind = if *category == Category::Stalled {
                ConditionType::Stalled
            } else {
                ConditionType::Reconciling
            };
            return (unready(*reason, message), Some(met(kind, *reason, message.clone())));
        }
        if self.server.spec.replication == Replication::Paused {
            return (
                unready(Reason::Paused, "replication is switched off by spec.replication: set it to Enabled"),
                None,
            );
        }
        if let Some(hindrance) = self.hindrance().filter(|hindrance| hindrance.is_worth_a_word(self.late())) {
            let kind = match hindrance.is_failure() {
                true => ConditionType::Stalled,
                false => ConditionType::Reconciling,
            };
            let (reason, message) = (hindrance.reason(), hindrance.message());
            return (unready(reason, &message), Some(met(kind, reason, message)));
        }
        if let Some((rollback, false)) = self.rolled_back {
            let (message, _) = rollback::words(self.server, rollback, false);
            return (
                unready(Reason::VaultRolledBack, &message),
                Some(met(ConditionType::Reconciling, Reason::VaultRolledBack, message)),
            );
        }
        match others.iter().find(|observation| {
            !observation.is_met() && observation.kind() != ConditionType::ResynchronizationRequired
        }) {
            Some(missing) => (
                unready(missing.reason(), missing.message()),
                Some(met(ConditionType::Reconciling, missing.reason(), missing.message())),
            ),
            None => (
                met(
                    ConditionType::Ready,
                    Reason::AsExpected,
                    "protected: there is a point to fail over to, and rounds go on",
                ),
                None,
            ),
        }
    }

    fn is_enrolled(&self, now: Time) -> Observation {
        let kind = ConditionType::Enrolled;
        let name = self.server.metadata.name.as_deref().unwrap_or_default();
        match &self.findings.enrolment {
            None => unknown(kind, Reason::NotYetKnown, "there is no token yet"),
            Some(_) if self.enrolled => {
                met(kind, Reason::AsExpected, "an agent holds this server's certificate")
            }
            Some(enrolment) if enrolment.expires_at.is_some_and(|time| time <= now) => {
                let message = format!(
                    "the token has expired: delete Secret {name}-enrollment, and run `kubectl lifeboat enroll {name}`"
                );
                unmet(kind, Reason::TokenExpired, message)
            }
            Some(enrolment) => {
                let until = enrolment.expires_at.map(|time| format!(" until {time}")).unwrap_or_default();
                let message = format!(
                    "the token waits to be used{until}: run on the machine what `kubectl lifeboat enroll {name}` prints"
                );
                unmet(kind, Reason::WaitingForEnrollment, message)
            }
        }
    }

    fn agent_connected(&self, now: Time) -> Observation {
        let kind = ConditionType::AgentConnected;
        if !self.enrolled {
            return unmet(kind, Reason::WaitingForEnrollment, "no agent is enrolled");
        }
        if self.connected() {
            return met(kind, Reason::AsExpected, "the agent's heartbeat is recent");
        }
        if let Some(off) = self.switched_off() {
            return unmet(kind, Reason::SwitchedOff, shutdown::words(off));
        }
        if let Some(last) = under_way(self.findings, now) {
            let message = format!(
                "moved from {} to {}, where the agent connects within a minute: {}",
                last.from, last.to, last.message
            );
            return unknown(kind, Reason::Progressing, message);
        }
        if let Some(hindrance) = self.refused() {
            let message = format!("agents are not served meanwhile: {}", hindrance.message());
            return unknown(kind, hindrance.reason(), message);
        }
        if let Some(figures) = self.findings.figures.as_ref().filter(|_| self.unheard()) {
            let message = format!(
                "nothing is heard of process server {} at the moment; agents find it, or another one, by themselves: see the appliance's conditions",
                figures.process_server
            );
            return unknown(kind, Reason::NotYetKnown, message);
        }
        if self.comes_back(now) {
            let message = "its process server has started anew: the agent connects within a minute";
            return unknown(kind, Reason::Progressing, message);
        }
        let remedy = "look at `systemctl status lifeboat-agent` on the machine, and whether it reaches the appliance's ports";
        match (self.findings.figures.as_ref(), self.silence()) {
            (None, _) => unknown(
                kind,
                Reason::NotYetKnown,
                "no report of the process server: see the appliance's conditions",
            ),
            (Some(_), None) => {
                unmet(kind, Reason::AgentNeverSeen, format!("the agent has not connected yet: {remedy}"))
            }
            // Minutes, so that the message does not change with every pass.
            (Some(_), Some(silence)) if silence >= 60 => unmet(
                kind,
                Reason::AgentSilent,
                format!("nothing was heard for {} min: {remedy}", silence / 60),
            ),
            (Some(_), Some(_)) => {
                unmet(kind, Reason::AgentSilent, format!("the heartbeat is missing: {remedy}"))
            }
        }
    }

    fn initial_replication_complete(&self) -> Observation {
        let kind = ConditionType::InitialReplicationComplete;
        let before = conditions::is_true(&self.before.conditions, kind);
        match self.report() {
            Some(report) if report.last_point_micros > 0 => {
                met(kind, Reason::AsExpected, "every disk is in the vault and a first point exists")
            }
            _ if before => {
                met(kind, Reason::AsExpected, "every disk is in the vault and a first point exists")
            }
            Some(report) if report.complete => unmet(
                kind,
                Reason::WaitingForFirstPoint,
                "every disk is in the vault; the first point comes with the next exact round",
            ),
            Some(_) => unmet(kind, Reason::InitialReplication, "the first copy is under way"),
            None => unmet(kind, Reason::NotYetKnown, "nothing has been replicated yet"),
        }
    }

    fn rpo_met(&self) -> Observation {
        let kind = ConditionType::RpoMet;
        let threshold = self.threshold();
        match self.rpo_seconds {
            None if self.is_replicated_elsewhere() => unknown(
                kind,
                Reason::NotYetKnown,
                "how old the vault is says the cluster whose process server has this server: see status.recoveryPoints.latest",
            ),
            None => unknown(kind, Reason::NotYetKnown, "there is no point yet"),
            Some(seconds) if seconds <= threshold => {
                met(kind, Reason::AsExpected, "the newest point is younger than the policy's threshold")
            }
            Some(_) => {
                let message = format!(
                    "the newest point is older than {threshold} s: check that the agent is connected, the appliance's health, and whether the uplink carries what is written"
                );
                unmet(kind, Reason::RpoExceeded, message)
            }
        }
    }

    /// Set while it waits for the policy's window, or for somebody to ask for it.
    fn resynchronization(&self) -> Option<(Reason, String)> {
        let heartbeat = self.report()?.heartbeat.as_ref()?;
        let waits = heartbeat.issues.iter().find(|issue| issue.code == RESYNCHRONIZATION_REQUIRED)?;
        let reason = match Cause::of(&format!("{}: ", heartbeat.resynchronization)).0 {
            Cause::TrackingLost | Cause::Requested => Reason::TrackingLost,
            Cause::UncleanShutdown | Cause::EarlyTrackerMissing | Cause::ChangedWhileDown => {
                Reason::UncleanShutdown
            }
            Cause::DiskResized => Reason::DiskResized,
            Cause::DisksChanged => Reason::DisksChanged,
            Cause::PassthroughWrites => Reason::PassthroughWrites,
            Cause::JournalDamaged => Reason::JournalDamaged,
            Cause::AgentAnew => Reason::AgentAnew,
        };
        Some((reason, format!("{}; {}", waits.message, waits.remedy)))
    }
}
