//! A rendezvous that needs nothing but the store: small objects, put once, polled with growing pauses.
//!
//! ```text
//! .milepost/parts/<session>.lease              participant 0, renewed
//! .milepost/parts/<session>/<index>.id         who is participant <index>: created once, so that a second one is refused
//! .milepost/parts/<session>/<index>.lease      the others, renewed
//! .milepost/parts/<session>/ready              everybody has come, where they were called from the lobby
//! .milepost/parts/<session>/<round>/<index>    the value of one
//! .milepost/parts/<session>/<round>/all        everybody's, put by participant 0; or who was missing
//! ```
//! A gather costs each participant a put and a get (and its polls), participant 0 a listing and a get for each: so it is
//! linear where everybody reading from everybody would be quadratic. A member whose process is gone is found out at once
//! on the same machine, and when its mark has expired elsewhere.

use super::{
    lobby,
    plan::named,
    rendezvous::{Rendezvous, VALUE_BYTES_MAX, check_index, timed_out},
    talk::is_beside,
};
use crate::{
    checkpoint::{
        layout::{MARK, PARTS},
        lease::{Holder, Lease, Mark, StoreTime},
    },
    error::{Error, ErrorKind, Result},
    io::Engine,
    store::{Place, Span},
    tasks::{Priority, wait},
};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// After so long it is looked first whether those who are waited for still live; then less and less often.
const LOOK_MIN: Duration = Duration::from_millis(100);
const LOOK_MAX: Duration = Duration::from_secs(2);
/// So much longer, or a quarter, the others wait for what participant 0 says at its deadline: who was missing.
const GRACE_MAX: Duration = Duration::from_secs(3);
/// The mark of a participant that has come follows within this time, or it is gone.
const MARK_WAIT_MAX: Duration = Duration::from_secs(20);
/// So many of its old values a participant deletes at once.
const OLD_MAX: usize = 16;
const SESSION_BYTES_MAX: usize = 100;

/// Participants of a save that share nothing but a store.
#[derive(Debug)]
pub struct StoreRendezvous {
    engine: Arc<Engine>,
    run: Place,
    session: Place,
    index: usize,
    count: usize,
    sequence: AtomicU64,
    state: Mutex<State>,
    /// Ends when this is dropped: the others find out.
    _lease: Lease,
}

#[derive(Debug, Default)]
struct State {
    /// Who was heard: where its mark is gone, it is, too.
    heard: BTreeSet<usize>,
    /// Own values of rounds that all have left behind, and of those they may still be in.
    old: Vec<String>,
    /// Those of saves, and those of rounds that may be held beside a save.
    recent: [Vec<String>; 2],
}

/// The first line of what participant 0 says to all.
#[derive(Serialize, Deserialize)]
struct All {
    /// The lengths of everybody's values, which follow.
    lengths: Vec<usize>,
    missing: Vec<usize>,
    gone: bool,
}

/// Pauses that grow, and a deadline.
pub(super) struct Patience<'a> {
    engine: &'a Engine,
    began: Duration,
    deadline: Duration,
    pause: Duration,
    looked: Duration,
    look: Duration,
}

impl<'a> Patience<'a> {
    pub(super) fn new(engine: &'a Engine, deadline: Duration) -> Self {
        let began = engine.clock().elapsed();
        Self { engine, began, deadline, pause: PAUSE_MIN, looked: began, look: LOOK_MIN }
    }

    /// Waits a little; `false` where there is no time left.
    pub(super) async fn wait(&mut self) -> bool {
        let waited = self.engine.clock().elapsed().saturating_sub(self.began);
        let Some(left) = self.deadline.checked_sub(waited).filter(|left| !left.is_zero()) else {
            return false;
        };
        self.engine.clock().sleep(self.pause.min(left)).await;
        self.pause = (self.pause * 3 / 2).min(PAUSE_MAX);
        true
    }

    /// Tells, once in a while, that it is time to look who lives.
    fn is_time_to_look(&mut self) -> bool {
        let now = self.engine.clock().elapsed();
        let due = now.saturating_sub(self.looked) >= self.look;
        if due {
            (self.looked, self.look) = (now, (self.look * 2).min(LOOK_MAX));
        }
        due
    }
}

impl StoreRendezvous {
    /// Meets the others of a job at a run; everybody calls it, and gets a session that nobody had before.
    ///
    /// # Errors
    /// `Timeout` where not all `count` came within `deadline`; the store's.
    ///
    /// # Cancel safety
    /// Dropped: the others wait for this one until their deadline.
    pub async fn join(
        engine: &Arc<Engine>,
        run: &Place,
        (index, count): (usize, usize),
        deadline: Duration,
    ) -> Result<Self> {
        check_index(index, count)?;
        if index > 0 {
            let mut guest = lobby::Guest::enter(engine, run, (index, count), deadline).await?;
            loop {
                let session = guest.called().await?;
                let own = Self::with_session(engine, run, &session, (index, count)).await?;
                if guest.is_ready(&own.session).await? {
                    return Ok(own);
                }
            }
        }
        let mut lobby = lobby::Lobby::open(engine, run, count, deadline).await?;
        loop {
            let session = lobby.meet().await?;
            let own = Self::with_session(engine, run, &session, (index, count)).await?;
            if lobby.is_complete(&own.session).await? {
                return Ok(own);
            }
        }
    }

    /// Joins the session that the launcher has named: a name that no job at this run ever had.
    ///
    /// # Errors
    /// `Conflict` where somebody else has this index in it; `Invalid` where the name is no plain word.
    pub async fn with_session(
        engine: &Arc<Engine>,
        run: &Place,
        session: &str,
        (index, count): (usize, usize),
    ) -> Result<Self> {
        check_index(index, count)?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        if session.is_empty() || session.len() > SESSION_BYTES_MAX || !session.bytes().all(plain) {
            return Err(Error::invalid("the name of a session is not a plain word")
                .with("session", session)
                .hint("use letters, digits, `_`, `-`"));
        }
        let session = run.join(&format!("{PARTS}/{session}"));
        let id = format!("{:032x}", engine.clock().unique_id());
        let holder = Holder::this(engine, &id, None);
        match run.store().put_new(&session.key(&format!("{index}.id")), holder.to_bytes()?).await {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                return Err(Error::conflict("somebody else is this participant of the session")
                    .with("participant", index)
                    .with("session", session.name())
                    .because(e));
            }
            result => result?,
        }
        let key = mark_of_member(&session, index);
        let lease = Lease::take(run.store(), &key, &holder).await?.removed_on_drop();
        let (engine, run) = (Arc::clone(engine), run.clone());
        let (sequence, state) = (AtomicU64::new(0), Mutex::default());
        Ok(Self { engine, run, session, index, count, sequence, state, _lease: lease })
    }

    /// Meets the others on the calling thread; as [`StoreRendezvous::join`].
    ///
    /// # Errors
    /// As [`StoreRendezvous::join`].
    pub fn join_blocking(
        engine: &Arc<Engine>,
        run: &Place,
        member: (usize, usize),
        deadline: Duration,
    ) -> Result<Self> {
        wait(Self::join(engine, run, member, deadline))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, round: &str, name: &str) -> String {
        self.session.key(&format!("{round}/{name}"))
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        let span = Span::Whole { bytes_max: VALUE_BYTES_MAX };
        match self.session.store().get(key, span, Priority::Foreground).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn give(&self, round: &str, name: &str, value: Bytes) -> Result<()> {
        let key = self.key(round, name);
        match self.session.store().put_new(&key, value).await {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                Err(Error::conflict("a participant is there twice, or a round was held before")
                    .with("participant", self.index)
                    .with("round", round)
                    .because(e))
            }
            result => {
                self.state().recent[usize::from(is_beside(round))].push(key);
                result
            }
        }
    }

    /// Returns those of `members` who are gone.
    async fn gone(&self, members: &[usize]) -> Vec<usize> {
        let mut time = StoreTime::of_run(&self.engine, &self.run);
        let mut gone = Vec::new();
        for index in members {
            let mark =
                Mark::read(self.session.store(), &mark_of_member(&self.session, *index)).await;
            let dead = match mark {
                Ok(Some(mark)) => {
                    self.state().heard.insert(*index);
                    !mark.is_alive(&mut time).await
                }
                Ok(None) => self.was_there(*index, &mut time).await,
                Err(_) => false,
            };
            if dead {
                gone.push(*index);
            }
        }
        gone
    }

    /// Tells whether a participant without a mark has had one; that of one that comes just now is on its way.
    async fn was_there(&self, index: usize, time: &mut StoreTime) -> bool {
        if self.state().heard.contains(&index) {
            return true;
        }
        match self.session.store().head(&self.session.key(&format!("{index}.id"))).await {
            Ok(id) => time.is_older(id.modified, MARK_WAIT_MAX).await,
            Err(_) => false,
        }
    }

    /// Waits for an object of participant `from`.
    async fn await_object(
        &self,
        (round, name): (&str, &str),
        from: usize,
        deadline: Duration,
    ) -> Result<Bytes> {
        let key = self.key(round, name);
        let mut patience = Patience::new(&self.engine, deadline);
        loop {
            if let Some(bytes) = self.get(&key).await? {
                return Ok(bytes);
            }
            if patience.is_time_to_look() && !self.gone(&[from]).await.is_empty() {
                // It may have said it just before it went.
                return self.get(&key).await?.ok_or_else(|| gone_error(round, &[from]));
            }
            if !patience.wait().await {
                return Err(timed_out(round, &[from]));
            }
        }
    }

    /// Waits for everybody's values and tells all of them to all, or who is missing.
    async fn collect(&self, round: &str, deadline: Duration) -> Result<Vec<Bytes>> {
        let mut patience = Patience::new(&self.engine, deadline);
        let prefix = self.session.key(round);
        loop {
            let listed = self.session.store().list(&prefix).await?.objects;
            let there: BTreeSet<usize> = listed
                .iter()
                .filter_map(|object| object.key.rsplit('/').next()?.parse().ok())
                .collect();
            let missing: Vec<usize> = (0..self.count).filter(|i| !there.contains(i)).collect();
            if missing.is_empty() {
                return self.tell(round).await;
            }
            let mut failed = None;
            if patience.is_time_to_look() {
                let gone = self.gone(&missing).await;
                failed =
                    (!gone.is_empty()).then(|| All { lengths: vec![], missing: gone, gone: true });
            }
            if failed.is_none() && !patience.wait().await {
                failed = Some(All { lengths: vec![], missing, gone: false });
            }
            if let Some(all) = failed {
                self.give(round, "all", head(&all)?.into()).await?;
                return Err(all.into_error(round));
            }
        }
    }

    async fn tell(&self, round: &str) -> Result<Vec<Bytes>> {
        let read = |index: usize| async move {
            let key = self.key(round, &index.to_string());
            self.get(&key).await?.ok_or_else(|| {
                Error::conflict("a value of a round has vanished").with("object", key)
            })
        };
        let concurrency = self.session.store().capabilities().concurrency.max(1) * 4;
        let values: Vec<Bytes> =
            stream::iter(0..self.count).map(read).buffered(concurrency).try_collect().await?;
        let lengths = values.iter().map(Bytes::len).collect();
        let head = head(&All { lengths, missing: Vec::new(), gone: false })?;
        let all = [&[Bytes::from(head)], values.as_slice()].concat().concat();
        self.give(round, "all", all.into()).await?;
        Ok(values)
    }

    /// Deletes what it has said in rounds that everybody has left.
    async fn forget(&self, round: &str) {
        let old = {
            let mut state = self.state();
            // Everybody has come to the round that has just ended, so all before are over.
            let recent = &mut state.recent[usize::from(is_beside(round))];
            let over = recent.len().saturating_sub(2);
            let over: Vec<String> = recent.drain(..over).collect();
            state.old.extend(over);
            if state.old.len() < OLD_MAX {
                return;
            }
            std::mem::take(&mut state.old)
        };
        if let Err(error) = self.session.store().delete(old).await {
            tracing::debug!(%error, "old values of a rendezvous could not be deleted");
        }
    }
}

fn mark_of_member(session: &Place, index: usize) -> String {
    if index == 0 {
        return format!("{}{MARK}", session.prefix());
    }
    session.key(&format!("{index}{MARK}"))
}

fn gone_error(round: &str, missing: &[usize]) -> Error {
    Error::unavailable("participants are gone")
        .with("round", round)
        .with("missing", named(missing))
        .hint("look why these processes ended; then save again")
}

fn head(all: &All) -> Result<Vec<u8>> {
    let failed = |e| Error::internal("a round cannot be written as JSON").because(e);
    let mut line = serde_json::to_vec(all).map_err(failed)?;
    line.push(b'\n');
    Ok(line)
}

impl All {
    fn into_error(self, round: &str) -> Error {
        if self.gone { gone_error(round, &self.missing) } else { timed_out(round, &self.missing) }
    }

    /// Splits what participant 0 has said.
    fn parse(bytes: &Bytes, round: &str, count: usize) -> Result<Vec<Bytes>> {
        let damaged = || Error::corrupt("what participant 0 said is damaged").with("round", round);
        let end = bytes.iter().position(|b| *b == b'\n').ok_or_else(damaged)?;
        let all: Self = serde_json::from_slice(&bytes[..end]).map_err(|e| damaged().because(e))?;
        if !all.missing.is_empty() {
            return Err(all.into_error(round));
        }
        let mut rest = bytes.slice(end + 1..);
        let mut values = Vec::new();
        for length in all.lengths {
            if length > rest.len() {
                return Err(damaged());
            }
            values.push(rest.split_to(length));
        }
        if values.len() == count && rest.is_empty() { Ok(values) } else { Err(damaged()) }
    }
}

impl Rendezvous for StoreRendezvous {
    fn index(&self) -> usize {
        self.index
    }

    fn count(&self) -> usize {
        self.count
    }

    fn sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    fn all_gather(
        &self,
        round: &str,
        value: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        let round = round.to_owned();
        async move {
            self.give(&round, &self.index.to_string(), value).await?;
            let values = if self.index == 0 {
                self.collect(&round, deadline).await?
            } else {
                let longer = deadline + (deadline / 4).min(GRACE_MAX);
                let all = self.await_object((&round, "all"), 0, longer).await?;
                All::parse(&all, &round, self.count)?
            };
            // Who has said something has had a mark.
            self.state().heard.extend(0..self.count);
            self.forget(&round).await;
            Ok(values)
        }
        .boxed()
    }

    fn broadcast(
        &self,
        round: &str,
        from: usize,
        value: Option<Bytes>,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<Bytes>> {
        let (round, name) = (round.to_owned(), from.to_string());
        async move {
            match value.filter(|_| from == self.index) {
                Some(value) => self.give(&round, &name, value.clone()).await.map(|()| value),
                None => self.await_object((&round, &name), from, deadline).await,
            }
        }
        .boxed()
    }
}
