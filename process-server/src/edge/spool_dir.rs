//! The spool as files: `<dir>/segments/<server>/<name>`.
//!
//! **Crash consistency.** Files outlive the program. No fsync: what a power cut tears is known by its checksum, and the
//! agent holds what is not in the vault.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{fs, task::spawn_blocking};

use crate::core::spool::{Spool, SpoolError};

#[derive(Debug)]
pub struct DirSpool {
    segments: PathBuf,
}

impl DirSpool {
    /// With what an earlier life left in it.
    pub async fn open(dir: &Path) -> Result<Self, SpoolError> {
        let segments = dir.join("segments");
        fs::create_dir_all(&segments).await.map_err(|source| SpoolError {
            what: "create",
            name: segments.display().to_string(),
            source,
        })?;
        Ok(Self { segments })
    }
}

#[async_trait]
impl Spool for DirSpool {
    #[allow(clippy::disallowed_methods, reason = "behind a trait, which is memory in the simulation")]
    async fn write(&self, name: &str, content: Bytes) -> Result<(), SpoolError> {
        let path = self.segments.join(name);
        // Not `fs::write`, which copies the content first.
        let written = spawn_blocking(move || match std::fs::write(&path, &content) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder)?;
                }
                std::fs::write(&path, &content)
            }
            written => written,
        });
        let written = written.await.unwrap_or_else(|gone| Err(io::Error::other(gone)));
        written.map_err(|source| SpoolError { what: "write", name: name.to_owned(), source })
    }

    async fn read(&self, name: &str) -> Result<Bytes, SpoolError> {
        let read = fs::read(self.segments.join(name)).await;
        read.map(Bytes::from).map_err(|source| SpoolError { what: "read", name: name.to_owned(), source })
    }

    async fn remove(&self, name: &str) -> Result<(), SpoolError> {
        let removed = absent_is_fine(fs::remove_file(self.segments.join(name)).await);
        removed.map_err(|source| SpoolError { what: "remove", name: name.to_owned(), source })
    }

    async fn list(&self, server: &str) -> Result<Vec<String>, SpoolError> {
        let listed = names(&self.segments.join(server)).await;
        listed.map_err(|source| SpoolError { what: "list", name: server.to_owned(), source })
    }

    async fn clear(&self, server: &str) -> Result<(), SpoolError> {
        let removed = absent_is_fine(fs::remove_dir_all(self.segments.join(server)).await);
        removed.map_err(|source| SpoolError { what: "clear", name: server.to_owned(), source })
    }

    async fn keep_only(&self, servers: &BTreeSet<String>) -> Result<(), SpoolError> {
        let listed = names(&self.segments).await;
        let name = self.segments.display().to_string();
        for server in listed.map_err(|source| SpoolError { what: "list", name, source })? {
            if !servers.contains(&server) {
                self.clear(&server).await?;
            }
        }
        Ok(())
    }
}

/// In order; empty when the folder is not there.
async fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut entries = match fs::read_dir(folder).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    while let Some(entry) = entries.next_entry().await? {
        // Ours are ASCII.
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_what_was_written_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let spool = DirSpool::open(dir.path()).await.unwrap();
        assert_eq!(spool.list("a").await.unwrap(), Vec::<String>::new());
        spool.write("a/2", Bytes::from_static(b"x")).await.unwrap();
        spool.write("a/1", Bytes::from_static(b"z")).await.unwrap();
        spool.write("b/1", Bytes::from_static(b"y")).await.unwrap();
        let spool = DirSpool::open(dir.path()).await.unwrap();
        assert_eq!(spool.list("a").await.unwrap(), ["1", "2"]);
        assert_eq!(spool.read("a/2").await.unwrap(), "x");
        spool.clear("a").await.unwrap();
        assert!(spool.read("a/2").await.unwrap_err().to_string().contains("spool directory"));
        assert_eq!(spool.read("b/1").await.unwrap(), "y");
        spool.keep_only(&BTreeSet::from(["b".to_owned()])).await.unwrap();
        assert_eq!(spool.list("b").await.unwrap(), ["1"]);
        spool.keep_only(&BTreeSet::new()).await.unwrap();
        assert!(spool.read("b/1").await.is_err());
        spool.remove("b/1").await.unwrap();
    }
}
