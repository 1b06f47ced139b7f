//! A server moves between two process servers, on real parts: agent with its kernel tracker on a block device under
//! load, two process servers and an applier as programs, Azurite. What the operator decides and sends is the
//! operator's own code; its objects are kept here instead of in an API server.
//!
//! The process server that has the server is killed and stays dead, comes back, and stands still while another one
//! takes over; then a store that is away while the spool is small. In the end every sector is the same and nothing was
//! copied again.
//!
//! Needs root, loop devices, fio and eBPF.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]
#![allow(clippy::disallowed_methods, reason = "real programs run in real time")]

#[path = "common/desired.rs"]
mod desired;

use std::{
    collections::BTreeMap,
    thread::sleep,
    time::{Duration, Instant},
};

use lifeboat_crds::{ProtectedServer, ReplicationAppliance, ReplicationPolicy, server::Move};
use lifeboat_operator::{
    control::{ApplianceKey, Desired, Fleet},
    controllers::{
        appliance::plan,
        protected_server::{Candidate, Places},
    },
};
use lifeboat_replication::wire::v1;
use lifeboat_tests::rig::{
    Load, Loop, Mode, Mounted, Site, SiteOptions, assert_nothing_lost, fill, now, point, run, sessions,
};
use serde_json::json;
use tokio::runtime::Runtime;

const DISK_BYTES: u64 = 256 << 20;
const FILLED_BYTES: u64 = 64 << 20;

/// The operator's part: hears the process servers, places the servers, tells everybody.
struct Operator {
    runtime: Runtime,
    fleet: Fleet,
    places: Places,
    key: ApplianceKey,
    appliance: ReplicationAppliance,
    policies: BTreeMap<String, ReplicationPolicy>,
    /// As the API server would have them, the one with the disk first.
    servers: Vec<ProtectedServer>,
    keys: BTreeMap<String, Vec<u8>>,
    told: Desired,
}

impl Operator {
    fn new(site: &Site) -> Self {
        let told = desired::of(site, Vec::new());
        let servers = &site.control.configuration.servers;
        let name = |server: &v1::Assignment| server.display_name.rsplit('/').next().unwrap().to_owned();
        let policy =
            ReplicationPolicy::new("gold", serde_json::from_value(json!({"roundInterval": "1s"})).unwrap());
        Self {
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap(),
            fleet: Fleet::default(),
            places: Places::default(),
            key: ApplianceKey { namespace: "default".to_owned(), name: "main".to_owned() },
            appliance: appliance(site.control.process_servers.len()),
            policies: BTreeMap::from([("gold".to_owned(), policy)]),
            keys: servers.iter().map(|server| (name(server), server.public_key_sha256.clone())).collect(),
            servers: servers.iter().map(|server| protected(&name(server), server)).collect(),
            told,
        }
    }

    /// What the controllers do in a pass over each object; the move of the server with the disk.
    fn pass(&mut self) -> Option<Move> {
        let _inside = self.runtime.enter();
        let now = jiff::Timestamp::from_microsecond(now()).unwrap();
        let mut moves = Vec::new();
        for server in &mut self.servers {
            let name = server.metadata.name.clone().unwrap();
            let status = server.status.as_mut().unwrap();
            let placed = self.places.of(&self.key, &name, status);
            let figures = self.fleet.figures(
                &self.key,
                placed.process_server.as_deref().unwrap_or_default(),
                status.id.as_deref().unwrap(),
            );
            let report = figures.map(|figures| figures.report).unwrap_or_default();
            if report.epoch > 0 {
                status.epoch = Some(report.epoch.into());
            }
            let quiet = report.connected && report.complete && report.error.is_empty();
            let candidate = Candidate { name: &name, quiet, epoch: status.epoch, group: None };
            let (placed, made) = self.places.settle(&self.appliance, &self.key, &candidate, &self.fleet, now);
            (status.process_server, status.last_move) = (placed.process_server, placed.last_move);
            moves.push(made);
        }
        let servers = plan::assignments(&self.servers, &self.policies, &self.keys, &BTreeMap::new(), now);
        self.fleet.sync(&self.key, Desired { servers, ..self.told.clone() });
        moves.swap_remove(0)
    }

    /// Passes until the server with the disk is moved.
    fn moved(&mut self, site: &Site, what: &str) -> Move {
        let made = site.wait(what, || self.pass());
        println!("{what}: {} → {}: {}", made.from, made.to, made.message);
        made
    }

    /// Passes until the vault holds a point that is newer.
    fn point_after(&mut self, site: &Site, what: &str, instant: i64) -> Vec<v1::Data> {
        site.wait(what, || {
            self.pass();
            let records = site.records();
            point(&records).is_some_and(|point| point.t0_micros > instant).then_some(records)
        })
    }

    /// Whether the process server writes the log of the server with the disk.
    fn serves(&self, process_server: &str) -> bool {
        let id = self.servers[0].status.as_ref().unwrap().id.clone().unwrap();
        let figures = self.fleet.figures(&self.key, process_server, &id);
        figures.is_some_and(|figures| figures.report.connected && figures.report.error.is_empty())
    }
}

fn appliance(process_servers: usize) -> ReplicationAppliance {
    let spec = json!({
        "vault": {"azure": {
            "endpoint": "http://127.0.0.1:1/here",
            "container": "vault",
            "authentication": {"accountKeySecretRef": {"name": "vault", "key": "key"}},
        }},
        "processServers": {"replicas": process_servers},
    });
    ReplicationAppliance::new("main", serde_json::from_value(spec).unwrap())
}

fn protected(name: &str, assignment: &v1::Assignment) -> ProtectedServer {
    let spec = json!({
        "applianceRef": {"name": "main"},
        "policyRef": {"name": "gold"},
        "target": {"virtualMachinePod": {"ports": [{"name": "ssh", "port": 22}]}},
    });
    let mut server = ProtectedServer::new(name, serde_json::from_value(spec).unwrap());
    server.metadata.namespace = Some("default".to_owned());
    let status = server.status.get_or_insert_default();
    status.id = Some(assignment.server_id.clone());
    status.process_server = Some(assignment.process_server.clone());
    server
}

fn assert_each_once(records: &[v1::Data]) {
    for (before, after) in records.iter().zip(&records[1..]) {
        assert_eq!(after.first_number, before.number + 1, "a record is missing or stands twice");
    }
}

/// In order, each once, and no point of an older instant than the one before. (Only points bear an instant.)
fn assert_in_order(records: &[v1::Data]) {
    assert_each_once(records);
    let points: Vec<_> = records.iter().filter(|record| record.kind() == v1::RecordKind::Exact).collect();
    for (before, after) in points.iter().zip(&points[1..]) {
        assert!(after.t0_micros > before.t0_micros, "point {} is older than the one before", after.number);
    }
}

#[test]
fn a_server_moves_when_its_process_server_is_lost_comes_back_or_stands_still() {
    let disk = Loop::new(DISK_BYTES);
    let mounted = Mounted::new(&disk, "ext4");
    fill(&mounted.path().join("filled"), FILLED_BYTES);
    let load = Load::start(&mounted.path().join("written"));
    // The second server makes the difference that is evened out when the first process server is back.
    let options = SiteOptions {
        name: "moves",
        second_process_server: true,
        without_agent: 1,
        ..SiteOptions::default()
    };
    let mut site = Site::new(&options, vec![disk]);
    let mut operator = Operator::new(&site);
    let [first, second] = [0, 1].map(|index| site.control.process_servers[index].0.clone());
    operator.point_after(&site, "the first copy ends", 0);
    site.wait("everybody reports", || {
        operator.pass();
        operator.serves(&first).then_some(())
    });

    println!("killed at record {}", site.records().len());
    let (killed, clock) = (now(), Instant::now());
    site.process_server.kill();
    let made = operator.moved(&site, "the first process server is dead");
    assert_eq!((&made.from, &made.to, made.reason.as_str()), (&first, &second, "ProcessServerLost"));
    let decided = clock.elapsed();
    assert_in_order(&operator.point_after(&site, "a point after the kill", killed));
    println!(
        "killed -9: decided after {decided:.1?}, a newer point in the vault after {:.1?}",
        clock.elapsed()
    );

    // It believes that the server is still its own until it hears from the operator, and gets one back in time.
    site.process_server.start();
    let made = operator.moved(&site, "the first process server is back");
    assert_eq!((&made.to, made.reason.as_str(), made.lost_epoch), (&first, "Rebalanced", None));
    let (moved, clock) = (now(), Instant::now());
    assert_in_order(&operator.point_after(&site, "a point after the way back", moved));
    site.wait("the first process server has it", || {
        operator.pass();
        operator.serves(&first).then_some(())
    });
    println!("moved back: a newer point in the vault after {:.1?}", clock.elapsed());

    let pid = site.process_server.pid().unwrap().to_string();
    let (stopped, clock) = (now(), Instant::now());
    run("kill", &["-STOP", &pid]);
    let made = operator.moved(&site, "the first process server stands still");
    assert_eq!((&made.to, made.reason.as_str()), (&second, "ProcessServerLost"));
    assert!(made.lost_epoch.is_some(), "{made:?}");
    operator.point_after(&site, "a point after it stopped", stopped);
    println!("stopped: a newer point in the vault after {:.1?}", clock.elapsed());
    // Whatever it was about to write it writes now.
    let (continued, before) = (now(), fenced(&site));
    run("kill", &["-CONT", &pid]);
    site.wait("the one that stood still is kept out", || {
        operator.pass();
        (fenced(&site) > before).then_some(())
    });
    let records = operator.point_after(&site, "a point after it went on", continued);
    assert_in_order(&records);
    assert!(operator.serves(&second));
    assert_nothing_lost(&site, load, mounted);
}

/// How often the first process server has found out that the log is not its own, or been told so.
fn fenced(site: &Site) -> usize {
    let log = site.process_server.log();
    log.matches("log lost").count() + log.matches("server not assigned any more").count()
}

#[test]
fn a_store_that_is_away_makes_the_agent_wait_and_all_goes_on_when_it_is_back() {
    let disk = Loop::new(DISK_BYTES);
    let mounted = Mounted::new(&disk, "ext4");
    fill(&mounted.path().join("filled"), FILLED_BYTES);
    let load = Load::start(&mounted.path().join("written"));
    // The smallest that a process server takes.
    let options =
        SiteOptions { name: "full-spool", link: Some(0), spool_bytes: 64 << 20, ..SiteOptions::default() };
    let site = Site::new(&options, vec![disk]);
    site.wait_for("the first copy ends", |records| point(records).is_some());
    let of_server = |name: &str| site.figure(&format!("lifeboat_process_server_server_{name}"));
    let own = |name: &str| site.figure(&format!("lifeboat_process_server_{name}"));
    let sessions_before = sessions(&site.servers[0].agent.log()).count();

    let link = site.link.as_ref().unwrap();
    link.set(Mode::Refused);
    let clock = Instant::now();
    site.wait("nothing more is taken in", || (of_server("waiting_for_room") == Some(1.0)).then_some(()));
    println!(
        "nothing more is taken in after {:.1?} with {} bytes",
        clock.elapsed(),
        own("spool_used_bytes").unwrap()
    );
    let received = of_server("received_bytes_total").unwrap();
    // Longer than a lease lasts, and than anybody waits for a sign of life.
    for _ in 0..70 {
        sleep(Duration::from_secs(1));
        assert_eq!(of_server("agent_connected"), Some(1.0), "the agent was sent away");
        assert!(own("spool_used_bytes") <= own("spool_size_bytes"), "more than the spool may hold");
    }
    assert_eq!(of_server("received_bytes_total"), Some(received), "nothing more is taken in");
    let log = site.servers[0].agent.log();
    assert_eq!(sessions(&log).count(), sessions_before, "the agent lost its session");

    link.set(Mode::Open);
    let (healed, clock) = (now(), Instant::now());
    let records = site.wait_for("a point after the store is back", |records| {
        point(records).is_some_and(|point| point.t0_micros > healed)
    });
    println!("a newer point {:.1?} after the store was back", clock.elapsed());
    assert_each_once(&records);
    assert_nothing_lost(&site, load, mounted);
    site.wait("the spool is empty", || (own("spool_used_bytes") == Some(0.0)).then_some(()));
}
