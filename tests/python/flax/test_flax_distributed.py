"""Arrays that several processes wrote for Flax: read with the target's mesh and axes."""

import asyncio
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from flax import errors, serialization
from flax_trees import assert_same
from jax.experimental.array_serialization import serialization as jax_serialization

import milepost as mp
from milepost import _msgpack

VALUE = np.arange(64, dtype=np.float32).reshape(8, 8)


def sharding(*axes):
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def write(path, state, arrays):
    """A checkpoint as several processes write it: texts in the file, arrays beside it by JAX."""
    path.write_bytes(serialization.msgpack_serialize(state))
    paths = [os.path.join(f"{path}_gda", name) for name in arrays]
    values = [jax.device_put(value, sharding("x")) for value in arrays.values()]
    specs = [jax_serialization.get_tensorstore_spec(p) for p in paths]
    for p in paths:
        os.makedirs(p, exist_ok=True)

    async def save():
        for value, spec in zip(values, specs, strict=True):
            await jax_serialization.async_serialize(value, spec)

    asyncio.run(save())


@pytest.fixture
def run(tmp_path):
    state = {"params": {"w": "//GDAPlaceholder:params/w", "b": np.ones(2)}, "v": "//GDAPlaceholder:v"}
    write(tmp_path / "checkpoint_1", state, {"params/w": VALUE, "v": VALUE * 2})
    return tmp_path


@pytest.fixture
def manager(ours):
    return ours.GlobalAsyncCheckpointManager(timeout_secs=50)


def target():
    w = jax.device_put(jnp.zeros((4, 2)), sharding("x", "y"))  # smaller: only mesh and axes count
    return {"params": {"w": w, "b": 0}, "v": jax.device_put(jnp.zeros(8), sharding("y"))}


def test_the_target_gives_mesh_and_axes_and_the_file_gives_the_shape(ours, run, manager):
    found = ours.restore_checkpoint(run, target(), gda_manager=manager)
    assert found["params"]["w"].sharding == sharding("x", "y")
    assert found["v"].sharding == sharding("y")
    assert_same(found["params"]["b"], np.ones(2))
    np.testing.assert_array_equal(found["params"]["w"], VALUE)
    np.testing.assert_array_equal(found["v"], VALUE * 2)


def test_jaxs_own_manager_and_shapes_are_taken(ours, run):
    manager = jax_serialization.GlobalAsyncCheckpointManager(timeout_secs=50)
    asked = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.int8, sharding=leaf.sharding)
        if isinstance(leaf, jax.Array)
        else leaf,
        target(),
    )
    found = ours.restore_checkpoint(run, asked, gda_manager=manager)
    np.testing.assert_array_equal(found["params"]["w"], VALUE)
    assert found["params"]["w"].sharding == sharding("x", "y")


def test_without_a_manager_it_is_flaxs_error(either, run):
    for asked in (target(), None):
        with pytest.raises(errors.MPACheckpointingRequiredError, match="GlobalAsyncCheckpointManager"):
            either.restore_checkpoint(run, asked)


def test_without_a_target_it_is_flaxs_error(either, run):
    manager = either.GlobalAsyncCheckpointManager()
    with pytest.raises(errors.MPARestoreTargetRequiredError, match="pre-created arrays"):
        either.restore_checkpoint(run, None, gda_manager=manager)


def test_a_target_without_an_array_there_names_the_key_path(either, run):
    asked = {"params": {"w": np.zeros((8, 8)), "b": 0}, "v": 0}
    with pytest.raises(errors.MPARestoreTargetRequiredError, match="params.*w"):
        either.restore_checkpoint(run, asked, gda_manager=either.GlobalAsyncCheckpointManager())


def test_a_partial_restoration_leaves_out_what_the_target_lacks(ours, run, manager):
    asked = {"params": {"w": target()["params"]["w"], "b": 0}}
    found = ours.restore_checkpoint(
        run, asked, gda_manager=manager, allow_partial_mpa_restoration=True
    )
    np.testing.assert_array_equal(found["params"]["w"], VALUE)
    whole = ours.restore_checkpoint(
        run, None, gda_manager=manager, allow_partial_mpa_restoration=True
    )
    assert whole["v"] == "//GDAPlaceholder:v"


def test_a_single_array(ours, tmp_path, manager):
    write(tmp_path / "checkpoint_1", "//GDAPlaceholder:", {"": VALUE})
    asked = jax.device_put(jnp.zeros(8), sharding("x"))
    found = ours.restore_checkpoint(tmp_path, asked, gda_manager=manager)
    np.testing.assert_array_equal(found, VALUE)


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
@pytest.mark.parametrize("database", [False, True])
def test_all_layouts_that_jax_has_written_are_read(tmp_path, driver, database):
    (tmp_path / "c").write_bytes(
        serialization.msgpack_serialize({"p": {"w": "//GDAPlaceholder:p/w"}, "b": 1})
    )
    base = {"driver": "file", "path": str(tmp_path / "c_gda" / "p")}
    kvstore = {"driver": "ocdbt", "base": base, "path": "w"} if database else {
        "driver": "file", "path": str(tmp_path / "c_gda" / "p" / "w")
    }
    store = ts.open(
        {"driver": driver, "kvstore": kvstore}, create=True, dtype=ts.bfloat16, shape=[4, 3]
    ).result()
    store.write(np.full((4, 3), 1.5, ts.bfloat16.numpy_dtype)).result()
    found = _msgpack.load(tmp_path / "c")
    assert found["b"] == 1
    assert_same(found["p"]["w"], np.full((4, 3), 1.5, ts.bfloat16.numpy_dtype))


def test_the_reader_alone_reads_them_as_numpy(run):
    found = _msgpack.load(run / "checkpoint_1")
    assert_same(found, {"params": {"w": VALUE, "b": np.ones(2)}, "v": VALUE * 2})
    kept = _msgpack.load(run / "checkpoint_1", placeholders="keep")
    assert kept["v"] == "//GDAPlaceholder:v"


@pytest.mark.parametrize("name", ["../../secret", "/etc", "a/../../b", "."])
def test_a_text_that_leads_outside_is_corrupt(tmp_path, name):
    (tmp_path / "c").write_bytes(serialization.msgpack_serialize({"w": f"//GDAPlaceholder:{name}"}))
    with pytest.raises(mp.Corrupt, match="named outside of it"):
        _msgpack.load(tmp_path / "c")


def test_an_array_that_is_gone_is_not_found(tmp_path):
    (tmp_path / "c").write_bytes(serialization.msgpack_serialize({"w": "//GDAPlaceholder:w"}))
    with pytest.raises(mp.NotFound, match="w"):
        _msgpack.load(tmp_path / "c")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_directory_beside_goes_with_its_file(ours, run):
    ours.save_checkpoint(run, {"new": 1}, 0, overwrite=True)
    assert sorted(os.listdir(run)) == ["checkpoint_0"]


def test_the_directory_beside_goes_when_its_file_is_replaced(ours, run):
    ours.save_checkpoint(run, {"new": 1}, 1, overwrite=True)
    assert sorted(os.listdir(run)) == ["checkpoint_1"]
