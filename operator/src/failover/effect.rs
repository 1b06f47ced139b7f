//! What the engine asks for. Every effect can be repeated at any time without harm.

use lifeboat_crds::{
    approval::{VerdictReason, VerdictResult},
    check::{HttpCheck, TcpCheck},
    plan::Script,
    run::ResolvedServer,
};

#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Make the Job, unless one of this name exists.
    CreateJob(Box<JobOrder>),
    /// Delete the Job and its pods, if it exists.
    StopJob { name: String },
    /// Take our finalizer off the Job: the end of its attempt is on record.
    ReleaseJob { name: String },
    /// Make the machine, unless one of this name exists.
    CreateMachine { name: String, server: Box<ResolvedServer> },
    /// Remove the machine and all that was made for it.
    RemoveMachine { name: String },
    /// Write the verdict, unless the approval has one.
    Judge { approval: String, verdict: Judgement },
}

/// One attempt of one step, as a Job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobOrder {
    pub name: String,
    pub step: String,
    pub attempt: u32,
    pub timeout_seconds: u64,
    pub work: Work,
    /// The run as JSON, for `LIFEBOAT_CONTEXT`.
    pub context: String,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// In the user's image.
    Script(Script),
    /// In ours: ask until the service answers as expected.
    Check { address: String, probe: OwnedProbe },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnedProbe {
    Http(HttpCheck),
    Tcp(TcpCheck),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    pub result: VerdictResult,
    pub reason: VerdictReason,
    pub message: String,
}

/// Name of the Job of one attempt of one step.
pub fn job_name(run_uid: &str, step: &str, attempt: u32) -> String {
    format!("lifeboat-{}-{attempt}", digest(&[run_uid, step]))
}

/// Name of the machine of one server in one run.
pub fn machine_name(run_uid: &str, server: &str) -> String {
    // Pod names may be longer; a host name may not.
    let stem: String = server.chars().take(40).collect();
    format!("{}-{}", stem.trim_end_matches('-'), digest(&[run_uid, server]))
}

/// 80 bits are plenty to keep the steps of a namespace's runs apart.
fn digest(parts: &[&str]) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(part.as_bytes());
        context.update(&[0]);
    }
    hex::encode(context.finish().as_ref().get(..10).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_by_run_step_and_attempt_and_are_short_enough_for_a_label() {
        let name = job_name("uid", "erp-db-01/HealthCheck", 3);
        assert_ne!(name, job_name("uid", "erp-db-01/HealthCheck", 4));
        assert_ne!(name, job_name("uid", "erp-db-02/HealthCheck", 3));
        assert_ne!(name, job_name("uid2", "erp-db-01/HealthCheck", 3));
        assert!(name.len() <= 63, "{name}");
        assert!(machine_name("uid", &"a".repeat(63)).len() <= 63);
    }

    #[test]
    fn a_step_and_its_run_cannot_be_mistaken_for_another_pair_with_the_same_letters() {
        assert_ne!(job_name("ab", "c", 1), job_name("a", "bc", 1));
    }
}
