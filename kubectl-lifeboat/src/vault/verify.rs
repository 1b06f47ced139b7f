//! `vault verify`: checks a vault and says what is damaged, what that costs, and what to do.

use std::{fmt::Write as _, io::IsTerminal as _, process::ExitCode, time::Duration};

use clap::{Args, ValueEnum};
use lifeboat_recovery::{
    book::{
        Finding, ServerReport, Severity, VaultReport, inventory,
        verify::{self, BundleCheck, Stage},
    },
    exit,
};
use serde::Serialize;
use tokio::time::Instant;

use super::{VaultError, access::Access};
use crate::text;

/// A log gets a line this often: reading everything takes hours.
const LINE_EVERY: Duration = Duration::from_secs(30);
/// Findings of a server that are shown; the rest is counted, and in the JSON.
const SHOWN: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

/// Exit codes: 0 whole, 5 damaged or degraded, 3 no such server, 4 the vault cannot be reached.
#[derive(Args)]
pub(crate) struct Verify {
    /// Id, name or namespace/name of a server; all when absent.
    server: Option<String>,
    /// Also fetch and decrypt every segment and compare every snapshot with the journal. Reads everything once.
    #[arg(long)]
    deep: bool,
    #[command(flatten)]
    access: Access,
    /// How to show it.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Serialize)]
struct Report {
    whole: bool,
    deep: bool,
    vault: VaultReport,
    servers: Vec<ServerReport>,
}

impl Verify {
    pub(super) async fn run(self) -> Result<ExitCode, VaultError> {
        let opened = self.access.open().await?;
        let vault = verify::vault(&opened.vault, opened.recovery_key.as_deref().map(String::as_str)).await?;
        if self.output == Output::Text {
            print!("{}", vault_text(&vault, &opened.config.endpoint, &opened.config.container));
        }
        let mut servers = inventory::servers(&opened.vault, &opened.patience).await?;
        if let Some(wanted) = &self.server {
            servers = vec![inventory::choose(servers, wanted)?];
        }
        let mut reports = Vec::new();
        for held in &servers {
            let name = held.name();
            let show = std::io::stderr().is_terminal();
            let mut shown = Instant::now();
            let progress = |stage: Stage| {
                if show {
                    eprint!("\r\x1b[K{name}: {}", stage_text(stage));
                } else if shown.elapsed() >= LINE_EVERY {
                    shown = Instant::now();
                    eprintln!("{name}: {}", stage_text(stage));
                }
            };
            let report = verify::server(&opened.vault, held, &opened.env, self.deep, progress).await;
            if show {
                eprint!("\r\x1b[K");
            }
            let report = report?;
            if self.output == Output::Text {
                print!("\n{}", server_text(&report, self.deep));
            }
            reports.push(report);
        }
        let bad = |findings: &[Finding]| findings.iter().any(|finding| finding.severity > Severity::Note);
        let whole = !bad(&vault.findings) && !reports.iter().any(|report| bad(&report.findings));
        match self.output {
            Output::Json => {
                let report = Report { whole, deep: self.deep, vault, servers: reports };
                println!("{}", serde_json::to_string_pretty(&report)?);
            }
            Output::Text if !self.deep => println!(
                "\nSegments were checked for presence and length, snapshots for their sequence numbers. \
                 `--deep` reads everything."
            ),
            Output::Text => {}
        }
        Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(exit::DAMAGED) })
    }
}

fn stage_text(stage: Stage) -> String {
    match stage {
        Stage::Snapshots { done, total } => format!("snapshots {done} of {total}"),
        Stage::Log { records, bytes } => format!("{records} records, {}", text::bytes(bytes)),
    }
}

fn vault_text(report: &VaultReport, endpoint: &str, container: &str) -> String {
    let state = match report.findings.iter().map(|finding| finding.severity).max() {
        Some(Severity::Damage) => "DAMAGED",
        Some(Severity::Degraded) => "degraded",
        _ => "whole",
    };
    let bundle = match report.key_bundle {
        BundleCheck::Opened => "the recovery key opens the key bundle",
        BundleCheck::NotChecked => "no recovery key was given, so the key bundle was not opened",
        BundleCheck::Failed => "the key bundle cannot be used",
    };
    let mut shown = format!("vault {} in {container} at {endpoint}: {state}; {bundle}\n", report.id);
    findings_text(&mut shown, &report.findings);
    shown
}

fn server_text(report: &ServerReport, deep: bool) -> String {
    let ServerReport { id, name, severity, log, segments, snapshots, points, findings } = report;
    let state = match severity {
        Some(Severity::Damage) => "DAMAGED",
        Some(Severity::Degraded) => "degraded",
        Some(Severity::Note) | None => "whole",
    };
    let mut shown = format!("{name} ({id}): {state}\n");
    let mut line = |what: &str, text: String| {
        let _ = writeln!(shown, "  {what:<10}{text}");
    };
    let bytes = text::bytes;
    line(
        "log",
        format!(
            "{} parts, {}, {} records verified, the last is {}",
            log.parts,
            bytes(log.bytes),
            log.records,
            log.last_record
        ),
    );
    let opened = match deep {
        true => format!("; {} opened and verified ({})", segments.opened, bytes(segments.opened_bytes)),
        false => String::new(),
    };
    line("segments", format!("{} named ({}){opened}", segments.named, bytes(segments.named_bytes)));
    let compared = match deep {
        true => format!(
            "; {} compared with the journal ({} read)",
            snapshots.compared,
            bytes(snapshots.compared_bytes)
        ),
        false => String::new(),
    };
    line("snapshots", format!("of {} points, {} stand{compared}", snapshots.listed, snapshots.standing));
    let newest = match &points.newest_recoverable {
        Some(newest) => format!("; the newest is {} of {}", newest.number, newest.t0),
        None => String::new(),
    };
    line("points", format!("{} of {} can be recovered{newest}", points.recoverable, points.known));
    for run in points.runs.iter().filter(|run| !run.recoverable) {
        line(
            "  lost",
            format!(
                "{} to {} ({} to {}): {}",
                run.first.number, run.last.number, run.first.t0, run.last.t0, run.count
            ),
        );
    }
    findings_text(&mut shown, findings);
    shown
}

/// The worst first.
fn findings_text(shown: &mut String, findings: &[Finding]) {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    for finding in sorted.iter().take(SHOWN) {
        let severity = match finding.severity {
            Severity::Damage => "DAMAGE",
            Severity::Degraded => "degraded",
            Severity::Note => "note",
        };
        let _ = writeln!(shown, "  {severity:<10}{finding}");
        if finding.hurts.count > 0 {
            let _ = writeln!(shown, "  {:<10}lost: {}", "", finding.hurts);
        }
        let _ = writeln!(shown, "  {:<10}→ {}", "", finding.remedy);
    }
    if sorted.len() > SHOWN {
        let _ = writeln!(shown, "  and {} more: --output json", sorted.len() - SHOWN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_says_where_what_is_lost_and_what_to_do() {
        let mut finding =
            Finding::new(Severity::Damage, "journal/x", "it is missing", "restore it").of_record(7);
        (7..10).for_each(|number| finding.hurts.add(number));
        let mut shown = String::new();
        findings_text(&mut shown, &[finding]);
        assert_eq!(
            shown,
            "  DAMAGE    journal/x, record 7: it is missing\n            lost: 3 points, 7 to 9\n            → restore it\n"
        );
    }
}
