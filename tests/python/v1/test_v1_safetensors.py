"""The safetensors layout."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from equality import assert_same

Struct = jax.ShapeDtypeStruct
numpy_files = pytest.importorskip("safetensors.numpy")

TENSORS = {
    "x": np.arange(24, dtype=np.float32).reshape(4, 6),
    "y": np.arange(5, dtype=np.int64),
    "h": np.arange(6).astype(ml_dtypes.bfloat16).reshape(3, 2),
    "s": np.array(3, np.int32),
    "z": np.zeros((0, 2), np.float16),
}


@pytest.fixture
def file(tmp_path):
    numpy_files.save_file(
        {k: v for k, v in TENSORS.items() if k != "h"}, tmp_path / "m.safetensors", {"k": "v"}
    )
    return tmp_path / "m.safetensors"


def layout(ocp, name="safetensors", **members):
    ctx = ocp.Context()
    ctx.checkpoint_layout = name
    for member, value in members.items():
        setattr(ctx.safetensors, member, value)
    return ctx


def test_tensors_load_as_numpy_arrays(ocp, file):
    with layout(ocp):
        assert_same(ocp.load(file), {k: v for k, v in TENSORS.items() if k != "h"})


def test_a_directory_of_files_is_one_tree(ocp, tmp_path):
    numpy_files.save_file({"a": np.ones(2)}, tmp_path / "one.safetensors")
    numpy_files.save_file({"b": np.zeros(3)}, tmp_path / "two.safetensors")
    with layout(ocp):
        assert_same(ocp.load(tmp_path), {"a": np.ones(2), "b": np.zeros(3)})
    numpy_files.save_file({"b": np.zeros(3)}, tmp_path / "three.safetensors")
    with layout(ocp), pytest.raises(ValueError, match="Duplicate tensor b"):
        ocp.load(tmp_path)


def test_bfloat16_is_read(ours, tmp_path):
    torch_free = TENSORS["h"].view(np.uint16)
    numpy_files.save_file({"h": torch_free}, tmp_path / "m.safetensors")
    data = bytearray((tmp_path / "m.safetensors").read_bytes())
    text = data[8 : 8 + int.from_bytes(data[:8], "little")]
    data[8 : 8 + len(text)] = bytes(text).replace(b'"U16"', b'"BF16"')[: len(text)].ljust(len(text))
    fixed = bytes(text).replace(b'"U16"', b'"BF16"').rstrip()
    body = bytes(data[8 + len(text) :])
    (tmp_path / "m.safetensors").write_bytes(len(fixed).to_bytes(8, "little") + fixed + body)
    with layout(ours):
        assert_same(ours.load(tmp_path / "m.safetensors"), {"h": TENSORS["h"]})


def test_the_abstract_tree_names_tensors_dtypes_and_shardings(ocp, file):
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
    spec = jax.sharding.PartitionSpec
    with layout(ocp):
        for parts in (spec("a", "b"), spec(None, "b"), spec("a"), spec(), spec(("a", "b"))):
            sharding = jax.sharding.NamedSharding(mesh, parts)
            loaded = ocp.load(file, {"x": Struct((4, 6), jnp.bfloat16, sharding=sharding)})
            assert set(loaded) == {"x"} and loaded["x"].sharding == sharding
            assert loaded["x"].dtype == jnp.bfloat16
            np.testing.assert_array_equal(np.asarray(loaded["x"], "f4"), TENSORS["x"])
        assert isinstance(ocp.load(file, {"y": Struct((5,), "i4")})["y"], jax.Array)


def test_only_the_wanted_bytes_are_read(ours, tmp_path, monkeypatch):
    import os

    value = np.arange(1 << 16, dtype="f4").reshape(64, 1024)
    numpy_files.save_file({"x": value}, tmp_path / "m.safetensors")
    read = []
    real = os.preadv

    def counting(file, views, offset):
        read.append(len(views[0]))
        return real(file, views, offset)

    monkeypatch.setattr(os, "preadv", counting)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("a",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a"))
    with layout(ours):
        ours.load(tmp_path / "m.safetensors", {"x": Struct((64, 1024), "f4", sharding=rows)})
        assert sum(read) == 1 << 18
    with layout(ours, read_chunk_bytes=1000):
        read.clear()
        ours.load(tmp_path / "m.safetensors", {"x": Struct((64, 1024), "f4", sharding=rows)})
        assert max(read) <= 1000 and sum(read) == 1 << 18


def test_numpy_leaves_stay_numpy_unlike_orbax(ours, file):
    with layout(ours):
        loaded = ours.load(file, {"y": np.zeros(5, np.int32)})
    assert_same(loaded, {"y": np.arange(5, dtype=np.int32)})


def test_errors_name_the_tensor(ocp, file):
    with layout(ocp):
        with pytest.raises(KeyError, match="nope"):
            ocp.load(file, {"nope": Struct((1,), "f4")})
        with pytest.raises(ValueError, match="Shape mismatch"):
            ocp.load(file, {"x": Struct((4, 7), "f4")})
        with pytest.raises(ValueError, match="not a flat dictionary"):
            ocp.load(file, {"x": {"y": Struct((4, 6), "f4")}})


def test_metadata_has_shapes_and_the_files_own_words(ocp, file):
    with layout(ocp):
        metadata = ocp.metadata(file)
    assert metadata.custom_metadata == {"k": "v"}
    assert (metadata.metadata["x"].shape, metadata.metadata["x"].dtype) == ((4, 6), np.float32)


def test_files_that_are_cut_short_are_value_errors(ocp, file):
    data = file.read_bytes()
    file.write_bytes(data[:-10])
    with layout(ocp), pytest.raises(ValueError, match="truncated"):
        ocp.load(file)
    file.write_bytes(data[:20])
    with layout(ocp), pytest.raises(ValueError):
        ocp.load(file)


def test_what_is_no_safetensors_file_is_an_invalid_layout(ocp, tmp_path):
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "dir").mkdir()
    with layout(ocp):
        for name in ("file.txt", "dir", "nothing"):
            with pytest.raises(ocp.errors.InvalidLayoutError):
                ocp.load(tmp_path / name)


def test_without_the_layout_the_error_names_it(ours, file):
    with pytest.raises(ours.errors.InvalidLayoutError, match="checkpoint_layout = 'safetensors'"):
        ours.load(file)


def test_auto_finds_the_layout(ocp, file, tmp_path):
    ocp.save(tmp_path / "c", {"a": np.ones(2)})
    with layout(ocp, "auto"):
        assert set(ocp.load(file)) == set(TENSORS) - {"h"}
        assert_same(ocp.load(tmp_path / "c"), {"a": np.ones(2)})
        ocp.save(tmp_path / "d", {"a": np.ones(2)})


def test_saving_as_safetensors_is_not_there(ocp, tmp_path):
    with layout(ocp), pytest.raises(NotImplementedError):
        ocp.save(tmp_path / "c", {"a": np.ones(2)})


def test_load_async_reads_them(ocp, file):
    with layout(ocp):
        assert_same(ocp.load_async(file).result()["y"], TENSORS["y"])


def test_options_that_cannot_be_are_value_errors(ocp, file):
    with layout(ocp, read_chunk_bytes=0), pytest.raises(ValueError, match="read_chunk_bytes"):
        ocp.load(file)
    with layout(ocp, max_over_read_ratio=0.5), pytest.raises(ValueError, match="over_read_ratio"):
        ocp.load(file)


def test_ranges_are_joined_as_the_ratio_allows(ours):
    from milepost.orbax.v1._safetensors import _Run, blocks

    def run(offset, size):
        return _Run(offset, np.empty(size, np.uint8))

    far = [run(0, 100), run(50_000, 100), run(100_000, 100)]
    assert [len(block) for block in blocks(far, 1.0)] == [1, 1, 1]
    assert [len(block) for block in blocks(far, 1000.0)] == [3]
    near = [run(300, 100), run(0, 100), run(150, 100)]
    assert [[r.offset for r in block] for block in blocks(near, 1.0)] == [[0, 150, 300]]
    many = [run(number * 10_000, 8) for number in range(3000)]
    assert len(blocks(many, None)) == 1
    assert len(blocks(many[:100], None)) == 100
    assert math.isclose(sum(len(block) for block in blocks(many, 2.0)), 3000)


def test_tensors_have_no_item_so_any_name_means_them(ocp, file):
    with layout(ocp):
        assert_same(ocp.load(file, checkpointable_name="model")["y"], TENSORS["y"])
        assert_same(ocp.load(file, checkpointable_name=None)["y"], TENSORS["y"])
