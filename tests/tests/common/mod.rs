//! What the tests of the chart share: one API server with the chart installed for a whole program of tests, and short
//! words for what is done to it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(dead_code, reason = "each program of tests uses its part")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use lifeboat_tests::api_server::{Answer, ApiServer, top};
use serde_json::{Value, json};

/// Started by the first test, with the chart installed. Ended by `apiserver-up`'s guard when this process ends.
pub(crate) static SERVER: LazyLock<ApiServer> = LazyLock::new(|| {
    let server = ApiServer::start("chart").unwrap();
    install(&server, &top().join("charts/lifeboat"));
    server
});

pub(crate) fn install(server: &ApiServer, chart: &Path) {
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

pub(crate) fn namespace() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let made = SERVER.kubectl(["create", "namespace", &name]).unwrap();
    assert!(made.success, "{}", made.stderr);
    name
}

pub(crate) fn object(kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "lifeboat.dev/v1alpha1", "kind": kind, "metadata": { "name": name, "namespace": namespace }, "spec": spec
    })
}

/// Creates the object as `user` (the administrator when empty), who is a member of `groups`.
pub(crate) fn create_as(user: &str, groups: &[&str], object: &Value) -> Answer {
    let mut arguments = vec!["create".to_owned(), "-f".into(), "-".into(), "-o".into(), "json".into()];
    if !user.is_empty() {
        arguments.extend(["--as".into(), user.into()]);
        arguments.extend(groups.iter().flat_map(|group| ["--as-group".into(), (*group).to_owned()]));
    }
    SERVER.kubectl_with(arguments, &object.to_string()).unwrap()
}

pub(crate) fn create(object: &Value) -> Answer {
    create_as("", &[], object)
}

#[track_caller]
pub(crate) fn admitted(answer: &Answer) -> Value {
    assert!(answer.success, "refused: {}", answer.stderr);
    answer.json()
}

#[track_caller]
pub(crate) fn refused(answer: &Answer, expected: &str) {
    assert!(!answer.success, "admitted: {}", answer.stdout);
    assert!(
        answer.stderr.contains(expected),
        "expected {expected:?}, the API server says {:?}",
        answer.stderr
    );
}

pub(crate) fn appliance() -> Value {
    json!({ "vault": { "azure": {
        "endpoint": "https://contosodr.blob.core.windows.net", "container": "lifeboat",
        "authentication": { "accountKeySecretRef": { "name": "vault", "key": "key" } }
    } } })
}

pub(crate) fn run_by(username: &str, groups: &[&str]) -> Value {
    json!({ "planRef": { "name": "erp" }, "type": "Test", "requestedBy": { "username": username, "groups": groups } })
}

/// Binds `user` to a ClusterRole in the namespace.
pub(crate) fn bind(namespace: &str, role: &str, user: &str) {
    let name = format!("{role}-{user}").replace(':', "-");
    let bound = SERVER
        .kubectl(["-n", namespace, "create", "rolebinding", &name, "--clusterrole", role, "--user", user])
        .unwrap();
    assert!(bound.success, "{}", bound.stderr);
}

/// Whether `user` may; `resource` may name a subresource, as `pods:exec`.
pub(crate) fn may(user: &str, namespace: &str, verb: &str, resource: &str) -> bool {
    let (resource, subresource) = resource.split_once(':').unwrap_or((resource, ""));
    let subresource = format!("--subresource={subresource}");
    let answer = SERVER
        .kubectl(["auth", "can-i", verb, resource, "-n", namespace, "--as", user, &subresource])
        .unwrap();
    assert!(matches!(answer.stdout.trim(), "yes" | "no"), "{}", answer.stderr);
    answer.stdout.trim() == "yes"
}

/// Policies are loaded a moment after they were made.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    for _ in 0..60 {
        if check() {
            return;
        }
        pause(Duration::from_millis(250));
    }
    panic!("{what} did not happen within 15 s");
}

#[allow(clippy::disallowed_methods, reason = "a test waits for another program")]
pub(crate) fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

pub(crate) fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("lifeboat-tests-{}-{name}", std::process::id()))
}

pub(crate) fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-r").arg(from).arg(to).status().is_ok_and(|status| status.success()));
}
