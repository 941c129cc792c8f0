"""States that Flax's files cannot hold, and what their owners do with what comes back."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import core, nnx
from flax.training import train_state
from flax_trees import assert_same

import milepost as mp

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Net(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(2, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)


def same_leaves(a, b):
    left, right = jax.tree.leaves(a), jax.tree.leaves(b)
    assert len(left) == len(right) > 0
    for x, y in zip(left, right, strict=True):
        if jax.dtypes.issubdtype(getattr(x, "dtype", None), jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_flax_cannot_save_an_nnx_state(oracle, tmp_path):
    with pytest.raises((TypeError, ValueError)):  # the difference, by name
        oracle.save_checkpoint(tmp_path, nnx.state(Net(nnx.Rngs(0))), 1)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "step": 3}, lambda s: [s, (s,)]])
def test_an_nnx_state_comes_back_as_one(ours, tmp_path, wrap):
    saved, other = nnx.state(Net(nnx.Rngs(0))), nnx.state(Net(nnx.Rngs(1)))
    ours.save_checkpoint(tmp_path, wrap(saved), 1)
    found = ours.restore_checkpoint(tmp_path, wrap(other))
    assert jax.tree.structure(found) == jax.tree.structure(wrap(other))
    same_leaves(found, wrap(saved))


def test_a_model_goes_on_where_it_was(ours, tmp_path):
    model = Net(nnx.Rngs(0))
    x = jnp.ones((4, 2))
    before = model.norm(model.inner(x))
    ours.save_checkpoint(tmp_path, nnx.state(model), 1)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(5))))
    again = nnx.merge(graph, ours.restore_checkpoint(tmp_path, abstract))
    np.testing.assert_allclose(again.norm(again.inner(x)), before, rtol=1e-6)
    third = Net(nnx.Rngs(9))
    nnx.update(third, ours.restore_checkpoint(tmp_path, nnx.state(third)))
    np.testing.assert_allclose(third.inner(x), model.inner(x), rtol=1e-6)


def test_an_nnx_state_without_a_target_is_a_dict(ours, tmp_path):
    ours.save_checkpoint(tmp_path, nnx.state(Net(nnx.Rngs(0)), nnx.Param), 1)
    found = ours.restore_checkpoint(tmp_path, None)
    assert type(found) is dict and set(found) == {"inner", "norm"}
    assert found["inner"]["kernel"]["value"].shape == (2, 3)


def test_an_nnx_target_with_more_than_is_stored_says_what_is_missing(ours, tmp_path):
    ours.save_checkpoint(tmp_path, nnx.state(Net(nnx.Rngs(0)), nnx.Param), 1)
    with pytest.raises(ValueError, match=r"Missing field (mean|var|drop|rngs|count)"):
        ours.restore_checkpoint(tmp_path, nnx.state(Net(nnx.Rngs(0))))


def test_random_keys_of_both_kinds(ours, tmp_path):
    many = jax.random.split(jax.random.key(1), 3)
    state = {"typed": jax.random.key(7), "raw": jax.random.PRNGKey(7), "many": many}
    ours.save_checkpoint(tmp_path, state, 1)
    for target in (None, state):
        found = ours.restore_checkpoint(tmp_path, target)
        assert jax.dtypes.issubdtype(found["typed"].dtype, jax.dtypes.prng_key)
        assert found["many"].shape == (3,)
        np.testing.assert_array_equal(
            jax.random.normal(found["typed"], (3,)), jax.random.normal(state["typed"], (3,))
        )
        np.testing.assert_array_equal(found["raw"], state["raw"])


def test_other_key_implementations(ours, tmp_path):
    ours.save_checkpoint(tmp_path, {"k": jax.random.key(7, impl="rbg")}, 1)
    found = ours.restore_checkpoint(tmp_path, None)["k"]
    assert str(jax.random.key_impl(found)) == "rbg"


def test_a_train_state_trains_on_as_if_nothing_had_happened(ours, tmp_path):
    def fresh():
        params = core.freeze({"w": jnp.ones((3, 2)), "b": jnp.zeros(2, jnp.bfloat16)})
        return train_state.TrainState.create(
            apply_fn=lambda p, x: x @ p["w"] + p["b"], params=params, tx=optax.adam(0.1)
        )

    def trained(state, steps):
        def loss(params, x):
            return jnp.sum(state.apply_fn(params, x) ** 2)

        for step in range(steps):
            grads = jax.grad(loss)(state.params, jnp.full((4, 3), step + 1.0))
            state = state.apply_gradients(grads=grads)
        return state

    straight = trained(trained(fresh(), 3), 4)
    ours.save_checkpoint(tmp_path, trained(fresh(), 3), 3)
    resumed = trained(ours.restore_checkpoint(tmp_path, fresh()), 4)
    assert type(resumed.params) is core.FrozenDict
    assert int(resumed.step) == 7
    same_leaves(resumed, straight)
    assert resumed.params["b"].dtype == jnp.bfloat16


def test_mappings_and_dataclasses_that_flax_does_not_know(ours, tmp_path):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Registered:
        a: object
        b: object

    state = {
        "ordered": collections.OrderedDict(x=np.ones(2), y=[1, 2]),
        "default": collections.defaultdict(list, k=np.zeros(1)),
        "data": Registered(np.ones(1), {"c": 2}),
    }
    ours.save_checkpoint(tmp_path, state, 1)
    found = ours.restore_checkpoint(tmp_path, state)
    assert type(found["ordered"]) is collections.OrderedDict
    assert type(found["data"]) is Registered
    same_leaves(found, state)
    wider = {**state, "data": Registered(0, {"c": 0, "d": 1})}
    with pytest.raises(ValueError, match="Missing field d .* at path ./data/b"):
        ours.restore_checkpoint(tmp_path, wider)


def test_names_that_flax_and_file_systems_stumble_over(ours, oracle, tmp_path):
    state = {"a.b": np.zeros(1), "a": {"b": np.ones(1)}, "x/y": 1, "": 2, "..": 3, "zarr.json": 4, "ü": 5}
    ours.save_checkpoint(tmp_path / "m", state, 1)
    oracle.save_checkpoint(tmp_path / "t", state, 1)
    assert_same(
        ours.restore_checkpoint(tmp_path / "m", None), oracle.restore_checkpoint(tmp_path / "t", None)
    )


def test_what_no_format_can_hold_names_its_leaf(ours, tmp_path):
    with pytest.raises(mp.Invalid, match="model/fn"):
        ours.save_checkpoint(tmp_path, {"model": {"fn": lambda: 0}}, 1)


# --- on several devices ---


def mesh():
    from jax.sharding import Mesh

    assert jax.device_count() == 8
    return Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))


def sharded(array, *axes):
    spec = jax.sharding.PartitionSpec(*axes)
    return jax.device_put(array, jax.sharding.NamedSharding(mesh(), spec))


def test_a_sharded_array_comes_back_with_the_targets_sharding(ours, tmp_path):
    value = np.arange(64.0, dtype=np.float32).reshape(8, 8)
    manager = ours.GlobalAsyncCheckpointManager(timeout_secs=50)
    state = {"w": sharded(value, "x", "y"), "b": sharded(value), "n": value}
    ours.save_checkpoint_multiprocess(tmp_path, state, 1, gda_manager=manager)
    target = {"w": sharded(np.zeros((8, 8), np.float32), "y"), "b": sharded(value, "x"), "n": value}
    found = ours.restore_checkpoint(tmp_path, target, gda_manager=manager)
    for name in ("w", "b"):
        assert found[name].sharding == target[name].sharding
        np.testing.assert_array_equal(found[name], value)
    assert type(found["n"]) is np.ndarray
    assert type(ours.restore_checkpoint(tmp_path, None)["w"]) is np.ndarray


def test_a_target_of_smaller_shape_gives_only_mesh_and_axes(ours, tmp_path):
    value = np.arange(64.0, dtype=np.float32).reshape(8, 8)
    ours.save_checkpoint(tmp_path, {"w": value, "key": jax.random.key(0)}, 1)
    small = sharded(np.zeros((4, 2), np.int8), "x", "y")
    found = ours.restore_checkpoint(tmp_path, {"w": small, "key": jax.random.key(1)})["w"]
    assert found.shape == (8, 8) and found.dtype == np.float32
    assert found.sharding == small.sharding
    np.testing.assert_array_equal(found, value)


def test_a_shape_with_a_sharding_is_a_target(ours, tmp_path):
    ours.save_checkpoint(tmp_path, {"w": np.ones((8, 2))}, 1)
    sharding = sharded(np.ones(8), "x").sharding
    target = {"w": jax.ShapeDtypeStruct((1,), np.int8, sharding=sharding)}
    found = ours.restore_checkpoint(tmp_path, target)["w"]
    assert found.sharding == sharding and found.shape == (8, 2)


def test_a_sharding_that_does_not_divide_the_stored_shape_names_the_leaf(ours, tmp_path):
    ours.save_checkpoint(tmp_path, {"m": {"w": np.ones((7, 2))}}, 1)
    with pytest.raises(mp.Invalid, match="m/w"):
        ours.restore_checkpoint(tmp_path, {"m": {"w": sharded(np.zeros((8, 2)), "x")}})


def test_what_is_a_jax_array_in_the_target_comes_back_as_one(ours, oracle, tmp_path):
    # Flax gives NumPy arrays from its files and JAX arrays from Orbax's; arithmetic differs.
    state = {"w": np.ones(3, np.float32), "n": np.ones(3, np.float32), "s": jnp.float32(2), "i": 3}
    target = {"w": jnp.zeros(7), "n": np.zeros(1), "s": 0.0, "i": jnp.int32(0)}
    ours.save_checkpoint(tmp_path / "m", state, 1)
    oracle.save_checkpoint(tmp_path / "t", state, 1)
    mine, theirs = (c.restore_checkpoint(tmp_path / d, target) for c, d in ((ours, "m"), (oracle, "t")))
    assert isinstance(mine["w"], jax.Array) and type(theirs["w"]) is np.ndarray
    assert type(mine["n"]) is type(mine["s"]) is np.ndarray
    assert type(mine["i"]) is int
    same_leaves(mine, theirs)


def test_an_array_that_is_on_no_device_on_purpose_stays_so(ours, tmp_path):
    device = jax.devices()[3]
    state = {"free": jnp.ones(3), "bound": jax.device_put(jnp.ones(3), device)}
    ours.save_checkpoint(tmp_path, state, 1)
    found = ours.restore_checkpoint(tmp_path, state)
    assert not found["free"].committed
    assert found["bound"].committed and found["bound"].devices() == {device}


def test_64_bits_are_not_halved_for_a_jax_target(ours, tmp_path):
    state = {"f": np.array([1 / 3]), "i": np.array([2**40]), "w": np.ones(8)}
    ours.save_checkpoint(tmp_path, state, 1)
    target = {"f": jnp.zeros(1), "i": jnp.zeros(1, int), "w": sharded(np.zeros(8), "x")}
    found = ours.restore_checkpoint(tmp_path, target)
    assert_same({k: found[k] for k in "fi"}, {k: state[k] for k in "fi"})
    assert found["w"].dtype == np.float32  # several devices hold only what JAX has


def test_a_donated_array_that_was_restored_leaves_the_others_alone(ours, tmp_path):
    ours.save_checkpoint(tmp_path, {"a": jnp.ones(8), "b": jnp.ones(8)}, 1)
    found = ours.restore_checkpoint(tmp_path, {"a": jnp.zeros(8), "b": jnp.zeros(8)})
    doubled = jax.jit(lambda x: x * 2, donate_argnums=0)(found["a"])
    np.testing.assert_array_equal(doubled, np.full(8, 2.0))
    np.testing.assert_array_equal(found["b"], np.ones(8))
