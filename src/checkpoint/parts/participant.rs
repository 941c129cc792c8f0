//! Saving together with others, as one participant sees it.
//!
//! **Invariant:** who fails or is cancelled comes to the next round and says so; nobody waits for it in vain.

use super::{
    declare::Declaration, finish::Joint, plan::SharePlan, record::Part, rendezvous::within,
    talk::Talk, together::Together, work::Work,
};
use crate::{
    checkpoint::{
        founding::{found_run, run_members},
        layout::{BESIDE, PARTS, PARTS_BESIDE},
        lease::{Holder, Lease},
        marks::sync_busy,
        publish::{Attempt, Durability, Handover, Wish, mark_of},
        writer::{CheckpointWriter, Saved, no_items},
    },
    error::{Error, ErrorKind, Result},
    io::read::Context,
    store::Place,
};
use milepost_formats::record::{Record, Root};
use serde::{Deserialize, Serialize};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// One participant's side of a save.
#[derive(Clone, Debug)]
pub(super) struct Participant {
    /// The save as it was asked for; without its items once they are planned.
    pub(super) own: CheckpointWriter,
    pub(super) together: Together,
    /// The run, or what a checkpoint that stands alone lies in.
    pub(super) base: Place,
    /// When it has taken too long, by the engine's clock.
    until: Option<Duration>,
}

/// What the founder tells the others of the attempt that it has begun.
#[derive(Serialize, Deserialize)]
struct Announcement {
    writer: String,
    /// The name of the checkpoint's node.
    target: String,
    handover: Handover,
    /// What the record begins as, as a record of no items.
    record: String,
}

impl Participant {
    pub(super) fn new(mut own: CheckpointWriter, together: Together) -> Self {
        if own.turn.is_none() {
            own.turn = Some(together.rendezvous.sequence());
        }
        let base = own.run.clone().unwrap_or_else(|| own.target.parent());
        let elapsed = own.engine.clock().elapsed();
        let until = own.timeout.and_then(|timeout| elapsed.checked_add(timeout));
        Self { own, together, base, until }
    }

    /// Returns until the save is cancelled or has taken too long.
    async fn guard<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let work = self.own.cancel.guard(work);
        let Some(until) = self.until else { return work.await };
        let clock = self.own.engine.clock();
        let left = until.saturating_sub(clock.elapsed());
        within(&**clock, left, work).await.unwrap_or_else(|| {
            Err(Error::new(ErrorKind::Timeout, "the save took too long")
                .hint("look at the store, or allow more time"))
        })
    }

    /// Saves; returns when the checkpoint is committed, or nobody can commit it any more.
    ///
    /// # Errors
    /// As [`super::save_together`]. The step can be saved again at once. Where the store stops answering while others
    /// commit, the error says that the outcome is not known.
    ///
    /// # Cancel safety
    /// Dropping the future is as if the participant had died: the others find out, and end or finish without it.
    pub(super) async fn save(mut self) -> Result<Saved> {
        let rendezvous = Arc::clone(&self.together.rendezvous);
        let clock = Arc::clone(self.own.engine.clock());
        let turn = self.own.turn.unwrap_or_default();
        let talk = Talk::new((&*rendezvous, &*clock), turn, self.together.deadline);
        let started = Instant::now();
        let plan = self.plan(&talk).await?;
        let work = self.guard(async { plan.and_then(|plan| self.work(plan)) }).await;
        self.own.items.clear();
        talk.agree("agree", work.as_ref().map(|work| work.hash.clone()).map_err(Clone::clone))
            .await?;
        let mut work = work?;
        self.own.progress.stage_done("plan", started);
        let (mut joint, attempt) = Box::pin(self.open(&talk, &work)).await?;
        let started = Instant::now();
        let written = self.guard(joint.write(&mut work)).await;
        self.own.progress.stage_done("write", started);
        let started = Instant::now();
        if let Err(error) = talk.gather("written", written.map(|()| Vec::new())).await {
            return joint.give_up(attempt, error).await;
        }
        self.own.progress.stage_done("wait", started);
        match attempt {
            Some(attempt) => {
                let saved = joint.finalise_own(attempt, work).await;
                let told = saved.as_ref().map(|_| Vec::new()).map_err(Clone::clone);
                // Committed or ended: whoever does not hear it sees it in the store.
                let _told = talk.founder("outcome", Some(told)).await;
                saved
            }
            None => match talk.founder("outcome", None).await {
                Ok(_) => joint.outcome().await,
                Err(Ok(error)) => joint.give_up(None, error).await,
                Err(Err(error)) => joint.watch(Some(work), error).await,
            },
        }
    }

    /// Plans from everybody's declarations.
    ///
    /// # Errors
    /// Outside what everybody knows of, inside what the others must be told.
    async fn plan(&mut self, talk: &Talk<'_>) -> Result<Result<SharePlan>> {
        let declared = async { self.own.check().and_then(|()| Declaration::of(&self.own.items)) };
        let own = self.guard(declared).await;
        if let Some(given) = self.together.declarations.take() {
            return Ok(own.and_then(|own| self.plan_given(&given, &own)));
        }
        let told = talk.gather("declare", own.and_then(|own| own.to_bytes())).await?;
        let told = told.iter().map(|bytes| Declaration::from_bytes(bytes));
        Ok(told.collect::<Result<Vec<_>>>().and_then(|all| SharePlan::new(&all)))
    }

    fn plan_given(&self, given: &[Declaration], own: &Declaration) -> Result<SharePlan> {
        let (index, count) = self.seat();
        if given.len() != count || given[index] != *own {
            return Err(Error::invalid("the given declarations are not what is held")
                .with("declarations", given.len())
                .with("count", count));
        }
        SharePlan::new(given)
    }

    fn seat(&self) -> (usize, usize) {
        (self.together.rendezvous.index(), self.together.rendezvous.count())
    }

    fn work(&self, plan: SharePlan) -> Result<Work> {
        if plan.items.is_empty() {
            return Err(no_items());
        }
        Work::new(plan, self.seat().0, &self.own)
    }

    /// Begins the attempt, or hears of it.
    async fn open(&self, talk: &Talk<'_>, work: &Work) -> Result<(Joint, Option<Attempt>)> {
        if self.seat().0 > 0 {
            let told = talk.founder("attempt", None).await.map_err(|e| e.unwrap_or_else(|e| e))?;
            return match self.joint(work, &told).await {
                Ok(joint) => Ok((joint, None)),
                Err(error) => Err(self.stay_away(talk, error).await),
            };
        }
        let begun = self.guard(self.begin(work)).await;
        let announced = match &begun {
            Ok((attempt, target, record)) => announce(attempt, target, record),
            Err(error) => Err(error.clone()),
        };
        let told = talk.founder("attempt", Some(announced.clone())).await;
        let (attempt, ..) = begun?;
        let announced = match announced {
            Ok(announced) => announced,
            Err(error) => {
                attempt.abandon().await;
                return Err(error);
            }
        };
        match (self.joint(work, &announced).await, told) {
            (Err(error), _) => {
                attempt.abandon().await;
                Err(self.stay_away(talk, error).await)
            }
            (Ok(mut joint), Err(error)) => {
                let error = error.unwrap_or_else(|e| e);
                Err(joint.give_up(Some(attempt), error.clone()).await.err().unwrap_or(error))
            }
            (Ok(joint), Ok(_)) => Ok((joint, Some(attempt))),
        }
    }

    /// Says that nothing comes from here, where others may write already.
    async fn stay_away(&self, talk: &Talk<'_>, error: Error) -> Error {
        let _told = talk.gather("written", Err(error.clone())).await;
        error
    }

    async fn begin(&self, work: &Work) -> Result<(Attempt, String, Record)> {
        let own = &self.own;
        let created_ms = own.engine.clock().unix_ms();
        let writer = format!("{:032x}", own.engine.clock().unique_id());
        let id = writer.clone();
        let record = Record { step: own.step, writer, created_ms, ..Record::default() };
        let record = own.complete(record);
        // What cannot be recorded is refused before the first byte is written.
        record.to_document()?;
        let mut target = own.target.name().to_owned();
        if let Some(run) = &own.run {
            let found = found_run(run, &own.founding).await?;
            if let (false, Some(step)) = (own.named, own.step) {
                target = run_members(found).map_err(|e| e.with("run", run))?.step_format.name(step);
            }
        }
        let attempt = Attempt::begin(&own.engine, self.wish(id, &target)).await?;
        Ok((attempt.with_items(work.names()), target, record))
    }

    fn wish(&self, writer: String, target: &str) -> Wish {
        Wish {
            target: self.base.join(target),
            run: self.own.run.clone(),
            step: self.own.step,
            overwrite: self.own.options.overwrite,
            durability: self.own.options.durability,
            writer,
        }
    }

    /// Joins the attempt that was announced.
    async fn joint(&self, work: &Work, announced: &[u8]) -> Result<Joint> {
        let told: Announcement = serde_json::from_slice(announced)
            .map_err(|e| Error::corrupt("the announcement of an attempt is damaged").because(e))?;
        let Root::Checkpoint { record, .. } = Root::parse(told.record.as_bytes())? else {
            return Err(Error::corrupt("the announcement of an attempt has no record"));
        };
        let place = told.handover.place(&self.base);
        let parts = match &self.own.run {
            Some(run) => run.join(&format!("{PARTS}/{}", told.writer)),
            None => {
                self.base.join(&format!("{}{BESIDE}{}{PARTS_BESIDE}", told.target, told.writer))
            }
        };
        let part = Part::new(&told.writer, &work.hash, self.seat());
        let wish = self.wish(told.writer, &told.target);
        let end = if place.store().capabilities().rename { &wish.target } else { &place };
        self.own.attempts.note(end, &wish.writer);
        let mut joint = Joint {
            wish,
            handover: told.handover,
            names: work.names(),
            record: *record,
            own: self.own.clone(),
            deadline: self.together.deadline,
            place,
            parts,
            part,
            lease: None,
        };
        if self.seat().0 == 0 {
            joint.lease = Some(joint.mark().await?);
        }
        Ok(joint)
    }
}

/// Writes down an attempt for those who join it.
fn announce(attempt: &Attempt, target: &str, record: &Record) -> Result<Vec<u8>> {
    let text = String::from_utf8(record.to_document()?)
        .map_err(|e| Error::internal("a record is no text").because(e))?;
    let announcement = Announcement {
        writer: record.writer.clone(),
        target: target.to_owned(),
        handover: attempt.handover()?,
        record: text,
    };
    let failed = |e| Error::internal("an attempt cannot be written as JSON").because(e);
    serde_json::to_vec(&announcement).map_err(failed)
}

impl Joint {
    /// Says who finalises: while this is there and alive, nobody takes over, and the parts are not swept.
    pub(super) async fn mark(&self) -> Result<Lease> {
        let holder = Holder::this(&self.own.engine, &self.wish.writer, self.wish.step);
        Lease::take(self.parts.store(), &mark_of(&self.parts), &holder).await
    }

    /// Writes what is this participant's, makes it durable and puts its part.
    async fn write(&mut self, work: &mut Work) -> Result<()> {
        let store = self.place.store();
        let context = Context {
            engine: Arc::clone(&self.own.engine),
            store: Arc::clone(store),
            priority: self.own.priority,
            progress: self.own.progress.clone(),
        };
        let durable = self.wish.durability == Durability::Durable;
        if durable && self.handover_is_directory() {
            // A descriptor from before the first write hears of every write-back that fails.
            store.create_dir(self.place.prefix()).await?;
        }
        self.part = work.write(&context, &self.place, self.part.clone()).await?;
        if durable {
            sync_busy(&self.place).await?;
        }
        let key = self.parts.key(&self.part.index.to_string());
        match self.parts.store().put_new(&key, self.part.to_bytes()?.into()).await {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                Err(Error::conflict("another process is this participant, too")
                    .with("participant", self.part.index)
                    .because(e))
            }
            result => result,
        }
    }
}
