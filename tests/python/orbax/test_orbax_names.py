"""Smaller public names: what they do is what Orbax's do."""

from __future__ import annotations

import concurrent.futures
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def test_maximal_shardings_divide_what_can_be_divided(ocp):
    shapes = {"a": (8, 16), "b": (6, 4), "c": (), "d": (3,), "e": (16, 16), "f": (12, 5)}
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    divided = ocp.arrays.construct_maximal_shardings(tree)
    parts = {name: divided[name].shard_shape(shape) for name, shape in shapes.items()}
    assert parts == {"a": (8, 2), "b": (6, 4), "c": (), "d": (3,), "e": (16, 2), "f": (3, 5)}
    assert divided["a"].spec == jax.sharding.PartitionSpec(None, "a")
    one = ocp.arrays.construct_maximal_shardings(tree, devices=jax.devices()[:1])
    assert all(len(sharding.device_set) == 1 for sharding in jax.tree.leaves(one))
    restored = ocp.arrays.to_shape_dtype_struct(jnp.ones(3))
    assert restored.shape == (3,)


def test_questions_about_processes_are_answered_by_one_too(ocp):
    multihost = ocp.multihost
    assert multihost.coordination_timeout() == 300
    assert multihost.unique_barrier_key("a", prefix="p", suffix="s") == "p_a.s"
    assert multihost.unique_barrier_key("a") == "a"
    assert multihost.process_index_from_device(jax.devices()[0]) == 0
    assert multihost.unique_processes_from_devices(np.array(jax.devices())) == {0}
    assert not multihost.is_jax_distributed_client_initialized()
    assert multihost.should_skip_process_sync() and multihost.should_skip_process_sync({0})
    assert multihost.get_barrier_sync_fn()(key="k", timeout_ms=1) is None
    with pytest.raises(ValueError, match="jax.distributed.initialize"):
        multihost.get_jax_distributed_client()
    assert not multihost.is_pathways_backend()


def test_texts_that_stand_for_leaves(ocp):
    utils = ocp.utils
    assert utils.leaf_placeholder("a") == "PLACEHOLDER://a"
    assert utils.leaf_is_placeholder("PLACEHOLDER://a") and not utils.leaf_is_placeholder("a")
    assert not utils.leaf_is_placeholder(3)
    assert utils.name_from_leaf_placeholder("PLACEHOLDER://a/b") == "a/b"
    with pytest.raises(ValueError):
        utils.name_from_leaf_placeholder("a")
    assert utils.all_leaves_are_placeholders({"a": "PLACEHOLDER://a"})
    assert not utils.all_leaves_are_placeholders({"a": "PLACEHOLDER://a", "b": 1})


def test_a_tree_is_made_of_its_flat_form(ocp):
    tree = {"a": 1, "b": [2, {"c": 3}], "d": (4, 5)}
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    built = ocp.utils.from_flattened_with_keypath(flat)
    assert built == {"a": 1, "b": [2, {"c": 3}], "d": [4, 5]}
    assert ocp.utils.from_flattened_with_keypath([((), 7)]) == 7
    many = list(range(12))
    flat, _ = jax.tree_util.tree_flatten_with_path(many)
    assert ocp.utils.from_flattened_with_keypath(flat) == many
    with pytest.raises(ValueError):
        ocp.utils.from_flattened_with_keypath([])


def test_whether_a_checkpointer_saves_in_the_background(ocp):
    is_async = ocp.checkpoint_manager.is_async_checkpointer
    assert is_async(ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler()))
    assert not is_async(ocp.PyTreeCheckpointer())


def test_step_metadata_by_path(ocp, tmp_path):
    ocp.PyTreeCheckpointer().save(tmp_path / "a", {"w": np.ones(1)}, custom_metadata={"k": 1})
    found = ocp.metadata.get_step_metadata(tmp_path / "a")
    assert found.custom_metadata == {"k": 1} and found.commit_timestamp_nsecs > 0


def test_the_trees_of_tests_are_orbax_s(ours, theirs):
    from absl.testing import absltest

    case = absltest.TestCase()
    for add in (0, 3):
        mine, real = ours.test_utils.setup_pytree(add), theirs.test_utils.setup_pytree(add)
        theirs.test_utils.assert_tree_equal(case, real, mine)
    mine, meshes, axes = ours.test_utils.setup_sharded_pytree()
    real, real_meshes, real_axes = theirs.test_utils.setup_sharded_pytree()
    theirs.test_utils.assert_tree_equal(case, real, mine)
    assert jax.tree.map(lambda a, b: a.sharding == b.sharding, mine, real) == {
        "a": True, "b": True, "c": {"a": True, "e": True}
    }
    assert (meshes, axes) == (real_meshes, real_axes)


def test_a_type_has_another_handler_within_a_block(ocp):
    before = ocp.type_handlers.get_type_handler(int)
    other = ocp.type_handlers.ScalarHandler()
    with ocp.test_utils.register_type_handler(int, other, lambda kind: issubclass(kind, int)):
        assert ocp.type_handlers.get_type_handler(int) is other
    assert type(ocp.type_handlers.get_type_handler(int)) is type(before)


def test_the_future_of_a_handler_that_fails_fails_the_save(ocp, tmp_path):
    """Of an asynchronous handler `async_save` is called, and nothing it begun is left unheard."""
    executor = concurrent.futures.ThreadPoolExecutor(1)
    handler = ocp.test_utils.ErrorCheckpointHandler(ocp.PyTreeCheckpointHandler(), executor)
    checkpointer = ocp.AsyncCheckpointer(handler)
    args = ocp.test_utils.ErrorSaveArgs({"a": np.ones(2)})
    with pytest.raises(SystemError):
        checkpointer.save(tmp_path / "a", args=args)
        checkpointer.wait_until_finished()
    assert not (tmp_path / "a").exists()


def test_a_subclass_that_overrides_async_save_is_called(ocp, tmp_path):
    class Doubling(ocp.PyTreeCheckpointHandler):
        async def async_save(self, directory, item=None, save_args=None, args=None):
            doubled = jax.tree.map(lambda leaf: 2 * leaf, args.item)
            return await super().async_save(directory, args=ocp.args.PyTreeSave(doubled))

    @ocp.args.register_with_handler(Doubling, for_save=True)
    class DoublingSave(ocp.args.PyTreeSave):
        pass

    @ocp.args.register_with_handler(Doubling, for_restore=True)
    class DoublingRestore(ocp.args.PyTreeRestore):
        pass

    checkpointer = ocp.AsyncCheckpointer(Doubling())
    checkpointer.save(tmp_path / "a", args=DoublingSave({"a": np.ones(2)}))
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "a", args=DoublingRestore())
    assert restored["a"].tolist() == [2, 2]


@pytest.mark.parametrize("name", ["checkpoint_manager", "replicator_checkpoint_manager"])
def test_emergency_modules_can_be_imported_and_their_managers_refuse(ours, name):
    package = f"{ours.__name__}.checkpoint.experimental.emergency"
    module = importlib.import_module(f"{package}.{name}")
    managers = [n for n in module.__all__ if n.endswith("Manager")]
    for manager in managers:
        with pytest.raises(Exception, match="use CheckpointManager"):
            getattr(module, manager)("dir")
    if name == "checkpoint_manager":
        options = module.CheckpointManagerOptions(local=module.LocalCheckpointOptions())
        assert options.persistent.save_interval_steps == 1000


def test_emergency_options_are_orbax_s(ours, theirs):
    import dataclasses

    path = "experimental.emergency.checkpoint_manager"
    mine = importlib.import_module(f"{ours.__name__}.checkpoint.{path}")
    real = importlib.import_module(f"orbax.checkpoint.{path}")
    for name in mine.__all__:
        if name.endswith("Options"):
            fields = [{f.name for f in dataclasses.fields(getattr(m, name))} for m in (mine, real)]
            assert fields[0] == fields[1], name
