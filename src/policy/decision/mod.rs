//! When to save: a pure question, answered with its reason; nothing here looks at a clock or a store.

use crate::error::{Error, Result};
use std::{
    collections::BTreeSet,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

/// A function of the caller inside a policy; clones share it.
pub struct Callback<In: ?Sized, Out>(Arc<dyn Fn(&In) -> Out + Send + Sync>);

impl<In: ?Sized, Out> Callback<In, Out> {
    pub(super) fn new(function: impl Fn(&In) -> Out + Send + Sync + 'static) -> Self {
        Self(Arc::new(function))
    }

    /// Calls it; a panic is nothing.
    pub(super) fn try_call(&self, given: &In) -> Option<Out> {
        catch_unwind(AssertUnwindSafe(|| (self.0)(given))).ok()
    }
}

impl<In: ?Sized, Out> Clone for Callback<In, Out> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<In: ?Sized, Out> fmt::Debug for Callback<In, Out> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("function")
    }
}

/// What a policy may know about the run when a step asks to be saved.
#[derive(Clone, Copy, Debug, Default)]
pub struct SaveContext {
    /// The step that asks.
    pub step: u64,
    /// The newest step, committed or in flight.
    pub latest: Option<u64>,
    /// How many steps are committed.
    pub steps: usize,
    /// How many saves are in flight.
    pub in_flight: usize,
    /// How long ago the last save began; `None` where none did.
    pub since_begun: Option<Duration>,
    /// How long ago the last commit ended; `None` where none did.
    pub since_committed: Option<Duration>,
    /// Whether preemption was signalled.
    pub preempted: bool,
}

/// Why a step was not saved.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SkipReason {
    /// The manager only reads.
    ReadOnly,
    /// The step is not above this one, the newest.
    NotAbove(u64),
    /// The policy said no; its reason.
    Policy(String),
    /// Another save is in flight, and the request does not wait.
    Busy,
    /// A newer save took its pending place.
    Replaced,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReadOnly => f.write_str("the manager is read-only"),
            Self::Busy => f.write_str("another save is in flight"),
            Self::Replaced => f.write_str("a newer save took its place"),
            Self::NotAbove(latest) => write!(f, "not above step {latest}, the newest"),
            Self::Policy(reason) => f.write_str(reason),
        }
    }
}

impl SaveContext {
    /// Says why no policy may save this step: it is not above the newest one.
    #[must_use]
    pub fn outdated(&self) -> Option<SkipReason> {
        self.latest.filter(|latest| self.step <= *latest).map(SkipReason::NotAbove)
    }
}

/// An answer and its reason, which is made to be printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether to save.
    pub save: bool,
    /// Why, or why not.
    pub reason: String,
}

/// When to save.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SaveDecision {
    /// At each multiple of this.
    Interval(u64),
    /// At these steps.
    Steps(BTreeSet<u64>),
    /// Once this has passed since the last save began.
    EverySeconds(Duration),
    /// Whenever nothing is in flight and `minimum` has passed since the last commit ended.
    Continuous {
        /// The least time between a commit and the next save.
        minimum: Duration,
    },
    /// When the run has no step yet, committed or in flight.
    Initial,
    /// When preemption was signalled. A loop that leaves then reads the flag before a save, and leaves after it: the flag
    /// may be raised between the two.
    Preemption,
    /// When any of these says so.
    Any(Vec<SaveDecision>),
    /// When all of these say so.
    All(Vec<SaveDecision>),
    /// When the caller's function says so.
    Custom(Callback<SaveContext, bool>),
}

impl SaveDecision {
    /// Asks the caller's function.
    #[must_use]
    pub fn when(function: impl Fn(&SaveContext) -> bool + Send + Sync + 'static) -> Self {
        Self::Custom(Callback::new(function))
    }

    /// Refuses what can never have been meant.
    ///
    /// # Errors
    /// `Invalid` for an interval of 0, and for any-of or all-of without members.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Interval(0) => Err(Error::invalid("a save interval of 0 steps")
                .hint("1 saves every step; an empty set of steps saves none")),
            Self::Any(members) | Self::All(members) if members.is_empty() => {
                Err(Error::invalid("any-of or all-of without a save policy in it"))
            }
            Self::Any(members) | Self::All(members) => members.iter().try_for_each(Self::validate),
            _ => Ok(()),
        }
    }

    /// Tells whether the step alone decides, so that everybody who asks gets the same answer.
    #[must_use]
    pub fn is_by_step(&self) -> bool {
        match self {
            Self::Interval(_) | Self::Steps(_) => true,
            Self::Any(members) | Self::All(members) => members.iter().all(Self::is_by_step),
            _ => false,
        }
    }

    /// Decides whether to save, by policy alone: see [`SaveContext::outdated`].
    #[must_use]
    pub fn decide(&self, context: &SaveContext) -> Decision {
        let SaveContext { step, in_flight, .. } = context;
        let yes = |save, before: &str, after: &str| {
            (save, [before, if save { "" } else { "not " }, after].concat())
        };
        let (save, reason) = match self {
            // 0 never passes `validate`; unvalidated it saves too much, not too little.
            Self::Interval(n) => yes(
                step.is_multiple_of((*n).max(1)),
                &format!("step {step} is "),
                &format!("a multiple of {n}"),
            ),
            Self::Steps(steps) => {
                yes(steps.contains(step), &format!("step {step} is "), "among the steps to save")
            }
            Self::Continuous { .. } | Self::Initial if *in_flight > 0 => {
                (false, format!("saves in flight: {in_flight}"))
            }
            Self::EverySeconds(wanted) => passed(context.since_begun, *wanted, "save"),
            Self::Continuous { minimum } => passed(context.since_committed, *minimum, "commit"),
            Self::Initial => (context.steps == 0, format!("the run has {} steps", context.steps)),
            Self::Preemption => yes(context.preempted, "preemption was ", "signalled"),
            Self::Any(members) => return combine(members, context, true),
            Self::All(members) => return combine(members, context, false),
            Self::Custom(function) => {
                yes((function.0)(context), "the caller's function does ", "want it")
            }
        };
        Decision { save, reason }
    }
}

/// Asks in order until a member answers `until`, whose reason counts; else all reasons do.
fn combine(members: &[SaveDecision], context: &SaveContext, until: bool) -> Decision {
    let mut reasons = Vec::with_capacity(members.len());
    for member in members {
        let decision = member.decide(context);
        if decision.save == until {
            return decision;
        }
        reasons.push(decision.reason);
    }
    Decision { save: !until, reason: reasons.join("; ") }
}

fn passed(since: Option<Duration>, wanted: Duration, what: &str) -> (bool, String) {
    let Some(since) = since else { return (true, format!("there was no {what} yet")) };
    // Cut, not rounded: "10.0 s" is never said of less.
    let (whole, tenth) = (since.as_secs(), since.subsec_millis() / 100);
    (since >= wanted, format!("{whole}.{tenth} s since the last {what}, {wanted:?} wanted"))
}

#[cfg(test)]
mod tests;
