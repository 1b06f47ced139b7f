//! Exit codes, the same for `lifeboat-recovery` and `kubectl lifeboat vault`: 0 done; 1 something else; 2 wrong
//! arguments; 3 there is no such point or server; 4 the vault cannot be reached (worth trying again); 5 the vault is
//! damaged, or the keys are not its keys; 6 the vault has refused a machine that runs for too long.

use std::error::Error;

use lifeboat_replication::{
    journal::JournalError,
    log::ReadError,
    pins::PinError,
    store::StoreError,
    vault::{VaultError, config::ConfigError},
};

use crate::{
    book::{ExportError, InventoryError},
    damage::Lost,
    index::IndexError,
    scan::ScanError,
};

pub const NO_POINT: u8 = 3;
pub const UNREACHABLE: u8 = 4;
pub const DAMAGED: u8 = 5;
pub const REFUSED: u8 = 6;

/// The code of an error, by the first of its causes that has one.
pub fn code(error: &(dyn Error + 'static)) -> u8 {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(code) = own(error) {
            return code;
        }
        cause = error.source();
    }
    1
}

/// `None`: the cause says more.
fn own(error: &(dyn Error + 'static)) -> Option<u8> {
    // These repeat their cause's text, and so leave it out of the chain.
    if let Some(ExportError::Index(error)) = error.downcast_ref::<ExportError>() {
        return own(error);
    }
    if let Some(error) = error.downcast_ref::<InventoryError>() {
        return match error {
            InventoryError::NoServer { .. } | InventoryError::Ambiguous { .. } => Some(NO_POINT),
            InventoryError::Vault(error) => own(error),
            InventoryError::Store(error) => own(error),
        };
    }
    if let Some(lost) = error.downcast_ref::<Lost>() {
        return Some(match lost {
            Lost::Damaged { .. } => DAMAGED,
            Lost::Refused { .. } => REFUSED,
        });
    }
    if let Some(error) = error.downcast_ref::<IndexError>() {
        return match error {
            IndexError::Scan(error) => own(error),
            IndexError::Journal(error) => own(error),
            IndexError::Store(error) => own(error),
            IndexError::Missing { .. } | IndexError::Short { .. } => Some(DAMAGED),
            IndexError::NoDisk(_) => None,
        };
    }
    if let Some(error) = error.downcast_ref::<ScanError>() {
        return match error {
            ScanError::NoLog { .. }
            | ScanError::NoPoint { .. }
            | ScanError::NotAPoint { .. }
            | ScanError::NoRecord { .. }
            | ScanError::TooOld { .. }
            | ScanError::Collected { .. }
            | ScanError::Restless => Some(NO_POINT),
            ScanError::Log(ReadError::Store(error))
            | ScanError::Pins(PinError::Store(error))
            | ScanError::Store(error) => own(error),
            ScanError::Pins(PinError::Name { .. }) => None,
            ScanError::Log(_) | ScanError::Catalogue(_) | ScanError::Pins(_) | ScanError::Older { .. } => {
                Some(DAMAGED)
            }
        };
    }
    if let Some(error) = error.downcast_ref::<JournalError>() {
        return match error {
            JournalError::Store(error) => own(error),
            _ => Some(DAMAGED),
        };
    }
    if let Some(error) = error.downcast_ref::<VaultError>() {
        return match error {
            VaultError::Unreachable(_) => Some(UNREACHABLE),
            VaultError::WrongKey { .. }
            | VaultError::MissingKey { .. }
            | VaultError::BundleIdentity { .. }
            | VaultError::BundleDamaged
            | VaultError::Damaged { .. }
            | VaultError::TooLarge { .. }
            | VaultError::Format { .. } => Some(DAMAGED),
            VaultError::Store(error) => own(error),
            _ => None,
        };
    }
    if let Some(ConfigError::Vault(error)) = error.downcast_ref::<ConfigError>() {
        return own(error);
    }
    match error.downcast_ref::<StoreError>() {
        Some(StoreError::Unknown { .. }) => Some(UNREACHABLE),
        _ => None,
    }
}
