//! A closer look at an object that differs from the index: rewritten with equal content, or corrupt, and where.

use super::{
    reader::Checkpoint,
    restore::ItemIndex,
    verify::{Belongs, Expected, Finding, Outcome},
};
use crate::{
    array::{chunk_name, object_hash, read_chunk},
    codec::{content_hash, crc32c},
    error::{Error, ErrorKind, Result},
};
use milepost_formats::zarr3::Document;

impl Checkpoint {
    /// Says what is wrong with an object whose size or checksum is not the index's.
    pub(super) async fn judge(&self, expected: &Expected<'_>) -> Vec<Finding> {
        let found = match expected.belongs {
            Belongs::Data(index, position, linear) => {
                self.judge_data(expected, index, (position, linear)).await
            }
            _ => self.judge_document(expected).await.map(|rewritten| {
                let (outcome, message) = if rewritten {
                    (Outcome::Rewritten, "the document was rewritten with equal content")
                } else {
                    (Outcome::Corrupt, "the document is not the one that was written")
                };
                vec![Finding::new(outcome, &expected.key, message)]
            }),
        };
        let findings = found.unwrap_or_else(|error| {
            let outcome = match error.kind() {
                ErrorKind::Unavailable => Outcome::NotVerified,
                _ => Outcome::Corrupt,
            };
            vec![Finding::new(outcome, &expected.key, error.message())]
        });
        findings.into_iter().map(|finding| Self::describe(expected, finding)).collect()
    }

    /// Tells whether a document says what was written, in other bytes.
    async fn judge_document(&self, expected: &Expected<'_>) -> Result<bool> {
        let bytes = self.document(&expected.key).await?;
        let canonical = match Document::parse(&bytes) {
            Ok(Document::Array(array)) => array.to_bytes(),
            Ok(Document::Group(group)) => group.to_bytes(),
            _ => return Ok(false),
        };
        Ok(canonical.len() as u64 == expected.bytes && crc32c(&canonical) == expected.crc32c)
    }

    /// Decodes the chunks of an object that differs.
    async fn judge_data(
        &self,
        expected: &Expected<'_>,
        index: &ItemIndex,
        (position, linear): (usize, u64),
    ) -> Result<Vec<Finding>> {
        let array = index.open_array(position).await?;
        let context = self.context();
        let mut findings = Vec::new();
        let mut digests = Vec::new();
        for chunk in array.chunks_of_object(linear) {
            let read = read_chunk(&context, &array, &chunk).await;
            match read {
                Ok(bytes) => digests.push(content_hash(&bytes)),
                Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
                Err(error) => {
                    let mut finding =
                        Finding::new(Outcome::Corrupt, &expected.key, error.message());
                    finding.chunk = Some(chunk_name(&chunk));
                    finding.range = array.stored_range(&context, &chunk).await.ok().flatten();
                    findings.push(finding);
                }
            }
        }
        if !findings.is_empty() {
            return Ok(findings);
        }
        let leaf = &index.leaves()[position];
        let object = usize::try_from(linear).ok().and_then(|slot| leaf.objects.get(slot));
        let wanted = object.and_then(|o| o.content);
        if wanted == Some(object_hash(&digests, leaf.shard_shape.is_some())) {
            let message =
                "the object was rewritten with equal content, or bytes that no reader uses differ";
            return Ok(vec![Finding::new(Outcome::Rewritten, &expected.key, message)]);
        }
        Err(Error::corrupt("the object decodes, but not to what was written"))
    }
}
