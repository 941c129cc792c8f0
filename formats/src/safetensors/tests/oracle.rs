//! Against the reference implementation: what it writes we read and write alike, and the other way round.

use super::{file, parse};
use crate::safetensors::{Dtype, Order, encode_header, place};
use proptest::{collection::vec, prelude::*};
use safetensors::{SafeTensors, tensor::TensorView};
use std::{collections::HashMap, str::FromStr as _};

/// Our data type as the reference's; it does not know the newest three yet.
fn theirs(dtype: Dtype) -> Option<safetensors::Dtype> {
    #[derive(serde::Deserialize)]
    struct Only(safetensors::Dtype);
    let json = serde_json::Value::from_str(&format!("{:?}", dtype.name())).ok()?;
    serde_json::from_value::<Only>(json).ok().map(|only| only.0)
}

fn dtypes() -> impl Strategy<Value = Dtype> {
    let known: Vec<_> = Dtype::ALL.iter().copied().filter(|d| theirs(*d).is_some()).collect();
    proptest::sample::select(known)
}

/// Tensors with distinct names; the last dimension is a multiple of 4, so that all dtypes end at a byte.
fn tensors() -> impl Strategy<Value = Vec<(String, Dtype, Vec<u64>)>> {
    let shape = vec(0_u64..4, 0..3).prop_map(|mut shape| {
        shape.push(4);
        shape
    });
    let names = prop_oneof!["[a-c.]{0,4}", any::<String>()];
    proptest::collection::btree_map(names, (dtypes(), shape), 0..8).prop_map(|tensors| {
        tensors.into_iter().map(|(name, (dtype, shape))| (name, dtype, shape)).collect()
    })
}

#[test]
fn the_reference_knows_all_dtypes_but_the_newest_three_in_the_same_order() {
    let unknown: Vec<_> = Dtype::ALL.iter().filter(|d| theirs(**d).is_none()).collect();
    assert_eq!(unknown, [&Dtype::F8E4M3Fnuz, &Dtype::F8E5M2Fnuz, &Dtype::C64]);
    let known: Vec<_> = Dtype::ALL.iter().filter_map(|d| Some((*d, theirs(*d)?))).collect();
    assert!(known.windows(2).all(|w| w[0].1 < w[1].1));
    assert!(known.iter().all(|(ours, theirs)| theirs.bitsize() == ours.bits() as usize));
}

proptest! {
    #[test]
    fn a_header_is_the_references_byte_for_byte(
        tensors in tensors(),
        metadata in proptest::option::of(any::<(String, String)>()),
    ) {
        let placed = place(tensors.clone(), Order::Reference).unwrap();
        let pairs: Vec<_> = metadata.clone().into_iter().collect();
        let ours = encode_header(&placed, &pairs).unwrap();
        let data = vec![7; 4 * 4 * 4 * 8 * 4];
        let views = tensors.iter().map(|(name, dtype, shape)| {
            let dims = shape.iter().map(|n| usize::try_from(*n).unwrap()).collect();
            let bytes = usize::try_from(dtype.bytes(shape).unwrap()).unwrap();
            (name, TensorView::new(theirs(*dtype).unwrap(), dims, &data[..bytes]).unwrap())
        });
        let metadata: Option<HashMap<_, _>> = metadata.map(|pair| [pair].into());
        let whole = safetensors::serialize(views, metadata).unwrap();
        prop_assert_eq!(&ours, &whole[..ours.len()]);
        let header = parse(&whole).unwrap();
        prop_assert_eq!(header.tensors, placed);
        prop_assert_eq!(header.metadata, pairs);
    }

    #[test]
    fn the_reference_reads_what_we_write_in_any_order(tensors in tensors(), seed in any::<u64>()) {
        let mut tensors = tensors;
        let by = usize::try_from(seed % (tensors.len() as u64 + 1)).unwrap();
        tensors.rotate_left(by);
        let placed = place(tensors, Order::AsGiven).unwrap();
        let mut whole = encode_header(&placed, &[]).unwrap();
        let start = whole.len();
        let data_bytes = placed.last().map_or(0, |t| t.end);
        whole.extend((0..data_bytes).map(|i| u8::try_from(i % 251).unwrap()));
        let read = SafeTensors::deserialize(&whole).unwrap();
        prop_assert_eq!(read.len(), placed.len());
        for tensor in &placed {
            let view = read.tensor(&tensor.name).unwrap();
            let at = |n: u64| start + usize::try_from(n).unwrap();
            prop_assert_eq!(view.data(), &whole[at(tensor.begin)..at(tensor.end)]);
        }
    }

    #[test]
    fn a_file_is_refused_by_both_or_by_none(
        tensors in vec((dtypes(), vec(0_u64..3, 0..3), 0_u64..6, 0_u64..6), 0..3),
        data in 0_usize..8,
    ) {
        let members: Vec<_> = tensors
            .iter()
            .enumerate()
            .map(|(i, (dtype, shape, begin, end))| {
                format!(r#""{i}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
            })
            .collect();
        let file = file(&format!("{{{}}}", members.join(",")), data);
        prop_assert_eq!(parse(&file).is_ok(), SafeTensors::deserialize(&file).is_ok());
    }
}
