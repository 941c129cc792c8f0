"""What Milepost saved, zarr-python and TensorStore read leaf by leaf."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
import tensorstore

import milepost as mp
from milepost import zarr_dtypes

OURS = [c._zarr_v3_name for c in zarr_dtypes.DATA_TYPES if c is not zarr_dtypes.Raw]
CORE = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "complex64", "complex128",
]  # fmt: skip
TENSORSTORE_LACKS = {"uint2", "uint4", "float6_e2m3fn", "float6_e3m2fn", "float8_e4m3"}


def leaves() -> dict[str, np.ndarray]:
    """A leaf of every data type; a scalar and an empty one."""
    numbers = np.random.default_rng(7).choice([0.5, 1, 2], (9, 5))
    tree = {name: numbers.astype(name) for name in CORE}
    tree |= {name: numbers.astype(getattr(ml_dtypes, name)) for name in OURS}
    return tree | {"scalar": np.array(1.5, ml_dtypes.bfloat16), "empty": np.zeros((0, 3), ml_dtypes.int4)}


@pytest.mark.parametrize(
    "storage", [{}, {"compression": "zstd"}, {"chunk_bytes": 16}, {"chunk_bytes": 16, "shard_bytes": 64}], ids=str
)
def test_zarr_open_of_a_step_reads_every_leaf(tmp_path, run, storage):
    tree = leaves()
    mp.save(str(tmp_path / "step"), {"params": tree}, **storage)
    out = run(f"""
        import json, zarr
        seen = {{}}
        def walk(group):
            for name, member in group.members():
                if isinstance(member, zarr.Group):
                    walk(member)
                else:
                    data = member[...]
                    seen[name] = [str(data.dtype), list(data.shape), data.astype(complex).real.ravel().tolist()]
        walk(zarr.open({str(tmp_path / "step")!r}, mode="r"))
        print(json.dumps(seen))
    """)
    seen = json.loads(out)
    assert {name: seen.get(name) for name in tree} == {
        name: [str(leaf.dtype), list(leaf.shape), leaf.astype(complex).real.ravel().tolist()]
        for name, leaf in tree.items()
    }


def test_tensorstore_reads_every_leaf_whose_type_it_knows(tmp_path):
    tree = leaves()
    saved = mp.save(str(tmp_path / "step"), tree, chunk_bytes=16, compression="zstd:3")
    assert saved.data_bytes
    arrays = {p.parent.name: p.parent for p in (tmp_path / "step").rglob("zarr.json") if p.parent.name in tree}
    assert set(arrays) == set(tree)
    for name in set(tree) - TENSORSTORE_LACKS:
        spec = {"driver": "zarr3", "kvstore": f"file://{arrays[name]}/"}
        got = tensorstore.open(spec).result().read().result()
        assert got.dtype == tree[name].dtype and got.shape == tree[name].shape, name
        assert np.array_equal(got.astype(complex), tree[name].astype(complex)), name
