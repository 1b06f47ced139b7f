//! Spans of time as people write them: `24h`, `1h30m`, `15s`, in the syntax of the custom resources.

use std::time::Duration;

const UNITS: [(char, u64); 3] = [('h', 3600), ('m', 60), ('s', 1)];

/// For the command line; the error says what is allowed.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a span of time: write it as 15s, 5m, 24h or 1h30m");
    let mut seconds = 0_u64;
    let mut rest = text;
    for (unit, factor) in UNITS {
        if let Some((number, after)) = rest.split_once(unit) {
            let number: u32 = number.parse().map_err(|_| wrong())?;
            seconds += u64::from(number) * factor;
            rest = after;
        }
    }
    if text.is_empty() || !rest.is_empty() {
        return Err(wrong());
    }
    Ok(Duration::from_secs(seconds))
}

/// The two largest units that are not zero: `1d2h`, `3m5s`, `12s`.
pub(super) fn format(seconds: f64) -> String {
    let total = seconds.max(0.0).round() as u64;
    let parts = [(total / 86400, 'd'), (total / 3600 % 24, 'h'), (total / 60 % 60, 'm'), (total % 60, 's')];
    let said: String = parts
        .iter()
        .skip_while(|(count, _)| *count == 0)
        .take(2)
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect();
    if said.is_empty() { "0s".to_owned() } else { said }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_hours_minutes_and_seconds_in_their_order() {
        for (text, seconds) in [("24h", 86400), ("1h30m", 5400), ("15s", 15), ("0s", 0), ("2m5s", 125)] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for wrong in ["", "24", "1d", "m", "5m1h", "-1s", "1.5h"] {
            assert!(parse(wrong).unwrap_err().contains("write it as"), "{wrong}");
        }
    }

    #[test]
    fn says_the_two_largest_units() {
        for (seconds, said) in
            [(0.2, "0s"), (59.6, "1m"), (3600.0, "1h"), (3725.0, "1h2m"), (90000.0, "1d1h"), (86405.0, "1d")]
        {
            assert_eq!(format(seconds), said);
        }
    }
}
