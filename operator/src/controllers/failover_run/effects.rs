//! Performs what the engine asks for. Every effect can be repeated.

use k8s_openapi::api::batch::v1::Job;
use kube::{ResourceExt as _, api::DeleteParams};
use lifeboat_crds::{
    FailoverApproval, FailoverRun, Reason,
    approval::{FailoverApprovalStatus, Verdict},
};

use super::jobs;
use crate::{
    controllers::shared::{create, delete, set_finalizer, write_status},
    failover::{Effect, effect::Judgement},
    runtime::{Context, Failure},
    targets::{Target as _, virtual_machine_pod::VirtualMachinePods},
};

/// All of them; the first failure is told when the others have been tried, so that one step cannot hold up another.
pub(super) async fn perform(run: &FailoverRun, effects: &[Effect], context: &Context) -> Result<(), Failure> {
    let mut failure = None;
    for effect in effects {
        if let Err(failed) = perform_one(run, effect, context).await {
            context.events.warning(run, Reason::ApiError, "PerformStep", &failed.message).await;
            failure.get_or_insert(failed);
        }
    }
    failure.map_or(Ok(()), Err)
}

async fn perform_one(run: &FailoverRun, effect: &Effect, context: &Context) -> Result<(), Failure> {
    let namespace = run.namespace().unwrap_or_default();
    let jobs = context.api::<Job>(&namespace);
    let machines = VirtualMachinePods::new(context.clone());
    match effect {
        Effect::CreateJob(order) => {
            create(&jobs, &jobs::build(run, order, &context.settings.images)).await?;
        }
        // Its pods first: a Job that is gone has none that still work.
        Effect::StopJob { name } => delete(&jobs, name, &DeleteParams::foreground()).await?,
        Effect::ReleaseJob { name } => {
            if let Some(job) = jobs.get_opt(name).await? {
                set_finalizer(&jobs, &job, false).await?;
            }
        }
        Effect::CreateMachine { name, server } => machines.create(run, name, server).await?,
        Effect::RemoveMachine { name } => machines.remove(run, name).await?,
        Effect::Judge { approval, verdict } => write_verdict(&namespace, approval, verdict, context).await?,
    }
    Ok(())
}

pub(crate) async fn write_verdict(
    namespace: &str,
    approval: &str,
    verdict: &Judgement,
    context: &Context,
) -> Result<(), Failure> {
    let Judgement { result, reason, message } = verdict;
    let verdict = Verdict { result: *result, reason: *reason, message: message.clone(), time: context.now() };
    let api = context.api::<FailoverApproval>(namespace);
    write_status(&api, approval, None, &FailoverApprovalStatus { verdict: Some(verdict) }).await
}
