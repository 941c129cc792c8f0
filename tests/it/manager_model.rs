//! The manager against a plain model: a map of steps, a set of pins, and the policies written down once more.
//!
//! Random sequences of saves (by policy, forced, out of order, overwriting, failing), deletions, pins, restarts with
//! other policies and jumps of both clocks are done to a manager on a memory store, with renames and without. After each
//! operation the listed steps, the latest, the best, the pins and every restored state are the model's, in the manager
//! itself and in a read-only one that reloads; and what is pinned or newest is there.
//!
//! `PROPTEST_CASES` asks for more cases, `MILEPOST_SEED` for others.

use crate::manager::{contents, run_in, state, stores};
use futures::executor::block_on;
use milepost::{
    Action, BestMode, Clock, Engine, ErrorKind, FaultStore, Manager, ManagerOptions, Metric,
    MissingMetric, Place, Preservation, SaveDecision, SaveOutcome, SaveRequest, SkipReason,
    StepState, Which,
};
use proptest::{
    collection::vec,
    option,
    prelude::*,
    test_runner::{Config, RngSeed, TestRunner},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const DECISIONS: usize = 4;
const PRESERVATIONS: usize = 7;
const START_MS: u64 = 1_700_000_000_000;

/// Stands still until it is set.
#[derive(Debug)]
struct Hands {
    unix_ms: AtomicU64,
    elapsed_ms: AtomicU64,
}

impl Clock for Hands {
    fn unix_ms(&self) -> u64 {
        self.unix_ms.load(SeqCst)
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.elapsed_ms.load(SeqCst))
    }

    fn unique_id(&self) -> u128 {
        static IDS: AtomicU64 = AtomicU64::new(1);
        u128::from(std::process::id()) << 64 | u128::from(IDS.fetch_add(1, SeqCst))
    }
}

/// A change of the store that fails, counted from the start of the save; once or from then on.
#[derive(Clone, Copy, Debug)]
struct Fault {
    nth: u64,
    for_ever: bool,
}

#[derive(Clone, Debug)]
struct Save {
    /// Above the latest step, or anywhere.
    ahead: Option<u64>,
    step: u64,
    loss: Option<f64>,
    force: bool,
    overwrite: bool,
    fault: Option<Fault>,
    /// Whether the handle is asked; otherwise the next call tells of a failure.
    ask: bool,
}

#[derive(Clone, Debug)]
enum Op {
    Save(Save),
    Delete(usize),
    Pin(usize),
    Unpin(usize),
    Restart(usize, usize),
    /// Of the wall clock, forwards and backwards, and of the monotonic one.
    Jump(i64, u64),
    Reload,
}

fn save() -> impl Strategy<Value = Save> {
    let loss = prop_oneof![
        Just(None),
        prop::sample::select(vec![0.0, 1.0, -1.0, 0.5, f64::NAN, f64::INFINITY]).prop_map(Some),
    ];
    let fault = option::weighted(0.35, (1..24_u64, any::<bool>()))
        .prop_map(|fault| fault.map(|(nth, for_ever)| Fault { nth, for_ever }));
    let ahead = option::weighted(0.7, 1..5_u64);
    let flags = (prop::bool::weighted(0.3), prop::bool::weighted(0.3), any::<bool>());
    (ahead, 0..30_u64, loss, fault, flags).prop_map(
        |(ahead, step, loss, fault, (force, overwrite, ask))| Save {
            ahead,
            step,
            loss,
            force,
            overwrite,
            fault,
            ask,
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => save().prop_map(Op::Save),
        2 => any::<usize>().prop_map(Op::Delete),
        2 => any::<usize>().prop_map(Op::Pin),
        1 => any::<usize>().prop_map(Op::Unpin),
        2 => (0..DECISIONS, 0..PRESERVATIONS).prop_map(|(d, p)| Op::Restart(d, p)),
        3 => (-100_000..100_000_i64, 0..20_000_u64).prop_map(|(wall, on)| Op::Jump(wall, on)),
        1 => Just(Op::Reload),
    ]
}

fn options(decision: usize, preservation: usize) -> ManagerOptions {
    let decision = match decision {
        0 => SaveDecision::Interval(1),
        1 => SaveDecision::Interval(3),
        2 => SaveDecision::EverySeconds(Duration::from_secs(5)),
        _ => SaveDecision::Initial,
    };
    let preservation = match preservation {
        0 => Preservation::All,
        1 => Preservation::Latest(2),
        2 => Preservation::Best {
            metric: Metric::Named("loss".to_owned()),
            mode: BestMode::Min,
            n: Some(2),
            missing: MissingMetric::Drop,
        },
        3 => Preservation::Any(vec![Preservation::Latest(1), Preservation::EverySteps(4)]),
        4 => Preservation::EverySeconds(Duration::from_secs(10)),
        5 => Preservation::LatestDuration(Duration::from_mins(1)),
        _ => Preservation::Latest(0),
    };
    ManagerOptions { decision, preservation, ..ManagerOptions::default() }
}

#[derive(Clone, Copy, Debug)]
struct Stored {
    generation: u64,
    loss: Option<f64>,
    committed_ms: u64,
}

/// What ought to be.
#[derive(Clone, Debug, Default)]
struct Model {
    steps: BTreeMap<u64, Stored>,
    pins: BTreeSet<u64>,
    decision: usize,
    preservation: usize,
    begun_ms: Option<u64>,
    generation: u64,
}

impl Model {
    fn latest(&self) -> Option<u64> {
        self.steps.keys().next_back().copied()
    }

    fn nth(&self, n: usize) -> u64 {
        // One more than there are, so that absent steps come up.
        let n = n % (self.steps.len() + 1);
        self.steps.keys().nth(n).copied().unwrap_or(77)
    }

    /// Best first.
    fn ranked(&self) -> Vec<u64> {
        let mut ranked: Vec<_> =
            self.steps.iter().filter_map(|(step, s)| Some((*step, s.loss?))).collect();
        // The only NaN here is the positive one, which `total_cmp` puts last; there is no negative zero.
        ranked.sort_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
        ranked.into_iter().map(|(step, _)| step).collect()
    }

    fn best(&self) -> Option<u64> {
        if self.preservation == 2 { self.ranked().first().copied() } else { self.latest() }
    }

    /// What the policy, the pins and the first rule keep.
    fn kept(&self) -> BTreeSet<u64> {
        let steps: Vec<u64> = self.steps.keys().copied().collect();
        let mut kept: BTreeSet<u64> = match self.preservation {
            0 => steps.iter().copied().collect(),
            1 => steps.iter().rev().take(2).copied().collect(),
            2 => self.ranked().into_iter().take(2).collect(),
            3 => steps.iter().copied().filter(|step| step % 4 == 0).collect(),
            4 => {
                let mut kept = BTreeSet::new();
                let mut last = None;
                for (step, stored) in &self.steps {
                    let now = stored.committed_ms;
                    if last.is_none_or(|last| now < last || now - last >= 10_000) {
                        kept.insert(*step);
                        last = Some(now);
                    }
                }
                kept
            }
            5 => {
                let newest = self.steps.values().next_back().map_or(0, |s| s.committed_ms);
                let young = |s: &Stored| s.committed_ms + 60_000 >= newest;
                self.steps.iter().filter(|(_, s)| young(s)).map(|(step, _)| *step).collect()
            }
            _ => BTreeSet::new(),
        };
        kept.extend(self.latest());
        kept.extend(self.pins.iter().filter(|step| self.steps.contains_key(step)));
        kept
    }

    fn wants(&self, step: u64, now_ms: u64) -> bool {
        match self.decision {
            0 => true,
            1 => step.is_multiple_of(3),
            2 => self.begun_ms.is_none_or(|begun| now_ms - begun >= 5_000),
            _ => self.steps.is_empty(),
        }
    }
}

/// The manager, the model beside it, and a reader that sees what is stored.
struct Trial {
    store: Arc<FaultStore>,
    engine: Arc<Engine>,
    clock: Arc<Hands>,
    run: Place,
    manager: Option<Manager>,
    reader: Manager,
    model: Model,
    faults_hit: u64,
}

impl Trial {
    fn new(store: Arc<FaultStore>) -> Self {
        let hands = Hands { unix_ms: AtomicU64::new(START_MS), elapsed_ms: AtomicU64::new(0) };
        let clock = Arc::new(hands);
        let time: Arc<dyn Clock> = Arc::<Hands>::clone(&clock);
        let engine = Engine::builder().budget_bytes(4 << 20).with_clock(time).build().unwrap();
        let run = run_in(&store);
        let manager = Some(Manager::open(&engine, &run, options(0, 0)).unwrap());
        let options = ManagerOptions { read_only: true, ..ManagerOptions::default() };
        let reader = Manager::open(&engine, &run, options).unwrap();
        let model = Model::default();
        Self { store, engine, clock, run, manager, reader, model, faults_hit: 0 }
    }

    fn manager(&self) -> &Manager {
        self.manager.as_ref().unwrap()
    }

    fn perform(&mut self, op: &Op) {
        match op {
            Op::Save(save) => self.save(save),
            Op::Delete(n) => self.delete(self.model.nth(*n)),
            Op::Pin(n) => {
                let step = self.model.nth(*n);
                let pinned = block_on(self.manager().run().pin(step, "why")).is_ok();
                assert_eq!(pinned, self.model.steps.contains_key(&step));
                self.model.pins.extend(pinned.then_some(step));
            }
            Op::Unpin(n) => {
                let step = self.model.nth(*n);
                let unpinned = block_on(self.manager().run().unpin(step)).unwrap();
                assert_eq!(unpinned, self.model.pins.remove(&step));
            }
            Op::Restart(decision, preservation) => {
                self.manager = None;
                let options = options(*decision, *preservation);
                self.manager = Some(Manager::open(&self.engine, &self.run, options).unwrap());
                self.model.decision = *decision;
                self.model.preservation = *preservation;
                self.model.begun_ms = None;
            }
            Op::Jump(wall, on) => {
                let unix_ms = self.clock.unix_ms.load(SeqCst).saturating_add_signed(*wall);
                self.clock.unix_ms.store(unix_ms, SeqCst);
                self.clock.elapsed_ms.fetch_add(*on, SeqCst);
            }
            Op::Reload => self.manager().reload().unwrap(),
        }
        self.check();
    }

    fn delete(&mut self, step: u64) {
        let deleted = self.manager().delete(step).map_err(|error| error.kind());
        self.manager().wait().unwrap();
        let wanted = if !self.model.steps.contains_key(&step) {
            Err(ErrorKind::NotFound)
        } else if self.model.pins.contains(&step) {
            Err(ErrorKind::Conflict)
        } else {
            self.model.steps.remove(&step);
            Ok(())
        };
        assert_eq!(deleted, wanted, "deleting {step}");
    }

    fn save(&mut self, save: &Save) {
        let latest = self.model.latest();
        let step = save.ahead.map_or(save.step, |ahead| latest.map_or(ahead, |last| last + ahead));
        let now_ms = self.clock.elapsed_ms.load(SeqCst);
        self.model.generation += 1;
        let generation = self.model.generation;
        let mut request = SaveRequest::new(step).item("state", state(step, generation));
        request = save.loss.into_iter().fold(request, |request, loss| request.metric("loss", loss));
        request = if save.force { request.force() } else { request };
        request = if save.overwrite { request.overwrite() } else { request };
        let is_there = self.model.steps.contains_key(&step);
        let is_late = latest.is_some_and(|latest| step <= latest) && !(save.overwrite && is_there);
        let hit = self.spoil(save.fault);
        let outcome = self.manager().save(request).map_err(|error| error.kind());
        if !save.force && is_late {
            let reason = SkipReason::NotAbove(latest.unwrap());
            assert!(matches!(outcome, Ok(SaveOutcome::Skipped(r)) if r == reason));
        } else if !save.force && !self.model.wants(step, now_ms) {
            assert!(matches!(outcome, Ok(SaveOutcome::Skipped(SkipReason::Policy(_)))));
        } else if is_there && !save.overwrite {
            assert!(matches!(outcome, Err(ErrorKind::AlreadyExists)), "{outcome:?}");
        } else {
            self.model.begun_ms = Some(now_ms);
            let Ok(SaveOutcome::Started(handle)) = outcome else { panic!("{step}: {outcome:?}") };
            while !save.ask && !handle.is_done() {
                std::thread::yield_now();
            }
            let asked = save.ask.then(|| handle.wait().is_ok());
            let told = self.manager().wait().is_ok();
            assert!(told || asked.is_none(), "the handle told already");
            self.store.clear_rule();
            let spoiled = *hit.lock().unwrap();
            let saved = asked.unwrap_or(told);
            // A pinned step is not replaced, whoever asks.
            let pinned = save.overwrite && self.model.pins.contains(&step);
            assert!(saved || spoiled || pinned, "step {step} failed without a fault");
            assert!(!(saved && pinned), "step {step} is pinned and was replaced");
            assert_eq!(saved, handle.wait().is_ok(), "the outcome is sticky");
            self.manager().wait().unwrap();
            self.faults_hit += u64::from(spoiled);
            let (loss, committed_ms) = (save.loss, self.clock.unix_ms());
            if saved {
                self.model.steps.insert(step, Stored { generation, loss, committed_ms });
                self.retain(spoiled);
            }
        }
        self.store.clear_rule();
        assert_eq!(self.engine.budget().used(), 0);
    }

    /// Sets the rule for a fault; the flag tells whether it was hit.
    fn spoil(&self, fault: Option<Fault>) -> Arc<Mutex<bool>> {
        let hit = Arc::new(Mutex::new(false));
        if let Some(Fault { nth, for_ever }) = fault {
            let (flag, mut seen) = (Arc::clone(&hit), 0);
            self.store.set_rule(move |operation| {
                seen += u64::from(operation.verb.changes());
                let fails = operation.verb.changes() && (seen == nth || for_ever && seen > nth);
                *flag.lock().unwrap() |= fails;
                fails.then_some(Action::Fail(ErrorKind::Unavailable))
            });
        }
        hit
    }

    /// After a save the policy has its way; where the store failed, some that were to go may be left.
    fn retain(&mut self, spoiled: bool) {
        let kept = self.model.kept();
        let listed: BTreeSet<u64> =
            self.manager().steps().into_iter().map(|entry| entry.step).collect();
        assert!(listed.is_superset(&kept), "{listed:?} without one of {kept:?}");
        if !spoiled {
            assert_eq!(listed, kept);
        }
        assert!(listed.iter().all(|step| self.model.steps.contains_key(step)));
        self.model.steps.retain(|step, _| listed.contains(step));
    }

    fn check(&self) {
        self.reader.reload().unwrap();
        for manager in [self.manager(), &self.reader] {
            let listed = manager.steps();
            assert!(listed.iter().map(|entry| entry.step).eq(self.model.steps.keys().copied()));
            assert!(listed.iter().all(|entry| matches!(entry.state, StepState::Committed(_))));
            assert_eq!(manager.latest_step(), self.model.latest());
        }
        assert_eq!(self.manager().best_step(), self.model.best());
        let pins = block_on(self.manager().run().pins()).unwrap();
        assert!(pins.iter().map(|pin| pin.step).eq(self.model.pins.iter().copied()));
        if let Some(latest) = self.model.latest() {
            let opened = self.manager().restore(Which::Latest).unwrap();
            assert!(opened.bad.is_empty());
            let wanted = (latest, self.model.steps[&latest].generation);
            assert_eq!(contents(&opened.checkpoint).unwrap(), wanted);
        }
        for entry in self.reader.steps() {
            let StepState::Committed(checkpoint) = entry.state else { unreachable!() };
            let wanted = (entry.step, self.model.steps[&entry.step].generation);
            assert_eq!(contents(&checkpoint).unwrap(), wanted);
        }
    }
}

#[test]
fn the_manager_does_what_a_map_would() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let seed = number("MILEPOST_SEED").unwrap_or(now);
    let cases = u32::try_from(number("PROPTEST_CASES").unwrap_or(240)).unwrap();
    println!("MILEPOST_SEED={seed} PROPTEST_CASES={cases}");
    for kind in [0, 1] {
        let config = Config {
            cases: cases.div_ceil(2),
            rng_seed: RngSeed::Fixed(seed),
            failure_persistence: None,
            max_shrink_iters: 300,
            ..Config::default()
        };
        let done = Mutex::new((0, 0, 0));
        let outcome = TestRunner::new(config).run(&vec(op(), 1..40), |ops| {
            let store = Arc::clone(&stores()[kind].1);
            let mut trial = Trial::new(store);
            for op in &ops {
                trial.perform(op);
            }
            let mut done = done.lock().unwrap();
            done.0 += ops.len();
            done.1 += trial.model.generation;
            done.2 += trial.faults_hit;
            Ok(())
        });
        if let Err(error) = outcome {
            panic!("MILEPOST_SEED={seed}, {}: {error}", stores()[kind].0);
        }
        let (ops, saves, faults) = *done.lock().unwrap();
        println!(
            "{}: {} cases, {ops} operations, {saves} saves, {faults} of them with a fault",
            stores()[kind].0,
            cases.div_ceil(2),
        );
    }
}
