//! Encryption of a segment's parts: one key a name, the header and the name authenticated with every part.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::SegmentError;
use crate::keys::{DataKey, DataKeys, KeyId, derive};

pub(super) const TAG_BYTES: usize = 16;

pub(super) struct Cipher {
    key: LessSafeKey,
    associated: Vec<u8>,
}

impl Cipher {
    /// `head` is what stands before the first cipher text.
    pub(super) fn new(key: &DataKey, name: &str, head: &[u8]) -> Option<Self> {
        let key = UnboundKey::new(&AES_256_GCM, &derive(key, "segment", name.as_bytes())).ok()?;
        Some(Self { key: LessSafeKey::new(key), associated: [head, name.as_bytes()].concat() })
    }

    /// Encrypts what stands from `start` on, in place, and appends the tag.
    pub(super) fn seal(&self, nonce: u8, buffer: &mut Vec<u8>, start: usize) -> Option<()> {
        let plain = buffer.get_mut(start..)?;
        let associated = Aad::from(&self.associated);
        let tag = self.key.seal_in_place_separate_tag(number(nonce), associated, plain).ok()?;
        buffer.extend_from_slice(tag.as_ref());
        Some(())
    }

    pub(super) fn open(&self, nonce: u8, sealed: &[u8]) -> Option<Vec<u8>> {
        let mut buffer = sealed.to_vec();
        let plain =
            self.key.open_in_place(number(nonce), Aad::from(&self.associated), &mut buffer).ok()?.len();
        buffer.truncate(plain);
        Some(buffer)
    }
}

/// The cipher of the segment under the key that it names.
pub(super) fn find(keys: &DataKeys, name: &str, key_id: &[u8], head: &[u8]) -> Result<Cipher, SegmentError> {
    let damaged = |what| SegmentError::Damaged { name: name.to_owned(), what };
    let key_id = std::str::from_utf8(key_id).map_err(|_| damaged("its key id is not readable"))?;
    let key_id = KeyId(key_id.to_owned());
    let key =
        keys.get(&key_id).ok_or_else(|| SegmentError::UnknownKey { name: name.to_owned(), key: key_id })?;
    Cipher::new(key, name, head).ok_or_else(|| damaged("its key cannot be made"))
}

/// The key's id, and what follows it.
pub(super) fn split_key_id(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))
}

fn number(nonce: u8) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 1] = nonce;
    Nonce::assume_unique_for_key(bytes)
}
