//! The stages of a save of many, by name, as operations of one participant on the store.
//!
//! ```text
//!   declares ─ agrees ─┬─ begins the attempt ─ announces ─┬─ writes ─ half written ─ puts its part ─ has met
//!                      └─ hears of the attempt ───────────┘
//!   ─┬─ takes the directory ─ lists the parts ─ reads a part ─ writes the index ─ commits ─ tells ─ sweeps   (founder)
//!    └─ hears the outcome                                                                                    (others)
//! ```
//! A stage is the instant before an operation, or that before the next one after it.

use super::job::RENAMES;
use milepost::{Operation, Verb};

/// Who comes to a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Founder,
    Others,
    Everybody,
}

/// One named instant of a save.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    pub(crate) who: Who,
    /// Whether it is the operation, given the session and the index of the participant.
    is: fn(&Operation, &str, usize) -> bool,
    /// The stage is reached at its so-many-th such operation, from 1.
    nth: u64,
    /// It is reached at the operation after that.
    after: bool,
    /// On a directory the step that is replaced refuses the first such operation; the second one exchanges.
    refused_first: bool,
    /// Whether only a run with renames has it.
    of_directories: bool,
}

impl Stage {
    const fn of(
        name: &'static str,
        who: Who,
        is: fn(&Operation, &str, usize) -> bool,
        (nth, after): (u64, bool),
    ) -> Self {
        Self { name, who, is, nth, after, refused_first: false, of_directories: false }
    }

    const fn of_directories(self) -> Self {
        Self { of_directories: true, ..self }
    }

    pub(crate) fn is_at(&self, kind: &str) -> bool {
        !self.of_directories || kind == RENAMES
    }

    const fn refused_first(self) -> Self {
        Self { refused_first: true, ..self }
    }

    pub(crate) fn is_of(&self, index: usize) -> bool {
        match self.who {
            Who::Everybody => true,
            Who::Founder => index == 0,
            Who::Others => index > 0,
        }
    }
}

/// The part of the key below the run's parts, where it is there.
fn part_key(operation: &Operation) -> Option<&str> {
    operation.key.split_once(".milepost/parts/").map(|(_, rest)| rest)
}

fn says(operation: &Operation, session: &str, round: &str, index: usize) -> bool {
    let value = part_key(operation).and_then(|key| key.strip_prefix(session));
    operation.verb == Verb::PutNew && value == Some(&format!("/0-{round}/{index}"))
}

fn hears(operation: &Operation, session: &str, round: &str) -> bool {
    let value = part_key(operation).and_then(|key| key.strip_prefix(session));
    operation.verb == Verb::Get && value == Some(&format!("/0-{round}/0"))
}

/// The key below the parts of an attempt, which is named by 32 digits.
fn of_attempt<'a>(operation: &'a Operation, session: &str) -> Option<&'a str> {
    let (attempt, rest) = part_key(operation)?.split_at_checked(32)?;
    let plain = attempt.bytes().all(|b| b.is_ascii_hexdigit());
    (plain && !attempt.starts_with(session)).then_some(rest)
}

fn begins(operation: &Operation, _: &str, _: usize) -> bool {
    let claims = operation.verb == Verb::PutNew && operation.key.ends_with("/_milepost/zarr.json");
    claims || operation.verb.changes() && operation.key.contains(".milepost/tmp/")
}

fn writes(operation: &Operation, _: &str, _: usize) -> bool {
    let object = operation.key.contains("/state/") || operation.key.contains("/iterator-");
    let writes = matches!(operation.verb, Verb::Put | Verb::PutNew | Verb::WriteAt | Verb::Finish);
    writes && object && !operation.key.contains("/_milepost/")
}

fn indexes(operation: &Operation, _: &str, _: usize) -> bool {
    operation.verb.changes() && operation.key.contains("/_milepost/state/")
}

/// Whoever finalises first gives the attempt's directory a name of its own.
fn takes(operation: &Operation, session: &str, index: usize) -> bool {
    let attempt = operation.verb == Verb::Rename && operation.key.contains(".milepost/tmp/");
    attempt && !commits(operation, session, index)
}

fn commits(operation: &Operation, _: &str, index: usize) -> bool {
    let path = format!("/{}", operation.key);
    let record = operation.verb == Verb::PutNew
        && path.ends_with("/zarr.json")
        && !path.contains("/_milepost/")
        && !path.contains("/.milepost/")
        && !path.contains("/state/");
    // On a directory, a checkpoint that is replaced changes places with the attempt, under the name that this one gave it.
    record
        || operation.verb == Verb::Rename
            && operation.key.contains(".milepost/tmp/")
            && operation.key.ends_with(&format!("-{index}"))
}

fn is_part(operation: &Operation, session: &str, index: usize) -> bool {
    of_attempt(operation, session) == Some(&format!("/{index}"))
}

/// Every stage; the number of one is its place here.
pub(crate) const STAGES: &[Stage] = &[
    Stage::of("declares", Who::Everybody, |o, s, i| says(o, s, "declare", i), (1, false)),
    Stage::of("has declared", Who::Everybody, |o, s, i| says(o, s, "declare", i), (1, true)),
    Stage::of("agrees", Who::Everybody, |o, s, i| says(o, s, "agree", i), (1, false)),
    Stage::of("has agreed", Who::Everybody, |o, s, i| says(o, s, "agree", i), (1, true)),
    Stage::of("begins the attempt", Who::Founder, begins, (1, false)),
    Stage::of("has begun the attempt", Who::Founder, begins, (1, true)),
    Stage::of("announces", Who::Founder, |o, s, i| says(o, s, "attempt", i), (1, false)),
    Stage::of("has announced", Who::Founder, |o, s, i| says(o, s, "attempt", i), (1, true)),
    Stage::of("hears of the attempt", Who::Others, |o, s, _| hears(o, s, "attempt"), (1, true)),
    Stage::of("writes", Who::Everybody, writes, (1, false)),
    Stage::of("half written", Who::Everybody, writes, (2, false)),
    Stage::of(
        "puts its part",
        Who::Everybody,
        |o, s, i| o.verb == Verb::PutNew && is_part(o, s, i),
        (1, false),
    ),
    Stage::of("has put its part", Who::Everybody, |o, s, i| says(o, s, "written", i), (1, false)),
    Stage::of("has met", Who::Everybody, |o, s, i| says(o, s, "written", i), (1, true)),
    Stage::of("takes the directory", Who::Founder, takes, (1, false)).of_directories(),
    Stage::of("has taken the directory", Who::Founder, takes, (1, true)).of_directories(),
    Stage::of(
        "lists the parts",
        Who::Founder,
        |o, s, _| o.verb == Verb::List && of_attempt(o, s) == Some(""),
        (1, false),
    ),
    Stage::of(
        "reads a part",
        Who::Founder,
        |o, s, i| matches!(o.verb, Verb::Get | Verb::Read) && is_part(o, s, i),
        (1, false),
    ),
    Stage::of("writes the index", Who::Founder, indexes, (1, false)),
    Stage::of("has written the index", Who::Founder, indexes, (1, true)),
    Stage::of("is about to commit", Who::Founder, commits, (1, false)),
    Stage::of("commits", Who::Founder, commits, (1, false)).refused_first(),
    Stage::of("has committed", Who::Founder, commits, (1, true)).refused_first(),
    Stage::of("tells the outcome", Who::Founder, |o, s, i| says(o, s, "outcome", i), (1, false)),
    Stage::of("has told the outcome", Who::Founder, |o, s, i| says(o, s, "outcome", i), (1, true)),
    Stage::of("hears the outcome", Who::Others, |o, s, _| hears(o, s, "outcome"), (1, true)),
    Stage::of(
        "sweeps the parts",
        Who::Founder,
        |o, s, _| matches!(o.verb, Verb::Delete | Verb::DeleteAll) && of_attempt(o, s).is_some(),
        (1, false),
    ),
];

/// Where a participant is hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// Before its n-th operation that can change what is stored.
    Change(u64),
    /// By its place in [`STAGES`].
    Stage(usize),
}

/// Finds a point among the operations of a participant; it is there once.
#[derive(Debug)]
pub(crate) struct Finder {
    point: Point,
    session: String,
    index: usize,
    /// Whether the run is a directory, whose steps are renamed.
    directory: bool,
    seen: u64,
}

impl Finder {
    pub(crate) fn new(point: Point, session: &str, (index, directory): (usize, bool)) -> Self {
        Self { point, session: session.to_owned(), index, directory, seen: 0 }
    }

    /// Tells whether the point is just before `operation`.
    pub(crate) fn is_now(&mut self, operation: &Operation) -> bool {
        let stage = match self.point {
            Point::Change(n) => return operation.verb.changes() && operation.nth_change == n,
            Point::Stage(stage) => &STAGES[stage],
        };
        let nth = stage.nth + u64::from(self.directory && stage.refused_first);
        let over = self.seen == nth;
        self.seen += u64::from(over || (stage.is)(operation, &self.session, self.index));
        if stage.after { over && self.seen == nth + 1 } else { !over && self.seen == nth }
    }
}
