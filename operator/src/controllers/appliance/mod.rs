//! `ReplicationAppliance`: Secrets, vault, pods, Services and streams of one site.
//!
//! Order: keys and certificates first (nothing starts without them), then the vault (nothing is worth starting without
//! it), then pods, then what they are told. Every step is safe to repeat, and each is reported in a condition of its
//! own, however far the pass came.

pub mod bandwidth;
pub mod build;
mod fetch;
pub mod names;
pub mod plan;
mod rotation;
pub mod secrets;
pub mod status;
#[cfg(test)]
pub(crate) mod testing;
pub mod validate;

use lifeboat_replication::{errors::chain, vault::Vault};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::FutureExt as _;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, Secret, Service},
};
use kube::{
    ResourceExt as _,
    runtime::{controller::Controller, reflector::ObjectRef, watcher},
};
use lifeboat_crds::{
    ProtectedServer, Reason, ReplicationAppliance,
    appliance::Role,
    conditions::{self, ConditionType},
};

use self::{
    build::{Inputs, SECRETS_ANNOTATION, build},
    fetch::{Fetched, fetch, servers_of},
    status::{Applier, Findings, ProcessServer},
    validate::{Validated, validate},
};
use super::{
    shared::{apply, create, is_abandoned, is_deleting, set_finalizer, write_status},
    vaults::{self, VaultSecrets},
};
use crate::{
    control::{ApplianceKey, Desired},
    pki::{Authority, PkiError, public_key_pin},
    runtime::{Category, Context, Failure},
};

/// Secrets cannot be watched, and figures are to be fresh.
const LOOK_INTERVAL: Duration = Duration::from_secs(15);
/// Something is on its way.
const BUSY_INTERVAL: Duration = Duration::from_secs(3);

pub async fn run(context: Context) {
    let controller = Controller::new(context.watched::<ReplicationAppliance>(), watcher::Config::default())
        .owns(context.watched::<StatefulSet>(), watcher::Config::default())
        .owns(context.watched::<Service>(), watcher::Config::default())
        .owns(context.watched::<ConfigMap>(), watcher::Config::default())
        .watches(
            context.watched::<ProtectedServer>(),
            watcher::Config::default(),
            |server: ProtectedServer| {
                Some(
                    ObjectRef::new(&server.spec.appliance_ref.name)
                        .within(&server.namespace().unwrap_or_default()),
                )
            },
        );
    super::drive(controller, "ReplicationAppliance", context, |appliance, context| {
        reconcile(appliance, context).boxed()
    })
    .await;
}

pub async fn reconcile(appliance: Arc<ReplicationAppliance>, context: Context) -> Result<Duration, Failure> {
    let namespace = appliance.namespace().unwrap_or_default();
    if is_deleting(&*appliance) {
        return let_go(&appliance, &context).await;
    }
    set_finalizer(&context.api(&namespace), &*appliance, true).await?;
    let validated = validate(&appliance);
    let mut findings =
        Findings { selector: Some(status::selector_text(&appliance.name_any())), ..Findings::default() };
    let result = match &validated {
        Ok(validated) => pass(&appliance, validated, &context, &mut findings).await,
        Err(failure) => Err(Failure {
            category: failure.category,
            reason: failure.reason,
            message: failure.message.clone(),
        }),
    };
    if let Err(failure) = &result {
        findings.failure = Some(failure.into());
    }
    let new = status::status(&appliance, validated.as_ref().ok(), &findings, context.now());
    tell(&appliance, &new, &context).await;
    let ready = conditions::is_true(&new.conditions, ConditionType::Ready);
    write_status(
        &context.api::<ReplicationAppliance>(&namespace),
        &appliance.name_any(),
        appliance.status.as_ref(),
        &new,
    )
    .await?;
    let busy = !ready || findings.rotating;
    result.map(|()| if busy { BUSY_INTERVAL } else { LOOK_INTERVAL })
}

async fn pass(
    appliance: &ReplicationAppliance,
    validated: &Validated,
    context: &Context,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let mut fetched = fetch(appliance, validated, context).await?;
    let running = fetched.process_servers.as_ref().and_then(|set| set.spec.as_ref()?.replicas).unwrap_or(0);
    let wanted = validated.replicas;
    let kept = plan::kept_replicas(wanted, running, &appliance.name_any(), &fetched.servers);
    let validated = &Validated { replicas: kept, ..validated.clone() };
    findings.looked = true;
    findings.servers = u32::try_from(fetched.servers.len()).unwrap_or(u32::MAX);
    findings.process_server_set = fetched.process_servers.clone();
    findings.applier_set = fetched.applier.clone();
    findings.pods = fetched.pods.clone();
    let key =
        ApplianceKey { namespace: appliance.namespace().unwrap_or_default(), name: appliance.name_any() };
    observe_pods(appliance, validated, &key, &fetched, context, findings);
    context.foreign.know(&key, fetched.pods.iter().filter_map(|pod| pod.uid()).collect());
    let leaving = findings.process_servers.iter().skip(usize::try_from(wanted).unwrap_or(0));
    findings.leaving = leaving.map(|server| (server.name.clone(), server.servers)).collect();

    let authority = match ensure_secrets(appliance, &mut fetched, context).await {
        Ok(authority) => authority,
        Err(failure) => {
            findings.certificates = Some(Err(failure.message.clone()));
            return Err(failure);
        }
    };
    findings.certificates = Some(Ok(()));
    findings.management_pin = fetched
        .management
        .as_ref()
        .and_then(|secret| secrets::text(secret, secrets::KEY))
        .and_then(|pem| public_key_pin(pem).ok());

    let Fetched { credential, applier_credential, data_keys, ca, .. } = fetched.clone();
    let found = VaultSecrets {
        credential: credential.as_ref(),
        applier_credential: applier_credential.as_ref(),
        data_keys: data_keys.as_ref(),
        ca: ca.as_ref(),
    };
    let vault = vaults::bootstrap(appliance, validated, found, context).await;
    findings.vault = Some(
        vault
            .as_ref()
            .map(|(_, seen)| seen.clone())
            .map_err(|failure| (failure.reason, failure.message.clone(), failure.category)),
    );
    // Pods that are there go on without the operator's sight of the vault; new ones would only fail.
    if fetched.process_servers.is_none() && fetched.applier.is_none() {
        vault.as_ref().map_err(copy)?;
    }

    let secrets_hash = started_with(vaults::fingerprint(validated, found), vault.as_ref().err(), &fetched);
    apply_all(appliance, validated, &secrets_hash, &mut fetched, context, findings).await?;
    rotate(appliance, &vault, &fetched, context, findings).await?;
    tell_programs(appliance, validated, &key, &authority, &fetched, context, findings).await?;
    vault.map(|_| ())
}

fn copy(failure: &Failure) -> Failure {
    Failure { category: failure.category, reason: failure.reason, message: failure.message.clone() }
}

fn pki(error: &PkiError) -> Failure {
    Failure::stalled(Reason::CertificateError, chain(error))
}

/// What is missing is made; what runs out is renewed. What was just made is put into `fetched`.
async fn ensure_secrets(
    appliance: &ReplicationAppliance,
    fetched: &mut Fetched,
    context: &Context,
) -> Result<Authority, Failure> {
    let api = context.api::<Secret>(&appliance.namespace().unwrap_or_default());
    let now = context.now();
    let raced =
        || Failure::waiting(Reason::Progressing, "a Secret was made by somebody else at the same moment");
    if fetched.ca.is_none() {
        let made = secrets::new_ca(appliance, now).map_err(|error| pki(&error))?;
        if !create(&api, &made).await? {
            return Err(raced());
        }
        fetched.ca = Some(made);
    }
    let ca = fetched.ca.as_ref().and_then(|secret| {
        Some((secrets::text(secret, secrets::CA_CERTIFICATE)?, secrets::text(secret, secrets::CA_KEY)?))
    });
    let Some((certificate, key)) = ca else {
        let name = secrets::ca_name(&appliance.name_any());
        return Err(Failure::stalled(
            Reason::CertificateError,
            format!(
                "Secret {name} lacks ca.crt or ca.key: restore it, or delete it and enrol every server again"
            ),
        ));
    };
    let authority = Authority::open(certificate, key).map_err(|error| pki(&error))?;
    if let Some(renewed) =
        secrets::renewed_tls(appliance, &authority, fetched.tls.as_ref(), now).map_err(|error| pki(&error))?
    {
        fetched.tls = Some(apply(&api, &renewed).await?);
    }
    let domain = &context.settings.cluster_domain;
    if let Some(renewed) =
        secrets::renewed_management(appliance, &authority, fetched.management.as_ref(), domain, now)
            .map_err(|error| pki(&error))?
    {
        fetched.management = Some(apply(&api, &renewed).await?);
    }
    // A vault that another cluster has made is opened with its keys or not at all.
    let makes_keys =
        appliance.spec.has_role(Role::Ingest) && appliance.spec.encryption_key_secret_ref.is_none();
    if fetched.data_keys.is_none() && makes_keys {
        let made = rotation::new(appliance, &*context.env.entropy, now);
        if !create(&api, &made).await? {
            return Err(raced());
        }
        fetched.data_keys = Some(made);
    }
    Ok(authority)
}

/// One step of a rotation of the data key, as far as pods and vault have come; the next pass goes on.
async fn rotate(
    appliance: &ReplicationAppliance,
    vault: &Result<(Vault, vaults::Seen), Failure>,
    fetched: &Fetched,
    context: &Context,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let Some(book) = fetched.data_keys.as_ref().and_then(rotation::Book::read) else { return Ok(()) };
    let sets = [("process servers", &findings.process_server_set), ("appliers", &findings.applier_set)];
    let mut late: Vec<String> = sets
        .into_iter()
        .filter(|(_, set)| set.as_ref().is_some_and(|set| !rotation::has_started_anew(set)))
        .map(|(name, _)| name.to_owned())
        .collect();
    if let (Some(next), Ok((vault, _))) = (book.next(), vault) {
        let key =
            ApplianceKey { namespace: appliance.namespace().unwrap_or_default(), name: appliance.name_any() };
        match context.foreign.without_key(&key, vault, next).await {
            Ok(appliers) => late.extend(appliers.into_iter().map(|name| {
                format!("applier {name}: it needs the Secret {}", secrets::data_keys_name(appliance))
            })),
            Err(error) => {
                late.push(format!("appliers, whose announcements cannot be read: {}", chain(&error)))
            }
        }
    }
    let description = vault.as_ref().ok().map(|(_, seen)| &seen.description);
    // Keys that somebody else has made are somebody else's to change.
    let own = appliance.spec.has_role(Role::Ingest) && appliance.spec.encryption_key_secret_ref.is_none();
    let step = match own {
        true => book.step(appliance.spec.rotate_data_key.as_deref(), description, &late),
        false => rotation::Step::Nothing,
    };
    findings.data_key = Some(book.status(&step));
    let api = context.api::<Secret>(&appliance.namespace().unwrap_or_default());
    let written = match step {
        rotation::Step::Nothing | rotation::Step::Wait(_) => return Ok(()),
        rotation::Step::Stage => Some(book.staged(appliance, &*context.env.entropy)),
        rotation::Step::Switch(next) => book.switched(appliance, &next, context.now()),
    };
    if let Some(secret) = written {
        apply(&api, &secret).await?;
        findings.rotating = true;
    }
    Ok(())
}

/// What pods are started with: the Secrets as they are, unless it is known that they open nothing (a wrong key, a Secret
/// that is gone). Then those that run go on with what they have.
fn started_with(now: String, refused: Option<&Failure>, fetched: &Fetched) -> String {
    let sets = [&fetched.process_servers, &fetched.applier];
    let before = sets.into_iter().flatten().find_map(|set| set.annotations().get(SECRETS_ANNOTATION));
    match (refused.filter(|failure| failure.category == Category::Stalled), before) {
        (Some(_), Some(before)) => before.clone(),
        _ => now,
    }
}

async fn apply_all(
    appliance: &ReplicationAppliance,
    validated: &Validated,
    secrets_hash: &str,
    fetched: &mut Fetched,
    context: &Context,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let namespace = appliance.namespace().unwrap_or_default();
    let inputs = Inputs { images: &context.settings.images, secrets_hash };
    let built = build(appliance, validated, &inputs);
    apply(&context.api::<ConfigMap>(&namespace), &built.configuration).await?;
    for service in &built.services {
        let applied = apply(&context.api::<Service>(&namespace), service).await?;
        fetched.services.insert(applied.name_any(), applied);
    }
    let sets = context.api::<StatefulSet>(&namespace);
    // A role that was taken away leaves its set without a replica.
    if validated.ingest || fetched.process_servers.is_some() {
        findings.process_server_set = Some(apply(&sets, &built.process_servers).await?);
    }
    if validated.apply || fetched.applier.is_some() {
        findings.applier_set = Some(apply(&sets, &built.applier).await?);
    }
    // Services of process servers and roles that are no more.
    let wanted: Vec<String> = built.services.iter().map(|object| object.name_any()).collect();
    for name in fetched.services.keys().filter(|name| !wanted.contains(name)) {
        super::shared::delete(&context.api::<Service>(&namespace), name, &Default::default()).await?;
    }
    Ok(())
}

async fn tell_programs(
    appliance: &ReplicationAppliance,
    validated: &Validated,
    key: &ApplianceKey,
    authority: &Authority,
    fetched: &Fetched,
    context: &Context,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let domain = &context.settings.cluster_domain;
    let management_addresses = plan::management_addresses(appliance, validated, &fetched.services, domain);
    findings.management_endpoint =
        management_addresses.first().filter(|_| validated.ingest).map(|address| format!("https://{address}"));
    let mut keys = BTreeMap::new();
    for server in &fetched.servers {
        let name = server.name_any();
        keys.insert(
            name.clone(),
            super::protected_server::enrolled_key(&key.namespace, &name, context).await?,
        );
    }
    let identity = context.fleet.identity(key, authority, context.now()).map_err(|error| pki(&error))?;
    let servers =
        plan::assignments(&fetched.servers, &fetched.policies, &keys, &fetched.groups, context.now());
    context.fleet.sync(
        key,
        Desired {
            identity,
            process_servers: plan::process_server_endpoints(appliance, validated, domain),
            appliers: plan::applier_endpoints(appliance, validated, domain),
            upload_limit: bandwidth::share(&validated.bandwidth, &servers, context.now()),
            servers,
            data_addresses: plan::data_addresses(appliance, validated, &fetched.services, domain),
            management_addresses,
        },
    );
    Ok(())
}

fn observe_pods(
    appliance: &ReplicationAppliance,
    validated: &Validated,
    key: &ApplianceKey,
    fetched: &Fetched,
    context: &Context,
    findings: &mut Findings,
) {
    let domain = &context.settings.cluster_domain;
    let addresses = plan::data_addresses(appliance, validated, &fetched.services, domain);
    let placed = |name: &str| {
        fetched
            .servers
            .iter()
            .filter(|server| {
                server.status.as_ref().and_then(|status| status.process_server.as_deref()) == Some(name)
            })
            .count()
    };
    findings.process_servers = status::process_server_names(&key.name, validated.replicas)
        .into_iter()
        .map(|name| ProcessServer {
            address: addresses
                .iter()
                .find(|known| known.name == name)
                .and_then(|known| known.data_addresses.first().cloned()),
            servers: u32::try_from(placed(&name)).unwrap_or(u32::MAX),
            report: context.fleet.report(key, &name),
            trouble: context.fleet.trouble_of(key, &name),
            name,
        })
        .collect();
    findings.appliers = (0..validated.appliers)
        .map(|index| names::applier_pod(&key.name, index))
        .map(|name| Applier {
            report: context.fleet.applier_report(key, &name),
            trouble: context.fleet.trouble_of(key, &name),
            name,
        })
        .collect();
}

/// An event when it becomes ready or stops being so.
async fn tell(
    appliance: &ReplicationAppliance,
    new: &lifeboat_crds::ReplicationApplianceStatus,
    context: &Context,
) {
    let known = appliance.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let before = conditions::is_true(known, ConditionType::Ready);
    let Some(ready) = conditions::find(&new.conditions, ConditionType::Ready) else { return };
    if before != (ready.status == "True") {
        context.events.condition(appliance, ready, "Serve", &ready.message).await;
    }
}

/// Waits until no server uses it, unless it is abandoned. The data in the vault and the data keys stay.
async fn let_go(appliance: &ReplicationAppliance, context: &Context) -> Result<Duration, Failure> {
    let namespace = appliance.namespace().unwrap_or_default();
    let key = ApplianceKey { namespace: namespace.clone(), name: appliance.name_any() };
    let servers = servers_of(appliance, context).await?;
    if !servers.is_empty() && !is_abandoned(appliance) {
        let names: Vec<String> = servers.iter().map(|object| object.name_any()).collect();
        let message = format!(
            "still used by {}: delete them, or set the annotation lifeboat.dev/abandon: \"true\"",
            names.join(", ")
        );
        let mut new = appliance.status.clone().unwrap_or_default();
        let observed = vec![
            conditions::unmet(ConditionType::Ready, Reason::InUse, &message),
            conditions::met(ConditionType::Deleting, Reason::InUse, &message),
        ];
        new.conditions =
            conditions::merge(&new.conditions, observed, appliance.metadata.generation, context.now());
        write_status(
            &context.api::<ReplicationAppliance>(&namespace),
            &key.name,
            appliance.status.as_ref(),
            &new,
        )
        .await?;
        return Ok(LOOK_INTERVAL);
    }
    if !servers.is_empty() {
        context
            .events
            .warning(appliance, Reason::Abandoned, "Delete", "let go while servers still use it")
            .await;
    }
    context.fleet.forget(&key);
    context.vaults.forget(&key);
    set_finalizer(&context.api(&namespace), appliance, false).await?;
    Ok(LOOK_INTERVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_run_are_not_started_anew_with_secrets_that_open_nothing() {
        let mut fetched = Fetched::default();
        let wrong_key = Failure::stalled(Reason::VaultAccessDenied, "the store refuses the credentials");
        let away = Failure::transient(Reason::VaultUnreachable, "no answer");
        let hash = |refused, fetched: &Fetched| started_with("new".into(), refused, fetched);
        assert_eq!(hash(Some(&wrong_key), &fetched), "new", "there is nothing to lose");
        let set = serde_json::json!({"metadata": {"annotations": {SECRETS_ANNOTATION: "old"}}});
        fetched.applier = Some(serde_json::from_value(set).unwrap());
        assert_eq!(hash(Some(&wrong_key), &fetched), "old");
        // The Secret may be the right one for the store's new state.
        assert_eq!(hash(Some(&away), &fetched), "new");
        assert_eq!(hash(None, &fetched), "new");
    }
}
