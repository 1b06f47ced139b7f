//! One controller a kind. Each pass is a chain of steps, each a file: fetch (reads everything), validate, plan or build
//! (pure), apply, status. Failures are sorted by [`Category`] in one place, here.

pub mod appliance;
pub mod approval;
pub mod failover_run;
pub mod plan;
pub mod policy;
pub mod protected_server;
pub(crate) mod shared;
pub mod vaults;

use std::{fmt::Debug, sync::Arc, time::Duration};

use futures::{StreamExt as _, future::BoxFuture};
use kube::{
    Resource, ResourceExt as _,
    runtime::controller::{Action, Config, Controller},
};
use lifeboat_crds::Reason;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::runtime::{
    Category, Context, Failure,
    metrics::{FailureLabel, KindLabel},
};

/// Objects of a kind that are looked at at the same time; the API server's and the vault's answers are waited for.
const CONCURRENCY: u16 = 16;

/// A Secret that is missing or wrong is read again this often.
const SECRET_INTERVAL: Duration = Duration::from_secs(10);

/// Starts every controller; they run until the process ends.
pub fn start(context: &Context) -> Vec<tokio::task::JoinHandle<()>> {
    vec![
        tokio::spawn(appliance::run(context.clone())),
        tokio::spawn(protected_server::run(context.clone())),
        tokio::spawn(policy::run(context.clone())),
        tokio::spawn(plan::run(context.clone())),
        tokio::spawn(failover_run::run(context.clone())),
        tokio::spawn(approval::run(context.clone())),
    ]
}

/// A pass over one object: when to look again at the latest, or why it did not get to its end.
type Pass<K> = fn(Arc<K>, Context) -> BoxFuture<'static, Result<Duration, Failure>>;

/// Runs `pass` for every object that `controller` names.
async fn drive<K>(controller: Controller<K>, kind: &'static str, context: Context, pass: Pass<K>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let data = Arc::new((context, kind, pass));
    controller
        .with_config(Config::default().concurrency(CONCURRENCY).debounce(Duration::from_millis(100)))
        .run(
            |object, data| async move {
                let (context, kind, pass) = &*data;
                observe(object, context.clone(), kind, *pass).await
            },
            |object, failure, data| {
                let (context, kind, _) = &*data;
                Action::requeue(failed(&*object, failure, context, kind))
            },
            data,
        )
        .for_each(|_| std::future::ready(()))
        .await;
}

async fn observe<K>(
    object: Arc<K>,
    context: Context,
    kind: &'static str,
    pass: Pass<K>,
) -> Result<Action, Failure>
where
    K: Resource<DynamicType = ()>,
{
    let started = Instant::now();
    let name = key(&*object, kind);
    let result = pass(object.clone(), context.clone()).await;
    context.metrics.passes.get_or_create(&KindLabel { kind }).observe(started.elapsed().as_secs_f64());
    match &result {
        Ok(_) => context.backoffs.reset(&name),
        // No condition can say it.
        Err(failure) if failure.reason == Reason::StatusRefused => {
            context.events.warning(&*object, failure.reason, "WriteStatus", &failure.message).await;
        }
        Err(_) => {}
    }
    result.map(Action::requeue)
}

fn failed<K: Resource<DynamicType = ()>>(
    object: &K,
    failure: &Failure,
    context: &Context,
    kind: &'static str,
) -> Duration {
    let category = match failure.category {
        Category::Waiting => "waiting",
        Category::Stalled => "stalled",
        Category::Transient => "transient",
    };
    context.metrics.failures.get_or_create(&FailureLabel { kind, category }).inc();
    let delay = context.backoffs.next(&key(object, kind), failure.category, &*context.env.entropy);
    let delay = if waits_for_a_secret(failure.reason) { delay.min(SECRET_INTERVAL) } else { delay };
    let (namespace, name) = (
        object.meta().namespace.as_deref().unwrap_or_default(),
        object.meta().name.as_deref().unwrap_or_default(),
    );
    tracing::info!(
        kind,
        namespace,
        name,
        category,
        reason = failure.reason.as_str(),
        message = failure.message,
        "pass ended early"
    );
    delay
}

/// Secrets cannot be watched, and whoever puts one right waits to see that it works.
fn waits_for_a_secret(reason: Reason) -> bool {
    matches!(reason, Reason::SecretNotFound | Reason::WrongKey | Reason::VaultAccessDenied)
}

fn key<K: Resource<DynamicType = ()>>(object: &K, kind: &str) -> String {
    format!("{kind}/{}/{}", object.meta().namespace.as_deref().unwrap_or_default(), object.name_any())
}
