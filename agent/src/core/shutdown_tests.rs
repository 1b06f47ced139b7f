//! A server that is taken out of service by order, under load, with a connection that breaks.

use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::{BoxFuture, FutureExt as _};
use lifeboat_replication::wire::v1::ShutdownState;

use super::*;
use crate::edge::{Begun, Power, PowerError};

/// Stopping takes a while, in which the load goes on writing.
#[derive(Debug, Default)]
struct Switch {
    quiet: Arc<AtomicBool>,
    off: AtomicBool,
}

impl Power for Switch {
    fn begin(&self, _id: &str) -> Result<Begun, PowerError> {
        Ok(Begun::Now)
    }

    fn quiet(&self) -> BoxFuture<'static, Result<(), PowerError>> {
        let quiet = Arc::clone(&self.quiet);
        async move {
            sleep(Duration::from_secs(3)).await;
            quiet.store(true, Ordering::Relaxed);
            Ok(())
        }
        .boxed()
    }

    fn off(&self) {
        self.off.store(true, Ordering::Relaxed);
    }
}

/// Writes until the machine is quiet.
async fn load(machine: Machine, random: Random, quiet: Arc<AtomicBool>) {
    let mut value = 1;
    while !quiet.load(Ordering::Relaxed) {
        let block = u32::try_from(random.below(24)).unwrap();
        machine.write((DiskSlot(1), block), value);
        value += 1;
        sleep(random.millis(200)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_goes_off_when_all_that_it_ever_wrote_is_in_the_vault() {
    for seed in 0..20 {
        let mut world = World::new(seed, if seed % 2 == 0 { 0 } else { 30 });
        let switch = Arc::new(Switch::default());
        world.power = Some(switch.clone());
        let agent = world.start();
        sleep(Duration::from_secs(60)).await;
        let load = tokio::spawn(load(world.machine.clone(), world.random.clone(), Arc::clone(&switch.quiet)));
        sleep(Duration::from_secs(10)).await;
        *world.server.shutdown.lock().unwrap() = "1".to_owned();
        // Until it is off: nothing that is written later would be replicated.
        let mut waited = 0;
        while !switch.off.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(100)).await;
            waited += 1;
            assert!(waited < 3000, "seed {seed}: never off");
        }
        agent.abort();
        load.await.unwrap();
        assert_eq!(world.check().or_else(|| world.not_at_rest()), None, "seed {seed}");
        let vault = world.server.vault.lock().unwrap();
        let answer = vault.shutdown.clone().unwrap();
        assert_eq!((answer.id.as_str(), answer.state()), ("1", ShutdownState::Off));
        assert_eq!(
            vault.ends.last().map(v1::End::kind),
            Some(v1::RecordKind::Exact),
            "its last state is a point"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_copy_is_under_way_or_without_leave_nothing_is_stopped() {
    let mut world = World::new(3, 0);
    world.machine.set_read_time(Duration::from_millis(900));
    let switch = Arc::new(Switch::default());
    world.power = Some(switch.clone());
    let agent = world.start();
    *world.server.shutdown.lock().unwrap() = "1".to_owned();
    sleep(Duration::from_secs(5)).await;
    agent.abort();
    let refused = world.server.vault.lock().unwrap().shutdown.clone().unwrap();
    assert_eq!((refused.state(), refused.reason.as_str()), (ShutdownState::Refused, "CopyUnderWay"));
    world.machine.set_read_time(Duration::ZERO);
    world.power = None;
    let agent = world.start();
    sleep(Duration::from_secs(90)).await;
    *world.server.shutdown.lock().unwrap() = "2".to_owned();
    sleep(Duration::from_secs(5)).await;
    agent.abort();
    let refused = world.server.vault.lock().unwrap().shutdown.clone().unwrap();
    assert_eq!((refused.state(), refused.reason.as_str()), (ShutdownState::Refused, "NotAllowed"));
    assert!(!switch.quiet.load(Ordering::Relaxed));
}
