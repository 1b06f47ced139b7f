//! What a verification found: where, what it means for which points, and what to do.

use std::fmt;

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Severity {
    /// As it may be after a crash, or while something is at work: nothing to do.
    Note,
    /// Every point stands, but something that protects them or makes them fast is gone.
    Degraded,
    /// Points are lost, or what is stored is not what was written.
    Damage,
}

/// Points that are hurt, by the numbers of their records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PointRange {
    pub count: u64,
    pub first: u64,
    pub last: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub severity: Severity,
    /// Its name in the vault's container, or in the cache container for `journal/…`.
    pub blob: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Where in the blob.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub byte: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<u64>,
    pub what: String,
    pub remedy: String,
    /// Points that cannot be recovered because of it.
    pub hurts: PointRange,
}

impl PointRange {
    pub fn add(&mut self, number: u64) {
        if self.count == 0 {
            self.first = number;
        }
        self.count += 1;
        self.last = number;
    }
}

impl Finding {
    pub fn new(
        severity: Severity,
        blob: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            blob: blob.into(),
            snapshot: None,
            byte: None,
            record: None,
            what: what.into(),
            remedy: remedy.into(),
            hurts: PointRange::default(),
        }
    }

    #[must_use]
    pub fn at(self, byte: u64) -> Self {
        Self { byte: Some(byte), ..self }
    }

    #[must_use]
    pub fn of_record(self, record: u64) -> Self {
        Self { record: Some(record), ..self }
    }

    #[must_use]
    pub fn of_snapshot(self, snapshot: impl Into<String>) -> Self {
        Self { snapshot: Some(snapshot.into()), ..self }
    }
}

impl fmt::Display for PointRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, first, last } = self;
        match count {
            0 => f.write_str("no point"),
            1 => write!(f, "point {first}"),
            _ => write!(f, "{count} points, {first} to {last}"),
        }
    }
}

impl fmt::Display for Finding {
    /// Where and what, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.blob)?;
        if let Some(snapshot) = &self.snapshot {
            write!(f, " (snapshot {snapshot})")?;
        }
        if let Some(byte) = self.byte {
            write!(f, ", byte {byte}")?;
        }
        if let Some(record) = self.record {
            write!(f, ", record {record}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// Remedies that several findings share.
pub mod remedy {
    /// For blobs that nothing can write again.
    pub const RESTORE: &str =
        "restore the blob from the store's soft-delete or versions; the points named are lost otherwise";
    /// For what the applier makes from the log.
    pub const REBUILT: &str = "the applier makes it anew from the log when it runs again; nothing is lost";
    pub const NOTHING: &str = "nothing to do";
    pub const COPY_AGAIN: &str = "restore the blob from the store's soft-delete or versions; where that is not \
        possible, protect the server anew, so that its disks are copied again";
}
