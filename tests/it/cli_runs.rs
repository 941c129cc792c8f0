//! The verbs that look after a run, through the binary: pin, unpin, rm, prune, sweep, watch, and the marks of `ls`.

use super::cli::{command, json, milepost, run, stderr, stdout, text};
use milepost::{CheckpointWriter, Engine, Item, Leaf, Opaque, Place, Run, Tree};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStdout, Stdio},
    sync::Arc,
};
use tempfile::TempDir;

fn engine() -> Arc<Engine> {
    Engine::builder().budget_bytes(64 << 20).build().unwrap()
}

fn place(engine: &Engine, run: &str) -> Place {
    engine.place(run, &[]).unwrap()
}

fn save(run: &str, step: u64, loss: Option<f64>) {
    let engine = engine();
    let state = Tree::dict([("n", Tree::leaf(Leaf::int(step.into()).unwrap()))]);
    let mut writer = CheckpointWriter::step(&engine, &place(&engine, run), step)
        .item("state", Item::Tree(state));
    if let Some(loss) = loss {
        writer = writer.metric("loss", loss);
    }
    writer.save_blocking().unwrap();
}

/// Steps 1 to 6; the loss is least at 4, and 2 lacks it.
fn losses() -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run").to_str().unwrap().to_owned();
    for (step, loss) in (1..).zip([Some(9.0), None, Some(5.0), Some(1.0), Some(2.0), Some(3.0)]) {
        save(&path, step, loss);
    }
    (dir, path)
}

/// Returns the steps of a run.
fn steps(run: &str) -> Vec<u64> {
    let steps = json(&["ls", run]);
    steps.as_array().unwrap().iter().map(|step| step["step"].as_u64().unwrap()).collect()
}

fn damage(run: &str, step: u64) {
    std::fs::write(Path::new(run).join(step.to_string()).join("zarr.json"), "{").unwrap();
}

/// A process of the binary that is killed at the end, and its standard output.
struct Running(Child, BufReader<ChildStdout>);

impl Running {
    fn start(args: &[&str]) -> Self {
        let mut child = command(args).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self(child, out)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        line
    }

    fn signal(&mut self, signal: rustix::process::Signal) -> Option<i32> {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal).unwrap();
        self.0.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A process that holds a lease of the newest step, and what its mark says.
fn leaseholder(run: &str) -> (Running, Value) {
    let mut holder = Running::start(&["watch", run, "--lease"]);
    assert!(holder.line().contains("committed"));
    let leases = Path::new(run).join(".milepost/leases");
    let mark = std::fs::read_dir(leases).unwrap().next().unwrap().unwrap().path();
    (holder, serde_json::from_slice(&std::fs::read(mark).unwrap()).unwrap())
}

/// Makes `directory` an attempt of the process that wrote `mark`.
fn attempt(directory: &Path, mark: &Value, step: u64) {
    std::fs::create_dir_all(directory.join("state")).unwrap();
    std::fs::write(directory.join("state/data"), [7; 100]).unwrap();
    let mut mark = mark.clone();
    mark["step"] = step.into();
    let path = directory
        .with_file_name(format!("{}.lease", directory.file_name().unwrap().to_str().unwrap()));
    std::fs::write(path, mark.to_string()).unwrap();
}

const ID: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn a_pinned_step_stays_until_it_is_unpinned() {
    let (_dir, run) = run();
    assert_eq!(stdout(&["pin", &run, "3", "--why", "in the paper"]), "pinned 3\n");
    let step = &json(&["ls", &run])[0];
    assert_eq!(step["pin"]["why"], "in the paper");
    assert!(step["pin"]["since_ms"].as_u64().is_some_and(|ms| ms > 0));
    let lines = stdout(&["ls", &run]);
    assert!(lines.lines().nth(1).unwrap().contains("  pinned  "), "{lines}");
    assert!(lines.lines().nth(2).unwrap().contains("  -       "), "{lines}");
    let said = stderr(&["rm", &run, "3"], 1);
    assert!(said.contains("the step is pinned") && said.contains("in the paper"), "{said}");
    assert!(said.contains("hint: `unpin` it first"), "{said}");
    let plan = stdout(&["prune", &run, "--keep-latest", "1"]);
    assert_eq!(plan, "keep 3: pinned\nkeep 12: the newest, of the latest 1\n");
    let pinned = json(&["pin", &run, "3", "--why", "again"]);
    assert_eq!(pinned, serde_json::json!({"step": 3, "pinned": true, "why": "again"}));
    assert_eq!(stdout(&["unpin", &run, "3"]), "unpinned 3\n");
    assert_eq!(stdout(&["unpin", &run, "3"]), "3 was not pinned\n");
    assert_eq!(json(&["unpin", &run, "3"])["was_pinned"], false);
    assert_eq!(stdout(&["rm", &run, "3"]), "removed 3\n");
    assert_eq!(steps(&run), [12]);
    let said = stderr(&["pin", &run, "3"], 1);
    assert!(said.contains("no such step") && said.contains("hint: the nearest are 12"), "{said}");
}

#[test]
fn rm_removes_what_it_can_and_tells_of_the_rest() {
    let (dir, run) = losses();
    std::fs::write(dir.path().join("run/notes.txt"), "mine").unwrap();
    let output = milepost(&["rm", &run, "2", "99", "1", "2"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "removed 2\nremoved 1\n");
    let said = text(&output.stderr);
    assert!(said.contains("no such step. step=`99`"), "{said}");
    assert_eq!(steps(&run), [3, 4, 5, 6]);
    assert_eq!(std::fs::read_dir(dir.path().join("run/.milepost/trash")).unwrap().count(), 0);
    assert_eq!(std::fs::read(dir.path().join("run/notes.txt")).unwrap(), b"mine");
    let output = milepost(&["rm", &run, "3", "99", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["dry_run"]), (Some(1), &false.into()));
    assert_eq!(report["steps"][0], serde_json::json!({"step": 3, "outcome": "removed"}));
    let failed = &report["steps"][1];
    assert_eq!((&failed["step"], &failed["outcome"]), (&99.into(), &"failed".into()));
    assert!(failed["error"].as_str().unwrap().contains("no such step"), "{report}");
}

#[test]
fn rm_shows_what_would_go_and_touches_nothing() {
    let (_dir, run) = losses();
    stdout(&["pin", &run, "2"]);
    damage(&run, 3);
    assert_eq!(stdout(&["rm", &run, "1", "4", "--dry-run"]), "would remove 1\nwould remove 4\n");
    assert!(stderr(&["rm", &run, "2", "-n"], 1).contains("the step is pinned"));
    assert!(stderr(&["rm", &run, "3", "-n"], 1).contains("hint: --damaged removes it"));
    assert!(stderr(&["rm", &run, "99", "-n"], 1).contains("no such step"));
    let report = json(&["rm", &run, "3", "--damaged", "-n"]);
    assert_eq!(
        (&report["dry_run"], &report["steps"][0]["outcome"]),
        (&true.into(), &"removable".into())
    );
    assert_eq!(steps(&run), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn damaged_steps_go_only_where_that_is_said_and_foreign_files_never() {
    let (dir, run) = losses();
    damage(&run, 3);
    std::fs::create_dir(dir.path().join("run/7")).unwrap();
    std::fs::write(dir.path().join("run/7/photo.jpg"), "mine").unwrap();
    std::fs::create_dir(dir.path().join("run/4/notes")).unwrap();
    std::fs::write(dir.path().join("run/4/notes/today.txt"), "mine").unwrap();
    let said = stderr(&["rm", &run, "3"], 1);
    assert!(said.contains("--damaged"), "{said}");
    assert_eq!(stdout(&["rm", &run, "3", "--damaged"]), "removed 3\n");
    for step in ["4", "7"] {
        let said = stderr(&["rm", &run, step, "--damaged"], 1);
        assert!(said.contains("holds what is not") && said.contains("hint: "), "{said}");
    }
    let plan = stdout(&["prune", &run, "--keep-latest", "3"]);
    assert!(
        plan.ends_with("leave 7: damaged, which no rule judges\nremoved 1\nremoved 2\n"),
        "{plan}"
    );
    for kept in ["7/photo.jpg", "4/notes/today.txt"] {
        assert_eq!(std::fs::read(dir.path().join("run").join(kept)).unwrap(), b"mine");
    }
    assert_eq!(steps(&run), [4, 5, 6, 7]);
}

#[test]
fn rm_moves_steps_to_a_directory_where_they_stay_readable() {
    let (_dir, run) = losses();
    let moved = json(&["rm", &run, "5", "--trash", "old/bad"]);
    assert_eq!(moved["steps"][0]["outcome"], "moved");
    let to = moved["steps"][0]["place"].as_str().unwrap();
    assert_eq!(to, format!("{run}/old/bad/5"));
    assert_eq!(stdout(&["cat", to, "n"]), "5\n");
    assert_eq!(steps(&run), [1, 2, 3, 4, 6]);
    assert_eq!(steps(&format!("{run}/old/bad")), [5]);
    let said = stderr(&["rm", &run, "4", "--trash", ".milepost/x"], 1);
    assert!(said.contains("directory=`.milepost/x`"), "{said}");
    assert_eq!(steps(&run), [1, 2, 3, 4, 6]);
}

#[test]
fn a_step_that_is_read_is_listed_as_leased_and_left_alone() {
    let (_dir, run) = losses();
    let engine = engine();
    let of = Run::new(&engine, &place(&engine, &run));
    let lease = futures::executor::block_on(of.lease(2)).unwrap();
    let lines = stdout(&["ls", &run]);
    assert!(lines.lines().nth(2).unwrap().contains("  leased"), "{lines}");
    let leases = &json(&["ls", &run])[1]["leases"];
    assert_eq!((&leases[0]["kind"], &leases[0]["alive"]), (&"reader".into(), &true.into()));
    for args in [&["rm", &run, "2"][..], &["rm", &run, "2", "--dry-run"]] {
        assert!(stderr(args, 1).contains("the step is being read"));
    }
    let pruned = stdout(&["prune", &run, "--keep-steps", "3,4"]);
    assert!(pruned.contains("\nremoved 1\nleft 2: the step is being read"), "{pruned}");
    assert_eq!(steps(&run), [2, 3, 4, 6]);
    let again = json(&["prune", &run, "--keep-steps", "3,4"]);
    assert_eq!(again["steps"][0]["outcome"], "in use");
    futures::executor::block_on(lease.release()).unwrap();
    assert_eq!(json(&["prune", &run, "--keep-steps", "3,4"])["steps"][0]["outcome"], "removed");
}

#[test]
fn prune_keeps_what_any_rule_keeps_and_says_why() {
    let (_dir, run) = losses();
    let rules = ["--keep-best", "1", "--metric", "loss", "--mode", "min", "--keep-every", "3"];
    let prune = [&["prune", run.as_str()], &rules[..]].concat();
    let plan = "delete 1: nothing keeps it\n\
                keep 2: without the metric\n\
                keep 3: a multiple of 3\n\
                keep 4: number 1 by metric, 1\n\
                delete 5: nothing keeps it\n\
                keep 6: the newest, a multiple of 3\n";
    assert_eq!(stdout(&[&prune[..], &["--dry-run"]].concat()), plan);
    assert_eq!(steps(&run), [1, 2, 3, 4, 5, 6]);
    let dry = json(&[&prune[..], &["--drop-missing", "-n"]].concat());
    assert_eq!((&dry["dry_run"], &dry["delete"]), (&true.into(), &serde_json::json!([1, 2, 5])));
    assert_eq!(dry["keep"][1], serde_json::json!({"step": 4, "why": ["number 1 by metric, 1"]}));
    assert_eq!(dry["steps"], serde_json::json!([]));
    assert_eq!(stdout(&prune), format!("{plan}removed 1\nremoved 5\n"));
    assert_eq!(steps(&run), [2, 3, 4, 6]);
    let apart = json(&["prune", &run, "--keep-every-apart", "2", "--keep-for", "0s", "-n"]);
    assert_eq!(apart["delete"], serde_json::json!([3]));
    assert_eq!(json(&["prune", &run, "--keep-for", "1d", "-n"])["delete"], serde_json::json!([]));
    assert_eq!(stdout(&["verify", &run]).split(',').next(), Some("ok: 4 checkpoints"));
}

#[test]
fn prune_refuses_what_cannot_have_been_meant() {
    let (_dir, run) = losses();
    stderr(&["prune", &run], 2);
    stderr(&["prune", &run, "--keep-best", "1"], 2);
    stderr(&["prune", &run, "--keep-latest", "1", "--metric", "loss"], 2);
    assert!(stderr(&["prune", &run, "--keep-for", "90"], 2).contains("write 90s, 15m, 2h, 1d"));
    stderr(&["prune", &run, "--keep-every", "0"], 1);
    let said = stderr(&["prune", &run, "--keep-best", "1", "--metric", "los", "--drop-missing"], 1);
    assert!(said.contains("metric=`los`") && said.contains("hint: the steps have loss"), "{said}");
    assert_eq!(steps(&run), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn the_verbs_of_a_run_refuse_what_is_none() {
    let (dir, run) = run();
    let step = format!("{run}/12");
    let nothing = dir.path().join("nothing").to_str().unwrap().to_owned();
    let zarr = dir.path().join("zarr").to_str().unwrap().to_owned();
    std::fs::create_dir(&zarr).unwrap();
    let group = r#"{"zarr_format":3,"node_type":"group"}"#;
    std::fs::write(Path::new(&zarr).join("zarr.json"), group).unwrap();
    let verbs: [&[&str]; 4] =
        [&["rm", "12"], &["pin", "12"], &["unpin", "12"], &["prune", "--keep-latest", "1"]];
    for verb in verbs {
        let at = |place: &str| stderr(&[&[verb[0], place], &verb[1..]].concat(), 1);
        assert!(at(&step).contains("a checkpoint, not a run"), "{verb:?}");
        assert!(at(&zarr).contains("no run of ours"), "{verb:?}");
        assert!(at(&nothing).contains("no run here"), "{verb:?}");
    }
    assert!(stderr(&["watch", &step, "--once"], 1).contains("a checkpoint, not a run"));
    assert!(stderr(&["sweep", &zarr], 1).contains("no run of ours"));
    assert!(stderr(&["sweep", &nothing], 1).contains("no run here"));
    assert_eq!(steps(&run), [3, 12]);
}

#[test]
fn sweep_frees_what_a_dead_writer_left_and_leaves_a_live_one_alone() {
    let (dir, run) = losses();
    let (mut holder, mark) = leaseholder(&run);
    let left = dir.path().join("run/.milepost/tmp").join(ID);
    attempt(&left, &mark, 40);
    std::fs::write(dir.path().join("run/mine.txt"), "mine").unwrap();
    std::fs::write(dir.path().join("run/.milepost/mine"), "mine").unwrap();
    let saving = |alive: bool| {
        let steps = json(&["ls", &run]);
        let last = steps.as_array().unwrap().last().unwrap();
        assert_eq!((&last["step"], &last["state"]), (&40.into(), &"saving".into()));
        assert_eq!((&last["alive"], &last["id"]), (&alive.into(), &ID.into()));
        let lines = stdout(&["ls", &run]);
        lines.lines().last().unwrap().to_owned()
    };
    let line = saving(true);
    assert!(line.starts_with("        40  saving     writer alive, since "), "{line}");
    assert_eq!(stdout(&["sweep", &run]), "freed 0 leftovers, 0 B\n");
    assert!(left.exists());

    holder.signal(rustix::process::Signal::KILL);
    assert!(saving(false).contains("writer dead"));
    let plan = json(&["sweep", &run, "--dry-run"]);
    let kinds: Vec<_> = plan["leftovers"].as_array().unwrap().iter().map(|l| &l["kind"]).collect();
    assert_eq!(
        (kinds, &plan["leftovers"][0]["bytes"]),
        (vec![&"attempt".into(), &"mark".into()], &100.into())
    );
    assert!(plan["leftovers"][0]["why"].as_str().unwrap().starts_with("its writer is gone"));
    assert_eq!((&plan["dry_run"], &plan["swept"]), (&true.into(), &serde_json::json!([])));
    let shown = stdout(&["sweep", &run, "-n"]);
    assert!(
        shown.starts_with("attempt        100 B  ") && shown.contains("\nwould free 2 leftovers")
    );
    assert!(left.exists());
    let swept = json(&["sweep", &run]);
    assert_eq!(swept["swept"], plan["leftovers"]);
    assert!(swept["freed_bytes"].as_u64().is_some_and(|bytes| bytes > 100), "{swept}");
    assert_eq!(stdout(&["sweep", &run]), "freed 0 leftovers, 0 B\n");
    assert!(!left.exists());
    assert_eq!(std::fs::read(dir.path().join("run/mine.txt")).unwrap(), b"mine");
    assert_eq!(std::fs::read(dir.path().join("run/.milepost/mine")).unwrap(), b"mine");
    assert_eq!(steps(&run), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn sweep_frees_the_dead_beside_a_checkpoint_that_stands_alone_or_never_came() {
    let (dir, run) = losses();
    let (mut holder, mark) = leaseholder(&run);
    holder.signal(rustix::process::Signal::KILL);
    let alone = dir.path().join("alone");
    let engine = engine();
    let target = place(&engine, alone.to_str().unwrap());
    let item = || Item::Json(serde_json::json!(1));
    CheckpointWriter::standalone(&engine, &target).item("a", item()).save_blocking().unwrap();
    for name in ["alone", "never"] {
        let name_of = |id: &str| dir.path().join(format!("{name}.milepost-tmp-{id}"));
        attempt(&name_of(ID), &mark, 0);
        std::fs::create_dir(name_of("mine")).unwrap();
        let at = dir.path().join(name).to_str().unwrap().to_owned();
        let swept = stdout(&["sweep", &at]);
        assert!(
            swept.contains("its writer is gone") && swept.ends_with("freed 1 leftover, 100 B\n")
        );
        assert!(!name_of(ID).exists() && name_of("mine").exists());
    }
    assert!(stdout(&["verify", alone.to_str().unwrap()]).starts_with("ok: 1 checkpoint"));
}

#[test]
fn watch_prints_each_new_step_until_it_is_told_to_end() {
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let (_dir, run) = run();
        let mut watch = Running::start(&["watch", &run, "--json", "--interval", "20ms"]);
        let mut step = || {
            let step: Value = serde_json::from_str(&watch.line()).unwrap();
            assert_eq!(step["state"], "committed");
            step["step"].as_u64().unwrap()
        };
        assert_eq!(step(), 12);
        for new in [20, 21] {
            save(&run, new, None);
            assert_eq!(step(), new);
        }
        save(&run, 5, None);
        assert_eq!(watch.signal(signal), Some(0));
        assert_eq!(watch.line(), "");
        assert!(
            !Path::new(&run)
                .join(".milepost/leases")
                .read_dir()
                .is_ok_and(|mut d| d.next().is_some())
        );
    }
}

#[test]
fn watch_tells_by_its_exit_code_whether_a_step_came() {
    let (dir, run) = run();
    let once = stdout(&["watch", &run, "--once"]);
    assert!(once.starts_with("        12  committed") && once.ends_with("loss=0.5\n"), "{once}");
    let quick = ["--timeout", "30ms", "--interval", "10ms"];
    let watch = |args: &[&str]| {
        let output = milepost(&[&["watch"], args, &quick].concat());
        (output.status.code(), text(&output.stdout).lines().count(), text(&output.stderr))
    };
    assert_eq!(watch(&[&run]), (Some(0), 1, String::new()));
    assert_eq!(watch(&[&run, "--above", "12"]), (Some(1), 0, String::new()));
    assert_eq!(watch(&[&run, "--above", "11", "--lease"]), (Some(0), 1, String::new()));
    let nothing = dir.path().join("nothing").to_str().unwrap().to_owned();
    assert_eq!(watch(&[&nothing]), (Some(1), 0, String::new()));
    stderr(&["watch", &run, "--interval", "0s"], 2);
}

#[test]
fn watch_waits_for_a_run_that_is_not_there_yet() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("later").to_str().unwrap().to_owned();
    let mut watch = Running::start(&["watch", &run, "--once", "--interval", "20ms"]);
    save(&run, 8, None);
    assert!(watch.line().starts_with("         8  committed"));
    assert_eq!(watch.0.wait().unwrap().code(), Some(0));
}

#[test]
fn watch_runs_a_command_for_each_step_while_the_step_is_leased() {
    let (_dir, run) = run();
    let binary = env!("CARGO_BIN_EXE_milepost");
    let evaluate = format!("{binary} cat $MILEPOST_CKPT opt/0; {binary} rm {run} $MILEPOST_STEP");
    let output = milepost(&["watch", &run, "--once", "--lease", "--exec", &evaluate]);
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    assert!(out.ends_with("loss=0.5\n7\n") && said.contains("the step is being read"), "{said}");
    assert_eq!((output.status.code(), steps(&run)), (Some(1), vec![3, 12]));
    let output = milepost(&["watch", &run, "--once", "--json", "--exec", "echo $MILEPOST_STEP"]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), "12\n".to_owned()));
    assert_eq!(text(&output.stdout).lines().count(), 1);
    assert_eq!(stdout(&["rm", &run, "12"]), "removed 12\n");
}

#[test]
fn ls_marks_steps_with_files() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("vocabulary"), "a b c").unwrap();
    let run = dir.path().join("run").to_str().unwrap().to_owned();
    let engine = engine();
    let files = Opaque::from_path(dir.path().join("vocabulary")).unwrap();
    CheckpointWriter::step(&engine, &place(&engine, &run), 1)
        .item("tokenizer", Item::Opaque(files))
        .save_blocking()
        .unwrap();
    stdout(&["pin", &run, "1"]);
    let lines = stdout(&["ls", &run]);
    assert!(lines.lines().nth(1).unwrap().ends_with("  pinned,opaque"), "{lines}");
    let alone = stdout(&["ls", &format!("{run}/1")]);
    assert!(alone.lines().nth(1).unwrap().ends_with("  opaque"), "{alone}");
    assert_eq!(json(&["ls", &format!("{run}/1")])[0].get("pin"), None);
}

#[test]
fn help_of_every_verb_that_changes_a_run_tells_its_exit_codes() {
    let all = stdout(&["--help"]);
    let mut from = 0;
    for verb in ["ls", "watch", "pin", "unpin", "prune", "rm", "sweep"] {
        from +=
            all[from..].find(&format!("\n  {verb} ")).unwrap_or_else(|| panic!("{verb}: {all}"));
        let help = stdout(&[verb, "--help"]);
        assert!(verb == "ls" || help.contains("Exit code"), "{help}");
    }
}
