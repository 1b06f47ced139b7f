//! The stream to one process server: configuration down, reports and signing requests up.
//!
//! It is opened again whenever it ends, with backoff. Nothing is lost by that: each side sends its whole state anew.
//! Answers to signing requests that were under way are dropped; the agent asks again with the same key.

use std::time::Duration;

use lifeboat_replication::{
    errors::chain,
    wire::v1::{
        self, from_process_server::Message as Up, process_server_control_client::ProcessServerControlClient,
    },
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint as Peer};

use super::{ApplianceKey, Endpoint, Fleet, Identity};

pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that answers no ping for this long is gone.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A process server that restarts is back within seconds; one that is gone costs little.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_secs(3);
/// Configurations and answers on their way; a peer that does not read is disconnected by the ping.
const DEPTH: usize = 16;

#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("control port {address} cannot be reached")]
    Connect {
        address: String,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("control port {address} ended the stream: {}", status.message())]
    Refused { address: String, status: Box<tonic::Status> },
    #[error("control port {address} ended the stream")]
    Ended { address: String },
}

pub(super) async fn connect(endpoint: &Endpoint, identity: &Identity) -> Result<Channel, StreamError> {
    let error = |source| StreamError::Connect { address: endpoint.address.clone(), source };
    Peer::from_shared(format!("https://{}", endpoint.address))
        .map_err(error)?
        .tls_config(identity.tls(&endpoint.tls_name))
        .map_err(error)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .keep_alive_while_idle(true)
        .connect()
        .await
        .map_err(error)
}

/// Never ends; aborted by the fleet.
pub(super) async fn run(
    fleet: Fleet,
    key: ApplianceKey,
    endpoint: Endpoint,
    identity: Identity,
    configuration: watch::Receiver<v1::Configuration>,
) {
    loop {
        let ended = match attach(&fleet, &key, &endpoint, &identity, configuration.clone()).await {
            Ok(()) => StreamError::Ended { address: endpoint.address.clone() },
            Err(error) => error,
        };
        if fleet.trouble_of(&key, &endpoint.name).as_deref() != Some(&chain(&ended)) {
            tracing::warn!(appliance = key.name, process_server = endpoint.name, error = %chain(&ended), "no control stream");
        }
        fleet.trouble(&key, &endpoint.name, chain(&ended));
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

async fn attach(
    fleet: &Fleet,
    key: &ApplianceKey,
    endpoint: &Endpoint,
    identity: &Identity,
    mut configuration: watch::Receiver<v1::Configuration>,
) -> Result<(), StreamError> {
    let refused =
        |status| StreamError::Refused { address: endpoint.address.clone(), status: Box::new(status) };
    let channel = connect(endpoint, identity).await?;
    let (down, outgoing) = mpsc::channel(DEPTH);
    configuration.mark_changed();
    let response = ProcessServerControlClient::new(channel).attach(ReceiverStream::new(outgoing)).await;
    let mut incoming = response.map_err(refused)?.into_inner();
    tracing::info!(appliance = key.name, process_server = endpoint.name, "control stream open");
    loop {
        tokio::select! {
            biased;
            message = incoming.message() => match message.map_err(refused)?.and_then(|message| message.message) {
                None => return Ok(()),
                Some(Up::Report(report)) => fleet.heard(key, &endpoint.name, report),
                Some(Up::SignRequest(request)) => answer(fleet, key, request, down.clone()),
            },
            changed = configuration.changed() => {
                if changed.is_err() {
                    return Ok(()); // The appliance is gone.
                }
                let message = v1::from_operator::Message::Configuration(configuration.borrow_and_update().clone());
                if down.send(v1::FromOperator { message: Some(message) }).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// Beside the stream, since it asks the API server.
fn answer(fleet: &Fleet, key: &ApplianceKey, request: v1::SignRequest, down: mpsc::Sender<v1::FromOperator>) {
    let Some(registrar) = fleet.registrar() else { return };
    let key = key.clone();
    tokio::spawn(async move {
        let answer = registrar.sign(&key, request).await;
        let message = Some(v1::from_operator::Message::SignAnswer(answer));
        // A stream that has ended meanwhile: the agent asks again.
        let _ = down.send(v1::FromOperator { message }).await;
    });
}
