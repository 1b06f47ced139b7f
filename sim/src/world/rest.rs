//! Faults have stopped: everything must come to rest, with nothing dirty and the vault equal to the disk.

use std::time::Duration;

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    World,
    hostile::{Around, Site},
    server::{Policy, Server},
};
use crate::oracle::Oracle;

/// Within this time it must have come to rest: lease terms, the longest pauses of every program.
const REST: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_millis(1500);
/// Points of each server that are read through the block index.
const INDEXED: usize = 3;

impl World {
    pub(super) async fn rest(&self, mut site: Site) {
        self.net.store_cuts.clear();
        self.net.up_cuts.clear();
        self.net.down_cuts.clear();
        for server in &self.servers {
            server.dice.stop();
            server.set_policy(Policy { paused: false, ..server.policy.get() });
            server.assign(server.line.assigned());
        }
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
        let mut read_back = 0;
        for server in &self.servers {
            server.line.ask(Oracle::log_changed);
            server.line.ask(Oracle::points_changed);
            for _ in 0..INDEXED {
                let pick = server.rng.next();
                server.line.ask(|oracle| oracle.index_agrees(pick));
            }
            read_back += usize::from(server.line.ask(|oracle| Ok(oracle.reached.index_compared > 0)));
        }
        if read_back > 1 && read_back == self.servers.len() {
            self.net.count(|reached| reached.servers_side_by_side += 1);
        }
    }

    fn at_rest(&self, site: &Site) -> Result<(), String> {
        for (server, around) in self.servers.iter().zip(&site.servers) {
            self.server_at_rest(server, around).map_err(|why| match self.servers.len() {
                1 => why,
                _ => format!("server {}: {why}", server.number),
            })?;
        }
        Ok(())
    }

    fn server_at_rest(&self, server: &Server, around: &Around) -> Result<(), String> {
        let (clean, blocks) = (server.machine.clean().len(), server.blocks());
        if clean < blocks {
            return Err(format!("{clean} of {blocks} blocks are clean"));
        }
        let orders = around.failover.iter().chain(&around.release);
        if !orders.into_iter().all(JoinHandle::is_finished) {
            return Err("the failover is not over".to_owned());
        }
        let spool = self.spools.get(server.line.assigned());
        let spool = spool.map_or(0, |spool| spool.volume.bytes_of(server.id.as_str()));
        if spool > 0 {
            return Err(format!("{spool} bytes are left in the spool"));
        }
        if self.load.leases {
            self.has_one_applier(server)?;
        }
        server.line.ask(|oracle| Ok(oracle.at_rest().err())).map_or(Ok(()), Err)
    }
}
