"""Arrays on accelerators. There is none here: JAX's CPU arrays are taken for device arrays, which takes the same path."""

from __future__ import annotations

import functools
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import same

import milepost as mp
from milepost import _arrays, _device

SIZE = 1_000_000


@pytest.fixture(autouse=True)
def accelerator(monkeypatch):
    """Everything that is on this host is said to be on a device."""
    plain = _arrays._where
    monkeypatch.setattr(_arrays, "_where", lambda s: "device" if plain(s).startswith("host") else plain(s))


@functools.partial(jax.jit, donate_argnums=0)
def overwrite(state):
    return jax.tree.map(lambda x: x * 0 - 1, state)


def state_of(size=SIZE):
    return {f"w{i}": jnp.arange(size, dtype=jnp.float32) + i for i in range(4)}


@pytest.mark.parametrize("capture", ["auto", "copy"])
@pytest.mark.parametrize("end", ["donate", "delete", "keep"])
def test_what_is_donated_or_deleted_right_after_is_saved(tmp_path, capture, end):
    expected = {name: np.array(x) for name, x in state_of().items()}
    state = state_of()
    handle = mp.save_async(tmp_path / "a", state, capture=capture)
    if end == "donate":
        jax.block_until_ready(overwrite(state))
    elif end == "delete":
        [x.delete() for x in state.values()]
    handle.result(60)
    same(mp.load(tmp_path / "a"), expected)


def test_a_manager_captures_donated_arrays_too(run):
    with mp.CheckpointManager(run, max_to_keep=2) as manager:
        for step in range(4):
            state = state_of()
            manager.save(step, state)
            jax.block_until_ready(overwrite(state))
        manager.wait()
        same(manager.restore(3), {name: np.array(x) for name, x in state_of().items()})


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (7, 5), (1000, 300)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int4", "bool", "complex64"])
def test_arrays_of_any_shape_and_type_are_saved(url, shape, dtype):
    array = jnp.ones(shape, dtype)
    mp.save(url, {"a": array}, chunk_bytes=1 << 16)
    same(mp.load(url), {"a": np.asarray(array)})


@pytest.mark.parametrize("spec", [("x",), (None, "x"), ("x", "y"), (("x", "y"),), (None,), ("y", None)], ids=str)
def test_sharded_arrays_are_gathered_from_their_shards(url, spec):
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    value = np.arange(64 * 48, dtype=np.int32).reshape(64, 48)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    array = jax.device_put(value, sharding)
    handle = mp.save_async(url, {"a": array}, chunk_bytes=1 << 10)
    array.delete()
    handle.result(60)
    same(mp.load(url), {"a": value})


def test_keys_and_casts_are_saved(url):
    keys = jax.random.split(jax.random.key(1), 5)
    tree = mp.Tree({"k": keys, "w": jnp.ones(3)}, lambda path, _: mp.LeafOptions(dtype="float16") if path == "w" else None)
    mp.save(url, items={"state": tree})
    back = mp.load(url)
    same(np.asarray(jax.random.key_data(back["k"])), np.asarray(jax.random.key_data(keys)))
    same(back["w"], np.ones(3, np.float16))


def test_no_copy_is_left_with_the_arrays(url):
    state = state_of()
    mp.save(url, state)
    assert all(x._npy_value is None for x in state.values())


class Device:
    """A fake device: it counts what is on the host because of it, and what was asked for in which order."""

    def __init__(self):
        self.held = self.most = 0
        self.started: list[str] = []
        self.lock = threading.Lock()

    def count(self, nbytes):
        with self.lock:
            self.held += nbytes
            self.most = max(self.most, self.held)


class HostCopy(np.ndarray):
    device: Device | None = None

    def __del__(self):
        if self.base is None and self.device is not None:
            self.device.count(-self.nbytes)


class FakeArray:
    """An array of one shard on a fake device; bringing it over takes a while."""

    replica_id = 0

    def __init__(self, device, name, value, seconds=0.0, error=None):
        self.device, self.name, self.value, self.seconds, self.error = device, name, value, seconds, error
        self.shape, self.dtype, self.nbytes = value.shape, value.dtype, value.nbytes
        self.index = tuple(slice(None) for _ in value.shape)
        self.gone = False

    @property
    def addressable_shards(self):
        return [self]

    @property
    def data(self):
        assert not self.gone, "deleted"
        return self

    def copy_to_host_async(self):
        self.device.started.append(self.name)

    def __array__(self, dtype=None, copy=None):
        assert not self.gone, "deleted"
        if self.error is not None:
            raise self.error
        time.sleep(self.seconds)
        host = HostCopy(self.shape, self.dtype)
        host[...] = self.value
        host.device = self.device
        self.device.count(self.nbytes)
        return host


@pytest.fixture
def save_fakes(monkeypatch):
    """Saves a tree of fake arrays in the background."""
    plain = _arrays._leaf

    def leaf(value, capture, options):
        return capture.device_leaf(value) if isinstance(value, FakeArray) else plain(value, capture, options)

    monkeypatch.setattr(_arrays, "_leaf", leaf)
    return mp.save_async


def test_save_returns_only_when_every_array_was_brought_over(url, save_fakes):
    device = Device()
    arrays = [FakeArray(device, str(i), np.full((50, 10), i, np.float32), 0.02) for i in range(10)]
    handle = save_fakes(url, arrays)
    for array in arrays:
        array.gone = True
    handle.result(60)
    same(mp.load(url), [array.value for array in arrays])


def test_copies_are_started_ahead_and_the_largest_first(url, save_fakes, monkeypatch):
    monkeypatch.setattr(_device, "AHEAD_BYTES", 3000)
    device = Device()
    sizes = [100, 400, 200, 300]
    save_fakes(url, [FakeArray(device, str(n), np.zeros(n, np.float32)) for n in sizes]).result(60)
    assert device.started == sorted(device.started, key=lambda name: -int(name))
    assert device.started  # but for those that the writers asked for before


def test_the_host_holds_no_more_than_its_bound(url, save_fakes, monkeypatch):
    monkeypatch.setattr(_device, "AHEAD_BYTES", 1 << 20)
    monkeypatch.setattr(_device, "HELD_BYTES_MAX", 4 << 20)
    device = Device()
    arrays = [FakeArray(device, str(i), np.full(1 << 18, i, np.float32)) for i in range(24)]  # 1 MiB each
    handle = save_fakes(url, arrays)
    for array in arrays:
        array.gone = True
    handle.result(60)
    same(mp.load(url), [array.value for array in arrays])
    assert device.most <= 4 * (4 << 20), device.most  # the writers' own demand comes on top
    del handle
    assert device.held == 0


def test_an_array_larger_than_the_bound_is_saved(url, save_fakes, monkeypatch):
    monkeypatch.setattr(_device, "HELD_BYTES_MAX", 1000)
    arrays = [FakeArray(Device(), str(i), np.full(5000, i, np.float32)) for i in range(3)]
    save_fakes(url, arrays).result(60)
    same(mp.load(url), [array.value for array in arrays])


def test_a_device_that_fails_fails_the_save_with_the_leaf(url, save_fakes):
    device = Device()
    tree = {"ok": FakeArray(device, "ok", np.zeros(5)), "bad": FakeArray(device, "bad", np.zeros(5), error=RuntimeError("lost"))}
    handle = save_fakes(url, tree)
    with pytest.raises(mp.MilepostError, match="lost") as caught:
        handle.result(60)
    assert caught.value.context["leaf"] == "bad"
    with pytest.raises(mp.NotFound):
        mp.open(url)


def test_a_save_that_fails_early_does_not_wait_for_devices(url, save_fakes, monkeypatch):
    mp.save(url, {"a": 1})
    monkeypatch.setattr(_device, "HELD_BYTES_MAX", 1)
    arrays = [FakeArray(Device(), str(i), np.zeros(1000), 0.01) for i in range(5)]
    handle = save_fakes(url, arrays)
    assert isinstance(handle.exception(30), mp.AlreadyExists)


def test_an_interrupt_while_arrays_come_over_cancels_the_save(url, save_fakes):
    class Interrupted(FakeArray):
        def __array__(self, dtype=None, copy=None):
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            time.sleep(0.2)
            return self.value

    with pytest.raises(KeyboardInterrupt):
        save_fakes(url, [Interrupted(Device(), str(i), np.zeros(1000)) for i in range(5)])
    time.sleep(0.5)
    with pytest.raises(mp.NotFound):
        mp.open(url)
