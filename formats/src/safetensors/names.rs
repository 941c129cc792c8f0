//! Dotted names as key paths, and back.
//!
//! `h.0.attn.bias` becomes `[h, 0, attn, bias]`. A key may keep separators inside, so that joining the keys always
//! gives the name back and no tensor sits where another has children:
//!
//! - where a name is a dotted prefix of others, those keep their tail as one key: beside `a.b`, `a.b.c` is
//!   `[a, b.c]` and `a.b.c.d` is `[a, b.c.d]`;
//! - from an empty part on, the rest is one key: `a..b` is `[a, .b]`, `.a` is `[.a]`;
//! - after 128 keys, the rest is one key.
//!
//! Why no key path is a prefix of another: if `A` were one of `B`, the name of `A` would be a dotted prefix of that of
//! `B`, and `B` keeps its tail from the last part of its *shortest* such prefix on, so it shares at most all
//! but that part with anything.

use super::header::shown;
use crate::{FormatError, Result};
use std::collections::{HashMap, HashSet};

/// Names are split into at most this many keys and a tail; a tree may be 512 deep.
const KEYS_MAX: usize = 128;

/// Splits names at `separator`; joining each result by it gives its name back.
///
/// # Errors
/// `Invalid` where the separator is empty or a name is there twice.
pub fn split_names<S: AsRef<str>>(names: &[S], separator: &str) -> Result<Vec<Vec<String>>> {
    if separator.is_empty() {
        return Err(FormatError::invalid("an empty separator splits nothing"));
    }
    let mut all = HashSet::with_capacity(names.len());
    for name in names {
        if !all.insert(name.as_ref()) {
            let name = shown(name.as_ref());
            return Err(FormatError::invalid(format!("the name {name} is there twice")));
        }
    }
    Ok(names.iter().map(|name| split(name.as_ref(), separator, &all)).collect())
}

fn split(name: &str, separator: &str, all: &HashSet<&str>) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    let mut rest = name;
    // `rest` is what the keys so far leave; each turn tries to take one more part off it.
    while keys.len() < KEYS_MAX {
        let Some((part, tail)) = rest.split_once(separator) else { break };
        let taken = name.len() - tail.len() - separator.len();
        let is_name = name.get(..taken).is_some_and(|prefix| all.contains(prefix));
        if part.is_empty() || is_name {
            break;
        }
        keys.push(part.to_owned());
        rest = tail;
    }
    keys.push(rest.to_owned());
    keys
}

/// Joins key paths to names.
///
/// # Errors
/// `Invalid` where two become one name, which says both.
pub fn join_names<S: AsRef<str>>(paths: &[Vec<S>], separator: &str) -> Result<Vec<String>> {
    let join = |keys: &[S]| keys.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(separator);
    let mut seen: HashMap<String, &[S]> = HashMap::with_capacity(paths.len());
    paths
        .iter()
        .map(|keys| {
            let name = join(keys);
            if let Some(other) = seen.insert(name.clone(), keys) {
                let texts = |keys: &[S]| {
                    keys.iter().map(|k| shown(k.as_ref())).collect::<Vec<_>>().join(", ")
                };
                return Err(FormatError::invalid(format!(
                    "the key paths [{}] and [{}] both join to {}",
                    texts(other),
                    texts(keys),
                    shown(&name)
                )));
            }
            Ok(name)
        })
        .collect()
}
