//! A small NBD server: fixed newstyle negotiation, simple replies, requests in parallel.
//!
//! One listener serves one disk; every client of it sees the same disk (multi-connection is announced). It speaks
//! what QEMU, `qemu-img`, `nbdcopy` and the kernel's client need and refuses the rest politely. TLS is not offered:
//! the only transport is a Unix socket whose folder's permissions decide who may connect.

pub mod handshake;
pub mod protocol;
pub mod session;

use std::sync::Arc;

use tokio::{net::UnixListener, task::JoinSet};

use crate::device::Device;

/// Serves `device` to whoever connects, until dropped: that ends all sessions.
///
/// `name` is the export name that `NBD_OPT_LIST` shows; the empty name means the same disk.
pub async fn serve(listener: UnixListener, name: String, device: Arc<dyn Device>) {
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = sessions.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (name, device) = (name.clone(), Arc::clone(&device));
                    sessions.spawn(async move {
                        if let Err(error) = client(stream, &name, device).await {
                            tracing::warn!(export = %name, %error, "a client's session ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(export = %name, %error, "no client can be accepted; trying again");
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                }
            }
        }
    }
}

async fn client(stream: tokio::net::UnixStream, name: &str, device: Arc<dyn Device>) -> std::io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    match handshake::negotiate(&mut reader, &mut writer, name, device.size()).await? {
        handshake::Negotiated::Transmission => session::transmit(reader, writer, device).await,
        handshake::Negotiated::Ended => Ok(()),
    }
}
