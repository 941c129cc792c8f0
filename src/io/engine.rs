//! The engine: the threads, the budget and the buffers that all plans of a process share.

use super::{Budget, pool::BufferPool};
use crate::{
    clock::{Clock, SystemClock},
    error::{Error, Result},
    store::{Disk, Place, Remote, Stores},
    tasks::Pool,
};
use std::sync::{Arc, OnceLock};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// How much of the machine an [`Engine`] may use.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineOptions {
    /// The byte budget of staging copies, encoded output and requests in flight.
    ///
    /// Default: the smaller of 1 GiB and a quarter of the machine's memory or of the cgroup's limit.
    pub budget_bytes: u64,
    /// Threads that encode, decode and checksum. Default: the available cores.
    pub codec_threads: usize,
    /// Threads that wait for the local disk; its reads have twice as many of their own. Default: 4; more helps on
    /// arrays of disks.
    pub disk_threads: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            budget_bytes: GIB.min(memory_bytes().unwrap_or(4 * GIB) / 4),
            codec_threads: cores,
            disk_threads: 4,
        }
    }
}

impl EngineOptions {
    /// Checks every field.
    ///
    /// # Errors
    /// `Invalid` names the field and its bounds.
    pub fn validate(&self) -> Result<()> {
        if self.budget_bytes < MIB {
            return Err(Error::invalid("the budget is too small")
                .with("budget_bytes", self.budget_bytes)
                .hint("give at least 1MiB"));
        }
        for (name, threads) in
            [("codec_threads", self.codec_threads), ("disk_threads", self.disk_threads)]
        {
            if !(1..=1024).contains(&threads) {
                return Err(Error::invalid("a thread count is out of range")
                    .with(name, threads)
                    .hint("give 1 to 1024"));
            }
        }
        Ok(())
    }
}

/// The memory that this process may use: the machine's, or less where a cgroup says so.
fn memory_bytes() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let total = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let cgroup = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| read(path)?.trim().parse::<u64>().ok());
    match (total, cgroup) {
        (Some(total), Some(cgroup)) => Some(total.min(cgroup)),
        (total, cgroup) => total.or(cgroup),
    }
}

/// The shared machinery of all saves and restores; one a process is the rule ([`Engine::shared`]).
///
/// It owns the disk threads, the codec pool, the byte budget and, once a remote store is opened, its own Tokio
/// runtime. Dropping the last handle joins its threads.
#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    clock: Arc<dyn Clock>,
    cpu: Pool,
    budget: Budget,
    staging_slots: Budget,
    buffers: Arc<BufferPool>,
    stores: Stores,
}

/// Builds an [`Engine`].
#[derive(Debug, Default)]
#[must_use]
pub struct EngineBuilder {
    options: EngineOptions,
    clock: Option<Arc<dyn Clock>>,
}

impl EngineBuilder {
    /// Sets the options.
    pub fn options(mut self, options: EngineOptions) -> Self {
        self.options = options;
        self
    }

    /// Sets the byte budget.
    pub fn budget_bytes(mut self, bytes: u64) -> Self {
        self.options.budget_bytes = bytes;
        self
    }

    /// Replaces the system's clock and randomness.
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// `Invalid` for options out of range; `Unavailable` where the system refuses threads.
    pub fn build(self) -> Result<Arc<Engine>> {
        self.options.validate()?;
        let options = self.options;
        let cpu = Pool::new("milepost-codec", options.codec_threads)?;
        let disk = Arc::new(Disk::new(options.disk_threads)?);
        // Enough parts to keep every thread busy and one more waiting behind each.
        let slots = 2 * (options.codec_threads + options.disk_threads) as u64;
        let pooled = usize::try_from(options.budget_bytes / 4).unwrap_or(usize::MAX);
        Ok(Arc::new(Engine {
            clock: self.clock.unwrap_or_else(|| Arc::new(SystemClock::default())),
            cpu,
            budget: Budget::new(options.budget_bytes),
            staging_slots: Budget::new(slots),
            buffers: Arc::new(BufferPool::new(pooled.min(64 << 20))),
            stores: Stores::new(disk, Remote::new()),
            options,
        }))
    }
}

impl Engine {
    /// Starts building an engine of its own.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
    }

    /// Returns the process's engine, started with the default options at the first call.
    ///
    /// # Errors
    /// `Unavailable` where the system refuses threads.
    pub fn shared() -> Result<Arc<Self>> {
        static SHARED: OnceLock<Arc<Engine>> = OnceLock::new();
        if let Some(engine) = SHARED.get() {
            return Ok(Arc::clone(engine));
        }
        let engine = Self::builder().build()?;
        Ok(Arc::clone(SHARED.get_or_init(|| engine)))
    }

    /// Opens a local path or a URL: `file://`, `memory://`, `s3://`, `gs://`, `az://`, `http(s)://`.
    ///
    /// Options are `object_store`'s configuration keys (`endpoint`, `region`, `access_key_id`, …); what is not given
    /// comes from the environment. Nothing is read or written yet.
    ///
    /// # Errors
    /// `Unsupported` for a scheme that this build does not speak, `Invalid` for an unknown option.
    pub fn place(&self, url: &str, options: &[(String, String)]) -> Result<Place> {
        self.stores.open(url, options)
    }

    /// Returns the options it was built with.
    #[must_use]
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Returns the byte budget, with its gauges.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    pub(crate) fn cpu(&self) -> &Pool {
        &self.cpu
    }

    pub(crate) fn staging_slots(&self) -> &Budget {
        &self.staging_slots
    }

    pub(crate) fn buffers(&self) -> &Arc<BufferPool> {
        &self.buffers
    }
}
