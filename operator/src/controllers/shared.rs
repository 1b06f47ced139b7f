//! What the controllers' steps have in common: owned objects, server-side apply, status, finalizers.

use std::{collections::BTreeMap, fmt::Debug};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, Resource, ResourceExt as _,
    api::{ObjectMeta, Patch, PatchParams},
};
use lifeboat_crds::names;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::runtime::Failure;

/// Metadata of an object that belongs to `owner` and goes with it.
pub(crate) fn owned_by<K: Resource<DynamicType = ()>>(
    owner: &K,
    name: &str,
    labels: BTreeMap<String, String>,
) -> ObjectMeta {
    let mut labels = labels;
    labels.insert(names::MANAGED_BY_LABEL.to_owned(), names::MANAGER.to_owned());
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: owner.namespace(),
        labels: Some(labels),
        owner_references: owner_reference(owner).map(|reference| vec![reference]),
        ..ObjectMeta::default()
    }
}

fn owner_reference<K: Resource<DynamicType = ()>>(owner: &K) -> Option<OwnerReference> {
    owner.controller_owner_ref(&())
}

pub(crate) fn labels<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// Makes the object so. Fields that others have set and we never named stay theirs.
pub(crate) async fn apply<K>(api: &Api<K>, object: &K) -> Result<K, Failure>
where
    K: Resource + Clone + Serialize + DeserializeOwned + Debug,
{
    let name = object.name_any();
    Ok(api.patch(&name, &PatchParams::apply(names::MANAGER).force(), &Patch::Apply(object)).await?)
}

/// Makes the object if there is none of its name; whether it was made.
pub(crate) async fn create<K>(api: &Api<K>, object: &K) -> Result<bool, Failure>
where
    K: Resource + Clone + Serialize + DeserializeOwned + Debug,
{
    match api
        .create(
            &kube::api::PostParams { field_manager: Some(names::MANAGER.into()), ..Default::default() },
            object,
        )
        .await
    {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Deletes it if it is there.
pub(crate) async fn delete<K>(
    api: &Api<K>,
    name: &str,
    params: &kube::api::DeleteParams,
) -> Result<(), Failure>
where
    K: Clone + DeserializeOwned + Debug,
{
    match api.delete(name, params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Writes the status if it is another one.
pub(crate) async fn write_status<K, S>(
    api: &Api<K>,
    name: &str,
    before: Option<&S>,
    status: &S,
) -> Result<(), Failure>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    S: Serialize + PartialEq,
{
    if before == Some(status) {
        return Ok(());
    }
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": name},
        "status": status,
    });
    match api.patch_status(name, &PatchParams::apply(names::MANAGER).force(), &Patch::Apply(patch)).await {
        Ok(_) => Ok(()),
        // It was deleted meanwhile.
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(Failure::of_status(error)),
    }
}

pub(crate) fn has_finalizer<K: Resource>(object: &K) -> bool {
    object.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER)
}

pub(crate) fn is_deleting<K: Resource>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_some()
}

/// The user has asked to let go without clean-up.
pub(crate) fn is_abandoned<K: Resource>(object: &K) -> bool {
    object.annotations().get(names::ABANDON_ANNOTATION).is_some_and(|value| value == "true")
}

/// Adds or removes our finalizer, only if the object is the one that was looked at.
pub(crate) async fn set_finalizer<K>(api: &Api<K>, object: &K, wanted: bool) -> Result<(), Failure>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    if has_finalizer(object) == wanted {
        return Ok(());
    }
    let mut finalizers: Vec<String> =
        object.finalizers().iter().filter(|name| *name != names::FINALIZER).cloned().collect();
    if wanted {
        finalizers.push(names::FINALIZER.to_owned());
    }
    let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": object.resource_version()}});
    match api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// `abc…`, for comparing content that must not be shown.
pub(crate) fn sha256<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    hex::encode(context.finish())
}
