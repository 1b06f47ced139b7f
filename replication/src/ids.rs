//! Identifiers. Numbers that must not be mixed up have types of their own.

use std::{fmt, str::FromStr};

/// A server's identity in the vault: made once (UUID, lower-case), bound to its certificate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a server id: it must be a lower-case UUID as in ProtectedServer.status.id")]
pub struct InvalidServerId {
    pub value: String,
}

impl ServerId {
    /// From 16 random bytes given by [`crate::env::Entropy`].
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(uuid::Builder::from_random_bytes(bytes).into_uuid().hyphenated().to_string())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServerId {
    type Err = InvalidServerId;

    fn from_str(value: &str) -> Result<Self, InvalidServerId> {
        match uuid::Uuid::try_parse(value) {
            Ok(id) if id.hyphenated().to_string() == value => Ok(Self(value.to_owned())),
            _ => Err(InvalidServerId { value: value.to_owned() }),
        }
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Number of a server's writer: a higher one fences the lower. The first is 1.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u32);

/// Number of a record in a server's stream. The first is 1; 0 means none yet.
///
/// At one record a second 32 bits last 136 years; the page blob's sequence number holds `epoch << 32 | record`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct RecordNumber(pub u64);

impl RecordNumber {
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A record among all that ever were: a store that lost the end of a log gives its numbers again, in a later epoch.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
pub struct RecordId {
    pub epoch: Epoch,
    pub number: RecordNumber,
}

impl RecordId {
    /// What the seed disks carry once they hold it.
    pub fn sequence(self) -> u64 {
        sequence_number(self.epoch, self.number)
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of epoch {}", self.number, self.epoch)
    }
}

/// Number of a disk within its server: given once, never reused.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct DiskSlot(pub u32);

macro_rules! display_number {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
display_number!(Epoch, RecordNumber, DiskSlot);

/// The order in which writers may touch a seed disk: `epoch << 32 | record`, below 2^63.
pub fn sequence_number(epoch: Epoch, record: RecordNumber) -> u64 {
    (u64::from(epoch.0) << 32) | (record.0 & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_epoch_outranks_any_record_of_an_earlier_one() {
        assert!(
            sequence_number(Epoch(2), RecordNumber(1))
                > sequence_number(Epoch(1), RecordNumber(u32::MAX.into()))
        );
    }

    #[test]
    fn refuses_an_id_that_could_escape_its_folder() {
        let refused = "../x".parse::<ServerId>().unwrap_err();
        assert!(refused.to_string().contains("lower-case UUID"), "{refused}");
    }
}
