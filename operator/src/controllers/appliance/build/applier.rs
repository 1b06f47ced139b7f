//! The appliers: pods without a volume. All that they know is in the vault, by whose leases they share the servers.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{StatefulSet, StatefulSetSpec},
        core::v1::{ConfigMap, Container, PodSpec, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use kube::ResourceExt as _;
use lifeboat_crds::{ReplicationAppliance, appliance::Appliers, names::APPLIANCE_LABEL};

use super::{
    Inputs, SECRETS_ANNOTATION,
    configuration::{APPLIER, APPLIER_VAULT},
    pod::{
        CONFIGURATION_DIR, TLS_DIR, container, http_probe, mount, of_pod, pod_security, port, secret_volume,
        vault_mounts, vault_volumes,
    },
    process_servers::{COMPONENT_LABEL, restarts},
};
use crate::controllers::{
    appliance::{
        names::{self, CONTROL_PORT, METRICS_PORT},
        secrets,
        validate::Validated,
    },
    shared::{labels, owned_by},
};

pub(super) fn selector(appliance: &str) -> BTreeMap<String, String> {
    labels([(APPLIANCE_LABEL, appliance), (COMPONENT_LABEL, "applier")])
}

pub(super) fn build(
    appliance: &ReplicationAppliance,
    validated: &Validated,
    inputs: &Inputs<'_>,
    configuration: &ConfigMap,
) -> StatefulSet {
    let name = appliance.name_any();
    let Appliers { replicas: _, resources } = &appliance.spec.appliers;
    let mut mounts = vault_mounts();
    mounts.push(mount("tls", TLS_DIR));
    let program = Container {
        // Its uid: a container that is started again in its pod goes on with its own leases at once.
        args: Some(
            ["--config", &format!("{CONFIGURATION_DIR}/{APPLIER}")]
                .into_iter()
                .chain(["--name", "$(POD_NAME)", "--identity", "$(POD_UID)"])
                .map(str::to_owned)
                .collect(),
        ),
        env: Some(vec![of_pod("POD_NAME", "metadata.name"), of_pod("POD_UID", "metadata.uid")]),
        ports: Some(vec![port("control", CONTROL_PORT), port("metrics", METRICS_PORT)]),
        readiness_probe: Some(http_probe("/readyz", 2, 3)),
        liveness_probe: Some(http_probe("/healthz", 10, 6)),
        resources: resources.clone(),
        volume_mounts: Some(mounts),
        ..container("applier", &inputs.images.applier, inputs.images)
    };
    let mut volumes = vault_volumes(appliance, &validated.applier_credential);
    volumes.push(secret_volume("tls", &secrets::tls_name_of(&name), None));
    let pod = PodSpec {
        automount_service_account_token: Some(false),
        service_account_name: validated.applier_credential.service_account(),
        security_context: Some(pod_security()),
        containers: vec![program],
        volumes: Some(volumes),
        ..PodSpec::default()
    };
    StatefulSet {
        metadata: ObjectMeta {
            annotations: Some(labels([(SECRETS_ANNOTATION, inputs.secrets_hash)])),
            ..owned_by(appliance, &names::applier(&name), selector(&name))
        },
        spec: Some(StatefulSetSpec {
            replicas: Some(validated.appliers),
            selector: LabelSelector { match_labels: Some(selector(&name)), match_expressions: None },
            service_name: Some(names::applier(&name)),
            // Each has its own servers: none waits for another.
            pod_management_policy: Some("Parallel".to_owned()),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(selector(&name)),
                    annotations: Some(restarts(inputs, configuration, &[APPLIER_VAULT, APPLIER])),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod),
            },
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}
