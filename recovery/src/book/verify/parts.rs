//! The parts of a log by their headers: to name the right one when the log cannot be followed.

use std::collections::BTreeMap;

use lifeboat_replication::{
    ids::ServerId,
    log::{
        PartName, Patience,
        frame::RawFrame,
        part,
        state::{Illegal, Start},
    },
    store::{Refusal, StoreError},
    vault::Vault,
};

use crate::book::walk::Gap;

#[derive(Debug)]
struct Part {
    length: u64,
    /// What the header says it continues: the part and the byte in it.
    base: Option<(PartName, u64)>,
}

#[derive(Debug)]
pub(super) struct Parts {
    parts: BTreeMap<PartName, Part>,
}

/// Where the damage is that made a gap.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Blame {
    pub part: PartName,
    pub byte: Option<u64>,
    pub what: String,
}

impl Parts {
    pub(super) async fn read(
        vault: &Vault,
        server: &ServerId,
        patience: &Patience,
    ) -> Result<Self, StoreError> {
        let mut parts = BTreeMap::new();
        for (name, length) in part::lengths(vault, server, patience).await? {
            let head = match part::read(vault, server, name, 0, patience).await {
                Ok(head) => head.unwrap_or_default(),
                Err(error) if error.is(Refusal::NotFound) => continue,
                Err(error) => return Err(error),
            };
            let start = RawFrame::split(&head).map_err(Illegal::from).and_then(|frame| match frame {
                Some(frame) => Start::read(&vault.keys, server.as_str(), &name, &frame).map(Some),
                None => Ok(None),
            });
            let base = match start {
                Ok(Some((start, _))) => start
                    .base_part
                    .as_deref()
                    .and_then(|base| base.parse().ok())
                    .map(|base: PartName| (base, start.base_offset)),
                _ => None,
            };
            parts.insert(name, Part { length, base });
        }
        Ok(Self { parts })
    }

    pub(super) fn alive(&self) -> u64 {
        self.parts.values().filter(|part| part.length > 0).count() as u64
    }

    pub(super) fn has(&self, name: PartName) -> bool {
        self.parts.contains_key(&name)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.parts.values().map(|part| part.length).sum()
    }

    /// A header that fits to nothing says which part is not what it was.
    pub(super) fn blame(&self, gap: &Gap) -> Blame {
        let child = self.parts.get(&gap.part).and_then(|part| part.base.as_ref()).filter(|_| gap.offset == 0);
        if let Some((base, byte)) = child {
            let child = gap.part;
            match self.parts.get(base) {
                None => {
                    let what = format!("the part is missing although part {child} continues it");
                    return Blame { part: *base, byte: None, what };
                }
                Some(part) if part.length < *byte => {
                    let what = format!(
                        "the part ends here although part {child} continues it at byte {byte}: it was cut off or put \
                         back to an older version"
                    );
                    return Blame { part: *base, byte: Some(part.length), what };
                }
                Some(_) => {}
            }
        }
        let byte = (!gap.missing).then_some(gap.offset);
        Blame { part: gap.part, byte, what: gap.what.clone() }
    }
}
