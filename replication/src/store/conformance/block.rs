//! Block blobs: written whole, under a condition.

use std::time::Duration;

use bytes::Bytes;

use super::{Checked, Trial, done, equal, holder, refused};
use crate::store::{BlobKind, PutCondition, Refusal};

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

pub(super) async fn if_absent_writes_once(t: &Trial<'_>) -> Checked {
    let name = t.name("segment");
    done("first", t.store.put(&name, bytes("first"), &PutCondition::IfAbsent).await)?;
    let again = t.store.put(&name, bytes("second"), &PutCondition::IfAbsent).await;
    refused("second", again, Refusal::AlreadyExists)?;
    equal("content", done("get", t.store.get(&name, None, None).await)?, bytes("first"))
}

pub(super) async fn if_match_replaces_only_what_was_read(t: &Trial<'_>) -> Checked {
    let name = t.name("document");
    let first = done("create", t.store.put(&name, bytes("1"), &PutCondition::IfAbsent).await)?;
    let second =
        done("replace", t.store.put(&name, bytes("2"), &PutCondition::IfMatch(first.clone())).await)?;
    equal("the ETag is new", first != second, true)?;
    equal("properties", done("properties", t.store.properties(&name, None).await)?.etag, second)?;
    let stale = t.store.put(&name, bytes("3"), &PutCondition::IfMatch(first.clone())).await;
    refused("stale", stale, Refusal::Condition)?;
    let missing = t.store.put(&t.name("missing"), bytes("3"), &PutCondition::IfMatch(first)).await;
    refused("missing", missing, Refusal::Condition)?;
    equal("content", done("get", t.store.get(&name, None, None).await)?, bytes("2"))
}

pub(super) async fn always_replaces(t: &Trial<'_>) -> Checked {
    let name = t.name("document");
    for content in ["one", "another"] {
        done("put", t.store.put(&name, bytes(content), &PutCondition::Always).await)?;
        equal("content", done("get", t.store.get(&name, None, None).await)?, bytes(content))?;
    }
    let properties = done("properties", t.store.properties(&name, None).await)?;
    equal("kind and length", (properties.kind, properties.length), (BlobKind::Block, 7))
}

pub(super) async fn ranges_are_cut_at_the_end_and_refused_beyond_it(t: &Trial<'_>) -> Checked {
    let name = t.name("segment");
    done("put", t.store.put(&name, bytes("0123456789"), &PutCondition::IfAbsent).await)?;
    for (range, content) in
        [(0..3, "012"), (4..5, "4"), (0..10, "0123456789"), (8..99, "89"), (0..99, "0123456789")]
    {
        let what = format!("{range:?}");
        equal(&what, done(&what, t.store.get(&name, None, Some(range)).await)?, bytes(content))?;
    }
    for range in [10..11, 11..20, 3..3] {
        refused(&format!("{range:?}"), t.store.get(&name, None, Some(range)).await, Refusal::Range)?;
    }
    Ok(())
}

pub(super) async fn empty_content_is_content(t: &Trial<'_>) -> Checked {
    let name = t.name("empty");
    done("put", t.store.put(&name, Bytes::new(), &PutCondition::IfAbsent).await)?;
    equal("content", done("get", t.store.get(&name, None, None).await)?, Bytes::new())?;
    refused("range", t.store.get(&name, None, Some(0..4)).await, Refusal::Range)
}

pub(super) async fn what_is_missing_is_not_found(t: &Trial<'_>) -> Checked {
    let name = t.name("missing");
    refused("properties", t.store.properties(&name, None).await, Refusal::NotFound)?;
    refused("get", t.store.get(&name, None, None).await, Refusal::NotFound)?;
    refused("delete", t.store.delete(&name, None).await, Refusal::NotFound)?;
    refused("append", t.store.append(&name, bytes("x"), &holder(1), 0).await, Refusal::NotFound)?;
    refused("pages", t.store.page_ranges(&name, None).await, Refusal::NotFound)?;
    refused("snapshot", t.store.snapshot(&name, None, None).await, Refusal::NotFound)?;
    refused("sequence", t.store.raise_sequence(&name, 1, None).await, Refusal::NotFound)
}

pub(super) async fn a_deleted_name_is_free_again(t: &Trial<'_>) -> Checked {
    let name = t.name("document");
    done("put", t.store.put(&name, bytes("1"), &PutCondition::IfAbsent).await)?;
    done("delete", t.store.delete(&name, None).await)?;
    refused("get", t.store.get(&name, None, None).await, Refusal::NotFound)?;
    done("put again", t.store.put(&name, bytes("2"), &PutCondition::IfAbsent).await).map(|_| ())
}

pub(super) async fn what_has_changed_is_not_deleted(t: &Trial<'_>) -> Checked {
    let name = t.name("document");
    let old = done("put", t.store.put(&name, bytes("1"), &PutCondition::IfAbsent).await)?;
    let new = done("put again", t.store.put(&name, bytes("2"), &PutCondition::Always).await)?;
    refused("delete the old version", t.store.delete_if_match(&name, &old).await, Refusal::Condition)?;
    equal("content", done("get", t.store.get(&name, None, None).await)?, bytes("2"))?;
    done("delete", t.store.delete_if_match(&name, &new).await)?;
    // (To delete it once more is refused as not found, or as a condition that is not met.)
    refused("get", t.store.get(&name, None, None).await, Refusal::NotFound)
}

pub(super) async fn a_leased_blob_is_neither_replaced_nor_deleted(t: &Trial<'_>) -> Checked {
    let name = t.name("document");
    let etag = done("put", t.store.put(&name, bytes("1"), &PutCondition::IfAbsent).await)?;
    done("acquire", t.store.acquire_lease(&name, &holder(1), Duration::from_secs(60)).await)?;
    refused("put", t.store.put(&name, bytes("2"), &PutCondition::Always).await, Refusal::Lease)?;
    refused(
        "put if match",
        t.store.put(&name, bytes("2"), &PutCondition::IfMatch(etag)).await,
        Refusal::Lease,
    )?;
    refused("delete", t.store.delete(&name, None).await, Refusal::Lease)?;
    done("break", t.store.break_lease(&name).await)?;
    done("put after it", t.store.put(&name, bytes("2"), &PutCondition::Always).await)?;
    done("delete after it", t.store.delete(&name, None).await)
}
