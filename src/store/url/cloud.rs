//! Builds the clients of remote stores: options, credentials, time limits, TLS.
//!
//! What the options do not say comes from the environment of each cloud's own tools (`AWS_…`, `GOOGLE_…`,
//! `AZURE_…`). Keys are those of `object_store`; an unknown one is refused, because a misspelt option that is
//! ignored would save to the wrong place.
//!
//! The client's default limit of 30 s a request would fail every large PUT on a slow line, so the whole request
//! has none that matters and silence has one instead. Without credentials a client asks the cloud's metadata
//! service for some: tests always give static ones.

use super::{Options, unknown_option};
use crate::{
    error::{Error, Result},
    store::{ObjectStoreAdapter, Remote, Store},
};
use object_store::{ClientConfigKey, ObjectStore, RetryConfig};
use std::{str::FromStr, sync::Arc, time::Duration};

/// Longer than any single request: the scheduler and the user decide when to give up.
const REQUEST_TIMEOUT: &str = "24h";
/// No byte for so long means a dead connection. It also runs while a PUT is sent: 100 MiB at 350 kB/s fit.
const SILENCE_TIMEOUT: &str = "300s";

const LIMITS: [(ClientConfigKey, &str); 2] =
    [(ClientConfigKey::Timeout, REQUEST_TIMEOUT), (ClientConfigKey::ReadTimeout, SILENCE_TIMEOUT)];

/// Gives up sooner than `object_store` (180 s): the scheduler above retries, too, and says so.
fn retry() -> RetryConfig {
    RetryConfig { max_retries: 6, retry_timeout: Duration::from_mins(1), ..RetryConfig::default() }
}

/// Installs the TLS implementation that the client finds at run time; the first one wins.
fn install_tls() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    // An error means that the process has one already: that one is used.
    ONCE.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
}

fn parsed<K: FromStr>(options: &Options) -> Result<Vec<(K, &str)>> {
    options
        .iter()
        .map(|(key, value)| match key.to_ascii_lowercase().parse() {
            Ok(parsed) => Ok((parsed, value.as_str())),
            Err(_) => Err(unknown_option(key)),
        })
        .collect()
}

fn wrap<S: ObjectStore>(
    built: object_store::Result<S>,
    url: String,
    remote: &Arc<Remote>,
) -> Result<ObjectStoreAdapter> {
    let inner = built.map_err(|e| {
        Error::invalid("the store cannot be set up as configured").because(e).with("store", &url)
    })?;
    Ok(ObjectStoreAdapter::new(Arc::new(inner), url, Arc::clone(remote)))
}

/// Refuses what the client would only refuse in words of its own, at the first request.
fn check_scheme(endpoint: Option<&str>, allow_http: Option<&str>) -> Result<()> {
    let plain = endpoint.filter(|endpoint| endpoint.starts_with("http://"));
    match (plain, allow_http) {
        (Some(endpoint), None | Some("false")) => {
            Err(Error::invalid("the endpoint is not encrypted").with("endpoint", endpoint).hint(
                "use https, or set the option `allow_http` to `true` where the network is trusted",
            ))
        }
        _ => Ok(()),
    }
}

#[cfg(feature = "s3")]
pub(super) fn s3(bucket: &str, options: &Options, remote: &Arc<Remote>) -> Result<Arc<dyn Store>> {
    use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey as Key};
    let mut builder = AmazonS3Builder::from_env();
    for (key, value) in LIMITS {
        builder = builder.with_config(Key::Client(key), value);
    }
    for (key, value) in parsed::<Key>(options)? {
        builder = builder.with_config(key, value);
    }
    builder = builder.with_bucket_name(bucket).with_retry(retry());
    let endpoint = builder
        .get_config_value(&Key::S3Endpoint)
        .or_else(|| builder.get_config_value(&Key::Endpoint));
    let allow_http = builder.get_config_value(&Key::Client(ClientConfigKey::AllowHttp));
    check_scheme(endpoint.as_deref(), allow_http.as_deref())?;
    let chosen = options.iter().any(|(key, _)| key.ends_with("unsigned_payload"));
    if !chosen && !endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")) {
        // Hashing each payload for the signature is a core a GB/s; TLS protects it, and crc32c the chunks.
        builder = builder.with_unsigned_payload(true);
    }
    install_tls();
    Ok(Arc::new(wrap(builder.build(), format!("s3://{bucket}"), remote)?))
}

#[cfg(feature = "gcs")]
pub(super) fn gcs(bucket: &str, options: &Options, remote: &Arc<Remote>) -> Result<Arc<dyn Store>> {
    use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey as Key};
    let mut builder = GoogleCloudStorageBuilder::from_env();
    for (key, value) in LIMITS {
        builder = builder.with_config(Key::Client(key), value);
    }
    for (key, value) in parsed::<Key>(options)? {
        builder = builder.with_config(key, value);
    }
    builder = builder.with_bucket_name(bucket).with_retry(retry());
    let base = builder.get_config_value(&Key::BaseUrl);
    let allow_http = builder.get_config_value(&Key::Client(ClientConfigKey::AllowHttp));
    check_scheme(base.as_deref(), allow_http.as_deref())?;
    install_tls();
    Ok(Arc::new(wrap(builder.build(), format!("gs://{bucket}"), remote)?))
}

#[cfg(feature = "azure")]
pub(super) fn azure(
    scheme: &str,
    authority: &str,
    options: &Options,
    remote: &Arc<Remote>,
) -> Result<Arc<dyn Store>> {
    use object_store::azure::{AzureConfigKey as Key, MicrosoftAzureBuilder};
    let mut builder = MicrosoftAzureBuilder::from_env();
    for (key, value) in LIMITS {
        builder = builder.with_config(Key::Client(key), value);
    }
    for (key, value) in parsed::<Key>(options)? {
        builder = builder.with_config(key, value);
    }
    let url = format!("{scheme}://{authority}");
    builder = builder.with_url(&url).with_retry(retry());
    let endpoint = builder.get_config_value(&Key::Endpoint);
    let allow_http = builder.get_config_value(&Key::Client(ClientConfigKey::AllowHttp));
    check_scheme(endpoint.as_deref(), allow_http.as_deref())?;
    install_tls();
    Ok(Arc::new(wrap(builder.build(), url, remote)?.without_suffix_ranges()))
}

#[cfg(feature = "http")]
pub(super) fn http(
    scheme: &str,
    authority: &str,
    options: &Options,
    remote: &Arc<Remote>,
) -> Result<Arc<dyn Store>> {
    use object_store::http::HttpBuilder;
    let url = format!("{scheme}://{authority}");
    let mut builder = HttpBuilder::new().with_url(&url).with_retry(retry());
    for (key, value) in LIMITS {
        builder = builder.with_config(key, value);
    }
    // The user wrote `http`: that is leave enough, for nothing secret is sent.
    builder = builder.with_config(ClientConfigKey::AllowHttp, (scheme == "http").to_string());
    for (key, value) in parsed::<ClientConfigKey>(options)? {
        builder = builder.with_config(key, value);
    }
    install_tls();
    Ok(Arc::new(wrap(builder.build(), url, remote)?.read_only()))
}
