//! The machine that the engine runs on in a simulation: its clock, its processes, the time of its stores.

use super::executor::Core;
use crate::{clock::Clock, tasks::simulated::Machine};
use futures::future::BoxFuture;
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The wall clock when a simulation begins.
const BEGAN: Duration = Duration::from_hours(500_000);

/// [`Core`] as the engine and the leases see it.
#[derive(Clone, Debug)]
pub(super) struct Simulated(pub(super) Arc<Core>);

impl Machine for Simulated {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.0.spawn_in(self.0.current(), task);
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep_for(time)
    }

    fn time(&self) -> SystemTime {
        UNIX_EPOCH + BEGAN + self.0.now()
    }

    fn process(&self) -> (String, u32) {
        let process = self.0.current();
        (format!("host-{}", self.0.host(process)), process)
    }

    fn is_alive(&self, process: u32) -> bool {
        self.0.lives(process)
    }
}

impl Clock for Simulated {
    fn unix_ms(&self) -> u64 {
        u64::try_from((BEGAN + self.0.now()).as_millis()).unwrap()
    }

    fn elapsed(&self) -> Duration {
        self.0.now()
    }

    fn unique_id(&self) -> u128 {
        u128::from(self.0.draw()) << 64 | u128::from(self.0.draw())
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep_for(time)
    }
}
