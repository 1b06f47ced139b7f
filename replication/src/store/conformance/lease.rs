//! Leases: who may write.

use std::time::Duration;

use bytes::Bytes;

use super::{Checked, Mismatch, Trial, done, equal, holder, refused};
use crate::store::{LeaseState, Refusal};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(15);
const BEYOND_SHORT: Duration = Duration::from_secs(17);

/// An append blob, leased by holder 1.
async fn leased(t: &Trial<'_>, term: Duration) -> Result<String, Mismatch> {
    let name = t.name("log");
    done("create", t.store.create_append(&name).await)?;
    done("acquire", t.store.acquire_lease(&name, &holder(1), term).await)?;
    Ok(name)
}

async fn state_is(t: &Trial<'_>, name: &str, state: LeaseState) -> Checked {
    equal("lease", done("properties", t.store.properties(name, None).await)?.lease, state)
}

pub(super) async fn one_holder_at_a_time(t: &Trial<'_>) -> Checked {
    let name = leased(t, LONG).await?;
    state_is(t, &name, LeaseState::Leased).await?;
    refused("second", t.store.acquire_lease(&name, &holder(2), LONG).await, Refusal::Lease)?;
    done("release", t.store.release_lease(&name, &holder(1)).await)?;
    state_is(t, &name, LeaseState::Free).await?;
    done("second", t.store.acquire_lease(&name, &holder(2), LONG).await)
}

pub(super) async fn acquiring_again_with_the_same_id_prolongs(t: &Trial<'_>) -> Checked {
    let name = leased(t, SHORT).await?;
    done("again", t.store.acquire_lease(&name, &holder(1), LONG).await)?;
    tokio::time::sleep(BEYOND_SHORT).await;
    state_is(t, &name, LeaseState::Leased).await?;
    done("append", t.store.append(&name, Bytes::from_static(b"x"), &holder(1), 0).await)
}

pub(super) async fn breaking_frees_at_once_and_ends_renewals(t: &Trial<'_>) -> Checked {
    let name = leased(t, LONG).await?;
    done("break", t.store.break_lease(&name).await)?;
    state_is(t, &name, LeaseState::Free).await?;
    refused("renew", t.store.renew_lease(&name, &holder(1)).await, Refusal::Lease)?;
    done("acquire", t.store.acquire_lease(&name, &holder(2), LONG).await)?;
    refused("renew", t.store.renew_lease(&name, &holder(1)).await, Refusal::Lease)?;
    refused("acquire", t.store.acquire_lease(&name, &holder(1), LONG).await, Refusal::Lease)
}

pub(super) async fn breaking_nothing_is_done(t: &Trial<'_>) -> Checked {
    let name = t.name("log");
    done("create", t.store.create_append(&name).await)?;
    done("never leased", t.store.break_lease(&name).await)?;
    done("acquire", t.store.acquire_lease(&name, &holder(1), LONG).await)?;
    done("leased", t.store.break_lease(&name).await)?;
    done("broken", t.store.break_lease(&name).await)
}

pub(super) async fn only_the_holder_renews_and_releases(t: &Trial<'_>) -> Checked {
    let name = leased(t, LONG).await?;
    refused("renew", t.store.renew_lease(&name, &holder(2)).await, Refusal::Lease)?;
    refused("release", t.store.release_lease(&name, &holder(2)).await, Refusal::Lease)?;
    done("renew", t.store.renew_lease(&name, &holder(1)).await)?;
    done("release", t.store.release_lease(&name, &holder(1)).await)?;
    refused("renew", t.store.renew_lease(&name, &holder(1)).await, Refusal::Lease)?;
    refused("release", t.store.release_lease(&name, &holder(1)).await, Refusal::Lease)
}

pub(super) async fn an_expired_lease_is_free_for_others(t: &Trial<'_>) -> Checked {
    let name = leased(t, SHORT).await?;
    tokio::time::sleep(BEYOND_SHORT).await;
    state_is(t, &name, LeaseState::Free).await?;
    done("acquire", t.store.acquire_lease(&name, &holder(2), LONG).await)?;
    refused("renew", t.store.renew_lease(&name, &holder(1)).await, Refusal::Lease)
}

pub(super) async fn renewing_keeps_it_beyond_its_term(t: &Trial<'_>) -> Checked {
    let name = leased(t, SHORT).await?;
    tokio::time::sleep(Duration::from_secs(9)).await;
    done("renew", t.store.renew_lease(&name, &holder(1)).await)?;
    tokio::time::sleep(Duration::from_secs(9)).await;
    state_is(t, &name, LeaseState::Leased).await?;
    refused("acquire", t.store.acquire_lease(&name, &holder(2), LONG).await, Refusal::Lease)
}

pub(super) async fn terms_are_limited(t: &Trial<'_>) -> Checked {
    let name = leased(t, LONG).await?;
    for seconds in [0, 14, 61] {
        let answer = t.store.acquire_lease(&name, &holder(1), Duration::from_secs(seconds)).await;
        refused(&format!("{seconds} s"), answer, Refusal::Range)?;
    }
    Ok(())
}

pub(super) async fn leases_need_a_blob(t: &Trial<'_>) -> Checked {
    let name = t.name("missing");
    refused("acquire", t.store.acquire_lease(&name, &holder(1), LONG).await, Refusal::NotFound)?;
    refused("renew", t.store.renew_lease(&name, &holder(1)).await, Refusal::NotFound)?;
    refused("release", t.store.release_lease(&name, &holder(1)).await, Refusal::NotFound)?;
    refused("break", t.store.break_lease(&name).await, Refusal::NotFound)
}

/// A snapshot is cut if the ETag is still that of the last write; leases are renewed meanwhile.
pub(super) async fn etags_do_not_change_with_leases_and_snapshots(t: &Trial<'_>) -> Checked {
    let name = t.name("disk");
    let etag = done("create", t.store.create_page(&name, 512).await)?;
    done("acquire", t.store.acquire_lease(&name, &holder(1), LONG).await)?;
    done("renew", t.store.renew_lease(&name, &holder(1)).await)?;
    done("snapshot", t.store.snapshot(&name, Some(&holder(1)), Some(&etag)).await)?;
    done("break", t.store.break_lease(&name).await)?;
    equal("ETag", done("properties", t.store.properties(&name, None).await)?.etag, etag)
}
