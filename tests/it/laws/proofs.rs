//! Snippets that break the laws: each law is seen to fail here, and to leave the innocent alone.

use super::checks;
use super::source::Source;

type Law = fn(&[Source]) -> Vec<String>;

#[track_caller]
fn breaks(law: Law, path: &str, text: &str, expected: &str) {
    let breaches = law(&[Source::new(path, text)]);
    assert!(
        breaches.iter().any(|b| b.contains(expected)),
        "no breach with `{expected}` was found in {text:?}: {breaches:?}"
    );
}

#[track_caller]
fn passes(law: Law, path: &str, text: &str) {
    let breaches = law(&[Source::new(path, text)]);
    assert!(breaches.is_empty(), "{breaches:?}");
}

#[test]
fn the_drawing_is_broken_by_every_way_to_name_a_room() {
    let law: Law = checks::rooms_open_only_what_is_below;
    breaks(
        law,
        "src/store/local.rs",
        "use crate::io::Budget;",
        "src/store/local.rs:1: `store` opens `io`",
    );
    breaks(
        law,
        "src/chunk/mod.rs",
        "\nuse crate::{buffer::Buffer, store::{Store as S}};",
        ":2: `chunk` opens `store`",
    );
    breaks(law, "src/io/read.rs", "fn f() { crate::codec::decode(); }", "`io` opens `codec`");
    breaks(
        law,
        "src/io/queue/heap.rs",
        "use super::super::super::array::Array;",
        "`io` opens `array`",
    );
    breaks(law, "src/tree/mod.rs", "pub(crate) use super::array::Array;", "`tree` opens `array`");
    breaks(
        law,
        "src/manager/save.rs",
        "fn f(x: &crate::array::Array) {}",
        "`manager` opens `array`",
    );
    breaks(
        law,
        "src/foreign/mod.rs",
        "use crate::{error::Result, manager};",
        "`foreign` opens `manager`",
    );
    breaks(law, "src/tasks.rs", "use crate::store::Store;", "`tasks` opens `store`");
    breaks(law, "src/attic/mod.rs", "", "`attic` is not in the drawing");
}

#[test]
fn the_drawing_allows_what_is_below_and_whatever_tests_do() {
    let law: Law = checks::rooms_open_only_what_is_below;
    passes(
        law,
        "src/io/read.rs",
        "use crate::{buffer::Buffer, error, store::Store}; use super::queue::Queue;",
    );
    passes(law, "src/checkpoint/mod.rs", "use crate::{array::Array, tree};");
    passes(
        law,
        "src/chunk/grid.rs",
        "// crate::store\n/* use crate::io; */ const A: &str = \"crate::io::X\";",
    );
    passes(law, "src/chunk/grid.rs", "#[cfg(test)]\nmod tests { use crate::store::Store; }");
    passes(law, "src/tree/path.rs", "use super::leaf::Leaf; use milepost_formats::index;");
}

#[test]
fn the_stone_wing_is_broken_by_a_word_or_a_string() {
    let law: Law = checks::stone_wing_is_blind;
    breaks(law, "src/store/object.rs", "const NAME: &str = \"zarr.json\";", "names `zarr.json`");
    breaks(law, "src/io/read.rs", "fn f(kind: DataType) {}", "names `DataType`");
    breaks(law, "src/io/read.rs", "use crate::tree;", "names `tree`");
    breaks(law, "src/io/read.rs", "use zarrs::array::Array;", "names `zarrs`");
    passes(
        law,
        "src/io/read.rs",
        "//! no Zarr here\nuse std::collections::BTreeMap; fn subtree() {}",
    );
    passes(law, "src/io/read.rs", "#[test]\nfn f() { put(\"zarr.json\") }");
    passes(law, "src/array/mod.rs", "fn f(kind: DataType) {}");
}

#[test]
fn the_glass_wing_is_broken_by_tokio_files_and_clocks() {
    let law: Law = checks::glass_wing_is_pure;
    breaks(law, "src/codec/pool.rs", "use tokio::sync::Semaphore;", "`tokio::sync::Semaphore`");
    breaks(law, "src/tree/mod.rs", "use std::{fmt, fs};", "`std::fs`");
    breaks(
        law,
        "src/chunk/mod.rs",
        "use std::{sync::Arc, time::{Duration, Instant}};",
        "`std::time::Instant`",
    );
    breaks(law, "src/chunk/mod.rs", "use std::time::*;", "`std::time::*`");
    breaks(
        law,
        "formats/src/zarr3/mod.rs",
        "fn f() { std::fs::read(\"x\"); }",
        "formats/src/zarr3/mod.rs:1",
    );
    passes(law, "src/chunk/mod.rs", "use std::{fmt, time::Duration};");
    passes(law, "src/store/local.rs", "use std::fs; use std::time::Instant;");
}

#[test]
fn the_manager_is_broken_by_its_1501st_line() {
    let law: Law = checks::manager_is_thin;
    passes(law, "src/manager/mod.rs", &"\n".repeat(1_500));
    breaks(law, "src/manager/mod.rs", &"\n".repeat(1_501), "1501 lines");
    passes(law, "src/checkpoint/mod.rs", &"\n".repeat(1_501));
}

#[test]
fn the_cli_is_broken_by_going_into_a_room() {
    let law: Law = checks::cli_uses_the_public_api;
    breaks(
        law,
        "src/cli/verify.rs",
        "use crate::{Engine, checkpoint::Reader};",
        "goes into `checkpoint`",
    );
    breaks(law, "src/cli/ls.rs", "use super::super::store::Store;", "goes into `store`");
    breaks(
        law,
        "src/cli/ls.rs",
        "use milepost_formats::record::Record;",
        "goes into `milepost_formats`",
    );
    breaks(law, "src/main.rs", &"\n".repeat(31), "31 lines");
    passes(law, "src/cli/ls.rs", "use crate::{Engine, Result, cli::table}; use super::args::Args;");
    passes(law, "src/main.rs", "fn main() -> ExitCode { milepost::cli::run() }");
}

#[test]
fn foreign_is_broken_by_writing_to_a_store() {
    let law: Law = checks::foreign_never_commits;
    breaks(
        law,
        "src/foreign/import.rs",
        "\n store.put_new(key, bytes)",
        "src/foreign/import.rs:2: `.put_new(`",
    );
    breaks(law, "src/foreign/import.rs", "store.put(key, bytes)", "`.put(`");
    breaks(law, "src/foreign/export.rs", "store.rename(a, b, mode)", "`.rename(`");
    breaks(law, "src/foreign/export.rs", "store.put(key, bytes)", "`.put(`");
    passes(law, "src/foreign/import.rs", "store.get(key); checkpoint.commit()");
}

#[test]
fn names_are_broken_by_utils() {
    let law: Law = checks::names_say_something;
    breaks(law, "src/io/utils.rs", "", "a module named `utils`");
    breaks(law, "formats/src/zarr3/common/mod.rs", "", "a module named `common`");
    breaks(law, "src/io/mod.rs", "mod helpers { }", "a module named `helpers`");
    passes(law, "src/io/mod.rs", "mod queue; use core::fmt;");
}

#[test]
fn lengths_are_broken_by_long_files_and_functions_but_not_by_tests() {
    let law: Law = checks::files_and_functions_are_short;
    breaks(law, "src/io/read.rs", &"\n".repeat(601), "601 lines outside tests");
    let inner = "    let x = 1;\n".repeat(69);
    breaks(
        law,
        "src/io/read.rs",
        &format!("pub fn long(a: [u8; 3]) -> u8\n{{\n{inner}}}\n"),
        "`long` has 72 lines",
    );
    passes(law, "src/io/read.rs", &format!("fn fits() {{\n{}}}\n", "    let x = 1;\n".repeat(68)));
    let tests = format!("#[cfg(test)]\nmod tests {{\nfn long() {{\n{}}}\n}}\n", "\n".repeat(700));
    passes(law, "src/io/read.rs", &tests);
    let braces =
        format!("fn f() {{ let s = \"}}\"; let c = '{{'; }}\nfn g() {{}}\n{}", "\n".repeat(100));
    passes(law, "src/io/read.rs", &braces);
}

#[test]
fn unsafe_is_broken_outside_its_home() {
    let law: Law = checks::unsafe_stays_home;
    breaks(law, "src/io/read.rs", "\n\nunsafe { x() }", "src/io/read.rs:3");
    breaks(law, "formats/src/lib.rs", "unsafe fn f() {}", "formats/src/lib.rs:1");
    passes(law, "src/buffer.rs", "unsafe { x() }");
    passes(law, "src/chunk/scatter/mod.rs", "unsafe { x() }");
    breaks(law, "src/chunk/scatter/copy.rs", "unsafe { x() }", "src/chunk/scatter/copy.rs:1");
    passes(law, "src/io/read.rs", "//! unsafe\n#![deny(unsafe_code)] const S: &str = \"unsafe\";");
}

#[test]
fn unwraps_are_broken_outside_tests_only() {
    let law: Law = checks::nothing_unwraps;
    breaks(law, "src/io/read.rs", "fn f() { x\n  .unwrap() }", "src/io/read.rs:2");
    breaks(law, "src/io/read.rs", "#[cfg(not(test))] fn f() { x.unwrap() }", "src/io/read.rs:1");
    passes(law, "src/io/read.rs", "fn f() { x.unwrap_or(1).unwrap_or_default() } // .unwrap()");
    passes(law, "src/io/read.rs", "#[cfg(test)] mod tests { fn f() { x.unwrap() } }");
}

#[test]
fn files_behind_cfg_test_are_no_part_of_the_house() {
    let sources = vec![
        Source::new("src/store/mod.rs", "mod local;\n#[cfg(test)]\nmod judge;"),
        Source::new("src/store/judge.rs", "fn f() { x.unwrap() }"),
        Source::new("src/store/tests.rs", "fn f() { x.unwrap() }"),
        Source::new("src/store/local.rs", "fn f() { x.unwrap() }"),
    ];
    let kept = checks::without_test_files(sources);
    let paths: Vec<&str> = kept.iter().map(|s| s.path.as_str()).collect();
    assert_eq!(paths, ["src/store/mod.rs", "src/store/local.rs"]);
}

#[test]
fn the_top_is_broken_by_an_unknown_entry_and_src_by_its_21st() {
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert!(checks::top_is_known(&names(&["src", "Cargo.toml", "LICENSE"])).is_empty());
    assert!(checks::top_is_known(&names(&["src", "notes.txt"]))[0].starts_with("notes.txt:1:"));
    assert!(checks::src_is_small(&vec![String::new(); 20]).is_empty());
    assert!(checks::src_is_small(&vec![String::new(); 21])[0].contains("21 entries"));
}
