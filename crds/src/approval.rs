//! `FailoverApproval`: one person's answer to one attempt of one step that waits for people.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Time, refs::User};

/// An answer to a step that waits for people.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "lifeboat.dev",
    version = "v1alpha1",
    kind = "FailoverApproval",
    shortname = "fapproval",
    category = "lifeboat",
    namespaced,
    status = "FailoverApprovalStatus",
    derive = "PartialEq",
    selectable = ".spec.runRef.name",
    doc = "FailoverApproval is one person's answer to a step of a failover run that waits for people. It is never changed.",
    printcolumn(name = "Run", type_ = "string", json_path = ".spec.runRef.name"),
    printcolumn(name = "Step", type_ = "string", json_path = ".spec.step"),
    printcolumn(name = "Attempt", type_ = "integer", json_path = ".spec.attempt", priority = 1),
    printcolumn(name = "Decision", type_ = "string", json_path = ".spec.decision"),
    printcolumn(name = "By", type_ = "string", json_path = ".spec.by.username"),
    printcolumn(
        name = "Verdict",
        type_ = "string",
        json_path = ".status.verdict.result",
        description = "Whether the answer counts"
    ),
    printcolumn(name = "Why", type_ = "string", json_path = ".status.verdict.message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new("self == oldSelf").message("an approval is never changed: to answer a later attempt, create another"))]
#[serde(rename_all = "camelCase")]
pub struct FailoverApprovalSpec {
    /// The run that is answered.
    pub run_ref: RunRef,
    /// Name of the step in the run's `status.steps`.
    #[schemars(length(min = 1, max = 253))]
    pub step: String,
    /// Attempt of the step that is answered, so that an old answer never lets a new attempt go on.
    #[schemars(range(min = 1))]
    pub attempt: u32,
    /// The answer.
    pub decision: Decision,
    /// For the record: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub comment: Option<String>,
    /// Who answers. Admission demands that this is the caller.
    pub by: User,
}

/// A run, told apart from another of the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunRef {
    /// Name of the run; it is in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// UID of the run.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
}

/// What may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Decision {
    /// Go on.
    Approve,
    /// A pause: the step fails. A failed step that asks: the run stops.
    Reject,
    /// A failed step that asks: try it again.
    Retry,
    /// Go on without this step's success.
    Skip,
}

/// What became of the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FailoverApprovalStatus {
    /// Absent until the operator has judged the answer; never changed afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
}

/// The operator's judgement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// Whether the answer counts.
    pub result: VerdictResult,
    /// Why, as one word.
    pub reason: VerdictReason,
    /// Why, in words, with what to do.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// When it was judged.
    pub time: Time,
}

/// Whether an answer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VerdictResult {
    Counted,
    Refused,
}

/// Why an answer counts or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VerdictReason {
    /// It counts.
    Counted,
    /// There is no such run, or another of the same name.
    RunNotFound,
    /// The run has no such step.
    StepNotFound,
    /// The step does not wait for people, or no longer.
    NotWaiting,
    /// The step is at another attempt.
    WrongAttempt,
    /// The step asks others.
    NotAnApprover,
    /// This person has answered already.
    AlreadyAnswered,
    /// The step does not know this answer.
    DecisionNotOffered,
}
