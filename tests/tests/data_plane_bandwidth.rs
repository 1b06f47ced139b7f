//! The upload limit on real parts: what a process server sends while its agent has far more for it, counted on the way
//! to the store, and that nothing is lost when the spool is full meanwhile.
//!
//! Needs root, loop devices and eBPF.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real programs run in real time")]

use std::{
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use lifeboat_replication::env::Env;
use lifeboat_tests::rig::{Loop, Site, SiteOptions, point};

const LIMIT: u64 = 2 << 20;
/// Does not compress: 80 seconds at the limit, and more than twice the spool.
const DATA: u64 = 160 << 20;
const DISK: u64 = 256 << 20;
const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn any_minute_on_the_wire_holds_the_limit_and_what_waits_arrives() {
    let disk = Loop::new(DISK);
    let file = disk.open(libc::O_RDWR);
    for offset in (0..DATA).step_by(1 << 20) {
        let mut content = vec![0; 1 << 20];
        Env::system().entropy.fill(&mut content);
        file.write_all_at(&content, offset).unwrap();
    }
    file.sync_all().unwrap();
    let options = SiteOptions {
        name: "bandwidth",
        link: Some(0),
        spool_bytes: 64 << 20,
        upload_limit: LIMIT,
        // It writes seed disks over the same link, and is not limited.
        applier: false,
        ..SiteOptions::default()
    };
    let site = Site::new(&options, vec![disk]);
    let link = site.link.as_ref().unwrap();
    // From the first segment on.
    site.wait("the first upload", || (link.sent() > 1 << 20).then_some(()));
    let mut seen = vec![(Instant::now(), link.sent())];
    while link.sent() < DATA {
        std::thread::sleep(Duration::from_millis(500));
        seen.push((Instant::now(), link.sent()));
        assert!(seen.len() < 600, "only {} bytes in five minutes", link.sent());
    }
    let minutes: Vec<f64> = seen
        .iter()
        .filter_map(|(from, before)| {
            let (until, after) = seen.iter().find(|(until, _)| *until - *from >= MINUTE)?;
            let allowed = LIMIT as f64 * (*until - *from).as_secs_f64();
            Some((after - before) as f64 / allowed)
        })
        .collect();
    let (least, most) = minutes
        .iter()
        .fold((f64::MAX, 0.0), |(least, most), share| (f64::min(least, *share), f64::max(most, *share)));
    println!(
        "bandwidth: {} minutes hold {least:.3} to {most:.3} of the limit, headers included",
        minutes.len()
    );
    assert!(!minutes.is_empty(), "it was sent in less than a minute");
    assert!(most <= 1.05, "a minute holds {most} of what is allowed");
    let records = site.wait_for("a point", |records| point(records).is_some());
    let (source, recovered) =
        (site.servers[0].disk.content(), site.recovered(records.last().unwrap().number));
    let different =
        source.chunks(4096).zip(recovered.chunks(4096)).filter(|(one, other)| one != other).count();
    assert_eq!(different, 0, "blocks differ");
}
