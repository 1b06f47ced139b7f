//! What every [`BlobStore`] must do: the outcomes that the data plane relies on, as cases that run on any store, and
//! [`random`], which compares two stores answer by answer.
//!
//! The model runs them in this crate's tests, Azurite in `tests/store_azurite.rs`, a real account likewise. Where the
//! emulator and Azure differ (listed in [`super::model`]), no case relies on either.

mod append;
mod block;
mod lease;
mod list;
mod page;
pub mod random;

use std::{fmt, future::Future, pin::Pin};

use futures::StreamExt as _;

use super::{BlobStore, LeaseId, Refusal, Result, StoreError};

/// Cases that run at the same time: those that wait for a lease to expire overlap.
const PARALLEL: usize = 16;

type Run = for<'a> fn(&'a Trial<'a>) -> Pin<Box<dyn Future<Output = Checked> + Send + 'a>>;
type Checked = Result<(), Mismatch>;

pub struct Case {
    pub name: &'static str,
    run: Run,
}

/// A case that went wrong.
#[derive(Debug, thiserror::Error)]
#[error("{case}: {mismatch}")]
pub struct Failure {
    pub case: &'static str,
    mismatch: Mismatch,
}

#[derive(Debug)]
struct Mismatch {
    what: String,
    expected: String,
    got: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, got {}", self.what, self.expected, self.got)
    }
}

macro_rules! cases {
    ($($module:ident: $($case:ident),* $(,)?;)*) => {
        vec![$($(Case {
            name: concat!(stringify!($module), "::", stringify!($case)),
            run: |trial| Box::pin($module::$case(trial)),
        }),*),*]
    };
}

/// All cases, each a sentence.
pub fn cases() -> Vec<Case> {
    cases! {
        block:
            if_absent_writes_once,
            if_match_replaces_only_what_was_read,
            always_replaces,
            ranges_are_cut_at_the_end_and_refused_beyond_it,
            empty_content_is_content,
            what_is_missing_is_not_found,
            a_deleted_name_is_free_again,
            what_has_changed_is_not_deleted,
            a_leased_blob_is_neither_replaced_nor_deleted;
        append:
            appends_land_only_at_the_end,
            an_append_needs_a_lease,
            another_lease_is_refused,
            a_broken_lease_is_refused,
            a_superseded_lease_is_refused,
            a_released_lease_is_refused,
            an_expired_lease_is_refused,
            sealing_ends_appends_for_everybody,
            sealing_needs_the_lease,
            sealing_twice_is_done,
            sealing_other_kinds_is_refused,
            a_taken_name_is_refused,
            sizes_are_limited,
            other_kinds_are_refused;
        lease:
            one_holder_at_a_time,
            acquiring_again_with_the_same_id_prolongs,
            breaking_frees_at_once_and_ends_renewals,
            breaking_nothing_is_done,
            only_the_holder_renews_and_releases,
            an_expired_lease_is_free_for_others,
            renewing_keeps_it_beyond_its_term,
            terms_are_limited,
            leases_need_a_blob,
            etags_do_not_change_with_leases_and_snapshots;
        page:
            new_pages_are_zeros,
            what_is_written_is_read_and_listed,
            a_page_blob_grows_by_zeros_if_nobody_has_changed_it,
            cleared_pages_are_zeros_and_not_listed,
            the_sequence_number_only_rises,
            a_higher_sequence_number_fences_writes_and_clears,
            pages_of_a_leased_blob_need_the_lease,
            a_snapshot_keeps_what_was,
            a_snapshot_is_refused_after_another_write,
            a_snapshot_does_not_need_the_lease_but_a_given_one_must_be_held,
            snapshots_are_deleted_one_by_one_or_with_their_blob,
            sizes_and_places_are_limited,
            other_kinds_are_refused;
        list:
            names_come_in_order_below_their_prefix,
            snapshots_stand_before_their_blob_oldest_first,
            every_name_is_listed_once_over_all_pages;
    }
}

/// Runs all cases below `prefix`, which nobody has used before. Takes about as long as a lease's shortest term.
pub async fn run(store: &dyn BlobStore, prefix: &str) -> Vec<Failure> {
    run_some(store, prefix, |_| true).await
}

/// Runs the cases whose name is wanted.
pub async fn run_some(store: &dyn BlobStore, prefix: &str, wanted: impl Fn(&str) -> bool) -> Vec<Failure> {
    let chosen = cases().into_iter().filter(|case| wanted(case.name));
    let running = chosen.map(|case| async move {
        let trial = Trial { store, prefix: format!("{prefix}/{}", case.name.replace("::", "/")) };
        (case.run)(&trial).await.err().map(|mismatch| Failure { case: case.name, mismatch })
    });
    futures::stream::iter(running)
        .buffer_unordered(PARALLEL)
        .filter_map(|failure| async { failure })
        .collect()
        .await
}

/// What a case is given.
struct Trial<'a> {
    store: &'a dyn BlobStore,
    prefix: String,
}

impl Trial<'_> {
    fn name(&self, blob: &str) -> String {
        format!("{}/{blob}", self.prefix)
    }
}

fn holder(number: u8) -> LeaseId {
    LeaseId(format!("00000000-0000-4000-8000-{number:012}"))
}

fn done<T>(what: &str, answer: Result<T>) -> Result<T, Mismatch> {
    answer.map_err(|error| Mismatch {
        what: what.to_owned(),
        expected: "done".to_owned(),
        got: error.to_string(),
    })
}

fn refused<T>(what: &str, answer: Result<T>, why: Refusal) -> Checked {
    let got = match answer {
        Ok(_) => "done".to_owned(),
        Err(StoreError::Refused { why: got, .. }) if got == why => return Ok(()),
        Err(other) => other.to_string(),
    };
    Err(Mismatch { what: what.to_owned(), expected: format!("refused: {why}"), got })
}

fn equal<T: PartialEq + fmt::Debug>(what: &str, got: T, expected: T) -> Checked {
    if got == expected {
        return Ok(());
    }
    Err(Mismatch { what: what.to_owned(), expected: format!("{expected:?}"), got: format!("{got:?}") })
}
