//! Who applies which server, by the leases that the store has granted: counts how they change hands.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    net::{Net, Nodes, lock},
    reached::Reached,
};

/// How the last applier of a server let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// It has not.
    Holds,
    /// To share the work.
    Gave,
    /// It was stopped in order.
    Stopped,
}

#[derive(Debug, Default)]
pub struct Tenures {
    /// By the lease's blob: the node that has it.
    holders: Mutex<BTreeMap<String, (usize, Left)>>,
    /// Appliers that are being stopped in order.
    pub(crate) stopping: Nodes,
    muddled: AtomicBool,
}

impl Tenures {
    /// A lease is given free late or twice: perhaps one that the same applier has taken again since.
    pub(crate) fn muddle(&self) {
        self.muddled.store(true, Ordering::Relaxed);
    }

    pub(crate) fn are_muddled(&self) -> bool {
        self.muddled.load(Ordering::Relaxed)
    }

    /// The store has granted this to the node.
    pub(crate) fn granted(&self, net: &Net, node: usize, operation: &str, name: &str) {
        if !name.ends_with("/catalogue/lease") {
            return;
        }
        let mut holders = lock(&self.holders);
        match operation {
            "release lease" => {
                let left = if self.stopping.has(node) { Left::Stopped } else { Left::Gave };
                if let Some((_, how)) = holders.get_mut(name).filter(|(holder, _)| *holder == node) {
                    *how = left;
                }
            }
            "acquire lease" => {
                let before = holders.insert(name.to_owned(), (node, Left::Holds));
                let Some((_, left)) = before.filter(|(holder, _)| *holder != node) else { return };
                net.count(|Reached { tenures_run_out, tenures_given, tenures_stopped, .. }| match left {
                    Left::Holds => *tenures_run_out += 1,
                    Left::Gave => *tenures_given += 1,
                    Left::Stopped => *tenures_stopped += 1,
                });
            }
            _ => {}
        }
    }
}
