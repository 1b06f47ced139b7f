//! Whether a plan could run now. Pure.

use std::collections::BTreeMap;

use kube::ResourceExt as _;
use lifeboat_crds::{
    FailoverRun, ProtectedServer,
    conditions::{ConditionType, Observation, Reason, met, unmet},
    plan::{FailoverType, Group, RunResult},
    run::RunPhase,
};

use crate::failover::{outcome, resolve::check_plan};

/// Ready, or everything that stands in the way.
pub(super) fn judge(groups: &[Group], servers: &BTreeMap<String, ProtectedServer>) -> Vec<Observation> {
    let invalid = check_plan(groups);
    let names: Vec<&str> =
        groups.iter().flat_map(|group| &group.servers).map(|server| server.name.as_str()).collect();
    let unknown: Vec<String> = names
        .iter()
        .filter(|name| !servers.contains_key(**name))
        .map(|name| {
            format!("server {name} does not exist: create ProtectedServer {name}, or take it out of the plan")
        })
        .collect();
    let pointless: Vec<String> = names
        .iter()
        .filter(|name| {
            // Of a server that another cluster replicates, only what is in the vault is known.
            servers.get(**name).is_some_and(|server| {
                server.status.as_ref().is_none_or(|status| {
                    let stored = status.recovery_points.as_ref().is_some_and(|points| points.count > 0);
                    status.last_point_time.is_none() && !stored
                })
            })
        })
        .map(|name| {
            format!("server {name} has no recovery point yet: wait until its initial replication is complete")
        })
        .collect();
    let (reason, stalled) = match (invalid.is_empty(), unknown.is_empty(), pointless.is_empty()) {
        (false, _, _) => (Reason::InvalidPlan, true),
        (true, false, _) => (Reason::ReferenceNotFound, true),
        (true, true, false) => (Reason::NoRecoveryPoint, false),
        (true, true, true) => {
            return vec![met(
                ConditionType::Ready,
                Reason::AsExpected,
                "every server exists and has a recovery point",
            )];
        }
    };
    let message = [invalid, unknown, pointless].concat().join("; ");
    let abnormal = if stalled { ConditionType::Stalled } else { ConditionType::Reconciling };
    vec![unmet(ConditionType::Ready, reason, message.clone()), met(abnormal, reason, message)]
}

/// The drill of this plan that ended last.
pub(super) fn last_drill(plan: &str, runs: &[FailoverRun]) -> Option<RunResult> {
    let result = |run: &FailoverRun| {
        let status = run.status.as_ref()?;
        let phase = status.phase.filter(|phase| phase.has_ended() && run.spec.kind == FailoverType::Test)?;
        status.started_at?;
        let result = outcome(phase, &status.conditions);
        matches!(result, RunPhase::Completed | RunPhase::Failed | RunPhase::Cancelled).then_some(())?;
        Some(RunResult {
            run: run.name_any(),
            kind: run.spec.kind,
            result,
            rto_seconds: status.rto_seconds,
            rpo_seconds: status.rpo_seconds,
            time: status.finished_at?,
        })
    };
    let ours =
        runs.iter().filter(|run| run.spec.plan_ref.as_ref().is_some_and(|reference| reference.name == plan));
    ours.filter_map(result).max_by_key(|result| result.time)
}

#[cfg(test)]
mod tests {
    use lifeboat_crds::plan::GroupServer;

    use super::*;
    use crate::controllers::protected_server::testing::server;

    fn groups(names: &[&str]) -> Vec<Group> {
        let servers =
            names.iter().map(|name| GroupServer { name: (*name).to_owned(), depends_on: vec![] }).collect();
        vec![Group { name: "database".into(), servers, parallelism: 10, before: vec![], after: vec![] }]
    }

    fn servers(names: &[&str], with_point: bool) -> BTreeMap<String, ProtectedServer> {
        let make = |name: &&str| {
            let mut made = server(name);
            made.status.as_mut().unwrap().last_point_time =
                with_point.then(|| "2026-03-01T00:00:00Z".parse().unwrap());
            ((*name).to_owned(), made)
        };
        names.iter().map(make).collect()
    }

    #[test]
    fn a_plan_is_ready_when_every_server_has_a_point() {
        assert!(judge(&groups(&["db-1"]), &servers(&["db-1"], true))[0].is_met());
        let waiting = judge(&groups(&["db-1"]), &servers(&["db-1"], false));
        assert_eq!(
            (waiting[0].reason(), waiting[1].kind()),
            (Reason::NoRecoveryPoint, ConditionType::Reconciling)
        );
    }

    #[test]
    fn points_that_another_cluster_has_put_into_the_vault_are_points() {
        let mut foreign = servers(&["db-1"], false);
        let status = foreign.get_mut("db-1").unwrap().status.as_mut().unwrap();
        status.recovery_points = serde_json::from_value(serde_json::json!({"count": 3})).unwrap();
        assert!(judge(&groups(&["db-1"]), &foreign)[0].is_met());
    }

    #[test]
    fn a_plan_naming_a_server_that_does_not_exist_says_which_and_what_to_do() {
        let judged = judge(&groups(&["db-1", "bd-2"]), &servers(&["db-1"], true));
        assert_eq!(judged[0].reason(), Reason::ReferenceNotFound);
        assert!(judged[0].message().contains("create ProtectedServer bd-2"), "{}", judged[0].message());
    }
}
