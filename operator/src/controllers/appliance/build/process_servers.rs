//! The StatefulSet of process servers: a spool and a name of its own for each.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec},
        core::v1::{
            ConfigMap, Container, PersistentVolumeClaim, PersistentVolumeClaimSpec, PodSpec, PodTemplateSpec,
            VolumeResourceRequirements,
        },
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use kube::ResourceExt as _;
use lifeboat_crds::{ReplicationAppliance, appliance::ProcessServers, names::APPLIANCE_LABEL};

use super::{
    Inputs, SECRETS_ANNOTATION,
    configuration::VAULT,
    pod::{
        CONFIGURATION_DIR, MANAGEMENT_TLS_DIR, SPOOL_DIR, TLS_DIR, container, http_probe, mount, of_pod,
        pod_security, port, secret_volume, vault_mounts, vault_volumes, writable_mount,
    },
};
use crate::controllers::{
    appliance::{
        names::{self, CONTROL_PORT, DATA_PORT, MANAGEMENT_PORT, METRICS_PORT},
        secrets,
        validate::Validated,
    },
    shared::{labels, owned_by, sha256},
};

/// Beside the appliance's name: which pods are meant.
pub(crate) const COMPONENT_LABEL: &str = "app.kubernetes.io/component";
pub(crate) const COMPONENT: &str = "process-server";

pub(crate) fn selector(appliance: &str) -> BTreeMap<String, String> {
    labels([(APPLIANCE_LABEL, appliance), (COMPONENT_LABEL, COMPONENT)])
}

pub(super) fn build(
    appliance: &ReplicationAppliance,
    validated: &Validated,
    inputs: &Inputs<'_>,
    configuration: &ConfigMap,
) -> StatefulSet {
    let name = appliance.name_any();
    let ProcessServers {
        replicas: _,
        spool,
        resources: _,
        node_selector,
        tolerations,
        affinity,
        topology_spread_constraints,
        priority_class_name,
    } = &appliance.spec.process_servers;
    let mut volumes = vault_volumes(appliance, &validated.credential);
    volumes.push(secret_volume("tls", &secrets::tls_name_of(&name), None));
    volumes.push(secret_volume("management", &secrets::management_name(&name), None));
    let pod = PodSpec {
        automount_service_account_token: Some(false),
        service_account_name: validated.credential.service_account(),
        security_context: Some(pod_security()),
        containers: vec![program(appliance, inputs)],
        volumes: Some(volumes),
        node_selector: (!node_selector.is_empty()).then(|| node_selector.clone()),
        tolerations: (!tolerations.is_empty()).then(|| tolerations.clone()),
        affinity: affinity.clone(),
        topology_spread_constraints: (!topology_spread_constraints.is_empty())
            .then(|| topology_spread_constraints.clone()),
        priority_class_name: priority_class_name.clone(),
        // What is in the spool is uploaded first, as far as this time allows; the rest waits for the next start.
        termination_grace_period_seconds: Some(30),
        ..PodSpec::default()
    };
    let claim = PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some("spool".to_owned()),
            labels: Some(selector(&name)),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: spool.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), spool.size.clone())])),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    };
    StatefulSet {
        metadata: ObjectMeta {
            annotations: Some(labels([(SECRETS_ANNOTATION, inputs.secrets_hash)])),
            ..owned_by(appliance, &names::process_servers(&name), selector(&name))
        },
        spec: Some(StatefulSetSpec {
            replicas: Some(validated.replicas),
            selector: LabelSelector { match_labels: Some(selector(&name)), match_expressions: None },
            service_name: Some(names::process_server_pods(&name)),
            // Each has its own servers: none waits for another.
            pod_management_policy: Some("Parallel".to_owned()),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(selector(&name)),
                    annotations: Some(restarts(inputs, configuration, &[VAULT])),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod),
            },
            volume_claim_templates: Some(vec![claim]),
            // A spool holds nothing that the agents do not hold too.
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some("Delete".to_owned()),
                when_scaled: Some("Delete".to_owned()),
            }),
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}

/// Pods start anew when what they read at start has changed: credentials, keys and these files. Certificates are not
/// among it: they are read again.
pub(super) fn restarts(
    inputs: &Inputs<'_>,
    configuration: &ConfigMap,
    files: &[&str],
) -> BTreeMap<String, String> {
    let content = |file: &&str| {
        configuration.data.as_ref().and_then(|data| data.get(*file)).map(String::as_bytes).unwrap_or_default()
    };
    let read: Vec<&[u8]> = files.iter().map(content).chain([inputs.secrets_hash.as_bytes()]).collect();
    labels([("lifeboat.dev/restart", &sha256(read))])
}

fn program(appliance: &ReplicationAppliance, inputs: &Inputs<'_>) -> Container {
    let mut mounts = vault_mounts();
    mounts.extend([
        mount("tls", TLS_DIR),
        mount("management", MANAGEMENT_TLS_DIR),
        writable_mount("spool", SPOOL_DIR),
    ]);
    Container {
        args: Some(vec!["--config".to_owned(), format!("{CONFIGURATION_DIR}/$(POD_NAME).json")]),
        env: Some(vec![of_pod("POD_NAME", "metadata.name")]),
        ports: Some(vec![
            port("data", DATA_PORT),
            port("management", MANAGEMENT_PORT),
            port("control", CONTROL_PORT),
            port("metrics", METRICS_PORT),
        ]),
        readiness_probe: Some(http_probe("/readyz", 2, 3)),
        liveness_probe: Some(http_probe("/healthz", 10, 6)),
        resources: appliance.spec.process_servers.resources.clone(),
        volume_mounts: Some(mounts),
        ..container("process-server", &inputs.images.process_server, inputs.images)
    }
}
