//! Deleting, leases, pins and sweeping: on local directories, in memory, and on stores without renames.

mod aged;
mod marks;
mod remove;
mod sweep;

use super::{
    CheckpointWriter, Item, SaveOptions,
    leftovers::{Leftover, LeftoverKind, leftovers},
    publish::{Found, look},
    remove::{Burial, Doomed, bury},
    sweep::SweepReport,
};
use crate::{
    array::Leaf,
    error::{ErrorKind, Result},
    io::Engine,
    store::{Action, FaultStore, Place, Priority, Store, Verb},
    tasks::{Cancel, Pool},
    tree::Tree,
};
use aged::Aged;
use futures::executor::block_on;
use milepost_formats::record::Root;
use std::sync::Arc;

fn engine() -> Arc<Engine> {
    Engine::builder().budget_bytes(32 << 20).build().unwrap()
}

fn local(engine: &Arc<Engine>) -> (tempfile::TempDir, Place) {
    let dir = tempfile::tempdir().unwrap();
    let run = engine.place(dir.path().join("run").to_str().unwrap(), &[]).unwrap();
    (dir, run)
}

fn at(store: &Arc<Aged>) -> Place {
    let store = Arc::clone(store);
    Place::new(store, "run")
}

fn state(value: u64) -> Item {
    let leaf = Leaf::from_vec((0..1000).map(|i| i + value).collect::<Vec<u64>>(), &[1000]).unwrap();
    Item::Tree(Tree::dict([("w", Tree::leaf(leaf))]))
}

fn writer(engine: &Arc<Engine>, run: &Place, step: u64, value: u64) -> CheckpointWriter {
    let options = SaveOptions { overwrite: true, ..SaveOptions::default() };
    CheckpointWriter::step(engine, run, step).item("state", state(value)).options(options)
}

fn save(engine: &Arc<Engine>, run: &Place, step: u64, value: u64) -> Place {
    writer(engine, run, step, value).save_blocking().unwrap().place
}

/// The same place, but the indexes of a save come only after a while.
fn slow(run: &Place) -> Place {
    let store = FaultStore::new(Arc::clone(run.store()));
    store.set_rule(|operation| {
        let late = operation.verb.changes() && operation.key.ends_with("_milepost/state/c.0");
        late.then_some(Action::Delay(std::time::Duration::from_millis(300)))
    });
    Place::new(store, run.prefix())
}

/// Drops a save in the midst of its work, as soon as so many of its objects are there.
fn drop_a_save(engine: &Arc<Engine>, run: &Place, step: u64, objects: usize) {
    let mut save = Box::pin(writer(engine, &slow(run), step, 0).save());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let tmp = run.key(".milepost/tmp");
    while block_on(run.store().list_all(&tmp)).unwrap().len() < objects {
        assert!(save.as_mut().poll(&mut context).is_pending(), "it must not end that soon");
    }
    // Jobs that run are not taken back by a drop: they end here.
    std::thread::sleep(std::time::Duration::from_millis(50));
}

fn is_whole(engine: &Arc<Engine>, place: &Place) -> bool {
    let checkpoint = super::Checkpoint::open_blocking(engine, place);
    checkpoint.is_ok_and(|checkpoint| {
        let report = checkpoint.verify_blocking().unwrap();
        report.is_good() && report.findings.is_empty()
    })
}

fn is_visible(place: &Place) -> bool {
    matches!(block_on(look(place)).unwrap(), Found::Root(Root::Checkpoint { .. }))
}

fn doomed(run: &Place, place: &Place, step: u64) -> Doomed {
    Doomed { run: run.clone(), checkpoint: place.clone(), step, damaged: false, writer: None }
}

fn delete(engine: &Arc<Engine>, run: &Place, place: &Place, step: u64) -> Result<u64> {
    block_on(async { bury(engine, &doomed(run, place, step), &Burial::Delete).await?.free().await })
}

fn plan(engine: &Arc<Engine>, run: &Place) -> Vec<Leftover> {
    block_on(leftovers(engine, run)).unwrap()
}

fn kinds(plan: &[Leftover]) -> Vec<LeftoverKind> {
    plan.iter().map(|leftover| leftover.kind).collect()
}

/// Sweeps all that is dead; nothing may fail, and nothing be left then.
fn sweep_all(engine: &Arc<Engine>, run: &Place) -> SweepReport {
    let report = block_on(super::sweep::sweep(engine, run, &plan(engine, run))).unwrap();
    assert!(report.failed.is_empty() && report.passed_over.is_empty(), "{report:?}");
    report
}

fn put(place: &Place, name: &str, content: &str) {
    let payload = vec![content.to_owned().into()];
    block_on(place.store().put(&place.key(name), payload, Priority::Foreground)).unwrap();
}

/// What a process that is gone, of this machine or of another, would have written.
fn forged(engine: &Engine, id: &str, elsewhere: bool) -> String {
    let holder = super::lease::Holder::this(engine, id, Some(7));
    let mut mark: serde_json::Value = serde_json::from_slice(&holder.to_bytes().unwrap()).unwrap();
    if elsewhere {
        mark["boot"] = "another".into();
    } else {
        mark["pid"] = 0x3fff_fff0.into();
    }
    mark.to_string()
}
