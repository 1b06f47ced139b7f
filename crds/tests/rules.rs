//! The rules of the schemas, by what they say: each with one object that it admits and one that it refuses.
//! They are evaluated here without a cluster; the API server itself is asked in the crate `tests`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use kube::core::cel::Validator;
use lifeboat_crds::generate::definitions;
use rstest::rstest;
use serde_json::{Value, json};

fn schema(kind: &str) -> Value {
    let definition =
        definitions().unwrap().into_iter().find(|definition| definition.spec.names.kind == kind).unwrap();
    serde_json::to_value(definition).unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

fn object(name: &str, spec: Value) -> Value {
    json!({ "metadata": { "name": name }, "spec": spec })
}

/// What the rules say to a new object, or to a change of one.
fn messages(kind: &str, new: &Value, old: Option<&Value>) -> Vec<String> {
    match Validator::new().validate(&schema(kind), new, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_vec().into_iter().map(|error| error.message).collect(),
    }
}

#[track_caller]
fn admits(kind: &str, spec: Value) {
    assert_eq!(messages(kind, &object("a", spec), None), Vec::<String>::new());
}

#[track_caller]
fn refuses(kind: &str, spec: Value, expected: &str) {
    let said = messages(kind, &object("a", spec), None);
    assert!(said.len() == 1 && said[0].contains(expected), "expected {expected:?}, the rules say {said:?}");
}

#[track_caller]
fn refuses_change(kind: &str, old: Value, new: Value, expected: &str) {
    let said = messages(kind, &object("a", new), Some(&object("a", old)));
    assert!(said.len() == 1 && said[0].contains(expected), "expected {expected:?}, the rules say {said:?}");
}

/// `base` with the fields of `patch` in place; null removes.
fn with(base: &Value, patch: Value) -> Value {
    let mut merged = base.clone();
    merge(&mut merged, patch);
    merged
}

fn merge(base: &mut Value, patch: Value) {
    let Value::Object(fields) = patch else {
        *base = patch;
        return;
    };
    if !base.is_object() {
        *base = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            base.as_object_mut().unwrap().remove(&name);
        } else {
            merge(&mut base[&name], value);
        }
    }
}

// ---- ReplicationPolicy

#[rstest]
#[case(json!({}))]
#[case(json!({ "roundInterval": "1s", "rpoThreshold": "1s", "freezeTimeout": "30s" }))]
#[case(json!({ "roundInterval": "5m", "recoveryPoints": { "interval": "12h" } }))]
#[case(json!({ "recoveryPoints": { "retention": "0s" }, "journalRetention": "0s" }))]
#[case(json!({ "recoveryPoints": { "retention": "360h" }, "journalRetention": "360h" }))]
#[case(json!({ "appConsistent": { "interval": "1h", "freezeTimeout": "10s", "hookTimeout": "5m" } }))]
fn a_policy_within_the_limits_is_admitted(#[case] spec: Value) {
    admits("ReplicationPolicy", spec);
}

#[rstest]
#[case(json!({ "roundInterval": "0s" }), "roundInterval is from 1s to 5m")]
#[case(json!({ "roundInterval": "301s" }), "roundInterval is from 1s to 5m")]
#[case(json!({ "roundInterval": "2m", "rpoThreshold": "1m" }), "rpoThreshold must not be shorter than roundInterval")]
#[case(json!({ "rpoThreshold": "25h" }), "rpoThreshold is from 1s to 24h")]
#[case(json!({ "freezeTimeout": "31s" }), "freezeTimeout is from 1s to 30s")]
#[case(json!({ "appConsistent": { "interval": "59m" } }), "appConsistent.interval is from 1h to 12h")]
#[case(json!({ "appConsistent": { "interval": "4h" }, "recoveryPoints": { "retention": "4h" } }), "appConsistent.interval must be shorter than recoveryPoints.retention")]
#[case(json!({ "appConsistent": { "interval": "13h" } }), "appConsistent.interval is from 1h to 12h")]
#[case(json!({ "appConsistent": { "freezeTimeout": "31s" } }), "appConsistent.freezeTimeout is from 1s to 30s")]
#[case(json!({ "appConsistent": { "hookTimeout": "6m" } }), "appConsistent.hookTimeout is from 1s to 5m")]
#[case(json!({ "recoveryPoints": { "interval": "59s" } }), "recoveryPoints.interval is from 1m to 12h")]
#[case(json!({ "recoveryPoints": { "retention": "361h" } }), "recoveryPoints.retention is from 0s to 360h (15 days)")]
#[case(json!({ "journalRetention": "360h1s" }), "journalRetention is from 0s to 360h (15 days)")]
fn a_policy_beyond_the_limits_is_refused(#[case] spec: Value, #[case] message: &str) {
    refuses("ReplicationPolicy", spec, message);
}

// ---- ReplicationAppliance

fn appliance() -> Value {
    json!({ "vault": { "azure": {
        "endpoint": "https://contosodr.blob.core.windows.net", "container": "lifeboat",
        "authentication": { "sasSecretRef": { "name": "vault", "key": "sas" } }
    } } })
}

fn azure(patch: Value) -> Value {
    with(&appliance(), json!({ "vault": { "azure": patch } }))
}

#[test]
fn an_appliance_needs_no_more_than_a_vault() {
    admits("ReplicationAppliance", appliance());
}

#[rstest]
#[case(json!({ "sasSecretRef": null }))]
#[case(json!({ "accountKeySecretRef": { "name": "vault", "key": "key" } }))]
#[case(json!({ "workloadIdentity": identity() }))]
fn an_appliance_authenticates_in_exactly_one_way(#[case] authentication: Value) {
    let spec = azure(json!({ "authentication": authentication }));
    refuses(
        "ReplicationAppliance",
        spec,
        "choose exactly one of workloadIdentity, sasSecretRef and accountKeySecretRef",
    );
}

fn identity() -> Value {
    let id = "00000000-1111-2222-3333-444444444444";
    json!({ "clientId": id, "tenantId": id })
}

#[test]
fn an_appliance_may_authenticate_by_workload_identity_and_its_appliers_in_their_own_way() {
    let by_identity = json!({ "sasSecretRef": null, "workloadIdentity": identity() });
    admits("ReplicationAppliance", azure(json!({ "authentication": by_identity })));
    let split = json!({ "applierAuthentication": { "workloadIdentity": identity() } });
    admits("ReplicationAppliance", azure(split));
    let none = json!({ "applierAuthentication": {} });
    refuses("ReplicationAppliance", azure(none), "choose exactly one of workloadIdentity");
}

#[rstest]
#[case(json!({ "endpoint": "http://10.0.0.1:10000/contosodr" }))]
#[case(json!({ "cache": { "endpoint": "http://10.0.0.1:10000/contosodr" } }))]
#[case(json!({ "endpoint": "http://10.0.0.1:10000/contosodr", "authentication": { "sasSecretRef": { "name": "vault", "key": "sas" }, "workloadIdentity": null }, "applierAuthentication": { "workloadIdentity": identity() } }))]
fn no_access_token_travels_by_http(#[case] patch: Value) {
    let by_identity = json!({ "authentication": { "sasSecretRef": null, "workloadIdentity": identity() } });
    let spec = with(&azure(by_identity), json!({ "vault": { "azure": patch } }));
    refuses("ReplicationAppliance", spec, "workloadIdentity needs endpoints with https");
}

#[test]
fn a_data_key_is_rotated_where_the_operator_has_made_it() {
    admits("ReplicationAppliance", with(&appliance(), json!({ "rotateDataKey": "1", "roles": ["Ingest"] })));
    let own = json!({ "rotateDataKey": "1", "encryptionKeySecretRef": { "name": "keys" } });
    refuses("ReplicationAppliance", with(&appliance(), own), "add a key to that Secret yourself");
}

#[rstest]
#[case(json!({ "limitPerSecond": "512Ki" }))]
#[case(json!({ "days": ["Mon", "Sun"], "from": "22:00", "to": "06:00", "timeZone": "Europe/Berlin", "limitPerSecond": "20Mi" }))]
fn a_bandwidth_window_is_admitted(#[case] window: Value) {
    admits("ReplicationAppliance", with(&appliance(), json!({ "bandwidth": [window] })));
}

#[rstest]
#[case(json!({ "limitPerSecond": "511Ki" }), "limitPerSecond is at least 512Ki")]
#[case(json!({ "from": "08:00", "to": "08:00", "limitPerSecond": "1Mi" }), "from and to of a bandwidth window must differ")]
fn a_bandwidth_window_that_says_nothing_or_stops_everything_is_refused(
    #[case] window: Value,
    #[case] message: &str,
) {
    refuses("ReplicationAppliance", with(&appliance(), json!({ "bandwidth": [window] })), message);
}

#[test]
fn an_appliance_keeps_its_container() {
    let moved = azure(json!({ "container": "elsewhere" }));
    refuses_change("ReplicationAppliance", appliance(), moved, "vault.azure.container cannot be changed");
}

#[rstest]
#[case(json!({ "type": "NodePort", "addresses": ["10.0.0.1"], "nodePorts": { "management": 30443, "dataBase": 30943 } }))]
#[case(json!({ "type": "NodePort", "addresses": ["dr.contoso.local"] }))]
fn an_appliance_may_be_exposed_on_ports_of_the_nodes(#[case] exposure: Value) {
    admits("ReplicationAppliance", with(&appliance(), json!({ "exposure": exposure })));
}

#[rstest]
#[case(json!({ "nodePorts": { "management": 30443, "dataBase": 30943 } }), "nodePorts belong to type NodePort")]
#[case(json!({ "type": "NodePort" }), "type NodePort needs addresses")]
#[case(json!({ "dataPort": 443 }), "dataPort and managementPort must differ")]
fn an_exposure_that_contradicts_itself_is_refused(#[case] exposure: Value, #[case] message: &str) {
    refuses("ReplicationAppliance", with(&appliance(), json!({ "exposure": exposure })), message);
}

#[test]
fn ports_of_the_nodes_do_not_collide_however_many_process_servers_there_are() {
    let spec = |replicas: i32| {
        with(
            &appliance(),
            json!({
                "exposure": { "type": "NodePort", "addresses": ["10.0.0.1"], "nodePorts": { "management": 30945, "dataBase": 30943 } },
                "processServers": { "replicas": replicas }
            }),
        )
    };
    admits("ReplicationAppliance", spec(2));
    refuses("ReplicationAppliance", spec(3), "management lies among the ports of the process servers");
}

#[rstest]
#[case("1st-floor")]
#[case("berlin.contoso.com")]
#[case(&"x".repeat(37))]
fn an_appliance_whose_name_cannot_be_part_of_others_is_refused(#[case] name: &str) {
    let said = messages("ReplicationAppliance", &object(name, appliance()), None);
    assert!(said.len() == 1 && said[0].contains("has at most 36 characters"), "{said:?}");
}

#[test]
fn a_spool_that_cannot_hold_a_round_is_refused() {
    let spec = with(&appliance(), json!({ "processServers": { "spool": { "size": "1Mi" } } }));
    refuses("ReplicationAppliance", spec, "spool.size is at least 64Mi");
}

// ---- ProtectedServer

fn server() -> Value {
    json!({
        "applianceRef": { "name": "berlin" }, "policyRef": { "name": "gold" },
        "target": { "virtualMachinePod": { "ports": [{ "name": "postgresql", "port": 5432 }] } },
        "healthCheck": { "tcp": { "port": 5432, "sendHex": "0000000804d2162f", "expect": "^[SN]" } }
    })
}

#[rstest]
#[case(json!({}))]
#[case(json!({ "healthCheck": null }))]
#[case(json!({ "consistencyGroup": "erp" }))]
#[case(json!({ "healthCheck": { "tcp": null, "http": { "port": 5432 } } }))]
fn a_server_is_admitted(#[case] patch: Value) {
    admits("ProtectedServer", with(&server(), patch));
}

#[rstest]
#[case(json!({ "healthCheck": { "tcp": { "port": 80 } } }), "must be one of target.virtualMachinePod.ports")]
#[case(json!({ "healthCheck": { "http": { "port": 5432 } } }), "choose exactly one of http and tcp")]
#[case(json!({ "healthCheck": { "tcp": { "sendText": "x" } } }), "at most one of sendText and sendHex")]
#[case(json!({ "target": { "virtualMachinePod": { "memory": "64Mi" } } }), "memory is at least 128Mi")]
#[case(json!({ "target": { "virtualMachinePod": { "ports": [{ "name": "a", "port": 5432 }, { "name": "b", "port": 5432 }] } } }), "each port may be listed once")]
fn a_server_that_contradicts_itself_is_refused(#[case] patch: Value, #[case] message: &str) {
    refuses("ProtectedServer", with(&server(), patch), message);
}

#[test]
fn a_server_stays_with_its_appliance_and_may_change_its_policy() {
    let moved = with(&server(), json!({ "applianceRef": { "name": "munich" } }));
    refuses_change("ProtectedServer", server(), moved, "applianceRef cannot be changed");
    let silver = object("a", with(&server(), json!({ "policyRef": { "name": "silver" } })));
    assert_eq!(messages("ProtectedServer", &silver, Some(&object("a", server()))), Vec::<String>::new());
}

#[rstest]
#[case("db.contoso.com")]
#[case(&"x".repeat(64))]
fn a_server_whose_name_cannot_be_part_of_others_is_refused(#[case] name: &str) {
    let said = messages("ProtectedServer", &object(name, server()), None);
    assert!(said.len() == 1 && said[0].contains("has at most 63 characters"), "{said:?}");
}

// ---- RecoveryPlan

fn plan(step: Value) -> Value {
    json!({ "groups": [{ "name": "database", "servers": [{ "name": "db-1" }], "after": [step] }] })
}

#[rstest]
#[case(json!({ "name": "s", "script": { "image": "tools" }, "retry": { "limit": 2 }, "onFailure": "Ask" }))]
#[case(json!({ "name": "s", "check": { "server": "db-1", "tcp": { "port": 22, "expect": "^SSH" } }, "timeout": "1m" }))]
#[case(json!({ "name": "s", "pause": { "message": "look" }, "timeout": "1h" }))]
#[case(json!({ "name": "s", "pause": { "message": "look", "approvers": { "users": ["a", "b"] }, "quorum": 2 } }))]
#[case(json!({ "name": "s", "pause": { "message": "look", "approvers": { "groups": ["dba"] }, "quorum": 2 } }))]
#[case(json!({ "name": "s", "delay": "30s", "when": { "types": ["Planned", "Unplanned"] } }))]
fn a_step_is_admitted(#[case] step: Value) {
    admits("RecoveryPlan", plan(step));
}

#[rstest]
#[case(json!({ "name": "s" }), "exactly one of script, check, pause and delay")]
#[case(json!({ "name": "s", "delay": "1s", "pause": { "message": "look" } }), "exactly one of script, check, pause and delay")]
#[case(json!({ "name": "s", "delay": "1s", "retry": { "limit": 1 } }), "retry belongs to script and check")]
#[case(json!({ "name": "s", "delay": "1s", "timeout": "1m" }), "timeout does not belong to delay")]
#[case(json!({ "name": "s", "script": { "image": "i" }, "timeout": "0s" }), "timeout is at least 1s")]
#[case(json!({ "name": "s", "pause": { "message": "look" }, "onFailure": "Ask" }), "onFailure: Ask belongs to script and check")]
#[case(json!({ "name": "s", "pause": { "message": "look", "approvers": {} } }), "list users or groups")]
#[case(json!({ "name": "s", "pause": { "message": "look", "approvers": { "users": ["a"] }, "quorum": 2 } }), "quorum is larger")]
#[case(json!({ "name": "s", "check": { "server": "db-1" } }), "choose exactly one of http and tcp")]
#[case(json!({ "name": "s", "script": { "image": "i", "env": [{ "name": "LIFEBOAT_CONTEXT", "value": "x" }] } }), "are set by the run")]
fn a_step_that_contradicts_itself_is_refused(#[case] step: Value, #[case] message: &str) {
    refuses("RecoveryPlan", plan(step), message);
}

#[test]
fn a_plan_has_at_most_a_hundred_servers_whatever_the_groups() {
    let group = |name: &str, size: usize| {
        let servers: Vec<Value> = (0..size).map(|i| json!({ "name": format!("{name}-{i}") })).collect();
        json!({ "name": name, "servers": servers })
    };
    admits("RecoveryPlan", json!({ "groups": [group("a", 50), group("b", 50)] }));
    refuses(
        "RecoveryPlan",
        json!({ "groups": [group("a", 51), group("b", 50)] }),
        "a plan has at most 100 servers",
    );
}

#[test]
fn a_server_cannot_depend_on_itself() {
    let groups = |on: &str| json!({ "groups": [{ "name": "g", "servers": [{ "name": "a", "dependsOn": [on] }, { "name": "b" }] }] });
    admits("RecoveryPlan", groups("b"));
    refuses("RecoveryPlan", groups("a"), "a server cannot depend on itself");
}

// ---- FailoverRun

fn run() -> Value {
    json!({ "planRef": { "name": "erp" }, "type": "Test", "requestedBy": { "username": "alice" }, "cleanUpAfter": "1h" })
}

#[rstest]
#[case(json!({}))]
#[case(json!({ "planRef": null, "serverRef": { "name": "db-1" } }))]
#[case(json!({ "recoveryPoint": { "kind": "At", "time": "2026-01-02T03:04:05Z" } }))]
#[case(json!({ "servers": [{ "name": "db-1", "recoveryPoint": { "kind": "LatestProcessed" } }] }))]
fn a_run_is_admitted(#[case] patch: Value) {
    admits("FailoverRun", with(&run(), patch));
}

#[rstest]
#[case(json!({ "planRef": null }), "choose exactly one of planRef and serverRef")]
#[case(json!({ "serverRef": { "name": "db-1" } }), "choose exactly one of planRef and serverRef")]
#[case(json!({ "type": "Unplanned" }), "this version offers type Test only")]
#[case(json!({ "recoveryPoint": { "kind": "At" } }), "time belongs to kind At")]
#[case(json!({ "recoveryPoint": { "time": "2026-01-02T03:04:05Z" } }), "time belongs to kind At")]
fn a_run_that_cannot_be_is_refused(#[case] patch: Value, #[case] message: &str) {
    refuses("FailoverRun", with(&run(), patch), message);
}

#[rstest]
#[case(json!({ "planRef": { "name": "crm" } }))]
#[case(json!({ "requestedBy": { "username": "mallory" } }))]
#[case(json!({ "cleanUpAfter": "2h" }))]
#[case(json!({ "cleanUpAfter": null }))]
#[case(json!({ "recoveryPoint": { "kind": "LatestProcessed" } }))]
#[case(json!({ "servers": [{ "name": "db-1", "recoveryPoint": { "kind": "LatestProcessed" } }] }))]
fn a_run_is_never_changed(#[case] patch: Value) {
    refuses_change(
        "FailoverRun",
        run(),
        with(&run(), patch),
        "a run is never changed but for cancel and cleanUp",
    );
}

#[rstest]
#[case("cancel")]
#[case("cleanUp")]
fn a_switch_of_a_run_only_moves_forward(#[case] switch: &str) {
    let switched = with(&run(), json!({ switch: true }));
    assert_eq!(
        messages("FailoverRun", &object("a", switched.clone()), Some(&object("a", run()))),
        Vec::<String>::new()
    );
    refuses_change(
        "FailoverRun",
        switched.clone(),
        with(&run(), json!({ switch: false })),
        "cannot be taken back",
    );
    refuses_change("FailoverRun", switched, run(), "cannot be taken back");
}

// ---- FailoverApproval

#[test]
fn an_approval_is_never_changed() {
    let approval = json!({
        "runRef": { "name": "erp-7", "uid": "u" }, "step": "sign-off", "attempt": 1, "decision": "Reject",
        "by": { "username": "alice" }
    });
    admits("FailoverApproval", approval.clone());
    let changed = with(&approval, json!({ "decision": "Approve" }));
    refuses_change("FailoverApproval", approval, changed, "an approval is never changed");
}
