//! The judge of every store: one suite, run over each of them.
//!
//! With `MILEPOST_TEST_S3=http://127.0.0.1:5555/testbucket` (moto, static credentials `testing`), it runs over S3, too.

mod conformance;
#[cfg(feature = "http")]
mod http;
mod local;
mod remote;
mod spoiled;

use super::*;
use futures::executor::block_on;

/// Bytes that repeat at no power of two, so that a shifted copy is seen.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 31 + i / 251) % 251).unwrap()).collect()
}

fn disk() -> Arc<Disk> {
    Arc::new(Disk::new(4).unwrap())
}

/// A local store in a directory that goes with it; on the build's disk, not on a tmpfs.
fn local() -> (tempfile::TempDir, Arc<LocalStore>) {
    local_in(&std::env::temp_dir())
}

fn local_in(parent: &Path) -> (tempfile::TempDir, Arc<LocalStore>) {
    let dir = tempfile::tempdir_in(parent).unwrap();
    let store = LocalStore::new(dir.path().to_owned(), disk()).unwrap();
    (dir, store)
}

fn regions(lens: &[usize]) -> Vec<Region> {
    lens.iter().map(|len| Region::from(Buffer::zeroed(*len))).collect()
}

async fn put(store: &dyn Store, key: &str, bytes: impl Into<Bytes>) {
    store.put(key, vec![bytes.into()], Priority::Foreground).await.unwrap();
}

async fn whole(store: &dyn Store, key: &str) -> Bytes {
    let span = Span::Whole { bytes_max: 1 << 30 };
    store.get(key, span, Priority::Restore).await.unwrap()
}
