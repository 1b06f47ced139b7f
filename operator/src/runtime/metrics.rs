//! Figures for Prometheus.

use std::sync::{Arc, Mutex};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    pub kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FailureLabel {
    pub kind: &'static str,
    pub category: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ServerLabel {
    pub namespace: String,
    pub server: String,
}

#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    pub passes: Family<KindLabel, Histogram, fn() -> Histogram>,
    pub failures: Family<FailureLabel, Counter>,
    pub rpo_seconds: Family<ServerLabel, Gauge>,
    pub agent_connected: Family<ServerLabel, Gauge>,
    pub enrolments: Counter,
    pub enrolments_refused: Counter,
}

/// From a millisecond to half a minute: a pass that takes longer waits for something.
fn pass_seconds() -> Histogram {
    Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0])
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Arc::default(),
            passes: Family::new_with_constructor(pass_seconds),
            failures: Family::default(),
            rpo_seconds: Family::default(),
            agent_connected: Family::default(),
            enrolments: Counter::default(),
            enrolments_refused: Counter::default(),
        };
        let Ok(mut registry) = metrics.registry.lock() else { return metrics.clone() };
        registry.register(
            "lifeboat_operator_pass_seconds",
            "Duration of passes over objects",
            metrics.passes.clone(),
        );
        registry.register(
            "lifeboat_operator_failures",
            "Passes that did not get to their end",
            metrics.failures.clone(),
        );
        registry.register(
            "lifeboat_server_rpo_seconds",
            "Data that a disaster would cost now",
            metrics.rpo_seconds.clone(),
        );
        registry.register(
            "lifeboat_server_agent_connected",
            "1 while the agent is connected",
            metrics.agent_connected.clone(),
        );
        registry.register("lifeboat_enrolments", "Certificates given to agents", metrics.enrolments.clone());
        registry.register(
            "lifeboat_enrolments_refused",
            "Enrolments refused",
            metrics.enrolments_refused.clone(),
        );
        drop(registry);
        metrics
    }
}

impl Metrics {
    /// The text that Prometheus reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &registry);
        text
    }

    /// A server that is gone is no longer reported.
    pub fn forget(&self, namespace: &str, server: &str) {
        let label = ServerLabel { namespace: namespace.to_owned(), server: server.to_owned() };
        self.rpo_seconds.remove(&label);
        self.agent_connected.remove(&label);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_appears_and_disappears() {
        let metrics = Metrics::default();
        let label = ServerLabel { namespace: "prod".into(), server: "db-1".into() };
        metrics.rpo_seconds.get_or_create(&label).set(3);
        assert!(
            metrics.text().contains(r#"lifeboat_server_rpo_seconds{namespace="prod",server="db-1"} 3"#),
            "{}",
            metrics.text()
        );
        metrics.forget("prod", "db-1");
        assert!(!metrics.text().contains("db-1"));
    }
}
