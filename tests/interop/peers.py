"""The other implementations: TensorStore and zarr-python, as writers and as readers of plain Zarr v3 arrays.

Everything goes by the array's own `zarr.json`, which [`document`] builds from a case; no peer adds defaults.
"""

from __future__ import annotations

import asyncio  # noqa: F401  zarr-python starts its loop at import
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
import zarr

from cases import ITEM_BYTES, NOT_TENSORSTORE, NOT_ZARR_PYTHON, Case, raw_bytes

#: Tests write thousands of chunks: none of them need survive a power cut.
CONTEXT = ts.Context({"file_io_sync": False, "cache_pool": {"total_bytes_limit": 0}})


# ---------------------------------------------------------------------------------------------- documents


def compressor(codec: str, dtype: str) -> list[dict]:
    """The bytes-to-bytes codec of a short name such as `blosc:zstd:3:bitshuffle`."""
    name, *rest = codec.split(":")
    if name == "none":
        return []
    if name in ("zstd", "gzip"):
        level = int(rest[0]) if rest else (3 if name == "zstd" else 6)
        extra = {"checksum": False} if name == "zstd" else {}
        return [{"name": name, "configuration": {"level": level, **extra}}]
    assert name == "blosc", codec
    cname = rest[0] if rest else "lz4"
    return [
        {
            "name": "blosc",
            "configuration": {
                "cname": cname,
                "clevel": int(rest[1]) if len(rest) > 1 else 5,
                "shuffle": rest[2] if len(rest) > 2 else "shuffle",
                "typesize": ITEM_BYTES[dtype],
                "blocksize": 0,
            },
        }
    ]


def bytes_codec(case: Case) -> dict:
    if ITEM_BYTES[case.dtype] == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": case.endian}}


def codecs(case: Case) -> list[dict]:
    """The codec chain of a case, sharded and nested as it says."""
    chain = []
    if case.transpose is not None:
        chain.append({"name": "transpose", "configuration": {"order": list(case.transpose)}})
    chain += [bytes_codec(case), *compressor(case.codec, case.dtype)]
    if case.chunk_crc:
        chain.append({"name": "crc32c"})
    outer = [case.chunk, case.shard, case.nested]
    for inner_shape, outer_shape in zip(outer, outer[1:]):
        if outer_shape is not None:
            chain = [sharding(case, inner_shape, chain)]
    return chain


def sharding(case: Case, chunk_shape, chain: list[dict]) -> dict:
    index = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if case.index_crc:
        index.append({"name": "crc32c"})
    return {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": list(chunk_shape),
            "codecs": chain,
            "index_codecs": index,
            "index_location": case.index_location,
        },
    }


def stored_shape(case: Case) -> tuple[int, ...]:
    """The shape of what one key holds: the outermost shard, or the chunk."""
    return case.nested or case.shard or case.chunk


def fill_value(case: Case):
    if case.dtype == "bool":
        return False
    if case.dtype.startswith("complex"):
        return [0.0, 0.0]
    if case.dtype.startswith(("float", "bfloat")):
        return case.fill if isinstance(case.fill, str) else float(case.fill)
    return case.fill


def document(case: Case) -> dict:
    """The array's `zarr.json`."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(case.shape),
        "data_type": case.dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [max(1, n) for n in stored_shape(case)]},
        },
        "chunk_key_encoding": {
            "name": "default",
            "configuration": {"separator": case.separator},
        },
        "fill_value": fill_value(case),
        "codecs": codecs(case),
        "attributes": {},
    }


# ------------------------------------------------------------------------------------------------ writers


def holes_of(case: Case) -> list[slice] | None:
    """The part that is written where a case leaves the rest as fill; `None`: all of it."""
    if not case.holes or not case.shape or 0 in case.shape:
        return None
    outer = stored_shape(case)[0]
    return slice(0, min(outer, case.shape[0]))


def expected(case: Case) -> bytes:
    """What any reader returns: the data, or fill where nothing was written."""
    written = holes_of(case)
    array = case.array()
    if written is None:
        return raw_bytes(array)
    value = fill_value(case)
    if isinstance(value, str):
        value = float(value)
    whole = np.full(case.shape, complex(*value) if isinstance(value, list) else value, array.dtype)
    whole[written] = array[written]
    return raw_bytes(whole)


class TensorStore:
    """TensorStore's zarr3 driver."""

    name = "tensorstore"

    @staticmethod
    def lacks(case: Case) -> str | None:
        if case.dtype in NOT_TENSORSTORE:
            return f"no {case.dtype}"
        return None

    @staticmethod
    def spec(path: Path) -> dict:
        return {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}

    @classmethod
    def write(cls, case: Case, path: Path) -> None:
        spec = {**cls.spec(path), "metadata": document(case), "store_data_equal_to_fill_value": True}
        store = ts.open(spec, create=True, context=CONTEXT).result()
        array, written = case.array(), holes_of(case)
        if written is not None:
            store[written].write(array[written]).result()
        elif array.size:
            store.write(array).result()

    @classmethod
    def read(cls, path: Path, warnings_are: str = "error") -> np.ndarray:
        store = ts.open(cls.spec(path), open=True, context=CONTEXT).result()
        return np.asarray(store.read().result())


class ZarrPython:
    """Stock zarr-python: no plugin of ours, warnings are errors."""

    name = "zarr-python"

    @staticmethod
    def lacks(case: Case) -> str | None:
        if case.dtype in NOT_ZARR_PYTHON:
            return f"no {case.dtype}"
        if case.codec.startswith("blosc:snappy"):
            return "its blosc is built without snappy"
        return None

    @staticmethod
    def write(case: Case, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / "zarr.json").write_text(json.dumps(document(case)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns about writing nested shards
            store = zarr.open_array(store=str(path), mode="r+", config={"write_empty_chunks": True})
            array, written = case.array(), holes_of(case)
            if written is not None:
                store[written] = array[written]
            elif array.size:
                store[...] = array

    @staticmethod
    def read(path: Path, warnings_are: str = "error") -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter(warnings_are)
            return np.asarray(zarr.open_array(store=str(path), mode="r")[...])


PEERS = [TensorStore, ZarrPython]


def able(cases: list[Case]) -> list:
    """Every pair of a peer and a case that it can store, as pytest parameters."""
    return [
        pytest.param(peer, case, id=f"{peer.name}-{case.id}")
        for case in cases
        for peer in PEERS
        if not peer.lacks(case)
    ]
