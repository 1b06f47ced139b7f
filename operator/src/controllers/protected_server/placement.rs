//! Which process server has a server. Pure.
//!
//! A chain of filters, as long as it leaves anybody; then the one with the fewest servers. A server stays where it is
//! as long as that process server exists: moving costs a takeover of its log.

use std::collections::BTreeMap;

/// A process server as a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) name: String,
    /// It reports and its vault answers.
    pub(super) healthy: bool,
    pub(super) servers: usize,
}

/// The place, or `None` when the appliance has no process server.
pub(super) fn place(current: Option<&str>, places: &[Place]) -> Option<String> {
    if let Some(current) = current.filter(|name| places.iter().any(|place| place.name == *name)) {
        return Some(current.to_owned());
    }
    let healthy: Vec<&Place> = places.iter().filter(|place| place.healthy).collect();
    let candidates = if healthy.is_empty() { places.iter().collect() } else { healthy };
    candidates
        .into_iter()
        .min_by_key(|place| (place.servers, place.name.clone()))
        .map(|place| place.name.clone())
}

/// Servers on each process server.
pub(super) fn count<'a>(placed: impl Iterator<Item = &'a str>) -> BTreeMap<String, usize> {
    placed.fold(BTreeMap::new(), |mut counts, name| {
        *counts.entry(name.to_owned()).or_default() += 1;
        counts
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(name: &str, healthy: bool, servers: usize) -> Place {
        Place { name: name.into(), healthy, servers }
    }

    #[test]
    fn a_server_stays_where_it_is_even_if_others_have_fewer() {
        assert_eq!(place(Some("a"), &[at("a", false, 9), at("b", true, 0)]).as_deref(), Some("a"));
    }

    #[test]
    fn a_server_whose_process_server_is_gone_moves_to_the_healthy_one_with_the_fewest() {
        let places = [at("a", true, 3), at("b", true, 2), at("c", false, 0)];
        assert_eq!(place(Some("gone"), &places).as_deref(), Some("b"));
    }

    #[test]
    fn before_anybody_has_reported_a_place_is_found_all_the_same() {
        assert_eq!(place(None, &[at("a", false, 1), at("b", false, 0)]).as_deref(), Some("b"));
        assert_eq!(place(None, &[]), None);
    }
}
