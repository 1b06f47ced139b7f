//! Notices a vault that was put back to an older moment as a whole: by the end of the server's log as it was last seen,
//! which its status keeps over restarts of everything.
//!
//! A run of a writer can only add to the log, so as long as the same one reports, nothing is asked. When another one
//! reports, the log itself is asked whether it holds what was seen: one small read for each takeover. If it does not, what
//! is lost is kept as [`Rollback`] until somebody acknowledges it, and the new history is followed from then on.
//!
//! **Weakness.** What was never written into a status (a few seconds of figures, everything of a ProtectedServer that was
//! deleted and made again) cannot be missed.

use std::time::Duration;

use lifeboat_crds::{
    ProtectedServer, ReplicationPolicySpec, Time,
    names::ACKNOWLEDGE_ROLLBACK_ANNOTATION,
    server::{LogHead, Rollback},
};
use lifeboat_replication::{
    env::Env,
    ids::{Epoch, RecordNumber, ServerId},
    log::{Head, PartName, Patience, head},
    store::StoreError,
    vault::Vault,
    wire::v1,
};

use super::figures::{time, whole};

/// What was lost is shown for so long at least, unless it is acknowledged: a night's news must be there in the morning.
const SHOWN_FOR: Duration = Duration::from_secs(24 * 3600);
/// The pass comes again within seconds.
const TRIES: u32 = 2;

/// What is known of a server's log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    pub head: Option<LogHead>,
    pub rollback: Option<Rollback>,
}

/// What follows from a reported end of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It is older than what was seen of the same writer: a late report.
    Keep,
    /// The log has grown.
    Follow,
    /// Another writer: does the log still hold what was seen?
    Ask,
}

pub fn judge(seen: Option<&LogHead>, reported: &v1::LogHead) -> Next {
    match seen {
        None => Next::Follow,
        Some(seen) if seen.writer != reported.writer => Next::Ask,
        Some(seen) if place(seen) < reported_place(reported) => Next::Follow,
        Some(_) => Next::Keep,
    }
}

/// What is known after the report. `holds`: the log's answer, when it was asked.
pub fn follow(before: Seen, reported: &v1::LogHead, holds: bool, now: Time) -> Seen {
    let Seen { head, rollback } = before;
    let new = || LogHead {
        epoch: reported.epoch,
        part: reported.part,
        offset: reported.offset,
        chain: hex::encode(&reported.chain),
        record: reported.number,
        point_time: time(reported.point_micros),
        writer: reported.writer.clone(),
        observed_at: whole(now),
    };
    match head {
        None => Seen { head: Some(new()), rollback },
        // An old report of a writer that was fenced: the log has gone on since.
        Some(seen) if holds && reported_place(reported) <= place(&seen) => {
            Seen { head: Some(seen), rollback }
        }
        Some(seen) if holds => {
            // A writer that has just taken the log over may not know of the points before an incomplete copy.
            let point_time = time(reported.point_micros).max(seen.point_time);
            Seen { head: Some(LogHead { point_time, ..new() }), rollback }
        }
        Some(seen) => {
            let lost = lost(&seen, reported, now);
            // If it happens again before the first was seen to, what reached furthest is what people look for.
            let rollback =
                rollback.filter(|known| known.lost_point_time > lost.lost_point_time).unwrap_or(lost);
            Seen { head: Some(new()), rollback: Some(rollback) }
        }
    }
}

fn lost(seen: &LogHead, reported: &v1::LogHead, now: Time) -> Rollback {
    let mark: String = seen.chain.chars().take(8).collect();
    Rollback {
        id: format!("{}-{}-{mark}", seen.epoch, seen.record),
        noticed_at: whole(now),
        lost_record: seen.record,
        lost_point_time: seen.point_time,
        found_record: reported.taken_number,
        found_point_time: time(reported.taken_point_micros),
    }
}

/// In the order of the log.
fn place(head: &LogHead) -> (u32, u32, u64) {
    (head.epoch, head.part, head.offset)
}

fn reported_place(head: &v1::LogHead) -> (u32, u32, u64) {
    (head.epoch, head.part, head.offset)
}

/// `None`: it was not written by us; then nothing can be compared with it.
fn head_of(seen: &LogHead) -> Option<Head> {
    let mut chain = [0; 32];
    hex::decode_to_slice(&seen.chain, &mut chain).ok()?;
    Some(Head {
        part: PartName { epoch: Epoch(seen.epoch), part: seen.part },
        offset: seen.offset,
        chain,
        number: RecordNumber(seen.record),
    })
}

/// Asks the log whether it holds what was seen.
///
/// # Errors
/// When the store gives no answer: then nothing can be said.
pub async fn holds(vault: &Vault, server: &ServerId, seen: &LogHead, env: &Env) -> Result<bool, StoreError> {
    let Some(head) = head_of(seen) else { return Ok(true) };
    head::holds(vault, server, &head, &Patience { env: env.clone(), tries: TRIES }).await
}

/// The rollback that a server's status shows, unless somebody has acknowledged it.
pub fn unacknowledged(server: &ProtectedServer) -> Option<&Rollback> {
    let rollback = server.status.as_ref()?.rollback.as_ref()?;
    Some(rollback).filter(|rollback| !is_acknowledged(server, rollback))
}

pub fn is_acknowledged(server: &ProtectedServer, rollback: &Rollback) -> bool {
    let annotations = server.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get(ACKNOWLEDGE_ROLLBACK_ANNOTATION)) == Some(&rollback.id)
}

/// There is a point that is newer than those that were lost.
pub fn is_mended(rollback: &Rollback, newest_point: Option<Time>) -> bool {
    newest_point.is_some_and(|newest| rollback.lost_point_time.is_none_or(|lost| newest > lost))
}

/// What was lost would be gone by now anyway: retention had deleted it.
pub fn is_over(rollback: &Rollback, policy: Option<&ReplicationPolicySpec>, now: Time) -> bool {
    let Some(policy) = policy else { return false };
    let kept = policy.recovery_points.retention.as_secs().max(policy.journal_retention.as_secs());
    let shown = SHOWN_FOR.max(Duration::from_secs(kept));
    rollback.noticed_at.checked_add(shown).is_ok_and(|until| until < now)
}

/// For the condition and the issue: what happened, and what to do.
pub fn words(server: &ProtectedServer, rollback: &Rollback, mended: bool) -> (String, String) {
    let Rollback { id, noticed_at, lost_record, lost_point_time, found_record, found_point_time } = rollback;
    let point =
        |time: &Option<Time>| time.map_or("no point".to_owned(), |time| format!("newest point {time}"));
    let message = format!(
        "the vault was put back to an older moment: it had acknowledged record {lost_record} ({}), and when this was \
         noticed at {noticed_at} it ended at record {found_record} ({}); what lies between cannot be recovered any more",
        point(lost_point_time),
        point(found_point_time),
    );
    let meanwhile = match mended {
        true => "replication has gone on by itself and there are newer points".to_owned(),
        false => format!(
            "the disks are compared with the vault or copied again by themselves; until there is a newer point a run \
             takes an older one only with recoveryPoint kind At{}",
            found_point_time.map(|time| format!(" and time {time}")).unwrap_or_default()
        ),
    };
    let (namespace, name) = (&server.metadata.namespace, &server.metadata.name);
    let remedy = format!(
        "{meanwhile}. Find out who restored the storage account or the container, and whether other servers are in it; \
         then: kubectl annotate pserver {} -n {} --overwrite {ACKNOWLEDGE_ROLLBACK_ANNOTATION}={id}",
        name.as_deref().unwrap_or_default(),
        namespace.as_deref().unwrap_or_default(),
    );
    (message, remedy)
}
