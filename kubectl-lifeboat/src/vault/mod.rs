//! `vault`: what a vault holds and whether it is whole, with the vault and its keys alone: no cluster is asked.

mod access;
mod export;
mod ls;
mod verify;

use std::process::ExitCode;

use clap::Subcommand;
use lifeboat_recovery::{
    ScanError,
    book::{ExportError, InventoryError},
    exit,
};
use lifeboat_replication::{store::StoreError, vault::config::ConfigError};

use crate::text;

#[derive(Subcommand)]
pub(crate) enum Vault {
    /// Lists the servers of a vault, or the points of one server.
    Ls(ls::Ls),
    /// Checks that everything in the vault is there and is what was written.
    Verify(verify::Verify),
    /// Writes a disk of a point to a file.
    Export(export::Export),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum VaultError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(
        "where the vault is, is not known: give --endpoint and --container, or --vault-config with a file that names them"
    )]
    NoEndpoint,
    #[error(
        "no credential is given: name a file with the account's key (--account-key-file) or a SAS (--sas-file)"
    )]
    NoCredential,
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the report cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    #[error("signals cannot be waited for")]
    Signals(#[source] std::io::Error),
}

impl Vault {
    pub(crate) async fn run(self) -> ExitCode {
        let done = match self {
            Self::Ls(command) => command.run().await,
            Self::Verify(command) => command.run().await,
            Self::Export(command) => command.run().await,
        };
        done.unwrap_or_else(|error| {
            eprintln!("error: {}", text::chain(&error));
            ExitCode::from(code(&error))
        })
    }
}

fn code(error: &VaultError) -> u8 {
    match error {
        VaultError::Config(error) => exit::code(error),
        VaultError::Inventory(error) => exit::code(error),
        VaultError::Scan(error) => exit::code(error),
        VaultError::Export(error) => exit::code(error),
        VaultError::Store(error) => exit::code(error),
        VaultError::NoEndpoint | VaultError::NoCredential => 2,
        VaultError::Json(_) | VaultError::Signals(_) => 1,
    }
}
