//! The one error of the public API: what the caller can do about it, where it happened, and a hint.
//!
//! Kinds are prescriptive (retry, fix the call, use another step, …), so callers match on
//! [`ErrorKind`] and people read the message. Causes are never inlined: walk `source()`.

use std::{fmt, sync::Arc};

/// A `Result` whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller can do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The thing that was named does not exist.
    NotFound,
    /// The thing that was to be created exists already.
    AlreadyExists,
    /// Another writer was faster: read again, then decide.
    Conflict,
    /// The store did not answer or is full: trying again may succeed.
    Unavailable,
    /// Stored bytes are not what was written: verify, or use another step.
    Corrupt,
    /// A newer format, or something this build or place cannot do.
    Unsupported,
    /// The call is wrong: fix it.
    Invalid,
    /// It did not end in the time it was given: it may go on.
    Timeout,
    /// The caller cancelled the operation.
    Cancelled,
    /// A bug in Milepost: report it.
    Internal,
}

/// An error with its kind, its context pairs and, where the user can act, a hint.
///
/// `Display` prints the message and the context, not the hint and not the cause. A clone shares the cause: a failed
/// save tells everybody who asks.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: String,
    context: Vec<(&'static str, String)>,
    hint: Option<String>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Creates an error of `kind`; the message is lowercase, without a trailing dot.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            context: Vec::new(),
            hint: None,
            source: None,
        }))
    }

    /// Adds a context pair (`step`, `leaf`, `chunk`, `object`, `range`, `store`, …).
    ///
    /// The innermost caller knows best: a key that is already there is kept.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        if self.get(key).is_none() {
            self.0.context.push((key, value.to_string()));
        }
        self
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(Arc::from(source.into()));
        self
    }

    /// Returns what the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns the message without context.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Returns the context pairs, innermost first.
    #[must_use]
    pub fn context(&self) -> &[(&'static str, String)] {
        &self.0.context
    }

    /// Returns the value of one context key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.context.iter().find(|(k, _)| *k == key).map(|(_, v)| v.as_str())
    }

    /// Returns what the user can do, if there is something.
    #[must_use]
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    pub(crate) fn exists(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::AlreadyExists, message)
    }

    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    pub(crate) fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    pub(crate) fn cancelled(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Cancelled, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        for (i, (key, value)) in self.0.context.iter().enumerate() {
            let lead = if i == 0 { ". " } else { ", " };
            write!(f, "{lead}{key}=`{value}`")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)?;
        if let Some(hint) = &self.0.hint {
            write!(f, " (hint: {hint})")?;
        }
        if let Some(source) = &self.0.source {
            write!(f, " (cause: {source})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

impl From<milepost_formats::FormatError> for Error {
    fn from(error: milepost_formats::FormatError) -> Self {
        use milepost_formats::FormatErrorKind as Kind;
        let kind = match error.kind() {
            Kind::Corrupt => ErrorKind::Corrupt,
            Kind::Unsupported => ErrorKind::Unsupported,
            Kind::Invalid => ErrorKind::Invalid,
        };
        Self::new(kind, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_shows_message_and_context_but_not_hint_or_cause() {
        let error = Error::corrupt("checksum mismatch")
            .with("step", 1200)
            .with("leaf", "params/w")
            .with("step", 7)
            .hint("run `milepost verify`")
            .because(std::io::Error::other("bad disk"));
        assert_eq!(error.to_string(), "checksum mismatch. step=`1200`, leaf=`params/w`");
        assert_eq!(error.hint_text(), Some("run `milepost verify`"));
        assert_eq!(error.get("leaf"), Some("params/w"));
    }
}
