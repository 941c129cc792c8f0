//! Names of the on-disk layout (spec/layout.md).

/// The group below a run that holds everything transient.
pub(crate) const TRANSIENT: &str = ".milepost";
/// Attempts in the making.
pub(crate) const TMP: &str = ".milepost/tmp";
/// Checkpoints that are deleted, until their bytes are freed.
pub(crate) const TRASH: &str = ".milepost/trash";
/// Who reads a step, and who deletes it.
pub(crate) const LEASES: &str = ".milepost/leases";
/// Steps that are never deleted.
pub(crate) const PINS: &str = ".milepost/pins";
/// What is put to find out what a store does, and what time it is.
pub(crate) const PROBE: &str = ".milepost/probe";
/// What several writers of one step tell each other, by attempt and by session.
pub(crate) const PARTS: &str = ".milepost/parts";
/// How the name of a standalone checkpoint's attempt goes on after that of the checkpoint.
pub(crate) const BESIDE: &str = ".milepost-tmp-";
/// How the name of such an attempt goes on where its writers, if there are several, tell each other things.
pub(crate) const PARTS_BESIDE: &str = ".parts";
/// How the key of an attempt's mark goes on after that of its directory.
pub(crate) const MARK: &str = ".lease";
/// The group below a checkpoint that holds the indexes of its items.
pub(crate) const INDEXES: &str = "_milepost";
/// The name of every Zarr document.
pub(crate) const DOCUMENT: &str = "zarr.json";
/// No record is longer: 64 KiB, 1 MiB of user metadata in its JSON form, and room to spare.
pub(crate) const RECORD_BYTES_MAX: u64 = 4 << 20;
/// No document of a single node is longer.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 64 << 20;

/// Joins two relative keys, either of which may be empty.
pub(crate) fn join(a: &str, b: &str) -> String {
    match (a.is_empty(), b.is_empty()) {
        (true, _) => b.to_owned(),
        (_, true) => a.to_owned(),
        _ => format!("{a}/{b}"),
    }
}

/// Returns the key of the stored index of an item.
pub(crate) fn index_chunk(item: &str) -> String {
    format!("{INDEXES}/{item}/c.0")
}

/// Returns the name of a revision of a step (spec/commit.md): `1200`, `1200.r1`, ….
pub(crate) fn revision_name(step: &str, revision: u64) -> String {
    if revision == 0 { step.to_owned() } else { format!("{step}.r{revision}") }
}

/// Splits a directory name into the step's name and its revision.
pub(crate) fn parse_revision(name: &str) -> (&str, u64) {
    let split = name.rsplit_once(".r").and_then(|(step, digits)| {
        let canonical = !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse().ok().filter(|_| canonical).map(|revision| (step, revision))
    });
    split.unwrap_or((name, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_have_one_name_each() {
        for (name, step, revision) in
            [("12", "12", 0), ("12.r1", "12", 1), ("12.r01", "12.r01", 0), ("a.rx", "a.rx", 0)]
        {
            assert_eq!(parse_revision(name), (step, revision));
            assert_eq!(revision_name(step, revision), name);
        }
    }
}
