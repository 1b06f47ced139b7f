//! The operator with the rights of the chart, on a real API server and a real blob store. There is no node, so pods stay
//! Pending; everything up to them is real.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::{fs, process::Command, time::Duration};

use lifeboat_replication::{env::Env, keys::DataKeys};
use lifeboat_tests::{
    api_server::{ApiServer, top},
    blob_store::BlobStore,
    operator::Operator,
};
use serde_json::{Value, json};

const NAMESPACE: &str = "lifeboat-demo";
/// Made for this test; nobody holds its private half, and nobody needs it here.
const RECIPIENT: &str = "age1t8pml4r5ldxaha8nw46j8lp36rdq6xsthh64h05yx55ep7shw94svvcytn";

struct World {
    operator: Operator,
    store: BlobStore,
    server: ApiServer,
}

impl World {
    /// Chart and operator up, the demo's objects applied; the appliance is told `endpoint`.
    fn new(name: &str, endpoint: impl Fn(&BlobStore) -> String) -> Self {
        let server = ApiServer::start_with_controllers(name).unwrap();
        let store = BlobStore::start(&format!("{name}-store")).unwrap();
        let chart = top().join("charts/lifeboat");
        let installed = server
            .helm([
                "install",
                "lifeboat",
                chart.to_str().unwrap(),
                "--namespace=lifeboat-system",
                "--create-namespace",
                "--set=images.repository=localhost/lifeboat,operator.replicas=0",
            ])
            .unwrap();
        assert!(installed.success, "{}", installed.stderr);
        let operator = Operator::start(&server).unwrap();
        let world = Self { operator, store, server };

        let sample = world.server.scratch("sample");
        let copied =
            Command::new("cp").arg("-r").arg(top().join("manifests/samples/demo")).arg(&sample).status();
        assert!(copied.is_ok_and(|status| status.success()));
        let settings = format!(
            "ENDPOINT={}\nRECOVERY_KEY_RECIPIENT={RECIPIENT}\nADDRESS=10.0.0.1\n",
            endpoint(&world.store)
        );
        fs::write(sample.join("demo.env"), settings).unwrap();
        world.apply(&sample.join("namespace.yaml"));
        world.secret("vault", "key", &world.store.account_key);
        world.secret("bank", "password", "not used here");
        let applied = world.server.kubectl(["apply", "-k", sample.to_str().unwrap()]).unwrap();
        assert!(applied.success, "{}", applied.stderr);
        world
    }

    fn apply(&self, file: &std::path::Path) {
        let applied = self.server.kubectl(["apply", "-f", file.to_str().unwrap()]).unwrap();
        assert!(applied.success, "{}", applied.stderr);
    }

    fn secret(&self, name: &str, key: &str, value: &str) {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name, "namespace": NAMESPACE },
            "stringData": { key: value }
        });
        let made = self.server.kubectl_with(["apply", "-f", "-"], &secret.to_string()).unwrap();
        assert!(made.success, "{}", made.stderr);
    }

    #[track_caller]
    fn patch(&self, resource: &str, patch: &Value) {
        let patch = patch.to_string();
        let patched =
            self.server.kubectl(["-n", NAMESPACE, "patch", resource, "--type=merge", "-p", &patch]).unwrap();
        assert!(patched.success, "{}", patched.stderr);
    }

    fn get(&self, resource: &str) -> Value {
        self.server.kubectl(["-n", NAMESPACE, "get", resource, "-o", "json"]).unwrap().json()
    }

    /// Waits until `holds` does, and returns the object then.
    #[track_caller]
    fn eventually(&self, what: &str, resource: &str, holds: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..600 {
            let found = self.get(resource);
            if holds(&found) {
                return found;
            }
            pause(Duration::from_millis(250));
        }
        let status = &self.get(resource)["status"];
        panic!(
            "{what} did not happen within two and a half minutes; {resource} has {status:#}\nthe operator says:\n{}",
            self.operator.log()
        );
    }

    #[track_caller]
    fn condition(&self, resource: &str, kind: &str, status: &str) -> Value {
        let what = format!("{kind} is {status}");
        let found = self.eventually(&what, resource, |object| condition(object, kind)["status"] == status);
        condition(&found, kind).clone()
    }

    /// The chart's rights were enough, and no secret was written down.
    #[track_caller]
    fn assert_quiet(&mut self) {
        assert!(self.operator.is_alive(), "the operator has ended:\n{}", self.operator.log());
        let log = self.operator.log();
        let refused: Vec<&str> =
            log.lines().filter(|line| line.to_lowercase().contains("forbidden")).collect();
        assert!(refused.is_empty(), "the chart gives too few rights: {refused:#?}");
        assert!(!log.contains(&self.store.account_key), "the account's key is in the log");
        let everything =
            self.server.kubectl(["-n", NAMESPACE, "get", "lifeboat,events", "-o", "yaml"]).unwrap().stdout;
        assert!(
            !everything.is_empty() && !everything.contains(&self.store.account_key),
            "the account's key is in an object"
        );
    }
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    static NONE: Value = Value::Null;
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().find(|condition| condition["type"] == kind).unwrap_or(&NONE)
}

fn component<'a>(appliance: &'a Value, name: &str) -> &'a Value {
    static NONE: Value = Value::Null;
    let components = appliance["status"]["components"].as_array();
    components.into_iter().flatten().find(|component| component["name"] == name).unwrap_or(&NONE)
}

#[allow(clippy::disallowed_methods, reason = "a test waits for another program")]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

#[test]
fn an_appliance_is_set_up_and_taken_down_with_no_more_rights_than_the_chart_gives() {
    let mut world = World::new("operator", |store| store.endpoint.clone());

    for kind in ["VaultReachable", "RecoveryKeyReady", "CertificatesReady"] {
        world.condition("appliance/berlin", kind, "True");
    }
    let warned =
        world.eventually("a warning of a store without soft delete", "appliance/berlin", |appliance| {
            component(appliance, "vault")["reason"] == "DeletionNotGuarded"
        });
    let said = component(&warned, "vault");
    assert_eq!(said["health"], "Warning");
    assert!(
        said["message"].as_str().unwrap_or_default().contains("--enable-delete-retention true"),
        "{said}"
    );
    // No node runs them.
    let waiting = world.condition("appliance/berlin", "ProcessServersReady", "False");
    assert!(!waiting["message"].as_str().unwrap_or_default().is_empty());
    let set = world.eventually("the StatefulSet", "statefulset/berlin-process-server", |set| {
        set["spec"]["replicas"] == 1
    });
    assert_eq!(set["metadata"]["ownerReferences"][0]["kind"], "ReplicationAppliance");
    world.eventually("the applier", "statefulset/berlin-applier", |set| set["spec"]["replicas"] == 1);
    world.patch("appliance/berlin", &json!({ "spec": { "appliers": { "replicas": 2 } } }));
    world.eventually("two appliers", "statefulset/berlin-applier", |set| set["spec"]["replicas"] == 2);
    let told = world.eventually("word of both appliers", "appliance/berlin", |found| {
        found["status"]["appliers"].as_array().is_some_and(|appliers| appliers.len() == 2)
    });
    assert_eq!(told["status"]["appliers"][1]["name"], "berlin-applier-1");
    let waiting = condition(&told, "AppliersReady");
    assert!(waiting["message"].as_str().unwrap_or_default().starts_with("0 of 2"), "{waiting}");
    let management = world
        .eventually("the management Service", "service/berlin-management", |found| found["spec"].is_object());
    assert_eq!(management["spec"]["ports"][0]["nodePort"], 30443);
    let data = world
        .eventually("the data Service", "service/berlin-process-server-0", |found| found["spec"].is_object());
    assert_eq!(data["spec"]["ports"][0]["nodePort"], 30943);

    world.eventually("the count of servers", "rpolicy/gold", |policy| {
        policy["status"]["protectedServers"] == 1
    });
    world.eventually("an identity in the vault", "pserver/db-1", |server| server["status"]["id"].is_string());
    let plan = world.condition("rplan/erp", "Ready", "False");
    assert!(plan["message"].as_str().unwrap_or_default().contains("db-1"), "{plan}");
    world.assert_quiet();

    for resource in ["rplan/erp", "pserver/db-1", "appliance/berlin", "rpolicy/gold"] {
        let gone = world.server.kubectl(["-n", NAMESPACE, "delete", resource, "--timeout=60s"]).unwrap();
        assert!(gone.success, "{resource} does not go: {}\n{}", gone.stderr, world.operator.log());
    }
    world.eventually("garbage collection", "statefulset/berlin-process-server", Value::is_null);
    world.assert_quiet();
}

#[test]
fn a_vault_that_cannot_be_reached_is_said_and_all_goes_on_when_it_can() {
    let mut world = World::new("unreachable", |_| "http://127.0.0.1:9/nobody".to_owned());
    let said = world.condition("appliance/berlin", "VaultReachable", "False");
    assert_eq!(said["reason"], "VaultUnreachable", "{said}");
    assert!(said["message"].as_str().unwrap_or_default().contains("127.0.0.1:9"), "{said}");
    world.condition("appliance/berlin", "Ready", "False");

    world.patch(
        "appliance/berlin",
        &json!({ "spec": { "vault": { "azure": { "endpoint": world.store.endpoint } } } }),
    );
    world.condition("appliance/berlin", "VaultReachable", "True");
    world.assert_quiet();

    // Definitions of another version, as `crds.install=false` leaves them: what the operator says is refused, and it says so
    // where it can.
    world.condition("pserver/db-1", "Ready", "False");
    let other = json!([{
        "op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/phase/enum",
        "value": ["Elsewhere"]
    }]);
    let patch = other.to_string();
    let definition = "crd/protectedservers.lifeboat.dev";
    let patched = world.server.kubectl(["patch", definition, "--type=json", "-p", &patch]).unwrap();
    assert!(patched.success, "{}", patched.stderr);
    world.patch("pserver/db-1", &json!({ "spec": { "replication": "Paused" } }));
    let told = world.eventually("an event of a refused status", "events", |events| refused(events).is_some());
    let note = refused(&told).unwrap_or_default();
    assert!(note.contains("status.phase") && note.contains("upgrade both with the chart"), "{note}");
}

/// What an event says of a status that was refused.
fn refused(events: &Value) -> Option<&str> {
    let told = events["items"].as_array()?.iter().find(|event| event["reason"] == "StatusRefused")?;
    told["message"].as_str()
}

/// Two of them: the one without the lease waits; it goes on where a frozen one stood still, and that one, when it comes
/// back and believes to lead, ends without a word to the API server.
#[test]
fn a_second_operator_goes_on_where_a_frozen_one_stood_still() {
    let mut world = World::new("two-operators", |store| store.endpoint.clone());
    world.condition("appliance/berlin", "VaultReachable", "True");
    let second = Operator::start_named(&world.server, "second", &[]).unwrap();
    assert_eq!(holder(&world), "operator");

    world.operator.freeze();
    world.patch("appliance/berlin", &json!({ "spec": { "appliers": { "replicas": 2 } } }));
    world.eventually("two appliers", "statefulset/berlin-applier", |set| set["spec"]["replicas"] == 2);
    assert_eq!(holder(&world), "second");
    assert!(second.log().contains("leading"), "{}", second.log());

    world.operator.thaw();
    let before = world.operator.log().len();
    for _ in 0..120 {
        if !world.operator.is_alive() {
            break;
        }
        pause(Duration::from_millis(250));
    }
    assert!(!world.operator.is_alive(), "it goes on beside the other:\n{}", world.operator.log());
    let log = world.operator.log();
    assert!(log[before..].contains("lease"), "it ended for another reason:\n{log}");
    assert_eq!(holder(&world), "second");

    // The second one is the only one now, and the first's pod would be started again as a follower.
    let first = std::mem::replace(&mut world.operator, second);
    drop(first);
    world.patch("appliance/berlin", &json!({ "spec": { "appliers": { "replicas": 1 } } }));
    world.eventually("one applier", "statefulset/berlin-applier", |set| set["spec"]["replicas"] == 1);
    world.assert_quiet();
}

fn holder(world: &World) -> String {
    let lease =
        world.server.kubectl(["-n", "lifeboat-system", "get", "lease", "lifeboat", "-o", "json"]).unwrap();
    // Each run of a pod has a number of its own behind its name.
    let lease = lease.json();
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    holder.split('_').next().unwrap_or_default().to_owned()
}

/// Keys of another vault, then a wrong account key: each is named with what to do, and mending it is enough.
#[test]
fn a_wrong_key_is_named_and_all_goes_on_when_the_right_one_is_back() {
    let mut world = World::new("wrong-key", |store| store.endpoint.clone());
    world.condition("appliance/berlin", "VaultReachable", "True");

    let right = world.get("secret/berlin-keys")["data"]["keys.json"].as_str().unwrap().to_owned();
    let wrong = DataKeys::generate(&*Env::system().entropy).to_json();
    world.secret("berlin-keys", "keys.json", std::str::from_utf8(&wrong).unwrap());
    let said = world.condition("appliance/berlin", "VaultReachable", "False");
    assert_eq!(said["reason"], "WrongKey", "{said}");
    assert!(said["message"].as_str().unwrap_or_default().contains("restore it"), "{said}");
    world.condition("appliance/berlin", "Ready", "False");
    world.patch("secret/berlin-keys", &json!({ "data": { "keys.json": right } }));
    world.condition("appliance/berlin", "VaultReachable", "True");

    world.secret("vault", "key", "bm90IHRoZSBrZXk=");
    let said = world.condition("appliance/berlin", "VaultReachable", "False");
    assert_eq!(said["reason"], "VaultAccessDenied", "{said}");
    let key = world.store.account_key.clone();
    world.secret("vault", "key", &key);
    world.condition("appliance/berlin", "VaultReachable", "True");
    world.assert_quiet();
}
