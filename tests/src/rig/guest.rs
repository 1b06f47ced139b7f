//! A whole Debian server in QEMU, with the agent and its files as `install` writes them, that replicates to a [`Site`].
//!
//! Its network is QEMU's own: it reaches only what this machine offers on loopback, and only its SSH port is reached.
//! Emulated (this must work without KVM), so everything takes its time.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use lifeboat_replication::wire::v1;

use super::{Site, different_blocks, now, point, run};
use crate::programs::{free_ports, program};

/// From power on to an answer by SSH: half a minute on an idle machine.
const BOOT: Duration = Duration::from_secs(600);
/// Which Debian, and its layout where that is not one partition: as dev/server/build takes them.
pub const DEBIAN_11: &str = "bullseye";
pub const DEBIAN_12: &str = "bookworm";
pub const DEBIAN_13: &str = "trixie";
pub const DEBIAN_13_LVM: &str = "trixie lvm";
const FROZEN: Duration = Duration::from_secs(120);
/// All file systems for so long, root last: whoever still writes there would stop the others.
const FREEZE: &str = r"
cat >/run/freeze <<'EOF'
all=$(awk '$3 ~ /^(ext4|xfs)$/ {print $2}' /proc/mounts | sort -r)
for at in $all; do fsfreeze -f $at; done
sleep 120
for at in $all; do fsfreeze -u $at; done
EOF
sync
setsid sh /run/freeze >/dev/null 2>&1 </dev/null &
sleep 4
";
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

pub struct Guest {
    qemu: Child,
    ssh_port: u16,
    dir: tempfile::TempDir,
    /// Ids of its disks and their files; the first one has the system.
    disks: Vec<(String, PathBuf)>,
}

impl Guest {
    /// Boots one of this release as the site's first enrolled server.
    pub fn boot(site: &Site, release: &str) -> Self {
        Self::boot_with(site, release, &[])
    }

    /// The same with empty disks of these sizes beside the system's: /dev/vdb, and so on.
    pub fn boot_with(site: &Site, release: &str, sizes: &[u64]) -> Self {
        let agent = program("lifeboat-agent");
        let dir = tempfile::Builder::new().prefix("lifeboat-guest-").tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let words: Vec<&str> = release.split(' ').collect();
        let image = run(&format!("{ROOT}/dev/server/build"), &words);
        let (_, state) = &site.enrolled[0];
        let configuration = &site.control.configuration;
        let addresses = configuration.process_servers.iter().flat_map(|server| &server.data_addresses);
        let ports = configuration.management_addresses.iter().chain(addresses);
        let ports: Vec<&str> = ports.filter_map(|address| Some(address.rsplit_once(':')?.1)).collect();
        let (disk, files) = (path("disk.raw"), format!("{ROOT}/agent/install"));
        let mut arguments =
            vec![image.as_str(), &disk, agent.to_str().unwrap(), state.to_str().unwrap(), &files];
        arguments.extend(ports);
        run(concat!(env!("CARGO_MANIFEST_DIR"), "/src/rig/guest-disk.sh"), &arguments);
        let accelerator = run(&format!("{ROOT}/dev/server/accelerator"), &[]);
        let [ssh_port] = free_ports::<1>().unwrap();
        let log = File::create(dir.path().join("qemu.log")).unwrap();
        let mut disks = vec![("lifeboat-reboot".to_owned(), PathBuf::from(&disk))];
        for (number, bytes) in (1..).zip(sizes) {
            let file = path(&format!("disk-{number}.raw"));
            File::create_new(&file).unwrap().set_len(*bytes).unwrap();
            disks.push((format!("lifeboat-extra-{number}"), file.into()));
        }
        let drive = |(id, file): &(String, PathBuf)| {
            let file = file.display();
            let drive = format!("file={file},if=none,id=drive-{id},format=raw,cache=writeback,discard=unmap");
            [
                "-drive".to_owned(),
                drive,
                "-device".to_owned(),
                format!("virtio-blk-pci,drive=drive-{id},serial={id}"),
            ]
        };
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-name", "lifeboat-reboot", "-machine", "q35", "-smp", "2", "-m", "1024", "-nodefaults"])
            .args(accelerator.split_whitespace())
            .args(["-display", "none", "-serial", &format!("file:{}", path("console.log"))])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", path("qmp.sock"))])
            .args(disks.iter().flat_map(drive))
            .args(["-device", "virtio-rng-pci"])
            .args(["-netdev", &format!("user,id=net,hostfwd=tcp:127.0.0.1:{ssh_port}-:22")])
            .args(["-device", "virtio-net-pci,netdev=net"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let guest = Self { qemu, ssh_port, dir, disks };
        guest.wait("the first boot", BOOT, || guest.boot_id());
        guest
    }

    fn ssh(&self, command: &str) -> Option<String> {
        self.ssh_with(command, Stdio::null())
    }

    /// With something to read.
    fn ssh_with(&self, command: &str, input: Stdio) -> Option<String> {
        let port = self.ssh_port.to_string();
        let key = self.dir.path().join("ssh_key");
        let output = Command::new("ssh")
            .args(["-q", "-i", key.to_str().unwrap(), "-p", &port, "-o", "BatchMode=yes"])
            .args(["-o", "ConnectTimeout=30", "-o", "StrictHostKeyChecking=no"])
            .args(["-o", "UserKnownHostsFile=/dev/null", "root@127.0.0.1", command])
            .stdin(input)
            .output()
            .unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a shell command; it must succeed.
    pub fn shell(&self, command: &str) -> String {
        self.ssh(command).unwrap_or_else(|| panic!("{command}: failed\n{}", self.tail()))
    }

    /// Runs a shell command: whether it succeeded, and what it said.
    pub fn attempt(&self, command: &str) -> (bool, String) {
        let said = self.shell(&format!(
            "if ({command}) >/tmp/said 2>&1; then echo done; else echo failed; fi; cat /tmp/said"
        ));
        (said.starts_with("done\n"), said)
    }

    /// Puts a program there.
    pub fn put(&self, program: &Path, place: &str) {
        let command = format!("cat >{place} && chmod 755 {place}");
        self.ssh_with(&command, File::open(program).unwrap().into()).unwrap();
    }

    /// What the agent has logged since this boot.
    pub fn agent_log(&self) -> String {
        self.shell("journalctl -b -u lifeboat-agent --no-pager -o cat")
    }

    fn boot_id(&self) -> Option<String> {
        self.ssh("cat /proc/sys/kernel/random/boot_id")
    }

    /// As an administrator does it.
    pub fn reboot(&self) {
        let before = self.boot_id();
        // The answer may be lost with the network.
        _ = self.ssh("systemctl reboot");
        self.wait("a restart", BOOT, || self.boot_id().filter(|now| Some(now) != before.as_ref()));
    }

    /// As the reset button does it.
    pub fn reset(&self) {
        let before = self.boot_id();
        let mut monitor = UnixStream::connect(self.dir.path().join("qmp.sock")).unwrap();
        let mut answers = BufReader::new(monitor.try_clone().unwrap()).lines();
        for command in ["qmp_capabilities", "system_reset"] {
            answers.next().unwrap().unwrap();
            writeln!(monitor, "{{\"execute\": \"{command}\"}}").unwrap();
        }
        answers.next().unwrap().unwrap();
        self.wait("a boot after the reset", BOOT, || {
            self.boot_id().filter(|now| Some(now) != before.as_ref())
        });
    }

    /// Waits until there is an answer.
    pub fn wait<T>(&self, what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + patience;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < end, "{what}: not after {patience:?}\n{}", self.tail());
            sleep(Duration::from_secs(1));
        }
    }

    /// Records up to a point that is younger than this call.
    pub fn settled(&self, site: &Site, what: &str, patience: Duration) -> Vec<v1::Data> {
        let began = now();
        self.shell("date >/root/asked-for-a-round; sync");
        self.wait(what, patience, || {
            let records = site.records_by(&site.enrolled[0].0);
            point(&records).is_some_and(|point| point.t0_micros > began).then_some(records)
        })
    }

    /// Nothing writes while the file systems stand still, so the last record holds all of the disks.
    pub fn assert_same(&self, site: &Site) {
        let began = Instant::now();
        self.shell(FREEZE);
        let last = |records: &[v1::Data]| records.last().map(|record| record.number);
        let mut before = None;
        let number = self.wait("the last round", Duration::from_secs(100), || {
            sleep(Duration::from_secs(10));
            let now = last(&site.records_by(&site.enrolled[0].0));
            let rests = now == before;
            before = now;
            now.filter(|_| rests)
        });
        // At once, before they go on.
        let disks = self.content();
        assert!(began.elapsed() < FROZEN, "this machine is too busy: the file systems may have gone on");
        same(site, disks, number);
    }

    /// The server is shut down by order, in the middle of a load: it goes off by itself, and what it leaves is in the vault.
    pub fn shut_down(&mut self, site: &mut Site, patience: Duration) {
        self.shell("setsid sh -c 'while head -c 300000 /dev/urandom >>/root/until-the-end; do sync; done' >/dev/null 2>&1 </dev/null &");
        site.order_shutdown("out-of-service");
        let begun = Instant::now();
        while self.qemu.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < patience, "not off after {patience:?}\n{}", self.tail());
            sleep(Duration::from_secs(1));
        }
        println!("off after {:?}", begun.elapsed());
        let records = site.records_by(&site.enrolled[0].0);
        let last = records.last().unwrap();
        assert_eq!(last.kind(), v1::RecordKind::Exact, "its last state is a point");
        same(site, self.content(), last.number);
    }

    /// Of its disks, by id.
    fn content(&self) -> Vec<(String, Vec<u8>)> {
        self.disks.iter().map(|(id, file)| (id.clone(), std::fs::read(file).unwrap())).collect()
    }

    /// Waits until the file systems go on after [`Self::assert_same`].
    pub fn thawed(&self) {
        self.shell("while ! touch /root/thawed; do sleep 1; done");
    }

    fn tail(&self) -> String {
        let console = std::fs::read(self.dir.path().join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&console[console.len().saturating_sub(4000)..]).into_owned()
    }
}

/// The vault's disks up to this record are these.
fn same(site: &Site, disks: Vec<(String, Vec<u8>)>, number: u64) {
    let mut vault = site.all_recovered_of(&site.enrolled[0].0, number);
    for (id, disk) in disks {
        let vault = vault.remove(&id).unwrap();
        assert_eq!(disk.len(), vault.len());
        let different = different_blocks(&disk, &vault);
        assert_eq!(different, 0, "blocks of the vault that are not the disk's ({id})");
    }
    assert!(vault.is_empty(), "{:?}", vault.keys());
}

impl Drop for Guest {
    fn drop(&mut self) {
        _ = self.qemu.kill();
        _ = self.qemu.wait();
    }
}
