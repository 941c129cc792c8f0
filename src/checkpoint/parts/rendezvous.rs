//! Where participants meet: small values go from everybody to everybody, or from one to all, in bounded time.
//!
//! The launcher of a job has such a thing already (`jax.distributed`, MPI, a key-value store): [`Callbacks`] makes a
//! [`Rendezvous`] of two functions. [`InProcess`] joins the threads of one process, `StoreRendezvous` needs nothing but the
//! store.
//!
//! **Invariant:** what is right never depends on it. It says when to try; a commit is decided by a rename or a conditional
//! create, so an answer that is late, lost or wrong costs a save and nothing else.

use crate::{
    clock::Clock,
    error::{Error, ErrorKind, Result},
};
use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, Either, select},
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Poll, Waker},
    time::Duration,
};

/// No value that goes through a rendezvous is longer, in bytes.
pub(super) const VALUE_BYTES_MAX: u64 = 256 << 20;

/// What participants of a save tell each other.
///
/// Every participant makes the same calls in the same order, each with a name of its own, `<turn>-<what>`; a name is never
/// used again. Rounds called `due`, in which managers learn whether a step is to be saved (where its number alone does not
/// tell), may be held on another thread while those of the save before go on: their names tell them apart.
pub trait Rendezvous: fmt::Debug + Send + Sync {
    /// Returns which participant this is, from 0.
    fn index(&self) -> usize;

    /// Returns how many there are.
    fn count(&self) -> usize;

    /// Returns a number that goes up with every call and is the same for everybody's n-th call.
    ///
    /// It tells the rounds of a save from those of the next. Participants save in the same order; one that was started
    /// again joins with everybody else, or a fresh rendezvous is made.
    fn sequence(&self) -> u64;

    /// Gives `value` to everybody, and returns what everybody gave, by index.
    ///
    /// # Errors
    /// `Timeout` or `Unavailable` after `deadline` at the latest; `missing` says who was not there. `Conflict` where somebody
    /// else has this index.
    fn all_gather(
        &self,
        round: &str,
        value: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<Vec<Bytes>>>;

    /// Gives the value of participant `from` to everybody; it does not wait for the others. The others pass nothing.
    ///
    /// # Errors
    /// As [`Rendezvous::all_gather`].
    fn broadcast(
        &self,
        round: &str,
        from: usize,
        value: Option<Bytes>,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<Bytes>> {
        let gathered = self.all_gather(round, value.unwrap_or_default(), deadline);
        async move {
            let missing = || Error::internal("a rendezvous lost a value").with("from", from);
            gathered.await?.into_iter().nth(from).ok_or_else(missing)
        }
        .boxed()
    }

    /// Waits until everybody is here.
    ///
    /// # Errors
    /// As [`Rendezvous::all_gather`].
    fn barrier(&self, round: &str, deadline: Duration) -> BoxFuture<'_, Result<()>> {
        self.all_gather(round, Bytes::new(), deadline).map(|gathered| gathered.map(drop)).boxed()
    }
}

/// Says who was missing when the time was over.
pub(super) fn timed_out(round: &str, missing: &[usize]) -> Error {
    let error = Error::new(ErrorKind::Timeout, "participants did not come in time");
    let error = if missing.is_empty() {
        error // the rendezvous does not say
    } else {
        error.with("missing", super::plan::named(missing))
    };
    error.with("round", round).hint("look whether these processes live; then save again")
}

/// Ends a future after `time`; nothing then.
pub(super) async fn within<T>(
    clock: &dyn Clock,
    time: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    let future = std::pin::pin!(future);
    match select(future, clock.sleep(time)).await {
        Either::Left((value, _)) => Some(value),
        Either::Right(_) => None,
    }
}

type Gather = dyn Fn(&str, Bytes, Duration) -> BoxFuture<'static, Result<Vec<Bytes>>> + Send + Sync;
type Broadcast =
    dyn Fn(&str, usize, Option<Bytes>, Duration) -> BoxFuture<'static, Result<Bytes>> + Send + Sync;

/// A rendezvous made of functions of a launcher.
#[must_use]
pub struct Callbacks {
    index: usize,
    count: usize,
    sequence: AtomicU64,
    gather: Box<Gather>,
    broadcast: Option<Box<Broadcast>>,
}

impl fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Callbacks({} of {})", self.index, self.count)
    }
}

impl Callbacks {
    /// Takes an all-gather: round, value and deadline in, everybody's values by index out.
    ///
    /// # Errors
    /// `Invalid` where the index is not below the count.
    pub fn new(
        index: usize,
        count: usize,
        gather: impl Fn(&str, Bytes, Duration) -> BoxFuture<'static, Result<Vec<Bytes>>>
        + Send
        + Sync
        + 'static,
    ) -> Result<Self> {
        check_index(index, count)?;
        let gather = Box::new(gather);
        Ok(Self { index, count, sequence: AtomicU64::new(0), gather, broadcast: None })
    }

    /// Takes a broadcast, too; without one it is an all-gather, and the sender waits for everybody.
    pub fn with_broadcast(
        mut self,
        broadcast: impl Fn(&str, usize, Option<Bytes>, Duration) -> BoxFuture<'static, Result<Bytes>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.broadcast = Some(Box::new(broadcast));
        self
    }
}

pub(super) fn check_index(index: usize, count: usize) -> Result<()> {
    if index < count {
        return Ok(());
    }
    Err(Error::invalid("the index of a participant is not below their number")
        .with("index", index)
        .with("count", count))
}

impl Rendezvous for Callbacks {
    fn index(&self) -> usize {
        self.index
    }

    fn count(&self) -> usize {
        self.count
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
        let gathered = (self.gather)(round, value, deadline);
        async move {
            let values = gathered.await?;
            if values.len() == self.count {
                return Ok(values);
            }
            Err(Error::internal("a launcher's all-gather gave another number of values")
                .with("values", values.len())
                .with("count", self.count))
        }
        .boxed()
    }

    fn broadcast(
        &self,
        round: &str,
        from: usize,
        value: Option<Bytes>,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<Bytes>> {
        if let Some(broadcast) = &self.broadcast {
            return broadcast(round, from, value, deadline);
        }
        let gathered = self.all_gather(round, value.unwrap_or_default(), deadline);
        async move { Ok(gathered.await?.swap_remove(from)) }.boxed()
    }
}

/// The threads of one process meet here: for tests, and for jobs of one process with several states.
pub struct InProcess {
    index: usize,
    count: usize,
    sequence: AtomicU64,
    room: Arc<Room>,
}

#[derive(Debug)]
struct Room {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rounds: BTreeMap<String, Round>,
    /// Who is not there any more.
    gone: Vec<usize>,
    waiting: Vec<Waker>,
}

#[derive(Debug, Default)]
struct Round {
    values: BTreeMap<usize, Bytes>,
    taken: usize,
}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InProcess({} of {})", self.index, self.count)
    }
}

impl Room {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let waiting = {
            let mut state = self.lock();
            change(&mut state);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl InProcess {
    /// Makes the ends of a rendezvous of `count`; a member that is dropped is missing at once.
    #[must_use]
    pub fn group(count: usize, clock: &Arc<dyn Clock>) -> Vec<Self> {
        let room = Room { clock: Arc::clone(clock), state: Mutex::default() };
        let room = Arc::new(room);
        let member =
            |index| Self { index, count, sequence: AtomicU64::new(0), room: Arc::clone(&room) };
        (0..count).map(member).collect()
    }

    /// Waits for the values of `from` in a round that this one has joined.
    async fn wait(
        &self,
        round: String,
        from: Vec<usize>,
        deadline: Duration,
    ) -> Result<Vec<Bytes>> {
        let missing = |state: &State| -> Vec<usize> {
            let values = &state.rounds[&round].values;
            from.iter().copied().filter(|i| !values.contains_key(i)).collect()
        };
        let complete = std::future::poll_fn(|context| {
            let mut state = self.room.lock();
            let missing = missing(&state);
            if missing.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if missing.iter().any(|index| state.gone.contains(index)) {
                let gone: Vec<usize> =
                    missing.into_iter().filter(|i| state.gone.contains(i)).collect();
                return Poll::Ready(Err(gone));
            }
            state.waiting.push(context.waker().clone());
            Poll::Pending
        });
        let ended = within(&*self.room.clock, deadline, complete).await;
        let mut state = self.room.lock();
        let result = match ended {
            Some(Ok(())) => {
                let values = &state.rounds[&round].values;
                Ok(from.iter().map(|index| values[index].clone()).collect())
            }
            Some(Err(gone)) => Err(Error::unavailable("participants are gone")
                .with("round", &round)
                .with("missing", super::plan::named(&gone))),
            None => Err(timed_out(&round, &missing(&state))),
        };
        if let Some(entry) = state.rounds.get_mut(&round) {
            entry.taken += 1;
            if entry.taken == self.count {
                state.rounds.remove(&round);
            }
        }
        result
    }

    /// Joins a round; who waits is told when all that are waited for have come.
    fn give(&self, round: &str, value: Option<Bytes>, awaited: usize) -> Result<()> {
        let (mut twice, mut complete) = (false, false);
        {
            let mut state = self.room.lock();
            let round = state.rounds.entry(round.to_owned()).or_default();
            if let Some(value) = value {
                twice = round.values.insert(self.index, value).is_some();
                complete = round.values.len() == awaited;
            }
        }
        if complete {
            self.room.change(|_| {});
        }
        if !twice {
            return Ok(());
        }
        Err(Error::conflict("a participant is there twice").with("participant", self.index))
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.room.change(|state| state.gone.push(self.index));
    }
}

impl Rendezvous for InProcess {
    fn index(&self) -> usize {
        self.index
    }

    fn count(&self) -> usize {
        self.count
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
        let given = self.give(round, Some(value), self.count);
        let round = round.to_owned();
        async move {
            given?;
            self.wait(round, (0..self.count).collect(), deadline).await
        }
        .boxed()
    }

    fn broadcast(
        &self,
        round: &str,
        from: usize,
        value: Option<Bytes>,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<Bytes>> {
        let value = value.filter(|_| from == self.index);
        let given = self.give(round, value, 1);
        let round = round.to_owned();
        async move {
            given?;
            Ok(self.wait(round, vec![from], deadline).await?.swap_remove(0))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use futures::executor::block_on;

    fn pair() -> (InProcess, InProcess) {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let mut group = InProcess::group(2, &clock);
        let second = group.pop().unwrap();
        (group.pop().unwrap(), second)
    }

    #[test]
    fn values_go_to_everybody_and_a_broadcast_does_not_wait() {
        let (a, b) = pair();
        let long = Duration::from_mins(1);
        let sent = block_on(a.broadcast("first", 0, Some(Bytes::from_static(b"x")), long));
        assert_eq!(sent.unwrap(), "x");
        assert_eq!(block_on(b.broadcast("first", 0, None, long)).unwrap(), "x");
        let both = block_on(futures::future::join(
            a.all_gather("second", Bytes::from_static(b"a"), long),
            b.all_gather("second", Bytes::from_static(b"b"), long),
        ));
        assert_eq!(both.0.unwrap(), ["a", "b"]);
        assert_eq!(both.1.unwrap(), ["a", "b"]);
        assert!(a.room.lock().rounds.is_empty(), "what everybody has taken is forgotten");
    }

    #[test]
    fn who_is_late_or_gone_is_named() {
        let (a, b) = pair();
        let late = block_on(a.barrier("late", Duration::from_millis(1))).unwrap_err();
        assert_eq!((late.kind(), late.get("missing")), (ErrorKind::Timeout, Some("1")));
        drop(b);
        let gone = block_on(a.barrier("gone", Duration::from_mins(1))).unwrap_err();
        assert_eq!((gone.kind(), gone.get("missing")), (ErrorKind::Unavailable, Some("1")));
    }
}
