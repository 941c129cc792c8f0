//! Custom items: a handler turns a value of any type into files and back; the checkpoint keeps the files.
//!
//! The life of a custom item: the registry finds the handler of a value → it writes files into an empty scratch
//! directory → these are an opaque item, with the handler's name in the record → a fresh process, whose registry
//! has a handler of that name, restores the value without being told of which type it was.
//!
//! **Invariant:** a handler never sees the checkpoint, only a directory: whatever it does there, the layout stays.

use super::{items::Item, opaque::Opaque, reader::Checkpoint, scratch::Scratch};
use crate::{
    error::{Error, Result},
    tasks::{Pool, wait},
};
use milepost_formats::record::{HANDLER_BYTES_MAX, ItemKind};
use serde_json::Value;
use std::{any::Any, fmt, path::Path, sync::Arc};

/// Saves values of some types as files, and restores them.
pub trait ItemHandler: Send + Sync {
    /// Returns the name by which a checkpoint remembers the handler: at most 200 bytes, the same for ever.
    fn name(&self) -> &str;

    /// Tells whether the handler saves this value.
    fn handles(&self, value: &dyn Any) -> bool;

    /// Writes the value as files below `directory`, which is empty.
    ///
    /// # Errors
    /// Any error fails the save.
    fn save(&self, value: &dyn Any, directory: &Path) -> Result<()>;

    /// Reads the value from `directory`, which holds what [`ItemHandler::save`] wrote and is removed afterwards.
    ///
    /// # Errors
    /// Any error fails the restore.
    fn restore(&self, directory: &Path) -> Result<Box<dyn Any + Send>>;

    /// Returns what the record says of the item, readable without reading data. Default: nothing.
    ///
    /// # Errors
    /// Any error fails the save.
    fn metadata(&self, _value: &dyn Any) -> Result<Value> {
        Ok(Value::Null)
    }
}

/// The handlers that a process knows.
#[derive(Clone, Default)]
pub struct Handlers(Vec<Arc<dyn ItemHandler>>);

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Handlers").field(&self.names()).finish()
    }
}

impl Handlers {
    /// Adds a handler; for a value that several handle, the last one is asked.
    ///
    /// # Errors
    /// `AlreadyExists` where the name is taken, `Invalid` where it is empty or over 200 bytes.
    pub fn register(&mut self, handler: Arc<dyn ItemHandler>) -> Result<()> {
        let name = handler.name();
        if name.is_empty() || name.len() > HANDLER_BYTES_MAX {
            return Err(Error::invalid("the name of a handler is empty or over 200 bytes")
                .with("bytes", name.len()));
        }
        if self.named(name).is_some() {
            return Err(Error::exists("two handlers have one name")
                .with("handler", name)
                .hint("a checkpoint finds its handler by that name: choose another"));
        }
        self.0.push(handler);
        Ok(())
    }

    /// Returns the handler of a value: the last one registered that handles it.
    #[must_use]
    pub fn for_value(&self, value: &dyn Any) -> Option<&Arc<dyn ItemHandler>> {
        self.0.iter().rev().find(|handler| handler.handles(value))
    }

    /// Returns the handler of a name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Arc<dyn ItemHandler>> {
        self.0.iter().find(|handler| handler.name() == name)
    }

    fn names(&self) -> Vec<&str> {
        self.0.iter().map(|handler| handler.name()).collect()
    }

    /// Lets the handler of a value write its files below `scratch_root`, and makes an item of them.
    ///
    /// The files are removed when the last clone of the item is dropped.
    ///
    /// # Errors
    /// `Invalid` where no handler is there for the value; those of the handler; as [`Opaque::from_path`].
    pub fn item(&self, value: &dyn Any, scratch_root: &Path) -> Result<Item> {
        let handler = self.for_value(value).ok_or_else(|| {
            let names = self.names().join("`, `");
            let error = Error::invalid("no handler saves a value of this type");
            if names.is_empty() {
                error.hint("register one")
            } else {
                error.hint(format!("register one; there are `{names}`"))
            }
        })?;
        let name = handler.name();
        let saved = || {
            let scratch = Scratch::new(scratch_root)?;
            handler.save(value, scratch.path())?;
            Ok(Opaque::owned(scratch)?.with_handler(name, handler.metadata(value)?))
        };
        saved().map(Item::Opaque).map_err(|e: Error| e.with("handler", name))
    }
}

impl Checkpoint {
    /// Restores the value of a custom item by the handler that the record names.
    ///
    /// The files go through a scratch directory below the system's temporary one (`TMPDIR`). The handler runs on a
    /// thread of its own.
    ///
    /// # Errors
    /// `Unsupported` names a handler that is not registered; `Invalid` where the item was made by none; those of the
    /// handler; as [`Checkpoint::restore_files`].
    pub async fn restore_custom(
        &self,
        item: &str,
        handlers: &Handlers,
    ) -> Result<Box<dyn Any + Send>> {
        let entry = self.expect_kind(item, ItemKind::Opaque)?;
        let blame = |e: Error| self.blame(e.with("item", item));
        let raw = "`restore_files` gives the raw files";
        let name = entry.handler.as_deref().ok_or_else(|| {
            blame(Error::invalid("the item was saved without a handler")).hint(raw)
        })?;
        let handler = handlers.named(name).ok_or_else(|| {
            blame(Error::unsupported("the handler of the item is not registered"))
                .with("handler", name)
                .hint(format!("register a handler of that name; {raw}"))
        })?;
        let scratch = Scratch::new(&std::env::temp_dir()).map_err(blame)?;
        self.restore_files(item, scratch.path(), false).await?;
        let handler = Arc::clone(handler);
        // Not a thread of the engine: a handler may read by the engine itself, and would wait for its own thread.
        let pool = Pool::new("milepost-handler", 1).map_err(blame)?;
        let restored = pool.run(self.priority, move || handler.restore(scratch.path())).await;
        restored.map_err(|e| blame(e.with("handler", name)))
    }

    /// Restores the value on the calling thread; as [`Checkpoint::restore_custom`].
    ///
    /// # Errors
    /// As [`Checkpoint::restore_custom`].
    pub fn restore_custom_blocking(
        &self,
        item: &str,
        handlers: &Handlers,
    ) -> Result<Box<dyn Any + Send>> {
        wait(self.restore_custom(item, handlers))
    }
}
