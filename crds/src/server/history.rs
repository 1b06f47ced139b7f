//! What the cluster keeps of a server's log, and what a vault that was put back has lost of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Time;

/// An end of a server's log that was seen in the vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogHead {
    pub epoch: u32,
    /// Part of the log.
    pub part: u32,
    /// Bytes of the part up to here.
    pub offset: u64,
    /// Chain value there, which authenticates everything before it; 64 hexadecimal digits.
    pub chain: String,
    /// Number of the last record.
    pub record: u64,
    /// The newest point up to here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point_time: Option<Time>,
    /// Who wrote it: the same run of a writer can only have added to it.
    pub writer: String,
    pub observed_at: Time,
}

/// What a vault had acknowledged and does not hold any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rollback {
    /// Names it: the value of the annotation `lifeboat.dev/acknowledge-rollback`.
    pub id: String,
    pub noticed_at: Time,
    /// The last record that was seen before.
    pub lost_record: u64,
    /// The newest point that was seen before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_point_time: Option<Time>,
    /// The last record that the vault held when its log was taken over.
    pub found_record: u64,
    /// The newest point that the vault held then; absent: none is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_point_time: Option<Time>,
}
