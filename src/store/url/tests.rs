use super::*;
use crate::error::ErrorKind;

fn stores() -> Stores {
    Stores::new(Arc::new(Disk::new(1).unwrap()), Remote::new())
}

fn options(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// What an S3 client needs to be built without asking anybody.
fn static_s3() -> Vec<(String, String)> {
    options(&[
        ("endpoint", "http://127.0.0.1:9"),
        ("allow_http", "true"),
        ("region", "us-east-1"),
        ("access_key_id", "testing"),
        ("secret_access_key", "testing"),
    ])
}

#[test]
fn plain_paths_and_file_urls_name_the_same_place() {
    let stores = stores();
    let here = std::env::current_dir().unwrap();
    for (text, path) in [
        ("/data/runs/a", PathBuf::from("/data/runs/a")),
        ("/data//runs/./x/../a/", PathBuf::from("/data/runs/a")),
        ("/../..", PathBuf::from("/")),
        ("runs/a", here.join("runs/a")),
        ("./a%20b", here.join("a%20b")),
        ("file:///data/a%20b", PathBuf::from("/data/a b")),
        ("file://localhost/data", PathBuf::from("/data")),
        ("FILE:///data", PathBuf::from("/data")),
    ] {
        let place = stores.open(text, &[]).unwrap();
        assert_eq!(place.local_path(), Some(path), "{text}");
    }
}

#[test]
fn one_file_system_is_one_store() {
    let stores = stores();
    let (a, b) = (stores.open("/a", &[]).unwrap(), stores.open("/b", &[]).unwrap());
    assert!(std::ptr::addr_eq(Arc::as_ptr(a.store()), Arc::as_ptr(b.store())));
}

#[test]
fn a_memory_store_is_found_again_by_its_name() {
    let stores = stores();
    let a = stores.open("memory://url-test/a/b", &[]).unwrap();
    let b = stores.open("memory://url-test", &[]).unwrap();
    let c = stores.open("memory://url-test-2", &[]).unwrap();
    assert_eq!((a.prefix(), b.prefix()), ("a/b", ""));
    assert!(std::ptr::addr_eq(Arc::as_ptr(a.store()), Arc::as_ptr(b.store())));
    assert!(!std::ptr::addr_eq(Arc::as_ptr(a.store()), Arc::as_ptr(c.store())));
}

#[test]
fn malformed_places_are_refused_and_named() {
    let stores = stores();
    for (text, kind) in [
        ("", ErrorKind::Invalid),
        ("/a\0b", ErrorKind::Invalid),
        ("file://other/a", ErrorKind::Invalid),
        ("file:///a%2", ErrorKind::Invalid),
        ("file:///a%zz", ErrorKind::Invalid),
        ("file:///a%+1", ErrorKind::Invalid),
        ("file:///%ff", ErrorKind::Invalid),
        ("memory://m/a/../b", ErrorKind::Invalid),
        ("memory://m/a//b", ErrorKind::Invalid),
        ("ftp://host/a", ErrorKind::Unsupported),
        ("s3:///key", ErrorKind::Invalid),
        ("s3://bucket?x/key", ErrorKind::Invalid),
        ("http://host name/key", ErrorKind::Invalid),
    ] {
        let error = stores.open(text, &[]).unwrap_err();
        assert_eq!(error.kind(), kind, "{text}: {error}");
        assert_eq!(error.get("place"), Some(text));
    }
}

#[test]
fn a_password_in_a_url_is_refused_and_not_repeated() {
    let error = stores().open("https://user:secret@host/a", &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
}

#[test]
fn a_scheme_that_was_not_built_names_its_feature() {
    for (scheme, feature) in [("gs", "gcs"), ("abfss", "azure"), ("s3a", "s3"), ("https", "http")] {
        let error = missing(scheme);
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains(feature), "{error}");
    }
}

#[test]
fn options_of_a_local_place_are_refused() {
    let error = stores().open("/a", &options(&[("region", "x")])).unwrap_err();
    assert_eq!((error.kind(), error.get("option")), (ErrorKind::Invalid, Some("region")));
}

#[cfg(feature = "s3")]
#[test]
fn a_bucket_is_one_store_with_the_same_options_and_keys_keep_their_percent_signs() {
    let stores = stores();
    let a = stores.open("s3://bucket/a%20b/c", &static_s3()).unwrap();
    let b = stores.open("s3://bucket", &static_s3()).unwrap();
    let c = stores.open("s3://other", &static_s3()).unwrap();
    assert_eq!(a.prefix(), "a%20b/c");
    assert_eq!(a.to_string(), "s3://bucket/a%20b/c");
    assert!(std::ptr::addr_eq(Arc::as_ptr(a.store()), Arc::as_ptr(b.store())));
    assert!(!std::ptr::addr_eq(Arc::as_ptr(a.store()), Arc::as_ptr(c.store())));
}

#[cfg(feature = "s3")]
#[test]
fn an_unknown_option_and_an_unencrypted_endpoint_are_refused() {
    let mut typo = static_s3();
    typo.push(("regoin".into(), "x".into()));
    let error = stores().open("s3://bucket", &typo).unwrap_err();
    assert_eq!((error.kind(), error.get("option")), (ErrorKind::Invalid, Some("regoin")));
    let mut plain = static_s3();
    plain.retain(|(key, _)| key != "allow_http");
    plain.push(("allow_http".into(), "false".into())); // the environment may say otherwise
    let error = stores().open("s3://bucket", &plain).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.hint_text().unwrap().contains("allow_http"));
}

#[cfg(feature = "http")]
#[test]
fn a_web_place_is_read_only_and_its_path_is_decoded() {
    let stores = stores();
    let place = stores.open("http://127.0.0.1:9/a%20b/c/", &[]).unwrap();
    assert_eq!(place.prefix(), "a b/c");
    assert!(!place.store().capabilities().writable);
    assert!(stores.open("http://127.0.0.1:9/a?sig=1", &[]).is_err());
}

#[cfg(feature = "azure")]
#[test]
fn a_container_is_named_in_each_of_azures_ways() {
    let stores = stores();
    let key = options(&[("account_name", "account"), ("access_key", "dGVzdGluZw==")]);
    for url in ["az://box/a/b", "abfs://box/a/b", "abfss://box@account.dfs.core.windows.net/a/b"] {
        let place = stores.open(url, &key).unwrap();
        assert_eq!((place.prefix(), place.to_string().as_str()), ("a/b", url));
    }
    let error = stores.open("abfss://box@elsewhere.example/a", &key).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[cfg(feature = "gcs")]
#[test]
fn a_google_bucket_is_opened_with_a_service_account() {
    let account =
        r#"{"private_key":"x","private_key_id":"x","client_email":"x","disable_oauth":true}"#;
    let options = options(&[("service_account_key", account)]);
    let place = stores().open("gs://bucket/a", &options).unwrap();
    assert_eq!(place.to_string(), "gs://bucket/a");
}
