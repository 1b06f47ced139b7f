//! The negotiation: greets the client and answers its options until it chooses the disk or leaves.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::protocol::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Negotiated {
    /// The client has chosen the disk: requests follow.
    Transmission,
    /// The client said that it leaves.
    Ended,
}

/// One option as sent by a client.
struct Opt {
    code: u32,
    data: Vec<u8>,
}

/// Runs the negotiation for an export of `size` bytes.
///
/// # Errors
/// When the client breaks the connection or the protocol.
pub async fn negotiate<R, W>(reader: &mut R, writer: &mut W, name: &str, size: u64) -> io::Result<Negotiated>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    writer.write_all(MAGIC).await?;
    writer.write_all(OPTION_MAGIC).await?;
    writer.write_all(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes()).await?;
    writer.flush().await?;
    let no_zeroes = reader.read_u32().await? & u32::from(NO_ZEROES) != 0;

    for _ in 0..MAX_OPTIONS {
        let Some(Opt { code, data }) = read_option(reader, writer).await? else { continue };
        match code {
            OPT_EXPORT_NAME => {
                // This old option has no way to refuse: an unknown name ends the connection.
                if !is_ours(&data, name) {
                    return Err(protocol_error("the client asked for an export that is not here"));
                }
                let mut answer = Vec::with_capacity(134);
                answer.extend_from_slice(&size.to_be_bytes());
                answer.extend_from_slice(&EXPORT_FLAGS.to_be_bytes());
                if !no_zeroes {
                    answer.resize(134, 0);
                }
                writer.write_all(&answer).await?;
                writer.flush().await?;
                return Ok(Negotiated::Transmission);
            }
            OPT_ABORT => {
                reply(writer, code, REP_ACK, &[]).await?;
                return Ok(Negotiated::Ended);
            }
            OPT_LIST if data.is_empty() => {
                let mut server = u32::try_from(name.len()).unwrap_or(0).to_be_bytes().to_vec();
                server.extend_from_slice(name.as_bytes());
                reply(writer, code, REP_SERVER, &server).await?;
                reply(writer, code, REP_ACK, &[]).await?;
            }
            OPT_LIST => reply(writer, code, REP_ERR_INVALID, b"this option has no data").await?,
            OPT_INFO | OPT_GO => match info_name(&data) {
                None => reply(writer, code, REP_ERR_INVALID, b"malformed option").await?,
                Some(asked) if !is_ours(asked, name) => {
                    reply(writer, code, REP_ERR_UNKNOWN, b"no export of this name: use the empty name")
                        .await?;
                }
                Some(_) => {
                    describe(writer, code, size).await?;
                    if code == OPT_GO {
                        return Ok(Negotiated::Transmission);
                    }
                }
            },
            _ => reply(writer, code, REP_ERR_UNSUP, &[]).await?,
        }
    }
    Err(protocol_error("the client sent options without end"))
}

/// `None`: the option was too long; it has been answered and skipped.
async fn read_option<R, W>(reader: &mut R, writer: &mut W) -> io::Result<Option<Opt>>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut magic = [0; 8];
    reader.read_exact(&mut magic).await?;
    if &magic != OPTION_MAGIC {
        return Err(protocol_error("the client's option has no magic number"));
    }
    let code = reader.read_u32().await?;
    let length = reader.read_u32().await?;
    if length > MAX_OPTION_BYTES {
        tokio::io::copy(&mut reader.take(u64::from(length)), &mut tokio::io::sink()).await?;
        reply(writer, code, REP_ERR_TOO_BIG, &[]).await?;
        return Ok(None);
    }
    let mut data = vec![0; usize::try_from(length).unwrap_or(0)];
    reader.read_exact(&mut data).await?;
    Ok(Some(Opt { code, data }))
}

/// Name in the data of `NBD_OPT_INFO` and `NBD_OPT_GO`: u32 length, name, u16 count, count × u16.
fn info_name(data: &[u8]) -> Option<&[u8]> {
    let mut rest = data;
    let length = usize::try_from(u32::from_be_bytes(take(&mut rest)?)).ok()?;
    let (name, mut rest) = rest.split_at_checked(length)?;
    let count = usize::from(u16::from_be_bytes(take(&mut rest)?));
    (rest.len() == count * 2).then_some(name)
}

fn is_ours(asked: &[u8], name: &str) -> bool {
    asked.is_empty() || asked == name.as_bytes()
}

async fn describe<W: AsyncWrite + Unpin>(writer: &mut W, option: u32, size: u64) -> io::Result<()> {
    let mut export = INFO_EXPORT.to_be_bytes().to_vec();
    export.extend_from_slice(&size.to_be_bytes());
    export.extend_from_slice(&EXPORT_FLAGS.to_be_bytes());
    reply(writer, option, REP_INFO, &export).await?;

    // Any byte range works; whole blocks of 4096 spare reading what a write does not cover.
    let mut sizes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for bytes in [1_u32, 4096, MAX_PAYLOAD_BYTES] {
        sizes.extend_from_slice(&bytes.to_be_bytes());
    }
    reply(writer, option, REP_INFO, &sizes).await?;
    reply(writer, option, REP_ACK, &[]).await
}

async fn reply<W: AsyncWrite + Unpin>(writer: &mut W, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
    bytes.extend_from_slice(data);
    writer.write_all(&bytes).await?;
    writer.flush().await
}

fn protocol_error(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answers(sent: Vec<u8>) -> (io::Result<Negotiated>, Vec<u8>) {
        let mut written = Vec::new();
        let result = negotiate(&mut sent.as_slice(), &mut written, "sda", 1 << 20).await;
        (result, written.split_off(18))
    }

    fn option(code: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = OPTION_MAGIC.to_vec();
        bytes.extend_from_slice(&code.to_be_bytes());
        bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn hello(options: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = 3_u32.to_be_bytes().to_vec();
        bytes.extend(options.concat());
        bytes
    }

    #[tokio::test]
    async fn an_old_client_gets_size_and_flags_without_padding() {
        let (result, written) = answers(hello(&[option(OPT_EXPORT_NAME, b"")])).await;
        assert_eq!(result.unwrap(), Negotiated::Transmission);
        assert_eq!(written.len(), 10);
        assert_eq!(written[..8], (1_u64 << 20).to_be_bytes());
    }

    #[tokio::test]
    async fn an_unknown_option_is_refused_and_the_talk_goes_on() {
        let (result, written) = answers(hello(&[option(8, b""), option(OPT_ABORT, b"")])).await;
        assert_eq!(result.unwrap(), Negotiated::Ended);
        assert_eq!(written[12..16], REP_ERR_UNSUP.to_be_bytes());
    }

    #[tokio::test]
    async fn a_name_longer_than_its_option_is_refused() {
        let (_, written) =
            answers(hello(&[option(OPT_GO, &[0, 0, 1, 0, 0, 0]), option(OPT_ABORT, b"")])).await;
        assert_eq!(written[12..16], REP_ERR_INVALID.to_be_bytes());
    }

    #[tokio::test]
    async fn another_disk_than_ours_is_refused_by_name() {
        let mut data = 3_u32.to_be_bytes().to_vec();
        data.extend_from_slice(b"sdb\0\0");
        let (_, written) = answers(hello(&[option(OPT_GO, &data), option(OPT_ABORT, b"")])).await;
        assert_eq!(written[12..16], REP_ERR_UNKNOWN.to_be_bytes());
    }

    #[tokio::test]
    async fn rubbish_ends_the_session() {
        let (result, _) = answers(hello(&[vec![0; 16]])).await;
        assert!(result.unwrap_err().to_string().contains("magic"));
    }
}
