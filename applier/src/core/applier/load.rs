//! Where an applier goes on: the position, checked against the seed disks, or the newest listed point that they have
//! reached.

use std::collections::BTreeMap;

use lifeboat_replication::{
    catalogue::{self, PointDisk, Points, Position, Seed},
    log::LogReader,
    store::ETag,
    vault::layout,
};

use super::{Applier, Loaded, replaced};
use crate::core::{
    ApplyError, point,
    seeds::{self, Seeds},
};

impl Applier {
    /// Position and points as the vault has them, checked against the seed disks.
    pub(super) async fn load(&mut self) -> Result<Loaded, ApplyError> {
        let Seeds { vault, server, .. } = &self.seeds;
        let position = catalogue::read::<Position>(vault, server).await?;
        let points = catalogue::read::<Points>(vault, server).await?;
        let (position, position_etag) =
            position.map_or((None, None), |(position, etag)| (Some(position), Some(etag)));
        let (points, points_etag) = match points {
            Some((points, etag)) => (points, Some(etag)),
            None => (Points::none(server), None),
        };
        let (points, points_etag) = match self.rebuild {
            Some(_) => self.drop_lost(points, points_etag).await?,
            None => (points, points_etag),
        };
        let position = position.filter(|_| self.rebuild.is_none());
        let reader = match &position {
            Some(position) => {
                self.check_seeds(position).await?;
                LogReader::resume(vault, server, &self.env, position.log.clone())?
            }
            None => self.restart(&points).await?,
        };
        let loaded = Loaded { position, position_etag, points, points_etag, reader, sums: BTreeMap::new() };
        self.status.send_modify(|status| loaded.tell(status));
        Ok(loaded)
    }

    /// Without a position: from the newest listed point that every seed disk has reached and that was not tried in
    /// vain. What stands on them after it is written again. At last the log's beginning, if its segments are there.
    async fn restart(&self, points: &Points) -> Result<LogReader, ApplyError> {
        let Seeds { vault, server, .. } = &self.seeds;
        let tried = self.rebuild.unwrap_or(0);
        for point in points.points.iter().rev().filter(|point| points.is_base(point)).skip(tried) {
            if point::is_reached(&self.seeds, point).await? {
                for PointDisk { disk_id, size_bytes, .. } in &point.disks {
                    let seed = Seed { disk_id: disk_id.clone(), size_bytes: *size_bytes };
                    self.seeds.check_sums(&seed, &point.log, &*self.env.entropy).await?;
                }
                return Ok(LogReader::resume(vault, server, &self.env, point.log.clone())?);
            }
        }
        match points.collected {
            Some(collected) => Err(ApplyError::Collected { server: server.clone(), collected }),
            None => Ok(LogReader::from_start(vault, server, &self.env)),
        }
    }

    /// After the store lost something: takes points off the list whose snapshots are not there any more.
    async fn drop_lost(
        &self,
        mut points: Points,
        etag: Option<ETag>,
    ) -> Result<(Points, Option<ETag>), ApplyError> {
        let before = points.points.len();
        let mut kept = Vec::new();
        for point in points.points {
            if point::stands(&self.seeds, &point).await? {
                kept.push(point);
            }
        }
        points.points = kept;
        if points.points.len() == before {
            return Ok((points, etag));
        }
        let Seeds { vault, server, .. } = &self.seeds;
        tracing::warn!(%server, lost = before - points.points.len(), "recovery points lost their snapshots in the store");
        let name = || layout::catalogue(server, "points.json");
        let written = catalogue::write(vault, server, &points, etag.as_ref()).await;
        Ok((points, Some(replaced(written, name)?)))
    }

    /// Seed disks may be ahead of the position (a batch that was begun), never behind it.
    async fn check_seeds(&self, position: &Position) -> Result<(), ApplyError> {
        let disks = &position.log.disks;
        for seed in position.seeds.values().filter(|seed| disks.iter().any(|disk| disk.id == seed.disk_id)) {
            let name = self.seeds.name(&seed.disk_id);
            let Some(sequence) = self.seeds.sequence(seed).await? else {
                return Err(ApplyError::SeedLost { name });
            };
            if seeds::is_behind(sequence, &position.log) {
                return Err(ApplyError::SeedBehind { name });
            }
            self.seeds.check_sums(seed, &position.log, &*self.env.entropy).await?;
        }
        Ok(())
    }
}
