//! `FailoverApproval`: answers to runs are judged by the engine with their run; here, answers to nothing.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use kube::{
    ResourceExt as _,
    runtime::{controller::Controller, watcher},
};
use lifeboat_crds::{
    FailoverApproval, FailoverRun,
    approval::{VerdictReason, VerdictResult},
};

use super::failover_run::write_verdict;
use crate::{
    failover::effect::Judgement,
    runtime::{Context, Failure},
};

const LOOK_INTERVAL: Duration = Duration::from_secs(300);

pub async fn run(context: Context) {
    let controller = Controller::new(context.watched::<FailoverApproval>(), watcher::Config::default());
    super::drive(controller, "FailoverApproval", context, |approval, context| {
        reconcile(approval, context).boxed()
    })
    .await;
}

pub async fn reconcile(approval: Arc<FailoverApproval>, context: Context) -> Result<Duration, Failure> {
    if approval.status.as_ref().is_some_and(|status| status.verdict.is_some()) {
        return Ok(LOOK_INTERVAL);
    }
    let namespace = approval.namespace().unwrap_or_default();
    let name = &approval.spec.run_ref.name;
    if context.api::<FailoverRun>(&namespace).get_opt(name).await?.is_none() {
        let message = format!("there is no run {name} in this namespace: name the run that waits");
        let verdict =
            Judgement { result: VerdictResult::Refused, reason: VerdictReason::RunNotFound, message };
        write_verdict(&namespace, &approval.name_any(), &verdict, &context).await?;
    }
    Ok(LOOK_INTERVAL)
}
