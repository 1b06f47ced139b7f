//! `failover`: starts a run and follows it until it waits for people, or has ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use clap::Args;
use jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use lifeboat_crds::{
    FailoverRun, RecoveryPlan,
    conditions::{self, ConditionType},
    plan::FailoverType,
    refs::LocalRef,
    run::{
        FailoverRunSpec, FailoverRunStatus, RecoveryPointChoice, RecoveryPointKind, RunPhase, StepState,
        StepStatus,
    },
};
use serde_json::json;

use crate::{
    cluster::{Cluster, PluginError, api},
    text,
};

/// The run is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(700);
/// The operator looks at a new run at once, or does not run: so many looks later somebody should know.
const LOOKS_BEFORE_WONDERING: u32 = 14;

#[derive(Args)]
pub(crate) struct Failover {
    /// The RecoveryPlan to execute; with --follow, --clean-up or --cancel the FailoverRun.
    name: String,
    /// A drill into an isolated network: the only type that this version offers.
    #[arg(long)]
    test: bool,
    /// The newest point at or before this instant (RFC 3339), instead of the latest.
    #[arg(long)]
    at: Option<Timestamp>,
    /// The newest point that all members of a consistency group have in common, instead of each server's own latest.
    #[arg(long, conflicts_with = "at")]
    latest_group: bool,
    /// Name of the run; made from plan and time when absent.
    #[arg(long)]
    run: Option<String>,
    /// Starts the run and comes back.
    #[arg(long)]
    no_follow: bool,
    /// Follows a run that was started before.
    #[arg(long, conflicts_with_all = ["test", "at", "latest_group", "run", "clean_up", "cancel"])]
    follow: bool,
    /// Removes everything that a run has made, and waits until it is gone.
    #[arg(long, conflicts_with_all = ["test", "at", "latest_group", "run", "cancel"])]
    clean_up: bool,
    /// Stops a run.
    #[arg(long, conflicts_with_all = ["test", "at", "latest_group", "run"])]
    cancel: bool,
}

impl Failover {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<(), PluginError> {
        if self.follow {
            return follow(cluster, &self.name, Shown::default(), RunPhase::has_ended, true).await;
        }
        if self.clean_up || self.cancel {
            let switch = if self.clean_up { json!({"cleanUp": true}) } else { json!({"cancel": true}) };
            let run: FailoverRun = cluster.get("FailoverRun", &self.name).await?;
            // What happened before is no news.
            let mut shown = Shown::default();
            shown.news(&run.status.unwrap_or_default());
            let patch = Patch::Merge(json!({"spec": switch}));
            let patched =
                cluster.api::<FailoverRun>().patch(&self.name, &PatchParams::default(), &patch).await;
            patched.map_err(|source| api(&format!("changing run {}", self.name), source))?;
            if self.clean_up {
                return follow(cluster, &self.name, shown, |phase| phase == RunPhase::CleanedUp, false).await;
            }
            return follow(cluster, &self.name, shown, RunPhase::has_ended, false).await;
        }
        if !self.test {
            return Err(PluginError::refused(
                "this version offers test failovers only",
                format!("add --test: `kubectl lifeboat failover {} --test`", self.name),
            ));
        }
        if let Some(at) = self.at.filter(|at| *at > Timestamp::now()) {
            return Err(PluginError::refused(
                format!("{at} is still to come"),
                "give --at an instant that has passed, in UTC (Z) or with its offset (+01:00)",
            ));
        }
        let _: RecoveryPlan = cluster.get("RecoveryPlan", &self.name).await?;
        let name = self.start(cluster).await?;
        println!("run {name} started (kubectl get frun {name})");
        if self.no_follow {
            return Ok(());
        }
        follow(cluster, &name, Shown::default(), RunPhase::has_ended, true).await
    }

    async fn start(&self, cluster: &Cluster) -> Result<String, PluginError> {
        let name =
            self.run.clone().unwrap_or_else(|| format!("{}-{}", self.name, Timestamp::now().as_second()));
        let point = match self.at {
            Some(time) => RecoveryPointChoice { kind: RecoveryPointKind::At, time: Some(time) },
            None if self.latest_group => {
                RecoveryPointChoice { kind: RecoveryPointKind::LatestGroup, time: None }
            }
            None => RecoveryPointChoice::default(),
        };
        let spec = FailoverRunSpec {
            plan_ref: Some(LocalRef::new(self.name.clone())),
            server_ref: None,
            requested_by: cluster.caller().await?,
            kind: FailoverType::Test,
            recovery_point: point,
            servers: Vec::new(),
            clean_up_after: None,
            cancel: false,
            clean_up: false,
        };
        let run = FailoverRun::new(&name, spec);
        let created = cluster.api::<FailoverRun>().create(&PostParams::default(), &run).await;
        created.map_err(|source| api(&format!("starting run {name}"), source))?;
        Ok(name)
    }
}

/// Prints what changes until `over`, or, with `stop_at_pause`, never: it waits with the run and says who is asked.
async fn follow(
    cluster: &Cluster,
    name: &str,
    mut shown: Shown,
    over: impl Fn(RunPhase) -> bool,
    fail_when_failed: bool,
) -> Result<(), PluginError> {
    let mut unseen = 0;
    loop {
        let run: FailoverRun = cluster.get("FailoverRun", name).await?;
        unseen += u32::from(run.status.is_none());
        if run.status.is_none() && unseen == LOOKS_BEFORE_WONDERING {
            println!(
                "   the operator has not looked at the run yet: see whether it runs (`kubectl -n lifeboat-system get pods`); the run starts when it does"
            );
        }
        let status = run.status.unwrap_or_default();
        for line in shown.news(&status) {
            println!("{line}");
        }
        let phase = status.phase.unwrap_or_default();
        if over(phase) {
            println!("{}", end(name, &status));
            return match unmet(&status).filter(|_| fail_when_failed) {
                Some(why) => Err(PluginError::refused(format!("run {name} has ended as {phase:?}"), why)),
                None => Ok(()),
            };
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Why a run that has ended has not done what it should. A run that made nothing is cleaned up at once, so its phase does
/// not say it.
fn unmet(status: &FailoverRunStatus) -> Option<String> {
    let ready = conditions::find(&status.conditions, ConditionType::Ready)?;
    (ready.status == "False").then(|| ready.message.clone())
}

/// What has been printed, so that only news are.
#[derive(Default)]
struct Shown {
    steps: BTreeMap<String, (u32, StepState, Option<String>)>,
    waiting_for: Option<String>,
    /// Servers with a note on their points.
    noted: BTreeSet<String>,
}

impl Shown {
    fn news(&mut self, status: &FailoverRunStatus) -> Vec<String> {
        let mut lines = Vec::new();
        for server in &status.servers {
            if let Some(note) = &server.recovery_point_note
                && self.noted.insert(server.name.clone())
            {
                lines.push(format!("   {}: {note}", server.name));
            }
        }
        for step in &status.steps {
            // The message too: it says what a step that takes long is at, or what keeps it.
            let now = (step.attempt, step.state, step.message.clone());
            let before = self.steps.insert(step.name.clone(), now.clone());
            if before != Some(now) && step.state != StepState::NotStarted {
                lines.push(line(step, status.progress.as_deref().unwrap_or("")));
            }
        }
        if self.waiting_for != status.waiting_for {
            self.waiting_for.clone_from(&status.waiting_for);
            if let Some(waiting) = &status.waiting_for {
                lines.push(format!("   waiting for: {waiting}"));
            }
        }
        lines
    }
}

fn line(step: &StepStatus, progress: &str) -> String {
    let took = match (step.started_at, step.finished_at) {
        (Some(started), Some(finished)) => format!(" ({})", text::between(started, finished)),
        _ => String::new(),
    };
    let again = if step.attempt > 1 { format!(", attempt {}", step.attempt) } else { String::new() };
    let group = step.group.as_deref().unwrap_or("-");
    let message = step.message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
    format!("[{progress:>5}] {group}  {}  {:?}{again}{took}{message}", step.name, step.state)
}

fn end(name: &str, status: &FailoverRunStatus) -> String {
    let figure = |label: &str, seconds: Option<u64>| {
        seconds.map(|seconds| format!(", {label} {}", text::seconds(seconds))).unwrap_or_default()
    };
    let up: Vec<_> = status
        .servers
        .iter()
        .map(|server| format!("  {}: {:?} {}", server.name, server.state, server.addresses.join(" ")))
        .collect();
    format!(
        "run {name}: {:?}{}{}\n{}",
        status.phase.unwrap_or_default(),
        figure("RTO", status.rto_seconds),
        figure("RPO", status.rpo_seconds),
        up.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use lifeboat_crds::run::ServerStatus;

    use super::*;

    #[test]
    fn why_a_point_is_older_than_its_run_is_told_once() {
        let server =
            json!({"name": "db-1", "state": "NotStarted", "recoveryPointNote": "its agent is not connected"});
        let server: ServerStatus = serde_json::from_value(server).unwrap();
        let status = FailoverRunStatus { servers: vec![server], ..FailoverRunStatus::default() };
        let mut shown = Shown::default();
        assert_eq!(shown.news(&status), ["   db-1: its agent is not connected"]);
        assert!(shown.news(&status).is_empty());
    }

    #[test]
    fn a_run_that_was_refused_and_cleaned_up_has_failed_all_the_same() {
        let mut status: FailoverRunStatus = serde_json::from_value(json!({
            "phase": "CleanedUp",
            "conditions": [{"type": "Ready", "status": "False", "reason": "PointInFuture", "message": "start another run",
                "lastTransitionTime": "2026-03-01T00:00:00Z"}],
        }))
        .unwrap();
        assert_eq!(unmet(&status).as_deref(), Some("start another run"));
        status.conditions[0].status = "True".into();
        assert_eq!(unmet(&status), None);
    }
}
