//! The agent's program as the appliance serves it: a GET on the management port, over the same TLS as the calls there.
//!
//! In: the digest of the program that is there already, and where another one goes. Out: the other one's digest, its
//! file whole, durable and as the ETag says. Each address is tried once, in order; one that is silent, breaks off, or
//! sends something else than it names makes way for the next. Time is bounded for the answer, for each piece and for
//! the whole, and so is the length.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    future::poll_fn,
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};

use bytes::Bytes;
use lifeboat_replication::errors::chain;
use tokio::time::timeout;
use tonic::{
    Status,
    body::Body,
    codegen::{
        Body as _, Service as _,
        http::{HeaderMap, Request, StatusCode, header},
    },
    transport::Channel,
};

use super::{
    connect::{ConnectError, host},
    management::Management,
};
use crate::{
    digest::{Digest, Sum},
    files::remove,
};

const PATH: &str = "/lifeboat-agent";
/// More than any agent will ever have.
const LONGEST_BYTES: u64 = 512 << 20;

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the request to the first byte of the answer.
    pub answer: Duration,
    /// From one piece to the next.
    pub piece: Duration,
    /// Of one address. A line of 150 kbit/s carries 30 MB in that time.
    pub whole: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            piece: Duration::from_secs(30),
            whole: Duration::from_secs(30 * 60),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error(
        "no management address is known; enrol again with the command that `kubectl lifeboat enroll` prints"
    )]
    NoAddress,
    #[error("management cannot be reached")]
    Connect(#[from] ConnectError),
    #[error("{address} did not {step} within {limit:?}; check the line, and look at the appliance's status")]
    TimeOut { address: String, step: &'static str, limit: Duration },
    #[error("the connection to {address} broke; check the line and try again")]
    Broken { address: String, source: tonic::transport::Error },
    #[error("{address} broke off after {received} of {length} bytes; check the line and try again")]
    Torn { address: String, received: u64, length: u64, source: Option<Status> },
    #[error("{address} serves no agent ({status}); look at its process server's log")]
    NotServed { address: String, status: StatusCode },
    #[error(
        "what {address} answers is not known here ({what}); agent and appliance may be at most one minor version apart: enrol again with the command that `kubectl lifeboat enroll` prints"
    )]
    Unknown { address: String, what: &'static str },
    #[error(
        "what came from {address} is not what it names ({found} instead of {expected}); try again, and if it stays so restart the process server"
    )]
    Damaged { address: String, expected: Digest, found: Digest },
    /// Each for a reason of its own, and it is not always the last one that matters.
    #[error("no address of the management port gives the agent: {told}")]
    Several { told: String },
    #[error("there is no room for {length} bytes in {}; free some and try again", folder.display())]
    NoRoom { folder: PathBuf, length: u64 },
    #[error("cannot write {}; run as root and check that the file system is writable", path.display())]
    File { path: PathBuf, source: io::Error },
}

impl DownloadError {
    /// Of this machine, not of the address.
    fn is_ours(&self) -> bool {
        matches!(self, Self::NoRoom { .. } | Self::File { .. })
    }
}

/// What an address serves, not read yet.
struct Served {
    digest: Digest,
    length: u64,
    body: Body,
}

impl Management {
    /// The digest of the program that the appliance serves; `None`: it is the one of `have`. With `into`, another one is
    /// there afterwards, executable; after an error nothing is.
    pub async fn download_agent(
        &self,
        have: &Digest,
        into: Option<&Path>,
        limits: Limits,
    ) -> Result<Option<Digest>, DownloadError> {
        let mut failed = Vec::new();
        for address in &self.addresses {
            let one = timeout(limits.whole, self.download_from(address, have, into, limits));
            let late = |_| DownloadError::TimeOut {
                address: address.clone(),
                step: "send the agent",
                limit: limits.whole,
            };
            match one.await.map_err(late).flatten() {
                Ok(found) => return Ok(found),
                Err(error) => {
                    if let Some(path) = into {
                        _ = fs::remove_file(path);
                    }
                    if error.is_ours() {
                        return Err(error);
                    }
                    failed.push(error);
                }
            }
        }
        Err(all_of(failed))
    }

    async fn download_from(
        &self,
        address: &str,
        have: &Digest,
        into: Option<&Path>,
        limits: Limits,
    ) -> Result<Option<Digest>, DownloadError> {
        let name = host(address)?;
        let channel = self.connector.connect(address, name, self.tls.clone(), self.pinned.as_deref()).await?;
        let asking = timeout(limits.answer, ask(channel, address, have));
        let asked = asking.await.map_err(|_| DownloadError::TimeOut {
            address: address.to_owned(),
            step: "answer",
            limit: limits.answer,
        })?;
        let Some(served) = asked? else { return Ok(None) };
        let digest = served.digest;
        // One that ignores what it was asked not to send.
        if digest == *have {
            return Ok(None);
        }
        if let Some(path) = into {
            receive(served, address, path, limits.piece).await?;
        }
        Ok(Some(digest))
    }
}

/// What each address said.
fn all_of(mut failed: Vec<DownloadError>) -> DownloadError {
    match failed.len() {
        0 => DownloadError::NoAddress,
        1 => failed.remove(0),
        _ => {
            let told: Vec<String> = failed.iter().map(|error| chain(error)).collect();
            DownloadError::Several { told: told.join("; ") }
        }
    }
}

/// `None`: it serves what is there already.
async fn ask(mut channel: Channel, address: &str, have: &Digest) -> Result<Option<Served>, DownloadError> {
    let broken = |source| DownloadError::Broken { address: address.to_owned(), source };
    let unknown = |what| DownloadError::Unknown { address: address.to_owned(), what };
    let request = Request::get(PATH).header(header::IF_NONE_MATCH, format!("\"{have}\""));
    let request = request.body(Body::empty()).map_err(|_| unknown("the request cannot be made"))?;
    poll_fn(|context| channel.poll_ready(context)).await.map_err(broken)?;
    let answer = channel.call(request).await.map_err(broken)?;
    match answer.status() {
        StatusCode::NOT_MODIFIED => return Ok(None),
        StatusCode::OK => {}
        status => return Err(DownloadError::NotServed { address: address.to_owned(), status }),
    }
    let (digest, length) = named(answer.headers()).map_err(unknown)?;
    Ok(Some(Served { digest, length, body: answer.into_body() }))
}

/// Digest and length of what comes.
fn named(headers: &HeaderMap) -> Result<(Digest, u64), &'static str> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let tag = text(header::ETAG).and_then(|tag| tag.strip_prefix('"')?.strip_suffix('"'));
    let digest = tag.and_then(Digest::parse).ok_or("its ETag is no SHA-256")?;
    let length = text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
    match length.ok_or("it has no length")? {
        0 => Err("it is empty"),
        length if length > LONGEST_BYTES => Err("it is too long for an agent"),
        length => Ok((digest, length)),
    }
}

async fn receive(
    served: Served,
    address: &str,
    path: &Path,
    piece_limit: Duration,
) -> Result<(), DownloadError> {
    let Served { digest, length, mut body } = served;
    let written = |source: io::Error| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            DownloadError::NoRoom { folder: path.parent().unwrap_or(Path::new("/")).to_owned(), length }
        }
        _ => DownloadError::File { path: path.to_owned(), source },
    };
    let torn =
        |received, source| DownloadError::Torn { address: address.to_owned(), received, length, source };
    let mut file = create(path).map_err(written)?;
    let (mut sum, mut received) = (Sum::default(), 0_u64);
    loop {
        let piece = timeout(piece_limit, next(&mut body)).await.map_err(|_| DownloadError::TimeOut {
            address: address.to_owned(),
            step: "send more of the agent",
            limit: piece_limit,
        })?;
        let Some(piece) = piece.map_err(|status| torn(received, Some(status)))? else { break };
        received = received.saturating_add(piece.len() as u64);
        if received > length {
            return Err(torn(received, None));
        }
        sum.update(&piece);
        file.write_all(&piece).map_err(written)?;
    }
    if received < length {
        return Err(torn(received, None));
    }
    let found = sum.finish();
    if found != digest {
        return Err(DownloadError::Damaged { address: address.to_owned(), expected: digest, found });
    }
    // Only now: nobody starts what has not come whole.
    file.set_permissions(Permissions::from_mode(0o755)).map_err(written)?;
    file.sync_all().map_err(written)
}

/// A new file, never one that somebody else has put (or linked) there.
fn create(path: &Path) -> io::Result<File> {
    remove(path)?;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

async fn next(body: &mut Body) -> Result<Option<Bytes>, Status> {
    loop {
        match poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await.transpose()? {
            None => return Ok(None),
            // Frames without data are trailers.
            Some(frame) => {
                if let Ok(piece) = frame.into_data() {
                    return Ok(Some(piece));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_that_names_its_digest_and_a_sensible_length_is_taken() {
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let tag = format!("\"{digest}\"");
        let of = |tag: &str, length: &str| {
            let pairs = [(header::ETAG, tag), (header::CONTENT_LENGTH, length)];
            let given = pairs.into_iter().filter(|(_, value)| !value.is_empty());
            named(&given.map(|(name, value)| (name, value.parse().unwrap())).collect())
        };
        assert_eq!(of(&tag, "17"), Ok((Digest::parse(digest).unwrap(), 17)));
        let too_long = (LONGEST_BYTES + 1).to_string();
        let lengths = [(&*tag, ""), (&*tag, "0"), (&*tag, "-1"), (&*tag, &*too_long)];
        for (tag, length) in
            [("", "17"), (digest, "17"), (&*format!("W/{tag}"), "17")].into_iter().chain(lengths)
        {
            assert!(of(tag, length).is_err(), "{tag} {length}");
        }
    }
}
