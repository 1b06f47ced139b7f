//! The world as the engine wants it: plain data, read from the API server (not from a cache) and the vault.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{ResourceExt as _, api::ListParams};
use lifeboat_crds::{
    FailoverApproval, FailoverRun, FailoverRunStatus, ProtectedServer, RecoveryPlan, names::RUN_UID_LABEL,
    plan::Group, run::RunPhase,
};
use lifeboat_replication::wire::v1;

use super::{holds_servers, points};
use crate::{
    control::{ApplianceKey, Asked},
    controllers::{
        protected_server::shutdown::switched_off,
        shared::{has_finalizer, is_deleting},
    },
    failover::{
        World,
        own_points::{OwnPoint, OwnPoints, PointAnswer},
        resolve::{ServerFacts, check_plan, conclude, refuse},
        world::{self, Approval, JobState, Resolution},
    },
    runtime::{Context, Failure},
    targets::{Target as _, virtual_machine_pod::VirtualMachinePods},
};

pub(super) async fn world(
    run: &FailoverRun,
    status: &FailoverRunStatus,
    context: &Context,
) -> Result<World, Failure> {
    let starting = matches!(status.phase.unwrap_or_default(), RunPhase::Pending | RunPhase::Validating);
    let stopping = is_deleting(run) || run.spec.cancel || run.spec.clean_up;
    let resolution = if starting && !stopping { Some(resolution(run, status, context).await?) } else { None };
    Ok(World {
        resolution,
        jobs: jobs(run, context).await?,
        machines: VirtualMachinePods::new(context.clone()).observe(run).await?,
        approvals: approvals(run, context).await?,
    })
}

pub(super) fn created(object: &impl kube::Resource) -> Timestamp {
    object.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |created| created.0)
}

/// Claimed under the lock of the caller.
async fn resolution(
    run: &FailoverRun,
    status: &FailoverRunStatus,
    context: &Context,
) -> Result<Resolution, Failure> {
    if let Some(refused) = refuse(&run.spec, created(run)) {
        return Ok(refused);
    }
    let namespace = run.namespace().unwrap_or_default();
    let groups = match &run.spec.plan_ref {
        None => None,
        Some(reference) => match context.api::<RecoveryPlan>(&namespace).get_opt(&reference.name).await? {
            Some(plan) => Some(plan.spec.groups),
            None => {
                let problem = format!(
                    "RecoveryPlan {} does not exist: create it, or start a run of another plan",
                    reference.name
                );
                return Ok(Resolution::Problems(vec![problem]));
            }
        },
    };
    let names = names(run, groups.as_deref());
    if let Some(taken) = taken(run, &names, context).await? {
        return Ok(taken);
    }
    let servers = servers(&namespace, &names, context).await?;
    let sound = servers.len() == names.len() && check_plan(groups.as_deref().unwrap_or_default()).is_empty();
    let run_points = OwnPoints::new(&run.spec, created(run), status);
    // A run that cannot start says so at once.
    let heard = if sound { own_points(run, &run_points, &servers, context) } else { BTreeMap::new() };
    let awaited = run_points.awaited(&heard);
    if !awaited.is_empty() && run_points.waits_unasked(context.now()) {
        return Ok(Resolution::Awaiting(awaited));
    }
    let facts = facts(&servers, context).await;
    Ok(conclude(groups.as_deref(), sound, &facts, &run_points, &heard, context.now()))
}

/// What is heard of each server. Those whose point of the run's own moment is to come are asked for it.
fn own_points(
    run: &FailoverRun,
    run_points: &OwnPoints<'_>,
    servers: &BTreeMap<String, ProtectedServer>,
    context: &Context,
) -> BTreeMap<String, OwnPoint> {
    let id = format!("run/{}", run.uid().unwrap_or_default());
    let heard = |(name, server): (&String, &ProtectedServer)| {
        let until = match switched_off(server) {
            // What is off writes nothing.
            Some(_) => Some(context.now().max(run_points.moment())),
            None => recoverable_until(server, context),
        };
        let own = OwnPoint { recoverable_until: until, answer: None };
        (name.clone(), own)
    };
    let mut own: BTreeMap<String, OwnPoint> = servers.iter().map(heard).collect();
    for name in run_points.awaited(&own) {
        let Some((key, process_server, server_id)) = servers.get(&name).and_then(place) else { continue };
        let wanted = Asked { consistency: v1::Consistency::CrashConsistent, group: false };
        let answer = context.fleet.ask_point(&key, &process_server, &server_id, &id, wanted);
        if let Some(own) = own.get_mut(&name) {
            own.answer = answer.map(point_answer);
        }
    }
    own
}

fn point_answer(answer: v1::PointAnswer) -> PointAnswer {
    if answer.number == 0 { PointAnswer::Refused(answer.message) } else { PointAnswer::Taken }
}

fn names(run: &FailoverRun, groups: Option<&[Group]>) -> BTreeSet<String> {
    let planned =
        groups.unwrap_or_default().iter().flat_map(|group| &group.servers).map(|server| server.name.clone());
    planned.chain(run.spec.server_ref.iter().map(|reference| reference.name.clone())).collect()
}

async fn taken(
    run: &FailoverRun,
    names: &BTreeSet<String>,
    context: &Context,
) -> Result<Option<Resolution>, Failure> {
    let runs =
        context.api::<FailoverRun>(&run.namespace().unwrap_or_default()).list(&ListParams::default()).await?;
    let holder = runs.items.iter().filter(|other| other.uid() != run.uid()).find_map(|other| {
        let status = other.status.as_ref().filter(|status| holds_servers(status))?;
        let server = status.servers.iter().find(|server| names.contains(&server.name))?;
        let phase = status.phase.unwrap_or_default();
        let state = match phase {
            RunPhase::Completed | RunPhase::Failed | RunPhase::Cancelled => {
                format!("{phase:?}, but not cleaned up")
            }
            _ => format!("{phase:?}"),
        };
        Some(Resolution::Taken { run: other.name_any(), server: server.name.clone(), state })
    });
    Ok(holder)
}

async fn servers(
    namespace: &str,
    names: &BTreeSet<String>,
    context: &Context,
) -> Result<BTreeMap<String, ProtectedServer>, Failure> {
    let mut all = BTreeMap::new();
    for name in names {
        if let Some(server) = context.api::<ProtectedServer>(namespace).get_opt(name).await? {
            all.insert(name.clone(), server);
        }
    }
    Ok(all)
}

async fn facts(
    servers: &BTreeMap<String, ProtectedServer>,
    context: &Context,
) -> BTreeMap<String, ServerFacts> {
    let mut all = BTreeMap::new();
    for (name, server) in servers {
        let points::Points { points, latest_processed, lost, silent } = points::of(server, context).await;
        let facts = ServerFacts {
            id: server.status.as_ref().and_then(|status| status.id.clone()).unwrap_or_default(),
            appliance: server.spec.appliance_ref.name.clone(),
            consistency_group: server.spec.consistency_group.clone(),
            target: server.spec.target.clone(),
            health_check: server.spec.health_check.clone(),
            points,
            latest_processed,
            lost,
            vault_silent: silent,
        };
        all.insert(name.clone(), facts);
    }
    all
}

/// Until when the vault holds everything of the server, as long as its agent is connected.
fn recoverable_until(server: &ProtectedServer, context: &Context) -> Option<Timestamp> {
    let (key, process_server, id) = place(server)?;
    let report = context.fleet.figures(&key, &process_server, &id)?.report;
    let until = report.recoverable_until_micros.max(report.last_point_micros);
    Timestamp::from_microsecond(until).ok().filter(|_| report.connected)
}

/// Its appliance, process server and id in the vault.
fn place(server: &ProtectedServer) -> Option<(ApplianceKey, String, String)> {
    let status = server.status.as_ref()?;
    let key = ApplianceKey {
        namespace: server.namespace().unwrap_or_default(),
        name: server.spec.appliance_ref.name.clone(),
    };
    Some((key, status.process_server.clone()?, status.id.clone()?))
}

pub(super) async fn jobs_of(run: &FailoverRun, context: &Context) -> Result<Vec<Job>, Failure> {
    let ours = ListParams::default().labels(&format!("{RUN_UID_LABEL}={}", run.uid().unwrap_or_default()));
    Ok(context.api::<Job>(&run.namespace().unwrap_or_default()).list(&ours).await?.items)
}

async fn jobs(run: &FailoverRun, context: &Context) -> Result<BTreeMap<String, world::Job>, Failure> {
    let mut all = BTreeMap::new();
    for job in jobs_of(run, context).await? {
        let state = match ended(&job) {
            None => JobState::Active,
            // What it said is read only while somebody may still want to know.
            Some(succeeded) => {
                let said = if has_finalizer(&job) { last_words(&job, context).await? } else { None };
                if succeeded {
                    JobState::Succeeded { message: said }
                } else {
                    let remedy = format!("see the log of Job {}", job.name_any());
                    JobState::Failed {
                        message: said.map_or(remedy.clone(), |said| format!("{said} ({remedy})")),
                    }
                }
            }
        };
        all.insert(
            job.name_any(),
            world::Job { state, deleting: is_deleting(&job), held: has_finalizer(&job) },
        );
    }
    Ok(all)
}

/// Whether it has succeeded, once it has ended.
fn ended(job: &Job) -> Option<bool> {
    let status = job.status.as_ref()?;
    let has = |kind: &str| {
        status
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == kind && condition.status == "True")
    };
    if has("Complete") || status.succeeded.unwrap_or(0) > 0 {
        return Some(true);
    }
    (has("Failed") || status.failed.unwrap_or(0) > 0).then_some(false)
}

/// The end of what the Job's container wrote.
async fn last_words(job: &Job, context: &Context) -> Result<Option<String>, Failure> {
    let ours = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={}", job.name_any()));
    let pods = context.api::<Pod>(&job.namespace().unwrap_or_default()).list(&ours).await?;
    let said = pods.items.iter().find_map(|pod| {
        let container = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
        let ended = container.state.as_ref()?.terminated.as_ref()?;
        let words = ended.message.clone().filter(|message| !message.trim().is_empty());
        let text = words.unwrap_or_else(|| {
            if ended.exit_code == 0 { String::new() } else { format!("exit code {}", ended.exit_code) }
        });
        let text: Vec<char> = text.trim().chars().collect();
        // The end says why; the beginning is in the log.
        (!text.is_empty()).then(|| text.iter().skip(text.len().saturating_sub(MAX_WORDS)).collect())
    });
    Ok(said)
}

/// Characters of a Job's last words that are shown.
const MAX_WORDS: usize = 400;

async fn approvals(run: &FailoverRun, context: &Context) -> Result<Vec<Approval>, Failure> {
    let ours = ListParams::default().fields(&format!("spec.runRef.name={}", run.name_any()));
    let all = context.api::<FailoverApproval>(&run.namespace().unwrap_or_default()).list(&ours).await?;
    let approval = |found: FailoverApproval| Approval {
        name: found.name_any(),
        created: created(&found),
        judged: found.status.as_ref().is_some_and(|status| status.verdict.is_some()),
        spec: found.spec,
    };
    Ok(all.items.into_iter().map(approval).collect())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(serde_json::json!({}), None)]
    #[case(serde_json::json!({"active": 1}), None)]
    #[case(serde_json::json!({"succeeded": 1}), Some(true))]
    #[case(serde_json::json!({"failed": 1}), Some(false))]
    #[case(serde_json::json!({"conditions": [{"type": "Failed", "status": "True"}]}), Some(false))]
    fn a_job_has_ended_when_kubernetes_says_so(
        #[case] status: serde_json::Value,
        #[case] expected: Option<bool>,
    ) {
        let job: Job =
            serde_json::from_value(serde_json::json!({"metadata": {"name": "a"}, "status": status})).unwrap();
        assert_eq!(ended(&job), expected);
    }
}
