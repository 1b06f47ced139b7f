//! The programs' configuration files. They name files with secrets and hold none.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use lifeboat_crds::{ReplicationAppliance, names::APPLIANCE_LABEL};
use serde_json::{Value, json};

use super::pod::{AUTHENTICATION_DIR, CONFIGURATION_DIR, KEYS_DIR, MANAGEMENT_TLS_DIR, SPOOL_DIR, TLS_DIR};
use crate::controllers::{
    appliance::{
        names::{self, CONTROL_PORT, DATA_PORT, MANAGEMENT_PORT, METRICS_PORT},
        secrets::DATA_KEYS,
        validate::{Credential, Validated},
    },
    shared::{labels, owned_by},
};

pub(super) const VAULT: &str = "vault.json";
pub(super) const APPLIER: &str = "applier.json";

pub(super) fn build(appliance: &ReplicationAppliance, validated: &Validated) -> ConfigMap {
    let name = appliance.name_any();
    let mut data =
        BTreeMap::from([(VAULT.to_owned(), vault(appliance, validated)), (APPLIER.to_owned(), applier())]);
    for index in 0..validated.replicas {
        let pod = names::process_server(&name, index);
        data.insert(format!("{pod}.json"), process_server(&pod, validated));
    }
    let data = data.into_iter().map(|(key, value)| (key, format!("{value:#}\n"))).collect();
    ConfigMap {
        metadata: owned_by(appliance, &names::configuration(&name), labels([(APPLIANCE_LABEL, &name)])),
        data: Some(data),
        ..ConfigMap::default()
    }
}

/// Read by process servers, appliers and recovery alike.
fn vault(appliance: &ReplicationAppliance, validated: &Validated) -> Value {
    let azure = &appliance.spec.vault.azure;
    let file = format!("{AUTHENTICATION_DIR}/{}", validated.credential.secret().key);
    let authentication = match &validated.credential {
        Credential::Sas(_) => json!({"sasFile": file}),
        Credential::AccountKey(_) => json!({"accountKeyFile": file}),
    };
    json!({
        "endpoint": azure.endpoint,
        "container": azure.container,
        "cacheEndpoint": azure.cache_endpoint(),
        "cacheContainer": azure.cache_container(),
        "authentication": authentication,
        "keysFile": format!("{KEYS_DIR}/{DATA_KEYS}"),
    })
}

fn process_server(pod: &str, validated: &Validated) -> Value {
    json!({
        "name": pod,
        "dataListen": format!("0.0.0.0:{DATA_PORT}"),
        "managementListen": format!("0.0.0.0:{MANAGEMENT_PORT}"),
        "controlListen": format!("0.0.0.0:{CONTROL_PORT}"),
        "metricsListen": format!("0.0.0.0:{METRICS_PORT}"),
        "tlsDir": TLS_DIR,
        "managementTlsDir": MANAGEMENT_TLS_DIR,
        "spool": {"dir": SPOOL_DIR, "sizeBytes": validated.spool_bytes},
        "vaultConfig": format!("{CONFIGURATION_DIR}/{VAULT}"),
        "agentBinary": "/usr/share/lifeboat/lifeboat-agent",
        "installScript": "/usr/share/lifeboat/install.sh",
    })
}

/// One for all: name and identity are given to each pod.
fn applier() -> Value {
    json!({
        "controlListen": format!("0.0.0.0:{CONTROL_PORT}"),
        "metricsListen": format!("0.0.0.0:{METRICS_PORT}"),
        "tlsDir": TLS_DIR,
        "vaultConfig": format!("{CONFIGURATION_DIR}/{VAULT}"),
    })
}
