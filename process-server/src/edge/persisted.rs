//! What is kept beside the spool: the operator's last configuration, so that replication outlives the operator and a
//! restart, and an id of this spool, by which a restarted process server knows the logs that it had opened itself.

use std::{
    io,
    path::{Path, PathBuf},
};

use lifeboat_replication::{env::Entropy, wire::v1};
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
        replace(&self.path, &configuration.encode_to_vec()).await
    }
}

/// The id of the spool in `dir`, made at its first use. A pod's name would not do: two clusters of one Git repository
/// have pods of the same names.
pub async fn instance(dir: &Path, entropy: &dyn Entropy) -> io::Result<String> {
    let path = dir.join("instance");
    match fs::read_to_string(&path).await {
        Ok(text) if uuid(&text) => return Ok(text),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let made = entropy.uuid();
    replace(&path, made.as_bytes()).await?;
    Ok(made)
}

fn uuid(text: &str) -> bool {
    text.len() == 36 && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

/// The old content or the new, whenever it is interrupted.
async fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, content).await?;
    fs::File::open(&new).await?.sync_all().await?;
    fs::rename(&new, path).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_spool_keeps_its_id_and_gets_a_new_one_when_the_file_is_damaged() {
        let (dir, env) = (tempfile::tempdir().unwrap(), lifeboat_replication::env::Env::system());
        let first = instance(dir.path(), &*env.entropy).await.unwrap();
        assert_eq!(instance(dir.path(), &*env.entropy).await.unwrap(), first);
        fs::write(dir.path().join("instance"), "").await.unwrap();
        let second = instance(dir.path(), &*env.entropy).await.unwrap();
        assert!(uuid(&second) && second != first);
    }

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
