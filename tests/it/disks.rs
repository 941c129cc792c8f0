//! Disks that are full or read-only: small file systems in memory, mounted where this process may.

use futures::executor::block_on;
use milepost::{CheckpointWriter, Engine, ErrorKind, Item, Leaf, Run, SaveOptions, Tree, open};
use std::{path::Path, process::Command, sync::Arc};

fn engine() -> Arc<Engine> {
    Engine::builder().budget_bytes(32 << 20).build().unwrap()
}

/// A small file system in memory, unmounted on drop.
struct Mount(tempfile::TempDir);

impl Mount {
    /// `None` where this process may not mount.
    fn new(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={size}");
        let mounted = mount(&["-t", "tmpfs", "-o", &size, "milepost-test"], dir.path());
        if !mounted {
            println!("SKIPPED: mounting a tmpfs is refused here");
        }
        mounted.then_some(Self(dir))
    }
}

fn mount(arguments: &[&str], at: &Path) -> bool {
    Command::new("mount").args(arguments).arg(at).output().is_ok_and(|o| o.status.success())
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(self.0.path()).output());
    }
}

#[test]
fn a_full_disk_leaves_nothing_and_the_steps_before_it_whole() {
    let Some(disk) = Mount::new("8m") else { return };
    for codec in ["none", "zstd:1"] {
        let engine = engine();
        let run = engine.place(disk.0.path().join(&codec[..4]).to_str().unwrap(), &[]).unwrap();
        let save = |step, mib: u32| {
            let values: Vec<u32> =
                (0..mib << 18).map(|i| i.wrapping_mul(2_654_435_761).rotate_left(i % 31)).collect();
            let leaf = Leaf::from_vec(values, &[u64::from(mib) * 256, 1024]).unwrap();
            let compressor = codec.parse().unwrap();
            CheckpointWriter::step(&engine, &run, step)
                .item("state", Item::Tree(Tree::dict([("w", Tree::leaf(leaf))])))
                .options(SaveOptions { compressor, chunk_bytes: 1 << 20, ..SaveOptions::default() })
                .save_blocking()
        };
        save(1, 1).unwrap();
        for _ in 0..2 {
            let error = save(2, 16).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
            assert!(error.hint_text().is_some_and(|hint| hint.contains("space")), "{error:?}");
            assert_eq!(error.get("step"), Some("2"));
            assert!(
                error.get("object").is_some() && error.get("checkpoint").is_some(),
                "{error:?}"
            );
            assert_eq!(engine.budget().used(), 0);
            let steps = Run::new(&engine, &run).steps_blocking().unwrap();
            assert_eq!(steps.iter().map(|s| s.step).collect::<Vec<_>>(), [1], "nothing visible");
            let tmp = run.local_path().unwrap().join(".milepost/tmp");
            assert_eq!(std::fs::read_dir(tmp).unwrap().count(), 0, "leftovers are swept");
        }
        // There is room again at once: nothing holds the space.
        save(3, 1).unwrap();
        for step in [1, 3] {
            let checkpoint = block_on(Run::new(&engine, &run).step(step)).unwrap();
            assert!(checkpoint.verify_blocking().unwrap().findings.is_empty());
        }
    }
}

#[test]
fn a_read_only_directory_is_refused_with_a_hint_and_can_be_read() {
    let Some(disk) = Mount::new("8m") else { return };
    let engine = engine();
    let run = engine.place(disk.0.path().to_str().unwrap(), &[]).unwrap();
    let save = |step| {
        CheckpointWriter::step(&engine, &run, step)
            .item("state", Item::Bytes(vec![7; 100_000].into()))
            .save_blocking()
    };
    save(1).unwrap();
    if !mount(&["-o", "remount,ro"], disk.0.path()) {
        println!("SKIPPED: a tmpfs cannot be remounted read-only here");
        return;
    }
    let error = save(2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    assert!(error.hint_text().is_some(), "{error:?}");
    assert_eq!(error.get("step"), Some("2"), "{error:?}");
    let checkpoint = block_on(open(&engine, &run)).unwrap();
    assert_eq!(checkpoint.record().step, Some(1));
    assert!(block_on(checkpoint.restore_bytes("state")).unwrap() == vec![7; 100_000]);
    assert!(checkpoint.verify_blocking().unwrap().findings.is_empty());
    assert_eq!(engine.budget().used(), 0);
}
