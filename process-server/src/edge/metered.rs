//! The gate of a blob store that notes how long each call takes, how it ends, and whether the store can be used at all.

use std::{sync::Arc, time::Duration};

use lifeboat_replication::store::{
    Refusal, Result, StoreError,
    gated::{Call, Gate},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};
use tokio::{sync::watch, time::Instant};

/// From a millisecond to the time-out of a call.
const BUCKETS: [f64; 10] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    operation: &'static str,
    outcome: &'static str,
}

/// Figures of all stores of a program.
#[derive(Debug, Clone)]
pub struct StoreFigures {
    seconds: Family<Operation, Histogram, fn() -> Histogram>,
    calls: Family<Outcome, Counter>,
    /// Why the store cannot be used at the moment; empty: it can.
    trouble: Arc<watch::Sender<String>>,
}

impl StoreFigures {
    pub fn register(registry: &mut Registry) -> Self {
        let figures = Self {
            seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            calls: Family::default(),
            trouble: Arc::new(watch::Sender::new(String::new())),
        };
        registry.register(
            "store_call_seconds",
            "Time that calls of the blob store took",
            figures.seconds.clone(),
        );
        registry.register("store_calls", "Calls of the blob store by how they ended", figures.calls.clone());
        figures
    }

    pub fn trouble(&self) -> watch::Receiver<String> {
        self.trouble.subscribe()
    }

    fn ended(&self, operation: &'static str, took: Duration, error: Option<&StoreError>) {
        self.seconds.get_or_create(&Operation { operation }).observe(took.as_secs_f64());
        let outcome = match error {
            None => "done",
            Some(StoreError::Refused { .. }) => "refused",
            Some(StoreError::Unknown { .. }) => "unknown",
        };
        self.calls.get_or_create(&Outcome { operation, outcome }).inc();
        // Other refusals are answers: the store works.
        let useless = error
            .filter(|error| matches!(error.refusal(), None | Some(Refusal::Denied | Refusal::NoContainer)));
        let trouble = useless.map(ToString::to_string).unwrap_or_default();
        self.trouble.send_if_modified(|before| {
            let changed = *before != trouble;
            if changed {
                *before = trouble;
            }
            changed
        });
    }
}

impl Gate for StoreFigures {
    async fn pass<T: Send>(
        &self,
        call: Call<'_>,
        request: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let started = Instant::now();
        let result = request.await;
        self.ended(call.operation, started.elapsed(), result.as_ref().err());
        result
    }
}
