//! Verification: every stored byte against the checksums that lead up to the record.
//!
//! The record proves itself, names the indexes by hash, and an index names every object by size, crc32c and, where it
//! holds data, by the hash of its decoded content. The crc32c finds a flip in any byte, padding too; the content
//! finds chunks that are good in themselves, but not those that were written. Where an object differs, the bad
//! chunks are named with their byte ranges, or it is found that another tool rewrote it with equal content.

use super::{
    layout::{DOCUMENT, DOCUMENT_BYTES_MAX, INDEXES, index_chunk, join},
    reader::Checkpoint,
    restore::ItemIndex,
};
use crate::{
    array::leaf_bytes,
    codec::{crc32c, crc32c_append},
    error::{Error, ErrorKind, Result},
    io::Budget,
    store::Span,
    tasks::wait,
};
use futures::{StreamExt, stream};
use milepost_formats::{
    index::{Object, index_document, index_group_document},
    record::Item,
};
use std::collections::HashSet;

/// Large objects are read in pieces of this size.
const PIECE_BYTES: u64 = 8 << 20;

/// Decoded chunks in memory at once, beside the engine's budget; a larger one is alone.
const DECODED_BYTES: u64 = 32 << 20;

/// What is said of something that is not intact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Another tool wrote it anew with equal content: a warning.
    Rewritten,
    /// It belongs to no item: a warning.
    Stray,
    /// Its bytes are not what was written, or it is missing.
    Corrupt,
    /// It could not be read: the store did not answer, or the format is newer.
    NotVerified,
}

/// One thing that is not intact.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What is said of it.
    pub outcome: Outcome,
    /// What is wrong.
    pub message: String,
    /// The key of the object, relative to the checkpoint.
    pub object: String,
    /// The item, where it belongs to one.
    pub item: Option<String>,
    /// The key path of the leaf, where it belongs to one.
    pub leaf: Option<String>,
    /// The chunk, where it is one.
    pub chunk: Option<String>,
    /// First byte and length in the object, where known.
    pub range: Option<(u64, u64)>,
}

impl Finding {
    pub(super) fn new(outcome: Outcome, object: &str, message: impl Into<String>) -> Self {
        let (item, leaf, chunk, range) = (None, None, None, None);
        let (message, object) = (message.into(), object.to_owned());
        Self { outcome, message, object, item, leaf, chunk, range }
    }

    fn of(object: &str, error: &Error) -> Self {
        let outcome = match error.kind() {
            ErrorKind::Corrupt | ErrorKind::NotFound => Outcome::Corrupt,
            _ => Outcome::NotVerified,
        };
        Self::new(outcome, object, error.message())
    }
}

/// What a verification found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Objects looked at.
    pub objects: u64,
    /// Stored bytes read.
    pub bytes: u64,
    /// What is not intact, in order of the objects.
    pub findings: Vec<Finding>,
}

impl VerifyReport {
    /// Tells whether nothing is corrupt and everything could be read; warnings do not count.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.findings.iter().all(|f| matches!(f.outcome, Outcome::Rewritten | Outcome::Stray))
    }

    /// Turns what is wrong into an error that names the first finding.
    pub(crate) fn into_result(self, checkpoint: &Checkpoint) -> Result<()> {
        if self.is_good() {
            return Ok(());
        }
        let worst =
            |finding: &&Finding| !matches!(finding.outcome, Outcome::Rewritten | Outcome::Stray);
        let unread = self.findings.iter().filter(worst).all(|f| f.outcome == Outcome::NotVerified);
        let mut error = if unread {
            Error::unavailable("the checkpoint could not be verified")
        } else {
            Error::corrupt("the checkpoint does not verify")
        };
        if let Some(first) = self.findings.iter().find(worst) {
            error = error.with("object", &first.object).with("finding", &first.message);
            for (key, value) in
                [("item", &first.item), ("leaf", &first.leaf), ("chunk", &first.chunk)]
            {
                error = value.iter().fold(error, |error, value| error.with(key, value));
            }
        }
        Err(checkpoint.blame(error).hint("`milepost verify` lists everything that is wrong"))
    }
}

/// An object that is to be there.
pub(super) struct Expected<'a> {
    /// The key relative to the checkpoint.
    pub(super) key: String,
    pub(super) bytes: u64,
    pub(super) crc32c: u32,
    pub(super) belongs: Belongs<'a>,
}

/// What an object is, so that a difference can be judged.
#[derive(Clone, Copy)]
pub(super) enum Belongs<'a> {
    /// A document of the checkpoint itself.
    Checkpoint,
    /// A group of an item.
    Group(&'a ItemIndex),
    /// The document of a leaf.
    Document(&'a ItemIndex, usize),
    /// A chunk object or shard of a leaf.
    Data(&'a ItemIndex, usize, u64),
}

impl Checkpoint {
    /// Reads every stored object and compares it, and what it decodes to, with the index.
    ///
    /// # Errors
    /// None for what is found: that is the report. Only a listing that fails is an error.
    pub async fn verify(&self) -> Result<VerifyReport> {
        let mut report = VerifyReport { objects: 1, ..VerifyReport::default() };
        if self.is_rewritten() {
            let message = "the record's document was rewritten with equal content";
            report.findings.push(Finding::new(Outcome::Rewritten, DOCUMENT, message));
        }
        let mut known: HashSet<String> = HashSet::from([DOCUMENT.to_owned()]);
        for expected in self.own_documents() {
            known.insert(expected.key.clone());
            self.check_into(&mut report, expected).await;
        }
        for item in &self.record().items {
            known.insert(index_chunk(&item.name));
            report.objects += 1;
            match self.item_index(&item.name).await {
                Ok(index) => self.verify_item(&index, &mut report, &mut known).await,
                Err(error) => {
                    let mut finding = Finding::of(&index_chunk(&item.name), &error);
                    finding.item = Some(item.name.clone());
                    finding.message.push_str("; the item was not verified further");
                    report.findings.push(finding);
                    let objects =
                        self.place().store().list_all(&self.place().key(&item.name)).await?;
                    known.extend(objects.iter().filter_map(|o| self.relative(&o.key)));
                }
            }
        }
        self.find_strays(&mut report, &known).await?;
        Ok(report)
    }

    /// Verifies on the calling thread; as [`Checkpoint::verify`].
    ///
    /// # Errors
    /// As [`Checkpoint::verify`].
    pub fn verify_blocking(&self) -> Result<VerifyReport> {
        wait(self.verify())
    }

    fn relative(&self, key: &str) -> Option<String> {
        let prefix = self.place().prefix();
        let rest = key.strip_prefix(prefix)?;
        Some(rest.strip_prefix('/').unwrap_or(rest).to_owned())
    }

    /// The documents that no index lists: pure functions of the record.
    fn own_documents(&self) -> Vec<Expected<'static>> {
        let expected = |key: String, object: Object| Expected {
            key,
            bytes: object.bytes,
            crc32c: object.crc32c,
            belongs: Belongs::Checkpoint,
        };
        let of = |bytes: Vec<u8>| Object {
            bytes: bytes.len() as u64,
            crc32c: crc32c(&bytes),
            content: None,
        };
        let claim = self.record().claim.clone();
        let group = claim.unwrap_or_else(|| of(index_group_document()));
        let mut documents = vec![expected(format!("{INDEXES}/{DOCUMENT}"), group)];
        documents.extend(self.record().items.iter().map(|item: &Item| {
            let key = format!("{INDEXES}/{}/{DOCUMENT}", item.name);
            expected(key, of(index_document(item.index_json_bytes)))
        }));
        documents
    }

    async fn verify_item(
        &self,
        index: &ItemIndex,
        report: &mut VerifyReport,
        known: &mut HashSet<String>,
    ) {
        let item = &index.item.name;
        let mut expected = Vec::new();
        for group in &index.tree.index().groups {
            expected.push(Expected {
                key: join(item, &join(&group.path, DOCUMENT)),
                bytes: group.document.bytes,
                crc32c: group.document.crc32c,
                belongs: Belongs::Group(index),
            });
        }
        for (position, leaf) in index.leaves().iter().enumerate() {
            let root = join(item, &leaf.path);
            expected.push(Expected {
                key: join(&root, DOCUMENT),
                bytes: leaf.document.bytes,
                crc32c: leaf.document.crc32c,
                belongs: Belongs::Document(index, position),
            });
            for (linear, object) in leaf.objects.iter().enumerate() {
                let linear = linear as u64;
                expected.push(Expected {
                    key: join(&root, &crate::array::object_name(leaf, linear)),
                    bytes: object.bytes,
                    crc32c: object.crc32c,
                    belongs: Belongs::Data(index, position, linear),
                });
            }
        }
        self.progress.plan(
            index.leaves().len() as u64,
            expected.len() as u64,
            expected.iter().map(|e| e.bytes).sum(),
        );
        known.extend(expected.iter().map(|e| e.key.clone()));
        let concurrency = self.context().concurrency();
        // Not the engine's budget: its reservations are asked for while these are held.
        let decoded = Budget::new(DECODED_BYTES);
        let mut checks = stream::iter(expected)
            .map(|expected| self.check(expected, &decoded))
            .buffered(concurrency);
        while let Some((bytes, findings)) = checks.next().await {
            report.objects += 1;
            report.bytes += bytes;
            report.findings.extend(findings);
        }
    }

    async fn check_into(&self, report: &mut VerifyReport, expected: Expected<'_>) {
        let (bytes, findings) = self.check(expected, &Budget::new(DECODED_BYTES)).await;
        report.objects += 1;
        report.bytes += bytes;
        report.findings.extend(findings);
    }

    /// Compares one object; returns the bytes read and what is wrong with it.
    async fn check(&self, expected: Expected<'_>, decoded: &Budget) -> (u64, Vec<Finding>) {
        let compared = self.compare(&expected).await;
        self.progress.chunk_done(expected.bytes);
        match compared {
            Ok(true) => (expected.bytes, self.check_content(&expected, decoded).await),
            Ok(false) => (expected.bytes, self.judge(&expected).await),
            Err(error) if error.kind() == ErrorKind::Corrupt => (0, self.judge(&expected).await),
            Err(error) => (0, vec![Self::describe(&expected, Finding::of(&expected.key, &error))]),
        }
    }

    /// Compares the decoded content of a data object whose stored bytes have the right checksum.
    ///
    /// A crc32c over bytes that end with their own crc32c is the same for all of them, so that of an object is blind to
    /// whole chunks, or shard indexes, in the place of others. The content hash is not.
    async fn check_content(&self, expected: &Expected<'_>, decoded: &Budget) -> Vec<Finding> {
        let Belongs::Data(index, position, _) = expected.belongs else { return Vec::new() };
        let leaf = &index.leaves()[position];
        let chunk_bytes = leaf_bytes(leaf.data_type, &leaf.chunk_shape).unwrap_or(u64::MAX);
        // One chunk after the other: an object never holds more than one.
        let _hold = decoded.reserve(self.priority, chunk_bytes).await;
        let mut findings = self.judge(expected).await;
        findings.retain(|finding| finding.outcome != Outcome::Rewritten);
        findings
    }

    /// Tells whether an object has the expected size and checksum.
    async fn compare(&self, expected: &Expected<'_>) -> Result<bool> {
        let context = self.context();
        let key = self.place().key(&expected.key);
        let store = self.place().store();
        if expected.bytes <= PIECE_BYTES {
            let hold = context.engine.budget().reserve(self.priority, expected.bytes).await;
            let span = Span::Whole { bytes_max: expected.bytes.max(1) };
            let bytes = store.get(&key, span, self.priority).await?;
            let (wanted, crc) = (expected.bytes, expected.crc32c);
            let sum = move || Ok(bytes.len() as u64 == wanted && crc32c(&bytes) == crc);
            let same = context.engine.cpu().run(self.priority, sum).await;
            drop(hold);
            return same;
        }
        if store.head(&key).await?.bytes != expected.bytes {
            return Ok(false);
        }
        let mut crc = 0;
        let mut offset = 0;
        let hold = context.engine.budget().reserve(self.priority, PIECE_BYTES).await;
        let buffers = context.engine.buffers();
        while offset < expected.bytes {
            let len = PIECE_BYTES.min(expected.bytes - offset);
            let buffer = buffers.take(usize::try_from(len).unwrap_or(0))?;
            let parts = vec![buffer.into()];
            let mut parts = store.read(&key, offset, parts, self.priority).await?;
            let region = parts.remove(0);
            let sum = move || Ok((crc32c_append(crc, &region), region));
            let (sum, region) = context.engine.cpu().run(self.priority, sum).await?;
            crc = sum;
            if let Ok(buffer) = region.into_buffer() {
                buffers.give(buffer);
            }
            offset += len;
        }
        drop(hold);
        Ok(crc == expected.crc32c)
    }

    /// Fills in what an object belongs to.
    pub(super) fn describe(expected: &Expected<'_>, mut finding: Finding) -> Finding {
        let (index, position) = match expected.belongs {
            Belongs::Checkpoint => return finding,
            Belongs::Group(index) => (index, None),
            Belongs::Document(index, position) | Belongs::Data(index, position, _) => {
                (index, Some(position))
            }
        };
        finding.item = Some(index.item.name.clone());
        finding.leaf = position.map(|position| index.leaves()[position].path.clone());
        finding
    }

    async fn find_strays(&self, report: &mut VerifyReport, known: &HashSet<String>) -> Result<()> {
        for object in self.place().store().list_all(self.place().prefix()).await? {
            let Some(key) = self.relative(&object.key) else { continue };
            if !known.contains(&key) {
                let message = "the object belongs to no item";
                report.findings.push(Finding::new(Outcome::Stray, &key, message));
            }
        }
        Ok(())
    }

    /// Reads a small document for a closer look.
    pub(super) async fn document(&self, key: &str) -> Result<bytes::Bytes> {
        let span = Span::Whole { bytes_max: DOCUMENT_BYTES_MAX };
        self.place().store().get(&self.place().key(key), span, self.priority).await
    }
}
