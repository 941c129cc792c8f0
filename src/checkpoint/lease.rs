//! The heartbeat of an attempt on an object store: its claim is written again while the save goes on.
//!
//! Leases only decide when somebody may try to take over; what is right is decided by conditional creates.

use crate::{
    error::Result,
    store::Place,
    tasks::{Pool, Priority, wait},
};
use bytes::Bytes;
use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

/// A fifth of what it takes for an attempt to count as abandoned.
const RENEWAL: Duration = Duration::from_mins(1);

#[derive(Debug, Default)]
struct Stop {
    ended: Mutex<bool>,
    wake: Condvar,
}

/// Renews a claim until it is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    stop: Arc<Stop>,
    _thread: Pool,
}

impl Lease {
    /// Starts to renew the claim at `key` with the bytes it was made with.
    ///
    /// # Errors
    /// `Unavailable` where the system refuses a thread.
    pub(crate) fn start(place: &Place, key: &str, claim: &Bytes) -> Result<Self> {
        let thread = Pool::new("milepost-lease", 1)?;
        let stop = Arc::new(Stop::default());
        let (store, key, claim) = (Arc::clone(place.store()), key.to_owned(), claim.clone());
        let watched = Arc::clone(&stop);
        thread.launch(Priority::Foreground, move || {
            let mut ended = watched.ended.lock().unwrap_or_else(PoisonError::into_inner);
            while !*ended {
                let (guard, timeout) = watched
                    .wake
                    .wait_timeout(ended, RENEWAL)
                    .unwrap_or_else(PoisonError::into_inner);
                ended = guard;
                if timeout.timed_out() && !*ended {
                    drop(ended); // who ends the lease must not wait for the network
                    let put = store.put(&key, vec![claim.clone()], Priority::Foreground);
                    if let Err(error) = wait(put) {
                        tracing::warn!(%error, "a lease could not be renewed");
                    }
                    ended = watched.ended.lock().unwrap_or_else(PoisonError::into_inner);
                }
            }
        });
        Ok(Self { stop, _thread: thread })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        *self.stop.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.wake.notify_all();
    }
}
