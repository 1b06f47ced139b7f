//! What the applier wrote, against itself, the seed disks and the log: position, listed points, snapshots.
//!
//! Neither document is authenticated, so both are believed only where the log agrees.

use std::collections::{BTreeMap, BTreeSet};

use lifeboat_replication::{
    catalogue::{self, CatalogueError, Document, Point, Points, Position},
    errors::chain,
    ids::{RecordId, ServerId, sequence_number},
    log::{LogState, PartName, Patience},
    store::{BlobKind, Refusal, SnapshotId, StoreError},
    vault::{Vault, layout},
    vhd,
};

use super::SnapshotFigures;
use crate::book::{
    finding::{Finding, Severity, remedy},
    sweep::Standing,
    walk::{Place, place},
};

pub(super) const POINTS_REMEDY: &str =
    "restore it from the store's versions; without it the applier lists points anew from the next one on";
const GONE_BACK: &str = "the store or somebody put an older version there: restore it from the store's versions. If it \
    cannot be restored, recover the newest point that is named here by its number, then protect the server anew";

/// What was read before the log.
#[derive(Debug)]
pub(super) struct Catalogue {
    position: Option<Position>,
    points: Vec<Point>,
    /// Retention may have deleted segments up to this record.
    pub(super) collected: Option<RecordId>,
    /// Retention may have deleted parts of the log before this one.
    pub(super) log_begins: Option<PartName>,
    /// Sequence numbers of the seed disks by their names.
    sequences: BTreeMap<String, u64>,
}

impl Catalogue {
    pub(super) async fn read(
        vault: &Vault,
        server: &ServerId,
        patience: &Patience,
        findings: &mut Vec<Finding>,
    ) -> Result<Self, StoreError> {
        let points = document::<Points>(vault, server, findings, POINTS_REMEDY).await?;
        let Points { points, collected, log_begins, .. } = points.unwrap_or_else(|| Points::none(server));
        let again = "delete it: the applier starts again from the log's first record; nothing is lost";
        let position = document::<Position>(vault, server, findings, again).await?;
        let mut catalogue = Self { position, points, collected, log_begins, sequences: BTreeMap::new() };
        catalogue.seeds(vault, server, patience, findings).await?;
        Ok(catalogue)
    }

    /// The seed disks that position and points name.
    async fn seeds(
        &mut self,
        vault: &Vault,
        server: &ServerId,
        patience: &Patience,
        findings: &mut Vec<Finding>,
    ) -> Result<(), StoreError> {
        let of_position = self.position.iter().flat_map(|position| position.seeds.values());
        let of_points = self.points.iter().flat_map(|point| &point.disks);
        let mut disks: BTreeMap<&str, u64> =
            of_points.map(|disk| (disk.disk_id.as_str(), disk.size_bytes)).collect();
        disks.extend(of_position.map(|seed| (seed.disk_id.as_str(), seed.size_bytes)));
        let mut sequences = BTreeMap::new();
        for (disk, size) in disks {
            let name = layout::seed_disk(server, disk);
            let properties = match patience.sure(|| vault.store.properties(&name, None)).await {
                Ok(properties) => properties,
                Err(error) if error.is(Refusal::NotFound) => {
                    let what = "the seed disk is missing, with all its snapshots";
                    findings.push(Finding::new(Severity::Degraded, name, what, remedy::REBUILT));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let wanted = vhd::blob_bytes(size);
            if properties.length != wanted || properties.kind != BlobKind::Page {
                let what = format!("the seed disk has {} bytes instead of {wanted}", properties.length);
                findings.push(Finding::new(Severity::Degraded, &name, what, remedy::REBUILT));
            }
            sequences.insert(name, properties.sequence_number);
        }
        self.sequences = sequences;
        Ok(())
    }

    /// Do the snapshots of the listed points exist, with their length and sequence number? And which exist that are
    /// not listed?
    pub(super) async fn snapshots(
        &self,
        vault: &Vault,
        server: &ServerId,
        patience: &Patience,
        figures: &mut SnapshotFigures,
        findings: &mut Vec<Finding>,
    ) -> Result<Vec<Standing>, StoreError> {
        let mut all = Vec::new();
        for point in &self.points {
            figures.listed += 1;
            let mut broken_by = None;
            for disk in &point.disks {
                let name = layout::seed_disk(server, &disk.disk_id);
                let snapshot = SnapshotId(disk.snapshot.clone());
                let what = match patience.sure(|| vault.store.properties(&name, Some(&snapshot))).await {
                    Ok(found) if found.sequence_number != point.sequence() => Some(format!(
                        "the snapshot has sequence number {} instead of {}: it is not the one of record {}",
                        found.sequence_number,
                        point.sequence(),
                        point.number
                    )),
                    Ok(found) if found.length != vhd::blob_bytes(disk.size_bytes) => {
                        Some(format!("the snapshot has {} bytes", found.length))
                    }
                    Ok(_) => None,
                    Err(error) if error.is(Refusal::NotFound) => Some("the snapshot is missing".to_owned()),
                    // A damaged name of a snapshot is no time.
                    Err(error) if error.refusal().is_some_and(|why| why != Refusal::Denied) => {
                        Some(chain(&error))
                    }
                    Err(error) => return Err(error),
                };
                if let Some(what) = what {
                    broken_by.get_or_insert(findings.len());
                    let remedy = "points from the journal stand; restore the snapshot from the store's soft-delete, or \
                        take another point";
                    findings.push(
                        Finding::new(Severity::Degraded, name, what, remedy)
                            .of_snapshot(&disk.snapshot)
                            .of_record(point.number),
                    );
                }
            }
            figures.standing += u64::from(broken_by.is_none());
            all.push(Standing { point: point.clone(), broken_by });
        }
        self.unlisted(vault, server, patience, findings).await?;
        Ok(all)
    }

    async fn unlisted(
        &self,
        vault: &Vault,
        server: &ServerId,
        patience: &Patience,
        findings: &mut Vec<Finding>,
    ) -> Result<(), StoreError> {
        let listed: BTreeSet<(String, &str)> = self
            .points
            .iter()
            .flat_map(|point| &point.disks)
            .map(|disk| (layout::seed_disk(server, &disk.disk_id), disk.snapshot.as_str()))
            .collect();
        let mut after = None;
        let mut unlisted: Vec<(String, String)> = Vec::new();
        let prefix = layout::disks_prefix(server);
        loop {
            let page = patience.sure(|| vault.store.list(&prefix, true, after.as_deref())).await?;
            unlisted.extend(page.blobs.into_iter().filter_map(|blob| {
                let snapshot = blob.snapshot?.0;
                (blob.kind == BlobKind::Page && !listed.contains(&(blob.name.clone(), snapshot.as_str())))
                    .then_some((blob.name, snapshot))
            }));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        if unlisted.is_empty() {
            return Ok(());
        }
        // It may have been cut since the list was read.
        let again = catalogue::read::<Points>(vault, server).await;
        let now: BTreeSet<String> = again
            .ok()
            .flatten()
            .into_iter()
            .flat_map(|(points, _)| points.points)
            .flat_map(|point| point.disks)
            .map(|disk| disk.snapshot)
            .collect();
        unlisted.retain(|(_, snapshot)| !now.contains(snapshot));
        let Some((name, snapshot)) = unlisted.last().cloned() else { return Ok(()) };
        let id = SnapshotId(snapshot.clone());
        let newest = match patience.sure(|| vault.store.properties(&name, Some(&id))).await {
            Ok(properties) => properties.sequence_number,
            Err(error) if error.is(Refusal::NotFound) => 0,
            Err(error) => return Err(error),
        };
        let listed = self.points.last().map_or(0, Point::sequence);
        let applied = self
            .position
            .as_ref()
            .map_or(0, |position| sequence_number(position.log.epoch, position.log.last_number));
        let blob = layout::catalogue(server, Points::FILE);
        findings.push(if newest > listed && newest <= applied {
            // The list is written before the position.
            let what = format!(
                "it does not list record {}, at which snapshots stand and beyond which the seed disks are: the list was \
                 put back to an older version",
                newest & 0xffff_ffff
            );
            Finding::new(Severity::Degraded, blob, what, POINTS_REMEDY)
        } else {
            let what = format!(
                "{} snapshots stand that it does not list, {snapshot} among them, as after an applier that was killed",
                unlisted.len()
            );
            Finding::new(Severity::Note, blob, what, remedy::NOTHING)
        });
        Ok(())
    }

    /// The point from which a log is read that retention has shortened.
    pub(super) fn base(&self) -> Option<&Point> {
        let (_, collected) = self.log_begins.zip(self.collected)?;
        self.points.iter().find(|point| point.id() >= collected)
    }

    /// Seed disks of the position: id and size.
    pub(super) fn seed_disks(&self) -> impl Iterator<Item = (&str, u64)> {
        let seeds = self.position.iter().flat_map(|position| position.seeds.values());
        seeds.map(|seed| (seed.disk_id.as_str(), seed.size_bytes))
    }

    /// Places at which the log must be in the state that a document says.
    pub(super) fn marks(&self) -> Marks {
        let mut marks = Marks::default();
        for (number, point) in self.points.iter().enumerate() {
            marks.add(Mark { file: Points::FILE, state: point.log.clone(), point: Some(number) });
        }
        if let Some(position) = &self.position {
            marks.add(Mark { file: Position::FILE, state: position.log.clone(), point: None });
        }
        marks
    }

    pub(super) fn point(&self, number: usize) -> Option<&Point> {
        self.points.get(number)
    }

    /// What can only be said when the log has been read: is anything ahead of it, or older than it must be?
    pub(super) fn against_the_end(
        &self,
        server: &ServerId,
        end: Option<&LogState>,
        rest: &Marks,
        gaps: &[(Place, Option<Place>)],
        findings: &mut Vec<Finding>,
    ) {
        let last = end.map_or((0, 0, 0), place);
        let record = end.map_or(0, |state| state.last_number.0);
        let in_gap =
            |at: &Place| gaps.iter().any(|(from, to)| at >= from && to.as_ref().is_none_or(|to| at <= to));
        for mark in rest.marks.values().flatten() {
            let at = place(&mark.state);
            let LogState { last_number, .. } = &mark.state;
            if in_gap(&at) {
                continue;
            }
            let blob = mark.state.part_name().blob(server);
            findings.push(if at > last {
                let what = format!(
                    "the log ends with record {record} before this place, up to which {} says that it was read \
                     (record {last_number}): it was cut off or put back to an older version",
                    mark.file
                );
                Finding::new(Severity::Damage, blob, what, GONE_BACK).at(at.2)
            } else {
                let what = format!(
                    "it names byte {} of part {} as the end of record {last_number}, where none ends",
                    at.2,
                    mark.state.part_name()
                );
                Finding::new(Severity::Damage, layout::catalogue(server, mark.file), what, POINTS_REMEDY)
            });
        }
        self.seeds_against(server, end, gaps, findings);
    }

    fn seeds_against(
        &self,
        server: &ServerId,
        end: Option<&LogState>,
        gaps: &[(Place, Option<Place>)],
        findings: &mut Vec<Finding>,
    ) {
        let Some(position) = &self.position else { return };
        let applied = position.log.last_number.0;
        let live: BTreeSet<String> =
            position.log.disks.iter().map(|disk| layout::seed_disk(server, &disk.id)).collect();
        for (name, sequence) in self.sequences.iter().filter(|(name, _)| live.contains(*name)) {
            let seed_record = sequence & 0xffff_ffff;
            let behind = seed_record < applied & 0xffff_ffff
                && *sequence < sequence_number(position.log.epoch, position.log.last_number);
            if behind {
                let what = format!(
                    "the seed disk stands at record {seed_record}, but position.json says {applied}: it was put back to \
                     an older version"
                );
                findings.push(Finding::new(Severity::Degraded, name, what, remedy::REBUILT));
            }
            let end = end.filter(|_| gaps.is_empty());
            if end.is_some_and(|end| *sequence > sequence_number(end.epoch, end.last_number)) {
                let what = format!(
                    "the seed disk holds record {seed_record} of epoch {}, which the log does not have: the log was cut \
                     off or put back to an older version",
                    sequence >> 32
                );
                findings.push(Finding::new(Severity::Damage, name, what, GONE_BACK));
            }
            let older = self.points.iter().rev().nth(1).is_some_and(|point| point.number > applied);
            if older {
                let what = format!("it says record {applied}, but later points are listed: it was put back");
                let blob = layout::catalogue(server, Position::FILE);
                findings.push(Finding::new(Severity::Degraded, blob, what, remedy::REBUILT));
                break;
            }
        }
    }
}

async fn document<D: Document>(
    vault: &Vault,
    server: &ServerId,
    findings: &mut Vec<Finding>,
    again: &str,
) -> Result<Option<D>, StoreError> {
    match catalogue::read::<D>(vault, server).await {
        Ok(found) => Ok(found.map(|(document, _)| document)),
        Err(CatalogueError::Store(error)) => Err(error),
        Err(error) => {
            let blob = layout::catalogue(server, D::FILE);
            findings.push(Finding::new(Severity::Degraded, blob, chain(&error), again));
            Ok(None)
        }
    }
}

/// What a document says about the log at a place.
#[derive(Debug)]
struct Mark {
    file: &'static str,
    state: LogState,
    /// Index of the listed point.
    point: Option<usize>,
}

/// Marks that the walk has not passed yet.
#[derive(Debug, Default)]
pub(super) struct Marks {
    marks: BTreeMap<Place, Vec<Mark>>,
}

impl Marks {
    fn add(&mut self, mark: Mark) {
        self.marks.entry(place(&mark.state)).or_default().push(mark);
    }

    /// What stands before this place is not read.
    pub(super) fn begin(&mut self, first: Place) {
        self.marks = self.marks.split_off(&first);
    }

    /// The log is in `state` here. Gives the points whose state is another, with the finding's number.
    pub(super) fn pass(
        &mut self,
        server: &ServerId,
        state: &LogState,
        findings: &mut Vec<Finding>,
    ) -> Vec<(usize, usize)> {
        let mut wrong = Vec::new();
        for mark in self.marks.remove(&place(state)).unwrap_or_default() {
            if mark.state == *state {
                continue;
            }
            let what = format!(
                "what it says about the log at record {} (byte {} of part {}) is not so: it was changed",
                mark.state.last_number,
                mark.state.offset,
                mark.state.part_name()
            );
            let (severity, remedy) = match mark.point {
                Some(number) => {
                    wrong.push((number, findings.len()));
                    (Severity::Damage, POINTS_REMEDY)
                }
                None => {
                    (Severity::Degraded, "delete it: the applier starts again from the log's first record")
                }
            };
            findings.push(
                Finding::new(severity, layout::catalogue(server, mark.file), what, remedy)
                    .of_record(state.last_number.0),
            );
        }
        wrong
    }
}
