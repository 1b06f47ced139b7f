use k8s_openapi::api::core::v1::PodSpec;
use lifeboat_replication::vault::config::{Authentication, VaultConfig};
use rstest::rstest;

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
            "berlin-applier",
            "berlin-process-servers",
            "berlin-management",
            "berlin-process-server-0",
            "berlin-process-server-1"
        ]
    );
    let files: Vec<String> = built.configuration.data.unwrap().into_keys().collect();
    assert_eq!(
        files,
        [
            "applier-vault.json",
            "applier.json",
            "berlin-process-server-0.json",
            "berlin-process-server-1.json",
            "vault.json"
        ]
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

#[test]
fn by_workload_identity_pods_show_a_token_that_opens_nothing_in_kubernetes() {
    let mut appliance = testing::appliance();
    let id = "00000000-1111-2222-3333-444444444444";
    appliance.spec.vault.azure.authentication = serde_json::from_value(
        serde_json::json!({"workloadIdentity": {"clientId": id, "tenantId": id, "serviceAccountName": "dr"}}),
    )
    .unwrap();
    let built = built(&appliance);
    for pod in pods(&built) {
        assert_eq!(pod.service_account_name.as_deref(), Some("dr"));
        assert_eq!(pod.automount_service_account_token, Some(false));
        let volume = pod.volumes.unwrap().into_iter().find(|volume| volume.name == "vault-auth").unwrap();
        let source = volume.projected.unwrap().sources.unwrap().remove(0);
        let token = source.service_account_token.unwrap();
        assert_eq!(token.audience.as_deref(), Some("api://AzureADTokenExchange"));
    }
    let files = built.configuration.data.unwrap();
    let config: VaultConfig = serde_json::from_str(&files["vault.json"]).unwrap();
    let wanted = Authentication::WorkloadIdentity {
        client_id: id.into(),
        tenant_id: id.into(),
        token_file: "/etc/lifeboat/vault-auth/token".into(),
        authority_host: None,
    };
    assert_eq!(config.authentication, wanted);
}

#[test]
fn appliers_alone_have_their_own_credential_when_there_is_one() {
    let mut appliance = testing::appliance();
    let own = serde_json::json!({"sasSecretRef": {"name": "applier", "key": "sas"}});
    appliance.spec.vault.azure.applier_authentication = Some(serde_json::from_value(own).unwrap());
    let built = built(&appliance);
    let secret = |pod: PodSpec| {
        let volume = pod.volumes.unwrap().into_iter().find(|volume| volume.name == "vault-auth").unwrap();
        volume.secret.unwrap().secret_name.unwrap()
    };
    let secrets: Vec<String> = pods(&built).into_iter().map(secret).collect();
    assert_eq!(secrets, ["storage", "applier"]);
    let files = built.configuration.data.unwrap();
    let of = |file: &str| serde_json::from_str::<VaultConfig>(&files[file]).unwrap().authentication;
    assert_eq!(
        of("vault.json"),
        Authentication::AccountKeyFile("/etc/lifeboat/vault-auth/accountKey".into())
    );
    assert_eq!(of("applier-vault.json"), Authentication::SasFile("/etc/lifeboat/vault-auth/sas".into()));
    assert!(files["applier.json"].contains("applier-vault.json"));
}

#[rstest]
#[case(&["Apply"], &["berlin-applier"], (0, 1))]
#[case(&["Ingest"], &["berlin-process-servers", "berlin-management", "berlin-process-server-0", "berlin-process-server-1"], (2, 0))]
fn a_cluster_has_what_its_role_needs(
    #[case] roles: &[&str],
    #[case] services: &[&str],
    #[case] replicas: (i32, i32),
) {
    let mut appliance = testing::appliance();
    appliance.spec.roles = serde_json::from_value(serde_json::json!(roles)).unwrap();
    let built = built(&appliance);
    let names: Vec<&str> =
        built.services.iter().filter_map(|service| service.metadata.name.as_deref()).collect();
    assert_eq!(names, services);
    let of = |set: &StatefulSet| set.spec.as_ref().unwrap().replicas.unwrap();
    assert_eq!((of(&built.process_servers), of(&built.applier)), replicas);
}
