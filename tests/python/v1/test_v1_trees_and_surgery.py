"""`tree`, `arrays`, `multihost`, module names, and `model_surgery`."""

from __future__ import annotations

import asyncio
import collections
import importlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equality import assert_same

Struct = jax.ShapeDtypeStruct


def test_merge_joins_trees(ocp):
    merged = ocp.tree.merge({"a": 1, "b": {"c": 2}}, {"d": 3, "b": {"e": 4}})
    assert merged == {"a": 1, "b": {"c": 2, "e": 4}, "d": 3}
    assert ocp.tree.merge() == {}


def test_merge_refuses_the_same_leaf_twice(ocp):
    with pytest.raises(ValueError, match="common key paths"):
        ocp.tree.merge({"a": {"b": 1}}, {"a": {"b": 2}})
    assert ocp.tree.merge({"a": 1, "b": 2}, {"a": 3}, overwrite=True) == {"a": 3, "b": 2}


def test_merge_of_sequences_and_named_tuples(ocp):
    Point = collections.namedtuple("Point", "x y")
    merged = ocp.tree.merge([1, {"a": 2}], [3, {"b": 4}], overwrite=True)
    assert merged == [3, {"a": 2, "b": 4}]
    merged = ocp.tree.merge(Point(1, None), Point(None, 2), overwrite=True)
    assert merged == Point(1, 2)
    with pytest.raises(ValueError, match="lengths"):
        ocp.tree.merge([1], [1, 2], overwrite=True)


def test_merge_stops_at_leaves_that_are_named(ocp):
    def is_leaf(node):
        return isinstance(node, dict) and ("b" in node or "c" in node)

    merged = ocp.tree.merge({"a": {"b": 1}}, {"a": {"c": 2}}, overwrite=True, is_leaf=is_leaf)
    assert merged == {"a": {"c": 2}}


def test_to_shape_dtype_struct(ocp):
    array = jnp.ones((2, 3))
    assert ocp.arrays.to_shape_dtype_struct(array) == Struct((2, 3), "f4", sharding=array.sharding)
    assert ocp.arrays.to_shape_dtype_struct(np.ones(2)) == Struct((2,), "f8")
    assert ocp.arrays.to_shape_dtype_struct(array, dtype=jnp.bfloat16).dtype == jnp.bfloat16
    assert ocp.arrays.to_shape_dtype_struct(3) == 3
    converted = ocp.arrays.to_shape_dtype_struct(3, scalar_dtype=float)
    assert converted == 3.0 and isinstance(converted, float)


def test_what_to_shape_dtype_struct_gives_loads(ocp, tmp_path):
    tree = {"w": jnp.ones((2, 3)), "n": 3}
    ocp.save(tmp_path / "c", tree)
    abstract = jax.tree.map(ocp.arrays.to_shape_dtype_struct, tree)
    assert_same(ocp.load(tmp_path / "c", abstract), tree)


def test_processes_are_counted(ocp):
    assert ocp.multihost.process_index() == 0 and ocp.multihost.process_count() == 1
    assert ocp.multihost.is_primary_host(0) and ocp.multihost.is_primary_host(None)
    assert not ocp.multihost.is_pathways_backend()
    asyncio.run(ocp.multihost.sync_global_processes("key", operation_id="1"))


def test_paths_awaiting_creation_are_a_protocol(ours, tmp_path):
    from milepost.orbax.v1._items import Directory

    directory = Directory(tmp_path / "a")
    assert isinstance(directory, ours.path.PathAwaitingCreation)
    below = directory / "b"
    assert below.path == tmp_path / "a" / "b"
    assert asyncio.run(below.await_creation()).is_dir()


def test_the_module_has_one_identity_under_all_names(ours):
    for name in ("experimental.v1", "checkpoint.v1", "checkpoint.experimental.v1"):
        assert importlib.import_module(f"milepost.orbax.{name}") is ours
        assert importlib.import_module(f"milepost.orbax.{name}.training") is ours.training


def test_importing_it_does_not_import_jax():
    code = "import sys, milepost.orbax.v1; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture(params=["milepost", "orbax"])
def surgery(request):
    package = {"milepost": "milepost.orbax.experimental", "orbax": "orbax.checkpoint.experimental"}
    name = package[request.param] + ".model_surgery.transformations."
    return lambda module: importlib.import_module(name + module)


@pytest.fixture(params=[np, jnp], ids=["numpy", "jax"])
def xp(request):
    return request.param


def test_renaming(surgery):
    rules = [(r"^model\.", ""), (r"\.weight$", ".kernel")]
    renamed = surgery("renaming").rename_by_regex(rules)({"model.a.weight": 1, "b": 2})
    assert renamed == {"a.kernel": 1, "b": 2}


def test_renaming_refuses_to_lose_a_parameter_unlike_orbax():
    from milepost.orbax.experimental.model_surgery.transformations import renaming

    with pytest.raises(ValueError, match="'a.1' and 'a.2' would both"):
        renaming.rename_by_regex([(r"\d", "n")])({"a.1": 1, "a.2": 2})


def test_nesting(surgery):
    unflatten = surgery("nesting").unflatten
    assert unflatten()({"a.w": 1, "a.b": 2, "c": 3}) == {"a": {"w": 1, "b": 2}, "c": 3}
    assert unflatten("/")({"a/w.x": 1}) == {"a": {"w.x": 1}}
    given = {"a.w": 1}
    assert unflatten(inplace=True)(given) == {"a": {"w": 1}} and given == {}
    target = {"a": {"w": 0, "new": 7}}
    assert unflatten(target=target)({"a.w": 1, "extra": 2}) == {"a": {"w": 1, "new": 7}}


def test_stacking(surgery, xp):
    stack = surgery("stacking").stack
    params = {f"l.{n}.w": xp.full((2,), float(n)) for n in (1, 0, 2)} | {"o": xp.ones(1)}
    stacked = stack(r"l\.(\d+\.)")(params)
    assert set(stacked) == {"l.w", "o"}
    np.testing.assert_array_equal(stacked["l.w"], [[0, 0], [1, 1], [2, 2]])
    assert isinstance(stacked["l.w"], np.ndarray) == (xp is np)
    np.testing.assert_array_equal(stack(r"l\.(\d+\.)", axis=1)(params)["l.w"], [[0, 1, 2]] * 2)


def test_stacking_fills_what_is_missing(surgery, xp):
    stack = surgery("stacking").stack
    params = {"l.0.w": xp.zeros(2), "l.2.w": xp.ones(2), "l.0.b": xp.zeros(1), "l.1.b": xp.zeros(1)}
    stacked = stack(r"l\.(\d+\.)", default_filler=5.0, filler_mapping={"b$": 7.0})(params)
    np.testing.assert_array_equal(stacked["l.w"], [[0, 0], [5, 5], [1, 1]])
    np.testing.assert_array_equal(stacked["l.b"], [[0], [0], [7]])
    with pytest.raises(ValueError, match="expected indices"):
        stack(r"l\.(\d+\.)")(params)
    with pytest.raises(ValueError):
        stack(r"l\.(\d+\.)(w)")({"l.0.w": xp.zeros(2)})


def test_stacking_in_place_takes_the_parameters_out(surgery):
    params = {"l.0.w": np.zeros(2), "l.1.w": np.ones(2), "o": 1}
    surgery("stacking").stack(r"l\.(\d+\.)", inplace=True)(params)
    assert params == {"o": 1}


def test_stacking_puts_the_result_where_it_is_asked_for(surgery):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = {f"l.{n}.w": jnp.full((2,), n) for n in range(4)}
    stacked = surgery("stacking").stack(r"l\.(\d+\.)", target_sharding=sharding)(params)
    assert stacked["l.w"].sharding == sharding


def test_fusing(surgery, xp):
    fusing = surgery("fusing")
    params = {"0.gate.w": xp.zeros(2), "0.up.w": xp.ones(2), "1.up.w": xp.ones(2)}
    fused = fusing.fuse_by_pattern(
        pattern=r".*\.w$", unique_parts=["gate", "up"], fused_unique_part="both"
    )(params)
    assert set(fused) == {"0.both.w", "1.up.w"}
    np.testing.assert_array_equal(fused["0.both.w"], [0, 0, 1, 1])
    by_keys = fusing.fuse_by_keys(source_keys=["0.up.w", "0.gate.w"], target_key="x")(params)
    np.testing.assert_array_equal(by_keys["x"], [1, 1, 0, 0])
    missing = fusing.fuse_by_keys(source_keys=["0.up.w", "nope"], target_key="x")(params)
    assert set(missing) == set(params)


def test_repeating(surgery, xp):
    repeating = surgery("repeating")
    params = {"a.w": xp.asarray([[1, 2], [3, 4]]), "b": xp.asarray([1])}
    by_pattern = repeating.repeat_by_pattern(pattern=r".*\.w$", dimension=1, repeat_count=2)(params)
    np.testing.assert_array_equal(by_pattern["a.w"], [[1, 1, 2, 2], [3, 3, 4, 4]])
    repeat = repeating.repeat_by_keys(target_keys=["b", "nope"], dimension=0, repeat_count=3)
    by_keys = repeat(params)
    np.testing.assert_array_equal(by_keys["b"], [1, 1, 1])
    assert isinstance(by_keys["b"], np.ndarray) == (xp is np)


def test_transformations_take_one_dict(surgery):
    with pytest.raises((ValueError, AssertionError)):
        surgery("renaming").rename_by_regex([])({}, {})
