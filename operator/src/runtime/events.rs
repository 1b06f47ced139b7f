//! Events of `events.k8s.io`, written beside the objects they are about. A lost event is logged and forgotten: what
//! counts stands in status.

use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use lifeboat_crds::Reason;

#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

impl Events {
    pub fn new(client: Client, instance: &str) -> Self {
        let reporter =
            Reporter { controller: lifeboat_crds::names::MANAGER.into(), instance: Some(instance.into()) };
        Self { recorder: Recorder::new(client, reporter) }
    }

    pub async fn normal<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        reason: Reason,
        action: &str,
        note: &str,
    ) {
        self.publish(object, EventType::Normal, reason, action, note).await;
    }

    pub async fn warning<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        reason: Reason,
        action: &str,
        note: &str,
    ) {
        self.publish(object, EventType::Warning, reason, action, note).await;
    }

    async fn publish<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        type_: EventType,
        reason: Reason,
        action: &str,
        note: &str,
    ) {
        // The API server's limit of a note is 1 KiB.
        let note: String = note.chars().take(1000).collect();
        let event = Event {
            type_,
            reason: reason.as_str().into(),
            action: action.into(),
            note: Some(note),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &object.object_ref(&())).await {
            tracing::warn!(error = %lifeboat_replication::errors::chain(&error), reason = reason.as_str(), "an event was not written");
        }
    }
}
