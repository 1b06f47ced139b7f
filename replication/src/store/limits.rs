//! What can be refused without asking the store. Every implementation checks this first, because real stores differ
//! in how they refuse it, and the emulator accepts some of it.

use std::{ops::Range, time::Duration};

use super::{MAX_WRITE_BYTES, PAGE_BYTES, Refusal, Result, StoreError};

/// Azure's largest page blob.
const MAX_PAGE_BLOB_BYTES: u64 = 8 << 40;
/// Terms that the store gives leases for, in seconds.
const LEASE_SECONDS: std::ops::RangeInclusive<u64> = 15..=60;

fn check(allowed: bool, operation: &'static str, name: &str, rule: &str) -> Result<()> {
    if allowed {
        return Ok(());
    }
    Err(StoreError::Refused {
        operation,
        name: name.to_owned(),
        why: Refusal::Range,
        detail: rule.to_owned(),
    })
}

pub(super) fn get(name: &str, range: Option<&Range<u64>>) -> Result<()> {
    check(range.is_none_or(|range| range.start < range.end), "get", name, "an empty range was asked for")
}

pub(super) fn append(name: &str, length: usize) -> Result<()> {
    check((1..=MAX_WRITE_BYTES).contains(&length), "append", name, "an append has 1 byte to 4 MiB")
}

pub(super) fn create_page(name: &str, length: u64) -> Result<()> {
    let allowed = length.is_multiple_of(PAGE_BYTES) && length <= MAX_PAGE_BLOB_BYTES;
    check(allowed, "create page blob", name, "a page blob has whole pages of 512 bytes and 8 TiB at most")
}

pub(super) fn grow_page(name: &str, length: u64) -> Result<()> {
    let allowed = length.is_multiple_of(PAGE_BYTES) && length <= MAX_PAGE_BLOB_BYTES;
    check(allowed, "grow page blob", name, "a page blob has whole pages of 512 bytes and 8 TiB at most")
}

pub(super) fn write_pages(name: &str, offset: u64, length: usize) -> Result<()> {
    let aligned = offset.is_multiple_of(PAGE_BYTES) && (length as u64).is_multiple_of(PAGE_BYTES);
    let allowed = aligned && (1..=MAX_WRITE_BYTES).contains(&length);
    check(allowed, "write pages", name, "a page write has whole pages of 512 bytes and 4 MiB at most")
}

pub(super) fn clear_pages(name: &str, range: &Range<u64>) -> Result<()> {
    let aligned = range.start.is_multiple_of(PAGE_BYTES) && range.end.is_multiple_of(PAGE_BYTES);
    check(
        aligned && range.start < range.end,
        "clear pages",
        name,
        "only whole pages of 512 bytes can be cleared",
    )
}

pub(super) fn lease_term(name: &str, term: Duration) -> Result<()> {
    let allowed = term.subsec_nanos() == 0 && LEASE_SECONDS.contains(&term.as_secs());
    check(allowed, "acquire lease", name, "a lease has a term of 15 to 60 whole seconds")
}
