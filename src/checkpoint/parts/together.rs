//! With whom saves are made: a rendezvous, and how long to wait for the others at each meeting of it.
//!
//! Managers of one run ask here, too, whether a step is due, where their own clocks could tell them different things.

use super::{
    declare::Declaration,
    participant::Participant,
    rendezvous::Rendezvous,
    talk::{DECIDE, DUE, GATHER, Talk},
};
use crate::{
    checkpoint::{
        request::SaveRequest,
        writer::{CheckpointWriter, Saved},
    },
    clock::Clock,
    error::{Error, Result},
    io::Engine,
    policy::{SaveContext, SaveDecision, SkipReason},
    tasks::wait,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

/// With whom checkpoints are saved together.
#[derive(Clone, Debug)]
#[must_use]
pub struct Together {
    pub(in crate::checkpoint) rendezvous: Arc<dyn Rendezvous>,
    pub(super) deadline: Duration,
    pub(super) declarations: Option<Arc<Vec<Declaration>>>,
}

impl Together {
    /// Names the rendezvous, and how long to wait for the others at each meeting of it.
    pub fn new(rendezvous: Arc<dyn Rendezvous>, deadline: Duration) -> Self {
        Self { rendezvous, deadline, declarations: None }
    }

    /// Learns what participant 0 has decided: for what clocks and functions could tell each participant differently.
    ///
    /// All call it in the same order as their saves; the others' `own` does not count.
    ///
    /// # Errors
    /// That of participant 0, and those of the rendezvous.
    pub fn decide(&self, engine: &Engine, own: Result<bool>) -> Result<bool> {
        let clock = &**engine.clock();
        let talk = Talk::new((&*self.rendezvous, clock), self.rendezvous.sequence(), self.deadline);
        // A gather, so that everybody knows when it is over.
        let own = if self.is_first() { own.map(|own| vec![u8::from(own)]) } else { Ok(Vec::new()) };
        let told = wait(talk.gather(DECIDE, own))?;
        Ok(told.first().is_some_and(|told| **told == [1]))
    }

    /// Gives everybody's values to all, by index, each of at most 256 MiB in all; in the same order as the saves.
    ///
    /// # Errors
    /// The own one, else that of the first who failed, else the rendezvous's.
    pub fn gather(&self, engine: &Engine, own: Result<Vec<u8>>) -> Result<Vec<Bytes>> {
        let clock = &**engine.clock();
        let talk = Talk::new((&*self.rendezvous, clock), self.rendezvous.sequence(), self.deadline);
        wait(talk.gather(GATHER, own))
    }

    /// Tells whether this is participant 0, who founds, finalises and deletes.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.rendezvous.index() == 0
    }
}

/// Says why a step is not due, if so, where preemption was signalled or not.
pub(crate) type Judge<'a> = dyn Fn(bool) -> Option<SkipReason> + 'a;

/// What a participant brings to the round in which all learn whether a step is due.
#[derive(Default, Serialize, Deserialize)]
struct Ballot {
    preempted: bool,
    /// Why the step is not due, by participant 0: the newest step where it is not above that, and the reason.
    skip: Option<(Option<u64>, String)>,
    /// The same if preemption was signalled to anybody.
    skip_preempted: Option<(Option<u64>, String)>,
}

/// A call to save a step, as the others of a joint save see it.
#[derive(Debug, Default)]
pub(crate) struct Call {
    /// Whether they know what comes of it.
    agreed: bool,
    /// Whether it reports how an earlier save failed.
    pub(crate) reports: bool,
}

impl Call {
    /// Says why a step is not saved, if so; with others, all say the same: by the step alone, or by what participant 0
    /// judges. An error of one that is not `able` is told to all.
    ///
    /// # Errors
    /// Of whoever is not able, and of the rendezvous.
    pub(crate) fn refusal(
        &mut self,
        (together, engine): (Option<&Together>, &Engine),
        request: &SaveRequest<'_>,
        (decision, preempted): (&SaveDecision, &AtomicBool),
        (able, judge): (Result<()>, &Judge<'_>),
    ) -> Result<Option<SkipReason>> {
        match together.filter(|_| !request.force) {
            Some(_) if decision.is_by_step() => {
                let step = SaveContext { step: request.step, ..SaveContext::default() };
                let decision = decision.decide(&step);
                if !decision.save {
                    self.agreed = true;
                    return Ok(Some(SkipReason::Policy(decision.reason)));
                }
            }
            Some(together) => {
                self.agreed = true;
                let refusal = together.refusal(&**engine.clock(), able, (preempted, judge))?;
                self.agreed = refusal.is_some();
                return Ok(refusal);
            }
            None => {}
        }
        able?;
        Ok(if request.force { None } else { judge(preempted.load(Relaxed)) })
    }

    /// Returns what the others are to be told, if they do not know.
    pub(crate) fn untold(&self, why: Error) -> Option<Error> {
        if self.agreed {
            return None;
        }
        // An old failure is told once on each side, not back and forth: what was cancelled is not reported again.
        Some(if self.reports { Error::cancelled(why.to_string()) } else { why })
    }
}

impl Together {
    /// Refuses options that participants could disagree on.
    pub(crate) fn check(together: Option<&Self>, odd: &[(&'static str, bool)]) -> Result<()> {
        match odd.iter().find(|(_, is_set)| *is_set && together.is_some()) {
            None => Ok(()),
            Some((option, _)) => Err(Error::invalid("an option does not go with joint saves")
                .with("option", option)
                .hint("participants could disagree on what becomes of a save")),
        }
    }

    /// Learns with all others why a step is not due, if so: participant 0 judges. The signal of preemption that one has
    /// got, all have afterwards.
    fn refusal(
        &self,
        clock: &dyn Clock,
        able: Result<()>,
        (preempted, judge): (&AtomicBool, &Judge<'_>),
    ) -> Result<Option<SkipReason>> {
        let turn = self.rendezvous.sequence();
        let talk = Talk::new((&*self.rendezvous, clock), turn, self.deadline);
        let own = able.and_then(|()| self.ballot(preempted.load(Relaxed), judge));
        let own = own.and_then(|ballot| {
            let failed = |e| Error::internal("a ballot cannot be written as JSON").because(e);
            serde_json::to_vec(&ballot).map_err(failed)
        });
        let told = wait(talk.gather(DUE, own))?;
        let failed = |e| Error::corrupt("what a participant said is damaged").because(e);
        let ballots = told.iter().map(|told| serde_json::from_slice(told).map_err(failed));
        let mut ballots = ballots.collect::<Result<Vec<Ballot>>>()?;
        let signalled = ballots.iter().any(|ballot| ballot.preempted);
        preempted.fetch_or(signalled, Relaxed);
        let first = ballots.swap_remove(0);
        let skip = if signalled { first.skip_preempted } else { first.skip };
        Ok(skip.map(|(latest, reason)| {
            latest.map_or(SkipReason::Policy(reason), SkipReason::NotAbove)
        }))
    }

    fn ballot(&self, preempted: bool, judge: &Judge<'_>) -> Result<Ballot> {
        let mut ballot = Ballot { preempted, ..Ballot::default() };
        if !self.is_first() {
            return Ok(ballot);
        }
        let judge = |preempted| -> Result<_> {
            let judged = catch_unwind(AssertUnwindSafe(|| judge(preempted)));
            let reason = judged.map_err(|_| Error::internal("a save policy panicked"))?;
            Ok(reason.map(|reason| match reason {
                SkipReason::NotAbove(latest) => (Some(latest), String::new()),
                reason => (None, reason.to_string()),
            }))
        };
        if !preempted {
            ballot.skip = judge(false)?;
        }
        if preempted || ballot.skip.is_some() {
            ballot.skip_preempted = judge(true)?;
        }
        Ok(ballot)
    }
}

/// Saves as one of several participants.
///
/// # Errors
/// As [`CheckpointWriter::save`], and what another participant failed at, or who was missing.
pub(in crate::checkpoint) async fn save_together(
    writer: CheckpointWriter,
    together: Together,
) -> Result<Saved> {
    let index = together.rendezvous.index();
    let saved = Box::pin(Participant::new(writer, together).save()).await;
    saved.map_err(|e| e.with("participant", index))
}
