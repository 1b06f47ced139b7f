//! What a pod says of its machine.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

use crate::{controllers::appliance::status::pod_trouble, failover::world::Machine};

/// Exit codes of `lifeboat-recovery` (`recovery/src/exit.rs`).
const NO_POINT: i32 = 3;
const DAMAGED: i32 = 5;
const REFUSED: i32 = 6;
/// Characters of the disk server's last words: with the remedy they fit into a step's message.
const MAX_WORDS: usize = 800;

pub(super) fn machine(pod: &Pod) -> Machine {
    let empty = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let container = |name: &str| {
        let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        all.into_iter().find(|status| status.name == name)
    };
    let is_running =
        |status: &&ContainerStatus| status.state.as_ref().is_some_and(|state| state.running.is_some());
    let disks_ready =
        container("disks").filter(is_running).is_some_and(|status| status.started == Some(true));
    let running = container("machine").filter(is_running).is_some();
    Machine {
        disks_ready: disks_ready || running,
        running,
        address: status.pod_ip.clone().filter(|address| !address.is_empty()),
        // First what began it: the machine is switched off because of it.
        failed: container("disks").and_then(hopeless).or_else(|| failure(status)),
        deleting: pod.metadata.deletion_timestamp.is_some(),
        detail: pod_trouble(pod).unwrap_or_else(|| {
            if disks_ready {
                "the machine is starting".to_owned()
            } else {
                "the point is being opened".to_owned()
            }
        }),
    }
}

/// The disk server says by its exit code that trying again is in vain: no such point (3), damaged or wrong key (5), or that
/// the vault has refused the running machine for minutes (6). It may have been started again since, and stopped with the
/// pod.
fn hopeless(disks: &ContainerStatus) -> Option<String> {
    let states = [disks.state.as_ref(), disks.last_state.as_ref()];
    let mut ends = states.into_iter().flatten().filter_map(|state| state.terminated.as_ref());
    let ended = ends.find(|ended| matches!(ended.exit_code, NO_POINT | DAMAGED | REFUSED))?;
    let said: String = ended.message.as_deref().unwrap_or_default().trim().chars().take(MAX_WORDS).collect();
    Some(match ended.exit_code {
        DAMAGED => format!(
            "the recovery point cannot be used: {said}; `kubectl lifeboat vault verify` names everything that is damaged, and \
             the points that it costs"
        ),
        REFUSED => format!("the machine has lost its disks: {said}: clean this run up and start another"),
        _ => format!("the recovery point cannot be used: {said}"),
    })
}

/// The pod has ended: `restartPolicy: Never`, so it stays so.
fn failure(status: &PodStatus) -> Option<String> {
    let phase = status.phase.as_deref()?;
    if !matches!(phase, "Failed" | "Succeeded") {
        return None;
    }
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let ended = all.filter_map(|container| {
        let ended = container.state.as_ref()?.terminated.as_ref()?;
        let said = ended.message.clone().or_else(|| ended.reason.clone()).unwrap_or_default();
        Some(format!("{} ended with {}: {}", container.name, ended.exit_code, said.trim()))
    });
    let words: Vec<String> = ended.collect();
    let reason = status.message.clone().or_else(|| status.reason.clone());
    Some(if words.is_empty() {
        reason.unwrap_or_else(|| "the pod has ended".to_owned())
    } else {
        words.join("; ")
    })
}
