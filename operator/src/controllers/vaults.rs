//! Opened vaults, one an appliance, kept while spec and Secrets stay the same.
//!
//! Secrets are read by name and held in memory only as long as the vault is; no pass copies them anywhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use lifeboat_crds::{Reason, ReplicationAppliance, appliance::Role, refs::SecretKeyRef};
use lifeboat_replication::{
    errors::chain,
    keys::DataKeys,
    store::{
        BlobStore, Refusal,
        azure::{AzureOptions, AzureStore, Credential as AzureCredential, WorkloadIdentity},
    },
    vault::{self, KeyBundle, Vault, VaultDescription, VaultError},
};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{
    appliance::{
        secrets::{self, CA_KEY, DATA_KEYS, bytes, text},
        validate::{Credential, Validated},
    },
    shared::sha256,
};
use crate::{
    control::ApplianceKey,
    runtime::{Context, Failure, settings::Settings},
};

mod trusted;

/// How long a vault that answered counts as reachable.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// Settings of an account change rarely, and each look is paid for.
const GUARD_INTERVAL: Duration = Duration::from_secs(600);

/// The Secrets that open a vault.
#[derive(Debug, Clone, Copy)]
pub struct VaultSecrets<'a> {
    pub credential: Option<&'a Secret>,
    pub applier_credential: Option<&'a Secret>,
    pub data_keys: Option<&'a Secret>,
    pub ca: Option<&'a Secret>,
}

/// What the last look at a vault showed.
#[derive(Debug, Clone)]
pub struct Seen {
    pub description: VaultDescription,
    /// What would not bring it back if somebody deleted it, with the remedy; `None`: nothing is missing, or it cannot
    /// be known.
    pub unguarded: Option<String>,
    guard_checked: Instant,
}

struct Known {
    fingerprint: String,
    vault: Vault,
    seen: Seen,
    checked: Instant,
}

#[derive(Clone, Default)]
pub struct Vaults {
    known: Arc<Mutex<BTreeMap<ApplianceKey, Known>>>,
    /// Those that could not be opened when it was tried last.
    silent: Arc<Mutex<BTreeSet<ApplianceKey>>>,
}

impl Vaults {
    fn known(&self) -> MutexGuard<'_, BTreeMap<ApplianceKey, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn silent(&self) -> MutexGuard<'_, BTreeSet<ApplianceKey>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn forget(&self, key: &ApplianceKey) {
        self.known().remove(key);
        self.silent().remove(key);
    }

    /// Whether it could not be opened, and not only has not been yet.
    pub fn is_silent(&self, key: &ApplianceKey) -> bool {
        self.silent().contains(key)
    }
}

/// Changes when credentials or keys do, and shows nothing of them.
pub fn fingerprint(validated: &Validated, found: VaultSecrets<'_>) -> String {
    let of = |secret: Option<&'_ Secret>, credential: &Credential| {
        let value = secret.zip(credential.secret()).and_then(|(secret, named)| bytes(secret, &named.key));
        value.unwrap_or_default().to_vec()
    };
    let credential = of(found.credential, &validated.credential);
    let applier = of(found.applier_credential, &validated.applier_credential);
    let keys = found.data_keys.and_then(|secret| bytes(secret, DATA_KEYS)).unwrap_or_default();
    sha256([credential.as_slice(), &applier, keys])
}

/// Makes the vault or adopts the one that is there, and opens it.
pub async fn bootstrap(
    appliance: &ReplicationAppliance,
    validated: &Validated,
    found: VaultSecrets<'_>,
    context: &Context,
) -> Result<(Vault, Seen), Failure> {
    let spec = serde_json::to_vec(&appliance.spec.vault).unwrap_or_default();
    let recipients = appliance.spec.recovery_key_recipients.join(" ");
    let ca = found.ca.and_then(|secret| bytes(secret, CA_KEY)).unwrap_or_default();
    let fingerprint =
        sha256([spec.as_slice(), recipients.as_bytes(), fingerprint(validated, found).as_bytes(), ca]);
    let key =
        ApplianceKey { namespace: appliance.namespace().unwrap_or_default(), name: appliance.name_any() };
    let before = {
        let known = context.vaults.known();
        let known = known.get(&key).filter(|known| known.fingerprint == fingerprint);
        if let Some(known) = known.filter(|known| known.checked.elapsed() < CHECK_INTERVAL) {
            return Ok((known.vault.clone(), known.seen.clone()));
        }
        known.map(|known| known.seen.clone())
    };
    let opened = open(appliance, validated, found, before, context).await;
    match &opened {
        Ok((vault, seen)) => {
            let known =
                Known { fingerprint, vault: vault.clone(), seen: seen.clone(), checked: Instant::now() };
            context.vaults.silent().remove(&key);
            context.vaults.known().insert(key, known);
        }
        Err(_) => {
            context.vaults.known().remove(&key);
            context.vaults.silent().insert(key);
        }
    }
    opened
}

/// The vault of an appliance, for other controllers.
pub async fn of(namespace: &str, name: &str, context: &Context) -> Result<Vault, Failure> {
    let key = ApplianceKey { namespace: namespace.to_owned(), name: name.to_owned() };
    if let Some(known) =
        context.vaults.known().get(&key).filter(|known| known.checked.elapsed() < 2 * CHECK_INTERVAL)
    {
        return Ok(known.vault.clone());
    }
    let message = format!(
        "the vault of appliance {name} is not open: see the conditions of ReplicationAppliance {name}"
    );
    Err(Failure::waiting(Reason::ReferenceNotReady, message))
}

async fn open(
    appliance: &ReplicationAppliance,
    validated: &Validated,
    found: VaultSecrets<'_>,
    before: Option<Seen>,
    context: &Context,
) -> Result<(Vault, Seen), Failure> {
    let keys = Arc::new(data_keys(appliance, found.data_keys)?);
    let (azure, azure_cache) = connect(appliance, validated, found.credential, &context.settings)?;
    let (store, cache): Stores = (azure.clone(), azure_cache.clone());
    let ca_key_pem =
        found.ca.and_then(|secret| text(secret, CA_KEY)).map(|pem| Zeroizing::new(pem.to_owned()));
    let bundle = KeyBundle { data_keys: keys.clone(), ca_key_pem };
    let recipients = &appliance.spec.recovery_key_recipients;
    let description = if validated.ingest {
        vault::bootstrap(store.clone(), cache.clone(), bundle, recipients, &context.env)
            .await
            .map_err(|error| failure(&error))?
    } else {
        adopt(&store, &cache, &keys).await?
    };
    let vault = Vault { store, cache, keys, id: description.vault_id.clone() };
    let fresh = |seen: &Seen| seen.guard_checked.elapsed() < GUARD_INTERVAL;
    let seen = match before.filter(fresh) {
        Some(before) => Seen { description, ..before },
        None => {
            let spec = &appliance.spec.vault.azure;
            let mut unguarded = unguarded_store(&azure, &spec.endpoint, &spec.container).await;
            if unguarded.is_none() {
                unguarded =
                    unguarded_store(&azure_cache, spec.cache_endpoint(), &spec.cache_container()).await;
            }
            Seen { description, unguarded, guard_checked: Instant::now() }
        }
    };
    Ok((vault, seen))
}

/// For a cluster that takes nothing in: the vault is another one's, which alone writes its description. Bundle and
/// recipients are that one's; ours would lock the right ones out.
async fn adopt(
    store: &Arc<dyn BlobStore>,
    cache: &Arc<dyn BlobStore>,
    keys: &Arc<DataKeys>,
) -> Result<VaultDescription, Failure> {
    let missing = || {
        Failure::waiting(
            Reason::ReferenceNotReady,
            "there is no vault in this container yet: the appliance with the role Ingest makes it; check endpoint and container of spec.vault.azure",
        )
    };
    match vault::open(store.clone(), cache.clone(), keys.clone()).await {
        Err(VaultError::Missing) => return Err(missing()),
        opened => drop(opened.map_err(|error| failure(&error))?),
    }
    let found = vault::read_description(&**store).await.map_err(|error| failure(&error))?;
    found.map(|(description, _)| description).ok_or_else(missing)
}

/// What the account lacks, with the remedy. A credential that may not see the account's settings says nothing.
async fn unguarded_store(store: &AzureStore, endpoint: &str, container: &str) -> Option<String> {
    let guard = match store.deletion_guard().await {
        Ok(guard) => guard,
        Err(error) => {
            tracing::info!(container, error = %chain(&error), "whether deleted blobs can be brought back is not known");
            return None;
        }
    };
    let missing = guard.missing()?;
    let account = AzureOptions::account_of(endpoint).unwrap_or_default();
    Some(format!(
        "{missing}: whoever has the credentials can delete container {container} and nothing brings it back; run: az storage account blob-service-properties update --account-name {account} --enable-delete-retention true --delete-retention-days 14"
    ))
}

fn data_keys(appliance: &ReplicationAppliance, secret: Option<&Secret>) -> Result<DataKeys, Failure> {
    let name = secrets::data_keys_name(appliance);
    let json = secret.and_then(|secret| bytes(secret, DATA_KEYS)).ok_or_else(|| {
        let remedy = if appliance.spec.has_role(Role::Ingest) {
            "restore it, or leave out spec.encryptionKeySecretRef to have keys made"
        } else {
            "copy it from the cluster with the role Ingest"
        };
        let message =
            format!("Secret {name} with the data keys does not exist or lacks the key {DATA_KEYS}: {remedy}");
        Failure::stalled(Reason::SecretNotFound, message)
    })?;
    DataKeys::from_json(json)
        .map_err(|error| Failure::stalled(Reason::WrongKey, format!("Secret {name}: {}", chain(&error))))
}

/// Of the vault and of its cache storage.
type Stores = (Arc<dyn BlobStore>, Arc<dyn BlobStore>);

fn connect(
    appliance: &ReplicationAppliance,
    validated: &Validated,
    secret: Option<&Secret>,
    settings: &Settings,
) -> Result<(Arc<AzureStore>, Arc<AzureStore>), Failure> {
    let azure = &appliance.spec.vault.azure;
    let value = |reference: &SecretKeyRef| {
        let value = secret.and_then(|secret| text(secret, &reference.key)).ok_or_else(|| {
            let message = format!("Secret {} with the vault's credentials does not exist or lacks the key {}: create it as spec.vault.azure.authentication says", reference.name, reference.key);
            Failure::stalled(Reason::SecretNotFound, message)
        })?;
        Ok::<_, Failure>(Zeroizing::new(value.trim().to_owned()))
    };
    let open = |endpoint: &str, container: &str| -> Result<Arc<AzureStore>, Failure> {
        let credential = match &validated.credential {
            Credential::WorkloadIdentity(identity) => {
                trusted::check(endpoint, identity.authority_host.as_deref(), &settings.trusted_hosts)?;
                AzureCredential::WorkloadIdentity(WorkloadIdentity {
                    tenant_id: identity.tenant_id.clone(),
                    client_id: identity.client_id.clone(),
                    token_file: settings.azure_token_file.clone(),
                    authority_host: identity.authority_host.clone(),
                })
            }
            Credential::Sas(reference) => AzureCredential::Sas(value(reference)?),
            Credential::AccountKey(reference) => AzureCredential::AccountKey {
                account: AzureOptions::account_of(endpoint).unwrap_or_default(),
                key: value(reference)?,
            },
        };
        let options =
            AzureOptions { endpoint: endpoint.to_owned(), container: container.to_owned(), credential };
        let store = AzureStore::new(&options)
            .map_err(|error| Failure::stalled(Reason::InvalidSpec, chain(&error)))?;
        Ok(Arc::new(store))
    };
    Ok((open(&azure.endpoint, &azure.container)?, open(azure.cache_endpoint(), &azure.cache_container())?))
}

/// Sorts what the vault says into our categories.
pub fn failure(error: &VaultError) -> Failure {
    let message = chain(error);
    match error {
        VaultError::NoRecipient => Failure::stalled(Reason::NoRecoveryKey, message),
        VaultError::Recipient { .. } => Failure::stalled(Reason::InvalidRecipient, message),
        VaultError::WrongKey { .. } | VaultError::MissingKey { .. } | VaultError::Keys(_) => {
            Failure::stalled(Reason::WrongKey, message)
        }
        VaultError::Unreachable(_) => Failure::transient(Reason::VaultUnreachable, message),
        VaultError::Store(store) if store.is(Refusal::Denied) => {
            Failure::stalled(Reason::VaultAccessDenied, message)
        }
        VaultError::Store(_) | VaultError::Missing => Failure::transient(Reason::VaultUnreachable, message),
        VaultError::Format { .. }
        | VaultError::Damaged { .. }
        | VaultError::TooLarge { .. }
        | VaultError::NotAnIdentity
        | VaultError::BundleDamaged
        | VaultError::BundleIdentity { .. }
        | VaultError::BundleEncryption(_) => Failure::stalled(Reason::VaultDamaged, message),
    }
}
