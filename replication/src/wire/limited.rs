//! The codec of all services, which looks at an agent's messages before they are decoded.
//!
//! Protobuf takes two bytes on the wire for an empty extent and 24 in memory, in a vector that doubles as it grows: a
//! message of 5 MiB became 150 MiB. An agent may be broken or hostile, so what it sends has its fields counted first.

use std::any::TypeId;

use prost::{Message, bytes::Buf as _};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use super::{MAX_CHUNK_EXTENTS, v1};

/// Fields of a message and of the message in it: the extents of a full chunk, and what stands beside them.
const MAX_FIELDS: usize = MAX_CHUNK_EXTENTS + 256;

#[derive(Debug, Clone)]
pub struct LimitedCodec<T, U>(ProstCodec<T, U>);

impl<T, U> Default for LimitedCodec<T, U> {
    fn default() -> Self {
        Self(ProstCodec::default())
    }
}

#[derive(Debug)]
pub struct LimitedDecoder<U>(ProstDecoder<U>);

impl<T, U> Codec for LimitedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = LimitedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        self.0.encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        LimitedDecoder(self.0.decoder())
    }
}

impl<U: Message + Default + 'static> Decoder for LimitedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // A message arrives whole and in one piece before it is decoded.
        if TypeId::of::<U>() == TypeId::of::<v1::Up>() && fields(buffer.chunk(), true) > MAX_FIELDS {
            return Err(Status::resource_exhausted(
                "a message has more extents than a chunk may have: update the agent",
            ));
        }
        self.0.decode(buffer)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Counts the fields of a message, and of those within it if `nested`. What is no message ends the count; the decoder
/// says what is wrong with it.
fn fields(mut bytes: &[u8], nested: bool) -> usize {
    let mut count = 0;
    while count <= MAX_FIELDS {
        let Some(key) = varint(&mut bytes) else { break };
        let skip = match key & 7 {
            0 => varint(&mut bytes).map(|_| 0),
            1 => Some(8),
            2 => varint(&mut bytes).and_then(|length| usize::try_from(length).ok()),
            5 => Some(4),
            _ => None,
        };
        let Some((field, rest)) = skip.and_then(|skip| bytes.split_at_checked(skip)) else { break };
        count += 1;
        if nested && key & 7 == 2 {
            count += fields(field, false);
        }
        bytes = rest;
    }
    count
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(extents: usize, data: usize) -> Vec<u8> {
        let extent = v1::Extent { disk_slot: 1, first_block: 1 << 30, blocks: 1, zero: false };
        let chunk = v1::Chunk {
            number: 1,
            extents: vec![extent; extents],
            data: vec![7; data].into(),
            ..Default::default()
        };
        v1::Up { message: Some(v1::up::Message::Chunk(chunk)) }.encode_to_vec()
    }

    #[test]
    fn the_largest_chunk_passes_and_a_larger_one_does_not() {
        assert!(fields(&up(MAX_CHUNK_EXTENTS, 4 << 20), true) <= MAX_FIELDS);
        assert!(fields(&up(MAX_FIELDS + 1, 0), true) > MAX_FIELDS);
    }

    #[test]
    fn what_is_no_message_ends_the_count() {
        for bytes in [&[0xff; 20][..], &[0x12, 0xff, 0xff, 0xff, 0xff, 0x7f], &[]] {
            assert!(fields(bytes, true) <= 1);
        }
    }
}
