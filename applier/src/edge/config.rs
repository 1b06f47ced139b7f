//! The program's configuration file: JSON, written by the operator into a ConfigMap. Unknown fields are refused, so
//! that a typing error is seen.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use crate::core::Options;

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
    #[error("{field} is 0: leave it out for its default, or give a positive number")]
    Zero { field: &'static str },
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The pod's name, for reports.
    pub name: String,
    /// The operator; 9444 in a pod.
    pub control_listen: SocketAddr,
    /// /metrics, /healthz, /readyz without TLS; 8080 in a pod.
    pub metrics_listen: SocketAddr,
    /// tls.crt, tls.key, ca.crt of the control port. Read for each connection: a renewal needs no restart.
    pub tls_dir: PathBuf,
    /// File with the vault's configuration (endpoint, container, where its secrets are).
    pub vault_config: PathBuf,
    /// Time between recovery points; 300 unless given.
    pub point_interval_seconds: Option<u64>,
    /// Pause between looks at a log whose records are all applied; 2000 unless given.
    pub poll_interval_milliseconds: Option<u64>,
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// When it cannot be read or does not say what it should.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let bytes =
            std::fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Self = serde_json::from_slice(&bytes)
            .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source })?;
        let numbers = [
            ("pointIntervalSeconds", config.point_interval_seconds),
            ("pollIntervalMilliseconds", config.poll_interval_milliseconds),
        ];
        match numbers.into_iter().find(|(_, number)| *number == Some(0)) {
            Some((field, _)) => Err(ConfigError::Zero { field }),
            None => Ok(config),
        }
    }

    pub fn options(&self) -> Options {
        let default = Options::default();
        Options {
            point_interval: self.point_interval_seconds.map_or(default.point_interval, Duration::from_secs),
            poll_interval: self
                .poll_interval_milliseconds
                .map_or(default.poll_interval, Duration::from_millis),
            ..default
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = r#"{
        "name": "applier-0", "controlListen": "[::]:9444", "metricsListen": "[::]:8080",
        "tlsDir": "/etc/lifeboat/tls", "vaultConfig": "/etc/lifeboat/vault/config.json", "pointIntervalSeconds": 60
    }"#;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        Config::read(&path)
    }

    #[test]
    fn reads_what_the_operator_writes() {
        let options = read(EXAMPLE).unwrap().options();
        assert_eq!(
            (options.point_interval, options.poll_interval),
            (Duration::from_secs(60), Duration::from_secs(2))
        );
    }

    #[test]
    fn refuses_zero_and_unknown_fields() {
        let zero = read(&EXAMPLE.replace("60", "0")).unwrap_err().to_string();
        assert!(zero.contains("pointIntervalSeconds is 0"), "{zero}");
        assert!(matches!(read(&EXAMPLE.replace("\"name\"", "\"nmae\"")), Err(ConfigError::Syntax { .. })));
    }
}
