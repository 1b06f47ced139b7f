//! A blob store of a test's own: Azurite on loopback, ended with the test.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::SystemTime,
};

use crate::api_server::{SetupError, dev, output_of};

/// A running blob store.
pub struct BlobStore {
    dir: PathBuf,
    /// URL of the blob service, with the account in its path.
    pub endpoint: String,
    /// The account's key, in base64.
    pub account_key: String,
    /// More options of Azurite.
    options: String,
}

impl BlobStore {
    /// Starts one.
    pub fn start(name: &str) -> Result<Self, SetupError> {
        Self::start_with(name, "")
    }

    /// Starts one with more options.
    pub fn start_with(name: &str, options: &str) -> Result<Self, SetupError> {
        let dir = std::env::temp_dir().join(format!("lifeboat-tests-{}-{name}", std::process::id()));
        Self::up(dir, options)
    }

    /// Ends it in order, so that it keeps everything; it answers nobody until [`BlobStore::resume`].
    pub fn stop(&self) -> Result<(), SetupError> {
        self.end("-TERM")
    }

    /// As `kill -9` does it: it forgets some of what it acknowledged in the last seconds.
    pub fn kill(&self) -> Result<(), SetupError> {
        self.end("-KILL")
    }

    /// Whether it has written down all that it acknowledged until `instant`: it does so every few seconds, and a store
    /// that is killed before the first time has lost its containers.
    pub fn has_saved(&self, instant: SystemTime) -> bool {
        let saved =
            |name: &str| fs::metadata(self.dir.join("data").join(name)).and_then(|file| file.modified());
        ["__azurite_db_blob__.json", "__azurite_db_blob_extent__.json"]
            .iter()
            .all(|name| saved(name).is_ok_and(|at| at > instant))
    }

    fn end(&self, signal: &str) -> Result<(), SetupError> {
        let file = self.dir.join("run/azurite.pid");
        let text = fs::read_to_string(&file)
            .map_err(|source| SetupError::Run { program: file.display().to_string(), source })?;
        let pid = text.split_whitespace().next().unwrap_or_default().to_owned();
        let mut kill = Command::new("kill");
        kill.args([signal, &pid]);
        output_of(kill)?;
        let mut wait = Command::new("timeout");
        wait.args(["30", "tail", "--pid", &pid, "--sleep-interval=0.1", "-f", "/dev/null"]);
        output_of(wait).map(drop)
    }

    /// Starts it again with its data at its address.
    pub fn resume(&self) -> Result<(), SetupError> {
        // The other one ends this one when it is dropped.
        std::mem::forget(Self::up(self.dir.clone(), &self.options)?);
        Ok(())
    }

    /// Takes a copy of everything in it, as a backup of the account would be. It is stopped meanwhile.
    pub fn back_up(&self) -> Result<(), SetupError> {
        self.stop()?;
        self.copy("data", "backup")?;
        self.resume()
    }

    /// Puts everything back to the copy, as a restore of the account does. It is stopped meanwhile.
    pub fn restore(&self) -> Result<(), SetupError> {
        self.stop()?;
        self.copy("backup", "data")?;
        self.resume()
    }

    fn copy(&self, from: &str, to: &str) -> Result<(), SetupError> {
        let mut remove = Command::new("rm");
        remove.arg("-rf").arg(self.dir.join(to));
        output_of(remove)?;
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(self.dir.join(from)).arg(self.dir.join(to));
        output_of(copy).map(drop)
    }

    fn up(dir: PathBuf, options: &str) -> Result<Self, SetupError> {
        let mut up = Command::new(dev("storage/azurite-test-up"));
        up.arg(&dir).env("LIFEBOAT_OWNER_PID", std::process::id().to_string());
        up.env("AZURITE_OPTIONS", options);
        let file = PathBuf::from(output_of(up)?.trim());
        let program = file.display().to_string();
        let text = fs::read_to_string(&file)
            .map_err(|source| SetupError::Run { program: program.clone(), source })?;
        let settings: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
        let setting = |name: &str| {
            let message = format!("it holds no {name}");
            settings
                .get(name)
                .map(|value| (*value).to_owned())
                .ok_or(SetupError::Failed { program: program.clone(), message })
        };
        let options = options.to_owned();
        Ok(Self { endpoint: setting("ENDPOINT")?, account_key: setting("KEY")?, dir, options })
    }
}

impl Drop for BlobStore {
    fn drop(&mut self) {
        // azurite-test-up also watches this process, so nothing stays if this fails.
        let _ = Command::new(dev("storage/azurite-test-down")).arg(&self.dir).stderr(Stdio::null()).status();
    }
}
