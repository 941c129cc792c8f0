//! Tests of the safetensors format, the reference crate as the oracle.

mod hostile;
mod names;
mod oracle;
mod shards;

use super::{Dtype, Header, Order, Tensor, encode_header, header_bytes, pack, place, unpack};
use crate::{DataType, FormatErrorKind, Result};

/// The file of the reference's documentation: one I32 tensor of [2, 2].
const GOLDEN: &[u8] =
    b"\x40\0\0\0\0\0\0\0{\"test\":{\"dtype\":\"I32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}    \
\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// Parses a whole file as a caller would: 8 bytes, then the header, then its size.
fn parse(file: &[u8]) -> Result<Header> {
    let bytes = usize::try_from(header_bytes(file)?).expect("a test runs on 64 bits");
    let short = || crate::FormatError::corrupt("the file ends in its header");
    let json = file.get(8..8 + bytes).ok_or_else(short)?;
    Header::parse(json, file.len() as u64)
}

/// Puts a length before a JSON text and zeros behind it.
fn file(json: &str, data_bytes: usize) -> Vec<u8> {
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json.as_bytes());
    file.resize(file.len() + data_bytes, 0);
    file
}

fn spec(name: &str, dtype: Dtype, shape: &[u64]) -> (String, Dtype, Vec<u64>) {
    (name.to_owned(), dtype, shape.to_vec())
}

#[test]
fn the_golden_file_reads_and_is_written_again_byte_for_byte() {
    let header = parse(GOLDEN).unwrap();
    let test =
        Tensor { name: "test".into(), dtype: Dtype::I32, shape: vec![2, 2], begin: 0, end: 16 };
    assert_eq!(header, Header { tensors: vec![test], metadata: Vec::new(), data_start: 72 });
    let again = encode_header(&header.tensors, &header.metadata).unwrap();
    assert_eq!(again, GOLDEN[..72]);
}

#[test]
fn a_golden_file_with_metadata_keeps_its_order() {
    let json = r#"{"__metadata__":{"format":"pt","a":"é\n"},"b":{"dtype":"BF16","shape":[],"data_offsets":[4,6]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"z":{"dtype":"U8","shape":[0,3],"data_offsets":[6,6]}}"#;
    let header = parse(&file(json, 6)).unwrap();
    let names: Vec<_> = header.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "z"], "file order, not JSON order");
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(header.metadata, [pair("format", "pt"), pair("a", "é\n")]);
    let bytes = encode_header(&header.tensors, &header.metadata).unwrap();
    assert_eq!(bytes.len() % 8, 0);
    let mut again = bytes;
    again.resize(again.len() + 6, 0);
    let again = parse(&again).unwrap();
    assert_eq!((again.tensors, again.metadata), (header.tensors, header.metadata));
}

#[test]
fn a_file_without_tensors_is_a_file() {
    let bytes = encode_header(&[], &[]).unwrap();
    assert_eq!(bytes, b"\x08\0\0\0\0\0\0\0{}      ");
    assert!(parse(&bytes).unwrap().tensors.is_empty());
    assert!(parse(&file(r#"{"__metadata__":null}"#, 0)).unwrap().metadata.is_empty());
}

#[test]
fn every_dtype_has_a_name_a_zarr_data_type_and_a_size() {
    assert_eq!(Dtype::ALL.len(), 22);
    for dtype in Dtype::ALL {
        assert_eq!(Dtype::from_name(dtype.name()).unwrap(), *dtype);
        assert_eq!(Dtype::from_data_type(dtype.data_type()).unwrap(), *dtype);
        let zarr_bits = u32::try_from(dtype.data_type().size_bytes()).unwrap() * 8;
        assert_eq!(dtype.is_packed(), dtype.bits() < zarr_bits);
        assert!(dtype.is_packed() || dtype.bits() == zarr_bits, "{dtype}");
    }
    assert_eq!(Dtype::from_name("F8_E4M3").unwrap().data_type(), DataType::Float8E4M3Fn);
    let none: Vec<_> = DataType::ALL
        .iter()
        .filter(|t| {
            Dtype::from_data_type(**t)
                .map_err(|e| assert_eq!(e.kind(), FormatErrorKind::Unsupported))
                .is_err()
        })
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        none,
        [
            "int2",
            "int4",
            "uint2",
            "uint4",
            "float8_e3m4",
            "float8_e4m3",
            "float8_e4m3b11fnuz",
            "complex128"
        ]
    );
    assert!(Dtype::from_data_type(DataType::Raw(3)).is_err());
}

#[test]
fn places_are_the_callers_or_the_references() {
    let given =
        [spec("b", Dtype::U8, &[3]), spec("z", Dtype::F32, &[1]), spec("a", Dtype::U8, &[])];
    let names = |order| -> Vec<_> {
        let tensors = place(given.clone(), order).unwrap();
        tensors.into_iter().map(|t| (t.name, t.begin, t.end)).collect()
    };
    let want = |list: [(&str, u64, u64); 3]| list.map(|(n, b, e)| (n.to_owned(), b, e)).to_vec();
    assert_eq!(names(Order::AsGiven), want([("b", 0, 3), ("z", 3, 7), ("a", 7, 8)]));
    assert_eq!(names(Order::Reference), want([("z", 0, 4), ("a", 4, 5), ("b", 5, 8)]));
}

#[test]
fn what_the_format_cannot_hold_is_refused_before_a_byte_is_written() {
    for bad in [
        vec![spec("__metadata__", Dtype::U8, &[])],
        vec![spec("a", Dtype::U8, &[]), spec("a", Dtype::I8, &[])],
        vec![spec("a", Dtype::F64, &[1 << 61])],
        vec![spec("a", Dtype::U8, &[u64::MAX]), spec("b", Dtype::U8, &[1])],
        vec![spec("a", Dtype::F4, &[3])],
    ] {
        assert_eq!(place(bad, Order::AsGiven).unwrap_err().kind(), FormatErrorKind::Invalid);
    }
    let pair = ("a".to_owned(), String::new());
    assert!(encode_header(&[], &[pair.clone(), pair]).is_err());
    let mut tensors = place([spec("a", Dtype::U8, &[4])], Order::AsGiven).unwrap();
    tensors[0].begin = 1;
    assert_eq!(encode_header(&tensors, &[]).unwrap_err().kind(), FormatErrorKind::Invalid);
}

#[test]
fn four_bits_pack_low_nibble_first_and_six_bits_four_in_three_bytes() {
    let mut elements = [0; 4];
    unpack(4, &[0x21, 0xF3], &mut elements).unwrap();
    assert_eq!(elements, [1, 2, 3, 15]);
    let mut packed = [0; 2];
    pack(4, &[1, 2, 0xA3, 15], &mut packed).unwrap();
    assert_eq!(packed, [0x21, 0xF3], "upper bits are ignored");
    // 0b000001, 0b000010, 0b000011, 0b111111 as a little-endian bit stream.
    let mut packed = [0; 3];
    pack(6, &[1, 2, 3, 63], &mut packed).unwrap();
    assert_eq!(packed, [0b1000_0001, 0b0011_0000, 0b1111_1100]);
    let mut elements = [0; 4];
    unpack(6, &packed, &mut elements).unwrap();
    assert_eq!(elements, [1, 2, 3, 63]);
    for (bits, packed, elements) in
        [(4, 1, 1), (4, 1, 3), (6, 3, 3), (0, 0, 0), (8, 1, 1), (40, 0, 0)]
    {
        assert!(unpack(bits, &vec![0; packed], &mut vec![0; elements]).is_err());
        assert!(pack(bits, &vec![0; elements], &mut vec![0; packed]).is_err());
    }
}

proptest::proptest! {
    #[test]
    fn packing_loses_nothing(bits in 1_u32..8, packed in proptest::collection::vec(0_u8.., 0..64)) {
        // As many whole groups as there are: `bits` bytes hold 8 elements.
        let groups = packed.len() / bits as usize;
        let packed = &packed[..groups * bits as usize];
        let mut elements = vec![0; groups * 8];
        unpack(bits, packed, &mut elements).unwrap();
        proptest::prop_assert!(elements.iter().all(|e| u32::from(*e) < 1 << bits));
        let mut again = vec![0; packed.len()];
        pack(bits, &elements, &mut again).unwrap();
        proptest::prop_assert_eq!(again, packed);
    }
}
