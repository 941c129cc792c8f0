//! Leases: small objects that say who is at work, renewed while it lives (spec/commit.md).
//!
//! A [`Lease`] writes its object again every ten seconds and takes its id out of the process's list of live ones when it is
//! dropped. A [`Holder`] is what a mark says about the process that wrote it; with that, a process of the same machine
//! is known to be gone at once. Everybody else counts as alive until the mark is older than [`LEASE_EXPIRY`]
//! by the time of the store ([`StoreTime`]), so that no clock of a machine matters.
//!
//! Leases only decide when somebody may try to sweep or take over; what is right is decided by renames and
//! conditional creates.
//!
//! **Invariant:** ending a lease never waits for a hung network for longer than [`FAREWELL_MAX`].

#[cfg(test)]
use crate::tasks::simulated;
use crate::{
    error::{Error, ErrorKind, Result},
    io::Engine,
    store::{Place, Store},
    tasks::{PerProcess, Pool, Priority, wait},
};
use bytes::Bytes;
use futures::{channel::oneshot, future::BoxFuture};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A lease that was not renewed for so long is dead, where nothing else tells.
pub(super) const LEASE_EXPIRY: Duration = Duration::from_mins(1);
/// A sixth of what it takes for a lease to count as dead.
const RENEWAL: Duration = Duration::from_secs(10);
/// How long a drop waits for a renewal under way, or for the mark to go.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

/// The leases that this process holds, by id; ids of a test's clock may repeat, so they are counted.
static LIVE: PerProcess<BTreeMap<String, usize>> = PerProcess::new();

fn live() -> MutexGuard<'static, BTreeMap<String, usize>> {
    LIVE.lock()
}

/// Tells whether this process holds a lease of that id.
pub(super) fn is_ours(id: &str) -> bool {
    live().contains_key(&name_here(id))
}

/// What an id is called in the list of this process.
fn name_here(id: &str) -> String {
    #[cfg(test)]
    if let Some(machine) = simulated::machine() {
        return format!("{:?}-{}-{id}", std::thread::current().id(), machine.process().1);
    }
    id.to_owned()
}

/// Who holds a mark: enough to tell on the same machine whether the process lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    /// The id of the lease: the writer's, where it is an attempt's.
    pub(super) id: String,
    /// The step it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) step: Option<u64>,
    /// When it was taken, by the holder's clock.
    #[serde(default)]
    pub(super) since_ms: u64,
    #[serde(flatten)]
    process: Process,
}

/// A process, as the kernel knows it; without `boot` nothing is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Process {
    host: String,
    boot: String,
    pid_namespace: String,
    pid: u32,
    started: u64,
}

/// What is known of a holder without looking at the age of its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Alive,
    Dead,
    /// Of another machine or container: the age of the mark tells.
    Unknown,
}

/// Start time, and whether it has ended but was not waited for.
struct Stat {
    pid: u32,
    started: u64,
    ended: bool,
}

/// Reads `/proc/<of>/stat`; the name in it may contain anything, so fields count from the last parenthesis.
fn stat(of: &str) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{of}/stat")).ok()?;
    let pid = text.split(' ').next()?.parse().ok()?;
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let threads: u64 = fields.get(17)?.parse().ok()?;
    let started = fields.get(19)?.parse().ok()?;
    // A first thread that has ended while others go on is a zombie, too.
    let ended = matches!(*fields.first()?, "Z" | "X") && threads <= 1;
    Some(Stat { pid, started, ended })
}

impl Process {
    /// Describes this process; anew each time, because a fork is another one.
    fn this() -> Self {
        #[cfg(test)]
        if let Some((host, pid)) = simulated::machine().map(|machine| machine.process()) {
            let (boot, pid_namespace) = ("simulated".to_owned(), String::new());
            return Self { host, boot, pid_namespace, pid, started: 0 };
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let pid = std::process::id();
        let known = || {
            let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
            let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
            // A `/proc` of another namespace counts processes otherwise: then nothing is known.
            let stat = stat("self").filter(|stat| stat.pid == pid)?;
            Some((boot.trim().to_owned(), namespace.to_str()?.to_owned(), stat.started))
        };
        let (boot, pid_namespace, started) = known().unwrap_or_default();
        Self { host, boot, pid_namespace, pid, started }
    }

    fn life(&self, id: &str) -> Life {
        let this = Self::this();
        let here = !self.boot.is_empty()
            && (&self.boot, &self.pid_namespace, &self.host)
                == (&this.boot, &this.pid_namespace, &this.host);
        if !here {
            return Life::Unknown;
        }
        if (self.pid, self.started) == (this.pid, this.started) {
            return if is_ours(id) { Life::Alive } else { Life::Dead };
        }
        #[cfg(test)]
        if let Some(machine) = simulated::machine() {
            return if machine.is_alive(self.pid) { Life::Alive } else { Life::Dead };
        }
        let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
        let Some(pid) = pid else { return Life::Unknown };
        match rustix::process::test_kill_process(pid) {
            Err(rustix::io::Errno::SRCH) => return Life::Dead,
            Ok(()) | Err(rustix::io::Errno::PERM) => {}
            Err(_) => return Life::Unknown,
        }
        match stat(&self.pid.to_string()) {
            Some(stat) if stat.started != self.started || stat.ended => Life::Dead,
            Some(_) => Life::Alive,
            // Hidden from this user, or gone just now: the age tells.
            None => Life::Unknown,
        }
    }
}

impl Holder {
    /// Describes a lease that this process is about to take.
    pub(super) fn this(engine: &Engine, id: &str, step: Option<u64>) -> Self {
        let since_ms = engine.clock().unix_ms();
        Self { id: id.to_owned(), step, since_ms, process: Process::this() }
    }

    /// Parses the content of a mark; nothing where it is none.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    pub(super) fn to_bytes(&self) -> Result<Bytes> {
        let failed = |e| Error::internal("a mark cannot be written as JSON").because(e);
        serde_json::to_vec(self).map(Bytes::from).map_err(failed)
    }

    pub(super) fn to_json(&self) -> Result<serde_json::Value> {
        let failed = |e| Error::internal("a mark cannot be written as JSON").because(e);
        serde_json::to_value(self).map_err(failed)
    }

    pub(super) fn from_json(value: &serde_json::Value) -> Option<Self> {
        Self::deserialize(value).ok()
    }

    /// Tells what is known about the holder now.
    pub(super) fn life(&self) -> Life {
        self.process.life(&self.id)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.process.host.is_empty() { "?" } else { &self.process.host };
        write!(f, "process {} on {host} ({})", self.process.pid, self.id)
    }
}

/// What a mark says, as far as it could be read.
#[derive(Clone, Debug)]
pub(super) enum Holding {
    Known(Holder),
    /// Torn or of somebody else: only its age tells.
    Garbled,
    /// The store did not give it: it counts as held.
    Unreadable,
}

/// A mark as it was found.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    pub(super) key: String,
    pub(super) bytes: u64,
    pub(super) modified: SystemTime,
    pub(super) holding: Holding,
}

/// No mark is longer.
const MARK_BYTES_MAX: u64 = 64 << 10;

impl Mark {
    /// Reads the mark at `key`; nothing where it is gone.
    ///
    /// # Errors
    /// The store's, where not even its time can be told.
    pub(super) async fn read(store: &Arc<dyn Store>, key: &str) -> Result<Option<Self>> {
        let span = crate::store::Span::Whole { bytes_max: MARK_BYTES_MAX };
        let meta = match store.head(key).await {
            Ok(meta) => meta,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let holding = match store.get(key, span, Priority::Foreground).await {
            Ok(bytes) => Holder::parse(&bytes).map_or(Holding::Garbled, Holding::Known),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                tracing::warn!(%error, "a mark cannot be read: it counts as held");
                Holding::Unreadable
            }
        };
        if matches!(holding, Holding::Garbled) {
            tracing::warn!(key, "a mark is garbled: it counts as held until it has expired");
        }
        Ok(Some(Self { key: key.to_owned(), bytes: meta.bytes, modified: meta.modified, holding }))
    }

    /// Tells whether who wrote the mark may still be at work.
    pub(super) async fn is_alive(&self, time: &mut StoreTime) -> bool {
        match &self.holding {
            Holding::Unreadable => true,
            Holding::Garbled => !time.is_older(self.modified, LEASE_EXPIRY).await,
            Holding::Known(holder) => match holder.life() {
                Life::Alive => true,
                Life::Dead => false,
                Life::Unknown => !time.is_older(self.modified, LEASE_EXPIRY).await,
            },
        }
    }

    /// Returns who holds it, for people.
    pub(super) fn holder(&self) -> String {
        match &self.holding {
            Holding::Known(holder) => holder.to_string(),
            Holding::Garbled | Holding::Unreadable => "unknown: the mark cannot be read".to_owned(),
        }
    }
}

/// The store's time, asked for once and only where it is needed: an object that is put now is as old as now.
#[derive(Debug)]
pub(super) struct StoreTime {
    /// Where an object may be put; `None` where nothing may be written and the clock has to do.
    probe: Option<Place>,
    now: Option<SystemTime>,
}

impl StoreTime {
    /// The time of the store of a run.
    pub(super) fn of_run(engine: &Engine, run: &Place) -> Self {
        let name = format!(".milepost/probe/now-{:032x}", engine.clock().unique_id());
        Self { probe: Some(run.join(&name)), now: None }
    }

    /// The time of the store of a checkpoint that stands alone, asked for beside it.
    pub(super) fn beside(engine: &Engine, target: &Place) -> Self {
        let id = engine.clock().unique_id();
        let name = format!("{}.milepost-tmp-probe-{id:032x}", target.name());
        Self { probe: Some(target.parent().join(&name)), now: None }
    }

    /// The engine's clock instead: for lists that are only shown, which write nothing.
    pub(super) fn of_clock(engine: &Engine) -> Self {
        let now = UNIX_EPOCH.checked_add(Duration::from_millis(engine.clock().unix_ms()));
        Self { probe: None, now }
    }

    /// Returns the time now, or rather when it was asked for first.
    pub(super) async fn now(&mut self) -> Result<SystemTime> {
        if let Some(now) = self.now {
            return Ok(now);
        }
        let Some(probe) = &self.probe else {
            return Err(Error::unavailable("the clock is out of range"));
        };
        let (store, key) = (probe.store(), probe.prefix());
        store.put(key, vec![Bytes::from_static(b"now")], Priority::Foreground).await?;
        let now = store.head(key).await;
        // An old probe is swept some day.
        drop(store.delete(vec![key.to_owned()]).await);
        Ok(*self.now.insert(now?.modified))
    }

    /// Tells whether that time is longer ago than `age`; no, where the store does not tell.
    pub(super) async fn is_older(&mut self, time: SystemTime, age: Duration) -> bool {
        match self.now().await {
            Ok(now) => now.duration_since(time).unwrap_or_default() >= age,
            Err(error) => {
                tracing::warn!(%error, "the store's time is not known: nothing counts as old");
                false
            }
        }
    }
}

#[derive(Default, Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    #[default]
    Held,
    Ending {
        remove: bool,
    },
    Ended,
}

#[derive(Default, Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    #[cfg(test)]
    told: futures::task::AtomicWaker,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, remove: bool) {
        let mut state = self.lock();
        if *state == State::Held {
            *state = State::Ending { remove };
        }
        drop(state);
        self.wake.notify_all();
        #[cfg(test)]
        self.told.wake();
    }

    /// Waits for the end of a renewal under way, but not for a hung network.
    fn await_end(&self) {
        #[cfg(test)]
        if simulated::machine().is_some() {
            return; // it goes on as a task
        }
        let waiting = |state: &mut State| *state != State::Ended;
        drop(self.wake.wait_timeout_while(self.lock(), FAREWELL_MAX, waiting));
    }

    /// Waits until it is time to renew; `false` where the lease is to end. It holds up the lease's own thread.
    fn pause(&self) -> BoxFuture<'_, bool> {
        #[cfg(test)]
        if let Some(machine) = simulated::machine() {
            let mut sleep = machine.sleep(RENEWAL);
            return Box::pin(std::future::poll_fn(move |context| {
                self.told.register(context.waker());
                match *self.lock() {
                    State::Held => sleep.as_mut().poll(context).map(|()| true),
                    _ => std::task::Poll::Ready(false),
                }
            }));
        }
        Box::pin(async {
            let held = |state: &mut State| *state == State::Held;
            let waited = self.wake.wait_timeout_while(self.lock(), RENEWAL, held);
            *waited.unwrap_or_else(PoisonError::into_inner).0 == State::Held
        })
    }
}

/// An object that is renewed until this is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    id: String,
    shared: Arc<Shared>,
    ended: oneshot::Receiver<Result<()>>,
    /// Whether a drop removes the object; an attempt's stays, so that all see that it is dead.
    remove_on_drop: bool,
}

impl Lease {
    /// Starts to renew the object at `key` with the bytes it has; it is put by the caller.
    ///
    /// # Errors
    /// `Unavailable` where the system refuses a thread.
    pub(super) fn start(
        store: &Arc<dyn Store>,
        key: &str,
        content: &Bytes,
        id: &str,
    ) -> Result<Self> {
        let pool = Arc::new(Pool::new("milepost-lease", 1)?);
        let shared = Arc::new(Shared::default());
        let (tell, ended) = oneshot::channel();
        let id = name_here(id);
        *live().entry(id.clone()).or_default() += 1;
        let lease = Self { id, shared: Arc::clone(&shared), ended, remove_on_drop: false };
        let (store, key, content) = (Arc::clone(store), key.to_owned(), content.clone());
        let keep = async move {
            let result = renew(&shared, &store, &key, &content).await;
            drop(tell.send(result));
            *shared.lock() = State::Ended;
            shared.wake.notify_all();
        };
        #[cfg(test)]
        if let Some(machine) = simulated::machine() {
            machine.spawn(Box::pin(keep));
            return Ok(lease);
        }
        // The job owns its pool: so the thread can be left behind where the network hangs.
        let own = Arc::clone(&pool);
        pool.launch(Priority::Foreground, move || {
            wait(keep);
            drop(own);
        });
        Ok(lease)
    }

    /// Puts a mark and renews it.
    ///
    /// # Errors
    /// The store's.
    ///
    /// # Cancel safety
    /// Dropped: the mark may be there; it counts as dead.
    pub(super) async fn take(store: &Arc<dyn Store>, key: &str, holder: &Holder) -> Result<Self> {
        let content = holder.to_bytes()?;
        // First it lives, then others can see it.
        let lease = Self::start(store, key, &content, &holder.id)?;
        match store.put(key, vec![content], Priority::Foreground).await {
            Ok(()) => Ok(lease),
            Err(error) => {
                // It may be there all the same.
                drop(lease.release().await);
                Err(error)
            }
        }
    }

    /// Lets a drop remove the object.
    pub(super) fn removed_on_drop(mut self) -> Self {
        self.remove_on_drop = true;
        self
    }

    /// Ends the lease and removes its object.
    ///
    /// # Errors
    /// The store's: the object may still be there, and counts as dead.
    pub(super) async fn release(mut self) -> Result<()> {
        self.shared.end(true);
        let failed = || Error::internal("a lease ended without an answer");
        (&mut self.ended).await.map_err(|_| failed())?
    }
}

/// Renews until it is to end; removes the object then, where that is asked for.
async fn renew(shared: &Shared, store: &Arc<dyn Store>, key: &str, content: &Bytes) -> Result<()> {
    while shared.pause().await {
        // Who ends the lease meanwhile does not wait for the network.
        let put = store.put(key, vec![content.clone()], Priority::Foreground);
        if let Err(error) = put.await {
            tracing::warn!(%error, "a lease could not be renewed");
        }
    }
    let remove = *shared.lock() == State::Ending { remove: true };
    if remove { store.delete(vec![key.to_owned()]).await } else { Ok(()) }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.end(self.remove_on_drop);
        self.shared.await_end();
        let mut live = live();
        if let Some(count) = live.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                live.remove(&self.id);
            }
        }
    }
}
