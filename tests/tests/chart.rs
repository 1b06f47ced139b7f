//! The chart on a real API server: defaults of the definitions, samples, manifests, values, roles, and what stays when
//! the chart goes. Each test has a namespace of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;

use std::{fs, process::Command, sync::LazyLock};

use common::{
    SERVER, admitted, appliance, bind, copy, create, eventually, install, may, namespace, object, refused,
    scratch,
};
use lifeboat_tests::api_server::{ApiServer, top};
use rstest::rstest;
use serde_json::json;

#[test]
fn an_appliance_gets_every_default() {
    let made = admitted(&create(&object("ReplicationAppliance", &namespace(), "berlin", appliance())));
    let spec = &made["spec"];
    assert_eq!(spec["processServers"], json!({ "replicas": 1, "spool": { "size": "10Gi" } }));
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
        // After Ready.
        found["spec"]["versions"][0]["additionalPrinterColumns"][1]["name"].clone()
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
