//! Export: the leaves of an item stream into safetensors files, slab by slab.
//!
//! The life of an export: planned (names, order, files; what cannot be held is told before a byte is read) →
//! outputs checked → each file streamed: slabs are read ahead in order, within a window of an eighth of the
//! budget, while earlier ones are copied into blocks and written → synced → renamed.
//!
//! Slabs are whole chunks wherever a row of chunks fits half of the budget, so that no chunk is decoded twice.
//! The window is the export's own and not part of the engine's budget: a read reserves its scratch there, and
//! whoever asks twice while holding the first may wait for ever.

use super::{
    detect::INDEX_EXTENSION,
    packing::Packer,
    plan::{FilePlan, Plan, Skipped, Wish, stem},
};
use crate::{
    buffer::Buffer,
    checkpoint::{Checkpoint, Files, ItemIndex, LeafHandle, Sink},
    chunk::Subset,
    error::{Error, Result},
    io::{Budget, Progress, Reservation},
    store::Place,
    tasks::{Priority, wait},
    tree::Select,
};
use futures::{SinkExt, StreamExt, TryStreamExt, channel::mpsc, future::try_join, stream};
use milepost_formats::{index, safetensors::Dtype};
use std::{sync::Arc, time::Instant};

/// Bounds of the window of slabs: small budgets still stream, large ones gain nothing more.
const WINDOW_BYTES: (u64, u64) = (1 << 20, 32 << 20);

/// Exports an item to a safetensors file, or to several with an index.
///
/// ```no_run
/// use milepost::{Engine, Export, open};
/// # fn main() -> milepost::Result<()> {
/// let engine = Engine::shared()?;
/// let checkpoint = futures::executor::block_on(open(&engine, &engine.place("./run", &[])?))?;
/// let out = engine.place("./model.safetensors", &[])?;
/// let report = Export::new(&checkpoint, &out).write_blocking()?;
/// println!("{} tensors in {} files", report.tensors, report.files.len());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct Export {
    checkpoint: Checkpoint,
    out: Place,
    item: Option<String>,
    wish: Wish,
    overwrite: bool,
    progress: Progress,
}

/// What an export has written.
#[derive(Clone, Debug)]
pub struct ExportReport {
    /// The item that was exported.
    pub item: String,
    /// The files, the index of several last.
    pub files: Vec<ExportedFile>,
    /// How many tensors they hold.
    pub tensors: u64,
    /// The bytes of all tensors.
    pub data_bytes: u64,
    /// What the format cannot hold and was left out on request.
    pub skipped: Vec<Skipped>,
}

/// A file of an export.
#[derive(Clone, Debug)]
pub struct ExportedFile {
    /// Where it is.
    pub place: Place,
    /// Its size.
    pub bytes: u64,
}

impl Export {
    /// Exports to `out`, whose name ends in `.safetensors`.
    pub fn new(checkpoint: &Checkpoint, out: &Place) -> Self {
        let wish = Wish {
            select: Select::all(),
            separator: None,
            skip_unsupported: false,
            shard_bytes: None,
        };
        Self {
            checkpoint: checkpoint.clone(),
            out: out.clone(),
            item: None,
            wish,
            overwrite: false,
            progress: Progress::default(),
        }
    }

    /// Names the item. Default: the only one, else `state`.
    pub fn item(mut self, name: impl Into<String>) -> Self {
        self.item = Some(name.into());
        self
    }

    /// Exports a part of the tree. Default: all of it.
    pub fn select(mut self, select: Select) -> Self {
        self.wish.select = select;
        self
    }

    /// Joins keys to names with `separator`, whatever the names were in a source.
    ///
    /// Default: the names of the source where there was one, else keys joined with `.`.
    pub fn separator(mut self, separator: impl Into<String>) -> Self {
        self.wish.separator = Some(separator.into());
        self
    }

    /// Leaves out what the format cannot hold instead of failing. Default: fails.
    pub fn skip_unsupported(mut self, skip: bool) -> Self {
        self.wish.skip_unsupported = skip;
        self
    }

    /// Divides the tensors into files of at most `bytes`, with an index. Default: one file.
    ///
    /// `OUT.safetensors` becomes `OUT-00001-of-00002.safetensors`, … and `OUT.safetensors.index.json`; where
    /// everything fits one file, that is `OUT.safetensors` alone.
    pub fn shard_bytes(mut self, bytes: u64) -> Self {
        self.wish.shard_bytes = Some(bytes);
        self
    }

    /// Replaces files that are there. Default: refuses.
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Sets the progress that is told about every chunk.
    pub fn progress(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }

    /// Exports on the calling thread; as [`Export::write`].
    ///
    /// # Errors
    /// As [`Export::write`].
    pub fn write_blocking(self) -> Result<ExportReport> {
        wait(self.write())
    }

    /// Exports.
    ///
    /// # Errors
    /// `Unsupported` lists every leaf that the format cannot hold, `AlreadyExists` names a file that is there,
    /// `Corrupt` names leaf and chunk. No file is under its name in part.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the files that had their names, mostly none; it removes what it has written beside them.
    pub async fn write(self) -> Result<ExportReport> {
        let out = self.out.clone();
        self.run().await.map_err(|e| e.with("out", out))
    }

    async fn run(self) -> Result<ExportReport> {
        let started = Instant::now();
        let checkpoint = self.checkpoint.clone().with_progress(self.progress.clone());
        let item = match &self.item {
            Some(item) => item.clone(),
            None => checkpoint.default_item()?.name.clone(),
        };
        let index = checkpoint.item_index(&item).await?;
        let plan = Plan::new(&index, &self.wish, self.out.name())
            .map_err(|e| checkpoint.blame(e.with("item", &item)))?;
        let priority = checkpoint.priority;
        let output = Files::new(&checkpoint.engine, self.out.parent(), self.overwrite, priority);
        output.check(&plan.names()).await?;
        let other = match &plan.index {
            Some(_) => self.out.name().to_owned(),
            None => format!("{}{INDEX_EXTENSION}", stem(self.out.name())?),
        };
        output.check_absent(&other).await?;
        self.announce(&index, &plan);
        self.progress.stage_done("plan", started);

        let started = Instant::now();
        let written = write_files(&checkpoint, &index, &plan, &output).await;
        let published = match written {
            Ok(()) => {
                self.progress.stage_done("write", started);
                let started = Instant::now();
                let published = output.publish(&plan.names()).await;
                self.progress.stage_done("publish", started);
                published
            }
            Err(error) => Err(error),
        };
        if let Err(error) = published {
            output.abandon().await;
            return Err(error);
        }
        Ok(report(item, plan, &self.out.parent()))
    }

    /// Tells the progress what is to come.
    fn announce(&self, index: &ItemIndex, plan: &Plan) {
        for (position, _) in plan.files.iter().flat_map(|file| &file.leaves) {
            let leaf = &index.leaves()[*position];
            let cells = leaf.shape.iter().zip(&leaf.chunk_shape).map(|(n, c)| n.div_ceil(*c));
            let bytes = crate::array::leaf_bytes(leaf.data_type, &leaf.shape).unwrap_or(0);
            self.progress.plan(1, cells.product(), bytes);
        }
    }
}

fn report(item: String, plan: Plan, directory: &Place) -> ExportReport {
    let (tensors, data_bytes) = (plan.tensors() as u64, plan.data_bytes());
    let file = |name: &str, bytes| ExportedFile { place: directory.join(name), bytes };
    let mut files: Vec<_> = plan.files.iter().map(|f| file(&f.name, f.bytes)).collect();
    files.extend(plan.index.as_ref().map(|(name, json)| file(name, json.len() as u64)));
    ExportReport { item, files, tensors, data_bytes, skipped: plan.skipped }
}

async fn write_files(
    checkpoint: &Checkpoint,
    index: &ItemIndex,
    plan: &Plan,
    output: &Files,
) -> Result<()> {
    for file in &plan.files {
        let mut sink = output.create(&file.name, file.bytes).await?;
        sink.push(Buffer::from(&file.header[..])).await?;
        stream_leaves(checkpoint, index, file, &mut sink)
            .await
            .map_err(|e| checkpoint.blame(e.with("file", &file.name)))?;
        sink.finish().await?;
    }
    // A checkpoint is a place: one that was replaced meanwhile would give tensors of two.
    checkpoint.check_current().await?;
    if let Some((name, json)) = &plan.index {
        let mut sink = output.create(name, json.len() as u64).await?;
        sink.push(Buffer::from(&json[..])).await?;
        sink.finish().await?;
    }
    Ok(())
}

/// A part of a leaf that is read as one, contiguous in the file.
struct Slab {
    handle: Arc<LeafHandle>,
    subset: Subset,
    dtype: Dtype,
    bytes: u64,
}

/// Reads the leaves of a file ahead, in order, while the sink takes what has come.
async fn stream_leaves(
    checkpoint: &Checkpoint,
    index: &ItemIndex,
    file: &FilePlan,
    sink: &mut Sink,
) -> Result<()> {
    let budget = checkpoint.engine.budget().limit();
    let window = Budget::new((budget / 8).clamp(WINDOW_BYTES.0, WINDOW_BYTES.1));
    let at_once = checkpoint.context().concurrency();
    // Without room of its own the channel holds one slab, and the window counts that too.
    let (mut send, mut receive) = mpsc::channel::<(Buffer, Dtype, Reservation)>(0);
    let window = &window;
    let read = async move {
        let slabs = stream::iter(&file.leaves)
            .then(|(position, dtype)| slabs(index, *position, *dtype, window.limit(), budget))
            .map_ok(|slabs| stream::iter(slabs.into_iter().map(Ok)))
            .try_flatten()
            .map_ok(|slab| read_slab(slab, window, checkpoint.priority))
            .try_buffered(at_once);
        let mut slabs = std::pin::pin!(slabs);
        while let Some(data) = slabs.try_next().await? {
            if send.send(data).await.is_err() {
                break; // the sink has failed and says why
            }
        }
        Ok(())
    };
    let write = async move {
        // Owned here: where the sink fails, the reader's next send fails, too.
        let mut packer = Packer::default();
        while let Some((mut data, dtype, hold)) = receive.next().await {
            if dtype.is_packed() {
                let job = move || Ok((packer.pack(&data, dtype)?, packer));
                (data, packer) = checkpoint.engine.cpu().run(checkpoint.priority, job).await?;
            }
            sink.push(data).await?;
            drop(hold);
        }
        Ok::<_, Error>(())
    };
    try_join(read, write).await.map(|_: ((), ())| ())
}

async fn read_slab(
    slab: Slab,
    window: &Budget,
    priority: Priority,
) -> Result<(Buffer, Dtype, Reservation)> {
    let hold = window.reserve(priority, slab.bytes).await;
    let data = slab.handle.read_planned(&slab.subset).await?;
    Ok((data, slab.dtype, hold))
}

/// Opens a leaf and divides it.
async fn slabs(
    index: &ItemIndex,
    position: usize,
    dtype: Dtype,
    window: u64,
    budget: u64,
) -> Result<Vec<Slab>> {
    let leaf = &index.leaves()[position];
    let handle = Arc::new(index.leaf(&leaf.path).await?);
    let item_bytes = leaf.data_type.size_bytes() as u64;
    let bytes_max = (window / 2).max(chunk_row_bytes(leaf, item_bytes).min(budget / 2));
    let slab = |subset: Subset| {
        let bytes = subset.elements() * item_bytes;
        Slab { handle: Arc::clone(&handle), subset, dtype, bytes }
    };
    Ok(handle.slabs(bytes_max).into_iter().map(slab).collect())
}

/// Returns the bytes of the smallest slab that consists of whole chunks.
fn chunk_row_bytes(leaf: &index::Leaf, item_bytes: u64) -> u64 {
    let Some(axis) = leaf.chunk_shape.iter().position(|n| *n > 1) else { return item_bytes };
    let below = leaf.shape[axis + 1..].iter().product::<u64>();
    leaf.chunk_shape[axis].min(leaf.shape[axis]) * below * item_bytes
}
