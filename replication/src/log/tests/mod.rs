//! The log against a store that answers as a test says: what each answer does to writer, takeover and reader.

mod beginning;
mod reader;
mod scripted;
mod takeover;
mod writer;

use std::sync::Arc;

use self::scripted::{Script, Scripted};
use super::{LogOptions, LogReader, LogState, LogWriter, Order, PartName, Patience, TakeOverError, part};
use crate::{
    env::Env,
    ids::{Epoch, ServerId},
    keys::DataKeys,
    store::{BlobStore, LeaseId, model::ModelStore},
    vault::Vault,
    wire::v1::{self, log_record::Body},
};

/// A server's log in a store of its own.
struct Site {
    store: Arc<Scripted>,
    vault: Vault,
    server: ServerId,
    env: Env,
}

impl Site {
    fn new() -> Self {
        let env = Env::system();
        let store = Script::before_model();
        let vault = Vault {
            store: store.clone(),
            cache: store.clone(),
            keys: Arc::new(DataKeys::generate(&*env.entropy)),
            id: "vault".to_owned(),
        };
        Self { store, vault, server: ServerId::from_random([7; 16]), env }
    }

    fn patience(&self) -> Patience {
        Patience::new(self.env.clone())
    }

    async fn take(&self, who: &str, order: Order) -> Result<LogWriter, TakeOverError> {
        self.take_with(who, order, LogOptions::default()).await
    }

    async fn take_with(
        &self,
        who: &str,
        order: Order,
        options: LogOptions,
    ) -> Result<LogWriter, TakeOverError> {
        LogWriter::take_over(&self.vault, &self.server, who, &self.env, order, options).await
    }

    /// A writer that has committed records 1 to `records`, and goes on in another part after two appends.
    async fn written(&self, records: u64) -> LogWriter {
        let options = LogOptions { rotate_after_appends: 2, ..LogOptions::default() };
        let mut writer = self.take_with("ps", Order::Forced, options).await.unwrap();
        for number in 1..=records {
            writer.append(data(number)).await.unwrap();
        }
        writer
    }

    fn reader(&self) -> LogReader {
        LogReader::from_start(&self.vault, &self.server, &self.env)
    }

    /// Numbers of all records that a reader finds.
    async fn numbers(&self) -> Vec<u64> {
        let history = super::history(&self.vault, &self.server, &self.env).await.unwrap();
        history.into_iter().map(|(_, data)| data.number).collect()
    }

    async fn parts(&self) -> Vec<PartName> {
        part::list(&self.vault, &self.server, &self.patience()).await.unwrap()
    }

    fn blob(&self, part: PartName) -> String {
        part.blob(&self.server)
    }

    /// Bytes that no writer of ours has appended: a part that is cut off in the middle of a frame looks like that.
    async fn append_foreign(&self, part: PartName, bytes: &'static [u8]) {
        let (blob, lease) = (self.blob(part), LeaseId("foreign".into()));
        let length = self.store.properties(&blob, None).await.unwrap().length;
        self.store.break_lease(&blob).await.unwrap();
        self.store.acquire_lease(&blob, &lease, LogOptions::default().lease_term).await.unwrap();
        self.store.append(&blob, bytes.into(), &lease, length).await.unwrap();
        self.store.break_lease(&blob).await.unwrap();
    }
}

/// One blob becomes what it was in `older`, and is not sealed; all others stay as they are.
async fn put_back(store: &ModelStore, blob: &str, older: &ModelStore) {
    let (bytes, lease) = (older.get(blob, None, None).await.unwrap(), LeaseId("backup".into()));
    store.break_lease(blob).await.unwrap();
    store.delete(blob, None).await.unwrap();
    store.create_append(blob).await.unwrap();
    store.acquire_lease(blob, &lease, LogOptions::default().lease_term).await.unwrap();
    store.append(blob, bytes, &lease, 0).await.unwrap();
    store.break_lease(blob).await.unwrap();
}

fn name(epoch: u32, part: u32) -> PartName {
    PartName { epoch: Epoch(epoch), part }
}

fn data(number: u64) -> Body {
    Body::Data(v1::Data { first_number: number, number, ..Default::default() })
}

/// A record that fills most of a frame.
fn large(number: u64) -> Body {
    let inline_segment = vec![1; 3 << 20];
    Body::Data(v1::Data { first_number: number, number, inline_segment, ..Default::default() })
}
