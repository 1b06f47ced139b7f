use lifeboat_crds::{
    FailoverRunSpec,
    run::{Consistency, ResolvedPoint},
    server::Target as TargetSpec,
};

use super::*;
use crate::{
    controllers::appliance::testing::appliance, failover::world::Machine, runtime::settings::Images,
};

fn run() -> FailoverRun {
    let spec: FailoverRunSpec = serde_json::from_value(
        serde_json::json!({"planRef": {"name": "erp"}, "requestedBy": {"username": "alice"}, "type": "Test"}),
    )
    .unwrap();
    let mut run = FailoverRun::new("erp-1", spec);
    run.metadata.namespace = Some("prod".into());
    run.metadata.uid = Some("run-uid".into());
    run
}

fn resolved(ports: serde_json::Value) -> ResolvedServer {
    ResolvedServer {
        name: "db-1".into(),
        id: "an-id".into(),
        appliance: "berlin".into(),
        recovery_point: ResolvedPoint {
            time: jiff::Timestamp::UNIX_EPOCH,
            epoch: 1,
            record: 42,
            consistency: Consistency::CrashConsistent,
            group_point: None,
        },
        recovery_point_note: None,
        complete_until: None,
        target: TargetSpec {
            virtual_machine_pod: serde_json::from_value(
                serde_json::json!({"cpus": 2, "memory": "1Gi", "ports": ports}),
            )
            .unwrap(),
        },
        health_check: None,
    }
}

fn images() -> Images {
    Images {
        operator: "operator".into(),
        process_server: "process-server".into(),
        applier: "applier".into(),
        recovery: "recovery".into(),
        qemu: "qemu".into(),
        pull_policy: "Never".into(),
    }
}

fn pod() -> Pod {
    let server = resolved(serde_json::json!([{"name": "sql", "port": 5432}]));
    pod::build(&run(), "db-1-abc", &server, &appliance(), &validate(&appliance()).unwrap(), &images())
        .unwrap()
}

#[test]
fn the_guest_is_cut_off_and_only_its_declared_ports_are_forwarded() {
    let spec = pod().spec.unwrap();
    let script = spec.containers[0].command.clone().unwrap().join(" ");
    assert!(
        script.contains("-netdev user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:40000-:5432 "),
        "{script}"
    );
    assert!(
        script.contains("\nsocat TCP-LISTEN:5432,fork,reuseaddr TCP:127.0.0.1:40000 &\nexec "),
        "{script}"
    );
    assert_eq!(script.matches("-netdev").count(), 1);
}

#[test]
fn only_pods_of_the_same_run_reach_the_machine_and_nobody_when_it_has_no_port() {
    let policy =
        network::build(&run(), "db-1-abc", &resolved(serde_json::json!([{"name": "sql", "port": 5432}])));
    let text = serde_json::to_string(&policy.spec.unwrap().ingress).unwrap();
    assert_eq!(
        text,
        r#"[{"from":[{"podSelector":{"matchLabels":{"lifeboat.dev/run-uid":"run-uid"}}}],"ports":[{"port":5432,"protocol":"TCP"}]}]"#
    );
    let closed = network::build(&run(), "db-1-abc", &resolved(serde_json::json!([])));
    assert_eq!(closed.spec.unwrap().ingress, Some(vec![]));
}

#[test]
fn both_containers_satisfy_pod_security_restricted_and_the_pod_gets_no_token() {
    let spec = pod().spec.unwrap();
    assert_eq!(spec.automount_service_account_token, Some(false));
    assert_eq!(spec.security_context.unwrap().run_as_non_root, Some(true));
    for container in spec.init_containers.unwrap().iter().chain(&spec.containers) {
        let security = container.security_context.clone().unwrap();
        assert_eq!(security.allow_privilege_escalation, Some(false));
        assert_eq!(security.capabilities.unwrap().drop, Some(vec!["ALL".to_owned()]));
    }
}

#[test]
fn the_machine_has_no_secret_of_the_vault_and_the_disk_server_shows_the_resolved_record() {
    let spec = pod().spec.unwrap();
    let mounts: Vec<String> =
        spec.containers[0].volume_mounts.clone().unwrap().into_iter().map(|mount| mount.name).collect();
    assert_eq!(mounts, ["sockets", "tmp"]);
    let disks = &spec.init_containers.unwrap()[0];
    assert_eq!(disks.restart_policy.as_deref(), Some("Always"));
    assert!(disks.args.clone().unwrap().join(" ").contains("--server an-id --point 42 "));
}

fn observed(status: serde_json::Value) -> Machine {
    let mut pod = pod();
    pod.status = Some(serde_json::from_value(status).unwrap());
    observe::machine(&pod)
}

fn container(name: &str, state: serde_json::Value, started: bool) -> serde_json::Value {
    serde_json::json!({"name": name, "state": state, "started": started, "ready": started, "image": "", "imageID": "", "restartCount": 0})
}

#[test]
fn a_machine_is_seen_step_by_step() {
    let running = serde_json::json!({"running": {}});
    let opening = observed(
        serde_json::json!({"phase": "Pending", "initContainerStatuses": [container("disks", running.clone(), false)]}),
    );
    assert_eq!(
        (opening.disks_ready, opening.running, opening.detail.as_str()),
        (false, false, "the point is being opened")
    );
    let open = observed(
        serde_json::json!({"phase": "Pending", "initContainerStatuses": [container("disks", running.clone(), true)]}),
    );
    assert!(open.disks_ready && !open.running);
    let up = observed(
        serde_json::json!({"phase": "Running", "podIP": "10.1.2.3", "initContainerStatuses": [container("disks", running.clone(), true)], "containerStatuses": [container("machine", running, true)]}),
    );
    assert!(up.running && up.address.as_deref() == Some("10.1.2.3"));
}

/// The words of `recovery/src/damage.rs` for a segment.
const DAMAGE: &str = "the machine has read what is damaged in the vault, so its disks are not shown any more: segment s/1 of \
                      record 7 is not what was written (its length or checksum differs): restore it from the store's \
                      versions, or choose a point before record 7";

/// The disk server is started again by the kubelet whatever it says, and the machine is switched off meanwhile.
#[test]
fn a_machine_that_has_read_damage_has_failed_with_its_remedy_however_the_pod_goes_on() {
    let ended =
        |code: i32, message: &str| serde_json::json!({"terminated": {"exitCode": code, "message": message}});
    let waiting = serde_json::json!({"waiting": {"reason": "CrashLoopBackOff"}});
    let running = serde_json::json!({"running": {}});
    let damaged = ended(5, DAMAGE);
    let cases = [
        ("Running", damaged.clone(), serde_json::json!(null), running.clone()),
        ("Running", waiting, damaged.clone(), running.clone()),
        ("Running", running.clone(), damaged.clone(), running.clone()),
        ("Succeeded", ended(0, ""), damaged.clone(), ended(0, "terminating on signal 15")),
        ("Failed", ended(137, ""), damaged, ended(137, "")),
    ];
    for (phase, state, last_state, machine) in cases {
        let mut disks = container("disks", state, true);
        disks["lastState"] = last_state;
        let status = serde_json::json!({"phase": phase, "initContainerStatuses": [disks], "containerStatuses": [container("machine", machine, true)]});
        let failed = observed(status).failed.unwrap();
        for words in
            ["segment s/1 of record 7", "or choose a point before record 7", "kubectl lifeboat vault verify"]
        {
            assert!(failed.contains(words), "{phase}: {failed}");
        }
    }
}

/// The words of `recovery/src/damage.rs` for a credential.
const REFUSED: &str = "the vault refuses what the machine reads, and went on to do so, so its disks are not shown any more: the \
                       store refused get of s/1: the credentials do not allow it: check what \
                       spec.vault.azure.authentication says (HTTP 403); mend that, and start the machine anew";

#[test]
fn a_machine_whose_vault_goes_on_to_refuse_has_failed_with_the_reason_and_is_not_called_damaged() {
    let ended = serde_json::json!({"terminated": {"exitCode": 6, "message": REFUSED}});
    let mut disks = container("disks", serde_json::json!({"waiting": {"reason": "CrashLoopBackOff"}}), false);
    disks["lastState"] = ended;
    let running = container("machine", serde_json::json!({"running": {}}), true);
    let status = serde_json::json!({"phase": "Running", "initContainerStatuses": [disks], "containerStatuses": [running]});
    let failed = observed(status).failed.unwrap();
    for words in ["lost its disks", "spec.vault.azure.authentication", "clean this run up and start another"]
    {
        assert!(failed.contains(words), "{failed}");
    }
    assert!(
        !failed.contains("vault verify") && !failed.contains("recovery point cannot be used"),
        "{failed}"
    );
}

/// A vault that is away (4), or a kill for lack of memory: the kubelet tries again, and the machine waits for its disks.
#[test]
fn a_disk_server_that_may_come_back_fails_no_machine() {
    for code in [1, 4, 137] {
        let mut disks =
            container("disks", serde_json::json!({"waiting": {"reason": "CrashLoopBackOff"}}), false);
        disks["lastState"] = serde_json::json!({"terminated": {"exitCode": code, "message": "no answer"}});
        let running = container("machine", serde_json::json!({"running": {}}), true);
        let status = serde_json::json!({"phase": "Running", "initContainerStatuses": [disks], "containerStatuses": [running]});
        assert_eq!(observed(status).failed, None, "{code}");
    }
}

#[test]
fn the_disk_servers_last_words_are_where_the_kubelet_looks_and_its_mark_where_the_machine_does() {
    let spec = pod().spec.unwrap();
    let disks = &spec.init_containers.unwrap()[0];
    let arguments = disks.args.clone().unwrap();
    let after = |option: &str| arguments.iter().skip_while(|word| *word != option).nth(1).cloned();
    assert_eq!(after("--termination-log"), disks.termination_message_path);
    let script = spec.containers[0].command.clone().unwrap().join(" ");
    assert!(script.contains(&format!("[ ! -e {}/damaged ] || kill 1;", after("--socket-dir").unwrap())));
    assert!(!script.contains("$$"), "the kubelet makes one of two: {script}");
}

#[test]
fn a_machine_that_cannot_be_opened_says_what_its_disk_server_said() {
    let crashed = serde_json::json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}});
    let mut status = container("disks", crashed, false);
    status["lastState"] = serde_json::json!({"terminated": {"exitCode": 5, "message": "data key 7 is not the one this vault was written with"}});
    let machine = observed(serde_json::json!({"phase": "Pending", "initContainerStatuses": [status]}));
    assert!(machine.failed.is_some_and(|why| why.contains("data key 7 is not the one")));
    let ended =
        serde_json::json!({"terminated": {"exitCode": 1, "message": "the recovery point has no disk"}});
    let machine = observed(
        serde_json::json!({"phase": "Failed", "containerStatuses": [container("machine", ended, false)]}),
    );
    assert_eq!(machine.failed.as_deref(), Some("machine ended with 1: the recovery point has no disk"));
}
