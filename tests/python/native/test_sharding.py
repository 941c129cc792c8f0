"""Sharded arrays of one process on eight devices: each shard is saved once, and any other sharding gets what it needs."""

from __future__ import annotations

import pathlib
import random

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import same
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import milepost as mp

VALUE = np.arange(48 * 32, dtype=np.float32).reshape(48, 32)


def mesh(*shape: int) -> Mesh:
    names = ("a", "b", "c")[: len(shape)]
    return Mesh(np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape), names)


SHARDINGS = {
    "rows on 8": (lambda: NamedSharding(mesh(8), P("a"))),
    "columns on 8": (lambda: NamedSharding(mesh(8), P(None, "a"))),
    "4 x 2": (lambda: NamedSharding(mesh(4, 2), P("a", "b"))),
    "2 x 4": (lambda: NamedSharding(mesh(2, 4), P("a", "b"))),
    "4 x 2 transposed": (lambda: NamedSharding(mesh(4, 2), P("b", "a"))),
    "both axes on rows": (lambda: NamedSharding(mesh(4, 2), P(("a", "b")))),
    "rows on 4, twice": (lambda: NamedSharding(mesh(4, 2), P("a"))),
    "columns on 2, four times": (lambda: NamedSharding(mesh(4, 2), P(None, "b"))),
    "replicated": (lambda: NamedSharding(mesh(8), P())),
    "2 x 2 x 2": (lambda: NamedSharding(mesh(2, 2, 2), P("c", "a"))),
    "on 3 devices": (lambda: NamedSharding(mesh(3), P("a"))),
    "on 1 of a mesh": (lambda: NamedSharding(mesh(1), P("a"))),
    "one device": (lambda: jax.sharding.SingleDeviceSharding(jax.devices()[6])),
}


def struct(sharding, shape=VALUE.shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def check(back, sharding, value=VALUE):
    assert isinstance(back, jax.Array)
    assert back.sharding.is_equivalent_to(sharding, back.ndim), (back.sharding, sharding)
    assert back.committed
    same(np.asarray(back), value)
    for shard in back.addressable_shards:
        same(np.asarray(shard.data), np.array(value[shard.index]))


@pytest.mark.parametrize("name", SHARDINGS)
def test_a_sharded_array_is_saved_once_and_comes_back(url, name):
    sharding = SHARDINGS[name]()
    array = jax.device_put(VALUE, sharding)
    saved = mp.save(url, {"w": array}, chunk_bytes=1 << 10)
    assert saved.data_bytes == VALUE.nbytes
    same(mp.load(url), {"w": VALUE})
    check(mp.load(url, {"w": array})["w"], sharding)
    check(mp.load(url, {"w": struct(sharding)})["w"], sharding)


@pytest.mark.parametrize("to", SHARDINGS)
def test_any_sharding_is_restored_as_any_other(tmp_path, to):
    sharding = SHARDINGS[to]()
    for number, name in enumerate(SHARDINGS):
        url = str(tmp_path / str(number))
        mp.save(url, {"w": jax.device_put(VALUE, SHARDINGS[name]())}, chunk_bytes=1 << 10, durability="published")
        check(mp.load(url, {"w": struct(sharding)})["w"], sharding)


def test_what_is_stored_does_not_depend_on_the_sharding(tmp_path):
    contents = set()
    for number, make in enumerate(SHARDINGS.values()):
        mp.save(tmp_path / str(number), {"w": jax.device_put(VALUE, make())}, chunk_bytes=1 << 10)
        leaf = mp.open(tmp_path / str(number)).index().leaves[0]
        contents.add((leaf.chunk_shape, leaf.shard_shape, leaf.stored_bytes))
    assert len(contents) == 1, contents


def test_random_shapes_meshes_and_types_come_back(tmp_path):
    random_ = random.Random(11)
    for number in range(40):
        rank = random_.randrange(1, 4)
        sizes = random_.choice([(8,), (4, 2), (2, 4), (2, 2, 2), (2,), (5,)])

        def spec():
            axes = list("abc"[: len(sizes)])
            random_.shuffle(axes)
            parts = [None] * rank
            for axis in axes:
                place = random_.randrange(rank + 1)
                if place < rank:
                    parts[place] = (*(parts[place] or ()), axis)
            return P(*parts)

        dtype = random_.choice([np.float32, np.int8, ml_dtypes.bfloat16, np.bool_])
        shape = tuple(random_.choice([0, 1, 2, 3]) * 40 for _ in range(rank))
        value = (np.arange(np.prod(shape)).reshape(shape) % 120).astype(dtype)
        first, second = NamedSharding(mesh(*sizes), spec()), NamedSharding(mesh(*sizes), spec())
        url = tmp_path / str(number)
        try:
            array = jax.device_put(value, first)
        except ValueError:
            continue
        mp.save(url, [array], chunk_bytes=random_.choice([1 << 8, 1 << 12, 1 << 20]), durability="published")
        same(mp.load(url), [value])
        try:
            second.shard_shape(shape)
        except ValueError:
            continue
        check(mp.load(url, [struct(second, shape, dtype)])[0], second, value)


def test_a_sharded_target_casts_every_shard(url):
    sharding = NamedSharding(mesh(8), P("a"))
    mp.save(url, {"w": VALUE.astype(np.float64)})
    back = mp.load(url, {"w": struct(sharding, dtype=jnp.bfloat16)})["w"]
    check(back, sharding, VALUE.astype(ml_dtypes.bfloat16))


def test_0d_and_replicated_leaves_are_put_on_every_device(url):
    sharding = NamedSharding(mesh(8), P())
    mp.save(url, {"n": jnp.float32(3), "k": jax.random.key(1), "e": jnp.zeros((0, 4))})
    target = {
        "n": struct(sharding, ()),
        "k": struct(sharding, (), jax.random.key(0).dtype),
        "e": struct(sharding, (0, 4)),
    }
    back = mp.load(url, target)
    check(back["n"], sharding, np.array(3, np.float32))
    assert back["k"].sharding.is_equivalent_to(sharding, 0)
    assert len(back["e"].addressable_shards) == 8


def test_sharded_keys_come_back_sharded(url):
    sharding = NamedSharding(mesh(8), P("a"))
    keys = jax.device_put(jax.random.split(jax.random.key(0), 16), sharding)
    mp.save(url, {"k": keys})
    back = mp.load(url, {"k": keys})["k"]
    assert back.sharding.is_equivalent_to(sharding, 1)
    same(np.asarray(jax.random.key_data(back)), np.asarray(jax.random.key_data(keys)))


def test_only_the_chunks_that_a_sharding_needs_are_read(url, monkeypatch):
    """Half of the array on each device of a mesh that this process sees one half of."""
    mp.save(url, {"w": VALUE}, chunk_bytes=6 * 32 * 4, shard_bytes=6 * 32 * 4)
    chunks = sorted(pathlib.Path(url, "state/w").glob("c.*"))
    assert len(chunks) == 8
    for chunk in chunks[4:]:
        chunk.unlink()
    same(mp.open(url)["w"][:24], VALUE[:24])
    sharding = NamedSharding(mesh(2), P("a"))
    upper = {d: i for d, i in sharding.addressable_devices_indices_map(VALUE.shape).items() if i[0].stop == 24}
    boxes = []

    from milepost import _restore

    real = _restore._shards

    def half(sharding, shape):
        found = [entry for entry in real(sharding, shape) if entry[1][0] in upper]
        boxes.extend(found)
        return found

    monkeypatch.setattr(_restore, "_shards", half)
    (want,) = [_restore.Want(0, "jax", np.dtype("float32"), sharding)]
    index = mp.open(url).index()
    requests = [(want.position, None, box) for box in _restore._boxes(want, index.leaves[0])]
    (part,) = index._inner.read(requests, "unsafe")
    same(np.frombuffer(part, np.float32).reshape(24, 32), VALUE[:24])
    assert len(boxes) == 1


def test_replicas_are_read_once(url):
    mp.save(url, {"w": VALUE})
    asked = []
    checkpoint = mp.open(url)
    index = checkpoint.index()

    class Watched:
        def __init__(self, inner):
            self.inner = inner

        def read(self, requests, cast):
            asked.extend(requests)
            return self.inner.read(requests, cast)

        def __getattr__(self, name):
            return getattr(self.inner, name)

    index._inner = Watched(index._inner)
    sharding = NamedSharding(mesh(4, 2), P("a"))
    check(checkpoint.load({"w": struct(sharding)})["w"], sharding)
    assert sorted(box for _, _, box in asked) == [([12 * i, 0], [12, 32]) for i in range(4)]
    asked.clear()
    sharding = NamedSharding(mesh(8), P())
    check(checkpoint.load({"w": struct(sharding)})["w"], sharding)
    assert [box for _, _, box in asked] == [None]


def test_axes_that_are_resharded_may_be_named(url):
    array = jax.device_put(VALUE, NamedSharding(mesh(8), P(None, "a")))
    mp.save(url, items={"state": mp.Tree({"w": array}, mp.LeafOptions(reshard_axes=(1,), chunk_bytes=1 << 10))})
    (leaf,) = mp.open(url).index().leaves
    assert leaf.chunk_shape[1] < 32
    sharding = NamedSharding(mesh(2), P(None, "a"))
    check(mp.load(url, {"w": struct(sharding)})["w"], sharding)


def test_a_sharding_that_does_not_divide_the_shape_is_refused(url):
    mp.save(url, {"w": np.zeros((7, 3), np.float32)})
    with pytest.raises(ValueError):
        mp.load(url, {"w": struct(NamedSharding(mesh(8), P("a")), (7, 3))})


def test_a_sharded_state_of_a_training_step_comes_back(url):
    sharding = NamedSharding(mesh(4, 2), P("a", "b"))

    @jax.jit
    def train(state):
        return {"w": state["w"] * 2 + 1, "n": state["n"] + 1}

    state = {"w": jax.device_put(VALUE, sharding), "n": 0}
    for _ in range(3):
        state = train(state)
    mp.save(url, state)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    back = mp.load(url, abstract)
    check(back["w"], sharding, np.asarray(state["w"]))
    same(np.asarray(train(back)["w"]), np.asarray(train(state)["w"]))
