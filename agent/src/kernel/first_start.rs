//! Remembers that tracking had begun, so that a full copy after a restart of the machine names its reason.
//!
//! The pinned maps do not outlive the kernel; a small file in the state directory does. It is written only when
//! tracking starts anew. Lines: `lifeboat-tracking 1`, server id, boot id, CRC-32C of the lines before in hex.

use std::{fs, io};

use lifeboat_replication::resync::Cause;

use super::{
    pins::{OTHER_DISKS, Start},
    tracker::TrackerOptions,
};
use crate::files;

const FILE: &str = "tracking";
const HEADER: &str = "lifeboat-tracking 1";

/// Why everything is copied; `None` for the first copy of this server.
pub(super) fn reason(options: &TrackerOptions, start: &Start) -> Option<String> {
    match start {
        Start::Resumed => None,
        Start::Unusable(reason) if reason == OTHER_DISKS => Some(Cause::DisksChanged.because(reason)),
        Start::Unusable(reason) => Some(Cause::TrackingLost.because(reason)),
        Start::Absent => {
            let text = fs::read_to_string(options.state.join(FILE)).ok()?;
            match parse(&text)? {
                (server, _) if server != options.server.as_str() => None,
                (_, boot) if boot == boot_id(options) => {
                    Some(Cause::TrackingLost.because("the pinned tracking maps were removed"))
                }
                _ => Some(Cause::UncleanShutdown.because(
                    "the server was restarted, and changes before tracking began again are not known",
                )),
            }
        }
    }
}

/// Is this the reason that a restart of the machine gives, and nothing else?
pub(super) fn is_after_restart(reason: Option<&str>) -> bool {
    reason.is_some_and(|reason| Cause::of(reason).0 == Cause::UncleanShutdown)
}

pub(super) fn remember(options: &TrackerOptions) -> io::Result<()> {
    let text = format(options.server.as_str(), &boot_id(options));
    fs::create_dir_all(&options.state)?;
    files::replace(&options.state.join(FILE), text.as_bytes())
}

fn boot_id(options: &TrackerOptions) -> String {
    options.reboot.clone().unwrap_or_default().boot()
}

fn format(server: &str, boot: &str) -> String {
    let text = format!("{HEADER}\n{server}\n{boot}\n");
    let checksum = crc32c::crc32c(text.as_bytes());
    format!("{text}{checksum:08x}\n")
}

fn parse(text: &str) -> Option<(&str, &str)> {
    let mut lines = text.lines();
    let (header, server, boot) = (lines.next()?, lines.next()?, lines.next()?);
    (header == HEADER && text == format(server, boot)).then_some((server, boot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(parse(&format("a", "b")), Some(("a", "b")));
    }

    #[test]
    fn a_damaged_file_is_as_none() {
        assert_eq!(parse(&format("a", "b").replace('b', "c")), None);
        assert_eq!(parse("lifeboat-tracking 1\na\n"), None);
    }
}
