//! Processes that save one step together, some of which are killed, or stopped and continued, at a point.
//!
//! The child (this binary again, at the ignored test `child`) is one participant; it says what it came to on standard
//! output. What does not end is killed and fails the test: every side has to have a result or an error in bounded time.

use super::{
    job::{RENAMES, participate},
    stages::{Finder, Point, STAGES},
};
use rustix::process::{Pid, Signal, getpid, kill_process};
use std::{
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const RUN: &str = "MILEPOST_MANY_RUN";
const KIND: &str = "MILEPOST_MANY_KIND";
const SESSION: &str = "MILEPOST_MANY_SESSION";
/// Index, count, generation, deadline in milliseconds, and the point and what happens there, by blanks.
const TASK: &str = "MILEPOST_MANY_TASK";
/// Far above every deadline that a participant is given: a process that is still there hangs.
const HANGS: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(5);

#[test]
#[ignore = "the child of the kill harness"]
fn child() {
    let Ok(run) = std::env::var(RUN) else { return };
    let text = |name| std::env::var(name).unwrap();
    let (task, session) = (text(TASK), text(SESSION));
    let words: Vec<&str> = task.split(' ').collect();
    let [index, count, generation, deadline, hit] = words[..] else { panic!("{task}") };
    let number = |word: &str| word.parse::<u64>().unwrap();
    let index = usize::try_from(number(index)).unwrap();
    let (what, point) = hit.split_at(1);
    let point = point.strip_prefix('s').map_or_else(
        || Point::Change(number(&point[1..])),
        |stage| Point::Stage(stage.parse().unwrap()),
    );
    let mut finder =
        (what != "-").then(|| Finder::new(point, &session, (index, text(KIND) == RENAMES)));
    let stops = what == "Z";
    let at = move |operation: &milepost::Operation| {
        let Some(finder) = &mut finder else { return };
        if !finder.is_now(operation) {
            return;
        }
        println!("\nhit {:?} {}", operation.verb, operation.key);
        if stops {
            return kill_process(getpid(), Signal::STOP).unwrap();
        }
        kill_process(getpid(), Signal::KILL).unwrap();
        std::thread::sleep(Duration::from_mins(1));
    };
    let saved = participate(
        (&text(KIND), Path::new(&run)),
        (&session, (index, usize::try_from(number(count)).unwrap())),
        (number(generation), Duration::from_millis(number(deadline))),
        at,
    );
    match saved {
        Ok(_) => println!("\nsaved"),
        Err(error) => println!("\nfailed {error:?}"),
    }
}

/// What happens to a victim, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hit {
    KilledAt(Point),
    StoppedAt(Point),
    /// Killed by the parent, so long after all were started.
    KilledAfter(Duration),
}

impl Hit {
    pub(crate) fn point(self) -> Option<Point> {
        match self {
            Self::KilledAt(point) | Self::StoppedAt(point) => Some(point),
            Self::KilledAfter(_) => None,
        }
    }

    /// Says in one word what happens to a child.
    fn word(self) -> String {
        let point = |point| match point {
            Point::Change(n) => format!("c{n}"),
            Point::Stage(stage) => format!("s{stage}"),
        };
        match self {
            Self::KilledAt(at) => format!("K{}", point(at)),
            Self::StoppedAt(at) => format!("Z{}", point(at)),
            Self::KilledAfter(_) => "-c0".to_owned(),
        }
    }

    pub(crate) fn name(self) -> String {
        match self.point() {
            Some(Point::Stage(stage)) => STAGES[stage].name.to_owned(),
            Some(Point::Change(_)) => "(each change in turn)".to_owned(),
            None => "(a random instant)".to_owned(),
        }
    }
}

/// One save by several processes, one or more of which are to be hit.
#[derive(Debug)]
pub(crate) struct Case<'a> {
    pub(crate) kind: &'a str,
    pub(crate) run: &'a Path,
    pub(crate) count: usize,
    pub(crate) generation: u64,
    pub(crate) victims: Vec<(usize, Hit)>,
    pub(crate) deadline: Duration,
}

/// What a participant came to.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) said: Said,
    pub(crate) hit: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Saved,
    Failed(String),
    Nothing,
}

/// A child that is killed and waited for when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Case<'_> {
    fn spawn(&self, index: usize) -> Running {
        let (generation, deadline) = (self.generation, self.deadline.as_millis());
        let hit = self.victims.iter().find(|(victim, _)| *victim == index);
        let hit = hit.map_or_else(|| "-c0".to_owned(), |(_, hit)| hit.word());
        let task = format!("{index} {} {generation} {deadline} {hit}", self.count);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "many::victims::child", "--ignored", "--nocapture"]);
        command.env(RUN, self.run).env(KIND, self.kind).env(TASK, task);
        command.env(SESSION, format!("generation-{generation}"));
        Running(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn hit_of(&self, index: usize) -> Option<Hit> {
        self.victims.iter().find(|(victim, _)| *victim == index).map(|(_, hit)| *hit)
    }

    fn is_stopped(&self, index: usize) -> bool {
        matches!(self.hit_of(index), Some(Hit::StoppedAt(_)))
    }

    /// Runs all; whoever was stopped goes on when the others have ended.
    pub(crate) fn run(&self) -> Vec<End> {
        let began = Instant::now();
        let mut children: Vec<Running> = (0..self.count).map(|index| self.spawn(index)).collect();
        for (index, hit) in &self.victims {
            if let Hit::KilledAfter(delay) = hit {
                std::thread::sleep(delay.saturating_sub(began.elapsed()));
                children[*index].0.kill().unwrap();
            }
        }
        let stops: Vec<usize> = (0..self.count).filter(|index| self.is_stopped(*index)).collect();
        for (index, child) in children.iter_mut().enumerate() {
            if !stops.contains(&index) {
                self.wait(child, || {});
            }
        }
        for index in stops {
            let pid = Pid::from_child(&children[index].0);
            // Again and again: a victim that is slow may come to its point, and stop, only after the others have ended.
            // The child is not waited for yet: the id is its own.
            self.wait(&mut children[index], || kill_process(pid, Signal::CONT).unwrap());
        }
        children.iter_mut().map(end).collect()
    }

    /// Waits until a child ends; before each look it does `wake`.
    fn wait(&self, child: &mut Running, wake: impl Fn()) {
        let began = Instant::now();
        while child.0.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < HANGS, "a process hangs: {self:?}");
            wake();
            std::thread::sleep(POLL);
        }
    }
}

/// Reads what a child that has ended said: little, so that it never waited for a reader.
fn end(child: &mut Running) -> End {
    let mut text = String::new();
    child.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    let line = text.lines().find(|line| line.starts_with("saved") || line.starts_with("failed"));
    let said = match line {
        Some("saved") => Said::Saved,
        Some(line) => Said::Failed(line.to_owned()),
        None => Said::Nothing,
    };
    End { said, hit: text.lines().any(|line| line.starts_with("hit ")) }
}
