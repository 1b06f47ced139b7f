//! The machine's pod: a disk server beside QEMU, both under Pod Security `restricted`, with no right in Kubernetes.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Container, EmptyDirVolumeSource, EnvVar, Pod, PodSecurityContext, PodSpec, ResourceRequirements,
        Sysctl, Volume,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::ResourceExt as _;
use lifeboat_crds::{
    FailoverRun, Reason, ReplicationAppliance,
    names::{RUN_LABEL, RUN_UID_LABEL, SERVER_LABEL},
    run::ResolvedServer,
    server::{Firmware, VirtualMachinePod},
};

use super::MACHINE_LABEL;
use crate::{
    controllers::{
        appliance::{
            build::pod::{
                CONFIGURATION_DIR, container, http_probe, pod_security, vault_mounts, vault_volumes,
                writable_mount,
            },
            validate::{Validated, quantity_bytes},
        },
        shared::{labels, owned_by},
    },
    runtime::{Failure, settings::Images},
};

/// Disks as sockets, one a disk, named by its slot.
const SOCKETS: &str = "/run/lifeboat/sockets";
/// What the machine writes.
const OVERLAY: &str = "/run/lifeboat/overlay";
/// Last words of the disk server, for the kubelet.
const TERMINATION_LOG: &str = "/dev/termination-log";
/// File beside the sockets by which the disk server says that the disks have holes (`recovery/src/damage.rs`).
const DAMAGED: &str = "damaged";
/// QEMU itself, beside the memory of its machine.
const QEMU_OVERHEAD_MIB: u64 = 256;
/// QEMU's own ends of the forwarded ports, on loopback: above Kubernetes' usual node ports.
const FORWARDS_FROM: u16 = 40_000;
/// Opening a point reads the journal's index: up to ten minutes, as the engine allows.
const OPEN_FAILURES: i32 = 600;

pub(super) fn build(
    run: &FailoverRun,
    name: &str,
    server: &ResolvedServer,
    appliance: &ReplicationAppliance,
    validated: &Validated,
    images: &Images,
) -> Result<Pod, Failure> {
    let machine = &server.target.virtual_machine_pod;
    let memory_mib =
        quantity_bytes(&machine.memory).map(|bytes| bytes >> 20).filter(|mib| *mib > 0).ok_or_else(|| {
            let message = format!(
                "server {}: spec.target.virtualMachinePod.memory is {}: write it like 2Gi",
                server.name, machine.memory.0
            );
            Failure::stalled(Reason::InvalidSpec, message)
        })?;
    let mut volumes = vault_volumes(appliance, &validated.credential);
    volumes.extend([scratch("sockets"), scratch("overlay"), scratch("tmp")]);
    let uid = run.uid().unwrap_or_default();
    let labels = labels([
        (RUN_LABEL, &run.name_any()),
        (RUN_UID_LABEL, &uid),
        (SERVER_LABEL, server.name.as_str()),
        (MACHINE_LABEL, name),
    ]);
    Ok(Pod {
        metadata: owned_by(run, name, labels),
        spec: Some(PodSpec {
            automount_service_account_token: Some(false),
            service_account_name: validated.credential.service_account(),
            enable_service_links: Some(false),
            security_context: Some(PodSecurityContext {
                // The machine's services have their usual ports, and nobody here is root.
                sysctls: Some(vec![Sysctl {
                    name: "net.ipv4.ip_unprivileged_port_start".to_owned(),
                    value: "0".to_owned(),
                }]),
                ..pod_security()
            }),
            // A machine that has stopped is not started again behind the run's back.
            restart_policy: Some("Never".to_owned()),
            termination_grace_period_seconds: Some(i64::from(super::STOP_SECONDS)),
            init_containers: Some(vec![disk_server(name, server, images)]),
            containers: vec![qemu(machine, memory_mib, images)],
            volumes: Some(volumes),
            ..PodSpec::default()
        }),
        status: None,
    })
}

fn scratch(name: &str) -> Volume {
    Volume { name: name.to_owned(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() }
}

/// A restartable init container: QEMU starts when its sockets are there, and it stays as long as QEMU does.
fn disk_server(machine: &str, server: &ResolvedServer, images: &Images) -> Container {
    let arguments = [
        "serve",
        "--server",
        &server.id,
        "--point",
        &server.recovery_point.record.to_string(),
        // The same after a restart of the container, so that it finds what it has pinned.
        "--run",
        machine,
        "--socket-dir",
        SOCKETS,
        "--overlay-dir",
        OVERLAY,
        // What stands there reaches the run's status: not the end of a log.
        "--termination-log",
        TERMINATION_LOG,
    ]
    .map(str::to_owned);
    let mut mounts = vault_mounts();
    mounts.extend([
        writable_mount("sockets", SOCKETS),
        writable_mount("overlay", OVERLAY),
        writable_mount("tmp", "/tmp"),
    ]);
    let config = EnvVar {
        name: "LIFEBOAT_VAULT_CONFIG".to_owned(),
        value: Some(format!("{CONFIGURATION_DIR}/vault.json")),
        value_from: None,
    };
    Container {
        args: Some(arguments.to_vec()),
        env: Some(vec![config]),
        restart_policy: Some("Always".to_owned()),
        termination_message_path: Some(TERMINATION_LOG.to_owned()),
        startup_probe: Some(http_probe("/readyz", 1, OPEN_FAILURES)),
        volume_mounts: Some(mounts),
        ..container("disks", &images.recovery, images)
    }
}

fn qemu(machine: &VirtualMachinePod, memory_mib: u64, images: &Images) -> Container {
    let memory = Quantity(format!("{}Mi", memory_mib + QEMU_OVERHEAD_MIB));
    Container {
        command: Some(vec![
            "/bin/sh".to_owned(),
            "-eu".to_owned(),
            "-c".to_owned(),
            script(machine, memory_mib),
        ]),
        env: Some(vec![EnvVar {
            name: "TMPDIR".to_owned(),
            value: Some("/tmp".to_owned()),
            value_from: None,
        }]),
        resources: Some(ResourceRequirements {
            requests: Some(BTreeMap::from([("memory".to_owned(), memory)])),
            ..ResourceRequirements::default()
        }),
        volume_mounts: Some(vec![writable_mount("sockets", SOCKETS), writable_mount("tmp", "/tmp")]),
        ..container("machine", &images.qemu, images)
    }
}

/// Disks in the order of their slots, the first one boots. Three globs, since `10.sock` sorts before `2.sock`.
/// The spec's values are numbers by schema and stand in no quotes of their own. An emulated processor does not call
/// `rep movsb` fast (ERMS), which would make kernels copy byte by byte, and has four levels of page tables. One thread
/// runs all emulated processors: with one each, QEMU before 8.1 can miss a change of code by another processor, and a
/// Linux guest that patches its own code then traps for ever.
///
/// A machine that has read what is damaged is switched off: it must not go on with holes in its disks. QEMU takes the place of
/// the shell, which is the container's first process; its `$$` would come to it as `$`, by the kubelet.
///
/// A port goes through the pod's loopback: QEMU shows the guest where a connection comes from, and a guest without a
/// gateway, as `restrict=on` leaves it, can answer only its own network, which loopback becomes.
fn script(machine: &VirtualMachinePod, memory_mib: u64) -> String {
    let VirtualMachinePod { cpus, memory: _, firmware, ports } = machine;
    let firmware = match firmware {
        Firmware::BIOS => "",
    };
    let inner = |(port, inner)| format!(",hostfwd=tcp:127.0.0.1:{inner}-:{}", port);
    let outer = |(port, inner)| format!("socat TCP-LISTEN:{port},fork,reuseaddr TCP:127.0.0.1:{inner} &\n");
    let ports = || ports.iter().map(|port| port.port).zip(FORWARDS_FROM..);
    let (forwards, listeners): (String, String) =
        (ports().map(inner).collect(), ports().map(outer).collect());
    format!(
        r#"set --
index=0
for socket in {SOCKETS}/?.sock {SOCKETS}/??.sock {SOCKETS}/???.sock; do
  [ -S "$socket" ] || continue
  set -- "$@" -drive "file=nbd+unix:///?socket=$socket,if=none,id=disk$index,format=raw,cache=writeback,discard=unmap" -device "virtio-blk-pci,drive=disk$index,bootindex=$index"
  index=$((index + 1))
done
[ "$index" -gt 0 ] || {{ echo "the recovery point has no disk" >&2; exit 1; }}
if [ -w /dev/kvm ]; then set -- "$@" -accel kvm -cpu host; else set -- "$@" -accel tcg,thread=single -cpu max,-erms,-la57; fi
while sleep 1; do [ ! -e {SOCKETS}/{DAMAGED} ] || kill 1; done &
{listeners}exec qemu-system-x86_64 -machine q35 "$@" -smp {cpus} -m {memory_mib}{firmware} \
  -display none -monitor none -serial stdio \
  -netdev user,id=net0,restrict=on{forwards} -device virtio-net-pci,netdev=net0
"#
    )
}
