//! Which servers a vault holds: by what stands under `servers/`, with or without a name.

use std::collections::{BTreeMap, BTreeSet};

use lifeboat_replication::{
    errors::chain,
    ids::ServerId,
    log::Patience,
    store::{Refusal, StoreError},
    vault::{ServerDescription, Vault, VaultError, layout},
};

use super::finding::{Finding, Severity, remedy};

/// One server and what is wrong with its description.
#[derive(Debug)]
pub struct Held {
    pub id: ServerId,
    pub description: Option<ServerDescription>,
    pub findings: Vec<Finding>,
}

#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    #[error(
        "there is no server {wanted:?} in this vault: `kubectl lifeboat vault ls` lists those that are; give an id, a name or namespace/name"
    )]
    NoServer { wanted: String },
    #[error("several servers are called {wanted:?}: {found}; give namespace/name or an id")]
    Ambiguous { wanted: String, found: String },
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Held {
    /// `namespace/name`, or the id of a server without a description.
    pub fn name(&self) -> String {
        match &self.description {
            Some(server) => format!("{}/{}", server.namespace, server.name),
            None => self.id.to_string(),
        }
    }

    fn is(&self, wanted: &str) -> bool {
        self.id.as_str() == wanted
            || self.name() == wanted
            || self.description.as_ref().is_some_and(|server| server.name == wanted)
    }
}

/// All servers, in order of name.
///
/// # Errors
/// When the store cannot be read.
pub async fn servers(vault: &Vault, patience: &Patience) -> Result<Vec<Held>, InventoryError> {
    let mut ids = BTreeSet::new();
    let mut after = None;
    loop {
        let page =
            patience.sure(|| vault.store.list(layout::SERVERS_PREFIX, false, after.as_deref())).await?;
        ids.extend(page.blobs.iter().filter_map(|blob| layout::server_of(&blob.name)));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let mut names: BTreeMap<ServerId, Vec<String>> = BTreeMap::new();
    let mut unreadable = Vec::new();
    for (blob, id) in vault.names().await? {
        match id {
            Ok(id) => names.entry(id).or_default().push(blob),
            Err(error @ VaultError::Unreachable(_)) => return Err(error.into()),
            Err(error) => unreadable.push((blob, chain(&error))),
        }
    }
    ids.extend(names.keys().cloned());
    let mut servers = Vec::new();
    for id in ids {
        servers.push(describe(vault, &id, names.remove(&id).unwrap_or_default(), &unreadable).await?);
    }
    servers.sort_by_key(|held| (held.description.is_none(), held.name()));
    Ok(servers)
}

/// The one server that is meant by an id, a name or `namespace/name`.
///
/// # Errors
/// When there is none, or more than one.
pub fn choose(servers: Vec<Held>, wanted: &str) -> Result<Held, InventoryError> {
    let wanted_string = || wanted.to_owned();
    let mut found: Vec<Held> = servers.into_iter().filter(|held| held.is(wanted)).collect();
    match found.len() {
        0 => Err(InventoryError::NoServer { wanted: wanted_string() }),
        1 => found.pop().ok_or_else(|| InventoryError::NoServer { wanted: wanted_string() }),
        _ => {
            let names: Vec<_> = found.iter().map(|held| format!("{} ({})", held.name(), held.id)).collect();
            Err(InventoryError::Ambiguous { wanted: wanted_string(), found: names.join(", ") })
        }
    }
}

async fn describe(
    vault: &Vault,
    id: &ServerId,
    names: Vec<String>,
    unreadable: &[(String, String)],
) -> Result<Held, InventoryError> {
    let blob = layout::server_json(id);
    let mut findings = Vec::new();
    let again = "restore it from the store's soft-delete or versions; points are recovered by the server's id without it";
    let description = match vault.read_server(id).await {
        Ok(found) => found.map(|(description, _)| description),
        Err(error @ VaultError::Unreachable(_)) => return Err(error.into()),
        Err(VaultError::Store(error)) if !error.is(Refusal::NotFound) => return Err(error.into()),
        Err(error) => {
            findings.push(Finding::new(Severity::Degraded, &blob, chain(&error), again));
            return Ok(Held { id: id.clone(), description: None, findings });
        }
    };
    let Some(server) = &description else {
        findings.push(Finding::new(
            Severity::Degraded,
            &blob,
            "it is missing: the server's name and disks are known from the log alone",
            again,
        ));
        return Ok(Held { id: id.clone(), description, findings });
    };
    if server.id != *id {
        let what = format!("it describes server {}, not the one under whose id it stands", server.id);
        findings.push(Finding::new(Severity::Degraded, &blob, what, again));
    }
    let own = layout::name_json(&server.namespace, &server.name);
    if let Some((name, why)) = unreadable.iter().find(|(name, _)| *name == own) {
        let remedy = format!("put back {{\"format\": 1, \"id\": \"{id}\"}}, else the name gets another id");
        findings.push(Finding::new(Severity::Degraded, name, why, remedy));
    } else if !names.contains(&own) {
        let what = "it does not give this server's id: the name was released, or belongs to another server";
        findings.push(Finding::new(Severity::Note, own, what, remedy::NOTHING));
    }
    Ok(Held { id: id.clone(), description, findings })
}
