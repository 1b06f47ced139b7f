//! `RecoveryPlan`: says beforehand whether it could run, and keeps the result of its last drill.

mod judge;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::FutureExt as _;
use kube::{
    ResourceExt as _,
    api::ListParams,
    runtime::{controller::Controller, reflector::ObjectRef, watcher},
};
use lifeboat_crds::{FailoverRun, ProtectedServer, RecoveryPlan, RecoveryPlanStatus, conditions};

use self::judge::{judge, last_drill};
use super::shared::{is_deleting, write_status};
use crate::runtime::{Context, Failure};

/// Points appear in servers' status, which is not watched from here: it changes too often.
const LOOK_INTERVAL: Duration = Duration::from_secs(15);

pub async fn run(context: Context) {
    let controller = Controller::new(context.watched::<RecoveryPlan>(), watcher::Config::default()).watches(
        context.watched::<FailoverRun>(),
        watcher::Config::default(),
        |run: FailoverRun| {
            let plan = run.spec.plan_ref.as_ref()?;
            Some(ObjectRef::new(&plan.name).within(&run.namespace().unwrap_or_default()))
        },
    );
    super::drive(controller, "RecoveryPlan", context, |plan, context| reconcile(plan, context).boxed()).await;
}

pub async fn reconcile(plan: Arc<RecoveryPlan>, context: Context) -> Result<Duration, Failure> {
    if is_deleting(&*plan) {
        return Ok(LOOK_INTERVAL);
    }
    let (namespace, name) = (plan.namespace().unwrap_or_default(), plan.name_any());
    let servers = context.api::<ProtectedServer>(&namespace).list(&ListParams::default()).await?;
    let servers: BTreeMap<String, ProtectedServer> =
        servers.items.into_iter().map(|server| (server.name_any(), server)).collect();
    let runs = context.api::<FailoverRun>(&namespace).list(&ListParams::default()).await?;
    let before = plan.status.clone().unwrap_or_default();
    let observed = judge(&plan.spec.groups, &servers);
    let count: usize = plan.spec.groups.iter().map(|group| group.servers.len()).sum();
    let new = RecoveryPlanStatus {
        observed_generation: plan.metadata.generation,
        conditions: conditions::merge(&before.conditions, observed, plan.metadata.generation, context.now()),
        servers: u32::try_from(count).ok(),
        last_drill: last_drill(&name, &runs.items).or(before.last_drill),
    };
    write_status(&context.api::<RecoveryPlan>(&namespace), &name, plan.status.as_ref(), &new).await?;
    Ok(LOOK_INTERVAL)
}
