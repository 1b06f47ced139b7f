//! Conditions and their reasons: the one list of both, a constructor for each status, and one pure merge.
//!
//! Kubernetes convention: `Ready` always; `Reconciling` and `Stalled` only while true (kstatus reads them);
//! `lastTransitionTime` moves only when `status` does. Anyone who compares two statuses compares them merged,
//! so that nothing is written when nothing changed.

use std::fmt;

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Longest message kept in a condition; the API server's limit is 32,768, a person's is lower.
pub const MAX_MESSAGE_CHARS: usize = 1024;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// Every member, in the order of the list.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word as it stands in the object.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// Types of conditions.
    ConditionType {
        /// Every kind: all that this object asks for is so.
        Ready = "Ready",
        /// Every kind, only while true: the operator is still at work on it.
        Reconciling = "Reconciling",
        /// Every kind, only while true: nothing will happen until a person acts.
        Stalled = "Stalled",
        /// Appliance: the containers answer and the credentials may read and write.
        VaultReachable = "VaultReachable",
        /// Appliance: the key bundle in the vault is encrypted to the recipients of the spec.
        RecoveryKeyReady = "RecoveryKeyReady",
        /// Appliance: CA and server certificates exist and are valid.
        CertificatesReady = "CertificatesReady",
        /// Appliance: as many process servers are ready as asked for.
        ProcessServersReady = "ProcessServersReady",
        /// Appliance: the applier is ready.
        AppliersReady = "AppliersReady",
        /// Server: an agent holds a certificate of this server.
        Enrolled = "Enrolled",
        /// Server: the agent's last heartbeat is recent.
        AgentConnected = "AgentConnected",
        /// Server: every disk was copied once and a first point exists.
        InitialReplicationComplete = "InitialReplicationComplete",
        /// Server: the RPO is below the policy's threshold.
        RpoMet = "RPOMet",
        /// Server, only while true: a disk must be compared again, the reason says why.
        ResynchronizationRequired = "ResynchronizationRequired",
        /// Server, only while true: the vault was put back to an older moment and nobody has acknowledged it.
        VaultRolledBack = "VaultRolledBack",
        /// Server, only while true: servers of its consistency group name another appliance.
        ConsistencyGroupSplit = "ConsistencyGroupSplit",
        /// Run: the clean-up of what it made is finished.
        CleanedUp = "CleanedUp",
        /// Anything with a finalizer, only while it is being deleted: what it waits for.
        Deleting = "Deleting",
    }
}

words! {
    /// Reasons, in one list so that a reason means the same everywhere. Alerts and people match on them.
    Reason {
        // Any kind.
        /// All is well.
        AsExpected = "AsExpected",
        /// Work goes on; nobody has to act.
        Progressing = "Progressing",
        /// Replication is switched off by the spec.
        Paused = "Paused",
        /// Nothing has been heard yet.
        NotYetKnown = "NotYetKnown",
        /// The spec contradicts itself in a way the API server could not see.
        InvalidSpec = "InvalidSpec",
        /// An object that the spec names does not exist.
        ReferenceNotFound = "ReferenceNotFound",
        /// An object that the spec names exists and is not ready.
        ReferenceNotReady = "ReferenceNotReady",
        /// A Secret that the spec names does not exist or lacks the key.
        SecretNotFound = "SecretNotFound",
        /// The API server refused or could not be reached; tried again by itself.
        ApiError = "ApiError",
        /// The API server does not take a status that the operator writes: in an event, since no condition can say it.
        StatusRefused = "StatusRefused",
        /// Something else of the same name is in the way.
        Conflict = "Conflict",
        /// The finalizer waits.
        WaitingForCleanUp = "WaitingForCleanUp",
        /// The object was let go without clean-up, as its annotation asked.
        Abandoned = "Abandoned",

        // Appliance.
        /// The endpoint could not be reached.
        VaultUnreachable = "VaultUnreachable",
        /// The store refused the credentials.
        VaultAccessDenied = "VaultAccessDenied",
        /// The vault belongs to another key than the one at hand.
        WrongKey = "WrongKey",
        /// The vault's content is not as its own book says.
        VaultDamaged = "VaultDamaged",
        /// A credential or the account lacks a protection that is recommended.
        VaultUnprotected = "VaultUnprotected",
        /// No recipient is given: if the cluster is lost, so is the data.
        NoRecoveryKey = "NoRecoveryKey",
        /// A recipient is no age public key.
        InvalidRecipient = "InvalidRecipient",
        /// Certificates could not be made.
        CertificateError = "CertificateError",
        /// Fewer pods are ready than asked for.
        PodsNotReady = "PodsNotReady",
        /// A pod cannot be scheduled or started; the message has the kubelet's words.
        PodsFailing = "PodsFailing",
        /// Servers still use this appliance.
        InUse = "InUse",
        /// A server was moved since its process server is silent or its pod not ready.
        ProcessServerLost = "ProcessServerLost",
        /// A server was moved since its process server goes: fewer are asked for.
        ProcessServerLeaves = "ProcessServerLeaves",
        /// A server was moved since others have fewer.
        Rebalanced = "Rebalanced",
        /// A server was moved to the others of its consistency group.
        BroughtTogether = "BroughtTogether",

        // Server.
        /// The enrolment token waits to be used.
        WaitingForEnrollment = "WaitingForEnrollment",
        /// The token has run out; a new one is made on request.
        TokenExpired = "TokenExpired",
        /// The agent's heartbeat is missing.
        AgentSilent = "AgentSilent",
        /// The agent has not connected since it was enrolled.
        AgentNeverSeen = "AgentNeverSeen",
        /// The server was shut down by `spec.requestShutdown`.
        SwitchedOff = "SwitchedOff",
        /// A disk cannot be protected.
        DiskUnsupported = "DiskUnsupported",
        /// The first copy is under way.
        InitialReplication = "InitialReplication",
        /// The first copy is complete, its first point is not there yet.
        WaitingForFirstPoint = "WaitingForFirstPoint",
        /// The newest point is older than the threshold.
        RpoExceeded = "RPOExceeded",
        /// Writes may have been missed.
        TrackingLost = "TrackingLost",
        /// The server was restarted: what was written before tracking began again is not known.
        UncleanShutdown = "UncleanShutdown",
        /// A disk has another size.
        DiskResized = "DiskResized",
        /// Disks came or went.
        DisksChanged = "DisksChanged",
        /// Commands reached a disk past the kernel's block layer.
        PassthroughWrites = "PassthroughWrites",
        /// The vault lost records that it had acknowledged.
        JournalDamaged = "JournalDamaged",
        /// The agent does not know what it had sent.
        AgentAnew = "AgentAnew",
        /// A time zone is named that does not exist.
        UnknownTimeZone = "UnknownTimeZone",
        /// The spool is full: the uplink or the vault is too slow.
        SpoolFull = "SpoolFull",
        /// More is written than the uplink or the vault takes.
        UploadBacklog = "UploadBacklog",
        /// The volume of the process server's spool fails.
        SpoolFailed = "SpoolFailed",
        /// The vault says a failover has closed this server's log.
        LogClosed = "LogClosed",
        /// Another process server holds this server's log.
        LogHeld = "LogHeld",
        /// This server's log cannot be read or written as it is.
        LogDamaged = "LogDamaged",
        /// The vault does not hold any more what it had acknowledged: it was put back to an older moment.
        VaultRolledBack = "VaultRolledBack",
        /// What is too old cannot be deleted.
        RetentionStopped = "RetentionStopped",
        /// Servers of one consistency group name different appliances.
        GroupAcrossAppliances = "GroupAcrossAppliances",
        /// The last attempt at a point of the consistency group gave none.
        GroupPointMissed = "GroupPointMissed",

        // Plan, run.
        /// A server of the plan has no recovery point.
        NoRecoveryPoint = "NoRecoveryPoint",
        /// The latest point of a server is older than the run that wanted it.
        OlderPoint = "OlderPoint",
        /// The point that the run asks for cannot be had: it lies in the future.
        PointInFuture = "PointInFuture",
        /// A server is named twice, dependencies form a circle, or the like.
        InvalidPlan = "InvalidPlan",
        /// Another run has one of the servers.
        WaitingForOtherRun = "WaitingForOtherRun",
        /// People are asked.
        WaitingForApproval = "WaitingForApproval",
        /// The run was stopped by a failed step.
        StepFailed = "StepFailed",
        /// The run was cancelled by a person.
        Cancelled = "Cancelled",
        /// The run has reached its end.
        Completed = "Completed",
        /// What the run made is being removed.
        CleaningUp = "CleaningUp",
        /// What the run made is removed.
        CleanedUp = "CleanedUp",
    }
}

/// A condition as a pass sees it, before times are put on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    kind: ConditionType,
    status: &'static str,
    reason: Reason,
    message: String,
}

/// `kind` holds.
pub fn met(kind: ConditionType, reason: Reason, message: impl Into<String>) -> Observation {
    observation(kind, "True", reason, message.into())
}

/// `kind` does not hold; the message says what is wrong and what to do.
pub fn unmet(kind: ConditionType, reason: Reason, message: impl Into<String>) -> Observation {
    observation(kind, "False", reason, message.into())
}

/// Whether `kind` holds cannot be said at the moment.
pub fn unknown(kind: ConditionType, reason: Reason, message: impl Into<String>) -> Observation {
    observation(kind, "Unknown", reason, message.into())
}

fn observation(kind: ConditionType, status: &'static str, reason: Reason, message: String) -> Observation {
    Observation { kind, status, reason, message: bounded(message) }
}

fn bounded(message: String) -> String {
    if message.chars().count() <= MAX_MESSAGE_CHARS {
        return message;
    }
    message.chars().take(MAX_MESSAGE_CHARS - 1).chain(['…']).collect()
}

impl Observation {
    /// The condition's type.
    pub fn kind(&self) -> ConditionType {
        self.kind
    }

    /// The reason given.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The message given, bounded.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether it was made by [`met`].
    pub fn is_met(&self) -> bool {
        self.status == "True"
    }
}

/// The conditions to write: exactly what was observed, each with the old `lastTransitionTime` where its status is
/// the old one. What was not observed this time disappears (this is how `Stalled` goes away).
pub fn merge(
    old: &[Condition],
    observed: Vec<Observation>,
    generation: Option<i64>,
    now: jiff::Timestamp,
) -> Vec<Condition> {
    let mut merged: Vec<Condition> = observed
        .into_iter()
        .map(|Observation { kind, status, reason, message }| {
            let since =
                old.iter().find(|condition| condition.type_ == kind.as_str() && condition.status == status);
            Condition {
                type_: kind.as_str().to_owned(),
                status: status.to_owned(),
                reason: reason.as_str().to_owned(),
                message,
                last_transition_time: since
                    .map_or_else(|| whole_seconds(now), |condition| condition.last_transition_time.clone()),
                observed_generation: generation,
            }
        })
        .collect();
    merged.sort_by(|a, b| a.type_.cmp(&b.type_));
    merged
}

/// Kubernetes writes conditions with whole seconds; so must we, or a status read back never equals the one written.
fn whole_seconds(now: jiff::Timestamp) -> Time {
    Time(jiff::Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// The condition of this type, if present.
pub fn find(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == kind.as_str())
}

/// Whether the condition of this type is present and `True`.
pub fn is_true(conditions: &[Condition], kind: ConditionType) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::new(second, 700_000_000).unwrap()
    }

    fn ready(reason: Reason) -> Observation {
        met(ConditionType::Ready, reason, "all is well")
    }

    #[test]
    fn the_time_stays_while_the_status_stays_even_if_the_reason_changes() {
        let first = merge(&[], vec![ready(Reason::AsExpected)], Some(1), at(100));
        let second = merge(&first, vec![ready(Reason::Completed)], Some(2), at(200));
        assert_eq!(second[0].last_transition_time.0.as_second(), 100);
        assert_eq!(second[0].reason, "Completed");
        assert_eq!(second[0].observed_generation, Some(2));
    }

    #[test]
    fn the_time_moves_when_the_status_does() {
        let first = merge(&[], vec![ready(Reason::AsExpected)], Some(1), at(100));
        let second = merge(
            &first,
            vec![unmet(ConditionType::Ready, Reason::VaultUnreachable, "no answer")],
            Some(1),
            at(200),
        );
        assert_eq!(second[0].last_transition_time.0.as_second(), 200);
    }

    #[test]
    fn an_abnormal_condition_disappears_when_it_is_no_longer_observed() {
        let first = merge(
            &[],
            vec![ready(Reason::AsExpected), met(ConditionType::Stalled, Reason::WrongKey, "")],
            None,
            at(100),
        );
        assert!(is_true(&first, ConditionType::Stalled));
        let second = merge(&first, vec![ready(Reason::AsExpected)], None, at(200));
        assert_eq!(find(&second, ConditionType::Stalled), None);
    }

    #[test]
    fn merging_the_same_observation_again_changes_nothing_whatever_the_order_and_time() {
        let observed =
            || vec![ready(Reason::AsExpected), met(ConditionType::VaultReachable, Reason::AsExpected, "")];
        let first = merge(&[], observed(), Some(1), at(100));
        let mut reversed = observed();
        reversed.reverse();
        assert_eq!(merge(&first, reversed, Some(1), at(200)), first);
    }

    #[test]
    fn a_status_read_back_from_the_api_server_equals_the_one_written() {
        let written = merge(&[], vec![ready(Reason::AsExpected)], Some(1), at(100));
        let read: Vec<Condition> = serde_json::from_value(serde_json::to_value(&written).unwrap()).unwrap();
        assert_eq!(read, written);
    }

    #[test]
    fn a_long_message_is_cut_on_a_character_boundary() {
        let long = met(ConditionType::Ready, Reason::ApiError, "ü".repeat(5000));
        assert_eq!(long.message().chars().count(), MAX_MESSAGE_CHARS);
        assert!(long.message().ends_with('…'));
    }

    #[test]
    fn words_are_unique_and_legal_for_the_api_server() {
        let mut reasons: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert!(reasons.iter().all(|word| word.chars().all(|c| c.is_ascii_alphanumeric())));
        reasons.sort_unstable();
        reasons.dedup();
        assert_eq!(reasons.len(), Reason::ALL.len());
    }
}
