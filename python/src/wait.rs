//! Waiting with the interpreter lock released and an ear for Ctrl-C; ownership that ends at a fork.

use crate::errors::{forked, raise};
use pyo3::prelude::*;
use std::{
    mem::ManuallyDrop,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    thread::{Thread, ThreadId},
    time::{Duration, Instant},
};

/// How often a waiting thread looks for signals.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// The thread that ends the interpreter, once it does.
static ENDING: OnceLock<ThreadId> = OnceLock::new();

/// Says that this thread is about to end the interpreter: no other may come back to it.
///
/// Before Python 3.14 a thread that takes the interpreter lock then is ended by unwinding, which Rust aborts.
///
/// Threads that wait for the interpreter lock inside of ours get it once more, and stay out when they let go of it.
#[pyfunction]
pub(crate) fn ending(py: Python<'_>) {
    let _ = ENDING.set(std::thread::current().id()); // it ends once
    let _ = GUEST.try_with(|_| ());
    if GUESTS.load(Ordering::Relaxed) > 1 {
        py.detach(|| std::thread::sleep(FAREWELL));
    }
}

/// How long other threads have to get out of the interpreter.
const FAREWELL: Duration = Duration::from_millis(100);

/// How many living threads have been in and out of the interpreter here.
static GUESTS: AtomicUsize = AtomicUsize::new(0);

struct Guest;

impl Drop for Guest {
    fn drop(&mut self) {
        GUESTS.fetch_sub(1, Ordering::Relaxed);
    }
}

thread_local! {
    static GUEST: Guest = {
        GUESTS.fetch_add(1, Ordering::Relaxed);
        Guest
    };
}

fn is_shut_out() -> bool {
    ENDING.get().is_some_and(|ending| *ending != std::thread::current().id())
}

/// Runs what may wait without the interpreter lock; does not come back where the interpreter is ending.
pub(crate) fn detached<T: Send>(py: Python<'_>, job: impl FnOnce() -> T + Send) -> T {
    // It fails on a thread that is ending, which need not be counted.
    let _ = GUEST.try_with(|_| ());
    py.detach(|| {
        let done = job();
        while is_shut_out() {
            std::thread::park();
        }
        done
    })
}

/// Runs what needs the interpreter lock on a thread that does not have it; `None` where the interpreter is ending.
pub(crate) fn attached<T>(job: impl FnOnce(Python<'_>) -> T) -> Option<T> {
    if is_shut_out() { None } else { Python::try_attach(job) }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future to its end on this thread; a signal's exception drops it, which cancels it.
pub(crate) fn block<T: Send>(
    py: Python<'_>,
    future: impl Future<Output = milepost::Result<T>> + Send,
) -> PyResult<T> {
    let mut future = Some(Box::pin(future));
    loop {
        let polled = detached(py, || {
            let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
            let deadline = Instant::now() + SIGNAL_INTERVAL;
            loop {
                let mut context = Context::from_waker(&waker);
                let polled = future.as_mut().map(|future| future.as_mut().poll(&mut context));
                if let Some(Poll::Ready(done)) = polled {
                    return Some(done);
                }
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return None;
                }
                std::thread::park_timeout(left);
            }
        });
        if let Some(done) = polled {
            return done.map_err(|e| raise(&e));
        }
        if let Err(stop) = py.check_signals() {
            // What it has begun may have to be taken back, in the store.
            detached(py, || drop(future.take()));
            return Err(stop);
        }
    }
}

/// Runs a blocking call on a thread of its own; a signal's exception leaves it to end by itself.
pub(crate) fn call<T: Send + 'static>(
    py: Python<'_>,
    job: impl FnOnce() -> T + Send + 'static,
) -> PyResult<T> {
    answer(py, &mut spawn(job)?)
}

/// Runs a future on a thread of its own, which makes it there; a signal's exception drops it, which cancels it.
///
/// For futures that cannot be shown to be `Send`. What they take back when they are dropped is waited for.
pub(crate) fn drive<T: Send + 'static, F: Future<Output = milepost::Result<T>>>(
    py: Python<'_>,
    make: impl FnOnce() -> F + Send + 'static,
) -> PyResult<T> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let mut receive = spawn(move || until_stopped(make(), &stopped))?;
    match answer(py, &mut receive) {
        Ok(done) => done.map_err(|e| raise(&e)),
        Err(signal) => {
            stop.store(true, Ordering::Relaxed);
            // A further signal does not wait.
            drop(answer(py, &mut receive));
            Err(signal)
        }
    }
}

fn until_stopped<T>(
    future: impl Future<Output = milepost::Result<T>>,
    stop: &AtomicBool,
) -> milepost::Result<T> {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    while !stop.load(Ordering::Relaxed) {
        if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return done;
        }
        std::thread::park_timeout(SIGNAL_INTERVAL);
    }
    Err(milepost::Error::new(milepost::ErrorKind::Cancelled, "a signal ended the wait for it"))
}

fn spawn<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> PyResult<mpsc::Receiver<T>> {
    let (answer, receive) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("milepost-python".to_owned());
    let run = move || {
        // Nobody may be left to listen.
        let _ = answer.send(job());
    };
    thread.spawn(run).map_err(|e| {
        raise(&milepost::Error::new(
            milepost::ErrorKind::Unavailable,
            format!("cannot start a thread: {e}"),
        ))
    })?;
    Ok(receive)
}

/// Waits for what a thread answers; a signal's exception ends the wait.
fn answer<T: Send>(py: Python<'_>, receive: &mut mpsc::Receiver<T>) -> PyResult<T> {
    loop {
        let next = &mut *receive;
        match detached(py, move || next.recv_timeout(SIGNAL_INTERVAL)) {
            Ok(done) => return Ok(done),
            Err(mpsc::RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let lost = milepost::Error::new(milepost::ErrorKind::Internal, "a call panicked");
                return Err(raise(&lost));
            }
        }
    }
}

/// A value with threads behind it: of no use in a child of the process that made it, and not dropped there.
pub(crate) struct Owned<T: Send> {
    pid: u32,
    value: ManuallyDrop<T>,
}

impl<T: Send> Owned<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { pid: std::process::id(), value: ManuallyDrop::new(value) }
    }

    /// Returns the value in the process that made it.
    pub(crate) fn get(&self) -> PyResult<&T> {
        if self.pid == std::process::id() { Ok(&self.value) } else { Err(forked()) }
    }
}

impl<T: Send> Drop for Owned<T> {
    fn drop(&mut self) {
        if self.pid != std::process::id() {
            return; // its threads are not here: their locks may never be released
        }
        #[expect(unsafe_code, reason = "a value is dropped early, without the interpreter lock")]
        // SAFETY: `drop` runs once and nothing reads the value afterwards.
        let value = unsafe { ManuallyDrop::take(&mut self.value) };
        let mut value = Some(value);
        // Dropping may wait for threads that want the interpreter lock.
        attached(|py| detached(py, || drop(value.take())));
        drop(value);
    }
}
