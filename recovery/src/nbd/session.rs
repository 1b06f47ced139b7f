//! The transmission phase: reads requests in order, performs them in parallel, answers each when it is done.
//!
//! Bounds: [`PARALLEL`] requests and [`BUDGET_KIB`] of payload are under way per client; beyond that its next
//! request is not read. What cannot be read is answered with an I/O error and logged with the blob's name; the session goes
//! on, since the client may try again. When reads of the vault wait, fail, or end the server, says [`crate::damage`].

use std::{io, sync::Arc};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};

use super::protocol::*;
use crate::device::Device;

/// Requests of one client under way: enough to hide the store's latency behind a booting machine's reads.
const PARALLEL: usize = 32;
/// Payload of one client under way in KiB: two of the largest requests.
const BUDGET_KIB: u32 = 2 * (MAX_PAYLOAD_BYTES >> 10);

/// Serves requests until the client says goodbye or breaks the connection.
///
/// # Errors
/// When the connection breaks or the client sends no requests.
pub async fn transmit<R, W>(mut reader: R, writer: W, device: Arc<dyn Device>) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let writer = Arc::new(Mutex::new(writer));
    let parallel = Arc::new(Semaphore::new(PARALLEL));
    let budget = Arc::new(Semaphore::new(BUDGET_KIB as usize));
    let mut requests = JoinSet::new();
    loop {
        let mut head = [0; REQUEST_BYTES];
        match reader.read_exact(&mut head).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
        let Some(request) = Request::parse(&head) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the client sent something that is not a request",
            ));
        };
        if request.command == CMD_DISC {
            break;
        }
        let carries = matches!(request.command, CMD_READ | CMD_WRITE);
        if carries && request.length > MAX_PAYLOAD_BYTES {
            if request.command == CMD_WRITE {
                // Its payload follows; there is no way to go on without taking it all.
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a write request is larger than 32 MiB",
                ));
            }
            answer(&writer, request.cookie, Err(EINVAL)).await?;
            continue;
        }
        let permits = (
            acquire(&parallel, 1).await?,
            acquire(&budget, if carries { request.length.div_ceil(1024) } else { 0 }).await?,
        );
        let mut payload = Vec::new();
        if request.command == CMD_WRITE {
            payload.resize(request.length as usize, 0);
            reader.read_exact(&mut payload).await?;
        }
        while requests.try_join_next().is_some() {}
        let (device, writer) = (Arc::clone(&device), Arc::clone(&writer));
        requests.spawn(async move {
            let result = perform(device.as_ref(), &request, payload.into()).await;
            // A broken connection is noticed by the reading side.
            let _ = answer(&writer, request.cookie, result).await;
            drop(permits);
        });
    }
    while requests.join_next().await.is_some() {}
    Ok(())
}

async fn acquire(semaphore: &Arc<Semaphore>, permits: u32) -> io::Result<OwnedSemaphorePermit> {
    Arc::clone(semaphore).acquire_many_owned(permits).await.map_err(io::Error::other)
}

async fn answer<W: AsyncWrite + Unpin>(
    writer: &Mutex<W>,
    cookie: u64,
    result: Result<Bytes, u32>,
) -> io::Result<()> {
    let (error, data) = match result {
        Ok(data) => (0, data),
        Err(error) => (error, Bytes::new()),
    };
    let mut writer = writer.lock().await;
    writer.write_all(&simple_reply(cookie, error)).await?;
    writer.write_all(&data).await?;
    writer.flush().await
}

async fn perform(device: &dyn Device, request: &Request, payload: Bytes) -> Result<Bytes, u32> {
    let Request { flags, command, cookie: _, offset, length } = *request;
    let inside = offset.checked_add(u64::from(length)).is_some_and(|end| end <= device.size());
    let result = match command {
        CMD_FLUSH => device.flush().await.map(|()| Bytes::new()),
        CMD_READ | CMD_TRIM if !inside => return Err(EINVAL),
        CMD_WRITE | CMD_WRITE_ZEROES if !inside => return Err(ENOSPC),
        CMD_READ => device.read(offset, length).await,
        CMD_WRITE => device.write(offset, payload).await.map(|()| Bytes::new()),
        CMD_TRIM | CMD_WRITE_ZEROES => device.zero(offset, u64::from(length)).await.map(|()| Bytes::new()),
        _ => return Err(ENOTSUP),
    };
    let result = match result {
        Ok(data)
            if flags & CMD_FLAG_FUA != 0 && matches!(command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES) =>
        {
            device.flush().await.map(|()| data)
        }
        other => other,
    };
    result.map_err(|error| {
        tracing::error!(command, offset, length, error = %lifeboat_replication::errors::chain(&error), "a request failed");
        if error.kind() == io::ErrorKind::StorageFull { ENOSPC } else { EIO }
    })
}
