//! Events of `events.k8s.io`, written beside the objects they are about. A lost event is logged and forgotten: what
//! counts stands in status.
//!
//! What repeats within minutes is counted in one event. kube's recorder would do so for everything with the same reason and
//! action, and show the first one's words for all of them; so each wording has a recorder of its own.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use lifeboat_crds::{Condition, Reason};
use tokio::time::Instant;

/// A recorder counts repetitions for as long.
const SERIES: Duration = Duration::from_secs(360);

#[derive(Clone)]
pub struct Events {
    client: Client,
    reporter: Reporter,
    recorders: Arc<Mutex<BTreeMap<String, (Recorder, Instant)>>>,
}

impl Events {
    pub fn new(client: Client, instance: &str) -> Self {
        let reporter =
            Reporter { controller: lifeboat_crds::names::MANAGER.into(), instance: Some(instance.into()) };
        Self { client, reporter, recorders: Arc::default() }
    }

    fn recorder(&self, note: &str) -> Recorder {
        let mut recorders = self.recorders.lock().unwrap_or_else(PoisonError::into_inner);
        recorders.retain(|_, (_, used)| used.elapsed() < SERIES);
        let made = || Recorder::new(self.client.clone(), self.reporter.clone());
        let (recorder, used) = recorders.entry(note.to_owned()).or_insert_with(|| (made(), Instant::now()));
        *used = Instant::now();
        recorder.clone()
    }

    /// A condition that has changed: in its own reason and words.
    pub async fn condition<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        condition: &Condition,
        action: &str,
        note: &str,
    ) {
        let type_ = if condition.status == "True" { EventType::Normal } else { EventType::Warning };
        self.publish(object, type_, &condition.reason, action, note).await;
    }

    pub async fn normal<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        reason: Reason,
        action: &str,
        note: &str,
    ) {
        self.publish(object, EventType::Normal, reason.as_str(), action, note).await;
    }

    pub async fn warning<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        reason: Reason,
        action: &str,
        note: &str,
    ) {
        self.publish(object, EventType::Warning, reason.as_str(), action, note).await;
    }

    async fn publish<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        type_: EventType,
        reason: &str,
        action: &str,
        note: &str,
    ) {
        // The API server's limit of a note is 1 KiB.
        let note: String = note.chars().take(1000).collect();
        let event = Event {
            type_,
            reason: reason.into(),
            action: action.into(),
            note: Some(note.clone()),
            secondary: None,
        };
        if let Err(error) = self.recorder(&note).publish(&event, &object.object_ref(&())).await {
            tracing::warn!(error = %lifeboat_replication::errors::chain(&error), reason, "an event was not written");
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use kube::client::Body;
    use lifeboat_crds::ReplicationPolicy;

    use super::*;

    /// An API server that takes everything and gives back what it was sent.
    fn recording(calls: &Arc<Mutex<Vec<(String, String)>>>) -> Client {
        let calls = calls.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let calls = calls.clone();
            async move {
                let method = request.method().to_string();
                let sent = request.into_body().collect_bytes().await?;
                let event: serde_json::Value = serde_json::from_slice(&sent)?;
                let note = event["note"].as_str().unwrap_or_default().to_owned();
                calls.lock().unwrap_or_else(PoisonError::into_inner).push((method, note));
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Response::new(Body::from(sent.to_vec())))
            }
        });
        Client::new(service, "dr")
    }

    #[tokio::test]
    async fn every_wording_has_an_event_of_its_own_and_what_repeats_is_counted_in_it() {
        let calls = Arc::default();
        let events = Events::new(recording(&calls), "test");
        let policy: ReplicationPolicy = serde_json::from_value(
            serde_json::json!({"metadata": {"name": "gold", "namespace": "dr"}, "spec": {}}),
        )
        .unwrap();
        for note in ["Pending → Enrolling", "Enrolling → Protected", "Pending → Enrolling"] {
            events.normal(&policy, Reason::Progressing, "ChangePhase", note).await;
        }
        let calls = calls.lock().unwrap().clone();
        let made: Vec<&str> =
            calls.iter().filter(|(method, _)| method == "POST").map(|(_, note)| note.as_str()).collect();
        assert_eq!(made, ["Pending → Enrolling", "Enrolling → Protected"]);
        assert_eq!(calls.iter().filter(|(method, _)| method == "PATCH").count(), 1, "{calls:?}");
    }
}
