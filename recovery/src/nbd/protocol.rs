//! Numbers of the NBD protocol (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>). All integers
//! on the wire are big-endian.

pub const MAGIC: &[u8; 8] = b"NBDMAGIC";
pub const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// Handshake flags, the same bits both ways.
pub const FIXED_NEWSTYLE: u16 = 1;
pub const NO_ZEROES: u16 = 2;

pub const OPT_EXPORT_NAME: u32 = 1;
pub const OPT_ABORT: u32 = 2;
pub const OPT_LIST: u32 = 3;
pub const OPT_INFO: u32 = 6;
pub const OPT_GO: u32 = 7;

pub const REP_ACK: u32 = 1;
pub const REP_SERVER: u32 = 2;
pub const REP_INFO: u32 = 3;
pub const REP_ERR_UNSUP: u32 = 0x8000_0001;
pub const REP_ERR_INVALID: u32 = 0x8000_0003;
pub const REP_ERR_UNKNOWN: u32 = 0x8000_0006;
pub const REP_ERR_TOO_BIG: u32 = 0x8000_0009;

pub const INFO_EXPORT: u16 = 0;
pub const INFO_BLOCK_SIZE: u16 = 3;

pub const FLAG_HAS_FLAGS: u16 = 1;
pub const FLAG_SEND_FLUSH: u16 = 1 << 2;
pub const FLAG_SEND_FUA: u16 = 1 << 3;
pub const FLAG_SEND_TRIM: u16 = 1 << 5;
pub const FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
pub const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;

/// What every export announces.
pub const EXPORT_FLAGS: u16 = FLAG_HAS_FLAGS
    | FLAG_SEND_FLUSH
    | FLAG_SEND_FUA
    | FLAG_SEND_TRIM
    | FLAG_SEND_WRITE_ZEROES
    | FLAG_CAN_MULTI_CONN;

pub const CMD_READ: u16 = 0;
pub const CMD_WRITE: u16 = 1;
pub const CMD_DISC: u16 = 2;
pub const CMD_FLUSH: u16 = 3;
pub const CMD_TRIM: u16 = 4;
pub const CMD_WRITE_ZEROES: u16 = 6;

pub const CMD_FLAG_FUA: u16 = 1;

pub const EIO: u32 = 5;
pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;
pub const ENOTSUP: u32 = 95;

/// Option data that a client may send: a name of 4096 bytes and some information requests.
pub const MAX_OPTION_BYTES: u32 = 8192;
/// Options of one handshake, so that a client cannot keep us busy for ever.
pub const MAX_OPTIONS: u32 = 64;
/// Payload of one request. 32 MiB is what the protocol says every server takes.
pub const MAX_PAYLOAD_BYTES: u32 = 32 << 20;

/// Bytes of a request on the wire, without payload.
pub const REQUEST_BYTES: usize = 28;

/// One request in the transmission phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

impl Request {
    /// `None`: the stream does not hold a request here, it is of no use any more.
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let mut rest = bytes.as_slice();
        if take::<4>(&mut rest).map(u32::from_be_bytes)? != REQUEST_MAGIC {
            return None;
        }
        Some(Self {
            flags: take(&mut rest).map(u16::from_be_bytes)?,
            command: take(&mut rest).map(u16::from_be_bytes)?,
            cookie: take(&mut rest).map(u64::from_be_bytes)?,
            offset: take(&mut rest).map(u64::from_be_bytes)?,
            length: take(&mut rest).map(u32::from_be_bytes)?,
        })
    }
}

/// Head of a simple reply.
pub fn simple_reply(cookie: u64, error: u32) -> [u8; 16] {
    let mut head = [0; 16];
    head[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    head[4..8].copy_from_slice(&error.to_be_bytes());
    head[8..].copy_from_slice(&cookie.to_be_bytes());
    head
}

/// Takes the first `N` bytes off `rest`.
pub fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_field_by_field() {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[5] = 1;
        bytes[7] = 3;
        bytes[15] = 7;
        bytes[23] = 9;
        bytes[27] = 11;
        let request = Request::parse(&bytes).unwrap();
        assert_eq!(request, Request { flags: 1, command: CMD_FLUSH, cookie: 7, offset: 9, length: 11 });
    }

    #[test]
    fn refuses_a_request_without_its_magic() {
        assert_eq!(Request::parse(&[0; REQUEST_BYTES]), None);
    }
}
