//! Making, adopting and opening a vault, over the model store.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

use std::{sync::Arc, task::Poll};

use lifeboat_replication::{
    env::Env,
    ids::ServerId,
    keys::DataKeys,
    log::{LogOptions, LogReader, LogWriter, Order},
    store::{
        BlobStore, PutCondition, Result,
        gated::{Call, Gate, Gated},
        model::ModelStore,
    },
    vault::{self, KeyBundle, VaultDescription, VaultError, layout},
    wire::v1::{self, log_record::Body},
};
use zeroize::Zeroizing;

struct Rig {
    store: ModelStore,
    cache: ModelStore,
    env: Env,
    recovery: age::x25519::Identity,
}

impl Rig {
    fn new() -> Self {
        let recovery = age::x25519::Identity::generate();
        Self {
            store: ModelStore::without_container(),
            cache: ModelStore::without_container(),
            env: Env::system(),
            recovery,
        }
    }

    fn keys(&self) -> Arc<DataKeys> {
        Arc::new(DataKeys::generate(&*self.env.entropy))
    }

    fn recovery_key(&self) -> Zeroizing<String> {
        use age::secrecy::ExposeSecret as _;
        Zeroizing::new(self.recovery.to_string().expose_secret().to_owned())
    }

    async fn bootstrap(
        &self,
        bundle: impl Into<KeyBundle>,
    ) -> std::result::Result<VaultDescription, VaultError> {
        self.bootstrap_for(bundle, &[self.recovery.to_public().to_string()]).await
    }

    async fn bootstrap_for(
        &self,
        bundle: impl Into<KeyBundle>,
        recipients: &[String],
    ) -> std::result::Result<VaultDescription, VaultError> {
        vault::bootstrap(around(&self.store), around(&self.cache), bundle, recipients, &self.env).await
    }

    async fn open(&self, keys: &Arc<DataKeys>) -> std::result::Result<vault::Vault, VaultError> {
        vault::open(around(&self.store), around(&self.cache), keys.clone()).await
    }
}

/// Lets others go first at every call, so that two callers really meet.
fn around(store: &ModelStore) -> Arc<Gated<Around>> {
    Gated::new(Arc::new(store.clone()), Around { down: false })
}

#[tokio::test]
async fn a_second_bootstrap_adopts_what_the_first_made() {
    let rig = Rig::new();
    let keys = rig.keys();
    let made = rig.bootstrap(keys.clone()).await.unwrap();
    let adopted = rig.bootstrap(keys.clone()).await.unwrap();
    assert_eq!(made, adopted);
    let vault = rig.open(&keys).await.unwrap();
    assert_eq!(vault.id, made.vault_id);
}

#[tokio::test]
async fn two_operators_at_once_end_with_one_vault() {
    let rig = Rig::new();
    let keys = rig.keys();
    let (one, other) = tokio::join!(rig.bootstrap(keys.clone()), rig.bootstrap(keys));
    assert_eq!(one.unwrap(), other.unwrap());
}

#[tokio::test]
async fn without_a_recovery_key_nothing_is_made_and_the_command_is_named() {
    let rig = Rig::new();
    let error = rig.bootstrap_for(rig.keys(), &[]).await.unwrap_err();
    assert!(matches!(error, VaultError::NoRecipient));
    assert!(error.to_string().contains("kubectl lifeboat recovery-key new"), "{error}");
    let refused = rig.store.list("", false, None).await.unwrap_err();
    assert!(refused.to_string().contains("container does not exist"), "{refused}");
}

#[tokio::test]
async fn a_private_key_given_as_recipient_is_refused_and_not_repeated() {
    let rig = Rig::new();
    let private = rig.recovery_key();
    let error = rig.bootstrap_for(rig.keys(), &[private.to_string()]).await.unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("must start with age1") && !shown.contains(private.as_str()), "{shown}");
}

#[tokio::test]
async fn a_wrong_key_is_named_before_anything_is_read_with_it() {
    let rig = Rig::new();
    let keys = rig.keys();
    rig.bootstrap(keys.clone()).await.unwrap();
    let id = keys.current().0.clone();
    // The same id with other bytes: somebody restored the wrong Secret.
    let other = String::from_utf8(rig.keys().to_json().to_vec()).unwrap();
    let other_id = DataKeys::from_json(other.as_bytes()).unwrap().current().0.0.clone();
    let wrong = Arc::new(DataKeys::from_json(other.replace(&other_id, &id.0).as_bytes()).unwrap());
    for error in [rig.open(&wrong).await.unwrap_err(), rig.bootstrap(wrong.clone()).await.unwrap_err()] {
        assert!(matches!(&error, VaultError::WrongKey { key_id } if *key_id == id), "{error}");
        assert!(error.to_string().contains("restore the Secret"), "{error}");
    }
    // Another id altogether: a cluster that was installed anew and made keys of its own.
    let error = rig.bootstrap(rig.keys()).await.unwrap_err();
    assert!(matches!(&error, VaultError::MissingKey { key_id } if *key_id == id), "{error}");
    assert!(error.to_string().contains("age -d"), "{error}");
}

#[tokio::test]
async fn the_bundle_opens_with_the_recovery_key_alone_and_holds_every_secret() {
    let rig = Rig::new();
    let bundle = KeyBundle { data_keys: rig.keys(), ca_key_pem: Some(Zeroizing::new("CA KEY".to_owned())) };
    rig.bootstrap(bundle.clone()).await.unwrap();
    let (found, _) = vault::read_description(&rig.store).await.unwrap().unwrap();
    let opened = KeyBundle::unseal(&found, &rig.recovery_key()).unwrap();
    assert_eq!(opened.data_keys.check_values(), bundle.data_keys.check_values());
    assert_eq!(opened.ca_key_pem.as_deref().map(String::as_str), Some("CA KEY"));

    let stranger = Rig::new();
    let error = KeyBundle::unseal(&found, &stranger.recovery_key()).unwrap_err();
    assert!(error.to_string().contains(&rig.recovery.to_public().to_string()), "{error}");
}

#[tokio::test]
async fn nothing_in_the_vault_or_in_debug_shows_a_secret() {
    let rig = Rig::new();
    let keys = rig.keys();
    let bundle = KeyBundle { data_keys: keys.clone(), ca_key_pem: Some(Zeroizing::new("CA KEY".to_owned())) };
    let made = rig.bootstrap(bundle.clone()).await.unwrap();
    let stored = rig.store.get(layout::VAULT_JSON, None, None).await.unwrap();
    let vault = rig.open(&keys).await.unwrap();
    let shown = format!("{} {made:?} {bundle:?} {vault:?} {keys:?}", String::from_utf8_lossy(&stored));
    let json: serde_json::Value = serde_json::from_slice(&keys.to_json()).unwrap();
    let secret = json["keys"][&keys.current().0.0].as_str().unwrap();
    assert!(secret.len() > 40);
    assert!(!shown.contains(secret) && !shown.contains("CA KEY"), "{shown}");
}

#[tokio::test]
async fn a_new_recipient_or_a_rotated_key_wraps_the_bundle_anew() {
    let rig = Rig::new();
    let keys = rig.keys();
    let made = rig.bootstrap(keys.clone()).await.unwrap();
    let second = age::x25519::Identity::generate();
    let recipients = [rig.recovery.to_public().to_string(), second.to_public().to_string()];
    let widened = rig.bootstrap_for(keys.clone(), &recipients).await.unwrap();
    assert_eq!((&widened.vault_id, widened.recipients.len()), (&made.vault_id, 2));

    let rotated = Arc::new(keys.rotated(&*rig.env.entropy));
    let renewed = rig.bootstrap_for(rotated.clone(), &recipients).await.unwrap();
    assert_eq!(renewed.key_checks.len(), 2);
    let opened = KeyBundle::unseal(&renewed, &rig.recovery_key()).unwrap();
    assert_eq!(opened.data_keys.current().0, rotated.current().0);
    // Who has only the old key is told which one is missing.
    let error = rig.open(&keys).await.unwrap_err();
    assert!(matches!(&error, VaultError::MissingKey { key_id } if key_id == rotated.current().0), "{error}");
}

#[tokio::test]
async fn opening_what_was_never_made_says_who_makes_it() {
    let rig = Rig::new();
    let keys = rig.keys();
    let missing_container = rig.open(&keys).await.unwrap_err();
    rig.store.ensure_container().await.unwrap();
    for error in [missing_container, rig.open(&keys).await.unwrap_err()] {
        assert!(matches!(error, VaultError::Missing), "{error}");
        assert!(error.to_string().contains("the operator creates it"), "{error}");
    }
}

#[tokio::test]
async fn damage_and_later_formats_are_told_apart() {
    let rig = Rig::new();
    let keys = rig.keys();
    rig.store.ensure_container().await.unwrap();
    for (content, expected) in [("{", "soft-delete"), ("FORMAT 2", "use the release that wrote it")] {
        rig.store.delete(layout::VAULT_JSON, None).await.ok();
        let content = if content == "{" {
            content.to_owned()
        } else {
            let other = Rig::new();
            let mut made = other.bootstrap(keys.clone()).await.unwrap();
            made.format = 2;
            serde_json::to_string(&made).unwrap()
        };
        rig.store.put(layout::VAULT_JSON, content.into(), &PutCondition::IfAbsent).await.unwrap();
        let error = rig.open(&keys).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_reinstalled_operator_adopts_the_same_server_ids() {
    let rig = Rig::new();
    let keys = rig.keys();
    rig.bootstrap(keys.clone()).await.unwrap();
    let vault = rig.open(&keys).await.unwrap();
    let made = vault.adopt_server("shop", "db-1", &rig.env).await.unwrap();
    let other = vault.adopt_server("shop", "db-2", &rig.env).await.unwrap();
    assert_ne!(made.id, other.id);

    let reinstalled = rig.open(&keys).await.unwrap();
    assert_eq!(reinstalled.adopt_server("shop", "db-1", &rig.env).await.unwrap(), made);
    assert_eq!(reinstalled.find_server("shop", "db-1").await.unwrap(), Some(made.clone()));
    assert_eq!(reinstalled.find_server("shop", "db-3").await.unwrap(), None);
    assert_eq!(reinstalled.servers().await.unwrap(), [made.clone(), other]);

    reinstalled.release_name("shop", "db-1").await.unwrap();
    reinstalled.release_name("shop", "db-1").await.unwrap();
    assert_ne!(reinstalled.adopt_server("shop", "db-1", &rig.env).await.unwrap().id, made.id);
}

#[tokio::test]
async fn two_operators_at_once_give_a_server_one_id() {
    let rig = Rig::new();
    let keys = rig.keys();
    rig.bootstrap(keys.clone()).await.unwrap();
    let vault = rig.open(&keys).await.unwrap();
    let adopt = || vault.adopt_server("shop", "db-1", &rig.env);
    let (one, other) = tokio::join!(adopt(), adopt());
    assert_eq!(one.unwrap(), other.unwrap());
}

#[tokio::test]
async fn server_json_is_written_only_over_what_was_read() {
    let rig = Rig::new();
    let keys = rig.keys();
    rig.bootstrap(keys.clone()).await.unwrap();
    let vault = rig.open(&keys).await.unwrap();
    let made = vault.adopt_server("shop", "db-1", &rig.env).await.unwrap();
    let (read, etag) = vault.read_server(&made.id).await.unwrap().unwrap();
    assert_eq!(read, made);
    vault.write_server(&read, Some(&etag)).await.unwrap();
    let error = vault.write_server(&read, Some(&etag)).await.unwrap_err();
    assert!(error.to_string().contains("ETag"), "{error}");
}

#[tokio::test]
async fn an_unreachable_vault_says_what_to_check_and_that_it_is_tried_again() {
    let rig = Rig::new();
    let around = || Gated::new(Arc::new(ModelStore::new()), Around { down: true });
    let (store, cache) = (around(), around());
    let recipients = [rig.recovery.to_public().to_string()];
    let bootstrap = vault::bootstrap(store.clone(), cache.clone(), rig.keys(), &recipients, &rig.env).await;
    let open = vault::open(store, cache, rig.keys()).await;
    for error in [bootstrap.unwrap_err(), open.unwrap_err()] {
        let shown = error.to_string();
        assert!(error.is_transient(), "{shown}");
        assert!(
            shown.contains("spec.vault.azure.endpoint") && shown.contains("Connection refused"),
            "{shown}"
        );
    }
}

/// The store is put back to an older moment after each call in turn of a takeover: whatever is acknowledged after that is
/// found by readers.
#[tokio::test(start_paused = true)]
async fn a_takeover_that_a_restored_store_overtakes_hides_no_record() {
    let (env, server) = (Env::system(), ServerId::from_random([7; 16]));
    let data = |number| Body::Data(v1::Data { first_number: number, number, ..Default::default() });
    let mut overtaken = 0;
    for calls in 0..40 {
        let store = ModelStore::new();
        let around: Arc<dyn BlobStore> = around(&store);
        let keys = Arc::new(DataKeys::generate(&*env.entropy));
        let vault = vault::Vault { store: around.clone(), cache: around, keys, id: "vault".to_owned() };
        let take = || LogWriter::take_over(&vault, &server, "ps", &env, Order::Forced, LogOptions::default());
        take().await.unwrap().append(data(1)).await.unwrap();
        let backup = store.fork();
        let mut taking = Box::pin(take());
        let mut taken = None;
        for _ in 0..calls {
            if let Poll::Ready(done) = futures::poll!(&mut taking) {
                taken = Some(done);
                break;
            }
        }
        store.restore(&backup);
        overtaken += u32::from(taken.is_none());
        let mut writer = match taken {
            Some(done) => done,
            None => taking.await,
        };
        for attempt in 0.. {
            let written = match &mut writer {
                Ok(writer) => writer.append(data(2)).await.is_ok(),
                Err(_) => false,
            };
            if written {
                break;
            }
            assert!(attempt < 3, "after {calls} calls the log cannot be taken over any more");
            writer = take().await;
        }
        let mut reader = LogReader::from_start(&vault, &server, &env);
        let mut numbers = Vec::new();
        while let Some(entry) = reader.next().await.unwrap() {
            numbers.extend(match entry.body {
                Body::Data(record) => Some(record.number),
                _ => None,
            });
        }
        assert_eq!(numbers, [1, 2], "the store was put back after {calls} calls");
    }
    assert!(overtaken > 10, "{overtaken}");
}

/// A store behind a network: every call lets others go first, or fails.
#[derive(Debug)]
struct Around {
    down: bool,
}

impl Gate for Around {
    async fn pass<T: Send>(
        &self,
        call: Call<'_>,
        request: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        if self.down {
            return Err(call.unknown("Connection refused"));
        }
        tokio::task::yield_now().await;
        request.await
    }
}
