//! What the operator wants for one server.

use lifeboat_replication::{ids::Epoch, wire::v1};

/// `None` in the channel that carries it means: not assigned to this process server (any more).
#[derive(Debug, Clone, PartialEq)]
pub struct Assigned {
    /// namespace/name, for logs and metrics.
    pub display_name: String,
    pub settings: v1::Settings,
    /// zstd level, 1 to 19.
    pub compression_level: i32,
    /// Points that are asked for; the agent answers in its heartbeats.
    pub points: Vec<v1::PointRequest>,
    /// The writer that was given up: its lease is not waited for.
    pub lost: Option<Epoch>,
}

/// Fast enough for a core to keep up with a disk; what an assignment without a level gets.
const DEFAULT_COMPRESSION_LEVEL: i32 = 1;

impl From<&v1::Assignment> for Assigned {
    fn from(assignment: &v1::Assignment) -> Self {
        let level = match assignment.compression_level {
            level @ 1..=19 => level,
            _ => DEFAULT_COMPRESSION_LEVEL,
        };
        Self {
            display_name: assignment.display_name.clone(),
            settings: assignment.settings.clone().unwrap_or_default(),
            compression_level: level,
            // What is asked of its group is the coordinator's.
            points: assignment.points.iter().filter(|request| !request.group).cloned().collect(),
            lost: (assignment.lost_epoch > 0).then_some(Epoch(assignment.lost_epoch)),
        }
    }
}
