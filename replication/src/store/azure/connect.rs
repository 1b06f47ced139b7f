//! Makes the clients: TLS by rustls with ring and the machine's certificate authorities, no retries, no redirects.

use std::{fmt, sync::Arc, time::Duration};

use azure_core::http::{ClientOptions, Pipeline, RetryOptions, Transport, Url, policies::Policy};
use azure_storage_blob::{
    BlobContainerClient, BlobContainerClientOptions, BlobServiceClient, BlobServiceClientOptions,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::hmac;
use rustls_platform_verifier::BuilderVerifierExt as _;
use zeroize::Zeroizing;

use super::{
    AzureStore,
    by_hand::ByHand,
    identity::{self, WorkloadIdentity},
    shared_key::SharedKey,
};
use crate::{env::Env, store::CALL_TIMEOUT};

/// Until TCP and TLS are up; a part of the call's own time-out.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Load balancers forget silent connections after some minutes: we close them before.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// A peer that acknowledges nothing for so long is gone.
const DEAD_PEER: Duration = Duration::from_secs(20);

/// Where a container is, and how to get in.
#[derive(Debug, Clone)]
pub struct AzureOptions {
    /// Of the account: `https://<account>.blob.core.windows.net`, or `http://<address>:<port>/<account>` of an emulator.
    pub endpoint: String,
    pub container: String,
    pub credential: Credential,
}

/// Printing it shows no secret.
#[derive(Clone)]
pub enum Credential {
    /// `key` as the portal shows it, in base64.
    AccountKey {
        account: String,
        key: Zeroizing<String>,
    },
    /// A shared access signature, with or without the question mark.
    Sas(Zeroizing<String>),
    WorkloadIdentity(WorkloadIdentity),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AccountKey { account, .. } => write!(f, "AccountKey({account}, secret)"),
            Self::Sas(_) => f.write_str("Sas(secret)"),
            Self::WorkloadIdentity(identity) => write!(f, "{identity:?}"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(
        "{endpoint:?} is not the endpoint of a storage account: spec.vault.azure.endpoint must be like https://ACCOUNT.blob.core.windows.net"
    )]
    Endpoint { endpoint: String },
    #[error(
        "the account key is not valid base64: put the key as the portal or `az storage account keys list` shows it into the Secret that spec.vault.azure.authentication names"
    )]
    AccountKey,
    #[error(
        "the shared access signature has no `sig`: put the whole query string (sv=…&sig=…) into the Secret that spec.vault.azure.authentication names"
    )]
    Sas,
    #[error(
        "{endpoint:?} is not reached by https, and an access token would travel readable: give an https endpoint, or authenticate by another way than workloadIdentity"
    )]
    TokenWithoutTls { endpoint: String },
    #[error("TLS cannot be set up: install the package ca-certificates")]
    Tls(#[source] rustls::Error),
    #[error("the HTTP client cannot be made")]
    Http(#[source] reqwest::Error),
    #[error("the storage client cannot be made")]
    Client(#[source] azure_core::Error),
}

impl AzureOptions {
    /// The account that an endpoint names: first label of the host, or first part of the path of an emulator's.
    pub fn account_of(endpoint: &str) -> Option<String> {
        let url = Url::parse(endpoint).ok()?;
        match url.domain() {
            Some(domain) if domain.contains('.') => domain.split('.').next().map(str::to_owned),
            _ => url.path_segments()?.next().filter(|account| !account.is_empty()).map(str::to_owned),
        }
    }

    /// The account's.
    fn service_url(&self) -> Result<Url, ConnectError> {
        let refused = || ConnectError::Endpoint { endpoint: without_query(&self.endpoint) };
        let mut url = Url::parse(&self.endpoint).map_err(|_| refused())?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() || url.query().is_some() {
            return Err(refused());
        }
        url.path_segments_mut().map_err(|()| refused())?.pop_if_empty();
        Ok(url)
    }
}

impl AzureStore {
    /// Sends nothing yet.
    pub fn new(options: &AzureOptions) -> Result<Self, ConnectError> {
        let mut account = options.service_url()?;
        let mut url = account.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.push(&options.container);
        }
        let shown = url.to_string();
        let tls = tls()?;
        let mut signing: Vec<Arc<dyn Policy>> = Vec::new();
        match &options.credential {
            Credential::AccountKey { account, key } => {
                let key = Zeroizing::new(STANDARD.decode(key.trim()).map_err(|_| ConnectError::AccountKey)?);
                if key.is_empty() {
                    return Err(ConnectError::AccountKey);
                }
                let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
                signing.push(Arc::new(SharedKey { account: account.clone(), key, wall: Env::system().wall }));
            }
            Credential::Sas(sas) => {
                let sas = sas.trim().trim_start_matches('?');
                if !sas.split('&').any(|pair| pair.starts_with("sig=")) {
                    return Err(ConnectError::Sas);
                }
                url.set_query(Some(sas));
                account.set_query(Some(sas));
            }
            Credential::WorkloadIdentity(identity) => {
                if url.scheme() != "https" {
                    return Err(ConnectError::TokenWithoutTls { endpoint: without_query(&options.endpoint) });
                }
                let asking = ClientOptions {
                    retry: RetryOptions::none(),
                    transport: Some(Transport::new(Arc::new(http_client(tls.clone(), None)?))),
                    ..Default::default()
                };
                signing.push(Arc::new(identity::policy(identity.clone(), asking)));
            }
        }
        let client_options = ClientOptions {
            per_try_policies: signing,
            retry: RetryOptions::none(),
            transport: Some(Transport::new(Arc::new(http_client(tls.clone(), None)?))),
            ..Default::default()
        };
        let reading = ClientOptions {
            transport: Some(Transport::new(Arc::new(http_client(tls, Some(CALL_TIMEOUT))?))),
            ..client_options.clone()
        };
        let container_options =
            BlobContainerClientOptions { client_options: client_options.clone(), ..Default::default() };
        let service_options =
            BlobServiceClientOptions { client_options: client_options.clone(), ..Default::default() };
        let service =
            BlobServiceClient::new(account, None, Some(service_options)).map_err(ConnectError::Client)?;
        let version = container_options.version.clone();
        let container =
            BlobContainerClient::new(url, None, Some(container_options)).map_err(ConnectError::Client)?;
        let by_hand = ByHand { writing: pipeline(client_options), reading: pipeline(reading), version };
        Ok(Self { container, service, by_hand, url: shown, list_page: None })
    }
}

fn pipeline(options: ClientOptions) -> Pipeline {
    let (name, version) = (option_env!("CARGO_PKG_NAME"), option_env!("CARGO_PKG_VERSION"));
    Pipeline::new(name, version, options, Vec::new(), Vec::new(), None)
}

/// Reading the machine's certificate authorities takes a while: once for all clients of a store.
fn tls() -> Result<rustls::ClientConfig, ConnectError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_platform_verifier())
        .map_err(ConnectError::Tls)?;
    Ok(builder.with_no_client_auth())
}

/// `stall`: an answer that does not go on for so long is given up, however much time the whole of it has.
fn http_client(tls: rustls::ClientConfig, stall: Option<Duration>) -> Result<reqwest::Client, ConnectError> {
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_user_timeout(DEAD_PEER)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none());
    if let Some(stall) = stall {
        builder = builder.read_timeout(stall);
    }
    builder.build().map_err(ConnectError::Http)
}

/// Somebody may have pasted a URL with its SAS.
fn without_query(endpoint: &str) -> String {
    endpoint.split('?').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{BlobStore as _, StoreError};

    const KEY: &str = "c2VjcmV0LXNlY3JldC1zZWNyZXQ=";

    fn options(endpoint: &str, credential: Credential) -> AzureOptions {
        AzureOptions { endpoint: endpoint.to_owned(), container: "vault".to_owned(), credential }
    }

    fn key(key: &str) -> Credential {
        Credential::AccountKey { account: "acme".to_owned(), key: Zeroizing::new(key.to_owned()) }
    }

    fn identity() -> Credential {
        Credential::WorkloadIdentity(WorkloadIdentity {
            tenant_id: "tenant".to_owned(),
            client_id: "client".to_owned(),
            token_file: "/nowhere/token".into(),
            authority_host: None,
        })
    }

    #[test]
    fn container_and_account_come_from_both_styles_of_endpoint() {
        for (endpoint, url, account) in [
            ("https://acme.blob.core.windows.net/", "https://acme.blob.core.windows.net/vault", "acme"),
            ("http://127.0.0.1:10000/acme", "http://127.0.0.1:10000/acme/vault", "acme"),
            ("http://azurite:10000/acme/", "http://azurite:10000/acme/vault", "acme"),
        ] {
            let store = AzureStore::new(&options(endpoint, key(KEY))).unwrap();
            assert_eq!(store.url, url);
            assert_eq!(AzureOptions::account_of(endpoint).as_deref(), Some(account));
        }
    }

    #[test]
    fn bad_settings_say_what_to_put_there() {
        let sas = |sas: &str| Credential::Sas(Zeroizing::new(sas.to_owned()));
        for (bad, expected) in [
            (options("acme", key(KEY)), "must be like https://ACCOUNT"),
            (options("https://acme.example.com/?sig=secret", key(KEY)), "must be like https://ACCOUNT"),
            (options("https://acme.example.com", key("not base64!")), "az storage account keys list"),
            (options("https://acme.example.com", sas("sv=1")), "sv=…&sig=…"),
            (options("http://acme.example.com/acme", identity()), "give an https endpoint"),
        ] {
            let error = AzureStore::new(&bad).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    /// A whole blob may take minutes on a slow line; a connection that died must not.
    #[tokio::test]
    #[allow(clippy::disallowed_methods, reason = "a real connection that hangs")]
    async fn a_get_that_does_not_go_on_is_given_up() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}/acme", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let streams: Vec<_> = listener.incoming().map_while(Result::ok).collect();
            drop(streams);
        });
        let store = AzureStore::new(&options(&endpoint, key(KEY))).unwrap();
        let got = tokio::time::timeout(CALL_TIMEOUT * 6, store.get("blob", None, None)).await;
        let error = got.expect("it hangs").unwrap_err();
        assert!(matches!(error, StoreError::Unknown { .. }), "{error}");
    }

    #[test]
    fn debug_shows_no_secret() {
        for credential in [key(KEY), Credential::Sas(Zeroizing::new("sv=1&sig=SIGNATURE".to_owned()))] {
            let options = options("https://acme.blob.core.windows.net", credential);
            let shown = format!("{options:?} {:?}", AzureStore::new(&options).unwrap());
            assert!(!shown.contains(KEY) && !shown.contains("SIGNATURE"), "{shown}");
        }
    }
}
