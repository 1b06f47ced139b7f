//! Where the vault is and which files hold its secrets: the JSON file that the operator mounts for process server,
//! applier and recovery. The file itself holds no secret, and no secret comes by environment or argument.
//!
//! In a cluster the data keys come from `keysFile`. Without one, a recovery key does as well: it opens the key bundle
//! in `vault.json`.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{KeyBundle, Vault, VaultError};
use crate::{
    keys::{DataKeys, KeysError},
    store::{
        BlobStore,
        azure::{AzureOptions, AzureStore, ConnectError, Credential, WorkloadIdentity},
    },
};

/// Environment variable with the path of the configuration.
pub const CONFIG_ENV: &str = "LIFEBOAT_VAULT_CONFIG";
/// Where pods have it.
pub const CONFIG_PATH: &str = "/etc/lifeboat/vault/config.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VaultConfig {
    /// Of the storage account: `https://<account>.blob.core.windows.net`.
    pub endpoint: String,
    /// Logs, seed disks, catalogues.
    pub container: String,
    /// Cache storage may be in another account (nearer or cheaper); by default it is in the same one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_endpoint: Option<String>,
    /// Segments.
    pub cache_container: String,
    /// Name of the account when the endpoint does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    pub authentication: Authentication,
    /// `keys.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys_file: Option<PathBuf>,
    /// A private recovery key, as `kubectl lifeboat recovery-key new` or `age-keygen` writes it. With `keysFile` it is
    /// not needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_key_file: Option<PathBuf>,
}

/// Who we are to the store; where a file with a secret is named, white space around the secret does not matter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Authentication {
    AccountKeyFile(PathBuf),
    /// An account SAS, so that it works for both containers.
    SasFile(PathBuf),
    /// A service account that an identity of Entra trusts.
    #[serde(rename_all = "camelCase")]
    WorkloadIdentity {
        client_id: String,
        tenant_id: String,
        /// With the service account's token for Azure.
        token_file: PathBuf,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        authority_host: Option<String>,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{what} {} cannot be read: check the path and its permissions; in a cluster, that the Secret or ConfigMap is mounted there", path.display())]
    Read { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is not a vault configuration: the operator writes it, restore it by deleting its ConfigMap", path.display())]
    Syntax { path: PathBuf, source: serde_json::Error },
    #[error("the endpoint {endpoint:?} does not tell the account: set spec.vault.azure.account")]
    NoAccount { endpoint: String },
    #[error(
        "no keys are given: name the file with the data keys (keysFile) or the one with a private recovery key (recoveryKeyFile)"
    )]
    NoKeys,
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// The vault's container and the cache's.
pub type Stores = (Arc<dyn BlobStore>, Arc<dyn BlobStore>);

impl VaultConfig {
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let content = read("the vault configuration", path)?;
        serde_json::from_slice(&content)
            .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source })
    }

    /// Makes the clients with the secrets as they are in the files now; sends nothing yet.
    pub fn connect(&self) -> Result<Stores, ConfigError> {
        let store = self.store(&self.endpoint, &self.container)?;
        let cache =
            self.store(self.cache_endpoint.as_ref().unwrap_or(&self.endpoint), &self.cache_container)?;
        Ok((store, cache))
    }

    /// From `keysFile`.
    pub fn keys(&self) -> Result<DataKeys, ConfigError> {
        let file = self.keys_file.as_ref().ok_or(ConfigError::NoKeys)?;
        Ok(DataKeys::from_json(&read("the data keys", file)?)?)
    }

    /// What opens the key bundle: content of `recoveryKeyFile`, if one is named.
    pub fn recovery_key(&self) -> Result<Option<Zeroizing<String>>, ConfigError> {
        self.recovery_key_file.as_ref().map(|path| secret("the recovery key", path)).transpose()
    }

    /// Connects, gets the keys from their file or out of the key bundle, and checks them against the vault.
    pub async fn open(&self) -> Result<Vault, ConfigError> {
        let (store, cache) = self.connect()?;
        let keys = match (&self.keys_file, self.recovery_key()?) {
            (None, Some(recovery_key)) => {
                let found = super::read_description(&*store).await?;
                let (description, _) = found.ok_or(VaultError::Missing)?;
                KeyBundle::unseal(&description, &recovery_key)?.data_keys
            }
            _ => Arc::new(self.keys()?),
        };
        Ok(super::open(store, cache, keys).await?)
    }

    fn store(&self, endpoint: &str, container: &str) -> Result<Arc<dyn BlobStore>, ConfigError> {
        let credential = match &self.authentication {
            Authentication::AccountKeyFile(path) => {
                let account = self.account.clone().or_else(|| AzureOptions::account_of(endpoint));
                let account =
                    account.ok_or_else(|| ConfigError::NoAccount { endpoint: endpoint.to_owned() })?;
                Credential::AccountKey { account, key: secret("the account key", path)? }
            }
            Authentication::SasFile(path) => Credential::Sas(secret("the shared access signature", path)?),
            Authentication::WorkloadIdentity { client_id, tenant_id, token_file, authority_host } => {
                Credential::WorkloadIdentity(WorkloadIdentity {
                    client_id: client_id.clone(),
                    tenant_id: tenant_id.clone(),
                    token_file: token_file.clone(),
                    authority_host: authority_host.clone(),
                })
            }
        };
        let options =
            AzureOptions { endpoint: endpoint.to_owned(), container: container.to_owned(), credential };
        Ok(Arc::new(AzureStore::new(&options)?))
    }
}

fn read(what: &'static str, path: &Path) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
    let content =
        std::fs::read(path).map_err(|source| ConfigError::Read { what, path: path.to_owned(), source })?;
    Ok(Zeroizing::new(content))
}

fn secret(what: &'static str, path: &Path) -> Result<Zeroizing<String>, ConfigError> {
    let content = read(what, path)?;
    match std::str::from_utf8(&content) {
        Ok(text) => Ok(Zeroizing::new(text.trim().to_owned())),
        Err(_) => {
            let source = io::Error::new(io::ErrorKind::InvalidData, fmt::Error);
            Err(ConfigError::Read { what, path: path.to_owned(), source })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_names_secrets_and_holds_none() {
        let json = r#"{"endpoint": "https://acme.blob.core.windows.net", "container": "vault",
            "cacheContainer": "cache", "authentication": {"accountKeyFile": "/etc/lifeboat/vault-auth/key"},
            "keysFile": "/etc/lifeboat/keys/keys.json"}"#;
        let config: VaultConfig = serde_json::from_str(json).unwrap();
        assert_eq!(
            config.authentication,
            Authentication::AccountKeyFile("/etc/lifeboat/vault-auth/key".into())
        );
        let written = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<VaultConfig>(&written).unwrap(), config);
    }

    #[test]
    fn missing_files_are_named_with_what_to_check() {
        let config = VaultConfig {
            endpoint: "https://acme.blob.core.windows.net".to_owned(),
            container: "vault".to_owned(),
            cache_endpoint: None,
            cache_container: "cache".to_owned(),
            account: None,
            authentication: Authentication::SasFile("/nowhere/sas".into()),
            keys_file: Some("/nowhere/keys.json".into()),
            recovery_key_file: None,
        };
        for error in [config.connect().unwrap_err(), config.keys().unwrap_err()] {
            let shown = error.to_string();
            assert!(shown.contains("/nowhere/") && shown.contains("that the Secret"), "{shown}");
        }
    }
}
