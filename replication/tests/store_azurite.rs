//! The Azure implementation against a real Azurite, which the tests start themselves: conformance, comparison with the
//! model, and what happens with wrong credentials, without a container and without a store.
//!
//! Azurite comes from `dev/storage/test-azurite` (npm, cached). Without it these tests fail and say what to run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use lifeboat_replication::{
    env::Env,
    keys::DataKeys,
    store::{
        BlobStore, PutCondition, Refusal, StoreError,
        azure::{AzureOptions, AzureStore, Credential},
        conformance::{self, random},
        model::ModelStore,
    },
    vault::{self, VaultConfig, VaultError},
};
use ring::hmac;
use zeroize::Zeroizing;

const ACCOUNT: &str = "lifeboattest";
const SEEDS: u64 = 6;
const STEPS: usize = 400;

/// An Azurite of its own with its data in a temporary directory; gone with it.
struct Azurite {
    process: Child,
    endpoint: String,
    key: String,
    _data: tempfile::TempDir,
}

impl Drop for Azurite {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Azurite {
    fn start() -> Self {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../dev/storage/test-azurite");
        let found = Command::new(&script).output();
        let found = found
            .unwrap_or_else(|error| panic!("{} does not run ({error}): run dev/setup", script.display()));
        assert!(
            found.status.success(),
            "Azurite is not there and could not be fetched: run dev/setup (it installs what is needed), then again. {}",
            String::from_utf8_lossy(&found.stderr)
        );
        let program = String::from_utf8(found.stdout).unwrap();
        let data = tempfile::tempdir().unwrap();
        let mut key = [0; 64];
        Env::system().entropy.fill(&mut key);
        let key = STANDARD.encode(key);
        let mut process = Command::new(program.trim())
            .args(["--blobHost", "127.0.0.1", "--blobPort", "0", "--silent", "--location"])
            .arg(data.path())
            .env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{key}"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("Azurite ended without listening").unwrap();
            if let Some((_, address)) = line.split_once("successfully listens on ") {
                break address.trim().to_owned();
            }
        };
        Self { process, endpoint: format!("{address}/{ACCOUNT}"), key, _data: data }
    }

    fn store(&self, container: &str, credential: Credential) -> AzureStore {
        let options =
            AzureOptions { endpoint: self.endpoint.clone(), container: container.to_owned(), credential };
        AzureStore::new(&options).unwrap()
    }

    fn account_key(&self) -> Credential {
        Credential::AccountKey { account: ACCOUNT.to_owned(), key: Zeroizing::new(self.key.clone()) }
    }

    /// Turns soft delete on. (Azurite keeps the setting and does nothing with it.)
    fn keep_deleted(&self, days: u32) {
        let settings = format!(
            "<StorageServiceProperties><DeleteRetentionPolicy><Enabled>true</Enabled><Days>{days}</Days></DeleteRetentionPolicy></StorageServiceProperties>"
        );
        let url = format!("{}/?restype=service&comp=properties&{}", self.endpoint, *self.sas(ALL));
        let set = Command::new("curl")
            .args(["--silent", "--show-error", "--fail", "-X", "PUT", "-H", "x-ms-version: 2022-11-02"])
            .args(["-H", "content-type: application/xml", "--data-binary", &settings, &url])
            .status()
            .unwrap();
        assert!(set.success());
    }

    /// An account SAS for blobs with these permissions, made by hand.
    fn sas(&self, permissions: &str) -> Zeroizing<String> {
        let (version, start, expiry) = ("2022-11-02", "2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z");
        let signed =
            format!("{ACCOUNT}\n{permissions}\nb\nsco\n{start}\n{expiry}\n\nhttps,http\n{version}\n\n");
        let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(&self.key).unwrap());
        let signature = STANDARD.encode(hmac::sign(&key, signed.as_bytes()));
        let query = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs([("sv", version), ("ss", "b"), ("srt", "sco"), ("sp", permissions)])
            .extend_pairs([("st", start), ("se", expiry), ("spr", "https,http"), ("sig", &signature)])
            .finish();
        Zeroizing::new(query)
    }
}

const ALL: &str = "rwdlacuptfx";

/// Where Azurite cannot do with an account SAS what Azure can: it answers 500 to every seal and to every resize.
const NOT_WITH_SAS: [&str; 2] = ["append::sealing", "page::a_page_blob_grows"];

#[tokio::test]
async fn azurite_keeps_every_promise_with_account_key_and_with_sas() {
    let azurite = Azurite::start();
    let key = azurite.store("by-key", azurite.account_key());
    let sas = azurite.store("by-sas", Credential::Sas(azurite.sas(ALL)));
    for store in [&key, &sas] {
        store.ensure_container().await.unwrap();
        store.ensure_container().await.unwrap();
    }
    let by_key = conformance::run(&key, "conformance").await;
    assert!(by_key.is_empty(), "with the account key: {by_key:#?}");
    let guard = key.deletion_guard().await.unwrap();
    assert!(guard.missing().unwrap().contains("is off"), "{guard:?}");
    azurite.keep_deleted(14);
    let guard = sas.deletion_guard().await.unwrap();
    assert_eq!((guard.soft_delete_days, guard.missing()), (Some(14), None));
    let possible = |case: &str| !NOT_WITH_SAS.iter().any(|name| case.starts_with(name));
    let by_sas = conformance::run_some(&sas, "conformance", possible).await;
    assert!(by_sas.is_empty(), "with a SAS: {by_sas:#?}");
    let paged = key.list_in_pages_of(2);
    let by_page = conformance::run_some(&paged, "paged", |case| {
        case == "list::every_name_is_listed_once_over_all_pages"
    });
    let by_page = by_page.await;
    assert!(by_page.is_empty(), "in pages: {by_page:#?}");
}

/// What everybody but an applier gets.
const WITHOUT_DELETE: &str = "rwlac";
/// Cases that delete.
const DELETES: [&str; 5] = [
    "block::what_is_missing_is_not_found",
    "block::a_deleted_name_is_free_again",
    "block::what_has_changed_is_not_deleted",
    "block::a_leased_blob_is_neither_replaced_nor_deleted",
    "page::snapshots_are_deleted_one_by_one_or_with_their_blob",
];

#[tokio::test]
async fn a_credential_that_may_not_delete_does_everything_else() {
    let azurite = Azurite::start();
    let store = azurite.store("ingest", Credential::Sas(azurite.sas(WITHOUT_DELETE)));
    store.ensure_container().await.unwrap();
    let possible = |case: &str| !NOT_WITH_SAS.iter().chain(&DELETES).any(|name| case.starts_with(name));
    let failed = conformance::run_some(&store, "conformance", possible).await;
    assert!(failed.is_empty(), "{failed:#?}");
    store.put("x", Bytes::from_static(b"x"), &PutCondition::IfAbsent).await.unwrap();
    let denied = store.delete("x", None).await.unwrap_err();
    assert!(denied.is(Refusal::Denied), "{denied}");
}

#[tokio::test]
async fn the_model_answers_as_azurite_does() {
    let azurite = Azurite::start();
    let store = azurite.store("random", azurite.account_key());
    store.ensure_container().await.unwrap();
    let mut reached = random::Reached::new();
    for seed in 0..SEEDS {
        let model = ModelStore::new();
        let answers = random::compare(&model, &store, &format!("random/{seed}"), seed, STEPS).await.unwrap();
        for (answer, times) in answers {
            *reached.entry(answer).or_default() += times;
        }
    }
    for expected in
        ["Append done", "Append refused: Position", "WritePages refused: Condition", "Put refused: Condition"]
    {
        assert!(reached.contains_key(expected), "{expected} was never reached: {reached:#?}");
    }
}

#[tokio::test]
async fn every_wrong_way_in_has_its_own_answer() {
    let azurite = Azurite::start();
    let store = azurite.store("vault", azurite.account_key());
    let put = |store: &AzureStore| {
        let store = format!("{store:?}");
        assert!(store.contains("/vault") && !store.contains("sig"), "{store}");
    };
    put(&store);

    let missing = store.put("x", Bytes::new(), &PutCondition::IfAbsent).await.unwrap_err();
    assert!(missing.is(Refusal::NoContainer), "{missing}");
    assert!(store.properties("x", None).await.unwrap_err().is(Refusal::NoContainer));
    assert!(store.list("", false, None).await.unwrap_err().is(Refusal::NoContainer));
    store.ensure_container().await.unwrap();
    store.put("x", Bytes::from_static(b"x"), &PutCondition::IfAbsent).await.unwrap();

    let wrong =
        Credential::AccountKey { account: ACCOUNT.to_owned(), key: Zeroizing::new(STANDARD.encode([1; 64])) };
    let read_only = Credential::Sas(azurite.sas("rl"));
    let forged = Credential::Sas(Zeroizing::new(azurite.sas("rl").replace("sp=rl", "sp=rwl")));
    for credential in [wrong, read_only, forged] {
        let store = azurite.store("vault", credential);
        let denied = store.put("x", Bytes::new(), &PutCondition::Always).await.unwrap_err();
        assert!(denied.is(Refusal::Denied), "{denied}");
        assert!(denied.to_string().contains("spec.vault.azure.authentication"), "{denied}");
        assert!(!denied.to_string().contains("sig="), "{denied}");
    }
    // Allowed to work in the container, not to make one.
    azurite.store("vault", Credential::Sas(azurite.sas("rl"))).ensure_container().await.unwrap();
}

#[tokio::test]
async fn without_a_store_the_outcome_is_unknown_and_no_secret_is_shown() {
    let sas = "sv=2022-11-02&sig=TOPSECRET%3D";
    let options = AzureOptions {
        endpoint: "http://127.0.0.1:1/acme".to_owned(),
        container: "vault".to_owned(),
        credential: Credential::Sas(Zeroizing::new(sas.to_owned())),
    };
    let store = AzureStore::new(&options).unwrap();
    for error in [
        store.put("x", Bytes::from_static(b"x"), &PutCondition::Always).await.unwrap_err(),
        store.properties("x", None).await.unwrap_err(),
        store.list("", false, None).await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Unknown { .. }), "{error}");
        let shown = format!("{error} {error:?} {store:?}");
        assert!(shown.contains("http://127.0.0.1:1/acme/vault") && shown.contains("refused"), "{shown}");
        assert!(!shown.contains("TOPSECRET"), "{shown}");
    }
}

/// A store that takes the connection and never answers.
#[tokio::test(start_paused = true)]
async fn a_silent_store_is_given_up_after_the_call_time_out() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let options = AzureOptions {
        endpoint: format!("http://{}/acme", listener.local_addr().unwrap()),
        container: "vault".to_owned(),
        credential: Credential::Sas(Zeroizing::new("sig=x".to_owned())),
    };
    let store = AzureStore::new(&options).unwrap();
    let before = tokio::time::Instant::now();
    let error = store.break_lease("log").await.unwrap_err();
    assert!(matches!(error, StoreError::Unknown { .. }), "{error}");
    assert!(before.elapsed() <= lifeboat_replication::store::CALL_TIMEOUT + Duration::from_secs(1));
}

#[tokio::test]
async fn a_vault_is_made_and_opened_by_the_configuration_that_programs_read() {
    let azurite = Azurite::start();
    let files = tempfile::tempdir().unwrap();
    let env = Env::system();
    let keys = Arc::new(DataKeys::generate(&*env.entropy));
    let path = |name: &str| files.path().join(name);
    std::fs::write(path("key"), format!("{}\n", azurite.key)).unwrap();
    std::fs::write(path("sas"), azurite.sas(ALL).as_bytes()).unwrap();
    std::fs::write(path("keys.json"), keys.to_json()).unwrap();
    let config = |authentication: serde_json::Value| {
        let json = serde_json::json!({
            "endpoint": azurite.endpoint, "container": "vault", "cacheContainer": "cache",
            "authentication": authentication, "keysFile": path("keys.json"),
        });
        std::fs::write(path("config.json"), json.to_string()).unwrap();
        VaultConfig::read(&path("config.json")).unwrap()
    };
    let by_key = config(serde_json::json!({"accountKeyFile": path("key")}));
    let by_sas = config(serde_json::json!({"sasFile": path("sas")}));

    let recipient = age::x25519::Identity::generate().to_public().to_string();
    let (store, cache) = by_key.connect().unwrap();
    let made = vault::bootstrap(store, cache, keys.clone(), &[recipient], &env).await.unwrap();
    for config in [&by_key, &by_sas] {
        assert_eq!(config.open().await.unwrap().id, made.vault_id);
    }
    let vault = by_sas.open().await.unwrap();
    let server = vault.adopt_server("shop", "db-1", &env).await.unwrap();
    assert_eq!(by_key.open().await.unwrap().adopt_server("shop", "db-1", &env).await.unwrap(), server);

    let (store, cache) = by_key.connect().unwrap();
    let wrong = Arc::new(DataKeys::generate(&*env.entropy));
    let error = vault::open(store, cache, wrong).await.unwrap_err();
    assert!(matches!(error, VaultError::MissingKey { .. }), "{error}");
}
