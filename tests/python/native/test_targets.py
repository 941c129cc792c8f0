"""Targets: what is asked for is given or refused, all mismatches at once, before a byte is read."""

from __future__ import annotations

import itertools
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import same

import milepost as mp

STRUCT = jax.ShapeDtypeStruct
TREE = {
    "params": {"w": np.arange(12.0).reshape(3, 4), "b": np.arange(4, dtype=np.float32)},
    "opt": (np.arange(3, dtype=np.int32), [1, 2.5]),
    "name": "run",
    "none": None,
}


@pytest.fixture
def saved(url):
    mp.save(url, TREE)
    return url


def mismatches(url, target, **options) -> dict[str, list[str]]:
    with pytest.raises(mp.TreeMismatch) as caught:
        mp.load(url, target, **options)
    found: dict[str, list[str]] = {}
    for path, what in caught.value.mismatches:
        found.setdefault(path, []).append(what)
        assert path in str(caught.value) or not path
    assert isinstance(caught.value, ValueError)
    return found


def with_(tree, *keys_and_value):
    """The tree with another value at a key path."""
    *keys, value = keys_and_value
    if not keys:
        return value
    key, *rest = keys
    if isinstance(tree, dict):
        return {**tree, key: with_(tree.get(key), *rest, value)}
    children = list(tree)
    children[key] = with_(children[key], *rest, value)
    return type(tree)(children)


def test_the_tree_itself_is_a_target(saved):
    same(mp.load(saved, TREE), TREE)


def test_zeros_of_the_same_shapes_are_a_target_and_are_not_written_to(saved):
    target = {
        "params": {"w": np.zeros((3, 4)), "b": np.zeros(4, np.float32)},
        "opt": (np.zeros(3, np.int32), [0, 0.0]),
        "name": "",
        "none": None,
    }
    back = mp.load(saved, target)
    same(back, TREE)
    assert not target["params"]["w"].any()


@pytest.mark.parametrize(
    ("keys", "value", "at"),
    [
        (("params", "w"), np.zeros((3, 5)), "params/w"),
        (("params", "w"), np.zeros((4, 3)), "params/w"),
        (("params", "w"), np.zeros(12), "params/w"),
        (("params", "w"), np.zeros((3, 4), np.int64), "params/w"),
        (("params", "w"), np.zeros((3, 4), np.complex64), None),
        (("params", "w"), STRUCT((3, 4, 1), jnp.float32), "params/w"),
        (("params", "w"), 5.0, "params/w"),
        (("params", "w"), "text", "params/w"),
        (("params", "w"), {"a": 1}, "params/w"),
        (("params", "w"), None, "params/w"),
        (("params", "w"), jax.random.key(0), "params/w"),
        (("params",), np.zeros(3), "params"),
        (("opt", 1, 0), "text", "opt/1/0"),
        (("opt", 1, 0), b"text", "opt/1/0"),
        (("opt", 1), (1, 2.5), "opt/1"),
        (("opt", 1), [1], "opt/1/1"),
        (("opt", 1), [1, 2.5, 3], "opt/1/2"),
        (("name",), 3, "name"),
        (("name",), b"run", "name"),
        (("none",), 3, "none"),
        (("none",), {"a": 1}, "none/a"),
        (("new",), 3, "new"),
    ],
    ids=repr,
)
def test_every_difference_is_named_by_its_path(saved, keys, value, at):
    target = with_(TREE, *keys, value)
    if at is None:
        mp.load(saved, target)
        return
    found = mismatches(saved, target)
    assert at in found and all(path == at or path.startswith(at + "/") for path in found), found


def test_all_mismatches_come_at_once_before_anything_is_read(saved):
    for chunk in pathlib.Path(saved).glob("state/**/c*"):
        if chunk.is_file():
            chunk.unlink()  # what is read by mistake is an error of another kind
    target = {
        "params": {"w": np.zeros((3, 5)), "c": 1},
        "opt": (np.zeros(3, np.float64), [1, 2.5]),
        "name": 7,
        "none": None,
    }
    found = mismatches(saved, target)
    assert set(found) == {"params/w", "params/c", "params/b", "name"} or set(found) == {
        "params/w",
        "params/c",
        "params/b",
        "name",
        "opt/0",
    }
    with pytest.raises(mp.Corrupt):
        mp.load(saved, TREE)


def test_numpy_targets_are_as_strict_as_those_of_jax(saved):
    for make in (np.zeros, jnp.zeros, lambda shape: STRUCT(shape, jnp.float32)):
        assert set(mismatches(saved, with_(TREE, "params", "b", make((5,))))) == {"params/b"}


KINDS = {"b": 0, "u": 1, "i": 2, "f": 3, "c": 4}
TYPES = ["bool", "uint8", "uint64", "int8", "int32", "int64", "float16", "bfloat16", "float32", "float64", "complex64"]


@pytest.mark.parametrize(("stored", "wanted"), [*itertools.product(TYPES, TYPES)])
def test_casts_within_a_kind_are_made_and_others_only_if_unsafe(tmp_path_factory, stored, wanted):
    def dtype_of(name):
        return np.dtype(getattr(ml_dtypes, name, name))

    url = str(tmp_path_factory.getbasetemp() / f"cast-{stored}")
    value = np.array([0, 1, 1, 0]).astype(dtype_of(stored))
    if not pathlib.Path(url).exists():
        mp.save(url, {"x": value}, durability="published")

    def kind(name):
        return KINDS["f" if name == "bfloat16" else np.dtype(name).kind]

    def allowed():
        if stored == "bfloat16" or wanted == "bfloat16":
            return kind(stored) <= kind(wanted)
        return np.can_cast(stored, wanted, "same_kind")

    target = {"x": np.zeros(4, dtype_of(wanted))}
    if allowed():
        back = mp.load(url, target)["x"]
        assert back.dtype == dtype_of(wanted)
        same(back, value.astype(dtype_of(wanted)))
    else:
        assert set(mismatches(url, target)) == {"x"}
    back = mp.load(url, target, cast="unsafe")["x"]
    with np.errstate(all="ignore"):
        same(back, np.real(value).astype(dtype_of(wanted)) if kind(wanted) < 4 else value.astype(dtype_of(wanted)))


def test_a_cast_rounds_as_numpy_does(url):
    value = np.random.default_rng(0).normal(size=10_000) * 10.0 ** np.arange(-50, 50).repeat(100)
    mp.save(url, {"x": value})
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
        with np.errstate(over="ignore"):
            same(mp.load(url, {"x": np.zeros(10_000, dtype)})["x"], value.astype(dtype))


def test_a_word_that_cast_does_not_know_is_refused(saved):
    for name in ("cast", "missing", "unexpected", "containers"):
        with pytest.raises(ValueError, match=name):
            mp.load(saved, TREE, **{name: "perhaps"})


def test_an_ellipsis_takes_a_leaf_as_it_is_stored(saved):
    target = {"params": {"w": ..., "b": ...}, "opt": (..., [..., ...]), "name": ..., "none": None}
    same(mp.load(saved, target), TREE)
    assert "params" in str(mismatches(saved, {**target, "params": ...}))


def test_a_struct_gives_numpy_and_with_a_sharding_jax(saved):
    device = jax.devices()[3]
    target = with_(TREE, "params", "w", STRUCT((3, 4), jnp.float32))
    back = mp.load(saved, target)["params"]["w"]
    same(back, TREE["params"]["w"].astype(np.float32))
    sharding = jax.sharding.SingleDeviceSharding(device)
    target = with_(TREE, "params", "w", STRUCT((3, 4), jnp.float32, sharding=sharding))
    back = mp.load(saved, target)["params"]["w"]
    assert isinstance(back, jax.Array) and back.devices() == {device} and back.dtype == jnp.float32


def test_an_array_of_jax_gives_its_own_sharding_back(saved):
    target = with_(TREE, "params", "b", jax.device_put(jnp.zeros(4), jax.devices()[5]))
    back = mp.load(saved, target)["params"]["b"]
    assert isinstance(back, jax.Array) and back.devices() == {jax.devices()[5]}
    same(np.asarray(back), TREE["params"]["b"])


def test_restored_arrays_of_jax_do_not_share_memory_with_anything(url):
    mp.save(url, {"x": jnp.arange(100_000.0)})
    first = mp.load(url, {"x": jnp.zeros(100_000)})["x"]
    second = mp.load(url, {"x": jnp.zeros(100_000)})["x"]
    jax.jit(lambda x: x * 0, donate_argnums=0)(first).block_until_ready()
    same(np.asarray(second), np.arange(100_000, dtype=np.float32))


def test_python_scalars_in_a_target_ask_for_their_type(url):
    mp.save(url, {"i": 3, "f": 2.5, "b": True, "a": np.array(4), "j": jnp.float32(1.5), "c": 1j})
    back = mp.load(url, {"i": 0, "f": 0.0, "b": False, "a": 0, "j": 0.0, "c": 0j})
    same(back, {"i": 3, "f": 2.5, "b": True, "a": 4, "j": 1.5, "c": 1j})
    same(mp.load(url, {"i": 0.0, "f": 0j, "b": 0, "a": 0.0, "j": 0j, "c": 0j})["i"], 3.0)
    assert set(mismatches(url, {"i": False, "f": 0, "b": False, "a": 0, "j": 0, "c": 0.0})) == {"i", "f", "j", "c"}
    same(mp.load(url, {"i": np.float32(0), "f": np.zeros(()), "b": ..., "a": ..., "j": np.float64(0), "c": ...})["i"], np.float32(3))


def test_numpy_arrays_take_python_scalars_and_the_other_way(url):
    mp.save(url, {"i": 3, "a": np.array([7])})
    same(mp.load(url, {"i": np.array(0), "a": np.array([0])})["i"], np.array(3))
    assert "a" in mismatches(url, {"i": 0, "a": 0})


def test_missing_leaves_keep_the_targets_own_value_if_asked(saved):
    target = with_(with_(TREE, "params", "new", np.full(2, 9.0)), "extra", {"deep": [1, 2]})
    assert set(mismatches(saved, target)) == {"params/new", "extra"} or set(mismatches(saved, target)) == {
        "params/new",
        "extra/deep/0",
        "extra/deep/1",
    }
    same(mp.load(saved, target, missing="skip"), target)
    assert set(mismatches(saved, with_(target, "params", "w", np.zeros(5)), missing="skip")) == {"params/w"}


@pytest.mark.parametrize("leaf", [STRUCT((2,), np.float32), ..., STRUCT((), np.int32)], ids=["struct", "as stored", "0-d"])
def test_a_missing_leaf_without_a_value_of_its_own_is_a_mismatch(saved, leaf):
    target = with_(with_(TREE, "params", "new", leaf), "other", {"deep": [leaf, 1]})
    assert set(mismatches(saved, target, missing="skip")) == {"params/new", "other/deep/0"}
    kept = mp.load(saved, with_(TREE, "params", "new", jnp.ones(2)), missing="skip")
    assert kept["params"]["new"].tolist() == [1, 1]


@pytest.mark.parametrize("like", ["struct", "array", "sharded"])
def test_whole_numbers_beyond_32_bits_are_not_cut_off_by_jax(url, like):
    big = np.array([1, 2**40, -(2**33)])
    mp.save(url, {"w": big, "fits": np.array([1, -(2**31), 2**31 - 1]), "u": np.array([2**32 - 1], np.uint64)})
    assert not jax.config.jax_enable_x64
    target = {
        "struct": STRUCT((3,), np.int64, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])),
        "array": jnp.zeros(3, np.int32),
        "sharded": STRUCT(
            (3,),
            np.int64,
            sharding=jax.NamedSharding(jax.make_mesh((3,), ("x",), devices=jax.devices()[:3]), jax.P("x")),
        ),
    }[like]
    with pytest.raises(mp.MilepostError, match="fit") as caught:
        mp.load(url, {"w": target}, unexpected="ignore")
    assert caught.value.context.get("leaf") == "w" or "w" in str(caught.value)
    fits = mp.load(url, {"fits": target}, unexpected="ignore")["fits"]
    assert fits.dtype == np.int32 and np.asarray(fits).tolist() == [1, -(2**31), 2**31 - 1]
    assert mp.load(url)["w"].tolist() == big.tolist()


def test_unexpected_leaves_are_left_out_if_asked(saved):
    target = {"params": {"b": np.zeros(4, np.float32)}}
    assert "params/w" in mismatches(saved, target)
    same(mp.load(saved, target, unexpected="ignore"), {"params": {"b": TREE["params"]["b"]}})
    assert "params/new" in mismatches(saved, {"params": {"new": 1}}, unexpected="ignore")
    same(mp.load(saved, {"other": 5}, unexpected="ignore", missing="skip"), {"other": 5})


def test_what_is_left_out_is_not_read(saved):
    (pathlib.Path(saved) / "state/params/w/c.0.0").unlink()
    mp.load(saved, {"params": {"b": np.zeros(4, np.float32)}}, unexpected="ignore")
    mp.load(saved, select="opt/**")


def test_containers_meet_by_name_if_asked(saved):
    target = {
        "params": {"w": np.zeros((3, 4)), "b": np.zeros(4, np.float32)},
        "opt": {"0": np.zeros(3, np.int32), "1": (0, 0.0)},
        "name": "",
        "none": None,
    }
    assert {"opt"} <= set(mismatches(saved, target))
    back = mp.load(saved, target, containers="by_name")
    same(back["opt"], {"0": TREE["opt"][0], "1": (1, 2.5)})


def test_an_order_of_keys_is_no_mismatch_and_the_targets_is_given(saved):
    target = dict(reversed(TREE.items()))
    assert list(mp.load(saved, target)) == list(target)
    same(mp.load(saved, target)["params"], TREE["params"])


def test_a_target_of_one_leaf(url):
    mp.save(url, np.arange(3.0))
    same(mp.load(url, np.zeros(3)), np.arange(3.0))
    found = mismatches(url, np.zeros(4))
    assert set(found) == {""} or len(found) == 1


def test_keys_in_a_target_check_their_implementation(url):
    mp.save(url, {"k": jax.random.key(0), "many": jax.random.split(jax.random.key(1), (2, 3))})
    back = mp.load(url, {"k": jax.random.key(9), "many": STRUCT((2, 3), jax.random.key(0).dtype)})
    assert (jax.random.key_data(back["k"]) == jax.random.key_data(jax.random.key(0))).all()
    assert back["many"].shape == (2, 3)
    assert "k" in mismatches(url, {"k": jax.random.key(0, impl="rbg"), "many": ...})
    assert "many" in mismatches(url, {"k": ..., "many": STRUCT((3, 2), jax.random.key(0).dtype)})


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3)], ids=str)
def test_typed_keys_come_back_with_their_implementation(url, implementation, shape):
    key = jax.random.key(7, impl=implementation)
    keys = key if shape == () else jnp.broadcast_to(key, shape)
    mp.save(url, {"k": keys})
    for back in (mp.load(url)["k"], mp.load(url, {"k": keys})["k"], mp.load(url, {"k": ...})["k"]):
        assert back.dtype == keys.dtype and back.shape == shape
        same(np.asarray(jax.random.key_data(back)), np.asarray(jax.random.key_data(keys)))
    if shape == ():
        same(np.asarray(jax.random.normal(back, (3,))), np.asarray(jax.random.normal(key, (3,))))
    leaf = mp.open(url).index().leaves[0]
    assert (leaf.kind, leaf.implementation) == ("prng_key", implementation)


def test_none_and_empty_containers_meet_and_the_targets_is_given(url):
    mp.save(url, {"a": None, "b": {}, "c": [], "d": ()})
    for target in ({"a": {}, "b": None, "c": None, "d": None}, {"a": None, "b": {}, "c": [], "d": ()}):
        same(mp.load(url, target), target)


def test_old_style_keys_are_plain_arrays(url):
    key = jax.random.PRNGKey(3)
    mp.save(url, {"k": key})
    assert mp.open(url).index().leaves[0].kind == "array"
    same(mp.load(url), {"k": np.asarray(key)})
