//! What to keep: steps in, a plan out, printable before anything is deleted.
//!
//! For every policy: the newest committed step is kept, and each pinned one; damaged steps are neither counted nor
//! deleted; the order in which steps are given does not matter. A panic in a function of the caller costs no step:
//! its metric is missing, its policy keeps all.

use super::decision::Callback;
use crate::error::{Error, Result};
use milepost_formats::record::tagged;
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

/// What a policy may know about a step.
#[derive(Clone, Debug, Default)]
pub struct StepInfo {
    /// The step; no two have the same.
    pub step: u64,
    /// When it was committed, in milliseconds since the Unix epoch.
    pub committed_ms: u64,
    /// Its metrics as the record holds them; `formats::record::tagged::number` reads one.
    pub metrics: Map<String, Value>,
    /// Whether it is pinned.
    pub pinned: bool,
    /// Whether its record is missing or bad.
    pub damaged: bool,
}

/// Which way a metric is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BestMode {
    /// Less is better.
    Min,
    /// More is better; the default, as in Orbax.
    #[default]
    Max,
}

/// What becomes of steps without the metric that ranks the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingMetric {
    /// They are kept, outside of the quota; the default.
    #[default]
    Keep,
    /// They are not kept.
    Drop,
}

/// The number by which steps are ranked.
#[derive(Clone, Debug)]
pub enum Metric {
    /// The metric of this name.
    Named(String),
    /// What the caller's function makes of the metrics; `None` or a panic: the step has none.
    Function(Callback<Map<String, Value>, Option<f64>>),
}

impl Metric {
    /// Ranks by the caller's function.
    pub fn function(
        f: impl Fn(&Map<String, Value>) -> Option<f64> + Send + Sync + 'static,
    ) -> Self {
        Self::Function(Callback::new(f))
    }

    /// Returns the metric of a step, if it has it.
    #[must_use]
    pub fn of(&self, step: &StepInfo) -> Option<f64> {
        match self {
            Self::Named(name) => step.metrics.get(name).and_then(tagged::number),
            Self::Function(f) => f.try_call(&step.metrics)?,
        }
    }

    /// Ranks the committed steps that have the metric, best first: NaN is worst, of equals the later is better.
    #[must_use]
    pub fn rank(&self, mode: BestMode, steps: &[StepInfo]) -> Vec<(u64, f64)> {
        let committed = steps.iter().filter(|s| !s.damaged);
        let mut ranked: Vec<_> = committed.filter_map(|s| Some((s.step, self.of(s)?))).collect();
        ranked.sort_by(|(a_step, a), (b_step, b)| {
            let (x, y) = if mode == BestMode::Min { (a, b) } else { (b, a) };
            let order = x.partial_cmp(y).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()));
            order.then(b_step.cmp(a_step))
        });
        ranked
    }
}

/// What to keep.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Preservation {
    /// Everything.
    All,
    /// The highest so many steps.
    Latest(usize),
    /// The best by a metric.
    Best {
        /// What ranks them.
        metric: Metric,
        /// Which way is better.
        mode: BestMode,
        /// How many; `None`: all that have the metric.
        n: Option<usize>,
        /// What becomes of those without the metric.
        missing: MissingMetric,
    },
    /// The multiples of this.
    EverySteps(u64),
    /// The lowest step, then each that is at least this far from the last one kept.
    EveryStepsApart(u64),
    /// For each multiple of this, of the steps that are nearest to it the nearest one; of equals the later.
    EveryStepsClosest(u64),
    /// The lowest step, then each committed at least this long after the last one kept, or before it: where the
    /// clock was set back, nobody knows how much time has passed.
    EverySeconds(Duration),
    /// These steps.
    Steps(BTreeSet<u64>),
    /// Those committed within this before the newest, or after it.
    LatestDuration(Duration),
    /// What any of these keeps.
    Any(Vec<Preservation>),
    /// What the caller's function returns; it gets the committed steps in order.
    Custom(Callback<[StepInfo], BTreeSet<u64>>),
}

impl Preservation {
    /// Keeps what the caller's function returns.
    pub fn custom(f: impl Fn(&[StepInfo]) -> BTreeSet<u64> + Send + Sync + 'static) -> Self {
        Self::Custom(Callback::new(f))
    }

    /// Refuses what can never have been meant.
    ///
    /// # Errors
    /// `Invalid` for a distance of 0, and for any-of without members.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::EverySteps(0)
            | Self::EveryStepsApart(0)
            | Self::EveryStepsClosest(0)
            | Self::EverySeconds(Duration::ZERO) => Err(Error::invalid("keeping steps every 0")
                .hint("`All` keeps everything; leave the policy out to keep less")),
            Self::Any(members) if members.is_empty() => {
                Err(Error::invalid("any-of without a preservation policy in it"))
            }
            Self::Any(members) => members.iter().try_for_each(Self::validate),
            _ => Ok(()),
        }
    }

    /// Returns the metric by which steps are kept, if one is.
    #[must_use]
    pub fn metric(&self) -> Option<(&Metric, BestMode)> {
        match self {
            Self::Best { metric, mode, .. } => Some((metric, *mode)),
            Self::Any(members) => members.iter().find_map(Self::metric),
            _ => None,
        }
    }

    /// Plans what to keep and what to delete; a policy that is not valid keeps everything.
    #[must_use]
    pub fn plan(&self, steps: &[StepInfo]) -> Plan {
        let mut committed: Vec<_> = steps.iter().filter(|s| !s.damaged).cloned().collect();
        committed.sort_unstable_by_key(|s| s.step);
        let mut kept = Kept::default();
        kept.add(committed.last().map(|s| s.step), "the newest");
        kept.add(committed.iter().filter(|s| s.pinned).map(|s| s.step), "pinned");
        match self.validate() {
            Ok(()) => self.mark(&committed, &mut kept),
            Err(error) => kept.add(committed.iter().map(|s| s.step), &error.to_string()),
        }
        let numbers = committed.iter().map(|s| s.step);
        let delete = numbers.filter(|s| !kept.0.contains_key(s)).collect();
        Plan { keep: kept.0.into_iter().collect(), delete }
    }

    /// Adds what this policy keeps; `steps` are committed and in order.
    fn mark(&self, steps: &[StepInfo], kept: &mut Kept) {
        let numbers = steps.iter().map(|s| s.step);
        match self {
            Self::All => kept.add(numbers, "everything is kept"),
            Self::Latest(n) => kept.add(numbers.rev().take(*n), &format!("of the latest {n}")),
            Self::Best { metric, mode, n, missing } => {
                let ranked = metric.rank(*mode, steps);
                for (i, (step, x)) in ranked.iter().take(n.unwrap_or(usize::MAX)).enumerate() {
                    kept.add([*step], &format!("number {} by metric, {x}", i + 1));
                }
                if *missing == MissingMetric::Keep {
                    let ranked: BTreeSet<_> = ranked.into_iter().map(|(step, _)| step).collect();
                    kept.add(numbers.filter(|s| !ranked.contains(s)), "without the metric");
                }
            }
            Self::EverySteps(n) => {
                kept.add(numbers.filter(|s| s.is_multiple_of(*n)), &format!("a multiple of {n}"));
            }
            Self::EveryStepsApart(n) => {
                let far = apart(steps, |last, s| s.step - last.step >= *n);
                kept.add(far, &format!("every {n} steps, or the first"));
            }
            Self::EverySeconds(wanted) => {
                let far = apart(steps, |last, s| {
                    let since = s.committed_ms.checked_sub(last.committed_ms);
                    since.is_none_or(|ms| Duration::from_millis(ms) >= *wanted)
                });
                kept.add(far, &format!("every {wanted:?}, or the first"));
            }
            Self::EveryStepsClosest(n) => {
                let mut nearest = BTreeMap::new();
                for step in numbers {
                    // Halfway belongs to the higher multiple, told by its index: that cannot overflow.
                    let (below, above) = (step % n, n - step % n);
                    let distance = below.min(above);
                    let best = nearest
                        .entry(step / n + u64::from(below >= above))
                        .or_insert((distance, step));
                    if distance <= best.0 {
                        *best = (distance, step);
                    }
                }
                let nearest = nearest.into_values().map(|(_, step)| step);
                kept.add(nearest, &format!("the closest to a multiple of {n}"));
            }
            Self::Steps(wanted) => kept.add(numbers.filter(|s| wanted.contains(s)), "asked for"),
            Self::LatestDuration(d) => {
                let newest_ms = steps.last().map_or(0, |s| s.committed_ms);
                let age = |s: &StepInfo| newest_ms.saturating_sub(s.committed_ms);
                let young = steps.iter().filter(|s| Duration::from_millis(age(s)) <= *d);
                kept.add(young.map(|s| s.step), &format!("within {d:?} of the newest"));
            }
            Self::Any(members) => members.iter().for_each(|member| member.mark(steps, kept)),
            Self::Custom(f) => match f.try_call(steps) {
                Some(wanted) => kept.add(numbers.filter(|s| wanted.contains(s)), "the caller's"),
                None => kept.add(numbers, "the caller's function panicked"),
            },
        }
    }
}

/// Chooses the lowest, then each that is `far` from the last chosen: higher steps never change the choice.
fn apart(
    steps: &[StepInfo],
    far: impl Fn(&StepInfo, &StepInfo) -> bool,
) -> impl Iterator<Item = u64> {
    let mut last: Option<&StepInfo> = None;
    steps
        .iter()
        .filter(move |s| {
            let chosen = last.is_none_or(|last| far(last, s));
            last = if chosen { Some(s) } else { last };
            chosen
        })
        .map(|s| s.step)
}

/// The steps to keep, each with its reasons.
#[derive(Default)]
struct Kept(BTreeMap<u64, Vec<String>>);

impl Kept {
    fn add(&mut self, steps: impl IntoIterator<Item = u64>, reason: &str) {
        steps.into_iter().for_each(|s| self.0.entry(s).or_default().push(reason.to_owned()));
    }
}

/// What is kept, what is deleted, and why; `Display` prints a line a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps to keep, in order, each with its reasons.
    pub keep: Vec<(u64, Vec<String>)>,
    /// The steps to delete, in order.
    pub delete: Vec<u64>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines: BTreeMap<_, _> = self
            .keep
            .iter()
            .map(|(step, why)| (step, format!("keep {step}: {}", why.join(", "))))
            .collect();
        lines.extend(self.delete.iter().map(|s| (s, format!("delete {s}: nothing keeps it"))));
        lines.values().try_for_each(|line| writeln!(f, "{line}"))
    }
}

#[cfg(test)]
mod tests;
