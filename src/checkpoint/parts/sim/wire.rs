//! What becomes of a request on its way to a store, there, and back.
//!
//! ```text
//! begin ── the request is on its way ──► done (one instant) ── the answer is on its way ──► end
//!            lost: it never comes           again, later: a duplicate     lost: an error
//! ```
//! A request does not belong to who sent it: it arrives though its sender was cancelled, and mostly though it died.
//! Exchanges are not repeated: they are a local file system's. What a store retries itself (a conditional create whose
//! object is there with equal bytes) is answered as its contract says.

use super::{
    executor::{Core, NOBODY},
    trouble::Phase,
};
use crate::{
    checkpoint::layout::DOCUMENT,
    error::{Error, Result},
    store::{Listing, MemoryStore, ObjectMeta, Priority, Span, Store, Verb},
};
use futures::{FutureExt, channel::oneshot};
use milepost_formats::record::Root;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

/// So long a listing may be out of date: attribute caches of network file systems.
const STALE_MAX: Duration = Duration::from_secs(3);
const RECENT_MAX: usize = 64;
/// The latest that a request comes again to an object store, in microseconds: after its sender was taken for dead. A file
/// system repeats no write so late in a directory that is gone.
const DUPLICATE_MAX: u64 = 300_000_000;

/// A step that became visible.
#[derive(Clone, Debug)]
pub(super) struct Commit {
    pub(super) at: Duration,
    pub(super) process: u32,
    pub(super) step: u64,
    pub(super) writer: String,
    pub(super) generation: u64,
}

#[derive(Debug)]
pub(super) struct Wire {
    pub(super) core: Arc<Core>,
    pub(super) inner: Arc<MemoryStore>,
    /// Whether an attempt is committed by renames.
    pub(super) renames: bool,
    pub(super) commits: Mutex<Vec<Commit>>,
    /// What came and went lately below the parts.
    pub(super) recent: Mutex<VecDeque<(Duration, String, Option<ObjectMeta>)>>,
}

/// What is asked of a store.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) verb: Verb,
    pub(super) key: String,
    /// Where it is a rename.
    pub(super) target: String,
    pub(super) exchange: bool,
}

impl Call {
    pub(super) fn new(verb: Verb, key: &str) -> Self {
        Self { verb, key: key.to_owned(), target: String::new(), exchange: false }
    }

    /// Tells whether it is what makes a step visible, or ends an attempt.
    pub(super) fn is_decisive(&self) -> bool {
        let document = || self.key.strip_suffix(&format!("/{DOCUMENT}"));
        self.verb == Verb::Rename
            || self.verb == Verb::PutNew
                && document().is_some_and(|place| !place.contains("/_") && place.contains('/'))
    }

    fn may_come_twice(&self) -> bool {
        let verb = matches!(self.verb, Verb::Put | Verb::PutNew | Verb::Delete | Verb::DeleteAll);
        verb || self.verb == Verb::Rename && !self.exchange
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Fails,
    Loses,
}

pub(super) type Effect<T> = Arc<dyn Fn(&MemoryStore) -> Result<T> + Send + Sync>;

impl Wire {
    /// Sends a request; what becomes of it is drawn now.
    pub(super) fn send<T: Send + 'static>(
        self: &Arc<Self>,
        process: u32,
        call: Call,
        effect: Effect<T>,
        tell: oneshot::Sender<Result<T>>,
    ) {
        let (core, weather) = (&self.core, self.core.weather(process));
        let usual = || core.micros(1, weather.delay);
        let (mut there, mut back) = (usual(), usual());
        if core.chance(weather.slow) {
            core.strike(process, "slow requests");
            there += core.micros(100_000, 8_000_000);
        }
        let mut fault = None;
        if core.chance(weather.fail) {
            core.strike(process, "failed requests");
            fault = Some(Fault::Fails);
        } else if call.verb.changes() && core.chance(weather.lose) {
            core.strike(process, "lost answers");
            fault = Some(Fault::Loses);
        }
        if core.chance(weather.hang) {
            core.strike(process, "hung requests");
            fault = [None, Some(Fault::Fails), Some(Fault::Loses)]
                [usize::from(core.chance(500)) + usize::from(core.chance(500))];
            let time = core.micros(1_000_000, 120_000_000);
            *(if core.chance(500) { &mut there } else { &mut back }) += time;
        }
        let twice = call.may_come_twice() && core.chance(weather.duplicate);
        let shared = Arc::clone(self);
        core.after(there, move || {
            shared.arrive(process, (call, effect), (fault, back, twice), tell);
        });
    }

    fn is_out(&self, process: u32) -> bool {
        let now = self.core.now();
        let outage = self.core.weather(process).outage;
        let is_out = outage.is_some_and(|(from, to)| from <= now && now < to);
        if is_out {
            self.core.strike(process, "requests in an outage");
        }
        is_out
    }

    /// A request reaches the store.
    fn arrive<T: Send + 'static>(
        self: &Arc<Self>,
        process: u32,
        (call, effect): (Call, Effect<T>),
        (fault, back, twice): (Option<Fault>, Duration, bool),
        tell: oneshot::Sender<Result<T>>,
    ) {
        let core = &self.core;
        if core.is_dead(process) && core.chance(500) {
            return core.trace(process, &["never came:", &call.key]);
        }
        let mut answer = if fault == Some(Fault::Fails) || self.is_out(process) {
            Err(Error::unavailable("the store did not answer").with("object", &call.key))
        } else {
            self.perform(process, &call, &effect)
        };
        if fault == Some(Fault::Loses) {
            answer = self.lost(&call, answer);
        }
        let result = answer.as_ref().map_or_else(|e| format!("{:?}", e.kind()), |_| "ok".into());
        core.trace(process, &[&format!("{:?}", call.verb), &call.key, &call.target, &result]);
        if call.is_decisive() && !core.point(process, Phase::Done, !self.renames) {
            return;
        }
        if twice {
            let (shared, call, effect) = (Arc::clone(self), call.clone(), Arc::clone(&effect));
            core.strike(process, "duplicates");
            let is_late = core.chance(200) && !self.renames;
            let latest = if is_late { DUPLICATE_MAX } else { 20_000_000 };
            core.after(core.micros(1, latest), move || {
                shared.core.trace(process, &["again:", &format!("{:?}", call.verb), &call.key]);
                drop(shared.perform(process, &call, &effect));
            });
        }
        let shared = Arc::clone(self);
        core.after(back, move || {
            if call.is_decisive() && !shared.core.point(process, Phase::Answered, !shared.renames) {
                return;
            }
            let is_out = !shared.core.is_dead(process) && shared.is_out(process);
            let lost = || Err(Error::unavailable("no answer came").with("object", &call.key));
            drop(tell.send(if is_out { lost() } else { answer }));
        });
    }

    /// What who has sent a request is told when the answer was lost.
    fn lost<T>(&self, call: &Call, answer: Result<T>) -> Result<T> {
        let error = Error::unavailable("the answer was lost").with("object", &call.key);
        match (call.verb, answer) {
            // The store's own retry finds the source gone: network file systems say so.
            (Verb::Rename, Ok(_)) if !call.exchange && self.core.chance(500) => {
                Err(Error::not_found("not found").with("object", &call.key))
            }
            // The store's own retry finds equal bytes: its own.
            (Verb::PutNew, answer) if self.core.chance(500) => answer,
            _ => Err(error),
        }
    }

    /// The one instant at which an operation is done.
    fn perform<T>(&self, process: u32, call: &Call, effect: &Effect<T>) -> Result<T> {
        let is_part = call.key.contains("/parts/");
        let single = matches!(call.verb, Verb::Put | Verb::PutNew | Verb::Delete);
        let before = (is_part && single).then(|| self.inner.head(&call.key).now_or_never());
        let result = effect(&self.inner);
        if let (Some(before), Ok(_)) = (before.flatten(), &result) {
            let mut recent = self.recent.lock().unwrap();
            recent.push_back((self.core.now(), call.key.clone(), before.ok()));
            if recent.len() > RECENT_MAX {
                recent.pop_front();
            }
        }
        if result.is_ok() && matches!(call.verb, Verb::Rename | Verb::Put | Verb::PutNew) {
            self.note_commit(process, call);
        }
        result
    }

    /// Notes a record that has come to be where readers look.
    fn note_commit(&self, process: u32, call: &Call) {
        let place = match call.verb {
            Verb::Rename => Some(call.target.as_str()),
            _ => call.key.strip_suffix(&format!("/{DOCUMENT}")),
        };
        let is_step = |place: &&str| {
            let name = place.strip_prefix("run/").unwrap_or_default();
            name.starts_with(|c: char| c.is_ascii_digit()) && !name.contains('/')
        };
        let Some(place) = place.filter(is_step) else { return };
        let span = Span::Whole { bytes_max: u64::MAX };
        let key = format!("{place}/{DOCUMENT}");
        let found = self.inner.get(&key, span, Priority::Foreground).now_or_never().unwrap();
        let Ok(Root::Checkpoint { record, .. }) = Root::parse(&found.unwrap_or_default()) else {
            return;
        };
        let number = |value: Option<&serde_json::Value>| value.and_then(serde_json::Value::as_f64);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
        let generation = number(record.metrics.get("generation")).unwrap_or_default() as u64;
        let (step, at) = (record.step.unwrap_or_default(), self.core.now());
        if process != NOBODY {
            self.core.trace(process, &["committed", place, &generation.to_string()]);
        }
        let commit = Commit { at, process, step, writer: record.writer.clone(), generation };
        self.commits.lock().unwrap().push(commit);
    }

    /// Makes a listing out of date.
    pub(super) fn age(&self, prefix: &str, listing: &mut Listing) {
        let core = &self.core;
        let recent = self.recent.lock().unwrap();
        let lately = recent.iter().filter(|(at, ..)| core.now().saturating_sub(*at) < STALE_MAX);
        let below =
            |key: &str| key.rsplit_once('/').is_some_and(|(directory, _)| directory == prefix);
        for (_, key, before) in lately.filter(|(_, key, _)| below(key)) {
            let found = listing.objects.binary_search_by(|object| object.key.cmp(key));
            match (found, before) {
                (Ok(at), None) if core.chance(500) => drop(listing.objects.remove(at)),
                (Err(at), Some(meta)) if core.chance(500) => {
                    listing.objects.insert(at, meta.clone());
                }
                _ => {}
            }
        }
    }
}
