//! How a save of many ends: one makes the parts a checkpoint, all learn what became of it.
//!
//! **Invariant:** an error is returned only when nobody can commit the attempt any more, or when the store does not say.

use super::{
    record::{PART_BYTES_MAX, Part, cover},
    work::Work,
};
use crate::{
    checkpoint::{
        lease::{Lease, Mark, StoreTime},
        publish::{Attempt, Ending, Handover, Wish, committed, end, mark_of},
        writer::{CheckpointWriter, Saved},
    },
    codec::crc32c,
    error::{Error, ErrorKind, Result},
    io::{read::Context, write::write_all},
    store::{Place, Span},
};
use futures::{StreamExt, TryStreamExt, stream};
use milepost_formats::{
    index::Object,
    record::{Record, Timing},
};
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

/// Each next participant waits so much longer before it takes over.
const STAGGER: Duration = Duration::from_secs(1);
/// Nobody waits longer than this for its turn.
const STAGGER_MAX: Duration = Duration::from_secs(30);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// An attempt of several writers, as one of them knows it.
pub(super) struct Joint {
    /// The save as this participant was asked for it, without its items.
    pub(super) own: CheckpointWriter,
    pub(super) deadline: Duration,
    pub(super) wish: Wish,
    pub(super) handover: Handover,
    /// What the record begins as.
    pub(super) record: Record,
    pub(super) names: Vec<String>,
    /// Where the objects go.
    pub(super) place: Place,
    /// Where the part records go.
    pub(super) parts: Place,
    pub(super) part: Part,
    /// That of who finalises.
    pub(super) lease: Option<Lease>,
}

impl Joint {
    /// Tells whether the attempt is a directory that is renamed.
    pub(super) fn handover_is_directory(&self) -> bool {
        self.place.store().capabilities().rename
    }

    /// Makes the parts a checkpoint, as the founder.
    ///
    /// With renames, the directory first gets a name below which nobody else writes: a participant that is late or there
    /// twice could bring the old name back, and a finaliser that was stopped would exchange that for the checkpoint.
    ///
    /// # Errors
    /// As [`Joint::finalise`].
    pub(super) async fn finalise_own(&mut self, attempt: Attempt, work: Work) -> Result<Saved> {
        if !self.handover_is_directory() {
            return self.finalise(attempt, work).await;
        }
        let (engine, wish) = (Arc::clone(&self.own.engine), self.wish.clone());
        match Attempt::adopt(&engine, wish, &self.handover, self.part.index).await {
            Ok(own) => {
                attempt.let_go().await;
                self.finalise(own, work).await
            }
            Err(error) => self.fail(attempt, error).await,
        }
    }

    /// Makes the parts a checkpoint.
    ///
    /// # Errors
    /// What was wrong with the parts; the attempt is ended then.
    pub(super) async fn finalise(&mut self, attempt: Attempt, work: Work) -> Result<Saved> {
        match self.assemble(&attempt, work).await {
            Ok(saved) => {
                self.sweep_parts().await;
                Ok(saved)
            }
            Err(error) => self.fail(attempt, error).await,
        }
    }

    async fn fail(&mut self, attempt: Attempt, error: Error) -> Result<Saved> {
        if !attempt.is_lost().await {
            return self.give_up(Some(attempt), error).await;
        }
        // Somebody took this finaliser for dead: it is theirs to end, not to be ended under their hands.
        attempt.let_go().await;
        drop(self.lease.take());
        self.watch(None, error).await
    }

    async fn assemble(&mut self, attempt: &Attempt, work: Work) -> Result<Saved> {
        let (engine, place) = (&self.own.engine, attempt.place());
        let parts = self.read_parts().await?;
        let (objects, alone) = cover(&parts, &self.part, &work.plan, &work.shapes())?;
        let mut record = self.record.clone();
        record.items = alone;
        let indexes = work.finish(place, objects, &mut record)?;
        let context = Context {
            engine: Arc::clone(engine),
            store: Arc::clone(place.store()),
            priority: self.own.priority,
            progress: self.own.progress.clone(),
        };
        let started = Instant::now();
        write_all(&context, indexes).await?;
        self.own.progress.stage_done("index", started);
        if let Some(claim) = attempt.claim() {
            let (bytes, crc32c) = (claim.len() as u64, crc32c(claim));
            record.claim = Some(Object { bytes, crc32c, content: None });
        }
        let timing = |stage: &crate::io::Stage| Timing {
            stage: stage.name.to_owned(),
            ms: (stage.time.as_secs_f64() * 1e6).round() / 1e3,
        };
        record.timings = self.own.progress.stages().iter().map(timing).collect();
        record.committed_ms = engine.clock().unix_ms();
        let started = Instant::now();
        let place = attempt.commit(record.to_document()?).await?;
        self.own.progress.stage_done("publish", started);
        Ok(self.save_of(place, record))
    }

    /// Reads every part once; one that a listing out of date does not show is asked for by its name.
    async fn read_parts(&self) -> Result<Vec<Part>> {
        let store = self.parts.store();
        let listed = store.list(self.parts.prefix()).await?.objects;
        let number = |key: &str| key.rsplit('/').next()?.parse::<usize>().ok();
        let listed = listed.iter().filter_map(|object| number(&object.key));
        let indices: BTreeSet<usize> = listed.chain(0..self.part.count).collect();
        let reads = indices.into_iter().map(|index| {
            let key = self.parts.key(&index.to_string());
            let span = Span::Whole { bytes_max: PART_BYTES_MAX };
            let read = store.get(&key, span, self.own.priority);
            async move {
                match read.await {
                    Ok(bytes) => Part::parse(&bytes).map(Some).map_err(|e| e.with("object", key)),
                    // That it is missing is found when all are there.
                    Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
                    Err(e) => Err(e),
                }
            }
        });
        let concurrency = store.capabilities().concurrency.max(1) * 4;
        let read = stream::iter(reads).buffer_unordered(concurrency);
        read.try_filter_map(|part| async { Ok(part) }).try_collect().await
    }

    /// Frees the parts, which nobody needs any more; what fails is swept some day.
    async fn sweep_parts(&mut self) {
        let store = self.parts.store();
        let freed = if self.handover_is_directory() {
            store.delete_all(self.parts.prefix()).await
        } else {
            let keys = (0..self.part.count).map(|index| self.parts.key(&index.to_string()));
            store.delete(keys.collect()).await
        };
        if let Err(error) = freed {
            tracing::debug!(%error, "the parts of a save could not be deleted");
        }
        if let Some(lease) = self.lease.take()
            && let Err(error) = lease.release().await
        {
            tracing::debug!(%error, "the mark of a save's parts could not be removed");
        }
    }

    /// Returns what was committed, if so.
    async fn saved(&self) -> Result<Option<Saved>> {
        let found = committed(&self.wish, &self.handover).await?;
        Ok(found.map(|(place, record)| self.save_of(place, *record)))
    }

    fn save_of(&self, place: Place, record: Record) -> Saved {
        Saved::of(place, record, self.own.progress.stages())
    }

    /// Reads what the finaliser says is committed.
    pub(super) async fn outcome(&mut self) -> Result<Saved> {
        let found = self.saved().await.map_err(|e| {
            e.with("outcome", "not known: it was committed, and what is there cannot be read")
        });
        found?.ok_or_else(|| {
            Error::conflict("the step was committed, and replaced or deleted since")
                .with("attempt", &self.wish.writer)
        })
    }

    /// Ends the attempt because of `error`, unless it is committed all the same.
    pub(super) async fn give_up(
        &mut self,
        attempt: Option<Attempt>,
        error: Error,
    ) -> Result<Saved> {
        match end(&self.own.engine, &self.wish, &self.handover).await {
            Ok(Ending::Committed(place, record)) => return Ok(self.save_of(place, *record)),
            Ok(Ending::Revoked) => {}
            Err(unknown) => {
                tracing::warn!(%unknown, "whether a save of many was committed is not known");
                return Err(error.with("outcome", format!("not known: {unknown}")));
            }
        }
        if let Some(attempt) = attempt {
            attempt.with_items(self.names.clone()).abandon().await;
            self.sweep_parts().await;
        } else {
            let own = self.parts.key(&self.part.index.to_string());
            drop(self.parts.store().delete(vec![own]).await);
        }
        Err(error)
    }

    /// Waits for the outcome of a finaliser who is not heard any more, and takes over if it is gone.
    ///
    /// Without `work`, it leaves that to the others, and ends the attempt where none of them does it.
    ///
    /// # Errors
    /// `error`, where the attempt was ended, or nothing was committed by the deadline.
    pub(super) async fn watch(&mut self, mut work: Option<Work>, error: Error) -> Result<Saved> {
        let clock = Arc::clone(self.own.engine.clock());
        let (began, mut pause) = (clock.elapsed(), PAUSE_MIN);
        let before = u32::try_from(self.part.index.saturating_sub(1)).unwrap_or(u32::MAX);
        let stagger = STAGGER.saturating_mul(before).min(STAGGER_MAX);
        let turn = if work.is_some() { stagger } else { self.deadline }.min(self.deadline / 2);
        loop {
            match self.saved().await {
                Ok(Some(saved)) => return Ok(saved),
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "the outcome of a save cannot be read"),
            }
            let waited = clock.elapsed().saturating_sub(began);
            if waited >= self.deadline {
                return self.give_up(None, error).await;
            }
            if waited >= turn && !self.finaliser_lives().await {
                match self.adopt().await {
                    Ok(attempt) => match work.take() {
                        Some(work) => return Box::pin(self.finalise(attempt, work)).await,
                        None => return self.give_up(Some(attempt), error).await,
                    },
                    // It is not there any more: committed just now, or ended.
                    Err(e) if e.kind() == ErrorKind::Conflict => {
                        let unknown =
                            |e: Error| error.clone().with("outcome", format!("not known: {e}"));
                        return self.saved().await.map_err(unknown)?.ok_or(error);
                    }
                    Err(e) => tracing::debug!(error = %e, "a save cannot be taken over yet"),
                }
            }
            clock.sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn finaliser_lives(&self) -> bool {
        let engine = &self.own.engine;
        let mut time = match &self.wish.run {
            Some(run) => StoreTime::of_run(engine, run),
            None => StoreTime::beside(engine, &self.wish.target),
        };
        match Mark::read(self.parts.store(), &mark_of(&self.parts)).await {
            Ok(Some(mark)) => mark.is_alive(&mut time).await,
            Ok(None) => false,
            Err(_) => true,
        }
    }

    async fn adopt(&mut self) -> Result<Attempt> {
        tracing::warn!(attempt = %self.wish.writer, "the finaliser is gone: taking over");
        let (engine, wish) = (Arc::clone(&self.own.engine), self.wish.clone());
        // First it has the attempt, then it says so: who comes too late must not say it.
        let attempt = Attempt::adopt(&engine, wish, &self.handover, self.part.index).await?;
        self.lease = Some(self.mark().await?);
        Ok(attempt)
    }
}
