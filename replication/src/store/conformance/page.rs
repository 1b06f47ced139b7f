//! Page blobs: what seed disks stand on.

use std::{ops::Range, time::Duration};

use bytes::Bytes;

use super::{Checked, Mismatch, Trial, done, equal, holder, refused};
use crate::store::{BlobKind, MAX_WRITE_BYTES, PutCondition, Refusal};

const LONG: Duration = Duration::from_secs(60);
const LENGTH: u64 = 64 << 10;
const ANY: u64 = i64::MAX as u64;

fn pages(fill: u8, count: usize) -> Bytes {
    Bytes::from(vec![fill; count * 512])
}

async fn disk(t: &Trial<'_>) -> Result<String, Mismatch> {
    let name = t.name("disk.vhd");
    done("create", t.store.create_page(&name, LENGTH).await)?;
    Ok(name)
}

/// Stores may cut ranges as they like.
pub(super) fn merged(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => merged.push(range),
        }
    }
    merged
}

pub(super) async fn new_pages_are_zeros(t: &Trial<'_>) -> Checked {
    let name = disk(t).await?;
    equal("content", done("get", t.store.get(&name, None, None).await)?, pages(0, LENGTH as usize / 512))?;
    equal("ranges", done("ranges", t.store.page_ranges(&name, None).await)?, Vec::new())?;
    let properties = done("properties", t.store.properties(&name, None).await)?;
    let seen = (properties.kind, properties.length, properties.sequence_number);
    equal("kind, length, sequence number", seen, (BlobKind::Page, LENGTH, 0))?;
    refused("again", t.store.create_page(&name, LENGTH).await, Refusal::AlreadyExists)
}

pub(super) async fn what_is_written_is_read_and_listed(t: &Trial<'_>) -> Checked {
    let name = disk(t).await?;
    let first = done("write", t.store.write_pages(&name, 4096, pages(1, 8), None, ANY).await)?;
    let second = done("write", t.store.write_pages(&name, 8192, pages(2, 1), None, ANY).await)?;
    done("write", t.store.write_pages(&name, 16384, pages(3, 1), None, ANY).await)?;
    done("write over", t.store.write_pages(&name, 4608, pages(4, 1), None, ANY).await)?;
    equal("each write has its ETag", first != second, true)?;
    let ranges = done("ranges", t.store.page_ranges(&name, None).await)?;
    equal("ranges", merged(ranges), vec![4096..8704, 16384..16896])?;
    let mut expected = vec![0; LENGTH as usize];
    expected[4096..8192].fill(1);
    expected[8192..8704].fill(2);
    expected[16384..16896].fill(3);
    expected[4608..5120].fill(4);
    let content = done("get", t.store.get(&name, None, None).await)?;
    equal("content", content == expected, true)?;
    let part = done("get", t.store.get(&name, None, Some(4600..4610)).await)?;
    equal("part", part, Bytes::from_static(&[1, 1, 1, 1, 1, 1, 1, 1, 4, 4]))
}

pub(super) async fn cleared_pages_are_zeros_and_not_listed(t: &Trial<'_>) -> Checked {
    let name = disk(t).await?;
    done("write", t.store.write_pages(&name, 0, pages(1, 16), None, ANY).await)?;
    done("clear", t.store.clear_pages(&name, 1024..2048, None, ANY).await)?;
    done("clear what is clear", t.store.clear_pages(&name, 32768..LENGTH, None, ANY).await)?;
    let ranges = done("ranges", t.store.page_ranges(&name, None).await)?;
    equal("ranges", merged(ranges), vec![0..1024, 2048..8192])?;
    equal("content", done("get", t.store.get(&name, None, Some(1024..2048)).await)?, pages(0, 2))
}

pub(super) async fn the_sequence_number_only_rises(t: &Trial<'_>) -> Checked {
    let name = disk(t).await?;
    let (first, later) = (1 << 32 | 7, 3 << 32 | 1);
    equal("raised", done("raise", t.store.raise_sequence(&name, first, None).await)?, first)?;
    equal("the same", done("raise", t.store.raise_sequence(&name, first, None).await)?, first)?;
    equal("later epoch", done("raise", t.store.raise_sequence(&name, later, None).await)?, later)?;
    equal("lower", done("raise", t.store.raise_sequence(&name, first + 9, None).await)?, later)?;
    equal("kept", done("properties", t.store.properties(&name, None).await)?.sequence_number, later)
}

pub(super) async fn a_higher_sequence_number_fences_writes_and_clears(t: &Trial<'_>) -> Checked {
    let name = disk(t).await?;
    let (old, new) = (1 << 32 | 9, 2 << 32 | 1);
    done("raise", t.store.raise_sequence(&name, old, None).await)?;
    done("at its number", t.store.write_pages(&name, 0, pages(1, 1), None, old).await)?;
    done("raise", t.store.raise_sequence(&name, new, None).await)?;
    refused("write", t.store.write_pages(&name, 0, pages(2, 1), None, old).await, Refusal::Condition)?;
    refused("clear", t.store.clear_pages(&name, 0..512, None, old).await, Refusal::Condition)?;
    refused(
        "one below",
        t.store.write_pages(&name, 0, pages(2, 1), None, new - 1).await,
        Refusal::Condition,
    )?;
    equal("content", done("get", t.store.get(&name, None, Some(0..512)).await)?, pages(1, 1))?;
    done("new writer", t.store.write_pages(&name, 0, pages(3, 1), None, new).await).map(|_| ())
}

pub(super) async fn pages_of_a_leased_blob_need_the_lease(t: &Trial<'_>) -> Checked {
    let name = disk(t).await?;
    let unleased = t.store.write_pages(&name, 0, pages(1, 1), Some(&holder(1)), ANY).await;
    refused("with a lease that nobody holds", unleased, Refusal::Lease)?;
    done("acquire", t.store.acquire_lease(&name, &holder(1), LONG).await)?;
    for (what, lease) in [("without", None), ("another", Some(holder(2)))] {
        let lease = lease.as_ref();
        refused(what, t.store.write_pages(&name, 0, pages(1, 1), lease, ANY).await, Refusal::Lease)?;
        refused(what, t.store.clear_pages(&name, 0..512, lease, ANY).await, Refusal::Lease)?;
        refused(what, t.store.raise_sequence(&name, 5, lease).await, Refusal::Lease)?;
    }
    let held = holder(1);
    done("held", t.store.raise_sequence(&name, 5, Some(&held)).await)?;
    done("held", t.store.write_pages(&name, 0, pages(1, 1), Some(&held), 5).await)?;
    done("held", t.store.clear_pages(&name, 0..512, Some(&held), 5).await).map(|_| ())
}

pub(super) async fn a_snapshot_keeps_what_was(t: &Trial<'_>) -> Checked {
    let name = disk(t).await?;
    let etag = done("write", t.store.write_pages(&name, 0, pages(1, 2), None, ANY).await)?;
    let snapshot = done("snapshot", t.store.snapshot(&name, None, Some(&etag)).await)?;
    done("write", t.store.write_pages(&name, 0, pages(2, 1), None, ANY).await)?;
    done("clear", t.store.clear_pages(&name, 512..1024, None, ANY).await)?;
    done("write", t.store.write_pages(&name, 4096, pages(3, 1), None, ANY).await)?;
    let snapshot = Some(&snapshot);
    equal("then", done("get", t.store.get(&name, snapshot, Some(0..1024)).await)?, pages(1, 2))?;
    equal("then", done("get", t.store.get(&name, snapshot, Some(4096..4608)).await)?, pages(0, 1))?;
    let ranges = done("ranges", t.store.page_ranges(&name, snapshot).await)?;
    let first_two = 0..1024;
    equal("ranges", merged(ranges), vec![first_two])?;
    equal("length", done("properties", t.store.properties(&name, snapshot).await)?.length, LENGTH)?;
    equal("now", done("get", t.store.get(&name, None, Some(0..512)).await)?, pages(2, 1))
}

pub(super) async fn a_snapshot_is_refused_after_another_write(t: &Trial<'_>) -> Checked {
    let name = disk(t).await?;
    let etag = done("write", t.store.write_pages(&name, 0, pages(1, 1), None, ANY).await)?;
    done("raise", t.store.raise_sequence(&name, 5, None).await)?;
    let stale = t.store.snapshot(&name, None, Some(&etag)).await;
    refused("after the sequence number was raised", stale, Refusal::Condition)?;
    let etag = done("write", t.store.write_pages(&name, 0, pages(1, 1), None, 5).await)?;
    done("somebody writes", t.store.write_pages(&name, 0, pages(2, 1), None, 5).await)?;
    refused("after a write", t.store.snapshot(&name, None, Some(&etag)).await, Refusal::Condition)
}

pub(super) async fn a_snapshot_does_not_need_the_lease_but_a_given_one_must_be_held(
    t: &Trial<'_>,
) -> Checked {
    let name = disk(t).await?;
    refused("nobody's", t.store.snapshot(&name, Some(&holder(1)), None).await, Refusal::Lease)?;
    done("acquire", t.store.acquire_lease(&name, &holder(1), LONG).await)?;
    refused("another's", t.store.snapshot(&name, Some(&holder(2)), None).await, Refusal::Lease)?;
    done("held", t.store.snapshot(&name, Some(&holder(1)), None).await)?;
    // The emulator names snapshots by the millisecond.
    tokio::time::sleep(Duration::from_millis(5)).await;
    done("none", t.store.snapshot(&name, None, None).await).map(|_| ())
}

pub(super) async fn snapshots_are_deleted_one_by_one_or_with_their_blob(t: &Trial<'_>) -> Checked {
    let name = disk(t).await?;
    let first = done("snapshot", t.store.snapshot(&name, None, None).await)?;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let second = done("snapshot", t.store.snapshot(&name, None, None).await)?;
    equal("names rise", first < second, true)?;
    done("acquire", t.store.acquire_lease(&name, &holder(1), LONG).await)?;
    done("delete one, in spite of the blob's lease", t.store.delete(&name, Some(&first)).await)?;
    refused("get", t.store.get(&name, Some(&first), None).await, Refusal::NotFound)?;
    refused("delete again", t.store.delete(&name, Some(&first)).await, Refusal::NotFound)?;
    done("the other", t.store.get(&name, Some(&second), None).await)?;
    done("break", t.store.break_lease(&name).await)?;
    done("delete all", t.store.delete(&name, None).await)?;
    refused("get", t.store.get(&name, Some(&second), None).await, Refusal::NotFound)
}

pub(super) async fn sizes_and_places_are_limited(t: &Trial<'_>) -> Checked {
    let name = disk(t).await?;
    refused("odd size", t.store.create_page(&t.name("odd"), 513).await, Refusal::Range)?;
    refused("over 8 TiB", t.store.create_page(&t.name("huge"), (8 << 40) + 512).await, Refusal::Range)?;
    for (offset, length) in [(1, 512), (0, 511), (0, 0), (0, MAX_WRITE_BYTES + 512), (LENGTH, 512)] {
        let answer = t.store.write_pages(&name, offset, Bytes::from(vec![1; length]), None, ANY).await;
        refused(&format!("write {length} at {offset}"), answer, Refusal::Range)?;
    }
    for range in [1..512, 0..511, 512..512, LENGTH..LENGTH + 512] {
        refused(
            &format!("clear {range:?}"),
            t.store.clear_pages(&name, range, None, ANY).await,
            Refusal::Range,
        )?;
    }
    equal("ranges", done("ranges", t.store.page_ranges(&name, None).await)?, Vec::new())
}

pub(super) async fn other_kinds_are_refused(t: &Trial<'_>) -> Checked {
    let (block, append) = (t.name("block"), t.name("append"));
    done("put", t.store.put(&block, pages(1, 1), &PutCondition::IfAbsent).await)?;
    done("create", t.store.create_append(&append).await)?;
    for name in [block, append] {
        refused("write", t.store.write_pages(&name, 0, pages(1, 1), None, ANY).await, Refusal::Kind)?;
        refused("clear", t.store.clear_pages(&name, 0..512, None, ANY).await, Refusal::Kind)?;
        refused("ranges", t.store.page_ranges(&name, None).await, Refusal::Kind)?;
    }
    Ok(())
}

pub(super) async fn a_page_blob_grows_by_zeros_if_nobody_has_changed_it(t: &Trial<'_>) -> Checked {
    let name = disk(t).await?;
    let before = done("properties", t.store.properties(&name, None).await)?.etag;
    done("write", t.store.write_pages(&name, LENGTH - 512, pages(1, 1), None, ANY).await)?;
    refused("stale", t.store.grow_page(&name, 2 * LENGTH, &before).await, Refusal::Condition)?;
    done("raise", t.store.raise_sequence(&name, 7, None).await)?;
    let snapshot = done("snapshot", t.store.snapshot(&name, None, None).await)?;
    let etag = done("properties", t.store.properties(&name, None).await)?.etag;
    done("grow", t.store.grow_page(&name, 2 * LENGTH, &etag).await)?;
    let properties = done("properties", t.store.properties(&name, None).await)?;
    equal("length, number", (properties.length, properties.sequence_number), (2 * LENGTH, 7))?;
    let mut expected = vec![0; 2 * LENGTH as usize];
    expected[LENGTH as usize - 512..LENGTH as usize].fill(1);
    equal("content", done("get", t.store.get(&name, None, None).await)?, Bytes::from(expected))?;
    equal(
        "its snapshot",
        done("properties", t.store.properties(&name, Some(&snapshot)).await)?.length,
        LENGTH,
    )?;
    done("write behind", t.store.write_pages(&name, LENGTH, pages(2, 1), None, 7).await)?;
    refused("fenced", t.store.write_pages(&name, LENGTH, pages(2, 1), None, 6).await, Refusal::Condition)
}
