use super::{conformance::everything, *};
use crate::error::ErrorKind;
use rustix::fs::{Advice, fadvise};
use std::{
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
};

#[test]
fn the_disk_conforms() {
    let (_dir, store) = local();
    block_on(everything(&*store));
}

#[test]
fn a_tmpfs_conforms() {
    let Some(shm) = Some(Path::new("/dev/shm")).filter(|path| path.is_dir()) else {
        println!("skipped: no /dev/shm");
        return;
    };
    let (_dir, store) = local_in(shm);
    block_on(everything(&*store));
}

#[test]
fn memory_conforms() {
    block_on(everything(&*MemoryStore::new()));
}

/// Writes the dirty pages of a file and drops it from the page cache.
fn make_cold(path: &Path) {
    let file = std::fs::File::open(path).unwrap();
    file.sync_all().unwrap();
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
}

#[test]
fn scattered_reads_are_right_at_every_alignment_cold_and_warm() {
    let (dir, store) = local();
    let bytes = pattern(18 << 20);
    std::fs::write(dir.path().join("file"), &bytes).unwrap();
    let k = 1024;
    // Around page and sector borders, small pieces between large ones, and longer than one window.
    let small = vec![100; 4000];
    let layouts: [&[usize]; 8] = [
        &[600 * k],
        &[512 * k, 4, 4092, 512 * k, 4],
        &[3, 600 * k, 5],
        &[300 * k + 1, 300 * k + 511, 7],
        &[64 * k - 1, 64 * k, 64 * k + 1, 200 * k],
        &[17 << 20],
        &[16 << 20, 4],
        &small,
    ];
    block_on(async {
        for offset in [0, 1, 511, 512, 513, 4095, 4096, 4097, 65_536 - 4] {
            for lens in layouts {
                for cold in [true, false] {
                    if cold {
                        make_cold(&dir.path().join("file"));
                    }
                    check_read(&*store, &bytes, offset, lens, 0).await;
                }
            }
        }
        // Destinations that are not aligned, and some that are only to a sector.
        for skew in [1, 4, 64, 512, 1024, 4095] {
            make_cold(&dir.path().join("file"));
            check_read(&*store, &bytes, 4096, &[512 * k, 4, 300 * k], skew).await;
            check_read(&*store, &bytes, 4096 + skew, &[512 * k, 4, 300 * k], skew).await;
        }
    });
}

async fn check_read(store: &dyn Store, bytes: &[u8], offset: usize, lens: &[usize], skew: usize) {
    let parts: Vec<Region> =
        lens.iter().map(|len| Region::from(Buffer::zeroed(len + skew)).split_at(skew).1).collect();
    let parts = store.read("file", offset as u64, parts, Priority::Restore).await.unwrap();
    let mut at = offset;
    for part in parts {
        assert!(
            part[..] == bytes[at..at + part.len()],
            "offset {offset}, skew {skew}, {lens:?}, at {at}"
        );
        at += part.len();
    }
}

/// Tells whether the page at `offset` is in the page cache; drops the file from it, for asking starts readahead.
fn is_cached(path: &Path, offset: u64) -> bool {
    let file = std::fs::File::open(path).unwrap();
    let mut byte = [0];
    let mut slices = [std::io::IoSliceMut::new(&mut byte)];
    let flags = rustix::io::ReadWriteFlags::NOWAIT;
    let cached = rustix::io::preadv2(&file, &mut slices, offset, flags).is_ok();
    make_cold(path);
    cached
}

#[test]
fn large_writes_and_cold_reads_leave_the_page_cache_alone() {
    let (dir, store) = local();
    let findings = block_on(store.inspect("")).unwrap();
    let direct = findings.iter().find(|found| found.name == "direct I/O").unwrap();
    if direct.outcome != Outcome::Yes || dir.path().starts_with("/dev/shm") {
        println!("skipped: {direct:?}");
        return;
    }
    let middle = 5 << 20;
    block_on(async {
        let writer = store.create("file", 8 << 20, Priority::Foreground).await.unwrap();
        writer.write_at(0, Buffer::from(&pattern(8 << 20)[..])).await.unwrap();
        writer.finish((8 << 20) - 4092).await.unwrap();
        assert!(!is_cached(&dir.path().join("file"), middle), "a write at an offset");
        put(&*store, "put", pattern(8 << 20)).await;
        assert!(!is_cached(&dir.path().join("put"), middle), "a put");
        let lens = [(8 << 20) - 4096, 4];
        store.read("file", 0, regions(&lens), Priority::Restore).await.unwrap();
        assert!(!is_cached(&dir.path().join("file"), middle), "a cold read");
        whole(&*store, "put").await;
        assert!(!is_cached(&dir.path().join("put"), middle), "a cold get");
        std::fs::read(dir.path().join("file")).unwrap();
        assert!(is_cached(&dir.path().join("file"), middle), "the question itself is right");
    });
}

#[test]
fn a_read_changes_no_byte_outside_its_regions() {
    let (dir, store) = local();
    std::fs::write(dir.path().join("file"), pattern(2 << 20)).unwrap();
    make_cold(&dir.path().join("file"));
    let (head, rest) = Region::from(Buffer::zeroed((1 << 20) + 200)).split_at(100);
    let (middle, tail) = rest.split_at(1 << 20);
    let parts = block_on(store.read("file", 4096, vec![middle], Priority::Restore)).unwrap();
    assert!(parts[0][..] == pattern(2 << 20)[4096..4096 + (1 << 20)]);
    assert!(head.iter().chain(tail.iter()).all(|byte| *byte == 0));
}

#[test]
fn a_file_that_ends_early_is_corrupt_cold_and_warm() {
    let (dir, store) = local();
    for size in [0_usize, 1, 300_000, 1 << 20, (1 << 20) + 77] {
        std::fs::write(dir.path().join("file"), pattern(size)).unwrap();
        for cold in [true, false] {
            if cold {
                make_cold(&dir.path().join("file"));
            }
            for lens in [vec![size + 1], vec![size, 1], vec![size / 2, size, 8 << 20]] {
                let read = store.read("file", 0, regions(&lens), Priority::Restore);
                let error = block_on(read).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
                assert_eq!(error.message(), "object is truncated");
                assert_eq!(error.get("actual_bytes"), Some(size.to_string().as_str()), "{lens:?}");
                assert!(error.get("range").is_some() && error.get("expected_bytes").is_some());
            }
        }
    }
}

#[test]
fn a_replaced_object_is_never_seen_torn() {
    let (_dir, store) = local();
    let versions: Vec<Bytes> = (0..2_u8).map(|v| vec![v; 300_000].into()).collect();
    block_on(async {
        put(&*store, "a", versions[0].clone()).await;
        for round in 0..200 {
            let next = versions[round % 2].clone();
            let write = store.put("a", vec![next], Priority::Foreground);
            let read = store.get("a", Span::Whole { bytes_max: 1 << 20 }, Priority::Foreground);
            let (done, read) = futures::join!(write, read);
            done.unwrap();
            let read = read.unwrap();
            assert_eq!(read.len(), 300_000);
            assert!(read.iter().all(|byte| *byte == read[0]), "half of one, half of another");
        }
        assert_eq!(store.list("").await.unwrap().objects.len(), 1, "no temporary file is left");
    });
}

#[test]
fn deleting_and_listing_never_follow_a_link_out_of_the_tree() {
    let (dir, store) = local();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("precious"), "x").unwrap();
    std::fs::create_dir_all(dir.path().join("step/sub")).unwrap();
    symlink(outside.path(), dir.path().join("step/sub/link")).unwrap();
    symlink(outside.path().join("precious"), dir.path().join("step/file-link")).unwrap();
    symlink(outside.path(), dir.path().join("whole")).unwrap();
    symlink("/nowhere", dir.path().join("step/dangling")).unwrap();
    block_on(async {
        put(&*store, "step/sub/object", "x").await;
        let keys: Vec<String> =
            store.list_all("step").await.unwrap().into_iter().map(|meta| meta.key).collect();
        assert_eq!(keys, ["step/sub/object"]);
        // One level shows what links point to: a step may lie on another disk.
        let listing = store.list("step/sub").await.unwrap();
        assert_eq!(listing.prefixes, ["link"]);
        store.delete_all("step").await.unwrap();
        store.delete_all("whole").await.unwrap();
    });
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(outside.path().join("precious").exists());
}

#[test]
fn a_deep_tree_and_odd_names_are_deleted() {
    use std::os::unix::ffi::OsStrExt;
    let (dir, store) = local();
    let deep = dir.path().join("tree").join("d/".repeat(300));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("x"), "x").unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"not-utf8-\xff");
    std::fs::write(dir.path().join("tree").join(odd), "x").unwrap();
    block_on(store.delete_all("tree")).unwrap();
    assert!(!dir.path().join("tree").exists());
}

#[test]
fn directories_nested_too_deeply_are_an_error_and_no_overflow() {
    let (dir, store) = local();
    let deep = dir.path().join("tree").join("d/".repeat(600));
    std::fs::create_dir_all(deep).unwrap();
    let error = block_on(store.list_all("tree")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
}

#[test]
fn what_is_not_a_regular_file_is_no_object_and_hangs_nobody() {
    let (dir, store) = local();
    let fifo = std::process::Command::new("mkfifo").arg(dir.path().join("fifo")).status().unwrap();
    assert!(fifo.success());
    std::fs::create_dir(dir.path().join("dir")).unwrap();
    block_on(async {
        let span = Span::Whole { bytes_max: 9 };
        store.get("fifo", span, Priority::Restore).await.unwrap_err();
        store.read("fifo", 0, regions(&[1]), Priority::Restore).await.unwrap_err();
        assert_eq!(
            store.get("dir", span, Priority::Restore).await.unwrap_err().kind(),
            ErrorKind::NotFound
        );
        assert!(store.list("").await.unwrap().objects.is_empty());
        let error = store.put("dir", vec![], Priority::Foreground).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
        assert_eq!(store.list("").await.unwrap().prefixes, ["dir"], "nothing is left behind");
    });
}

#[test]
fn a_file_in_the_way_of_a_directory_is_named() {
    let (dir, store) = local();
    std::fs::write(dir.path().join("file"), "x").unwrap();
    block_on(async {
        let error = store.put("file/below", vec![], Priority::Foreground).await.unwrap_err();
        assert_eq!((error.kind(), error.get("object")), (ErrorKind::Invalid, Some("file/below")));
        let error = store.head("file/below").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    });
}

#[test]
fn a_name_that_is_too_long_is_invalid() {
    let (_dir, store) = local();
    let error = block_on(store.put(&"x".repeat(300), vec![], Priority::Foreground)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
}

#[test]
fn a_refused_directory_is_invalid_with_a_hint() {
    let (dir, store) = local();
    let closed = dir.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o555)).unwrap();
    if std::fs::write(closed.join("probe"), "").is_ok() {
        println!("skipped: root may write everywhere (see the read-only mount below)");
        return;
    }
    let error = block_on(store.put("closed/a", vec![], Priority::Foreground)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    assert!(error.hint_text().is_some());
}

/// A tmpfs of its own, unmounted when it goes; nothing where mounting is refused.
struct Mount(tempfile::TempDir);

impl Mount {
    fn tmpfs(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(dir.path())
            .stderr(std::process::Stdio::null())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(dir));
        }
        println!("skipped: no tmpfs can be mounted here");
        None
    }

    fn remount(&self, options: &str) -> bool {
        let options = format!("remount,{options}");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-o", &options]).arg(self.0.path());
        mount.status().is_ok_and(|status| status.success())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg(self.0.path()).status());
    }
}

#[test]
fn a_full_disk_is_unavailable_with_a_hint_and_leaves_no_half_object() {
    let Some(mount) = Mount::tmpfs("size=3m") else { return };
    let store = LocalStore::new(mount.0.path().to_owned(), disk()).unwrap();
    block_on(async {
        for len in [4 << 20, 900 << 10, 900 << 10, 900 << 10, 900 << 10] {
            let result = store.put("big", vec![pattern(len).into()], Priority::Foreground).await;
            if let Err(error) = result {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
                assert!(error.hint_text().unwrap().contains("free space"));
            }
            store.put("filler", vec![pattern(len / 2).into()], Priority::Foreground).await.ok();
        }
        let error = store.put("new", vec![pattern(4 << 20).into()], Priority::Foreground).await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Unavailable);
        let error = store.create("at", 4 << 20, Priority::Foreground).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        let keys: Vec<String> =
            store.list_all("").await.unwrap().into_iter().map(|meta| meta.key).collect();
        assert!(keys.iter().all(|key| key == "big" || key == "filler"), "{keys:?}");
    });
}

#[test]
fn a_read_only_file_system_is_invalid_with_a_hint() {
    let Some(mount) = Mount::tmpfs("size=1m") else { return };
    std::fs::create_dir(mount.0.path().join("dir")).unwrap();
    assert!(mount.remount("ro"));
    let store = LocalStore::new(mount.0.path().to_owned(), disk()).unwrap();
    block_on(async {
        for key in ["a", "dir/a", "new/dir/a"] {
            let error = store.put(key, vec![], Priority::Foreground).await.unwrap_err();
            assert_eq!((error.kind(), error.get("object")), (ErrorKind::Invalid, Some(key)));
            assert!(error.hint_text().is_some());
        }
    });
}

#[test]
fn a_rename_to_another_file_system_is_unsupported() {
    let Some(mount) = Mount::tmpfs("size=1m") else { return };
    let (dir, _) = local();
    std::fs::create_dir(dir.path().join("step")).unwrap();
    let store = LocalStore::new(PathBuf::from("/"), disk()).unwrap();
    let key = |path: &Path| path.to_str().unwrap().trim_start_matches('/').to_owned();
    let (from, to) = (key(&dir.path().join("step")), key(&mount.0.path().join("step")));
    let error = block_on(store.rename(&from, &to, RenameMode::NoReplace)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
}

#[test]
fn few_files_and_many_are_synced_and_a_missing_prefix_is_an_error() {
    let (_dir, store) = local();
    block_on(async {
        for i in 0..40 {
            put(&*store, &format!("many/{i}/x"), "x").await;
        }
        put(&*store, "few/a/x", "x").await;
        store.sync("few").await.unwrap();
        store.sync("many").await.unwrap();
        store.create_dir("watched").await.unwrap();
        store.sync("watched").await.unwrap();
        assert_eq!(store.sync("none").await.unwrap_err().kind(), ErrorKind::NotFound);
    });
}

#[test]
fn nothing_is_written_before_something_is_put() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("run");
    let store = LocalStore::new(root.clone(), disk()).unwrap();
    block_on(async {
        assert_eq!(store.list("").await.unwrap(), Listing::default());
        store.head("a").await.unwrap_err();
        store.delete_all("a").await.unwrap();
        assert!(!root.exists());
        put(&*store, "a", "x").await;
        assert!(root.exists());
    });
}

#[test]
fn a_place_is_probed_and_left_as_it_was() {
    let (dir, store) = local();
    let place = Place::new(store as Arc<dyn Store>, "run");
    let findings = block_on(probe(&place)).unwrap();
    for name in ["write and read", "byte ranges", "exclusive create", "rename without replacing"] {
        let found = findings.iter().find(|found| found.name == name).unwrap();
        assert_eq!(found.outcome, Outcome::Yes, "{found:?}");
    }
    let path = findings.last().unwrap();
    assert!(path.detail.contains("one rename"), "{path:?}");
    assert!(!dir.path().join("run").exists(), "what the probe made, it took away");
    std::fs::create_dir_all(dir.path().join("run/.milepost/tmp")).unwrap();
    block_on(probe(&place)).unwrap();
    let left: Vec<_> = std::fs::read_dir(dir.path().join("run/.milepost")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
