//! What the operator says of an appliance.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Condition, Time};

/// What the operator has seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicationApplianceStatus {
    /// The generation of the spec that the last successful pass has seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, VaultReachable, RecoveryKeyReady, CertificatesReady, ProcessServersReady, AppliersReady.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The worst of the components.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Every part of the appliance and how it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub components: Vec<Component>,
    /// Every process server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub process_servers: Vec<ProcessServerStatus>,
    /// Every applier.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub appliers: Vec<ApplierStatus>,
    /// Ready of wanted process servers, for people: `2/2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process_servers_ready: Option<String>,
    /// Identity of the vault; made once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault_id: Option<String>,
    /// The data key that new data is written with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_key: Option<DataKeyStatus>,
    /// Servers that use this appliance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected_servers: Option<u32>,
    /// SHA-256 of the management server's public key (`sha256//<base64>`), which enrolment pins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub management_public_key: Option<String>,
    /// URL by which agents reach management.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub management_endpoint: Option<String>,
    /// Process-server pods that exist (scale subresource).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Label selector of the process-server pods (scale subresource).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
}

/// The current data key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataKeyStatus {
    /// Its id, as it stands in clear in what is written with it.
    pub id: String,
    /// Since when it is the current one, as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// How many keys there are: older ones are kept for what was written with them.
    pub keys: u32,
    /// The `spec.rotateDataKey` that was carried out last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<String>,
    /// The next one, while it is on its way; and what it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Health, worst last but for `Unknown`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Health {
    Healthy,
    /// Nothing has been heard.
    #[default]
    Unknown,
    /// Works; somebody should look at it in working hours.
    Warning,
    /// Does not do its job, or soon will not.
    Critical,
}

/// A part of an appliance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Component {
    pub name: String,
    pub health: Health,
    /// One word.
    pub reason: String,
    /// What is wrong and what to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Since when its health is this.
    pub since: Time,
}

/// An applier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApplierStatus {
    /// Name of its pod.
    pub name: String,
    pub ready: bool,
    pub health: Health,
    /// Servers of which it holds the lease; absent: nothing has been heard of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub servers: Option<u32>,
}

/// A process server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProcessServerStatus {
    /// Name of its pod.
    pub name: String,
    pub ready: bool,
    pub health: Health,
    /// Where agents reach it for data: host and port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Servers placed on it.
    pub servers: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spool_used_bytes: Option<u64>,
    /// Age of the oldest record that waits for upload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_backlog_seconds: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingest_bytes_per_second: Option<u64>,
    /// Its share of the limit that `spec.bandwidth` sets now; absent: it may send as fast as it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_limit_bytes_per_second: Option<u64>,
}
