//! The blob store by workload identity: against a token endpoint of our own and Azurite by https, which looks at issuer,
//! audience and times of a token (but at no signature).
//!
//! Both have certificates of an authority that only these processes trust, so each test runs once more as a program of
//! its own that is told so (`SSL_CERT_FILE`).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::{process::Command, time::Duration};

use bytes::Bytes;
use lifeboat_replication::{
    store::{
        BlobStore as _, PutCondition, Refusal, StoreError,
        azure::{AzureOptions, AzureStore, Credential, WorkloadIdentity},
        conformance,
    },
    vault::VaultConfig,
};
use lifeboat_tests::{
    blob_store::BlobStore,
    entra::{CLIENT, Entra, TENANT},
};
use serde_json::json;

const SUBJECT: &str = "system:serviceaccount:dr:default";
/// What a program that trusts the authority is told of its parent's token endpoint.
const TRUSTED: &str = "LIFEBOAT_TEST_TRUSTED";

/// The token endpoint's certificates must be there before the process starts: the parent makes a place for them.
fn trusting(test: &str) -> Option<Entra> {
    if std::env::var_os(TRUSTED).is_some() {
        let entra = Entra::start().unwrap();
        // The file that the process was told of; rustls reads it when the first client is made.
        std::fs::copy(entra.ca_file(), std::env::var_os("SSL_CERT_FILE").unwrap()).unwrap();
        return Some(entra);
    }
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(TRUSTED, "yes")
        .env("SSL_CERT_FILE", dir.path().join("ca.crt"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{said}");
    None
}

fn store(entra: &Entra, endpoint: &str, subject: &str) -> AzureStore {
    let identity = WorkloadIdentity {
        tenant_id: TENANT.to_owned(),
        client_id: CLIENT.to_owned(),
        token_file: entra.service_account(subject).unwrap(),
        authority_host: Some(entra.url.clone()),
    };
    let credential = Credential::WorkloadIdentity(identity);
    AzureStore::new(&AzureOptions {
        endpoint: endpoint.to_owned(),
        container: "vault".to_owned(),
        credential,
    })
    .unwrap()
}

async fn put(store: &AzureStore) -> Result<(), StoreError> {
    store.put("x", Bytes::from_static(b"x"), &PutCondition::Always).await.map(|_| ())
}

/// Minutes go by for the client, and for nobody else.
async fn later(duration: Duration) {
    tokio::time::pause();
    tokio::time::advance(duration).await;
    tokio::time::resume();
}

#[tokio::test]
async fn azurite_keeps_every_promise_with_access_tokens_that_are_renewed() {
    let Some(entra) = trusting("azurite_keeps_every_promise_with_access_tokens_that_are_renewed") else {
        return;
    };
    entra.behaviour().trusted_subject = SUBJECT.to_owned();
    let azurite = BlobStore::start_with("oauth", &entra.azurite_options()).unwrap();
    let one = store(&entra, &azurite.endpoint, SUBJECT);
    one.ensure_container().await.unwrap();
    let failed = conformance::run(&one, "conformance").await;
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(entra.behaviour().given, 1, "one token is enough for an hour");

    // By the file that programs read, with a token that is over as soon as it is there.
    entra.behaviour().expires_in = 0;
    let file = tempfile::NamedTempFile::new().unwrap();
    let identity = json!({
        "clientId": CLIENT, "tenantId": TENANT, "authorityHost": entra.url,
        "tokenFile": entra.service_account(SUBJECT).unwrap(),
    });
    let config = json!({
        "endpoint": azurite.endpoint, "container": "vault", "cacheContainer": "vault",
        "authentication": {"workloadIdentity": identity},
    });
    std::fs::write(file.path(), config.to_string()).unwrap();
    let (vault, _) = VaultConfig::read(file.path()).unwrap().connect().unwrap();
    for name in ["a", "b", "c"] {
        vault.put(name, Bytes::from_static(b"x"), &PutCondition::Always).await.unwrap();
    }
    assert!(entra.behaviour().given >= 4, "{:?}", entra.behaviour());
}

#[tokio::test]
async fn a_service_account_that_is_not_trusted_is_named_with_the_command_that_mends_it() {
    let Some(entra) =
        trusting("a_service_account_that_is_not_trusted_is_named_with_the_command_that_mends_it")
    else {
        return;
    };
    entra.behaviour().trusted_subject = SUBJECT.to_owned();
    let stranger = store(&entra, &format!("{}/acme", entra.url), "system:serviceaccount:other:default");
    let error = put(&stranger).await.unwrap_err();
    assert!(error.is(Refusal::Denied), "{error}");
    let said = error.to_string();
    for part in
        ["AADSTS700213", "az identity federated-credential create --issuer https://oidc.contoso.com", "other"]
    {
        assert!(said.contains(part), "{said}");
    }
    assert!(!said.contains("eyJ"), "a token is shown: {said}");

    let mut gone = store(&entra, &format!("{}/acme", entra.url), SUBJECT);
    std::fs::remove_file(entra.service_account(SUBJECT).unwrap()).unwrap();
    let error = put(&gone).await.unwrap_err();
    assert!(error.is(Refusal::Denied) && error.to_string().contains("projected token"), "{error}");
    // It comes back, and nothing is made anew.
    gone = {
        entra.service_account(SUBJECT).unwrap();
        gone
    };
    later(Duration::from_secs(6)).await;
    put(&gone).await.unwrap();
}

#[tokio::test]
async fn a_token_endpoint_that_is_away_is_no_refusal_and_is_left_alone_for_moments() {
    let Some(entra) = trusting("a_token_endpoint_that_is_away_is_no_refusal_and_is_left_alone_for_moments")
    else {
        return;
    };
    entra.behaviour().broken = true;
    let store = store(&entra, &format!("{}/acme", entra.url), SUBJECT);
    let error = put(&store).await.unwrap_err();
    assert!(matches!(error, StoreError::Unknown { .. }) && error.to_string().contains("HTTP 503"), "{error}");
    entra.behaviour().broken = false;
    put(&store).await.unwrap_err();
    assert_eq!(entra.behaviour().given, 0, "it was asked again at once");
    later(Duration::from_secs(6)).await;
    put(&store).await.unwrap();
}

#[tokio::test]
async fn a_request_whose_token_is_refused_goes_once_more_with_a_new_one() {
    let Some(entra) = trusting("a_request_whose_token_is_refused_goes_once_more_with_a_new_one") else {
        return;
    };
    let store = store(&entra, &format!("{}/acme", entra.url), SUBJECT);
    put(&store).await.unwrap();
    let revoke = || {
        let mut behaviour = entra.behaviour();
        behaviour.revoked = behaviour.given;
    };
    later(Duration::from_secs(31)).await;
    revoke();
    put(&store).await.unwrap();
    assert_eq!(entra.behaviour().given, 2);
    // A store that takes none at all: no more of them are asked for.
    revoke();
    for _ in 0..3 {
        let error = put(&store).await.unwrap_err();
        assert!(error.is(Refusal::Denied) && error.to_string().contains("check the clock"), "{error}");
    }
    assert_eq!(entra.behaviour().given, 2);
}
