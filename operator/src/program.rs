//! The operator's life: listen, wait for the lease, run the controllers, exit when the lease is lost.

use std::sync::Arc;

use kube::{Client, Config, client::ClientBuilder};
use lifeboat_replication::env::Env;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    control::{Fleet, enrol::Registrar},
    controllers::{
        self,
        protected_server::{Budget, Foreign, Places, Written},
        vaults::Vaults,
    },
    runtime::{
        Context,
        error::Backoffs,
        events::Events,
        http::{self, ListenError},
        leader::{self, Gate, LeaseError},
        metrics::Metrics,
        settings::Settings,
    },
};

#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error(
        "the API server's address and credentials cannot be found: run in a pod with a service account, or set KUBECONFIG"
    )]
    Config(#[source] kube::config::InferConfigError),
    #[error("the client of the API server cannot be made")]
    Client(#[source] kube::Error),
    #[error("signals cannot be received")]
    Signal(#[source] std::io::Error),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Lease(#[from] LeaseError),
    #[error("a controller has ended, which it never should: see the log above")]
    ControllerEnded,
}

pub async fn run(settings: Settings) -> Result<(), ProgramError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ProgramError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ProgramError::Signal)?;
    let stop = async move {
        tokio::select! {
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let config = Config::infer().await.map_err(ProgramError::Config)?;
    run_until(settings, config, stop).await
}

/// Ends well after `stop`, with an error when the lease is lost.
pub async fn run_until(
    settings: Settings,
    config: Config,
    stop: impl Future<Output = ()>,
) -> Result<(), ProgramError> {
    let env = Env::system();
    let metrics = Metrics::default();
    http::serve(settings.metrics_port, settings.probe_port, metrics.clone()).await?;
    let gate = Gate::default();
    let lease_client = Client::try_from(config.clone()).map_err(ProgramError::Client)?;
    let client = gated_client(config, &gate)?;
    // Another life of the same pod is another holder.
    let identity = format!("{}_{}", settings.pod_name, env.entropy.uuid());
    tokio::pin!(stop);
    let mut leadership = tokio::select! {
        biased;
        () = &mut stop => return Ok(()),
        leadership = leader::acquire(&lease_client, &settings.namespace, &settings.lease_name, &identity, &gate) => leadership,
    };
    let context = context(client, settings, metrics, env);
    let mut controllers = controllers::start(&context);
    let result = tokio::select! {
        biased;
        kept = leadership.keep(&mut stop) => kept.map_err(ProgramError::from),
        _ = futures::future::select_all(controllers.iter_mut()) => Err(ProgramError::ControllerEnded),
    };
    for controller in &controllers {
        controller.abort();
    }
    // What was under way has ended before anybody else may lead.
    futures::future::join_all(controllers).await;
    if result.is_ok() {
        leadership.release().await;
    }
    result
}

/// What every pass is given.
pub fn context(client: Client, settings: Settings, metrics: Metrics, env: Env) -> Context {
    let context = Context {
        events: Events::new(client.clone(), &settings.pod_name),
        client,
        settings: Arc::new(settings),
        metrics,
        env,
        backoffs: Arc::new(Backoffs::default()),
        fleet: Fleet::default(),
        vaults: Vaults::default(),
        kept: Written::default(),
        foreign: Foreign::default(),
        places: Places::default(),
        budget: Budget::default(),
        claims: Arc::default(),
    };
    context.fleet.set_registrar(Registrar::new(context.clone()));
    context
}

/// Every request goes through the gate.
pub fn gated_client(config: Config, gate: &Gate) -> Result<Client, ProgramError> {
    Ok(ClientBuilder::try_from(config).map_err(ProgramError::Client)?.with_layer(gate).build())
}
