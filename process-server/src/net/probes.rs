//! /metrics, /healthz and /readyz, without TLS and without secrets.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::net::TcpListener;

use crate::report::Sources;

#[derive(Debug, Clone)]
pub struct Probes {
    pub registry: Arc<Registry>,
    pub sources: Sources,
}

impl Probes {
    pub async fn serve(self, listener: TcpListener) -> std::io::Result<()> {
        axum::serve(listener, self.routes()).await
    }

    fn routes(self) -> Router {
        Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self)
    }

    /// What it waits for; empty: ready.
    fn waits_for(&self) -> String {
        if self.sources.directory.borrow().is_none() {
            return "no configuration yet: it waits for the operator".to_owned();
        }
        self.sources.vault_closed.borrow().clone()
    }
}

async fn ready(State(probes): State<Probes>) -> Response {
    let waits_for = probes.waits_for();
    match waits_for.is_empty() {
        true => "ok\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, format!("{waits_for}\n")).into_response(),
    }
}

async fn metrics(State(probes): State<Probes>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &probes.registry) {
        Ok(()) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
