//! `zarr.json` → [`Document`].
//!
//! What a document claims is checked before anybody computes with it: ranks agree, no size is zero where it
//! divides, and no product of sizes overflows. A well-formed document that is outside our profile is
//! [`Document::Foreign`]; one that is not a Zarr v3 node is an error that names the member.

use super::{
    ArrayDocument, Document, ForeignArray, GroupDocument,
    codec_json::{self, Context, named, sizes, wrong},
    fill,
};
use crate::{DataType, FormatError, Result, json};
use serde_json::{Map, Value};

/// The highest rank; TensorStore stops at 32.
const RANK_MAX: usize = 64;

const ARRAY_MEMBERS: [&str; 11] = [
    "attributes",
    "chunk_grid",
    "chunk_key_encoding",
    "codecs",
    "data_type",
    "dimension_names",
    "fill_value",
    "node_type",
    "shape",
    "storage_transformers",
    "zarr_format",
];
const GROUP_MEMBERS: [&str; 4] =
    ["attributes", "consolidated_metadata", "node_type", "zarr_format"];

impl Document {
    /// Parses a `zarr.json`.
    ///
    /// # Errors
    /// `Corrupt` where the bytes are not a Zarr v3 node or its sizes cannot be true, `Unsupported` for
    /// another `zarr_format`, another node type, or a member that must be understood and is not.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let value = json::parse(bytes, "zarr.json")?;
        let Value::Object(members) = value else {
            return Err(wrong("zarr.json", "an object", &value));
        };
        match members.get("zarr_format") {
            Some(Value::Number(n)) if n.as_u64() == Some(3) => {}
            Some(Value::Number(n)) => {
                return Err(FormatError::unsupported(format!(
                    "`zarr_format` is not 3. value=`{n}`"
                )));
            }
            Some(other) => return Err(wrong("zarr_format", "3", other)),
            None => return Err(missing("zarr_format")),
        }
        match members.get("node_type") {
            Some(Value::String(s)) if s == "array" => parse_array(members),
            Some(Value::String(s)) if s == "group" => parse_group(&members).map(Self::Group),
            Some(Value::String(s)) => {
                let shown = json::shorten(s);
                Err(FormatError::unsupported(format!("`node_type` is unknown. value=`{shown}`")))
            }
            Some(other) => Err(wrong("node_type", "`array` or `group`", other)),
            None => Err(missing("node_type")),
        }
    }
}

fn missing(member: &str) -> FormatError {
    FormatError::corrupt(format!("`{member}` is missing in zarr.json"))
}

/// Refuses members that are neither known nor marked as ignorable.
fn check_members(members: &Map<String, Value>, known: &[&str]) -> Result<()> {
    for (name, value) in members {
        let ignorable = value.get("must_understand") == Some(&Value::Bool(false));
        if !known.contains(&name.as_str()) && !ignorable {
            let name = json::shorten(name);
            return Err(FormatError::unsupported(format!(
                "zarr.json has a member that must be understood and is not. member=`{name}`"
            )));
        }
    }
    Ok(())
}

fn attributes(members: &Map<String, Value>) -> Result<Map<String, Value>> {
    match members.get("attributes") {
        None => Ok(Map::new()),
        Some(Value::Object(attributes)) => Ok(attributes.clone()),
        Some(other) => Err(wrong("attributes", "an object", other)),
    }
}

fn parse_group(members: &Map<String, Value>) -> Result<GroupDocument> {
    check_members(members, &GROUP_MEMBERS)?;
    let consolidated = match members.get("consolidated_metadata") {
        None | Some(Value::Null) => None,
        Some(value) => parse_consolidated(value)?,
    };
    Ok(GroupDocument { attributes: attributes(members)?, consolidated })
}

fn parse_consolidated(value: &Value) -> Result<Option<Vec<(String, Value)>>> {
    let at = "consolidated_metadata";
    let members = value.as_object().ok_or_else(|| wrong(at, "an object", value))?;
    match members.get("kind").and_then(Value::as_str) {
        Some("inline") => {}
        // Another kind is a copy of what the members say themselves, so it may be left.
        _ if members.get("must_understand") == Some(&Value::Bool(false)) => return Ok(None),
        _ => return Err(wrong(at, "of kind `inline`", value)),
    }
    let metadata = match members.get("metadata") {
        Some(Value::Object(metadata)) => metadata,
        Some(other) => return Err(wrong("consolidated_metadata.metadata", "an object", other)),
        None => return Err(missing("consolidated_metadata.metadata")),
    };
    let mut sorted: Vec<_> = metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    sorted.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(Some(sorted))
}

fn parse_array(members: Map<String, Value>) -> Result<Document> {
    check_members(&members, &ARRAY_MEMBERS)?;
    let shape = parse_shape(&members)?;
    let (data_type_name, data_type) = parse_data_type(&members)?;
    let dimension_names = parse_dimension_names(&members, shape.len())?;
    let head = Head { attributes: attributes(&members)?, shape, data_type, dimension_names };
    match parse_profile(&members, &head)? {
        Some((rest, data_type)) => Ok(Document::Array(ArrayDocument {
            shape: head.shape,
            data_type,
            dimension_names: head.dimension_names,
            attributes: head.attributes,
            ..rest
        })),
        None => Ok(Document::Foreign(ForeignArray {
            json: Value::Object(members),
            shape: head.shape,
            data_type,
            data_type_name,
        })),
    }
}

/// What every array document has, in our profile or not.
struct Head {
    attributes: Map<String, Value>,
    shape: Vec<u64>,
    data_type: Option<DataType>,
    dimension_names: Option<Vec<Option<String>>>,
}

/// Parses what our profile restricts; `None` where the document is outside it.
fn parse_profile(
    members: &Map<String, Value>,
    head: &Head,
) -> Result<Option<(ArrayDocument, DataType)>> {
    let item_bytes = head.data_type.map_or(1, DataType::size_bytes) as u64;
    let grid_shape = parse_grid(members, &head.shape, item_bytes)?;
    let separator = parse_separator(members)?;
    let codecs = match members.get("codecs") {
        Some(Value::Array(codecs)) if !codecs.is_empty() => codecs,
        Some(other) => return Err(wrong("codecs", "an array of codecs", other)),
        None => return Err(missing("codecs")),
    };
    let fill_value = members.get("fill_value").ok_or_else(|| missing("fill_value"))?;
    let transformed = match members.get("storage_transformers") {
        None => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(other) => return Err(wrong("storage_transformers", "an array", other)),
    };
    let (Some(grid_shape), Some(separator), Some(data_type), false) =
        (grid_shape, separator, head.data_type, transformed)
    else {
        return Ok(None);
    };
    let context = Context { data_type, shape: &grid_shape };
    let codecs = codec_json::parse(codecs, context)?;
    let (Some(codecs), Some(fill_value)) = (codecs, fill::parse(fill_value, data_type)) else {
        return Ok(None);
    };
    let rest = ArrayDocument {
        shape: Vec::new(),
        data_type,
        grid_shape,
        separator,
        codecs,
        fill_value,
        dimension_names: None,
        attributes: Map::new(),
    };
    Ok(Some((rest, data_type)))
}

fn parse_shape(members: &Map<String, Value>) -> Result<Vec<u64>> {
    let value = members.get("shape").ok_or_else(|| missing("shape"))?;
    let shape: Option<Vec<u64>> =
        value.as_array().and_then(|dims| dims.iter().map(Value::as_u64).collect());
    let shape = shape.ok_or_else(|| wrong("shape", "an array of sizes", value))?;
    if shape.len() > RANK_MAX {
        return Err(FormatError::corrupt(format!(
            "`shape` has more than {RANK_MAX} dimensions. rank=`{}`",
            shape.len()
        )));
    }
    Ok(shape)
}

/// Returns the name as written and, where it is one of ours, the type.
fn parse_data_type(members: &Map<String, Value>) -> Result<(String, Option<DataType>)> {
    let value = members.get("data_type").ok_or_else(|| missing("data_type"))?;
    let named = named(value, "data_type")?;
    let data_type = DataType::from_name(named.name).filter(|_| named.has_only(&[]));
    Ok((named.name.to_owned(), data_type))
}

fn parse_dimension_names(
    members: &Map<String, Value>,
    rank: usize,
) -> Result<Option<Vec<Option<String>>>> {
    let value = match members.get("dimension_names") {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value,
    };
    let name = |v: &Value| match v {
        Value::Null => Some(None),
        Value::String(s) => Some(Some(s.clone())),
        _ => None,
    };
    let names: Option<Vec<_>> = value.as_array().and_then(|v| v.iter().map(name).collect());
    names
        .filter(|names| names.len() == rank)
        .map(Some)
        .ok_or_else(|| wrong("dimension_names", &format!("an array of {rank} names"), value))
}

fn parse_separator(members: &Map<String, Value>) -> Result<Option<char>> {
    let value = members.get("chunk_key_encoding").ok_or_else(|| missing("chunk_key_encoding"))?;
    let encoding = named(value, "chunk_key_encoding")?;
    if encoding.name != "default" || !encoding.has_only(&["separator"]) {
        return Ok(None);
    }
    let separator = encoding.get("separator", "`.` or `/`", |v| match v.as_str()? {
        "." => Some('.'),
        "/" => Some('/'),
        _ => None,
    })?;
    Ok(Some(separator.unwrap_or('/')))
}

/// Parses the chunk grid and checks its sizes; `None` where it is not regular.
fn parse_grid(
    members: &Map<String, Value>,
    shape: &[u64],
    item_bytes: u64,
) -> Result<Option<Vec<u64>>> {
    let value = members.get("chunk_grid").ok_or_else(|| missing("chunk_grid"))?;
    let grid = named(value, "chunk_grid")?;
    let at = "chunk_grid.configuration.chunk_shape";
    if grid.name != "regular" || !grid.has_only(&["chunk_shape"]) {
        check_bytes("shape", shape.iter().map(|n| Some(*n)), item_bytes, u64::MAX)?;
        return Ok(None);
    }
    let chunk = grid
        .get("chunk_shape", "an array of sizes of at least 1", sizes)?
        .ok_or_else(|| missing(at))?;
    if chunk.len() != shape.len() {
        return Err(FormatError::corrupt(format!(
            "`{at}` does not have the rank of `shape`. rank=`{}`, shape=`{}`",
            chunk.len(),
            shape.len()
        )));
    }
    // A chunk has to fit one allocation; an array, padded to whole chunks, has to be countable.
    check_bytes(at, chunk.iter().map(|n| Some(*n)), item_bytes, isize::MAX as u64)?;
    let padded = shape.iter().zip(&chunk).map(|(n, c)| n.div_ceil(*c).checked_mul(*c));
    check_bytes("shape", padded, item_bytes, u64::MAX)?;
    Ok(Some(chunk))
}

/// Refuses sizes whose product in bytes is over `bytes_max`; a size of zero counts as one.
fn check_bytes(
    at: &str,
    mut dims: impl Iterator<Item = Option<u64>>,
    item_bytes: u64,
    bytes_max: u64,
) -> Result<()> {
    let bytes = dims.try_fold(item_bytes, |product, n| product.checked_mul(n?.max(1)));
    match bytes {
        Some(bytes) if bytes <= bytes_max => Ok(()),
        _ => Err(FormatError::corrupt(format!("`{at}` claims more bytes than can be counted"))),
    }
}
