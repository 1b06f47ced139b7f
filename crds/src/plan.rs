//! `RecoveryPlan`: which servers come back in which order, and the steps in between.

use k8s_openapi::api::core::v1::{EnvVar, ResourceRequirements};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Condition, Duration, Time,
    check::{HttpCheck, Probe, TcpCheck},
};

/// Servers in a plan; the reference system's limit.
pub const MAX_SERVERS: usize = 100;
/// Work of a step may take this long unless it says otherwise; the reference system's time-out of scripts (600 s).
pub const DEFAULT_STEP_TIMEOUT: Duration = Duration::from_mins(10);

/// Which servers come back in which order.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "lifeboat.dev",
    version = "v1alpha1",
    kind = "RecoveryPlan",
    shortname = "rplan",
    category = "lifeboat",
    namespaced,
    status = "RecoveryPlanStatus",
    derive = "PartialEq",
    doc = "RecoveryPlan says which servers come back in which order, and which scripts, checks, pauses and delays run in between.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "Servers", type_ = "integer", json_path = ".status.servers"),
    printcolumn(name = "Last drill", type_ = "string", json_path = ".status.lastDrill.result"),
    printcolumn(
        name = "RTO",
        type_ = "integer",
        json_path = ".status.lastDrill.rtoSeconds",
        description = "Seconds, of the last drill"
    ),
    printcolumn(name = "Drilled", type_ = "date", json_path = ".status.lastDrill.time"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new("self.groups.map(g, size(g.servers)).sum() <= 100").message("a plan has at most 100 servers: split it into several plans"))]
#[serde(rename_all = "camelCase")]
pub struct RecoveryPlanSpec {
    /// Run in this order. Servers of a group come up in parallel.
    #[schemars(length(min = 1, max = 20), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub groups: Vec<Group>,
}

/// Servers that come up together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Group {
    /// Name of the group; unique in the plan.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Its servers; a server is in one group of a plan.
    #[schemars(length(min = 1, max = 100), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub servers: Vec<GroupServer>,
    /// How many servers are brought up at a time.
    #[serde(default = "parallelism")]
    #[schemars(range(min = 1, max = 100))]
    pub parallelism: u32,
    /// Steps before its servers, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub before: Vec<Step>,
    /// Steps after its servers, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub after: Vec<Step>,
}

fn parallelism() -> u32 {
    10
}

/// A server of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("!has(self.dependsOn) || !(self.name in self.dependsOn)").message("a server cannot depend on itself"))]
#[serde(rename_all = "camelCase")]
pub struct GroupServer {
    /// Name of the ProtectedServer.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Servers of the same group that must be up before this one starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub depends_on: Vec<String>,
}

/// Something done between servers. Exactly one of `script`, `check`, `pause`, `delay`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("[has(self.script), has(self.check), has(self.pause), has(self.delay)].filter(given, given).size() == 1").message("a step is exactly one of script, check, pause and delay"),
    validation = Rule::new("!has(self.retry) || has(self.script) || has(self.check)").message("retry belongs to script and check"),
    validation = Rule::new("!has(self.delay) || !has(self.timeout)").message("timeout does not belong to delay: it takes as long as it says"),
    validation = Rule::new("self.onFailure != 'Ask' || has(self.script) || has(self.check)").message("onFailure: Ask belongs to script and check")
)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Name of the step; unique in the plan.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// In which runs it is done; in all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<When>,
    /// Script and check: how long an attempt may take, 10m when absent. Pause: how long people have; for ever when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s')").message("timeout is at least 1s"))]
    pub timeout: Option<Duration>,
    /// Further attempts when one fails; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// What a failure means for the run.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// A Job in the plan's namespace, in an image of yours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<Script>,
    /// Asks a recovered server until it answers as expected or the time is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Check>,
    /// Waits for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
    /// Waits for a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Duration>,
}

/// The one thing that a [`Step`] does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action<'a> {
    Script(&'a Script),
    Check(&'a Check),
    Pause(&'a Pause),
    Delay(Duration),
}

impl Step {
    /// The action; `None` only for an object that bypassed the API server's rules.
    pub fn action(&self) -> Option<Action<'_>> {
        match (&self.script, &self.check, &self.pause, self.delay) {
            (Some(script), None, None, None) => Some(Action::Script(script)),
            (None, Some(check), None, None) => Some(Action::Check(check)),
            (None, None, Some(pause), None) => Some(Action::Pause(pause)),
            (None, None, None, Some(delay)) => Some(Action::Delay(delay)),
            _ => None,
        }
    }

    /// How long an attempt of a script or a check may take.
    pub fn work_timeout(&self) -> Duration {
        self.timeout.unwrap_or(DEFAULT_STEP_TIMEOUT)
    }

    /// Whether the step belongs to a run of this type.
    pub fn applies_to(&self, kind: FailoverType) -> bool {
        self.when.as_ref().is_none_or(|when| when.types.contains(&kind))
    }
}

/// In which runs a step is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct When {
    /// Types of runs.
    #[schemars(length(min = 1, max = 3), extend("x-kubernetes-list-type" = "set"))]
    pub types: Vec<FailoverType>,
}

/// Types of runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum FailoverType {
    /// A drill: into an isolated network, production untouched.
    Test,
    /// The source is shut down first; nothing is lost.
    Planned,
    /// The source is gone.
    Unplanned,
}

/// Further attempts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Retry {
    /// How many after the first.
    #[schemars(range(min = 0, max = 10))]
    pub limit: u32,
    /// Time before the first of them; it doubles with each.
    #[serde(default = "backoff")]
    pub backoff: Duration,
}

fn backoff() -> Duration {
    Duration::from_secs(10)
}

/// What a failure means for the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnFailure {
    /// The run fails; what is up stays up.
    #[default]
    Stop,
    /// The run goes on.
    Continue,
    /// People decide: retry, skip or stop.
    Ask,
}

/// A Job. It finds the run as JSON in the variable `LIFEBOAT_CONTEXT`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Script {
    /// Container image.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// Entry point; the image's when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 16384)), extend("x-kubernetes-list-type" = "atomic"))]
    pub command: Vec<String>,
    /// Arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 16384)), extend("x-kubernetes-list-type" = "atomic"))]
    pub args: Vec<String>,
    /// Environment; secrets by `valueFrom.secretKeyRef`. Names that begin with LIFEBOAT_ are the run's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[x_kube(validation = Rule::new("self.all(e, !e.name.startsWith('LIFEBOAT_'))").message("names that begin with LIFEBOAT_ are set by the run"))]
    pub env: Vec<EnvVar>,
    /// Account that the Job runs with; without one it gets no token at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// Compute resources of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

/// Asks a recovered server. Exactly one of `http` and `tcp`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.http) != has(self.tcp)").message("choose exactly one of http and tcp"))]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// The server of the plan that is asked, as it was recovered.
    #[schemars(length(min = 1, max = 63))]
    pub server: String,
    /// An HTTP GET.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// Bytes sent and an answer expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheck>,
}

impl Check {
    /// The one probe that is set; `None` only for an object that bypassed the API server's rules.
    pub fn probe(&self) -> Option<Probe<'_>> {
        match (&self.http, &self.tcp) {
            (Some(http), None) => Some(Probe::Http(http)),
            (None, Some(tcp)) => Some(Probe::Tcp(tcp)),
            _ => None,
        }
    }
}

/// Waits until enough people have approved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("!has(self.approvers) || !has(self.approvers.users) || has(self.approvers.groups) || self.quorum <= size(self.approvers.users)").message("quorum is larger than the number of users who may approve"))]
#[serde(rename_all = "camelCase")]
pub struct Pause {
    /// What people should do or look at before they approve.
    #[schemars(length(min = 1, max = 1024))]
    pub message: String,
    /// Who may answer; when absent, everyone whom RBAC lets create FailoverApprovals here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvers: Option<Approvers>,
    /// How many must approve. One rejection is enough to fail the step.
    #[serde(default = "quorum")]
    #[schemars(range(min = 1, max = 10))]
    pub quorum: u32,
    /// What it means when nobody has answered within the step's timeout.
    #[serde(default)]
    pub on_timeout: OnTimeout,
}

fn quorum() -> u32 {
    1
}

/// Who may answer: someone who is listed, or a member of a group that is listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.users) || has(self.groups)").message("list users or groups, or leave approvers out"))]
pub struct Approvers {
    /// Names of users.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 50), inner(length(min = 1, max = 256)), extend("x-kubernetes-list-type" = "set"))]
    pub users: Vec<String>,
    /// Names of groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 50), inner(length(min = 1, max = 256)), extend("x-kubernetes-list-type" = "set"))]
    pub groups: Vec<String>,
}

/// What a pause means that nobody has answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnTimeout {
    /// The step times out, and `onFailure` applies.
    #[default]
    Stop,
    /// The run goes on.
    Continue,
}

/// What the operator has seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryPlanStatus {
    /// The generation of the spec that the last successful pass has seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready: every server exists, is in one group, has a point and a valid target.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Servers in the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub servers: Option<u32>,
    /// The last test failover that has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_drill: Option<RunResult>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunResult {
    /// Name of the FailoverRun.
    pub run: String,
    #[serde(rename = "type")]
    pub kind: FailoverType,
    /// Completed, Failed or Cancelled.
    pub result: crate::run::RunPhase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto_seconds: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo_seconds: Option<u64>,
    /// When it ended.
    pub time: Time,
}
