//! A new data key, step by step. Pure.
//!
//! ```text
//!   asked for ─► staged: in the Secret, nothing is written with it ─► in the vault's key bundle ─► read by every pod
//!                                                                                    ─► current: pods write with it
//! ```
//! Whoever reads knows a key before anybody writes with it, and the recovery keys open it before that. What was done
//! stands in the Secret beside the keys, changed with them in one write: a crash between any two steps goes on where it
//! was, and nothing is readable by fewer than before.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::{apps::v1::StatefulSet, core::v1::Secret},
};
use kube::ResourceExt as _;
use lifeboat_crds::{ReplicationAppliance, Time, appliance::DataKeyStatus, names::APPLIANCE_LABEL};
use lifeboat_replication::{
    env::Entropy,
    keys::{DataKeys, KeyId},
    vault::VaultDescription,
};

use super::secrets::{self, DATA_KEYS};
use crate::controllers::shared::labels;

/// On the Secret: the key that is staged.
const NEXT: &str = "lifeboat.dev/next-data-key";
/// On the Secret: the `spec.rotateDataKey` that was carried out.
const DONE: &str = "lifeboat.dev/data-key-rotation";
/// On the Secret: since when the current key is.
const SINCE: &str = "lifeboat.dev/data-key-since";

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    /// Make a key and put it beside the others.
    Stage,
    /// For what, in words.
    Wait(String),
    /// Make it the current one.
    Switch(KeyId),
}

/// A Secret with data keys that the operator keeps.
#[derive(Debug)]
pub(super) struct Book {
    keys: DataKeys,
    next: Option<KeyId>,
    done: Option<String>,
    since: Option<Time>,
    resource_version: Option<String>,
}

impl Book {
    /// `None`: it holds no valid keys, which is told of elsewhere.
    pub(super) fn read(secret: &Secret) -> Option<Self> {
        let keys = DataKeys::from_json(secrets::bytes(secret, DATA_KEYS)?).ok()?;
        let note = |name: &str| secret.annotations().get(name).cloned();
        let staged = |id: &KeyId| keys.get(id).is_some() && keys.current().0 != id;
        Some(Self {
            next: note(NEXT).map(KeyId).filter(staged),
            done: note(DONE),
            since: note(SINCE).and_then(|time| time.parse().ok()),
            resource_version: secret.resource_version(),
            keys,
        })
    }

    /// The key that is staged.
    pub(super) fn next(&self) -> Option<&KeyId> {
        self.next.as_ref()
    }

    /// `asked`: `spec.rotateDataKey`. `late`: programs that do not have the Secret as it is.
    pub(super) fn step(
        &self,
        asked: Option<&str>,
        vault: Option<&VaultDescription>,
        late: &[String],
    ) -> Step {
        let Some(next) = &self.next else {
            return match (asked, vault) {
                (Some(asked), _) if self.done.as_deref() == Some(asked) => Step::Nothing,
                (Some(_), Some(_)) => Step::Stage,
                // A Secret that may be the wrong one, restored from an old backup, is not built upon.
                (Some(_), None) => {
                    Step::Wait("waits until the vault opens with the keys that there are".to_owned())
                }
                (None, _) => Step::Nothing,
            };
        };
        if !vault.is_some_and(|vault| vault.key_checks.contains_key(next)) {
            return Step::Wait("waits until the key bundle in the vault holds it".to_owned());
        }
        if !late.is_empty() {
            return Step::Wait(format!("waits until it has come to {}", late.join(", ")));
        }
        Step::Switch(next.clone())
    }

    /// The Secret with a new key beside the others.
    pub(super) fn staged(&self, appliance: &ReplicationAppliance, entropy: &dyn Entropy) -> Secret {
        let (keys, next) = self.keys.with_next(entropy);
        self.write(appliance, &keys, [(NEXT, Some(next.0)), (DONE, self.done.clone()), (SINCE, self.since())])
    }

    /// The Secret with another current key; `None`: it does not hold it.
    pub(super) fn switched(
        &self,
        appliance: &ReplicationAppliance,
        next: &KeyId,
        now: Time,
    ) -> Option<Secret> {
        let keys = self.keys.with_current(next)?;
        let done = appliance.spec.rotate_data_key.clone().or(self.done.clone());
        Some(self.write(appliance, &keys, [(NEXT, None), (DONE, done), (SINCE, Some(now.to_string()))]))
    }

    fn since(&self) -> Option<String> {
        self.since.map(|time| time.to_string())
    }

    fn write<const N: usize>(
        &self,
        appliance: &ReplicationAppliance,
        keys: &DataKeys,
        notes: [(&str, Option<String>); N],
    ) -> Secret {
        let mut secret = of(appliance, keys);
        let notes = notes.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        secret.metadata.annotations = Some(notes.collect());
        // Somebody who has restored it meanwhile is not written over.
        secret.metadata.resource_version.clone_from(&self.resource_version);
        secret
    }

    pub(super) fn status(&self, step: &Step) -> DataKeyStatus {
        DataKeyStatus {
            id: self.keys.current().0.to_string(),
            since: self.since,
            keys: u32::try_from(self.keys.ids().count()).unwrap_or(u32::MAX),
            rotation: self.done.clone(),
            next: self.next.as_ref().map(ToString::to_string),
            message: match step {
                Step::Wait(why) => why.clone(),
                Step::Nothing | Step::Stage | Step::Switch(_) => String::new(),
            },
        }
    }
}

/// The first one.
pub(super) fn new(appliance: &ReplicationAppliance, entropy: &dyn Entropy, now: Time) -> Secret {
    let mut secret = of(appliance, &DataKeys::generate(entropy));
    let done = appliance.spec.rotate_data_key.clone().map(|asked| (DONE.to_owned(), asked));
    let notes = [(SINCE.to_owned(), now.to_string())].into_iter().chain(done);
    secret.metadata.annotations = Some(notes.collect());
    secret
}

fn of(appliance: &ReplicationAppliance, keys: &DataKeys) -> Secret {
    let name = appliance.name_any();
    let content = BTreeMap::from([(DATA_KEYS.to_owned(), ByteString(keys.to_json().to_vec()))]);
    let mut secret = secrets::secret(appliance, &secrets::data_keys_name(appliance), []);
    secret.metadata.labels.get_or_insert_default().extend(labels([(APPLIANCE_LABEL, &name)]));
    // Deleting the appliance must not make the vault unreadable.
    secret.metadata.owner_references = None;
    secret.data = Some(content);
    secret
}

/// Whether every pod of a set has started with its template as it is; a set that should have none has.
pub(super) fn has_started_anew(set: &StatefulSet) -> bool {
    let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let Some(status) = &set.status else { return wanted == 0 };
    let seen = status.observed_generation >= set.metadata.generation;
    let updated = status.updated_replicas.unwrap_or(0) >= wanted && status.replicas <= wanted;
    seen && updated && status.ready_replicas.unwrap_or(0) >= wanted
}

#[cfg(test)]
mod tests {
    use lifeboat_replication::{env::Env, vault};

    use super::*;
    use crate::controllers::appliance::testing::appliance;

    fn now() -> Time {
        "2026-03-01T00:00:00Z".parse().unwrap()
    }

    fn described(keys: &DataKeys) -> VaultDescription {
        VaultDescription {
            format: vault::FORMAT,
            vault_id: "v".into(),
            created_at_micros: 0,
            key_checks: keys.check_values(),
            recipients: Vec::new(),
            key_bundle: String::new(),
            bundle_digest: String::new(),
        }
    }

    fn first() -> (ReplicationAppliance, Secret) {
        let appliance = appliance();
        let secret = new(&appliance, &*Env::system().entropy, now());
        (appliance, secret)
    }

    #[test]
    fn a_key_is_staged_told_to_vault_and_pods_and_then_made_current() {
        let (mut appliance, secret) = first();
        let first = Book::read(&secret).unwrap();
        assert_eq!(first.step(None, None, &[]), Step::Nothing);
        appliance.spec.rotate_data_key = Some("1".into());
        assert_eq!(first.step(Some("1"), Some(&described(&first.keys)), &[]), Step::Stage);

        let secret = first.staged(&appliance, &*Env::system().entropy);
        let staged = Book::read(&secret).unwrap();
        assert_eq!(staged.keys.current().0, first.keys.current().0, "nobody writes with it yet");
        let wait = |vault: &DataKeys, late: &[String]| staged.step(Some("1"), Some(&described(vault)), late);
        assert!(matches!(wait(&first.keys, &[]), Step::Wait(why) if why.contains("key bundle")));
        let late = ["process servers".to_owned()];
        assert!(matches!(wait(&staged.keys, &late), Step::Wait(why) if why.contains("process servers")));
        let Step::Switch(next) = wait(&staged.keys, &[]) else { panic!("it goes on") };

        let secret = staged.switched(&appliance, &next, now()).unwrap();
        let switched = Book::read(&secret).unwrap();
        assert_eq!(switched.step(Some("1"), Some(&described(&switched.keys)), &[]), Step::Nothing);
        assert_eq!(switched.step(Some("2"), Some(&described(&switched.keys)), &[]), Step::Stage);
        let status = switched.status(&Step::Nothing);
        assert_eq!((status.id, status.keys, status.since), (next.0, 2, Some(now())));
        assert_eq!((status.rotation.as_deref(), status.next), (Some("1"), None));
        assert!(switched.keys.get(first.keys.current().0).is_some(), "what is old stays readable");
    }

    /// The operator dies after any step: whoever follows reads the Secret alone.
    #[test]
    fn a_staged_key_is_gone_on_with_and_no_second_one_is_made() {
        let (mut appliance, secret) = first();
        appliance.spec.rotate_data_key = Some("1".into());
        let first = Book::read(&secret).unwrap();
        let staged = Book::read(&first.staged(&appliance, &*Env::system().entropy)).unwrap();
        for _ in 0..3 {
            assert!(matches!(staged.step(Some("1"), None, &[]), Step::Wait(_)));
        }
        // It goes on, too, when nobody asks any more: the vault's bundle may hold it already.
        assert!(matches!(staged.step(None, Some(&described(&staged.keys)), &[]), Step::Switch(_)));
    }

    #[test]
    fn a_secret_that_was_restored_without_the_staged_key_starts_over() {
        let (appliance, secret) = first();
        let first = Book::read(&secret).unwrap();
        let mut restored = first.staged(&appliance, &*Env::system().entropy);
        restored.data = secret.data;
        let restored = Book::read(&restored).unwrap();
        assert_eq!(restored.step(Some("1"), Some(&described(&restored.keys)), &[]), Step::Stage);
        assert!(matches!(restored.step(Some("1"), None, &[]), Step::Wait(_)), "of another vault, perhaps");
    }

    #[test]
    fn keys_of_a_new_vault_are_not_rotated_at_once_and_outlive_the_appliance() {
        let mut appliance = appliance();
        appliance.spec.rotate_data_key = Some("1".into());
        let secret = new(&appliance, &*Env::system().entropy, now());
        assert_eq!(secret.metadata.owner_references, None);
        assert_eq!(Book::read(&secret).unwrap().step(Some("1"), None, &[]), Step::Nothing);
    }

    #[test]
    fn pods_have_started_anew_when_every_one_is_ready_with_the_last_template() {
        let set = |status: serde_json::Value| -> StatefulSet {
            serde_json::from_value(serde_json::json!({
                "metadata": {"generation": 4}, "status": status,
                "spec": {"replicas": 2, "selector": {}, "serviceName": "", "template": {}}
            }))
            .unwrap()
        };
        let status = |generation: i64, updated: i32, ready: i32| serde_json::json!({"observedGeneration": generation, "replicas": 2, "updatedReplicas": updated, "readyReplicas": ready});
        assert!(has_started_anew(&set(status(4, 2, 2))));
        for late in [status(3, 2, 2), status(4, 1, 2), status(4, 2, 1), serde_json::Value::Null] {
            assert!(!has_started_anew(&set(late.clone())), "{late}");
        }
    }
}
