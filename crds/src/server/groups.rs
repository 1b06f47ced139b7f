//! Points that the servers of a consistency group have in common.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Time;

/// The points of a server's consistency group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupPoint {
    /// Name of the group.
    pub group: String,
    /// The newest one: every member has it in the vault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<TakenGroupPoint>,
    /// The last attempt, if it gave none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<MissedGroupPoint>,
}

/// A point of all servers of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TakenGroupPoint {
    /// The records of the members bear it.
    pub id: String,
    /// The instant at which all members stood still. A recovery of all members at this time gives this point.
    pub time: Time,
    /// The servers that have it.
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub members: Vec<GroupMember>,
    /// How long the longest-frozen file system stood still.
    pub longest_freeze_millis: u64,
}

/// One server's part of a group's point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GroupMember {
    /// Name of the ProtectedServer.
    pub name: String,
    /// Epoch of the log that has it.
    pub epoch: u64,
    /// Number of the record that is the point.
    pub record: u64,
}

/// Why there is no newer point of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MissedGroupPoint {
    pub time: Time,
    /// A stable word.
    pub reason: String,
    /// The same in words, with what to do.
    #[schemars(length(max = 1024))]
    pub message: String,
}
