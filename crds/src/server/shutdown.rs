//! A server that is taken out of service by order.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Time;

/// What became of the shutdown that was asked for last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Shutdown {
    /// `spec.requestShutdown` that it is about.
    pub requested_at: Time,
    /// How far it is.
    pub state: ShutdownState,
    /// When all that the server ever wrote was in the vault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete_at: Option<Time>,
    /// Refused: why, as a code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reason: Option<String>,
    /// Refused: why, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

/// How far a shutdown is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ShutdownState {
    /// The agent has not answered yet.
    Requested,
    /// Its services are stopped, and its file systems become read-only. From here on it serves nobody.
    Stopping,
    /// Nothing can write any more; what is left is replicated.
    Replicating,
    /// Everything is in the vault, and it was switched off.
    PoweredOff,
    /// It goes on as before, or was left half stopped: the message says which.
    Refused,
}
