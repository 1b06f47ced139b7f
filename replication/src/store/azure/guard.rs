//! What brings blobs back that somebody deletes: the account's soft delete, or the container's immutability.
//!
//! Whoever gets hold of the credentials can delete a vault. Only the account's own settings stand against that, and
//! only its owner can make them; so they are looked at and what is missing is said.

use azure_storage_blob::models::{
    BlobContainerClientGetPropertiesResultHeaders as _, BlobServiceProperties, RetentionPolicy,
};

use super::{AzureStore, errors::unreadable};
use crate::store::Result;

/// Shorter than this, nobody may have noticed yet that blobs are gone.
const LEAST_DAYS: u32 = 7;

/// How an account treats deleted blobs of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeletionGuard {
    /// Days for which deleted blobs can be brought back; `None`: soft delete is off.
    pub soft_delete_days: Option<u32>,
    /// Soft delete does not hold against a caller who deletes for good.
    pub permanent_delete_allowed: bool,
    /// The container has a policy (or a legal hold, or versions) under which blobs cannot be deleted.
    pub immutable: bool,
}

impl DeletionGuard {
    /// What is missing; `None`: nothing.
    pub fn missing(&self) -> Option<String> {
        if self.immutable {
            return None;
        }
        match self.soft_delete_days {
            None => Some("soft delete of blobs is off".to_owned()),
            Some(_) if self.permanent_delete_allowed => {
                Some("soft delete of blobs is on, but deleting for good is allowed".to_owned())
            }
            Some(days) if days < LEAST_DAYS => Some(format!(
                "soft delete keeps blobs for {days} days only, and {LEAST_DAYS} are the least in which a loss is noticed"
            )),
            Some(_) => None,
        }
    }
}

impl AzureStore {
    /// Two requests. A SAS of a container, or a role without rights to the account's settings, is refused.
    ///
    /// # Errors
    /// As every call to the store.
    pub async fn deletion_guard(&self) -> Result<DeletionGuard> {
        let call = self.call("read the account's settings", "");
        let settings: BlobServiceProperties =
            call.run(async { self.service.get_properties(None).await?.into_model() }).await?;
        let call = self.call("read the container's settings", "");
        let container = call.run(self.container.get_properties(None)).await?;
        let flag = |read: azure_core::Result<Option<bool>>| {
            read.map(|value| value == Some(true)).map_err(|_| unreadable(&call, "its headers"))
        };
        let immutable = flag(container.has_immutability_policy())?
            | flag(container.has_legal_hold())?
            | flag(container.is_immutable_storage_with_versioning_enabled())?;
        Ok(guard(settings.delete_retention_policy.unwrap_or_default(), immutable))
    }
}

fn guard(policy: RetentionPolicy, immutable: bool) -> DeletionGuard {
    let on = policy.enabled == Some(true);
    let days = policy.days.and_then(|days| u32::try_from(days).ok()).unwrap_or(0);
    DeletionGuard {
        soft_delete_days: on.then_some(days),
        permanent_delete_allowed: on && policy.allow_permanent_delete == Some(true),
        immutable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soft_delete(days: i32, permanent: bool) -> RetentionPolicy {
        RetentionPolicy { enabled: Some(true), days: Some(days), allow_permanent_delete: Some(permanent) }
    }

    #[test]
    fn what_is_missing_is_said_and_nothing_else() {
        let missing = |policy, immutable| guard(policy, immutable).missing();
        assert!(missing(RetentionPolicy::default(), false).unwrap().contains("is off"));
        let off = RetentionPolicy { enabled: Some(false), days: Some(30), ..RetentionPolicy::default() };
        assert!(missing(off.clone(), false).unwrap().contains("is off"));
        assert!(missing(soft_delete(6, false), false).unwrap().contains("6 days only"));
        assert!(missing(soft_delete(14, true), false).unwrap().contains("for good"));
        assert_eq!(missing(soft_delete(7, false), false), None);
        assert_eq!(missing(off, true), None);
    }
}
