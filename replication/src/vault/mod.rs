//! The vault: two containers of a blob store and the keys that make sense of what is in them.
//!
//! [`bootstrap()`] is the operator's: it creates what is missing and adopts what is there. [`open()`] is everybody
//! else's. Both compare the keys with the vault's check values first, so that a wrong key is named before anything is
//! read or written with it.
//!
//! **Crash and repetition**: every step is one conditional write, so any of them may be cut off and the whole repeated;
//! two operators at once end with the same vault.

pub mod bundle;
pub mod config;
mod json;
pub mod layout;
mod server;

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

pub use self::{
    bundle::KeyBundle,
    config::VaultConfig,
    server::{DiskDescription, RetentionPolicy, ServerDescription},
};
use crate::{
    env::Env,
    keys::{DataKeys, KeyId, KeysError},
    store::{BlobStore, ETag, PutCondition, Refusal, StoreError},
};

/// The only version of the vault's format so far.
pub const FORMAT: u32 = 1;

/// What the data plane's programs are given. Cheap to clone.
#[derive(Clone)]
pub struct Vault {
    /// Logs, seed disks, catalogues.
    pub store: Arc<dyn BlobStore>,
    /// Segments.
    pub cache: Arc<dyn BlobStore>,
    pub keys: Arc<DataKeys>,
    pub id: String,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault")
            .field("id", &self.id)
            .field("store", &self.store)
            .field("cache", &self.cache)
            .finish()
    }
}

/// Content of `vault.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VaultDescription {
    pub format: u32,
    pub vault_id: String,
    pub created_at_micros: i64,
    /// See [`DataKeys::check_values`].
    pub key_checks: std::collections::BTreeMap<KeyId, String>,
    /// Public recovery keys (`age1…`) that can open the bundle.
    pub recipients: Vec<String>,
    /// An armored age file: see [`bundle`].
    pub key_bundle: String,
    /// Tells whether the bundle holds what it should, without opening it.
    pub bundle_digest: String,
}

#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error(
        "the vault has no recovery key: if the cluster burnt, nothing could be decrypted. Make one with `kubectl lifeboat recovery-key new`, keep its private half outside of the cluster and put the public half (age1…) into spec.recoveryKeyRecipients of the ReplicationAppliance"
    )]
    NoRecipient,
    #[error(
        "{recipient:?} is not a public recovery key: it must start with age1 as `kubectl lifeboat recovery-key new` prints it"
    )]
    Recipient { recipient: String },
    #[error(
        "there is no vault in this container: the operator creates it when the ReplicationAppliance is reconciled; check endpoint and container of spec.vault.azure"
    )]
    Missing,
    #[error(
        "data key {key_id} is not the one this vault was written with: restore the Secret with the data keys from its backup or from the vault's key bundle (`age -d -i RECOVERY_KEY_FILE`), or name another container"
    )]
    WrongKey { key_id: KeyId },
    #[error(
        "the vault was written with data key {key_id}, which is not in the Secret with the data keys: restore it from its backup or from the vault's key bundle (`age -d -i RECOVERY_KEY_FILE`), or name another container"
    )]
    MissingKey { key_id: KeyId },
    #[error("{name} has format {found}, this build knows {FORMAT}: use the release that wrote it")]
    Format { name: String, found: u32 },
    #[error(
        "{name} in the vault cannot be read as what it should be: restore it from the store's soft-delete or versions, or name another container"
    )]
    Damaged { name: String, source: serde_json::Error },
    #[error(
        "{name} in the vault has {bytes} bytes, far more than it can have: restore it from the store's soft-delete or versions, or name another container"
    )]
    TooLarge { name: String, bytes: u64 },
    #[error(
        "the key bundle cannot be opened with this recovery key: use the private half of one of {recipients:?}"
    )]
    BundleIdentity { recipients: Vec<String> },
    #[error(
        "the file with the recovery key holds no key: each line must be a comment (#) or a private key that starts with AGE-SECRET-KEY-1, as `kubectl lifeboat recovery-key new` writes it"
    )]
    NotAnIdentity,
    #[error(
        "the key bundle in vault.json is damaged: restore vault.json from the store's soft-delete or versions, or use the file with the data keys (keys.json) if you still have it"
    )]
    BundleDamaged,
    #[error(
        "the key bundle could not be encrypted to the recovery keys; try again, and report it if it stays"
    )]
    BundleEncryption(#[source] std::io::Error),
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(
        "the vault cannot be reached: check spec.vault.azure.endpoint, DNS and the network path from the cluster to it; it is tried again until it answers ({0})"
    )]
    Unreachable(#[source] StoreError),
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for VaultError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unknown { .. } => Self::Unreachable(error),
            StoreError::Refused { .. } => Self::Store(error),
        }
    }
}

impl VaultError {
    /// Whether trying again can help without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }
}

/// Creates the vault, or adopts the one that is there if the keys are its own. The bundle is wrapped anew when its
/// content or the recipients have changed. Safe to repeat.
pub async fn bootstrap(
    store: Arc<dyn BlobStore>,
    cache: Arc<dyn BlobStore>,
    bundle: impl Into<KeyBundle>,
    recipients: &[String],
    env: &Env,
) -> Result<VaultDescription, VaultError> {
    let bundle = bundle.into();
    let mut recipients = recipients.to_vec();
    recipients.sort();
    recipients.dedup();
    // Before anything is created: a vault that nobody could open after a disaster must not come to be.
    bundle::check_recipients(&recipients)?;
    store.ensure_container().await?;
    cache.ensure_container().await?;
    // Twice: whoever lost the race to create it adopts what the other one has written.
    loop {
        let Some((found, etag)) = read_description(&*store).await? else {
            let new = VaultDescription {
                format: FORMAT,
                vault_id: env.entropy.uuid(),
                created_at_micros: env.wall.now().0,
                key_checks: bundle.data_keys.check_values(),
                key_bundle: bundle.seal(&recipients)?,
                bundle_digest: bundle.digest(),
                recipients: recipients.clone(),
            };
            match json::write(&*store, layout::VAULT_JSON, &new, &PutCondition::IfAbsent).await {
                Ok(_) => return Ok(new),
                Err(error) if error.is(Refusal::AlreadyExists) => continue,
                Err(error) => return Err(error.into()),
            }
        };
        check_keys(&found, &bundle.data_keys)?;
        if found.recipients == recipients && found.bundle_digest == bundle.digest() {
            return Ok(found);
        }
        let renewed = VaultDescription {
            key_checks: bundle.data_keys.check_values(),
            key_bundle: bundle.seal(&recipients)?,
            bundle_digest: bundle.digest(),
            recipients: recipients.clone(),
            ..found
        };
        match json::write(&*store, layout::VAULT_JSON, &renewed, &PutCondition::IfMatch(etag)).await {
            Ok(_) => return Ok(renewed),
            Err(error) if error.is(Refusal::Condition) => continue,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Opens a vault that [`bootstrap()`] has made.
pub async fn open(
    store: Arc<dyn BlobStore>,
    cache: Arc<dyn BlobStore>,
    keys: Arc<DataKeys>,
) -> Result<Vault, VaultError> {
    let description = match read_description(&*store).await {
        Ok(found) => found.ok_or(VaultError::Missing)?.0,
        Err(VaultError::Store(error)) if error.is(Refusal::NoContainer) => return Err(VaultError::Missing),
        Err(error) => return Err(error),
    };
    check_keys(&description, &keys)?;
    Ok(Vault { store, cache, keys, id: description.vault_id })
}

/// `vault.json`, for those who only look.
pub async fn read_description(store: &dyn BlobStore) -> Result<Option<(VaultDescription, ETag)>, VaultError> {
    let Some((found, etag)) = json::read::<VaultDescription>(store, layout::VAULT_JSON).await? else {
        return Ok(None);
    };
    if found.format != FORMAT {
        return Err(VaultError::Format { name: layout::VAULT_JSON.to_owned(), found: found.format });
    }
    Ok(Some((found, etag)))
}

fn check_keys(description: &VaultDescription, keys: &DataKeys) -> Result<(), VaultError> {
    let ours = keys.check_values();
    for (key_id, value) in &description.key_checks {
        match ours.get(key_id) {
            None => return Err(VaultError::MissingKey { key_id: key_id.clone() }),
            Some(own) if own != value => return Err(VaultError::WrongKey { key_id: key_id.clone() }),
            Some(_) => {}
        }
    }
    Ok(())
}
