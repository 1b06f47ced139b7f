//! Where the vault is and the files that open it. No secret is ever an argument or stands in the environment: only
//! the names of files do.

use std::path::PathBuf;

use clap::Args;
use lifeboat_recovery::book;
use lifeboat_replication::{
    env::Env,
    log::Patience,
    vault::{
        Vault,
        config::{Authentication, VaultConfig},
    },
};
use zeroize::Zeroizing;

use super::VaultError;

#[derive(Args)]
pub(crate) struct Access {
    /// A vault configuration as the operator writes it; what is given beside it takes precedence.
    #[arg(long, env = "LIFEBOAT_VAULT_CONFIG", value_name = "FILE")]
    vault_config: Option<PathBuf>,
    /// Blob service of the storage account: https://ACCOUNT.blob.core.windows.net.
    #[arg(long, env = "LIFEBOAT_ENDPOINT", value_name = "URL")]
    endpoint: Option<String>,
    /// Container of the vault.
    #[arg(long, env = "LIFEBOAT_CONTAINER", value_name = "NAME")]
    container: Option<String>,
    /// Blob service of the journal's segments; the vault's own when absent.
    #[arg(long, env = "LIFEBOAT_CACHE_ENDPOINT", value_name = "URL")]
    cache_endpoint: Option<String>,
    /// Container of the journal's segments; `<container>-cache` when absent.
    #[arg(long, env = "LIFEBOAT_CACHE_CONTAINER", value_name = "NAME")]
    cache_container: Option<String>,
    /// Name of the storage account, when the endpoint does not tell it.
    #[arg(long, env = "LIFEBOAT_ACCOUNT", value_name = "NAME")]
    account: Option<String>,
    /// File with the storage account's key.
    #[arg(long, env = "LIFEBOAT_ACCOUNT_KEY_FILE", value_name = "FILE", conflicts_with = "sas_file")]
    account_key_file: Option<PathBuf>,
    /// File with a shared access signature that may read and list.
    #[arg(long, env = "LIFEBOAT_SAS_FILE", value_name = "FILE")]
    sas_file: Option<PathBuf>,
    /// File with the data keys (keys.json of the Secret).
    #[arg(long, env = "LIFEBOAT_KEYS_FILE", value_name = "FILE")]
    keys_file: Option<PathBuf>,
    /// File with a private recovery key; it opens the key bundle in the vault, so that nothing else is needed.
    #[arg(long, env = "LIFEBOAT_RECOVERY_KEY_FILE", value_name = "FILE")]
    recovery_key_file: Option<PathBuf>,
}

/// An opened vault and what belongs to it.
pub(super) struct Opened {
    pub vault: Vault,
    pub config: VaultConfig,
    /// If one was given, although the data keys may have come from their file.
    pub recovery_key: Option<Zeroizing<String>>,
    pub env: Env,
    pub patience: Patience,
}

impl Access {
    pub(super) async fn open(&self) -> Result<Opened, VaultError> {
        let config = self.config()?;
        let env = Env::system();
        let patience = Patience { env: env.clone(), tries: 5 };
        let vault = book::open(&config, &patience).await?;
        Ok(Opened { vault, recovery_key: config.recovery_key()?, config, env, patience })
    }

    fn config(&self) -> Result<VaultConfig, VaultError> {
        let mut config = match (&self.vault_config, &self.endpoint, &self.container) {
            (Some(file), _, _) => VaultConfig::read(file)?,
            (None, Some(endpoint), Some(container)) => VaultConfig {
                endpoint: endpoint.clone(),
                container: container.clone(),
                cache_endpoint: None,
                cache_container: format!("{container}-cache"),
                account: None,
                authentication: self.authentication().ok_or(VaultError::NoCredential)?,
                keys_file: None,
                recovery_key_file: None,
            },
            _ => return Err(VaultError::NoEndpoint),
        };
        let set = |to: &mut String, from: &Option<String>| {
            if let Some(from) = from {
                to.clone_from(from);
            }
        };
        set(&mut config.endpoint, &self.endpoint);
        set(&mut config.container, &self.container);
        set(&mut config.cache_container, &self.cache_container);
        config.cache_endpoint = self.cache_endpoint.clone().or(config.cache_endpoint);
        config.account = self.account.clone().or(config.account);
        config.authentication = self.authentication().unwrap_or(config.authentication);
        if self.keys_file.is_some() || self.recovery_key_file.is_some() {
            config.keys_file.clone_from(&self.keys_file);
            config.recovery_key_file.clone_from(&self.recovery_key_file);
        }
        Ok(config)
    }

    fn authentication(&self) -> Option<Authentication> {
        let key = self.account_key_file.clone().map(Authentication::AccountKeyFile);
        key.or_else(|| self.sas_file.clone().map(Authentication::SasFile))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        access: Access,
    }

    fn config(arguments: &[&str]) -> Result<VaultConfig, VaultError> {
        let arguments = ["vault"].iter().chain(arguments);
        Only::try_parse_from(arguments).unwrap().access.config()
    }

    #[test]
    fn endpoint_container_and_two_files_are_enough() {
        let config = config(&[
            "--endpoint=https://acme.blob.core.windows.net",
            "--container=vault",
            "--sas-file=/k/sas",
            "--recovery-key-file=/k/recovery",
        ])
        .unwrap();
        assert_eq!(config.cache_container, "vault-cache");
        assert_eq!(config.authentication, Authentication::SasFile("/k/sas".into()));
        assert_eq!((config.keys_file, config.recovery_key_file), (None, Some("/k/recovery".into())));
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = config(&["--container=vault"]).unwrap_err().to_string();
        assert!(error.contains("--endpoint"), "{error}");
        let error = config(&["--endpoint=https://a.b", "--container=vault"]).unwrap_err().to_string();
        assert!(error.contains("--account-key-file"), "{error}");
    }
}
