//! The program's configuration file: JSON, written by the operator into a ConfigMap. Unknown fields are refused, so
//! that a typing error is seen.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// Below this a single batch would not fit beside another one.
const SMALLEST_SPOOL_BYTES: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration {path} cannot be read: name it with --config or LIFEBOAT_CONFIG")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the configuration {path} is not valid")]
    Syntax {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("spool.sizeBytes is {0}: it must be at least {SMALLEST_SPOOL_BYTES}")]
    SpoolSize(u64),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The pod's name, by which assignments name this process server.
    pub name: String,
    /// Agents' data; 9443 in a pod.
    pub data_listen: SocketAddr,
    /// Enrolment, installer, location, renewal; 8443 in a pod.
    pub management_listen: SocketAddr,
    /// The operator; 9444 in a pod.
    pub control_listen: SocketAddr,
    /// /metrics, /healthz, /readyz without TLS; 8080 in a pod.
    pub metrics_listen: SocketAddr,
    /// tls.crt, tls.key, ca.crt of the data and control ports. The directory is watched: a renewal needs no restart.
    pub tls_dir: PathBuf,
    /// tls.crt and tls.key of the management port; clients are verified with `tls_dir`'s ca.crt.
    pub management_tls_dir: PathBuf,
    pub spool: SpoolConfig,
    /// File with the vault's configuration (endpoint, container, where its secrets are).
    pub vault_config: PathBuf,
    /// lifeboat-agent, as enrolling machines download it.
    pub agent_binary: PathBuf,
    /// install.sh, likewise.
    pub install_script: PathBuf,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SpoolConfig {
    pub dir: PathBuf,
    pub size_bytes: u64,
}

impl Config {
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let bytes =
            std::fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Self = serde_json::from_slice(&bytes)
            .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source })?;
        if config.spool.size_bytes < SMALLEST_SPOOL_BYTES {
            return Err(ConfigError::SpoolSize(config.spool.size_bytes));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = r#"{
        "name": "main-0", "dataListen": "[::]:9443", "managementListen": "[::]:8443", "controlListen": "[::]:9444",
        "metricsListen": "[::]:8080", "tlsDir": "/etc/lifeboat/tls", "managementTlsDir": "/etc/lifeboat/management",
        "spool": {"dir": "/var/lib/lifeboat/spool", "sizeBytes": 67108864},
        "vaultConfig": "/etc/lifeboat/vault/config.json",
        "agentBinary": "/usr/share/lifeboat/lifeboat-agent", "installScript": "/usr/share/lifeboat/install.sh"
    }"#;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        Config::read(&path)
    }

    #[test]
    fn reads_what_the_operator_writes() {
        let config = read(EXAMPLE).unwrap();
        assert_eq!((config.name.as_str(), config.control_listen.port()), ("main-0", 9444));
    }

    #[test]
    fn refuses_a_spool_too_small_and_unknown_fields() {
        let small = read(&EXAMPLE.replace("67108864", "5")).unwrap_err();
        assert!(small.to_string().contains("at least 67108864"), "{small}");
        assert!(matches!(read(&EXAMPLE.replace("\"name\"", "\"nmae\"")), Err(ConfigError::Syntax { .. })));
    }
}
