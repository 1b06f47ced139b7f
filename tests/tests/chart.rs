//! The chart against a real API server: definitions with their rules and defaults, admission policies, roles, and what
//! stays when the chart goes.
//!
//! One API server for all tests, each in a namespace of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use lifeboat_tests::api_server::{Answer, ApiServer, top};
use rstest::rstest;
use serde_json::{Value, json};

/// Started by the first test, with the chart installed. Ended by `apiserver-up`'s guard when this process ends.
static SERVER: LazyLock<ApiServer> = LazyLock::new(|| {
    let server = ApiServer::start("chart").unwrap();
    install(&server, &top().join("charts/lifeboat"));
    server
});

fn install(server: &ApiServer, chart: &Path) {
    let installed = server
        .helm([
            "upgrade",
            "--install",
            "lifeboat",
            chart.to_str().unwrap(),
            "--namespace",
            "lifeboat-system",
            "--create-namespace",
            "--set",
            "images.repository=localhost/lifeboat",
        ])
        .unwrap();
    assert!(installed.success, "helm: {}", installed.stderr);
    assert!(!installed.stderr.contains("Warning"), "the API server warns of the chart: {}", installed.stderr);
    let ready =
        server.kubectl(["wait", "crd", "--all", "--for=condition=Established", "--timeout=30s"]).unwrap();
    assert!(ready.success, "{}", ready.stderr);
}

fn namespace() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let made = SERVER.kubectl(["create", "namespace", &name]).unwrap();
    assert!(made.success, "{}", made.stderr);
    name
}

fn object(kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "lifeboat.dev/v1alpha1", "kind": kind, "metadata": { "name": name, "namespace": namespace }, "spec": spec
    })
}

/// Creates the object as `user` (the administrator when empty), who is a member of `groups`.
fn create_as(user: &str, groups: &[&str], object: &Value) -> Answer {
    let mut arguments = vec!["create".to_owned(), "-f".into(), "-".into(), "-o".into(), "json".into()];
    if !user.is_empty() {
        arguments.extend(["--as".into(), user.into()]);
        arguments.extend(groups.iter().flat_map(|group| ["--as-group".into(), (*group).to_owned()]));
    }
    SERVER.kubectl_with(arguments, &object.to_string()).unwrap()
}

fn create(object: &Value) -> Answer {
    create_as("", &[], object)
}

#[track_caller]
fn admitted(answer: &Answer) -> Value {
    assert!(answer.success, "refused: {}", answer.stderr);
    answer.json()
}

#[track_caller]
fn refused(answer: &Answer, expected: &str) {
    assert!(!answer.success, "admitted: {}", answer.stdout);
    assert!(
        answer.stderr.contains(expected),
        "expected {expected:?}, the API server says {:?}",
        answer.stderr
    );
}

fn appliance() -> Value {
    json!({ "vault": { "azure": {
        "endpoint": "https://contosodr.blob.core.windows.net", "container": "lifeboat",
        "authentication": { "accountKeySecretRef": { "name": "vault", "key": "key" } }
    } } })
}

fn run_by(username: &str, groups: &[&str]) -> Value {
    json!({ "planRef": { "name": "erp" }, "type": "Test", "requestedBy": { "username": username, "groups": groups } })
}

/// Binds `user` to a ClusterRole in the namespace.
fn bind(namespace: &str, role: &str, user: &str) {
    let name = format!("{role}-{user}").replace(':', "-");
    let bound = SERVER
        .kubectl(["-n", namespace, "create", "rolebinding", &name, "--clusterrole", role, "--user", user])
        .unwrap();
    assert!(bound.success, "{}", bound.stderr);
}

/// Whether `user` may; `resource` may name a subresource, as `pods:exec`.
fn may(user: &str, namespace: &str, verb: &str, resource: &str) -> bool {
    let (resource, subresource) = resource.split_once(':').unwrap_or((resource, ""));
    let subresource = format!("--subresource={subresource}");
    let answer = SERVER
        .kubectl(["auth", "can-i", verb, resource, "-n", namespace, "--as", user, &subresource])
        .unwrap();
    assert!(matches!(answer.stdout.trim(), "yes" | "no"), "{}", answer.stderr);
    answer.stdout.trim() == "yes"
}

/// Policies are loaded a moment after they were made.
fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    for _ in 0..60 {
        if check() {
            return;
        }
        pause(Duration::from_millis(250));
    }
    panic!("{what} did not happen within 15 s");
}

#[allow(clippy::disallowed_methods, reason = "a test waits for another program")]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

#[test]
fn an_appliance_gets_every_default() {
    let made = admitted(&create(&object("ReplicationAppliance", &namespace(), "berlin", appliance())));
    let spec = &made["spec"];
    assert_eq!(spec["processServers"], json!({ "replicas": 1, "spool": { "size": "50Gi" } }));
    assert_eq!(spec["exposure"], json!({ "type": "ClusterIP", "dataPort": 9443, "managementPort": 443 }));
}

#[test]
fn a_null_gets_the_default() {
    let spec = json!({ "roundInterval": null, "compression": null });
    let made = admitted(&create(&object("ReplicationPolicy", &namespace(), "gold", spec)));
    assert_eq!(made["spec"]["roundInterval"], "15s");
    assert_eq!(made["spec"]["compression"], json!({ "algorithm": "zstd", "level": 1 }));
}

#[test]
fn an_appliance_can_be_scaled() {
    let namespace = namespace();
    admitted(&create(&object("ReplicationAppliance", &namespace, "berlin", appliance())));
    let scaled =
        SERVER.kubectl(["-n", &namespace, "scale", "replicationappliance/berlin", "--replicas=2"]).unwrap();
    assert!(scaled.success, "{}", scaled.stderr);
    let found = SERVER.kubectl(["-n", &namespace, "get", "appliance", "berlin", "-o", "json"]).unwrap();
    assert_eq!(found.json()["spec"]["processServers"]["replicas"], 2);
}

#[test]
fn the_samples_are_admitted_as_they_stand() {
    let folder = scratch("sample");
    copy(&top().join("manifests/samples/demo"), &folder);
    let recipient = format!("age1{}", "q".repeat(58));
    let settings = format!(
        "ENDPOINT=http://10.0.0.1:10000/account\nRECOVERY_KEY_RECIPIENT={recipient}\nADDRESS=10.0.0.1\n"
    );
    fs::write(folder.join("demo.env"), settings).unwrap();
    let applied = SERVER.kubectl(["apply", "--validate=strict", "-k", folder.to_str().unwrap()]).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    assert!(applied.success, "{}", applied.stderr);
    let found =
        SERVER.kubectl(["-n", "lifeboat-demo", "get", "appliance", "berlin", "-o", "json"]).unwrap().json();
    assert_eq!(found["spec"]["recoveryKeyRecipients"], json!([recipient]));
    assert_eq!(found["spec"]["vault"]["azure"]["endpoint"], "http://10.0.0.1:10000/account");
}

#[test]
fn the_manifests_for_kustomize_are_what_the_chart_says_and_are_admitted() {
    let drift = Command::new(top().join("manifests/render")).arg("--check").output().unwrap();
    assert!(drift.status.success(), "{}", String::from_utf8_lossy(&drift.stdout));
    let overlay = top().join("manifests/overlays/registry");
    // Helm has installed the same objects, so their fields are Helm's.
    let options =
        ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-k"];
    let applied = SERVER.kubectl(options.into_iter().chain([overlay.to_str().unwrap()])).unwrap();
    assert!(applied.success, "{}", applied.stderr);
    let rendered = SERVER.kubectl(["kustomize", overlay.to_str().unwrap()]).unwrap();
    assert!(!rendered.stdout.contains("localhost/lifeboat"), "an image is left out of {}", overlay.display());
}

#[rstest]
#[case("operator.replica=2", "additional properties 'replica' not allowed")]
#[case("images.pullPolicy=Sometimes", "'/images/pullPolicy'")]
#[case("images.repository=registry.contoso.com/", "'/images/repository'")]
#[case("images.repository=", "set images.repository to where the images of Lifeboat are")]
fn a_wrong_value_is_refused_before_anything_is_installed(#[case] value: &str, #[case] expected: &str) {
    let chart = top().join("charts/lifeboat");
    let arguments = [
        "template",
        "lifeboat",
        chart.to_str().unwrap(),
        "--set",
        "images.repository=localhost/lifeboat",
        "--set",
        value,
    ];
    refused(&SERVER.helm(arguments).unwrap(), expected);
}

#[test]
fn what_this_version_does_not_know_is_refused_and_not_dropped() {
    let mut spec = appliance();
    spec["bandwidth"] = json!([]);
    refused(
        &create(&object("ReplicationAppliance", &namespace(), "berlin", spec)),
        r#"unknown field "spec.bandwidth""#,
    );
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
    refuses("ReplicationAppliance", both, "choose exactly one of sasSecretRef and accountKeySecretRef");
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

#[test]
fn runs_and_approvals_are_rights_of_their_own() {
    let namespace = namespace();
    for (role, user) in
        [("lifeboat-view", "viewer"), ("lifeboat-edit", "editor"), ("lifeboat-approver", "approver")]
    {
        bind(&namespace, role, user);
    }
    eventually("the bindings", || may("viewer", &namespace, "list", "failoverruns"));
    let table = [
        ("viewer", "create", "failoverruns", false),
        ("viewer", "patch", "protectedservers", false),
        ("editor", "create", "failoverruns", true),
        ("editor", "create", "failoverapprovals", false),
        ("editor", "patch", "failoverruns:status", false),
        ("approver", "create", "failoverapprovals", true),
        ("approver", "get", "failoverruns", true),
        ("approver", "create", "failoverruns", false),
        ("approver", "patch", "failoverapprovals", false),
        ("approver", "delete", "failoverapprovals", false),
    ];
    for (user, verb, resource, expected) in table {
        assert_eq!(may(user, &namespace, verb, resource), expected, "{user} {verb} {resource}");
    }
}

#[test]
fn the_operator_may_do_its_work_and_no_more() {
    LazyLock::force(&SERVER);
    let operator = "system:serviceaccount:lifeboat-system:lifeboat";
    let table = [
        ("get", "secrets", true),
        ("list", "secrets", false),
        ("watch", "secrets", false),
        ("delete", "secrets", false),
        ("delete", "persistentvolumeclaims", false),
        ("create", "statefulsets.apps", true),
        ("create", "jobs.batch", true),
        ("create", "pods", true),
        ("create", "pods:exec", false),
        ("get", "pods:log", false),
        ("impersonate", "users", false),
        ("create", "failoverapprovals.lifeboat.dev", false),
        ("create", "failoverruns.lifeboat.dev", false),
        ("delete", "protectedservers.lifeboat.dev", false),
        ("create", "leases.coordination.k8s.io", false),
        ("create", "rolebindings.rbac.authorization.k8s.io", false),
    ];
    for (verb, resource, expected) in table {
        assert_eq!(may(operator, "default", verb, resource), expected, "{verb} {resource}");
    }
    assert!(may(operator, "lifeboat-system", "update", "leases.coordination.k8s.io/lifeboat"));
    assert!(!may(operator, "lifeboat-system", "update", "leases.coordination.k8s.io/other"));
}

#[test]
fn definitions_are_upgraded_with_the_chart_and_stay_with_their_objects_when_it_goes() {
    let server = ApiServer::start("uninstall").unwrap();
    let column = |server: &ApiServer| {
        let found =
            server.kubectl(["get", "crd/replicationpolicies.lifeboat.dev", "-o", "json"]).unwrap().json();
        found["spec"]["versions"][0]["additionalPrinterColumns"][0]["name"].clone()
    };
    // An older chart: one column has another name.
    let older = scratch("older-chart");
    copy(&top().join("charts/lifeboat"), &older);
    let definition = older.join("files/crds/replicationpolicies.yaml");
    let text = fs::read_to_string(&definition).unwrap();
    assert!(text.contains("name: Round\n"));
    fs::write(&definition, text.replace("name: Round\n", "name: Interval\n")).unwrap();
    install(&server, &older);
    fs::remove_dir_all(&older).unwrap();
    assert_eq!(column(&server), "Interval");
    let policy = object("ReplicationPolicy", "default", "gold", json!({}));
    assert!(server.kubectl_with(["create", "-f", "-"], &policy.to_string()).unwrap().success);

    install(&server, &top().join("charts/lifeboat"));
    assert_eq!(column(&server), "Round");

    let gone = server.helm(["uninstall", "lifeboat", "--namespace", "lifeboat-system"]).unwrap();
    assert!(gone.success, "{}", gone.stderr);
    let found = server.kubectl(["get", "rpolicy", "gold", "-o", "json"]).unwrap();
    assert_eq!(found.json()["spec"]["roundInterval"], "15s", "{}", found.stderr);

    install(&server, &top().join("charts/lifeboat"));
    assert!(server.kubectl(["get", "rpolicy", "gold"]).unwrap().success);
}

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("lifeboat-tests-{}-{name}", std::process::id()))
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-r").arg(from).arg(to).status().is_ok_and(|status| status.success()));
}
