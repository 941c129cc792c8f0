//! A launcher whose messages are late, lost or come twice, and whose members vanish.

use super::{executor::Core, machine::Simulated};
use crate::{
    checkpoint::parts::rendezvous::{Rendezvous, timed_out, within},
    error::{Error, Result},
};
use bytes::Bytes;
use futures::{FutureExt, channel::oneshot, future::BoxFuture};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

#[derive(Debug, Default)]
struct State {
    /// The process that spoke first for an index, and what it said.
    rounds: BTreeMap<String, BTreeMap<usize, (u32, Bytes)>>,
    /// Who is, or was last, a participant.
    members: BTreeMap<usize, u32>,
    waiting: Vec<oneshot::Sender<()>>,
}

/// What connects the members of one job.
#[derive(Debug)]
pub(super) struct Launcher {
    core: Arc<Core>,
    count: usize,
    /// Whether it finds out, after a while, who has died.
    notices: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct Member {
    launcher: Arc<Launcher>,
    index: usize,
    process: u32,
    sequence: AtomicU64,
}

impl Launcher {
    pub(super) fn new(core: &Arc<Core>, count: usize) -> Arc<Self> {
        let notices = core.chance(500);
        Arc::new(Self { core: Arc::clone(core), count, notices, state: Mutex::default() })
    }

    /// Makes the process that is at work now a member.
    pub(super) fn member(self: &Arc<Self>, index: usize) -> Member {
        let process = self.core.current();
        self.state().members.insert(index, process);
        Member { launcher: Arc::clone(self), index, process, sequence: AtomicU64::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn give(&self, round: &str, index: usize, (process, value): (u32, Bytes)) {
        let waiting = {
            let mut state = self.state();
            let round = state.rounds.entry(round.to_owned()).or_default();
            round.entry(index).or_insert((process, value));
            std::mem::take(&mut state.waiting)
        };
        for waiting in waiting {
            let _gone = waiting.send(());
        }
    }

    fn missing(&self, round: &str, from: &[usize]) -> Vec<usize> {
        let state = self.state();
        let given = state.rounds.get(round);
        let is_missing = |index: &usize| given.is_none_or(|given| !given.contains_key(index));
        from.iter().copied().filter(is_missing).collect()
    }
}

impl Member {
    /// Sends a value; nobody knows whether it comes.
    fn send(&self, round: &str, value: &Bytes) {
        let core = &self.launcher.core;
        let weather = core.weather(self.process);
        let mut delay = core.micros(1, weather.delay.max(1));
        if core.chance(weather.late) {
            core.strike(self.process, "late messages");
            delay += core.micros(100_000, 40_000_000);
        }
        let mut copies = vec![delay];
        if core.chance(weather.lost) {
            core.strike(self.process, "lost messages");
            copies.clear();
        } else if core.chance(weather.twice) {
            core.strike(self.process, "messages twice");
            copies.push(delay + core.micros(1, 10_000_000));
        }
        for delay in copies {
            let (launcher, round) = (Arc::clone(&self.launcher), round.to_owned());
            let (index, process, value) = (self.index, self.process, value.clone());
            core.after(delay, move || {
                launcher.core.trace(process, &["says", &round]);
                launcher.give(&round, index, (process, value));
            });
        }
    }

    /// Waits for what others say.
    async fn hear(&self, round: &str, from: &[usize]) -> Result<Vec<Bytes>> {
        let launcher = &self.launcher;
        let conflict =
            || Error::conflict("a participant is there twice").with("participant", self.index);
        loop {
            let told = {
                let mut state = launcher.state();
                let first = state.rounds.get(round).and_then(|given| given.get(&self.index));
                if first.is_some_and(|(process, _)| *process != self.process) {
                    return Err(conflict());
                }
                let (tell, told) = oneshot::channel();
                state.waiting.push(tell);
                told
            };
            let missing = launcher.missing(round, from);
            if missing.is_empty() {
                let state = launcher.state();
                let given = &state.rounds[round];
                return Ok(from.iter().map(|index| given[index].1.clone()).collect());
            }
            let look = launcher.core.sleep_for(Duration::from_secs(2));
            let heard = futures::future::select(told, look).await;
            let is_late = matches!(heard, futures::future::Either::Right(_));
            let is_gone = |index: &&usize| {
                let process = launcher.state().members.get(*index).copied();
                process.is_some_and(|process| launcher.core.is_dead(process))
            };
            if is_late && launcher.notices && missing.iter().any(|index| is_gone(&index)) {
                return Err(Error::unavailable("participants are gone").with("round", round));
            }
        }
    }

    async fn round(
        &self,
        (round, from): (String, Vec<usize>),
        value: Option<Bytes>,
        deadline: Duration,
    ) -> Result<Vec<Bytes>> {
        let core = &self.launcher.core;
        let began = core.now();
        if let Some(value) = value {
            self.send(&round, &value);
        }
        let clock = Simulated(Arc::clone(core));
        let heard = within(&clock, deadline, self.hear(&round, &from)).await;
        let Some(heard) = heard else {
            return Err(timed_out(&round, &self.launcher.missing(&round, &from)));
        };
        let weather = core.weather(self.process);
        let mut delay = core.micros(1, weather.delay.max(1));
        if core.chance(weather.late) {
            core.strike(self.process, "late messages");
            delay += core.micros(100_000, 40_000_000);
        }
        let left = (began + deadline).saturating_sub(core.now());
        if core.chance(weather.lost) {
            core.strike(self.process, "lost messages");
            delay = left + Duration::from_micros(1);
        }
        core.sleep_for(delay.min(left)).await;
        if delay > left {
            return Err(timed_out(&round, &from));
        }
        heard
    }
}

impl Rendezvous for Member {
    fn index(&self) -> usize {
        self.index
    }

    fn count(&self) -> usize {
        self.launcher.count
    }

    fn sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    fn all_gather(
        &self,
        round: &str,
        value: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        let all = (0..self.launcher.count).collect();
        self.round((round.to_owned(), all), Some(value), deadline).boxed()
    }

    fn broadcast(
        &self,
        round: &str,
        from: usize,
        value: Option<Bytes>,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<Bytes>> {
        let value = value.filter(|_| from == self.index);
        let round = round.to_owned();
        async move {
            if let Some(value) = value {
                // It does not wait for those who hear it.
                self.send(&round, &value);
                return Ok(value);
            }
            Ok(self.round((round, vec![from]), None, deadline).await?.swap_remove(0))
        }
        .boxed()
    }
}
