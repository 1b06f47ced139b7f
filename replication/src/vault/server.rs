//! Which servers the vault holds: `names/<namespace>/<name>.json` gives the id, `servers/<id>/server.json` the rest.
//!
//! An id is made once for a name. The blob under the name is written with If-None-Match, so two operators, or one that
//! was installed anew on another cluster, end with the same id. A crash between the two writes leaves a name without
//! its server.json; the next [`Vault::adopt_server`] writes it.

use serde::{Deserialize, Serialize};

use super::{FORMAT, Vault, VaultError, json, layout};
use crate::{
    env::Env,
    ids::ServerId,
    store::{ETag, PutCondition, Refusal, StoreError},
};

/// Content of `server.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerDescription {
    pub format: u32,
    #[serde(with = "id_as_string")]
    pub id: ServerId,
    /// Of the ProtectedServer.
    pub namespace: String,
    pub name: String,
    pub created_at_micros: i64,
    /// As last seen, for people; the log is what counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskDescription>,
    /// How long what is kept; the operator writes it, the applier obeys it. Absent: nothing is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<RetentionPolicy>,
}

/// What the ReplicationPolicy says about recovery points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RetentionPolicy {
    /// Time between two recovery points.
    pub point_interval_seconds: u64,
    /// Age at which recovery points are dropped; 0: only the newest stays.
    pub retention_seconds: u64,
    /// Any point in time that is not older can be recovered.
    pub journal_seconds: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskDescription {
    pub id: String,
    pub size_bytes: u64,
    pub path: String,
}

/// Content of the blob under a name.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Name {
    format: u32,
    #[serde(with = "id_as_string")]
    id: ServerId,
}

impl Vault {
    /// The server of this name, made if the vault does not know it yet. Safe to repeat.
    pub async fn adopt_server(
        &self,
        namespace: &str,
        name: &str,
        env: &Env,
    ) -> Result<ServerDescription, VaultError> {
        let id = self.claim_name(namespace, name, env).await?;
        loop {
            if let Some((found, _)) = self.read_server(&id).await? {
                return Ok(found);
            }
            let new = ServerDescription {
                format: FORMAT,
                id: id.clone(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                created_at_micros: env.wall.now().0,
                disks: Vec::new(),
                retention: None,
            };
            match self.write_server(&new, None).await {
                Ok(_) => return Ok(new),
                Err(VaultError::Store(error)) if error.is(Refusal::AlreadyExists) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The server of this name, if the vault knows it.
    pub async fn find_server(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<ServerDescription>, VaultError> {
        let Some(name) = self.read_name(&layout::name_json(namespace, name)).await? else { return Ok(None) };
        Ok(self.read_server(&name.id).await?.map(|(found, _)| found))
    }

    /// All servers, in order of namespace and name.
    pub async fn servers(&self) -> Result<Vec<ServerDescription>, VaultError> {
        let mut servers = Vec::new();
        let mut after = None;
        loop {
            let page = self.store.list(layout::NAMES_PREFIX, false, after.as_deref()).await?;
            for blob in &page.blobs {
                let Some(name) = self.read_name(&blob.name).await? else { continue };
                servers.extend(self.read_server(&name.id).await?.map(|(found, _)| found));
            }
            after = page.next;
            if after.is_none() {
                return Ok(servers);
            }
        }
    }

    /// Every name's blob and the id that it gives, or why it cannot be read.
    pub async fn names(&self) -> Result<Vec<(String, Result<ServerId, VaultError>)>, VaultError> {
        let mut names = Vec::new();
        let mut after = None;
        loop {
            let page = self.store.list(layout::NAMES_PREFIX, false, after.as_deref()).await?;
            for blob in page.blobs {
                let id = self.read_name(&blob.name).await.transpose();
                names.extend(id.map(|name| (blob.name, name.map(|name| name.id))));
            }
            after = page.next;
            if after.is_none() {
                return Ok(names);
            }
        }
    }

    pub async fn read_server(&self, id: &ServerId) -> Result<Option<(ServerDescription, ETag)>, VaultError> {
        let name = layout::server_json(id);
        let Some((found, etag)) = json::read::<ServerDescription>(&*self.store, &name).await? else {
            return Ok(None);
        };
        if found.format != FORMAT {
            return Err(VaultError::Format { name, found: found.format });
        }
        Ok(Some((found, etag)))
    }

    /// Writes it if nobody else has since `read` ([`Refusal::Condition`]); `None`: if there is none yet.
    pub async fn write_server(
        &self,
        server: &ServerDescription,
        read: Option<&ETag>,
    ) -> Result<ETag, VaultError> {
        let condition = read.map_or(PutCondition::IfAbsent, |etag| PutCondition::IfMatch(etag.clone()));
        Ok(json::write(&*self.store, &layout::server_json(&server.id), server, &condition).await?)
    }

    /// Gives the name free: the next server of this name gets another id. What the old id holds stays.
    pub async fn release_name(&self, namespace: &str, name: &str) -> Result<(), VaultError> {
        match self.store.delete(&layout::name_json(namespace, name), None).await {
            Err(error) if !error.is(Refusal::NotFound) => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn claim_name(&self, namespace: &str, name: &str, env: &Env) -> Result<ServerId, VaultError> {
        let blob = layout::name_json(namespace, name);
        loop {
            if let Some(found) = self.read_name(&blob).await? {
                return Ok(found.id);
            }
            let mut random = [0; 16];
            env.entropy.fill(&mut random);
            let new = Name { format: FORMAT, id: ServerId::from_random(random) };
            match json::write(&*self.store, &blob, &new, &PutCondition::IfAbsent).await {
                Ok(_) => return Ok(new.id),
                Err(StoreError::Refused { why: Refusal::AlreadyExists, .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn read_name(&self, blob: &str) -> Result<Option<Name>, VaultError> {
        let Some((found, _)) = json::read::<Name>(&*self.store, blob).await? else { return Ok(None) };
        if found.format != FORMAT {
            return Err(VaultError::Format { name: blob.to_owned(), found: found.format });
        }
        Ok(Some(found))
    }
}

mod id_as_string {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::ids::ServerId;

    pub(super) fn serialize<S: Serializer>(id: &ServerId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(id.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ServerId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
