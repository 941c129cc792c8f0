//! safetensors: header, shard index and writer.
