//! `recovery-key new`: a key pair that opens the vault when the cluster is gone.

use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _, path::PathBuf};

use age::secrecy::ExposeSecret as _;
use clap::Subcommand;

use crate::cluster::PluginError;

#[derive(Subcommand)]
pub(crate) enum RecoveryKey {
    /// Makes a key pair: the private half goes to a new file, the public half is printed.
    New {
        /// File for the private half. It must not exist yet.
        file: PathBuf,
    },
}

impl RecoveryKey {
    pub(crate) fn run(self) -> Result<(), PluginError> {
        let Self::New { file } = self;
        let identity = age::x25519::Identity::generate();
        let public = identity.to_public();
        let write = || {
            let mut to = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file)?;
            writeln!(to, "# Lifeboat recovery key, public half: {public}")?;
            writeln!(to, "{}", identity.to_string().expose_secret())?;
            to.sync_all()
        };
        write().map_err(|source| PluginError::Io { what: "write the private half to a new file", source })?;
        println!("{public}");
        eprintln!(
            "\nThe private half is in {}. Keep it where a disaster of the cluster cannot reach it (a safe, another site),\n\
             and nowhere in the cluster. Put the line above into spec.recoveryKeyRecipients of the ReplicationAppliance.",
            file.display()
        );
        Ok(())
    }
}
