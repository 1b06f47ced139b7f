//! The real store: Azure Blob Storage, or anything that speaks its protocol, through the official crate
//! `azure_storage_blob` (see docs/adr/0001-official-azure-storage-crate.md).
//!
//! Each method is one request with its own time-out. Nothing is repeated here: the crate's retries are off, and whoever
//! calls decides what an unknown outcome means. `connect` makes the clients, `errors` sorts what comes back, `by_hand`
//! has the two requests that the crate cannot make as we need them, `shared_key` and `identity` say who we are, `guard`
//! looks at the account's settings.

mod by_hand;
mod connect;
mod errors;
mod guard;
mod identity;
mod shared_key;

use std::{fmt, ops::Range, time::Duration};

use async_trait::async_trait;
use azure_core::http::{
    Etag,
    headers::{HeaderName, Headers},
};
use azure_storage_blob::{
    BlobClient, BlobContainerClient, BlobServiceClient,
    models::{
        AppendBlobClientAppendBlockOptions, AppendBlobClientCreateOptions, AppendBlobClientSealOptions,
        BlobClientAcquireLeaseOptions, BlobClientBreakLeaseOptions, BlobClientCreateSnapshotOptions,
        BlobClientDeleteOptions, BlobContainerClientListBlobsOptions, DeleteSnapshotsOptionType, HttpRange,
        ListBlobsIncludeItem, PageBlobClientClearPagesOptions, PageBlobClientCreateOptions,
        PageBlobClientListPageRangesOptions, PageBlobClientResizeOptions,
        PageBlobClientSetSequenceNumberOptions, PageBlobClientUploadPagesOptions, SequenceNumberActionType,
    },
};
use bytes::Bytes;
use futures::TryStreamExt as _;

use self::{
    by_hand::ByHand,
    errors::{Call, unreadable},
};
pub use self::{
    connect::{AzureOptions, ConnectError, Credential},
    guard::DeletionGuard,
    identity::{TOKEN_AUDIENCE, WorkloadIdentity},
};
use super::{
    BlobKind, BlobStore, CALL_TIMEOUT, ETag, LeaseId, LeaseState, ListPage, Listed, Properties, PutCondition,
    Refusal, Result, SnapshotId, limits,
};

/// Slowest uplink, in bytes a second, at which a whole blob still gets through in one call. Calls under a lease carry
/// 4 MiB at most and keep to [`CALL_TIMEOUT`]; `put` and `get` hold none, so a slow line may take its time (an answer
/// to `get` that stands still is given up before).
const SLOWEST_TRANSFER: u64 = 128 << 10;

/// One container of a storage account.
pub struct AzureStore {
    container: BlobContainerClient,
    /// The account, for its settings.
    service: BlobServiceClient,
    by_hand: ByHand,
    /// Without query: a SAS is a secret.
    url: String,
    /// Names in one page of a list, when not the store's own 5,000.
    list_page: Option<i32>,
}

impl fmt::Debug for AzureStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AzureStore({})", self.url)
    }
}

impl AzureStore {
    /// Lists in pages of `names`.
    #[must_use]
    pub fn list_in_pages_of(self, names: i32) -> Self {
        Self { list_page: Some(names), ..self }
    }

    fn blob(&self, name: &str) -> BlobClient {
        self.container.blob_client(name)
    }

    fn call<'a>(&'a self, operation: &'static str, name: &'a str) -> Call<'a> {
        Call { operation, name, container: &self.url, limit: CALL_TIMEOUT }
    }
}

#[async_trait]
impl BlobStore for AzureStore {
    async fn ensure_container(&self) -> Result<()> {
        let call = self.call("create container", "");
        match call.run(self.container.create(None)).await {
            Err(error) if error.is(Refusal::AlreadyExists) => Ok(()),
            // A SAS may be allowed to work in the container without being allowed to make one.
            Err(error) if error.is(Refusal::Denied) => {
                self.list("vault.json", false, None).await.map_err(|_| error).map(|_| ())
            }
            done => done.map(|_| ()),
        }
    }

    async fn properties(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<Properties> {
        let call = self.call("read properties", name);
        let options = azure_storage_blob::models::BlobClientGetPropertiesOptions {
            snapshot: snapshot.map(|id| id.0.clone()),
            ..Default::default()
        };
        let answer = call.run(self.blob(name).get_properties(Some(options))).await?;
        properties(answer.headers()).ok_or_else(|| unreadable(&call, "its headers"))
    }

    async fn get(
        &self,
        name: &str,
        snapshot: Option<&SnapshotId>,
        range: Option<Range<u64>>,
    ) -> Result<Bytes> {
        limits::get(name, range.as_ref())?;
        let transfer =
            range.as_ref().map_or(super::MAX_WRITE_BYTES as u64 * 16, |range| range.end - range.start);
        let call = self.call("get", name).with_transfer(transfer);
        self.by_hand.get(&call, self.blob(name).url(), snapshot, range).await
    }

    async fn list(&self, prefix: &str, with_snapshots: bool, after: Option<&str>) -> Result<ListPage> {
        let call = self.call("list", prefix);
        let options = BlobContainerClientListBlobsOptions {
            prefix: (!prefix.is_empty()).then(|| prefix.to_owned()),
            include: with_snapshots.then(|| vec![ListBlobsIncludeItem::Snapshots]),
            marker: after.map(str::to_owned),
            maxresults: self.list_page,
            ..Default::default()
        };
        let page = call
            .run(async {
                let mut pages = self.container.list_blobs(Some(options))?.into_pages();
                match pages.try_next().await? {
                    Some(page) => page.into_model().map(Some),
                    None => Ok(None),
                }
            })
            .await?;
        let Some(page) = page else { return Ok(ListPage::default()) };
        let blobs: Option<Vec<Listed>> = page.blob_items.into_iter().map(listed).collect();
        let mut blobs = blobs.ok_or_else(|| unreadable(&call, "an entry"))?;
        // Azurite lists a blob before its snapshots, Azure after them.
        blobs.sort_by(|one, two| {
            let place = |blob: &Listed| (blob.name.clone(), blob.snapshot.is_none(), blob.snapshot.clone());
            place(one).cmp(&place(two))
        });
        Ok(ListPage { blobs, next: page.next_marker.filter(|marker| !marker.is_empty()) })
    }

    async fn put(&self, name: &str, content: Bytes, condition: &PutCondition) -> Result<ETag> {
        let call = self.call("put", name).with_transfer(content.len() as u64);
        let put = self.by_hand.put(&call, self.blob(name).url(), content, condition).await;
        if *condition == PutCondition::IfAbsent { put.map_err(errors::taken) } else { put }
    }

    async fn delete(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<()> {
        let options = BlobClientDeleteOptions {
            snapshot: snapshot.map(|id| id.0.clone()),
            delete_snapshots: snapshot.is_none().then_some(DeleteSnapshotsOptionType::Include),
            ..Default::default()
        };
        self.call("delete", name).run(self.blob(name).delete(Some(options))).await.map(|_| ())
    }

    async fn delete_if_match(&self, name: &str, etag: &ETag) -> Result<()> {
        let options = BlobClientDeleteOptions { if_match: Some(etag.0.clone().into()), ..Default::default() };
        self.call("delete if match", name).run(self.blob(name).delete(Some(options))).await.map(|_| ())
    }

    async fn create_append(&self, name: &str) -> Result<ETag> {
        let call = self.call("create append blob", name);
        let options = AppendBlobClientCreateOptions::default().if_not_exists();
        let answer = call.run(self.blob(name).append_blob_client().create(Some(options))).await;
        etag(&call, answer.map_err(errors::taken)?.headers())
    }

    async fn append(&self, name: &str, content: Bytes, lease: &LeaseId, position: u64) -> Result<()> {
        limits::append(name, content.len())?;
        let length = content.len() as u64;
        let options = AppendBlobClientAppendBlockOptions {
            lease_id: Some(lease.0.clone()),
            append_position: Some(signed(position)),
            transactional_content_md5: Some(by_hand::md5(&content)),
            ..Default::default()
        };
        let blob = self.blob(name).append_blob_client();
        self.call("append", name)
            .run(blob.append_block(content.into(), length, Some(options)))
            .await
            .map(|_| ())
    }

    async fn seal(&self, name: &str, lease: &LeaseId) -> Result<()> {
        let options = AppendBlobClientSealOptions { lease_id: Some(lease.0.clone()), ..Default::default() };
        let blob = self.blob(name).append_blob_client();
        match self.call("seal", name).run(blob.seal(Some(options))).await {
            Err(error) if !error.is(Refusal::Sealed) => Err(error),
            _ => Ok(()),
        }
    }

    async fn create_page(&self, name: &str, length: u64) -> Result<ETag> {
        limits::create_page(name, length)?;
        let call = self.call("create page blob", name);
        let options = PageBlobClientCreateOptions::default().if_not_exists();
        let answer = call.run(self.blob(name).page_blob_client().create(length, Some(options))).await;
        etag(&call, answer.map_err(errors::taken)?.headers())
    }

    async fn grow_page(&self, name: &str, length: u64, if_match: &ETag) -> Result<ETag> {
        limits::grow_page(name, length)?;
        let call = self.call("grow page blob", name);
        let options = PageBlobClientResizeOptions {
            if_match: Some(Etag::from(if_match.0.clone())),
            ..Default::default()
        };
        let answer = call.run(self.blob(name).page_blob_client().resize(length, Some(options))).await?;
        etag(&call, answer.headers())
    }

    async fn write_pages(
        &self,
        name: &str,
        offset: u64,
        content: Bytes,
        lease: Option<&LeaseId>,
        sequence_at_most: u64,
    ) -> Result<ETag> {
        limits::write_pages(name, offset, content.len())?;
        let call = self.call("write pages", name);
        let length = content.len() as u64;
        let options = PageBlobClientUploadPagesOptions {
            lease_id: lease.map(|id| id.0.clone()),
            if_sequence_number_less_than_or_equal_to: Some(signed(sequence_at_most)),
            transactional_content_md5: Some(by_hand::md5(&content)),
            ..Default::default()
        };
        let blob = self.blob(name).page_blob_client();
        let range = HttpRange::from(offset..offset + length);
        let answer = call.run(blob.upload_pages(content.into(), length, range, Some(options))).await?;
        etag(&call, answer.headers())
    }

    async fn clear_pages(
        &self,
        name: &str,
        range: Range<u64>,
        lease: Option<&LeaseId>,
        sequence_at_most: u64,
    ) -> Result<ETag> {
        limits::clear_pages(name, &range)?;
        let call = self.call("clear pages", name);
        let options = PageBlobClientClearPagesOptions {
            lease_id: lease.map(|id| id.0.clone()),
            if_sequence_number_less_than_or_equal_to: Some(signed(sequence_at_most)),
            ..Default::default()
        };
        let blob = self.blob(name).page_blob_client();
        let answer = call.run(blob.clear_pages(HttpRange::from(range), Some(options))).await?;
        etag(&call, answer.headers())
    }

    async fn page_ranges(&self, name: &str, snapshot: Option<&SnapshotId>) -> Result<Vec<Range<u64>>> {
        let call = self.call("list pages", name);
        let options = PageBlobClientListPageRangesOptions {
            snapshot: snapshot.map(|id| id.0.clone()),
            ..Default::default()
        };
        let blob = self.blob(name).page_blob_client();
        let mut pages = call.run(async { blob.list_page_ranges(Some(options)) }).await?;
        let mut ranges = Vec::new();
        while let Some(page) = call.run(pages.try_next()).await? {
            let page = call.run(async { page.into_model() }).await?;
            for range in page.page_ranges {
                let (Some(start), Some(end)) = (range.start, range.end) else {
                    return Err(unreadable(&call, "a range"));
                };
                ranges.push(unsigned(start)..unsigned(end) + 1);
            }
        }
        Ok(ranges)
    }

    async fn raise_sequence(&self, name: &str, sequence: u64, lease: Option<&LeaseId>) -> Result<u64> {
        let call = self.call("raise sequence number", name);
        let options = PageBlobClientSetSequenceNumberOptions {
            lease_id: lease.map(|id| id.0.clone()),
            blob_sequence_number: Some(signed(sequence)),
            ..Default::default()
        };
        let blob = self.blob(name).page_blob_client();
        let answer = call.run(blob.set_sequence_number(SequenceNumberActionType::Max, Some(options))).await?;
        number(answer.headers(), "x-ms-blob-sequence-number")
            .ok_or_else(|| unreadable(&call, "the sequence number"))
    }

    async fn snapshot(
        &self,
        name: &str,
        lease: Option<&LeaseId>,
        if_match: Option<&ETag>,
    ) -> Result<SnapshotId> {
        let call = self.call("snapshot", name);
        let options = BlobClientCreateSnapshotOptions {
            lease_id: lease.map(|id| id.0.clone()),
            if_match: if_match.map(|etag| Etag::from(etag.0.clone())),
            ..Default::default()
        };
        let answer = call.run(self.blob(name).create_snapshot(Some(options))).await?;
        let id = text(answer.headers(), "x-ms-snapshot")
            .ok_or_else(|| unreadable(&call, "the snapshot's name"))?;
        Ok(SnapshotId(id.to_owned()))
    }

    async fn acquire_lease(&self, name: &str, lease: &LeaseId, term: Duration) -> Result<()> {
        limits::lease_term(name, term)?;
        let seconds = i32::try_from(term.as_secs()).unwrap_or(i32::MAX);
        let options =
            BlobClientAcquireLeaseOptions { proposed_lease_id: Some(lease.0.clone()), ..Default::default() };
        self.call("acquire lease", name)
            .run(self.blob(name).acquire_lease(seconds, Some(options)))
            .await
            .map(|_| ())
    }

    async fn renew_lease(&self, name: &str, lease: &LeaseId) -> Result<()> {
        self.call("renew lease", name)
            .run(self.blob(name).renew_lease(lease.0.clone(), None))
            .await
            .map(|_| ())
    }

    async fn release_lease(&self, name: &str, lease: &LeaseId) -> Result<()> {
        self.call("release lease", name)
            .run(self.blob(name).release_lease(lease.0.clone(), None))
            .await
            .map(|_| ())
    }

    async fn break_lease(&self, name: &str) -> Result<()> {
        let options = BlobClientBreakLeaseOptions { break_period: Some(0), ..Default::default() };
        match self.call("break lease", name).run(self.blob(name).break_lease(Some(options))).await {
            // There was none to break.
            Err(error) if !error.is(Refusal::Lease) => Err(error),
            _ => Ok(()),
        }
    }
}

fn text<'a>(headers: &'a Headers, name: &'static str) -> Option<&'a str> {
    headers.get_optional_str(&HeaderName::from_static(name))
}

fn number<T: std::str::FromStr>(headers: &Headers, name: &'static str) -> Option<T> {
    text(headers, name)?.parse().ok()
}

fn etag(call: &Call<'_>, headers: &Headers) -> Result<ETag> {
    text(headers, "etag").map(|etag| ETag(etag.to_owned())).ok_or_else(|| unreadable(call, "the ETag"))
}

fn properties(headers: &Headers) -> Option<Properties> {
    Some(Properties {
        kind: kind(text(headers, "x-ms-blob-type")?)?,
        length: number(headers, "content-length")?,
        etag: ETag(text(headers, "etag")?.to_owned()),
        lease: match text(headers, "x-ms-lease-state") {
            Some("leased") => LeaseState::Leased,
            Some("breaking") => LeaseState::Breaking,
            _ => LeaseState::Free,
        },
        sealed: text(headers, "x-ms-blob-sealed") == Some("true"),
        appends: number(headers, "x-ms-blob-committed-block-count").unwrap_or(0),
        sequence_number: number(headers, "x-ms-blob-sequence-number").unwrap_or(0),
    })
}

fn kind(blob_type: &str) -> Option<BlobKind> {
    match blob_type {
        "BlockBlob" => Some(BlobKind::Block),
        "AppendBlob" => Some(BlobKind::Append),
        "PageBlob" => Some(BlobKind::Page),
        _ => None,
    }
}

fn listed(item: azure_storage_blob::models::BlobItem) -> Option<Listed> {
    let properties = item.properties?;
    Some(Listed {
        name: item.name?,
        snapshot: item.snapshot.filter(|id| !id.is_empty()).map(SnapshotId),
        kind: kind(properties.blob_type?.as_ref())?,
        length: properties.content_length?,
    })
}

/// The crate's numbers are signed; ours stay far below 2^63.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
