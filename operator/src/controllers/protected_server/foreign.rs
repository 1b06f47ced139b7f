//! Recovery points of servers whose applier runs in another cluster: it reports to nobody here, so its books in the vault
//! are read. Only servers that no applier of ours reports, each seldom; a book that has not changed costs one operation.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use lifeboat_replication::{
    appliers::{self, Announcement},
    catalogue::{self, CatalogueError, Points, Position},
    errors::chain,
    ids::ServerId,
    keys::KeyId,
    recoverable::journal_begins,
    store::{ETag, Refusal, StoreError},
    vault::{Vault, layout},
    wire::v1,
};
use tokio::time::Instant;

use crate::control::{ApplianceKey, Applied};

/// A server's books are looked at this often: two operations then, 2,880 a day.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// An announcement that was seen unchanged for so long is of an applier that is gone: three times the appliers' term.
const GONE_AFTER: Duration = Duration::from_secs(180);

/// What was read. Cheap to clone.
#[derive(Clone, Default)]
pub struct Foreign(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    servers: BTreeMap<ServerId, Known>,
    announced: BTreeMap<ApplianceKey, Announced>,
    /// Identities of our own appliers: the uids of the appliance's pods.
    own: BTreeMap<ApplianceKey, BTreeSet<String>>,
}

/// ETags of position and points, and what they say.
type Books = ((ETag, Option<ETag>), v1::AppliedServer);

struct Known {
    looked: Instant,
    points: Option<Books>,
}

#[derive(Default, Clone)]
struct Announced {
    looked: Option<Instant>,
    /// By blob name, with the instant since when it has been the same.
    seen: BTreeMap<String, (Bytes, Instant)>,
}

impl Foreign {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose announcements are not another cluster's.
    pub fn know(&self, key: &ApplianceKey, pods: BTreeSet<String>) {
        self.lock().own.insert(key.clone(), pods);
    }

    /// What the vault says of a server that no applier of ours reports; `None`: nothing was applied yet, it does not
    /// answer, or our own appliers are not known yet. Without a holder its name is empty.
    pub(super) async fn look(&self, key: &ApplianceKey, vault: &Vault, id: &ServerId) -> Option<Applied> {
        let (due, before) = {
            let inner = self.lock();
            inner.own.get(key)?;
            let known = inner.servers.get(id);
            let due = is_due(known.map(|known| known.looked.elapsed()));
            (due, known.and_then(|known| known.points.clone()))
        };
        let mut points = before;
        if due {
            // An answer that does not come is not waited for by the next pass.
            self.remember(id, points.clone());
            match read(vault, id, points.clone()).await {
                Ok(read) => {
                    points.clone_from(&read);
                    self.remember(id, read);
                }
                Err(error) => {
                    tracing::info!(server = %id, error = %chain(&error), "the catalogue cannot be read");
                }
            }
            self.hear(key, vault).await;
        }
        let (_, report) = points?;
        let holder = {
            let inner = self.lock();
            let announced = inner.announced.get(key);
            announced.and_then(|announced| holder(&announced.seen, inner.own.get(key)?, id, Instant::now()))
        };
        Some(Applied { applier: holder.unwrap_or_default(), report })
    }

    /// Names of live appliers on the vault, of whichever cluster, that do not say that they have this data key. Asked of the
    /// vault each time: one that has just started counts.
    pub async fn without_key(
        &self,
        key: &ApplianceKey,
        vault: &Vault,
        wanted: &KeyId,
    ) -> Result<Vec<String>, StoreError> {
        let standing = appliers::standing(&*vault.store, "").await?;
        let mut inner = self.lock();
        let own = inner.own.get(key).cloned().unwrap_or_default();
        let announced = inner.announced.entry(key.clone()).or_default();
        announced.seen = since(std::mem::take(&mut announced.seen), standing, Instant::now());
        Ok(live(&announced.seen, Instant::now())
            .filter(|said| !said.keys.contains(wanted))
            .map(|said| named(&said, &own))
            .collect())
    }

    fn remember(&self, id: &ServerId, points: Option<Books>) {
        self.lock().servers.insert(id.clone(), Known { looked: Instant::now(), points });
    }

    /// What appliers say of themselves; at most once a time for all servers.
    async fn hear(&self, key: &ApplianceKey, vault: &Vault) {
        {
            let mut inner = self.lock();
            let announced = inner.announced.entry(key.clone()).or_default();
            if !is_due(announced.looked.map(|at| at.elapsed())) {
                return;
            }
            announced.looked = Some(Instant::now());
        }
        match appliers::standing(&*vault.store, "").await {
            Ok(standing) => {
                let mut inner = self.lock();
                let announced = inner.announced.entry(key.clone()).or_default();
                announced.seen = since(std::mem::take(&mut announced.seen), standing, Instant::now());
            }
            Err(error) => tracing::info!(error = %chain(&error), "what appliers announce cannot be read"),
        }
    }
}

fn is_due(since: Option<Duration>) -> bool {
    since.is_none_or(|since| since >= LOOK_INTERVAL)
}

/// With the instant since when each has been the same.
fn since(
    mut before: BTreeMap<String, (Bytes, Instant)>,
    standing: BTreeMap<String, Bytes>,
    now: Instant,
) -> BTreeMap<String, (Bytes, Instant)> {
    let aged = |(name, content): (String, Bytes)| {
        let same = before.remove(&name).filter(|(seen, _)| *seen == content);
        let at = same.map_or(now, |(_, at)| at);
        (name, (content, at))
    };
    standing.into_iter().map(aged).collect()
}

/// The applier that says that it holds the server, for people. While a lease changes hands two may: then the one that
/// has spoken last.
fn holder(
    seen: &BTreeMap<String, (Bytes, Instant)>,
    own: &BTreeSet<String>,
    id: &ServerId,
    now: Instant,
) -> Option<String> {
    let id = id.to_string();
    let at = |said: &Announcement| seen.get(&layout::applier(&said.identity)).map(|(_, at)| *at);
    let holders = live(seen, now).filter(|said| said.holds.contains(&id));
    holders.map(|said| (at(&said), named(&said, own))).max().map(|(_, name)| name)
}

fn live(seen: &BTreeMap<String, (Bytes, Instant)>, now: Instant) -> impl Iterator<Item = Announcement> + '_ {
    let lives = move |at: Instant| now.saturating_duration_since(at) < GONE_AFTER;
    seen.values().filter(move |(_, at)| lives(*at)).filter_map(|(content, _)| Announcement::read(content))
}

/// For people.
fn named(said: &Announcement, own: &BTreeSet<String>) -> String {
    let elsewhere = if own.contains(&said.identity) { "" } else { " (another cluster)" };
    format!("{}{elsewhere}", said.name)
}

async fn read(vault: &Vault, id: &ServerId, before: Option<Books>) -> Result<Option<Books>, CatalogueError> {
    let Some(position) = etag(vault, id, "position.json").await? else { return Ok(None) };
    // Retention changes the points alone.
    let etags = (position, etag(vault, id, "points.json").await?);
    if before.as_ref().is_some_and(|(seen, _)| *seen == etags) {
        return Ok(before);
    }
    let Some((applied, _)) = catalogue::read::<Position>(vault, id).await? else { return Ok(None) };
    let listed = catalogue::read::<Points>(vault, id).await?;
    let listed = listed.map_or_else(|| Points::none(id), |(points, _)| points);
    let report = v1::AppliedServer {
        server_id: id.to_string(),
        epoch: applied.log.epoch.0,
        applied_number: applied.log.last_number.0,
        points: listed.points.iter().map(Into::into).collect(),
        journal_begins_micros: journal_begins(&listed).map_or(0, |point| point.t0_micros),
        ..v1::AppliedServer::default()
    };
    // What was written after the ETags were taken is read again at the next look.
    Ok(Some((etags, report)))
}

async fn etag(vault: &Vault, id: &ServerId, file: &str) -> Result<Option<ETag>, CatalogueError> {
    match vault.store.properties(&layout::catalogue(id, file), None).await {
        Ok(properties) => Ok(Some(properties.etag)),
        Err(error) if error.is(Refusal::NotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_replication::{
        catalogue::{FORMAT, Point, PointConsistency},
        env::{Env, Micros},
        ids::{Epoch, RecordNumber},
        keys::DataKeys,
        log::LogState,
        store::{PutCondition, model::ModelStore},
    };

    use super::*;

    struct Site {
        vault: Vault,
        id: ServerId,
        key: ApplianceKey,
        foreign: Foreign,
    }

    fn site() -> Site {
        let (env, store) = (Env::system(), ModelStore::new());
        let vault = Vault {
            store: Arc::new(store.clone()),
            cache: Arc::new(store),
            keys: Arc::new(DataKeys::generate(&*env.entropy)),
            id: "v".into(),
        };
        let key = ApplianceKey { namespace: "prod".into(), name: "berlin".into() };
        let foreign = Foreign::default();
        foreign.know(&key, BTreeSet::from(["own".to_owned()]));
        Site { vault, id: ServerId::from_random([1; 16]), key, foreign }
    }

    impl Site {
        async fn look(&self) -> Option<(String, usize, u64)> {
            let applied = self.foreign.look(&self.key, &self.vault, &self.id).await?;
            Some((applied.applier, applied.report.points.len(), applied.report.applied_number))
        }

        /// As an applier does after a batch.
        async fn apply(&self, record: u64) {
            let log = log_state(&self.vault, record);
            let point = Point {
                number: record,
                epoch: 1,
                t0_micros: 7,
                consistency: PointConsistency::CrashConsistent,
                group: None,
                disks: Vec::new(),
                log: log.clone(),
            };
            let points = Points { points: vec![point], ..Points::none(&self.id) };
            let before = catalogue::read::<Points>(&self.vault, &self.id).await.unwrap();
            let etag = before.as_ref().map(|(_, etag)| etag);
            catalogue::write(&self.vault, &self.id, &points, etag).await.unwrap();
            let position =
                Position { format: FORMAT, server: self.id.to_string(), log, seeds: BTreeMap::new() };
            let before = catalogue::read::<Position>(&self.vault, &self.id).await.unwrap();
            let etag = before.as_ref().map(|(_, etag)| etag);
            catalogue::write(&self.vault, &self.id, &position, etag).await.unwrap();
        }

        async fn announce(&self, identity: &str, beat: u64) {
            let holds = BTreeSet::from([self.id.clone()]);
            let said = Announcement { beat, ..Announcement::new(identity, "near-applier-0", &holds) };
            let name = layout::applier(identity);
            self.vault.store.put(&name, said.content(), &PutCondition::Always).await.unwrap();
        }
    }

    fn log_state(vault: &Vault, record: u64) -> LogState {
        LogState {
            epoch: Epoch(1),
            part: 0,
            offset: 0,
            chain: [0; 32],
            key_id: vault.keys.current().0.clone(),
            last_number: RecordNumber(record),
            last_t0: Micros(7),
            complete: true,
            disks: Vec::new(),
            closed_run: None,
            next_part: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn points_that_another_cluster_makes_are_seen_in_the_vault_with_who_makes_them() {
        let site = site();
        assert_eq!(site.look().await, None, "nothing is applied yet");
        site.apply(4).await;
        site.announce("uuid", 1).await;
        assert_eq!(site.look().await, None, "it is looked at seldom");
        tokio::time::sleep(LOOK_INTERVAL).await;
        let holder = "near-applier-0 (another cluster)".to_owned();
        assert_eq!(site.look().await, Some((holder.clone(), 1, 4)));
        site.apply(9).await;
        assert_eq!(site.look().await, Some((holder.clone(), 1, 4)));
        tokio::time::sleep(LOOK_INTERVAL).await;
        assert_eq!(site.look().await, Some((holder.clone(), 1, 9)));
    }

    /// It has just stopped reporting, or has not begun yet.
    #[tokio::test(start_paused = true)]
    async fn an_applier_of_our_own_is_no_foreign_one() {
        let site = site();
        site.apply(4).await;
        site.announce("own", 1).await;
        assert_eq!(site.look().await, Some(("near-applier-0".to_owned(), 1, 4)));
        let unknown = Foreign::default();
        assert!(unknown.look(&site.key, &site.vault, &site.id).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_applier_that_does_not_have_a_key_is_named_as_long_as_it_lives() {
        let site = site();
        let current = site.vault.keys.current().0;
        let without = || async { site.foreign.without_key(&site.key, &site.vault, current).await.unwrap() };
        assert!(without().await.is_empty());
        site.announce("uuid", 1).await;
        assert_eq!(without().await, ["near-applier-0 (another cluster)"]);
        let said =
            Announcement { keys: vec![current.clone()], ..Announcement::new("uuid", "n", &BTreeSet::new()) };
        let (name, content) = (layout::applier("uuid"), said.content());
        site.vault.store.put(&name, content, &PutCondition::Always).await.unwrap();
        assert!(without().await.is_empty(), "it has it");
        site.announce("uuid", 2).await;
        assert_eq!(without().await.len(), 1);
        tokio::time::sleep(GONE_AFTER).await;
        assert!(without().await.is_empty(), "it is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn an_applier_that_says_nothing_any_more_is_not_named() {
        let site = site();
        site.apply(4).await;
        site.announce("uuid", 1).await;
        let named = |look: Option<(String, usize, u64)>| look.unwrap().0.starts_with("near-applier-0");
        assert!(named(site.look().await));
        for (seconds, beat, wanted) in [(120, Some(2), true), (120, None, true), (180, None, false)] {
            if let Some(beat) = beat {
                site.announce("uuid", beat).await;
            }
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            assert_eq!(named(site.look().await), wanted, "{seconds} {beat:?}");
        }
    }
}
