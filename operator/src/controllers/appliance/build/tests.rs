use k8s_openapi::api::core::v1::PodSpec;

use super::*;
use crate::controllers::appliance::{testing, validate::validate};

fn images() -> Images {
    Images {
        operator: "localhost/operator".into(),
        process_server: "localhost/process-server".into(),
        applier: "localhost/applier".into(),
        recovery: "localhost/recovery".into(),
        qemu: "localhost/qemu".into(),
        pull_policy: "Never".into(),
    }
}

fn built(appliance: &ReplicationAppliance) -> Built {
    let inputs = Inputs { images: &images(), secrets_hash: "abc" };
    build(appliance, &validate(appliance).unwrap(), &inputs)
}

fn pods(built: &Built) -> Vec<PodSpec> {
    [&built.process_servers, &built.applier]
        .into_iter()
        .map(|set| set.spec.clone().unwrap().template.spec.unwrap())
        .collect()
}

#[test]
fn every_pod_satisfies_pod_security_restricted_and_has_no_right_in_kubernetes() {
    for pod in pods(&built(&testing::appliance())) {
        assert_eq!(pod.automount_service_account_token, Some(false));
        let security = pod.security_context.unwrap();
        assert_eq!(security.run_as_non_root, Some(true));
        assert_eq!(security.seccomp_profile.unwrap().type_, "RuntimeDefault");
        for container in pod.containers {
            let security = container.security_context.unwrap();
            assert_eq!(security.allow_privilege_escalation, Some(false));
            assert_eq!(security.capabilities.unwrap().drop, Some(vec!["ALL".to_owned()]));
        }
    }
}

#[test]
fn no_secret_travels_by_argument_or_environment() {
    for pod in pods(&built(&testing::appliance())) {
        for container in pod.containers {
            for variable in container.env.unwrap_or_default() {
                assert!(["POD_NAME", "POD_UID"].contains(&&*variable.name), "{}", variable.name);
                assert_eq!(variable.value, None);
            }
        }
    }
    let text = serde_json::to_string(&built(&testing::appliance()).configuration).unwrap();
    assert!(text.contains("/etc/lifeboat/vault-auth/accountKey"), "{text}");
}

#[test]
fn each_process_server_has_a_service_and_a_file_of_its_own() {
    let built = built(&testing::appliance());
    let names: Vec<&str> =
        built.services.iter().filter_map(|service| service.metadata.name.as_deref()).collect();
    assert_eq!(
        names,
        [
            "berlin-process-servers",
            "berlin-applier",
            "berlin-management",
            "berlin-process-server-0",
            "berlin-process-server-1"
        ]
    );
    let files: Vec<String> = built.configuration.data.unwrap().into_keys().collect();
    assert_eq!(
        files,
        ["applier.json", "berlin-process-server-0.json", "berlin-process-server-1.json", "vault.json"]
    );
}

#[test]
fn node_ports_follow_each_other() {
    let mut appliance = testing::appliance();
    appliance.spec.exposure = serde_json::from_value(
        serde_json::json!({"type": "NodePort", "nodePorts": {"management": 30443, "dataBase": 30943}}),
    )
    .unwrap();
    let ports: Vec<i32> = built(&appliance)
        .services
        .iter()
        .filter_map(|service| service.spec.as_ref()?.ports.as_ref()?.first()?.node_port)
        .collect();
    assert_eq!(ports, [30443, 30943, 30944]);
}

#[test]
fn scaling_does_not_restart_the_pods_that_are_there_and_new_credentials_do() {
    let template = |appliance: &ReplicationAppliance, secrets_hash: &str| {
        let inputs = Inputs { images: &images(), secrets_hash };
        build(appliance, &validate(appliance).unwrap(), &inputs).process_servers.spec.unwrap().template
    };
    let mut more = testing::appliance();
    more.spec.process_servers.replicas = 3;
    assert_eq!(template(&testing::appliance(), "abc"), template(&more, "abc"));
    assert_ne!(template(&more, "abc"), template(&more, "def"));
}

#[test]
fn appliers_are_as_many_as_asked_for_and_scaling_restarts_none() {
    let (one, mut more) = (testing::appliance(), testing::appliance());
    more.spec.appliers.replicas = 3;
    let [one, more] = [one, more].map(|appliance| built(&appliance).applier.spec.unwrap());
    assert_eq!((one.replicas, more.replicas), (Some(1), Some(3)));
    assert_eq!(one.template, more.template);
    let arguments = more.template.spec.unwrap().containers[0].args.clone().unwrap().join(" ");
    assert!(arguments.ends_with("--name $(POD_NAME) --identity $(POD_UID)"), "{arguments}");
}
