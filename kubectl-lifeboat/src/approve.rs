//! `approve`: a person's answer to a step that waits for people.

use std::time::Duration;

use clap::{Args, ValueEnum};
use kube::api::PostParams;
use lifeboat_crds::{
    FailoverApproval, FailoverRun,
    approval::{Decision, FailoverApprovalSpec, RunRef, VerdictResult},
    names,
    run::StepState,
};

use crate::cluster::{Cluster, PluginError, api};

/// The operator judges an answer within this time, or does not run.
const VERDICT_WITHIN: Duration = Duration::from_secs(20);

#[derive(Args)]
pub(crate) struct Approve {
    /// The FailoverRun.
    run: String,
    /// The step; may be left out when only one waits.
    step: Option<String>,
    /// The answer.
    #[arg(long, value_enum, default_value_t = Answer::Approve)]
    decision: Answer,
    /// For the record: why.
    #[arg(long)]
    comment: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Answer {
    Approve,
    Reject,
    Retry,
    Skip,
}

impl From<Answer> for Decision {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Approve => Self::Approve,
            Answer::Reject => Self::Reject,
            Answer::Retry => Self::Retry,
            Answer::Skip => Self::Skip,
        }
    }
}

impl Approve {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<(), PluginError> {
        let run: FailoverRun = cluster.get("FailoverRun", &self.run).await?;
        let (step, attempt) = waiting_step(&run, self.step.as_deref())?;
        let by = cluster.caller().await?;
        let name = names::approval(&self.run, &step, attempt, &by.username);
        let spec = FailoverApprovalSpec {
            run_ref: RunRef { name: self.run.clone(), uid: run.metadata.uid.clone().unwrap_or_default() },
            step: step.clone(),
            attempt,
            decision: self.decision.into(),
            comment: self.comment,
            by,
        };
        let answers = cluster.api::<FailoverApproval>();
        match answers.create(&PostParams::default(), &FailoverApproval::new(&name, spec)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {
                return Err(PluginError::refused(
                    format!("you have answered attempt {attempt} of {step} already"),
                    format!(
                        "`kubectl get fapproval {name} -o yaml` shows the answer; another person may answer too"
                    ),
                ));
            }
            Err(source) => return Err(api(&format!("answering step {step}"), source)),
        }
        let deadline = tokio::time::Instant::now() + VERDICT_WITHIN;
        while tokio::time::Instant::now() < deadline {
            let answer: FailoverApproval = cluster.get("FailoverApproval", &name).await?;
            if let Some(verdict) = answer.status.and_then(|status| status.verdict) {
                if verdict.result == VerdictResult::Counted {
                    println!("{step}: {}", verdict.message);
                    return Ok(());
                }
                return Err(PluginError::refused("the answer does not count", verdict.message));
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Err(PluginError::refused(
            "the answer is recorded, but the operator has not judged it",
            "see whether it runs: `kubectl -n lifeboat-system get pods`; it looks at the answer when it is back",
        ))
    }
}

/// The step that is asked about, and its attempt.
fn waiting_step(run: &FailoverRun, wanted: Option<&str>) -> Result<(String, u32), PluginError> {
    let steps = run.status.as_ref().map(|status| status.steps.as_slice()).unwrap_or_default();
    let asking: Vec<_> =
        steps.iter().filter(|step| step.state == StepState::Waiting && step.not_before.is_none()).collect();
    let name = run.metadata.name.as_deref().unwrap_or_default();
    let found = match (wanted, asking.as_slice()) {
        (Some(wanted), _) => asking.iter().find(|step| step.name == wanted),
        (None, [only]) => Some(only),
        (None, _) => None,
    };
    match found {
        Some(step) => Ok((step.name.clone(), step.attempt)),
        None if asking.is_empty() => Err(PluginError::refused(
            format!("no step of run {name} waits for people"),
            format!("`kubectl lifeboat failover {name} --follow` shows where it stands"),
        )),
        None => {
            let names: Vec<_> = asking.iter().map(|step| step.name.as_str()).collect();
            Err(PluginError::refused(
                format!("run {name} waits at other steps"),
                format!("name one of: {}", names.join(", ")),
            ))
        }
    }
}
