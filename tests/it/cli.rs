//! The command line as a user meets it: the built binary, its output, its exit codes.

use milepost::{CheckpointWriter, Engine, Item, Leaf, Tree};
use serde_json::Value;
use std::{
    io::Read,
    path::Path,
    process::{Command, Output, Stdio},
};
use tempfile::TempDir;

pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_milepost"));
    command.args(args).env_remove("MILEPOST_LOG");
    command
}

pub(crate) fn milepost(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs a verb that is to succeed and to say nothing on standard error.
#[track_caller]
pub(crate) fn stdout(args: &[&str]) -> String {
    let output = milepost(args);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{args:?}");
    text(&output.stdout)
}

#[track_caller]
pub(crate) fn json(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(&[args, &["--json"]].concat())).unwrap()
}

/// Runs a verb that is to fail, and returns what it says about that.
#[track_caller]
pub(crate) fn stderr(args: &[&str], code: i32) -> String {
    let output = milepost(args);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stderr));
    text(&output.stderr)
}

/// Steps 3 and 12 of a run, with leaves of many kinds.
pub(crate) fn run() -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run").to_str().unwrap().to_owned();
    let engine = Engine::builder().budget_bytes(64 << 20).build().unwrap();
    let place = engine.place(&path, &[]).unwrap();
    for step in [3, 12] {
        let counting: Vec<f32> = (0..4000_u16).map(f32::from).collect();
        let bits = half::bf16::from_f32;
        let state = Tree::dict([
            ("w", Tree::leaf(Leaf::from_vec(counting, &[50, 80]).unwrap())),
            ("cube", Tree::leaf(Leaf::from_vec((0..2000_i16).collect(), &[10, 20, 10]).unwrap())),
            ("half", Tree::leaf(Leaf::from_vec(vec![bits(1.5), bits(f32::NAN)], &[2]).unwrap())),
            ("flag", Tree::leaf(Leaf::bool(true))),
            ("z", Tree::leaf(Leaf::complex(1.0, -2.5))),
            ("name", Tree::leaf(Leaf::text("größe"))),
            ("raw", Tree::leaf(Leaf::bytes(vec![0_u8, 255, 10]))),
            ("none", Tree::None),
            ("opt", Tree::tuple([Tree::leaf(Leaf::int(7).unwrap()), Tree::list([])])),
        ]);
        CheckpointWriter::step(&engine, &place, step)
            .item("state", Item::Tree(state))
            .item("config", Item::Json(serde_json::json!({"lr": 0.1})))
            .metric("loss", 0.5)
            .metric("bad", f64::NAN)
            .save_blocking()
            .unwrap();
    }
    (dir, path)
}

fn flip(file: &Path, offset: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[offset] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn demo_trains_shows_and_resumes_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("demo-run").to_str().unwrap().to_owned();
    let shown = stdout(&["demo", &run]);
    for part in
        ["saved step 300: loss", "params/dense_1/kernel", "prng key", "equals", "import zarr"]
    {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let again = milepost(&["demo", &run, "--json"]);
    assert_eq!(text(&again.stderr), "resumed from step 300\n");
    let again: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(
        (&again["saved"][2]["step"], &again["restored"]["same"]),
        (&600.into(), &true.into())
    );
    let steps = json(&["ls", &run]);
    assert_eq!(steps.as_array().unwrap().len(), 6);
    let loss = |i: usize| steps[i]["metrics"]["loss"].as_f64().unwrap();
    assert!(loss(5) < loss(0) / 4.0, "it learns: {} then {}", loss(0), loss(5));
    assert!(stdout(&["verify", &run]).starts_with("ok: 6 checkpoints"));
}

#[test]
fn a_training_that_is_resumed_goes_on_as_if_it_had_never_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("a").to_str().unwrap().to_owned();
    stdout(&["demo", &run, "--quiet"]);
    let straight = json(&["cat", &format!("{run}/200"), "params/dense_0/bias"]);
    for later in ["200", "300"] {
        std::fs::remove_dir_all(dir.path().join("a").join(later)).unwrap();
    }
    stdout(&["demo", &run, "--quiet"]);
    assert_eq!(json(&["cat", &format!("{run}/200"), "params/dense_0/bias"]), straight);
}

#[test]
fn demo_refuses_a_place_that_holds_something_else() {
    let (_dir, run) = run();
    let said = stderr(&["demo", &run], 1);
    assert!(said.contains("not one of a demo") && said.contains("\nhint: "), "{said}");
    let said = stderr(&["demo", &format!("{run}/12")], 1);
    assert!(said.contains("a checkpoint is at the place"), "{said}");
}

#[test]
fn ls_shows_committed_and_damaged_steps_and_a_checkpoint_alone() {
    let (dir, run) = run();
    std::fs::write(dir.path().join("run/3/zarr.json"), "{").unwrap();
    let lines = stdout(&["ls", &run]);
    let lines: Vec<_> = lines.lines().map(|l| l.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(lines[0], ["step", "state", "size", "leaves", "age", "marks", "metrics"]);
    assert_eq!(lines[1][..2], ["3", "damaged"]);
    assert_eq!(lines[2][..2], ["12", "committed"]);
    assert!(lines[2].ends_with(&["bad=NaN", "loss=0.5"]), "{lines:?}");
    let steps = json(&["ls", &run]);
    assert_eq!((&steps[0]["state"], &steps[1]["leaves"]), (&"damaged".into(), &8.into()));
    assert!(steps[0]["why"].as_str().is_some_and(|why| !why.is_empty()));
    let alone = json(&["ls", &format!("{run}/12")]);
    assert_eq!((alone.as_array().unwrap().len(), &alone[0]["step"]), (1, &12.into()));
}

#[test]
fn tree_shows_leaves_containers_items_and_folds() {
    let (_dir, run) = run();
    let shown = stdout(&["tree", &run]);
    let line = |path: &str| {
        let found = shown.lines().find(|l| l.split_whitespace().next() == Some(path));
        found.unwrap_or_else(|| panic!("{path} in {shown}")).split_whitespace().collect::<Vec<_>>()
    };
    let w = ["w", "float32", "[50,80]", "chunks", "[50,80]", "none", "15.6", "KiB"];
    assert_eq!(line("w"), w);
    assert_eq!(line("none"), ["none", "None"]);
    assert_eq!(line("opt/1"), ["opt/1", "empty", "list"]);
    assert!(line("name").contains(&"(str)"));
    assert!(stdout(&["tree", &run, "--depth", "1"]).contains("tuple, 1 leaf, 12 B"));
    let tree = json(&["tree", &format!("{run}/3"), "--item", "state"]);
    assert_eq!((&tree["step"], tree["items"].as_array().unwrap().len()), (&3.into(), 1));
    let leaves = tree["items"][0]["leaves"].as_array().unwrap();
    assert_eq!((leaves.len(), &leaves[0]["shape"]), (8, &serde_json::json!([50, 80])));
    assert!(stderr(&["tree", &run, "--item", "stat"], 1).contains("hint: the checkpoint has"));
}

#[test]
fn cat_shows_values_of_every_kind() {
    let (_dir, run) = run();
    let cat = |args: &[&str]| stdout(&[&["cat", &run], args].concat());
    assert_eq!(cat(&["w", "--slice", "49,-2:"]), "[3998.0 3999.0]\n");
    assert_eq!(
        cat(&["w", "--slice", "::49,:40:39", "--as", "int16"]),
        "[[   0   39]\n [3920 3959]]\n"
    );
    assert_eq!(cat(&["half"]), "[1.5 nan]\n");
    assert_eq!(cat(&["flag"]), "true\n");
    assert_eq!(cat(&["z"]), "1.0-2.5j\n");
    assert_eq!(cat(&["opt/0"]), "7\n");
    assert_eq!(cat(&["name"]), "größe\n");
    assert_eq!(cat(&["--item", "config"]), "{\n  \"lr\": 0.1\n}\n");
    assert_eq!(milepost(&["cat", &run, "raw"]).stdout, [0, 255, 10]);
    assert_eq!(json(&["cat", &run, "half"])["values"], serde_json::json!([1.5, "NaN"]));
    assert_eq!(json(&["cat", &run, "z"])["values"], serde_json::json!([1.0, -2.5]));
    assert_eq!(json(&["cat", &run, "name"])["values"], "größe");
    let w = json(&["cat", &run, "w"]);
    assert_eq!((w["values"].as_array().unwrap().len(), &w["values"][49][79]), (50, &3999.0.into()));
}

#[test]
fn cat_shows_a_large_array_by_its_edges() {
    let (_dir, run) = run();
    let shown = stdout(&["cat", &run, "w", "--slice", ":,::2"]);
    assert_eq!(shown.lines().count(), 7);
    assert_eq!(shown.lines().next(), Some("[[   0.0    2.0    4.0 ...   74.0   76.0   78.0]"));
    assert_eq!(shown.lines().last(), Some(" [3920.0 3922.0 3924.0 ... 3994.0 3996.0 3998.0]]"));
    let cube = stdout(&["cat", &run, "cube"]);
    let rows: Vec<_> = cube.lines().collect();
    assert_eq!(rows[0], "[[[   0    1    2 ...    7    8    9]");
    assert_eq!(rows[6], "  [ 190  191  192 ...  197  198  199]]");
    assert_eq!((rows[7], rows[8]), ("", " [[ 200  201  202 ...  207  208  209]"));
    assert_eq!(rows.last(), Some(&"  [1990 1991 1992 ... 1997 1998 1999]]]"));
}

#[test]
fn cat_writes_npy_files_as_numpy_does() {
    let (dir, run) = run();
    let file = dir.path().join("out.npy");
    let out = file.to_str().unwrap();
    let written = json(&["cat", &run, "w", "--slice", "1:3,:", "--out", out]);
    assert_eq!(written["shape"], serde_json::json!([2, 80]));
    let bytes = std::fs::read(&file).unwrap();
    assert!(bytes.starts_with(
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 80), }"
    ));
    let values: Vec<u8> = (80..240_u16).flat_map(|x| f32::from(x).to_le_bytes()).collect();
    assert_eq!(bytes[128..], values);
    stdout(&["cat", &run, "half", "--out", out, "--quiet"]);
    let bytes = std::fs::read(&file).unwrap();
    assert!(bytes.windows(5).any(|w| w == b"'<V2'") && bytes.len() == 132, "{bytes:?}");
    stdout(&["cat", &run, "half", "--as", "float32", "--out", out, "--quiet"]);
    assert_eq!(std::fs::read(&file).unwrap()[128..132], 1.5_f32.to_le_bytes());
    let names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "the run and the file, nothing half-written: {names:?}");
    let said =
        stderr(&["cat", &run, "w", "--out", dir.path().join("no/x.npy").to_str().unwrap()], 1);
    assert!(said.contains("the file cannot be written") && said.contains("caused by: "), "{said}");
}

#[test]
fn errors_name_what_is_wrong_and_what_to_do() {
    let (dir, run) = run();
    let missing = dir.path().join("nowhere");
    let said = stderr(&["ls", missing.to_str().unwrap()], 1);
    assert!(said.starts_with("error: no checkpoint and no run here. place=`"), "{said}");
    assert!(said.contains("\nhint: "), "{said}");
    let said = stderr(&["cat", &run, "opt/O"], 1);
    assert!(
        said.contains("leaf=`opt/O`, step=`12`") && said.contains("hint: nearest: `opt/0`"),
        "{said}"
    );
    let said = stderr(&["cat", &run, "w", "--slice", "50,0"], 1);
    assert!(
        said.contains("index 50 is out of bounds") && said.contains("axis=`0`, size=`50`"),
        "{said}"
    );
    let said = stderr(&["ls", "gopher://x/y"], 1);
    assert!(said.starts_with("error: "), "{said}");
    let said = stderr(&["ls", &run, "--budget", "1"], 1);
    assert!(said.contains("the budget is too small") && said.contains("hint: "), "{said}");
}

#[test]
fn usage_errors_are_exit_code_2_and_help_is_0() {
    let (_dir, run) = run();
    assert!(stderr(&[], 2).contains("Usage"));
    for bad in [&["frobnicate"][..], &["ls"], &["cat", &run, "w", "--as", "float33"]] {
        stderr(bad, 2);
    }
    for size in ["4MB5", "x", "-1", "1.2.3", "99999999999TiB", ""] {
        stderr(&["ls", &run, &format!("--budget={size}")], 2);
    }
    for size in ["4MiB", "16777216", "0.5GiB", "8 MB"] {
        stdout(&["ls", &run, "--budget", size]);
    }
    stderr(&["ls", &run, "--store-option", "endpoint"], 2);
    for verb in ["demo", "ls", "tree", "cat", "verify", "doctor"] {
        assert!(stdout(&[verb, "--help"]).contains("--json"), "{verb}");
    }
}

#[test]
fn verify_names_the_flipped_chunk_and_the_damaged_record() {
    let (dir, run) = run();
    assert!(stdout(&["verify", &run]).starts_with("ok: 2 checkpoints, "));
    flip(&dir.path().join("run/3/state/w/c.0.0"), 5);
    let output = milepost(&["verify", &run]);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    for part in
        ["corrupt: ", "step=`3`", "item=`state`", "leaf=`w`", "object=`state/w/c.0.0`", "NOT OK"]
    {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    assert_eq!(milepost(&["verify", &format!("{run}/12")]).status.code(), Some(0));
    std::fs::write(dir.path().join("run/12/zarr.json"), "{}").unwrap();
    for place in [run.clone(), format!("{run}/12")] {
        let output = milepost(&["verify", &place, "--json"]);
        assert_eq!(output.status.code(), Some(1), "{place}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let last = report["checkpoints"].as_array().unwrap().last().unwrap();
        assert_eq!((&report["good"], &last["step"]), (&false.into(), &12.into()));
        assert_eq!(last["findings"][0]["outcome"], "corrupt");
    }
}

#[test]
fn other_zarr_is_shown_and_read() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_str().unwrap();
    std::fs::create_dir_all(dir.path().join("g/a")).unwrap();
    let group = r#"{"zarr_format":3,"node_type":"group"}"#;
    std::fs::write(dir.path().join("zarr.json"), group).unwrap();
    std::fs::write(dir.path().join("g/zarr.json"), group).unwrap();
    let array = r#"{"zarr_format":3,"node_type":"array","shape":[2,3],"data_type":"int32",
        "chunk_grid":{"name":"regular","configuration":{"chunk_shape":[1,3]}},
        "chunk_key_encoding":{"name":"default"},"fill_value":9,
        "codecs":[{"name":"bytes","configuration":{"endian":"big"}}]}"#;
    std::fs::write(dir.path().join("g/a/zarr.json"), array).unwrap();
    std::fs::create_dir_all(dir.path().join("g/a/c/1")).unwrap();
    std::fs::write(dir.path().join("g/a/c/1/0"), [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]).unwrap();
    let shown = stdout(&["tree", root]);
    assert!(shown.lines().any(|l| l.starts_with("  g/a  int32  [2,3]")), "{shown}");
    assert!(stdout(&["tree", root, "--depth", "1"]).contains("group, 1 array"));
    assert_eq!(json(&["tree", root])["nodes"][2]["data_type"], "int32");
    assert_eq!(stdout(&["cat", root, "g/a"]), "[[9 9 9]\n [1 2 3]]\n");
    assert_eq!(stdout(&["cat", &format!("{root}/g/a")]), "[[9 9 9]\n [1 2 3]]\n");
    assert!(stderr(&["cat", root, "g"], 1).contains("is a group"));
    assert!(
        stderr(&["cat", root, "g/a", "--item", "x"], 1).contains("only checkpoints have items")
    );
    stderr(&["ls", root], 1);
    stderr(&["verify", root], 1);
}

#[test]
fn doctor_tells_what_a_directory_can_do_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let report = json(&["doctor", path]);
    let findings = report["findings"].as_array().unwrap();
    let of = |name: &str| findings.iter().find(|f| f["name"] == name).unwrap();
    assert_eq!(of("write and read")["outcome"], "yes");
    assert_eq!(of("exclusive create")["outcome"], "yes");
    assert!(stdout(&["doctor", path]).contains("durable save: "));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_reader_that_goes_away_is_no_error_and_no_noise() {
    let (_dir, run) = run();
    let mut child = command(&["cat", &run, "cube", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said), (Some(0), String::new()));
}
