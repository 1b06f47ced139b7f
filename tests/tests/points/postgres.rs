//! PostgreSQL on ext4 under `pgbench`, and beside it a client that inserts numbered rows, one transaction each, and
//! notes when each was acknowledged.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread::sleep,
    time::Duration,
};

use lifeboat_tests::rig::{Loop, Mounted, Process, Random, Served, process::command, run};

use super::{Times, Workload, judge_mounted, writer::Writer};

pub const DISK_BYTES: u64 = 384 << 20;
const USER: &str = "postgres";
/// Transactions a second of `pgbench`, all clients together.
const RATE: &str = "40";
const DATA: &str = "data";

fn binaries() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").ok().into_iter().flatten();
    let newest = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).max();
    newest
        .filter(|bin| bin.join("initdb").exists())
        .unwrap_or_else(|| panic!("PostgreSQL is missing: run dev/setup (apt-get install postgresql)"))
}

/// One of PostgreSQL's programs, as its user.
fn tool(name: &str) -> Command {
    let mut tool = command(Some(USER), &binaries().join(name));
    // Not the caller's, which that user may not enter.
    tool.current_dir("/");
    tool
}

fn output(mut command: Command) -> String {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A running server; ended in order when it is dropped.
struct Database {
    _server: Process,
    sockets: tempfile::TempDir,
}

impl Database {
    fn start(data: &Path, settings: &[&str]) -> Self {
        let sockets = tempfile::Builder::new().prefix("lifeboat-postgres-").tempdir().unwrap();
        run("chown", &[USER, sockets.path().to_str().unwrap()]);
        let log = sockets.path().join("log");
        let mut server = tool("postgres");
        server.arg("-D").arg(data).arg("-k").arg(sockets.path()).args(["-p", "5432"]);
        for setting in ["listen_addresses=", "shared_buffers=16MB"].iter().chain(settings) {
            server.args(["-c", *setting]);
        }
        let output = File::create(&log).unwrap();
        server.stdout(output.try_clone().unwrap()).stderr(output);
        // INT: ends its sessions and writes a checkpoint.
        let mut server = Process::start(server, "-INT");
        let ready = || {
            let mut ready = tool("pg_isready");
            ready.arg("-q").arg("-h").arg(sockets.path()).status().unwrap().success()
        };
        while !ready() {
            let log = || fs::read_to_string(&log).unwrap();
            assert!(server.runs(), "PostgreSQL does not start from {}: {}", data.display(), log());
            sleep(Duration::from_millis(20));
        }
        Self { _server: server, sockets }
    }

    fn client(&self, name: &str) -> Command {
        let mut client = tool(name);
        client.arg("-h").arg(self.sockets.path());
        client
    }

    /// The rows, columns parted by `|`.
    fn ask(&self, statement: &str) -> String {
        let mut client = self.client("psql");
        client.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-c", statement]);
        output(client)
    }
}

pub struct Postgres {
    times: Arc<Times>,
    // In this order: clients, server, file system.
    writer: Writer,
    bench: Option<Process>,
    database: Option<Database>,
    mounted: Option<Mounted>,
}

impl Postgres {
    pub fn start(disk: &Loop, seed: u64, pause: Duration) -> Self {
        let mounted = Mounted::new(disk, "ext4");
        run("chmod", &["755", mounted.path().to_str().unwrap()]);
        let data = mounted.path().join(DATA);
        fs::create_dir(&data).unwrap();
        run("chown", &[USER, data.to_str().unwrap()]);
        let mut init = tool("initdb");
        init.args(["--data-checksums", "--wal-segsize=4", "-D"]).arg(&data);
        output(init);
        // Checkpoints and new log segments within the test.
        let settings = ["checkpoint_timeout=30s", "min_wal_size=16MB", "max_wal_size=32MB"];
        let database = Database::start(&data, &settings);
        let mut fill = database.client("pgbench");
        fill.args(["-i", "-q", "-s", "1", "postgres"]);
        output(fill);
        database.ask("CREATE TABLE acknowledged (n bigint PRIMARY KEY, filler text)");
        // PostgreSQL answers for its own files only.
        run("sync", &["--file-system", data.to_str().unwrap()]);
        let mut bench = database.client("pgbench");
        bench.args(["-n", "-c", "3", "-j", "1", "-T", "36000", "-R", RATE, "postgres"]);
        let bench = Process::start(silent(bench), "-INT");
        let times = Arc::new(Times::default());
        let insert = insert_rows(&database);
        let writer = Writer::start(Random::part(seed, 0), pause, Arc::clone(&times), insert);
        Self { times, writer, bench: Some(bench), database: Some(database), mounted: Some(mounted) }
    }

    /// The newest row; all rows before it must be there, and everything that PostgreSQL says of itself must be true.
    fn newest(data: &Path, allowed: &RangeInclusive<u64>) -> u64 {
        // A restarted machine would not have that process; this one may.
        _ = fs::remove_file(data.join("postmaster.pid"));
        // It is not going to be cut off again, and what is unmounted is written.
        let database = Database::start(data, &["fsync=off"]);
        let rows =
            database.ask("SELECT count(*), coalesce(max(n), 0), coalesce(min(n), 1) FROM acknowledged");
        let newest: u64 = rows.split('|').nth(1).unwrap().parse().unwrap();
        assert_eq!(rows, format!("{newest}|{newest}|1"), "rows are missing: count, greatest, least");
        assert!(allowed.contains(&newest), "the newest row is {newest}, not within {allowed:?}");
        let sums = database.ask(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
             (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
        );
        let sums: Vec<&str> = sums.split('|').collect();
        assert!(sums.iter().all(|sum| *sum == sums[0]), "accounts, tellers, branches, history: {sums:?}");
        let mut check = database.client("pg_amcheck");
        check.args(["--install-missing", "--heapallindexed", "--parent-check", "-d", "postgres"]);
        output(check);
        newest
    }
}

fn silent(mut command: Command) -> Command {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// A session that inserts a row and waits for its acknowledgement, at each call.
fn insert_rows(database: &Database) -> impl FnMut(u64) + Send + use<> {
    let mut client = database.client("psql");
    client.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]);
    client.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut session = Process::start(client, "-TERM");
    let mut statements = session.child.stdin.take().unwrap();
    let mut answers = BufReader::new(session.child.stdout.take().unwrap());
    move |number| {
        // The session ends with this function.
        let _session = &session;
        writeln!(
            statements,
            "INSERT INTO acknowledged VALUES ({number}, repeat('x', {})) RETURNING n;",
            number % 500
        )
        .unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        assert_eq!(answer.trim(), number.to_string());
    }
}

impl Workload for Postgres {
    fn name(&self) -> &'static str {
        "postgresql"
    }

    fn times(&self) -> &Times {
        &self.times
    }

    fn stop(&mut self) {
        self.writer.stop();
        assert!(self.bench.take().unwrap().runs(), "pgbench ended by itself");
        self.database = None;
        self.mounted.take().unwrap().unmount();
    }

    fn judge(&self, point: &mut Served, allowed: RangeInclusive<u64>, kill: bool) -> u64 {
        judge_mounted("ext4", point, kill, |root| Self::newest(&root.join(DATA), &allowed))
    }
}
