//! Restoring what several want alike: each part comes from the store once and goes on through the launcher.

use super::{rendezvous::Rendezvous, talk::Talk};
use crate::{
    array::leaf_bytes,
    buffer::Buffer,
    checkpoint::{ArrayData, ItemIndex, WantedBox},
    codec::CastRule,
    error::{Error, Result},
};
use std::{cmp::Reverse, time::Duration};
use xxhash_rust::xxh3::xxh3_128;

/// What all want must be the same; a hash of it comes before the bytes.
const HASH_BYTES: usize = 16;

impl ItemIndex {
    /// Reads boxes that every member of a replica group wants, each from the store once.
    ///
    /// Every member gives the same boxes and rule, reads an even part of their bytes, and gets the rest from the others:
    /// worth it where the network between the members is faster than the store.
    ///
    /// # Errors
    /// As [`ItemIndex::read_boxes`] of any member; `Invalid` where members want different things; the rendezvous's.
    ///
    /// # Cancel safety
    /// Dropped: the other members miss this one.
    pub async fn read_boxes_once(
        &self,
        (wanted, rule): (&[WantedBox], CastRule),
        members: &dyn Rendezvous,
        deadline: Duration,
    ) -> Result<Vec<ArrayData>> {
        let clock = &**self.checkpoint.engine.clock();
        let talk = Talk::new((members, clock), members.sequence(), deadline);
        let hash = xxh3_128(format!("{rule:?} {wanted:?}").as_bytes()).to_le_bytes();
        let planned = self.divide(wanted, members.count());
        let own = async {
            let planned = planned.as_ref().map_err(Clone::clone)?;
            let own = planned.iter().filter(|want| want.reader == members.index());
            let own: Vec<WantedBox> = own.map(|want| wanted[want.number].clone()).collect();
            let mut value = hash.to_vec();
            for read in self.read_boxes(&own, rule).await? {
                value.extend_from_slice(&read.bytes);
            }
            Ok(value)
        };
        let own = own.await;
        let mut told = talk.gather("read", own).await?;
        if let Some(other) = told.iter().position(|value| !value.starts_with(&hash)) {
            return Err(Error::invalid("members of a group want different boxes")
                .with("participants", format!("{}, {other}", members.index())));
        }
        for value in &mut told {
            drop(value.split_to(HASH_BYTES));
        }
        let mut read = Vec::with_capacity(wanted.len());
        for want in planned? {
            let value = &mut told[want.reader];
            if want.bytes > value.len() {
                return Err(Error::corrupt("a member sent less than it was to read")
                    .with("failed", want.reader));
            }
            let bytes = Buffer::from(&value.split_to(want.bytes)[..]);
            let leaf = &self.tree.leaves()[wanted[want.number].position];
            let data_type = wanted[want.number].data_type.unwrap_or(leaf.data_type);
            let (kind, shape) = (leaf.kind.clone(), want.shape);
            read.push(ArrayData { kind, data_type, shape, bytes });
        }
        Ok(read)
    }

    /// Gives each box a reader: the largest first, to the one with least to read.
    fn divide(&self, wanted: &[WantedBox], members: usize) -> Result<Vec<Want>> {
        let mut planned = Vec::with_capacity(wanted.len());
        for (number, want) in wanted.iter().enumerate() {
            let leaf = self.tree.leaves().get(want.position).ok_or_else(|| {
                Error::not_found("there is no such leaf").with("position", want.position)
            })?;
            let part = want.part.as_ref().map(|part| part.shape().to_vec());
            let shape = part.unwrap_or_else(|| leaf.shape.clone());
            let bytes = leaf_bytes(want.data_type.unwrap_or(leaf.data_type), &shape)?;
            let bytes = usize::try_from(bytes)
                .map_err(|_| Error::invalid("a box is larger than memory").with("bytes", bytes))?;
            planned.push(Want { number, reader: 0, bytes, shape });
        }
        let mut order: Vec<usize> = (0..planned.len()).collect();
        order.sort_by_key(|number| Reverse(planned[*number].bytes));
        let mut loads = vec![0_usize; members];
        for number in order {
            let reader = (0..members).min_by_key(|member| loads[*member]).unwrap_or(0);
            planned[number].reader = reader;
            loads[reader] = loads[reader].saturating_add(planned[number].bytes);
        }
        Ok(planned)
    }
}

/// A box and who reads it.
struct Want {
    number: usize,
    reader: usize,
    bytes: usize,
    shape: Vec<u64>,
}
