#![expect(clippy::cast_possible_truncation, reason = "test data is small, or wraps on purpose")]

use super::*;
use crate::ErrorKind;
use milepost_formats::zarr3::{BloscCname, BloscShuffle, Compressor as C};
use std::sync::Arc;

/// Every compressor with every parameter that takes another path.
fn compressors(item_bytes: u32) -> Vec<C> {
    let mut all = vec![C::None, C::Gzip { level: 0 }, C::Gzip { level: 6 }];
    for (level, checksum) in [(-5, false), (1, true), (3, false), (19, true)] {
        all.push(C::Zstd { level, checksum });
    }
    for cname in [
        BloscCname::Blosclz,
        BloscCname::Lz4,
        BloscCname::Lz4hc,
        BloscCname::Snappy,
        BloscCname::Zlib,
        BloscCname::Zstd,
    ] {
        for (level, shuffle, blocksize) in [
            (5, BloscShuffle::Shuffle, 0),
            (1, BloscShuffle::Bitshuffle, 256),
            (9, BloscShuffle::Noshuffle, 0),
            (0, BloscShuffle::Shuffle, 0),
        ] {
            all.push(C::Blosc { cname, level, shuffle, typesize: item_bytes, blocksize });
        }
    }
    all
}

fn chain(compressor: C, crc32c: bool, transpose: Option<Vec<usize>>) -> zarr3::Chain {
    zarr3::Chain { transpose, compressor, crc32c }
}

/// Bytes that compress somewhat: a slow ramp with noise in every fourth byte.
fn chunk(bytes: usize) -> Vec<u8> {
    let mut state = 0x2545_f491u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..bytes).map(|i| if i % 4 == 1 { next() } else { (i / 64) as u8 }).collect()
}

#[test]
fn every_chain_gives_back_what_it_was_given() {
    for (data_type, shape) in [
        (DataType::Float32, vec![17, 9]),
        (DataType::BFloat16, vec![1]),
        (DataType::UInt8, vec![3, 1, 5]),
        (DataType::Complex128, vec![]),
        (DataType::Raw(300), vec![4]),
        (DataType::Int64, vec![40, 40]),
    ] {
        let order: Vec<usize> = (0..shape.len()).rev().collect();
        for compressor in compressors(data_type.size_bytes() as u32) {
            for (with_crc, transpose) in [
                (true, None),
                (false, None),
                (true, Some(order.clone())),
                (false, Some(order.clone())),
            ] {
                let chain =
                    Chain::new(&chain(compressor, with_crc, transpose), data_type, &shape).unwrap();
                let raw = chunk(chain.decoded_bytes());
                let mut out = vec![0xaa; chain.encoded_bytes_max()];
                let bytes = chain.encode_into(&raw, &mut out).unwrap();
                assert!(chain.encoded_bytes_fixed().is_none_or(|fixed| fixed == bytes));
                let mut decoded = vec![0x55; raw.len()];
                chain.decode_into(&out[..bytes], &mut decoded).unwrap();
                assert!(decoded == raw, "{compressor:?} of {data_type} {shape:?}");
                let mut again = vec![0; chain.encoded_bytes_max()];
                let summed = chain.encode_summed(&raw, &mut again).unwrap();
                assert_eq!(out[..bytes], again[..summed.bytes], "equal chunks have equal bytes");
                assert_eq!(summed.crc32c, crc32c(&out[..bytes]));
                assert_eq!(summed.content, checksum::content_hash(&raw));
            }
        }
    }
}

#[test]
fn noise_fits_the_bound_of_every_compressor() {
    let mut state = 7u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(200_003)
    .collect();
    for compressor in compressors(1) {
        let chain =
            Chain::new(&chain(compressor, true, None), DataType::UInt8, &[200_003]).unwrap();
        let mut out = vec![0; chain.encoded_bytes_max()];
        let bytes = chain.encode_into(&noise, &mut out).unwrap();
        let mut decoded = vec![0; noise.len()];
        chain.decode_into(&out[..bytes], &mut decoded).unwrap();
        assert!(decoded == noise, "{compressor:?}");
    }
}

#[test]
fn a_flipped_byte_or_a_cut_is_an_error_wherever_it_is() {
    for compressor in compressors(4) {
        let chain = Chain::new(&chain(compressor, true, None), DataType::Float32, &[64]).unwrap();
        let raw = chunk(256);
        let mut out = vec![0; chain.encoded_bytes_max()];
        let bytes = chain.encode_into(&raw, &mut out).unwrap();
        let mut decoded = vec![0; 256];
        for at in 0..bytes {
            for flip in [1, 0x80, 0xff] {
                out[at] ^= flip;
                let error = chain.decode_into(&out[..bytes], &mut decoded).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                out[at] ^= flip;
            }
            let error = chain.decode_into(&out[..at], &mut decoded).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
        out.resize(bytes, 0);
        out.push(0);
        chain.decode_into(&out, &mut decoded).unwrap_err();
    }
}

#[test]
fn without_a_checksum_damage_never_panics_nor_leaves_the_target() {
    for compressor in compressors(4) {
        let chain = Chain::new(&chain(compressor, false, None), DataType::Float32, &[64]).unwrap();
        let raw = chunk(256);
        let mut out = vec![0; chain.encoded_bytes_max()];
        let bytes = chain.encode_into(&raw, &mut out).unwrap();
        let mut decoded = vec![0; 256];
        for at in 0..bytes {
            for flip in 1..=255 {
                out[at] ^= flip;
                if let Err(error) = chain.decode_into(&out[..bytes], &mut decoded) {
                    assert_eq!(error.kind(), ErrorKind::Corrupt);
                }
                out[at] ^= flip;
            }
            if compressor == C::None {
                chain.decode_into(&out[..at], &mut decoded).unwrap_err();
            } else if let Err(error) = chain.decode_into(&out[..at], &mut decoded) {
                assert_eq!(error.kind(), ErrorKind::Corrupt);
            }
        }
        chain.decode_into(&out[..bytes], &mut decoded).unwrap();
        assert_eq!(decoded, raw);
    }
}

#[test]
fn headers_that_claim_more_than_the_chunk_are_refused() {
    let decode = |compressor, encoded: &[u8]| {
        let chain = Chain::new(&chain(compressor, false, None), DataType::UInt8, &[64]).unwrap();
        let error = chain.decode_into(encoded, &mut [0; 64]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    };
    let zstd = C::Zstd { level: 1, checksum: false };
    let gzip = C::Gzip { level: 1 };
    let blosc = compressors(1)[7];
    for compressor in [zstd, gzip, blosc] {
        // A well-formed stream of another chunk size, larger and smaller; then noise, then nothing.
        for other in [1u64, 63, 65, 1 << 20] {
            let source =
                Chain::new(&chain(compressor, false, None), DataType::UInt8, &[other]).unwrap();
            let mut out = vec![0; source.encoded_bytes_max()];
            let bytes = source.encode_into(&vec![0; other as usize], &mut out).unwrap();
            decode(compressor, &out[..bytes]);
        }
        decode(compressor, &[0xff; 40]);
        decode(compressor, &[]);
    }
    // zstd: a frame header with a content size of 2^63 and a window of 1 TiB, then a raw block.
    decode(zstd, &[0x28, 0xb5, 0x2f, 0xfd, 0xc0, 0xf8, 0, 0, 0, 0, 0, 0, 0, 0x80, 1, 0, 0]);
    // blosc: lengths of 2 GiB, of itself only, and a block size of 0 and of 2 GiB.
    for (nbytes, blocksize, cbytes) in
        [(u32::MAX, 64, 32), (64, 0, 32), (64, u32::MAX, 32), (64, 64, u32::MAX), (64, 1, 16)]
    {
        let mut header = vec![2, 1, 1, 1];
        for field in [nbytes, blocksize, cbytes] {
            header.extend(field.to_le_bytes());
        }
        header.resize(32, 0xee);
        decode(blosc, &header);
    }
}

#[test]
fn gzip_reads_several_members_and_zstd_several_frames() {
    for compressor in [C::Gzip { level: 1 }, C::Zstd { level: 1, checksum: true }] {
        let half = Chain::new(&chain(compressor, false, None), DataType::UInt8, &[32]).unwrap();
        let whole = Chain::new(&chain(compressor, false, None), DataType::UInt8, &[64]).unwrap();
        let raw = chunk(64);
        let mut joined = Vec::new();
        for part in raw.chunks(32) {
            let mut out = vec![0; half.encoded_bytes_max()];
            let bytes = half.encode_into(part, &mut out).unwrap();
            joined.extend_from_slice(&out[..bytes]);
        }
        let mut decoded = vec![0; 64];
        whole.decode_into(&joined, &mut decoded).unwrap();
        assert_eq!(decoded, raw);
    }
}

#[test]
fn parameters_out_of_range_are_refused() {
    let blosc = |level| C::Blosc {
        cname: BloscCname::Lz4,
        level,
        shuffle: BloscShuffle::Shuffle,
        typesize: 1,
        blocksize: 0,
    };
    let new = |compressor, shape: &[u64]| {
        Chain::new(&chain(compressor, true, None), DataType::UInt8, shape).map(drop)
    };
    for compressor in [
        C::Zstd { level: 23, checksum: false },
        C::Zstd { level: -131_073, checksum: false },
        C::Gzip { level: 10 },
        blosc(10),
    ] {
        assert_eq!(new(compressor, &[4]).unwrap_err().kind(), ErrorKind::Invalid);
    }
    for shape in [vec![0], vec![1 << 62, 4], vec![1 << 40, 1 << 40]] {
        assert_eq!(new(C::None, &shape).unwrap_err().kind(), ErrorKind::Invalid);
    }
    new(blosc(1), &[1 << 31]).unwrap_err();
    let bad_order = chain(C::None, true, Some(vec![1, 1]));
    Chain::new(&bad_order, DataType::UInt8, &[2, 2]).unwrap_err();
}

/// The `codecs` member of a chain, as our documents state it.
fn document(chain: &zarr3::Chain, data_type: DataType, shape: &[u64]) -> serde_json::Value {
    use serde_json::json;
    let mut codecs = Vec::new();
    if let Some(order) = &chain.transpose {
        codecs.push(json!({"name": "transpose", "configuration": {"order": order}}));
    }
    codecs.push(json!({"name": "bytes", "configuration": {"endian": "little"}}));
    match chain.compressor {
        C::None => {}
        C::Zstd { level, checksum } => codecs
            .push(json!({"name": "zstd", "configuration": {"level": level, "checksum": checksum}})),
        C::Gzip { level } => {
            codecs.push(json!({"name": "gzip", "configuration": {"level": level}}));
        }
        C::Blosc { cname, level, shuffle, typesize, blocksize } => {
            codecs.push(json!({"name": "blosc", "configuration": {
                "cname": format!("{cname:?}").to_lowercase(), "clevel": level,
                "shuffle": format!("{shuffle:?}").to_lowercase(),
                "typesize": typesize, "blocksize": blocksize,
            }}));
        }
    }
    if chain.crc32c {
        codecs.push(json!({"name": "crc32c"}));
    }
    json!({
        "zarr_format": 3, "node_type": "array", "shape": shape, "data_type": data_type.to_string(),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
        "chunk_key_encoding": {"name": "default"}, "fill_value": 0, "codecs": codecs,
    })
}

#[test]
fn zarrs_reads_what_we_encode_and_we_read_what_zarrs_encodes() {
    use zarrs::array::{Array, ArrayBytes, ArrayMetadata, ArrayToBytesCodecTraits, CodecOptions};
    for (data_type, shape) in [
        (DataType::Float32, vec![9, 17]),
        (DataType::UInt8, vec![301, 1]),
        (DataType::Int64, vec![5, 3]),
    ] {
        for compressor in compressors(data_type.size_bytes() as u32) {
            for (with_crc, transpose) in [(true, None), (false, Some(vec![1, 0]))] {
                let parameters = chain(compressor, with_crc, transpose);
                let ours = Chain::new(&parameters, data_type, &shape).unwrap();
                let metadata: ArrayMetadata =
                    serde_json::from_value(document(&parameters, data_type, &shape)).unwrap();
                let array = Array::new_with_metadata(Arc::new(()), "/", metadata).unwrap();
                let chunk_shape = array.chunk_shape(&[0, 0]).unwrap();
                let (dtype, fill) = (array.data_type(), array.fill_value());
                let options = CodecOptions::default().with_concurrent_target(1);
                let raw = chunk(ours.decoded_bytes());

                let mut out = vec![0; ours.encoded_bytes_max()];
                let bytes = ours.encode_into(&raw, &mut out).unwrap();
                let theirs = array
                    .codecs()
                    .decode((&out[..bytes]).into(), &chunk_shape, dtype, fill, &options)
                    .unwrap();
                assert_eq!(&*theirs.into_fixed().unwrap(), raw, "{parameters:?}");

                let stored = array
                    .codecs()
                    .encode(ArrayBytes::new_flen(&raw[..]), &chunk_shape, dtype, fill, &options)
                    .unwrap();
                let mut decoded = vec![0; raw.len()];
                ours.decode_into(&stored, &mut decoded).unwrap();
                assert_eq!(decoded, raw, "{parameters:?}");
                if ours.is_plain() {
                    assert_eq!(out[..bytes], stored[..]);
                }
            }
        }
    }
}
