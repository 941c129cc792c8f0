//! The memory of copies, kept from one save to the next: touching fresh pages takes most of a copy's time.
//!
//! What is idle stays reserved in the budget, so that keeping it never exceeds what saving may take; what the
//! next save does not use is given back.

use crate::{
    buffer::Buffer,
    error::{Error, Result},
    io::{Engine, Reservation},
};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

/// Memory that waits for the next save is not divided: it serves leaves of its size, or a little less.
const WASTE: usize = 8;

type Idle = BTreeMap<usize, Vec<(Buffer, Reservation)>>;

/// Idle copies of one owner's saves, by their size.
#[derive(Default)]
pub(crate) struct Copies(Mutex<Idle>);

impl fmt::Debug for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Copies({} idle)", self.lock().values().map(Vec::len).sum::<usize>())
    }
}

/// A copy that the budget holds; its memory goes back to where it came from.
struct Held {
    buffer: Option<(Buffer, Reservation)>,
    home: Weak<Copies>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |(buffer, _)| buffer)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let (Some((mut buffer, reservation)), Some(home)) =
            (self.buffer.take(), self.home.upgrade())
        {
            let capacity = buffer.capacity();
            buffer.set_len(capacity);
            home.lock().entry(capacity).or_default().push((buffer, reservation));
        }
    }
}

impl Copies {
    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies into idle memory, or into what the budget holds; `None` where it holds no more and `beyond` is not asked.
    ///
    /// # Errors
    /// `Unavailable` where the system has no memory.
    pub(super) fn copy(
        self: &Arc<Self>,
        engine: &Engine,
        bytes: &[u8],
        beyond: bool,
    ) -> Result<Option<Bytes>> {
        let Some((mut buffer, reservation)) = self.take(engine, bytes.len())? else {
            return Ok(beyond.then(|| Bytes::copy_from_slice(bytes)));
        };
        buffer.set_len(bytes.len());
        buffer.copy_from_slice(bytes);
        let held = Held { buffer: Some((buffer, reservation)), home: Arc::downgrade(self) };
        Ok(Some(Bytes::from_owner(held)))
    }

    fn take(&self, engine: &Engine, len: usize) -> Result<Option<(Buffer, Reservation)>> {
        let idle = {
            let mut idle = self.lock();
            let size = idle.range(len..=len + len / WASTE).next().map(|(size, _)| *size);
            let found = size.and_then(|size| idle.get_mut(&size)?.pop());
            if let Some(size) = size.filter(|size| idle.get(size).is_some_and(Vec::is_empty)) {
                idle.remove(&size);
            }
            found
        };
        if idle.is_some() {
            return Ok(idle);
        }
        let hold = || engine.budget().try_hold(len as u64);
        let reservation = hold().or_else(|| {
            self.clear(); // what is idle may be of other sizes
            hold()
        });
        let Some(reservation) = reservation else { return Ok(None) };
        let buffer = Buffer::try_zeroed(len).ok_or_else(|| {
            Error::unavailable("no memory for the copy of a leaf").with("bytes", len)
        })?;
        Ok(Some((buffer, reservation)))
    }

    /// Gives back what is idle.
    pub(super) fn clear(&self) {
        let idle = std::mem::take(&mut *self.lock());
        drop(idle); // unmapped outside the lock
    }
}
