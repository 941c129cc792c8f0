//! The byte budget: staging, encoded output and requests in flight hold owned reservations.
//!
//! Waiters are served by priority, then in order of arrival, and only the first in line is looked at, so
//! a large request is never starved by small ones behind it. A request larger than the whole budget runs
//! alone: it waits until nothing else is reserved, then goes over the limit. Nothing deadlocks as long as
//! nobody asks for a second reservation while holding one; the plans in `read` and `write` ask once per operation.
//!
//! Copies of captured state are *held* ([`Budget::try_hold`]): at most half of the limit, given at once or not at
//! all, and not counted when a request asks to run alone. So what waits to be written never keeps the writing of it
//! from its staging memory.

use crate::tasks::Priority;
use futures::channel::oneshot;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

#[derive(Debug, Default)]
struct State {
    used: u64,
    /// The part of `used` that is held.
    held: u64,
    high_water: u64,
    sequence: u64,
    waiters: BTreeMap<(Priority, u64), Waiter>,
}

#[derive(Debug)]
struct Waiter {
    bytes: u64,
    wake: oneshot::Sender<Reservation>,
}

#[derive(Debug)]
struct Inner {
    limit: u64,
    state: Mutex<State>,
}

/// A limit in bytes that many operations share.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Inner>);

/// Bytes of a [`Budget`], given back on drop.
#[derive(Debug)]
pub struct Reservation {
    budget: Budget,
    bytes: u64,
    held: bool,
}

impl Budget {
    /// Creates a budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Inner { limit, state: Mutex::default() }))
    }

    /// Returns the limit in bytes.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    /// Returns the bytes reserved now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.lock().used
    }

    /// Returns the most bytes that were ever reserved at once.
    #[must_use]
    pub fn high_water(&self) -> u64 {
        self.lock().high_water
    }

    /// Waits for `bytes` and reserves them.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the queue, or gives back what was just granted.
    pub async fn reserve(&self, priority: Priority, bytes: u64) -> Reservation {
        let receive = {
            let mut state = self.lock();
            if state.waiters.is_empty() && self.fits(&state, bytes) {
                return self.grant(&mut state, bytes);
            }
            let (wake, receive) = oneshot::channel();
            let sequence = state.sequence;
            state.sequence += 1;
            state.waiters.insert((priority, sequence), Waiter { bytes, wake });
            receive
        };
        // A request of higher priority may have joined ahead of ones that do not fit.
        self.serve();
        match receive.await {
            Ok(reservation) => reservation,
            // The sender lives in `waiters` until it has sent, and the budget lives in `self`.
            Err(_) => unreachable!("a waiter of the budget is only removed by a grant"),
        }
    }

    /// Holds `bytes` for as long as it takes until they are written; `None` where half of the limit is held.
    #[must_use]
    pub(crate) fn try_hold(&self, bytes: u64) -> Option<Reservation> {
        let mut state = self.lock();
        let held = state.held.checked_add(bytes)?;
        if held > self.0.limit / 2 || state.used.checked_add(bytes)? > self.0.limit {
            return None;
        }
        state.held = held;
        state.used += bytes;
        state.high_water = state.high_water.max(state.used);
        Some(Reservation { budget: self.clone(), bytes, held: true })
    }

    /// Returns how many bytes could be held now.
    pub(crate) fn holdable(&self) -> u64 {
        let state = self.lock();
        let half = (self.0.limit / 2).saturating_sub(state.held);
        half.min(self.0.limit.saturating_sub(state.used))
    }

    fn fits(&self, state: &State, bytes: u64) -> bool {
        state.used == state.held || state.used.saturating_add(bytes) <= self.0.limit
    }

    fn grant(&self, state: &mut State, bytes: u64) -> Reservation {
        state.used += bytes;
        state.high_water = state.high_water.max(state.used);
        Reservation { budget: self.clone(), bytes, held: false }
    }

    fn serve(&self) {
        loop {
            let undelivered = {
                let mut state = self.lock();
                let Some((&order, waiter)) = state.waiters.first_key_value() else { return };
                if !waiter.wake.is_canceled() && !self.fits(&state, waiter.bytes) {
                    return;
                }
                let Some(waiter) = state.waiters.remove(&order) else { return };
                if waiter.wake.is_canceled() {
                    continue;
                }
                let reservation = self.grant(&mut state, waiter.bytes);
                waiter.wake.send(reservation)
            };
            drop(undelivered); // outside the lock: its drop gives the bytes back
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation {
    /// Returns the reserved bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives back what is reserved beyond `bytes`.
    pub fn shrink_to(&mut self, bytes: u64) {
        if bytes < self.bytes {
            let freed = self.bytes - bytes;
            self.bytes = bytes;
            self.give_back(freed);
        }
    }
}

impl Reservation {
    fn give_back(&self, bytes: u64) {
        {
            let mut state = self.budget.lock();
            state.used -= bytes;
            state.held -= if self.held { bytes } else { 0 };
        }
        self.budget.serve();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt, executor::block_on, task::noop_waker_ref};
    use std::task::Context;

    fn poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        match future.poll_unpin(&mut Context::from_waker(noop_waker_ref())) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn a_request_larger_than_the_budget_waits_for_all_and_runs_alone() {
        let budget = Budget::new(100);
        let small = block_on(budget.reserve(Priority::Foreground, 40));
        let mut large = Box::pin(budget.reserve(Priority::Foreground, 500));
        assert!(poll(&mut large).is_none());
        let mut behind = Box::pin(budget.reserve(Priority::Foreground, 1));
        assert!(poll(&mut behind).is_none(), "nothing overtakes the first in line");
        drop(small);
        let large = poll(&mut large).expect("alone now");
        assert_eq!(budget.used(), 500);
        assert!(poll(&mut behind).is_none());
        drop(large);
        drop(poll(&mut behind).expect("free again"));
        assert_eq!((budget.used(), budget.high_water()), (0, 500));
    }

    #[test]
    fn priority_goes_before_arrival_and_dropped_waiters_hold_nobody_up() {
        let budget = Budget::new(10);
        let all = block_on(budget.reserve(Priority::Sweep, 10));
        let mut background = Box::pin(budget.reserve(Priority::Background, 10));
        let mut dropped = Box::pin(budget.reserve(Priority::Restore, 10));
        let mut restore = Box::pin(budget.reserve(Priority::Restore, 10));
        assert!(poll(&mut background).is_none());
        assert!(poll(&mut dropped).is_none());
        assert!(poll(&mut restore).is_none());
        drop(dropped);
        drop(all);
        assert!(poll(&mut background).is_none());
        let restore = poll(&mut restore).expect("first by priority");
        drop(restore);
        drop(poll(&mut background).expect("then the rest"));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_granted_reservation_that_nobody_takes_comes_back() {
        let budget = Budget::new(10);
        let all = block_on(budget.reserve(Priority::Sweep, 10));
        let mut waiting = Box::pin(budget.reserve(Priority::Sweep, 5));
        assert!(poll(&mut waiting).is_none());
        drop(all);
        assert_eq!(budget.used(), 5, "granted, not yet taken");
        drop(waiting);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_is_held_leaves_room_to_write_it() {
        let budget = Budget::new(100);
        let held = budget.try_hold(50).expect("half of it");
        assert!(budget.try_hold(1).is_none());
        let mut large = Box::pin(budget.reserve(Priority::Background, 90));
        let large = poll(&mut large).expect("alone beside what is held");
        assert_eq!((budget.used(), budget.holdable()), (140, 0));
        drop(large);
        drop(held);
        assert_eq!((budget.used(), budget.holdable()), (0, 50));
    }

    #[test]
    fn shrinking_lets_the_next_one_in() {
        let budget = Budget::new(10);
        let mut first = block_on(budget.reserve(Priority::Sweep, 10));
        let mut second = Box::pin(budget.reserve(Priority::Sweep, 6));
        assert!(poll(&mut second).is_none());
        first.shrink_to(4);
        assert!(poll(&mut second).is_some());
    }
}
