//! From what a user types to a [`Place`]: plain paths and URLs.
//!
//! | form | store | prefix |
//! |---|---|---|
//! | `runs/a`, `/data/runs` | the file system `/` | the absolute path, `.` and `..` taken out of the text |
//! | `file:///data/a%20b` | the same | percent-decoded |
//! | `memory://name/prefix` | one of that name in the process | as it stands |
//! | `s3://` `s3a://` `gs://` `az://` `abfs(s)://` | the bucket or container | as it stands: `%` is a letter of a key |
//! | `http(s)://host/path` | the host, read-only | percent-decoded |
//!
//! Stores are kept by bucket and options, so that connections are shared. `..` is resolved in the text,
//! not through symbolic links; `~` is the shell's.

#[cfg(any(feature = "s3", feature = "gcs", feature = "azure", feature = "http"))]
mod cloud;

use super::{Disk, LocalStore, MemoryStore, Place, Remote, Store, key};
use crate::error::{Error, Result};
use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

/// More remote stores than this are not kept: each holds connections.
const STORES_MAX: usize = 64;

type Options = [(String, String)];
/// A bucket with its scheme, and the options it was opened with, sorted.
type Opened = HashMap<(String, Vec<(String, String)>), Arc<dyn Store>>;

/// The stores of one engine, opened when they are named.
#[derive(Debug)]
pub(crate) struct Stores {
    disk: Arc<Disk>,
    remote: Arc<Remote>,
    local: OnceLock<Arc<LocalStore>>,
    opened: Mutex<Opened>,
}

impl Stores {
    /// Prepares stores that use the engine's disk threads and its runtime.
    pub(crate) fn new(disk: Arc<Disk>, remote: Arc<Remote>) -> Self {
        Self { disk, remote, local: OnceLock::new(), opened: Mutex::default() }
    }

    /// Opens the place of a path or URL; nothing is read or written there yet.
    ///
    /// `options` are configuration keys of the remote store (`endpoint`, `region`, `access_key_id`,
    /// `secret_access_key`, `allow_http`, …); what they do not say comes from the environment.
    ///
    /// # Errors
    /// `Unsupported` for an unknown scheme or one this build lacks, `Invalid` for a malformed place or an
    /// unknown option.
    pub(crate) fn open(&self, place: &str, options: &Options) -> Result<Place> {
        // A password may stand before an `@`: such a place is not repeated in a message.
        let shown = if place.contains('@') { "(with credentials)" } else { place };
        self.resolve(place, options).map_err(|error| error.with("place", shown))
    }

    fn resolve(&self, place: &str, options: &Options) -> Result<Place> {
        let Some((scheme, rest)) = place.split_once("://").filter(|(s, _)| is_scheme(s)) else {
            return self.open_path(place, options);
        };
        let scheme = scheme.to_ascii_lowercase();
        match scheme.as_str() {
            "file" => self.open_path(&file_path(rest)?, options),
            "memory" => {
                no_options(options)?;
                let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let prefix = checked_prefix(prefix)?;
                Ok(Place::new(MemoryStore::named(name), prefix))
            }
            _ => {
                let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
                check_authority(&scheme, authority)?;
                let prefix = match scheme.as_str() {
                    "http" | "https" => checked_prefix(&http_path(path)?)?,
                    _ => checked_prefix(path)?,
                };
                Ok(Place::new(self.remote(&scheme, authority, options)?, prefix))
            }
        }
    }

    fn open_path(&self, path: &str, options: &Options) -> Result<Place> {
        no_options(options)?;
        if path.is_empty() {
            return Err(Error::invalid("a path is empty"));
        }
        let path = std::path::absolute(path)
            .map_err(|e| Error::invalid("the current directory cannot be told").because(e))?;
        let prefix = lexical(&path)?;
        Ok(Place::new(self.local()?, prefix))
    }

    /// Returns the store of the whole file system.
    fn local(&self) -> Result<Arc<LocalStore>> {
        if let Some(store) = self.local.get() {
            return Ok(Arc::clone(store));
        }
        let store = LocalStore::new(PathBuf::from("/"), Arc::clone(&self.disk))?;
        Ok(Arc::clone(self.local.get_or_init(|| store)))
    }

    fn remote(&self, scheme: &str, authority: &str, options: &Options) -> Result<Arc<dyn Store>> {
        let mut sorted = options.to_vec();
        sorted.sort();
        let name = (format!("{scheme}://{authority}"), sorted);
        if let Some(store) = self.opened.lock().unwrap_or_else(PoisonError::into_inner).get(&name) {
            return Ok(Arc::clone(store));
        }
        let store = build(scheme, authority, options, &self.remote)?;
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if opened.len() >= STORES_MAX {
            opened.clear(); // places that are in use hold their store themselves
        }
        Ok(Arc::clone(opened.entry(name).or_insert(store)))
    }
}

fn build(
    scheme: &str,
    authority: &str,
    options: &Options,
    remote: &Arc<Remote>,
) -> Result<Arc<dyn Store>> {
    match scheme {
        #[cfg(feature = "s3")]
        "s3" | "s3a" => cloud::s3(authority, options, remote),
        #[cfg(feature = "gcs")]
        "gs" => cloud::gcs(authority, options, remote),
        #[cfg(feature = "azure")]
        "az" | "abfs" | "abfss" => cloud::azure(scheme, authority, options, remote),
        #[cfg(feature = "http")]
        "http" | "https" => cloud::http(scheme, authority, options, remote),
        _ => {
            let _ = (authority, options, remote);
            Err(missing(scheme))
        }
    }
}

fn missing(scheme: &str) -> Error {
    let feature = match scheme {
        "s3" | "s3a" => "s3",
        "gs" => "gcs",
        "az" | "abfs" | "abfss" => "azure",
        "http" | "https" => "http",
        _ => {
            return Error::unsupported("an unknown scheme").with("scheme", scheme).hint(
                "use a path, file://, memory://, s3://, gs://, az://, abfss://, http:// or https://",
            );
        }
    };
    Error::unsupported(format!("this build lacks the feature `{feature}`"))
        .with("scheme", scheme)
        .hint(format!("build with `--features {feature}`"))
}

/// Checks what stands between `://` and the path: it becomes part of request URLs.
fn check_authority(scheme: &str, authority: &str) -> Result<()> {
    // abfss://container@account.dfs.core.windows.net, http://host:port, http://[::1]:port
    let more = match scheme {
        "abfs" | "abfss" => "@",
        "http" | "https" => ":[]",
        _ => "",
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c) || more.contains(c);
    if authority.is_empty() || !authority.chars().all(fits) {
        return Err(Error::invalid("a URL names no proper bucket or host")
            .hint("credentials are options, or come from the environment"));
    }
    Ok(())
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

fn no_options(options: &Options) -> Result<()> {
    match options.first() {
        None => Ok(()),
        Some((key, _)) => Err(unknown_option(key)),
    }
}

fn unknown_option(key: &str) -> Error {
    Error::invalid("this place has no such option").with("option", key)
}

fn checked_prefix(prefix: &str) -> Result<String> {
    let prefix = prefix.trim_end_matches('/');
    key::check_prefix(prefix)?;
    Ok(prefix.to_owned())
}

/// Returns the path of an absolute file name as a prefix of the store `/`.
fn lexical(path: &Path) -> Result<String> {
    let mut segments: Vec<&str> = Vec::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(segments.pop()),
            Component::Normal(name) => segments
                .push(name.to_str().ok_or_else(|| Error::invalid("a path is not valid UTF-8"))?),
            _ => {}
        }
    }
    checked_prefix(&segments.join("/"))
}

/// Returns the path of what follows `file://`.
fn file_path(rest: &str) -> Result<String> {
    let path = rest.strip_prefix("localhost").filter(|path| path.starts_with('/')).unwrap_or(rest);
    if !path.starts_with('/') {
        return Err(Error::invalid("a file URL names another host")
            .hint("write file:///absolute/path, or just the path"));
    }
    decode(path)
}

/// Returns the path of an HTTP URL as a key.
fn http_path(path: &str) -> Result<String> {
    if path.contains(['?', '#']) {
        return Err(Error::invalid("a URL with a query or a fragment is not a place"));
    }
    decode(path)
}

/// Takes out percent signs; what they hide must be UTF-8, and a stray `%` stands for nothing.
fn decode(text: &str) -> Result<String> {
    let malformed = || Error::invalid("a URL has a malformed percent sign");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, more)) = rest.split_first() {
        rest = more;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, more) = rest.split_at_checked(2).ok_or_else(malformed)?;
        let digits = std::str::from_utf8(digits).map_err(|_| malformed())?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(malformed());
        }
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| malformed())?);
        rest = more;
    }
    String::from_utf8(bytes).map_err(|_| Error::invalid("a URL hides bytes that are not UTF-8"))
}

#[cfg(test)]
mod tests;
