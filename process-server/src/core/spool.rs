//! The spool: encrypted segments on their way to the vault, and beside them which records they make ([`super::kept`]). It
//! hides the uplink and outlives a restart; nothing is lost when it is.
//!
//! [`Spool`] keeps the bytes (memory, or files in production); a [`super::space::Space`] bounds what is in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;

#[derive(Debug, thiserror::Error)]
#[error("the spool cannot {what} {name}: check the volume of the spool directory")]
pub struct SpoolError {
    pub what: &'static str,
    pub name: String,
    #[source]
    pub source: std::io::Error,
}

/// Keeps bytes by name. Names are `<server>/<rest>`.
#[async_trait]
pub trait Spool: fmt::Debug + Send + Sync + 'static {
    async fn write(&self, name: &str, content: Bytes) -> Result<(), SpoolError>;
    async fn read(&self, name: &str) -> Result<Bytes, SpoolError>;
    /// Removing what is not there is done.
    async fn remove(&self, name: &str) -> Result<(), SpoolError>;
    /// Names of what is kept of a server, without the server's, in order.
    async fn list(&self, server: &str) -> Result<Vec<String>, SpoolError>;
    /// Removes everything of a server.
    async fn clear(&self, server: &str) -> Result<(), SpoolError>;
    /// Removes everything of all servers but these.
    async fn keep_only(&self, servers: &BTreeSet<String>) -> Result<(), SpoolError>;
}

/// A spool in memory: for tests and the simulation.
#[derive(Debug, Default)]
pub struct MemSpool {
    files: Mutex<BTreeMap<String, Bytes>>,
    /// Its volume takes nothing more.
    full: bool,
}

impl MemSpool {
    /// One on a volume that is full.
    pub fn full() -> Self {
        Self { full: true, ..Self::default() }
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> u64 {
        self.files().values().map(|content| content.len() as u64).sum()
    }

    /// Of one server.
    pub fn bytes_of(&self, server: &str) -> u64 {
        let prefix = format!("{server}/");
        let files = self.files();
        let own = files.iter().filter(|(name, _)| name.starts_with(&prefix));
        own.map(|(_, content)| content.len() as u64).sum()
    }
}

#[async_trait]
impl Spool for MemSpool {
    async fn write(&self, name: &str, content: Bytes) -> Result<(), SpoolError> {
        if self.full {
            let source = std::io::ErrorKind::StorageFull.into();
            return Err(SpoolError { what: "write", name: name.to_owned(), source });
        }
        self.files().insert(name.to_owned(), content);
        Ok(())
    }

    async fn read(&self, name: &str) -> Result<Bytes, SpoolError> {
        let missing = || SpoolError {
            what: "read",
            name: name.to_owned(),
            source: std::io::ErrorKind::NotFound.into(),
        };
        self.files().get(name).cloned().ok_or_else(missing)
    }

    async fn remove(&self, name: &str) -> Result<(), SpoolError> {
        self.files().remove(name);
        Ok(())
    }

    async fn list(&self, server: &str) -> Result<Vec<String>, SpoolError> {
        let files = self.files();
        let rests = files.keys().filter_map(|name| name.strip_prefix(server)?.strip_prefix('/'));
        Ok(rests.map(str::to_owned).collect())
    }

    async fn keep_only(&self, servers: &BTreeSet<String>) -> Result<(), SpoolError> {
        let kept = |name: &str| name.split_once('/').is_some_and(|(server, _)| servers.contains(server));
        self.files().retain(|name, _| kept(name));
        Ok(())
    }

    async fn clear(&self, server: &str) -> Result<(), SpoolError> {
        let prefix = format!("{server}/");
        self.files().retain(|name, _| !name.starts_with(&prefix));
        Ok(())
    }
}
