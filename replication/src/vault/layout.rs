//! Names of the blobs in a vault. Numbers are zero-padded, so that the order of names is the order of numbers.

use crate::ids::{Epoch, RecordNumber, ServerId};

/// Format, vault id, wrapped key bundle, check values of the data keys.
pub const VAULT_JSON: &str = "vault.json";

/// Everything of all servers.
pub const SERVERS_PREFIX: &str = "servers/";

/// The server that a blob of the vault's container belongs to; `None`: to none.
pub fn server_of(name: &str) -> Option<ServerId> {
    name.strip_prefix(SERVERS_PREFIX)?.split_once('/')?.0.parse().ok()
}

/// Everything of one server in the vault's container.
pub fn server_prefix(server: &ServerId) -> String {
    format!("servers/{server}/")
}

/// Identity of a server; the operator writes it.
pub fn server_json(server: &ServerId) -> String {
    format!("servers/{server}/server.json")
}

/// Names of all servers.
pub const NAMES_PREFIX: &str = "names/";

/// Which id a ProtectedServer has. Written once with If-None-Match, so a name can only ever get one id.
/// Kubernetes names are safe in blob names.
pub fn name_json(namespace: &str, name: &str) -> String {
    format!("names/{namespace}/{name}.json")
}

pub fn log_prefix(server: &ServerId) -> String {
    format!("servers/{server}/log/")
}

/// One part of the commit log (append blob).
pub fn log_part(server: &ServerId, epoch: Epoch, part: u32) -> String {
    format!("servers/{server}/log/{:010}-{part:010}", epoch.0)
}

/// The reverse of [`log_part`]; `None` for any other name.
pub fn parse_log_part(server: &ServerId, name: &str) -> Option<(Epoch, u32)> {
    let (epoch, part) = name.strip_prefix(&log_prefix(server))?.split_once('-')?;
    let parsed = (Epoch(epoch.parse().ok()?), part.parse().ok()?);
    // Only the one spelling counts: "+1" or missing zeros are somebody else's blobs.
    (log_part(server, parsed.0, parsed.1) == name).then_some(parsed)
}

pub fn disks_prefix(server: &ServerId) -> String {
    format!("servers/{server}/disks/")
}

/// Seed disk: a fixed VHD in a page blob. `disk` is the disk's id in the log.
pub fn seed_disk(server: &ServerId, disk: &str) -> String {
    format!("servers/{server}/disks/{disk}.vhd")
}

/// Checksums of the seed disk's blocks.
pub fn seed_sum(server: &ServerId, disk: &str) -> String {
    format!("servers/{server}/disks/{disk}.sum")
}

/// The applier's book: position, recovery points, deletions.
pub fn catalogue(server: &ServerId, file: &str) -> String {
    format!("servers/{server}/catalogue/{file}")
}

/// Whoever holds this blob's lease applies the server's log.
pub fn apply_lease(server: &ServerId) -> String {
    catalogue(server, "lease")
}

/// Announcements of running appliers.
pub const APPLIERS_PREFIX: &str = "appliers/";

/// What one running applier says of itself; `identity` is a UUID.
pub fn applier(identity: &str) -> String {
    format!("{APPLIERS_PREFIX}{identity}.json")
}

pub fn pins_prefix(server: &ServerId) -> String {
    format!("servers/{server}/pins/")
}

/// What a running recovery reads.
pub fn pin(server: &ServerId, run: &str) -> String {
    format!("servers/{server}/pins/{run}.json")
}

/// All segments of a server, in the cache container.
pub fn journal_prefix(server: &ServerId) -> String {
    format!("journal/{server}/")
}

/// Segments of one epoch.
pub fn journal_epoch_prefix(server: &ServerId, epoch: Epoch) -> String {
    format!("journal/{server}/{:010}/", epoch.0)
}

/// One segment, in the cache container. `writer` is random for each life of a process server, so that no late upload
/// of another one can ever meet this name.
pub fn segment(server: &ServerId, epoch: Epoch, record: RecordNumber, writer: &str, part: u32) -> String {
    format!("journal/{server}/{:010}/{:020}-{writer}/{part:010}", epoch.0, record.0)
}

/// Epoch and record of a segment's name; `None` for any other name.
pub fn parse_segment(server: &ServerId, name: &str) -> Option<(Epoch, RecordNumber)> {
    let (epoch, rest) = name.strip_prefix(&journal_prefix(server))?.split_once('/')?;
    let (record, rest) = rest.split_once('-')?;
    let (writer, part) = rest.rsplit_once('/')?;
    let parsed = (Epoch(epoch.parse().ok()?), RecordNumber(record.parse().ok()?));
    (segment(server, parsed.0, parsed.1, writer, part.parse().ok()?) == name).then_some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> ServerId {
        ServerId::from_random([1; 16])
    }

    #[test]
    fn names_sort_like_their_numbers() {
        let part = |epoch, part| log_part(&server(), Epoch(epoch), part);
        assert!(part(9, 10) < part(10, 2));
        assert!(part(10, 2) < part(10, 10));
        let segment = |record| segment(&server(), Epoch(1), RecordNumber(record), "w", 0);
        assert!(segment(99) < segment(100));
    }

    #[test]
    fn a_name_is_parsed_back_and_foreign_ones_are_not() {
        let name = log_part(&server(), Epoch(3), 4);
        assert_eq!(parse_log_part(&server(), &name), Some((Epoch(3), 4)));
        for foreign in
            ["x", &name.replace("0000000003", "3"), &format!("{name}x"), &name.replace("log", "disks")]
        {
            assert_eq!(parse_log_part(&server(), foreign), None, "{foreign}");
        }
        let name = segment(&server(), Epoch(3), RecordNumber(5), "a-b", 1);
        assert_eq!(parse_segment(&server(), &name), Some((Epoch(3), RecordNumber(5))));
        assert_eq!(parse_segment(&server(), "journal/x"), None);
    }
}
