//! Remote objects: everything `object_store` speaks, behind our contract.
//!
//! | ours | theirs |
//! |---|---|
//! | `get`, `read` | one ranged GET; `read` copies the body's frames into the regions as they arrive |
//! | `put` ≤ 100 MiB | one PUT of the gather list, nothing is joined |
//! | `put` above | multipart, 16 MiB parts of the same list, four at once, aborted on an error |
//! | `put_new` | a conditional PUT, and a look when the answer may have been lost (below) |
//! | `sync`, `create_dir` | nothing: an answered PUT is durable, and there are no directories |
//! | `rename` | `Unsupported`: copy and delete is no rename |
//!
//! A conditional PUT whose first answer is lost is repeated by the client and then refused *because of itself*. So
//! after any refusal or doubt the object is read back: equal bytes are ours, others are another's win, and
//! where it cannot be read the error says that the outcome is unknown.
//!
//! Requests start when they are asked for: priorities and slots are the scheduler's.
//! Keys go through `Path::parse`, never `Path::from`, which would escape `%` a second time.

use super::{
    Capabilities, Listing, ObjectMeta, ObjectWriter, Priority, RenameMode, Span, Store, key,
    remote::Remote,
};
use crate::{
    buffer::Region,
    error::{Error, Result},
};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream};
use object_store::{
    GetOptions, GetRange, GetResult, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    path::Path,
};
use std::{fmt, sync::Arc};

/// Up to this size one PUT: multipart costs three requests more and was slower below it (icechunk#845).
const PUT_BYTES_MAX: u64 = 100 << 20;
/// S3 takes 10,000 parts: 160 GB, far above a shard.
const PART_BYTES: usize = 16 << 20;
const PARTS_AT_ONCE: usize = 4;
/// How often a conditional PUT is tried when the store says "conflict" but has no object.
const CREATE_ATTEMPTS_MAX: usize = 3;

/// An `object_store` store on the engine's runtime.
pub struct ObjectStoreAdapter {
    shared: Arc<Shared>,
    remote: Arc<Remote>,
    capabilities: Capabilities,
}

struct Shared {
    inner: Arc<dyn ObjectStore>,
    url: String,
    /// The last bytes of an object can be asked for without its size.
    suffix_ranges: bool,
}

impl fmt::Debug for ObjectStoreAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectStoreAdapter({})", self.shared.url)
    }
}

impl ObjectStoreAdapter {
    /// Wraps `inner`, called `url` in messages, whose requests run on `remote`.
    ///
    /// It is taken to have conditional puts and, unless told otherwise, suffix ranges.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>, url: impl Into<String>, remote: Arc<Remote>) -> Self {
        let capabilities = Capabilities {
            rename: false,
            exchange: false,
            put_new: true,
            copy: true,
            positional_writes: false,
            writable: true,
            case_sensitive: true,
            concurrency: 32,
            part_bytes: 8 << 20,
            coalesce_gap_bytes: 1 << 20,
            shard_bytes: 64 << 20,
        };
        let shared = Arc::new(Shared { inner, url: url.into(), suffix_ranges: true });
        Self { shared, remote, capabilities }
    }

    /// Says that the store refuses suffix ranges (Azure): the size is asked for first.
    #[must_use]
    pub fn without_suffix_ranges(self) -> Self {
        let Shared { inner, url, .. } = &*self.shared;
        let shared = Shared { inner: Arc::clone(inner), url: url.clone(), suffix_ranges: false };
        Self { shared: Arc::new(shared), ..self }
    }

    /// Says that the store can only be read (plain HTTP).
    #[must_use]
    pub fn read_only(mut self) -> Self {
        let read = &mut self.capabilities;
        (read.put_new, read.copy, read.writable, read.concurrency) = (false, false, false, 16);
        self
    }

    fn run<T, F>(
        &self,
        checked: Result<()>,
        key: &str,
        request: impl FnOnce(Arc<Shared>, String) -> F,
    ) -> BoxFuture<'static, Result<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (url, object) = (self.shared.url.clone(), key.to_owned());
        let told = move |error: Error| error.with("object", object).with("store", url);
        if let Err(error) = checked {
            return futures::future::ready(Err(told(error))).boxed();
        }
        let request = request(Arc::clone(&self.shared), key.to_owned());
        self.remote.run(request).map(move |result| result.map_err(told)).boxed()
    }

    fn read_checked<T, F>(
        &self,
        key: &str,
        request: impl FnOnce(Arc<Shared>, String) -> F,
    ) -> BoxFuture<'static, Result<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        self.run(key::check_key(key), key, request)
    }

    fn write_checked<T, F>(
        &self,
        checked: Result<()>,
        key: &str,
        request: impl FnOnce(Arc<Shared>, String) -> F,
    ) -> BoxFuture<'static, Result<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let writable = if self.capabilities.writable {
            Ok(())
        } else {
            Err(Error::unsupported("this place can only be read").hint("save to another place"))
        };
        self.run(writable.and(checked), key, request)
    }
}

fn path(key: &str) -> Result<Path> {
    Path::parse(key).map_err(|e| Error::invalid("the store cannot hold this key").because(e))
}

/// The path of a prefix; the root has none.
fn root(prefix: &str) -> Result<Option<Path>> {
    if prefix.is_empty() { Ok(None) } else { path(prefix).map(Some) }
}

/// Turns an error of the client into ours; the caller adds `store` and `object`.
pub(super) fn explain(error: object_store::Error) -> Error {
    use object_store::Error as Theirs;
    let ours = match &error {
        Theirs::NotFound { .. } => Error::not_found("not found"),
        Theirs::AlreadyExists { .. } => Error::exists("exists already"),
        Theirs::Precondition { .. } | Theirs::NotModified { .. } => {
            Error::conflict("the object was changed by another writer")
        }
        Theirs::NotSupported { .. } | Theirs::NotImplemented { .. } => {
            Error::unsupported("the store cannot do this")
        }
        Theirs::InvalidPath { .. } => Error::invalid("the store cannot hold this key"),
        Theirs::PermissionDenied { .. } => {
            Error::invalid("permission denied").hint("check what the credentials may do there")
        }
        Theirs::Unauthenticated { .. } => {
            Error::invalid("the store does not accept the credentials")
                .hint("check the credentials")
        }
        Theirs::UnknownConfigurationKey { .. } => Error::invalid("an unknown option"),
        _ => explain_generic(&error.to_string()),
    };
    ours.because(error)
}

/// The client has no variant for the rest, only a text; what is not known in it may succeed when tried again.
fn explain_generic(text: &str) -> Error {
    if text.contains("non-partial response") {
        return Error::unsupported("the server ignores byte ranges")
            .hint("use a server that answers `Range` requests");
    }
    let status = text.split_once("status code: ").map(|(_, rest)| rest.as_bytes());
    match status.and_then(|status| status.get(..3)) {
        Some(b"405" | b"501") => Error::unsupported("the server cannot do this"),
        Some([b'4', rest @ ..]) if rest != b"08" && rest != b"29" => {
            Error::invalid("the store refuses the request")
        }
        _ => Error::unavailable("the request failed"),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map` wants")]
fn meta(theirs: object_store::ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        key: theirs.location.to_string(),
        bytes: theirs.size,
        modified: theirs.last_modified.into(),
    }
}

impl Shared {
    async fn head(&self, key: &str) -> Result<ObjectMeta> {
        self.inner.head(&path(key)?).await.map(meta).map_err(explain)
    }

    /// Asks for a range, and where that fails finds out whether the object is too short for it.
    async fn open(&self, key: &str, span: Span) -> Result<GetResult> {
        let range = match span {
            Span::Whole { .. } => None,
            Span::Range { offset, len } => {
                Some(GetRange::Bounded(offset..offset.saturating_add(len)))
            }
            Span::Suffix { len } => Some(GetRange::Suffix(len)),
        };
        let ranged = range.is_some();
        let options = GetOptions { range, ..GetOptions::default() };
        match self.inner.get_opts(&path(key)?, options).await {
            Ok(result) => {
                let (_, len) = span.resolve(result.meta.size)?;
                if result.range.end - result.range.start != len {
                    return Err(Error::unavailable("the store answered with another range")
                        .with("range", span));
                }
                Ok(result)
            }
            // Most stores answer 416 without the size to a range that is not there.
            Err(error) if ranged && matches!(error, object_store::Error::Generic { .. }) => {
                let error = explain(error).with("range", span);
                match self.head(key).await {
                    Ok(meta) => span.resolve(meta.bytes).and(Err(error)),
                    Err(_) => Err(error),
                }
            }
            Err(error) => Err(explain(error).with("range", span)),
        }
    }

    async fn get(&self, key: &str, span: Span) -> Result<Bytes> {
        let span = match span {
            Span::Range { len: 0, .. } | Span::Suffix { len: 0 } => return Ok(Bytes::new()),
            Span::Suffix { .. } if !self.suffix_ranges => {
                let (offset, len) = span.resolve(self.head(key).await?.bytes)?;
                Span::Range { offset, len }
            }
            span => span,
        };
        let result = self.open(key, span).await?;
        let expected = result.range.end - result.range.start;
        let bytes = result.bytes().await.map_err(explain)?;
        complete(bytes.len() as u64, expected, span)?;
        Ok(bytes)
    }

    async fn read(&self, key: &str, offset: u64, mut parts: Vec<Region>) -> Result<Vec<Region>> {
        let len = parts.iter().map(|part| part.len() as u64).sum();
        if len == 0 {
            return Ok(parts);
        }
        let span = Span::Range { offset, len };
        let mut body = self.open(key, span).await?.into_stream();
        let (mut at, mut used, mut arrived) = (0, 0, 0);
        while let Some(frame) = body.next().await {
            let frame = frame.map_err(|e| explain(e).with("range", span))?;
            arrived += frame.len() as u64;
            let mut rest = &frame[..];
            while !rest.is_empty() {
                let Some(part) = parts.get_mut(at) else { break };
                let n = rest.len().min(part.len() - used);
                part[used..used + n].copy_from_slice(&rest[..n]);
                rest = &rest[n..];
                used += n;
                if used == part.len() {
                    (at, used) = (at + 1, 0);
                }
            }
        }
        complete(arrived, len, span)?;
        Ok(parts)
    }

    async fn put(&self, key: &str, payload: Vec<Bytes>) -> Result<()> {
        let total: u64 = payload.iter().map(|piece| piece.len() as u64).sum();
        if total > PUT_BYTES_MAX {
            return self.put_parts(&path(key)?, payload).await;
        }
        let payload = PutPayload::from_iter(payload);
        self.inner.put(&path(key)?, payload).await.map(drop).map_err(explain_put)
    }

    async fn put_parts(&self, path: &Path, payload: Vec<Bytes>) -> Result<()> {
        let mut upload = self.inner.put_multipart(path).await.map_err(explain_put)?;
        // A part's number is given when it is made, so they are made in order, as slots get free.
        let sent = stream::iter(parts(payload))
            .map(|part| upload.put_part(PutPayload::from_iter(part)))
            .buffer_unordered(PARTS_AT_ONCE)
            .try_collect::<()>()
            .await;
        let done = match sent {
            Ok(()) => upload.complete().await.map(drop),
            Err(error) => Err(error),
        };
        if done.is_err() {
            // Unfinished parts cost money until they are aborted; the first error is the one to tell.
            drop(upload.abort().await);
        }
        done.map_err(explain_put)
    }

    async fn put_new(&self, key: &str, payload: &Bytes) -> Result<()> {
        let path = path(key)?;
        for _ in 0..CREATE_ATTEMPTS_MAX {
            let options = PutOptions::from(PutMode::Create);
            let put = self.inner.put_opts(&path, payload.clone().into(), options).await;
            let Err(error) = put else { return Ok(()) };
            let refused = matches!(
                error,
                object_store::Error::AlreadyExists { .. }
                    | object_store::Error::Precondition { .. }
            );
            if !refused && !matches!(error, object_store::Error::Generic { .. }) {
                return Err(explain_put(error));
            }
            // One byte more than ours is enough to see that it is another's.
            let bytes_max = payload.len() as u64;
            match self.get(key, Span::Whole { bytes_max }).await {
                Ok(there) if there == *payload => return Ok(()),
                Ok(_) => return Err(Error::exists("exists already").because(error)),
                Err(read) if read.kind() == crate::ErrorKind::Corrupt => {
                    return Err(Error::exists("exists already").because(error));
                }
                // Refused for a conflict with a writer that has not finished (S3's 409): again.
                Err(read) if refused && read.kind() == crate::ErrorKind::NotFound => {}
                Err(_) => return Err(inconclusive().because(error)),
            }
        }
        Err(inconclusive())
    }

    async fn delete_paths(
        &self,
        paths: stream::BoxStream<'static, object_store::Result<Path>>,
    ) -> Result<()> {
        let mut deleted = self.inner.delete_stream(paths);
        while let Some(result) = deleted.next().await {
            match result {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(explain(error)),
            }
        }
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Listing> {
        let found =
            self.inner.list_with_delimiter(root(prefix)?.as_ref()).await.map_err(explain)?;
        let mut objects: Vec<ObjectMeta> = found.objects.into_iter().map(meta).collect();
        objects.retain(|object| key::below(&object.key, prefix).is_some());
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        let mut prefixes: Vec<String> = found
            .common_prefixes
            .iter()
            .filter_map(|path| Some(path.as_ref().rsplit('/').next()?.to_owned()))
            .collect();
        prefixes.sort();
        Ok(Listing { objects, prefixes })
    }

    async fn list_all(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let found = self.inner.list(root(prefix)?.as_ref()).map_ok(meta);
        let mut objects: Vec<ObjectMeta> = found.try_collect().await.map_err(explain)?;
        objects.retain(|object| key::below(&object.key, prefix).is_some());
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }
}

fn explain_put(error: object_store::Error) -> Error {
    match error {
        object_store::Error::NotFound { .. } => {
            explain(error).hint("does the bucket or container exist?")
        }
        error => explain(error),
    }
}

fn inconclusive() -> Error {
    Error::unavailable("it is unknown whether the object was created")
        .hint("read it again, then decide; nothing was overwritten")
}

fn complete(arrived: u64, expected: u64, span: Span) -> Result<()> {
    if arrived == expected {
        return Ok(());
    }
    Err(Error::unavailable("the store sent another number of bytes than it promised")
        .with("range", span)
        .with("expected_bytes", expected)
        .with("actual_bytes", arrived))
}

/// Divides a gather list into parts of one size (R2 insists on that), without joining anything.
fn parts(payload: Vec<Bytes>) -> impl Iterator<Item = Vec<Bytes>> {
    let mut pieces = payload.into_iter();
    let mut rest = Bytes::new();
    std::iter::from_fn(move || {
        let (mut part, mut bytes) = (Vec::new(), 0);
        while bytes < PART_BYTES {
            if rest.is_empty() {
                match pieces.next() {
                    Some(piece) => rest = piece,
                    None => break,
                }
                continue;
            }
            let piece = rest.split_to(rest.len().min(PART_BYTES - bytes));
            bytes += piece.len();
            part.push(piece);
        }
        (bytes > 0).then_some(part)
    })
}

impl Store for ObjectStoreAdapter {
    fn url(&self) -> &str {
        &self.shared.url
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn get(&self, key: &str, span: Span, _priority: Priority) -> BoxFuture<'static, Result<Bytes>> {
        self.read_checked(key, |shared, key| async move { shared.get(&key, span).await })
    }

    fn read(
        &self,
        key: &str,
        offset: u64,
        parts: Vec<Region>,
        _priority: Priority,
    ) -> BoxFuture<'static, Result<Vec<Region>>> {
        self.read_checked(key, |shared, key| async move { shared.read(&key, offset, parts).await })
    }

    fn put(
        &self,
        key: &str,
        payload: Vec<Bytes>,
        _priority: Priority,
    ) -> BoxFuture<'static, Result<()>> {
        self.write_checked(key::check_key(key), key, |shared, key| async move {
            shared.put(&key, payload).await
        })
    }

    fn put_new(&self, key: &str, payload: Bytes) -> BoxFuture<'static, Result<()>> {
        self.write_checked(key::check_key(key), key, |shared, key| async move {
            shared.put_new(&key, &payload).await
        })
    }

    fn create(
        &self,
        key: &str,
        _bytes: u64,
        _priority: Priority,
    ) -> BoxFuture<'static, Result<Arc<dyn ObjectWriter>>> {
        self.write_checked(key::check_key(key), key, |_, _| async {
            Err(Error::unsupported("an object of this store is written whole"))
        })
    }

    fn copy(&self, from: &str, to: &str) -> BoxFuture<'static, Result<()>> {
        let checked = key::check_key(from).and_then(|()| key::check_key(to));
        let to = to.to_owned();
        self.write_checked(checked, from, |shared, from| async move {
            shared.inner.copy(&path(&from)?, &path(&to)?).await.map_err(explain)
        })
    }

    fn head(&self, key: &str) -> BoxFuture<'static, Result<ObjectMeta>> {
        self.read_checked(key, |shared, key| async move { shared.head(&key).await })
    }

    fn list(&self, prefix: &str) -> BoxFuture<'static, Result<Listing>> {
        self.run(key::check_prefix(prefix), prefix, |shared, prefix| async move {
            shared.list(&prefix).await
        })
    }

    fn list_all(&self, prefix: &str) -> BoxFuture<'static, Result<Vec<ObjectMeta>>> {
        self.run(key::check_prefix(prefix), prefix, |shared, prefix| async move {
            shared.list_all(&prefix).await
        })
    }

    fn delete(&self, keys: Vec<String>) -> BoxFuture<'static, Result<()>> {
        let checked = keys.iter().try_for_each(|key| key::check_key(key));
        self.write_checked(checked, "", |shared, _| async move {
            let paths: Vec<Path> = keys.iter().map(|key| path(key)).collect::<Result<_>>()?;
            shared.delete_paths(stream::iter(paths.into_iter().map(Ok)).boxed()).await
        })
    }

    fn delete_all(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        self.write_checked(key::check_key(prefix), prefix, |shared, prefix| async move {
            let found = shared.inner.list(root(&prefix)?.as_ref());
            shared.delete_paths(found.map_ok(|meta| meta.location).boxed()).await
        })
    }

    fn sync(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        self.write_checked(key::check_prefix(prefix), prefix, |_, _| async { Ok(()) })
    }

    fn rename(&self, from: &str, _to: &str, _mode: RenameMode) -> BoxFuture<'static, Result<()>> {
        self.write_checked(key::check_key(from), from, |_, _| async {
            Err(Error::unsupported("an object store has no rename"))
        })
    }

    fn create_dir(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        self.write_checked(key::check_prefix(prefix), prefix, |_, _| async { Ok(()) })
    }
}
