//! Matches a restore target against a stored index, before a byte is read.
//!
//! The caller says what it wants as a tree of [`TargetLeaf`]; each leaf may leave kind, data type or shape
//! open ("as stored"). The result pairs target leaves with stored leaves by position, or is one error whose
//! message and cause list every mismatch by key path.
//!
//! Numbers are numbers: an `int` of the caller's language meets a stored 0-d array and the other way round, if
//! shape and data type fit. Text and bytes have no shape to compare, since their length is their value.
//! `None` and empty containers carry no data, so one that is missing or unexpected is no mismatch.

use super::{
    diff::{Meeting, Mismatch, Mismatches, What, lost},
    index::TreeIndex,
    leaf::LeafSpec,
    path::KeyPath,
    tree::Tree,
};
use crate::error::{Error, Result};
use milepost_formats::{
    DataType,
    index::{Leaf, LeafKind},
};

/// So many mismatches are part of the error's message; its cause holds all.
const LISTED_MAX: usize = 100;

/// A wanted leaf; what is `None` is as stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetLeaf {
    /// The kind.
    pub kind: Option<LeafKind>,
    /// The data type; another that is stored is cast, where the rule allows it.
    pub data_type: Option<DataType>,
    /// The shape.
    pub shape: Option<Vec<u64>>,
}

impl From<LeafSpec> for TargetLeaf {
    fn from(spec: LeafSpec) -> Self {
        Self { kind: Some(spec.kind), data_type: Some(spec.data_type), shape: Some(spec.shape) }
    }
}

/// What becomes of a target leaf that is not stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingPolicy {
    /// It is a mismatch.
    #[default]
    Error,
    /// It is left as it is, and reported.
    Skip,
}

/// What becomes of a stored leaf that the target does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnexpectedPolicy {
    /// It is a mismatch.
    #[default]
    Error,
    /// It is not read, and reported.
    Ignore,
}

/// How containers of target and checkpoint meet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContainerPolicy {
    /// A dict meets a dict, a list a list; the type names of objects are not compared.
    #[default]
    Same,
    /// Any container meets any other by the names of its children: a list meets a dict with keys `0`, `1`.
    ByName,
}

/// How a target is matched; by default everything must be on both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MatchOptions {
    /// Target leaves that are not stored. Default: an error.
    pub missing: MissingPolicy,
    /// Stored leaves that the target does not have. Default: an error.
    pub unexpected: UnexpectedPolicy,
    /// Containers of another kind. Default: an error; change it to restore into another language's or
    /// framework's structure.
    pub containers: ContainerPolicy,
}

/// A target leaf and the stored leaf that fills it; both are positions in tree order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) target: usize,
    pub(crate) stored: usize,
    /// The target's data type is not the stored one.
    pub(crate) needs_cast: bool,
}

/// A target that fits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Matched {
    /// In target order.
    pub(crate) pairs: Vec<Pair>,
    /// Target positions that nothing stored fills.
    pub(crate) missing: Vec<usize>,
    /// Stored positions that nobody wants.
    pub(crate) unexpected: Vec<usize>,
}

/// Matches `target` against `stored`; `castable(stored, wanted)` is asked where the data types differ.
///
/// # Errors
/// `Invalid` with every mismatch by key path; [`Mismatches::of`] gives them as data.
pub(crate) fn match_target(
    target: &Tree<TargetLeaf>,
    stored: &TreeIndex,
    options: MatchOptions,
    castable: &dyn Fn(DataType, DataType) -> bool,
) -> Result<Matched> {
    target.validate()?;
    let mut next = 0..;
    // A range without an end never ends.
    let target = target.as_ref().map(|leaf| (next.next().unwrap_or(usize::MAX), leaf));
    let mut meeting = Meeting::new(options.containers == ContainerPolicy::Same);
    meeting.meet(&target, stored.tree(), &mut KeyPath::root());
    let mut mismatches = std::mem::take(&mut meeting.mismatches);
    let mut matched = Matched::default();
    for (path, (position, want), have) in &meeting.pairs {
        let leaf = &stored.leaves()[**have];
        mismatches.extend(check(want, leaf, castable).map(|what| Mismatch {
            path: path.clone(),
            what,
            nearest: None,
        }));
        let needs_cast = want.data_type.is_some_and(|t| t != leaf.data_type);
        matched.pairs.push(Pair { target: *position, stored: **have, needs_cast });
    }
    meeting.missing.retain(|(_, leaf)| leaf.is_some());
    meeting.unexpected.retain(|(_, leaf)| leaf.is_some());
    if options.missing == MissingPolicy::Error {
        mismatches.extend(lost(&meeting.missing, &What::Missing, &meeting.unexpected));
    }
    if options.unexpected == UnexpectedPolicy::Error {
        mismatches.extend(lost(&meeting.unexpected, &What::Unexpected, &meeting.missing));
    }
    if !mismatches.is_empty() {
        return Err(refuse(Mismatches::new(mismatches)));
    }
    matched.missing = meeting.missing.iter().filter_map(|(_, l)| l.map(|(i, _)| *i)).collect();
    matched.unexpected = meeting.unexpected.iter().filter_map(|(_, i)| i.copied()).collect();
    matched.missing.sort_unstable();
    matched.unexpected.sort_unstable();
    Ok(matched)
}

/// Compares one leaf.
fn check<'a>(
    want: &'a TargetLeaf,
    have: &'a Leaf,
    castable: &dyn Fn(DataType, DataType) -> bool,
) -> impl Iterator<Item = What> + use<'a> {
    let kind = want
        .kind
        .as_ref()
        .filter(|kind| !(**kind == have.kind || is_number(kind) && is_number(&have.kind)))
        .map(|kind| What::Kind { want: kind.clone(), have: have.kind.clone() });
    // What is another kind of thing is not compared further.
    let same_kind = kind.is_none();
    let data_type = want
        .data_type
        .filter(|t| same_kind && *t != have.data_type && !castable(have.data_type, *t))
        .map(|want| What::DataType { want, have: have.data_type });
    let has_shape = !matches!(have.kind, LeafKind::Str | LeafKind::Bytes)
        || want.kind.as_ref().is_none_or(is_number);
    let shape = want
        .shape
        .as_ref()
        .filter(|shape| same_kind && has_shape && **shape != have.shape)
        .map(|shape| What::Shape { want: shape.clone(), have: have.shape.clone() });
    kind.into_iter().chain(data_type).chain(shape)
}

fn is_number(kind: &LeafKind) -> bool {
    use LeafKind::{Array, Bool, Complex, Float, Int};
    matches!(kind, Array | Int | Float | Bool | Complex)
}

fn refuse(mismatches: Mismatches) -> Error {
    let count = mismatches.len();
    let mut message = match count {
        1 => "the target does not fit the checkpoint:".to_owned(),
        n => format!("the target does not fit the checkpoint in {n} places:"),
    };
    for mismatch in mismatches.as_slice().iter().take(LISTED_MAX) {
        message.push_str("\n  ");
        message.push_str(&mismatch.to_string());
    }
    if count > LISTED_MAX {
        message.push_str("\n  … and ");
        message.push_str(&(count - LISTED_MAX).to_string());
        message.push_str(" more");
    }
    let any = |what: &What| mismatches.as_slice().iter().any(|m| m.what == *what);
    let hint = match (any(&What::Missing), any(&What::Unexpected)) {
        (true, true) => Some(
            "where only a part is meant, let missing leaves be skipped and unexpected ones ignored",
        ),
        (true, false) => {
            Some("let missing leaves be skipped to keep the target's own values there")
        }
        (false, true) => Some("let unexpected leaves be ignored to restore a part"),
        (false, false) => None,
    };
    let error = Error::invalid(message).because(mismatches);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

#[cfg(test)]
mod tests;
