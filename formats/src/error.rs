//! The error of every parser here: what is wrong, and where in the input.

/// What a caller can do about a [`FormatError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatErrorKind {
    /// The bytes are not what a writer wrote.
    Corrupt,
    /// A newer version, an unknown codec or data type.
    Unsupported,
    /// The value that was to be written cannot be expressed in the format.
    Invalid,
}

/// Why bytes could not be parsed or a value could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct FormatError {
    kind: FormatErrorKind,
    message: String,
}

impl FormatError {
    /// Creates an error about damaged bytes.
    #[must_use]
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self { kind: FormatErrorKind::Corrupt, message: message.into() }
    }

    /// Creates an error about something this version does not know.
    #[must_use]
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self { kind: FormatErrorKind::Unsupported, message: message.into() }
    }

    /// Creates an error about a value that the format cannot hold.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { kind: FormatErrorKind::Invalid, message: message.into() }
    }

    /// Returns what the caller can do.
    #[must_use]
    pub fn kind(&self) -> FormatErrorKind {
        self.kind
    }
}
