//! What a failure needs: fault classes and parts of the load are switched off one by one.
//!
//! What is left over is a smaller schedule that fails too, not always in the same way: its message stands beside it.

use crate::{faults::Class, load::Simpler, world::Schedule};

/// A schedule may come to fail by another path; more than this many steps are not needed to read it.
fn fails(schedule: &Schedule) -> Option<String> {
    schedule.run().bad
}

/// Tries to do without each class and each complication of the load, and says what the smallest schedule needs.
pub(crate) fn smallest(schedule: &Schedule) -> String {
    let mut smallest = Schedule { trace: false, ..schedule.clone() };
    let Some(mut why) = fails(&smallest) else {
        return "it did not fail again: something is not deterministic".to_owned();
    };
    for class in drawn(schedule) {
        let mut without = smallest.clone();
        without.off.push(class);
        if let Some(bad) = fails(&without) {
            (smallest, why) = (without, bad);
        }
    }
    for simpler in Simpler::ALL {
        let mut with = smallest.clone();
        with.simpler.push(*simpler);
        if let Some(bad) = fails(&with) {
            (smallest, why) = (with, bad);
        }
    }
    let needed: Vec<_> = drawn(&smallest).into_iter().map(Class::name).collect();
    let simpler: Vec<_> = smallest.simpler.iter().map(|simpler| simpler.name()).collect();
    format!("it needs [{}], and no more load than [{}]: {why}", needed.join(", "), simpler.join(", "))
}

/// Classes that the schedule has.
fn drawn(schedule: &Schedule) -> Vec<Class> {
    schedule.drawn().0.chances().into_iter().map(|(class, _)| class).collect()
}
