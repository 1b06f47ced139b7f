//! What the agent keeps on the machine: its key, certificates and where the appliance is.
//!
//! ```text
//!   /var/lib/lifeboat-agent/      0700
//!     key.pem                     0600, made here, never leaves the machine
//!     cert.pem  ca.pem            replaced as a whole when renewed
//!     agent.json                  server id and management addresses; written last: its presence means enrolled
//!     excluded.json               disks that the appliance wants left out, as it last said
//!     upgrade.json                an upgrade is under way (see `upgrade`)
//! ```
//! A file is replaced by rename, so a crash leaves the old or the new one.

use std::{
    fmt, fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use lifeboat_replication::{ids::ServerId, wire::v1::DiskSelector};
use serde::{Deserialize, Serialize};

use crate::files;

pub const STATE_DIR: &str = "/var/lib/lifeboat-agent";

const KEY: &str = "key.pem";
const CERTIFICATE: &str = "cert.pem";
const CA: &str = "ca.pem";
const AGENT: &str = "agent.json";
const EXCLUDED: &str = "excluded.json";

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("this machine is not enrolled: run the command that `kubectl lifeboat enroll` prints")]
    NotEnrolled,
    #[error("cannot {operation} {path}; run as root and check that the file system is writable")]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{path} is damaged: {reason}; enrol again with the command that `kubectl lifeboat enroll` prints"
    )]
    Damaged { path: PathBuf, reason: String },
}

/// Text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(text)
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Who this machine is to its appliance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub server: ServerId,
    pub key_pem: Secret,
    pub certificate_pem: String,
    pub ca_pem: String,
    /// host:port, tried in this order.
    pub management: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AgentFile {
    server_id: String,
    management_addresses: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Excluded {
    serial: String,
    path: String,
    wwn: String,
}

#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

impl StateDir {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the directory when it is missing.
    pub fn create(&self) -> Result<(), StateError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        made.map_err(|source| StateError::File { operation: "create", path: self.0.clone(), source })
    }

    pub fn load(&self) -> Result<Identity, StateError> {
        let file = self.read(AGENT)?;
        let damaged = |reason: String| StateError::Damaged { path: self.0.join(AGENT), reason };
        let AgentFile { server_id, management_addresses } =
            serde_json::from_str(&file).map_err(|error| damaged(error.to_string()))?;
        Ok(Identity {
            server: server_id.parse().map_err(|error| damaged(format!("{error}")))?,
            key_pem: Secret(self.read(KEY)?),
            certificate_pem: self.read(CERTIFICATE)?,
            ca_pem: self.read(CA)?,
            management: management_addresses,
        })
    }

    pub fn save(&self, identity: &Identity) -> Result<(), StateError> {
        let Identity { server, key_pem, certificate_pem, ca_pem, management } = identity;
        let agent = AgentFile { server_id: server.to_string(), management_addresses: management.clone() };
        let agent = serde_json::to_string_pretty(&agent)
            .map_err(|error| StateError::Damaged { path: self.0.join(AGENT), reason: error.to_string() })?;
        self.create()?;
        self.write(KEY, key_pem.reveal())?;
        self.write(CERTIFICATE, certificate_pem)?;
        self.write(CA, ca_pem)?;
        self.write(AGENT, &agent)
    }

    /// Disks to leave out; none when nothing was ever said, or when it cannot be read: then more is protected.
    pub fn excluded(&self) -> Vec<DiskSelector> {
        let excluded = self.read(EXCLUDED).ok().and_then(|file| serde_json::from_str(&file).ok());
        let excluded: Vec<Excluded> = excluded.unwrap_or_default();
        let selector = |Excluded { serial, path, wwn }| DiskSelector { serial, path, wwn };
        excluded.into_iter().map(selector).collect()
    }

    pub fn set_excluded(&self, excluded: &[DiskSelector]) -> Result<(), StateError> {
        let entry = |selector: &DiskSelector| {
            let DiskSelector { serial, path, wwn } = selector.clone();
            Excluded { serial, path, wwn }
        };
        let excluded: Vec<_> = excluded.iter().map(entry).collect();
        // Plain structs of strings cannot fail to be written.
        self.write(EXCLUDED, &serde_json::to_string_pretty(&excluded).unwrap_or_default())
    }

    /// Leaves nothing. Safe to repeat. Only removes what is an agent's state directory.
    pub fn remove(&self) -> Result<(), StateError> {
        let ours = self.0 == Path::new(STATE_DIR) || self.0.join(AGENT).exists();
        if self.0.exists() && !ours {
            let reason = "it is not the state directory of an agent".to_owned();
            return Err(StateError::Damaged { path: self.0.clone(), reason });
        }
        match fs::remove_dir_all(&self.0) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StateError::File { operation: "remove", path: self.0.clone(), source })
            }
            _ => Ok(()),
        }
    }

    fn read(&self, name: &str) -> Result<String, StateError> {
        let path = self.0.join(name);
        fs::read_to_string(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => StateError::NotEnrolled,
            _ => StateError::File { operation: "read", path, source },
        })
    }

    fn write(&self, name: &str, content: &str) -> Result<(), StateError> {
        let path = self.0.join(name);
        files::replace(&path, content.as_bytes()).map_err(|source| StateError::File {
            operation: "write",
            path,
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn identity() -> Identity {
        Identity {
            server: ServerId::from_random([3; 16]),
            key_pem: Secret::new("key".to_owned()),
            certificate_pem: "certificate".to_owned(),
            ca_pem: "ca".to_owned(),
            management: vec!["dr.contoso.local:443".to_owned()],
        }
    }

    #[test]
    fn what_was_saved_is_loaded_and_only_root_may_read_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path().join("state"));
        state.save(&identity()).unwrap();
        assert_eq!(state.load().unwrap(), identity());
        let mode = fs::metadata(state.path().join(KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        state.remove().unwrap();
        assert!(!state.path().exists());
        state.remove().unwrap();
    }

    #[test]
    fn what_is_excluded_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path());
        assert!(state.excluded().is_empty());
        let excluded = [DiskSelector { serial: "a".into(), ..Default::default() }];
        state.set_excluded(&excluded).unwrap();
        assert_eq!(state.excluded(), excluded);
    }

    #[test]
    fn a_machine_that_is_not_enrolled_is_told_the_command() {
        let folder = tempfile::tempdir().unwrap();
        let error = StateDir::new(folder.path()).load().unwrap_err();
        assert!(error.to_string().contains("kubectl lifeboat enroll"), "{error}");
    }

    #[test]
    fn a_key_is_never_printed() {
        assert!(!format!("{:?}", identity()).contains("key\""));
    }
}
