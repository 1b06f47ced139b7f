//! What the API server admits with the chart installed: rules of the definitions as it evaluates them, and the admission
//! policies. A refusal is checked by what it says. Each test has a namespace of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;

use common::{
    SERVER, admitted, appliance, bind, create, create_as, eventually, namespace, object, refused, run_by,
};
use serde_json::{Value, json};

#[test]
fn what_this_version_does_not_know_is_refused_and_not_dropped() {
    let mut spec = appliance();
    spec["autoscaling"] = json!({ "min": 1 });
    refused(
        &create(&object("ReplicationAppliance", &namespace(), "berlin", spec)),
        r#"unknown field "spec.autoscaling""#,
    );
}

#[test]
fn an_appliance_has_both_roles_unless_it_says_which_and_never_none() {
    let namespace = namespace();
    let made = admitted(&create(&object("ReplicationAppliance", &namespace, "berlin", appliance())));
    assert_eq!(made["spec"]["roles"], json!(["Ingest", "Apply"]));
    let mut none = appliance();
    none["roles"] = json!([]);
    let created = create(&object("ReplicationAppliance", &namespace, "paris", none));
    refused(&created, "spec.roles in body should have at least 1 items");
}

#[test]
fn the_rules_answer_with_what_is_allowed() {
    let namespace = namespace();
    let refuses = |kind: &str, spec: Value, expected: &str| {
        refused(&create(&object(kind, &namespace, "a", spec)), expected)
    };
    refuses("ReplicationPolicy", json!({ "roundInterval": "6m" }), "roundInterval is from 1s to 5m");
    let mut both = appliance();
    both["vault"]["azure"]["authentication"]["sasSecretRef"] = json!({ "name": "vault", "key": "sas" });
    refuses(
        "ReplicationAppliance",
        both,
        "choose exactly one of workloadIdentity, sasSecretRef and accountKeySecretRef",
    );
    let mut unplanned = run_by("kubernetes-admin", &[]);
    unplanned["type"] = json!("Unplanned");
    refuses("FailoverRun", unplanned, "this version offers type Test only");
    let step =
        json!({ "groups": [{ "name": "g", "servers": [{ "name": "db-1" }], "before": [{ "name": "s" }] }] });
    refuses("RecoveryPlan", step, "a step is exactly one of script, check, pause and delay");
}

#[test]
fn a_run_names_its_caller() {
    let namespace = namespace();
    bind(&namespace, "lifeboat-edit", "alice");
    let run = |name: &str, spec: Value| object("FailoverRun", &namespace, name, spec);
    eventually("the policy on requestedBy", || {
        !create_as("alice", &["dba"], &run("probe", run_by("mallory", &[]))).success
    });
    refused(
        &create_as("alice", &["dba"], &run("a", run_by("mallory", &[]))),
        r#"spec.requestedBy.username must be the caller, "alice""#,
    );
    refused(
        &create_as("alice", &["dba"], &run("a", run_by("alice", &["dba", "directors"]))),
        "may only name groups that the caller is a member of",
    );
    admitted(&create_as("alice", &["dba"], &run("a", run_by("alice", &["dba"]))));
    admitted(&create_as("alice", &["dba"], &run("b", run_by("alice", &[]))));
}

#[test]
fn a_run_is_never_changed_but_for_its_switches() {
    let namespace = namespace();
    bind(&namespace, "lifeboat-edit", "alice");
    admitted(&create_as("alice", &[], &object("FailoverRun", &namespace, "a", run_by("alice", &[]))));
    let patch = |patch: &str| {
        SERVER
            .kubectl([
                "-n",
                &namespace,
                "patch",
                "frun",
                "a",
                "--type=merge",
                "-p",
                patch,
                "-o",
                "json",
                "--as",
                "alice",
            ])
            .unwrap()
    };
    refused(
        &patch(r#"{"spec":{"planRef":{"name":"crm"}}}"#),
        "a run is never changed but for cancel and cleanUp",
    );
    refused(&patch(r#"{"spec":{"cleanUpAfter":"1h"}}"#), "a run is never changed but for cancel and cleanUp");
    assert_eq!(admitted(&patch(r#"{"spec":{"cancel":true}}"#))["spec"]["cancel"], true);
    refused(&patch(r#"{"spec":{"cancel":false}}"#), "cancel cannot be taken back");
}

#[test]
fn an_approval_is_the_callers_and_is_never_changed() {
    let namespace = namespace();
    bind(&namespace, "lifeboat-approver", "bob");
    let approval = |name: &str, username: &str| {
        let spec = json!({
            "runRef": { "name": "erp-7", "uid": "u" }, "step": "sign-off", "attempt": 1, "decision": "Approve",
            "by": { "username": username, "groups": ["dba"] }
        });
        object("FailoverApproval", &namespace, name, spec)
    };
    eventually("the policy on by", || !create_as("bob", &["dba"], &approval("probe", "alice")).success);
    refused(
        &create_as("bob", &["dba"], &approval("a", "alice")),
        r#"spec.by.username must be the caller, "bob""#,
    );
    refused(
        &create_as("bob", &["web"], &approval("a", "bob")),
        "may only name groups that the caller is a member of",
    );
    admitted(&create_as("bob", &["dba"], &approval("a", "bob")));
    refused(&create_as("bob", &["dba"], &approval("a", "bob")), "already exists");
    let changed = SERVER
        .kubectl([
            "-n",
            &namespace,
            "patch",
            "fapproval",
            "a",
            "--type=merge",
            "-p",
            r#"{"spec":{"decision":"Reject"}}"#,
        ])
        .unwrap();
    refused(&changed, "an approval is never changed");
}

#[test]
fn a_plan_is_written_only_by_someone_who_may_create_jobs() {
    let namespace = namespace();
    bind(&namespace, "lifeboat-edit", "carol");
    let plan = |name: &str| {
        object(
            "RecoveryPlan",
            &namespace,
            name,
            json!({ "groups": [{ "name": "g", "servers": [{ "name": "db-1" }] }] }),
        )
    };
    eventually("the policy on plans", || !create_as("carol", &[], &plan("probe")).success);
    refused(&create_as("carol", &[], &plan("a")), r#""carol" may not create Jobs in namespace"#);
    // Someone else's plan may be labelled, but not given another content.
    admitted(&create(&plan("a")));
    let patch = |patch: &str| {
        SERVER
            .kubectl([
                "-n",
                &namespace,
                "patch",
                "rplan",
                "a",
                "--type=merge",
                "-p",
                patch,
                "-o",
                "json",
                "--as",
                "carol",
            ])
            .unwrap()
    };
    admitted(&patch(r#"{"metadata":{"labels":{"team":"erp"}}}"#));
    let content = r#"{"spec":{"groups":[{"name":"g","servers":[{"name":"db-2"}]}]}}"#;
    refused(&patch(content), r#""carol" may not create Jobs in namespace"#);
    let role = SERVER
        .kubectl(["-n", &namespace, "create", "role", "jobs", "--verb=create", "--resource=jobs"])
        .unwrap();
    assert!(role.success, "{}", role.stderr);
    let bound = SERVER
        .kubectl(["-n", &namespace, "create", "rolebinding", "jobs", "--role=jobs", "--user=carol"])
        .unwrap();
    assert!(bound.success, "{}", bound.stderr);
    eventually("the right to create Jobs", || patch(content).success);
}
