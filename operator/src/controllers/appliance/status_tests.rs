//! What people read of an appliance whose pass ended early.

use lifeboat_crds::appliance::Health;

use super::*;
use crate::controllers::appliance::testing::appliance;

fn condition(status: &ReplicationApplianceStatus, kind: ConditionType) -> (String, String) {
    let found = conditions::find(&status.conditions, kind).unwrap();
    (found.status.clone(), found.message.clone())
}

#[test]
fn a_spec_that_cannot_be_used_makes_nothing_of_what_runs_untrue() {
    let mut appliance = appliance();
    appliance.status = Some(ReplicationApplianceStatus {
        process_servers_ready: Some("2/2".into()),
        protected_servers: Some(7),
        replicas: Some(2),
        health: Some(Health::Healthy),
        ..Default::default()
    });
    let why = "spec.bandwidth[0].timeZone: \"Mars/Olympus\" is not the name of a time zone";
    let failure = Some((Category::Stalled, Reason::UnknownTimeZone, why.to_owned()));
    let findings = Findings { failure, ..Findings::default() };
    let told = status(&appliance, None, &findings, Time::UNIX_EPOCH);
    assert_eq!(condition(&told, ConditionType::Ready), ("False".into(), why.into()));
    assert_eq!(condition(&told, ConditionType::Stalled), ("True".into(), why.into()));
    assert_eq!(condition(&told, ConditionType::ProcessServersReady).0, "Unknown");
    assert_eq!(condition(&told, ConditionType::AppliersReady).0, "Unknown");
    let kept = (told.process_servers_ready.as_deref(), told.protected_servers, told.replicas, told.health);
    assert_eq!(kept, (Some("2/2"), Some(7), Some(2), Some(Health::Healthy)));
    assert_eq!(told.observed_generation, None, "it has not been done");
}

#[test]
fn a_process_server_that_is_not_ready_is_named() {
    let pod = |name: &str, ready: &str| -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "labels": {"app.kubernetes.io/component": "process-server"}},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    };
    let findings = Findings {
        looked: true,
        pods: vec![pod("berlin-process-server-0", "False"), pod("berlin-process-server-1", "True")],
        ..Findings::default()
    };
    let told = pods_ready(ConditionType::ProcessServersReady, "process server", None, 2, &findings);
    assert!(told.message().contains("kubectl describe pod berlin-process-server-0`"), "{}", told.message());
}
