//! Verifies a server's part of the vault: the log's whole chain, its segments, the catalogue, the snapshots.
//!
//! **Order.** What the applier writes is read before the log, and the log before what follows from it, so a vault
//! that is written to meanwhile shows no damage that is none.
//! **Deep** also fetches and decrypts every segment and compares every snapshot with the journal.

mod catalogue;
mod parts;

use lifeboat_replication::{
    catalogue::{Point, is_point},
    env::{Env, Micros},
    errors::chain,
    ids::{Epoch, RecordId, RecordNumber, ServerId},
    journal,
    keys::DataKeys,
    log::{LogState, Patience, ReadError},
    store::StoreError,
    vault::{self, KeyBundle, Vault, VaultDescription, VaultError, layout},
    wire::v1,
};
use serde::Serialize;

use self::{
    catalogue::{Catalogue, Marks},
    parts::Parts,
};
use super::{
    finding::{Finding, Severity, remedy},
    inventory::Held,
    segments::{SegmentFigures, Segments},
    sweep::{PointName, Run, Standing, Sweep},
    walk::{Gap, Place, Step, Walk, place},
};

/// Records whose segments are looked at together.
const AT_ONCE: usize = 64;

/// The vault itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VaultReport {
    pub id: String,
    pub key_bundle: BundleCheck,
    pub findings: Vec<Finding>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum BundleCheck {
    /// The recovery key opens it and it holds the vault's keys.
    Opened,
    /// No recovery key was given.
    NotChecked,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerReport {
    pub id: String,
    pub name: String,
    /// The worst of the findings; absent: none.
    pub severity: Option<Severity>,
    pub log: LogFigures,
    pub segments: SegmentFigures,
    pub snapshots: SnapshotFigures,
    pub points: PointFigures,
    pub findings: Vec<Finding>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogFigures {
    pub parts: u64,
    pub bytes: u64,
    /// Data records whose frames were verified.
    pub records: u64,
    pub last_record: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotFigures {
    /// Points that are listed.
    pub listed: u64,
    /// Those whose snapshots all exist with their sequence number.
    pub standing: u64,
    /// Deep: those that are proven equal to the journal, and the bytes read for it.
    pub compared: u64,
    pub compared_bytes: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PointFigures {
    pub known: u64,
    pub recoverable: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newest_recoverable: Option<PointName>,
    /// All points in order, as runs of those that are recoverable and those that are not.
    pub runs: Vec<Run>,
}

/// How far a verification is.
#[derive(Debug, Clone, Copy)]
pub enum Stage {
    Snapshots { done: usize, total: usize },
    Log { records: u64, bytes: u64 },
}

/// Checks `vault.json` and, if a recovery key is given, that it opens the key bundle.
///
/// # Errors
/// When the store cannot be read.
pub async fn vault(vault: &Vault, recovery_key: Option<&str>) -> Result<VaultReport, StoreError> {
    let mut report =
        VaultReport { id: vault.id.clone(), key_bundle: BundleCheck::NotChecked, findings: Vec::new() };
    let restore = "restore it from the store's soft-delete or versions, or let the operator write it anew: it does so \
        while it runs; without it nobody opens the vault by a recovery key";
    let found = |what: String| Finding::new(Severity::Damage, layout::VAULT_JSON, what, restore);
    let description = match vault::read_description(&*vault.store).await {
        Ok(Some((description, _))) => description,
        Ok(None) => {
            report.findings.push(found("it is missing".to_owned()));
            return Ok(report);
        }
        Err(VaultError::Unreachable(error) | VaultError::Store(error)) => return Err(error),
        Err(error) => {
            report.findings.push(found(chain(&error)));
            return Ok(report);
        }
    };
    report.findings.extend(wrong_keys(&description, &vault.keys).into_iter().map(found));
    let Some(recovery_key) = recovery_key else { return Ok(report) };
    let wrong = match KeyBundle::unseal(&description, recovery_key) {
        Ok(bundle) => match wrong_keys(&description, &bundle.data_keys).into_iter().next() {
            None if bundle.digest() == description.bundle_digest => None,
            None => Some("the key bundle is not the one that vault.json was written with".to_owned()),
            Some(what) => Some(format!("in the key bundle, {what}")),
        },
        Err(error) => Some(chain(&error)),
    };
    report.key_bundle = if wrong.is_none() { BundleCheck::Opened } else { BundleCheck::Failed };
    report.findings.extend(wrong.map(found));
    Ok(report)
}

/// What does not fit between the check values and these keys.
fn wrong_keys(description: &VaultDescription, keys: &DataKeys) -> Vec<String> {
    let ours = keys.check_values();
    let checks = &description.key_checks;
    let differ = checks.iter().filter_map(|(id, value)| match ours.get(id) {
        None => Some(format!("data key {id} is missing")),
        Some(own) if own != value => Some(format!("the check value of data key {id} is not that of the key")),
        Some(_) => None,
    });
    let unknown = ours.keys().filter(|id| !checks.contains_key(*id)).map(|id| {
        format!(
            "data key {id} has no check value: vault.json is older than the keys, put back to an older version"
        )
    });
    differ.chain(unknown).collect()
}

/// Verifies one server.
///
/// # Errors
/// When the store cannot be read at all; damage is in the report.
pub async fn server(
    vault: &Vault,
    held: &Held,
    env: &Env,
    deep: bool,
    mut progress: impl FnMut(Stage),
) -> Result<ServerReport, StoreError> {
    let patience = Patience { env: env.clone(), tries: 5 };
    let server = &held.id;
    let mut findings = held.findings.clone();
    let catalogue = Catalogue::read(vault, server, &patience, &mut findings).await?;
    let mut snapshots = SnapshotFigures::default();
    let mut standing = catalogue.snapshots(vault, server, &patience, &mut snapshots, &mut findings).await?;
    if deep {
        let collected = catalogue.collected;
        let (standing, snapshots) = (&mut standing, &mut snapshots);
        compare(vault, server, env, &patience, collected, standing, snapshots, &mut findings, &mut progress)
            .await?;
        for (disk, size_bytes) in catalogue.seed_disks() {
            let wrong = super::sums::compare(vault, server, &patience, disk, size_bytes).await?;
            findings.extend(wrong.into_iter().flatten());
        }
    }
    let parts = Parts::read(vault, server, &patience).await?;
    let mut log = LogFigures { parts: parts.alive(), bytes: parts.bytes(), ..LogFigures::default() };
    let mut pass = Pass {
        segments: Segments::new(vault, server, &patience),
        catalogue: &catalogue,
        standing,
        parts: &parts,
        findings,
        server,
        deep,
        gaps: Vec::new(),
    };
    let end = pass.run(vault, env, &mut log, &mut progress).await?;
    pass.segments.finish().await?;
    let Pass { segments, mut findings, gaps, .. } = pass;
    let Swept { runs, hurts, state, marks } = end;
    catalogue.against_the_end(server, state.as_ref(), &marks, &gaps, &mut findings);
    for (finding, number) in hurts {
        if let Some(finding) = findings.get_mut(finding) {
            finding.hurts.add(number);
        }
    }
    let mut points = PointFigures::default();
    for run in &runs {
        points.known += run.count;
        if run.recoverable {
            points.recoverable += run.count;
            points.newest_recoverable = Some(run.last.clone());
        }
    }
    points.runs = runs;
    Ok(ServerReport {
        id: server.to_string(),
        name: held.name(),
        severity: findings.iter().map(|finding| finding.severity).max(),
        log,
        segments: segments.figures,
        snapshots,
        points,
        findings,
    })
}

/// Deep: every snapshot against the journal, each from the one before it.
#[allow(clippy::too_many_arguments, reason = "the pieces of one report, which no other function takes")]
async fn compare(
    vault: &Vault,
    server: &ServerId,
    env: &Env,
    patience: &Patience,
    collected: Option<RecordId>,
    standing: &mut [Standing],
    figures: &mut SnapshotFigures,
    findings: &mut Vec<Finding>,
    progress: &mut impl FnMut(Stage),
) -> Result<(), StoreError> {
    let mut base: Option<Point> = None;
    let mut proven = super::content::Proven::default();
    let total = standing.len();
    for (done, listed) in standing.iter_mut().enumerate() {
        progress(Stage::Snapshots { done, total });
        if listed.broken_by.is_some() {
            continue;
        }
        // Between this one and the one before the journal is gone.
        let journal = collected.is_none_or(|begins| base.as_ref().is_some_and(|base| base.id() >= begins));
        if !journal {
            let what = format!(
                "the snapshots of point {} are older than the journal, which begins after record {}: they are compared by \
                 their sequence numbers alone",
                listed.point.number,
                collected.map_or(0, |begins| begins.number.0)
            );
            let blob = layout::catalogue(server, "points.json");
            findings.push(Finding::new(Severity::Note, blob, what, remedy::NOTHING));
            base = Some(listed.point.clone());
            continue;
        }
        let (point, before) = (&listed.point, base.as_ref());
        let compared =
            super::content::compare(vault, server, env, patience, point, before, &mut proven).await;
        match compared {
            Ok(compared) => {
                figures.compared_bytes += compared.bytes;
                match compared.findings.is_empty() {
                    true => figures.compared += 1,
                    false => listed.broken_by = Some(findings.len()),
                }
                findings.extend(compared.findings);
            }
            Err(error) => {
                let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
                while let Some(error) = cause {
                    if let Some(store @ StoreError::Unknown { .. }) = error.downcast_ref::<StoreError>() {
                        return Err(store.clone());
                    }
                    cause = error.source();
                }
                let what = format!(
                    "the snapshots of point {} cannot be compared with the journal, only by their sequence numbers: {}",
                    listed.point.number,
                    chain(&error)
                );
                let blob = layout::catalogue(server, "points.json");
                findings.push(Finding::new(Severity::Note, blob, what, remedy::NOTHING));
            }
        }
        if listed.broken_by.is_none() {
            base = Some(listed.point.clone());
        }
    }
    Ok(())
}

/// One walk through the log.
struct Pass<'a> {
    segments: Segments<'a>,
    catalogue: &'a Catalogue,
    standing: Vec<Standing>,
    parts: &'a Parts,
    findings: Vec<Finding>,
    server: &'a ServerId,
    deep: bool,
    /// From where to where the log could not be followed.
    gaps: Vec<(Place, Option<Place>)>,
}

struct Swept {
    runs: Vec<Run>,
    hurts: Vec<(usize, u64)>,
    state: Option<LogState>,
    marks: Marks,
}

impl Pass<'_> {
    async fn run(
        &mut self,
        vault: &Vault,
        env: &Env,
        log: &mut LogFigures,
        progress: &mut impl FnMut(Stage),
    ) -> Result<Swept, StoreError> {
        let points: Vec<Point> = self.standing.iter().map(|standing| standing.point.clone()).collect();
        let mut marks = self.catalogue.marks();
        let mut sweep = Sweep::new(self.standing.iter().cloned());
        let base = self.catalogue.base();
        let begun = Walk::new(vault, self.server, env, &points, base.map(|base| &base.log));
        let mut walk = match begun {
            Ok(walk) => walk,
            Err(error) => return self.not_begun(&error, sweep, marks),
        };
        if let Some(base) = base {
            marks.begin(place(&base.log));
            sweep.begin((base.epoch, base.number));
            marks.pass(self.server, &base.log, &mut self.findings);
        }
        self.beginning();
        let mut waiting: Vec<(Epoch, v1::Data)> = Vec::new();
        loop {
            let step = walk.next().await?;
            if let Some(state) = walk.state() {
                for (number, finding) in marks.pass(self.server, state, &mut self.findings) {
                    if let Some(point) = self.catalogue.point(number) {
                        sweep.disqualify(point, finding);
                    }
                }
            }
            match step {
                Step::Data { epoch, record } => {
                    log.records += 1;
                    log.last_record = record.number;
                    waiting.push((epoch, *record));
                    if waiting.len() >= AT_ONCE {
                        self.judge(&mut waiting, &mut sweep).await?;
                        let SegmentFigures { named_bytes, opened_bytes, .. } = self.segments.figures;
                        let bytes = if self.deep { opened_bytes } else { named_bytes };
                        progress(Stage::Log { records: log.records, bytes });
                    }
                }
                Step::Other => {}
                Step::Gap(gap) => {
                    self.judge(&mut waiting, &mut sweep).await?;
                    let resumed = gap
                        .resumed
                        .and_then(|_| walk.state())
                        .map(|state| (place(state), (state.epoch.0, state.last_number.0)));
                    self.gaps.push((
                        (gap.part.epoch.0, gap.part.part, gap.offset),
                        resumed.map(|(place, _)| place),
                    ));
                    sweep.gap(self.findings.len(), resumed.map(|(_, record)| record));
                    self.findings.push(self.of_gap(&gap));
                }
                Step::End => break,
            }
        }
        self.judge(&mut waiting, &mut sweep).await?;
        let (runs, hurts) = sweep.end();
        Ok(Swept { runs, hurts, state: walk.state().cloned(), marks })
    }

    /// A log is taken over by what its newest part continues, so the part before the base's must stand.
    fn beginning(&mut self) {
        let Some(begins) = self.catalogue.log_begins.filter(|part| !self.parts.has(*part)) else { return };
        let what = "the log begins with this part, and it is missing";
        let finding = Finding::new(Severity::Damage, begins.blob(self.server), what, remedy::RESTORE);
        self.findings.push(finding);
    }

    /// Nothing of the log can be read.
    fn not_begun(&mut self, error: &ReadError, mut sweep: Sweep, marks: Marks) -> Result<Swept, StoreError> {
        sweep.gap(self.findings.len(), None);
        let blob = layout::catalogue(self.server, "points.json");
        let remedy = "restore the entry of that key";
        self.findings.push(Finding::new(Severity::Damage, blob, chain(error), remedy));
        self.gaps.push(((0, 0, 0), None));
        let (runs, hurts) = sweep.end();
        Ok(Swept { runs, hurts, state: None, marks })
    }

    /// Segments of the waiting records, then what that means for their points.
    async fn judge(
        &mut self,
        waiting: &mut Vec<(Epoch, v1::Data)>,
        sweep: &mut Sweep,
    ) -> Result<(), StoreError> {
        let mut sources = Vec::new();
        let mut unnamed = Vec::new();
        let kept = |epoch: Epoch, record: &v1::Data| {
            let id = RecordId { epoch, number: RecordNumber(record.number) };
            self.catalogue.collected.is_none_or(|collected| id > collected)
        };
        for (_, record) in waiting.iter().filter(|(epoch, record)| kept(*epoch, record)) {
            match journal::sources(record) {
                Ok(found) => sources.extend(found),
                Err(error) => unnamed.push((record.number, chain(&error))),
            }
        }
        let checked = self.segments.check(&sources, self.deep).await?;
        let mut broken = std::collections::BTreeMap::new();
        for (source, finding) in sources.iter().zip(checked) {
            if let Some(finding) = finding {
                broken.entry(source.record).or_insert(self.findings.len());
                self.findings.push(finding);
            }
        }
        for (number, what) in unnamed {
            broken.entry(number).or_insert(self.findings.len());
            let blob = layout::log_prefix(self.server);
            self.findings
                .push(Finding::new(Severity::Damage, blob, what, remedy::COPY_AGAIN).of_record(number));
        }
        for (epoch, record) in waiting.drain(..) {
            let id = RecordId { epoch, number: RecordNumber(record.number) };
            if let Some(collected) = self.catalogue.collected.filter(|collected| id <= *collected) {
                sweep.collected(epoch, &record, id == collected);
                continue;
            }
            let listed = sweep.record(epoch, &record, broken.get(&record.number).copied());
            if let Some(listed) = listed
                && (!is_point(&record) || record.t0_micros != listed.point.t0_micros)
            {
                let what = format!(
                    "it lists point {} of {}, but the log says that this record {} of {}",
                    record.number,
                    crate::select::time_text(listed.point.t0()),
                    if is_point(&record) { "is a point" } else { "is no point" },
                    crate::select::time_text(Micros(record.t0_micros)),
                );
                let blob = layout::catalogue(self.server, "points.json");
                self.findings.push(
                    Finding::new(Severity::Damage, blob, what, catalogue::POINTS_REMEDY)
                        .of_record(record.number),
                );
            }
        }
        Ok(())
    }

    fn of_gap(&self, gap: &Gap) -> Finding {
        let blame = self.parts.blame(gap);
        let to = match gap.resumed {
            Some(number) => format!("what follows record {} up to {number}", gap.after_record),
            None => format!("what follows record {}", gap.after_record),
        };
        let what = format!("{}; {to} cannot be replayed", blame.what);
        let finding = Finding::new(Severity::Damage, blame.part.blob(self.server), what, remedy::COPY_AGAIN);
        match blame.byte {
            Some(byte) => finding.at(byte),
            None => finding,
        }
    }
}
