//! What a script of a plan is told about its run: JSON in the variable [`VARIABLE`].
//!
//! It is an interface to people's scripts: fields are added, never renamed or removed within `v1alpha1`.

use serde::{Deserialize, Serialize};

use crate::{
    plan::FailoverType,
    run::{ResolvedPoint, ServerState},
};

/// The variable that holds a [`StepContext`] as JSON.
pub const VARIABLE: &str = "LIFEBOAT_CONTEXT";

/// A step, its run, and the run's servers as they are when the step starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepContext {
    /// Name of the FailoverRun.
    pub run: String,
    /// Name of the RecoveryPlan; absent for a run of one server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    #[serde(rename = "type")]
    pub kind: FailoverType,
    /// Name of the group.
    pub group: String,
    /// Name of the step.
    pub step: String,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// `<run UID>/<step>/<attempt>`: the same for one attempt, whatever restarts; a script's own effects can go by it.
    pub key: String,
    /// Every server of the run.
    pub servers: Vec<ContextServer>,
}

/// A server of the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContextServer {
    /// Name of the ProtectedServer.
    pub name: String,
    pub group: String,
    pub state: ServerState,
    /// The point it is recovered to.
    pub recovery_point: ResolvedPoint,
    /// Where its recovered machine is reached, on the ports of its target; empty until it exists.
    pub addresses: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Consistency;

    #[test]
    fn a_script_finds_the_names_that_the_documentation_gives() {
        let context = StepContext {
            run: "erp-7".into(),
            plan: Some("erp".into()),
            kind: FailoverType::Test,
            group: "database".into(),
            step: "query".into(),
            attempt: 1,
            key: "0b0e/query/1".into(),
            servers: vec![ContextServer {
                name: "db-1".into(),
                group: "database".into(),
                state: ServerState::Up,
                recovery_point: ResolvedPoint {
                    time: "2026-01-02T03:04:05.25Z".parse().unwrap(),
                    epoch: 1,
                    record: 42,
                    consistency: Consistency::CrashConsistent,
                    group_point: None,
                },
                addresses: vec!["10.0.0.1".into()],
            }],
        };
        let expected = serde_json::json!({
            "run": "erp-7", "plan": "erp", "type": "Test", "group": "database", "step": "query", "attempt": 1,
            "key": "0b0e/query/1",
            "servers": [{
                "name": "db-1", "group": "database", "state": "Up", "addresses": ["10.0.0.1"],
                "recoveryPoint": {
                    "time": "2026-01-02T03:04:05.25Z", "epoch": 1, "record": 42, "consistency": "CrashConsistent"
                }
            }]
        });
        assert_eq!(serde_json::to_value(context).unwrap(), expected);
    }
}
