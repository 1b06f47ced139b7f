//! /readyz and /stats for the pod that serves a point, without TLS and without secrets.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
    routing::get,
};
use tokio::net::TcpListener;

use crate::serve::Server;

/// Serves until the listener breaks. It is started when every disk's socket listens, so an answer means ready.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(listener: TcpListener, server: Arc<Server>) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/readyz", get(|| async { "ok\n" }))
        .route("/stats", get(stats))
        .with_state(server);
    axum::serve(listener, routes).await
}

async fn stats(State(server): State<Arc<Server>>) -> Response {
    // A plain struct of numbers cannot fail to be written.
    let text = serde_json::to_string(&server.stats()).unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}
