//! What writes on a [`Guest`] while it is protected: small overwrites of one file, files that come and go and are trimmed,
//! memory that goes to swap. With pauses: an emulated machine that is written all the time has no rounds that nobody
//! disturbs. And what must hold through it: points, a kill of the agent, nothing marked anew.

use std::time::Duration;

use lifeboat_replication::wire::v1::{self, RecordKind};

use super::{Guest, Site};

const ROUND: Duration = Duration::from_secs(600);
/// Points while everything writes: before the agent is killed, and after.
const POINTS: usize = 2;
const STARTED: &str = "changes are found by an eBPF program";
pub const TRACKED_ANEW: &str = "tracking starts with new marks";
pub const NOT_COMPARED: &str = "no comparison of what is unchanged";

/// A file for swap, on a server that has none.
const SWAP: &str = "fallocate -l 96M /root/swap && chmod 600 /root/swap && mkswap /root/swap >/dev/null && swapon /root/swap";
const LOAD: &str = r#"
cd "$FOLDER"
head -c 33554432 /dev/urandom >over
cat >load-over <<EOF
while :; do dd if=/dev/urandom of=$FOLDER/over bs=4k count=\$((RANDOM % 8 + 1)) seek=\$((RANDOM % 8000)) conv=notrunc,fsync status=none; sleep 0.2; done
EOF
cat >load-files <<EOF
while :; do head -c \$((RANDOM * 100)) /dev/urandom >$FOLDER/file-\$((RANDOM % 8)); rm -f $FOLDER/file-\$((RANDOM % 8)); sync; sleep 2; done
EOF
cat >load-trim <<EOF
while :; do fstrim $FOLDER; sleep 10; done
EOF
cat >load-swap <<'EOF'
while :; do head -c 50331648 /dev/urandom >/dev/shm/swapped; cat /dev/shm/swapped >/dev/null; rm /dev/shm/swapped; sleep 10; done
EOF
for load in over files trim; do systemd-run --quiet --unit load-$load bash "$FOLDER/load-$load"; done
systemd-run --quiet --unit load-swap --property MemoryMax=16M bash "$FOLDER/load-swap"
"#;
const UNITS: &str = "load-over load-files load-trim load-swap";
const SWAPPED: &str = "awk '/pswpout/ {print $2}' /proc/vmstat";

impl Guest {
    /// Writes in this folder from now on, and to swap.
    pub fn start_load(&self, folder: &str) {
        self.shell(&format!("[ $(wc -l </proc/swaps) -gt 1 ] || {{ {SWAP}; }}"));
        self.shell(&format!("FOLDER={folder}\n{LOAD}"));
    }

    pub fn end_load(&self) {
        assert!(self.shell(SWAPPED).trim().parse::<u64>().unwrap() > 0, "nothing was written to swap");
        self.shell(&format!("systemctl is-active {UNITS}"));
        self.shell(&format!("systemctl stop {UNITS}; rm -f /dev/shm/swapped; swapoff -a"));
    }

    /// Waits for some points that are younger than what is there now.
    fn more_points(&self, site: &Site) {
        let records = || site.records_by(&site.enrolled[0].0);
        let last = records().last().map_or(0, |record| record.number);
        self.wait("points while it is written", ROUND, || {
            let is_point = |record: &&v1::Data| {
                record.number > last && record.complete && record.kind() == RecordKind::Exact
            };
            (records().iter().filter(is_point).count() >= POINTS).then_some(())
        });
    }

    /// How often the agent's log of this boot says so.
    pub fn said(&self, words: &str) -> usize {
        self.agent_log().matches(words).count()
    }

    /// Points under this load, before and after a kill of the agent, which loses no mark; then a point without it. Returns
    /// how many points were by a freeze.
    pub fn points_over_a_kill(&self, site: &Site, folder: &str) -> usize {
        self.start_load(folder);
        self.more_points(site);
        let started = self.said(STARTED);
        assert_eq!(self.said(TRACKED_ANEW), 1);
        self.shell("systemctl kill --signal=KILL lifeboat-agent");
        self.wait("the agent's next start", ROUND, || (self.said(STARTED) > started).then_some(()));
        self.more_points(site);
        // The marks of before the kill were taken up.
        assert_eq!((self.said(STARTED), self.said(TRACKED_ANEW)), (started + 1, 1));
        self.end_load();
        let records = self.settled(site, "a round after the load", ROUND);
        let points = || records.iter().filter(|record| record.complete && record.kind() == RecordKind::Exact);
        let frozen =
            points().filter(|point| point.consistency() >= v1::Consistency::FilesystemConsistent).count();
        println!("{} records, of them {} points, {} by a freeze", records.len(), points().count(), frozen);
        frozen
    }
}
