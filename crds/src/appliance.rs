//! `ReplicationAppliance`: the pods that serve one site, and the vault behind them.

use k8s_openapi::{
    api::core::v1::{Affinity, ResourceRequirements, Toleration, TopologySpreadConstraint},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::{bandwidth::BandwidthWindow, refs::LocalRef};

mod status;
mod vault;

pub use status::{
    ApplierStatus, Component, DataKeyStatus, Health, ProcessServerStatus, ReplicationApplianceStatus,
};
pub use vault::{AzureAuthentication, AzureCredential, AzureVault, CacheStorage, Vault, WorkloadIdentity};

/// The default of `exposure.dataPort`; the reference system's port.
pub const DATA_PORT: u16 = 9443;
/// The default of `exposure.managementPort`.
pub const MANAGEMENT_PORT: u16 = 443;

/// The appliance of one site.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "lifeboat.dev",
    version = "v1alpha1",
    kind = "ReplicationAppliance",
    shortname = "appliance",
    category = "lifeboat",
    namespaced,
    status = "ReplicationApplianceStatus",
    derive = "PartialEq",
    doc = "ReplicationAppliance is the set of pods that serve one site: process servers that agents send to, and the appliers that turn what is in the vault into seed disks and recovery points.",
    scale(
        spec_replicas_path = ".spec.processServers.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Process servers",
        type_ = "string",
        json_path = ".status.processServersReady",
        description = "Ready of wanted"
    ),
    printcolumn(name = "Servers", type_ = "integer", json_path = ".status.protectedServers"),
    printcolumn(name = "Health", type_ = "string", json_path = ".status.health"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 36 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name of a ReplicationAppliance has at most 36 characters: a small letter, then small letters, digits and dashes, since Services and pods are named after it")
)]
#[x_kube(
    validation = Rule::new("!has(self.rotateDataKey) || !has(self.encryptionKeySecretRef)").message("rotateDataKey is for keys that the operator has made: with encryptionKeySecretRef, add a key to that Secret yourself"),
    validation = Rule::new("!has(self.exposure.nodePorts) || self.exposure.nodePorts.management < self.exposure.nodePorts.dataBase || self.exposure.nodePorts.management >= self.exposure.nodePorts.dataBase + self.processServers.replicas").message("exposure.nodePorts.management lies among the ports of the process servers: there is one from dataBase on for each replica")
)]
#[serde(rename_all = "camelCase")]
pub struct ReplicationApplianceSpec {
    /// Where the data goes.
    pub vault: Vault,
    /// What this cluster does with the vault: `Ingest` takes in what agents send and makes the vault, `Apply` turns the
    /// journal into seed disks and recovery points. A cluster near the vault can have `Apply` alone: it makes no process
    /// servers, `processServers`, `exposure` and `bandwidth` mean nothing there, and it needs a copy of the Secret with
    /// the data keys.
    #[serde(default = "all_roles")]
    #[schemars(length(min = 1, max = 2), extend("x-kubernetes-list-type" = "set"))]
    pub roles: Vec<Role>,
    /// Secret with the data keys by id. The operator makes one, named `<appliance>-keys`, when this is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption_key_secret_ref: Option<LocalRef>,
    /// A text; every new value asks for a new data key. Readers get it first and writers then, the key bundle in the
    /// vault before both; what was written with older keys stays readable. Not with `encryptionKeySecretRef`: such a
    /// Secret is yours to change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub rotate_data_key: Option<String>,
    /// Public keys (age) to which the vault's key bundle is encrypted. Without one the appliance does not become
    /// Ready: if the cluster were lost, so would the data be. `age-keygen` makes a pair; keep the private half outside the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        inner(length(min = 62, max = 62), regex(pattern = r"^age1[023456789acdefghjklmnpqrstuvwxyz]{58}$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub recovery_key_recipients: Vec<String>,
    /// The appliers, which turn the journal into seed disks and recovery points.
    #[serde(default)]
    pub appliers: Appliers,
    /// The process servers, which agents send to.
    #[serde(default)]
    pub process_servers: ProcessServers,
    /// How agents reach the process servers.
    #[serde(default)]
    pub exposure: Exposure,
    /// Hours in which uploads to the vault are limited. What does not fit waits in the spool; when that is full, agents
    /// wait. Nothing is lost, the RPO grows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 12), extend("x-kubernetes-list-type" = "atomic"))]
    pub bandwidth: Vec<BandwidthWindow>,
}

/// A part in the work on a vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Role {
    Ingest,
    Apply,
}

fn all_roles() -> Vec<Role> {
    vec![Role::Ingest, Role::Apply]
}

impl ReplicationApplianceSpec {
    pub fn has_role(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Process servers that are asked for.
    pub fn process_server_replicas(&self) -> i32 {
        if self.has_role(Role::Ingest) { self.process_servers.replicas.max(0) } else { 0 }
    }

    /// Appliers that are asked for.
    pub fn applier_replicas(&self) -> i32 {
        if self.has_role(Role::Apply) { self.appliers.replicas.max(0) } else { 0 }
    }
}

/// The appliers' pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Appliers {
    /// How many. They share the servers out evenly among themselves, with those of other clusters on the same vault,
    /// and take over from each other; one applies a server at a time.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 16))]
    pub replicas: i32,
    /// Compute resources of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

impl Default for Appliers {
    fn default() -> Self {
        Self { replicas: one(), resources: None }
    }
}

/// The process servers' pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProcessServers {
    /// How many; `kubectl scale` works too.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 32))]
    pub replicas: i32,
    /// Where data waits that is not yet in the vault.
    #[serde(default)]
    pub spool: Spool,
    /// Compute resources of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub priority_class_name: Option<String>,
}

impl Default for ProcessServers {
    fn default() -> Self {
        Self {
            replicas: one(),
            spool: Spool::default(),
            resources: None,
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            affinity: None,
            topology_spread_constraints: Vec::new(),
            priority_class_name: None,
        }
    }
}

fn one() -> i32 {
    1
}

/// A volume for each process server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Spool {
    /// Its size: up to 64 MiB for each of its servers, and a third more. A full spool slows agents down and loses nothing.
    #[serde(default = "spool_size")]
    #[x_kube(validation = Rule::new("quantity(string(self)).compareTo(quantity('64Mi')) >= 0").message("spool.size is at least 64Mi"))]
    pub size: Quantity,
    /// Its storage class; the cluster's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub storage_class_name: Option<String>,
}

impl Default for Spool {
    fn default() -> Self {
        Self { size: spool_size(), storage_class_name: None }
    }
}

fn spool_size() -> Quantity {
    Quantity("10Gi".to_owned())
}

/// Services in front of the process servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("self.type == 'NodePort' || !has(self.nodePorts)").message("nodePorts belong to type NodePort"),
    validation = Rule::new("self.dataPort != self.managementPort").message("dataPort and managementPort must differ"),
    validation = Rule::new("self.type != 'NodePort' || has(self.addresses)").message("type NodePort needs addresses: the names or IP addresses of nodes by which agents reach the appliance")
)]
#[serde(rename_all = "camelCase")]
pub struct Exposure {
    /// Type of the Services.
    #[serde(default, rename = "type")]
    pub kind: ExposureType,
    /// Port for data; one Service for each process server.
    #[serde(default = "data_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub data_port: u16,
    /// Port for management and enrolment; one Service for all.
    #[serde(default = "management_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub management_port: u16,
    /// Fixed ports on the nodes; the cluster chooses when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_ports: Option<NodePorts>,
    /// Names and IP addresses by which agents reach the appliance from outside. They go into its certificate; the
    /// first one is what agents are told. Inside the cluster the Services' own names work without any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 253), regex(pattern = r"^[a-zA-Z0-9]([-.:a-zA-Z0-9]*[a-zA-Z0-9])?$")),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    pub addresses: Vec<String>,
}

impl Default for Exposure {
    fn default() -> Self {
        Self {
            kind: ExposureType::default(),
            data_port: data_port(),
            management_port: management_port(),
            node_ports: None,
            addresses: Vec::new(),
        }
    }
}

fn data_port() -> u16 {
    DATA_PORT
}

fn management_port() -> u16 {
    MANAGEMENT_PORT
}

/// How Services are exposed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExposureType {
    /// Only inside the cluster.
    #[default]
    ClusterIP,
    /// On a port of every node.
    NodePort,
}

/// Ports on the nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodePorts {
    /// Port for management.
    #[schemars(range(min = 1, max = 65535))]
    pub management: u16,
    /// Port for data of the first process server; each further one takes the next port.
    #[schemars(range(min = 1, max = 65535))]
    pub data_base: u16,
}
