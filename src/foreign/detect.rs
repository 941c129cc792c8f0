//! What a place holds, told by bytes and names: a safetensors file, an index of several, or neither.
//!
//! | place | taken for |
//! |---|---|
//! | a file `*.safetensors.index.json` | a model in several files, which lie beside it |
//! | a file that begins as safetensors does, or is named so | one file |
//! | a directory with one `*.safetensors.index.json` | that index |
//! | a directory with one `*.safetensors` and no index | that file |
//!
//! Everything else is refused by what it is (a zip of torch or `NumPy`, msgpack, OCDBT, Zarr, …), because "not a
//! safetensors file" leaves the user with the question.

use super::source::SourceFile;
use crate::{
    error::{Error, ErrorKind, Result},
    store::{Listing, Place, Priority, Span},
};
use futures::{StreamExt, TryStreamExt, stream};
use milepost_formats::safetensors::{HEADER_BYTES_MAX, ShardIndex, header_bytes};
use serde_json::{Map, Value};
use std::{collections::HashMap, sync::Arc};

pub(super) const EXTENSION: &str = ".safetensors";
pub(super) const INDEX_EXTENSION: &str = ".safetensors.index.json";
/// Enough to see the first member's name in a zip.
const MAGIC_BYTES: u64 = 256;
/// Headers that are fetched at once.
const HEADERS_AT_ONCE: usize = 16;
/// Names that an error lists.
const NAMES_MAX: usize = 8;

/// A model, its files open, in the order of their names.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) files: Vec<Arc<SourceFile>>,
    /// The index's own metadata; `None` where the model is one file without an index.
    pub(super) index_metadata: Option<Map<String, Value>>,
}

/// Finds the model at `place` and reads its headers.
///
/// # Errors
/// `NotFound` where nothing is there, `Unsupported` for other formats, `Invalid` where it is not clear which file
/// is meant, `Corrupt` where files and index do not agree.
pub(super) async fn find(place: &Place) -> Result<Model> {
    find_at(place).await.map_err(|e| e.with("source", place))
}

async fn find_at(place: &Place) -> Result<Model> {
    let head = if place.prefix().is_empty() {
        Err(Error::not_found("a root is no file"))
    } else {
        place.store().head(place.prefix()).await
    };
    match head {
        Ok(head) => find_file(place, head.bytes).await,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let listing = place.store().list(place.prefix()).await?;
            let file = place.join(&choose(&listing)?);
            let bytes = file.store().head(file.prefix()).await?.bytes;
            find_file(&file, bytes).await
        }
        Err(e) => Err(e),
    }
}

async fn find_file(place: &Place, bytes: u64) -> Result<Model> {
    if place.name().ends_with(INDEX_EXTENSION) {
        return find_shards(place).await;
    }
    if !place.name().ends_with(EXTENSION) {
        let span = Span::Range { offset: 0, len: bytes.min(MAGIC_BYTES) };
        let start = place.store().get(place.prefix(), span, Priority::Foreground).await?;
        if !looks_like_safetensors(&start, bytes) {
            return Err(Error::unsupported("not a safetensors file")
                .with("seen", name_of_bytes(&start, place.name()))
                .hint(
                    "convert it to safetensors first; `milepost import` reads nothing else yet",
                ));
        }
    }
    let file = Arc::new(SourceFile::open(place).await?);
    Ok(Model { files: vec![file], index_metadata: None })
}

/// Opens the files of an index and checks that both name the same tensors.
async fn find_shards(place: &Place) -> Result<Model> {
    let span = Span::Whole { bytes_max: HEADER_BYTES_MAX };
    let json = place.store().get(place.prefix(), span, Priority::Foreground).await?;
    let index = ShardIndex::parse(&json).map_err(|e| Error::from(e).with("file", place))?;
    let mut names = index.files();
    names.sort_unstable();
    let directory = place.parent();
    let files: Vec<_> = stream::iter(names)
        .map(|name| open_shard(&directory, name, &index))
        .buffered(HEADERS_AT_ONCE)
        .try_collect()
        .await?;
    check_shards(&index, &files)?;
    let sum: u64 = files.iter().flat_map(|f| &f.header.tensors).map(|t| t.end - t.begin).sum();
    if let Some(claimed) = index.total_size.filter(|claimed| *claimed != sum) {
        // Indexes in the wild count shared tensors twice; no reader uses the number.
        tracing::warn!(%place, claimed, sum, "the safetensors index claims another total size");
    }
    Ok(Model { files, index_metadata: Some(index.metadata) })
}

async fn open_shard(directory: &Place, name: &str, index: &ShardIndex) -> Result<Arc<SourceFile>> {
    let opened = SourceFile::open(&directory.join(name)).await;
    opened.map(Arc::new).map_err(|e| {
        let first = index.weight_map.iter().find(|(_, file)| file == name);
        let tensor = first.map_or("", |(tensor, _)| tensor.as_str());
        if e.kind() != ErrorKind::NotFound {
            return e;
        }
        Error::not_found("a file that the safetensors index names is missing")
            .with("file", directory.join(name))
            .with("tensor", tensor)
            .because(e)
    })
}

fn check_shards(index: &ShardIndex, files: &[Arc<SourceFile>]) -> Result<()> {
    let mut wanted: HashMap<&str, &str> =
        index.weight_map.iter().map(|(tensor, file)| (tensor.as_str(), file.as_str())).collect();
    for file in files {
        for tensor in &file.header.tensors {
            let named = wanted.remove(tensor.name.as_str());
            if named == Some(file.name()) {
                continue;
            }
            let error = Error::corrupt("a file holds a tensor that the index does not have there")
                .with("file", &file.place)
                .with("tensor", &tensor.name);
            return Err(match named {
                Some(other) => error.with("indexed_in", other),
                None => error,
            });
        }
    }
    // In the order of the index, so that the message does not change from run to run.
    let lost = index.weight_map.iter().find(|(tensor, _)| wanted.contains_key(tensor.as_str()));
    match lost {
        None => Ok(()),
        Some((tensor, file)) => {
            Err(Error::corrupt("the index names a tensor that its file does not hold")
                .with("file", file)
                .with("tensor", tensor))
        }
    }
}

/// Chooses the one file of a directory that is meant.
fn choose(listing: &Listing) -> Result<String> {
    let names: Vec<&str> =
        listing.objects.iter().filter_map(|object| object.key.rsplit('/').next()).collect();
    if names.is_empty() && listing.prefixes.is_empty() {
        return Err(Error::not_found("nothing to import here").hint("check the path"));
    }
    for extension in [INDEX_EXTENSION, EXTENSION] {
        let mut found: Vec<&str> =
            names.iter().copied().filter(|n| n.ends_with(extension)).collect();
        match found.as_slice() {
            [] => {}
            [one] => return Ok((*one).to_owned()),
            several => {
                let count = several.len();
                found.truncate(NAMES_MAX);
                return Err(Error::invalid(format!("the directory holds {count} `*{extension}`"))
                    .with("files", found.join(", "))
                    .hint("name the one that is meant"));
            }
        }
    }
    Err(Error::unsupported("no safetensors file in the directory")
        .with("seen", name_of_listing(&names, &listing.prefixes))
        .hint("name a `.safetensors` file, or a directory with one"))
}

/// Tells whether the first bytes can be those of a safetensors file of this size.
fn looks_like_safetensors(start: &[u8], file_bytes: u64) -> bool {
    let fits = header_bytes(start).is_ok_and(|len| len <= file_bytes.saturating_sub(8));
    fits && start.get(8) == Some(&b'{')
}

/// Names a format by its first bytes, else by the file's name, else shows the bytes.
fn name_of_bytes(start: &[u8], name: &str) -> String {
    let holds = |needle: &[u8]| start.windows(needle.len()).any(|window| window == needle);
    let ends = |extensions: &[&str]| extensions.iter().any(|e| name.ends_with(e));
    let known = match start {
        [] => "an empty file",
        [b'P', b'K', 3 | 5, 4 | 6, ..] if ends(&[".npz"]) || holds(b".npy") => {
            "a zip of NumPy arrays (npz)"
        }
        [b'P', b'K', 3, 4, ..] if holds(b"data.pkl") || holds(b".format_version") => {
            "a torch checkpoint (zip)"
        }
        [b'P', b'K', 3 | 5, 4 | 6, ..] if ends(&[".pt", ".pth", ".bin", ".ckpt"]) => {
            "a torch checkpoint (zip)"
        }
        [b'P', b'K', 3 | 5, 4 | 6, ..] => "a zip archive",
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => "a NumPy array (npy)",
        [0x89, b'H', b'D', b'F', ..] => "HDF5",
        [b'G', b'G', b'U', b'F', ..] => "GGUF",
        [0x1f, 0x8b, ..] => "gzip",
        [0x80, 2..=5, ..] => "a Python pickle (torch before 1.6 wrote these)",
        [0x80..=0x8f | 0xde | 0xdf, ..] => "msgpack (flax)",
        [b'{' | b'[', ..] => "JSON",
        _ if ends(&[".msgpack"]) => "msgpack (flax)",
        _ if name == "manifest.ocdbt" => "OCDBT (Orbax, TensorStore)",
        _ => "",
    };
    if !known.is_empty() {
        return known.to_owned();
    }
    let hex: Vec<_> = start.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("a file that begins with {}", hex.join(" "))
}

/// Names what a directory is by the names in it.
fn name_of_listing(names: &[&str], prefixes: &[String]) -> String {
    let has = |wanted: &str| names.contains(&wanted) || prefixes.iter().any(|p| p == wanted);
    let ends =
        |extensions: &[&str]| names.iter().any(|n| extensions.iter().any(|e| n.ends_with(e)));
    let known = if has("manifest.ocdbt") {
        "OCDBT (Orbax, TensorStore)"
    } else if has("_CHECKPOINT_METADATA") || has("_METADATA") {
        "an Orbax checkpoint"
    } else if has("zarr.json") || has(".zgroup") || has(".zarray") {
        "Zarr, which `milepost tree` and `milepost cat` read as it is"
    } else if ends(&[".msgpack"]) {
        "msgpack (flax)"
    } else if ends(&[".npz", ".npy"]) {
        "NumPy files"
    } else if ends(&[".bin", ".pt", ".pth", ".ckpt"]) {
        "torch files"
    } else {
        ""
    };
    if !known.is_empty() {
        return known.to_owned();
    }
    let folders = prefixes.iter().map(|name| format!("{name}/"));
    let all = names.iter().map(|name| (*name).to_owned()).chain(folders);
    all.take(NAMES_MAX).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_named_by_their_bytes() {
        for (start, name, wanted) in [
            (b"PK\x03\x04............archive/data.pkl".as_slice(), "x", "torch"),
            (b"PK\x03\x04............arr_0.npy", "x", "npz"),
            (b"PK\x03\x04", "model.pt", "torch"),
            (b"\x93NUMPY\x01\x00", "x.npy", "npy"),
            (b"\x80\x02}q\x00", "pytorch_model.bin", "pickle"),
            (b"\x82\xa6params", "x.msgpack", "msgpack"),
            (b"\x0c\xdb\x3a\x2a", "manifest.ocdbt", "OCDBT"),
            (b"\x01\x02", "x", "01 02"),
            (b"", "x", "empty"),
        ] {
            let seen = name_of_bytes(start, name);
            assert!(seen.contains(wanted), "{name}: {seen}");
        }
    }

    #[test]
    fn the_start_of_safetensors_is_a_plausible_length_and_a_brace() {
        let mut start = 2_u64.to_le_bytes().to_vec();
        start.extend(b"{}");
        assert!(looks_like_safetensors(&start, 10));
        assert!(!looks_like_safetensors(&start, 9), "the header would end beyond the file");
        start[8] = b'[';
        assert!(!looks_like_safetensors(&start, 10));
        assert!(!looks_like_safetensors(b"{}", 2));
    }
}
