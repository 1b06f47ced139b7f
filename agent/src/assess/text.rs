//! The report for people.

use std::fmt::{self, Display, Formatter};

use super::{
    length,
    report::{Compression, LineTime, Rates, Report},
};

const UNITS: [(&str, f64); 4] =
    [("TiB", 1099511627776.0), ("GiB", 1073741824.0), ("MiB", 1048576.0), ("KiB", 1024.0)];

/// `1.5 GiB`, as volumes are sized.
pub(super) fn bytes(count: u64) -> String {
    let count = count as f64;
    match UNITS.iter().find(|(_, factor)| count >= *factor) {
        Some((unit, factor)) if count / factor < 10.0 => format!("{:.1} {unit}", count / factor),
        Some((unit, factor)) => format!("{:.0} {unit}", count / factor),
        None => format!("{count:.0} bytes"),
    }
}

fn span(seconds: u64) -> String {
    length::format(seconds as f64)
}

fn compressed(compression: &Compression) -> String {
    match compression.assumed {
        true => "not sampled, taken as they are".to_owned(),
        false => format!(
            "to {:.0} % in {} samples ({})",
            compression.ratio * 100.0,
            compression.samples,
            bytes(compression.sampled_bytes)
        ),
    }
}

fn rates(f: &mut Formatter<'_>, name: &str, rates: &Rates) -> fmt::Result {
    let Rates { average, median, p95, p99, peak } = rates;
    let [average, median, p95, p99, peak] =
        [average, median, p95, p99, peak].map(|rate| format!("{}/s", bytes(*rate)));
    writeln!(f, "  {name:<22}{average:>14}{median:>14}{p95:>14}{p99:>14}{peak:>14}")
}

fn times(f: &mut Formatter<'_>, times: &[LineTime]) -> fmt::Result {
    for time in times {
        let said = time.seconds.map_or("never: the changes alone fill the line".to_owned(), span);
        writeln!(f, "  at {:>4} Mbit/s: {said}", time.megabits_per_second)?;
    }
    Ok(())
}

fn mark(extrapolated: bool) -> &'static str {
    if extrapolated { "  (from the average: less was measured)" } else { "" }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { schema: _, server, measurement, disks, issues, churn, first_copy, needs, notes } = self;
        writeln!(
            f,
            "{} ({}, Linux {}), tracked by {}",
            server.hostname, server.os, server.kernel, server.tracking
        )?;
        writeln!(
            f,
            "measured for {} in {} rounds of {}",
            length::format(measurement.seconds),
            measurement.rounds,
            span(measurement.round_interval_seconds)
        )?;
        if !notes.is_empty() {
            writeln!(f)?;
        }
        for note in notes {
            writeln!(f, "! {note}")?;
        }
        writeln!(f, "\nDisks{:>46}{:>14}{:>14}", "size", "changed", "written")?;
        for disk in disks {
            let name = format!("{} ({})", disk.path, disk.id);
            let [size, changed, written] =
                [disk.size_bytes, disk.changed_bytes, disk.written_bytes].map(bytes);
            writeln!(f, "  {name:<35}{size:>14}{changed:>14}{written:>14}")?;
        }
        for issue in issues {
            writeln!(f, "  {}: {}; {}", issue.code, issue.message, issue.remedy)?;
        }
        writeln!(f, "\nChurn{:>33}{:>14}{:>14}{:>14}{:>14}", "average", "median", "p95", "p99", "peak")?;
        rates(f, "changed", &churn.bytes_per_second)?;
        rates(f, "sent, compressed", &churn.sent_bytes_per_second)?;
        writeln!(f, "  changed blocks compress {}", compressed(&churn.compression))?;
        for longer in &churn.longer_rounds {
            let rate = bytes(longer.bytes_per_second);
            writeln!(
                f,
                "  with rounds of {} it would change {rate}/s on average",
                span(longer.interval_seconds)
            )?;
        }
        if measurement.judged_rounds > 0 {
            let (exact, judged) = (measurement.exact_rounds, measurement.judged_rounds);
            writeln!(f, "  {exact} of {judged} rounds would be consistent points at their first pass")?;
        }
        let error = first_copy.used_error_bytes.map_or(String::new(), |error| match error {
            0 => ", every block looked at".to_owned(),
            error => format!(" ± {}", bytes(error)),
        });
        writeln!(f, "\nFirst copy")?;
        writeln!(f, "  {} of {} used{error}", bytes(first_copy.used_bytes), bytes(first_copy.disk_bytes))?;
        let sent = bytes(first_copy.sent_bytes);
        writeln!(f, "  {sent} to send; blocks compress {}", compressed(&first_copy.compression))?;
        times(f, &first_copy.times)?;
        writeln!(f, "\nUplink of this server")?;
        for uplink in &needs.uplink {
            let said = uplink.needed.as_ref().map_or(
                "no line can: rounds are too long for it".to_owned(),
                |needed| {
                    format!("{:.1} Mbit/s ({}/s)", needed.megabits_per_second, bytes(needed.bytes_per_second))
                },
            );
            writeln!(f, "  for an RPO of {}: {said}", span(uplink.rpo_seconds))?;
        }
        writeln!(f, "  its part of the process server's spool: {}", bytes(needs.spool_bytes))?;
        writeln!(f, "\nAfter an outage of the store")?;
        for outage in &needs.outages {
            let (length, data) = (span(outage.outage_seconds), bytes(outage.bytes));
            writeln!(f, "  of {length}: {data} to send{}", mark(outage.extrapolated))?;
            times(f, &outage.times)?;
        }
        writeln!(f, "\nVault")?;
        for vault in &needs.vault {
            let [seed, journal, points, total] =
                [vault.seed_disk_bytes, vault.journal_bytes, vault.recovery_point_bytes, vault.total_bytes]
                    .map(bytes);
            writeln!(
                f,
                "  journalRetention {}: {total} = seed disks {seed} + journal {journal} + recovery points {points}{}",
                span(vault.journal_seconds),
                mark(vault.extrapolated)
            )?;
        }
        let operations = &needs.store_operations;
        let (appends, puts) = (operations.log_appends_per_day, operations.segment_puts_per_day);
        for disk in disks {
            let Some(pages) = &disk.page_writes else { continue };
            let (average, peak) = (pages.average_per_second, pages.peak_per_second);
            writeln!(f, "  page writes to the seed disk of {}: {average}/s, {peak}/s at most", disk.path)?;
        }
        writeln!(f, "  store operations a day: {appends} appends to the log, {puts} segments")
    }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn bytes_are_said_as_people_size_volumes() {
        for (count, said) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1536, "1.5 KiB"),
            (50 << 30, "50 GiB"),
            (3 << 40, "3.0 TiB"),
        ] {
            assert_eq!(bytes(count), said);
        }
    }
}
