//! `milepost bench` as a user runs it: small loads, every output, nothing left behind.

use serde_json::Value;
use std::{path::Path, process::Command};

fn bench(dir: &Path, args: &[&str]) -> (String, bool) {
    let output = Command::new(env!("CARGO_BIN_EXE_milepost"))
        .arg("bench")
        .args(args)
        .current_dir(dir)
        .output()
        .expect("the binary runs");
    let text = String::from_utf8(output.stdout).expect("output is UTF-8");
    (text, output.status.success())
}

fn rows(text: &str) -> Vec<Value> {
    let value: Value = serde_json::from_str(text).expect("one JSON object");
    value["rows"].as_array().expect("rows").clone()
}

#[test]
fn a_checkpoint_is_measured_beside_its_ceiling_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    for url in ["memory://it-bench/x", "new/place"] {
        let tiny = ["checkpoint", url, "--state", "1MiB", "--repeat", "1", "--json"];
        let (text, ok) = bench(dir.path(), &tiny);
        assert!(ok, "{text}");
        let rows = rows(&text);
        let operations: Vec<_> = rows.iter().map(|r| r["operation"].as_str().unwrap()).collect();
        assert_eq!(operations, ["save", "restore cold", "restore warm", "one parameter"]);
        for row in &rows {
            assert_eq!(row["bytes"], 1 << 20);
            for column in ["median_ms", "MB/s", "ceiling_MB/s", "ratio"] {
                assert!(row[column].as_f64().is_some_and(|x| x > 0.0), "{column} of {row}");
            }
        }
        let stages = rows[0]["stages_ms"].as_object().unwrap();
        assert!(stages.contains_key("write") && stages.contains_key("publish"), "{stages:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it cleans up");
    }
}

#[test]
fn several_values_are_swept_and_printed_as_csv_or_an_aligned_table() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["checkpoint", ".", "--state", "2MiB", "--repeat", "1", "--codec", "none,zstd:1"];
    let sweep = ["--chunk-bytes", "256KiB,1MiB", "--budget", "8MiB,16MiB"];
    let (csv, ok) = bench(dir.path(), &[&args[..], &sweep, &["--csv"]].concat());
    assert!(ok, "{csv}");
    let lines: Vec<_> = csv.lines().collect();
    assert_eq!(lines.len(), 1 + 2 * 2 * 2 * 4);
    assert!(lines[0].starts_with("state,codec,chunk,budget,operation,bytes,"));
    assert!(lines[1].starts_with("2MiB,none,262144,8388608,save,2097152,"), "{}", lines[1]);
    let (table, ok) = bench(dir.path(), &args);
    assert!(ok, "{table}");
    let at: Vec<_> =
        table.lines().take(3).map(|line| line.find("save").or(line.find("oper"))).collect();
    assert_eq!(at[0], at[1], "{table}");
}

#[test]
fn chunks_of_several_places_make_one_table() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("there")).unwrap();
    let places = ["chunks", "there", "memory://it-bench/chunks", "--total", "1MiB"];
    let how = ["--chunk-bytes", "256KiB,64KiB", "--concurrency", "2", "--codec", "none", "--json"];
    let (text, ok) = bench(dir.path(), &[&places[..], &how].concat());
    assert!(ok, "{text}");
    let rows = rows(&text);
    assert_eq!(rows.len(), 2 * 2 * 7);
    for row in &rows {
        assert!(row["MB/s"].as_f64().is_some_and(|x| x > 0.0), "{row}");
        assert!(row["p50_ms"].as_f64() <= row["p99_ms"].as_f64(), "{row}");
        assert!(row["requests"].as_u64().is_some_and(|n| n > 0), "{row}");
    }
    let left = std::fs::read_dir(dir.path().join("there")).unwrap().count();
    assert_eq!(left, 0, "the directory stays, what the benchmark made does not");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["checkpoint", ".", "--state", "gpt5"][..],
        &["checkpoint", ".", "--state", "1MiB", "--repeat", "0"],
        &["checkpoint", ".", "--state", "900TiB"],
        &["chunks", ".", "--chunk-bytes", "10"],
        &["chunks", ".", "--chunk-bytes", "1MiB", "--total", "512KiB"],
        &["chunks"],
    ] {
        let (text, ok) = bench(dir.path(), args);
        assert!(!ok && text.is_empty(), "{args:?}: {text}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
