//! The laws of the house, kept as tests that fail with a sentence.
//!
//! Each law is a pure function from sources to breaches ([`checks`]); here they run over the repository, and
//! [`proofs`] runs them over snippets that break them, so that no law can rot into one that never fails.
//!
//! A new room is one line in [`ROOMS`]. Where the work shows a better drawing, change the table and the design
//! together and say why in `spec/decisions`.

mod checks;
mod proofs;
mod source;

use source::Source;
use std::path::{Path, PathBuf};

/// The street: every room may use it; it uses nothing but itself and the formats crate.
pub(crate) const STREET: &[&str] =
    &["error", "dtype", "clock", "metrics", "policy", "tasks", "buffer", "formats"];

/// The rooms, and what each opens besides the street. `formats` is the crate `milepost_formats`.
pub(crate) const ROOMS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("dtype", &[]),
    ("clock", &[]),
    ("metrics", &[]),
    ("policy", &[]),
    ("tasks", &[]),
    ("buffer", &[]),
    ("store", &[]),
    ("chunk", &[]),
    ("tree", &[]),
    ("io", &["store"]),
    ("codec", &["chunk"]),
    ("array", &["io", "codec", "store", "chunk"]),
    ("checkpoint", &["array", "tree", "io", "codec", "store", "chunk"]),
    ("manager", &["checkpoint"]),
    ("foreign", &["checkpoint", "array", "tree", "io", "codec", "store", "chunk"]),
    ("cli", &[]),
];

/// What may stand at the top of the repository (hidden entries and build output aside).
pub(crate) const TOP: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "src",
    "formats",
    "tests",
    "benches",
    "spec",
    "python",
    "examples",
    "proptest-regressions",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
];

/// Where `unsafe` may be written.
pub(crate) const UNSAFE: &[&str] = &[
    "src/buffer.rs",
    "src/chunk/scatter.rs",
    "src/codec/blosc.rs",
    "src/store/map.rs",
    "python/src/array.rs",
    "python/src/engine.rs",
    "python/src/leaf.rs",
    "python/src/wait.rs",
];

/// Module names that say nothing.
pub(crate) const EMPTY_NAMES: &[&str] =
    &["utils", "util", "helpers", "helper", "common", "misc", "core", "types"];

pub(crate) const FILE_LINES_MAX: usize = 600;
pub(crate) const FUNCTION_LINES_MAX: usize = 70;
pub(crate) const MAIN_LINES_MAX: usize = 30;
pub(crate) const MANAGER_LINES_MAX: usize = 1_500;
pub(crate) const SRC_ENTRIES_MAX: usize = 20;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Reads every source of the engine and of formats that is not test code as a whole.
fn sources() -> Vec<Source> {
    read(&["src", "formats/src"])
}

/// Reads the sources of the engine, of formats and of the Python doors.
fn all_sources() -> Vec<Source> {
    read(&["src", "formats/src", "python/src"])
}

fn read(folders: &[&str]) -> Vec<Source> {
    let mut files = Vec::new();
    for folder in folders {
        collect(&root().join(folder), &mut files);
    }
    files.sort();
    assert!(files.len() > 5, "the sources were not found below {}", root().display());
    let sources = files.iter().map(|file| {
        let text = std::fs::read_to_string(file).expect("a source file is readable UTF-8");
        let path = file.strip_prefix(root()).expect("collected below the root");
        Source::new(&path.to_string_lossy(), &text)
    });
    checks::without_test_files(sources.collect())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a source folder is readable") {
        let path = entry.expect("a folder entry is readable").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// Lists the entries of a folder: what git tracks where this is a checkout, else all that is not hidden.
fn entries(folder: &Path) -> Vec<String> {
    let git = std::process::Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "."])
        .current_dir(folder)
        .output();
    let mut names: Vec<String> = match git {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.lines().filter_map(|l| l.split('/').next()).map(ToOwned::to_owned).collect()
        }
        _ => std::fs::read_dir(folder)
            .expect("the folder is readable")
            .map(|e| e.expect("readable").file_name().to_string_lossy().into_owned())
            .filter(|name| name != "target")
            .collect(),
    };
    names.retain(|name| !name.starts_with('.') && !name.starts_with('"'));
    names.sort();
    names.dedup();
    names
}

#[track_caller]
fn keep(breaches: &[String]) {
    assert!(breaches.is_empty(), "\n{}\n", breaches.join("\n"));
}

#[test]
fn a_room_opens_only_rooms_below_it() {
    keep(&checks::rooms_open_only_what_is_below(&sources()));
}

#[test]
fn store_and_io_never_know_zarr_dtypes_or_the_meaning_of_keys() {
    keep(&checks::stone_wing_is_blind(&sources()));
}

#[test]
fn chunk_codec_tree_and_formats_never_touch_tokio_files_or_the_clock() {
    keep(&checks::glass_wing_is_pure(&sources()));
}

#[test]
fn the_manager_stays_thin() {
    keep(&checks::manager_is_thin(&sources()));
}

#[test]
fn the_cli_uses_the_public_api_only() {
    keep(&checks::cli_uses_the_public_api(&sources()));
}

#[test]
fn foreign_commits_only_through_checkpoint() {
    keep(&checks::foreign_never_commits(&sources()));
}

#[test]
fn names_of_modules_say_something() {
    keep(&checks::names_say_something(&sources()));
}

#[test]
fn files_and_functions_stay_short() {
    keep(&checks::files_and_functions_are_short(&all_sources()));
}

#[test]
fn unsafe_code_stays_in_its_files() {
    keep(&checks::unsafe_stays_home(&all_sources()));
}

#[test]
fn nothing_unwraps_outside_tests() {
    keep(&checks::nothing_unwraps(&all_sources()));
}

#[test]
fn the_top_of_the_repository_and_of_src_stay_legible() {
    keep(&checks::top_is_known(&entries(root())));
    keep(&checks::src_is_small(&entries(&root().join("src"))));
}
