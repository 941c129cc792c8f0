//! The only place that starts threads: pools with a priority queue, joined when they are dropped.
//!
//! A job is handed in with a [`Priority`] and answered through a future that needs no runtime. A job
//! whose future was dropped before it started is skipped; one that runs is finished, because a system
//! call cannot be taken back. A panic in a job becomes an `Internal` error of that job alone.
//!
//! **Invariant:** dropping the pool waits for the jobs that run and fails those still queued.

use crate::error::{Error, Result};
use futures::channel::oneshot;
use std::{
    collections::{BTreeMap, BinaryHeap},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{JoinHandle, Thread},
    time::{Duration, Instant},
};

/// Who goes first where work waits for threads, slots or memory; lower is sooner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A training job waits for its state.
    Restore,
    /// The loop waits for this save.
    #[default]
    Foreground,
    /// A save that nobody waits for.
    Background,
    /// A copy to another place.
    Upload,
    /// Freeing what is dead.
    Sweep,
}

/// Forks of forks of forks: deeper ones share what the last of them has.
const FORKS_MAX: usize = 32;

/// A shared value of this process, behind a lock. A child of a fork starts with a fresh one: what a thread of the parent
/// had locked at the fork is never unlocked there.
pub(crate) struct PerProcess<T>([OnceLock<(u32, Mutex<T>)>; FORKS_MAX]);

impl<T: Default> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self([const { OnceLock::new() }; FORKS_MAX])
    }

    /// Locks the value of this process.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.of(std::process::id()).lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each process knows those of its parents, in order, and adds its own.
    fn of(&self, process: u32) -> &Mutex<T> {
        let known = self.0.iter().map(|slot| slot.get_or_init(|| (process, Mutex::default())));
        let mut last = None;
        for (owner, value) in known {
            last = Some(value);
            if *owner == process {
                break;
            }
        }
        last.expect("there is at least one slot")
    }
}

type Job = Box<dyn FnOnce() + Send>;

struct Queued {
    order: (Priority, u64),
    job: Job,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.order.cmp(&self.order) // BinaryHeap is a max-heap: the lowest order is to pop first
    }
}

#[derive(Default)]
struct Queue {
    jobs: BinaryHeap<Queued>,
    sequence: u64,
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fixed number of threads that run blocking or CPU-bound jobs by priority.
pub(crate) struct Pool {
    name: &'static str,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({}, {} threads)", self.name, self.threads.len())
    }
}

impl Pool {
    /// Starts `threads` threads called `name`.
    ///
    /// # Errors
    /// `Unavailable` where the system refuses another thread.
    pub(crate) fn new(name: &'static str, threads: usize) -> Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::new(Queue::default()), wake: Condvar::new() });
        let mut pool = Self { name, shared, threads: Vec::with_capacity(threads) };
        #[cfg(test)]
        if simulated::machine().is_some() {
            return Ok(pool); // its jobs are tasks of the simulation
        }
        for _ in 0..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || work(&shared))
                .map_err(|e| Error::unavailable("cannot start a thread").because(e))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Returns the number of threads.
    pub(crate) fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Runs `job` on a thread of the pool and resolves to its result.
    ///
    /// # Cancel safety
    /// Dropping the future before the job starts skips it; afterwards the job still finishes, and what it
    /// owns is dropped on its thread.
    pub(crate) fn run<T: Send + 'static, F: FnOnce() -> Result<T> + Send + 'static>(
        &self,
        priority: Priority,
        job: F,
    ) -> impl Future<Output = Result<T>> + Send + use<T, F> {
        let (answer, receive) = oneshot::channel();
        let job: Job = Box::new(move || {
            if answer.is_canceled() {
                return;
            }
            let result = catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|panic| {
                let text = panic
                    .downcast_ref::<&str>()
                    .map(|s| (*s).to_owned())
                    .or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_default();
                Err(Error::internal(format!("a job panicked: {text}")))
            });
            drop(answer.send(result));
        });
        self.queue(priority, job);
        async move {
            receive.await.unwrap_or_else(|_| Err(Error::cancelled("the engine was shut down")))
        }
    }

    /// Runs `job` on a thread of the pool; nobody waits for it but the pool's drop.
    pub(crate) fn launch(&self, priority: Priority, job: impl FnOnce() + Send + 'static) {
        let job = move || {
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!("a launched job panicked");
            }
        };
        self.queue(priority, Box::new(job));
    }

    fn queue(&self, priority: Priority, job: Job) {
        #[cfg(test)]
        if let Some(machine) = simulated::machine() {
            return machine.spawn(Box::pin(async move { job() }));
        }
        {
            let mut queue = self.shared.lock();
            let order = (priority, queue.sequence);
            queue.sequence += 1;
            queue.jobs.push(Queued { order, job });
        }
        self.shared.wake.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let unstarted = {
            let mut queue = self.shared.lock();
            queue.closed = true;
            std::mem::take(&mut queue.jobs)
        };
        self.shared.wake.notify_all();
        drop(unstarted);
        let me = std::thread::current().id();
        for thread in self.threads.drain(..) {
            // The last owner may be a job of the pool itself; a thread cannot join itself.
            if thread.thread().id() != me {
                drop(thread.join());
            }
        }
    }
}

fn work(shared: &Shared) {
    loop {
        let job = {
            let mut queue = shared.lock();
            loop {
                if let Some(queued) = queue.jobs.pop() {
                    break queued.job;
                }
                if queue.closed {
                    return;
                }
                queue = shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        };
        job();
    }
}

/// What stands in for threads, the kernel and the time of stores on a thread that simulates them.
#[cfg(test)]
pub(crate) mod simulated {
    use futures::future::BoxFuture;
    use std::{cell::RefCell, sync::Arc, time::Duration, time::SystemTime};

    pub(crate) trait Machine: Send + Sync {
        /// Runs a task of the process that is at work now; it ends with it.
        fn spawn(&self, task: BoxFuture<'static, ()>);
        fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;
        fn time(&self) -> SystemTime;
        /// Host and number of the process that is at work now.
        fn process(&self) -> (String, u32);
        fn is_alive(&self, process: u32) -> bool;
    }

    thread_local! {
        static MACHINE: RefCell<Option<Arc<dyn Machine>>> = const { RefCell::new(None) };
    }

    /// Returns the machine of this thread, where it simulates one.
    pub(crate) fn machine() -> Option<Arc<dyn Machine>> {
        MACHINE.with_borrow(Option::clone)
    }

    /// Replaces the machine of this thread.
    pub(crate) fn install(machine: Option<Arc<dyn Machine>>) {
        MACHINE.set(machine);
    }
}

/// Waits for a future on this thread, which sleeps in between; no runtime is needed or disturbed.
///
/// Never called from a job of a pool: the job might wait for its own thread.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    match wait_until(future, None) {
        Some(output) => output,
        None => unreachable!("without a deadline the future ends"),
    }
}

/// Waits as [`wait`] does, but not beyond `deadline`: the future is dropped then.
pub(crate) fn wait_until<F: Future>(future: F, deadline: Option<Instant>) -> Option<F::Output> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = std::pin::pin!(future);
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return Some(value),
            Poll::Pending => match deadline {
                None => std::thread::park(),
                Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                    Some(left) if !left.is_zero() => std::thread::park_timeout(left),
                    _ => return None,
                },
            },
        }
    }
}

/// Those who sleep, by when they wake; one thread tells them.
struct Sleepers {
    queue: Mutex<BTreeMap<(Instant, u64), oneshot::Sender<()>>>,
    wake: Condvar,
    sequence: AtomicU64,
}

impl Sleepers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Instant, u64), oneshot::Sender<()>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever's time has come, for ever.
    fn keep(&self) {
        let mut queue = self.lock();
        loop {
            let now = Instant::now();
            let later = queue.split_off(&(now, u64::MAX));
            for (_, sleeper) in std::mem::replace(&mut *queue, later) {
                // Who does not wait any more is not told.
                let _gone = sleeper.send(());
            }
            // Who gave up waiting is forgotten at the latest when its time comes.
            queue = match queue.keys().next().map(|(time, _)| time.duration_since(now)) {
                Some(rest) => {
                    self.wake.wait_timeout(queue, rest).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

/// Resolves after `time`, without a runtime and without holding up a thread of anybody's.
///
/// # Cancel safety
/// Dropping it forgets it.
pub(crate) async fn sleep(time: Duration) {
    static SLEEPERS: PerProcess<Option<Arc<Sleepers>>> = PerProcess::new();
    let start = || {
        let sleepers = Arc::new(Sleepers {
            queue: Mutex::default(),
            wake: Condvar::new(),
            sequence: AtomicU64::new(0),
        });
        let own = Arc::clone(&sleepers);
        let keep = move || own.keep();
        let thread = std::thread::Builder::new().name("milepost-sleep".to_owned()).spawn(keep);
        thread.ok().map(|_| sleepers)
    };
    let sleepers = {
        // A child of a fork has none of its parent's threads.
        let mut sleepers = SLEEPERS.lock();
        if sleepers.is_none() {
            *sleepers = start();
        }
        sleepers.clone()
    };
    let Some(sleepers) = sleepers else {
        return std::thread::sleep(time); // no thread is left: late is better than never
    };
    let (tell, told) = oneshot::channel();
    let number = sleepers.sequence.fetch_add(1, Ordering::Relaxed);
    sleepers.lock().insert((Instant::now() + time, number), tell);
    sleepers.wake.notify_all();
    let _forgotten = told.await;
}

/// Ends what listens to it, once and for all; clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancel(Arc<Mutex<CancelState>>);

#[derive(Debug, Default)]
struct CancelState {
    cancelled: bool,
    listeners: Vec<Waker>,
}

impl Cancel {
    fn lock(&self) -> MutexGuard<'_, CancelState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cancels.
    pub(crate) fn cancel(&self) {
        let listeners = {
            let mut state = self.lock();
            state.cancelled = true;
            std::mem::take(&mut state.listeners)
        };
        listeners.into_iter().for_each(Waker::wake);
    }

    /// Resolves to the future's result, or fails where this is cancelled before that is there.
    pub(crate) async fn guard<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        let cancelled = || Poll::Ready(Err(Error::cancelled("the caller cancelled it")));
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|context| {
            {
                let mut state = self.lock();
                if state.cancelled {
                    return cancelled();
                }
                if !state.listeners.iter().any(|waker| waker.will_wake(context.waker())) {
                    state.listeners.push(context.waker().clone());
                }
            }
            let polled = future.as_mut().poll(context);
            // It may have come while the future was at its last step.
            if polled.is_ready() && self.lock().cancelled { cancelled() } else { polled }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use futures::executor::block_on;
    use std::sync::mpsc;

    #[test]
    fn what_a_parent_has_locked_is_free_in_its_child() {
        let shared = PerProcess::<u32>::new();
        let mut parents = shared.of(1).lock().unwrap();
        *parents = 5;
        assert_eq!(*shared.of(2).lock().unwrap(), 0);
        *shared.of(2).lock().unwrap() = 7;
        drop(parents);
        let values = [1, 2, 3, 2].map(|process| *shared.of(process).lock().unwrap());
        assert_eq!(values, [5, 7, 0, 7]);
        assert_eq!(*shared.lock(), 0);
    }

    #[test]
    fn the_higher_priority_runs_first_and_equals_keep_their_order() {
        let pool = Pool::new("test", 1).unwrap();
        let (open, gate) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let first = pool.run(Priority::Sweep, move || {
            gate.recv().unwrap();
            Ok(())
        });
        let rest: Vec<_> = [
            (Priority::Sweep, 4),
            (Priority::Background, 2),
            (Priority::Restore, 0),
            (Priority::Background, 3),
            (Priority::Foreground, 1),
        ]
        .into_iter()
        .map(|(priority, n)| {
            let tell = tell.clone();
            pool.run(priority, move || {
                tell.send(n).unwrap();
                Ok(())
            })
        })
        .collect();
        open.send(()).unwrap();
        block_on(first).unwrap();
        for job in rest {
            block_on(job).unwrap();
        }
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_wait_ends_at_its_deadline_and_drops_the_future() {
        let (tell, told) = mpsc::channel::<()>();
        let never = async move {
            futures::future::pending::<()>().await;
            drop(tell);
        };
        assert_eq!(wait_until(never, Some(Instant::now())), None);
        assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Disconnected));
        assert_eq!(wait_until(async { 7 }, Some(Instant::now())), Some(7));
    }

    #[test]
    fn who_sleeps_is_woken_in_the_order_of_the_times() {
        let order = Mutex::new(Vec::new());
        let nap = |millis: u64| {
            let order = &order;
            async move {
                sleep(Duration::from_millis(millis)).await;
                order.lock().unwrap().push(millis);
            }
        };
        block_on(async { futures::join!(nap(120), nap(0), nap(40)) });
        assert_eq!(*order.lock().unwrap(), [0, 40, 120]);
    }

    #[test]
    fn what_is_cancelled_ends_and_wakes_whoever_waits() {
        let cancel = Cancel::default();
        assert_eq!(block_on(cancel.guard(async { Ok(7) })).unwrap(), 7);
        let at_last = Cancel::default();
        let own = at_last.clone();
        let ends = async move {
            own.cancel();
            Ok(7)
        };
        assert_eq!(block_on(at_last.guard(ends)).unwrap_err().kind(), ErrorKind::Cancelled);
        let pool = Pool::new("test", 1).unwrap();
        let canceller = cancel.clone();
        let job = pool.run(Priority::Restore, move || {
            canceller.cancel();
            Ok(())
        });
        let stopped = block_on(cancel.guard(futures::future::pending::<Result<()>>()));
        assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Cancelled);
        block_on(job).unwrap();
    }

    #[test]
    fn a_panic_is_an_error_of_its_job_alone() {
        let pool = Pool::new("test", 1).unwrap();
        let bad = pool.run(Priority::Restore, || -> Result<()> { panic!("boom") });
        assert_eq!(block_on(bad).unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(block_on(pool.run(Priority::Restore, || Ok(7))).unwrap(), 7);
    }

    #[test]
    fn a_dropped_future_skips_a_job_that_has_not_started() {
        let pool = Pool::new("test", 1).unwrap();
        let (open, gate) = mpsc::channel::<()>();
        let first = pool.run(Priority::Restore, move || {
            gate.recv().unwrap();
            Ok(())
        });
        let (tell, told) = mpsc::channel::<()>();
        drop(pool.run(Priority::Restore, move || {
            tell.send(()).unwrap();
            Ok(())
        }));
        open.send(()).unwrap();
        block_on(first).unwrap();
        drop(pool);
        assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    }
}
