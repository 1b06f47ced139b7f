//! `/metrics` on one port, `/healthz` and `/readyz` on another, so that network policies can tell them apart.

use std::{future::IntoFuture as _, net::Ipv6Addr};

use axum::{Router, http::StatusCode, routing::get};
use tokio::net::TcpListener;

use super::metrics::Metrics;

#[derive(Debug, thiserror::Error)]
#[error("port {port} cannot be opened: choose another with --metrics-port or --probe-port")]
pub struct ListenError {
    port: u16,
    #[source]
    source: std::io::Error,
}

/// Serves until the process ends. A follower is ready too: it waits for its turn.
pub async fn serve(metrics_port: u16, probe_port: u16, metrics: Metrics) -> Result<(), ListenError> {
    let text = move || std::future::ready(metrics.text());
    spawn(metrics_port, Router::new().route("/metrics", get(text))).await?;
    let alive = || std::future::ready(StatusCode::OK);
    spawn(probe_port, Router::new().route("/healthz", get(alive)).route("/readyz", get(alive))).await
}

async fn spawn(port: u16, router: Router) -> Result<(), ListenError> {
    let listener = listen(port).await.map_err(|source| ListenError { port, source })?;
    tokio::spawn(axum::serve(listener, router).into_future());
    Ok(())
}

/// Both address families where the kernel has IPv6, else IPv4.
async fn listen(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(("0.0.0.0", port)).await,
    }
}
