//! `lifeboat-bench`: measures the data plane and writes `target/bench.json` and `docs/benchmarks.md`.
//!
//! ```text
//!   figures/* (one a file) ─► rig of lifeboat-tests (programs, loop devices on tmpfs) ─► store without cost | Azurite
//!        └─► statistics (median, interval) ─► report (JSON, Markdown)
//! ```
//! Figures are ratios against a peer or a limit that is measured in the same run, alternating with ours. A goal that is
//! missed is shown, it fails nothing: a figure depends on the machine.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a measurement that cannot be made ends the run")]
#![allow(clippy::disallowed_methods, reason = "time is what is measured")]
#![allow(unreachable_pub, reason = "modules of one program")]

mod figures;
mod free_store;
mod load;
mod machines;
mod processes;
mod report;
mod slow;
mod statistics;
mod store;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::report::Report;

#[derive(Debug, Parser)]
#[command(about = "Measures the data plane", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure and write the report.
    Run {
        /// Only these figures; default: all.
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// How often each measurement is repeated.
        #[arg(long, default_value_t = 5)]
        repeat: usize,
        /// Where the figures go as JSON; those of other runs in it are kept.
        #[arg(long, default_value = "target/bench.json")]
        json: PathBuf,
        /// Where they go for people.
        #[arg(long)]
        markdown: Option<PathBuf>,
    },
    /// The names of the figures.
    List,
    /// Serve the store without cost until killed; prints its address.
    Store,
}

fn main() {
    match Arguments::parse().command {
        Command::List => figures::all().iter().for_each(|(name, _)| println!("{name}")),
        Command::Store => free_store::serve(),
        Command::Run { only, repeat, json, markdown } => run(&only, repeat, &json, markdown.as_deref()),
    }
}

fn run(only: &[String], repeat: usize, json: &std::path::Path, markdown: Option<&std::path::Path>) {
    if let Some(unknown) = only.iter().find(|name| !figures::all().iter().any(|(known, _)| known == name)) {
        panic!("there is no figure {unknown:?}: `lifeboat-bench list` shows them");
    }
    let mut report = Report::open(json);
    for (name, measure) in figures::all() {
        if !only.is_empty() && !only.iter().any(|wanted| wanted == name) {
            continue;
        }
        println!("== {name}");
        for figure in measure(repeat.max(1)) {
            println!("{figure}");
            report.put(figure);
        }
        report.save(json);
        if let Some(markdown) = markdown {
            std::fs::write(markdown, report.markdown()).unwrap();
        }
    }
}
