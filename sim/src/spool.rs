//! A process server's spool on a volume that fills up, and that loses the end of what was written to it.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use lifeboat_process_server::core::spool::{MemSpool, Spool, SpoolError};

use crate::{faults::Class, net::Net};

#[derive(Debug)]
pub(crate) struct SimSpool {
    pub(crate) volume: MemSpool,
    pub(crate) net: Arc<Net>,
}

#[async_trait]
impl Spool for SimSpool {
    async fn write(&self, name: &str, content: Bytes) -> Result<(), SpoolError> {
        let dice = &self.net.dice;
        if dice.roll(Class::SpoolFull) {
            let source = std::io::ErrorKind::StorageFull.into();
            return Err(SpoolError { what: "write", name: name.to_owned(), source });
        }
        let kept = match dice.roll(Class::SpoolTorn) {
            true => content.slice(..dice.below(Class::SpoolTorn, content.len() as u64) as usize),
            false => content,
        };
        self.volume.write(name, kept).await
    }

    async fn read(&self, name: &str) -> Result<Bytes, SpoolError> {
        self.volume.read(name).await
    }

    async fn remove(&self, name: &str) -> Result<(), SpoolError> {
        self.volume.remove(name).await
    }

    async fn list(&self, server: &str) -> Result<Vec<String>, SpoolError> {
        self.volume.list(server).await
    }

    async fn keep_only(&self, servers: &BTreeSet<String>) -> Result<(), SpoolError> {
        self.volume.keep_only(servers).await
    }

    async fn clear(&self, server: &str) -> Result<(), SpoolError> {
        self.volume.clear(server).await
    }
}
