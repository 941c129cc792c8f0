//! The options that Orbax users know, as policies. Differences on purpose: the newest step is always kept, where Orbax
//! with `max_to_keep` of 0 keeps none, and with `best_fn` may delete it.

use super::{
    decision::SaveDecision,
    preservation::{
        BestMode, Metric,
        MissingMetric::{Drop, Keep},
        Preservation,
    },
};
use crate::error::Result;
use std::{collections::BTreeSet, time::Duration};

/// Orbax's classic options of a checkpoint manager; the defaults are Orbax's.
#[derive(Clone, Debug)]
pub struct ClassicOptions {
    /// How many steps to keep; `None`: all, whatever else is set.
    pub max_to_keep: Option<usize>,
    /// Keeps the multiples of this besides.
    pub keep_period: Option<u64>,
    /// Keeps one step each time this has passed besides.
    pub keep_time_interval: Option<Duration>,
    /// `max_to_keep` counts the best by this, not the latest.
    pub best_fn: Option<Metric>,
    /// Which way `best_fn` is better.
    pub best_mode: BestMode,
    /// With `best_fn`: keeps steps that lack the metric, uncounted.
    pub keep_checkpoints_without_metrics: bool,
    /// Saves the multiples of this; 1 is every step.
    pub save_interval_steps: u64,
    /// Saves these steps besides.
    pub save_on_steps: Option<BTreeSet<u64>>,
    /// Decides instead of the two above and about the first step ([`SaveDecision::when`]); preemption still saves.
    pub should_save_fn: Option<SaveDecision>,
}

impl Default for ClassicOptions {
    fn default() -> Self {
        Self {
            max_to_keep: None,
            keep_period: None,
            keep_time_interval: None,
            best_fn: None,
            best_mode: BestMode::default(),
            keep_checkpoints_without_metrics: true,
            save_interval_steps: 1,
            save_on_steps: None,
            should_save_fn: None,
        }
    }
}

impl ClassicOptions {
    /// Returns what to keep.
    ///
    /// # Errors
    /// `Invalid` where `keep_period` or `keep_time_interval` is 0, even if all steps are kept.
    pub fn preservation(&self) -> Result<Preservation> {
        let mut members = vec![match (&self.best_fn, self.max_to_keep) {
            (_, None) => Preservation::All,
            (None, Some(n)) => Preservation::Latest(n),
            (Some(metric), n) => Preservation::Best {
                metric: metric.clone(),
                mode: self.best_mode,
                n,
                missing: if self.keep_checkpoints_without_metrics { Keep } else { Drop },
            },
        }];
        members.extend(self.keep_period.map(Preservation::EverySteps));
        members.extend(self.keep_time_interval.map(Preservation::EverySeconds));
        let policy = Preservation::Any(members);
        policy.validate()?;
        Ok(policy)
    }

    /// Returns when to save: on preemption, when either option says so, and at the first step.
    ///
    /// # Errors
    /// `Invalid` where `save_interval_steps` is 0.
    pub fn decision(&self) -> Result<SaveDecision> {
        let mut members = vec![SaveDecision::Preemption];
        if let Some(function) = &self.should_save_fn {
            members.push(function.clone());
        } else {
            members
                .extend([SaveDecision::Interval(self.save_interval_steps), SaveDecision::Initial]);
            members.extend(self.save_on_steps.clone().map(SaveDecision::Steps));
        }
        let policy = SaveDecision::Any(members);
        policy.validate()?;
        Ok(policy)
    }
}

#[cfg(test)]
mod tests;
