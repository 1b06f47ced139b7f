//! The Job of one attempt of one step. Pure.
//!
//! It runs in the run's namespace with the plan's service account or none, never with the operator's. It is never
//! repeated by Kubernetes (`backoffLimit: 0`, `restartPolicy: Never`): attempts are the engine's. Its finalizer keeps it
//! until the end of its attempt is on record.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        batch::v1::{Job, JobSpec},
        core::v1::{Container, EnvVar, PodSecurityContext, PodSpec, PodTemplateSpec, SeccompProfile},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt as _;
use lifeboat_crds::{
    FailoverRun, context,
    names::{ATTEMPT_LABEL, FINALIZER, RUN_LABEL, RUN_UID_LABEL, STEP_ANNOTATION},
    plan::Script,
};

use crate::{
    check,
    controllers::{
        appliance::build::pod::{container, container_security},
        shared::{labels, owned_by},
    },
    failover::effect::{JobOrder, Work},
    runtime::settings::Images,
};

/// Kubernetes stops what the engine could not: longer than the engine's own time-out, which has the better message.
const BACKSTOP_SECONDS: u64 = 60;

pub(super) fn build(run: &FailoverRun, order: &JobOrder, images: &Images) -> Job {
    let labels = labels([
        (RUN_LABEL, &run.name_any()),
        (RUN_UID_LABEL, &run.uid().unwrap_or_default()),
        (ATTEMPT_LABEL, &order.attempt.to_string()),
    ]);
    let annotations = BTreeMap::from([(STEP_ANNOTATION.to_owned(), order.step.clone())]);
    let (container, service_account) = match &order.work {
        Work::Script(script) => {
            (script_container(script, order, images), script.service_account_name.clone())
        }
        Work::Check { address, probe } => {
            (check_container(&check::Order::new(address, probe, order.timeout_seconds), images), None)
        }
    };
    let pod = PodSpec {
        automount_service_account_token: Some(service_account.is_some()),
        service_account_name: service_account,
        enable_service_links: Some(false),
        restart_policy: Some("Never".to_owned()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        termination_grace_period_seconds: Some(10),
        containers: vec![container],
        ..PodSpec::default()
    };
    let mut metadata = owned_by(run, &order.name, labels.clone());
    metadata.annotations = Some(annotations.clone());
    metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
    Job {
        metadata,
        spec: Some(JobSpec {
            backoff_limit: Some(0),
            completions: Some(1),
            parallelism: Some(1),
            active_deadline_seconds: i64::try_from(order.timeout_seconds + BACKSTOP_SECONDS).ok(),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    annotations: Some(annotations),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod),
            },
            ..JobSpec::default()
        }),
        status: None,
    }
}

fn script_container(script: &Script, order: &JobOrder, images: &Images) -> Container {
    let Script { image, command, args, env, service_account_name: _, resources } = script;
    let mut variables = env.clone();
    variables.push(EnvVar {
        name: context::VARIABLE.to_owned(),
        value: Some(order.context.clone()),
        value_from: None,
    });
    let mut security = container_security();
    // The user's image may write where it likes.
    security.read_only_root_filesystem = None;
    Container {
        command: (!command.is_empty()).then(|| command.clone()),
        args: (!args.is_empty()).then(|| args.clone()),
        env: Some(variables),
        resources: resources.clone(),
        security_context: Some(security),
        ..container("script", image, images)
    }
}

fn check_container(check: &check::Order, images: &Images) -> Container {
    let order = EnvVar { name: check::VARIABLE.to_owned(), value: Some(check.to_json()), value_from: None };
    Container {
        args: Some(vec!["check".to_owned()]),
        env: Some(vec![order]),
        ..container("check", &images.operator, images)
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_crds::{FailoverRunSpec, check::TcpCheck};

    use super::*;
    use crate::failover::effect::OwnedProbe;

    fn run() -> FailoverRun {
        let spec: FailoverRunSpec = serde_json::from_value(serde_json::json!({"planRef": {"name": "erp"}, "requestedBy": {"username": "alice"}, "type": "Test"})).unwrap();
        let mut run = FailoverRun::new("erp-1", spec);
        (run.metadata.namespace, run.metadata.uid) = (Some("prod".into()), Some("run-uid".into()));
        run
    }

    fn images() -> Images {
        let name = |name: &str| name.to_owned();
        Images {
            operator: name("operator"),
            process_server: name("p"),
            applier: name("a"),
            recovery: name("r"),
            qemu: name("q"),
            pull_policy: name("Never"),
        }
    }

    fn job(work: Work) -> Job {
        let order = JobOrder {
            name: "lifeboat-abc-2".into(),
            step: "query".into(),
            attempt: 2,
            timeout_seconds: 120,
            work,
            context: "{}".into(),
        };
        build(&run(), &order, &images())
    }

    fn script(account: Option<&str>) -> Work {
        Work::Script(Script {
            image: "tools".into(),
            service_account_name: account.map(str::to_owned),
            ..Script::default()
        })
    }

    #[test]
    fn kubernetes_never_repeats_an_attempt_and_nobody_takes_its_job_away_unseen() {
        let job = job(script(None));
        let spec = job.spec.unwrap();
        assert_eq!(spec.backoff_limit, Some(0));
        assert_eq!(spec.template.spec.unwrap().restart_policy.as_deref(), Some("Never"));
        assert_eq!(job.metadata.finalizers, Some(vec![FINALIZER.to_owned()]));
        assert_eq!(spec.active_deadline_seconds, Some(180));
    }

    #[test]
    fn a_script_gets_the_service_account_that_the_plan_names_or_no_token_at_all() {
        let pod = |account| job(script(account)).spec.unwrap().template.spec.unwrap();
        assert_eq!(
            (pod(None).automount_service_account_token, pod(None).service_account_name),
            (Some(false), None)
        );
        assert_eq!(pod(Some("drill")).service_account_name.as_deref(), Some("drill"));
    }

    #[test]
    fn a_check_runs_our_image_in_the_machines_network_policy() {
        let tcp = TcpCheck { port: 5432, expect: "^[SN]".into(), ..TcpCheck::default() };
        let job = job(Work::Check { address: "10.1.2.3".into(), probe: OwnedProbe::Tcp(tcp) });
        let template = job.spec.unwrap().template;
        assert_eq!(template.metadata.unwrap().labels.unwrap()[RUN_UID_LABEL], "run-uid");
        let container = &template.spec.unwrap().containers[0];
        assert_eq!(
            (container.image.as_deref(), container.args.clone().unwrap()),
            (Some("operator"), vec!["check".to_owned()])
        );
    }
}
