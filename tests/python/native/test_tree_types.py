"""Pytrees of JAX, Flax, Optax and the user: what comes back with a target, what without, and what is never imported."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import same
from flax import nnx

import milepost as mp


class Point(NamedTuple):
    x: Any
    y: Any = 0


@dataclasses.dataclass
class Options:
    rate: float
    names: Any = None


@dataclasses.dataclass(frozen=True)
class Derived:
    a: Any
    total: Any = dataclasses.field(init=False, default=0)


@flax.struct.dataclass
class State:
    params: Any
    step: Any
    name: str = flax.struct.field(pytree_node=False, default="adam")


@jax.tree_util.register_pytree_node_class
class Pair:
    """Registered without keys: its children have positions."""

    def __init__(self, left, right, label):
        self.left, self.right, self.label = left, right, label

    def tree_flatten(self):
        return (self.left, self.right), self.label

    @classmethod
    def tree_unflatten(cls, label, children):
        return cls(*children, label)


@jax.tree_util.register_pytree_with_keys_class
class Keyed(Pair):
    def tree_flatten_with_keys(self):
        keys = (jax.tree_util.GetAttrKey("left"), self.left), (jax.tree_util.DictKey("right"), self.right)
        return keys, self.label


def bits(leaf) -> np.ndarray:
    """A leaf as NumPy; of typed PRNG keys their data."""
    is_key = jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def equal(left, right) -> None:
    """Asserts that two pytrees of JAX are equal: their definitions and their leaves' bits."""
    assert jax.tree_util.tree_structure(left) == jax.tree_util.tree_structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        same(bits(a), bits(b))


def test_a_named_tuple_comes_back_as_its_type(url):
    tree = {"p": Point(jnp.ones(2), (1, None))}
    mp.save(url, tree)
    back = mp.load(url)
    assert type(back["p"]) is Point
    same(back, {"p": Point(np.ones(2, np.float32), (1, None))})
    assert type(mp.load(url, tree)["p"]) is Point


def test_a_dataclass_comes_back_as_its_type(url):
    tree = Options(0.5, {"a": [np.arange(3)]})
    mp.save(url, tree)
    for back in (mp.load(url), mp.load(url, tree)):
        assert type(back) is Options and back.rate == 0.5
        same(back.names, {"a": [np.arange(3)]})
    assert [leaf.path for leaf in mp.open(url).index().leaves] == ["rate", "names/a/0"]


def test_fields_that_the_constructor_does_not_take_come_back_too(url):
    tree = Derived(1)
    object.__setattr__(tree, "total", 42)
    mp.save(url, tree)
    back = mp.load(url, Derived(0))
    assert (type(back), back.a, back.total) == (Derived, 1, 42)


def test_a_flax_dataclass_keeps_what_is_not_of_the_tree_from_the_target(url):
    state = State({"w": jnp.arange(3.0)}, 7, name="lion")
    mp.save(url, state)
    back = mp.load(url, State({"w": jnp.zeros(3)}, 0, name="lamb"))
    assert (type(back), back.step, back.name) == (State, 7, "lamb")
    assert isinstance(back.params["w"], jax.Array)
    plain = mp.load(url)
    assert (type(plain), plain.step, plain.name) == (State, 7, "adam")


def test_optax_states_come_back(url):
    params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-3, 10)))
    state = optimizer.init(params)
    _, state = optimizer.update(params, state, params)
    mp.save(url, state)
    equal(mp.load(url, optimizer.init(params)), state)
    plain = mp.load(url)
    assert type(plain[1][0]) is optax.ScaleByAdamState
    equal(jax.tree.map(jnp.asarray, plain), state)


def test_masked_and_multi_transform_states_come_back(url):
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    optimizer = optax.multi_transform({"x": optax.adam(1e-3), "y": optax.set_to_zero()}, {"a": "x", "b": "y"})
    state = optimizer.init(params)
    mp.save(url, state)
    equal(mp.load(url, optimizer.init(params)), state)


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.dense = nnx.Linear(2, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(2)])


def test_an_nnx_state_comes_back_with_a_target_and_without(url):
    net = Net(nnx.Rngs(0))
    graph, state = nnx.split(net)
    mp.save(url, state)
    back = mp.load(url, nnx.state(Net(nnx.Rngs(1))))
    equal(back, state)
    plain = mp.load(url)
    assert type(plain) is type(state)
    same([*map(str, plain.flat_state().paths)], [*map(str, state.flat_state().paths)])
    restored = nnx.merge(graph, jax.tree.map(lambda x: x, back))
    x = jnp.ones((1, 2))
    restored.eval(), net.eval()
    same(np.asarray(restored.dense(x)), np.asarray(net.dense(x)))


def test_an_abstract_nnx_state_is_a_target(url):
    state = nnx.state(Net(nnx.Rngs(0)))
    mp.save(url, state)
    abstract = nnx.state(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))
    back = mp.load(url, abstract)
    equal(back, state)


def test_a_pure_dict_of_an_nnx_state_comes_back(url):
    pure = nnx.to_pure_dict(nnx.state(Net(nnx.Rngs(0)), nnx.Param))
    mp.save(url, pure)
    equal(jax.tree.map(jnp.asarray, mp.load(url)), pure)
    assert 0 in mp.load(url)["blocks"]


def test_a_static_node_without_leaves_saves_and_the_target_has_it_again(url):
    graph, state = nnx.split(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    mp.save(url, (graph, state))
    back_graph, back = mp.load(url, (graph, state))
    assert back_graph == graph
    equal(back, state)
    assert isinstance(nnx.merge(back_graph, back), nnx.Linear)
    plain = mp.load(url)
    assert isinstance(plain, tuple) and len(plain) == 2


def test_a_frozen_dict_is_a_dict_and_the_target_freezes_it_again(url):
    tree = flax.core.freeze({"a": {"b": jnp.ones(2)}})
    mp.save(url, tree)
    same(mp.load(url), {"a": {"b": np.ones(2, np.float32)}})
    back = mp.load(url, tree)
    assert type(back) is flax.core.FrozenDict
    equal(back, tree)
    equal(mp.load(url, {"a": {"b": jnp.ones(2)}}), {"a": {"b": jnp.ones(2)}})


def test_other_mappings_are_dicts_and_the_target_has_their_types_again(url):
    ordered = collections.OrderedDict(z=1, a=2)
    defaults = collections.defaultdict(list, b=3, a=4)
    mp.save(url, {"o": ordered, "d": defaults})
    plain = mp.load(url)
    assert list(plain["o"].items()) == [("z", 1), ("a", 2)] and plain["d"] == {"b": 3, "a": 4}
    back = mp.load(url, {"o": ordered, "d": defaults})
    assert type(back["o"]) is collections.OrderedDict and list(back["o"]) == ["z", "a"]
    assert type(back["d"]) is collections.defaultdict and back["d"].default_factory is list
    assert back["d"] == defaults


@pytest.mark.parametrize("cls", [Pair, Keyed])
def test_a_registered_node_comes_back_with_a_target(url, cls):
    mp.save(url, {"p": cls(jnp.ones(2), 3, "label")})
    back = mp.load(url, {"p": cls(jnp.zeros(2), 0, "other")})["p"]
    assert (type(back), back.right, back.label) == (cls, 3, "other")
    same(np.asarray(back.left), np.ones(2, np.float32))


def test_a_registered_node_comes_back_plain_without_a_target(url):
    mp.save(url, {"p": Pair(1, 2, "label"), "k": Keyed(3, 4, "label")})
    back = mp.load(url)
    assert back["k"] == {"left": 3, "right": 4}
    assert back["p"] in ({0: 1, 1: 2}, {"0": 1, "1": 2})


def test_a_registered_type_is_built_by_its_function(url, monkeypatch):
    from milepost import _structure

    monkeypatch.setattr(_structure, "_REBUILDERS", {})
    mp.save(url, {"k": Keyed(3, 4, "label")})
    mp.register_type(Keyed, lambda children: Keyed(children["left"], children["right"], "built"))
    back = mp.load(url)["k"]
    assert (type(back), back.left, back.right, back.label) == (Keyed, 3, 4, "built")


def test_partial_and_other_nodes_of_jax_come_back_with_a_target(url):
    partial = jax.tree_util.Partial(jnp.add, jnp.ones(2))
    mp.save(url, {"f": partial})
    back = mp.load(url, {"f": jax.tree_util.Partial(jnp.add, jnp.zeros(2))})["f"]
    same(np.asarray(back(1)), np.asarray(partial(1)))


def test_a_type_that_is_not_loaded_is_a_plain_named_tuple_and_nothing_is_imported(url, program, tmp_path):
    (tmp_path / "bomb.py").write_text(
        "from typing import NamedTuple\nimport dataclasses\nprint('IMPORTED')\n"
        "class Point(NamedTuple):\n    x: int\n    y: int\n"
        "@dataclasses.dataclass\nclass Config:\n    rate: float\n    class_: int\n"
    )
    program(
        f"import bomb, milepost as mp; mp.save({url!r}, dict(p=bomb.Point(1, 2), c=bomb.Config(0.5, 3)))",
    )
    done = program(
        f"""
        import sys, milepost as mp
        before = set(sys.modules)
        tree = mp.load({url!r})
        assert "bomb" not in sys.modules
        p, c = tree["p"], tree["c"]
        assert isinstance(p, tuple) and type(p).__name__ == "Point" and p == (1, 2) and p.x == 1, p
        assert c.rate == 0.5 and c.class_ == 3 and type(c).__name__ == "Config", c
        new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
        assert not new & {{"bomb", "jax", "flax", "optax", "orbax", "pickle"}}, new
        import bomb
        assert type(mp.load({url!r})["p"]) is bomb.Point
        assert type(mp.load({url!r})["c"]) is bomb.Config
        """
    )
    assert done.stdout.count("IMPORTED") == 1


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "builtins.exec", "sys.modules", "flax.nnx.State.x", "", "..", "a b"])
def test_a_name_in_a_checkpoint_is_never_called(name):
    from milepost._structure import Attr, Branch, unflatten

    for kind in ("object", "namedtuple"):
        built = unflatten(Branch(kind, name, (Attr("a"), Attr("b")), (0, 1)), [1, 2])
        assert tuple(built) == (1, 2), name


def test_a_loaded_type_whose_fields_are_others_by_now_is_not_used():
    from milepost._structure import Attr, Branch, unflatten

    name = f"{__name__}.Point"
    built = unflatten(Branch("namedtuple", name, (Attr("x"), Attr("y"), Attr("z")), (0, 1, 2)), [1, 2, 3])
    assert type(built) is not Point and built == (1, 2, 3) and built.z == 3
    name = f"{__name__}.Options"
    built = unflatten(Branch("object", name, (Attr("rate"), Attr("gone")), (0, 1)), [1, 2])
    assert type(built) is not Options and built.gone == 2


def test_fields_with_names_that_a_named_tuple_cannot_have_still_come_back():
    from milepost._structure import Attr, Branch, unflatten

    built = unflatten(Branch("object", "m.Node", (Attr("class"), Attr("_x"), Attr("ok")), (0, 1, 2)), [1, 2, 3])
    assert tuple(built) == (1, 2, 3) and built.ok == 3
