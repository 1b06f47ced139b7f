//! Retention between two batches.

use lifeboat_replication::{errors::chain, ids::RecordId};

use super::{Applier, Loaded};
use crate::core::{
    ApplyError,
    retention::{CollectError, Swept},
};

impl Applier {
    /// Deletes what retention has given up, when it is time. A failure keeps nothing from being applied.
    pub(super) async fn retain(&mut self, loaded: &mut Loaded) -> Result<(), ApplyError> {
        let (Some(keep), Some(position)) = (self.collector.due(), &loaded.position) else { return Ok(()) };
        let applied = RecordId { epoch: position.log.epoch, number: position.log.last_number };
        let mut swept = Swept::default();
        let mut points = (loaded.points.clone(), loaded.points_etag.clone());
        let done = self.collector.run(&self.seeds, keep, applied, &mut points, &mut swept).await;
        (loaded.points, loaded.points_etag) = points;
        let (text, fatal) = match done {
            Ok(()) => (String::new(), None),
            Err(CollectError::Catalogue(error)) => (String::new(), Some(error)),
            Err(error) => {
                tracing::warn!(server = %self.seeds.server, error = %chain(&error), "retention");
                (chain(&error), None)
            }
        };
        self.status.send_modify(|status| {
            swept.count(&mut status.figures);
            if fatal.is_none() {
                status.collect_error = text;
            }
            loaded.tell(status);
        });
        fatal.map_or(Ok(()), Err)
    }
}
