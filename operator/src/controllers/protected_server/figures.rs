//! Figures of a server as people read them. Pure.

use lifeboat_crds::{
    ProtectedServerStatus, Time,
    server::{AgentStatus, DiskState, DiskStatus, RecoveryPointsStatus, Rpo, ServerPhase, StorageStatus},
};
use lifeboat_replication::{env::Micros, wire::v1};

use crate::control::Figures;

/// Now minus the later of the newest point and the last proof that nothing was dirty, all in the process server's time.
pub fn rpo_seconds(figures: &Figures) -> Option<u64> {
    let until = Micros(figures.report.recoverable_until_micros.max(figures.report.last_point_micros));
    if until.0 <= 0 {
        return None;
    }
    let at_report = figures.time.seconds_since(until).max(0.0);
    Some((at_report + figures.age.as_secs_f64()) as u64)
}

/// What was known grows with time as long as nothing newer is heard: of a process server that has not taken the log yet,
/// or by an operator that was restarted.
pub(super) fn rpo_since(known: &Rpo, now: Time) -> u64 {
    let since = now.duration_since(known.observed_at).as_secs();
    known.seconds.saturating_add(u64::try_from(since).unwrap_or(0))
}

pub(super) fn disks(report: &v1::ServerReport, before: &ProtectedServerStatus, now: Time) -> Vec<DiskStatus> {
    let Some(heartbeat) = &report.heartbeat else { return before.disks.clone() };
    let had_points = report.last_point_micros > 0;
    let mut all: Vec<DiskStatus> = heartbeat
        .disks
        .iter()
        .map(|disk| {
            let copying = disk.total_bytes > 0 && disk.replicated_bytes < disk.total_bytes;
            let state = match disk.state.to_ascii_lowercase().as_str() {
                "unsupported" => DiskState::Unsupported,
                "missing" => DiskState::Missing,
                _ if copying && had_points => DiskState::Resynchronizing,
                _ if copying => DiskState::InitialReplication,
                _ => DiskState::Replicating,
            };
            let rate =
                if disk.bytes_per_second > 0 { disk.bytes_per_second } else { report.copy_bytes_per_second };
            let left = disk.total_bytes.saturating_sub(disk.replicated_bytes);
            let seconds = left.checked_div(rate).and_then(|seconds| i64::try_from(seconds).ok());
            DiskStatus {
                id: disk.id.clone(),
                path: disk.path.clone(),
                size_bytes: disk.size_bytes,
                state,
                replicated_bytes: copying.then_some(disk.replicated_bytes),
                total_bytes: copying.then_some(disk.total_bytes),
                bytes_per_second: (copying && rate > 0).then_some(rate),
                estimated_completion: seconds
                    .filter(|_| copying)
                    .and_then(|seconds| now.checked_add(jiff::SignedDuration::from_secs(seconds)).ok())
                    .map(whole),
                dirty_bytes: Some(disk.dirty_bytes),
            }
        })
        .collect();
    all.sort_by(|a, b| a.id.cmp(&b.id));
    all.dedup_by(|a, b| a.id == b.id);
    all
}

pub(super) fn progress(phase: ServerPhase, disks: &[DiskStatus]) -> Option<String> {
    if !matches!(phase, ServerPhase::InitialReplication | ServerPhase::Resynchronizing) {
        return None;
    }
    let (done, total) = disks.iter().fold((0_u64, 0_u64), |(done, total), disk| {
        match (disk.replicated_bytes, disk.total_bytes) {
            (Some(replicated), Some(all)) => (done + replicated, total + all),
            _ => (done + disk.size_bytes, total + disk.size_bytes),
        }
    });
    (done.saturating_mul(100)).checked_div(total).map(|percent| format!("{percent}%"))
}

pub(super) fn agent(report: &v1::ServerReport) -> Option<AgentStatus> {
    let heartbeat = report.heartbeat.as_ref()?;
    let text = |value: &String| (!value.is_empty()).then(|| value.clone());
    Some(AgentStatus {
        version: heartbeat.agent_version.clone(),
        upgrade_available: match report.agent_program() {
            v1::AgentProgram::Unspecified => None,
            v1::AgentProgram::Served => Some(false),
            v1::AgentProgram::Other => Some(true),
        },
        hostname: text(&heartbeat.hostname),
        os: text(&heartbeat.os),
        kernel: text(&heartbeat.kernel),
        machine_id: text(&heartbeat.machine_id),
        tracking: text(&heartbeat.tracking),
        last_seen: time(report.last_seen_micros).map(whole),
        freezes: Some(heartbeat.freezes).filter(|freezes| *freezes > 0),
        worst_freeze_millis: Some(heartbeat.worst_freeze_micros.div_ceil(1000)).filter(|millis| *millis > 0),
        not_freezable: heartbeat.not_freezable.clone(),
    })
}

pub(super) fn recovery_points(
    applied: &v1::AppliedServer,
    report: Option<&v1::ServerReport>,
    before: Option<&RecoveryPointsStatus>,
) -> RecoveryPointsStatus {
    let times: Vec<i64> = applied.points.iter().map(|point| point.t0_micros).collect();
    let newest = report
        .map(|report| report.last_point_micros)
        .into_iter()
        .chain(times.iter().copied())
        .max()
        .unwrap_or(0);
    let oldest = times.iter().copied().min().and_then(time);
    RecoveryPointsStatus {
        count: u32::try_from(applied.points.len()).unwrap_or(u32::MAX),
        oldest,
        latest: time(newest),
        // As long as nothing was deleted, the journal reaches back to the first point.
        journal_begins: time(applied.journal_begins_micros).or(oldest),
        latest_app_consistent: latest_app_consistent(applied, report, before),
    }
}

/// `None`: not counted yet.
pub(super) fn storage(applied: &v1::AppliedServer) -> Option<StorageStatus> {
    let v1::Storage {
        journal_bytes,
        log_bytes,
        seed_disk_bytes,
        snapshots,
        growth_bytes_per_day,
        observed_at_micros,
    } = applied.storage?;
    let observed_at = whole(time(observed_at_micros)?);
    Some(StorageStatus {
        journal_bytes,
        log_bytes,
        seed_disk_bytes,
        snapshots,
        growth_bytes_per_day,
        observed_at,
    })
}

/// A snapshot of the applier's, what the process server has committed since it has the log, or what was known before as
/// long as the oldest point is not younger.
fn latest_app_consistent(
    applied: &v1::AppliedServer,
    report: Option<&v1::ServerReport>,
    before: Option<&RecoveryPointsStatus>,
) -> Option<Time> {
    let app = |point: &&v1::Point| point.consistency() == v1::Consistency::AppConsistent;
    let oldest = applied.points.iter().map(|point| point.t0_micros).min().and_then(time);
    let known = before.and_then(|before| before.latest_app_consistent);
    applied
        .points
        .iter()
        .filter(app)
        .map(|point| point.t0_micros)
        .chain(report.map(|report| report.last_app_point_micros))
        .filter_map(time)
        .chain(known.filter(|known| oldest.is_some_and(|oldest| oldest <= *known)))
        .max()
}

pub(super) fn time(micros: i64) -> Option<Time> {
    (micros > 0).then(|| Time::from_microsecond(micros).ok()).flatten()
}

pub(super) fn whole(time: Time) -> Time {
    Time::from_second(time.as_second()).unwrap_or(time)
}

/// Whether something else than figures differs: that is written at once.
pub fn is_significant(before: Option<&ProtectedServerStatus>, after: &ProtectedServerStatus) -> bool {
    let without_figures = |status: &ProtectedServerStatus| {
        let mut status = status.clone();
        status.rpo = None;
        status.last_point_time = None;
        status.progress = None;
        status.recovery_points = status.recovery_points.map(|points| RecoveryPointsStatus {
            count: u32::from(points.count > 0),
            oldest: None,
            latest: None,
            journal_begins: None,
            latest_app_consistent: None,
        });
        status.storage = None;
        if let Some(agent) = status.agent.as_mut() {
            (agent.last_seen, agent.freezes, agent.worst_freeze_millis) = (None, None, None);
        }
        // Who writes the log is worth a write at once, how far it is not.
        if let Some(head) = status.last_seen_head.as_mut() {
            (head.epoch, head.part, head.offset, head.record) = (0, 0, 0, 0);
            (head.chain, head.point_time, head.observed_at) = (String::new(), None, Time::UNIX_EPOCH);
        }
        for disk in &mut status.disks {
            (disk.replicated_bytes, disk.bytes_per_second, disk.estimated_completion, disk.dirty_bytes) =
                (None, None, None, None);
        }
        status
    };
    before.is_none_or(|before| without_figures(before) != without_figures(after))
}
