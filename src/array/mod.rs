//! Arrays: where keys, chunks and codecs meet. One Zarr array written or read through the scheduler.
//!
//! Writing: a [`Leaf`] and its chunk plan become object plans whose parts encode themselves ([`write`]).
//! Reading: a document becomes an [`OpenArray`] ([`open`]), a box of it becomes byte ranges with destinations
//! ([`read`]). Running the plans is `io`'s part; which arrays there are is `checkpoint`'s.

mod borrow;
mod boxes;
mod create;
mod element;
pub(crate) mod open;
pub(crate) mod read;
mod source;
pub(crate) mod write;

pub use borrow::Borrowed;
pub use element::Element;
pub use source::{Leaf, Provider};

pub(crate) use create::{Stored, codec_text, document, document_of, object_name};
pub(crate) use element::check as check_element;
pub(crate) use read::read_chunk;
pub(crate) use source::{Source, leaf_bytes};
pub(crate) use write::object_hash;

/// Returns the name of a chunk in errors: `3.0`, and `0` for the one chunk of a 0-d array.
pub(crate) fn chunk_name(index: &[u64]) -> String {
    if index.is_empty() {
        return "0".to_owned();
    }
    index.iter().map(u64::to_string).collect::<Vec<_>>().join(".")
}
