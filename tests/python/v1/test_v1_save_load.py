"""`save` and `load` and their kin, for one pytree."""

from __future__ import annotations

import collections
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equality import assert_same

Struct = jax.ShapeDtypeStruct


def test_a_tree_comes_back_as_saved(ocp, tmp_path, tree):
    ocp.save(tmp_path / "c", tree)
    assert_same(ocp.load(tmp_path / "c"), tree)


def test_the_abstract_tree_says_type_and_dtype(ocp, tmp_path, tree):
    ocp.save(tmp_path / "c", tree)
    abstract = {
        "params": {"w": Struct((3, 4), jnp.bfloat16), "b": np.zeros(4, np.int32)},
        "step": 0.0,
        "rate": 0,
        "name": "",
    }
    loaded = ocp.load(tmp_path / "c", abstract)
    assert_same(
        loaded,
        {
            "params": {
                "w": tree["params"]["w"].astype(jnp.bfloat16),
                "b": np.arange(4, dtype=np.int32),
            },
            "step": 7.0,
            "rate": 0,
            "name": "run",
        },
    )


def test_a_jax_array_loads_as_numpy_where_the_abstract_leaf_is_numpy(ocp, tmp_path):
    ocp.save(tmp_path / "c", {"w": jnp.ones(3)})
    assert_same(ocp.load(tmp_path / "c", {"w": np.zeros(3, np.float32)}), {"w": np.ones(3, "f4")})


def test_a_number_loads_as_an_array_where_one_is_asked_for(ocp, tmp_path):
    ocp.save(tmp_path / "c", {"step": 3})
    loaded = ocp.load(tmp_path / "c", {"step": np.zeros((), np.int32)})["step"]
    assert loaded.dtype == np.int32 and loaded == 3


def test_types_are_abstract_leaves_too(ocp, tmp_path):
    ocp.save(tmp_path / "c", {"w": jnp.ones(3), "n": 3, "s": "x"})
    loaded = ocp.load(tmp_path / "c", {"w": np.ndarray, "n": float, "s": str})
    assert_same(loaded, {"w": np.ones(3, "f4"), "n": 3.0, "s": "x"})


def test_a_placeholder_is_not_read(ocp, tmp_path):
    ocp.save(tmp_path / "c", {"a": np.ones(3), "b": np.zeros(2)})
    loaded = ocp.load(tmp_path / "c", {"a": ocp.PLACEHOLDER, "b": np.zeros(2)})
    assert loaded["a"] is ... and ocp.PLACEHOLDER is ...
    assert_same(loaded["b"], np.zeros(2))


def test_none_in_the_abstract_tree_skips_a_leaf(ocp, tmp_path):
    ocp.save(tmp_path / "c", {"a": np.ones(3), "b": np.zeros(2)})
    assert ocp.load(tmp_path / "c", {"a": None, "b": np.zeros(2)})["a"] is None


def test_metadata_is_an_abstract_tree(ocp, tmp_path, tree):
    ocp.save(tmp_path / "c", tree)
    metadata = ocp.metadata(tmp_path / "c")
    assert_same(ocp.load(tmp_path / "c", metadata), tree)
    assert_same(ocp.load(tmp_path / "c", metadata.metadata), tree)


def test_metadata_has_shapes_dtypes_and_what_was_said(ocp, tmp_path, tree):
    ocp.save(tmp_path / "c", tree, custom_metadata={"lr": 0.1})
    metadata = ocp.metadata(tmp_path / "c")
    w = metadata.metadata["params"]["w"]
    assert (w.shape, w.dtype) == ((3, 4), np.float32)
    assert metadata.metadata["params"]["b"].shape == (4,)
    assert metadata.metadata["step"] == 0 and metadata.metadata["rate"] == 0.0
    assert metadata.metadata["name"] == "string"
    assert metadata.custom_metadata == {"lr": 0.1}
    assert metadata.init_timestamp_nsecs <= metadata.commit_timestamp_nsecs
    assert metadata.init_timestamp <= metadata.commit_timestamp
    assert "CheckpointMetadata" in repr(metadata)


def test_the_path_is_taken_already(ocp, tmp_path):
    ocp.save(tmp_path / "c", {"a": 1})
    with pytest.raises(ValueError, match="already exists"):
        ocp.save(tmp_path / "c", {"a": 2})
    with pytest.raises(ValueError, match="already exists"):
        ocp.save_async(tmp_path / "c", {"a": 2})
    assert ocp.load(tmp_path / "c") == {"a": 1}


def test_overwrite_replaces_everything(ocp, tmp_path):
    ocp.save(tmp_path / "c", {"a": 1}, custom_metadata={"n": 1})
    ocp.save(tmp_path / "c", {"b": np.ones(2)}, overwrite=True)
    assert_same(ocp.load(tmp_path / "c"), {"b": np.ones(2)})


def test_a_failed_overwrite_leaves_the_old_checkpoint_unlike_orbax(ours, tmp_path):
    ours.save(tmp_path / "c", {"a": 1})
    with pytest.raises(ValueError):
        ours.save(tmp_path / "c", {"a": 1, 1: 2, "1": 3}, overwrite=True)
    assert ours.load(tmp_path / "c") == {"a": 1}


def test_save_async_captures_what_the_arrays_held(ocp, tmp_path):
    host = np.arange(1000.0)
    device = jnp.arange(8.0)
    response = ocp.save_async(tmp_path / "c", {"host": host, "device": device})
    host[:] = -1
    device.delete()
    assert response.result() is None
    assert_same(
        ocp.load(tmp_path / "c"), {"host": np.arange(1000.0), "device": jnp.arange(8.0)}
    )


def test_on_complete_is_called_with_the_result(ocp, tmp_path):
    called = threading.Event()
    results = []
    response = ocp.save_async(tmp_path / "c", {"a": 1})
    response.on_complete(lambda result: (results.append(result), called.set()))
    response.result()
    assert called.wait(10) and results == [None]


def test_a_response_can_be_awaited(ours, tmp_path):
    import asyncio

    async def main():
        await ours.save_async(tmp_path / "c", {"a": 1})
        return await ours.load_async(tmp_path / "c")

    assert asyncio.run(main()) == {"a": 1}


def test_sync_calls_work_inside_a_running_loop(ocp, tmp_path):
    import asyncio

    async def main():
        ocp.save(tmp_path / "c", {"a": 1})
        return ocp.load(tmp_path / "c")

    assert asyncio.run(main()) == {"a": 1}


def test_load_async_works_unlike_orbax(ours, theirs, tmp_path, tree):
    ours.save(tmp_path / "c", tree)
    assert_same(ours.load_async(tmp_path / "c").result(timeout=30), tree)
    theirs.save(tmp_path / "real", tree)
    with pytest.raises(NotImplementedError):
        theirs.load_async(tmp_path / "real")


def test_load_async_raises_in_result(ours, tmp_path):
    ours.save(tmp_path / "c", {"a": np.ones(2)})
    response = ours.load_async(tmp_path / "c", {"a": np.ones(3)})
    with pytest.raises(ValueError, match="a: the stored shape"):
        response.result()
    assert isinstance(response.exception(), ValueError)


def test_a_result_that_takes_too_long_is_a_timeout(ours, tmp_path):
    from milepost.orbax.v1._operation import in_background

    go = threading.Event()
    response = in_background("waiting", lambda: go.wait(30))
    with pytest.raises(TimeoutError, match="it goes on"):
        response.result(timeout=0.01)
    go.set()
    assert response.result(timeout=30) is True


def test_a_checkpointable_name_names_the_item(ocp, tmp_path):
    ocp.save(tmp_path / "c", {"a": 1}, checkpointable_name="model")
    assert (tmp_path / "c" / "model").is_dir()
    assert ocp.load(tmp_path / "c") == {"a": 1}
    assert ocp.load(tmp_path / "c", checkpointable_name="model") == {"a": 1}
    assert ocp.load(tmp_path / "c", checkpointable_name="AUTO") == {"a": 1}
    with pytest.raises(ocp.errors.InvalidLayoutError):
        ocp.load(tmp_path / "c", checkpointable_name="state")


def test_the_state_is_in_the_item_state(ocp, tmp_path):
    ocp.save(tmp_path / "c", {"a": 1})
    assert (tmp_path / "c" / "state").is_dir()


@pytest.mark.parametrize("name", ["", "metrics", "AUTO"])
def test_some_names_are_reserved(ocp, tmp_path, name):
    with pytest.raises(ValueError):
        ocp.save(tmp_path / "c", {"a": 1}, checkpointable_name=name)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", ["", "metrics"])
def test_some_names_cannot_be_loaded(ocp, tmp_path, name):
    ocp.save(tmp_path / "c", {"a": 1})
    with pytest.raises(ValueError):
        ocp.load(tmp_path / "c", checkpointable_name=name)


def test_a_differing_tree_is_a_value_error(ocp, tmp_path):
    ocp.save(tmp_path / "c", {"a": np.ones(2), "b": np.ones(3)})
    with pytest.raises(ValueError, match="b"):
        ocp.load(tmp_path / "c", {"a": np.ones(2)})
    with pytest.raises(ValueError, match="zz"):
        ocp.load(tmp_path / "c", {"a": np.ones(2), "b": np.ones(3), "zz": np.ones(1)})
    with pytest.raises(ValueError):
        ocp.load(tmp_path / "c", {"a": Struct((5,), np.float64), "b": np.ones(3)})


def test_all_differences_are_told_at_once_unlike_orbax(ours, tmp_path):
    import milepost as mp

    ours.save(tmp_path / "c", {"a": np.ones(2), "b": np.ones(3), "s": "x"})
    with pytest.raises(mp.TreeMismatch) as caught:
        ours.load(tmp_path / "c", {"a": np.ones(4), "c": 1, "s": np.ones(1)})
    assert {one.path for one in caught.value.mismatches} == {"a", "b", "c", "s"}


def test_numpy_shapes_are_checked_unlike_orbax(ours, theirs, tmp_path):
    for lib in (ours, theirs):
        lib.save(tmp_path / lib.__name__, {"a": np.ones(2)})
    assert theirs.load(tmp_path / theirs.__name__, {"a": np.ones(9)})["a"].shape == (2,)
    with pytest.raises(ValueError, match="a: the stored shape is"):
        ours.load(tmp_path / ours.__name__, {"a": np.ones(9)})


def test_a_leaf_that_describes_nothing_is_a_type_error(ocp, tmp_path):
    ocp.save(tmp_path / "c", {"a": 1})
    with pytest.raises(TypeError, match="Unsupported abstract leaf type"):
        ocp.load(tmp_path / "c", {"a": object()})


def test_a_leaf_that_cannot_be_stored_is_a_value_error(ocp, tmp_path):
    with pytest.raises(ValueError, match="Unsupported leaf type for saving"):
        ocp.save(tmp_path / "c", {"a": object()})
    assert not (tmp_path / "c").exists()


def test_a_bare_leaf_is_a_tree(ocp, tmp_path):
    ocp.save(tmp_path / "array", jnp.arange(3))
    ocp.save(tmp_path / "number", 3)
    assert_same(ocp.load(tmp_path / "array"), jnp.arange(3))
    assert ocp.load(tmp_path / "number") == 3
    assert_same(ocp.load(tmp_path / "array", np.zeros(3, np.int32)), np.arange(3, dtype=np.int32))


def test_without_an_abstract_tree_containers_are_dicts_and_lists(ocp, tmp_path):
    Point = collections.namedtuple("Point", "x y")
    tree = {"t": (np.ones(2), np.zeros(1)), "p": Point(1, 2.5), "n": None, "e": {}}
    ocp.save(tmp_path / "c", tree)
    assert_same(
        ocp.load(tmp_path / "c"),
        {"t": [np.ones(2), np.zeros(1)], "p": {"x": 1, "y": 2.5}, "n": None, "e": {}},
    )
    assert_same(ocp.load(tmp_path / "c", tree), tree)


def test_integer_keys_become_text_without_an_abstract_tree(ocp, tmp_path):
    ocp.save(tmp_path / "c", {1: np.ones(1), 20: np.zeros(2)})
    assert_same(ocp.load(tmp_path / "c"), {"1": np.ones(1), "20": np.zeros(2)})


def test_rich_types_keep_the_containers_unlike_orbax(ours, tmp_path):
    tree = {"t": (np.ones(2), [1]), 1: 2}
    ctx = ours.Context()
    ctx.pytree.saving.pytree_metadata_options.support_rich_types = True
    with ctx:
        ours.save(tmp_path / "c", tree)
    assert_same(ours.load(tmp_path / "c"), tree)
    assert isinstance(ours.metadata(tmp_path / "c").metadata["t"], tuple)


def test_what_orbax_refuses_is_saved(ours, theirs, tmp_path):
    refused = {
        "bytes": {"a": b"\x00abc"},
        "complex": {"a": 1 + 2j},
        "zero_size": {"a": np.zeros((0, 3)), "j": jnp.zeros((2, 0))},
        "empty": {},
        "mixed_keys": {"a": 1, 1: 2},
        "np_scalar": {"a": np.float32(1.5)},
    }
    for name, tree in refused.items():
        ours.save(tmp_path / name, tree)
        ctx = ours.Context()
        ctx.pytree.saving.pytree_metadata_options.support_rich_types = True
        with ctx:
            loaded = ours.load(tmp_path / name)
        if name == "np_scalar":
            assert loaded["a"] == 1.5 and loaded["a"].dtype == np.float32
        else:
            assert_same(loaded, tree)
        with pytest.raises(ValueError):
            theirs.save(tmp_path / f"real_{name}", tree)


def test_keys_with_dots_do_not_collide_unlike_orbax(ours, tmp_path):
    tree = {"a.b": np.ones(2), "a": {"b": np.zeros(2)}}
    ours.save(tmp_path / "c", tree)
    assert_same(ours.load(tmp_path / "c"), tree)


def test_typed_prng_keys_come_back(ours, tmp_path):
    tree = {"key": jax.random.key(3), "keys": jax.random.split(jax.random.key(1), 4)}
    ours.save(tmp_path / "c", tree)
    loaded = ours.load(tmp_path / "c")
    again = ours.load(tmp_path / "c", jax.eval_shape(lambda: tree))
    for one in (loaded, again):
        assert jax.random.key_impl(one["key"]) == jax.random.key_impl(tree["key"])
        np.testing.assert_array_equal(
            jax.random.key_data(one["keys"]), jax.random.key_data(tree["keys"])
        )


def test_registered_nodes_load_as_what_they_were(ocp, tmp_path):
    import optax

    params = {"w": jnp.ones((2, 2))}
    state = optax.adam(1e-3).init(params)
    ocp.save(tmp_path / "c", {"params": params, "opt": state})
    abstract = jax.eval_shape(lambda: {"params": params, "opt": state})
    loaded = ocp.load(tmp_path / "c", abstract)
    assert type(loaded["opt"][0]) is type(state[0])
    assert_same(dict(loaded["opt"][0].mu), dict(state[0].mu))


def test_a_relative_path_is_taken_from_here_unlike_orbax(ours, theirs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours.save("here/c", {"a": 1})
    assert ours.load("here/c") == {"a": 1} and (tmp_path / "here" / "c").is_dir()
    with pytest.raises(ValueError, match="absolute"):
        theirs.save("here/real", {"a": np.ones(2)})


def test_a_missing_path_is_an_invalid_layout(ocp, tmp_path):
    with pytest.raises(ocp.errors.InvalidLayoutError, match="Could not recognize the checkpoint"):
        ocp.load(tmp_path / "nothing")
    with pytest.raises(ocp.errors.InvalidLayoutError):
        ocp.metadata(tmp_path / "nothing")
    with pytest.raises(ocp.errors.InvalidLayoutError):
        ocp.load_checkpointables(tmp_path / "nothing")


def test_a_missing_path_is_a_file_not_found_error_too(ours, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing is there"):
        ours.load(tmp_path / "nothing")


def test_other_things_are_an_invalid_layout(ocp, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    ocp.save(tmp_path / "c", {"a": 1})
    with ocp.training.Checkpointer(tmp_path / "run") as ckptr:
        ckptr.save(3, {"a": 1})
    for name in ("empty", "file", "run"):
        with pytest.raises(ocp.errors.InvalidLayoutError):
            ocp.load(tmp_path / name)


def test_the_error_says_what_is_there(ours, tmp_path):
    ours.save(tmp_path / "c", {"a": 1})
    with ours.training.Checkpointer(tmp_path / "run") as ckptr:
        ckptr.save(3, {"a": 1})
    with pytest.raises(ours.errors.InvalidLayoutError, match="root of a run with the steps 3"):
        ours.load(tmp_path / "run")
    with pytest.raises(ours.errors.InvalidLayoutError, match="item of a checkpoint"):
        ours.load(tmp_path / "c" / "state")


def test_is_orbax_checkpoint_tells_checkpoints_from_runs_and_items(ocp, tmp_path):
    ocp.save(tmp_path / "c", {"a": np.ones(2)})
    with ocp.training.Checkpointer(tmp_path / "run") as ckptr:
        ckptr.save(3, {"a": np.ones(2)})
    names = ("c", "run", "run/3", "none", "c/state")
    found = {name: ocp.is_orbax_checkpoint(tmp_path / name) for name in names}
    assert found == {"c": True, "run": False, "run/3": True, "none": False, "c/state": False}


def test_renamed_checkpoints_load(ocp, tmp_path):
    ocp.save(tmp_path / "c", {"a": np.ones(2)})
    os.rename(tmp_path / "c", tmp_path / "elsewhere")
    assert_same(ocp.load(tmp_path / "elsewhere"), {"a": np.ones(2)})


def test_a_flipped_byte_is_an_error_unlike_orbax(ours, tmp_path):
    import milepost as mp

    ours.save(tmp_path / "c", {"a": np.arange(5000.0)})
    chunk = next(p for p in (tmp_path / "c" / "state" / "a").iterdir() if p.name != "zarr.json")
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(mp.Corrupt, match="a"):
        ours.load(tmp_path / "c")


def test_the_old_names_work_and_warn(ocp, tmp_path):
    with pytest.warns(DeprecationWarning):
        ocp.save_pytree(tmp_path / "c", {"a": 1})
    with pytest.warns(DeprecationWarning):
        ocp.save_pytree_async(tmp_path / "d", {"a": 1}).result()
    with pytest.warns(DeprecationWarning):
        assert ocp.load_pytree(tmp_path / "c") == {"a": 1}
    with pytest.warns(DeprecationWarning):
        assert ocp.pytree_metadata(tmp_path / "c").metadata == {"a": 0}


def test_load_pytree_async_works(ours, tmp_path):
    ours.save(tmp_path / "c", {"a": 1})
    with pytest.warns(DeprecationWarning):
        assert ours.load_pytree_async(tmp_path / "c").result() == {"a": 1}


def test_shardings_are_kept_and_followed(ocp, tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("x", "y"))
    spec = jax.sharding.PartitionSpec
    rows = jax.sharding.NamedSharding(mesh, spec("x", None))
    both = jax.sharding.NamedSharding(mesh, spec("x", "y"))
    whole = jax.sharding.NamedSharding(mesh, spec())
    value = np.arange(32, dtype=np.float32).reshape(8, 4)
    tree = {"a": jax.device_put(value, rows), "b": jax.device_put(value, both)}
    ocp.save(tmp_path / "c", tree)
    loaded = ocp.load(tmp_path / "c")
    assert loaded["a"].sharding == rows and loaded["b"].sharding == both
    metadata = ocp.metadata(tmp_path / "c").metadata
    assert metadata["a"].sharding == rows
    moved = ocp.load(tmp_path / "c", {n: Struct((8, 4), "f4", sharding=whole) for n in tree})
    assert moved["a"].sharding == whole
    np.testing.assert_array_equal(moved["b"], value)


def test_the_wording_of_custom_metadata_that_is_no_dict(ours, tmp_path):
    with pytest.raises(TypeError, match="custom_metadata must be a dict"):
        ours.save(tmp_path / "c", {"a": 1}, custom_metadata=[1])


def test_a_leaf_that_the_engine_refuses_is_named(ours, tmp_path):
    import milepost as mp

    with pytest.raises(mp.Invalid, match="leaf=p/big"):
        ours.save(tmp_path / "c", {"p": {"big": 1 << 70}})
    deleted = jnp.ones(2)
    deleted.delete()
    with pytest.raises(mp.Invalid, match="leaf=p/0.*"):
        ours.save(tmp_path / "c", {"p": [deleted]})
    with pytest.raises(mp.Invalid, match="key of type float"):
        ours.save(tmp_path / "c", {1.5: 1})


def test_nnx_states_load_as_states(ocp, tmp_path):
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 4, rngs=rngs)

    graph, state = nnx.split(Model(nnx.Rngs(0)))
    ocp.save(tmp_path / "c", state)
    abstract = jax.eval_shape(lambda: nnx.state(Model(nnx.Rngs(0))))
    loaded = ocp.load(tmp_path / "c", abstract)
    assert isinstance(loaded, nnx.State)
    model = nnx.merge(graph, loaded)
    np.testing.assert_array_equal(
        model.linear.kernel[...], nnx.merge(graph, state).linear.kernel[...]
    )
    assert ocp.load(tmp_path / "c")["linear"]["kernel"]["value"].shape == (3, 4)


def test_train_states_load_as_train_states_unlike_orbax(ours, tmp_path):
    # Orbax looks for the recorded sharding of `step`, which was a number, and fails.
    import flax.linen as nn
    import optax
    from flax.training.train_state import TrainState

    module = nn.Dense(3)
    params = module.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    state = TrainState.create(apply_fn=module.apply, params=params, tx=optax.adamw(1e-3))
    ours.save(tmp_path / "c", state)
    loaded = ours.load(tmp_path / "c", jax.eval_shape(lambda: state))
    assert isinstance(loaded, TrainState) and loaded.step == 0
    assert type(loaded.opt_state[0]) is type(state.opt_state[0])
    np.testing.assert_array_equal(loaded.params["kernel"], state.params["kernel"])


def test_urls_are_places_too(ours, tmp_path):
    for place in (f"memory://bucket/{tmp_path.name}", f"file://{tmp_path}/a%20b"):
        ours.save(f"{place}/c", {"w": np.ones(3)}, custom_metadata={"k": 1})
        assert_same(ours.load(f"{place}/c"), {"w": np.ones(3)})
        with pytest.raises(ValueError, match="already exists"):
            ours.save(f"{place}/c", {"w": np.ones(3)})
        ours.save(f"{place}/c", {"w": np.zeros(3)}, overwrite=True)
        assert_same(ours.load(f"{place}/c", {"w": np.ones(3)}), {"w": np.zeros(3)})
        assert ours.metadata(f"{place}/c").metadata["w"].shape == (3,)
        assert ours.is_orbax_checkpoint(f"{place}/c") and not ours.is_orbax_checkpoint(f"{place}/d")
        with pytest.raises(ours.errors.InvalidLayoutError, match="nothing is there"):
            ours.load(f"{place}/d")
        with ours.training.Checkpointer(f"{place}/run") as ckptr:
            ckptr.save(3, {"w": np.ones(1)}, metrics={"n": 1})
            assert ckptr.latest.step == 3 and ckptr.latest.metrics == {"n": 1}
            assert_same(ckptr.load(), {"w": np.ones(1)})
        with pytest.raises(ours.errors.InvalidLayoutError, match="root of a run"):
            ours.load(f"{place}/run")
    assert (tmp_path / "a b" / "c").is_dir()
