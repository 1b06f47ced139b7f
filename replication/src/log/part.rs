//! Names of the parts of a log, and their bytes.

use std::{fmt, str::FromStr};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::retry::Patience;
use crate::{
    ids::{Epoch, ServerId},
    store::{Properties, Refusal, StoreError},
    vault::{Vault, layout},
};

/// `<epoch>-<part>`, as it stands in the blob's name and in headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartName {
    pub epoch: Epoch,
    pub part: u32,
}

impl PartName {
    /// Before all others.
    pub const FIRST: Self = Self { epoch: Epoch(0), part: 0 };

    pub fn blob(&self, server: &ServerId) -> String {
        layout::log_part(server, self.epoch, self.part)
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:010}-{:010}", self.epoch.0, self.part)
    }
}

impl FromStr for PartName {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (epoch, part) = text.split_once('-').unwrap_or((text, ""));
        Ok(Self { epoch: Epoch(epoch.parse()?), part: part.parse()? })
    }
}

impl Serialize for PartName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PartName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Bytes asked for at once.
const READ_BYTES: u64 = 4 << 20;

/// All parts there are, dead ones too, in order.
pub async fn list(
    vault: &Vault,
    server: &ServerId,
    patience: &Patience,
) -> Result<Vec<PartName>, StoreError> {
    Ok(lengths(vault, server, patience).await?.into_iter().map(|(name, _)| name).collect())
}

/// All parts and how long they are.
pub async fn lengths(
    vault: &Vault,
    server: &ServerId,
    patience: &Patience,
) -> Result<Vec<(PartName, u64)>, StoreError> {
    let prefix = layout::log_prefix(server);
    let mut parts = Vec::new();
    let mut after = None;
    loop {
        let page = patience.sure(|| vault.store.list(&prefix, false, after.as_deref())).await?;
        parts.extend(
            page.blobs
                .iter()
                .filter_map(|blob| Some((layout::parse_log_part(server, &blob.name)?, blob.length)))
                .map(|((epoch, part), length)| (PartName { epoch, part }, length)),
        );
        after = page.next;
        if after.is_none() {
            return Ok(parts);
        }
    }
}

pub async fn properties(
    vault: &Vault,
    server: &ServerId,
    part: PartName,
    patience: &Patience,
) -> Result<Properties, StoreError> {
    let name = part.blob(server);
    patience.sure(|| vault.store.properties(&name, None)).await
}

/// Up to 4 MiB from `offset`; empty when the part ends there; `None` when it ends before.
pub async fn read(
    vault: &Vault,
    server: &ServerId,
    part: PartName,
    offset: u64,
    patience: &Patience,
) -> Result<Option<Bytes>, StoreError> {
    let name = part.blob(server);
    match patience.sure(|| vault.store.get(&name, None, Some(offset..offset + READ_BYTES))).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.is(Refusal::Range) => {
            let length = properties(vault, server, part, patience).await?.length;
            Ok((length >= offset).then(Bytes::new))
        }
        Err(error) => Err(error),
    }
}

/// Everything from the part's beginning to its end as it is now.
pub(super) async fn read_all(
    vault: &Vault,
    server: &ServerId,
    part: PartName,
    patience: &Patience,
) -> Result<Vec<u8>, StoreError> {
    let mut all = Vec::new();
    loop {
        match read(vault, server, part, all.len() as u64, patience).await? {
            Some(bytes) if !bytes.is_empty() => all.extend_from_slice(&bytes),
            _ => return Ok(all),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_back_as_it_is_written_and_sorts_as_text() {
        let name = |epoch, part| PartName { epoch: Epoch(epoch), part };
        let names = [name(0, 0), name(1, 0), name(1, 9), name(1, 10), name(2, 0), name(u32::MAX, u32::MAX)];
        for pair in names.windows(2) {
            assert!(pair[0].to_string() < pair[1].to_string() && pair[0] < pair[1]);
        }
        for name in names {
            assert_eq!(name.to_string().parse(), Ok(name));
            let document = serde_json::to_string(&name).unwrap();
            assert_eq!(document, format!("\"{name}\""));
            assert_eq!(serde_json::from_str::<PartName>(&document).unwrap(), name);
        }
        assert_eq!(name(1, 9).to_string(), "0000000001-0000000009");
        for foreign in ["", "1", "1-", "-1", "a-b", "1-2-3", "4294967296-0"] {
            assert!(foreign.parse::<PartName>().is_err(), "{foreign}");
        }
    }
}
