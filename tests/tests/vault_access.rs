//! How an appliance gets into its vault, and who does what with it: workload identity, roles of two clusters, a new data
//! key. The operator with the rights of the chart, on a real API server and a real blob store; no node, so pods stay
//! Pending.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::{collections::BTreeSet, time::Duration};

use lifeboat_replication::{
    appliers::Announcement,
    catalogue::{self, Point, PointConsistency, Points, Position},
    env::{Env, Micros},
    ids::{Epoch, RecordNumber, ServerId},
    keys::DataKeys,
    log::LogState,
    store::{
        PutCondition,
        azure::{AzureOptions, AzureStore, Credential},
    },
    vault::{self, KeyBundle, Vault, layout},
};
use lifeboat_tests::{
    api_server::{ApiServer, top},
    blob_store::BlobStore,
    entra::{CLIENT, Entra, TENANT},
    operator::Operator,
};
use serde_json::{Value, json};

const NAMESPACE: &str = "prod";
const OPERATOR: &str = "system:serviceaccount:lifeboat-system:lifeboat";

struct World {
    operator: Operator,
    store: BlobStore,
    server: ApiServer,
    /// Its private half opens the vaults' key bundles.
    recovery_key: age::x25519::Identity,
}

impl World {
    fn new(name: &str, store: BlobStore, environment: &[(&str, String)]) -> Self {
        let server = ApiServer::start_with_controllers(name).unwrap();
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
        let operator = Operator::start_with(&server, environment).unwrap();
        let made = server.kubectl(["create", "namespace", NAMESPACE]).unwrap();
        assert!(made.success, "{}", made.stderr);
        Self { operator, store, server, recovery_key: age::x25519::Identity::generate() }
    }

    #[track_caller]
    fn apply(&self, object: &Value) {
        let applied = self.server.kubectl_with(["apply", "-f", "-"], &object.to_string()).unwrap();
        assert!(applied.success, "{}", applied.stderr);
    }

    /// An appliance with this and a vault at `container`, by `authentication`.
    #[track_caller]
    fn appliance(&self, name: &str, container: &str, authentication: &Value, more: &Value) {
        let mut spec = json!({
            "vault": {"azure": {
                "endpoint": self.store.endpoint, "container": container, "authentication": authentication,
            }},
            "recoveryKeyRecipients": [self.recovery_key.to_public().to_string()],
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        self.apply(&object("ReplicationAppliance", name, &spec));
    }

    fn get(&self, resource: &str) -> Value {
        self.server.kubectl(["-n", NAMESPACE, "get", resource, "-o", "json"]).unwrap().json()
    }

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
            "{what} did not happen; {resource} has {status:#}\nthe operator says:\n{}",
            self.operator.log()
        );
    }

    #[track_caller]
    fn condition(&self, resource: &str, kind: &str, status: &str) -> String {
        let what = format!("{kind} is {status}");
        let found = self.eventually(&what, resource, |object| condition(object, kind)["status"] == status);
        let condition = condition(&found, kind);
        format!("{}: {}", condition["reason"].as_str().unwrap(), condition["message"].as_str().unwrap())
    }

    fn azure(&self, container: &str) -> AzureStore {
        let account = AzureOptions::account_of(&self.store.endpoint).unwrap();
        let credential = Credential::AccountKey { account, key: self.store.account_key.clone().into() };
        let endpoint = self.store.endpoint.clone();
        AzureStore::new(&AzureOptions { endpoint, container: container.to_owned(), credential }).unwrap()
    }
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "lifeboat.dev/v1alpha1", "kind": kind, "spec": spec,
        "metadata": {"name": name, "namespace": NAMESPACE},
    })
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    static NONE: Value = Value::Null;
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().find(|condition| condition["type"] == kind).unwrap_or(&NONE)
}

#[allow(clippy::disallowed_methods, reason = "a test waits for another program")]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

#[test]
fn an_appliance_opens_its_vault_by_workload_identity_and_shows_its_token_to_nobody_else() {
    let entra = Entra::start().unwrap();
    entra.behaviour().trusted_subject = OPERATOR.to_owned();
    let store = BlobStore::start_with("identity-store", &entra.azurite_options()).unwrap();
    let environment = [
        ("SSL_CERT_FILE", entra.ca_file().display().to_string()),
        ("LIFEBOAT_AZURE_TOKEN_FILE", entra.service_account(OPERATOR).unwrap().display().to_string()),
        ("LIFEBOAT_TRUSTED_HOSTS", "127.0.0.1".to_owned()),
    ];
    let mut world = World::new("identity", store, &environment);
    let identity = |client: &str, authority: &str| {
        json!({"workloadIdentity": {
            "clientId": client, "tenantId": TENANT, "authorityHost": authority, "serviceAccountName": "dr",
        }})
    };
    world.appliance("berlin", "lifeboat", &identity(CLIENT, &entra.url), &json!({}));
    world.condition("appliance/berlin", "VaultReachable", "True");
    assert!(entra.behaviour().given > 0);
    for set in ["statefulset/berlin-process-server", "statefulset/berlin-applier"] {
        let found = world.eventually("the pods' token", set, |set| set["spec"].is_object());
        let pod = &found["spec"]["template"]["spec"];
        assert_eq!(
            (&pod["serviceAccountName"], &pod["automountServiceAccountToken"]),
            (&json!("dr"), &json!(false))
        );
        let volumes = pod["volumes"].as_array().unwrap();
        let token = volumes.iter().find(|volume| volume["name"] == "vault-auth").unwrap();
        let token = &token["projected"]["sources"][0]["serviceAccountToken"];
        assert_eq!(token["audience"], "api://AzureADTokenExchange");
    }
    let files = world.get("configmap/berlin-configuration")["data"].clone();
    let file = files["vault.json"].as_str().unwrap_or_default();
    assert!(file.contains("/etc/lifeboat/vault-auth/token"), "{files}");

    // An identity that the tenant does not know.
    let stranger = identity("00000000-0000-0000-0000-000000000000", &entra.url);
    world.appliance("paris", "paris", &stranger, &json!({}));
    let said = world.condition("appliance/paris", "VaultReachable", "False");
    assert!(said.starts_with("VaultAccessDenied") && said.contains("check clientId"), "{said}");

    // Somebody who wants the operator's token for himself.
    let given = entra.behaviour().given;
    world.appliance("rome", "rome", &identity(CLIENT, "https://localhost:9"), &json!({}));
    let said = world.condition("appliance/rome", "VaultReachable", "False");
    assert!(said.starts_with("InvalidSpec") && said.contains("trustedHosts"), "{said}");
    assert_eq!(entra.behaviour().given, given);
    assert!(world.operator.is_alive() && !world.operator.log().contains("eyJ"), "a token is in the log");
}

#[test]
fn a_second_cluster_applies_what_the_first_one_takes_in_and_the_data_key_is_rotated() {
    let store = BlobStore::start("roles-store").unwrap();
    let world = World::new("roles", store, &[]);
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "vault", "namespace": NAMESPACE},
        "stringData": {"key": world.store.account_key},
    });
    world.apply(&secret);
    let by_key = json!({"accountKeySecretRef": {"name": "vault", "key": "key"}});
    world.appliance(
        "near",
        "lifeboat",
        &by_key,
        &json!({
            "roles": ["Apply"], "encryptionKeySecretRef": {"name": "berlin-keys"},
        }),
    );
    let said = world.condition("appliance/near", "VaultReachable", "False");
    assert!(said.contains("copy it from the cluster with the role Ingest"), "{said}");

    let ingest = json!({"roles": ["Ingest"], "processServers": {"replicas": 0}});
    world.appliance("berlin", "lifeboat", &by_key, &ingest);
    world.condition("appliance/berlin", "VaultReachable", "True");
    let said = world.condition("appliance/berlin", "AppliersReady", "True");
    assert!(said.contains("another cluster"), "{said}");
    assert!(world.get("statefulset/berlin-applier").is_null());

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Each with connections of its own: between two looks nobody notices that the store has closed them.
    let described =
        || runtime.block_on(vault::read_description(&world.azure("lifeboat"))).unwrap().unwrap().0;
    let before = described();
    world.condition("appliance/near", "VaultReachable", "True");
    world.eventually("appliers", "statefulset/near-applier", |set| set["spec"]["replicas"] == 1);
    let said = world.condition("appliance/near", "ProcessServersReady", "True");
    assert!(said.contains("another cluster"), "{said}");
    for absent in
        ["statefulset/near-process-server", "service/near-management", "service/near-process-servers"]
    {
        assert!(world.get(absent).is_null(), "{absent}");
    }
    assert_eq!(described(), before, "the vault's description is the first cluster's alone");

    // The second cluster's applier, by what it writes into the vault.
    world.apply(&object("ReplicationPolicy", "gold", &json!({})));
    let server = json!({
        "applianceRef": {"name": "berlin"}, "policyRef": {"name": "gold"},
        "target": {"virtualMachinePod": {}},
    });
    world.apply(&object("ProtectedServer", "db-1", &server));
    let found = world.eventually("an identity", "pserver/db-1", |found| found["status"]["id"].is_string());
    let id: ServerId = found["status"]["id"].as_str().unwrap().parse().unwrap();
    let keys = keys(&world);
    runtime.block_on(write_books(&world, &id, &keys));
    let found = world.eventually("its points", "pserver/db-1", |found| {
        found["status"]["recoveryPoints"]["count"] == 1
            && found["status"]["applier"] == "near-applier-0 (another cluster)"
    });
    assert_eq!(found["status"]["recoveryPoints"]["latest"], "1970-01-01T00:00:07Z");

    // A new data key: the bundle opens it for the recovery key, and the old one with it.
    let mut rotating = ingest;
    rotating["rotateDataKey"] = json!("1");
    runtime.block_on(announce(&world, &id, &keys));
    world.appliance("berlin", "lifeboat", &by_key, &rotating);
    // The second cluster's applier has to have it before anybody writes with it.
    let found = world.eventually("a wait for the other cluster", "appliance/berlin", |found| {
        let message = found["status"]["dataKey"]["message"].as_str().unwrap_or_default();
        message.contains("applier near-applier-0 (another cluster): it needs the Secret berlin-keys")
    });
    assert_eq!(found["status"]["dataKey"]["id"], keys.current().0.0);
    let staged = self::keys(&world);
    assert_eq!(staged.current().0, keys.current().0);
    runtime.block_on(announce(&world, &id, &staged));
    let found = world.eventually("a rotation", "appliance/berlin", |found| {
        found["status"]["dataKey"]["rotation"] == "1" && found["status"]["dataKey"]["keys"] == 2
    });
    let rotated = self::keys(&world);
    assert_ne!(rotated.current().0, keys.current().0);
    assert_eq!(found["status"]["dataKey"]["id"], rotated.current().0.0);
    assert!(rotated.get(keys.current().0).is_some());
    let private = age_secret(&world.recovery_key);
    let bundled = KeyBundle::unseal(&described(), &private).unwrap().data_keys;
    assert!(bundled.get(rotated.current().0).is_some() && bundled.get(keys.current().0).is_some());
    assert!(world.get("statefulset/berlin-process-server")["spec"]["template"].is_object());
    // What was written before is read on.
    let read = Vault { keys: rotated.into(), ..vault_of(&world, &keys) };
    assert!(runtime.block_on(catalogue::read::<Points>(&read, &id)).unwrap().is_some());
    pause(Duration::from_secs(20));
    assert_eq!(world.get("appliance/berlin")["status"]["dataKey"]["keys"], 2, "once for a value");
}

fn age_secret(identity: &age::x25519::Identity) -> String {
    use age::secrecy::ExposeSecret as _;
    identity.to_string().expose_secret().to_owned()
}

fn keys(world: &World) -> DataKeys {
    use base64::Engine as _;
    let encoded = world.get("secret/berlin-keys")["data"]["keys.json"].as_str().unwrap().to_owned();
    DataKeys::from_json(&base64::engine::general_purpose::STANDARD.decode(encoded).unwrap()).unwrap()
}

fn vault_of(world: &World, keys: &DataKeys) -> Vault {
    Vault {
        store: std::sync::Arc::new(world.azure("lifeboat")),
        cache: std::sync::Arc::new(world.azure("lifeboat-cache")),
        keys: std::sync::Arc::new(keys.clone()),
        id: String::new(),
    }
}

/// A position, one point, and an announcement, as an applier leaves them.
async fn write_books(world: &World, id: &ServerId, keys: &DataKeys) {
    let vault = vault_of(world, keys);
    let log = LogState {
        epoch: Epoch(1),
        part: 0,
        offset: 0,
        chain: [0; 32],
        key_id: keys.current().0.clone(),
        last_number: RecordNumber(4),
        last_t0: Micros(7_000_000),
        complete: true,
        disks: Vec::new(),
        closed_run: None,
        next_part: None,
    };
    let point = Point {
        number: 4,
        epoch: 1,
        t0_micros: 7_000_000,
        consistency: PointConsistency::CrashConsistent,
        group: None,
        disks: Vec::new(),
        log: log.clone(),
    };
    let points = Points { points: vec![point], ..Points::none(id) };
    catalogue::write(&vault, id, &points, None).await.unwrap();
    let position =
        Position { format: catalogue::FORMAT, server: id.to_string(), log, seeds: Default::default() };
    catalogue::write(&vault, id, &position, None).await.unwrap();
    announce(world, id, keys).await;
}

async fn announce(world: &World, id: &ServerId, keys: &DataKeys) {
    let said = Announcement {
        keys: keys.ids().cloned().collect(),
        beat: Env::system().entropy.next_u64(),
        ..Announcement::new("uuid", "near-applier-0", &BTreeSet::from([id.clone()]))
    };
    let store = vault_of(world, keys).store;
    store.put(&layout::applier("uuid"), said.content(), &PutCondition::Always).await.unwrap();
}
