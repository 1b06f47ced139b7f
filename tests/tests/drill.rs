//! A test failover on a real API server with real controllers of Kubernetes, while the operator is killed again and
//! again. There is no node: this test plays the kubelet, and writes the recovery point into the vault itself.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Pod, Secret},
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use lifeboat_crds::{
    FailoverApproval, FailoverRun, ProtectedServer,
    conditions::{self, ConditionType},
    names,
    run::{RunPhase, StepState},
};
use lifeboat_operator::{
    controllers,
    program::{context, gated_client},
    runtime::{
        leader::Gate,
        metrics::Metrics,
        settings::{Images, Settings},
    },
};
use lifeboat_replication::{
    env::Env,
    ids::ServerId,
    keys::DataKeys,
    log::{Head, LogOptions, LogWriter, Order},
    store::azure::{AzureOptions, AzureStore, Credential},
    vault::{self, Vault},
    wire::v1::{self, log_record::Body},
};
use lifeboat_tests::{
    api_server::{ApiServer, top},
    blob_store::BlobStore,
};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

const NAMESPACE: &str = "prod";
const RECIPIENT: &str = "age1t8pml4r5ldxaha8nw46j8lp36rdq6xsthh64h05yx55ep7shw94svvcytn";

struct World {
    server: ApiServer,
    store: BlobStore,
    runtime: Runtime,
    client: Client,
}

impl World {
    fn new(name: &str) -> Self {
        let server = ApiServer::start_with_controllers(name).unwrap();
        for kind in [
            "replicationappliances",
            "protectedservers",
            "replicationpolicies",
            "recoveryplans",
            "failoverruns",
            "failoverapprovals",
        ] {
            let file = top().join(format!("crds/generated/{kind}.yaml"));
            let applied = server.kubectl(["apply", "--server-side", "-f", file.to_str().unwrap()]).unwrap();
            assert!(applied.success, "{}", applied.stderr);
        }
        let established =
            server.kubectl(["wait", "crd", "--all", "--for=condition=Established", "--timeout=30s"]).unwrap();
        assert!(established.success, "{}", established.stderr);
        assert!(server.kubectl(["create", "namespace", NAMESPACE]).unwrap().success);
        let store = BlobStore::start(&format!("{name}-store")).unwrap();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(async { Client::try_from(config(&server).await).unwrap() });
        let world = Self { server, store, runtime, client };
        world.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "vault"}, "stringData": {"key": world.store.account_key}}));
        world.apply(&object("ReplicationPolicy", "gold", json!({"roundInterval": "5s"})));
        let azure = json!({"endpoint": world.store.endpoint, "container": "lifeboat", "authentication": {"accountKeySecretRef": {"name": "vault", "key": "key"}}});
        world.apply(&object(
            "ReplicationAppliance",
            "berlin",
            json!({"vault": {"azure": azure}, "recoveryKeyRecipients": [RECIPIENT]}),
        ));
        world
    }

    fn apply(&self, object: &Value) {
        let applied = self
            .server
            .kubectl_with(["-n", NAMESPACE, "apply", "--server-side", "-f", "-"], &object.to_string())
            .unwrap();
        assert!(applied.success, "{}", applied.stderr);
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    fn run(&self, name: &str) -> FailoverRun {
        self.runtime.block_on(self.api::<FailoverRun>().get(name)).unwrap()
    }

    /// An operator that lives until it is dropped, which ends it in the middle of whatever it does.
    fn operator(&self) -> Life {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let config = self.runtime.block_on(config(&self.server));
        runtime.spawn(async move {
            let client = gated_client(config, &Gate::always_open()).unwrap();
            let context = context(client, settings(), Metrics::default(), Env::system());
            let _controllers = controllers::start(&context);
            std::future::pending::<()>().await;
        });
        Life(Some(runtime))
    }

    /// A server with an identity in the vault and one recovery point in its log.
    fn protected_server(&self, name: &str) {
        let port = json!([{"name": "sql", "port": 5432}]);
        let check = json!({"tcp": {"port": 5432, "expect": "^S"}});
        self.apply(&object("ProtectedServer", name, json!({"applianceRef": {"name": "berlin"}, "policyRef": {"name": "gold"}, "target": {"virtualMachinePod": {"ports": port}}, "healthCheck": check})));
        let _life = self.operator();
        let id = eventually("the server has an id", || {
            let server = self.runtime.block_on(self.api::<ProtectedServer>().get(name)).unwrap();
            server.status.and_then(|status| status.id)
        });
        self.runtime.block_on(self.write_point(&id.parse().unwrap()));
    }

    fn id_of(&self, server: &str) -> ServerId {
        let server = self.runtime.block_on(self.api::<ProtectedServer>().get(server)).unwrap();
        server.status.unwrap().id.unwrap().parse().unwrap()
    }

    /// Keeps the end of a log in the server's status, as an operator does that hears of it.
    fn seen(&self, server: &str, head: &Value) {
        let patch = Patch::Merge(json!({"status": {"lastSeenHead": head}}));
        let api = self.api::<ProtectedServer>();
        self.runtime.block_on(api.patch_status(server, &PatchParams::default(), &patch)).unwrap();
    }

    fn start_run(&self, name: &str, point: &Value) {
        let spec = json!({"serverRef": {"name": "db-1"}, "requestedBy": {"username": "alice"}, "type": "Test", "recoveryPoint": point});
        self.apply(&object("FailoverRun", name, spec));
    }

    /// What the run waits for before it starts, but for the vault, which an operator opens when it starts.
    #[track_caller]
    fn hindrance(&self, run: &str) -> String {
        eventually("the run says what is in its way", || {
            let run = self.run(run);
            let waiting_for =
                (phase(&run) == RunPhase::Validating).then(|| run.status?.waiting_for).flatten();
            waiting_for.filter(|why| !why.contains("is not open"))
        })
    }

    /// Adds a point to the log, and returns the end of the log as a process server would report it and the operator keep
    /// it.
    async fn write_point(&self, id: &ServerId) -> Value {
        let env = Env::system();
        let vault = self.vault().await;
        let mut log = LogWriter::take_over(&vault, id, "test", &env, Order::WhenFree, LogOptions::default())
            .await
            .unwrap();
        let disk = v1::Disk {
            slot: 1,
            id: "sda".into(),
            size_bytes: 1 << 20,
            path: "/dev/sda".into(),
            left_out: false,
        };
        log.append(Body::Disks(v1::Disks { disks: vec![disk] })).await.unwrap();
        let number = log.state().last_number.next().0;
        let record = v1::Data {
            first_number: number,
            number,
            kind: v1::RecordKind::Exact.into(),
            consistency: v1::Consistency::CrashConsistent.into(),
            t0_micros: env.wall.now().0,
            complete: true,
            ..v1::Data::default()
        };
        let t0 = jiff::Timestamp::from_microsecond(record.t0_micros).unwrap();
        log.append(Body::Data(record)).await.unwrap();
        let Head { part, offset, chain, number } = Head::of(log.state());
        let chain: String = chain.iter().map(|byte| format!("{byte:02x}")).collect();
        let head = json!({
            "epoch": part.epoch.0, "part": part.part, "offset": offset, "chain": chain, "record": number.0,
            "pointTime": t0, "writer": log.id(), "observedAt": t0,
        });
        log.release().await;
        head
    }

    async fn vault(&self) -> Vault {
        let secret = self.api::<Secret>().get("berlin-keys").await.unwrap();
        let keys = DataKeys::from_json(&secret.data.unwrap()["keys.json"].0).unwrap();
        let open = |container: &str| {
            let account = AzureOptions::account_of(&self.store.endpoint).unwrap();
            let credential = Credential::AccountKey { account, key: self.store.account_key.clone().into() };
            Arc::new(
                AzureStore::new(&AzureOptions {
                    endpoint: self.store.endpoint.clone(),
                    container: container.into(),
                    credential,
                })
                .unwrap(),
            )
        };
        vault::open(open("lifeboat"), open("lifeboat-cache"), Arc::new(keys)).await.unwrap()
    }
}

struct Life(Option<Runtime>);

impl Drop for Life {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

async fn config(server: &ApiServer) -> Config {
    let file = Kubeconfig::read_from(server.kubeconfig()).unwrap();
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap()
}

fn settings() -> Settings {
    let image = |name: &str| format!("localhost/lifeboat/{name}:dev");
    Settings {
        namespace: "lifeboat-system".into(),
        pod_name: "operator-of-a-test".into(),
        lease_name: "lifeboat-operator".into(),
        log: "info".into(),
        watch_namespace: None,
        metrics_port: 0,
        probe_port: 0,
        cluster_domain: "cluster.local".into(),
        azure_token_file: "/nowhere/token".into(),
        trusted_hosts: Vec::new(),
        images: Images {
            operator: image("operator"),
            process_server: image("process-server"),
            applier: image("applier"),
            recovery: image("recovery"),
            qemu: image("qemu"),
            pull_policy: "Never".into(),
        },
    }
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "lifeboat.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn script(name: &str) -> Value {
    json!({"name": name, "script": {"image": "localhost/lifeboat/tools:dev", "command": ["true"]}})
}

#[track_caller]
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..400 {
        if let Some(found) = look() {
            return found;
        }
        pause(150);
    }
    panic!("{what}: not within a minute");
}

#[allow(clippy::disallowed_methods, reason = "a test waits for other programs")]
fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// What a kubelet would do, and everything that it has ever seen of a run.
#[derive(Default)]
struct Kubelet {
    jobs: BTreeMap<String, BTreeSet<String>>,
    machines: BTreeMap<String, BTreeSet<String>>,
}

impl Kubelet {
    /// One look: pods of Jobs succeed, machines run.
    fn look(&mut self, world: &World) {
        world.runtime.block_on(async {
            let ours = ListParams::default().labels(names::RUN_UID_LABEL);
            for job in world.api::<Job>().list(&ours).await.unwrap() {
                self.jobs.entry(job.name_any()).or_default().insert(job.uid().unwrap());
            }
            for pod in world.api::<Pod>().list(&ours).await.unwrap() {
                let running =
                    pod.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Pending");
                let status = if pod.labels().contains_key("lifeboat.dev/machine") {
                    self.machines.entry(pod.name_any()).or_default().insert(pod.uid().unwrap());
                    machine_status()
                } else {
                    json!({"phase": "Succeeded"})
                };
                if !running && pod.metadata.deletion_timestamp.is_none() {
                    let patch = Patch::Merge(json!({"status": status}));
                    // It may have been deleted in between.
                    let _ = world
                        .api::<Pod>()
                        .patch_status(&pod.name_any(), &PatchParams::default(), &patch)
                        .await;
                }
            }
        });
    }

    #[track_caller]
    fn assert_one_of_each(&self) {
        for (name, uids) in self.jobs.iter().chain(&self.machines) {
            assert_eq!(uids.len(), 1, "{name} was made {} times", uids.len());
        }
    }
}

fn machine_status() -> Value {
    let container = |name: &str| json!({"name": name, "state": {"running": {}}, "started": true, "ready": true, "image": "", "imageID": "", "restartCount": 0});
    json!({"phase": "Running", "podIP": "10.1.2.3", "podIPs": [{"ip": "10.1.2.3"}], "initContainerStatuses": [container("disks")], "containerStatuses": [container("machine")]})
}

/// Lets the operator die after `lives` and start again until `done`, with the kubelet at work.
fn killed_until(world: &World, kubelet: &mut Kubelet, done: impl Fn(&FailoverRun) -> bool) -> FailoverRun {
    // Lives from a twentieth of a second to two seconds: deaths fall into every step. The order is always the same. Later
    // ones are longer: on a slow machine an operator needs more than two seconds to open its vault.
    let mut seed = 7_u64;
    for number in 0..120 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let life = 50 + (seed >> 33) % (1950 + 50 * number);
        let operator = world.operator();
        for _ in 0..(life / 50) {
            pause(50);
            kubelet.look(world);
        }
        drop(operator);
        let run = world.run("erp-1");
        if done(&run) {
            return run;
        }
    }
    panic!("the run did not get there: {:#?}", world.run("erp-1").status);
}

fn phase(run: &FailoverRun) -> RunPhase {
    run.status.as_ref().and_then(|status| status.phase).unwrap_or_default()
}

#[test]
fn killing_the_operator_at_any_step_leaves_one_job_an_attempt_and_one_machine() {
    let world = World::new("drill");
    world.protected_server("db-1");
    let check =
        json!({"name": "answers", "check": {"server": "db-1", "tcp": {"port": 5432, "expect": "^S"}}});
    let pause_step = json!({"name": "sign-off", "pause": {"message": "look at it"}});
    let group = json!({"name": "database", "servers": [{"name": "db-1"}], "before": [script("announce")], "after": [check, script("query"), pause_step]});
    world.apply(&object("RecoveryPlan", "erp", json!({"groups": [group]})));
    world.apply(&object(
        "FailoverRun",
        "erp-1",
        json!({"planRef": {"name": "erp"}, "requestedBy": {"username": "alice"}, "type": "Test"}),
    ));

    let mut kubelet = Kubelet::default();
    let waiting = killed_until(&world, &mut kubelet, |run| phase(run) == RunPhase::Waiting);
    assert!(
        waiting
            .status
            .as_ref()
            .unwrap()
            .waiting_for
            .as_deref()
            .unwrap()
            .contains("kubectl lifeboat approve erp-1 sign-off")
    );
    assert_eq!(waiting.status.as_ref().unwrap().servers[0].recovery_point.as_ref().unwrap().record, 1);

    let run_ref = json!({"name": "erp-1", "uid": waiting.uid().unwrap()});
    let approval = |name: &str, step: &str| {
        object(
            "FailoverApproval",
            name,
            json!({"runRef": run_ref, "step": step, "attempt": 1, "decision": "Approve", "by": {"username": "alice"}}),
        )
    };
    world.apply(&approval("wrong", "announce"));
    world.apply(&approval("right", "sign-off"));
    let completed = killed_until(&world, &mut kubelet, |run| phase(run) == RunPhase::Completed);
    let attempts: Vec<(String, u32)> = completed
        .status
        .as_ref()
        .unwrap()
        .steps
        .iter()
        .map(|step| (step.name.clone(), step.attempt))
        .collect();
    assert!(attempts.iter().all(|(_, attempt)| *attempt == 1), "{attempts:?}");
    kubelet.assert_one_of_each();
    assert_eq!((kubelet.jobs.len(), kubelet.machines.len()), (4, 1), "{:?}", kubelet.jobs);
    assert_eq!(
        verdicts(&world),
        [("right".to_owned(), "Counted".to_owned()), ("wrong".to_owned(), "Refused".to_owned())]
    );

    let clean_up = Patch::Merge(json!({"spec": {"cleanUp": true}}));
    world
        .runtime
        .block_on(world.api::<FailoverRun>().patch("erp-1", &PatchParams::default(), &clean_up))
        .unwrap();
    killed_until(&world, &mut kubelet, |run| phase(run) == RunPhase::CleanedUp);
    let pods = world
        .runtime
        .block_on(world.api::<Pod>().list(&ListParams::default().labels("lifeboat.dev/machine")))
        .unwrap();
    assert!(pods.items.is_empty(), "machines are left");
    let jobs = world
        .runtime
        .block_on(world.api::<Job>().list(&ListParams::default().labels(names::RUN_UID_LABEL)))
        .unwrap();
    assert!(
        jobs.items.iter().all(|job| !job.finalizers().iter().any(|name| name == names::FINALIZER)),
        "a Job is still held"
    );
    kubelet.assert_one_of_each();
}

fn verdicts(world: &World) -> Vec<(String, String)> {
    let _life = world.operator();
    eventually("every approval is judged", || {
        let all =
            world.runtime.block_on(world.api::<FailoverApproval>().list(&ListParams::default())).unwrap();
        let verdict = |approval: &FailoverApproval| {
            Some((approval.name_any(), format!("{:?}", approval.status.as_ref()?.verdict.as_ref()?.result)))
        };
        all.items.iter().map(verdict).collect::<Option<Vec<_>>>()
    })
}

#[test]
fn a_run_that_cannot_start_says_why_and_starts_by_itself_when_it_is_mended() {
    let world = World::new("mend");
    world.protected_server("db-1");
    let group = json!({"name": "database", "servers": [{"name": "db-1"}, {"name": "db-2"}]});
    world.apply(&object("RecoveryPlan", "erp", json!({"groups": [group]})));
    world.apply(&object(
        "FailoverRun",
        "erp-1",
        json!({"planRef": {"name": "erp"}, "requestedBy": {"username": "alice"}, "type": "Test"}),
    ));
    let _life = world.operator();
    let why = eventually("the run says what is missing", || {
        let run = world.run("erp-1");
        (phase(&run) == RunPhase::Validating).then(|| run.status.unwrap().waiting_for.unwrap())
    });
    assert!(
        why.contains("server db-2 does not exist: create ProtectedServer db-2, or take it out of the plan"),
        "{why}"
    );
    world.apply(&object(
        "RecoveryPlan",
        "erp",
        json!({"groups": [{"name": "database", "servers": [{"name": "db-1"}]}]}),
    ));
    eventually("the run starts", || (phase(&world.run("erp-1")) == RunPhase::Running).then_some(()));

    // One run holds the server, another one waits and says for whom.
    let second = object(
        "FailoverRun",
        "erp-2",
        json!({"serverRef": {"name": "db-1"}, "requestedBy": {"username": "bob"}, "type": "Test"}),
    );
    world
        .runtime
        .block_on(
            world
                .api::<FailoverRun>()
                .create(&PostParams::default(), &serde_json::from_value(second).unwrap()),
        )
        .unwrap();
    let why = eventually("the second run waits", || {
        let run = world.run("erp-2");
        (phase(&run) == RunPhase::Pending).then(|| run.status.and_then(|status| status.waiting_for)).flatten()
    });
    assert_eq!(why, "run erp-1 has server db-1 and is Running");
}

/// What the kubelet says when a disk server has read damage reaches the run while its health check is still trying.
#[test]
fn a_machine_that_reads_damage_fails_its_health_check_with_the_blob_and_the_remedy() {
    let world = World::new("rotten");
    world.protected_server("db-1");
    world.start_run("erp-1", &json!({"kind": "Latest"}));
    let _life = world.operator();
    let say = |status: &Value| {
        eventually("the machine is made", || {
            world.runtime.block_on(async {
                let pods = world.api::<Pod>();
                let machines = ListParams::default().labels("lifeboat.dev/machine");
                let pod = pods.list(&machines).await.unwrap().items.pop()?;
                let patch = Patch::Merge(json!({"status": status}));
                pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await.ok()
            })
        });
    };
    say(&machine_status());
    let check = |run: &FailoverRun| {
        let steps = &run.status.as_ref().unwrap().steps;
        steps.iter().find(|step| step.name == "db-1/HealthCheck").cloned()
    };
    eventually("the health check begins", || {
        check(&world.run("erp-1")).filter(|step| step.state == StepState::Executing && step.object.is_some())
    });
    let mut status = machine_status();
    let words = "segment s/1 of record 1 is not what was written: restore it from the store's versions";
    let disks = &mut status["initContainerStatuses"][0];
    disks["state"] = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    disks["lastState"] = json!({"terminated": {"exitCode": 5, "message": words}});
    say(&status);
    let run = eventually("the run has failed", || {
        Some(world.run("erp-1")).filter(|run| phase(run) == RunPhase::Failed)
    });
    let step = check(&run).unwrap();
    assert_eq!((step.state, step.attempt), (StepState::Failed, 1));
    let ready = conditions::find(&run.status.as_ref().unwrap().conditions, ConditionType::Ready).unwrap();
    for message in [step.message.as_deref().unwrap(), &ready.message] {
        assert!(message.contains(words) && message.contains("kubectl lifeboat vault verify"), "{message}");
    }
}

/// The storage account is restored from a copy, and nothing of the appliance is left that could have noticed.
#[test]
fn a_run_takes_no_older_point_for_the_latest_one_after_the_vault_was_put_back() {
    let world = World::new("rollback");
    world.protected_server("db-1");
    let id = world.id_of("db-1");
    let first = world.runtime.block_on(world.write_point(&id));
    world.store.back_up().unwrap();
    let seen = world.runtime.block_on(world.write_point(&id));
    world.seen("db-1", &seen);
    world.store.restore().unwrap();

    let _life = world.operator();
    world.start_run("latest", &json!({"kind": "Latest"}));
    let why = world.hindrance("latest");
    let first_time = first["pointTime"].as_str().unwrap();
    for text in [
        "server db-1: the vault was put back to an older moment".to_owned(),
        format!("it had a point of {} (up to record 3)", seen["pointTime"].as_str().unwrap()),
        format!("holds now is {first_time} (record 2)"),
        format!("recoveryPoint {{kind: At, time: \"{first_time}\"}}"),
    ] {
        assert!(why.contains(&text), "{text} is missing in {why}");
    }

    // Replication goes on from what is there: a newer point is the latest one, and nothing is silent about it.
    world.runtime.block_on(world.write_point(&id));
    eventually("the run starts", || (phase(&world.run("latest")) == RunPhase::Running).then_some(()));
    let chosen = world.run("latest").status.unwrap().servers[0].recovery_point.clone().unwrap();
    assert_eq!(chosen.record, 3);
    assert!(chosen.time > seen["pointTime"].as_str().unwrap().parse().unwrap());
}

#[test]
fn an_older_point_is_taken_when_its_instant_is_named() {
    let world = World::new("accepted");
    world.protected_server("db-1");
    let id = world.id_of("db-1");
    let first = world.runtime.block_on(world.write_point(&id));
    world.store.back_up().unwrap();
    let seen = world.runtime.block_on(world.write_point(&id));
    world.seen("db-1", &seen);
    world.store.restore().unwrap();
    let _life = world.operator();
    world.start_run("later", &json!({"kind": "At", "time": seen["pointTime"]}));
    let why = world.hindrance("later");
    assert!(why.contains("put back to an older moment"), "{why}");
    // An instant that is still to come is refused, and not taken for the latest one.
    let hour = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    world.start_run("to-come", &json!({"kind": "At", "time": hour}));
    let ended = eventually("the run is refused", || {
        Some(world.run("to-come")).filter(|run| phase(run) == RunPhase::CleanedUp)
    });
    let status = ended.status.unwrap();
    let ready = conditions::find(&status.conditions, ConditionType::Ready).unwrap();
    assert_eq!(ready.reason, "PointInFuture", "{ready:?}");
    assert!(ready.message.contains("start another run") && status.started_at.is_none(), "{ready:?}");
    world.start_run("exact", &json!({"kind": "At", "time": first["pointTime"]}));
    eventually("the run starts", || (phase(&world.run("exact")) == RunPhase::Running).then_some(()));
    let taken = world.run("exact").status.unwrap().servers[0].clone();
    assert_eq!(taken.recovery_point_note, None, "it is older by choice");
}
