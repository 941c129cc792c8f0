//! The `codecs` member ⇄ [`Codecs`].
//!
//! Parsing has three outcomes: a chain of our profile; `None` for one that is well-formed but outside it
//! (zarrs decides about that); an error for one that no codec of that name could have written.

use super::{
    BloscCname, BloscShuffle, Chain, Codecs, Compressor, IndexLocation, Sharding,
    short::{DEFLATE_LEVELS, ZSTD_LEVELS},
};
use crate::{DataType, FormatError, Result, json};
use serde_json::{Map, Value, json};

/// The array that the codecs belong to, as far as they depend on it.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) data_type: DataType,
    /// The shape that goes into the chain: the stored chunk's, or the inner chunk's.
    pub(super) shape: &'a [u64],
}

/// An extension point's name and configuration.
pub(super) struct Named<'a> {
    pub(super) name: &'a str,
    pub(super) configuration: Option<&'a Map<String, Value>>,
    /// Whether there are members that we do not know.
    pub(super) has_more: bool,
    at: &'a str,
}

/// Reads `"name"` or `{"name": …, "configuration": {…}}`.
pub(super) fn named<'a>(value: &'a Value, at: &'a str) -> Result<Named<'a>> {
    if let Value::String(name) = value {
        return Ok(Named { name, configuration: None, has_more: false, at });
    }
    let bad = || wrong(at, "a name or an object with one", value);
    let members = value.as_object().ok_or_else(bad)?;
    let name = members.get("name").and_then(Value::as_str).ok_or_else(bad)?;
    let configuration = match members.get("configuration") {
        None => None,
        Some(Value::Object(configuration)) => Some(configuration),
        Some(other) => return Err(wrong(&format!("{at}.configuration"), "an object", other)),
    };
    let known = ["name", "configuration", "must_understand"];
    let has_more = members.keys().any(|key| !known.contains(&key.as_str()));
    Ok(Named { name, configuration, has_more, at })
}

impl<'a> Named<'a> {
    /// Tells whether there is nothing but these members in the configuration.
    pub(super) fn has_only(&self, known: &[&str]) -> bool {
        let unknown = |c: &Map<String, Value>| c.keys().any(|key| !known.contains(&key.as_str()));
        !self.has_more && !self.configuration.is_some_and(unknown)
    }

    /// Reads a member of the configuration; `None` where it is absent.
    pub(super) fn get<T>(
        &self,
        member: &str,
        want: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.configuration.and_then(|c| c.get(member)) else { return Ok(None) };
        let at = || format!("{}.configuration.{member}", self.at);
        read(value).map(Some).ok_or_else(|| wrong(&at(), want, value))
    }
}

/// Returns the error of a member that is not what it must be.
pub(super) fn wrong(at: &str, want: &str, value: &Value) -> FormatError {
    FormatError::corrupt(format!("`{at}` is not {want}. value=`{}`", json::show(value)))
}

/// Reads an array of sizes, each at least 1.
pub(super) fn sizes(value: &Value) -> Option<Vec<u64>> {
    value.as_array()?.iter().map(|n| n.as_u64().filter(|n| *n > 0)).collect()
}

/// Parses the whole `codecs` member.
pub(super) fn parse(codecs: &[Value], context: Context<'_>) -> Result<Option<Codecs>> {
    if let [only] = codecs {
        let codec = named(only, "codecs[0]")?;
        if codec.name == "sharding_indexed" {
            return parse_sharding(&codec, context);
        }
    }
    let chain = parse_chain(codecs, context, "codecs")?;
    Ok(chain.map(|chain| Codecs { sharding: None, chain }))
}

fn parse_sharding(codec: &Named<'_>, context: Context<'_>) -> Result<Option<Codecs>> {
    if !codec.has_only(&["chunk_shape", "codecs", "index_codecs", "index_location"]) {
        return Ok(None);
    }
    let missing = |member: &str| {
        FormatError::corrupt(format!("`codecs[0].configuration.{member}` is missing"))
    };
    let chunk_shape = codec
        .get("chunk_shape", "an array of sizes of at least 1", sizes)?
        .ok_or_else(|| missing("chunk_shape"))?;
    let divides = |(shard, chunk): (&u64, &u64)| shard % chunk == 0;
    if chunk_shape.len() != context.shape.len()
        || !context.shape.iter().zip(&chunk_shape).all(divides)
    {
        return Err(FormatError::corrupt(format!(
            "`codecs[0].configuration.chunk_shape` does not divide the shard. chunk=`{chunk_shape:?}`, \
             shard=`{:?}`",
            context.shape
        )));
    }
    let inner =
        codec.get("codecs", "an array", Value::as_array)?.ok_or_else(|| missing("codecs"))?;
    let index_codecs = codec
        .get("index_codecs", "an array", Value::as_array)?
        .ok_or_else(|| missing("index_codecs"))?;
    let index_location = codec
        .get("index_location", "`start` or `end`", |v| match v.as_str()? {
            "start" => Some(IndexLocation::Start),
            "end" => Some(IndexLocation::End),
            _ => None,
        })?
        .unwrap_or(IndexLocation::End);
    let at = "codecs[0].configuration.index_codecs";
    let index_context = Context { data_type: DataType::UInt64, shape: &[1, 2] };
    let plain = |crc32c| Chain { transpose: None, compressor: Compressor::None, crc32c };
    let index_crc32c = match parse_chain(index_codecs, index_context, at)? {
        Some(chain) if chain == plain(chain.crc32c) => chain.crc32c,
        _ => return Ok(None),
    };
    let context = Context { shape: &chunk_shape, ..context };
    let Some(chain) = parse_chain(inner, context, "codecs[0].configuration.codecs")? else {
        return Ok(None);
    };
    let sharding = Some(Sharding { chunk_shape, index_location, index_crc32c });
    Ok(Some(Codecs { sharding, chain }))
}

/// Parses `[transpose?] bytes [compressor?] [crc32c?]`.
fn parse_chain(codecs: &[Value], context: Context<'_>, at: &str) -> Result<Option<Chain>> {
    let mut chain = Chain { transpose: None, compressor: Compressor::None, crc32c: false };
    let mut stage = 0;
    for (i, value) in codecs.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let codec = named(value, &at)?;
        let next = match codec.name {
            "transpose" => {
                let Some(order) = parse_transpose(&codec, context)? else { return Ok(None) };
                chain.transpose = Some(order);
                1
            }
            "bytes" if is_little_endian(&codec, context)? => 2,
            "zstd" | "gzip" | "blosc" => {
                let Some(compressor) = parse_compressor(&codec)? else { return Ok(None) };
                chain.compressor = compressor;
                3
            }
            "crc32c" if codec.has_only(&[]) => {
                chain.crc32c = true;
                4
            }
            _ => return Ok(None),
        };
        if next <= stage || (next > 2 && stage < 2) {
            return Ok(None);
        }
        stage = next;
    }
    Ok((stage >= 2).then_some(chain))
}

fn parse_transpose(codec: &Named<'_>, context: Context<'_>) -> Result<Option<Vec<usize>>> {
    let rank = context.shape.len();
    let order = codec.get("order", "an array of axes", |v| {
        if v.is_string() {
            Some(None) // "C" and "F" of earlier drafts
        } else {
            let axes = v.as_array().filter(|axes| axes.len() == rank)?;
            let axes: Option<Vec<_>> =
                axes.iter().map(|n| usize::try_from(n.as_u64()?).ok()).collect();
            Some(Some(axes.filter(|axes| (0..rank).all(|axis| axes.contains(&axis)))?))
        }
    })?;
    Ok(order.flatten().filter(|_| codec.has_only(&["order"])))
}

fn is_little_endian(codec: &Named<'_>, context: Context<'_>) -> Result<bool> {
    let endian = codec.get("endian", "`little` or `big`", |v| {
        v.as_str().filter(|e| ["little", "big"].contains(e))
    })?;
    let ordered = context.data_type.has_byte_order();
    Ok(codec.has_only(&["endian"]) && (!ordered || endian == Some("little")))
}

fn parse_compressor(codec: &Named<'_>) -> Result<Option<Compressor>> {
    let level = |range: std::ops::RangeInclusive<u8>| {
        codec.get("level", "a level of 0 to 9", move |v| {
            u8::try_from(v.as_u64()?).ok().filter(|n| range.contains(n))
        })
    };
    Ok(match codec.name {
        "zstd" => {
            let level = codec.get("level", "a level of -131072 to 22", |v| {
                i32::try_from(v.as_i64()?).ok().filter(|n| ZSTD_LEVELS.contains(n))
            })?;
            let checksum = codec.get("checksum", "a boolean", Value::as_bool)?.unwrap_or(false);
            level
                .filter(|_| codec.has_only(&["level", "checksum"]))
                .map(|level| Compressor::Zstd { level, checksum })
        }
        "gzip" => level(DEFLATE_LEVELS)?
            .filter(|_| codec.has_only(&["level"]))
            .map(|level| Compressor::Gzip { level }),
        _ => parse_blosc(codec)?,
    })
}

fn parse_blosc(codec: &Named<'_>) -> Result<Option<Compressor>> {
    let cname = codec.get("cname", "a blosc compressor", |v| BloscCname::from_name(v.as_str()?))?;
    let level = codec.get("clevel", "a level of 0 to 9", |v| {
        u8::try_from(v.as_u64()?).ok().filter(|n| DEFLATE_LEVELS.contains(n))
    })?;
    let shuffle =
        codec.get("shuffle", "a blosc filter", |v| BloscShuffle::from_name(v.as_str()?))?;
    let typesize = codec.get("typesize", "a size of at least 1", |v| {
        u32::try_from(v.as_u64()?).ok().filter(|n| *n > 0)
    })?;
    let blocksize = codec
        .get("blocksize", "a size in bytes", |v| u32::try_from(v.as_u64()?).ok())?
        .unwrap_or(0);
    let (Some(cname), Some(level), Some(shuffle)) = (cname, level, shuffle) else {
        return Ok(None);
    };
    // The specification asks for the size only where there is a shuffle.
    let typesize = match (typesize, shuffle) {
        (Some(bytes), _) => bytes,
        (None, BloscShuffle::Noshuffle) => 1,
        (None, _) => return Ok(None),
    };
    Ok(codec
        .has_only(&["cname", "clevel", "shuffle", "typesize", "blocksize"])
        .then_some(Compressor::Blosc { cname, level, shuffle, typesize, blocksize }))
}

/// Returns the `codecs` member.
pub(super) fn to_json(codecs: &Codecs) -> Value {
    let inner = chain_to_json(&codecs.chain);
    let Some(sharding) = &codecs.sharding else { return inner };
    let index =
        Chain { transpose: None, compressor: Compressor::None, crc32c: sharding.index_crc32c };
    let location = match sharding.index_location {
        IndexLocation::Start => "start",
        IndexLocation::End => "end",
    };
    json!([{"name": "sharding_indexed", "configuration": {
        "chunk_shape": sharding.chunk_shape,
        "codecs": inner,
        "index_codecs": chain_to_json(&index),
        "index_location": location,
    }}])
}

fn chain_to_json(chain: &Chain) -> Value {
    let mut codecs = Vec::new();
    if let Some(order) = &chain.transpose {
        codecs.push(json!({"name": "transpose", "configuration": {"order": order}}));
    }
    codecs.push(json!({"name": "bytes", "configuration": {"endian": "little"}}));
    match chain.compressor {
        Compressor::None => {}
        Compressor::Zstd { level, checksum } => codecs.push(json!(
            {"name": "zstd", "configuration": {"level": level, "checksum": checksum}})),
        Compressor::Gzip { level } => {
            codecs.push(json!({"name": "gzip", "configuration": {"level": level}}));
        }
        Compressor::Blosc { cname, level, shuffle, typesize, blocksize } => {
            codecs.push(json!({"name": "blosc", "configuration": {
                "cname": cname.as_str(),
                "clevel": level,
                "shuffle": shuffle.as_str(),
                "typesize": typesize,
                "blocksize": blocksize,
            }}));
        }
    }
    if chain.crc32c {
        codecs.push(json!({"name": "crc32c"}));
    }
    Value::Array(codecs)
}
