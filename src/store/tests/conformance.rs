//! What every store must do, as functions over `&dyn Store`; each works below a prefix of its own.

use super::*;
use crate::error::ErrorKind;

const KEYS: &[&str] = &[
    "plain",
    "a%20b",
    "%",
    "100%/%25",
    "with space/and more",
    "ünïcode/日本",
    "quote'\"[0]{x}",
    "tilde~hash#question?",
    "plus+and&amp=",
    "star*pipe|lt<gt>caret^back`tick",
    ".hidden/...",
    "c.0.0",
];

/// Runs the whole suite in `store`.
pub(super) async fn everything(store: &dyn Store) {
    put_and_get(store).await;
    spans(store).await;
    odd_keys(store).await;
    refused_keys(store).await;
    missing_objects(store).await;
    scattered_reads(store).await;
    gather_lists(store).await;
    listings(store).await;
    deletes(store).await;
    exclusive(store).await;
    positional(store).await;
    renames(store).await;
    copies(store).await;
    store.create_dir("dirs/made/deep").await.unwrap();
    store.sync("dirs/made").await.unwrap();
    put(store, "synced/a", "x").await;
    store.sync("synced").await.unwrap();
}

async fn put_and_get(store: &dyn Store) {
    for len in [0, 1, 4095, 4096, 100_000, 1 << 20, (1 << 20) + 1] {
        let bytes = pattern(len);
        put(store, "basic/object", bytes.clone()).await;
        assert!(whole(store, "basic/object").await == bytes, "{len} bytes");
        let meta = store.head("basic/object").await.unwrap();
        assert_eq!((meta.key.as_str(), meta.bytes), ("basic/object", len as u64));
        let age = SystemTime::now().duration_since(meta.modified).unwrap_or_default();
        assert!(age.as_secs() < 3600, "modified is a wall-clock time");
    }
}

async fn spans(store: &dyn Store) {
    let bytes = pattern(10_000);
    put(store, "spans", bytes.clone()).await;
    let get = |span| store.get("spans", span, Priority::Restore);
    for (span, expected) in [
        (Span::Whole { bytes_max: 10_000 }, 0..10_000),
        (Span::Range { offset: 0, len: 1 }, 0..1),
        (Span::Range { offset: 17, len: 9_000 }, 17..9_017),
        (Span::Range { offset: 9_999, len: 1 }, 9_999..10_000),
        (Span::Range { offset: 5, len: 0 }, 5..5),
        (Span::Suffix { len: 20 }, 9_980..10_000),
        (Span::Suffix { len: 10_000 }, 0..10_000),
        (Span::Suffix { len: 0 }, 0..0),
    ] {
        assert_eq!(get(span).await.unwrap(), bytes[expected], "{span:?}");
    }
    for span in [
        Span::Whole { bytes_max: 9_999 },
        Span::Range { offset: 9_999, len: 2 },
        Span::Range { offset: 10_001, len: 1 },
        Span::Range { offset: 1 << 40, len: 1 << 50 },
        Span::Suffix { len: 10_001 },
    ] {
        let error = get(span).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{span:?}: {error:?}");
        assert_eq!(error.get("object"), Some("spans"));
        assert_eq!(error.get("store"), Some(store.url()));
        assert_eq!(error.get("actual_bytes"), Some("10000"), "{error}");
    }
}

async fn odd_keys(store: &dyn Store) {
    for (i, key) in KEYS.iter().enumerate() {
        put(store, &format!("odd/{key}"), format!("{i}")).await;
    }
    for (i, key) in KEYS.iter().enumerate() {
        assert_eq!(whole(store, &format!("odd/{key}")).await, format!("{i}"), "{key}");
    }
    let mut expected: Vec<String> = KEYS.iter().map(|key| format!("odd/{key}")).collect();
    expected.sort();
    let found = store.list_all("odd").await.unwrap();
    assert_eq!(found.into_iter().map(|meta| meta.key).collect::<Vec<_>>(), expected);
}

async fn refused_keys(store: &dyn Store) {
    for key in ["", "a/../b", "../x", "/a", "a//b", "a/", "a\0b"] {
        let errors = [
            store.put(key, vec![], Priority::Foreground).await.unwrap_err(),
            store.put_new(key, Bytes::new()).await.unwrap_err(),
            store.head(key).await.unwrap_err(),
            store.delete(vec![key.to_owned()]).await.unwrap_err(),
            store.delete_all(key).await.unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::Invalid, "{key:?}: {error:?}");
        }
    }
}

async fn missing_objects(store: &dyn Store) {
    let errors = [
        store.head("no/such").await.unwrap_err(),
        store.get("no/such", Span::Whole { bytes_max: 9 }, Priority::Restore).await.unwrap_err(),
        store.get("no/such", Span::Suffix { len: 9 }, Priority::Restore).await.unwrap_err(),
        store.read("no/such", 0, regions(&[9]), Priority::Restore).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
        assert_eq!(error.get("object"), Some("no/such"));
    }
    assert_eq!(store.list("no/such").await.unwrap(), Listing::default());
    assert_eq!(store.list_all("no/such").await.unwrap(), []);
    store.delete(vec!["no/such".into()]).await.unwrap();
    store.delete_all("no/such").await.unwrap();
    // A prefix of objects is no object.
    put(store, "missing/dir/object", "x").await;
    assert_eq!(store.head("missing/dir").await.unwrap_err().kind(), ErrorKind::NotFound);
}

async fn scattered_reads(store: &dyn Store) {
    let bytes = pattern(3_000_000);
    put(store, "scatter", bytes.clone()).await;
    for (offset, lens) in [
        (0_usize, vec![3_000_000]),
        (0, vec![1, 2, 3]),
        (4096, vec![1_048_576, 4, 4092, 1_048_576, 4]),
        (1, vec![500_000, 0, 500_001]),
        (2_999_999, vec![1]),
        (2_000_000, vec![1_000_000 - 4, 4]),
        (100, vec![]),
    ] {
        let parts = store.read("scatter", offset as u64, regions(&lens), Priority::Restore);
        let parts = parts.await.unwrap();
        assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), lens);
        let read = parts.iter().map(|part| &part[..]).collect::<Vec<_>>().concat();
        assert!(read == bytes[offset..offset + read.len()], "offset {offset}, {lens:?}");
    }
    for (offset, lens) in [
        (2_999_999, vec![1, 1]),
        (1_000_000, vec![2_000_000, 1]),
        (9_000_000, vec![5]),
        (i64::MAX.unsigned_abs(), vec![300_000]),
        (u64::MAX - 3, vec![5]),
        (u64::MAX, vec![1 << 20]),
    ] {
        let read = store.read("scatter", offset, regions(&lens), Priority::Restore);
        let error = read.await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
        assert_eq!(error.get("object"), Some("scatter"));
    }
}

async fn gather_lists(store: &dyn Store) {
    let bytes: Bytes = pattern(9 << 20).into();
    for cuts in
        [vec![], vec![1], vec![0, 4096, 4097, 1 << 20, 8 << 20, (8 << 20) + 5], vec![9 << 20]]
    {
        let mut payload = Vec::new();
        let mut start = 0;
        for cut in cuts {
            payload.push(bytes.slice(start..cut));
            start = cut;
        }
        payload.push(bytes.slice(start..));
        store.put("gather", payload, Priority::Background).await.unwrap();
        assert!(whole(store, "gather").await == bytes);
    }
    // Many small pieces, more than one vectored call takes.
    let small: Vec<Bytes> = (0..3000).map(|i| bytes.slice(i * 7..i * 7 + 7)).collect();
    store.put("gather", small, Priority::Upload).await.unwrap();
    assert!(whole(store, "gather").await == bytes[..21_000]);
}

async fn listings(store: &dyn Store) {
    for key in ["list/b", "list/a", "list/dir/x", "list/dir-2/x", "list/dir/deep/y", "list-not/z"] {
        put(store, key, key.to_owned()).await;
    }
    let found = store.list("list").await.unwrap();
    let keys: Vec<&str> = found.objects.iter().map(|meta| meta.key.as_str()).collect();
    assert_eq!(keys, ["list/a", "list/b"]);
    assert_eq!(found.prefixes, ["dir", "dir-2"]);
    assert_eq!(found.objects[0].bytes, 6);
    let all = store.list_all("list").await.unwrap();
    let keys: Vec<&str> = all.iter().map(|meta| meta.key.as_str()).collect();
    assert_eq!(keys, ["list/a", "list/b", "list/dir-2/x", "list/dir/deep/y", "list/dir/x"]);
    // What is an object is no prefix.
    assert_eq!(store.list("list/a").await.unwrap(), Listing::default());
    assert_eq!(store.list_all("list/a").await.unwrap(), []);
    assert!(store.list("").await.unwrap().prefixes.contains(&"list-not".to_owned()));
}

async fn deletes(store: &dyn Store) {
    for key in ["del/a", "del/b", "del/dir/c", "del-not/z"] {
        put(store, key, "x").await;
    }
    store.delete(vec!["del/a".into(), "del/gone".into()]).await.unwrap();
    assert_eq!(store.list_all("del").await.unwrap().len(), 2);
    store.delete_all("del").await.unwrap();
    assert_eq!(store.list_all("del").await.unwrap(), []);
    assert!(!store.list("").await.unwrap().prefixes.contains(&"del".to_owned()));
    whole(store, "del-not/z").await;
    // An object of the prefix's own name is not below it.
    store.delete_all("del-not/z").await.unwrap();
    whole(store, "del-not/z").await;
}

async fn exclusive(store: &dyn Store) {
    if !store.capabilities().put_new {
        return;
    }
    for round in 0..4 {
        let key = format!("exclusive/deep-{round}/claim");
        let attempts = (0..32).map(|writer| {
            let payload = Bytes::from(format!("writer {writer} of round {round}"));
            store.put_new(&key, payload)
        });
        let results = futures::future::join_all(attempts).await;
        let winners: Vec<usize> = (0..32).filter(|writer| results[*writer].is_ok()).collect();
        assert_eq!(winners.len(), 1, "one of 32 writers wins");
        for error in results.into_iter().filter_map(Result::err) {
            assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error:?}");
        }
        let content = whole(store, &key).await;
        assert_eq!(content, format!("writer {} of round {round}", winners[0]));
        let beside = store.list_all(&format!("exclusive/deep-{round}")).await.unwrap();
        assert_eq!(beside.len(), 1, "the losers leave nothing behind");
    }
}

async fn positional(store: &dyn Store) {
    let bytes = pattern((5 << 20) + 123);
    let created = store.create("positional/object", bytes.len() as u64, Priority::Foreground).await;
    if !store.capabilities().positional_writes {
        assert_eq!(created.unwrap_err().kind(), ErrorKind::Unsupported);
        return;
    }
    let writer = created.unwrap();
    // Out of order and at once; whole pages, a piece at an odd offset, and a tail of 123 bytes.
    let cuts = [0, 1 << 20, 2 << 20, (2 << 20) + 10, 3 << 20, 5 << 20, bytes.len()];
    let pieces = cuts.windows(2).rev().map(|cut| {
        let piece = Buffer::from(&bytes[cut[0]..cut[1]]);
        writer.write_at(cut[0] as u64, piece)
    });
    for buffer in futures::future::try_join_all(pieces).await.unwrap() {
        assert!(!buffer.is_empty(), "buffers come back for reuse");
    }
    writer.finish(bytes.len() as u64).await.unwrap();
    assert!(whole(store, "positional/object").await == bytes);
    // Direct writes of padded buffers: the padding is cut off.
    let writer = store.create("positional/padded", 2 << 20, Priority::Background).await.unwrap();
    writer.write_at(0, Buffer::from(&bytes[..2 << 20])).await.unwrap();
    writer.finish((2 << 20) - 5).await.unwrap();
    assert!(whole(store, "positional/padded").await == bytes[..(2 << 20) - 5]);
    // Created again, it is empty before it is written.
    let writer = store.create("positional/object", 10, Priority::Foreground).await.unwrap();
    writer.write_at(3, Buffer::from(&b"xyz"[..])).await.unwrap();
    writer.finish(10).await.unwrap();
    assert_eq!(whole(store, "positional/object").await, &b"\0\0\0xyz\0\0\0\0"[..]);
}

async fn renames(store: &dyn Store) {
    put(store, "ren/a/deep/x", "of a").await;
    put(store, "ren/b/x", "of b").await;
    let no_replace = |from, to| store.rename(from, to, RenameMode::NoReplace);
    if !store.capabilities().rename {
        let error = no_replace("ren/a", "ren/c").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        return;
    }
    assert_eq!(no_replace("ren/none", "ren/c").await.unwrap_err().kind(), ErrorKind::NotFound);
    let error = no_replace("ren/a", "ren/b").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error:?}");
    assert_eq!(whole(store, "ren/b/x").await, "of b");
    no_replace("ren/a", "ren/new/parent/c").await.unwrap();
    assert_eq!(whole(store, "ren/new/parent/c/deep/x").await, "of a");
    assert_eq!(store.list_all("ren/a").await.unwrap(), []);
    let error = no_replace("ren/new", "ren/new/parent/d").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    if store.capabilities().exchange {
        store.rename("ren/b", "ren/new/parent/c", RenameMode::Exchange).await.unwrap();
        assert_eq!(whole(store, "ren/new/parent/c/x").await, "of b");
        assert_eq!(whole(store, "ren/b/deep/x").await, "of a");
        let error = store.rename("ren/b", "ren/gone", RenameMode::Exchange).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    }
}

async fn copies(store: &dyn Store) {
    if !store.capabilities().copy {
        let error = store.copy("spans", "copied/to").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        return;
    }
    let bytes = pattern(2 << 20);
    put(store, "copied/from", bytes.clone()).await;
    store.copy("copied/from", "copied/deep/to").await.unwrap();
    assert!(whole(store, "copied/deep/to").await == bytes);
    store.copy("spans", "copied/deep/to").await.unwrap();
    assert!(whole(store, "copied/deep/to").await == whole(store, "spans").await);
    let error = store.copy("copied/none", "copied/x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
}
