//! `ProtectedServer`: a machine under protection and what becomes of it in a failover.

mod groups;
mod history;
mod shutdown;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    groups::{GroupMember, GroupPoint, MissedGroupPoint, TakenGroupPoint},
    history::{LogHead, Rollback},
    shutdown::{Shutdown, ShutdownState},
};
use crate::{Condition, Time, appliance::Health, check::HealthCheck, refs::LocalRef, run::Consistency};

/// A machine under protection.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "lifeboat.dev",
    version = "v1alpha1",
    kind = "ProtectedServer",
    shortname = "pserver",
    category = "lifeboat",
    namespaced,
    status = "ProtectedServerStatus",
    derive = "PartialEq",
    doc = "ProtectedServer is a machine under protection: which appliance and policy serve it, and which machine it becomes in a failover.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Health", type_ = "string", json_path = ".status.replicationHealth"),
    printcolumn(name = "RPO", type_ = "integer", json_path = ".status.rpo.seconds", description = "Seconds of data that a disaster at the time of observation would have cost"),
    printcolumn(name = "Progress", type_ = "string", json_path = ".status.progress", description = "Of the initial replication or a resynchronization"),
    printcolumn(name = "Last point", type_ = "date", json_path = ".status.lastPointTime"),
    printcolumn(name = "Oldest point", type_ = "date", json_path = ".status.recoveryPoints.oldest", priority = 1),
    printcolumn(name = "Process server", type_ = "string", json_path = ".status.processServer", priority = 1),
    printcolumn(name = "Agent", type_ = "string", json_path = ".status.agent.version", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].message"#, priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name of a ProtectedServer has at most 63 characters: small letters, digits and dashes, since other names are made from it")
)]
#[x_kube(validation = Rule::new("!has(self.healthCheck) || self.target.virtualMachinePod.ports.exists(p, p.port == (has(self.healthCheck.http) ? self.healthCheck.http.port : has(self.healthCheck.tcp) ? self.healthCheck.tcp.port : -1))").message("the port of healthCheck must be one of target.virtualMachinePod.ports, otherwise the check cannot reach the recovered machine"))]
#[serde(rename_all = "camelCase")]
pub struct ProtectedServerSpec {
    /// The appliance that serves this machine.
    #[x_kube(validation = Rule::new("self == oldSelf").message("applianceRef cannot be changed: the data would stay behind; delete this ProtectedServer and make another"))]
    pub appliance_ref: LocalRef,
    /// How it is replicated.
    pub policy_ref: LocalRef,
    /// What the machine is; it decides what is possible after a failover.
    #[serde(default)]
    pub platform: Platform,
    /// Paused stops replication at once, also for a connected agent; the data stays.
    #[serde(default)]
    pub replication: Replication,
    /// A point to be taken now; a new id asks for another one. `kubectl lifeboat point` sets it. A server of a
    /// consistency group asks for the point of its group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_point: Option<RequestPoint>,
    /// Servers that name the same group, in this namespace and on one appliance, have points of one common instant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub consistency_group: Option<String>,
    /// Which of its disks are protected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<Disks>,
    /// Asks for a comparison of all disks with the vault by checksums, at once: every new value asks again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub resynchronize: Option<String>,
    /// Takes the machine out of service for good: the time of the request. Its services are stopped, its file systems become
    /// read-only, everything is replicated, and it is switched off. A request that is older than ten minutes when the
    /// operator sees it first does nothing. `kubectl lifeboat shutdown` sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_shutdown: Option<Time>,
    /// What it becomes in a failover.
    pub target: Target,
    /// How to hear that the recovered machine's service works. Without it a machine counts as up when it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
}

/// Disks of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disks {
    /// Disks that are left out. They have no part in points made from then on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub exclude: Vec<DiskSelector>,
}

/// A disk, by exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("[has(self.serial), has(self.path), has(self.wwn)].exists_one(given, given)").message("a disk is named by exactly one of serial, path and wwn"))]
#[serde(rename_all = "camelCase")]
pub struct DiskSelector {
    /// Its serial number, as `lsblk -o NAME,SERIAL` shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub serial: Option<String>,
    /// Its path on the machine, such as `/dev/sdc` or a link in `/dev/disk/by-id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), regex(pattern = "^/dev/.+$"))]
    pub path: Option<String>,
    /// Its World Wide Name, as `lsblk -o NAME,WWN` shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub wwn: Option<String>,
}

/// Kinds of machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Platform {
    #[default]
    Physical,
    VMware,
    HyperV,
    Azure,
}

/// Whether changes are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Replication {
    #[default]
    Enabled,
    Paused,
}

/// A point that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RequestPoint {
    /// Names the request: as long as it stays the same, nothing more is asked for.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"))]
    pub id: String,
    /// What the point should be. What cannot be reached is taken as what can be, and the status says why.
    #[serde(default)]
    pub consistency: Consistency,
}

/// What became of the point that was asked for last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestedPoint {
    /// Id of the request.
    pub id: String,
    /// What was asked for.
    pub asked: Consistency,
    pub requested_at: Time,
    pub state: RequestState,
    /// The instant of the point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
    /// What was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// Epoch of the log that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Number of the record that is the point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<u64>,
    /// How long the longest-frozen file system stood still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_freeze_millis: Option<u64>,
    /// Why it was refused, or is less than asked for: a stable word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same in words, with what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

/// How far a request for a point is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RequestState {
    /// The agent is asked, or will be when it is connected.
    Taking,
    /// The point is in the vault.
    Taken,
    /// There is no such point.
    Refused,
}

/// What the server becomes in a failover.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// A QEMU virtual machine in a pod of this cluster.
    pub virtual_machine_pod: VirtualMachinePod,
}

/// A QEMU virtual machine in a pod of this cluster, booting from a recovery point in the vault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
pub struct VirtualMachinePod {
    /// Virtual CPUs.
    #[serde(default = "cpus")]
    #[schemars(range(min = 1, max = 64))]
    pub cpus: u32,
    /// Memory of the machine.
    #[serde(default = "memory")]
    #[x_kube(validation = Rule::new("quantity(string(self)).compareTo(quantity('128Mi')) >= 0").message("memory is at least 128Mi"))]
    pub memory: Quantity,
    /// How the machine starts.
    #[serde(default)]
    pub firmware: Firmware,
    /// Ports of the machine that can be reached: by checks in a test. Every other one stays closed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[x_kube(validation = Rule::new("self.all(p, self.exists_one(q, q.port == p.port))").message("each port may be listed once"))]
    pub ports: Vec<MachinePort>,
}

fn cpus() -> u32 {
    2
}

fn memory() -> Quantity {
    Quantity("2Gi".to_owned())
}

/// Firmware of a virtual machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Firmware {
    /// Starts the boot sector of the first disk.
    #[default]
    BIOS,
}

/// A TCP port of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MachinePort {
    /// What listens there.
    #[schemars(length(min = 1, max = 15), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
}

/// What the operator has seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProtectedServerStatus {
    /// The generation of the spec that the last successful pass has seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Enrolled, AgentConnected, InitialReplicationComplete, RPOMet; ResynchronizationRequired and
    /// VaultRolledBack while true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<ServerPhase>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication_health: Option<Health>,
    /// Identity in the vault; made once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Number of the server's writer in the vault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// The process server that serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process_server: Option<String>,
    /// The applier that holds its lease and brings its seed disks up to date; one of another cluster is named as such.
    /// Absent: none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applier: Option<String>,
    /// Its last move to another process server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_move: Option<Move>,
    /// Written on a change of state and from time to time; live figures are in metrics and `kubectl lifeboat status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo: Option<Rpo>,
    /// T0 of the newest point in the vault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_point_time: Option<Time>,
    /// Of the initial replication or a resynchronization, for people: `42%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentStatus>,
    /// Every disk that is protected.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["id"]))]
    pub disks: Vec<DiskStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_points: Option<RecoveryPointsStatus>,
    /// What it takes up in the vault, as the applier has found it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageStatus>,
    /// The point that `spec.requestPoint` asks for, or asked for last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_point: Option<RequestedPoint>,
    /// The shutdown that `spec.requestShutdown` asks for, or asked for last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown: Option<Shutdown>,
    /// What has become of the points of its consistency group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_point: Option<GroupPoint>,
    /// The newest end of its log in the vault that was seen: by it a vault that is put back to an older moment as a
    /// whole is noticed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_head: Option<LogHead>,
    /// The vault was put back to an older moment, until somebody acknowledges it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Rollback>,
    /// What is wrong, each with its remedy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["code"]))]
    pub issues: Vec<Issue>,
    /// The run that has this server at the moment, or the last one that has left machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<FailoverState>,
}

/// A move from one process server to another. Nothing is copied again for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Move {
    /// The process server that had it.
    pub from: String,
    /// The one that has it since.
    pub to: String,
    pub time: Time,
    /// Why, as in events: ProcessServerLost, ProcessServerLeaves, Rebalanced, BroughtTogether.
    pub reason: String,
    /// Why, for people.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// Writers up to this epoch are given up: the new process server fences them and does not wait for their lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_epoch: Option<u64>,
}

/// Where a server stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServerPhase {
    /// Something that it refers to is missing or not ready.
    #[default]
    Pending,
    /// The token waits for the agent.
    Enrolling,
    /// The first copy is under way.
    InitialReplication,
    /// There is a point to fail over to, and rounds go on.
    Protected,
    /// Disk and seed disk are compared.
    Resynchronizing,
    /// Switched off by the spec.
    Paused,
    /// A person must act; the Ready condition says how.
    Failed,
}

/// Data that a disaster would have cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rpo {
    pub seconds: u64,
    pub observed_at: Time,
}

/// The program on the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    pub version: String,
    /// The appliance serves another agent than the one that runs: `lifeboat-agent upgrade` on the server, as root,
    /// replaces it. A hint: replication goes on with this one. Absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade_available: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// How changes are tracked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Time>,
    /// How often it has frozen file systems since it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freezes: Option<u64>,
    /// The longest time that a file system stood still for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worst_freeze_millis: Option<u64>,
    /// What no freeze can cover, for information: swap, disks without a mounted file system.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub not_freezable: Vec<String>,
}

/// A protected disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskStatus {
    /// Identity in the vault.
    pub id: String,
    /// Path on the machine.
    pub path: String,
    pub size_bytes: u64,
    pub state: DiskState,
    /// Of the initial replication or a resynchronization.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicated_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_completion: Option<Time>,
    /// Changed and not yet durable in the vault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dirty_bytes: Option<u64>,
}

/// Where a disk stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DiskState {
    InitialReplication,
    Replicating,
    Resynchronizing,
    /// It cannot be protected; an issue says why.
    Unsupported,
    /// The agent no longer sees it.
    Missing,
}

/// What can be recovered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryPointsStatus {
    /// Snapshots of the seed disks. Points inside the journal are not counted: there is one for each exact round.
    pub count: u32,
    /// The earliest instant that can be recovered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<Time>,
    /// The latest instant that can be recovered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest: Option<Time>,
    /// The journal begins here: from this instant on every consistent round can be recovered, before it only the
    /// snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal_begins: Option<Time>,
    /// The latest application-consistent one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_app_consistent: Option<Time>,
}

/// What a server takes up in the vault.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageStatus {
    /// Segments of the journal in cache storage.
    pub journal_bytes: u64,
    /// The commit log, with the small rounds that travel in it.
    pub log_bytes: u64,
    /// Pages of the seed disks and their checksums that hold something. Snapshots share them; what only snapshots still
    /// hold the store does not tell.
    pub seed_disk_bytes: u64,
    /// Snapshots of all seed disks.
    pub snapshots: u64,
    /// By how much all of it grows, over the last day; absent until it is known for an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growth_bytes_per_day: Option<i64>,
    pub observed_at: Time,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Issue {
    /// Stable word for alerts and documentation.
    pub code: String,
    pub severity: Severity,
    /// What is wrong.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// What to do.
    #[schemars(length(max = 1024))]
    pub remedy: String,
    pub since: Time,
}

/// How bad an issue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Severity {
    Warning,
    Critical,
}

/// A run that has this server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FailoverState {
    /// Name of the FailoverRun.
    pub run: String,
    /// Its phase.
    pub state: crate::run::RunPhase,
}
