//! What was measured, as JSON for programs and Markdown for people.

use std::{collections::BTreeMap, fmt, fs, path::Path, process::Command};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::statistics::{Estimate, estimate};

/// What the design asks of a figure.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

/// One figure with its samples.
#[derive(Debug)]
pub struct Figure {
    pub name: String,
    /// What is divided by what, or what is counted, in one sentence.
    pub what: &'static str,
    /// Empty for ratios.
    pub unit: &'static str,
    pub estimate: Estimate,
    pub goal: Option<Goal>,
    /// What else the same run showed.
    pub beside: String,
}

impl Figure {
    /// # Panics
    /// Without samples: then nothing was measured.
    pub fn new(name: impl Into<String>, what: &'static str, unit: &'static str, samples: &[f64]) -> Self {
        let estimate = estimate(samples).unwrap();
        Self { name: name.into(), what, unit, estimate, goal: None, beside: String::new() }
    }

    pub fn goal(self, goal: Goal) -> Self {
        Self { goal: Some(goal), ..self }
    }

    pub fn beside(self, beside: impl Into<String>) -> Self {
        Self { beside: beside.into(), ..self }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Estimate { median, low, high, samples } = self.estimate;
        let digits = digits(median);
        write!(
            f,
            "{} = {median:.digits$} {} ({low:.digits$} to {high:.digits$}, {samples} samples)",
            self.name, self.unit
        )?;
        if !self.beside.is_empty() {
            write!(f, "; {}", self.beside)?;
        }
        Ok(())
    }
}

/// Three significant figures or so.
fn digits(value: f64) -> usize {
    match value.abs() {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 1.0 => 2,
        _ => 3,
    }
}

/// A figure as it stands in the JSON file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Line {
    what: String,
    unit: String,
    median: f64,
    low: f64,
    high: f64,
    samples: usize,
    goal: Option<String>,
    met: Option<bool>,
    beside: String,
    measured: String,
    commit: String,
}

/// All figures, by name.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    machine: String,
    figures: BTreeMap<String, Line>,
}

impl Report {
    /// What earlier runs have measured, if the file can be read.
    pub fn open(file: &Path) -> Self {
        let earlier = fs::read(file).ok().and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        Self { machine: machine(), ..earlier.unwrap_or_default() }
    }

    pub fn put(&mut self, figure: Figure) {
        let Estimate { median, low, high, samples } = figure.estimate;
        let (goal, met) = match figure.goal {
            None => (None, None),
            Some(Goal::AtLeast(goal)) => (Some(format!("≥ {goal}")), Some(median >= goal)),
            Some(Goal::AtMost(goal)) => (Some(format!("≤ {goal}")), Some(median <= goal)),
        };
        let line = Line {
            what: figure.what.to_owned(),
            unit: figure.unit.to_owned(),
            median,
            low,
            high,
            samples,
            goal,
            met,
            beside: figure.beside,
            measured: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
            commit: said_by("git", &["rev-parse", "--short", "HEAD"]),
        };
        self.figures.insert(figure.name, line);
    }

    pub fn save(&self, file: &Path) {
        let value: Value = json!(self);
        fs::write(file, serde_json::to_string_pretty(&value).unwrap() + "\n").unwrap();
    }

    pub fn markdown(&self) -> String {
        let mut text = format!(
            "# Benchmarks\n\nWritten by `make bench`: medians with their 95 % confidence intervals (bootstrap). \
             Whatever is divided was measured\nin turns in the same run. Everything ran on one machine: {}.\n\n\
             | figure | median | interval | samples | goal | met | of |\n|---|---|---|---|---|---|---|\n",
            self.machine
        );
        for (name, line) in &self.figures {
            let digits = digits(line.median);
            let met = line.met.map_or("", |met| if met { "yes" } else { "**no**" });
            text += &format!(
                "| `{name}` | {:.digits$} {} | {:.digits$} – {:.digits$} | {} | {} | {met} | {} |\n",
                line.median,
                line.unit,
                line.low,
                line.high,
                line.samples,
                line.goal.as_deref().unwrap_or(""),
                line.what
            );
        }
        text += "\nBeside them, in the same runs:\n\n";
        for (name, line) in self.figures.iter().filter(|(_, line)| !line.beside.is_empty()) {
            text += &format!("- `{name}` ({}, commit {}): {}\n", line.measured, line.commit, line.beside);
        }
        text
    }
}

fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = meminfo.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default();
    format!(
        "{cores} cores ({}), {:.0} GiB, Linux {}",
        model.trim_start_matches([' ', '\t', ':']),
        kib / f64::from(1 << 20),
        said_by("uname", &["-r"])
    )
}

fn said_by(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}
