//! Two requests that the crate offers only in another form:
//!
//! - *Put Blob*: its `upload` cuts larger content into blocks, so that one call is several requests with several
//!   outcomes, and sends no checksum (`transactional_content_md5` is not public there). Everything that is stored for
//!   long goes this way, so the checksum is CRC-64 (NVME), which the processor makes at memory speed; MD5 took a fifth of
//!   the process server's time.
//! - *Get Blob*: its `download` reads in parallel pieces and hides the checksum of each.
//!
//! They go through the same pipeline (signing, no retries, our HTTP client) as the crate's own.

use std::ops::Range;

use azure_core::{
    error::CheckSuccessOptions,
    http::{
        Context, Method, Pipeline, PipelineSendOptions, RawResponse, Request, Url,
        headers::{HeaderName, HeaderValue},
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use md5::{Digest as _, Md5};

use super::{errors::Call, etag, text};
use crate::store::{ETag, MAX_WRITE_BYTES, PutCondition, Refusal, Result, SnapshotId};

pub(super) struct ByHand {
    pub(super) writing: Pipeline,
    /// Gives an answer up that does not go on.
    pub(super) reading: Pipeline,
    /// `x-ms-version` of the crate.
    pub(super) version: String,
}

pub(super) fn md5(content: &[u8]) -> Vec<u8> {
    Md5::digest(content).to_vec()
}

/// As the store wants it in `x-ms-content-crc64`: little endian.
fn crc64(content: &[u8]) -> [u8; 8] {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, content).to_le_bytes()
}

impl ByHand {
    pub(super) async fn put(
        &self,
        call: &Call<'_>,
        url: &Url,
        content: Bytes,
        condition: &PutCondition,
    ) -> Result<ETag> {
        let mut request = self.request(url.clone(), Method::Put);
        insert(&mut request, "content-length", content.len().to_string());
        insert(&mut request, "content-type", "application/octet-stream");
        insert(&mut request, "x-ms-content-crc64", STANDARD.encode(crc64(&content)));
        insert(&mut request, "x-ms-blob-type", "BlockBlob");
        match condition {
            PutCondition::IfAbsent => insert(&mut request, "if-none-match", "*"),
            PutCondition::IfMatch(etag) => insert(&mut request, "if-match", etag.0.clone()),
            PutCondition::Always => {}
        }
        request.set_body(content);
        let answer = send(&self.writing, call, request, &[201]).await?;
        etag(call, answer.headers())
    }

    pub(super) async fn get(
        &self,
        call: &Call<'_>,
        url: &Url,
        snapshot: Option<&SnapshotId>,
        range: Option<Range<u64>>,
    ) -> Result<Bytes> {
        let mut url = url.clone();
        if let Some(snapshot) = snapshot {
            url.query_pairs_mut().append_pair("snapshot", &snapshot.0);
        }
        let mut request = self.request(url, Method::Get);
        if let Some(range) = &range {
            insert(&mut request, "x-ms-range", format!("bytes={}-{}", range.start, range.end - 1));
            if range.end - range.start <= MAX_WRITE_BYTES as u64 {
                insert(&mut request, "x-ms-range-get-content-md5", "true");
            }
        }
        let answer = send(&self.reading, call, request, &[200, 206]).await?;
        let whole = u16::from(answer.status()) == 200;
        let (_, headers, body) = answer.deconstruct();
        let content = Bytes::from(body);
        let given = text(&headers, "content-md5").and_then(|given| STANDARD.decode(given).ok());
        if given.is_some_and(|given| given != md5(&content)) {
            return Err(call
                .unknown("the content was damaged on its way: it does not have its Content-MD5".to_owned()));
        }
        let Some(range) = range else { return Ok(content) };
        // A store may ignore the range and send everything; Azurite answers "from the end" with nothing.
        let content = if whole { cut(&content, range) } else { content };
        if content.is_empty() {
            return Err(call.refused(Refusal::Range, "the range starts at or beyond the end".to_owned()));
        }
        Ok(content)
    }

    fn request(&self, url: Url, method: Method) -> Request {
        let mut request = Request::new(url, method);
        insert(&mut request, "x-ms-version", self.version.clone());
        request
    }
}

async fn send(
    pipeline: &Pipeline,
    call: &Call<'_>,
    mut request: Request,
    success_codes: &'static [u16],
) -> Result<RawResponse> {
    let options =
        PipelineSendOptions { check_success: CheckSuccessOptions { success_codes }, ..Default::default() };
    call.run(pipeline.send(&Context::default(), &mut request, Some(options))).await
}

fn insert(request: &mut Request, name: &'static str, value: impl Into<HeaderValue>) {
    request.insert_header(HeaderName::from_static(name), value);
}

fn cut(content: &Bytes, range: Range<u64>) -> Bytes {
    let clamp = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
    content.slice(clamp(range.start)..clamp(range.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of the catalogue of CRCs: a store that computes another one would refuse every put.
    #[test]
    fn the_checksum_is_crc_64_nvme() {
        assert_eq!(crc64(b"123456789"), 0xae8b_1486_0a79_9888_u64.to_le_bytes());
    }
}
