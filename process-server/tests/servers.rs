//! Assignments come and go: the ingest of a server starts and ends with them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use lifeboat_process_server::{
    core::{
        space::Space,
        spool::{MemSpool, Spool as _},
    },
    directory::Directory,
    servers::{Members, Servers},
};
use lifeboat_replication::wire::v1;
use support::World;
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

fn directory(assigned: &[(&str, &str)]) -> Option<Arc<Directory>> {
    let servers = assigned.iter().map(|(id, process_server)| v1::Assignment {
        server_id: (*id).to_owned(),
        process_server: (*process_server).to_owned(),
        display_name: "default/web".into(),
        ..Default::default()
    });
    let configuration = v1::Configuration { servers: servers.collect(), ..Default::default() };
    Some(Arc::new(configuration.into()))
}

async fn members(members: &mut watch::Receiver<Arc<Members>>, count: usize) -> Arc<Members> {
    let reached = timeout(Duration::from_secs(60), members.wait_for(|members| members.len() == count)).await;
    reached.expect("never so many members").unwrap().clone()
}

/// What was received of a server that has moved since would fill the volume for ever.
#[tokio::test(start_paused = true)]
async fn what_a_spool_holds_of_servers_that_are_elsewhere_is_removed_at_the_start() {
    let world = World::new();
    let id = world.server.to_string();
    let elsewhere = "22222222-2222-4222-8222-222222222222";
    let spool = Arc::new(MemSpool::default());
    for server in [&id, elsewhere] {
        spool.write(&format!("{server}/x"), Bytes::from_static(b"content")).await.unwrap();
    }
    let (_configure, directories) = watch::channel(directory(&[(&id, "ps-0"), (elsewhere, "ps-1")]));
    let (lists, mut listed) = watch::channel(Arc::new(Members::new()));
    let servers =
        Servers::new(world.shared("ps-0", Arc::clone(&spool), Space::spool(64 << 20)), directories, lists);
    let running = tokio::spawn(servers.run(std::future::pending()));
    members(&mut listed, 1).await;
    assert_eq!((spool.bytes_of(elsewhere), spool.bytes_of(&id)), (0, 7));
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn only_what_is_assigned_here_runs_and_what_is_not_any_more_is_released() {
    let world = World::new();
    let id = world.server.to_string();
    let shared = world.shared("ps-0", Arc::new(MemSpool::default()), Space::spool(64 << 20));
    let (configure, directories) = watch::channel(None);
    let (lists, mut listed) = watch::channel(Arc::new(Members::new()));
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(Servers::new(shared, directories, lists).run(async {
        let _ = stopped.await;
    }));

    let elsewhere = "22222222-2222-4222-8222-222222222222";
    configure.send_replace(directory(&[(&id, "ps-0"), (elsewhere, "ps-1"), ("no-id", "ps-0")]));
    let mut member = members(&mut listed, 1).await.get(&id).unwrap().clone();
    member.status.wait_for(|status| status.holds_log && status.display_name == "default/web").await.unwrap();

    configure.send_replace(directory(&[(&id, "ps-1")]));
    members(&mut listed, 0).await;
    // Released, so another one has it at once.
    let mut other = world.process_server("ps-1");
    let taken = timeout(Duration::from_secs(5), other.until("taken over", |status| status.holds_log)).await;
    assert!(taken.is_ok());
    other.assign.send_replace(None);
    other.running.await.unwrap();

    configure.send_replace(directory(&[(&id, "ps-0")]));
    let mut member = members(&mut listed, 1).await.get(&id).unwrap().clone();
    member.status.wait_for(|status| status.holds_log && status.report.epoch == 3).await.unwrap();
    stop.send(()).unwrap();
    timeout(Duration::from_secs(20), running).await.unwrap().unwrap();
}
