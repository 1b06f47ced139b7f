//! Retention in the simulation: small policies drawn by the seed, and a reader that opens points under pins, stays for
//! longer than they are kept, dies now and then, and must read the right disks as long as its pin was renewed in time.

use std::time::Duration;

use async_trait::async_trait;
use lifeboat_process_server::core::sealing::{SealError, SealJob, Sealer, seal_now};
use lifeboat_recovery::{
    BlockIndex, IndexError, IndexOptions, hold::Hold, scan::Found, select::PointSelector,
};
use lifeboat_replication::{
    blocks::BLOCK_BYTES,
    env::Env,
    errors::chain,
    ids::ServerId,
    journal::JournalError,
    recoverable,
    segment::Sealed,
    vault::{RetentionPolicy, Vault},
};
use tokio::time::{Instant, sleep};

use crate::{net::Line, oracle::Held, rng::Rng};

/// A policy whose points grow too old within a schedule.
pub struct Retain {
    pub policy: RetentionPolicy,
    pub collect_interval: Duration,
    pub held_for: Duration,
    /// Larger records go to cache storage: the simulation's are all small.
    pub inline_bytes: usize,
}

impl Retain {
    pub fn draw(rng: &Rng, point_interval_ms: u64) -> Self {
        let journal_seconds = [0, 10, 30, 60][rng.below(4) as usize];
        let retention_seconds = match rng.below(4) {
            0 => rng.below(journal_seconds + 1),
            1 => 1_000,
            _ => journal_seconds + rng.below(40),
        };
        let point_interval_seconds = point_interval_ms / 1000;
        Self {
            policy: RetentionPolicy { point_interval_seconds, retention_seconds, journal_seconds },
            collect_interval: Duration::from_secs(2 + rng.below(8)),
            held_for: Duration::from_secs(20 + rng.below(40)),
            inline_bytes: rng.pick([0, 300, 64 << 10]),
        }
    }
}

/// Seals in place, and decides which records carry their segment.
#[derive(Debug)]
pub struct SimSealer {
    pub inline_bytes: usize,
}

#[async_trait]
impl Sealer for SimSealer {
    async fn seal(&self, job: SealJob) -> Result<Sealed, SealError> {
        seal_now(&job)
    }

    fn inline_bytes(&self) -> usize {
        self.inline_bytes
    }
}

pub struct Reader {
    pub vault: Vault,
    pub server: ServerId,
    pub env: Env,
    pub net: Line,
    pub rng: Rng,
    pub held_for: Duration,
}

impl Reader {
    pub async fn run(self) {
        for number in 0_u32.. {
            sleep(Duration::from_millis(self.rng.below(12_000))).await;
            let run = format!("reader-{number}");
            if let Err(why) = self.read_one(&run).await {
                self.net.mark("reader", format_args!("{run}: {why}"));
            }
            self.net.ask(|oracle| {
                oracle.lets_go(&run);
                Ok(())
            });
        }
    }

    /// Opens a point, keeps it open for a while, reads all of it. An error is one that a fault explains.
    async fn read_one(&self, run: &str) -> Result<(), String> {
        let selector = self.choose().await?;
        let mut since = Instant::now();
        let taken = Hold::take(&self.vault, &self.server, &self.env, selector, run, self.held_for).await;
        let (found, hold) = taken.map_err(|error| chain(&error))?;
        let number = found.number;
        self.net.mark("reader", format_args!("{run} pinned point {number}"));
        let held = Held { until: since + self.held_for, base: found.base.clone(), records: records(&found) };
        self.holds(run, &held, since);
        // Nothing stays in memory, so that everything is read from the vault again.
        let options = IndexOptions { cache_bytes: 1 };
        let opened = BlockIndex::of(&self.vault, &self.server, &self.env, found, &options).await;
        let index = opened.map_err(|error| self.explain(&error, run, since))?;
        let until = Instant::now() + Duration::from_millis(self.rng.below(90_000));
        while Instant::now() < until {
            sleep(self.held_for / 5).await;
            let renewing = Instant::now();
            if hold.renew().await.is_ok() && renewing.duration_since(since) < self.held_for {
                since = renewing;
                self.holds(run, &held, since);
            }
        }
        let disks: Vec<_> = index.disks().map(|disk| (disk.slot, disk.size_bytes)).collect();
        for (slot, size) in disks {
            let read = index.read(slot, 0, (size / BLOCK_BYTES) as u32).await;
            let content = read.map_err(|error| self.explain(&error, run, since))?;
            self.net.ask(|oracle| oracle.was_read(number, slot, &content, size));
        }
        // Half of the readers die instead.
        if self.rng.below(2) == 0 {
            // Before the call: its effect may come long before its answer does.
            self.net.ask(|oracle| {
                oracle.lets_go(run);
                Ok(())
            });
            hold.release().await;
        }
        Ok(())
    }

    async fn choose(&self) -> Result<PointSelector, String> {
        let offered = recoverable::points(&self.vault, &self.server, &self.env).await;
        let offered = offered.map_err(|error| chain(&error))?;
        let pick = self.rng.below(offered.len().max(1) as u64) as usize;
        let point = offered.get(pick).ok_or("there is no point yet")?;
        Ok(match self.rng.below(3) {
            0 => PointSelector::Latest,
            1 => PointSelector::At(point.t0),
            _ => PointSelector::Number(point.id.number.0),
        })
    }

    fn holds(&self, run: &str, held: &Held, since: Instant) {
        let held = Held { until: since + self.held_for, ..held.clone() };
        self.net.ask(|oracle| {
            oracle.holds(run, held);
            Ok(())
        });
    }

    /// What is missing under a pin that was renewed in time is a broken promise.
    fn explain(&self, error: &IndexError, run: &str, since: Instant) -> String {
        let missing =
            matches!(error, IndexError::Missing { .. } | IndexError::Journal(JournalError::Missing { .. }));
        if missing && since.elapsed() <= self.held_for {
            self.net.fail(format!("{run} lost what it had pinned: {}", chain(error)));
        }
        chain(error)
    }
}

fn records(found: &Found) -> Option<(u64, u64)> {
    Some((found.records.first()?.first_number, found.records.last()?.number))
}
