//! What a place can do, found out by trying inside `.milepost/probe/<id>`, which is removed afterwards.
//!
//! A [`Finding`] is one line of `milepost doctor`: what was tried, how it ended, and what that means. A refusal
//! is a finding, not an error; an error means that the place could not be asked at all.

use super::{Capabilities, Place, Priority, RenameMode, Span, Store, key::unique};
use crate::{
    buffer::{Buffer, PAGE_BYTES, Region},
    error::{Error, ErrorKind, Result},
};
use bytes::Bytes;
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// How a trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It works.
    Yes,
    /// It does not.
    No,
    /// No trial: a fact.
    Fact,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Fact => "-",
        })
    }
}

/// One thing that was found out about a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was tried.
    pub name: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// Values, or why not.
    pub detail: String,
}

impl Finding {
    pub(super) fn new(name: &'static str, outcome: Outcome, detail: impl Into<String>) -> Self {
        Self { name, outcome, detail: detail.into() }
    }

    /// A trial that says why it failed.
    pub(super) fn tried<T, E: fmt::Display>(
        name: &'static str,
        result: Result<T, E>,
        detail: impl Into<String>,
    ) -> Self {
        match result {
            Ok(_) => Self::new(name, Outcome::Yes, detail),
            Err(error) => Self::new(name, Outcome::No, error.to_string()),
        }
    }
}

/// Finds out what `place` can do.
///
/// # Errors
/// Where nothing can be written although the store says so (permission, full, not reachable).
pub async fn probe(place: &Place) -> Result<Vec<Finding>> {
    let capabilities = place.store().capabilities().clone();
    if !capabilities.writable {
        return Ok(vec![
            Finding::new("write", Outcome::No, "this place can only be read"),
            path_taken(&capabilities, &[]),
        ]);
    }
    let made = missing_dirs(place);
    let scratch = place.join(&format!(".milepost/probe/{}", unique()?));
    let result = try_all(&scratch, &capabilities).await;
    // The scratch goes whatever was found; a failure to remove it is worth telling, too.
    let removed = scratch.store().delete_all(scratch.prefix()).await;
    let mut findings = result?;
    removed?;
    for dir in made {
        // Only where it is empty: others may have come meanwhile.
        drop(std::fs::remove_dir(dir));
    }
    findings.push(path_taken(&capabilities, &findings));
    Ok(findings)
}

/// Tells which directories on the way to `place` are not there yet, innermost first.
///
/// These system calls take microseconds and happen once in a `doctor` run: no thread is needed for them.
fn missing_dirs(place: &Place) -> Vec<PathBuf> {
    let Some(path) = place.local_path() else { return Vec::new() };
    let probe = path.join(".milepost/probe");
    let missing = probe.ancestors().take_while(|dir| std::fs::symlink_metadata(dir).is_err());
    missing.map(Path::to_owned).collect()
}

async fn try_all(scratch: &Place, capabilities: &Capabilities) -> Result<Vec<Finding>> {
    let store = &**scratch.store();
    store.create_dir(scratch.prefix()).await?;
    let mut findings = store.inspect(scratch.prefix()).await?;
    findings.push(write_and_read(store, scratch).await?);
    findings.push(ranges(store, scratch).await);
    findings.push(two_creators(store, scratch).await);
    findings.push(rename(store, scratch, capabilities).await);
    findings.push(exchange(store, scratch, capabilities).await);
    findings.push(copy(store, scratch, capabilities).await);
    Ok(findings)
}

async fn write_and_read(store: &dyn Store, scratch: &Place) -> Result<Finding> {
    let key = scratch.key("object");
    let content: Vec<u8> = (0..=255_u8).cycle().take(2 * PAGE_BYTES).collect();
    store.put(&key, vec![content.clone().into()], Priority::Foreground).await?;
    let bytes_max = content.len() as u64;
    let back = store.get(&key, Span::Whole { bytes_max }, Priority::Foreground).await?;
    let same = if back == content { Ok(()) } else { Err("other bytes came back") };
    Ok(Finding::tried("write and read", same, ""))
}

async fn ranges(store: &dyn Store, scratch: &Place) -> Finding {
    let key = scratch.key("object");
    let result = async {
        let parts = vec![Region::from(Buffer::zeroed(100)), Region::from(Buffer::zeroed(28))];
        let parts = store.read(&key, 256, parts, Priority::Foreground).await?;
        let tail = store.get(&key, Span::Suffix { len: 4 }, Priority::Foreground).await?;
        let right = parts[0][..] == (0..100_u8).collect::<Vec<_>>()
            && parts[1][..] == (100..128_u8).collect::<Vec<_>>()
            && tail[..] == [252, 253, 254, 255];
        if right { Ok(()) } else { Err(Error::corrupt("a range came back with other bytes")) }
    };
    Finding::tried("byte ranges", result.await, "")
}

/// Two writers create the same object, each with its own content: exactly one may be told that it won.
async fn two_creators(store: &dyn Store, scratch: &Place) -> Finding {
    let key = scratch.key("exclusive");
    let (a, b) = futures::join!(
        store.put_new(&key, Bytes::from_static(b"writer a")),
        store.put_new(&key, Bytes::from_static(b"writer b")),
    );
    let late = store.put_new(&key, Bytes::from_static(b"writer c")).await;
    let winners = [&a, &b, &late].iter().filter(|result| result.is_ok()).count();
    let result = match (winners, &late) {
        (1, Err(error)) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        (0 | 1, Err(error)) => Err(error.to_string()),
        _ => Err(format!("{winners} of 3 writers were told that they won: conditions are ignored")),
    };
    Finding::tried("exclusive create", result, "3 writers, 1 winner")
}

/// Makes a directory with one object and returns its key.
async fn directory(store: &dyn Store, scratch: &Place, name: &str) -> Result<String> {
    let prefix = scratch.key(name);
    let content = Bytes::copy_from_slice(name.as_bytes());
    store.put(&format!("{prefix}/object"), vec![content], Priority::Foreground).await?;
    Ok(prefix)
}

async fn rename(store: &dyn Store, scratch: &Place, capabilities: &Capabilities) -> Finding {
    const NAME: &str = "rename without replacing";
    if !capabilities.rename {
        return Finding::new(NAME, Outcome::No, "this store has no rename");
    }
    let result = async {
        let a = directory(store, scratch, "rename-a").await?;
        let b = directory(store, scratch, "rename-b").await?;
        let target = scratch.key("rename-c");
        store.rename(&a, &target, RenameMode::NoReplace).await?;
        match store.rename(&b, &target, RenameMode::NoReplace).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
            Ok(()) => Err(Error::unsupported("a rename replaced another directory")),
        }
    };
    Finding::tried(NAME, result.await, "")
}

async fn exchange(store: &dyn Store, scratch: &Place, capabilities: &Capabilities) -> Finding {
    const NAME: &str = "exchange";
    if !capabilities.exchange {
        return Finding::new(NAME, Outcome::No, "this store has no rename");
    }
    let result = async {
        let a = directory(store, scratch, "exchange-a").await?;
        let b = directory(store, scratch, "exchange-b").await?;
        store.rename(&a, &b, RenameMode::Exchange).await?;
        let span = Span::Whole { bytes_max: 64 };
        let there = store.get(&format!("{b}/object"), span, Priority::Foreground).await?;
        if there == "exchange-a" { Ok(()) } else { Err(Error::corrupt("nothing was exchanged")) }
    };
    Finding::tried(NAME, result.await, "")
}

async fn copy(store: &dyn Store, scratch: &Place, capabilities: &Capabilities) -> Finding {
    const NAME: &str = "copy inside the store";
    if !capabilities.copy {
        return Finding::new(NAME, Outcome::No, "this store cannot copy");
    }
    let result = store.copy(&scratch.key("object"), &scratch.key("copy")).await;
    Finding::tried(NAME, result, "")
}

/// Says in one line which way a save takes here.
fn path_taken(capabilities: &Capabilities, findings: &[Finding]) -> Finding {
    let works =
        |name| findings.iter().any(|found| found.name == name && found.outcome == Outcome::Yes);
    let detail = if !capabilities.writable {
        format!(
            "restore: {} requests of {} MiB at once",
            capabilities.concurrency,
            part_mib(capabilities)
        )
    } else if capabilities.rename {
        let write = if works("direct I/O") { "direct writes" } else { "buffered writes" };
        let sync = if works("syncfs") { "one syncfs" } else { "fdatasync of each file" };
        let publish = if works("rename without replacing") { "one rename" } else { "none" };
        let replace = if works("exchange") { "an exchange" } else { "two renames" };
        format!("durable save: {write} + {sync} + publish by {publish}; overwrite by {replace}")
    } else {
        let publish = if works("exclusive create") { "a conditional put" } else { "none" };
        format!(
            "save: {} requests of {} MiB at once + publish by {publish}",
            capabilities.concurrency,
            part_mib(capabilities)
        )
    };
    Finding::new("path", Outcome::Fact, detail)
}

fn part_mib(capabilities: &Capabilities) -> usize {
    capabilities.part_bytes >> 20
}
