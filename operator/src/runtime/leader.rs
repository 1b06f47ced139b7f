//! One operator at a time: a small lease, and a gate in front of every request of the controllers.
//!
//! The holder renews every [`RENEW_INTERVAL`] with the lease's `resourceVersion`. Another one takes the lease over
//! when it has seen no change for [`LEASE_TERM`] by its own clock (clocks of two machines are never compared).
//! The holder's deadline is [`RENEW_DEADLINE`] after the *start* of its last successful renewal, well before that;
//! from then on the [`Gate`] refuses every request that is not yet under way, and the process exits.
//! A request that was under way can still land: what it changes carries a `resourceVersion` or is safe to repeat.

use std::{
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
    client::Body,
};
use tokio::time::Instant;
use tower::{BoxError, Layer, Service};

/// Without a change for this long, the lease is taken over.
const LEASE_TERM: Duration = Duration::from_secs(15);
/// Without a successful renewal for this long, the holder gives up: 5 s before anyone may take over.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RENEW_INTERVAL: Duration = Duration::from_secs(2);
/// A renewal without an answer is tried again; several fit into the deadline.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
#[error("the operator is not the leader (any more): the request was not sent")]
pub struct NotLeader;

/// Open while the lease is held for certain.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<Mutex<Option<Instant>>>);

impl Gate {
    pub fn is_open(&self) -> bool {
        self.deadline().is_some_and(|deadline| Instant::now() < deadline)
    }

    fn deadline(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn set(&self, deadline: Option<Instant>) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = deadline;
    }

    /// For tests without a lease.
    pub fn always_open() -> Self {
        let gate = Self::default();
        gate.set(Some(Instant::now() + Duration::from_secs(86_400 * 365)));
        gate
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { inner, gate: self.clone() }
    }
}

/// The service that sends requests only while the gate is open.
#[derive(Debug, Clone)]
pub struct Gated<S> {
    inner: S,
    gate: Gate,
}

impl<S> Service<http::Request<Body>> for Gated<S>
where
    S: Service<http::Request<Body>, Error = BoxError>,
    S::Future: Send + 'static,
    S::Response: 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<S::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if !self.gate.is_open() {
            return Box::pin(async { Err(BoxError::from(NotLeader)) });
        }
        Box::pin(self.inner.call(request))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error("the lease was lost to {holder}: this process ends and starts again as a follower")]
    Lost { holder: String },
    #[error("the lease could not be renewed in time: this process ends; check the API server")]
    Expired,
}

/// Waits until the lease is ours; keeps waiting through every error.
pub async fn acquire(
    client: &Client,
    namespace: &str,
    name: &str,
    identity: &str,
    gate: &Gate,
) -> Leadership {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let mut seen: Option<(String, Instant)> = None;
    loop {
        let started = Instant::now();
        match attempt(&leases, (namespace, name), identity, &mut seen).await {
            Ok(Some(lease)) => {
                gate.set(Some(started + RENEW_DEADLINE));
                tracing::info!(identity, "leading");
                return Leadership {
                    leases,
                    name: name.to_owned(),
                    identity: identity.to_owned(),
                    gate: gate.clone(),
                    lease,
                };
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(error = %lifeboat_replication::errors::chain(&error), "cannot look at the lease")
            }
        }
        tokio::time::sleep(RENEW_INTERVAL).await;
    }
}

/// One look at the lease; takes it when it is free or its holder has been silent for the term.
async fn attempt(
    leases: &Api<Lease>,
    (namespace, name): (&str, &str),
    identity: &str,
    seen: &mut Option<(String, Instant)>,
) -> Result<Option<Lease>, kube::Error> {
    let Some(found) = timed(leases.get_opt(name)).await? else {
        let metadata = ObjectMeta {
            name: Some(name.into()),
            namespace: Some(namespace.into()),
            ..ObjectMeta::default()
        };
        let lease = Lease { metadata, spec: Some(held(identity, None)) };
        return settle(timed(leases.create(&PostParams::default(), &lease)).await);
    };
    let version = found.metadata.resource_version.clone().unwrap_or_default();
    let holder = found.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
    let unchanged_since = match seen {
        Some((known, since)) if *known == version => *since,
        _ => {
            *seen = Some((version, Instant::now()));
            Instant::now()
        }
    };
    if !holder.is_empty() && holder != identity && unchanged_since.elapsed() < LEASE_TERM {
        return Ok(None);
    }
    let lease = Lease { spec: Some(held(identity, found.spec.as_ref())), ..found };
    settle(timed(leases.replace(name, &PostParams::default(), &lease)).await)
}

/// Somebody else was quicker: not an error.
fn settle(result: Result<Lease, kube::Error>) -> Result<Option<Lease>, kube::Error> {
    match result {
        Ok(lease) => Ok(Some(lease)),
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(None),
        Err(error) => Err(error),
    }
}

fn held(identity: &str, before: Option<&LeaseSpec>) -> LeaseSpec {
    let now = MicroTime(jiff::Timestamp::now());
    let ours = before.and_then(|spec| spec.holder_identity.as_deref()) == Some(identity);
    let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(LEASE_TERM.as_secs()).ok(),
        acquire_time: if ours {
            before.and_then(|spec| spec.acquire_time.clone())
        } else {
            Some(now.clone())
        },
        renew_time: Some(now),
        lease_transitions: Some(if ours { transitions } else { transitions.saturating_add(1) }),
        ..LeaseSpec::default()
    }
}

async fn timed<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(result) => result,
        Err(elapsed) => Err(kube::Error::Service(Box::new(elapsed))),
    }
}

/// The held lease. Whoever has it must run [`Leadership::keep`].
pub struct Leadership {
    leases: Api<Lease>,
    name: String,
    identity: String,
    gate: Gate,
    lease: Lease,
}

impl Leadership {
    /// Renews until `shutdown`; an error means that the process must exit at once.
    pub async fn keep(&mut self, shutdown: impl Future<Output = ()>) -> Result<(), LeaseError> {
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => return Ok(()),
                () = tokio::time::sleep(RENEW_INTERVAL) => self.renew().await?,
            }
        }
    }

    async fn renew(&mut self) -> Result<(), LeaseError> {
        let started = Instant::now();
        let lease =
            Lease { spec: Some(held(&self.identity, self.lease.spec.as_ref())), ..self.lease.clone() };
        match timed(self.leases.replace(&self.name, &PostParams::default(), &lease)).await {
            Ok(renewed) => {
                self.lease = renewed;
                self.gate.set(Some(started + RENEW_DEADLINE));
            }
            Err(error) => {
                tracing::warn!(error = %lifeboat_replication::errors::chain(&error), "the lease was not renewed");
                self.look_again().await?;
            }
        }
        if self.gate.is_open() { Ok(()) } else { Err(LeaseError::Expired) }
    }

    /// After a refusal or a lost answer: the lease may have our own write, or another holder.
    async fn look_again(&mut self) -> Result<(), LeaseError> {
        let Ok(found) = timed(self.leases.get(&self.name)).await else { return Ok(()) };
        let holder = found.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
        if holder != self.identity {
            self.gate.set(None);
            return Err(LeaseError::Lost { holder });
        }
        self.lease = found;
        Ok(())
    }

    /// So that the next one need not wait for the term. Only after the controllers have stopped.
    pub async fn release(mut self) {
        self.gate.set(None);
        if let Some(spec) = self.lease.spec.as_mut() {
            spec.holder_identity = Some(String::new());
        }
        if let Err(error) = timed(self.leases.replace(&self.name, &PostParams::default(), &self.lease)).await
        {
            tracing::warn!(error = %lifeboat_replication::errors::chain(&error), "the lease was not given free; it runs out by itself");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_gate_closes_by_itself_when_renewals_stop() {
        let gate = Gate::default();
        assert!(!gate.is_open());
        gate.set(Some(Instant::now() + RENEW_DEADLINE));
        tokio::time::advance(RENEW_DEADLINE - Duration::from_millis(1)).await;
        assert!(gate.is_open());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!gate.is_open());
    }

    #[test]
    fn the_holder_gives_up_before_anyone_may_take_over() {
        assert!(RENEW_DEADLINE + REQUEST_TIMEOUT < LEASE_TERM);
    }

    #[test]
    fn a_takeover_is_counted_and_a_renewal_is_not() {
        let first = held("a", None);
        let renewed = held("a", Some(&first));
        assert_eq!(
            (renewed.lease_transitions, renewed.acquire_time.clone()),
            (first.lease_transitions, first.acquire_time)
        );
        assert_eq!(held("b", Some(&renewed)).lease_transitions, Some(2));
    }
}
