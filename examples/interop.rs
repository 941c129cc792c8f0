//! The engine behind a pipe, for `tests/interop`: one JSON object a line in, one answer a line out.
//!
//! The protocol is in `tests/interop/README.md`. It is an example, too: a checkpoint of one leaf is saved with
//! chosen chunks, and any Zarr v3 array is read.

use milepost::{
    CheckpointWriter, DataType, Durability, Engine, Item, Leaf, SaveOptions, Tree,
    formats::zarr3::Compressor, open_zarr_array_blocking,
};
use serde_json::{Value, json};
use std::{
    error::Error,
    io::{BufRead, Write},
    path::PathBuf,
    sync::Arc,
};

#[derive(serde::Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
enum Request {
    Write(Save),
    Read { path: PathBuf, out: PathBuf },
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Save {
    path: PathBuf,
    key: String,
    dtype: DataType,
    shape: Vec<u64>,
    chunk: Option<Vec<u64>>,
    shard: Option<Vec<u64>>,
    codec: String,
    transpose: Option<Vec<usize>>,
    data: PathBuf,
    portable: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder().budget_bytes(64 << 20).build()?;
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let answer = serve(&engine, &line?)
            .unwrap_or_else(|error| json!({"ok": false, "error": error.to_string()}));
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn serve(engine: &Arc<Engine>, line: &str) -> Result<Value, Box<dyn Error>> {
    match serde_json::from_str(line)? {
        Request::Write(request) => write(engine, request),
        Request::Read { path, out } => {
            let place = engine.place(&path.to_string_lossy(), &[])?;
            let data = open_zarr_array_blocking(engine, &place, "")?.read_blocking()?;
            std::fs::write(out, &*data.bytes)?;
            Ok(json!({"ok": true, "shape": data.shape, "dtype": data.data_type}))
        }
    }
}

fn write(engine: &Arc<Engine>, request: Save) -> Result<Value, Box<dyn Error>> {
    let bytes = std::fs::read(&request.data)?;
    let mut leaf = Leaf::from_bytes(request.dtype, request.shape.clone(), bytes.into())?
        .with_compressor(request.codec.parse::<Compressor>()?);
    if let Some(shape) = request.chunk {
        leaf = leaf.with_chunk_shape(shape);
    }
    if let Some(shape) = request.shard {
        leaf = leaf.with_shard_shape(shape);
    }
    if let Some(order) = request.transpose {
        leaf = leaf.with_transpose(order)?;
    }
    let place = engine.place(&request.path.to_string_lossy(), &[])?;
    let options = SaveOptions {
        portable: request.portable,
        durability: Durability::Published,
        ..SaveOptions::default()
    };
    let array = request.path.join("state").join(&request.key);
    CheckpointWriter::standalone(engine, &place)
        .item("state", Item::Tree(Tree::dict([(request.key, Tree::leaf(leaf))])))
        .options(options)
        .save_blocking()?;
    Ok(json!({"ok": true, "array": array, "shape": request.shape, "dtype": request.dtype}))
}
