//! The hooks that come with the agent, with real databases: held, frozen, the disk copied as it stands at that instant,
//! thawed, released; then the database starts from the copy and has everything that it had acknowledged. Needs root,
//! postgresql and mariadb-server (`dev/setup` installs them).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(clippy::disallowed_methods, reason = "real databases run in real time")]

mod kernel_support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use kernel_support::{Loop, Mounted, discover, run};
use lifeboat_agent::{
    edge::{Freezer as _, HookLimits, Hooks as _},
    hook_files,
    kernel::{KernelFreezer, KernelHooks, watchdog},
};

const SOCKET: &str = "LIFEBOAT_TEST_SOCKET";
const LIMITS: HookLimits = HookLimits { timeout: Duration::from_secs(30), hold: Duration::from_secs(45) };

#[test]
fn plays_the_watchdog_when_told_to() {
    if let Ok(socket) = std::env::var(SOCKET) {
        watchdog::run(Path::new(&socket)).unwrap();
    }
}

/// Ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        _ = Command::new("kill").args(["-INT", &self.0.id().to_string()]).status();
        for _ in 0..100 {
            if self.0.try_wait().unwrap().is_some() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// A database's disk, and what copies it.
struct Stage {
    disk: Loop,
    mounted: Mounted,
    folder: tempfile::TempDir,
    _watchdog: Process,
}

impl Stage {
    fn new(hook: &str) -> Self {
        let disk = Loop::new(768 << 20);
        let mounted = Mounted::new(&disk, "ext4");
        let folder = tempfile::tempdir().unwrap();
        run("chmod", &["755", folder.path().to_str().unwrap(), mounted.path().to_str().unwrap()]);
        hook_files::enable(&folder.path().join("hooks.d"), hook).unwrap();
        let socket = folder.path().join("thaw.sock");
        let mut watchdog = Command::new(std::env::current_exe().unwrap());
        watchdog.args(["--exact", "plays_the_watchdog_when_told_to"]).env(SOCKET, &socket);
        let watchdog = Process(watchdog.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
        for _ in 0..200 {
            if socket.exists() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        Self { disk, mounted, folder, _watchdog: watchdog }
    }

    fn hooks(&self) -> KernelHooks {
        KernelHooks::new(&self.folder.path().join("hooks.d"), &self.folder.path().join("state")).unwrap()
    }

    /// A file beside the hook's scripts.
    fn setting(&self, name: &str, content: &str) {
        fs::write(self.folder.path().join("hooks.d").join(name), content).unwrap();
    }

    /// Holds, calls `held`, freezes, copies the disk, thaws, releases. Returns where the copy is mounted.
    fn point(&self, held: impl FnOnce()) -> Copy {
        let mut hooks = self.hooks();
        let socket = self.folder.path().join("thaw.sock");
        let mut freezer = KernelFreezer::new(&discover(&[&self.disk]), Path::new("/sys"), &socket).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(hooks.hold(LIMITS)).unwrap();
        held();
        let frozen = runtime.block_on(freezer.freeze(Duration::from_secs(30))).unwrap();
        assert_eq!(frozen.left_out, Vec::<String>::new());
        let image = self.folder.path().join("copy.img");
        let (from, to) = (format!("if={}", self.disk.name()), format!("of={}", image.display()));
        run("dd", &[&from, &to, "bs=4M", "iflag=direct", "conv=sparse", "status=none"]);
        assert!(runtime.block_on(freezer.thaw()).held_until_now);
        runtime.block_on(hooks.release()).unwrap();
        let point = tempfile::tempdir().unwrap();
        run("mount", &["-o", "loop", image.to_str().unwrap(), point.path().to_str().unwrap()]);
        Copy { point }
    }
}

struct Copy {
    point: tempfile::TempDir,
}

impl Drop for Copy {
    fn drop(&mut self) {
        _ = Command::new("umount").arg("--lazy").arg(self.point.path()).status();
    }
}

/// Calls `work` over and over beside the test, until it is dropped.
struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Load {
    fn start(work: impl Fn() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !told.load(Ordering::SeqCst) {
                work();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

fn postgres_binaries() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").ok().into_iter().flatten();
    let newest = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).max();
    newest.filter(|bin| bin.join("initdb").exists()).unwrap_or_else(|| {
        panic!(
            "PostgreSQL is missing, so its hook cannot be tested: run dev/setup (apt-get install postgresql)"
        )
    })
}

/// A PostgreSQL server of its own; its socket is in `sockets`.
struct Postgres {
    sockets: PathBuf,
    _process: Process,
}

impl Postgres {
    fn start(data: &Path, sockets: &Path, settings: &[&str]) -> Self {
        // Becomes the server instead of starting it, so that what is ended with the test is the server.
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--pdeathsig=KILL", "--"]);
        command.arg(postgres_binaries().join("postgres")).arg("-D").arg(data).arg("-k").arg(sockets);
        command.args(["-p", "5432", "-c", "listen_addresses=", "-c", "shared_buffers=16MB"]);
        settings.iter().for_each(|setting| _ = command.args(["-c", setting]));
        let process = Process(
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap(),
        );
        let server = Self { sockets: sockets.to_owned(), _process: process };
        for _ in 0..600 {
            if ask_postgres(&server.sockets, "SELECT 1").is_some() {
                return server;
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("PostgreSQL does not start from {}", data.display());
    }

    fn ask(&self, statement: &str) -> String {
        ask_postgres(&self.sockets, statement).unwrap_or_else(|| panic!("{statement} failed"))
    }
}

fn ask_postgres(sockets: &Path, statement: &str) -> Option<String> {
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--", "psql", "-XAtq", "-d", "postgres", "-h"]).arg(sockets);
    let output = command.args(["-c", statement]).stdin(Stdio::null()).output().unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn postgres_stage(settings: &[&str]) -> (Stage, Postgres) {
    let stage = Stage::new("postgresql");
    let (data, sockets) = (stage.mounted.path().join("data"), stage.folder.path().join("sockets"));
    fs::create_dir(&sockets).unwrap();
    fs::create_dir(&data).unwrap();
    run("chown", &["postgres", sockets.to_str().unwrap(), data.to_str().unwrap()]);
    let initdb = postgres_binaries().join("initdb");
    run("runuser", &["-u", "postgres", "--", initdb.to_str().unwrap(), "-N", "-D", data.to_str().unwrap()]);
    stage.setting("postgresql/clusters", &format!("5432 postgres {}\n", sockets.display()));
    let server = Postgres::start(&data, &sockets, settings);
    (stage, server)
}

#[test]
fn postgresql_starts_from_the_point_with_everything_it_had_acknowledged() {
    // Commits that are acknowledged before they are on disk: what only the hook's checkpoint makes safe.
    let (stage, server) = postgres_stage(&["synchronous_commit=off", "wal_writer_delay=10s"]);
    server.ask("CREATE TABLE work (id bigserial PRIMARY KEY, filler text)");
    server.ask("INSERT INTO work (filler) SELECT repeat('x', 200) FROM generate_series(1, 20000)");
    let sockets = server.sockets.clone();
    let load = Load::start(move || {
        _ = ask_postgres(&sockets, "INSERT INTO work (filler) VALUES (repeat('y', 200))");
    });
    thread::sleep(Duration::from_millis(500));
    let before: u64 = server.ask("SELECT max(id) FROM work").parse().unwrap();
    let copy = stage.point(|| {});
    drop(load);
    let sockets = tempfile::tempdir().unwrap();
    run("chown", &["postgres", sockets.path().to_str().unwrap()]);
    _ = fs::remove_file(copy.point.path().join("data/postmaster.pid"));
    let recovered = Postgres::start(&copy.point.path().join("data"), sockets.path(), &[]);
    let after: u64 = recovered.ask("SELECT max(id) FROM work").parse().unwrap();
    assert!(after >= before, "{before} was acknowledged before the point, the copy ends at {after}");
    let rows: u64 = recovered.ask("SELECT count(*) FROM work WHERE length(filler) = 200").parse().unwrap();
    assert!(rows >= before, "{rows} of {before} rows");
}

#[test]
fn a_postgresql_that_would_not_survive_a_power_cut_is_refused() {
    let (stage, _server) = postgres_stage(&["fsync=off"]);
    let mut hooks = stage.hooks();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let refused = runtime.block_on(hooks.hold(LIMITS)).unwrap_err().to_string();
    assert!(refused.contains("fsync is off"), "{refused}");
}

struct MariaDb {
    socket: PathBuf,
    _process: Process,
}

impl MariaDb {
    fn start(data: &Path, socket: &Path) -> Self {
        let mut command = Command::new("mariadbd");
        command.args(["--no-defaults", "--user=mysql", "--skip-networking", "--innodb-buffer-pool-size=16M"]);
        command.args(["--innodb-flush-log-at-trx-commit=0", "--aria-pagecache-buffer-size=8M"]);
        command.arg(format!("--datadir={}", data.display())).arg(format!("--socket={}", socket.display()));
        command.arg(format!("--pid-file={}.pid", socket.display()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process(command.spawn().unwrap_or_else(|error| {
            panic!(
                "MariaDB is missing, so its hook cannot be tested: run dev/setup (mariadb-server): {error}"
            )
        }));
        let server = Self { socket: socket.to_owned(), _process: process };
        for _ in 0..600 {
            if ask_mariadb(&server.socket, "SELECT 1").is_some() {
                return server;
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("MariaDB does not start from {}", data.display());
    }

    fn ask(&self, statement: &str) -> String {
        ask_mariadb(&self.socket, statement).unwrap_or_else(|| panic!("{statement} failed"))
    }

    fn rows(&self, table: &str) -> u64 {
        self.ask(&format!("SELECT COUNT(*) FROM test.{table}")).parse().unwrap()
    }
}

fn ask_mariadb(socket: &Path, statement: &str) -> Option<String> {
    let mut command = Command::new("mariadb");
    command.args(["--no-defaults", "--batch", "--skip-column-names"]);
    command.arg(format!("--socket={}", socket.display())).args(["-e", statement]);
    let output = command.stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn mariadb_holds_its_commits_and_starts_from_the_point_with_sound_tables() {
    let stage = Stage::new("mariadb");
    let (data, sockets) = (stage.mounted.path().join("data"), stage.folder.path().join("sockets"));
    fs::create_dir(&sockets).unwrap();
    fs::create_dir(&data).unwrap();
    run("chown", &["mysql", sockets.to_str().unwrap(), data.to_str().unwrap()]);
    run(
        "mariadb-install-db",
        &["--no-defaults", "--user=mysql", "--skip-test-db", &format!("--datadir={}", data.display())],
    );
    let server = MariaDb::start(&data, &sockets.join("db.sock"));
    server.ask("CREATE DATABASE test; CREATE TABLE test.inno (id INT AUTO_INCREMENT PRIMARY KEY, filler TEXT) ENGINE=InnoDB; CREATE TABLE test.isam (id INT AUTO_INCREMENT PRIMARY KEY, filler TEXT) ENGINE=MyISAM");
    stage.setting("mariadb/client.cnf", &format!("[client]\nsocket={}\n", server.socket.display()));
    let socket = server.socket.clone();
    let load = Load::start(move || {
        for table in ["inno", "isam"] {
            _ = ask_mariadb(&socket, &format!("INSERT INTO test.{table} (filler) VALUES (REPEAT('y', 200))"));
        }
    });
    thread::sleep(Duration::from_secs(1));
    let before = (server.rows("inno"), server.rows("isam"));
    let mut held = (0, 0);
    let copy = stage.point(|| {
        held = (server.rows("inno"), server.rows("isam"));
        thread::sleep(Duration::from_millis(500));
        assert_eq!((server.rows("inno"), server.rows("isam")), held, "commits go on while they are held");
    });
    thread::sleep(Duration::from_secs(1));
    assert!(server.rows("inno") > held.0, "commits do not go on");
    drop(load);
    assert!(before.0 > 0 && held >= before, "{before:?} {held:?}");
    let recovered = MariaDb::start(&copy.point.path().join("data"), &sockets.join("copy.sock"));
    for table in ["inno", "isam"] {
        let check = recovered.ask(&format!("CHECK TABLE test.{table}"));
        assert!(check.ends_with("OK"), "{check}");
    }
    assert_eq!((recovered.rows("inno"), recovered.rows("isam")), held);
}
