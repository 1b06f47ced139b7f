//! The operator's last configuration beside the spool, so that replication outlives the operator and a restart.

use std::{
    io,
    path::{Path, PathBuf},
};

use lifeboat_replication::wire::v1;
use prost::Message as _;
use tokio::fs;

#[derive(Debug, Clone)]
pub struct PersistedConfiguration {
    path: PathBuf,
}

impl PersistedConfiguration {
    /// `dir` is the spool's directory; only what is below `segments/` in it is wiped.
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join("configuration.pb") }
    }

    /// A file that is missing or cannot be read is none: the operator sends it again.
    pub async fn load(&self) -> Option<v1::Configuration> {
        match fs::read(&self.path).await {
            Ok(bytes) => v1::Configuration::decode(bytes.as_slice()).ok(),
            Err(_) => None,
        }
    }

    pub async fn save(&self, configuration: &v1::Configuration) -> io::Result<()> {
        let new = self.path.with_extension("new");
        fs::write(&new, configuration.encode_to_vec()).await?;
        fs::File::open(&new).await?.sync_all().await?;
        fs::rename(&new, &self.path).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn loads_what_was_saved_and_ignores_rubbish() {
        let dir = tempfile::tempdir().unwrap();
        let persisted = PersistedConfiguration::new(dir.path());
        assert_eq!(persisted.load().await, None);
        let configuration = v1::Configuration { generation: 7, ..Default::default() };
        persisted.save(&configuration).await.unwrap();
        assert_eq!(persisted.load().await, Some(configuration));
        fs::write(dir.path().join("configuration.pb"), b"\xff\xff").await.unwrap();
        assert_eq!(persisted.load().await, None);
    }
}
