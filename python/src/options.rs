//! How arrays are stored.

use crate::{errors::raise, leaf::compressor};
use milepost::{Consolidate, Durability, Priority};
use pyo3::prelude::*;

/// How the arrays of a checkpoint are stored and when the save counts as done.
#[pyclass(frozen, module = "milepost._milepost")]
pub(crate) struct SaveOptions(milepost::SaveOptions);

impl SaveOptions {
    pub(crate) fn get(&self) -> milepost::SaveOptions {
        self.0.clone()
    }
}

/// Says which words an option knows.
pub(crate) fn unknown(option: &str, word: &str, known: &str) -> PyErr {
    invalid(format!("{option}={word:?}"), format!("give {known}"))
}

/// Refuses an argument.
pub(crate) fn invalid(message: String, hint: String) -> PyErr {
    raise(&milepost::Error::new(milepost::ErrorKind::Invalid, message).hint(hint))
}

pub(crate) fn priority(word: &str) -> PyResult<Priority> {
    match word {
        "restore" => Ok(Priority::Restore),
        "foreground" => Ok(Priority::Foreground),
        "background" => Ok(Priority::Background),
        "upload" => Ok(Priority::Upload),
        _ => Err(unknown("priority", word, "\"foreground\" or \"background\"")),
    }
}

#[pymethods]
impl SaveOptions {
    #[new]
    #[pyo3(signature = (*, compression=None, chunk_bytes=None, shard_bytes=None, portable=false,
        consolidate="auto", durability="durable", overwrite=false))]
    fn new(
        compression: Option<&str>,
        chunk_bytes: Option<u64>,
        shard_bytes: Option<u64>,
        portable: bool,
        consolidate: &str,
        durability: &str,
        overwrite: bool,
    ) -> PyResult<Self> {
        let default = milepost::SaveOptions::default();
        let options = milepost::SaveOptions {
            compressor: compression.map(compressor).transpose()?.unwrap_or(default.compressor),
            chunk_bytes: chunk_bytes.unwrap_or(default.chunk_bytes),
            shard_bytes,
            portable,
            consolidate: match consolidate {
                "auto" => Consolidate::Auto,
                "never" => Consolidate::Never,
                word => return Err(unknown("consolidate", word, "\"auto\" or \"never\"")),
            },
            durability: match durability {
                "durable" => Durability::Durable,
                "published" => Durability::Published,
                word => return Err(unknown("durability", word, "\"durable\" or \"published\"")),
            },
            overwrite,
        };
        options.validate().map_err(|e| raise(&e))?;
        Ok(Self(options))
    }
}
