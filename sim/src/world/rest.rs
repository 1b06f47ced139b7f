//! Faults have stopped: everything must come to rest, with nothing dirty and the vault equal to the disk.

use std::time::Duration;

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{Policy, World, hostile::Site};
use crate::oracle::Oracle;

/// Within this time it must have come to rest: lease terms, the longest pauses of every program.
const REST: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_millis(1500);
/// Points of each schedule that are read through the block index.
const INDEXED: usize = 3;

impl World {
    pub(super) async fn rest(&self, mut site: Site) {
        self.net.dice.stop();
        self.net.store_cuts.clear();
        self.net.up_cuts.clear();
        self.net.down_cuts.clear();
        self.set_policy(Policy { paused: false, ..self.policy.get() });
        self.assign(self.net.assigned());
        self.net.mark("faults stop", format_args!(""));
        let began = Instant::now();
        while !self.net.failed() {
            sleep(LOOK_EVERY).await;
            self.revive(&mut site);
            let Err(unrest) = self.at_rest(&site) else { break };
            if began.elapsed() > REST {
                self.net.fail(format!("did not come to rest: {unrest}"));
            }
        }
        self.net.ask(Oracle::log_changed);
        self.net.ask(Oracle::points_changed);
        for _ in 0..INDEXED {
            let pick = self.rng.next();
            self.net.ask(|oracle| oracle.index_agrees(pick));
        }
    }

    fn at_rest(&self, site: &Site) -> Result<(), String> {
        let (clean, blocks) = (self.machine.clean().len(), self.blocks());
        if clean < blocks {
            return Err(format!("{clean} of {blocks} blocks are clean"));
        }
        let orders = site.failover.iter().chain(&site.release);
        if !orders.into_iter().all(JoinHandle::is_finished) {
            return Err("the failover is not over".to_owned());
        }
        let spool = self.spools.get(self.net.assigned()).map_or(0, |spool| spool.volume.bytes());
        if spool > 0 {
            return Err(format!("{spool} bytes are left in the spool"));
        }
        self.net.ask(|oracle| Ok(oracle.at_rest().err())).map_or(Ok(()), Err)
    }
}
