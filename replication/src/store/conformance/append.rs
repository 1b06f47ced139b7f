//! Append blobs: what the commit log stands on.

use std::time::Duration;

use bytes::Bytes;

use super::{Checked, Mismatch, Trial, done, equal, holder, refused};
use crate::store::{BlobKind, MAX_WRITE_BYTES, PutCondition, Refusal};

const LONG: Duration = Duration::from_secs(60);
/// The store's shortest term, and a bit more than that.
const SHORT: Duration = Duration::from_secs(15);
const BEYOND_SHORT: Duration = Duration::from_secs(17);

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

/// A log with "first" in it, leased by holder 1.
async fn log(t: &Trial<'_>, term: Duration) -> Result<String, Mismatch> {
    let name = t.name("log");
    done("create", t.store.create_append(&name).await)?;
    done("acquire", t.store.acquire_lease(&name, &holder(1), term).await)?;
    done("append", t.store.append(&name, bytes("first"), &holder(1), 0).await)?;
    Ok(name)
}

/// Nothing was appended to what [`log`] made.
async fn unchanged(t: &Trial<'_>, name: &str) -> Checked {
    equal("content", done("get", t.store.get(name, None, None).await)?, bytes("first"))
}

pub(super) async fn appends_land_only_at_the_end(t: &Trial<'_>) -> Checked {
    let name = log(t, LONG).await?;
    for position in [0, 4, 6, 1 << 40] {
        let answer = t.store.append(&name, bytes("x"), &holder(1), position).await;
        refused(&format!("at {position}"), answer, Refusal::Position)?;
    }
    unchanged(t, &name).await?;
    done("at 5", t.store.append(&name, bytes(" second"), &holder(1), 5).await)?;
    refused("at 5 again", t.store.append(&name, bytes(" second"), &holder(1), 5).await, Refusal::Position)?;
    equal("content", done("get", t.store.get(&name, None, None).await)?, bytes("first second"))?;
    equal("tail", done("get", t.store.get(&name, None, Some(5..1000)).await)?, bytes(" second"))?;
    let properties = done("properties", t.store.properties(&name, None).await)?;
    equal("kind, length", (properties.kind, properties.length), (BlobKind::Append, 12))?;
    equal("appends, sealed", (properties.appends, properties.sealed), (2, false))
}

pub(super) async fn an_append_needs_a_lease(t: &Trial<'_>) -> Checked {
    let name = t.name("log");
    done("create", t.store.create_append(&name).await)?;
    refused("append", t.store.append(&name, bytes("x"), &holder(1), 0).await, Refusal::Lease)?;
    equal("content", done("get", t.store.get(&name, None, None).await)?, Bytes::new())
}

pub(super) async fn another_lease_is_refused(t: &Trial<'_>) -> Checked {
    let name = log(t, LONG).await?;
    refused("append", t.store.append(&name, bytes("x"), &holder(2), 5).await, Refusal::Lease)?;
    unchanged(t, &name).await
}

pub(super) async fn a_broken_lease_is_refused(t: &Trial<'_>) -> Checked {
    let name = log(t, LONG).await?;
    done("break", t.store.break_lease(&name).await)?;
    refused("append", t.store.append(&name, bytes("x"), &holder(1), 5).await, Refusal::Lease)?;
    unchanged(t, &name).await
}

pub(super) async fn a_superseded_lease_is_refused(t: &Trial<'_>) -> Checked {
    let name = log(t, LONG).await?;
    done("break", t.store.break_lease(&name).await)?;
    done("acquire", t.store.acquire_lease(&name, &holder(2), LONG).await)?;
    refused("old", t.store.append(&name, bytes("x"), &holder(1), 5).await, Refusal::Lease)?;
    unchanged(t, &name).await?;
    done("new", t.store.append(&name, bytes("x"), &holder(2), 5).await)
}

pub(super) async fn a_released_lease_is_refused(t: &Trial<'_>) -> Checked {
    let name = log(t, LONG).await?;
    done("release", t.store.release_lease(&name, &holder(1)).await)?;
    refused("append", t.store.append(&name, bytes("x"), &holder(1), 5).await, Refusal::Lease)?;
    unchanged(t, &name).await
}

pub(super) async fn an_expired_lease_is_refused(t: &Trial<'_>) -> Checked {
    let name = log(t, SHORT).await?;
    tokio::time::sleep(BEYOND_SHORT).await;
    refused("append", t.store.append(&name, bytes("x"), &holder(1), 5).await, Refusal::Lease)?;
    unchanged(t, &name).await
}

pub(super) async fn sealing_ends_appends_for_everybody(t: &Trial<'_>) -> Checked {
    let name = log(t, LONG).await?;
    done("break", t.store.break_lease(&name).await)?;
    done("acquire", t.store.acquire_lease(&name, &holder(2), LONG).await)?;
    done("seal", t.store.seal(&name, &holder(2)).await)?;
    refused("holder", t.store.append(&name, bytes("x"), &holder(2), 5).await, Refusal::Sealed)?;
    // Which of the two reasons is given to the old writer does not matter to it: neither is an append.
    refused("old writer", t.store.append(&name, bytes("x"), &holder(1), 5).await, Refusal::Lease)?;
    done("release", t.store.release_lease(&name, &holder(2)).await)?;
    done("acquire later", t.store.acquire_lease(&name, &holder(3), LONG).await)?;
    refused("later holder", t.store.append(&name, bytes("x"), &holder(3), 5).await, Refusal::Sealed)?;
    equal("sealed", done("properties", t.store.properties(&name, None).await)?.sealed, true)?;
    unchanged(t, &name).await
}

pub(super) async fn sealing_needs_the_lease(t: &Trial<'_>) -> Checked {
    let name = log(t, LONG).await?;
    refused("missing", t.store.seal(&t.name("missing"), &holder(1)).await, Refusal::NotFound)?;
    refused("another", t.store.seal(&name, &holder(2)).await, Refusal::Lease)?;
    done("break", t.store.break_lease(&name).await)?;
    refused("broken", t.store.seal(&name, &holder(1)).await, Refusal::Lease)?;
    equal("sealed", done("properties", t.store.properties(&name, None).await)?.sealed, false)
}

pub(super) async fn sealing_twice_is_done(t: &Trial<'_>) -> Checked {
    let name = log(t, LONG).await?;
    done("seal", t.store.seal(&name, &holder(1)).await)?;
    done("seal again", t.store.seal(&name, &holder(1)).await)
}

pub(super) async fn a_taken_name_is_refused(t: &Trial<'_>) -> Checked {
    let name = log(t, LONG).await?;
    refused("append blob", t.store.create_append(&name).await, Refusal::AlreadyExists)?;
    refused("page blob", t.store.create_page(&name, 512).await, Refusal::AlreadyExists)?;
    refused(
        "block blob",
        t.store.put(&name, bytes("x"), &PutCondition::IfAbsent).await,
        Refusal::AlreadyExists,
    )?;
    unchanged(t, &name).await
}

pub(super) async fn sizes_are_limited(t: &Trial<'_>) -> Checked {
    let name = log(t, LONG).await?;
    refused("nothing", t.store.append(&name, Bytes::new(), &holder(1), 5).await, Refusal::Range)?;
    let large = Bytes::from(vec![7; MAX_WRITE_BYTES + 1]);
    refused("too much", t.store.append(&name, large.clone(), &holder(1), 5).await, Refusal::Range)?;
    unchanged(t, &name).await?;
    done("just enough", t.store.append(&name, large.slice(1..), &holder(1), 5).await)?;
    let length = done("properties", t.store.properties(&name, None).await)?.length;
    equal("length", length, 5 + MAX_WRITE_BYTES as u64)
}

pub(super) async fn other_kinds_are_refused(t: &Trial<'_>) -> Checked {
    let (block, page) = (t.name("block"), t.name("page"));
    done("put", t.store.put(&block, bytes("x"), &PutCondition::IfAbsent).await)?;
    done("create", t.store.create_page(&page, 512).await)?;
    for name in [block, page] {
        done("acquire", t.store.acquire_lease(&name, &holder(1), LONG).await)?;
        refused("append", t.store.append(&name, bytes("x"), &holder(1), 1).await, Refusal::Kind)?;
    }
    Ok(())
}

pub(super) async fn sealing_other_kinds_is_refused(t: &Trial<'_>) -> Checked {
    let (block, page) = (t.name("block"), t.name("page"));
    done("put", t.store.put(&block, bytes("x"), &PutCondition::IfAbsent).await)?;
    done("create", t.store.create_page(&page, 512).await)?;
    for name in [block, page] {
        done("acquire", t.store.acquire_lease(&name, &holder(1), LONG).await)?;
        refused("seal", t.store.seal(&name, &holder(1)).await, Refusal::Kind)?;
    }
    Ok(())
}
