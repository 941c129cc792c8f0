//! What a refusal of the operating system means to the caller: one table, `errno` to kind and hint.
//!
//! `EIO` is read as `Corrupt` when bytes were asked for (the medium lost them: verify, use another step)
//! and as `Unavailable` when bytes were handed over (nothing is lost yet: save again, or elsewhere).

use crate::error::{Error, ErrorKind};
use rustix::io::Errno;

/// What was being done when the system refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    /// Opening, reading or listing what should be there.
    Reading,
    /// Creating, writing, renaming or deleting.
    Writing,
    /// Making written bytes durable.
    Syncing,
}

/// Turns a system error into ours; the caller adds `store`, `object` and `range`.
pub(super) fn explain(errno: Errno, doing: Doing) -> Error {
    let (kind, message, hint) = classify(errno, doing);
    let error = Error::new(kind, message).because(std::io::Error::from(errno));
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// Explains an error while reading.
pub(super) fn reading(errno: Errno) -> Error {
    explain(errno, Doing::Reading)
}

/// Explains an error while writing.
pub(super) fn writing(errno: Errno) -> Error {
    explain(errno, Doing::Writing)
}

/// Explains an error while making bytes durable.
pub(super) fn syncing(errno: Errno) -> Error {
    explain(errno, Doing::Syncing)
}

fn classify(errno: Errno, doing: Doing) -> (ErrorKind, &'static str, Option<&'static str>) {
    use ErrorKind::{AlreadyExists, Corrupt, Invalid, NotFound, Unavailable, Unsupported};
    let reading = doing == Doing::Reading;
    match errno {
        Errno::NOENT => (NotFound, "not found", None),
        Errno::NOTDIR if reading => (NotFound, "not found: a parent is not a directory", None),
        Errno::ISDIR if reading => (NotFound, "not found: this is a directory", None),
        Errno::NOTDIR => {
            (Invalid, "a file is where a directory is needed", Some("choose another place"))
        }
        Errno::ISDIR => {
            (Invalid, "a directory is where an object is to be", Some("choose another place"))
        }
        Errno::EXIST | Errno::NOTEMPTY => (AlreadyExists, "exists already", None),
        Errno::NOSPC => {
            (Unavailable, "the file system is full", Some("free space there, then try again"))
        }
        Errno::DQUOT => {
            (Unavailable, "the disk quota is used up", Some("free space there, then try again"))
        }
        Errno::ACCESS | Errno::PERM => (
            Invalid,
            "permission denied",
            Some("check the owner and mode of the directory, or choose another place"),
        ),
        Errno::ROFS => {
            (Invalid, "the file system is read-only", Some("choose a place that can be written"))
        }
        Errno::NAMETOOLONG => (Invalid, "the name is too long for the file system", None),
        Errno::LOOP => (Invalid, "too many symbolic links", None),
        Errno::INVAL if !reading => (Invalid, "the file system refuses the name or the call", None),
        Errno::FBIG => (Invalid, "the object is too large for the file system", None),
        Errno::SPIPE => (Invalid, "not a regular file", None),
        Errno::XDEV => (
            Unsupported,
            "the two names are on different file systems",
            Some("keep a run on one file system"),
        ),
        Errno::OPNOTSUPP | Errno::NOSYS => (Unsupported, "the file system cannot do this", None),
        Errno::IO if reading => {
            (Corrupt, "the device cannot read this", Some("check the disk; use another step"))
        }
        Errno::IO => {
            (Unavailable, "the device failed to write", Some("check the disk, then save again"))
        }
        Errno::MFILE | Errno::NFILE => {
            (Unavailable, "too many open files", Some("raise the limit (`ulimit -n`)"))
        }
        Errno::NOMEM => (Unavailable, "the system is out of memory", None),
        _ => match doing {
            Doing::Reading => (Unavailable, "the read failed", None),
            Doing::Writing => (Unavailable, "the write failed", None),
            Doing::Syncing => (
                Unavailable,
                "written bytes could not be made durable",
                Some("nothing was published; check the disk, then save again"),
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_error_is_corrupt_when_reading_and_unavailable_when_writing() {
        assert_eq!(reading(Errno::IO).kind(), ErrorKind::Corrupt);
        assert_eq!(writing(Errno::IO).kind(), ErrorKind::Unavailable);
        assert_eq!(syncing(Errno::IO).kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn a_full_disk_and_a_refusal_come_with_a_hint() {
        for (errno, kind) in [
            (Errno::NOSPC, ErrorKind::Unavailable),
            (Errno::DQUOT, ErrorKind::Unavailable),
            (Errno::ACCESS, ErrorKind::Invalid),
            (Errno::ROFS, ErrorKind::Invalid),
        ] {
            let error = writing(errno);
            assert_eq!(error.kind(), kind);
            assert!(error.hint_text().is_some());
        }
    }
}
