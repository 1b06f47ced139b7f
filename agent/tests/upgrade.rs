//! The download of an upgrade against real TLS listeners on loopback that are slow, torn, wrong or silent.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed helper is a failed test"
)]

use std::{io, os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Response, header},
    routing::get,
};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use lifeboat_agent::{
    digest::Digest,
    net::{
        connect::Connector,
        download::{DownloadError, Limits},
        management::Management,
        tls,
    },
};
use lifeboat_replication::errors::chain;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

/// Long enough for the tests' machine, short enough to wait for.
const LIMITS: Limits =
    Limits { answer: Duration::from_secs(20), piece: Duration::from_secs(3), whole: Duration::from_secs(40) };

/// What an address does when it is asked for the agent.
#[derive(Debug, Clone, Copy)]
enum Manner {
    Well,
    /// The connection breaks after a part.
    Torn,
    /// It ends in order after a part.
    Short,
    /// It goes on after the end.
    Long,
    /// It says nothing any more after a part.
    Stalled,
    /// The content is not what the ETag says.
    Other,
    /// No length, as a proxy may make it.
    WithoutLength,
    /// It has none.
    Missing,
}

fn content() -> Bytes {
    (0..900_000_u32).map(|number| number.wrapping_mul(2_654_435_761) as u8).collect()
}

fn digest(content: &[u8]) -> Digest {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x"), content).unwrap();
    Digest::of_file(&folder.path().join("x")).unwrap()
}

/// `partial`: where it is being written.
fn answer(manner: Manner, asked: &HeaderMap, partial: PathBuf) -> Response<Body> {
    let whole = content();
    let tag = format!("\"{}\"", digest(&whole));
    if matches!(manner, Manner::Missing) {
        return Response::builder().status(404).body(Body::from("no such file")).unwrap();
    }
    if asked.get(header::IF_NONE_MATCH).is_some_and(|known| *known == *tag) {
        return Response::builder().status(304).body(Body::empty()).unwrap();
    }
    let mut answer = Response::builder().header(header::ETAG, tag);
    let part = whole.slice(..500_000);
    let length = match manner {
        Manner::WithoutLength => None,
        Manner::Long => Some(part.len()),
        _ => Some(whole.len()),
    };
    if let Some(length) = length {
        answer = answer.header(header::CONTENT_LENGTH, length);
    }
    let pieces = |pieces: Vec<io::Result<Bytes>>| Body::from_stream(stream::iter(pieces));
    let body = match manner {
        Manner::Well | Manner::Missing => Body::from(whole),
        // In pieces, since hyper names the length of what it has whole.
        Manner::Long | Manner::WithoutLength => pieces(vec![Ok(part), Ok(whole.slice(500_000..))]),
        Manner::Short => pieces(vec![Ok(part)]),
        Manner::Torn => {
            let broken = stream::once(async move {
                // A reset overtakes what was sent before it.
                while std::fs::metadata(&partial).map_or(0, |file| file.len()) < 100_000 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(io::Error::other("the disk is gone"))
            });
            Body::from_stream(stream::iter([Ok(part)]).chain(broken))
        }
        Manner::Stalled => {
            Body::from_stream(stream::iter([Ok::<_, io::Error>(part)]).chain(stream::pending()))
        }
        Manner::Other => {
            let mut other = whole.to_vec();
            other[777_777] ^= 1;
            Body::from(other)
        }
    };
    answer.body(body).unwrap()
}

/// A CA and the listeners that it vouches for.
struct Appliance {
    ca: CertifiedIssuer<'static, KeyPair>,
    addresses: Vec<String>,
    folder: tempfile::TempDir,
}

impl Appliance {
    async fn new(manners: &[Manner]) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut appliance = Self { ca, addresses: Vec::new(), folder: tempfile::tempdir().unwrap() };
        for manner in manners {
            appliance.listen(*manner).await;
        }
        appliance
    }

    async fn listen(&mut self, manner: Manner) {
        let key = KeyPair::generate().unwrap();
        let names = vec!["127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.ca).unwrap();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.addresses.push(listener.local_addr().unwrap().to_string());
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (accepted, incoming) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(stream) = acceptor.accept(stream).await
                    && accepted.send(Ok::<_, io::Error>(stream)).await.is_err()
                {
                    break;
                }
            }
        });
        let partial = self.partial();
        let served = get(move |asked: HeaderMap| async move { answer(manner, &asked, partial) });
        let routes = Router::new().route("/lifeboat-agent", served);
        let server = tonic::transport::Server::builder().add_routes(routes.into());
        tokio::spawn(server.serve_with_incoming(ReceiverStream::new(incoming)));
    }

    fn management(&self) -> Management {
        Management {
            addresses: self.addresses.clone(),
            tls: tls::anonymous(&self.ca.pem()).unwrap(),
            pinned: None,
            connector: Connector::default(),
        }
    }

    fn partial(&self) -> PathBuf {
        self.folder.path().join(".lifeboat-agent.partial")
    }

    /// Into a place where an earlier download was cut off.
    async fn download(&self) -> Result<Option<Digest>, DownloadError> {
        std::fs::write(self.partial(), "left by a download that was killed").unwrap();
        self.management().download_agent(&digest(b"installed"), Some(&self.partial()), LIMITS).await
    }

    fn has_it_whole(&self) -> bool {
        let mode = std::fs::metadata(self.partial()).unwrap().permissions().mode();
        std::fs::read(self.partial()).unwrap() == content() && mode & 0o777 == 0o755
    }
}

#[tokio::test]
async fn the_agent_comes_whole_and_may_be_started_or_is_not_sent_when_it_is_there() {
    let appliance = Appliance::new(&[Manner::Well]).await;
    assert_eq!(appliance.download().await.unwrap(), Some(digest(&content())));
    assert!(appliance.has_it_whole());

    std::fs::remove_file(appliance.partial()).unwrap();
    let management = appliance.management();
    let asked = management.download_agent(&digest(b"installed"), None, LIMITS).await.unwrap();
    assert_eq!(asked, Some(digest(&content())));
    let same = management.download_agent(&digest(&content()), Some(&appliance.partial()), LIMITS).await;
    assert_eq!(same.unwrap(), None);
    assert!(!appliance.partial().exists());
}

#[tokio::test]
async fn what_is_torn_stalled_wrong_or_missing_leaves_nothing_and_says_why() {
    let cases = [
        (Manner::Torn, "broke off after"),
        (Manner::Short, "broke off after"),
        (Manner::Long, "broke off after"),
        (Manner::Stalled, "did not send more of the agent"),
        (Manner::Other, "is not what it names"),
        (Manner::WithoutLength, "it has no length"),
        (Manner::Missing, "404"),
    ];
    for (manner, words) in cases {
        let appliance = Appliance::new(&[manner]).await;
        let told = chain(&appliance.download().await.unwrap_err());
        assert!(told.contains(words) && told.contains(&appliance.addresses[0]), "{manner:?}: {told}");
        assert!(!appliance.partial().exists(), "{manner:?}");
    }
}

#[tokio::test]
async fn an_address_that_fails_makes_way_for_the_next_one_and_both_are_told_when_both_fail() {
    for manner in [Manner::Torn, Manner::Stalled, Manner::Other, Manner::Missing] {
        let mut appliance = Appliance::new(&[manner]).await;
        appliance.listen(Manner::Well).await;
        assert_eq!(appliance.download().await.unwrap(), Some(digest(&content())), "{manner:?}");
        assert!(appliance.has_it_whole(), "{manner:?}");
    }
    let mut appliance = Appliance::new(&[Manner::Other]).await;
    appliance.addresses.insert(0, "127.0.0.1:1".to_owned());
    let told = chain(&appliance.download().await.unwrap_err());
    assert!(
        told.contains("127.0.0.1:1 cannot be reached") && told.contains("is not what it names"),
        "{told}"
    );
}

#[tokio::test]
async fn an_appliance_of_another_ca_gives_nothing() {
    let mut appliance = Appliance::new(&[Manner::Well]).await;
    appliance.ca = Appliance::new(&[]).await.ca;
    let refused = appliance.download().await.unwrap_err();
    assert!(chain(&refused).contains("invalid peer certificate"), "{}", chain(&refused));
    assert!(!appliance.partial().exists());
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_not_the_addresss_fault() {
    let mut appliance = Appliance::new(&[Manner::Well]).await;
    appliance.listen(Manner::Well).await;
    let into = appliance.folder.path().join("missing/.lifeboat-agent.partial");
    let failed = appliance.management().download_agent(&digest(b"installed"), Some(&into), LIMITS).await;
    let failed = failed.unwrap_err();
    assert!(matches!(failed, DownloadError::File { .. }), "{failed}");
}
