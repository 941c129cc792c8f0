//! Time, chance, tasks and processes of a simulation, all on one thread.
//!
//! A step polls one of the tasks that are ready, which one is drawn; where none is ready, time jumps to the next timer.
//! What a process has begun ends with it at a poll that was drawn: between any two of its operations.

use super::trouble::{Act, Phase, Trigger, Trouble, Weather};
use futures::{
    FutureExt,
    channel::oneshot,
    future::{BoxFuture, LocalBoxFuture},
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Wake},
    time::Duration,
};
use xxhash_rust::xxh3::Xxh3;

/// So much of a trace is shown.
const TAIL_LINES: usize = 400;
/// The process that is none: the world, and who looks at it.
pub(super) const NOBODY: u32 = 0;

#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

enum Timer {
    Wake(oneshot::Sender<()>),
    Run(Box<dyn FnOnce() + Send>),
}

struct Task {
    process: u32,
    wakeup: Arc<Wakeup>,
}

thread_local! {
    /// The tasks of the simulation of this thread; they need not be `Send`.
    static FUTURES: RefCell<BTreeMap<u64, LocalBoxFuture<'static, ()>>> =
        const { RefCell::new(BTreeMap::new()) };
}

fn take_future(task: u64) -> Option<LocalBoxFuture<'static, ()>> {
    FUTURES.with_borrow_mut(|futures| futures.remove(&task))
}

struct Wakeup {
    task: u64,
    queued: AtomicBool,
    ready: Arc<Mutex<Vec<u64>>>,
}

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.lock().unwrap().push(self.task);
        }
    }
}

#[derive(Default)]
struct Process {
    host: u64,
    dead: bool,
    /// Those of its tasks that are ready while it is stopped.
    stopped: Option<Vec<u64>>,
    polls: u64,
    decisions: u64,
    /// Whether any of its trouble has come.
    struck: bool,
    trouble: Trouble,
}

struct State {
    random: Random,
    now: Duration,
    sequence: u64,
    timers: BTreeMap<(Duration, u64), Timer>,
    tasks: BTreeMap<u64, Task>,
    processes: BTreeMap<u32, Process>,
    current: u32,
    hash: Xxh3,
    tail: Option<VecDeque<String>>,
    counts: BTreeMap<&'static str, u64>,
}

/// What runs a simulation.
pub(super) struct Core {
    state: Mutex<State>,
    ready: Arc<Mutex<Vec<u64>>>,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Core({:?})", self.now())
    }
}

impl Core {
    pub(super) fn new(seed: u64, is_shown: bool) -> Arc<Self> {
        let state = State {
            random: Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d)),
            now: Duration::ZERO,
            sequence: 0,
            timers: BTreeMap::new(),
            tasks: BTreeMap::new(),
            processes: BTreeMap::from([(NOBODY, Process::default())]),
            current: NOBODY,
            hash: Xxh3::new(),
            tail: is_shown.then(VecDeque::new),
            counts: BTreeMap::new(),
        };
        Arc::new(Self { state: Mutex::new(state), ready: Arc::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Duration {
        self.state().now
    }

    /// Draws a number below `n`.
    pub(super) fn below(&self, n: u64) -> u64 {
        self.state().random.next() % n
    }

    /// Tells `true` `n` times of a thousand.
    pub(super) fn chance(&self, n: u64) -> bool {
        self.below(1000) < n
    }

    pub(super) fn micros(&self, from: u64, to: u64) -> Duration {
        Duration::from_micros(from + self.below(to - from + 1))
    }

    pub(super) fn current(&self) -> u32 {
        self.state().current
    }

    /// Starts a process on a host.
    pub(super) fn process(&self, host: u64, trouble: Trouble) -> u32 {
        let mut state = self.state();
        let number = u32::try_from(state.processes.len()).unwrap();
        state.processes.insert(number, Process { host, trouble, ..Process::default() });
        number
    }

    pub(super) fn weather(&self, process: u32) -> Weather {
        self.state().processes[&process].trouble.weather.clone()
    }

    pub(super) fn is_dead(&self, process: u32) -> bool {
        self.state().processes[&process].dead
    }

    /// Tells whether any trouble has come to a process.
    pub(super) fn is_struck(&self, process: u32) -> bool {
        self.state().processes[&process].struck
    }

    pub(super) fn is_stopped(&self, process: u32) -> bool {
        self.state().processes[&process].stopped.is_some()
    }

    /// Counts a trouble that has come.
    pub(super) fn strike(&self, process: u32, trouble: &'static str) {
        let mut state = self.state();
        *state.counts.entry(trouble).or_default() += 1;
        state.processes.get_mut(&process).unwrap().struck = true;
    }

    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.state().counts.clone()
    }

    pub(super) fn digest(&self) -> u64 {
        self.state().hash.digest()
    }

    /// Returns the last lines of the trace.
    pub(super) fn tail(&self) -> Vec<String> {
        self.state().tail.iter().flatten().cloned().collect()
    }

    /// Adds to the trace what a process does and what comes of it.
    pub(super) fn trace(&self, process: u32, what: &[&str]) {
        let mut state = self.state();
        let now = state.now;
        state.hash.update(&now.as_nanos().to_le_bytes());
        state.hash.update(&process.to_le_bytes());
        for what in what {
            state.hash.update(what.as_bytes());
            state.hash.update(b"\n");
        }
        if let Some(tail) = &mut state.tail {
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(format!("{:>12.6} #{process} {}", now.as_secs_f64(), what.join(" ")));
        }
    }

    fn add_timer(&self, delay: Duration, timer: Timer) {
        let mut state = self.state();
        state.sequence += 1;
        let at = (state.now + delay, state.sequence);
        state.timers.insert(at, timer);
    }

    /// Does something later, whoever lives then.
    pub(super) fn after(&self, delay: Duration, run: impl FnOnce() + Send + 'static) {
        self.add_timer(delay, Timer::Run(Box::new(run)));
    }

    pub(super) fn sleep_for(&self, time: Duration) -> BoxFuture<'static, ()> {
        let (tell, told) = oneshot::channel();
        self.add_timer(time, Timer::Wake(tell));
        told.map(drop).boxed()
    }

    /// Starts a task of a process, unless that is dead.
    pub(super) fn spawn_in(&self, process: u32, future: LocalBoxFuture<'static, ()>) {
        let mut state = self.state();
        if state.processes[&process].dead {
            drop(state);
            return drop(future);
        }
        state.sequence += 1;
        let task = state.sequence;
        let ready = Arc::clone(&self.ready);
        let wakeup = Arc::new(Wakeup { task, queued: AtomicBool::new(false), ready });
        state.tasks.insert(task, Task { process, wakeup: Arc::clone(&wakeup) });
        drop(state);
        FUTURES.with_borrow_mut(|futures| futures.insert(task, future));
        wakeup.wake();
    }

    /// Ends a process: its tasks are dropped where they are.
    pub(super) fn kill(&self, process: u32) {
        let (dropped, before) = {
            let mut state = self.state();
            state.processes.get_mut(&process).unwrap().dead = true;
            let own = state.tasks.iter().filter(|(_, task)| task.process == process);
            let own: Vec<u64> = own.map(|(number, _)| *number).collect();
            for number in &own {
                state.tasks.remove(number);
            }
            let dropped: Vec<_> = own.into_iter().map(take_future).collect();
            let before = std::mem::replace(&mut state.current, process);
            (dropped, before)
        };
        drop(dropped);
        self.state().current = before;
    }

    /// Stops a process for a while.
    fn pause(self: &Arc<Self>, process: u32, time: Duration) {
        {
            let mut state = self.state();
            state.processes.get_mut(&process).unwrap().stopped = Some(Vec::new());
        }
        let core = Arc::clone(self);
        self.after(time, move || {
            core.trace(process, &["goes on"]);
            let woken = core.state().processes.get_mut(&process).unwrap().stopped.take();
            core.ready.lock().unwrap().extend(woken.into_iter().flatten());
        });
    }

    /// Lets the trouble come that waits for this moment; tells whether the process goes on.
    fn comes(self: &Arc<Self>, process: u32, is_due: impl Fn(&Trigger, u64) -> bool) -> bool {
        let due = {
            let mut state = self.state();
            let process = state.processes.get_mut(&process).unwrap();
            let polls = process.polls;
            let acts = &mut process.trouble.acts;
            let due = acts.iter().position(|(trigger, _)| is_due(trigger, polls));
            due.filter(|_| !process.dead).map(|due| acts.remove(due).1)
        };
        match due {
            None => return !self.is_dead(process),
            Some(Act::Crash) => {
                self.trace(process, &["dies"]);
                self.strike(process, "crashes");
                self.kill(process);
            }
            Some(Act::Pause(time)) => {
                self.trace(process, &["stops"]);
                self.strike(process, "zombies");
                self.pause(process, time);
            }
        }
        !self.is_dead(process)
    }

    /// A process is about to take, commit or end an attempt, has, or is to hear of it; tells whether it lives on.
    ///
    /// Where there is but `one` such operation, it is the n-th, too.
    pub(super) fn point(self: &Arc<Self>, process: u32, phase: Phase, one: bool) -> bool {
        let nth = {
            let mut state = self.state();
            let process = state.processes.get_mut(&process).unwrap();
            process.decisions += u64::from(phase == Phase::Before);
            process.decisions
        };
        self.comes(process, |trigger, _| {
            matches!(trigger, Trigger::Decision(n, at) if *at == phase && (one || *n == nth))
        })
    }

    fn poll(self: &Arc<Self>, task: u64) {
        let taken = {
            let mut state = self.state();
            let state = &mut *state;
            let Some(found) = state.tasks.get_mut(&task) else { return };
            let process = state.processes.get_mut(&found.process).unwrap();
            if let Some(stopped) = &mut process.stopped {
                return stopped.push(task); // it stays queued: who wakes it again is not heard
            }
            process.polls += 1;
            found.process
        };
        if !self.comes(taken, |trigger, polls| *trigger == Trigger::Poll(polls)) {
            return;
        }
        let wakeup = {
            let mut state = self.state();
            let state = &mut *state;
            if let Some(stopped) = &mut state.processes.get_mut(&taken).unwrap().stopped {
                return stopped.push(task);
            }
            state.current = taken;
            let Some(found) = state.tasks.get_mut(&task) else { return };
            let now = state.now.as_nanos().to_le_bytes();
            state.hash.update(&now);
            state.hash.update(&task.to_le_bytes());
            Arc::clone(&found.wakeup)
        };
        wakeup.queued.store(false, Ordering::Relaxed);
        let waker = wakeup.into();
        let Some(mut future) = take_future(task) else { return };
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        let is_kept = {
            let mut state = self.state();
            if polled.is_ready() {
                state.tasks.remove(&task);
            }
            state.tasks.contains_key(&task)
        };
        if is_kept {
            FUTURES.with_borrow_mut(|futures| futures.insert(task, future));
        } else {
            // What is done, or of a process that died meanwhile, is dropped as that process.
            drop(future);
        }
        self.state().current = NOBODY;
    }

    /// Does one thing; `false` where there is nothing to do.
    fn step(self: &Arc<Self>) -> bool {
        let ready = {
            let mut ready = self.ready.lock().unwrap();
            let count = ready.len() as u64;
            (count > 0).then(|| {
                let drawn = if count == 1 { 0 } else { self.below(count) };
                ready.swap_remove(usize::try_from(drawn).unwrap())
            })
        };
        if let Some(task) = ready {
            self.poll(task);
            return true;
        }
        let timer = {
            let mut state = self.state();
            let Some(((at, _), timer)) = state.timers.pop_first() else { return false };
            // Who does not sleep any more holds nobody up.
            if matches!(&timer, Timer::Wake(sleeper) if sleeper.is_canceled()) {
                return true;
            }
            state.now = at;
            timer
        };
        match timer {
            Timer::Wake(sleeper) => drop(sleeper.send(())),
            Timer::Run(run) => run(),
        }
        true
    }

    /// Runs until `is_done`; `false` where it is not within `limit`, or nothing goes on.
    pub(super) fn run(self: &Arc<Self>, limit: Duration, is_done: impl Fn() -> bool) -> bool {
        let end = self.now() + limit;
        while !is_done() {
            if self.now() > end || !self.step() {
                return is_done();
            }
        }
        true
    }

    pub(super) fn host(&self, process: u32) -> u64 {
        self.state().processes[&process].host
    }

    /// Tells whether a process was started and has not died.
    pub(super) fn lives(&self, process: u32) -> bool {
        self.state().processes.get(&process).is_some_and(|process| !process.dead)
    }

    pub(super) fn draw(&self) -> u64 {
        self.state().random.next()
    }

    /// Drops everything; nothing comes after it.
    pub(super) fn close(&self) {
        let all: Vec<u32> = self.state().processes.keys().copied().collect();
        for process in all {
            self.kill(process);
        }
        let timers = std::mem::take(&mut self.state().timers);
        drop(timers);
    }
}
