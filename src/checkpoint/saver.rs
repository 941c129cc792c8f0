//! Saves in the background: so many at once, one that may wait, tried again or elsewhere where that helps.
//!
//! The life of a save: admitted (a place in flight, or the pending one) → captured → performed on a thread of the
//! saver → its end told, first to the owner's closure, then to the handle → its place given to the pending one.
//!
//! **Invariant:** whatever happens to a save, a panic too, its handle ends and its place comes back.

use super::{
    capture::Copies,
    handle::{Completion, SaveHandle},
    parts::Call,
    writer::{CheckpointWriter, Saved},
};
use crate::{
    error::{Error, ErrorKind, Result},
    store::Place,
    tasks::{Pool, Priority, wait_until},
};
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The first wait before a save is tried again; each further one is twice as long.
const RETRY_WAIT: Duration = Duration::from_millis(100);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long it may take to find out whether a save that failed is committed.
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(5);

/// What happens to a save that is due while another one is in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Queue {
    /// It waits until there is room: no step is lost, the loop waits for the disk.
    #[default]
    Wait,
    /// It is skipped: the loop never waits.
    Skip,
    /// It is captured and takes the one pending place, from which a newer one pushes it: the loop waits for the capture
    /// only, which costs the memory of one more state.
    ReplacePending,
}

/// What is done where a save fails.
#[derive(Clone, Debug, Default)]
pub(crate) struct Persistence {
    /// A save that takes longer fails.
    pub(crate) timeout: Option<Duration>,
    /// How often it is tried again where the store does not answer or is full.
    pub(crate) retries: u32,
    /// A run that takes it at last.
    pub(crate) backup: Option<Place>,
}

/// What place a save got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It goes on at once.
    InFlight,
    /// It waits for another one, so nothing of it can be served: all of it is to be copied.
    Pending,
    /// There is none.
    Refused,
}

/// How a save ended.
#[derive(Debug)]
pub(crate) struct Ended<'a> {
    pub(crate) saved: &'a Result<Saved>,
    /// How often it was tried again.
    pub(crate) retries: u32,
    /// Why it is in the backup run.
    pub(crate) lost_here: Option<Error>,
    /// Whether a newer save took its pending place.
    pub(crate) is_replaced: bool,
}

/// A captured save on its way.
pub(crate) struct Job {
    pub(crate) writer: CheckpointWriter,
    pub(crate) handle: SaveHandle,
    pub(crate) completion: Completion,
    pub(crate) persistence: Persistence,
    pub(crate) ended: Box<dyn FnOnce(Ended<'_>) + Send>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.handle.fmt(f)
    }
}

#[derive(Debug, Default)]
struct Slots {
    in_flight: Vec<SaveHandle>,
    pending: Option<Job>,
}

impl Slots {
    /// Returns what is in flight; one whose handle has told its end is not, though its thread may still say good-bye.
    fn under_way(&self) -> impl Iterator<Item = &SaveHandle> {
        self.in_flight.iter().filter(|handle| !handle.is_done())
    }
}

#[derive(Debug)]
struct Shared {
    max: usize,
    slots: Mutex<Slots>,
    changed: Condvar,
    pool: Pool,
    copies: Arc<Copies>,
}

/// Performs saves on threads of its own.
#[derive(Clone, Debug)]
pub(crate) struct Saver(Arc<Shared>);

impl Saver {
    /// Starts `max` threads.
    ///
    /// # Errors
    /// `Unavailable` where the system refuses a thread.
    pub(crate) fn new(max: usize) -> Result<Self> {
        let pool = Pool::new("milepost-save", max)?;
        let (slots, changed, copies) = (Mutex::default(), Condvar::new(), Arc::default());
        Ok(Self(Arc::new(Shared { max, slots, changed, pool, copies })))
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, slots: MutexGuard<'a, Slots>) -> MutexGuard<'a, Slots> {
        self.0.changed.wait(slots).unwrap_or_else(PoisonError::into_inner)
    }

    fn is_busy(&self, slots: &Slots, step: Option<u64>) -> bool {
        let same = |handle: &SaveHandle| step.is_some() && handle.step() == step;
        slots.under_way().count() >= self.0.max || slots.under_way().any(same)
    }

    /// Finds a place for a save, which [`Saver::dispatch`] or [`Saver::land`] must follow.
    pub(crate) fn admit(&self, handle: &SaveHandle, queue: Queue) -> Admission {
        let mut slots = self.lock();
        while self.is_busy(&slots, handle.step()) {
            match queue {
                Queue::Skip => return Admission::Refused,
                Queue::ReplacePending => return Admission::Pending,
                Queue::Wait => slots = self.wait(slots),
            }
        }
        slots.in_flight.push(handle.clone());
        Admission::InFlight
    }

    /// Tells whether a save that has ended still holds its thread.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Returns the memory of copies, kept from one save to the next.
    pub(crate) fn copies(&self) -> &Arc<Copies> {
        &self.0.copies
    }

    /// Returns the steps in flight and the pending one.
    pub(crate) fn steps(&self) -> Vec<u64> {
        let slots = self.lock();
        let pending = slots.pending.iter().map(|job| &job.handle);
        slots.under_way().chain(pending).filter_map(SaveHandle::step).collect()
    }

    /// Waits until nothing is in flight or pending.
    pub(crate) fn wait_idle(&self) {
        let mut slots = self.lock();
        while !slots.in_flight.is_empty() || slots.pending.is_some() {
            slots = self.wait(slots);
        }
    }

    /// Performs a save that has a place in flight; any other becomes the pending one.
    pub(crate) fn dispatch(&self, job: Job) {
        let mut slots = self.lock();
        if slots.in_flight.iter().any(|handle| handle.is(&job.handle)) {
            drop(slots);
            self.launch(job);
            return;
        }
        let replaced = slots.pending.replace(job);
        drop(slots);
        if let Some(old) = replaced {
            let error = Error::cancelled("a newer save took its place");
            let saved = Err(error.with("step", old.handle.step().unwrap_or_default()));
            (old.ended)(Ended { saved: &saved, retries: 0, lost_here: None, is_replaced: true });
            old.completion.complete(saved);
        }
        self.start_pending(); // what was in flight may have landed meanwhile
    }

    fn start_pending(&self) {
        let job = {
            let mut slots = self.lock();
            let step = slots.pending.as_ref().map(|job| job.handle.step());
            let free = step.is_some_and(|step| !self.is_busy(&slots, step));
            let job = slots.pending.take_if(|_| free);
            slots.in_flight.extend(job.iter().map(|job| job.handle.clone()));
            job
        };
        if let Some(job) = job {
            self.launch(job);
        }
    }

    fn launch(&self, job: Job) {
        let saver = self.clone();
        self.0.pool.launch(Priority::Background, move || saver.perform(job));
    }

    /// Tells the others of a joint save, if they do not know, why nothing comes from here: after what is in flight, and
    /// nobody waits for it but [`Saver::wait_idle`].
    pub(crate) fn decline(&self, writer: CheckpointWriter, call: &Call, why: Error) {
        let Some(why) = call.untold(why).filter(|_| writer.is_joint()) else { return };
        let (handle, completion) = SaveHandle::new(None);
        let writer = writer.decline(why);
        self.lock().in_flight.push(handle.clone());
        let (persistence, ended) = (Persistence::default(), Box::new(|_: Ended<'_>| ()));
        self.launch(Job { writer, handle, completion, persistence, ended });
    }

    /// Gives the place of a save back.
    pub(crate) fn land(&self, handle: &SaveHandle) {
        self.lock().in_flight.retain(|other| !other.is(handle));
        self.start_pending();
        self.0.changed.notify_all();
    }

    fn perform(&self, job: Job) {
        let (mut retries, mut lost_here) = (0, None);
        let mut job = job;
        let saved =
            catch_unwind(AssertUnwindSafe(|| job.save_somewhere(&mut retries, &mut lost_here)));
        let saved = saved.unwrap_or_else(|_| Err(Error::internal("a save panicked")));
        let Job { writer, handle, completion, ended, .. } = job;
        drop(writer); // its copies serve the next save, which may begin as soon as this one has ended
        let end = Ended { saved: &saved, retries, lost_here, is_replaced: false };
        if catch_unwind(AssertUnwindSafe(|| ended(end))).is_err() {
            tracing::error!("the end of a save could not be told");
        }
        completion.complete(saved);
        self.land(&handle);
    }
}

impl Job {
    /// Saves, again where that may help, and in the backup run at last.
    fn save_somewhere(
        &mut self,
        retries: &mut u32,
        lost_here: &mut Option<Error>,
    ) -> Result<Saved> {
        let deadline = self.deadline();
        let error = loop {
            let writer = self.writer.for_a_try();
            match self.save(writer, deadline) {
                Err(error)
                    if error.kind() == ErrorKind::Unavailable
                        && *retries < self.persistence.retries =>
                {
                    tracing::warn!(%error, "a save is tried again");
                    let wait = RETRY_WAIT * 2_u32.saturating_pow((*retries).min(16));
                    let until = Instant::now().checked_add(wait.min(RETRY_WAIT_MAX));
                    let cancelled = self.handle.canceller();
                    let never = cancelled.guard(std::future::pending::<Result<()>>());
                    if let Some(Err(error)) = wait_until(never, until) {
                        break error;
                    }
                    *retries += 1;
                }
                Err(error) => break error,
                Ok(saved) => return Ok(saved),
            }
        };
        let elsewhere = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout);
        match &self.persistence.backup {
            Some(backup) if elsewhere => {
                *lost_here = Some(error.clone());
                let saved = self.save(self.writer.clone().in_run(backup), self.deadline());
                saved.map_err(|e| e.because(error))
            }
            _ => Err(error),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.persistence.timeout.and_then(|timeout| Instant::now().checked_add(timeout))
    }

    fn save(&self, writer: CheckpointWriter, deadline: Option<Instant>) -> Result<Saved> {
        // Who saves with others tells them that it took too long.
        let (writer, deadline) = if writer.is_joint() {
            (writer.timeout(self.persistence.timeout), None)
        } else {
            (writer, deadline)
        };
        let progress = self.handle.progress_handle();
        progress.restart();
        let writer = writer.progress(progress).cancel(self.handle.canceller());
        let attempts = writer.attempts();
        let saved = wait_until(writer.save(), deadline).unwrap_or_else(|| {
            Err(Error::new(ErrorKind::Timeout, "the save took too long")
                .with("step", self.handle.step().unwrap_or_default())
                .hint("look at the store, or allow more time; a sweep frees what was written"))
        });
        let Err(error) = saved else { return saved };
        // The answer may be lost though the record is there; of an earlier attempt, too.
        let until = Instant::now().checked_add(LOOK_AGAIN_MAX);
        match wait_until(attempts.committed(), until).flatten() {
            Some(saved) => {
                tracing::warn!(%error, "a save was committed although it seemed to fail");
                Ok(saved)
            }
            None => Err(error),
        }
    }
}
