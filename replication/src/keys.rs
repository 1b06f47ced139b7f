//! Data keys by id, and every key derived from them.
//!
//! A data key is 32 random bytes. It encrypts nothing itself: [`derive()`] makes one key for each purpose and context
//! (a segment's name, a server's log), so that no two uses can be mixed up. Old keys stay in the set, so that what was
//! written with them can be read; new data takes the current one.
//!
//! The set's file format is the content of `keys.json` in the Secret that the operator keeps:
//! `{"format": 1, "current": "<id>", "keys": {"<id>": "<32 bytes in base64>"}}`.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::env::Entropy;

/// Bytes of a data key and of every derived key.
pub const KEY_BYTES: usize = 32;
/// The only version of `keys.json` so far.
const FORMAT: u32 = 1;
/// Separates our use of HKDF from anybody else's with the same key; part of the vault format.
const SALT: &[u8] = b"lifeboat vault v1";
/// Enough to tell two keys apart, too little to be of use against 256 random bits.
const CHECK_BYTES: usize = 16;

/// Name of a data key. It stands in clear in segment and log headers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(pub String);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Secret bytes; shown by nothing, wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct DataKey([u8; KEY_BYTES]);

impl DataKey {
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(secret)")
    }
}

/// All data keys of a vault. Printing it shows ids only.
#[derive(Clone)]
pub struct DataKeys {
    current: KeyId,
    /// Beside the map, so that there is always one.
    current_key: DataKey,
    keys: BTreeMap<KeyId, DataKey>,
}

#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error(
        "the data keys are not valid JSON of the form {{format, current, keys}}: restore keys.json from its Secret's backup or from the vault's key bundle (line {line}, column {column})"
    )]
    Syntax { line: usize, column: usize },
    #[error("keys.json has format {found}, this build reads {FORMAT}: use the release that wrote it")]
    Format { found: u32 },
    #[error(
        "data key {id} is not {KEY_BYTES} bytes in base64: restore keys.json from its Secret's backup or from the vault's key bundle"
    )]
    Key { id: KeyId },
    #[error(
        "keys.json names {id} as its current key but does not hold it: restore keys.json from its Secret's backup or from the vault's key bundle"
    )]
    NoCurrent { id: KeyId },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    current: KeyId,
    keys: BTreeMap<KeyId, String>,
}

impl Drop for File {
    fn drop(&mut self) {
        self.keys.values_mut().for_each(Zeroize::zeroize);
    }
}

impl DataKeys {
    /// One new key.
    pub fn generate(entropy: &dyn Entropy) -> Self {
        let (current, current_key) = new_key(entropy);
        let keys = BTreeMap::from([(current.clone(), current_key.clone())]);
        Self { current, current_key, keys }
    }

    /// The same keys and a new one, which is the current one from here on.
    #[must_use]
    pub fn rotated(&self, entropy: &dyn Entropy) -> Self {
        let (current, current_key) = new_key(entropy);
        let mut keys = self.keys.clone();
        keys.insert(current.clone(), current_key.clone());
        Self { current, current_key, keys }
    }

    /// The same keys and a new one that nothing is written with yet: whoever reads has it before anybody writes with it.
    #[must_use]
    pub fn with_next(&self, entropy: &dyn Entropy) -> (Self, KeyId) {
        let Self { current: next, current_key: next_key, .. } = Self::generate(entropy);
        let mut keys = self.keys.clone();
        keys.insert(next.clone(), next_key);
        (Self { keys, ..self.clone() }, next)
    }

    /// The same keys, of which this one is the current one from here on; `None`: it is not among them.
    #[must_use]
    pub fn with_current(&self, id: &KeyId) -> Option<Self> {
        let current_key = self.get(id)?.clone();
        Some(Self { current: id.clone(), current_key, keys: self.keys.clone() })
    }

    pub fn current(&self) -> (&KeyId, &DataKey) {
        (&self.current, &self.current_key)
    }

    pub fn get(&self, id: &KeyId) -> Option<&DataKey> {
        self.keys.get(id)
    }

    pub fn ids(&self) -> impl Iterator<Item = &KeyId> {
        self.keys.keys()
    }

    /// Content of `keys.json`: secret.
    pub fn to_json(&self) -> Zeroizing<Vec<u8>> {
        let keys = self.keys.iter().map(|(id, key)| (id.clone(), STANDARD.encode(key.0))).collect();
        let file = File { format: FORMAT, current: self.current.clone(), keys };
        // A map of strings cannot fail to be written.
        Zeroizing::new(serde_json::to_vec_pretty(&file).unwrap_or_default())
    }

    pub fn from_json(json: &[u8]) -> Result<Self, KeysError> {
        // The parser's own message may quote the content, which is secret.
        let file: File = serde_json::from_slice(json)
            .map_err(|error| KeysError::Syntax { line: error.line(), column: error.column() })?;
        if file.format != FORMAT {
            return Err(KeysError::Format { found: file.format });
        }
        let mut keys = BTreeMap::new();
        for (id, encoded) in &file.keys {
            let bytes = Zeroizing::new(STANDARD.decode(encoded).unwrap_or_default());
            let bytes = bytes.as_slice().try_into().map_err(|_| KeysError::Key { id: id.clone() })?;
            keys.insert(id.clone(), DataKey(bytes));
        }
        let current = file.current.clone();
        match keys.get(&current).cloned() {
            Some(current_key) => Ok(Self { current, current_key, keys }),
            None => Err(KeysError::NoCurrent { id: current }),
        }
    }

    /// A value for each key that shows whether somebody holds the same one, and nothing else about it. They stand in
    /// `vault.json`, so that a wrong key is named as such before anything is read with it.
    pub fn check_values(&self) -> BTreeMap<KeyId, String> {
        self.keys.iter().map(|(id, key)| (id.clone(), check_value(id, key))).collect()
    }
}

impl fmt::Debug for DataKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataKeys").field("current", &self.current).field("ids", &self.keys.keys()).finish()
    }
}

fn new_key(entropy: &dyn Entropy) -> (KeyId, DataKey) {
    let mut id = [0; 8];
    entropy.fill(&mut id);
    let mut key = DataKey([0; KEY_BYTES]);
    entropy.fill(&mut key.0);
    (KeyId(hex::encode(id)), key)
}

fn check_value(id: &KeyId, key: &DataKey) -> String {
    let value = derive(key, "check value", id.0.as_bytes());
    hex::encode(value.split_at(CHECK_BYTES).0)
}

/// HKDF-SHA256 of the data key, for one purpose and one context: salt `lifeboat vault v1`,
/// info = `purpose`, a zero byte, `context`. Purposes are plain words, so no two (purpose, context) pairs are alike.
pub fn derive(key: &DataKey, purpose: &str, context: &[u8]) -> [u8; KEY_BYTES] {
    use ring::hkdf;
    let info = [purpose.as_bytes(), &[0], context];
    let mut derived = [0; KEY_BYTES];
    let pseudo_random = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(&key.0);
    #[allow(
        clippy::expect_used,
        reason = "fails only above 255 × 32 bytes; silently returning zeros would be worse"
    )]
    pseudo_random
        .expand(&info, hkdf::HKDF_SHA256)
        .and_then(|output| output.fill(&mut derived))
        .expect("32 bytes are within the limit of HKDF");
    derived
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Env;

    fn keys() -> DataKeys {
        DataKeys::generate(&*Env::system().entropy)
    }

    #[test]
    fn a_key_is_known_to_readers_before_it_is_written_with() {
        let old = keys();
        let (staged, next) = old.with_next(&*Env::system().entropy);
        assert_eq!(staged.current().0, old.current().0);
        let switched = staged.with_current(&next).unwrap();
        assert_eq!(switched.current().0, &next);
        assert!(switched.get(old.current().0).is_some() && staged.get(&next).is_some());
        assert_eq!(switched.check_values(), staged.check_values());
        assert!(old.with_current(&next).is_none());
    }

    #[test]
    fn json_round_trip_keeps_current_and_all_keys() {
        let keys = keys().rotated(&*Env::system().entropy);
        let read = DataKeys::from_json(&keys.to_json()).unwrap();
        assert_eq!(read.current().0, keys.current().0);
        assert_eq!(read.check_values(), keys.check_values());
        assert_eq!(read.ids().count(), 2);
    }

    #[test]
    fn debug_shows_ids_and_no_secret() {
        let keys = keys();
        let shown = format!("{keys:?} {:?}", keys.current());
        let secret = STANDARD.encode(keys.current().1.0);
        assert!(shown.contains(&keys.current().0.0), "{shown}");
        assert!(!shown.contains(&secret) && !shown.contains(&format!("{:?}", keys.current().1.0)), "{shown}");
    }

    #[test]
    fn errors_say_the_remedy_and_quote_nothing_of_the_content() {
        let secret = "c2VjcmV0c2VjcmV0";
        for (json, expected) in [
            (format!("{{\"format\": 1, \"current\": \"a\", \"keys\": {{\"a\": \"{secret}\"}}}}"), "32 bytes"),
            (
                format!("{{\"format\": 1, \"current\": \"a\", \"{secret}\": 1, \"keys\": {{}}}}"),
                "not valid JSON",
            ),
            ("{\"format\": 1, \"current\": \"a\", \"keys\": {}}".to_owned(), "does not hold it"),
            ("{\"format\": 2, \"current\": \"a\", \"keys\": {}}".to_owned(), "use the release that wrote it"),
        ] {
            let error = DataKeys::from_json(json.as_bytes()).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains(expected), "{shown}");
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    #[test]
    fn derived_keys_differ_by_key_purpose_and_context() {
        let (one, two) = (DataKey([1; 32]), DataKey([2; 32]));
        let derived = [
            derive(&one, "segment", b"a"),
            derive(&one, "segment", b"b"),
            derive(&one, "commit log", b"a"),
            derive(&two, "segment", b"a"),
        ];
        let distinct: std::collections::BTreeSet<_> = derived.iter().collect();
        assert_eq!(distinct.len(), derived.len());
    }

    /// Pins the derivation: a vault written today must open with every later build.
    #[test]
    fn derivation_never_changes() {
        let derived = derive(&DataKey([7; 32]), "segment", b"journal/x");
        assert_eq!(hex::encode(derived), "62c87b2c8480e6117229ada47c4877e940f97bec25647d2183c33e82a75cd33b");
    }
}
