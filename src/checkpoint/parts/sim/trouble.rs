//! What can happen to a participant, drawn from the seed.

use super::executor::Core;
use std::time::Duration;

/// Where a crash or a stop comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trigger {
    /// At the n-th poll of any task of the process.
    Poll(u64),
    /// At the n-th operation that takes, commits or ends an attempt: with renames, whoever finalises does up to three.
    Decision(u64, Phase),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Before,
    Done,
    Answered,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    Crash,
    Pause(Duration),
}

/// How a participant's store and network are, in thousandths of its operations.
#[derive(Clone, Debug, Default)]
pub(super) struct Weather {
    /// The longest usual delay of a request, in microseconds; 0 where nothing takes time.
    pub(super) delay: u64,
    pub(super) slow: u64,
    pub(super) fail: u64,
    /// The effect happens, the answer is lost.
    pub(super) lose: u64,
    pub(super) duplicate: u64,
    /// No answer for up to two minutes.
    pub(super) hang: u64,
    /// A listing of parts or values that is out of date.
    pub(super) stale: u64,
    /// While the store cannot be reached.
    pub(super) outage: Option<(Duration, Duration)>,
    /// Messages of the launcher.
    pub(super) late: u64,
    pub(super) lost: u64,
    pub(super) twice: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Trouble {
    pub(super) acts: Vec<(Trigger, Act)>,
    pub(super) weather: Weather,
    /// A second process with the same index comes so much later than the beginning.
    pub(super) twin: Option<Duration>,
}

impl Trouble {
    /// Nothing but delays.
    pub(super) fn calm(core: &Core) -> Self {
        let delay = [500, 5_000, 20_000, 200_000][index(core, 4)];
        let stale = if core.chance(200) { 100 } else { 0 };
        let weather = Weather { delay, stale, ..Weather::default() };
        Self { weather, ..Self::default() }
    }

    pub(super) fn draw(core: &Core) -> Self {
        let mut trouble = Self::calm(core);
        let weather = &mut trouble.weather;
        match core.below(16) {
            0..=2 => trouble.acts.push((trigger(core), Act::Crash)),
            3..=4 => trouble.acts.push((trigger(core), Act::Pause(pause(core)))),
            5 => {
                trouble.acts.push((trigger(core), Act::Pause(pause(core))));
                trouble.acts.push((trigger(core), Act::Crash));
            }
            6 => weather.fail = 30,
            7 => weather.lose = 60,
            8 => weather.duplicate = 200,
            9 => {
                let from = core.now() + core.micros(0, 3_000_000);
                weather.outage = Some((from, from + core.micros(1_000, 90_000_000)));
            }
            10 => (weather.hang, weather.slow) = (15, 50),
            11 => (weather.late, weather.twice) = (200, 100),
            12 => weather.lost = 80,
            13 => {
                (weather.fail, weather.lose, weather.duplicate) = (5, 10, 30);
                (weather.hang, weather.slow) = (4, 20);
                (weather.late, weather.lost) = (20, 10);
            }
            _ => {}
        }
        if core.chance(if trouble.acts.is_empty() { 10 } else { 250 }) {
            trouble.twin = Some(core.micros(1_000, 30_000_000));
        }
        trouble
    }
}

impl Trouble {
    /// One finaliser stops where it commits until it is taken for dead, and wakes up when its successor is at the same.
    pub(super) fn duel(core: &Core, index: usize) -> Self {
        let mut trouble = Self::calm(core);
        trouble.weather.duplicate = if core.chance(300) { 200 } else { 0 };
        let (before, after) = (decision(core, Phase::Before), decision(core, Phase::Done));
        let long = || Act::Pause(core.micros(55_000_000, 300_000_000));
        let act = match (index, core.below(3)) {
            (0, _) => (before, long()),
            (_, 0) => (after, Act::Crash),
            (_, 1) => (after, long()),
            _ => return trouble,
        };
        trouble.acts.push(act);
        trouble
    }

    /// The first `heirs` die one after the other where they make the step visible; the others have no trouble.
    pub(super) fn succession(core: &Core, (index, heirs): (usize, usize)) -> Self {
        let mut trouble = Self::calm(core);
        if index < heirs {
            trouble.acts.push((decision(core, phase(core)), Act::Crash));
        }
        trouble
    }
}

fn phase(core: &Core) -> Phase {
    [Phase::Before, Phase::Done, Phase::Answered][index(core, 3)]
}

fn decision(core: &Core, phase: Phase) -> Trigger {
    Trigger::Decision(1 + core.below(3), phase)
}

fn index(core: &Core, count: u64) -> usize {
    usize::try_from(core.below(count)).unwrap()
}

fn trigger(core: &Core) -> Trigger {
    match core.below(4) {
        0 => decision(core, phase(core)),
        1 => Trigger::Poll(1 + core.below(300)),
        _ => Trigger::Poll(1 + core.below(120)),
    }
}

fn pause(core: &Core) -> Duration {
    let most = [1_000_000, 20_000_000, 90_000_000, 400_000_000][index(core, 4)];
    core.micros(1_000, most)
}
