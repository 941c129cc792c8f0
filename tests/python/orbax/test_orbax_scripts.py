"""Scripts that give the same on Orbax and on Milepost: each runs on both."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees_of_orbax import Nothing, Pair, kinds, state


def wait(checkpointer):
    getattr(checkpointer, "wait_until_finished", lambda: None)()


def test_a_pytree_comes_back_as_nested_dicts_and_lists_of_the_saved_types(ocp, tmp_path):
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "a", state())
    restored = checkpointer.restore(tmp_path / "a")
    expected = {**state(), "pair": [1, 2.5]}
    assert kinds(restored) == kinds(expected)


def test_without_a_target_tuples_named_tuples_and_integer_keys_become_plain(ocp, tmp_path):
    tree = {
        "none": None,
        "dict": {},
        "list": [],
        "tuple": (),
        "pair": Pair(1, jnp.ones(2)),
        "nothing": Nothing(),
        "nested": ((1, 2.5), [3]),
        "text": "hi",
        "numpy scalar": np.float32(1.5),
        "flag": True,
        "keys": {1: 2, 30: 4},
    }
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "a", tree)
    restored = checkpointer.restore(tmp_path / "a")
    assert restored["pair"].pop("y").tolist() == [1.0, 1.0]
    assert restored == {
        "none": None,
        "dict": {},
        "list": [],
        "tuple": (),
        "pair": {"x": 1},
        "nothing": None,
        "nested": [[1, 2.5], [3]],
        "text": "hi",
        "numpy scalar": 1.5,
        "flag": True,
        "keys": {"1": 2, "30": 4},
    }
    assert type(restored["numpy scalar"]) is float
    assert type(restored["flag"]) is bool


def test_a_bare_leaf_can_be_the_root(ocp, tmp_path):
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "a", jnp.arange(3))
    assert checkpointer.restore(tmp_path / "a").tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("saved", "target"),
    [
        ({"a": 1, "n": None}, {"a": 0, "n": 5}),
        ({"a": 1, "n": {}}, {"a": 0, "n": None}),
        ({"a": 1, "n": {}}, {"a": 0, "n": []}),
        ({"a": 1, "n": Nothing()}, {"a": 0, "n": Nothing()}),
        ({"a": [1, 2]}, {"a": (0, 0)}),
        ({"a": Pair(1, 2)}, {"a": {"x": 0, "y": 0}}),
        ({"a": {"x": 1, "y": 2}}, {"a": Pair(0, 0)}),
        ({"a": np.ones(3), "b": jnp.ones(2)}, {"a": np.zeros(9), "b": 0}),
        ({"a": np.ones(3), "b": jnp.ones(2)}, {"a": None, "b": ...}),
        ({"a": np.ones(3)}, {"a": np.zeros(3, np.int32)}),
    ],
    ids=str,
)
def test_an_item_of_pytree_restore_gives_only_the_structure(ocp, tmp_path, saved, target):
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "a", saved)
    restored = checkpointer.restore(tmp_path / "a", item=target)
    assert jax.tree.structure(restored) is not None
    assert jax.tree.structure(_shell(restored)) == jax.tree.structure(_shell(target, restored))
    if "b" in saved and target["a"] is not None:
        assert restored["a"].shape == (3,)
        assert isinstance(restored["b"], jax.Array)
    if target["a"] is None:
        assert restored == {"a": None, "b": ...}
    if saved.get("a") is not None and isinstance(saved["a"], np.ndarray) and len(saved) == 1:
        assert restored["a"].dtype == np.float64


def _shell(tree, restored=None):
    """The containers alone; leaves and None are 0, as Orbax puts None where it stored one."""
    return jax.tree.map(lambda _: 0, tree, is_leaf=lambda x: x is None)


@pytest.mark.parametrize(
    ("saved", "target"),
    [
        ({"a": 1, "b": {"c": 2}}, {"a": 0}),
        ({"a": 1, "b": {"c": 2}}, {"a": 0, "b": {"c": 0}, "x": 1}),
        ({"a": 1}, {"a": 0, "x": None}),
        ({"a": 1, "n": None}, {"a": 0}),
        ({"a": (1, 2)}, {"a": {"0": 0, "1": 0}}),
        ({"a": {"0": 1, "1": 2}}, {"a": (0, 0)}),
    ],
    ids=str,
)
@pytest.mark.parametrize("door", ["pytree", "standard"])
def test_another_structure_is_a_value_error(ocp, tmp_path, saved, target, door):
    handler = ocp.PyTreeCheckpointHandler() if door == "pytree" else ocp.StandardCheckpointHandler()
    checkpointer = ocp.Checkpointer(handler)
    save = ocp.args.PyTreeSave if door == "pytree" else ocp.args.StandardSave
    restore = ocp.args.PyTreeRestore if door == "pytree" else ocp.args.StandardRestore
    checkpointer.save(tmp_path / "a", args=save(saved))
    with pytest.raises(ValueError, match="match|mismatch"):
        checkpointer.restore(tmp_path / "a", args=restore(target))


def test_standard_restore_takes_type_dtype_and_shape_from_the_target(ocp, tmp_path):
    saved = {"a": jnp.ones(3), "b": np.arange(4.0), "i": 1, "f": 2.5}
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "a", saved)
    wait(checkpointer)
    target = {
        "a": jax.ShapeDtypeStruct((3,), jnp.bfloat16),
        "b": jnp.zeros(4, jnp.int32),
        "i": 0.0,
        "f": 0,
    }
    assert kinds(checkpointer.restore(tmp_path / "a", target)) == kinds(
        {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.arange(4), "i": 1.0, "f": 2}
    )
    numpy_target = {**saved, "b": np.zeros(4, np.int32), "i": np.zeros(()), "f": jnp.zeros(())}
    restored = checkpointer.restore(tmp_path / "a", numpy_target)
    assert restored["b"].dtype == np.int32 and isinstance(restored["b"], np.ndarray)
    assert isinstance(restored["i"], np.ndarray) and isinstance(restored["f"], jax.Array)


def test_a_cast_at_restore_truncates_as_numpy_does(ocp, tmp_path):
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "a", {"x": np.array([1.9, -2.9, 300.0])})
    wait(checkpointer)
    restored = checkpointer.restore(tmp_path / "a", {"x": np.zeros(3, np.int32)})
    assert restored["x"].tolist() == [1, -2, 300]


def test_a_jax_target_of_another_shape_is_a_value_error(ocp, tmp_path):
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "a", {"x": jnp.ones(3)})
    wait(checkpointer)
    with pytest.raises(ValueError, match="shape"):
        checkpointer.restore(tmp_path / "a", {"x": jnp.zeros(4)})


def test_strict_false_pads_and_truncates_jax_targets(ocp, tmp_path):
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "a", {"x": jnp.ones(3), "y": jnp.arange(6.0).reshape(2, 3)})
    wait(checkpointer)
    target = {"x": jnp.zeros(5), "y": jnp.zeros((1, 4))}
    restored = checkpointer.restore(tmp_path / "a", target, strict=False)
    assert restored["x"].tolist() == [1, 1, 1, 0, 0]
    assert restored["y"].tolist() == [[0, 1, 2, 0]]


def test_restore_args_say_type_dtype_and_sharding_of_each_leaf(ocp, tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    tree = {"a": jnp.arange(8.0), "b": np.arange(8.0), "c": 3, "d": np.arange(8.0)}
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "a", args=ocp.args.PyTreeSave(tree))
        restored = checkpointer.restore(
            tmp_path / "a",
            args=ocp.args.PyTreeRestore(
                restore_args={
                    "a": ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.int32),
                    "b": ocp.ArrayRestoreArgs(sharding=sharding, dtype=jnp.bfloat16),
                    "c": ocp.RestoreArgs(restore_type=float),
                    "d": ocp.ArrayRestoreArgs(
                        mesh=mesh,
                        mesh_axes=jax.sharding.PartitionSpec("x"),
                        global_shape=(12,),
                        strict=False,
                    ),
                }
            ),
        )
    assert isinstance(restored["a"], np.ndarray) and restored["a"].dtype == np.int32
    assert restored["b"].sharding == sharding and restored["b"].dtype == jnp.bfloat16
    assert restored["b"].tolist() == list(range(8))
    assert restored["c"] == 3.0 and type(restored["c"]) is float
    assert restored["d"].tolist() == [*range(8), 0, 0, 0, 0]
    assert restored["d"].sharding == sharding


def test_a_global_shape_that_is_not_the_stored_one_is_an_error_while_strict(ocp, tmp_path):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "a", {"x": jnp.ones(3)})
    args = {"x": ocp.ArrayRestoreArgs(sharding=sharding, global_shape=(4,))}
    with pytest.raises(ValueError, match="shape"):
        checkpointer.restore(tmp_path / "a", restore_args=args)


def test_a_sharded_array_restores_to_any_other_mesh(ocp, tmp_path):
    devices = np.array(jax.devices()[:8])
    rows = jax.sharding.NamedSharding(
        jax.sharding.Mesh(devices.reshape(8), ("x",)), jax.sharding.PartitionSpec("x")
    )
    grid = jax.sharding.NamedSharding(
        jax.sharding.Mesh(devices.reshape(2, 4), ("a", "b")), jax.sharding.PartitionSpec("b", "a")
    )
    value = np.arange(64.0).reshape(8, 8)
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "a", {"x": jax.device_put(value, rows)})
    wait(checkpointer)
    target = {"x": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=grid)}
    restored = checkpointer.restore(tmp_path / "a", target)
    assert restored["x"].sharding == grid
    np.testing.assert_array_equal(np.asarray(restored["x"]), value)


def test_construct_restore_args_follows_a_target(ocp, tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    array = jax.device_put(jnp.zeros(8), sharding)
    target = {"a": array, "b": np.zeros(3, np.int8), "c": 1, "t": "x"}
    args = ocp.checkpoint_utils.construct_restore_args(target)
    assert (args["a"].sharding, args["a"].global_shape, args["a"].dtype) == (
        sharding,
        (8,),
        jnp.float32,
    )
    assert args["a"].restore_type is jax.Array
    assert args["b"].restore_type is np.ndarray and args["b"].dtype == np.int8
    assert args["c"].restore_type is int and args["t"].restore_type is str
    unset = ocp.checkpoint_utils.construct_restore_args(target, set_global_shape=False)
    assert unset["a"].global_shape is None
    other = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    given = ocp.checkpoint_utils.construct_restore_args(
        target, {"a": other, "b": None, "c": None, "t": None} if ocp.__name__ != "orbax.checkpoint"
        else {"a": other, "b": other, "c": other, "t": other}
    )
    assert given["a"].sharding == other


def test_construct_restore_args_of_arrays_and_metadata_restores(ocp, tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "a", args=ocp.args.PyTreeSave({"a": jnp.arange(4.0), "n": 2}))
        target = {"a": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharding), "n": 0}
        args = ocp.checkpoint_utils.construct_restore_args(target)
        restored = checkpointer.restore(
            tmp_path / "a", args=ocp.args.PyTreeRestore(item=target, restore_args=args)
        )
        assert restored["a"].sharding == sharding and restored["n"] == 2
        described = checkpointer.metadata(tmp_path / "a").item_metadata
        plain = ocp.checkpoint_utils.construct_restore_args(
            jax.tree.map(lambda leaf: leaf, dict(described.tree))
        )
        assert plain["a"].dtype == jnp.float32


def test_partial_restore_takes_what_the_item_names(ocp, tmp_path):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "a", args=ocp.args.PyTreeSave(state()))
        restored = checkpointer.restore(
            tmp_path / "a",
            args=ocp.args.PyTreeRestore(
                item={"params": {"b": 0}, "step": 0}, partial_restore=True
            ),
        )
    assert restored["params"]["b"].tolist() == [0, 1, 2, 3] and restored["step"] == 7
    assert set(restored) == {"params", "step"} and set(restored["params"]) == {"b"}


def test_a_placeholder_skips_a_leaf(ocp, tmp_path):
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "a", {"a": jnp.ones(3), "b": {"c": 1}})
    restored = checkpointer.restore(tmp_path / "a", item={"a": ..., "b": {"c": 0}})
    assert restored == {"a": ..., "b": {"c": 1}}
    assert ocp.PLACEHOLDER is ...


def test_save_args_cast_and_choose_chunks(ocp, tmp_path):
    tree = {"a": jnp.arange(64.0).reshape(8, 8), "b": np.arange(4.0)}
    args = {
        "a": ocp.SaveArgs(dtype=np.dtype(np.float16), chunk_byte_size=64),
        "b": ocp.SaveArgs(),
    }
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "a", tree, save_args=args)
    restored = checkpointer.restore(tmp_path / "a")
    assert restored["a"].dtype == np.float16 and restored["b"].dtype == np.float64
    np.testing.assert_array_equal(np.asarray(restored["a"]), tree["a"])
    described = checkpointer.metadata(tmp_path / "a").item_metadata.tree["a"]
    assert np.prod(described.storage.chunk_shape) * 2 <= 64


def test_metadata_describes_without_reading(ocp, tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", state(), custom_metadata={"seed": 1})
        wait(checkpointer)
        found = checkpointer.metadata(tmp_path / "a")
    assert found.custom_metadata == {"seed": 1}
    assert found.commit_timestamp_nsecs > found.init_timestamp_nsecs > 0
    tree = found.item_metadata.tree
    assert tree["params"]["w"].shape == (2, 3) and tree["params"]["w"].dtype == np.float32
    assert found.item_metadata["params"]["b"].dtype == np.int32
    assert "params" in found.item_metadata
    assert type(tree["step"]).__name__ == "ScalarMetadata"
    assert [leaf.shape for leaf in tree["layers"]] == [(3,), (2, 2)]
    assert isinstance(tree["pair"], list)
    shapes = jax.tree.map(lambda leaf: leaf.shape, found.item_metadata)
    assert shapes["params"]["w"] == (2, 3)


def test_custom_metadata_of_save_args_is_the_items(ocp, tmp_path):
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        args = ocp.args.StandardSave({"a": 1}, custom_metadata={"loss": 0.5})
        checkpointer.save(tmp_path / "a", args=args, custom_metadata={"host": "h"})
        found = checkpointer.metadata(tmp_path / "a")
    assert found.item_metadata.custom_metadata == {"loss": 0.5}
    assert found.custom_metadata == {"host": "h"}


def test_custom_metadata_that_is_not_json_is_a_type_error(ocp, tmp_path):
    with pytest.raises(TypeError):
        ocp.PyTreeCheckpointer().save(tmp_path / "a", {"a": 1}, custom_metadata={"x": object()})


def test_an_existing_path_is_a_value_error_unless_forced(ocp, tmp_path):
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "a", {"x": 1})
    with pytest.raises(ValueError, match="already exists"):
        checkpointer.save(tmp_path / "a", {"x": 2})
    assert checkpointer.restore(tmp_path / "a") == {"x": 1}
    checkpointer.save(tmp_path / "a", {"x": 2}, force=True)
    assert checkpointer.restore(tmp_path / "a") == {"x": 2}


def test_a_missing_path_is_a_file_not_found_error(ocp, tmp_path):
    with pytest.raises(FileNotFoundError, match="not found"):
        ocp.PyTreeCheckpointer().restore(tmp_path / "none")


def test_an_async_save_returns_first_and_what_changes_afterwards_is_not_saved(ocp, tmp_path):
    array = np.arange(1000.0)
    jarray = jnp.arange(1000.0)
    checkpointer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
    checkpointer.save(tmp_path / "a", args=ocp.args.StandardSave({"n": array, "j": jarray}))
    array[:] = -1
    jarray.delete()
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "a")
    assert restored["n"].tolist() == list(range(1000))
    assert restored["j"].tolist() == list(range(1000))
    checkpointer.close()


def test_a_restore_waits_for_the_save_before_it(ocp, tmp_path):
    with ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        for step in range(3):
            checkpointer.save(tmp_path / str(step), args=ocp.args.PyTreeSave({"step": step}))
        assert checkpointer.restore(tmp_path / "2") == {"step": 2}
        assert checkpointer.restore(tmp_path / "0") == {"step": 0}


@pytest.mark.parametrize("seconds", [-1, -0.5])
def test_a_timeout_that_is_not_positive_is_a_value_error(ocp, seconds):
    with pytest.raises(ValueError, match="Timeout must be positive"):
        ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), timeout_secs=seconds)


def test_the_callback_runs_after_an_async_save(ocp, tmp_path):
    called = []
    options = ocp.AsyncOptions(post_finalization_callback=lambda: called.append(1))
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.AsyncCheckpointer(handler, async_options=options) as checkpointer:
        checkpointer.save(tmp_path / "a", args=ocp.args.PyTreeSave({"a": 1}))
        checkpointer.wait_until_finished()
    assert called == [1]


def test_composite_saves_and_restores_items_by_name(ocp, tmp_path):
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            tmp_path / "a",
            args=ocp.args.Composite(
                state=ocp.args.StandardSave({"a": jnp.ones(2)}),
                extra=ocp.args.JsonSave({"lr": 0.1, "nested": [1, None, "x"], "nan": float("nan")}),
                one=ocp.args.ArraySave(np.arange(3)),
            ),
        )
        restored = checkpointer.restore(
            tmp_path / "a",
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore({"a": jnp.zeros(2)}),
                extra=ocp.args.JsonRestore(),
                one=ocp.args.ArrayRestore(),
            ),
        )
        assert restored.state["a"].tolist() == [1, 1] and restored["one"].tolist() == [0, 1, 2]
        assert restored.extra["nested"] == [1, None, "x"] and np.isnan(restored.extra["nan"])
        assert set(dict(restored.items())) == {"state", "extra", "one"}
        assert "extra" in restored and "other" not in restored
        subset = checkpointer.restore(
            tmp_path / "a", args=ocp.args.Composite(extra=ocp.args.JsonRestore())
        )
        assert set(subset.keys()) == {"extra"}
        with pytest.raises(KeyError, match="Available items"):
            checkpointer.restore(
                tmp_path / "a", args=ocp.args.Composite(none=ocp.args.JsonRestore())
            )


def test_a_fresh_composite_handler_restores_all_items_as_saved(ocp, tmp_path):
    args = ocp.args.Composite(
        state=ocp.args.StandardSave({"a": np.ones(2)}), extra=ocp.args.JsonSave({"lr": 0.1})
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "a", args=args)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(tmp_path / "a")
        found = checkpointer.metadata(tmp_path / "a")
    assert restored.extra == {"lr": 0.1} and restored.state["a"].tolist() == [1, 1]
    assert set(found.item_handlers) == {"state", "extra"}
    assert found.item_metadata["state"]["a"].shape == (2,)


def test_composite_is_an_immutable_mapping(ocp):
    composite = ocp.args.Composite(a=1, b=2)
    assert composite.a == composite["a"] == 1 and len(composite) == 2
    assert dict(composite) == {"a": 1, "b": 2}
    assert composite.get("zzz") is None
    with pytest.raises(KeyError):
        composite["zzz"]
    with pytest.raises((KeyError, AttributeError)):
        composite.zzz  # noqa: B018
    with pytest.raises(ValueError):
        composite.a = 2
    with pytest.raises(ValueError):
        ocp.args.Composite(__x=1)
    assert dict((composite | ocp.args.Composite(b=3)).items()) == {"a": 1, "b": 3}


@pytest.mark.parametrize("value", [np.arange(6).reshape(2, 3), 5, 2.5, np.float32(1.5)], ids=repr)
def test_array_handler_saves_one_array_or_number(ocp, tmp_path, value):
    with ocp.Checkpointer(ocp.ArrayCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "a", args=ocp.args.ArraySave(value))
        restored = checkpointer.restore(tmp_path / "a", args=ocp.args.ArrayRestore())
    np.testing.assert_array_equal(restored, value)
    assert isinstance(restored, np.ndarray) == isinstance(value, np.ndarray)


def test_array_handler_refuses_text(ocp, tmp_path):
    with ocp.Checkpointer(ocp.ArrayCheckpointHandler()) as checkpointer:
        with pytest.raises(TypeError, match="Unsupported type"):
            checkpointer.save(tmp_path / "a", args=ocp.args.ArraySave("text"))


def test_json_handler_takes_json_and_nothing_else(ocp, tmp_path):
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "a", args=ocp.args.JsonSave({"a": (1, 2), 3: [True]}))
        assert checkpointer.restore(tmp_path / "a") == {"a": [1, 2], "3": [True]}
        checkpointer.save(tmp_path / "legacy", {"b": 1})
        assert checkpointer.restore(tmp_path / "legacy") == {"b": 1}
        with pytest.raises(TypeError):
            checkpointer.save(tmp_path / "b", args=ocp.args.JsonSave({"a": np.float32(1)}))


@pytest.mark.parametrize("typed", [True, False])
def test_a_jax_random_key_is_an_item(ocp, tmp_path, typed):
    key = jax.random.key(3) if typed else jax.random.PRNGKey(3)
    with ocp.Checkpointer(ocp.JaxRandomKeyCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "a", args=ocp.args.JaxRandomKeySave(key))
        restored = checkpointer.restore(tmp_path / "a", args=ocp.args.JaxRandomKeyRestore())
    assert restored.dtype == key.dtype
    assert jax.random.uniform(restored) == jax.random.uniform(key)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_numpy_generators_state_is_an_item(ocp, tmp_path, legacy):
    saved = np.random.RandomState(5).get_state(legacy=legacy)
    with ocp.Checkpointer(ocp.NumpyRandomKeyCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "a", args=ocp.args.NumpyRandomKeySave(saved))
        restored = checkpointer.restore(tmp_path / "a", args=ocp.args.NumpyRandomKeyRestore())
    again, first = np.random.RandomState(), np.random.RandomState(5)
    again.set_state(restored)
    assert again.rand() == first.rand()


def test_typed_keys_in_a_tree_come_back_typed(ocp, tmp_path):
    tree = {"rng": jax.random.key(1), "rbg": jax.random.key(2, impl="rbg"), "w": jnp.ones(2)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", tree)
        wait(checkpointer)
        assert kinds(checkpointer.restore(tmp_path / "a")) == kinds(tree)
        assert kinds(checkpointer.restore(tmp_path / "a", tree)) == kinds(tree)


def test_any_handler_goes_with_any_checkpointer(ocp, tmp_path):
    with ocp.AsyncCheckpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "a", args=ocp.args.JsonSave({"a": 1}))
        checkpointer.wait_until_finished()
        assert checkpointer.restore(tmp_path / "a") == {"a": 1}
    with ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        args = ocp.args.Composite(x=ocp.args.StandardSave({"a": 1}))
        checkpointer.save(tmp_path / "b", args=args)
        checkpointer.wait_until_finished()
        assert checkpointer.restore(tmp_path / "b").x == {"a": 1}


def test_flat_dicts_of_trees(ocp):
    tree = {"foo": 1, "bar": {"a": 2, "b": {}}, "list": [3, (4,)]}
    flat = ocp.tree.to_flat_dict(tree)
    assert flat == {("foo",): 1, ("bar", "a"): 2, ("list", "0"): 3, ("list", "1", "0"): 4}
    assert ocp.tree.to_flat_dict(tree, sep="/")["bar/a"] == 2
    kept = ocp.tree.to_flat_dict(tree, sep=".", keep_empty_nodes=True)
    assert kept["bar.b"] == {}
    assert ocp.tree.from_flat_dict(kept, target=tree, sep=".")["list"] == [3, (4,)]
    assert ocp.tree.from_flat_dict(flat)["bar"] == {"a": 2}
    assert ocp.tree.from_flat_dict({"a/b": 1, "a/c": 2}, sep="/") == {"a": {"b": 1, "c": 2}}
    assert ocp.tree.serialize_tree({"a": (1, Pair(2, 3))}) == {"a": [1, {"x": 2, "y": 3}]}
    assert ocp.tree.is_flat_dict({"a": 1}) and not ocp.tree.is_flat_dict(tree)


def test_an_abstract_array_has_shape_dtype_and_sharding(ocp):
    array = jnp.ones((2, 3))
    struct = ocp.tree.to_shape_dtype_struct(array)
    assert (struct.shape, struct.dtype, struct.sharding) == ((2, 3), jnp.float32, array.sharding)
    assert ocp.tree.to_shape_dtype_struct(np.ones(2)).shape == (2,)
    assert ocp.tree.to_shape_dtype_struct(array, dtype=jnp.bfloat16).dtype == jnp.bfloat16
    assert ocp.utils.to_shape_dtype_struct(5) == 5


def test_the_registry_of_handlers(ocp):
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add("state", ocp.args.StandardSave)
    registry.add("state", ocp.args.StandardRestore, ocp.handlers.StandardCheckpointHandler())
    registry.add(None, ocp.args.JsonSave, ocp.handlers.JsonCheckpointHandler)
    assert isinstance(registry.get("state", ocp.args.StandardSave), ocp.StandardCheckpointHandler)
    assert registry.has(None, ocp.args.JsonSave) and not registry.has("x", ocp.args.JsonSave)
    with pytest.raises(ValueError, match="already exists"):
        registry.add("state", ocp.args.StandardSave)
    with pytest.raises(KeyError):
        registry.get("state", ocp.args.JsonSave)
    copied = ocp.handlers.DefaultCheckpointHandlerRegistry(registry)
    assert set(copied.get_all_entries()) == set(registry.get_all_entries())


def test_args_know_their_handlers(ocp):
    assert ocp.args.get_registered_handler_cls(ocp.args.JsonSave) is ocp.JsonCheckpointHandler
    assert ocp.args.get_registered_args_cls(ocp.StandardCheckpointHandler) == (
        ocp.args.StandardSave,
        ocp.args.StandardRestore,
    )
    assert ocp.args.has_registered_args(ocp.PyTreeCheckpointHandler())
    with pytest.raises(ValueError):
        ocp.args.register_with_handler(ocp.JsonCheckpointHandler)


def test_erase_and_create_empty_and_other_test_helpers(ocp, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "file").write_text("a")
    path = ocp.test_utils.erase_and_create_empty(tmp_path / "x")
    assert list((tmp_path / "x").iterdir()) == [] and (path / "sub").name == "sub"
    doubled = ocp.test_utils.apply_function({"a": 1, "b": [2]}, lambda x: x * 2)
    assert doubled == {"a": 2, "b": [4]}
