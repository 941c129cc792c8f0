//! One seed: a run, saves in trouble, and what has to hold after each.

use super::{
    executor::{Core, NOBODY},
    job::{DEADLINES, Job, Mesh, Spec},
    machine::Simulated,
    store::SimulatedStore,
    trouble::Trouble,
    wire::Commit,
};
use crate::{
    checkpoint::{Checkpoint, Durability, leftovers, revision_name, sweep},
    error::{Error, ErrorKind},
    io::Engine,
    store::{ObjectMeta, Place, Store},
    tasks::simulated,
};
use futures::{FutureExt, channel::oneshot};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// The step that is there before all trouble.
const OLD: u64 = 1;
/// The step that most saves are of.
const OFTEN: u64 = 5;
/// Deadlines: five meetings, each with what the hub adds, and a watch of one more.
const UNTROUBLED_MAX: u32 = 8;
/// With stops and requests that hang.
const TROUBLED_MAX: Duration = Duration::from_hours(1);
/// After it, marks of other machines count as dead.
const EXPIRY: Duration = Duration::from_secs(61);
const HOURS: Duration = Duration::from_hours(2);
/// No step of a seed has so many attempts in a row that were revoked.
const REVISIONS: u32 = 12;
/// Who sweeps does it on a host of its own, or on the first one.
const SWEEPERS: u64 = 900;

/// What a seed came to.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) hash: u64,
    pub(super) counts: BTreeMap<&'static str, u64>,
    pub(super) time: Duration,
}

struct World {
    core: Arc<Core>,
    engine: Arc<Engine>,
    store: Arc<SimulatedStore>,
    run: Place,
    jobs: Vec<Arc<Job>>,
    meshes: BTreeMap<u64, Mesh>,
    counts: BTreeMap<&'static str, u64>,
    /// How many sweep just now.
    sweepers: Arc<AtomicU64>,
}

/// Takes a simulation off its thread, however it ends.
struct Guard(Arc<Core>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.close();
        simulated::install(None);
    }
}

/// Plays a seed; panics where something does not hold. Of a failure, `shown` gives the end of the trace.
pub(super) fn simulate(seed: u64, shown: Option<&mut Vec<String>>) -> Outcome {
    let core = Core::new(seed, shown.is_some());
    let clock = Arc::new(Simulated(Arc::clone(&core)));
    simulated::install(Some(Arc::clone(&clock) as _));
    let _guard = Guard(Arc::clone(&core));
    let play = || {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        // A name that no store had: what is found out once a store is found out again.
        let url = format!("sim://{:016}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let renames = core.chance(500);
        let store = SimulatedStore::new(&core, renames, url);
        let engine = Engine::builder().budget_bytes(64 << 20).with_clock(clock).build().unwrap();
        let run = Place::new(Arc::clone(&store) as Arc<dyn Store>, "run");
        let (jobs, meshes, counts) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        let (core, sweepers) = (Arc::clone(&core), Arc::default());
        World { core, engine, store, run, jobs, meshes, counts, sweepers }.play()
    };
    let Some(tail) = shown else { return play() };
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(play));
    *tail = core.tail();
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl World {
    fn play(mut self) -> Outcome {
        self.save_calmly(OLD, 1);
        let old = self.objects("run/1");
        let rounds = 1 + self.core.below(3);
        let mut generation = 2;
        for round in 0..rounds {
            let step = if self.core.chance(700) { OFTEN } else { OFTEN + 1 + round };
            // A sweep may end what nobody has taken over for a minute.
            if self.core.chance(100) && self.sweepers.load(Ordering::Relaxed) == 0 {
                self.save_in_succession(generation);
            } else {
                if self.core.chance(300) {
                    self.start_sweeper();
                }
                self.save_in_trouble(step, generation);
            }
            generation += 1;
            if self.core.chance(600) {
                self.save_calmly(step, generation);
                generation += 1;
            }
        }
        self.end_all();
        self.save_calmly(OFTEN, generation);
        self.check_errors();
        assert_eq!(self.objects("run/1"), old, "an older step was touched");
        self.check_swept();
        assert_eq!(self.engine.budget().used(), 0, "memory is held by nobody");
        let commits = self.store.commits();
        self.count("commits", commits.len() as u64);
        self.count(
            "take-overs",
            commits.iter().filter(|c| self.index_of(c.process) > 0).count() as u64,
        );
        for (name, n) in self.core.counts() {
            self.count(name, n);
        }
        Outcome { hash: self.core.digest(), counts: self.counts, time: self.core.now() }
    }

    fn count(&mut self, what: &'static str, n: u64) {
        *self.counts.entry(what).or_default() += n;
    }

    fn index_of(&self, process: u32) -> usize {
        let started = |job: &Arc<Job>| {
            let started = job.started.lock().unwrap();
            started.iter().find(|(other, _)| *other == process).map(|(_, index)| *index)
        };
        self.jobs.iter().find_map(started).unwrap_or(0)
    }

    fn spec(&self, step: u64, generation: u64) -> Spec {
        let core = &self.core;
        let durability =
            [Durability::Durable, Durability::Published][usize::from(core.chance(300))];
        let (mesh, given) = (Mesh::draw(core), core.chance(300));
        let deadline = DEADLINES[usize::from(core.chance(200))];
        let (apart, sluggish) = (false, false);
        Spec { mesh, generation, step, durability, given, deadline, apart, sluggish }
    }

    fn job(&mut self, spec: Spec) -> Arc<Job> {
        self.meshes.insert(spec.generation, spec.mesh);
        let job = Job::new(&self.engine, &self.core, &self.run, spec);
        self.jobs.push(Arc::clone(&job));
        job
    }

    /// Saves without any trouble, or on a store so slow that only renewed marks last so long.
    fn calm_job(&mut self, step: u64, generation: u64) -> Arc<Job> {
        let mut spec = self.spec(step, generation);
        if self.core.chance(50) {
            (spec.sluggish, spec.deadline) = (true, DEADLINES[1]);
        }
        let job = self.job(spec);
        job.start(|core, _| Trouble::calm(core));
        job
    }

    /// Starts somebody who frees what is dead while others save: what lives must not notice.
    fn start_sweeper(&mut self) {
        let core = Arc::clone(&self.core);
        let host = [1, SWEEPERS][usize::from(core.chance(700))];
        let process = core.process(host, Trouble::calm(&core));
        let (engine, run) = (Arc::clone(&self.engine), self.run.clone());
        let sweepers = Arc::clone(&self.sweepers);
        sweepers.fetch_add(1, Ordering::Relaxed);
        let sweeps = async move {
            for _ in 0..=core.below(3) {
                core.sleep_for(core.micros(0, 60_000_000)).await;
                let dead = leftovers(&engine, &run).await.unwrap();
                let report = sweep(&engine, &run, &dead).await.unwrap();
                assert!(report.failed.is_empty(), "{:?}", report.failed);
            }
            sweepers.fetch_sub(1, Ordering::Relaxed);
        };
        self.core.spawn_in(process, sweeps.boxed_local());
        self.count("sweepers", 1);
    }

    /// Whoever is to commit dies, then its heir: one who lives on commits what all have written.
    fn save_in_succession(&mut self, generation: u64) {
        // Without renames, who comes to an old step may first end what lies there, before all have written.
        let is_old = self.run.store().capabilities().rename && self.core.chance(500);
        let step = if is_old { OFTEN } else { 100 + generation };
        let mut spec = self.spec(step, generation);
        spec.deadline = DEADLINES[1];
        let count = spec.mesh.count();
        let heirs = 1 + usize::from(count > 2 && self.core.chance(500));
        let job = self.job(spec);
        job.start(|core, index| Trouble::succession(core, (index, heirs)));
        self.finish(&job, false);
        for end in job.ends.lock().unwrap().iter() {
            let struck = self.core.is_struck(end.process);
            assert!(struck || end.saved.is_ok(), "nobody took over: {end:?}");
        }
        job.exit();
        self.look(step);
        self.count("successions", 1);
    }

    fn save_in_trouble(&mut self, step: u64, generation: u64) {
        let mut spec = self.spec(step, generation);
        let is_duel = self.core.chance(80);
        if is_duel {
            (spec.deadline, spec.apart) = (DEADLINES[1], true);
        }
        let job = self.job(spec);
        let lurk = self.core.chance(500);
        if is_duel {
            job.start(Trouble::duel);
        } else {
            job.start(|core, _| Trouble::draw(core));
        }
        self.finish(&job, lurk);
        self.look(step);
        job.exit();
        self.count("saves in trouble", 1);
    }

    /// Runs until a job is over, and checks what it says of itself.
    fn finish(&mut self, job: &Arc<Job>, lurk: bool) {
        let over = self.core.run(TROUBLED_MAX, || job.is_over(lurk));
        assert!(over, "participants do not end: {:?} of {:?}", job.ends.lock(), job.started.lock());
        let commits = self.store.commits();
        let mut writers = BTreeSet::new();
        let twice = commits.iter().find(|commit| !writers.insert(&commit.writer));
        assert!(twice.is_none(), "what was committed and replaced is back: {twice:?}");
        for end in job.ends.lock().unwrap().iter() {
            let struck = self.core.is_struck(end.process);
            assert!(
                struck
                    || end.at.saturating_sub(end.began)
                        <= job.spec.deadline * UNTROUBLED_MAX + EXPIRY,
                "participant {} without trouble of its own took too long: {:?}",
                end.index,
                end.at.saturating_sub(end.began)
            );
            if let Ok(saved) = &end.saved {
                let same = |c: &Commit| {
                    c.writer == saved.record.writer && c.generation == job.spec.generation
                };
                assert!(commits.iter().any(same), "saved, says {}, but it was not", end.index);
            }
        }
        let all = job.ends.lock().unwrap().iter().all(|end| end.saved.is_ok());
        let committed = commits.iter().any(|c| c.generation == job.spec.generation);
        self.count("partly told", u64::from(committed && !all));
    }

    /// A save of fresh processes: it succeeds, unless somebody lurks, or nobody could end what was begun before.
    fn save_calmly(&mut self, step: u64, generation: u64) {
        let job = self.calm_job(step, generation);
        self.finish(&job, false);
        let errors: Vec<Error> =
            job.ends.lock().unwrap().iter().filter_map(|e| e.saved.clone().err()).collect();
        job.exit();
        if errors.is_empty() {
            self.look(step);
            return;
        }
        let busy = |e: &Error| e.to_string().contains("another writer");
        assert!(
            errors.iter().all(busy) && self.is_left_open(step, generation),
            "a save after the trouble failed: {errors:?}"
        );
        self.count("saves after an expiry", 1);
        if self.jobs.iter().any(|job| !job.is_over(false)) {
            return; // it lurks
        }
        self.advance(EXPIRY);
        self.save_again(step, generation);
    }

    fn save_again(&mut self, step: u64, generation: u64) {
        let job = self.calm_job(step, generation);
        self.finish(&job, false);
        for end in job.ends.lock().unwrap().iter() {
            assert!(end.saved.is_ok(), "a save after an expiry failed: {:?}", end.saved);
        }
        job.exit();
        self.look(step);
    }

    /// Tells whether an attempt at the step may be there that nobody has ended: its founder was in trouble.
    fn is_left_open(&self, step: u64, before: u64) -> bool {
        let same = |job: &&Arc<Job>| job.spec.step == step && job.spec.generation < before;
        self.jobs.iter().filter(same).any(|job| {
            let started = job.started.lock().unwrap();
            let founders = started.iter().filter(|(_, index)| *index == 0);
            founders.clone().any(|(process, _)| self.core.is_struck(*process))
        })
    }

    fn advance(&self, time: Duration) {
        let until = self.core.now() + time;
        self.core.after(time, || {});
        assert!(self.core.run(time + time, || self.core.now() >= until));
    }

    /// Lets those who were stopped go on and end.
    fn end_all(&mut self) {
        for job in self.jobs.clone() {
            self.finish(&job, false);
            job.exit();
        }
        let sweepers = Arc::clone(&self.sweepers);
        assert!(self.core.run(HOURS, || sweepers.load(Ordering::Relaxed) == 0), "a sweep hangs");
        self.advance(EXPIRY);
        let steps: BTreeSet<u64> = self.store.commits().iter().map(|commit| commit.step).collect();
        for step in steps {
            self.look(step);
        }
    }

    /// Does something as an onlooker without trouble.
    fn observe<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let (tell, mut told) = oneshot::channel();
        let future = future.map(move |value| drop(tell.send(value)));
        self.core.spawn_in(NOBODY, future.boxed_local());
        let mut value = None;
        let seen = std::cell::RefCell::new((&mut told, &mut value));
        let done = self.core.run(HOURS, || {
            let (told, value) = &mut *seen.borrow_mut();
            **value = told.try_recv().unwrap();
            value.is_some()
        });
        assert!(done, "an onlooker hangs");
        value.unwrap()
    }

    /// Checks that a step is the one that was committed last, or not there.
    fn look(&self, step: u64) {
        let commits = self.store.commits();
        let last = commits.iter().rfind(|commit| commit.step == step);
        let (engine, run) = (Arc::clone(&self.engine), self.run.clone());
        let found = self.observe(async move {
            let mut found = None;
            let mut revision = 0;
            let mut beyond = 0;
            let revisions = if run.store().capabilities().rename { 1 } else { REVISIONS };
            while beyond < revisions && revision < 99 {
                let place = run.join(&revision_name(&step.to_string(), revision));
                match Checkpoint::open(&engine, &place).await {
                    Ok(checkpoint) => (found, beyond) = (Some(checkpoint), 0),
                    Err(e) if e.kind() == ErrorKind::NotFound => beyond += 1,
                    Err(e) => panic!("a step is damaged: {e:?}"),
                }
                revision += 1;
            }
            let checkpoint = found?;
            let report = checkpoint.verify().await.unwrap();
            let leaf = checkpoint.leaf("state", "w").await.unwrap();
            let values = leaf.read().await.unwrap().to_vec::<u8>().unwrap();
            let whose = checkpoint.restore_json("whose").await.unwrap();
            Some((checkpoint.record().clone(), report, values, whose.as_u64().unwrap()))
        });
        let Some((record, report, values, whose)) = found else {
            assert!(last.is_none(), "a step that was committed is gone: {last:?}");
            return;
        };
        let last = last.expect("nobody has committed what is there");
        assert_eq!((&record.writer, whose), (&last.writer, last.generation), "another's step");
        assert!(report.is_good() && report.findings.is_empty(), "{:?}", report.findings);
        assert_eq!(values, self.meshes[&whose].values(whose), "not the bytes of one save");
    }

    /// Checks that nobody was told that a save failed which then was committed.
    fn check_errors(&self) {
        let commits = self.store.commits();
        for job in &self.jobs {
            let ours: Vec<&Commit> =
                commits.iter().filter(|c| c.generation == job.spec.generation).collect();
            for end in job.ends.lock().unwrap().iter() {
                let Err(error) = &end.saved else { continue };
                if job.had_twin(end.index) {
                    continue; // the other one may have taken its part
                }
                let is_sure = error.get("outcome").is_none();
                let later = ours.iter().any(|commit| commit.at > end.at);
                assert!(
                    !(is_sure && later),
                    "committed after participant {} said {error:?}",
                    end.index
                );
                // Who cannot reach the store may say that it does not know.
                let is_honest = !is_sure && self.core.is_struck(end.process);
                assert!(
                    ours.is_empty() || is_honest || self.is_replaced(&ours),
                    "participant {} says of what is committed: {error:?}",
                    end.index
                );
            }
        }
    }

    /// Tells whether a later commit of the step may have hidden one of these from those who asked.
    fn is_replaced(&self, ours: &[&Commit]) -> bool {
        let commits = self.store.commits();
        ours.iter().any(|own| commits.iter().any(|c| c.step == own.step && c.at > own.at))
    }

    fn objects(&self, prefix: &str) -> Vec<ObjectMeta> {
        self.store.inner().list_all(prefix).now_or_never().unwrap().unwrap()
    }

    /// Sweeps when all marks have expired, and checks that nothing is left but steps and tombstones.
    fn check_swept(&self) {
        for _ in 0..3 {
            self.advance(HOURS);
            let (engine, run) = (Arc::clone(&self.engine), self.run.clone());
            let report = self.observe(async move {
                let dead = leftovers(&engine, &run).await.unwrap();
                sweep(&engine, &run, &dead).await.unwrap()
            });
            assert!(report.failed.is_empty(), "{:?}", report.failed);
        }
        let steps: BTreeSet<u64> = self.store.commits().iter().map(|commit| commit.step).collect();
        for step in steps {
            self.look(step);
        }
        let objects = self.objects("run");
        let below = |object: &ObjectMeta| object.key.strip_prefix("run/").unwrap().to_owned();
        let kept: BTreeSet<String> =
            objects.iter().filter_map(|o| Some(below(o).split_once('/')?.0.to_owned())).collect();
        let kept: BTreeSet<String> =
            kept.into_iter().filter(|name| self.is_committed(name)).collect();
        let is_left = |object: &&ObjectMeta| match below(object).split_once('/') {
            None => object.key != "run/zarr.json",
            Some((".milepost", rest)) => rest != "zarr.json",
            Some((name, _)) if kept.contains(name) => false,
            // A tombstone.
            Some((_, rest)) => !["zarr.json", "_milepost/zarr.json"].contains(&rest),
        };
        let left: Vec<&String> = objects.iter().filter(is_left).map(|object| &object.key).collect();
        assert!(left.is_empty(), "a sweep leaves {left:?}");
    }

    /// Tells whether a checkpoint is below a name.
    fn is_committed(&self, name: &str) -> bool {
        let (engine, place) = (Arc::clone(&self.engine), self.run.join(name));
        self.observe(async move { Checkpoint::open(&engine, &place).await.is_ok() })
    }
}
