"""What Python saved is plain Zarr v3: zarr-python, TensorStore and the command line read it as we do."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import same

import milepost as mp

STOCK = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
STOCK += ["complex64", "complex128"]
TENSORSTORE = [*STOCK, "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2fnuz", "int4"]
STORAGE = [{}, {"compression": "zstd"}, {"chunk_bytes": 1 << 9}, {"chunk_bytes": 1 << 9, "shard_bytes": 1 << 11, "compression": "zstd:5"}, {"compression": "blosc:lz4:5:shuffle"}, {"compression": "gzip"}]


def tree_of(names):
    dtypes = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in names}
    tree = {name: (np.arange(37 * 11).reshape(37, 11) % 7).astype(dtype) for name, dtype in dtypes.items()}
    odd = {"a/b": np.arange(3), "ü": np.arange(4), "": np.arange(5), "x" * 250: np.arange(6)}
    return {"leaves": tree, "odd": odd, "list": [np.array(3.5), np.zeros((0, 4), np.float32)], "n": 7, "f": 1.5, "s": "tëxt"}


@pytest.fixture(params=STORAGE, ids=lambda s: " ".join(f"{k}={v}" for k, v in s.items()) or "plain")
def storage(request):
    return request.param


def leaves_of(url):
    checkpoint = mp.open(url)
    values = mp._structure.flatten(mp.load(url))[1]
    return list(zip(checkpoint.index().leaves, values, strict=True))


def test_zarr_python_reads_every_leaf(url, storage):
    zarr = pytest.importorskip("zarr")
    mp.save(url, tree_of(STOCK), **storage)
    for leaf, value in leaves_of(url):
        array = zarr.open_array(f"{url}/state/{leaf.path}", mode="r")
        expected = np.frombuffer(value.encode(), np.uint8) if isinstance(value, str) else np.asarray(value)
        same(np.asarray(array[...]), expected)
        assert array.metadata.dimension_names is not None


def test_zarr_python_reads_a_group_and_what_we_said_of_it(url):
    zarr = pytest.importorskip("zarr")
    mp.save(url, {"params": {"w": np.eye(4), "b": np.zeros(2)}}, metadata={"note": "x"})
    group = zarr.open_group(url, mode="r")
    assert group.attrs["milepost"]["metadata"] == {"note": "x"}
    assert sorted(group["state/params"].array_keys()) == ["b", "w"]
    same(np.asarray(group["state/params/w"][...]), np.eye(4))


def test_zarr_python_reads_our_own_data_types_once_milepost_is_installed(url):
    zarr = pytest.importorskip("zarr")
    from milepost import zarr_dtypes  # noqa: F401  the wheel's entry point does this

    if hasattr(zarr_dtypes, "register"):
        zarr_dtypes.register()
    value = np.arange(12).reshape(3, 4).astype(ml_dtypes.bfloat16)
    mp.save(url, {"b": value})
    try:
        array = zarr.open_array(f"{url}/state/b", mode="r")
    except Exception as error:
        pytest.skip(f"the entry point is the wheel's: {error}")
    same(np.asarray(array[...]), value)


def test_tensorstore_reads_every_leaf(url, storage):
    ts = pytest.importorskip("tensorstore")
    mp.save(url, tree_of(TENSORSTORE), **storage)
    for leaf, value in leaves_of(url):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{url}/state/{leaf.path}/"}}
        array = ts.open(spec, open=True, read=True).result()
        expected = np.frombuffer(value.encode(), np.uint8) if isinstance(value, str) else np.asarray(value)
        found = np.asarray(array.read().result())
        assert found.shape == expected.shape and found.tobytes() == expected.tobytes(), leaf.path


def test_arrays_of_jax_and_sharded_ones_are_read_too(url):
    zarr = pytest.importorskip("zarr")
    sharding = jax.sharding.NamedSharding(jax.make_mesh((4, 2), ("x", "y")), jax.sharding.PartitionSpec("x", "y"))
    value = np.arange(64.0, dtype=np.float32).reshape(8, 8)
    mp.save(url, {"s": jax.device_put(value, sharding), "k": jax.random.key(5), "h": jnp.ones(3, jnp.float16)})
    same(np.asarray(zarr.open_array(f"{url}/state/s", mode="r")[...]), value)
    same(np.asarray(zarr.open_array(f"{url}/state/k", mode="r")[...]), np.asarray(jax.random.key_data(jax.random.key(5))))


@pytest.fixture(scope="module")
def cli():
    for place in ("target/debug/milepost", "target/release/milepost"):
        file = pathlib.Path(__file__).parents[3] / place
        if file.exists():
            return lambda *arguments: subprocess.run([str(file), *map(str, arguments)], capture_output=True, text=True)
    pytest.skip("the command line is not built")


def test_the_command_line_verifies_what_python_saved(url, cli, storage):
    mp.save(url, items={"state": tree_of(TENSORSTORE), "config": mp.Json({"a": float("nan")}), "b": mp.Bytes(b"xyz")}, metadata={"x": 1}, **storage)
    done = cli("verify", url)
    assert done.returncode == 0, done.stdout + done.stderr
    chunk = next(p for p in sorted(pathlib.Path(url, "state/leaves/float64").iterdir()) if p.name.startswith("c"))
    data = bytearray(chunk.read_bytes())
    data[20] ^= 4
    chunk.write_bytes(data)
    done = cli("verify", url)
    assert done.returncode != 0 and "float64" in done.stdout + done.stderr


def test_the_command_line_shows_the_tree_that_python_saved(url, cli):
    mp.save(url, {"params": {"w": np.eye(4)}, "opt": (1, [2.5])})
    done = cli("tree", url)
    assert done.returncode == 0 and "w" in done.stdout and "opt" in done.stdout, done.stderr


def test_the_command_line_lists_the_steps_of_a_python_run(run, cli):
    with mp.CheckpointManager(run) as manager:
        for step in (1, 2, 30):
            manager.save(step, {"a": step})
    done = cli("ls", run)
    if done.returncode != 0:
        pytest.skip(f"another verb lists steps: {done.stderr[:80]}")
    assert all(str(step) in done.stdout for step in (1, 2, 30))


def test_equal_trees_are_equal_bytes_but_for_the_record(tmp_path):
    for name in "ab":
        mp.save(tmp_path / name, tree_of(STOCK))
    files = {}
    for name in "ab":
        files[name] = {
            str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()
        }
        record = json.loads(files[name].pop("zarr.json"))
        assert record["attributes"]["milepost"]["kind"] == "checkpoint"
    assert files["a"] == files["b"]


def test_nothing_of_the_process_is_left_beside_the_checkpoint(tmp_path):
    mp.save(tmp_path / "c", {"a": np.arange(10)})
    mp.save(tmp_path / "c", {"a": np.arange(20)}, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["c"]
