//! `FailoverRun`: drives the engine.
//!
//! A pass reads the run, then the world, asks the engine, persists the new status with the run's `resourceVersion`, and
//! only then performs the effects. On a conflict nothing is done but to read again, so that a deposed leader can do
//! nothing. A crash anywhere in between is met by the next pass: effects follow from status and world.

mod effects;
mod jobs;
mod observe;
mod points;

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use k8s_openapi::api::batch::v1::Job;
use kube::{
    ResourceExt as _,
    api::PostParams,
    runtime::{controller::Controller, reflector::ObjectRef, watcher},
};
use lifeboat_crds::{
    FailoverApproval, FailoverRun, FailoverRunStatus, Reason, conditions,
    conditions::ConditionType,
    run::{RunPhase, ServerStatus},
};

pub(crate) use self::effects::write_verdict;
use super::shared::{is_abandoned, is_deleting, set_finalizer};
use crate::{
    failover::{self, Outcome, Run},
    runtime::{Context, Failure},
};

/// Steps that follow each other without anything to wait for are done in one pass, up to this many.
const TICKS: usize = 16;
/// Machines are pods, which are not watched; Jobs and approvals are.
const RUNNING_INTERVAL: Duration = Duration::from_secs(1);
const WAITING_INTERVAL: Duration = Duration::from_secs(5);
/// Only a change of the object matters.
const IDLE_INTERVAL: Duration = Duration::from_secs(300);

pub async fn run(context: Context) {
    let controller = Controller::new(context.watched::<FailoverRun>(), watcher::Config::default())
        .owns(context.watched::<Job>(), watcher::Config::default())
        .watches(
            context.watched::<FailoverApproval>(),
            watcher::Config::default(),
            |approval: FailoverApproval| {
                Some(
                    ObjectRef::new(&approval.spec.run_ref.name)
                        .within(&approval.namespace().unwrap_or_default()),
                )
            },
        );
    super::drive(controller, "FailoverRun", context, |run, context| reconcile(run, context).boxed()).await;
}

/// Whether no other run may have its servers: while it goes on, and until its machines are gone.
pub fn holds_servers(status: &FailoverRunStatus) -> bool {
    match status.phase.unwrap_or_default() {
        RunPhase::Pending | RunPhase::Validating | RunPhase::CleanedUp => false,
        RunPhase::Running | RunPhase::Waiting | RunPhase::CleaningUp => true,
        RunPhase::Completed | RunPhase::Failed | RunPhase::Cancelled => {
            status.servers.iter().any(|server| server.target.is_some())
        }
    }
}

pub async fn reconcile(cached: Arc<FailoverRun>, context: Context) -> Result<Duration, Failure> {
    let api = context.api::<FailoverRun>(&cached.namespace().unwrap_or_default());
    // Not from the cache: the world that is read next must not be older than the status.
    let Some(run) = api.get_opt(&cached.name_any()).await? else { return Ok(IDLE_INTERVAL) };
    if is_deleting(&run) && is_abandoned(&run) {
        return abandon(&run, &context).await;
    }
    if !is_deleting(&run) {
        set_finalizer(&api, &run, true).await?;
    }
    let Some(mut run) = api.get_opt(&cached.name_any()).await? else { return Ok(IDLE_INTERVAL) };
    for _ in 0..TICKS {
        let (outcome, next) = match step(&run, &context).await? {
            Some(stepped) => stepped,
            // Somebody else has written: read again.
            None => return Ok(Duration::from_millis(100)),
        };
        let changed = run.status.as_ref() != Some(&outcome.status);
        effects::perform(&run, &outcome.effects, &context).await?;
        if let Some(next) = next {
            tell(&run, &outcome.status, &context).await;
            run = next;
        }
        if !changed {
            if is_deleting(&run) && outcome.status.phase == Some(RunPhase::CleanedUp) {
                set_finalizer(&api, &run, false).await?;
            }
            return Ok(interval(&outcome, context.now()));
        }
    }
    Ok(Duration::from_millis(100))
}

/// One tick, persisted. `None`: the run has changed meanwhile.
async fn step(
    run: &FailoverRun,
    context: &Context,
) -> Result<Option<(Outcome, Option<FailoverRun>)>, Failure> {
    let before = run.status.clone().unwrap_or_default();
    let starting = matches!(before.phase.unwrap_or_default(), RunPhase::Pending | RunPhase::Validating);
    // Nobody else takes hold of servers between our look and our write.
    let _claim = if starting { Some(context.claims.lock().await) } else { None };
    let world = observe::world(run, &before, context).await?;
    let (namespace, name, uid) =
        (run.namespace().unwrap_or_default(), run.name_any(), run.uid().unwrap_or_default());
    let engine_run = Run {
        namespace: &namespace,
        name: &name,
        uid: &uid,
        generation: run.metadata.generation,
        created: observe::created(run),
        spec: &run.spec,
        deleting: is_deleting(run),
    };
    let outcome = failover::tick(&engine_run, &before, &world, context.now());
    if run.status.as_ref() == Some(&outcome.status) {
        return Ok(Some((outcome, None)));
    }
    let mut wanted = run.clone();
    wanted.status = Some(outcome.status.clone());
    match context.api::<FailoverRun>(&namespace).replace_status(&name, &PostParams::default(), &wanted).await
    {
        Ok(written) => Ok(Some((outcome, Some(written)))),
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => Ok(None),
        Err(error) => Err(Failure::of_status(error)),
    }
}

fn interval(outcome: &Outcome, now: jiff::Timestamp) -> Duration {
    let usual = match outcome.status.phase.unwrap_or_default() {
        RunPhase::Running | RunPhase::CleaningUp => RUNNING_INTERVAL,
        RunPhase::Pending | RunPhase::Validating | RunPhase::Waiting => WAITING_INTERVAL,
        // A machine that dies is noticed.
        RunPhase::Completed | RunPhase::Failed | RunPhase::Cancelled => WAITING_INTERVAL,
        RunPhase::CleanedUp => IDLE_INTERVAL,
    };
    let wake = outcome.wake_at.map(|time| Duration::try_from(time.duration_since(now)).unwrap_or_default());
    wake.map_or(usual, |wake| wake.min(usual)).max(Duration::from_millis(50))
}

async fn tell(run: &FailoverRun, new: &FailoverRunStatus, context: &Context) {
    let before = run.status.as_ref().and_then(|status| status.phase).unwrap_or_default();
    let phase = new.phase.unwrap_or_default();
    if before == phase {
        return;
    }
    let ready = conditions::find(&new.conditions, ConditionType::Ready);
    let refused = ready.is_some_and(|ready| ready.reason == Reason::PointInFuture.as_str());
    let ready = ready.map(|ready| ready.message.clone()).unwrap_or_default();
    if matches!(before, RunPhase::Pending | RunPhase::Validating) {
        let noted = |server: &ServerStatus| {
            Some(format!("server {}: {}", server.name, server.recovery_point_note.as_ref()?))
        };
        for note in new.servers.iter().filter_map(noted) {
            context.events.warning(run, Reason::OlderPoint, "ChoosePoint", &note).await;
        }
    }
    let note = format!("{phase:?}: {}", new.waiting_for.clone().unwrap_or(ready));
    match phase {
        RunPhase::Failed if refused => {
            context.events.warning(run, Reason::PointInFuture, "ChangePhase", &note).await
        }
        RunPhase::Failed => context.events.warning(run, Reason::StepFailed, "ChangePhase", &note).await,
        RunPhase::Waiting => {
            context.events.normal(run, Reason::WaitingForApproval, "ChangePhase", &note).await
        }
        RunPhase::Completed => context.events.normal(run, Reason::Completed, "ChangePhase", &note).await,
        RunPhase::CleanedUp => context.events.normal(run, Reason::CleanedUp, "ChangePhase", &note).await,
        _ => context.events.normal(run, Reason::Progressing, "ChangePhase", &note).await,
    }
}

/// Lets go of everything at once: Kubernetes removes what the run owns.
async fn abandon(run: &FailoverRun, context: &Context) -> Result<Duration, Failure> {
    context
        .events
        .warning(run, Reason::Abandoned, "Delete", "let go without clean-up, as its annotation asks")
        .await;
    let namespace = run.namespace().unwrap_or_default();
    let jobs = context.api::<Job>(&namespace);
    for job in observe::jobs_of(run, context).await? {
        set_finalizer(&jobs, &job, false).await?;
    }
    set_finalizer(&context.api::<FailoverRun>(&namespace), run, false).await?;
    Ok(IDLE_INTERVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_holds_its_servers_until_its_machines_are_gone() {
        let mut status =
            FailoverRunStatus { phase: Some(RunPhase::Completed), ..FailoverRunStatus::default() };
        assert!(!holds_servers(&status));
        status.servers = serde_json::from_value(serde_json::json!([{"name": "db-1", "state": "Up", "target": {"kind": "Pod", "name": "db-1-abc"}}])).unwrap();
        assert!(holds_servers(&status));
        status.phase = Some(RunPhase::CleanedUp);
        assert!(!holds_servers(&status));
    }
}
