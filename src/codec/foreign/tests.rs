use super::*;
use crate::ErrorKind;
use serde_json::json;
use zarrs::array::ArrayBytes;

const LITTLE: &str = r#"{"name": "bytes", "configuration": {"endian": "little"}}"#;

fn codecs(list: &[&str]) -> Value {
    serde_json::from_str(&format!("[{}]", list.join(","))).unwrap()
}

fn document(data_type: &str, shape: &[u64], chunk: &[u64], codecs: &Value) -> Value {
    json!({
        "zarr_format": 3, "node_type": "array", "shape": shape, "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 7, "codecs": codecs, "attributes": {},
    })
}

/// Encodes a chunk with zarrs' own codecs.
fn encode(document: &Value, index: &[u64], raw: &[u8]) -> Vec<u8> {
    let metadata: ArrayMetadata = serde_json::from_value(document.clone()).unwrap();
    let array = Array::new_with_metadata(Arc::new(()), "/", metadata).unwrap();
    let shape = array.chunk_shape(index).unwrap();
    let options = CodecOptions::default().with_concurrent_target(1);
    let encoded = array.codecs().encode(
        ArrayBytes::new_flen(raw),
        &shape,
        array.data_type(),
        array.fill_value(),
        &options,
    );
    encoded.unwrap().into_owned()
}

fn counted(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

fn shard(inner: &[&str], chunk: &[u64], location: &str, index: &[&str]) -> String {
    json!({"name": "sharding_indexed", "configuration": {
        "chunk_shape": chunk, "codecs": codecs(inner), "index_codecs": codecs(index),
        "index_location": location,
    }})
    .to_string()
}

/// Chains that our own paths do not write, of 4 × 6 chunks.
fn chains() -> Vec<Value> {
    let big = r#"{"name": "bytes", "configuration": {"endian": "big"}}"#;
    let zstd = r#"{"name": "zstd", "configuration": {"level": 1, "checksum": true}}"#;
    let gzip = r#"{"name": "gzip", "configuration": {"level": 5}}"#;
    let blosc = r#"{"name": "blosc", "configuration": {"cname": "lz4", "clevel": 5,
        "shuffle": "shuffle", "typesize": 4, "blocksize": 0}}"#;
    let crc = r#"{"name": "crc32c"}"#;
    let transpose = r#"{"name": "transpose", "configuration": {"order": [1, 0]}}"#;
    let plain_shard = shard(&[LITTLE], &[2, 3], "end", &[LITTLE]);
    let nested = shard(
        &[&shard(&[LITTLE, gzip], &[1, 3], "start", &[LITTLE, crc]), zstd],
        &[2, 6],
        "end",
        &[big, crc],
    );
    [
        vec![big],
        vec![transpose, big, gzip],
        vec![LITTLE, zstd],
        vec![LITTLE, blosc, crc],
        vec![LITTLE, crc, zstd, gzip, blosc],
        vec![&shard(&[transpose, LITTLE, zstd, crc], &[2, 3], "start", &[LITTLE, crc])],
        vec![&plain_shard],
        vec![&plain_shard, zstd],
        vec![&nested],
        vec![transpose, &shard(&[LITTLE, blosc], &[3, 2], "end", &[LITTLE, crc]), gzip],
    ]
    .iter()
    .map(|list| codecs(list))
    .collect()
}

#[test]
fn chains_of_other_writers_decode() {
    for codecs in chains() {
        let document = document("float32", &[10, 6], &[4, 6], &codecs);
        let array = ForeignArray::new(&document).unwrap();
        assert_eq!((array.counts(), array.item_bytes()), ([3, 1].as_slice(), 4));
        assert_eq!(array.chunk_box(&[2, 0]).to_string(), "[8:10,0:6]");
        assert_eq!(array.chunk_shape(&[2, 0]).unwrap(), [4, 6]);
        let raw = counted(96);
        let stored = encode(&document, &[2, 0], &raw);
        assert_eq!(array.decode(&[2, 0], &stored).unwrap(), raw, "{codecs}");
        assert_eq!(array.chunk_key(&[2, 0]), "c/2/0");
        assert_eq!(array.fill(&[0, 0]).unwrap(), 7f32.to_le_bytes().repeat(24));
    }
}

#[test]
fn damaged_chunks_are_errors_or_values_but_never_a_panic() {
    for codecs in chains() {
        let document = document("uint32", &[4, 6], &[4, 6], &codecs);
        let array = ForeignArray::new(&document).unwrap();
        let mut stored = encode(&document, &[0, 0], &counted(96));
        for at in 0..stored.len() {
            for flip in [1, 0x80, 0xff] {
                stored[at] ^= flip;
                if let Ok(decoded) = array.decode(&[0, 0], &stored) {
                    assert_eq!(decoded.len(), 96);
                }
                stored[at] ^= flip;
            }
            if let Ok(decoded) = array.decode(&[0, 0], &stored[..at]) {
                assert_eq!(decoded.len(), 96, "{codecs} cut at {at}");
            }
        }
        stored.extend([0xff; 300]);
        if let Ok(decoded) = array.decode(&[0, 0], &stored) {
            assert_eq!(decoded.len(), 96);
        }
    }
}

#[test]
fn claims_of_compressed_headers_allocate_nothing() {
    let zstd = r#"{"name": "zstd", "configuration": {"level": 1, "checksum": false}}"#;
    let crc_inside = codecs(&[LITTLE, r#"{"name": "crc32c"}"#, zstd, zstd]);
    for codecs in [codecs(&[LITTLE, zstd]), crc_inside] {
        let array = ForeignArray::new(&document("uint8", &[64], &[64], &codecs)).unwrap();
        // A frame that claims 2^62 bytes of content: zarrs alone would abort the process.
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
        frame.extend((1u64 << 62).to_le_bytes());
        frame.extend([1, 0, 0]);
        assert_eq!(array.decode(&[0], &frame).unwrap_err().kind(), ErrorKind::Corrupt);
        // 64 MiB of zeros, which compress to some KiB.
        let bomb = ::zstd::bulk::compress(&vec![0; 1 << 26], 1).unwrap();
        assert_eq!(array.decode(&[0], &bomb).unwrap_err().kind(), ErrorKind::Corrupt);
    }
    let gzip = codecs(&[LITTLE, r#"{"name": "gzip", "configuration": {"level": 1}}"#]);
    let small = ForeignArray::new(&document("uint8", &[64], &[64], &gzip)).unwrap();
    let bomb = encode(&document("uint8", &[1 << 24], &[1 << 24], &gzip), &[0], &vec![0; 1 << 24]);
    assert_eq!(small.decode(&[0], &bomb).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn shard_indexes_that_point_anywhere_are_corrupt() {
    let codecs = codecs(&[&shard(&[LITTLE], &[2, 3], "end", &[LITTLE])]);
    let document = document("uint8", &[4, 6], &[4, 6], &codecs);
    let array = ForeignArray::new(&document).unwrap();
    let stored = encode(&document, &[0, 0], &counted(24));
    let index = stored.len() - 64;
    for entry in [
        (u64::MAX, 6),
        (6, u64::MAX),
        (u64::MAX - 2, 8), // wraps to the inside
        (1 << 40, 6),
        (0, 5),
        (0, stored.len() as u64 + 1),
    ] {
        let mut bad = stored.clone();
        bad[index..index + 8].copy_from_slice(&entry.0.to_le_bytes());
        bad[index + 8..index + 16].copy_from_slice(&entry.1.to_le_bytes());
        let error = array.decode(&[0, 0], &bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{entry:?}");
    }
    let mut missing = stored;
    missing[index..index + 16].fill(0xff);
    let decoded = array.decode(&[0, 0], &missing).unwrap();
    assert_eq!((&decoded[..3], &decoded[6..9]), ([7; 3].as_slice(), [7; 3].as_slice()));
}

#[test]
fn version_2_arrays_are_read_with_their_keys_and_order() {
    let document = json!({
        "zarr_format": 2, "shape": [5, 3], "chunks": [2, 3], "dtype": ">i2", "order": "F",
        "fill_value": 9, "filters": null, "dimension_separator": ".",
        "compressor": {"id": "zstd", "level": 1},
    });
    let array = ForeignArray::new(&document).unwrap();
    assert_eq!((array.data_type_name(), array.data_type()), ("int16", Some(DataType::Int16)));
    assert_eq!(array.chunk_key(&[2, 0]), "2.0");
    assert_eq!(array.fill_value(), 9i16.to_le_bytes());
    let columns: Vec<u8> = [1u8, 4, 2, 5, 3, 6].iter().flat_map(|v| [0, *v]).collect();
    let stored = ::zstd::bulk::compress(&columns, 1).unwrap();
    let rows: Vec<u8> = [1i16, 2, 3, 4, 5, 6].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(array.decode(&[0, 0], &stored).unwrap(), rows);
}

#[test]
fn rectilinear_chunks_have_their_own_shapes() {
    let mut document = document("uint16", &[7, 4], &[1, 1], &codecs(&[LITTLE]));
    document["chunk_grid"] = json!({"name": "rectilinear", "configuration":
        {"kind": "inline", "chunk_shapes": [[[2, 2], 5], 3]}});
    let array = ForeignArray::new(&document).unwrap();
    assert_eq!(array.counts(), [3, 2]);
    assert_eq!(array.chunk_box(&[2, 1]).to_string(), "[4:7,3:4]");
    assert_eq!(array.chunk_shape(&[2, 1]).unwrap(), [5, 3]);
    let raw = counted(30);
    assert_eq!(array.decode(&[2, 1], &encode(&document, &[2, 1], &raw)).unwrap(), raw);
    document["chunk_grid"]["configuration"]["chunk_shapes"] = json!([[[1, u64::MAX]], 3]);
    assert_eq!(ForeignArray::new(&document).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn every_data_type_of_ours_is_read() {
    for data_type in DataType::ALL.iter().copied().chain([DataType::Raw(3)]) {
        let mut document = document(&data_type.to_string(), &[5], &[4], &codecs(&[LITTLE]));
        document["fill_value"] = match data_type {
            DataType::Bool => json!(false),
            DataType::Complex64 | DataType::Complex128 => json!([0, 0]),
            DataType::Raw(_) => json!([0, 0, 0]),
            DataType::Float8E8M0Fnu => json!(1.0),
            _ => json!(0),
        };
        let array = ForeignArray::new(&document).unwrap();
        assert_eq!(array.data_type(), Some(data_type));
        assert_eq!(array.item_bytes(), data_type.size_bytes());
        let raw = vec![1; 4 * array.item_bytes()];
        assert_eq!(array.decode(&[1], &raw).unwrap(), raw, "{data_type}");
        array.decode(&[1], &raw[1..]).unwrap_err();
    }
}

#[test]
fn tensorstores_e4m3fn_is_read_with_its_fill_value() {
    let mut document = document(E4M3FN, &[3], &[2], &codecs(&[LITTLE]));
    for (fill, code) in [
        (json!(0.0), Some(0)),
        (json!(-1.5), Some(0xbc)),
        (json!("NaN"), Some(0x7f)),
        (json!("0x7e"), Some(0x7e)),
        (json!("Infinity"), None),
        (json!(null), None),
    ] {
        document["fill_value"] = fill;
        let array = ForeignArray::new(&document);
        assert_eq!(array.map(|a| a.fill_value().to_vec()).ok(), code.map(|c: u8| vec![c]));
    }
    document["fill_value"] = json!(1);
    let array = ForeignArray::new(&document).unwrap();
    assert_eq!((array.data_type_name(), array.item_bytes()), (E4M3FN, 1));
    assert_eq!(array.decode(&[0], &[1, 0x7f]).unwrap(), [1, 0x7f]);
}

#[test]
fn what_cannot_be_read_says_why() {
    let good = document("uint8", &[4], &[2], &codecs(&[LITTLE]));
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut document = good.clone();
        change(&mut document);
        ForeignArray::new(&document).unwrap_err()
    };
    let error = refused(&|d| {
        d["data_type"] = json!("string");
        d["fill_value"] = json!("");
        d["codecs"] = codecs(&[r#"{"name": "vlen-utf8"}"#]);
    });
    assert_eq!((error.kind(), error.get("data_type")), (ErrorKind::Unsupported, Some("string")));
    let error = refused(&|d| d["codecs"] = codecs(&[LITTLE, r#"{"name": "lzma2"}"#]));
    assert_eq!((error.kind(), error.get("codec")), (ErrorKind::Unsupported, Some("lzma2")));
    let error = refused(&|d| {
        d["codecs"] = codecs(&[
            LITTLE,
            r#"{"name": "mystery", "must_understand": false, "configuration": {}}"#,
        ]);
    });
    assert_eq!(error.get("codec"), Some("mystery"), "an ignored codec would give wrong elements");
    let error = refused(&|d| d["surprise"] = json!({"a": 1}));
    assert_eq!(error.get("member"), Some("surprise"));
    for (member, value) in [
        ("codecs", json!([])),
        ("codecs", codecs(&[LITTLE, LITTLE])),
        ("codecs", codecs(&[r#"{"name": "crc32c"}"#, LITTLE])),
        ("codecs", codecs(&[&shard(&[LITTLE], &[1, 1], "end", &[LITTLE])])),
        ("chunk_grid", json!({"name": "regular", "configuration": {"chunk_shape": [0]}})),
        ("chunk_grid", json!({"name": "regular", "configuration": {"chunk_shape": [2, 2]}})),
        ("shape", json!([-1])),
        ("shape", json!("4")),
        ("shape", json!([1u64 << 40, 1u64 << 40])),
        ("data_type", json!("float7")),
        ("fill_value", json!("red")),
        ("storage_transformers", json!([{"name": "x", "configuration": {}}])),
    ] {
        let error = refused(&|d| d[member] = value.clone());
        let kind = error.kind();
        assert!(matches!(kind, ErrorKind::Corrupt | ErrorKind::Unsupported), "{member}: {error:?}");
    }
    ForeignArray::new(&json!([1, 2])).unwrap_err();
    ForeignArray::new(&json!({"zarr_format": 3, "node_type": "group"})).unwrap_err();
    let huge = document("uint8", &[1 << 40], &[1 << 40], &codecs(&[LITTLE]));
    let error = ForeignArray::new(&huge).unwrap().decode(&[0], &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
