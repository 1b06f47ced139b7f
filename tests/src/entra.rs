//! A token endpoint of a test's own, over https on loopback: it does what Entra does for workload identity, and can be
//! told to refuse. Beside it, under every other path, stands a store that only looks at the token it is shown.
//!
//! Its authority is in a file: programs trust it by `SSL_CERT_FILE`. Azurite takes its tokens (`--oauth basic` looks at
//! issuer, audience and times, at no signature).

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use lifeboat_replication::env::Env;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

pub const TENANT: &str = "11111111-2222-3333-4444-555555555555";
pub const CLIENT: &str = "66666666-7777-8888-9999-000000000000";
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// What it does.
#[derive(Debug, Default)]
pub struct Behaviour {
    /// Subject of the service account that the identity trusts; anybody when empty.
    pub trusted_subject: String,
    /// What it says of how long a token is good, in seconds.
    pub expires_in: i64,
    /// It is out of order.
    pub broken: bool,
    /// How many tokens it has given.
    pub given: u64,
    /// The store takes no token up to this one.
    pub revoked: u64,
}

/// A running token endpoint. It ends with the process.
pub struct Entra {
    dir: tempfile::TempDir,
    /// `https://127.0.0.1:<port>`.
    pub url: String,
    behaviour: Arc<Mutex<Behaviour>>,
}

#[derive(Debug, thiserror::Error)]
pub enum EntraError {
    #[error("the token endpoint cannot be set up")]
    Io(#[from] io::Error),
    #[error("no certificate for the token endpoint")]
    Certificate(#[from] rcgen::Error),
    #[error("no TLS for the token endpoint")]
    Tls(#[from] tokio_rustls::rustls::Error),
}

impl Entra {
    /// Starts one in a thread of its own.
    #[allow(clippy::disallowed_methods, reason = "a program beside the test")]
    pub fn start() -> Result<Self, EntraError> {
        let dir = tempfile::tempdir()?;
        let leaf = certificates(dir.path())?;
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.0.into()], PrivateKeyDer::Pkcs8(leaf.1))?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let url = format!("https://{}", listener.local_addr()?);
        let behaviour = Arc::new(Mutex::new(Behaviour { expires_in: 3600, ..Behaviour::default() }));
        let shared = behaviour.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            if let Ok(runtime) = runtime {
                runtime.block_on(serve(listener, TlsAcceptor::from(Arc::new(config)), shared));
            }
        });
        Ok(Self { dir, url, behaviour })
    }

    pub fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.behaviour.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The authority that its certificate is signed by.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// What makes Azurite take its tokens, by https with a certificate of the same authority.
    pub fn azurite_options(&self) -> String {
        let [certificate, key] = ["leaf.crt", "leaf.key"].map(|name| self.dir.path().join(name));
        format!("--oauth basic --cert {} --key {}", certificate.display(), key.display())
    }

    /// A file with the token of a service account, as the kubelet writes it.
    pub fn service_account(&self, subject: &str) -> Result<PathBuf, EntraError> {
        let file = self.dir.path().join(subject.replace(':', "-"));
        let claims = json!({
            "iss": "https://oidc.contoso.com", "sub": subject, "aud": ["api://AzureADTokenExchange"],
        });
        fs::write(&file, format!("{}\n", unsigned(&claims)))?;
        Ok(file)
    }
}

type Leaf = (Vec<u8>, PrivatePkcs8KeyDer<'static>);

/// An authority and one certificate of it for loopback.
fn certificates(dir: &Path) -> Result<Leaf, EntraError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    let ca = params.self_signed(&key)?;
    fs::write(dir.join("ca.crt"), ca.pem())?;
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate()?;
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let leaf = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    fs::write(dir.join("leaf.crt"), leaf.pem())?;
    fs::write(dir.join("leaf.key"), key.serialize_pem())?;
    Ok((leaf.der().to_vec(), PrivatePkcs8KeyDer::from(key.serialize_der())))
}

async fn serve(listener: std::net::TcpListener, tls: TlsAcceptor, behaviour: Arc<Mutex<Behaviour>>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, behaviour) = (tls.clone(), behaviour.clone());
        tokio::spawn(async move {
            // A client that hangs up is its own business.
            let _ = talk(stream, tls, &behaviour).await;
        });
    }
}

struct Request {
    line: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

async fn talk(stream: TcpStream, tls: TlsAcceptor, behaviour: &Mutex<Behaviour>) -> io::Result<()> {
    let mut stream = BufReader::new(tls.accept(stream).await?);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let mut headers = BTreeMap::new();
        loop {
            let mut header = String::new();
            stream.read_line(&mut header).await?;
            let Some((name, value)) = header.trim_end().split_once(':') else { break };
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let request = Request { line, headers, body };
        let answer = {
            let mut behaviour = behaviour.lock().unwrap_or_else(PoisonError::into_inner);
            if request.line.starts_with(&format!("POST /{TENANT}/oauth2/v2.0/token ")) {
                token(&request, &mut behaviour)
            } else {
                store(&request, &behaviour)
            }
        };
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
    }
}

fn token(request: &Request, behaviour: &mut Behaviour) -> String {
    if behaviour.broken {
        return answer("503 Service Unavailable", "", &json!({}).to_string());
    }
    let form: BTreeMap<String, String> = url::form_urlencoded::parse(&request.body).into_owned().collect();
    let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    let claims = claims(field("client_assertion"));
    let refused = |code: i32, said: &str| {
        let body = json!({
            "error": "invalid_client", "error_codes": [code],
            "error_description": format!("AADSTS{code}: {said} Trace ID: 0\r\nTimestamp: 0"),
        });
        answer("401 Unauthorized", "", &body.to_string())
    };
    if field("grant_type") != "client_credentials"
        || field("client_assertion_type") != ASSERTION_TYPE
        || field("scope") != "https://storage.azure.com/.default"
    {
        return refused(900_144, "The request body is not what a workload sends.");
    }
    if field("client_id") != CLIENT {
        return refused(700_016, "Application was not found in the directory.");
    }
    if claims["aud"] != json!(["api://AzureADTokenExchange"]) {
        return refused(
            700_212,
            "No matching federated identity record found for presented assertion audience.",
        );
    }
    let subject = claims["sub"].as_str().unwrap_or_default();
    if !behaviour.trusted_subject.is_empty() && behaviour.trusted_subject != subject {
        let said = format!(
            "No matching federated identity record found for presented assertion subject '{subject}'."
        );
        return refused(700_213, &said);
    }
    behaviour.given += 1;
    let now = Env::system().wall.now().0 / 1_000_000;
    let access = unsigned(&json!({
        "aud": "https://storage.azure.com", "iss": format!("https://sts.windows.net/{TENANT}/"),
        "iat": now - 60, "nbf": now - 60, "exp": now + 3600, "number": behaviour.given,
    }));
    let body = json!({"token_type": "Bearer", "expires_in": behaviour.expires_in, "access_token": access});
    answer("200 OK", "", &body.to_string())
}

fn store(request: &Request, behaviour: &Behaviour) -> String {
    let shown = request.headers.get("authorization").and_then(|header| header.strip_prefix("Bearer "));
    let number = claims(shown.unwrap_or_default())["number"].as_u64().unwrap_or(0);
    if number <= behaviour.revoked {
        let body =
            "<Error><Code>InvalidAuthenticationInfo</Code><Message>The token is not valid.</Message></Error>";
        let challenge = "WWW-Authenticate: Bearer resource_id=https://storage.azure.com\r\nx-ms-error-code: InvalidAuthenticationInfo\r\n";
        return answer("401 Unauthorized", challenge, body);
    }
    answer("201 Created", "ETag: \"1\"\r\n", "")
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// A token that nobody has signed.
fn unsigned(claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{}", part(&json!({"alg": "none"})), part(claims), URL_SAFE_NO_PAD.encode("none"))
}

fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    payload.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
}
