//! Frames: how a record stands in a part of the commit log.
//!
//! ```text
//! offset  bytes  content
//!      0      4  n, length of the record (little endian)
//!      4      n  record: a protobuf `LogRecord` (proto/lifeboat/v1/vault.proto)
//!    4+n     32  chain value: HMAC-SHA256(chain key, previous chain value ‖ bytes 0 to 4+n)
//! ```
//! The chain value of a frame authenticates everything before it, so an exchanged, missing or repeated frame is
//! noticed at once. The chain starts with 32 zero bytes and goes on from part to part: a part's header frame follows
//! on the last frame of the part that it names as its base.
//! The chain key is HKDF-SHA256(data key, "commit log", server id); the header of a part names the data key.

use prost::Message as _;
use ring::hmac;

use crate::{
    keys::{DataKey, derive},
    wire::v1,
};

/// Value of the chain after a frame.
pub type Chain = [u8; 32];

/// Where every server's chain begins.
pub const CHAIN_START: Chain = [0; 32];

const LENGTH_BYTES: usize = 4;
pub(super) const CHAIN_BYTES: usize = 32;

/// Bytes of a record, at most, so that a frame fits one append of 4 MiB with room for a second small frame.
pub const MAX_RECORD_BYTES: usize = (4 << 20) - 4096;

/// The key of a server's chain.
#[derive(Clone)]
pub struct ChainKey(hmac::Key);

impl std::fmt::Debug for ChainKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChainKey")
    }
}

impl ChainKey {
    pub fn new(key: &DataKey, server_id: &str) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &derive(key, "commit log", server_id.as_bytes())))
    }

    fn chain(&self, previous: &Chain, framed: &[u8]) -> Chain {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(previous);
        context.update(framed);
        let mut chain = CHAIN_START;
        for (to, from) in chain.iter_mut().zip(context.sign().as_ref()) {
            *to = *from;
        }
        chain
    }
}

/// A frame as it is appended, and the chain after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    pub bytes: Vec<u8>,
    pub chain: Chain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record of {bytes} bytes is larger than a frame may be ({MAX_RECORD_BYTES})")]
pub struct TooLarge {
    pub bytes: usize,
}

pub fn encode(key: &ChainKey, previous: &Chain, body: v1::log_record::Body) -> Result<Encoded, TooLarge> {
    let record = v1::LogRecord { body: Some(body) };
    let length = record.encoded_len();
    let too_large = TooLarge { bytes: length };
    if length > MAX_RECORD_BYTES {
        return Err(too_large);
    }
    let mut bytes = Vec::with_capacity(LENGTH_BYTES + length + CHAIN_BYTES);
    bytes.extend_from_slice(&u32::try_from(length).map_err(|_| too_large)?.to_le_bytes());
    bytes.extend_from_slice(&record.encode_to_vec());
    let chain = key.chain(previous, &bytes);
    bytes.extend_from_slice(&chain);
    Ok(Encoded { bytes, chain })
}

/// A frame taken from foreign bytes; not verified yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawFrame<'a> {
    framed: &'a [u8],
    record: &'a [u8],
    chain: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame says to be {bytes} bytes long")]
    Length { bytes: u32 },
    #[error("a frame is not authentic: changed, exchanged or out of place")]
    Chain,
    #[error("a record cannot be decoded")]
    Record,
}

impl<'a> RawFrame<'a> {
    /// The first frame of `bytes`; `None` when it is not there whole.
    pub fn split(bytes: &'a [u8]) -> Result<Option<Self>, FrameError> {
        let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length);
        if length as usize > MAX_RECORD_BYTES || length == 0 {
            return Err(FrameError::Length { bytes: length });
        }
        let Some((record, rest)) = rest.split_at_checked(length as usize) else { return Ok(None) };
        let Some(chain) = rest.get(..CHAIN_BYTES) else { return Ok(None) };
        let Some(framed) = bytes.get(..LENGTH_BYTES + record.len()) else { return Ok(None) };
        Ok(Some(Self { framed, record, chain }))
    }

    #[allow(clippy::len_without_is_empty, reason = "a frame is never empty")]
    pub fn len(&self) -> u64 {
        (self.framed.len() + self.chain.len()) as u64
    }

    /// The chain value that it claims.
    pub fn chain(&self) -> &'a [u8] {
        self.chain
    }

    /// The record without a look at the chain: only to find out which key it needs.
    pub fn decode_unverified(&self) -> Result<v1::log_record::Body, FrameError> {
        v1::LogRecord::decode(self.record).ok().and_then(|record| record.body).ok_or(FrameError::Record)
    }

    /// The record, if it follows on `previous`, and the chain after it.
    pub fn verify(
        &self,
        key: &ChainKey,
        previous: &Chain,
    ) -> Result<(v1::log_record::Body, Chain), FrameError> {
        let authenticated = [previous.as_slice(), self.framed].concat();
        hmac::verify(&key.0, &authenticated, self.chain).map_err(|_| FrameError::Chain)?;
        let chain = self.chain.try_into().map_err(|_| FrameError::Chain)?;
        Ok((self.decode_unverified()?, chain))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{env::Env, keys::DataKeys, store::MAX_WRITE_BYTES};

    fn key() -> ChainKey {
        ChainKey::new(DataKeys::generate(&*Env::system().entropy).current().1, "server")
    }

    fn body(run: &str) -> v1::log_record::Body {
        v1::log_record::Body::Closed(v1::Closed { run: run.to_owned() })
    }

    #[test]
    fn a_frame_is_bound_to_the_one_before_it() {
        let key = key();
        let first = encode(&key, &CHAIN_START, body("a")).unwrap();
        let second = encode(&key, &first.chain, body("b")).unwrap();
        let raw = RawFrame::split(&second.bytes).unwrap().unwrap();
        assert_eq!(raw.verify(&key, &first.chain).unwrap(), (body("b"), second.chain));
        assert_eq!(raw.verify(&key, &CHAIN_START), Err(FrameError::Chain));
    }

    #[test]
    fn a_frame_that_is_not_whole_yet_is_waited_for() {
        let frame = encode(&key(), &CHAIN_START, body("a")).unwrap();
        for end in 0..frame.bytes.len() {
            assert_eq!(RawFrame::split(&frame.bytes[..end]), Ok(None));
        }
    }

    /// A record that is `bytes` long.
    fn body_of(bytes: usize) -> v1::log_record::Body {
        let of = |inline: usize| {
            let inline_segment = vec![7; inline];
            v1::log_record::Body::Data(v1::Data { number: 1, inline_segment, ..Default::default() })
        };
        let length = |inline| v1::LogRecord { body: Some(of(inline)) }.encoded_len();
        of(2 * bytes - length(bytes))
    }

    /// An epoch begins with one append, of a header and of `Closed` or `Release`.
    #[test]
    fn the_largest_record_fits_one_append_together_with_a_small_one() {
        let key = key();
        let largest = encode(&key, &CHAIN_START, body_of(MAX_RECORD_BYTES)).unwrap();
        let small = encode(&key, &largest.chain, body("5f0c7f5e-6a0f-4b53-a7b4-7a3e1f0c9d11")).unwrap();
        assert!(largest.bytes.len() + small.bytes.len() <= MAX_WRITE_BYTES);
        // A small round travels in its record.
        encode(&key, &CHAIN_START, body_of(4_000_000)).unwrap();
        let raw = RawFrame::split(&largest.bytes).unwrap().unwrap();
        assert_eq!(raw.len(), largest.bytes.len() as u64);
        assert_eq!(raw.chain(), largest.chain);
        assert_eq!(raw.verify(&key, &CHAIN_START).unwrap().1, largest.chain);

        let bytes = MAX_RECORD_BYTES + 1;
        assert_eq!(encode(&key, &CHAIN_START, body_of(bytes)), Err(TooLarge { bytes }));
    }

    /// Nothing is waited for that cannot come.
    #[test]
    fn a_length_that_no_record_has_is_an_error_at_once() {
        for bytes in [0, MAX_RECORD_BYTES as u32 + 1, u32::MAX] {
            assert_eq!(RawFrame::split(&bytes.to_le_bytes()), Err(FrameError::Length { bytes }));
        }
        for bytes in [1, MAX_RECORD_BYTES as u32] {
            assert_eq!(RawFrame::split(&bytes.to_le_bytes()), Ok(None));
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_verify(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(Some(frame)) = RawFrame::split(&bytes) {
                prop_assert!(frame.verify(&key(), &CHAIN_START).is_err());
            }
        }
    }
}
