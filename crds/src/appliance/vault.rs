//! Where an appliance's data goes, and how its programs get in.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::refs::SecretKeyRef;

/// A place for data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Vault {
    /// Azure Blob Storage, or an emulator of it.
    pub azure: AzureVault,
}

/// Two containers in Azure Blob Storage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!(has(self.authentication.workloadIdentity) || (has(self.applierAuthentication) && has(self.applierAuthentication.workloadIdentity))) || (self.endpoint.startsWith('https://') && (!has(self.cache) || !has(self.cache.endpoint) || self.cache.endpoint.startsWith('https://')))").message("workloadIdentity needs endpoints with https: an access token would travel readable")
)]
#[serde(rename_all = "camelCase")]
pub struct AzureVault {
    /// URL of the blob service: public, private endpoint or emulator (with the account in the path). http is for an
    /// emulator alone: seed disks travel as they are.
    #[schemars(length(max = 512), regex(pattern = r"^https?://[^/?#]+(/[^?#]*)?$"))]
    pub endpoint: String,
    /// Container of seed disks, logs and catalogue.
    #[schemars(length(min = 3, max = 63), regex(pattern = r"^[a-z0-9]+(-[a-z0-9]+)*$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("vault.azure.container cannot be changed: the data would stay behind; make another appliance"))]
    pub container: String,
    /// Where segments of the journal land; when absent, container `<container>-cache` at the same endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheStorage>,
    /// How to authenticate, for both containers.
    pub authentication: AzureAuthentication,
    /// How appliers authenticate, when not as the rest: only they delete, so everybody else's credential may then lack
    /// that right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applier_authentication: Option<AzureAuthentication>,
}

impl AzureVault {
    /// URL of the blob service that holds the journal's segments.
    pub fn cache_endpoint(&self) -> &str {
        self.cache.as_ref().and_then(|cache| cache.endpoint.as_deref()).unwrap_or(&self.endpoint)
    }

    /// Container of the journal's segments.
    pub fn cache_container(&self) -> String {
        let given = self.cache.as_ref().and_then(|cache| cache.container.clone());
        given.unwrap_or_else(|| format!("{}-cache", self.container))
    }
}

/// Another place for the journal's segments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CacheStorage {
    /// URL of its blob service; the vault's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), regex(pattern = r"^https?://[^/?#]+(/[^?#]*)?$"))]
    pub endpoint: Option<String>,
    /// Its container; `<container>-cache` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 63), regex(pattern = r"^[a-z0-9]+(-[a-z0-9]+)*$"))]
    pub container: Option<String>,
}

/// Credentials of the storage account. Exactly one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("[has(self.workloadIdentity), has(self.sasSecretRef), has(self.accountKeySecretRef)].filter(given, given).size() == 1").message("choose exactly one of workloadIdentity, sasSecretRef and accountKeySecretRef"))]
#[serde(rename_all = "camelCase")]
pub struct AzureAuthentication {
    /// An identity of Entra that trusts the service accounts of this cluster: no secret is kept anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_identity: Option<WorkloadIdentity>,
    /// A shared access signature (`sv=…&sig=…`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sas_secret_ref: Option<SecretKeyRef>,
    /// The account's key, base64 as Azure shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account_key_secret_ref: Option<SecretKeyRef>,
}

/// A managed identity or application with federated credentials for the pods' service account and the operator's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadIdentity {
    /// Client id of the identity.
    #[schemars(length(max = 36), regex(pattern = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"))]
    pub client_id: String,
    /// Tenant of the identity.
    #[schemars(length(max = 36), regex(pattern = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"))]
    pub tenant_id: String,
    /// Who hands out tokens; `https://login.microsoftonline.com` when absent. The operator takes those of Azure's clouds
    /// and hosts that its own settings name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = r"^https://[-.a-zA-Z0-9]+(:[0-9]+)?/?$"))]
    pub authority_host: Option<String>,
    /// Service account of the pods, in the appliance's namespace; it needs no rights in Kubernetes. `default` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    pub service_account_name: Option<String>,
}

/// The one way to authenticate that is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AzureCredential<'a> {
    WorkloadIdentity(&'a WorkloadIdentity),
    Sas(&'a SecretKeyRef),
    AccountKey(&'a SecretKeyRef),
}

impl AzureAuthentication {
    /// The credential; `None` only for an object that bypassed the API server's rules.
    pub fn credential(&self) -> Option<AzureCredential<'_>> {
        match (&self.workload_identity, &self.sas_secret_ref, &self.account_key_secret_ref) {
            (Some(identity), None, None) => Some(AzureCredential::WorkloadIdentity(identity)),
            (None, Some(sas), None) => Some(AzureCredential::Sas(sas)),
            (None, None, Some(key)) => Some(AzureCredential::AccountKey(key)),
            _ => None,
        }
    }
}
