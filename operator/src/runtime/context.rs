//! What every pass is given.

use std::sync::Arc;

use kube::{Api, Client, Resource};
use lifeboat_replication::env::Env;

use super::{error::Backoffs, events::Events, metrics::Metrics, settings::Settings};
use crate::{
    control::Fleet,
    controllers::{
        protected_server::{Budget, Foreign, Places, Written},
        vaults::Vaults,
    },
};

#[derive(Clone)]
pub struct Context {
    /// Refuses requests unless this process leads.
    pub client: Client,
    pub settings: Arc<Settings>,
    pub events: Events,
    pub metrics: Metrics,
    pub env: Env,
    pub backoffs: Arc<Backoffs>,
    /// Streams to process servers and appliers, and what they have told.
    pub fleet: Fleet,
    pub vaults: Vaults,
    /// How long data is kept, as the vaults say.
    pub kept: Written,
    /// What appliers of other clusters have written into the vaults.
    pub foreign: Foreign,
    /// Where every server is.
    pub places: Places,
    /// Of writes of figures.
    pub budget: Budget,
    /// A run takes hold of its servers while nobody else looks.
    pub claims: Arc<tokio::sync::Mutex<()>>,
}

impl Context {
    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The watched namespaces: one, or all.
    pub fn watched<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        match &self.settings.watch_namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    pub fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::from_microsecond(self.env.wall.now().0).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }
}
