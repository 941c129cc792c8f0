//! The laws as functions from sources to breaches; each breach is a sentence with file, line and law.

use super::source::{Kind, Source, Token};
use super::{
    EMPTY_NAMES, FILE_LINES_MAX, FUNCTION_LINES_MAX, MAIN_LINES_MAX, MANAGER_LINES_MAX, ROOMS,
    SRC_ENTRIES_MAX, STREET, TOP, UNSAFE,
};

/// Drops files that hold test code only: `tests.rs`, `tests/`, and modules behind `#[cfg(test)]`.
pub(crate) fn without_test_files(sources: Vec<Source>) -> Vec<Source> {
    let mut excluded = Vec::new();
    for source in &sources {
        let folder = source.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for module in source.test_modules() {
            excluded.push(format!("{folder}/{module}.rs"));
            excluded.push(format!("{folder}/{module}/"));
        }
    }
    let is_test = |path: &str| {
        path.ends_with("/tests.rs")
            || path.contains("/tests/")
            || excluded.iter().any(|e| path == e || (e.ends_with('/') && path.starts_with(e)))
    };
    sources.into_iter().filter(|source| !is_test(&source.path)).collect()
}

fn in_formats(source: &Source) -> bool {
    source.path.starts_with("formats/")
}

/// The engine's files of one room.
fn is_room(source: &Source, room: &str) -> bool {
    !in_formats(source) && source.room() == room
}

fn opens(room: &str) -> Option<&'static [&'static str]> {
    ROOMS.iter().find(|(name, _)| *name == room).map(|(_, opens)| *opens)
}

/// Returns the room that a path enters, if it enters one.
fn entered(segments: &[String]) -> Option<&str> {
    match segments {
        [base, ..] if base == "milepost_formats" => Some("formats"),
        [base, room, ..] if base == "crate" => {
            ROOMS.iter().map(|(name, _)| *name).find(|name| name == room)
        }
        _ => None,
    }
}

/// A room imports the street and the rooms that [`ROOMS`] lists for it, nothing else.
pub(crate) fn rooms_open_only_what_is_below(sources: &[Source]) -> Vec<String> {
    let mut out = Vec::new();
    for source in sources.iter().filter(|s| !in_formats(s)) {
        let room = source.room();
        if room.is_empty() {
            continue;
        }
        let Some(below) = opens(&room) else {
            out.push(format!(
                "{}:1: room `{room}` is not in the drawing: add it to ROOMS in tests/it/laws/mod.rs",
                source.path
            ));
            continue;
        };
        if room == "cli" {
            continue;
        }
        for path in source.paths() {
            let Some(target) = entered(&path.segments) else { continue };
            if target == room || STREET.contains(&target) || below.contains(&target) {
                continue;
            }
            out.push(format!(
                "{}:{}: `{room}` opens `{target}` (`{}`), but a room opens only the rooms below it: {}",
                source.path,
                path.line,
                path.segments.join("::"),
                if below.is_empty() { "the street".to_owned() } else { below.join(", ") },
            ));
        }
    }
    out
}

/// `store` and `io` move bytes: no word about Zarr, data types or trees, not even in a string.
pub(crate) fn stone_wing_is_blind(sources: &[Source]) -> Vec<String> {
    let is_breach = |token: &&Token| {
        let lower = token.text.to_lowercase();
        match token.kind {
            Kind::Word => {
                lower.contains("zarr")
                    || matches!(
                        token.text.as_str(),
                        "dtype"
                            | "DataType"
                            | "data_type"
                            | "tree"
                            | "KeyPath"
                            | "milepost_formats"
                    )
            }
            Kind::Text => lower.contains("zarr") || lower.contains("dtype"),
            Kind::Sign => false,
        }
    };
    let mut out = Vec::new();
    for source in sources.iter().filter(|s| is_room(s, "store") || is_room(s, "io")) {
        out.extend(source.code().filter(is_breach).map(|token| {
            format!(
                "{}:{}: `{}` names `{}`, but `store` and `io` never know Zarr, data types or the meaning of keys",
                source.path,
                token.line,
                source.room(),
                token.text
            )
        }));
    }
    out
}

/// `chunk`, `codec`, `tree` and formats are pure: no tokio, no files, no network, no clock.
pub(crate) fn glass_wing_is_pure(sources: &[Source]) -> Vec<String> {
    const FORBIDDEN: &[&str] = &[
        "tokio",
        "std::fs",
        "std::net",
        "std::time::SystemTime",
        "std::time::Instant",
        "rustix::fs",
        "object_store",
    ];
    let glass =
        |s: &&Source| in_formats(s) || ["chunk", "codec", "tree"].iter().any(|r| is_room(s, r));
    let mut out = Vec::new();
    for source in sources.iter().filter(glass) {
        for path in source.paths() {
            let written = path.segments.join("::");
            let hit = FORBIDDEN.iter().find(|f| {
                written == **f
                    || written.starts_with(&format!("{f}::"))
                    || (written == "std::time::*" && f.starts_with("std::time"))
            });
            if hit.is_some() {
                out.push(format!(
                    "{}:{}: `{written}`: chunk, codec, tree and formats never touch tokio, files or the clock",
                    source.path, path.line
                ));
            }
        }
    }
    out
}

/// `manager` is policy: `checkpoint` and the street (kept by the drawing), and few lines.
pub(crate) fn manager_is_thin(sources: &[Source]) -> Vec<String> {
    let lines: usize =
        sources.iter().filter(|s| is_room(s, "manager")).map(Source::code_lines).sum();
    if lines <= MANAGER_LINES_MAX {
        return Vec::new();
    }
    vec![format!(
        "src/manager:1: {lines} lines, but the manager is thin: {MANAGER_LINES_MAX} lines at most"
    )]
}

/// `cli` (and `main.rs`) is a door: it may name what the crate root re-exports, never a room.
pub(crate) fn cli_uses_the_public_api(sources: &[Source]) -> Vec<String> {
    let mut out = Vec::new();
    for source in sources.iter().filter(|s| is_room(s, "cli") || s.path == "src/main.rs") {
        for path in source.paths() {
            let in_own_crate = path.segments.first().is_some_and(|s| s == "crate");
            let room = path.segments.get(1).filter(|r| {
                let is_room = ROOMS.iter().any(|(name, _)| name == r) && *r != "cli";
                is_room && (in_own_crate || path.segments[0] == "milepost")
            });
            let formats = path.segments.first().filter(|s| *s == "milepost_formats");
            if let Some(room) = room.or(formats) {
                out.push(format!(
                    "{}:{}: `{}` goes into `{room}`, but the command line uses the public API only: what `src/lib.rs` re-exports",
                    source.path,
                    path.line,
                    path.segments.join("::")
                ));
            }
        }
    }
    for source in sources.iter().filter(|s| s.path == "src/main.rs") {
        if source.code_lines() > MAIN_LINES_MAX {
            out.push(format!(
                "src/main.rs:1: {} lines, but main holds {MAIN_LINES_MAX} at most: logic belongs in the library",
                source.code_lines()
            ));
        }
    }
    out
}

/// `foreign` reads stores; what it writes is published, replaced or deleted by `checkpoint`.
pub(crate) fn foreign_never_commits(sources: &[Source]) -> Vec<String> {
    const VERBS: &[&str] = &["put", "put_new", "rename", "delete", "delete_all", "sync"];
    let mut out = Vec::new();
    for source in sources.iter().filter(|s| is_room(s, "foreign")) {
        let code: Vec<&Token> = source.code().collect();
        for call in code.windows(3) {
            let is_call = call[0].text == "." && call[2].text == "(";
            let verb = call[1].text.as_str();
            if is_call && VERBS.contains(&verb) {
                out.push(format!(
                    "{}:{}: `.{verb}(`: foreign commits only through checkpoint, it never writes to a store itself",
                    source.path, call[1].line
                ));
            }
        }
    }
    out
}

/// Modules are named by the nouns they define.
pub(crate) fn names_say_something(sources: &[Source]) -> Vec<String> {
    let mut out = Vec::new();
    for source in sources {
        let in_path = source.module().into_iter().find(|m| EMPTY_NAMES.contains(&m.as_str()));
        if let Some(name) = in_path {
            out.push(format!(
                "{}:1: a module named `{name}` says nothing: name it by the noun that it defines",
                source.path
            ));
        }
        let code: Vec<&Token> = source.code().collect();
        for inline in code.windows(3) {
            let name = inline[1].text.as_str();
            if inline[0].text == "mod" && inline[2].text == "{" && EMPTY_NAMES.contains(&name) {
                out.push(format!(
                    "{}:{}: a module named `{name}` says nothing: name it by the noun that it defines",
                    source.path, inline[1].line
                ));
            }
        }
    }
    out
}

/// Files and functions fit into a head.
pub(crate) fn files_and_functions_are_short(sources: &[Source]) -> Vec<String> {
    let mut out = Vec::new();
    for source in sources {
        let lines = source.code_lines();
        if lines > FILE_LINES_MAX {
            out.push(format!(
                "{}:1: {lines} lines outside tests, but a file has {FILE_LINES_MAX} at most: divide it by its nouns",
                source.path
            ));
        }
        for function in source.functions().iter().filter(|f| f.lines > FUNCTION_LINES_MAX) {
            out.push(format!(
                "{}:{}: function `{}` has {} lines, but a function has {FUNCTION_LINES_MAX} at most: push `if`s up and `for`s down",
                source.path, function.line, function.name, function.lines
            ));
        }
    }
    out
}

/// `unsafe` is written in the files that are reviewed for it.
pub(crate) fn unsafe_stays_home(sources: &[Source]) -> Vec<String> {
    // A file that became a folder is still the same noun.
    let is_home = |s: &&Source| UNSAFE.contains(&s.path.replace("/mod.rs", ".rs").as_str());
    let mut out = Vec::new();
    for source in sources.iter().filter(|s| !is_home(s)) {
        let words = source.tokens.iter().filter(|t| t.kind == Kind::Word && t.text == "unsafe");
        out.extend(words.map(|t| {
            let home = UNSAFE.join(", ");
            format!("{}:{}: `unsafe` stands only in {home}", source.path, t.line)
        }));
    }
    out
}

/// Errors are returned; `unwrap` is for tests.
pub(crate) fn nothing_unwraps(sources: &[Source]) -> Vec<String> {
    let mut out = Vec::new();
    for source in sources {
        let code: Vec<&Token> = source.code().collect();
        let calls = code
            .windows(4)
            .filter(|w| {
                w[0].text == "." && w[1].text == "unwrap" && w[2].text == "(" && w[3].text == ")"
            })
            .map(|w| w[1].line);
        out.extend(calls.map(|line| {
            format!(
                "{}:{line}: `.unwrap()` outside tests: return an error, or `expect` a broken invariant of ours",
                source.path
            )
        }));
    }
    out
}

/// Nothing new appears at the top of the repository by accident.
pub(crate) fn top_is_known(names: &[String]) -> Vec<String> {
    let unknown = names.iter().filter(|name| !TOP.contains(&name.as_str()));
    let breach = |name| {
        format!(
            "{name}:1: an unknown entry at the top of the repository: it belongs into a folder, or into TOP in tests/it/laws/mod.rs"
        )
    };
    unknown.map(breach).collect()
}

/// `src/` is read at a glance.
pub(crate) fn src_is_small(names: &[String]) -> Vec<String> {
    if names.len() <= SRC_ENTRIES_MAX {
        return Vec::new();
    }
    vec![format!(
        "src:1: {} entries, but src has {SRC_ENTRIES_MAX} at most: a repeated prefix wants to be a folder",
        names.len()
    )]
}
