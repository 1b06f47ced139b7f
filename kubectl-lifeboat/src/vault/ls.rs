//! `vault ls`: the servers of a vault, or the points of one.

use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use lifeboat_recovery::{
    book::{ServerSummary, inventory, summary},
    list,
};

use super::{VaultError, access::Access};
use crate::{text, vault::verify::Output};

#[derive(Args)]
pub(crate) struct Ls {
    /// Id, name or namespace/name of a server: its points are listed.
    server: Option<String>,
    #[command(flatten)]
    access: Access,
    /// How to show it.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

impl Ls {
    pub(super) async fn run(self) -> Result<ExitCode, VaultError> {
        let opened = self.access.open().await?;
        let servers = inventory::servers(&opened.vault, &opened.patience).await?;
        let Some(wanted) = &self.server else {
            let mut summaries = Vec::new();
            for held in &servers {
                summaries.push(summary::of(&opened.vault, held, &opened.env, &opened.patience).await?);
            }
            match self.output {
                Output::Json => println!("{}", serde_json::to_string_pretty(&summaries)?),
                Output::Text => print!("{}", screen(&opened.vault.id, &summaries, Timestamp::now())),
            }
            return Ok(ExitCode::SUCCESS);
        };
        let held = inventory::choose(servers, wanted)?;
        let points = list::points(&opened.vault, &held.id, &opened.env).await?;
        match self.output {
            Output::Json => println!("{}", serde_json::to_string_pretty(&points)?),
            Output::Text => print!("{}", table(&points)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn screen(vault: &str, servers: &[ServerSummary], now: Timestamp) -> String {
    if servers.is_empty() {
        return format!("Vault {vault} holds no server.\n");
    }
    let mut screen = String::new();
    let rows: Vec<_> = servers.iter().map(|server| row(server, now)).collect();
    let headings =
        ["SERVER", "ID", "DISKS", "SNAPSHOTS", "OLDEST POINT", "NEWEST POINT", "STORED", "LAST ACTIVITY"];
    screen += &text::table(&headings, &rows);
    for server in servers {
        for disk in &server.disks {
            let size = text::bytes(disk.size_bytes);
            let left_out = if disk.left_out { ", left out of newer points" } else { "" };
            screen += &format!(
                "\n  {} disk {}: {} ({}), {size}{left_out}",
                name(server),
                disk.slot,
                disk.path,
                disk.id
            );
        }
        if let Some(run) = &server.closed_by {
            screen += &format!("\n  {} is closed by failover run {run}", name(server));
        }
    }
    screen.push('\n');
    for server in servers {
        for problem in &server.problems {
            screen += &format!(
                "\n  {}: {problem}\n      → kubectl lifeboat vault verify {}\n",
                name(server),
                name(server)
            );
        }
    }
    screen
}

fn name(server: &ServerSummary) -> String {
    match (&server.namespace, &server.name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ => server.id.clone(),
    }
}

fn row(server: &ServerSummary, now: Timestamp) -> Vec<String> {
    let window = server.journal.as_ref();
    let stored = &server.stored;
    let point =
        |point: &lifeboat_recovery::book::sweep::PointName| format!("{} ({})", point.number, point.t0);
    let last = Timestamp::from_microsecond(server.last_activity_micros).ok();
    let last = last.filter(|_| server.last_activity.is_some());
    let disks: Vec<_> = server.disks.iter().filter(|disk| !disk.left_out).collect();
    vec![
        name(server),
        server.id.clone(),
        format!("{} ({})", disks.len(), text::bytes(disks.iter().map(|disk| disk.size_bytes).sum())),
        server.snapshots.to_string(),
        window.map_or("none".into(), |window| point(&window.oldest)),
        window.map_or("none".into(), |window| point(&window.newest)),
        text::bytes(stored.log_bytes + stored.journal_bytes + stored.seed_bytes),
        last.map_or("none".into(), |last| format!("{} ago", text::between(last, now))),
    ]
}

fn table(points: &[list::ListedPoint]) -> String {
    let rows: Vec<_> = points
        .iter()
        .map(|point| {
            let kept = match (point.journal, point.snapshot) {
                (true, true) => "journal, snapshot",
                (false, true) => "snapshot",
                _ => "journal",
            };
            vec![
                point.number.to_string(),
                point.t0.clone(),
                format!("{:?}", point.consistency),
                point.epoch.to_string(),
                kept.to_owned(),
            ]
        })
        .collect();
    text::table(&["POINT", "TIME", "CONSISTENCY", "EPOCH", "KEPT IN"], &rows)
}
