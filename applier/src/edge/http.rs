//! /metrics, /healthz and /readyz, without TLS and without secrets.

use std::sync::atomic::{AtomicI64, AtomicU64};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::net::TcpListener;

use super::board::{Board, Shown};
use crate::core::Stored;

/// Serves until the listener breaks.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(listener: TcpListener, board: Board) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(board);
    axum::serve(listener, routes).await
}

async fn ready(State(board): State<Board>) -> Response {
    match (board.ready(), board.vault_error()) {
        (true, _) => "ok\n".into_response(),
        (false, error) if error.is_empty() => {
            (StatusCode::SERVICE_UNAVAILABLE, "the vault is being opened\n").into_response()
        }
        (false, error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Server {
    server_id: String,
    server: String,
}

async fn metrics(State(board): State<Board>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &registry(&board.servers(), board.ready())) {
        Ok(()) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

type Figure = (&'static str, &'static str, fn(&Shown) -> u64);

/// Each figure of a server, its help and where it comes from.
const FIGURES: [Figure; 27] = [
    ("applied_record", "Last record that stands on the seed disks", |shown| shown.status.applied_number),
    ("log_record", "Last record seen in the log", |shown| shown.status.log_number),
    ("applied_point_seconds", "Instant of the last exact record on the seed disks (Unix time)", |shown| {
        u64::try_from(shown.status.applied_t0_micros / 1_000_000).unwrap_or(0)
    }),
    ("points", "Recovery points that stand in snapshots", |shown| shown.status.points.len() as u64),
    ("stored_bytes", "Bytes of the server in the vault, without what only snapshots hold", |shown| {
        stored(shown).total()
    }),
    ("journal_bytes", "Bytes of segments in cache storage", |shown| stored(shown).journal_bytes),
    ("log_bytes", "Bytes of the commit log", |shown| stored(shown).log_bytes),
    ("seed_disk_bytes", "Bytes of seed disks that hold something", |shown| stored(shown).seed_disk_bytes),
    ("snapshots_stored", "Snapshots of all seed disks that stand", |shown| stored(shown).snapshots),
    ("stored_observed_seconds", "When this was counted (Unix time)", |shown| {
        let at = shown.status.storage.map_or(0, |storage| storage.observed_at_micros);
        u64::try_from(at / 1_000_000).unwrap_or(0)
    }),
    ("journal_begins_seconds", "From here on every consistent round can be recovered (Unix time)", |shown| {
        u64::try_from(shown.status.journal_begins_micros / 1_000_000).unwrap_or(0)
    }),
    ("deleted_segments", "Segments deleted since the start", |shown| shown.status.figures.deleted_segments),
    ("deleted_segment_bytes", "Bytes of segments deleted since the start", |shown| {
        shown.status.figures.deleted_segment_bytes
    }),
    ("deleted_snapshots", "Snapshots deleted since the start", |shown| {
        shown.status.figures.deleted_snapshots
    }),
    ("deleted_log_parts", "Parts of the commit log deleted since the start", |shown| {
        shown.status.figures.deleted_log_parts
    }),
    ("deleted_log_bytes", "Bytes of the commit log deleted since the start", |shown| {
        shown.status.figures.deleted_log_bytes
    }),
    ("pinned_blobs", "Blobs that only a pin keeps from being deleted", |shown| {
        shown.status.figures.pinned_blobs
    }),
    ("retention_failing", "1: what retention has given up is not deleted", |shown| {
        u64::from(!shown.status.collect_error.is_empty())
    }),
    ("snapshots", "Snapshots cut since the start", |shown| shown.status.figures.snapshots),
    ("failing", "1: applying cannot go on", |shown| u64::from(!shown.status.error.is_empty())),
    ("batches", "Batches applied since the start", |shown| shown.status.figures.batches),
    ("records", "Records applied since the start", |shown| shown.status.figures.records),
    ("page_writes", "Page writes and clears since the start", |shown| shown.status.figures.page_writes),
    ("written_bytes", "Bytes written to seed disks since the start", |shown| {
        shown.status.figures.written_bytes
    }),
    ("skipped_bytes", "Bytes not written because a later record of the batch replaced them", |shown| {
        shown.status.figures.superseded_bytes
    }),
    ("fetched_bytes", "Bytes of segments fetched since the start", |shown| {
        shown.status.figures.fetched_bytes
    }),
    ("superseded_batches", "Batches given up because another applier was ahead", |shown| {
        shown.status.figures.superseded_batches
    }),
];

/// Nothing is known before the first whole look: zeros.
fn stored(shown: &Shown) -> Stored {
    shown.status.storage.map(|storage| storage.stored).unwrap_or_default()
}

fn registry(servers: &[Shown], ready: bool) -> Registry {
    let mut registry = Registry::with_prefix("lifeboat_applier");
    let vault: Gauge<u64, AtomicU64> = Gauge::default();
    vault.set(u64::from(ready));
    registry.register("vault_usable", "1: the vault answers and its servers are known", vault);
    for (name, help, figure) in FIGURES {
        let family: Family<Server, Gauge<u64, AtomicU64>> = Family::default();
        for shown in servers {
            let server = Server { server_id: shown.id.to_string(), server: shown.name.clone() };
            family.get_or_create(&server).set(figure(shown));
        }
        registry.register(name, help, family);
    }
    let growth: Family<Server, Gauge<i64, AtomicI64>> = Family::default();
    for shown in servers {
        if let Some(bytes) = shown.status.storage.and_then(|storage| storage.growth_bytes_per_day) {
            let server = Server { server_id: shown.id.to_string(), server: shown.name.clone() };
            growth.get_or_create(&server).set(bytes);
        }
    }
    registry.register("growth_bytes_per_day", "Growth of what is stored, over the last day", growth);
    registry
}
