"""What a restore gives is what the target asked for: keys, whole numbers, meshes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

P = jax.sharding.PartitionSpec


def spread_keys(kind=None):
    mesh = jax.make_mesh((8,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, P("x"))
    return jax.device_put(jax.random.split(jax.random.key(3, impl=kind), 8), sharding), mesh


def same_keys(one, other) -> bool:
    return bool((jax.random.key_data(one) == jax.random.key_data(other)).all())


def test_keys_have_the_sharding_of_the_target_or_the_one_they_were_saved_with(ocp, tmp_path):
    keys, mesh = spread_keys()
    everywhere = jax.sharding.NamedSharding(mesh, P(None))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", {"k": keys})
        checkpointer.wait_until_finished()
        struct = jax.ShapeDtypeStruct(keys.shape, keys.dtype)
        asked = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=everywhere)
        for target, sharding in ((keys, keys.sharding), (struct, keys.sharding), (asked, everywhere)):
            restored = checkpointer.restore(tmp_path / "a", {"k": target})["k"]
            assert restored.sharding == sharding and same_keys(restored, keys)
        assert checkpointer.restore(tmp_path / "a")["k"].sharding == keys.sharding


def test_keys_have_the_sharding_of_restore_args(ocp, tmp_path):
    keys, mesh = spread_keys()
    everywhere = jax.sharding.NamedSharding(mesh, P(None))
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "a", {"k": keys})
    for args, sharding in (
        (ocp.ArrayRestoreArgs(sharding=everywhere), everywhere),
        (ocp.checkpoint_utils.construct_restore_args({"k": keys})["k"], keys.sharding),
    ):
        restored = checkpointer.restore(tmp_path / "a", restore_args={"k": args})["k"]
        assert restored.sharding == sharding and same_keys(restored, keys)


def test_keys_of_another_shape_or_implementation_are_an_error(ocp, tmp_path):
    keys, _ = spread_keys()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", {"k": keys})
        checkpointer.wait_until_finished()
        with pytest.raises(ValueError, match="shape"):
            checkpointer.restore(tmp_path / "a", {"k": jax.random.key(0)})
        with pytest.raises(ValueError):
            checkpointer.restore(tmp_path / "a", {"k": spread_keys("rbg")[0]})


def test_an_abstract_key_of_another_shape_is_an_error(ours, theirs, tmp_path):
    """Orbax: the stored keys, whatever the struct says."""
    keys, _ = spread_keys()
    for ocp, is_strict in ((ours, True), (theirs, False)):
        path = tmp_path / str(is_strict)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, {"k": keys})
            checkpointer.wait_until_finished()
            target = {"k": jax.ShapeDtypeStruct((5,), keys.dtype)}
            if is_strict:
                with pytest.raises(ValueError, match=r"k: the stored shape is \[8\].*\[5\]"):
                    checkpointer.restore(path, target)
            else:
                assert checkpointer.restore(path, target)["k"].shape == (8,)


def test_a_numpy_target_gets_the_data_of_keys(ocp, tmp_path):
    keys, _ = spread_keys()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", {"k": keys})
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "a", {"k": np.zeros((8, 2), np.uint32)})["k"]
    np.testing.assert_array_equal(restored, np.asarray(jax.random.key_data(keys)))


def test_v1_keeps_the_sharding_of_keys(ours, theirs, tmp_path):
    keys, mesh = spread_keys()
    everywhere = jax.sharding.NamedSharding(mesh, P(None))
    for ocp, name in ((ours, "ours"), (theirs, "theirs")):
        path = tmp_path / name
        ocp.v1.save(path, {"k": keys})
        assert ocp.v1.load(path)["k"].sharding == keys.sharding
        asked = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=everywhere)
        assert ocp.v1.load(path, {"k": asked})["k"].sharding == everywhere
        with pytest.raises(ValueError, match="shape"):
            ocp.v1.load(path, {"k": jax.random.key(0)})


@pytest.mark.parametrize("kind", ["Explicit", "Auto"])
def test_without_a_target_a_mesh_has_the_axis_types_that_it_had(ocp, tmp_path, kind):
    types = (jax.sharding.AxisType[kind],) * 2
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=types)
    sharding = jax.sharding.NamedSharding(mesh, P("x", None))
    array = jax.device_put(jnp.arange(16.0).reshape(8, 2), sharding)
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "a", {"w": array})
    restored = checkpointer.restore(tmp_path / "a")["w"]
    assert restored.sharding == sharding and restored.sharding.mesh.axis_types == types
    described = checkpointer.metadata(tmp_path / "a").item_metadata.tree["w"].sharding
    assert tuple(described.to_jax_sharding().mesh.axis_types) == types
    # Together with an array of the mesh that training goes on with.
    assert (jax.jit(jnp.add)(restored, array) == 2 * array).all()


def test_whole_numbers_become_smaller_types_where_they_fit(ocp, tmp_path):
    checkpointer = ocp.PyTreeCheckpointer()
    tree = {"a": np.array([5, -6]), "b": np.array([300], np.int32), "n": 7}
    checkpointer.save(tmp_path / "a", tree)
    args = {
        "a": ocp.RestoreArgs(dtype=np.int32),
        "b": ocp.RestoreArgs(dtype=np.int16),
        "n": ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.int8),
    }
    restored = checkpointer.restore(tmp_path / "a", restore_args=args)
    for name, args_of in args.items():
        assert restored[name].dtype == args_of.dtype
        np.testing.assert_array_equal(restored[name], tree[name])


@pytest.mark.parametrize(
    "ask",
    [
        lambda: jnp.zeros(2, jnp.int32),
        lambda: np.zeros(2, np.int32),
        # JAX without 64 bits makes int32 of it.
        lambda: jax.ShapeDtypeStruct(
            (2,), np.int64, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
        ),
    ],
)
def test_a_whole_number_that_does_not_fit_is_an_error(ours, theirs, tmp_path, ask):
    """Orbax: its lower bits, in silence."""
    for ocp, is_strict in ((ours, True), (theirs, False)):
        path = tmp_path / str(is_strict)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, {"a": np.array([2**40, 1]), "b": np.arange(3.0)})
            checkpointer.wait_until_finished()
            target = {"a": ask(), "b": np.zeros(3)}
            if is_strict:
                with pytest.raises(ValueError, match="1099511627776") as caught:
                    checkpointer.restore(path, target)
                assert caught.value.context["leaf"] == "a"
            else:
                assert checkpointer.restore(path, target)["a"].tolist() == [0, 1]


def test_a_whole_number_that_does_not_fit_is_an_error_in_v1_and_with_transforms(ours, tmp_path):
    ours.v1.save(tmp_path / "a", {"a": np.array([2**40])})
    with pytest.raises(ValueError, match="1099511627776"):
        ours.v1.load(tmp_path / "a", {"a": np.zeros(1, np.int32)})
    checkpointer = ours.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "b", {"a": np.array([2**40])})
    with pytest.raises(ValueError, match="1099511627776"):
        checkpointer.restore(
            tmp_path / "b",
            item={"b": 0},
            transforms={"b": ours.Transform(original_key="a")},
            restore_args={"b": ours.RestoreArgs(dtype=np.int32)},
        )
