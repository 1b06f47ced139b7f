//! The upload limit of each process server at this moment. Pure.
//!
//! The operator judges the windows, so that process servers need no time zones and no clock; they keep the last answer
//! while there is no operator.

use lifeboat_crds::{Reason, bandwidth::BandwidthWindow};
use lifeboat_replication::wire::v1;

use super::validate::quantity_bytes;
use crate::runtime::Failure;

/// Below this a segment, which is sent at once, would outweigh seconds of the limit.
const LEAST_BYTES: u64 = 512 << 10;

/// A window as process servers could obey it.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    window: BandwidthWindow,
    bytes_per_second: u64,
}

/// What the API server cannot tell: time zones, and quantities in full.
pub fn validate(windows: &[BandwidthWindow], process_servers: i32) -> Result<Vec<Limit>, Failure> {
    let judge = |(index, window): (usize, &BandwidthWindow)| {
        let field = format!("spec.bandwidth[{index}]");
        // Any moment will do: only the name is looked at.
        window.contains(jiff::Timestamp::UNIX_EPOCH).map_err(|unknown| {
            Failure::stalled(Reason::UnknownTimeZone, format!("{field}.timeZone: {unknown}"))
        })?;
        let limit = &window.limit_per_second;
        let invalid = |why: String| Failure::stalled(Reason::InvalidSpec, why);
        let bytes_per_second = quantity_bytes(limit).ok_or_else(|| {
            invalid(format!("{field}.limitPerSecond is {}: write it like 20Mi, bytes a second", limit.0))
        })?;
        let share = bytes_per_second / u64::try_from(process_servers).unwrap_or(0).max(1);
        if share < LEAST_BYTES {
            return Err(invalid(format!(
                "{field}.limitPerSecond is {}, shared by {process_servers} process servers: give each at least 512Ki, \
                 or have fewer of them",
                limit.0
            )));
        }
        Ok(Limit { window: window.clone(), bytes_per_second })
    };
    windows.iter().enumerate().map(judge).collect()
}

/// Bytes a second for each process server; 0: no limit. They share it equally, those without servers left out: they
/// upload nothing.
pub fn share(limits: &[Limit], servers: &[v1::Assignment], now: jiff::Timestamp) -> u64 {
    let holds = |limit: &&Limit| limit.window.contains(now).unwrap_or(false);
    let lowest = limits.iter().filter(holds).map(|limit| limit.bytes_per_second).min();
    let mut busy: Vec<&str> = servers.iter().map(|server| server.process_server.as_str()).collect();
    busy.sort_unstable();
    busy.dedup();
    lowest.map_or(0, |lowest| lowest / busy.len().max(1) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(json: serde_json::Value) -> Vec<BandwidthWindow> {
        serde_json::from_value(json).unwrap()
    }

    fn on(process_server: &str) -> v1::Assignment {
        v1::Assignment { process_server: process_server.to_owned(), ..Default::default() }
    }

    #[test]
    fn the_lowest_limit_that_holds_is_shared_by_the_process_servers_that_have_servers() {
        let windows = windows(serde_json::json!([
            { "limitPerSecond": "40Mi" },
            { "from": "08:00", "to": "18:00", "timeZone": "Europe/Berlin", "limitPerSecond": "20Mi" },
        ]));
        let limits = validate(&windows, 3).unwrap();
        let at = |time: &str, servers: &[v1::Assignment]| share(&limits, servers, time.parse().unwrap());
        let servers = [on("a"), on("b"), on("a")];
        assert_eq!(at("2026-07-01T12:00:00Z", &servers), 10 << 20);
        assert_eq!(at("2026-07-01T17:00:00Z", &servers), 20 << 20, "evening in Berlin");
        assert_eq!(at("2026-07-01T17:00:00Z", &[]), 40 << 20);
        assert_eq!(share(&[], &servers, jiff::Timestamp::UNIX_EPOCH), 0);
    }

    #[test]
    fn what_cannot_be_obeyed_is_refused_with_its_place_and_remedy() {
        let refused = |window: serde_json::Value, process_servers| {
            let failure = validate(&windows(serde_json::json!([window])), process_servers).unwrap_err();
            (failure.reason, failure.message)
        };
        let (reason, said) =
            refused(serde_json::json!({ "timeZone": "Mars/Olympus", "limitPerSecond": "1Mi" }), 1);
        assert!(
            reason == Reason::UnknownTimeZone && said.starts_with("spec.bandwidth[0].timeZone"),
            "{said}"
        );
        let (_, said) = refused(serde_json::json!({ "limitPerSecond": "1Mi" }), 4);
        assert!(said.contains("at least 512Ki") && said.contains("4 process servers"), "{said}");
        let (_, said) = refused(serde_json::json!({ "limitPerSecond": "much" }), 1);
        assert!(said.contains("write it like 20Mi"), "{said}");
    }
}
