//! The program's configuration file: JSON, written by the operator into a ConfigMap. Unknown fields are refused, so
//! that a typing error is seen.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use lifeboat_replication::{env::Env, store::LeaseId};
use serde::Deserialize;

use crate::core::{Options, share::ShareOptions};

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
    #[error("leaseSeconds is {seconds}: the store knows leases of 15 to 60 seconds")]
    Lease { seconds: u64 },
    #[error("the identity {identity:?} is not a UUID: in a pod it is its uid; leave it out for a random one")]
    Identity { identity: String },
    #[error(
        "the applier has no name: give --name or LIFEBOAT_NAME, in a pod the pod's, or put it into the configuration"
    )]
    NoName,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// For reports, and for people who look into the vault. In a pod it is the pod's, given beside the configuration.
    pub name: Option<String>,
    /// UUID that nobody else has; in a pod its uid, given beside the configuration. With the former one, a restarted
    /// applier goes on with its own leases at once. Random at each start when absent.
    pub identity: Option<String>,
    /// How long a dead applier's servers wait for another one, at most; 60 unless given.
    pub lease_seconds: Option<u64>,
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
    /// Reads and checks the file; `name` and `identity` take the place of what it says.
    ///
    /// # Errors
    /// When it cannot be read or does not say what it should.
    pub fn read(path: &Path, name: Option<String>, identity: Option<String>) -> Result<Self, ConfigError> {
        let bytes =
            std::fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config: Self = serde_json::from_slice(&bytes)
            .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source })?;
        config.name = name.or(config.name);
        config.identity = identity.or(config.identity);
        config.check()
    }

    fn check(self) -> Result<Self, ConfigError> {
        let config = self;
        if config.name().is_empty() {
            return Err(ConfigError::NoName);
        }
        if let Some(identity) = config.identity.as_ref().filter(|given| LeaseId::parse(given).is_none()) {
            return Err(ConfigError::Identity { identity: identity.clone() });
        }
        if let Some(seconds) = config.lease_seconds.filter(|seconds| !(15..=60).contains(seconds)) {
            return Err(ConfigError::Lease { seconds });
        }
        let numbers = [
            ("pointIntervalSeconds", config.point_interval_seconds),
            ("pollIntervalMilliseconds", config.poll_interval_milliseconds),
        ];
        match numbers.into_iter().find(|(_, number)| *number == Some(0)) {
            Some((field, _)) => Err(ConfigError::Zero { field }),
            None => Ok(config),
        }
    }

    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// How servers are shared with other appliers.
    pub fn share(&self, env: &Env) -> ShareOptions {
        let given = self.identity.as_deref().and_then(LeaseId::parse);
        ShareOptions {
            name: self.name().to_owned(),
            identity: given.unwrap_or_else(|| LeaseId(env.entropy.uuid())),
            term: self.lease_seconds.map_or(ShareOptions::TERM, Duration::from_secs),
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
        Config::read(&path, None, None)
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
    fn the_pod_gives_name_and_identity_beside_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, EXAMPLE.replace(r#""name": "applier-0", "#, "")).unwrap();
        assert!(matches!(Config::read(&path, None, None), Err(ConfigError::NoName)));
        let read = |identity: &str| Config::read(&path, Some("applier-1".into()), Some(identity.into()));
        assert!(matches!(read("x"), Err(ConfigError::Identity { .. })));
        let share = read("6d3f9a52-7c1e-4b6a-9d0e-0123456789ab").unwrap().share(&Env::system());
        assert_eq!((share.name.as_str(), share.term), ("applier-1", Duration::from_secs(60)));
        assert_eq!(share.identity.0, "6d3f9a52-7c1e-4b6a-9d0e-0123456789ab");
    }

    #[test]
    fn refuses_leases_that_the_store_does_not_know() {
        let long = read(&EXAMPLE.replace("\"pointIntervalSeconds\"", "\"leaseSeconds\"").replace("60", "61"));
        assert!(matches!(long, Err(ConfigError::Lease { seconds: 61 })));
    }

    #[test]
    fn refuses_zero_and_unknown_fields() {
        let zero = read(&EXAMPLE.replace("60", "0")).unwrap_err().to_string();
        assert!(zero.contains("pointIntervalSeconds is 0"), "{zero}");
        assert!(matches!(read(&EXAMPLE.replace("\"name\"", "\"nmae\"")), Err(ConfigError::Syntax { .. })));
    }
}
