//! What /metrics shows besides the store's figures: read from the statuses at each scrape, so that nothing is counted
//! twice and a server that left leaves no series behind.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use crate::{core::status::Status, report::Sources};

/// Before every name.
pub const PREFIX: &str = "lifeboat_process_server";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Server {
    /// Id in the vault.
    server: String,
    /// namespace/name.
    name: String,
}

#[derive(Debug)]
struct Figures {
    sources: Sources,
}

pub fn register(registry: &mut Registry, sources: Sources) {
    registry.register_collector(Box::new(Figures { sources }));
}

/// A figure of one server.
type Of<N> = fn(&Status) -> N;

const GAUGES: [(&str, &str, Of<f64>); 9] = [
    ("agent_connected", "1 when the server's agent is connected", |status| flag(status.report.connected)),
    ("log_held", "1 when this process server writes the server's log", |status| flag(status.holds_log)),
    ("log_epoch", "Epoch of the server's log", |status| f64::from(status.report.epoch)),
    ("log_last_record", "Number of the last committed record", |status| status.report.last_number as f64),
    ("complete", "1 when the log holds every block of the server", |status| flag(status.report.complete)),
    ("last_point_timestamp_seconds", "Instant of the newest durable point, 0 when there is none", |status| {
        seconds(status.report.last_point_micros)
    }),
    (
        "recoverable_until_timestamp_seconds",
        "Up to when the server can be recovered, 0 when it cannot",
        |status| seconds(status.report.recoverable_until_micros),
    ),
    ("waiting_for_room", "1 when the agent waits for room in the spool or in memory", |status| {
        flag(status.waiting_for_room)
    }),
    ("failing", "1 when the server's log cannot be written at the moment", |status| {
        flag(!status.report.error.is_empty())
    }),
];

const COUNTERS: [(&str, &str, Of<u64>); 7] = [
    ("received_bytes", "Bytes of changed blocks that came from the agent", |status| {
        status.report.received_bytes
    }),
    ("sent_bytes", "Bytes of segments that went to the vault", |status| status.report.sent_bytes),
    ("stored_bytes", "Bytes of segments that committed records name", |status| status.report.stored_bytes),
    ("copied_bytes", "Bytes of changed blocks in committed records of copies", |status| status.copied_bytes),
    ("records", "Committed records", |status| status.report.records),
    ("violations", "Connections refused or ended for what the agent sent", |status| status.violations),
    ("takeovers", "Times that the server's log was taken over", |status| status.takeovers),
];

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let members = self.sources.members.borrow().clone();
        let generation = self.sources.directory.borrow().as_ref().map_or(0, |directory| directory.generation);
        let own = [
            ("spool_used_bytes", "Bytes in the spool", self.sources.space.used_bytes() as f64),
            ("spool_size_bytes", "Bytes that the spool may hold", self.sources.space.size_bytes() as f64),
            (
                "vault_usable",
                "1 when the vault is open and its store answers",
                flag(self.sources.vault_error().is_empty()),
            ),
            (
                "configuration_generation",
                "Generation of the operator's last configuration",
                generation as f64,
            ),
            (
                "upload_limit_bytes_per_second",
                "What may be uploaded now, 0 when there is no limit",
                self.sources.upload_limit() as f64,
            ),
            ("servers", "Servers that are assigned", members.len() as f64),
        ];
        for (name, help, value) in own {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        let statuses: Vec<(Server, Status)> = members
            .iter()
            .map(|(id, member)| {
                let status = member.status.borrow().clone();
                (Server { server: id.clone(), name: status.display_name.clone() }, status)
            })
            .collect();
        for (name, help, value) in GAUGES {
            let name = server_name(name);
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            for (server, status) in &statuses {
                ConstGauge::new(value(status)).encode(family.encode_family(server)?)?;
            }
        }
        for (name, help, value) in COUNTERS {
            let name = server_name(name);
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            for (server, status) in &statuses {
                ConstCounter::new(value(status)).encode(family.encode_family(server)?)?;
            }
        }
        Ok(())
    }
}

fn server_name(name: &str) -> String {
    format!("server_{name}")
}

fn flag(set: bool) -> f64 {
    f64::from(u8::from(set))
}

fn seconds(micros: i64) -> f64 {
    micros as f64 / 1e6
}
