//! The model store behind a script: which calls fail, how, and for how long, and what others do just before a call. It
//! counts the calls as well.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::store::{
    Refusal, Result,
    gated::{Call, Gate, Gated},
    model::ModelStore,
};

#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// None: it is the next one that fails.
    Passes,
    Refused(Refusal),
    /// Nothing is done, and nobody knows.
    RequestLost,
    /// It is done, and nobody knows.
    AnswerLost,
}

/// When a fault is over.
#[derive(Debug)]
enum Lasts {
    Calls(u32),
    Until(Instant),
}

#[derive(Debug)]
struct Rule {
    operation: &'static str,
    /// Of this blob; `None`: of any.
    blob: Option<String>,
    fault: Fault,
    lasts: Lasts,
}

/// What somebody else does just before a call.
struct Meanwhile {
    operation: &'static str,
    blob: String,
    work: BoxFuture<'static, ()>,
}

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "before {} of {}", self.operation, self.blob)
    }
}

/// The model store behind its script.
pub(super) type Scripted = Gated<Script>;

#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) model: ModelStore,
    meanwhile: Mutex<Option<Meanwhile>>,
    rules: Mutex<Vec<Rule>>,
    calls: Mutex<BTreeMap<&'static str, u32>>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Script {
    pub(super) fn before_model() -> Arc<Scripted> {
        let script = Self::default();
        Gated::new(Arc::new(script.model.clone()), script)
    }

    /// The next call of `operation` fails; called again, the one after it as well.
    pub(super) fn fails(&self, operation: &'static str, fault: Fault) {
        lock(&self.rules).push(Rule { operation, blob: None, fault, lasts: Lasts::Calls(1) });
    }

    /// As [`Script::fails`], of one blob.
    pub(super) fn fails_on(&self, operation: &'static str, blob: &str, fault: Fault) {
        let blob = Some(blob.to_owned());
        lock(&self.rules).push(Rule { operation, blob, fault, lasts: Lasts::Calls(1) });
    }

    /// Every call of `operation` fails from now on, for so long.
    pub(super) fn fails_for(&self, time: Duration, operation: &'static str, fault: Fault) {
        let lasts = Lasts::Until(Instant::now() + time);
        lock(&self.rules).push(Rule { operation, blob: None, fault, lasts });
    }

    /// Just before the next call of `operation` for this blob reaches the store, somebody else does this.
    pub(super) fn meanwhile(
        &self,
        operation: &'static str,
        blob: &str,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let work: BoxFuture<'static, ()> = Box::pin(work);
        *lock(&self.meanwhile) = Some(Meanwhile { operation, blob: blob.to_owned(), work });
    }

    /// Calls of `operation` since this was asked last.
    pub(super) fn calls(&self, operation: &'static str) -> u32 {
        lock(&self.calls).remove(operation).unwrap_or_default()
    }

    /// Everything that was asked for has happened.
    pub(super) fn all_struck(&self) -> bool {
        lock(&self.rules).is_empty() && lock(&self.meanwhile).is_none()
    }

    fn fault(&self, operation: &'static str, name: &str) -> Option<Fault> {
        *lock(&self.calls).entry(operation).or_default() += 1;
        let mut rules = lock(&self.rules);
        rules.retain(|rule| match rule.lasts {
            Lasts::Calls(left) => left > 0,
            Lasts::Until(end) => Instant::now() < end,
        });
        let of_this = |rule: &&mut Rule| {
            rule.operation == operation && rule.blob.as_ref().is_none_or(|blob| blob == name)
        };
        let rule = rules.iter_mut().find(of_this)?;
        let fault = rule.fault;
        if let Lasts::Calls(left) = &mut rule.lasts {
            *left -= 1;
        }
        rules.retain(|rule| !matches!(rule.lasts, Lasts::Calls(0)));
        Some(fault)
    }
}

impl Gate for Script {
    async fn pass<T: Send>(
        &self,
        call: Call<'_>,
        request: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let Call { operation, name, .. } = call;
        let due = lock(&self.meanwhile).take_if(|due| due.operation == operation && due.blob == name);
        if let Some(due) = due {
            due.work.await;
        }
        match self.fault(operation, name) {
            None | Some(Fault::Passes) => request.await,
            Some(Fault::Refused(why)) => Err(call.refused(why, "planted")),
            Some(Fault::RequestLost) => Err(call.unknown("planted")),
            Some(Fault::AnswerLost) => {
                let _ = request.await;
                Err(call.unknown("planted"))
            }
        }
    }
}
