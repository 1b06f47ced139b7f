//! Lists: order and completeness.

use std::time::Duration;

use bytes::Bytes;

use super::{Checked, Mismatch, Trial, done, equal};
use crate::store::{BlobKind, Listed, PutCondition};

async fn all(t: &Trial<'_>, prefix: &str, with_snapshots: bool) -> Result<Vec<Listed>, Mismatch> {
    let mut listed = Vec::new();
    let mut after = None;
    loop {
        let page = done("list", t.store.list(prefix, with_snapshots, after.as_deref()).await)?;
        listed.extend(page.blobs);
        after = page.next;
        if after.is_none() {
            return Ok(listed);
        }
    }
}

fn names(listed: &[Listed]) -> Vec<&str> {
    listed.iter().map(|blob| blob.name.as_str()).collect()
}

async fn put(t: &Trial<'_>, name: &str) -> Checked {
    done("put", t.store.put(name, Bytes::from_static(b"x"), &PutCondition::IfAbsent).await).map(|_| ())
}

pub(super) async fn names_come_in_order_below_their_prefix(t: &Trial<'_>) -> Checked {
    let (first, second, third) =
        (t.name("log/0000000001"), t.name("log/0000000002"), t.name("log/0000000010"));
    put(t, &third).await?;
    done("create", t.store.create_append(&first).await)?;
    done("create", t.store.create_page(&second, 512).await)?;
    put(t, &t.name("logs")).await?;
    put(t, &t.name("lo")).await?;
    let listed = all(t, &t.name("log/"), false).await?;
    equal("names", names(&listed), vec![first.as_str(), &second, &third])?;
    let kinds: Vec<_> = listed.iter().map(|blob| (blob.kind, blob.length)).collect();
    equal("kinds", kinds, vec![(BlobKind::Append, 0), (BlobKind::Page, 512), (BlobKind::Block, 1)])?;
    equal("nothing", all(t, &t.name("nothing"), true).await?, Vec::new())?;
    equal("whole name", all(t, &t.name("lo"), false).await?.len(), 5)
}

pub(super) async fn snapshots_stand_before_their_blob_oldest_first(t: &Trial<'_>) -> Checked {
    let (before, name, behind) = (t.name("a"), t.name("b"), t.name("c"));
    put(t, &behind).await?;
    done("create", t.store.create_page(&name, 512).await)?;
    put(t, &before).await?;
    let first = done("snapshot", t.store.snapshot(&name, None, None).await)?;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let second = done("snapshot", t.store.snapshot(&name, None, None).await)?;
    let listed = all(t, &t.name(""), true).await?;
    let seen: Vec<_> = listed.into_iter().map(|blob| (blob.name, blob.snapshot)).collect();
    let expected = vec![
        (before, None),
        (name.clone(), Some(first)),
        (name.clone(), Some(second)),
        (name, None),
        (behind, None),
    ];
    equal("with snapshots", seen, expected)?;
    equal("without", all(t, &t.name(""), false).await?.len(), 3)
}

/// Tests give the store small pages, so that there are several.
pub(super) async fn every_name_is_listed_once_over_all_pages(t: &Trial<'_>) -> Checked {
    let expected: Vec<String> = (0..7).map(|number| t.name(&format!("{number:03}"))).collect();
    for name in &expected {
        put(t, name).await?;
    }
    let listed = all(t, &t.name(""), false).await?;
    equal("names", names(&listed), expected.iter().map(String::as_str).collect())
}
