//! The vault commands as programs against a real Azurite, with the recovery key alone: what they say of a whole vault,
//! and of one in which a blob was changed, lost or put back in the store itself.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(unreachable_pub, dead_code, reason = "helpers that several programs of tests share")]
#![allow(clippy::disallowed_methods, reason = "real programs run in real time")]

#[path = "../../applier/tests/support/mod.rs"]
mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    ops::Range,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use lifeboat_applier::core::{Applier, Limits, Options, Step};
use lifeboat_replication::{
    env::Env,
    ids::{Epoch, RecordNumber},
    keys::DataKeys,
    log::frame::RawFrame,
    pins,
    store::{
        BlobStore as _, LEASE_TERM, LeaseId, PutCondition,
        azure::{AzureOptions, AzureStore, Credential},
    },
    vault::{self, layout},
    wire::v1::RecordKind,
};
use lifeboat_tests::{
    blob_store::BlobStore,
    programs::{free_ports, program},
};
use ring::hmac;
use serde_json::{Value, json};
use support::{Source, Write, disk_id};
use tokio::runtime::{Builder, Runtime};

const SIZES: [u64; 2] = [(1 << 20) + 512, 2 << 20];
const SERVER: &str = "erp/db-1";
/// A recovery key of these tests alone, and its public half.
const RECOVERY_KEY: &str = "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";
const RECIPIENT: &str = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";
const OTHER_KEY: &str = "AGE-SECRET-KEY-1Q5Z7FWHN7ENXN8XZGR46FY5PKFCPT9JVUX2ZWS8AFWUVY94257VSKM3XZ2";

/// Exit codes of docs/src/tasks/vault-without-cluster.md.
const WHOLE: i32 = 0;
const NO_SUCH: i32 = 3;
const UNREACHABLE: i32 = 4;
const DAMAGED: i32 = 5;
const REFUSED: i32 = 6;

/// A vault on an Azurite of its own: two epochs, points in snapshots and in the journal, segments large and inline.
struct Site {
    azurite: BlobStore,
    store: Arc<AzureStore>,
    cache: Arc<AzureStore>,
    source: Source<()>,
    runtime: Runtime,
    dir: tempfile::TempDir,
}

/// What a program said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("no JSON: {}\n{}", self.out, self.err))
    }

    #[track_caller]
    fn exits(self, code: i32, what: &str) -> Self {
        assert_eq!(self.code, code, "{what}:\n{}\n{}", self.out, self.err);
        self
    }
}

impl Site {
    fn new(name: &str) -> Self {
        let azurite = BlobStore::start(name).unwrap();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let account = AzureOptions::account_of(&azurite.endpoint).unwrap();
        let open = |container: &str| {
            let credential =
                Credential::AccountKey { account: account.clone(), key: azurite.account_key.clone().into() };
            let endpoint = azurite.endpoint.clone();
            Arc::new(
                AzureStore::new(&AzureOptions { endpoint, container: container.into(), credential }).unwrap(),
            )
        };
        let (store, cache) = (open("vault"), open("vault-cache"));
        let source = runtime.block_on(async {
            let env = Env::system();
            let keys = Arc::new(DataKeys::generate(&*env.entropy));
            let recipients = [RECIPIENT.to_owned()];
            vault::bootstrap(store.clone(), cache.clone(), Arc::clone(&keys), &recipients, &env)
                .await
                .unwrap();
            let vault = vault::open(store.clone(), cache.clone(), keys).await.unwrap();
            let (namespace, name) = SERVER.split_once('/').unwrap();
            let server = vault.adopt_server(namespace, name, &env).await.unwrap().id;
            Source::of((), vault, server, &SIZES).await
        });
        fs::write(dir.path().join("account-key"), &azurite.account_key).unwrap();
        fs::write(dir.path().join("recovery-key"), RECOVERY_KEY).unwrap();
        let mut site = Self { azurite, store, cache, source, runtime, dir };
        let whole = |disk, blocks, byte| vec![Write { disk, first: 0, blocks, byte: Some(byte) }];
        let copy = [whole(1, 257, 1), whole(2, 500, 2)];
        site.runtime.block_on(site.source.record(RecordKind::Copy, false, 0, &copy));
        site.rounds(2..6);
        site.apply();
        site.runtime.block_on(site.source.next_epoch());
        site.rounds(6..10);
        site.apply();
        site.rounds(10..12);
        site
    }

    fn rounds(&mut self, seconds: Range<u32>) {
        for second in seconds {
            let write = |disk, first, blocks, byte| vec![Write { disk, first, blocks, byte }];
            let (byte, first) = (Some(second as u8), second * 4);
            let groups = match second % 3 {
                0 => vec![write(1, first, 6, byte), write(2, first, 30, None)],
                1 => vec![write(2, first, 1, byte)],
                _ => vec![write(1, first, 2, byte), write(2, first, 1, byte)],
            };
            let record = self.source.record(RecordKind::Exact, true, i64::from(second), &groups);
            self.runtime.block_on(record);
        }
    }

    fn apply(&self) {
        let limits = Limits { records: 3, ..Limits::default() };
        let options = Options { point_interval: Duration::from_secs(3), limits, ..Options::default() };
        let Source { vault, server, env, .. } = &self.source;
        let mut applier = Applier::new(vault.clone(), server.clone(), env.clone(), options);
        self.runtime.block_on(async { while applier.step().await.unwrap() != Step::CaughtUp {} });
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `kubectl lifeboat vault …` with these files.
    fn vault_as(&self, endpoint: &str, credential: &str, recovery_key: &str, arguments: &[&str]) -> Said {
        let mut command = Command::new(program("kubectl-lifeboat"));
        command.arg("vault").args(arguments).args(["--endpoint", endpoint, "--container", "vault"]);
        command.args(["--account", &AzureOptions::account_of(&self.azurite.endpoint).unwrap()]);
        let flag = if credential == "sas" { "--sas-file" } else { "--account-key-file" };
        command.arg(flag).arg(self.path(credential));
        command.arg("--recovery-key-file").arg(self.path(recovery_key));
        // No cluster is asked, and there is none.
        command.env("KUBECONFIG", "/nowhere");
        said(&mut command)
    }

    fn vault(&self, arguments: &[&str]) -> Said {
        self.vault_as(&self.azurite.endpoint, "account-key", "recovery-key", arguments)
    }

    fn verify(&self, deep: bool) -> Said {
        let deep: &[&str] = if deep { &["--deep"] } else { &[] };
        self.vault(&[&["verify", SERVER, "--output", "json"], deep].concat())
    }

    /// `lifeboat-recovery serve` of the latest point, as its pod runs it: everything in `dir`.
    fn serve(&self) -> Command {
        let config = json!({
            "endpoint": self.azurite.endpoint, "container": "vault", "cacheContainer": "vault-cache",
            "account": AzureOptions::account_of(&self.azurite.endpoint).unwrap(),
            "authentication": {"accountKeyFile": self.path("account-key")}, "recoveryKeyFile": self.path("recovery-key"),
        });
        fs::write(self.path("vault.json"), config.to_string()).unwrap();
        let [port] = free_ports().unwrap();
        let mut serve = Command::new(program("lifeboat-recovery"));
        serve.args(["serve", "--server", self.source.server.as_str()]);
        serve.args(["--listen", &format!("127.0.0.1:{port}"), "--run", "a-machine"]);
        fs::create_dir_all(self.path("overlays")).unwrap();
        for (option, path) in [
            ("--vault-config", self.path("vault.json")),
            ("--socket-dir", self.dir.path().to_owned()),
            ("--overlay-dir", self.path("overlays")),
            ("--termination-log", self.path("termination-log")),
        ] {
            serve.arg(option).arg(path);
        }
        serve
    }

    /// Exports a disk of a point; `None`: it is refused, with this exit code.
    fn export(&self, point: &str, slot: u32, file: &str) -> Result<Vec<u8>, Said> {
        let (to, slot) = (self.path(file), slot.to_string());
        let arguments = ["export", SERVER, "--point", point, "--disk", &slot, "--to", to.to_str().unwrap()];
        let said = self.vault(&arguments);
        if said.code != WHOLE {
            return Err(said);
        }
        let content = fs::read(&to).unwrap();
        fs::remove_file(to).unwrap();
        Ok(content)
    }

    fn image(&self, point: u64, slot: u32) -> &[u8] {
        &self.source.points[&point][&slot][..SIZES[slot as usize - 1] as usize]
    }

    fn newest(&self) -> u64 {
        *self.source.points.keys().last().unwrap()
    }

    fn pins(&self) -> usize {
        self.runtime.block_on(pins::all(&*self.store, &self.source.server)).unwrap().len()
    }

    fn part(&self, epoch: u32) -> String {
        layout::log_part(&self.source.server, Epoch(epoch), 0)
    }

    fn get(&self, name: &str) -> Bytes {
        self.runtime.block_on(self.store.get(name, None, None)).unwrap()
    }

    /// Replaces a part of the log by another version of it.
    fn put_part(&self, epoch: u32, content: &[u8], sealed: bool) {
        let (name, lease) = (self.part(epoch), LeaseId(Env::system().entropy.uuid()));
        self.runtime.block_on(async {
            self.store.break_lease(&name).await.unwrap();
            self.store.delete(&name, None).await.unwrap();
            self.store.create_append(&name).await.unwrap();
            self.store.acquire_lease(&name, &lease, LEASE_TERM).await.unwrap();
            self.store.append(&name, Bytes::copy_from_slice(content), &lease, 0).await.unwrap();
            if sealed {
                self.store.seal(&name, &lease).await.unwrap();
            }
            self.store.release_lease(&name, &lease).await.unwrap();
        });
    }

    fn put(&self, name: &str, content: &Bytes) {
        let put = self.store.put(name, content.clone(), &PutCondition::Always);
        self.runtime.block_on(put).unwrap();
    }

    /// An account SAS that may do this, made by hand.
    fn sas(&self, permissions: &str) -> String {
        let (version, start, expiry) = ("2022-11-02", "2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z");
        let account = AzureOptions::account_of(&self.azurite.endpoint).unwrap();
        let signed =
            format!("{account}\n{permissions}\nb\nsco\n{start}\n{expiry}\n\nhttps,http\n{version}\n\n");
        let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(&self.azurite.account_key).unwrap());
        let signature = STANDARD.encode(hmac::sign(&key, signed.as_bytes()));
        let escaped =
            |text: &str| text.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D").replace(':', "%3A");
        format!(
            "sv={version}&ss=b&srt=sco&sp={permissions}&st={}&se={}&spr=https%2Chttp&sig={}",
            escaped(start),
            escaped(expiry),
            escaped(&signature)
        )
    }
}

fn said(command: &mut Command) -> Said {
    let output = command.stdin(Stdio::null()).output();
    let output =
        output.unwrap_or_else(|error| panic!("{command:?}: {error}: cargo build --workspace --bins"));
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

/// Findings of the only server that name `blob`, as `severity: what`.
fn findings(report: &Value, blob: &str) -> Vec<String> {
    let all = report["servers"][0]["findings"].as_array().unwrap();
    let of = all.iter().filter(|finding| finding["blob"] == blob);
    of.map(|finding| format!("{}: {}", finding["severity"].as_str().unwrap(), finding["what"])).collect()
}

#[track_caller]
fn names(said: Said, blob: &str, severity: &str, what: &str) -> Value {
    let report = said.exits(DAMAGED, what).json();
    let found = findings(&report, blob);
    assert!(found.iter().any(|found| found.starts_with(severity)), "{what}: {blob} {found:?} in {report:#}");
    assert_eq!(report["whole"], false, "{what}");
    report
}

/// NBD exports read by QEMU's own client.
fn served(dir: &Path, slot: u32) -> Vec<u8> {
    let to = dir.join("out.raw");
    let url = format!("nbd+unix:///?socket={}/{slot}.sock", dir.display());
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "raw", &url]).arg(&to);
    said(&mut convert).exits(0, "qemu-img");
    let content = fs::read(&to).unwrap();
    fs::remove_file(to).unwrap();
    content
}

/// A segment's data is changed, which the opening of a point does not look at. The first read of it ends the disk server:
/// with the words that reach the run's status.
fn served_until_damage_is_read(site: &Site, name: &str, content: &Bytes, number: u64) {
    let mut changed = content.to_vec();
    *changed.last_mut().unwrap() ^= 1;
    let put = |content| site.runtime.block_on(site.cache.put(name, content, &PutCondition::Always)).unwrap();
    put(changed.into());
    let mut serving = site.serve().stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(serving.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
    assert!(ready.contains("\"ready\":true"), "{ready}");
    let reads = (1..3).map(|slot| {
        let url = format!("nbd+unix:///?socket={}/{slot}.sock", site.dir.path().display());
        let mut convert = Command::new("qemu-img");
        said(convert.args(["convert", "-f", "raw", "-O", "raw", &url]).arg(site.path("damaged.raw")))
    });
    let failed = reads.filter(|said| said.code != 0).count();
    assert!(failed > 0, "what is damaged was given");
    assert_eq!(serving.wait().unwrap().code(), Some(DAMAGED));
    let last_words = || fs::read_to_string(site.path("termination-log")).unwrap();
    let words = last_words();
    assert!(
        words.contains(name) && words.contains(&format!("choose a point before record {number}")),
        "{words}"
    );
    let mark = site.path("damaged");
    assert_eq!(fs::read_to_string(&mark).unwrap(), "", "the machine is told that, and not what");

    // Started again, as the kubelet does it, also when the vault was mended meanwhile: the machine has holes already. What
    // it put beside the sockets instead is not believed.
    put(content.clone());
    fs::remove_file(site.path("termination-log")).unwrap();
    fs::remove_file(&mark).unwrap();
    std::os::unix::fs::symlink(site.path("recovery-key"), &mark).unwrap();
    said(&mut site.serve()).exits(DAMAGED, "a server of disks that had holes");
    assert_eq!(last_words(), words);
    assert_eq!(fs::read_to_string(site.path("recovery-key")).unwrap(), RECOVERY_KEY);
    fs::remove_dir_all(site.path("overlays")).unwrap();
    assert_eq!(site.pins(), 1, "who restores the blob needs the point");
}

#[test]
fn a_whole_vault_is_listed_verified_exported_and_served_with_the_recovery_key_alone() {
    let site = Site::new("book-whole");
    let servers = site.vault(&["ls", "--output", "json"]).exits(WHOLE, "ls").json();
    let [server] = servers.as_array().unwrap().as_slice() else { panic!("{servers:#}") };
    assert_eq!((server["namespace"].as_str(), server["name"].as_str()), (Some("erp"), Some("db-1")));
    assert_eq!(server["lastRecord"], site.newest());
    assert_eq!(server["problems"], json!([]));
    let points = site.vault(&["ls", SERVER, "--output", "json"]).exits(WHOLE, "ls of a server").json();
    let numbers: Vec<_> =
        points.as_array().unwrap().iter().filter_map(|point| point["number"].as_u64()).collect();
    assert_eq!(numbers, site.source.points.keys().copied().collect::<Vec<_>>());
    for deep in [false, true] {
        let report = site.verify(deep).exits(WHOLE, "verify").json();
        assert_eq!((&report["whole"], &report["deep"]), (&json!(true), &json!(deep)));
        let server = &report["servers"][0];
        assert_eq!(server["points"]["recoverable"], site.source.points.len(), "{server:#}");
        let (named, opened) = (&server["segments"]["named"], &server["segments"]["opened"]);
        assert_eq!(opened.as_u64(), if deep { named.as_u64() } else { Some(0) });
    }

    // Every point that matters, every disk, bit for bit; nothing is left in the vault.
    let newest = site.newest();
    for (point, number) in
        [("latest".to_owned(), newest), ("5".to_owned(), 5), ("1970-01-01T00:00:04Z".to_owned(), 4)]
    {
        for slot in [1, 2] {
            let content =
                site.export(&point, slot, "disk.raw").unwrap_or_else(|said| panic!("{point}: {}", said.err));
            assert!(content == site.image(number, slot), "disk {slot} of point {point} differs");
        }
    }
    assert_eq!(site.pins(), 0);

    // A credential that may only read and list is enough, and the missing pin is told.
    fs::write(site.path("sas"), site.sas("rl")).unwrap();
    let to = site.path("by-sas.raw");
    let arguments = ["export", SERVER, "--disk", "1", "--to", to.to_str().unwrap()];
    let by_sas = site.vault_as(&site.azurite.endpoint, "sas", "recovery-key", &arguments);
    let by_sas = by_sas.exits(WHOLE, "export by SAS");
    assert!(by_sas.err.contains("may not write pins"), "{}", by_sas.err);
    assert!(fs::read(to).unwrap() == site.image(newest, 1));

    // The point served as disks, pinned until the end.
    let dir = site.dir.path();
    let mut serving = site.serve().stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(serving.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
    let ready: Value = serde_json::from_str(&ready).unwrap();
    assert_eq!((&ready["ready"], &ready["point"]), (&json!(true), &json!(newest)), "{ready}");
    assert_eq!(site.pins(), 1);
    for slot in [1, 2] {
        assert!(served(dir, slot) == site.image(newest, slot), "disk {slot} is served differently");
    }
    said(Command::new("kill").arg(serving.id().to_string())).exits(0, "kill");
    assert!(serving.wait().unwrap().success());
    assert_eq!(site.pins(), 0);

    // What is missing or wrong, by its exit code.
    site.vault(&["ls", "erp/db-9"]).exits(NO_SUCH, "no such server");
    let refused = site.export("4711", 1, "none.raw").map(|_| ()).unwrap_err().exits(NO_SUCH, "no such point");
    assert!(refused.err.contains("has no record 4711"), "{}", refused.err);
    fs::write(site.path("other-key"), OTHER_KEY).unwrap();
    let wrong = site.vault_as(&site.azurite.endpoint, "account-key", "other-key", &["ls"]);
    wrong.exits(DAMAGED, "a recovery key of another vault");
    let [port] = free_ports().unwrap();
    let dead =
        format!("http://127.0.0.1:{port}/{}", AzureOptions::account_of(&site.azurite.endpoint).unwrap());
    site.vault_as(&dead, "account-key", "recovery-key", &["ls"]).exits(UNREACHABLE, "nobody listens");
}

/// Somebody deletes the container with the segments under a machine that runs.
#[test]
fn a_disk_server_whose_container_is_deleted_ends_with_the_reason_and_says_it_again() {
    let site = Site::new("book-refused");
    let serve = || {
        let mut serve = site.serve();
        serve.args(["--refused-for-seconds", "1"]);
        serve
    };
    let mut serving = serve().stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(serving.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
    assert!(ready.contains("\"ready\":true"), "{ready}");
    let url = format!("{}/vault-cache?restype=container&{}", site.azurite.endpoint, site.sas("d"));
    said(Command::new("curl").args(["-fsS", "-X", "DELETE", &url])).exits(0, "deleting the container");
    let reads = (1..3).map(|slot| {
        let url = format!("nbd+unix:///?socket={}/{slot}.sock", site.dir.path().display());
        let mut convert = Command::new("qemu-img");
        said(convert.args(["convert", "-f", "raw", "-O", "raw", &url]).arg(site.path("refused.raw")))
    });
    assert!(reads.filter(|said| said.code != 0).count() > 0, "it was read without its container");
    assert_eq!(serving.wait().unwrap().code(), Some(REFUSED));
    let last_words = || fs::read_to_string(site.path("termination-log")).unwrap();
    let words = last_words();
    assert!(
        words.contains("the container does not exist") && words.contains("start the machine anew"),
        "{words}"
    );
    assert_eq!(
        fs::read_to_string(site.path("damaged")).unwrap(),
        "",
        "the machine is told that, and not why"
    );
    fs::remove_file(site.path("termination-log")).unwrap();
    said(&mut serve()).exits(REFUSED, "a server of disks that were lost");
    assert_eq!(last_words(), words);
}

#[test]
fn what_was_changed_lost_or_put_back_in_the_store_is_named_and_never_given_for_something_else() {
    let mut site = Site::new("book-damage");
    let catalogue = |file: &str| layout::catalogue(&site.source.server, file);
    let documents = ["position.json", "points.json"].map(catalogue);
    let older = documents.clone().map(|name| site.get(&name));
    site.rounds(12..18);
    site.apply();
    site.rounds(18..20);
    site.verify(true).exits(WHOLE, "before any damage");
    let (newest, last) = (site.newest(), site.image(site.newest(), 1).to_vec());

    // One page of a seed disk: only a comparison of contents can see it.
    let seed = layout::seed_disk(&site.source.server, &disk_id(1));
    let page = site.get(&seed).slice(4096..4608);
    let write = |content: Bytes| {
        let written = async {
            let sequence = site.store.properties(&seed, None).await.unwrap().sequence_number;
            site.store.write_pages(&seed, 4096, content, None, sequence).await.unwrap();
        };
        site.runtime.block_on(written);
    };
    write(Bytes::from(vec![0xee; 512]));
    site.verify(false).exits(WHOLE, "pages are not read");
    names(site.verify(true), &seed, "D", "a page of a seed disk");
    // Points are read from snapshots, which nobody has touched.
    assert!(site.export("latest", 1, "page.raw").unwrap_or_default() == last);
    write(page);
    site.verify(true).exits(WHOLE, "the page is back");

    // A segment of the journal.
    let segment = (1..=newest).rev().find_map(|number| {
        let name = layout::segment(&site.source.server, Epoch(2), RecordNumber(number), "writer", 0);
        let content = site.runtime.block_on(site.cache.get(&name, None, None)).ok()?;
        Some((name, content, number))
    });
    let (name, content, number) = segment.unwrap();
    assert!(number > 17, "record {number} is applied already");
    site.runtime.block_on(site.cache.delete(&name, None)).unwrap();
    let report = names(site.verify(false), &name, "Damage", "a segment");
    assert_eq!(report["servers"][0]["points"]["recoverable"], number - 2, "{report:#}");
    let refused = site.export("latest", 1, "lost.raw").map(|_| ()).unwrap_err();
    let refused = refused.exits(DAMAGED, "a point that needs the segment");
    assert!(refused.err.contains(&name), "{}", refused.err);
    assert_eq!(site.pins(), 0, "an export that could not begin left its pin");
    let before = (number - 1).to_string();
    assert!(site.export(&before, 1, "before.raw").unwrap_or_default() == site.image(number - 1, 1));
    site.runtime.block_on(site.cache.put(&name, content.clone(), &PutCondition::IfAbsent)).unwrap();
    site.verify(false).exits(WHOLE, "the segment is back");

    served_until_damage_is_read(&site, &name, &content, number);

    // A part of the log as it was some records ago.
    for (epoch, sealed) in [(1, true), (2, false)] {
        let content = site.get(&site.part(epoch));
        let mut ends = vec![0];
        while let Some(frame) = RawFrame::split(&content[*ends.last().unwrap()..]).unwrap() {
            ends.push(ends.last().unwrap() + frame.len() as usize);
        }
        site.put_part(epoch, &content[..ends[4]], false);
        let what = format!("an older version of part {epoch}");
        names(site.verify(false), &site.part(epoch), "Damage", &what);
        if epoch == 2 {
            let refused = site.export("latest", 1, "older.raw").map(|_| ()).unwrap_err();
            let refused = refused.exits(DAMAGED, &what);
            assert!(refused.err.contains("ask for it by its number"), "{}", refused.err);
            assert!(site.export("5", 1, "five.raw").unwrap_or_default() == site.image(5, 1));
        }
        site.put_part(epoch, &content, sealed);
        site.verify(false).exits(WHOLE, "the part is back");
    }

    // Documents of the catalogue as they were some points ago.
    for (name, old) in documents.iter().zip(&older) {
        let new = site.get(name);
        assert_ne!(new, *old, "{name} has not changed since");
        site.put(name, old);
        names(site.verify(false), name, "Degraded", "an older document of the catalogue");
        assert!(site.export("latest", 1, "old.raw").unwrap_or_default() == last, "{name}");
        site.put(name, &new);
    }
    site.verify(true).exits(WHOLE, "all is back");
}
