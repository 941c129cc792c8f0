"""Capture: what is changed, donated or deleted right after `save` does not change what is saved."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import same

import milepost as mp

SIZE = 3_000_000


@pytest.fixture(params=["standalone", "manager"])
def start(request, tmp_path):
    """Starts a save in the background, the standalone one or a manager's; gives the handle and where it will be."""
    numbers = iter(range(100))
    manager = mp.CheckpointManager(tmp_path / "run") if request.param == "manager" else None

    def start(tree, **options):
        number = next(numbers)
        if manager is None:
            return mp.save_async(tmp_path / str(number), tree, **options), str(tmp_path / str(number))
        return manager.save(number, tree, **options), str(tmp_path / "run" / str(number))

    yield start
    if manager is not None:
        manager.close()


WRITABLE = {
    "contiguous": lambda: np.arange(SIZE, dtype=np.float32),
    "a view": lambda: np.arange(2 * SIZE, dtype=np.float32)[::2],
    "Fortran order": lambda: np.asfortranarray(np.arange(SIZE, dtype=np.float32).reshape(1000, -1)),
    "big endian": lambda: np.arange(SIZE, dtype=">f4"),
    "a read-only view": lambda: (lambda a: (a.setflags(write=False), a)[1])(np.arange(SIZE, dtype=np.float32)[:]),
    "0-d": lambda: np.array(5.0),
}


@pytest.mark.parametrize("name", WRITABLE)
def test_a_numpy_array_that_is_changed_right_after_is_saved_as_it_was(start, name):
    array = WRITABLE[name]()
    before = np.array(array)
    handle, url = start({"a": array, "b": {"c": array}})
    if not array.flags.writeable:
        array = array.base
    array[...] = -1
    handle.result(60)
    expected = before.astype(before.dtype.newbyteorder("="))
    same(mp.load(url), {"a": expected, "b": {"c": expected}})


def test_a_view_of_borrowed_memory_that_is_changed_right_after_is_saved_as_it_was(start, tmp_path):
    mapped = np.memmap(tmp_path / "map", np.float32, "w+", shape=(SIZE,))
    mapped[:] = 1
    handle, url = start({"a": mapped})
    mapped[:] = 2
    handle.result(60)
    assert (mp.load(url)["a"] == 1).all()


class Convertible:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def test_an_object_whose_memory_is_changed_right_after_is_saved_as_it_was(start):
    array = np.zeros(SIZE, np.float32)
    handle, url = start({"a": Convertible(array)})
    array[:] = 1
    handle.result(60)
    assert not mp.load(url)["a"].any()


@pytest.mark.parametrize("make", [bytearray, lambda data: memoryview(bytearray(data))], ids=["bytearray", "memoryview"])
def test_writable_bytes_that_are_changed_right_after_are_saved_as_they_were(start, make):
    data = make(b"a" * SIZE)
    handle, url = start({"b": data})
    data[:] = b"b" * SIZE
    handle.result(60)
    assert mp.load(url)["b"] == b"a" * SIZE


def test_writable_bytes_of_a_bytes_item_are_copied(tmp_path):
    data = bytearray(b"a" * SIZE)
    handle = mp.save_async(tmp_path / "c", items={"b": mp.Bytes(data)})
    data[:] = b"b" * SIZE
    handle.result(60)
    assert mp.open(tmp_path / "c").bytes("b") == b"a" * SIZE


def test_containers_that_are_changed_right_after_are_saved_as_they_were(start):
    tree = {"a": [1, 2], "d": {"x": np.zeros(3)}}
    handle, url = start(tree)
    tree["a"].append(3)
    tree["d"]["y"] = 1
    del tree["d"]["x"]
    handle.result(60)
    same(mp.load(url), {"a": [1, 2], "d": {"x": np.zeros(3)}})


def test_metadata_that_is_changed_right_after_is_saved_as_it_was(start):
    metadata = {"a": [1]}
    handle, url = start({"x": 1}, metadata=metadata)
    metadata["a"].append(2)
    handle.result(60)
    assert mp.open(url).metadata == {"a": [1]}


def test_an_array_that_is_handed_over_is_not_copied(tmp_path, monkeypatch):
    from milepost import _milepost

    held = []
    plain = _milepost.Leaf.array

    class Watched:
        array = staticmethod(lambda buffer, name, shape, hold: (held.append(hold), plain(buffer, name, shape, hold))[1])

    monkeypatch.setattr(_milepost, "Leaf", Watched)
    array = np.arange(SIZE, dtype=np.float32)
    mp.save_async(tmp_path / "a", {"a": array}).result()
    mp.save_async(tmp_path / "b", {"a": array}, handover=True).result()
    mp.save(tmp_path / "c", {"a": jnp.ones(3)})
    mp.save(tmp_path / "d", {"a": jnp.ones(3)}, capture="copy")
    assert held == [False, True, True, False]
    held.clear()
    # What returns when all is written reads NumPy where it is, but for a compressor, which reads twice.
    mp.save(tmp_path / "e", {"a": array})
    mp.save(tmp_path / "f", {"a": array}, compression="zstd")
    mp.save(tmp_path / "g", {"a": array}, capture="copy")
    assert held == [True, False, False]
    same(mp.load(tmp_path / "b"), {"a": array})


def test_an_array_of_jax_that_is_deleted_right_after_is_saved(start):
    arrays = [jnp.arange(SIZE, dtype=jnp.float32) + i for i in range(3)]
    expected = [np.array(array) for array in arrays]
    handle, url = start(arrays)
    for array in arrays:
        array.delete()
    handle.result(60)
    same(mp.load(url), expected)


def test_an_array_of_jax_that_is_dropped_right_after_is_saved(start):
    handle, url = start({"a": jnp.arange(SIZE, dtype=jnp.float32) * 2})
    for _ in range(5):
        jnp.zeros(SIZE, jnp.float32).block_until_ready()
    handle.result(60)
    same(mp.load(url), {"a": np.arange(SIZE, dtype=np.float32) * 2})


@functools.partial(jax.jit, donate_argnums=0)
def overwrite(state):
    return jax.tree.map(lambda x: x * 0 - 1, state)


@pytest.mark.parametrize("capture", ["auto", "copy"])
def test_a_state_that_is_donated_right_after_is_saved_as_it_was(start, capture):
    state = {f"w{i}": jnp.arange(SIZE, dtype=jnp.float32) + i for i in range(4)}
    for number in range(3):
        expected = {name: np.array(x) for name, x in state.items()}
        handle, url = start(state, capture=capture)
        state = overwrite(state)
        jax.block_until_ready(state)
        handle.result(60)
        same(mp.load(url), expected)
        state = {name: x + number for name, x in state.items()}


def test_a_sharded_state_that_is_donated_right_after_is_saved_as_it_was(start):
    mesh = jax.make_mesh((8,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    state = jax.device_put(jnp.arange(8 * 400_000, dtype=jnp.float32), sharding)
    expected = np.array(state)
    handle, url = start({"w": state})
    overwrite({"w": state})["w"].block_until_ready()
    handle.result(60)
    same(mp.load(url), {"w": expected})


def test_with_capture_copy_no_array_of_jax_is_held(tmp_path):
    array = jnp.arange(SIZE, dtype=jnp.float32)
    pointer = array.unsafe_buffer_pointer()
    handle = mp.save_async(tmp_path / "a", {"w": array}, capture="copy")
    donated = overwrite({"w": array})["w"].block_until_ready()
    assert array.is_deleted() and donated.unsafe_buffer_pointer() == pointer  # JAX really took its memory
    handle.result(60)
    same(mp.load(tmp_path / "a"), {"w": np.arange(SIZE, dtype=np.float32)})


def test_keys_that_are_donated_or_deleted_right_after_are_saved(start):
    keys = jax.random.split(jax.random.key(3), 1000)
    expected = np.array(jax.random.key_data(keys))
    handle, url = start({"k": keys})
    keys.delete()
    handle.result(60)
    same(np.asarray(jax.random.key_data(mp.load(url)["k"])), expected)


def test_memory_of_a_finished_save_is_given_back(tmp_path):
    import gc
    import weakref

    class Traced(np.ndarray):
        pass

    array = np.ones(1000).view(Traced)
    watch = weakref.ref(array)
    handle = mp.save_async(tmp_path / "a", {"a": array}, handover=True)
    handle.result(60)
    del array
    gc.collect()
    assert watch() is None


def test_a_copy_costs_the_budget_and_a_save_of_more_than_the_budget_still_ends(tmp_path):
    engine = mp.Engine(memory_bytes=8 << 20)
    tree = {f"w{i}": np.full(1 << 20, i, np.float32) for i in range(10)}
    handle = mp.save_async(tmp_path / "a", tree, engine=engine)
    expected = {name: np.array(x) for name, x in tree.items()}
    for array in tree.values():
        array[:] = -1
    handle.result(60)
    same(mp.load(tmp_path / "a"), expected)
