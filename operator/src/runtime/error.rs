//! Three kinds of failures of a pass, told apart in one place: they decide when the next pass comes, which condition
//! is written and which event.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use lifeboat_crds::Reason;
use lifeboat_replication::{env::Entropy, errors::chain};

/// Nothing changes until a person acts: the object's own change wakes us, this is only for what no watch shows.
const STALLED_INTERVAL: Duration = Duration::from_secs(60);
/// What is waited for usually comes with a watch event.
const WAITING_INTERVAL: Duration = Duration::from_secs(5);
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// A store or API server that was away for long is tried again every minute.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Category {
    /// Something else must be ready first.
    Waiting,
    /// A person must act.
    Stalled,
    /// Trying again helps.
    Transient,
}

/// A pass that did not get to its end.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub category: Category,
    pub reason: Reason,
    pub message: String,
}

impl Failure {
    pub fn waiting(reason: Reason, message: impl Into<String>) -> Self {
        Self { category: Category::Waiting, reason, message: message.into() }
    }

    pub fn stalled(reason: Reason, message: impl Into<String>) -> Self {
        Self { category: Category::Stalled, reason, message: message.into() }
    }

    pub fn transient(reason: Reason, message: impl Into<String>) -> Self {
        Self { category: Category::Transient, reason, message: message.into() }
    }
}

impl Failure {
    /// Why a status was not written.
    pub fn of_status(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if status.code == 422 => Self::stalled(
                Reason::StatusRefused,
                format!(
                    "the API server does not take what the operator has to say, so the status is out of date: {}; operator and \
                     custom resource definitions are of different versions: upgrade both with the chart \
                     (`crds.install=true` in one release of the cluster)",
                    status.message
                ),
            ),
            _ => error.into(),
        }
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if status.code == 403 => Self::stalled(
                Reason::ApiError,
                format!(
                    "the API server does not allow it ({}): install the chart's roles of the same version",
                    status.message
                ),
            ),
            kube::Error::Api(status) if status.code == 422 => Self::stalled(
                Reason::InvalidSpec,
                format!("the API server does not accept what follows from the spec: {}", status.message),
            ),
            kube::Error::Api(status) => {
                Self::transient(Reason::ApiError, format!("the API server says: {}", status.message))
            }
            other => Self::transient(
                Reason::ApiError,
                format!("the API server could not be asked: {}", chain(other)),
            ),
        }
    }
}

/// Exponential backoff with jitter, for each object of its own.
#[derive(Debug, Default)]
pub struct Backoffs {
    failures: Mutex<BTreeMap<String, u32>>,
}

impl Backoffs {
    /// The object's pass has come to its end.
    pub fn reset(&self, object: &str) {
        self.with(|failures| failures.remove(object));
    }

    /// When to try again after this failure.
    pub fn next(&self, object: &str, category: Category, entropy: &dyn Entropy) -> Duration {
        match category {
            Category::Waiting => WAITING_INTERVAL,
            Category::Stalled => STALLED_INTERVAL,
            Category::Transient => {
                let failures = self.with(|failures| {
                    let count = failures.entry(object.to_owned()).or_default();
                    *count = count.saturating_add(1);
                    *count
                });
                jittered(failures, entropy)
            }
        }
    }

    fn with<R>(&self, act: impl FnOnce(&mut BTreeMap<String, u32>) -> R) -> R {
        act(&mut self.failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

/// Between half and the whole of the doubled time, so that objects that failed together do not come back together.
fn jittered(failures: u32, entropy: &dyn Entropy) -> Duration {
    let whole = FIRST_BACKOFF.saturating_mul(1 << (failures - 1).min(10)).min(MAX_BACKOFF);
    let part = f64::from(u32::try_from(entropy.next_u64() >> 32).unwrap_or(0)) / f64::from(u32::MAX);
    whole.mul_f64(0.5 + part / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_for_one_object_up_to_a_minute_and_starts_anew_after_success() {
        let (backoffs, env) = (Backoffs::default(), lifeboat_replication::env::Env::system());
        let next = || backoffs.next("a", Category::Transient, &*env.entropy);
        let first = next();
        assert!(first >= FIRST_BACKOFF / 2 && first <= FIRST_BACKOFF, "{first:?}");
        for _ in 0..20 {
            next();
        }
        let later = next();
        assert!(later >= MAX_BACKOFF / 2 && later <= MAX_BACKOFF, "{later:?}");
        assert!(backoffs.next("b", Category::Transient, &*env.entropy) <= FIRST_BACKOFF);
        backoffs.reset("a");
        assert!(next() <= FIRST_BACKOFF);
    }

    #[test]
    fn a_missing_right_is_no_reason_to_hammer_the_api_server() {
        let status = kube::core::Status::failure("pods is forbidden", "Forbidden").with_code(403);
        let failure = Failure::from(kube::Error::Api(Box::new(status)));
        assert_eq!(failure.category, Category::Stalled);
        assert!(failure.message.contains("install the chart's roles"), "{failure}");
    }
}
