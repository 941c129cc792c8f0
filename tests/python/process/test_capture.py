"""What is saved is what the state was when `save` returned."""

from __future__ import annotations

import pytest

HEAD = """
import gc, sys, time, weakref
import numpy as np
import milepost as mp
from slowness import SLOWLY, slow, visible
"""

JAX = HEAD + "import jax\nimport jax.numpy as jnp\n"


@pytest.mark.parametrize(
    "value",
    [
        "np.zeros(1 << 20, 'uint8')",
        "np.zeros((1 << 11, 1 << 10), 'uint8')[:, ::2]",
        "np.zeros((1 << 10, 1 << 10), 'uint8').T",
        "np.asfortranarray(np.zeros((1 << 10, 1 << 10), 'uint8'))",
        "np.frombuffer(bytearray(1 << 20), 'uint8')",
        "np.zeros(1 << 18, '>i4')",
        "np.ndarray((1 << 20,), 'uint8', buffer=memoryview(bytearray(1 << 20)))",
        "np.array(0)",
    ],
)
def test_a_numpy_array_may_be_written_to_at_once(run, value):
    run(
        HEAD
        + f"""
array = {value}
handle = mp.save_async("ckpt", {{"first": slow(2)["w"], "w": array}}, **SLOWLY)
array[...] = 7
assert not handle.done()
handle.result()
assert not mp.load("ckpt")["w"].any()
"""
    )


def test_a_read_only_view_of_an_array_that_others_write_to_is_copied(run):
    run(
        HEAD
        + """
base = np.zeros(1 << 20, "uint8")
view = base.view()
view.flags.writeable = False
spread = np.broadcast_to(base, (2, 1 << 20))
handle = mp.save_async("ckpt", {"first": slow(2)["w"], "v": view, "s": spread}, **SLOWLY)
base[:] = 7
assert not handle.done()
handle.result()
assert not mp.load("ckpt")["v"].any() and not mp.load("ckpt")["s"].any()
"""
    )


def test_the_same_array_twice_and_views_of_one_are_saved_as_they_were(run):
    run(
        HEAD
        + """
base = np.arange(1 << 18)
tree = {"a": base, "b": base, "half": base[: 1 << 17], "rest": base[1 << 17 :]}
handle = mp.save_async("ckpt", {"first": slow(2)["w"], **tree}, **SLOWLY)
want = base.copy()
base[:] = -1
handle.result()
got = mp.load("ckpt")
assert np.array_equal(got["a"], want) and np.array_equal(got["b"], want)
assert np.array_equal(np.concatenate([got["half"], got["rest"]]), want)
"""
    )


def test_containers_bytearrays_and_items_may_change_at_once(run):
    run(
        HEAD
        + """
tree = {"first": slow(2)["w"], "list": [1, 2, np.arange(3)], "bytes": bytearray(b"old")}
config = {"a": [1]}
handle = mp.save_async("ckpt", items={"state": mp.Tree(tree), "config": mp.Json(config)}, metadata=config, **SLOWLY)
tree["list"].append(4)
tree["list"][0] = 9
tree["bytes"][:] = b"new"
tree["more"] = 1
config["a"].append(2)
handle.result()
checkpoint = mp.open("ckpt")
got = checkpoint.load(item="state")
assert "more" not in got and len(got["list"]) == 3 and got["list"][0] == 1 and bytes(got["bytes"]) == b"old"
assert checkpoint.json("config") == {"a": [1]} and checkpoint.metadata == {"a": [1]}
"""
    )


@pytest.mark.parametrize("options", ["", ", handover=True", ', capture="copy"'])
def test_memory_is_given_back_when_the_save_has_ended(run, options):
    run(
        HEAD
        + f"""
array = slow(2)["w"]
alive = weakref.ref(array)
gc.collect()
gc.disable()  # a cycle would keep gigabytes until the collector happens to come
handle = mp.save_async("ckpt", {{"w": array, "deep": {{"er": [1]}}}}{options}, **SLOWLY)
array = None
handle.result()
deadline = time.monotonic() + 5
while alive() is not None and time.monotonic() < deadline:
    time.sleep(0.01)
assert alive() is None, "it is still held"
assert handle.done()
"""
    )


@pytest.mark.parametrize(
    "door",
    [
        'mp.save("ckpt", tree)',
        'mp.CheckpointManager("run").save(1, tree).result()',
        'mp.load("there", tree)',
        'mp.load("there", exact=False)',
        'mp.open("there").load(tree)',
        'orbax.StandardCheckpointer().restore(os.path.abspath("there"), tree)',
        'orbax.PyTreeCheckpointer().save(os.path.abspath("ckpt"), tree)',
        'orbax.PyTreeCheckpointer().restore(os.path.abspath("there"), item=tree)',
        'flax.save_checkpoint(os.path.abspath("run"), tree, 1)',
        'flax.save_checkpoint(os.path.abspath("run"), tree, 1) and flax.restore_checkpoint(os.path.abspath("run"), tree)',
    ],
)
def test_no_door_keeps_a_tree_once_it_is_done(run, door):
    run(
        JAX
        + f"""
import os
import milepost.orbax as orbax
from milepost.flax import checkpoints as flax
def leaves():
    return {{"a": {{"w": jnp.arange(100) + 1, "n": np.arange(100)}}, "b": [jnp.ones(3)]}}
mp.save("there", leaves())
def use(tree):
    return {door}
def alive():
    tree = leaves()
    seen = [weakref.ref(leaf) for leaf in (tree["a"]["w"], tree["a"]["n"], tree["b"][0])]
    result = use(tree)
    if isinstance(result, dict):
        seen += [weakref.ref(leaf) for leaf in (result["a"]["w"], result["b"][0])]
    return seen
gc.collect()
gc.disable()
kept = [ref() for ref in alive() if ref() is not None]
assert not kept, [(type(leaf), [type(r) for r in gc.get_referrers(leaf)]) for leaf in kept]
""",
        err=None,
    )


def test_an_array_that_is_handed_over_is_held_until_it_is_saved(run):
    run(
        HEAD
        + """
array = slow(2)["w"]
handle = mp.save_async("ckpt", {"w": array}, handover=True, **SLOWLY)
del array
gc.collect()
junk = [np.full(2 << 20, 255, "uint8") for _ in range(20)]
handle.result()
assert np.array_equal(mp.load("ckpt")["w"], slow(2)["w"])
"""
    )


@pytest.mark.parametrize("capture", ["auto", "copy"])
def test_a_donated_array_is_saved_as_it_was(run, capture):
    run(
        JAX
        + f"""
step = jax.jit(lambda x: x * 3 + 1, donate_argnums=0)
state = {{"w": jnp.arange(1 << 18, dtype="int32"), "slow": slow(2)["w"]}}
want = np.arange(1 << 18, dtype="int32")
for number in range(1, 4):
    handle = mp.save_async(f"ckpt-{{number}}", state, capture={capture!r}, **SLOWLY)
    state["w"] = step(state["w"])
    state["w"].block_until_ready()
    if number == 1:
        assert not handle.done()
    handle.result()
    assert np.array_equal(mp.load(f"ckpt-{{number}}")["w"], want), number
    want = want * 3 + 1
"""
    )


def test_with_a_copy_donation_takes_place(run):
    run(
        JAX
        + """
step = jax.jit(lambda x: x + 1, donate_argnums=0)
w = step(jnp.zeros(1 << 20))
before = w.unsafe_buffer_pointer()
handle = mp.save_async("ckpt", {"slow": slow(2)["w"], "w": w}, capture="copy", **SLOWLY)
w = step(w).block_until_ready()
assert w.unsafe_buffer_pointer() == before, "the memory was not given back by the capture"
handle.result()
assert (mp.load("ckpt")["w"] == 1).all()
"""
    )


def test_an_array_that_is_deleted_after_the_call_is_saved(run):
    run(
        JAX
        + """
w = jnp.arange(1 << 20)
handle = mp.save_async("ckpt", {"slow": slow(2)["w"], "w": w}, **SLOWLY)
w.delete()
junk = [jnp.full(1 << 20, n) for n in range(20)]
handle.result()
assert np.array_equal(mp.load("ckpt")["w"], np.arange(1 << 20))
"""
    )


def test_an_array_that_is_deleted_before_the_call_is_refused_by_name(run):
    run(
        JAX
        + """
w = jnp.arange(9)
w.delete()
try:
    mp.save("ckpt", {"params": {"w": w}})
    raise AssertionError
except mp.Invalid as error:
    assert "params/w" in str(error) and "deleted" in str(error)
assert not visible("ckpt")
"""
    )


def test_a_jax_array_is_held_and_not_copied(run):
    run(
        JAX
        + """
w = jnp.zeros(64 << 20, "uint8").block_until_ready()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
mp.save("warm", {"w": jnp.zeros(8)})
before = resident()
handle = mp.save_async("ckpt", {"slow": slow(2)["w"], "w": w}, **SLOWLY)
grown = resident() - before
handle.cancel()
assert grown < 40 << 20, grown
"""
    )


def test_a_sharded_array_of_eight_devices_is_saved_as_it_was(run):
    run(
        JAX
        + """
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
w = jax.device_put(jnp.arange(64 * 32).reshape(64, 32), NamedSharding(mesh, P("x", "y")))
step = jax.jit(lambda x: x + 1, donate_argnums=0)
handle = mp.save_async("ckpt", {"slow": slow(2)["w"], "w": w}, **SLOWLY)
w = step(w).block_until_ready()
handle.result()
assert np.array_equal(mp.load("ckpt")["w"], np.arange(64 * 32).reshape(64, 32))
""",
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
    )
