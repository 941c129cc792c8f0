//! Where participants find each other when the launcher names no session: a place that stays, and a meeting that is new.
//!
//! ```text
//! .milepost/parts/lobby/<index>     the mark of one who waits; its id is a nonce
//! .milepost/parts/lobby/meeting     {"session","nonces"}: put again by participant 0 when an entry has changed
//! .milepost/parts/<session>/ready   put by participant 0 when everybody has come there
//! ```
//! A meeting that was left by an earlier job names other nonces, so nobody follows it; a process that was started again
//! has a new nonce, so it is not taken for the one before. A second process with one index takes the entry over, and
//! the first is never called. Who has come to a session waits there for the others: where one of them was an entry of a
//! process that is gone, there is another call, and all go to that.

use super::{meeting::Patience, plan::named};
use crate::{
    checkpoint::{
        layout::PARTS,
        lease::{Holder, Holding, Lease, Mark, StoreTime},
    },
    error::{Error, ErrorKind, Result},
    io::Engine,
    store::{Place, Span},
    tasks::Priority,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};

const LOBBY: &str = "lobby";
const MEETING: &str = "meeting";
const READY: &str = "ready";
const MEETING_BYTES_MAX: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
struct Meeting {
    session: String,
    /// Of the participants from 1.
    nonces: Vec<String>,
}

fn lobby(run: &Place) -> Place {
    run.join(&format!("{PARTS}/{LOBBY}"))
}

/// A participant from 1 in the lobby.
pub(super) struct Guest<'a> {
    run: &'a Place,
    member: (usize, usize),
    nonce: String,
    patience: Patience<'a>,
    /// The entry stays when this ends: another may have taken it over.
    _lease: Lease,
}

impl<'a> Guest<'a> {
    /// Enters the lobby.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn enter(
        engine: &'a Arc<Engine>,
        run: &'a Place,
        member: (usize, usize),
        deadline: Duration,
    ) -> Result<Self> {
        let nonce = format!("{:032x}", engine.clock().unique_id());
        let holder = Holder::this(engine, &nonce, None);
        let key = lobby(run).key(&member.0.to_string());
        let lease = Lease::take(run.store(), &key, &holder).await?;
        let patience = Patience::new(engine, deadline);
        Ok(Self { run, member, nonce, patience, _lease: lease })
    }

    /// Returns the session to which this participant is called now, if it is.
    async fn call(&self) -> Result<Option<String>> {
        let (index, count) = self.member;
        let meeting = read(&lobby(self.run), MEETING).await?;
        let meeting = meeting.and_then(|bytes| serde_json::from_slice::<Meeting>(&bytes).ok());
        let ours = |m: &Meeting| {
            m.nonces.len() + 1 == count && m.nonces.get(index - 1) == Some(&self.nonce)
        };
        Ok(meeting.filter(ours).map(|meeting| meeting.session))
    }

    /// Waits until participant 0 calls; returns the session.
    ///
    /// # Errors
    /// `Timeout` where it does not within the deadline; the store's.
    pub(super) async fn called(&mut self) -> Result<String> {
        loop {
            if let Some(session) = self.call().await? {
                return Ok(session);
            }
            self.wait("participant 0 did not call a meeting").await?;
        }
    }

    /// Waits until everybody has come to the session; `false` where there was another call.
    ///
    /// # Errors
    /// `Timeout` where neither happens within the deadline; the store's.
    pub(super) async fn is_ready(&mut self, session: &Place) -> Result<bool> {
        loop {
            if read(session, READY).await?.is_some() {
                return Ok(true);
            }
            if self.call().await?.is_some_and(|other| other != session.name()) {
                // A later one may be of the next job already.
                return Ok(read(session, READY).await?.is_some());
            }
            self.wait("the others did not come to the meeting").await?;
        }
    }

    async fn wait(&mut self, late: &str) -> Result<()> {
        if self.patience.wait().await {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Timeout, late)
            .with("missing", 0)
            .with("count", self.member.1)
            .hint("look whether all processes run, with the same count and different indices"))
    }
}

async fn read(place: &Place, name: &str) -> Result<Option<Bytes>> {
    let span = Span::Whole { bytes_max: MEETING_BYTES_MAX };
    match place.store().get(&place.key(name), span, Priority::Foreground).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The lobby as participant 0 sees it.
pub(super) struct Lobby<'a> {
    engine: &'a Arc<Engine>,
    run: &'a Place,
    count: usize,
    patience: Patience<'a>,
    nonces: Vec<String>,
}

impl<'a> Lobby<'a> {
    /// Opens the lobby.
    pub(super) async fn open(
        engine: &'a Arc<Engine>,
        run: &'a Place,
        count: usize,
        deadline: Duration,
    ) -> Result<Self> {
        run.store().create_dir(lobby(run).prefix()).await?;
        let patience = Patience::new(engine, deadline);
        Ok(Self { engine, run, count, patience, nonces: Vec::new() })
    }

    /// Reads who waits now: nonces from participant 1, or who is missing.
    async fn entries(&self) -> Result<Result<Vec<String>, Vec<usize>>> {
        let mut time = StoreTime::of_run(self.engine, self.run);
        let (mut nonces, mut missing) = (Vec::new(), Vec::new());
        for index in 1..self.count {
            let key = lobby(self.run).key(&index.to_string());
            match Mark::read(self.run.store(), &key).await? {
                Some(mark) if mark.is_alive(&mut time).await => match mark.holding {
                    Holding::Known(holder) => nonces.push(holder.id),
                    _ => missing.push(index),
                },
                _ => missing.push(index),
            }
        }
        Ok(if missing.is_empty() { Ok(nonces) } else { Err(missing) })
    }

    /// Waits until everybody is there, and calls them to a new session.
    ///
    /// # Errors
    /// `Timeout` names who is missing; the store's.
    pub(super) async fn meet(&mut self) -> Result<String> {
        loop {
            match self.entries().await? {
                Ok(nonces) => {
                    let session = format!("{:032x}", self.engine.clock().unique_id());
                    let meeting = Meeting { session: session.clone(), nonces: nonces.clone() };
                    let failed = |e| Error::internal("a meeting is no JSON").because(e);
                    let bytes = serde_json::to_vec(&meeting).map_err(failed)?;
                    let key = lobby(self.run).key(MEETING);
                    self.run.store().put(&key, vec![bytes.into()], Priority::Foreground).await?;
                    self.nonces = nonces;
                    return Ok(session);
                }
                Err(missing) => {
                    if !self.patience.wait().await {
                        return Err(late(&missing));
                    }
                }
            }
        }
    }

    /// Waits until everybody who was called has come, and says so; `false` where somebody was started again meanwhile.
    ///
    /// # Errors
    /// `Timeout` names who is missing; the store's.
    pub(super) async fn is_complete(&mut self, session: &Place) -> Result<bool> {
        loop {
            let listed = session.store().list(session.prefix()).await?.objects;
            let there = |index: &usize| {
                let key = session.key(&format!("{index}.id"));
                listed.iter().any(|object| object.key == key)
            };
            let missing: Vec<usize> = (1..self.count).filter(|index| !there(index)).collect();
            if missing.is_empty() {
                let said = vec![Bytes::from_static(b"ready")];
                session.store().put(&session.key(READY), said, Priority::Foreground).await?;
                return Ok(true);
            }
            for index in &missing {
                let key = lobby(self.run).key(&index.to_string());
                let mark = Mark::read(self.run.store(), &key).await?;
                if let Some(Holding::Known(holder)) = mark.map(|mark| mark.holding)
                    && holder.id != self.nonces[index - 1]
                {
                    return Ok(false);
                }
            }
            if !self.patience.wait().await {
                return Err(late(&missing));
            }
        }
    }
}

fn late(missing: &[usize]) -> Error {
    Error::new(ErrorKind::Timeout, "participants did not come to the lobby in time")
        .with("missing", named(missing))
        .hint("look whether all processes run, with the same count and different indices")
}
