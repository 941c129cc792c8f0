//! A job: processes that save one step together, on hosts, through a launcher or the store.

use super::{
    executor::Core,
    launcher::Launcher,
    trouble::{Trouble, Weather},
};
use crate::{
    array::Leaf,
    checkpoint::{
        Durability, Item, SaveOptions, Saved,
        parts::{Declaration, ParticipantWriter, Rendezvous, StoreRendezvous},
    },
    chunk::Subset,
    dtype::DataType,
    error::Result,
    io::Engine,
    store::Place,
    tree::Tree,
};
use bytes::Bytes;
use futures::FutureExt;
use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// How long participants wait for each other: less, or more, than it takes until a mark has expired.
pub(super) const DEADLINES: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(150)];
/// The longest delay, in microseconds, of requests of a store so slow that a save takes longer than a mark lasts.
const SLUGGISH: u64 = 2_500_000;

/// Who holds what of the arrays: a mesh of cells, each held by as many replicas.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mesh {
    pub(super) cells: [u64; 2],
    pub(super) replicas: u64,
    pub(super) cell: [u64; 2],
    /// Whether each has an item of its own.
    pub(super) alone: bool,
}

impl Mesh {
    pub(super) fn draw(core: &Core) -> Self {
        let count = match core.below(1000) {
            0..=3 => 64,
            4..=59 => 6 + core.below(11),
            _ => 2 + core.below(4),
        };
        let divisor = |of: u64| {
            let divisors: Vec<u64> = (1..=of).filter(|d| of.is_multiple_of(*d)).collect();
            divisors[usize::try_from(core.below(divisors.len() as u64)).unwrap()]
        };
        let replicas = divisor(count);
        let rows = divisor(count / replicas);
        let cells = [rows, count / replicas / rows];
        let cell = [1 + core.below(3), 1 + core.below(3)];
        Self { cells, replicas, cell, alone: core.chance(300) }
    }

    pub(super) fn count(&self) -> usize {
        usize::try_from(self.cells[0] * self.cells[1] * self.replicas).unwrap()
    }

    fn shape(&self) -> Vec<u64> {
        vec![self.cells[0] * self.cell[0], self.cells[1] * self.cell[1]]
    }

    /// The whole array of a generation, in C order.
    pub(super) fn values(&self, generation: u64) -> Vec<u8> {
        let elements = self.shape().iter().product();
        (0..elements).map(|element| value(generation, element)).collect()
    }

    fn held(&self, index: usize, generation: u64) -> Leaf {
        let cell = index as u64 / self.replicas;
        let at = [cell / self.cells[1], cell % self.cells[1]];
        let start = vec![at[0] * self.cell[0], at[1] * self.cell[1]];
        let place = Subset::new(start, self.cell.to_vec()).unwrap();
        let columns = self.shape()[1];
        let rows = place.start()[0]..place.end(0);
        let elements =
            rows.flat_map(|row| (place.start()[1]..place.end(1)).map(move |c| row * columns + c));
        let bytes: Vec<u8> = elements.map(|element| value(generation, element)).collect();
        let held = vec![(place, Bytes::from(bytes))];
        Leaf::from_held_boxes(DataType::UInt8, self.shape(), held).unwrap()
    }
}

fn value(generation: u64, element: u64) -> u8 {
    u8::try_from((generation * 37 + element * 11 + 5) % 256).unwrap()
}

#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) mesh: Mesh,
    pub(super) generation: u64,
    pub(super) step: u64,
    pub(super) durability: Durability,
    /// Whether everybody knows from the start what all hold.
    pub(super) given: bool,
    pub(super) deadline: Duration,
    /// Whether each has a host of its own: who stops there is taken for dead.
    pub(super) apart: bool,
    /// Whether a save takes longer than it takes until a mark has expired.
    pub(super) sluggish: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    Launcher,
    Session,
    Lobby,
}

/// How a participant has ended.
#[derive(Debug)]
pub(super) struct End {
    pub(super) index: usize,
    pub(super) process: u32,
    pub(super) began: Duration,
    pub(super) at: Duration,
    pub(super) saved: Result<Saved>,
}

#[derive(Debug)]
pub(super) struct Job {
    core: Arc<Core>,
    engine: Arc<Engine>,
    run: Place,
    pub(super) spec: Spec,
    means: Means,
    session: String,
    launcher: Arc<Launcher>,
    pub(super) ends: Mutex<Vec<End>>,
    /// The processes, with their indices.
    pub(super) started: Mutex<Vec<(u32, usize)>>,
    /// Second processes of one index that are still to come.
    coming: AtomicUsize,
    /// What all hold, where everybody knows it.
    given: OnceLock<Arc<Vec<Declaration>>>,
}

impl Job {
    pub(super) fn new(
        engine: &Arc<Engine>,
        core: &Arc<Core>,
        run: &Place,
        spec: Spec,
    ) -> Arc<Self> {
        let launcher = Launcher::new(core, spec.mesh.count());
        let few = spec.mesh.count() <= 16;
        let means = match core.below(6) {
            0 if few => Means::Session,
            1 if few => Means::Lobby,
            _ => Means::Launcher,
        };
        let session = format!("job-{}-{}", spec.generation, core.below(1 << 40));
        let (core, engine, run) = (Arc::clone(core), Arc::clone(engine), run.clone());
        let (ends, started) = (Mutex::default(), Mutex::default());
        let (coming, given) = (AtomicUsize::new(0), OnceLock::new());
        Arc::new(Self {
            core,
            engine,
            run,
            spec,
            means,
            session,
            launcher,
            ends,
            started,
            coming,
            given,
        })
    }

    /// Starts all participants; `draw` draws the trouble of each, by its index.
    pub(super) fn start(self: &Arc<Self>, draw: impl Fn(&Core, usize) -> Trouble) {
        let count = self.spec.mesh.count();
        let hosts = if self.spec.apart { count as u64 } else { 1 + self.core.below(count as u64) };
        for index in 0..count {
            let mut trouble = draw(&self.core, index);
            if self.spec.sluggish {
                trouble.weather.delay = SLUGGISH;
            }
            let twin = trouble.twin;
            let host = 1 + index as u64 % hosts;
            self.start_one(index, host, trouble);
            if let Some(delay) = twin {
                self.coming.fetch_add(1, Ordering::Relaxed);
                let job = Arc::clone(self);
                self.core.after(delay, move || {
                    job.coming.fetch_sub(1, Ordering::Relaxed);
                    let host = 1 + job.core.below(hosts);
                    let weather = Weather { delay: 5_000, ..Weather::default() };
                    let process =
                        job.start_one(index, host, Trouble { weather, ..Trouble::default() });
                    job.core.strike(process, "twins");
                });
            }
        }
    }

    fn start_one(self: &Arc<Self>, index: usize, host: u64, trouble: Trouble) -> u32 {
        let process = self.core.process(host, trouble);
        self.started.lock().unwrap().push((process, index));
        let (job, began) = (Arc::clone(self), self.core.now());
        let life = async move {
            let saved = job.participate(index).await;
            let at = job.core.now();
            let what = saved.as_ref().map_or_else(|e| e.message().to_owned(), |_| "ok".into());
            job.core.trace(process, &["ends:", &what]);
            job.ends.lock().unwrap().push(End { index, process, began, at, saved });
        };
        self.core.spawn_in(process, life.boxed_local());
        process
    }

    async fn participate(&self, index: usize) -> Result<Saved> {
        let member = (index, self.spec.mesh.count());
        let (engine, run) = (&self.engine, &self.run);
        let rendezvous: Arc<dyn Rendezvous> = match self.means {
            Means::Launcher => Arc::new(self.launcher.member(index)),
            Means::Session => {
                Arc::new(StoreRendezvous::with_session(engine, run, &self.session, member).await?)
            }
            Means::Lobby => {
                Arc::new(StoreRendezvous::join(engine, run, member, self.spec.deadline).await?)
            }
        };
        self.writer(index, &rendezvous).save().await
    }

    fn items(&self, index: usize) -> Vec<(String, Item)> {
        let (mesh, generation) = (&self.spec.mesh, self.spec.generation);
        let replicated = Leaf::from_vec(vec![value(generation, 3); 5], &[5]).unwrap();
        let tree = [("w", Tree::leaf(mesh.held(index, generation))), ("v", Tree::leaf(replicated))];
        let mut items = vec![
            ("state".to_owned(), Item::Tree(Tree::dict(tree))),
            ("whose".to_owned(), Item::Json(generation.into())),
        ];
        if mesh.alone {
            let own = Bytes::from(format!("{generation} of {index}"));
            items.push((format!("own-{index}"), Item::Bytes(own)));
        }
        items
    }

    fn writer(&self, index: usize, rendezvous: &Arc<dyn Rendezvous>) -> ParticipantWriter {
        let spec = &self.spec;
        let options =
            SaveOptions { overwrite: true, durability: spec.durability, ..SaveOptions::default() };
        let new = |index| {
            let run = (&self.engine, &self.run);
            let writer = ParticipantWriter::step(run.0, run.1, spec.step, Arc::clone(rendezvous));
            let items = self.items(index).into_iter();
            items.fold(writer, |writer, (name, item)| writer.item(name, item))
        };
        let mut writer = new(index);
        if spec.given {
            let declare = |index| new(index).declaration().unwrap();
            let all = || Arc::new((0..spec.mesh.count()).map(declare).collect());
            writer = writer.declarations(Arc::clone(self.given.get_or_init(all)));
        }
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let generation = spec.generation as f64;
        writer.metric("generation", generation).options(options).deadline(self.spec.deadline)
    }

    /// Tells whether everybody has ended; those who are stopped count as ended where `lurk` says so.
    pub(super) fn is_over(&self, lurk: bool) -> bool {
        if self.coming.load(Ordering::Relaxed) > 0 {
            return false;
        }
        let ends = self.ends.lock().unwrap();
        let started = self.started.lock().unwrap();
        if ends.len() == started.len() {
            return true;
        }
        started.iter().all(|(process, _)| {
            self.core.is_dead(*process)
                || ends.iter().any(|end| end.process == *process)
                || lurk && self.core.is_stopped(*process)
        })
    }

    /// Ends the processes that have ended their save.
    pub(super) fn exit(&self) {
        let ended: Vec<u32> = self.ends.lock().unwrap().iter().map(|end| end.process).collect();
        for process in ended {
            self.core.kill(process);
        }
    }

    /// Tells whether an index had two processes.
    pub(super) fn had_twin(&self, index: usize) -> bool {
        let started = self.started.lock().unwrap();
        started.iter().filter(|(_, other)| *other == index).count() > 1
    }
}
