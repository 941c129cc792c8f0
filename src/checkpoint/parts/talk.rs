//! What participants say to each other in a save: a value, or why they cannot go on.
//!
//! **Invariant:** a participant that fails still comes to the next round and says so: the others know at once.

use super::{
    plan::named,
    rendezvous::{Rendezvous, timed_out, within},
};
use crate::{
    clock::Clock,
    error::{Error, ErrorKind, Result},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The round in which managers learn whether a step is due; a save may be under way meanwhile.
pub(super) const DUE: &str = "due";
pub(super) const DECIDE: &str = "decide";
pub(super) const GATHER: &str = "gather";

/// Tells whether a round may be held while those of a save go on.
pub(super) fn is_beside(round: &str) -> bool {
    round.rsplit('-').next().is_some_and(|name| [DUE, DECIDE, GATHER].contains(&name))
}

/// The rounds of one save.
pub(super) struct Talk<'a> {
    rendezvous: &'a dyn Rendezvous,
    clock: &'a dyn Clock,
    /// Which save of the rendezvous it is.
    turn: u64,
    deadline: Duration,
}

/// An error as it is told to others.
#[derive(Serialize, Deserialize)]
struct Told {
    kind: String,
    message: String,
}

const KINDS: [ErrorKind; 10] = [
    ErrorKind::NotFound,
    ErrorKind::AlreadyExists,
    ErrorKind::Conflict,
    ErrorKind::Unavailable,
    ErrorKind::Corrupt,
    ErrorKind::Unsupported,
    ErrorKind::Invalid,
    ErrorKind::Timeout,
    ErrorKind::Cancelled,
    ErrorKind::Internal,
];

/// So much longer than its deadline, and a quarter of it, a rendezvous may take.
const GRACE: Duration = Duration::from_secs(10);

const GOOD: u8 = 0;
const BAD: u8 = 1;

fn frame(result: &Result<Vec<u8>>) -> Bytes {
    match result {
        Ok(value) => [&[GOOD], value.as_slice()].concat().into(),
        Err(error) => {
            let told = Told { kind: format!("{:?}", error.kind()), message: error.to_string() };
            let json = serde_json::to_vec(&told).unwrap_or_default();
            [&[BAD], json.as_slice()].concat().into()
        }
    }
}

fn unframe(participant: usize, frame: &Bytes) -> Result<Bytes> {
    match frame.first() {
        Some(&GOOD) => Ok(frame.slice(1..)),
        Some(&BAD) => {
            let told = serde_json::from_slice::<Told>(&frame[1..]).ok();
            let told = told.unwrap_or(Told { kind: String::new(), message: String::new() });
            let kind = KINDS.into_iter().find(|kind| format!("{kind:?}") == told.kind);
            Err(Error::new(kind.unwrap_or(ErrorKind::Unavailable), "another participant failed")
                .with("failed", participant)
                .with("why", told.message))
        }
        _ => Err(Error::corrupt("a rendezvous gave a value that nobody sent")
            .with("failed", participant)),
    }
}

impl<'a> Talk<'a> {
    /// Begins the rounds of the save that has taken this turn.
    pub(super) fn new(
        (rendezvous, clock): (&'a dyn Rendezvous, &'a dyn Clock),
        turn: u64,
        deadline: Duration,
    ) -> Self {
        Self { rendezvous, clock, turn, deadline }
    }

    fn round(&self, name: &str) -> String {
        format!("{}-{name}", self.turn)
    }

    /// Ends a round that its rendezvous does not end: a launcher's promise may be broken.
    async fn bounded<T>(&self, round: &str, met: impl Future<Output = Result<T>>) -> Result<T> {
        let grace = self.deadline / 4 + GRACE;
        let met = within(self.clock, self.deadline.saturating_add(grace), met).await;
        met.unwrap_or_else(|| Err(timed_out(round, &[])))
    }

    /// Gives everybody what came of this participant's work, and returns everybody's.
    ///
    /// # Errors
    /// Its own error, else that of the first who failed, else the rendezvous's.
    pub(super) async fn gather(&self, name: &str, own: Result<Vec<u8>>) -> Result<Vec<Bytes>> {
        let round = self.round(name);
        let gathered = self.rendezvous.all_gather(&round, frame(&own), self.deadline);
        let gathered = self.bounded(&round, gathered).await;
        own?;
        gathered?.iter().enumerate().map(|(i, frame)| unframe(i, frame)).collect()
    }

    /// Gives everybody what came of the founder's work.
    ///
    /// # Errors
    /// `Err(Ok(error))` is the founder's error, `Err(Err(error))` the rendezvous's.
    pub(super) async fn founder(
        &self,
        name: &str,
        own: Option<Result<Vec<u8>>>,
    ) -> Result<Bytes, Result<Error, Error>> {
        let round = self.round(name);
        let value = own.as_ref().map(frame);
        let told = self.rendezvous.broadcast(&round, 0, value, self.deadline);
        let told = self.bounded(&round, told).await;
        if let Some(Err(error)) = own {
            return Err(Ok(error));
        }
        unframe(0, &told.map_err(Err)?).map_err(Ok)
    }

    /// Makes sure that everybody has the same.
    ///
    /// # Errors
    /// `Invalid` names those who differ from the first.
    pub(super) async fn agree(&self, name: &str, own: Result<String>) -> Result<()> {
        let all = self.gather(name, own.map(String::into_bytes)).await?;
        let differs = (1..all.len()).filter(|i| all[*i] != all[0]).collect::<Vec<_>>();
        if differs.is_empty() {
            return Ok(());
        }
        Err(Error::invalid("participants plan different saves")
            .with("participants", named(&differs))
            .hint("give everybody the same step, trees, leaf settings, item metadata and options"))
    }
}
