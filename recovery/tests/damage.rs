//! What a machine's read of a damaged vault does: it fails, and tells the server once what is damaged and what to do. The
//! same of a vault that goes on to refuse. One that is only away is waited for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]
#![allow(unreachable_pub, dead_code, reason = "helpers that several programs of tests share")]

#[path = "../../applier/tests/support/mod.rs"]
mod support;

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use futures::FutureExt as _;
use lifeboat_applier::core::{Applier, Options, Step};
use lifeboat_recovery::{
    BlockIndex, IndexOptions, PointSelector,
    credentials::Renewal,
    damage::{Lost, MARK, REFUSED_FOR, check_mark, leave_mark},
    exit,
    serve::{self, Server},
};
use lifeboat_replication::{
    ids::{Epoch, RecordNumber},
    store::{
        BlobStore, PutCondition, Refusal, Result,
        gated::{Call, Gate, Gated},
    },
    vault::{Vault, layout},
    wire::v1::RecordKind,
};
use support::{Source, Write, disk_id};
use tokio::{process::Command, time::Instant};

const SIZE: u64 = 2 << 20;

/// A snapshot, and after it a record with a segment in cache storage.
async fn source() -> Source {
    let mut source = Source::new(&[SIZE]).await;
    let write = |first, blocks, byte| vec![Write { disk: 1, first, blocks, byte: Some(byte) }];
    source.record(RecordKind::Copy, false, 0, &[write(0, 512, 1)]).await;
    source.record(RecordKind::Exact, true, 1, &[write(3, 1, 2)]).await;
    let options = Options { point_interval: std::time::Duration::ZERO, ..Options::default() };
    let mut applier = Applier::new(source.vault.clone(), source.server.clone(), source.env.clone(), options);
    while applier.step().await.unwrap() != Step::CaughtUp {}
    source.record(RecordKind::Exact, true, 2, &[write(9, 4, 3), write(100, 4, 4)]).await;
    source
}

struct Rig {
    server: Server,
    dir: tempfile::TempDir,
}

impl Rig {
    /// The latest point, read through `store`.
    async fn serve(source: &Source, store: Arc<dyn BlobStore>) -> Self {
        let vault = Vault { store: Arc::clone(&store), cache: store, ..source.vault.clone() };
        Self::of(source, &vault).await
    }

    async fn of(source: &Source, vault: &Vault) -> Self {
        let options = IndexOptions::default();
        let latest = PointSelector::Latest;
        let index = BlockIndex::open(vault, &source.server, &source.env, latest, &options).await.unwrap();
        assert!(index.point().base.is_some() && index.journal_runs() > 0, "both kinds of blobs are needed");
        let dir = tempfile::tempdir().unwrap();
        let server = serve::start(&index, &source.server, dir.path(), dir.path(), REFUSED_FOR).unwrap();
        Self { server, dir }
    }

    /// The whole disk, read by QEMU; `None`: a read failed.
    async fn read(&self) -> Option<Vec<u8>> {
        let out = self.dir.path().join("out.raw");
        let url = format!("nbd+unix:///?socket={}/1.sock", self.dir.path().display());
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", "raw", &url]).arg(&out);
        convert.output().await.unwrap().status.success().then(|| std::fs::read(out).unwrap())
    }

    fn lost(&self) -> Option<Lost> {
        self.server.lost().now_or_never()
    }
}

#[tokio::test]
async fn a_segment_that_is_changed_cut_or_gone_is_named_with_the_remedy() {
    for how in ["changed", "cut", "gone"] {
        let source = source().await;
        let rig = Rig::serve(&source, Arc::new(source.store.clone())).await;
        let number = *source.points.keys().last().unwrap();
        let name = layout::segment(&source.server, Epoch(1), RecordNumber(number), "writer", 0);
        let mut content = source.store.get(&name, None, None).await.unwrap().to_vec();
        match how {
            "changed" => *content.last_mut().unwrap() ^= 1,
            _ => content.truncate(content.len() - 1),
        }
        if how == "gone" {
            source.store.delete(&name, None).await.unwrap();
        } else {
            source.store.put(&name, content.into(), &PutCondition::Always).await.unwrap();
        }
        assert_eq!(rig.lost(), None, "{how}: nothing was read yet");
        assert!(rig.read().await.is_none(), "{how}");
        let damaged = rig.lost().unwrap_or_else(|| panic!("{how}: the server goes on"));
        let (text, remedy) = (damaged.to_string(), format!("or choose a point before record {number}"));
        assert!(text.contains(&name) && text.contains("restore it from the store's"), "{how}: {text}");
        assert!(text.ends_with(&remedy), "{how}: {text}");
        assert_eq!(exit::code(&damaged), exit::DAMAGED);
    }
}

/// One that is gone or cut before is no base: the point is then read from the journal.
#[tokio::test]
async fn a_snapshot_that_goes_while_it_is_read_is_named_with_the_remedy() {
    let source = source().await;
    let name = layout::seed_disk(&source.server, &disk_id(1));
    let rig = Rig::serve(&source, Arc::new(source.store.clone())).await;
    let page = source.store.list(&name, true, None).await.unwrap();
    for blob in page.blobs.iter().filter(|blob| blob.name == name && blob.snapshot.is_some()) {
        source.store.delete(&name, blob.snapshot.as_ref()).await.unwrap();
    }
    assert!(rig.read().await.is_none());
    let text = rig.lost().unwrap().to_string();
    assert!(text.contains(&name) && text.contains("or choose another point"), "{text}");
}

/// Answers so many calls instead of the store.
#[derive(Debug)]
struct Ill {
    left: AtomicU32,
    refusal: Option<Refusal>,
}

impl Gate for Ill {
    async fn pass<T: Send>(
        &self,
        call: Call<'_>,
        request: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        match (left, self.refusal) {
            (Err(_), _) => request.await,
            (Ok(_), Some(why)) => Err(call.refused(why, "planted")),
            (Ok(_), None) => Err(call.unknown("planted")),
        }
    }
}

/// A rig whose store answers the next so many calls with a refusal, or (`None`) not at all.
async fn ill(refusal: Option<Refusal>, calls: u32) -> (Source, Rig) {
    let source = source().await;
    let store = Gated::new(Arc::new(source.store.clone()), Ill { left: AtomicU32::new(0), refusal });
    let rig = Rig::serve(&source, store.clone()).await;
    store.left.store(calls, Ordering::Relaxed);
    (source, rig)
}

/// As with a disk of a network: the guest's reads wait.
#[tokio::test(start_paused = true)]
async fn a_vault_that_is_away_ends_nothing_and_is_waited_for() {
    let began = Instant::now();
    let (source, rig) = ill(None, 10_000).await;
    assert!(rig.read().await.unwrap() == source.images[&1], "the disk differs");
    assert!(began.elapsed() > REFUSED_FOR, "it was not away for long");
    assert_eq!(rig.lost(), None);
}

#[tokio::test(start_paused = true)]
async fn a_vault_that_refuses_for_a_while_is_asked_again() {
    for why in [Refusal::Denied, Refusal::NoContainer] {
        let (source, rig) = ill(Some(why), 50).await;
        assert!(rig.read().await.unwrap() == source.images[&1], "{why}: the disk differs");
        assert_eq!(rig.lost(), None, "{why}");
    }
}

/// The key was rotated: the old one is denied for good, and the Secret has the new one after a while.
#[tokio::test(start_paused = true)]
async fn a_credential_that_is_not_valid_any_more_is_read_again() {
    let source = source().await;
    let refusal = Some(Refusal::Denied);
    let old = Gated::new(Arc::new(source.store.clone()), Ill { left: AtomicU32::new(0), refusal });
    let (vault, renewal) =
        Renewal::of(Vault { store: old.clone(), cache: old.clone(), ..source.vault.clone() });
    let looks = Arc::new(AtomicU32::new(0));
    let (looked, still, new) = (looks.clone(), old.clone(), source.store.clone());
    let renewing = tokio::spawn(renewal.run(move || {
        let store: Arc<dyn BlobStore> = match looked.fetch_add(1, Ordering::Relaxed) {
            0..9 => still.clone(),
            _ => Arc::new(new.clone()),
        };
        Ok((store.clone(), store))
    }));
    let rig = Rig::of(&source, &vault).await;
    assert_eq!(looks.load(Ordering::Relaxed), 0, "nothing was denied yet");
    old.left.store(u32::MAX, Ordering::Relaxed);
    assert!(rig.read().await.unwrap() == source.images[&1], "the disk differs");
    assert_eq!(rig.lost(), None);
    assert!(looks.load(Ordering::Relaxed) >= 10, "it was read before the new credential was there");
    renewing.abort();
}

#[tokio::test(start_paused = true)]
async fn a_vault_that_goes_on_to_refuse_ends_the_server_after_minutes_and_says_why() {
    for (why, words) in [
        (Refusal::Denied, "check what spec.vault.azure.authentication says"),
        (Refusal::NoContainer, "the container does not exist"),
    ] {
        let (_source, rig) = ill(Some(why), u32::MAX).await;
        let began = Instant::now();
        assert!(rig.read().await.is_none(), "{why}: it is read without a vault");
        assert!(began.elapsed() >= REFUSED_FOR, "{why}: {:?}", began.elapsed());
        let lost = rig.lost().unwrap();
        assert_eq!(exit::code(&lost), exit::REFUSED, "{why}");
        let text = lost.to_string();
        assert!(text.contains(words) && text.contains("start the machine anew"), "{text}");
        // Started again by the kubelet, it says the same.
        let (overlays, sockets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        leave_mark(overlays.path(), sockets.path(), &lost).unwrap();
        assert_eq!(check_mark(overlays.path(), sockets.path()), Err(lost), "{why}");
        assert!(sockets.path().join(MARK).exists(), "the machine is not switched off");
    }
}
