//! What is wrong with a server, each with its remedy. Pure.

use lifeboat_crds::{
    Time,
    conditions::Reason,
    server::{Issue, Replication, ServerPhase, Severity},
};

use super::{Facts, rollback};
use crate::controllers::protected_server::figures::whole;

/// The reference system's: heartbeat lost for this long is critical.
const LOST_SECONDS: u64 = 15 * 60;
/// RPO of this many times the threshold is critical.
const CRITICAL_RPO_FACTOR: u64 = 4;

/// Code, severity, message, remedy.
type Told = (String, Severity, String, String);

/// One a code, in the order in which they came: the list's key. What an agent tells twice (of two disks, say) is told in one.
fn by_code(all: Vec<Told>) -> Vec<Told> {
    let mut once: Vec<Told> = Vec::new();
    for (code, severity, message, remedy) in all {
        let Some(known) = once.iter_mut().find(|known| known.0 == code) else {
            once.push((code, severity, message, remedy));
            continue;
        };
        known.1 = known.1.max(severity);
        for (text, more) in [(&mut known.2, message), (&mut known.3, remedy)] {
            if !text.contains(&more) {
                text.push_str("; ");
                text.push_str(&more);
            }
        }
    }
    once
}

pub(super) fn issues(facts: &Facts<'_>, now: Time) -> Vec<Issue> {
    let mut all: Vec<Told> = Vec::new();
    if let Some(report) = facts.report() {
        for issue in report.heartbeat.iter().flat_map(|heartbeat| &heartbeat.issues) {
            let severity = if issue.severity == "Warning" { Severity::Warning } else { Severity::Critical };
            all.push((issue.code.clone(), severity, issue.message.clone(), issue.remedy.clone()));
        }
    }
    let late = facts.late();
    if let Some(hindrance) = facts.hindrance().filter(|hindrance| hindrance.is_worth_a_word(late)) {
        all.push((
            hindrance.reason().as_str().into(),
            hindrance.severity(late),
            hindrance.message(),
            match facts.upload_limit().filter(|_| hindrance.reason() == Reason::UploadBacklog) {
                Some(limit) => format!(
                    "{}; spec.bandwidth limits uploads to {} KiB/s now",
                    hindrance.remedy(),
                    limit / 1024
                ),
                None => hindrance.remedy().into(),
            },
        ));
    }
    if let Some((rollback, mended)) = facts.rolled_back {
        let severity = if mended { Severity::Warning } else { Severity::Critical };
        let (message, remedy) = rollback::words(facts.server, rollback, mended);
        all.push((Reason::VaultRolledBack.as_str().into(), severity, message, remedy));
    }
    if let Some(applied) =
        facts.findings.applied.as_ref().filter(|applied| !applied.report.retention_error.is_empty())
    {
        all.push((
            Reason::RetentionStopped.as_str().into(),
            Severity::Warning,
            applied.report.retention_error.clone(),
            "do as the message says; until then nothing of this server is deleted and what it stores grows"
                .into(),
        ));
    }
    if let Some((reason, severity, message, remedy)) =
        facts.findings.group.as_ref().and_then(super::group::Found::issue)
    {
        all.push((reason.as_str().into(), severity, message, remedy));
    }
    if facts.enrolled
        && facts.server.spec.replication == Replication::Enabled
        && facts.findings.figures.is_some()
        && !facts.connected()
        && facts.refused().is_none()
        && facts.overdue(now)
    {
        let lost = facts.silence().is_some_and(|silence| silence >= LOST_SECONDS);
        let severity = if lost { Severity::Critical } else { Severity::Warning };
        all.push((
            Reason::AgentSilent.as_str().into(),
            severity,
            "the agent is not connected".into(),
            "look at `systemctl status lifeboat-agent` on the machine, and whether it reaches the appliance's ports".into(),
        ));
    }
    let threshold = facts.threshold();
    // Whoever is not enrolled, or paused, has no other trouble than that.
    let replicates =
        !matches!(facts.phase, ServerPhase::Paused | ServerPhase::Pending | ServerPhase::Enrolling);
    if let Some(seconds) = facts.rpo_seconds.filter(|seconds| replicates && *seconds > threshold) {
        let severity =
            if seconds / CRITICAL_RPO_FACTOR > threshold { Severity::Critical } else { Severity::Warning };
        let told = |(code, ..): &Told| {
            code == Reason::AgentSilent.as_str()
                || facts.hindrance().is_some_and(|hindrance| code == hindrance.reason().as_str())
        };
        let remedy = match all.iter().find(|one| told(one)) {
            Some((code, ..)) => format!("it comes down when what is told as {code} is over"),
            None => "check that the agent is connected, the appliance's health, and whether the uplink carries what is written".to_owned(),
        };
        all.push((
            Reason::RpoExceeded.as_str().into(),
            severity,
            format!("the RPO is above {threshold} s"),
            remedy,
        ));
    }
    let all = by_code(all);
    let bounded = |text: String| text.chars().take(1024).collect::<String>();
    all.into_iter()
        .take(32)
        .map(|(code, severity, message, remedy)| {
            let since = facts
                .before
                .issues
                .iter()
                .find(|known| known.code == code)
                .map_or_else(|| whole(now), |known| known.since);
            Issue { code, severity, message: bounded(message), remedy: bounded(remedy), since }
        })
        .collect()
}
