//! Retention between two batches.

use lifeboat_replication::errors::chain;
use tokio::time::Instant;

use super::{Applier, Loaded};
use crate::core::{
    ApplyError, Storage,
    retention::{CollectError, Swept},
};

impl Applier {
    /// Deletes what retention has given up, when it is time. A failure keeps nothing from being applied.
    pub(super) async fn retain(&mut self, loaded: &mut Loaded) -> Result<(), ApplyError> {
        let Some(position) = &loaded.position else { return Ok(()) };
        let Some(keep) = self.collector.due(&position.log) else { return Ok(()) };
        let mut swept = Swept::default();
        let mut points = (loaded.points.clone(), loaded.points_etag.clone());
        let done = self.collector.run(&self.seeds, keep, &position.log, &mut points, &mut swept).await;
        (loaded.points, loaded.points_etag) = points;
        let (text, fatal) = match done {
            Ok(()) => (String::new(), None),
            Err(CollectError::Catalogue(error)) => (String::new(), Some(error)),
            Err(error) => {
                tracing::warn!(server = %self.seeds.server, error = %chain(&error), "retention");
                (chain(&error), None)
            }
        };
        let storage = (text.is_empty() && fatal.is_none() && !swept.unfinished).then(|| Storage {
            stored: swept.left,
            growth_bytes_per_day: self.growth.per_day(swept.left.total(), Instant::now()),
            observed_at_micros: self.env.wall.now().0,
        });
        self.status.send_modify(|status| {
            status.storage = storage.or(status.storage);
            swept.count(&mut status.figures);
            if fatal.is_none() {
                status.collect_error = text;
            }
            loaded.tell(status);
        });
        fatal.map_or(Ok(()), Err)
    }
}
