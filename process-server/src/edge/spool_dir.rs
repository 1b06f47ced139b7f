//! The spool as files: `<dir>/segments/<server>/<name>`. No fsync: the spool is for speed, the agent holds what is not
//! in the vault.

use std::{
    io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::fs;

use crate::core::spool::{Spool, SpoolError};

#[derive(Debug)]
pub struct DirSpool {
    segments: PathBuf,
}

impl DirSpool {
    /// Wipes what an earlier life left.
    pub async fn open(dir: &Path) -> Result<Self, SpoolError> {
        let segments = dir.join("segments");
        let failed = |what| {
            let name = segments.display().to_string();
            move |source| SpoolError { what, name, source }
        };
        absent_is_fine(fs::remove_dir_all(&segments).await).map_err(failed("wipe"))?;
        fs::create_dir_all(&segments).await.map_err(failed("create"))?;
        Ok(Self { segments })
    }
}

#[async_trait]
impl Spool for DirSpool {
    async fn write(&self, name: &str, content: Bytes) -> Result<(), SpoolError> {
        let path = self.segments.join(name);
        let failed = |source| SpoolError { what: "write", name: name.to_owned(), source };
        match fs::write(&path, &content).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(folder) = path.parent() {
                    fs::create_dir_all(folder).await.map_err(failed)?;
                }
                fs::write(&path, &content).await.map_err(failed)
            }
            written => written.map_err(failed),
        }
    }

    async fn read(&self, name: &str) -> Result<Bytes, SpoolError> {
        let read = fs::read(self.segments.join(name)).await;
        read.map(Bytes::from).map_err(|source| SpoolError { what: "read", name: name.to_owned(), source })
    }

    async fn remove(&self, name: &str) -> Result<(), SpoolError> {
        let removed = absent_is_fine(fs::remove_file(self.segments.join(name)).await);
        removed.map_err(|source| SpoolError { what: "remove", name: name.to_owned(), source })
    }

    async fn clear(&self, server: &str) -> Result<(), SpoolError> {
        let removed = absent_is_fine(fs::remove_dir_all(self.segments.join(server)).await);
        removed.map_err(|source| SpoolError { what: "clear", name: server.to_owned(), source })
    }
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
    async fn keeps_what_was_written_and_is_wiped_when_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let spool = DirSpool::open(dir.path()).await.unwrap();
        spool.write("a/1", Bytes::from_static(b"x")).await.unwrap();
        spool.write("b/1", Bytes::from_static(b"y")).await.unwrap();
        assert_eq!(spool.read("a/1").await.unwrap(), "x");
        spool.clear("a").await.unwrap();
        assert!(spool.read("a/1").await.unwrap_err().to_string().contains("spool directory"));
        assert_eq!(spool.read("b/1").await.unwrap(), "y");
        let spool = DirSpool::open(dir.path()).await.unwrap();
        assert!(spool.read("b/1").await.is_err());
        spool.remove("b/1").await.unwrap();
    }
}
