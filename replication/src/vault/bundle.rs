//! The key bundle: every secret that a burnt cluster would take along, encrypted to the recovery keys.
//!
//! In the clear it is JSON: `{"format": 1, "dataKeys": <keys.json>, "caKeyPem": "…"}` (`caKeyPem` only when there is
//! one). It stands in `vault.json` as an armored age file, so that anybody who has a recovery key gets it back with
//! nothing of ours: `jq -r .keyBundle vault.json | age -d -i recovery-key.txt`.

use std::{
    fmt,
    io::{Read as _, Write as _},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{FORMAT, VaultDescription, VaultError};
use crate::keys::{DataKeys, derive};

/// Content of a bundle, at most: bounds what a reader allocates for foreign bytes. A data key takes 75 bytes.
const MAX_BUNDLE_BYTES: u64 = 1 << 20;

/// The secrets of a vault. Printing it shows none of them.
#[derive(Clone)]
pub struct KeyBundle {
    pub data_keys: Arc<DataKeys>,
    /// Private key of the appliance's certificate authority.
    pub ca_key_pem: Option<Zeroizing<String>>,
}

impl From<Arc<DataKeys>> for KeyBundle {
    fn from(data_keys: Arc<DataKeys>) -> Self {
        Self { data_keys, ca_key_pem: None }
    }
}

impl fmt::Debug for KeyBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyBundle")
            .field("data_keys", &self.data_keys)
            .field("ca_key", &self.ca_key_pem.is_some())
            .finish()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    format: u32,
    data_keys: Box<serde_json::value::RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca_key_pem: Option<Zeroizing<String>>,
}

impl KeyBundle {
    /// Encrypts it to all of `recipients`.
    pub(super) fn seal(&self, recipients: &[String]) -> Result<String, VaultError> {
        let recipients = check_recipients(recipients)?;
        let to = recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(to)
            .map_err(|error| VaultError::BundleEncryption(std::io::Error::other(error)))?;
        let content = self.to_json();
        let mut sealed = Vec::new();
        let write = || {
            let armor = age::armor::ArmoredWriter::wrap_output(&mut sealed, age::armor::Format::AsciiArmor)?;
            let mut writer = encryptor.wrap_output(armor)?;
            writer.write_all(&content)?;
            writer.finish()?.finish()?;
            Ok(())
        };
        write().map_err(VaultError::BundleEncryption)?;
        String::from_utf8(sealed).map_err(|error| VaultError::BundleEncryption(std::io::Error::other(error)))
    }

    /// Opens the bundle of a vault with a private recovery key: the content of a key file, in which lines with `#` are
    /// comments and each other line is a key (`AGE-SECRET-KEY-1…`).
    pub fn unseal(description: &VaultDescription, recovery_key: &str) -> Result<Self, VaultError> {
        let refused = || VaultError::BundleIdentity { recipients: description.recipients.clone() };
        let lines = recovery_key.lines().map(str::trim);
        let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let identities: Result<Vec<age::x25519::Identity>, _> = keys.map(str::parse).collect();
        let identities = identities.map_err(|_| VaultError::NotAnIdentity)?;
        let armored = age::armor::ArmoredReader::new(description.key_bundle.as_bytes());
        let mut content = Zeroizing::new(Vec::new());
        age::Decryptor::new(armored)
            .and_then(|decryptor| {
                decryptor.decrypt(identities.iter().map(|identity| identity as &dyn age::Identity))
            })
            .map_err(|error| match error {
                age::DecryptError::NoMatchingKeys => refused(),
                _ => VaultError::BundleDamaged,
            })?
            .take(MAX_BUNDLE_BYTES)
            .read_to_end(&mut content)
            .map_err(|_| VaultError::BundleDamaged)?;
        let name = "the key bundle";
        let content: Content = serde_json::from_slice(&content)
            .map_err(|source| VaultError::Damaged { name: name.to_owned(), source })?;
        if content.format != FORMAT {
            return Err(VaultError::Format { name: name.to_owned(), found: content.format });
        }
        let data_keys = DataKeys::from_json(content.data_keys.get().as_bytes())?;
        Ok(Self { data_keys: Arc::new(data_keys), ca_key_pem: content.ca_key_pem })
    }

    /// Changes with the content and shows nothing of it.
    pub fn digest(&self) -> String {
        let content = ring::digest::digest(&ring::digest::SHA256, &self.to_json());
        let (_, key) = self.data_keys.current();
        hex::encode(derive(key, "key bundle digest", content.as_ref()))
    }

    fn to_json(&self) -> Zeroizing<Vec<u8>> {
        let keys = self.data_keys.to_json();
        let keys = String::from_utf8_lossy(&keys).into_owned();
        // Our own JSON and strings: neither step can fail.
        let content = serde_json::value::RawValue::from_string(keys)
            .and_then(|data_keys| {
                let content = Content { format: FORMAT, data_keys, ca_key_pem: self.ca_key_pem.clone() };
                serde_json::to_vec(&content)
            })
            .unwrap_or_default();
        Zeroizing::new(content)
    }
}

/// All recipients, parsed; at least one is needed.
pub(super) fn check_recipients(recipients: &[String]) -> Result<Vec<age::x25519::Recipient>, VaultError> {
    if recipients.is_empty() {
        return Err(VaultError::NoRecipient);
    }
    let parse = |recipient: &String| {
        recipient.parse().map_err(|_| VaultError::Recipient { recipient: redacted(recipient) })
    };
    recipients.iter().map(parse).collect()
}

/// Somebody may paste the private half by mistake: it must not get into status and logs.
fn redacted(recipient: &str) -> String {
    if recipient.to_ascii_uppercase().contains("SECRET") {
        "(a private key!)".to_owned()
    } else {
        recipient.to_owned()
    }
}
