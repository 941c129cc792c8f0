//! The codec chain of a foreign array, with compressors that cannot be made to allocate.
//!
//! zarrs' own decoders allocate what a zstd frame or a blosc header claims and inflate gzip without an end: a chunk
//! of 20 bytes aborts the process. zarrs tells every codec how long its output is, or may be at most; [`Bounded`] holds
//! the three compressors to that. All other codecs are zarrs' own: their output is as long as the chunk shape
//! says.
//!
//! Chains nest (a shard holds one for its chunks and one for its index), so they are built here, recursively.

use super::CHUNK_BYTES_MAX;
use crate::{
    codec::{blosc, gzip, zstd},
    error::{Error, Result},
};
use std::{borrow::Cow, io::Read, sync::Arc};
use zarrs::{
    array::{
        ArrayBytesRaw, BytesRepresentation, BytesToBytesCodecTraits, Codec, CodecChain, CodecError,
        CodecMetadataOptions, CodecOptions, CodecTraits, RecommendedConcurrency,
        codec::{
            BloscCodec, Crc32cCodec, GzipCodec, ReshapeCodec, ShardingCodec,
            ShardingCodecConfiguration, ShuffleCodec, SqueezeCodec, ZstdCodec,
            api::{PartialDecoderCapability, PartialEncoderCapability},
        },
    },
    metadata::{Configuration, v3::MetadataV3},
    plugin::{ExtensionName, ZarrVersion},
};

/// Builds the chain of a `codecs` member for an array of `rank` axes, where that is known.
///
/// # Errors
/// `Unsupported` that names the codec which zarrs does not know or which is not bounded here.
pub(super) fn chain(codecs: &[MetadataV3], rank: Option<usize>) -> Result<CodecChain> {
    let mut rank = rank;
    let (mut array_to_array, mut bytes_to_bytes) = (Vec::new(), Vec::new());
    let mut array_to_bytes = None;
    for metadata in codecs {
        let unsupported = |message| Error::unsupported(message).with("codec", metadata.name());
        let codec = Codec::from_metadata(metadata)
            .map_err(|e| unsupported("a codec cannot be read").because(e.to_string()))?;
        let early = array_to_bytes.is_none();
        match codec {
            Codec::ArrayToArray(codec) if early => {
                let any = codec.as_any();
                if any.is::<ReshapeCodec>() || any.is::<SqueezeCodec>() {
                    rank = None;
                }
                array_to_array.push(codec);
            }
            Codec::ArrayToBytes(codec) if early => {
                array_to_bytes = Some(if codec.as_any().is::<ShardingCodec>() {
                    Arc::new(sharding(metadata, rank)?)
                } else {
                    codec
                });
            }
            Codec::BytesToBytes(codec) if !early => {
                let any = codec.as_any();
                let bounded = Bounded::of(any);
                if bounded.is_none() && !any.is::<Crc32cCodec>() && !any.is::<ShuffleCodec>() {
                    return Err(unsupported("a codec is not known to be bounded"));
                }
                bytes_to_bytes.push(match bounded {
                    Some(bounded) => Arc::new(bounded) as Arc<dyn BytesToBytesCodecTraits>,
                    None => codec,
                });
            }
            _ => return Err(unsupported("the codecs are not in an order that Zarr allows")),
        }
    }
    let array_to_bytes =
        array_to_bytes.ok_or_else(|| Error::corrupt("no codec turns elements into bytes"))?;
    Ok(CodecChain::new(array_to_array, array_to_bytes, bytes_to_bytes))
}

/// Builds a sharding codec whose chains are bounded as well.
fn sharding(metadata: &MetadataV3, rank: Option<usize>) -> Result<ShardingCodec> {
    let configuration = metadata.to_typed_configuration();
    let Ok(ShardingCodecConfiguration::V1(configuration)) = configuration else {
        return Err(Error::unsupported("an unknown version of sharding"));
    };
    let chunk_shape = configuration.chunk_shape;
    // zarrs pairs the axes of shard and chunk as far as both go.
    if rank.is_some_and(|rank| rank != chunk_shape.len()) {
        return Err(Error::corrupt("the chunks of a shard have another rank than the array")
            .with("chunk_shape", format!("{chunk_shape:?}")));
    }
    let chunks = chain(&configuration.codecs, rank)?;
    let index = chain(&configuration.index_codecs, None)?;
    let location = configuration.index_location;
    Ok(ShardingCodec::new(chunk_shape, Arc::new(chunks), Arc::new(index), location))
}

/// A compressor that writes no more than its output may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bounded {
    Zstd,
    Gzip,
    Blosc,
}

impl Bounded {
    fn of(codec: &dyn std::any::Any) -> Option<Self> {
        if codec.is::<ZstdCodec>() {
            Some(Self::Zstd)
        } else if codec.is::<GzipCodec>() {
            Some(Self::Gzip)
        } else if codec.is::<BloscCodec>() {
            Some(Self::Blosc)
        } else {
            None
        }
    }

    /// Decodes to exactly `bytes`.
    fn exactly(self, encoded: &[u8], bytes: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; bytes]; // fresh zero pages: memory is taken as it is written
        let found = match self {
            Self::Zstd => zstd::decode(encoded, &mut out)?,
            Self::Gzip => gzip::decode(encoded, &mut out)?,
            Self::Blosc => blosc::decode(encoded, &mut out)?,
        };
        if found == bytes { Ok(out) } else { Err(wrong_size(bytes, found)) }
    }

    /// Decodes to at most `bytes`, the memory growing with what comes out.
    fn at_most(self, encoded: &[u8], bytes: usize) -> Result<Vec<u8>> {
        let failed = |e| Error::corrupt("the chunk cannot be decompressed").because(e);
        let limit = bytes as u64 + 1;
        let mut out = Vec::new();
        match self {
            Self::Zstd => {
                let decoder =
                    ::zstd::stream::read::Decoder::with_buffer(encoded).map_err(failed)?;
                decoder.take(limit).read_to_end(&mut out).map_err(failed)?;
            }
            Self::Gzip => {
                let decoder = flate2::bufread::MultiGzDecoder::new(encoded);
                decoder.take(limit).read_to_end(&mut out).map_err(failed)?;
            }
            // The header's length is 31 bits, and it is the exact one.
            Self::Blosc => match blosc::decoded_bytes(encoded)? {
                claimed if claimed <= bytes => return self.exactly(encoded, claimed),
                claimed => return Err(wrong_size(bytes, claimed)),
            },
        }
        if out.len() <= bytes { Ok(out) } else { Err(wrong_size(bytes, out.len())) }
    }
}

fn wrong_size(expected: usize, found: usize) -> Error {
    Error::corrupt("the chunk decompresses to a wrong size")
        .with("expected", expected)
        .with("found", found)
}

impl ExtensionName for Bounded {
    fn name(&self, _version: ZarrVersion) -> Option<Cow<'static, str>> {
        None // it stands in for codecs that have names, and is never written
    }
}

impl CodecTraits for Bounded {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn configuration(
        &self,
        _version: ZarrVersion,
        _options: &CodecMetadataOptions,
    ) -> Option<Configuration> {
        None
    }

    fn partial_decoder_capability(&self) -> PartialDecoderCapability {
        PartialDecoderCapability { partial_read: false, partial_decode: false }
    }

    fn partial_encoder_capability(&self) -> PartialEncoderCapability {
        PartialEncoderCapability { partial_encode: false }
    }
}

impl BytesToBytesCodecTraits for Bounded {
    fn into_dyn(self: Arc<Self>) -> Arc<dyn BytesToBytesCodecTraits> {
        self
    }

    fn recommended_concurrency(
        &self,
        _decoded: &BytesRepresentation,
    ) -> Result<RecommendedConcurrency, CodecError> {
        Ok(RecommendedConcurrency::new_maximum(1))
    }

    /// A limit for the codec after this one, where compressors are stacked; generous, for any encoder.
    fn encoded_representation(&self, decoded: &BytesRepresentation) -> BytesRepresentation {
        match decoded.size() {
            Some(bytes) => {
                BytesRepresentation::BoundedSize(bytes.saturating_mul(2).saturating_add(4096))
            }
            None => BytesRepresentation::UnboundedSize,
        }
    }

    fn encode<'a>(
        &self,
        _decoded: ArrayBytesRaw<'a>,
        _options: &CodecOptions,
    ) -> Result<ArrayBytesRaw<'a>, CodecError> {
        Err(CodecError::Other("foreign arrays are only read".to_owned()))
    }

    fn decode<'a>(
        &self,
        encoded: ArrayBytesRaw<'a>,
        decoded: &BytesRepresentation,
        _options: &CodecOptions,
    ) -> Result<ArrayBytesRaw<'a>, CodecError> {
        // Twice the largest chunk: a shard of such chunks has an index and checksums besides.
        let limit = |bytes: u64| usize::try_from(bytes.min(2 * CHUNK_BYTES_MAX));
        let result = match decoded {
            BytesRepresentation::FixedSize(bytes) => {
                limit(*bytes).map(|bytes| self.exactly(&encoded, bytes))
            }
            BytesRepresentation::BoundedSize(bytes) => {
                limit(*bytes).map(|bytes| self.at_most(&encoded, bytes))
            }
            BytesRepresentation::UnboundedSize => {
                return Err(CodecError::Other("a chunk without a bound".to_owned()));
            }
        };
        match result {
            Ok(Ok(bytes)) => Ok(Cow::Owned(bytes)),
            Ok(Err(error)) => Err(CodecError::Other(error.to_string())),
            Err(_) => Err(CodecError::Other("a chunk larger than memory".to_owned())),
        }
    }
}
