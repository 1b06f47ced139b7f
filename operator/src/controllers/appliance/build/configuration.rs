//! The programs' configuration files. They name files with secrets and hold none.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use lifeboat_crds::{ReplicationAppliance, appliance::WorkloadIdentity, names::APPLIANCE_LABEL};
use serde_json::{Value, json};

use super::pod::{
    AUTHENTICATION_DIR, CONFIGURATION_DIR, KEYS_DIR, MANAGEMENT_TLS_DIR, SPOOL_DIR, TLS_DIR, TOKEN_FILE,
};
use crate::controllers::{
    appliance::{
        names::{self, CONTROL_PORT, DATA_PORT, MANAGEMENT_PORT, METRICS_PORT},
        secrets::DATA_KEYS,
        validate::{Credential, Validated},
    },
    shared::{labels, owned_by},
};

pub(super) const VAULT: &str = "vault.json";
/// As [`VAULT`], with the appliers' credential.
pub(super) const APPLIER_VAULT: &str = "applier-vault.json";
pub(super) const APPLIER: &str = "applier.json";

pub(super) fn build(appliance: &ReplicationAppliance, validated: &Validated) -> ConfigMap {
    let name = appliance.name_any();
    let mut data = BTreeMap::from([
        (VAULT.to_owned(), vault(appliance, &validated.credential)),
        (APPLIER_VAULT.to_owned(), vault(appliance, &validated.applier_credential)),
        (APPLIER.to_owned(), applier()),
    ]);
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
fn vault(appliance: &ReplicationAppliance, credential: &Credential) -> Value {
    let azure = &appliance.spec.vault.azure;
    let file = |name: &str| format!("{AUTHENTICATION_DIR}/{name}");
    let authentication = match credential {
        Credential::WorkloadIdentity(identity) => {
            let WorkloadIdentity { client_id, tenant_id, authority_host, service_account_name: _ } = identity;
            let mut given = json!({
                "clientId": client_id, "tenantId": tenant_id, "tokenFile": file(TOKEN_FILE),
            });
            if let Some(host) = authority_host {
                given["authorityHost"] = json!(host);
            }
            json!({"workloadIdentity": given})
        }
        Credential::Sas(secret) => json!({"sasFile": file(&secret.key)}),
        Credential::AccountKey(secret) => json!({"accountKeyFile": file(&secret.key)}),
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
        "vaultConfig": format!("{CONFIGURATION_DIR}/{APPLIER_VAULT}"),
    })
}
