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
    collections::BinaryHeap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake},
    thread::{JoinHandle, Thread},
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

/// Waits for a future on this thread, which sleeps in between; no runtime is needed or disturbed.
///
/// Never called from a job of a pool: the job might wait for its own thread.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
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
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use futures::executor::block_on;
    use std::sync::mpsc;

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
