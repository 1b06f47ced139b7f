//! `ReplicationPolicy`: says how many servers use it. What it asks for goes to the process servers with the
//! appliance's configuration; whatever is wrong with it the API server has refused already.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use kube::{
    ResourceExt as _,
    api::ListParams,
    runtime::{controller::Controller, reflector::ObjectRef, watcher},
};
use lifeboat_crds::{
    ProtectedServer, Reason, ReplicationPolicy, ReplicationPolicyStatus,
    conditions::{self, ConditionType},
};

use super::shared::{is_deleting, write_status};
use crate::runtime::{Context, Failure};

const LOOK_INTERVAL: Duration = Duration::from_secs(300);

pub async fn run(context: Context) {
    let controller = Controller::new(context.watched::<ReplicationPolicy>(), watcher::Config::default())
        .watches(
            context.watched::<ProtectedServer>(),
            watcher::Config::default(),
            |server: ProtectedServer| {
                Some(
                    ObjectRef::new(&server.spec.policy_ref.name)
                        .within(&server.namespace().unwrap_or_default()),
                )
            },
        );
    super::drive(controller, "ReplicationPolicy", context, |policy, context| {
        reconcile(policy, context).boxed()
    })
    .await;
}

pub async fn reconcile(policy: Arc<ReplicationPolicy>, context: Context) -> Result<Duration, Failure> {
    if is_deleting(&*policy) {
        return Ok(LOOK_INTERVAL);
    }
    let (namespace, name) = (policy.namespace().unwrap_or_default(), policy.name_any());
    let servers = context.api::<ProtectedServer>(&namespace).list(&ListParams::default()).await?;
    let users = servers.iter().filter(|server| server.spec.policy_ref.name == name).count();
    let before = policy.status.clone().unwrap_or_default();
    let observed = match policy.spec.resynchronization.allows(context.now()) {
        Ok(_) => vec![conditions::met(ConditionType::Ready, Reason::AsExpected, "the policy can be used")],
        Err(unknown) => {
            let message = format!(
                "spec.resynchronization.window.timeZone: {unknown}; until then no comparison begins by itself"
            );
            vec![
                conditions::unmet(ConditionType::Ready, Reason::UnknownTimeZone, &message),
                conditions::met(ConditionType::Stalled, Reason::UnknownTimeZone, message),
            ]
        }
    };
    let new = ReplicationPolicyStatus {
        observed_generation: policy.metadata.generation,
        conditions: conditions::merge(
            &before.conditions,
            observed,
            policy.metadata.generation,
            context.now(),
        ),
        protected_servers: u32::try_from(users).ok(),
    };
    write_status(&context.api::<ReplicationPolicy>(&namespace), &name, policy.status.as_ref(), &new).await?;
    Ok(LOOK_INTERVAL)
}
