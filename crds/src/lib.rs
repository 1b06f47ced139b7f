//! The custom resources of `lifeboat.dev/v1alpha1`.
//!
//! One file a kind; what several kinds share stands beside them. Everything here is plain data and pure
//! functions: no client, no clock, no async runtime. `generated/` holds the YAML that the API server gets,
//! written by the program `crdgen` from these types; a test fails when the two drift apart.
//!
//! ```text
//! ReplicationAppliance ◄── ProtectedServer ──► ReplicationPolicy
//!                               ▲
//!                 RecoveryPlan ─┘◄── FailoverRun ◄── FailoverApproval
//! ```

#![allow(unreachable_pub, reason = "KubeSchema copies each type, with its `pub`, into a function")]
#![allow(
    clippy::duplicated_attributes,
    reason = "a kind has several printer columns, and clippy takes them for one"
)]

pub mod appliance;
pub mod approval;
pub mod bandwidth;
pub mod check;
pub mod conditions;
pub mod context;
pub mod duration;
pub mod generate;
pub mod names;
pub mod plan;
pub mod policy;
pub mod refs;
pub mod run;
mod schema;
pub mod server;

pub use appliance::{ReplicationAppliance, ReplicationApplianceSpec, ReplicationApplianceStatus};
pub use approval::{FailoverApproval, FailoverApprovalSpec, FailoverApprovalStatus};
pub use conditions::{Condition, ConditionType, Reason};
pub use duration::Duration;
pub use plan::{RecoveryPlan, RecoveryPlanSpec, RecoveryPlanStatus};
pub use policy::{ReplicationPolicy, ReplicationPolicySpec, ReplicationPolicyStatus};
pub use run::{FailoverRun, FailoverRunSpec, FailoverRunStatus};
pub use server::{ProtectedServer, ProtectedServerSpec, ProtectedServerStatus};

/// The group of every kind here.
pub const GROUP: &str = "lifeboat.dev";
/// The one version served.
pub const VERSION: &str = "v1alpha1";

/// An instant in status or spec: RFC 3339 with fractions of a second, since points lie seconds apart.
pub type Time = jiff::Timestamp;
