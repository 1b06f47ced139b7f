//! `FailoverRun`: one execution of a plan, and the record of it.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Condition, Duration, Time,
    approval::Decision,
    check::HealthCheck,
    plan::{FailoverType, Group},
    refs::{LocalRef, User},
    schema::opaque_object,
    server::Target,
};

/// One execution of a plan, or of the recovery of one server.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "lifeboat.dev",
    version = "v1alpha1",
    kind = "FailoverRun",
    shortname = "frun",
    category = "lifeboat",
    namespaced,
    status = "FailoverRunStatus",
    derive = "PartialEq",
    doc = "FailoverRun is one execution of a recovery plan, and the record of it. Nothing in its spec changes but the switches cancel and cleanUp, and these only from false to true.",
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Plan", type_ = "string", json_path = ".spec.planRef.name"),
    printcolumn(name = "Server", type_ = "string", json_path = ".spec.serverRef.name", priority = 1),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Step", type_ = "string", json_path = ".status.progress", description = "Steps ended of all steps"),
    printcolumn(name = "Waiting for", type_ = "string", json_path = ".status.waitingFor"),
    printcolumn(name = "RTO", type_ = "integer", json_path = ".status.rtoSeconds", description = "Seconds from the start until every server answered"),
    printcolumn(name = "RPO", type_ = "integer", json_path = ".status.rpoSeconds", priority = 1),
    printcolumn(name = "By", type_ = "string", json_path = ".spec.requestedBy.username", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name of a FailoverRun has at most 63 characters: small letters, digits and dashes, since it labels what the run makes")
)]
#[x_kube(
    validation = Rule::new("has(self.planRef) != has(self.serverRef)").message("choose exactly one of planRef and serverRef"),
    validation = Rule::new("(has(self.planRef) ? has(oldSelf.planRef) && self.planRef == oldSelf.planRef : !has(oldSelf.planRef)) && (has(self.serverRef) ? has(oldSelf.serverRef) && self.serverRef == oldSelf.serverRef : !has(oldSelf.serverRef)) && (has(self.servers) ? has(oldSelf.servers) && self.servers == oldSelf.servers : !has(oldSelf.servers)) && (has(self.cleanUpAfter) ? has(oldSelf.cleanUpAfter) && self.cleanUpAfter == oldSelf.cleanUpAfter : !has(oldSelf.cleanUpAfter)) && self.requestedBy == oldSelf.requestedBy && self.type == oldSelf.type && self.recoveryPoint == oldSelf.recoveryPoint").message("a run is never changed but for cancel and cleanUp: create another run"),
    validation = Rule::new("!has(self.servers) || !has(self.serverRef)").message("servers belongs to a run of a plan; a run of one server has its recoveryPoint")
)]
#[serde(rename_all = "camelCase")]
pub struct FailoverRunSpec {
    /// The plan to execute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_ref: Option<LocalRef>,
    /// The one server to recover, without a plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_ref: Option<LocalRef>,
    /// Who asks. Admission demands that this is the caller.
    pub requested_by: User,
    /// Type of the run.
    #[serde(rename = "type")]
    #[x_kube(validation = Rule::new("self == 'Test'").message("this version offers type Test only; Planned and Unplanned runs are not offered yet"))]
    pub kind: FailoverType,
    /// Which point each server is recovered to.
    #[serde(default)]
    pub recovery_point: RecoveryPointChoice,
    /// Other points for single servers of the plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 100), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub servers: Vec<ServerOverride>,
    /// Clean up by itself this long after the run has ended; only on request when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean_up_after: Option<Duration>,
    /// Stop. What was made stays until it is cleaned up.
    #[serde(default)]
    #[x_kube(validation = Rule::new("!oldSelf || self").message("cancel cannot be taken back: create another run"))]
    pub cancel: bool,
    /// Remove what the run has made. A run that is still going is cancelled first.
    #[serde(default)]
    #[x_kube(validation = Rule::new("!oldSelf || self").message("cleanUp cannot be taken back: create another run"))]
    pub clean_up: bool,
}

/// A point of another server than the run's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerOverride {
    /// Name of the ProtectedServer; it must be in the plan.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The point it is recovered to.
    pub recovery_point: RecoveryPointChoice,
}

/// Which point.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("(self.kind == 'At') == has(self.time)").message("time belongs to kind At, which needs it"))]
pub struct RecoveryPointChoice {
    /// How it is chosen.
    #[serde(default)]
    pub kind: RecoveryPointKind,
    /// The newest point at or before this instant (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

/// How a point is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RecoveryPointKind {
    /// The newest consistent point in the vault when the run starts, applied to the seed disks or not.
    #[default]
    Latest,
    /// The newest snapshot of the seed disks: the shortest start, a little older.
    LatestProcessed,
    /// The newest crash-consistent point. Every point is at least that.
    LatestCrashConsistent,
    /// The newest point for which all file systems stood frozen.
    LatestFilesystemConsistent,
    /// The newest point for which the hooks of the applications had prepared them.
    LatestAppConsistent,
    /// The newest point that all servers of a consistency group have in common, of those in the run: the application as a
    /// whole at one instant, perhaps older than each server's own newest. Servers without a group: as `Latest`.
    LatestGroup,
    /// The newest point at or before `time`.
    At,
}

/// The record of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailoverRunStatus {
    /// The generation of the spec that the last successful pass has seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready: the run has completed. Reconciling while it goes on, Stalled while only people can let it go on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<RunPhase>,
    /// SHA-256 of what is in `resolved`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<String>,
    /// What the run executes, frozen when it started: later edits of the plan do not touch it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "opaque_object")]
    pub resolved: Option<Resolved>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When its last step ended, before any clean-up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// When the clean-up ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleaned_up_at: Option<Time>,
    /// From the start until the last server's health check passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto_seconds: Option<u64>,
    /// The worst of its servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo_seconds: Option<u64>,
    /// The vault gave no answer while the run was to start: points of the run's own moment are waited for anew once it
    /// does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub vault_was_silent: bool,
    /// When the vault answered again after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault_back_at: Option<Time>,
    /// What it waits for, in words; absent when it waits for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub waiting_for: Option<String>,
    /// Steps ended of all steps, for people: `7/12`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// Every step, in the order of the plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub steps: Vec<StepStatus>,
    /// Every server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub servers: Vec<ServerStatus>,
}

/// What a run executes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resolved {
    /// The plan's groups; one group without steps for a run of a single server.
    pub groups: Vec<Group>,
    /// Every server of the groups.
    pub servers: Vec<ResolvedServer>,
}

/// A server as it was when the run started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedServer {
    /// Name of the ProtectedServer.
    pub name: String,
    /// Identity in the vault.
    pub id: String,
    /// Its appliance, whose vault holds the point.
    pub appliance: String,
    pub recovery_point: ResolvedPoint,
    /// Why the point is older than the run, though the latest was wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_point_note: Option<String>,
    /// Until when the point holds all that the server wrote, if that is later than the point: nothing was written since,
    /// or the server was shut down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete_until: Option<Time>,
    pub target: Target,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
}

/// The phase of a run.
///
/// ```text
/// Pending → Validating → Running ⇄ Waiting → Completed ┐
///    │          │           └────────┴─────→ Failed    ├→ CleaningUp → CleanedUp
///    └──────────┴──────────────────────────→ Cancelled ┘
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RunPhase {
    /// Another run has one of its servers.
    #[default]
    Pending,
    /// Plan, servers, points and targets are looked up.
    Validating,
    Running,
    /// People are asked.
    Waiting,
    Completed,
    Failed,
    Cancelled,
    CleaningUp,
    CleanedUp,
}

impl RunPhase {
    /// No step starts any more; only clean-up may follow.
    pub const fn has_ended(self) -> bool {
        match self {
            Self::Completed | Self::Failed | Self::Cancelled | Self::CleaningUp | Self::CleanedUp => true,
            Self::Pending | Self::Validating | Self::Running | Self::Waiting => false,
        }
    }
}

/// A step of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// Unique in the run: the plan's name for a plan's step, `<server>/<kind>` for the recovery of a server.
    pub name: String,
    pub kind: StepKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    pub state: StepState,
    /// The attempt it is at: 0 until it starts, then 1 and up.
    pub attempt: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// When the next attempt starts, or a delay ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Time>,
    /// What was made for this attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<ObjectName>,
    /// What happened, and after a failure what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// Who has answered this step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["approval"]))]
    pub answers: Vec<Answer>,
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StepKind {
    Script,
    Check,
    Pause,
    Delay,
    /// Pins the recovery point and shows it as a disk.
    PrepareDisks,
    CreateMachine,
    StartMachine,
    HealthCheck,
    /// Part of the clean-up.
    RemoveMachine,
}

/// Where a step stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StepState {
    #[default]
    NotStarted,
    Executing,
    /// People are asked, or the next attempt is waited for.
    Waiting,
    Completed,
    Failed,
    TimedOut,
    Skipped,
}

impl StepState {
    /// Nothing more happens to this attempt.
    pub const fn has_ended(self) -> bool {
        match self {
            Self::Completed | Self::Failed | Self::TimedOut | Self::Skipped => true,
            Self::NotStarted | Self::Executing | Self::Waiting => false,
        }
    }
}

/// An object in the run's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ObjectName {
    pub kind: String,
    pub name: String,
}

/// A person's answer that counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Answer {
    /// Name of the FailoverApproval.
    pub approval: String,
    /// The attempt that was answered.
    pub attempt: u32,
    pub username: String,
    pub decision: Decision,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    pub time: Time,
}

/// A server of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerStatus {
    /// Name of the ProtectedServer.
    pub name: String,
    pub state: ServerState,
    /// The point it is recovered to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_point: Option<ResolvedPoint>,
    /// Why the point is older than the run, though the latest was wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub recovery_point_note: Option<String>,
    /// From the point to the start of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo_seconds: Option<u64>,
    /// From the start of the run until its health check passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto_seconds: Option<u64>,
    /// The machine that was made for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<ObjectName>,
    /// Where the machine is reached: the address, the same ports as listed in the target.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub addresses: Vec<String>,
}

/// Where the recovery of a server stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServerState {
    #[default]
    NotStarted,
    Recovering,
    /// Its health check has passed.
    Up,
    Failed,
    /// Nothing of it is left.
    CleanedUp,
}

/// A point in a server's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedPoint {
    /// T0: the disks are as they were at this instant.
    pub time: Time,
    /// Epoch of the log that holds its record.
    pub epoch: u64,
    /// Number of its record.
    pub record: u64,
    pub consistency: Consistency,
    /// Id of the point that servers of a consistency group have in common, if it is a part of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_point: Option<String>,
}

/// What is proven of a point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Consistency {
    /// All disks at one instant, as after a power cut.
    #[default]
    CrashConsistent,
    /// And all file systems mounted from them stood frozen.
    FilesystemConsistent,
    /// And the hooks of the applications had prepared them.
    AppConsistent,
}
