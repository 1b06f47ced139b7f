//! A store without cost, in a process of its own: speaks as much of the Azure Blob protocol as the data plane uses,
//! keeps everything in memory, checks no signature and no checksum. What is measured against it is bound by our own
//! programs and the machine, not by a store.
//!
//! The answers are the model store's (`lifeboat_replication::store::model`), so it keeps the same conditions; the
//! conformance suite holds it to them through the real client.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use lifeboat_replication::store::{
    BlobKind, BlobStore as _, ETag, LeaseId, LeaseState, PutCondition, Refusal, SnapshotId, StoreError,
    model::ModelStore,
};
use percent_encoding::percent_decode_str;
use tokio::{net::TcpListener, sync::Mutex};

/// Largest body that a client sends: one segment with its header.
const MAX_BODY: usize = 64 << 20;

/// Name of the account in the path; any key is believed.
pub const ACCOUNT: &str = "free";
/// Answers with the number of requests so far and the bytes of their bodies; does not count itself.
pub const REQUESTS_PATH: &str = "/requests";

#[derive(Debug, Default)]
struct Stores {
    containers: Mutex<BTreeMap<String, ModelStore>>,
    requests: AtomicU64,
    body_bytes: AtomicU64,
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener) -> io::Result<()> {
    let stores = Arc::new(Stores::default());
    axum::serve(listener, Router::new().fallback(answer).with_state(stores)).await
}

/// One request, taken apart.
struct Call {
    method: Method,
    query: BTreeMap<String, String>,
    headers: HeaderMap,
    name: String,
    body: Bytes,
}

impl Call {
    fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.header(name)?.parse().ok()
    }

    fn lease(&self) -> Option<LeaseId> {
        self.header("x-ms-lease-id").map(|id| LeaseId(id.to_owned()))
    }

    /// A missing one is never held.
    fn needed_lease(&self) -> LeaseId {
        self.lease().unwrap_or_else(|| LeaseId(String::new()))
    }

    fn snapshot(&self) -> Option<SnapshotId> {
        self.query("snapshot").map(|id| SnapshotId(id.to_owned()))
    }

    /// `bytes=a-b`, both included.
    fn range(&self) -> Option<Range<u64>> {
        let text = self.header("x-ms-range").or_else(|| self.header("range"))?;
        let (start, end) = text.strip_prefix("bytes=")?.split_once('-')?;
        Some(start.parse().ok()?..end.parse::<u64>().ok()?.saturating_add(1))
    }
}

struct Answer {
    status: StatusCode,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
}

fn done(status: StatusCode) -> Answer {
    Answer { status, headers: Vec::new(), body: Bytes::new() }
}

impl Answer {
    fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    fn etag(self, etag: &ETag) -> Self {
        self.with("etag", &etag.0)
    }
}

async fn answer(State(stores): State<Arc<Stores>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if parts.uri.path() == REQUESTS_PATH {
        let [requests, bytes] =
            [&stores.requests, &stores.body_bytes].map(|count| count.load(Ordering::Relaxed));
        return format!("{requests} {bytes}\n").into_response();
    }
    let Ok(body) = to_bytes(body, MAX_BODY).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    stores.requests.fetch_add(1, Ordering::Relaxed);
    stores.body_bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
    let path = percent_decode_str(parts.uri.path()).decode_utf8_lossy().into_owned();
    let mut path = path.trim_start_matches('/').splitn(3, '/');
    let (_account, container) = (path.next(), path.next().unwrap_or_default().to_owned());
    let call = Call {
        method: parts.method,
        query: url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes())
            .into_owned()
            .collect(),
        headers: parts.headers,
        name: path.next().unwrap_or_default().to_owned(),
        body,
    };
    let store =
        stores.containers.lock().await.entry(container).or_insert_with(ModelStore::without_container).clone();
    let head = call.method == Method::HEAD;
    let answered = if call.name.is_empty() {
        container_call(&store, &call).await
    } else {
        blob_call(&store, &call).await
    };
    match answered {
        Ok(answer) => respond(answer, head),
        Err(error) => refuse(&error),
    }
}

async fn container_call(store: &ModelStore, call: &Call) -> Result<Answer, StoreError> {
    if call.method == Method::PUT {
        store.ensure_container().await?;
        return Ok(done(StatusCode::CREATED));
    }
    let with_snapshots = call.query("include").is_some_and(|include| include.contains("snapshots"));
    let page =
        store.list(call.query("prefix").unwrap_or_default(), with_snapshots, call.query("marker")).await?;
    let mut xml = String::from(r#"<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>"#);
    for blob in page.blobs {
        let snapshot = blob.snapshot.map(|id| format!("<Snapshot>{}</Snapshot>", id.0)).unwrap_or_default();
        let _ = write!(
            xml,
            "<Blob><Name>{}</Name>{snapshot}<Properties><Content-Length>{}</Content-Length><BlobType>{}</BlobType></Properties></Blob>",
            blob.name,
            blob.length,
            kind(blob.kind)
        );
    }
    let _ = write!(
        xml,
        "</Blobs><NextMarker>{}</NextMarker></EnumerationResults>",
        page.next.unwrap_or_default()
    );
    Ok(Answer { body: xml.into(), ..done(StatusCode::OK) }.with("content-type", "application/xml"))
}

async fn blob_call(store: &ModelStore, call: &Call) -> Result<Answer, StoreError> {
    let name = &call.name;
    match (call.method.as_str(), call.query("comp")) {
        ("HEAD", _) => {
            let found = store.properties(name, call.snapshot().as_ref()).await?;
            Ok(done(StatusCode::OK)
                .with("content-length", found.length)
                .with("x-ms-blob-type", kind(found.kind))
                .with(
                    "x-ms-lease-state",
                    if found.lease == LeaseState::Free { "available" } else { "leased" },
                )
                .with("x-ms-blob-sealed", found.sealed)
                .with("x-ms-blob-committed-block-count", found.appends)
                .with("x-ms-blob-sequence-number", found.sequence_number)
                .etag(&found.etag))
        }
        ("GET", Some("pagelist")) => {
            let mut xml = String::from(r#"<?xml version="1.0" encoding="utf-8"?><PageList>"#);
            for range in store.page_ranges(name, call.snapshot().as_ref()).await? {
                let _ = write!(
                    xml,
                    "<PageRange><Start>{}</Start><End>{}</End></PageRange>",
                    range.start,
                    range.end - 1
                );
            }
            xml.push_str("</PageList>");
            Ok(Answer { body: xml.into(), ..done(StatusCode::OK) }.with("content-type", "application/xml"))
        }
        ("GET", _) => {
            let range = call.range();
            let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
            let body = store.get(name, call.snapshot().as_ref(), range).await?;
            Ok(Answer { body, ..done(status) })
        }
        ("DELETE", _) => {
            match call.header("if-match") {
                Some(etag) => store.delete_if_match(name, &ETag(etag.to_owned())).await?,
                None => store.delete(name, call.snapshot().as_ref()).await?,
            }
            Ok(done(StatusCode::ACCEPTED))
        }
        ("PUT", None) => put(store, call).await,
        ("PUT", Some("appendblock")) => {
            let position = call.number("x-ms-blob-condition-appendpos").unwrap_or(u64::MAX);
            store.append(name, call.body.clone(), &call.needed_lease(), position).await?;
            Ok(done(StatusCode::CREATED))
        }
        ("PUT", Some("seal")) => {
            store.seal(name, &call.needed_lease()).await?;
            Ok(done(StatusCode::OK))
        }
        ("PUT", Some("lease")) => lease(store, call).await,
        ("PUT", Some("page")) => page(store, call).await,
        ("PUT", Some("snapshot")) => {
            let if_match = call.header("if-match").map(|etag| ETag(etag.to_owned()));
            let id = store.snapshot(name, call.lease().as_ref(), if_match.as_ref()).await?;
            Ok(done(StatusCode::CREATED).with("x-ms-snapshot", id.0))
        }
        ("PUT", Some("properties")) if call.header("x-ms-blob-content-length").is_some() => {
            let length = call.number("x-ms-blob-content-length").unwrap_or_default();
            let if_match = ETag(call.header("if-match").unwrap_or_default().to_owned());
            let etag = store.grow_page(name, length, &if_match).await?;
            Ok(done(StatusCode::OK).etag(&etag))
        }
        ("PUT", Some("properties")) => {
            let wanted = call.number("x-ms-blob-sequence-number").unwrap_or_default();
            let raised = store.raise_sequence(name, wanted, call.lease().as_ref()).await?;
            Ok(done(StatusCode::OK).with("x-ms-blob-sequence-number", raised))
        }
        _ => Ok(done(StatusCode::NOT_IMPLEMENTED)),
    }
}

async fn put(store: &ModelStore, call: &Call) -> Result<Answer, StoreError> {
    let name = &call.name;
    let etag = match call.header("x-ms-blob-type") {
        Some("AppendBlob") => store.create_append(name).await?,
        Some("PageBlob") => {
            store.create_page(name, call.number("x-ms-blob-content-length").unwrap_or_default()).await?
        }
        _ => {
            let condition = match (call.header("if-none-match"), call.header("if-match")) {
                (Some(_), _) => PutCondition::IfAbsent,
                (None, Some(etag)) => PutCondition::IfMatch(ETag(etag.to_owned())),
                (None, None) => PutCondition::Always,
            };
            store.put(name, call.body.clone(), &condition).await?
        }
    };
    Ok(done(StatusCode::CREATED).etag(&etag))
}

async fn page(store: &ModelStore, call: &Call) -> Result<Answer, StoreError> {
    let range = call.range().unwrap_or_default();
    let at_most = call.number("x-ms-if-sequence-number-le").unwrap_or(u64::MAX);
    let lease = call.lease();
    let etag = match call.header("x-ms-page-write") {
        Some("clear") => store.clear_pages(&call.name, range, lease.as_ref(), at_most).await?,
        _ => store.write_pages(&call.name, range.start, call.body.clone(), lease.as_ref(), at_most).await?,
    };
    Ok(done(StatusCode::CREATED).etag(&etag))
}

async fn lease(store: &ModelStore, call: &Call) -> Result<Answer, StoreError> {
    let name = &call.name;
    match call.header("x-ms-lease-action") {
        Some("acquire") => {
            let id = LeaseId(call.header("x-ms-proposed-lease-id").unwrap_or_default().to_owned());
            let term = Duration::from_secs(call.number("x-ms-lease-duration").unwrap_or(60));
            store.acquire_lease(name, &id, term).await?;
            Ok(done(StatusCode::CREATED).with("x-ms-lease-id", id.0))
        }
        Some("renew") => {
            store.renew_lease(name, &call.needed_lease()).await?;
            Ok(done(StatusCode::OK))
        }
        Some("release") => {
            store.release_lease(name, &call.needed_lease()).await?;
            Ok(done(StatusCode::OK))
        }
        _ => {
            store.break_lease(name).await?;
            Ok(done(StatusCode::ACCEPTED))
        }
    }
}

fn kind(kind: BlobKind) -> &'static str {
    match kind {
        BlobKind::Block => "BlockBlob",
        BlobKind::Append => "AppendBlob",
        BlobKind::Page => "PageBlob",
    }
}

fn respond(answer: Answer, head: bool) -> Response {
    let mut response = Response::new(if head { Body::empty() } else { Body::from(answer.body) });
    *response.status_mut() = answer.status;
    for (name, value) in answer.headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    response
}

/// The status and code that Azure gives.
fn refuse(error: &StoreError) -> Response {
    let (status, code) = match error.refusal() {
        None => (500, "InternalError"),
        Some(Refusal::NotFound) => (404, "BlobNotFound"),
        Some(Refusal::AlreadyExists) => (409, "BlobAlreadyExists"),
        Some(Refusal::Condition) => (412, "ConditionNotMet"),
        Some(Refusal::Position) => (412, "AppendPositionConditionNotMet"),
        Some(Refusal::Sealed) => (409, "BlobIsSealed"),
        Some(Refusal::Lease) => (412, "LeaseLost"),
        Some(Refusal::Range) => (416, "InvalidRange"),
        Some(Refusal::HasSnapshots) => (409, "SnapshotsPresent"),
        Some(Refusal::Kind) => (409, "InvalidBlobType"),
        Some(Refusal::Denied) => (403, "AuthenticationFailed"),
        Some(Refusal::NoContainer) => (404, "ContainerNotFound"),
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{code}</Message></Error>");
    let mut response = (status, body).into_response();
    let _ = response.headers_mut().insert("x-ms-error-code", HeaderValue::from_static(code));
    response
}

#[cfg(test)]
mod tests {
    use lifeboat_replication::store::{
        azure::{AzureOptions, AzureStore, Credential},
        conformance,
    };

    use super::*;

    #[tokio::test]
    async fn it_keeps_the_contract_of_a_blob_store() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}/{ACCOUNT}", listener.local_addr().unwrap());
        tokio::spawn(serve(listener));
        let credential =
            Credential::AccountKey { account: ACCOUNT.to_owned(), key: "a2V5a2V5a2V5a2V5".to_owned().into() };
        let options = AzureOptions { endpoint, container: "conformance".to_owned(), credential };
        let store = AzureStore::new(&options).unwrap();
        store.ensure_container().await.unwrap();
        let failures = conformance::run(&store, "case/").await;
        assert!(failures.is_empty(), "{failures:#?}");
    }
}
