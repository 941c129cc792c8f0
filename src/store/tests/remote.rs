use super::{conformance::everything, *};
use crate::error::ErrorKind;
use object_store::{ObjectStore, ObjectStoreExt, memory::InMemory, path::Path as TheirPath};

fn adapter(inner: Arc<dyn ObjectStore>) -> ObjectStoreAdapter {
    ObjectStoreAdapter::new(inner, "memory://theirs", Remote::new())
}

#[test]
fn an_object_store_conforms() {
    block_on(everything(&adapter(Arc::new(InMemory::new()))));
}

#[test]
fn a_store_without_suffix_ranges_conforms() {
    block_on(everything(&adapter(Arc::new(InMemory::new())).without_suffix_ranges()));
}

#[test]
fn an_s3_bucket_conforms() {
    let Ok(url) = std::env::var("MILEPOST_TEST_S3") else {
        println!("skipped: MILEPOST_TEST_S3 is not set");
        return;
    };
    let (endpoint, bucket) =
        url.rsplit_once('/').expect("MILEPOST_TEST_S3 is http://host:port/bucket");
    // The suite empties the bucket: never anything but an emulator.
    assert!(endpoint.starts_with("http://127.0.0.1:"), "the emulator is on loopback: {endpoint}");
    let options = [
        ("endpoint", endpoint),
        ("allow_http", "true"),
        ("region", "us-east-1"),
        ("access_key_id", "testing"),
        ("secret_access_key", "testing"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()));
    let stores = Stores::new(disk(), Remote::new());
    let place = stores.open(&format!("s3://{bucket}"), &options).unwrap();
    block_on(async {
        let store = &**place.store();
        // The root is listed and asked for absence: the bucket must be empty.
        for object in store.list_all("").await.unwrap() {
            store.delete(vec![object.key]).await.unwrap();
        }
        everything(store).await;
        let findings = probe(&place).await.unwrap();
        assert!(findings.iter().any(|f| f.name == "exclusive create" && f.outcome == Outcome::Yes));
        large_put(store).await;
    });
}

/// More than one PUT takes: multipart.
async fn large_put(store: &dyn Store) {
    let piece: Bytes = pattern(10 << 20).into();
    let payload: Vec<Bytes> = (0..11).map(|i| piece.slice(i..)).collect();
    let expected = payload.concat();
    store.put("large", payload, Priority::Upload).await.unwrap();
    assert!(whole(store, "large").await == expected);
    let read = store.read("large", (16 << 20) - 7, regions(&[3, 1 << 20]), Priority::Restore);
    let read = read.await.unwrap();
    let start = (16 << 20) - 7;
    assert!(read[1][..] == expected[start + 3..start + 3 + (1 << 20)]);
}

#[test]
fn a_payload_larger_than_one_put_goes_in_parts() {
    block_on(large_put(&adapter(Arc::new(InMemory::new()))));
}

#[test]
fn keys_are_not_escaped_a_second_time() {
    let theirs = Arc::new(InMemory::new());
    let store = adapter(Arc::clone(&theirs) as Arc<dyn ObjectStore>);
    block_on(async {
        put(&store, "a%20b", "x").await;
        theirs.head(&TheirPath::parse("a%20b").unwrap()).await.unwrap();
    });
}

#[test]
fn a_read_only_place_refuses_every_change() {
    let store = adapter(Arc::new(InMemory::new())).read_only();
    block_on(async {
        let errors = [
            store.put("a", vec![], Priority::Foreground).await.unwrap_err(),
            store.put_new("a", Bytes::new()).await.unwrap_err(),
            store.copy("a", "b").await.unwrap_err(),
            store.delete(vec!["a".into()]).await.unwrap_err(),
            store.delete_all("a").await.unwrap_err(),
            store.create_dir("a").await.unwrap_err(),
            store.sync("a").await.unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        }
    });
}

mod lost_answers {
    //! A conditional put whose answer is lost, as `object_store` reports it (servers.md §3.1).

    use super::*;
    use futures::stream::BoxStream;
    use object_store::{
        CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta as TheirMeta,
        PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as TheirResult,
    };

    /// What becomes of the first conditional put and of reads after it.
    #[derive(Clone, Copy, Debug)]
    enum Fate {
        /// Applied, and the client's retry is refused.
        Refused,
        /// Applied, and the connection is reset.
        Reset,
        /// Not applied, and the connection is reset.
        Vanished,
        /// Applied and refused, and nothing can be read.
        Dark,
    }

    #[derive(Debug)]
    struct Loses(InMemory, Fate);

    impl std::fmt::Display for Loses {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Loses")
        }
    }

    fn reset() -> object_store::Error {
        object_store::Error::Generic { store: "test", source: "connection reset".into() }
    }

    impl Loses {
        async fn put(
            &self,
            path: &TheirPath,
            payload: PutPayload,
            options: PutOptions,
        ) -> TheirResult<PutResult> {
            if !matches!(self.1, Fate::Vanished) {
                self.0.put_opts(path, payload, options).await?;
            }
            Err(match self.1 {
                Fate::Refused | Fate::Dark => object_store::Error::AlreadyExists {
                    path: path.to_string(),
                    source: "412".into(),
                },
                Fate::Reset | Fate::Vanished => reset(),
            })
        }
    }

    impl ObjectStore for Loses {
        fn put_opts<'a, 'b, 'c>(
            &'a self,
            path: &'b TheirPath,
            payload: PutPayload,
            options: PutOptions,
        ) -> std::pin::Pin<Box<dyn Future<Output = TheirResult<PutResult>> + Send + 'c>>
        where
            'a: 'c,
            'b: 'c,
        {
            Box::pin(self.put(path, payload, options))
        }

        fn put_multipart_opts<'a, 'b, 'c>(
            &'a self,
            path: &'b TheirPath,
            options: PutMultipartOptions,
        ) -> std::pin::Pin<
            Box<dyn Future<Output = TheirResult<Box<dyn MultipartUpload>>> + Send + 'c>,
        >
        where
            'a: 'c,
            'b: 'c,
        {
            self.0.put_multipart_opts(path, options)
        }

        fn get_opts<'a, 'b, 'c>(
            &'a self,
            path: &'b TheirPath,
            options: GetOptions,
        ) -> std::pin::Pin<Box<dyn Future<Output = TheirResult<GetResult>> + Send + 'c>>
        where
            'a: 'c,
            'b: 'c,
        {
            match self.1 {
                Fate::Dark => Box::pin(std::future::ready(Err(reset()))),
                _ => self.0.get_opts(path, options),
            }
        }

        fn delete_stream(
            &self,
            paths: BoxStream<'static, TheirResult<TheirPath>>,
        ) -> BoxStream<'static, TheirResult<TheirPath>> {
            self.0.delete_stream(paths)
        }

        fn list(&self, prefix: Option<&TheirPath>) -> BoxStream<'static, TheirResult<TheirMeta>> {
            self.0.list(prefix)
        }

        fn list_with_delimiter<'a, 'b, 'c>(
            &'a self,
            prefix: Option<&'b TheirPath>,
        ) -> std::pin::Pin<Box<dyn Future<Output = TheirResult<ListResult>> + Send + 'c>>
        where
            'a: 'c,
            'b: 'c,
        {
            self.0.list_with_delimiter(prefix)
        }

        fn copy_opts<'a, 'b, 'c, 'd>(
            &'a self,
            from: &'b TheirPath,
            to: &'c TheirPath,
            options: CopyOptions,
        ) -> std::pin::Pin<Box<dyn Future<Output = TheirResult<()>> + Send + 'd>>
        where
            'a: 'd,
            'b: 'd,
            'c: 'd,
        {
            self.0.copy_opts(from, to, options)
        }
    }

    fn create(fate: Fate, there: Option<&'static str>) -> Result<()> {
        let theirs = InMemory::new();
        block_on(async {
            let path = TheirPath::parse("claim").unwrap();
            if let Some(there) = there {
                theirs.put(&path, PutPayload::from_static(there.as_bytes())).await.unwrap();
            }
            let store = adapter(Arc::new(Loses(theirs, fate)));
            store.put_new("claim", Bytes::from_static(b"mine")).await
        })
    }

    #[test]
    fn an_own_write_that_was_applied_is_a_success_however_its_answer_was_lost() {
        create(Fate::Refused, None).unwrap();
        create(Fate::Reset, None).unwrap();
    }

    #[test]
    fn the_object_of_another_is_a_lost_race() {
        for there in ["hers", "mine and more", ""] {
            let error = create(Fate::Vanished, Some(there)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{there}: {error:?}");
        }
        let error = create(Fate::Refused, Some("hers")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    }

    #[test]
    fn what_cannot_be_known_is_said_to_be_unknown() {
        for (fate, there) in [(Fate::Vanished, None), (Fate::Dark, None)] {
            let error = create(fate, there).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{fate:?}");
            assert!(error.message().contains("unknown"), "{error}");
        }
    }
}
