"""Pytrees of plain containers: keys, empty containers, None, odd names, depth; their text paths."""

from __future__ import annotations

import collections
import random

import numpy as np
import pytest
from conftest import difference, same

import milepost as mp
from milepost._structure import flatten, key_paths, positions, rebuild, text, unflatten

Point = collections.namedtuple("Point", "x y")

PLAIN = {
    "a dict": {"a": 1, "b": {"c": 2}},
    "a list": [1, [2, [3]]],
    "a tuple": (1, (2,), ((),)),
    "a leaf": 5,
    "None": None,
    "an empty dict": {},
    "an empty list": [],
    "an empty tuple": (),
    "empty containers inside": {"a": {}, "b": [], "c": (), "d": None, "e": [None, {}, [()]]},
    "only None inside": {"a": None, "b": [None, None]},
    "integer keys": {0: 1, -5: 2, 2**63 - 1: 3, -(2**63): 4},
    "integer and string keys": {1: 1, "2": 2, 10: 3, "a": 4},
    "an order of its own": {"z": 1, "a": 2, "m": 3, 10: 4, 9: 5},
    "a named tuple": Point(1, Point((), None)),
    "names like fields": {"name": 1, "position": 2, "key": 3, "kind": 4, "c.0": 5, "c": {"0": 6}},
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_containers_come_back(url, name):
    tree = PLAIN[name]
    mp.save(url, tree)
    same(mp.load(url), tree)
    same(mp.load(url, tree), tree)


NAMES = [
    "a.b",
    "a/b",
    "/",
    "..",
    ".",
    "...",
    "ends.",
    "",
    " ",
    "zarr.json",
    "_milepost",
    "__init__",
    "%41",
    "%",
    "100%",
    "ü",
    "日本語",
    "😀",
    "new\nline",
    "nul\0",
    "back\\slash",
    "CON",
    "x" * 250,
    "é" * 120,
    "params['w']",
    "*",
    "**",
    "~",
    "#?&=",
    "Aa",
    "aA",
]


def test_keys_may_be_any_text(url):
    tree = {name: number for number, name in enumerate(NAMES)}
    mp.save(url, {"odd": tree, **tree})
    same(mp.load(url), {"odd": tree, **tree})
    same(mp.load(url, {"odd": tree, **tree}), {"odd": tree, **tree})
    checkpoint = mp.open(url)
    for leaf, number in zip(checkpoint.index().leaves, [*tree.values()] * 2, strict=True):
        assert checkpoint[leaf.path].value() == number
    for name in NAMES:
        assert checkpoint[text((name,))].value() == tree[name]
        assert checkpoint["odd"].load()[name] == tree[name]
        assert name in checkpoint["odd"] and checkpoint["odd"][name].value() == tree[name]


def test_surrogates_in_keys_and_text_are_refused(url):
    for tree in ({"\ud800": 1}, {"a": "\ud800"}):
        with pytest.raises(ValueError):
            mp.save(url, tree)


@pytest.mark.parametrize("key", [(1, 2), 1.5, True, None, b"a", 2**63, -(2**63) - 1], ids=repr)
def test_other_keys_are_refused_with_where_they_are(url, key):
    with pytest.raises(mp.Invalid) as caught:
        mp.save(url, {"a": [{key: 1}]})
    assert caught.value.context["leaf"] == "a/0"
    assert caught.value.context["key"] == repr(key)
    assert caught.value.hint


def test_an_integer_key_beside_its_text_is_refused(url):
    with pytest.raises(mp.Invalid, match='integer 1.*name "1"'):
        mp.save(url, {1: "a", "1": "b"})


def test_a_key_that_is_an_integer_of_numpy_or_an_enum_is_told_apart(url):
    with pytest.raises(mp.Invalid, match="int64"):
        mp.save(url, {np.int64(1): 1})


def test_a_tree_that_is_too_deep_or_holds_itself_is_refused(url):
    tree = []
    tree.append(tree)
    with pytest.raises(mp.Invalid, match="deep"):
        mp.save(url, tree)
    deep = leaf = {}
    for _ in range(440):
        leaf["a"] = leaf = {}
    leaf["x"] = 1
    mp.save(url, deep)
    for back in (mp.load(url), mp.load(url, deep), mp.load(url, exact=False)):
        for _ in range(440):
            back = back["a"]
        assert back == {"x": 1}


def test_a_part_without_leaves_is_loaded_too(url):
    mp.save(url, {"a": {}, "b": {"c": [], "d": (None,)}, "e": None, "f": 1})
    checkpoint = mp.open(url)
    assert checkpoint["a"].load() == {} and checkpoint["b"].load() == {"c": [], "d": (None,)}
    assert checkpoint["b/d"].load() == (None,) and checkpoint["e"].load() is None
    assert checkpoint["b"].load(exact=False) == {"c": [], "d": [None]}
    assert checkpoint.tree().load() == mp.load(url)


def test_parts_of_lists_and_typed_containers_are_loaded(url):
    mp.save(url, {"l": [Point(1, [2, 3]), 4], 5: (6, 7)})
    checkpoint = mp.open(url)
    assert checkpoint["l/0"].load() == Point(1, [2, 3]) and checkpoint["l"][0]["y"].load() == [2, 3]
    assert checkpoint["l"].keys() == ["0", "1"] and len(checkpoint["l"]) == 2
    assert checkpoint["5"].load() == (6, 7) and checkpoint.tree()[5][1].value() == 7
    assert [key for key in checkpoint.tree()] == ["l", "5"]


def test_names_that_only_differ_in_case_stay_apart(url):
    mp.save(url, {"Weight": 1, "weight": 2})
    same(mp.load(url), {"Weight": 1, "weight": 2})


def random_tree(random: random.Random, depth: int = 0):
    kind = random.choice(["dict", "list", "tuple", "leaf", "leaf", "none"]) if depth < 4 else "leaf"
    if depth == 0 and kind in ("leaf", "none"):
        kind = "dict"
    size = random.randrange(5)
    if kind == "dict":
        names = random.sample([*NAMES, *"abcdef", 1, 2, 3, -7], size)
        return {name: random_tree(random, depth + 1) for name in names}
    if kind in ("list", "tuple"):
        children = [random_tree(random, depth + 1) for _ in range(size)]
        return children if kind == "list" else tuple(children)
    if kind == "none":
        return None
    return random.choice([7, 1.5, True, "text", b"bytes", 1j, np.arange(3), np.zeros((0, 2)), np.array(4)])


def test_random_trees_come_back(tmp_path):
    for seed in range(60):
        tree = random_tree(random.Random(seed))
        url = str(tmp_path / str(seed))
        mp.save(url, tree, durability="published")
        for back in (mp.load(url), mp.load(url, tree)):
            assert (found := difference(back, tree)) is None, f"seed {seed}: {found}"


def test_flatten_and_unflatten_are_opposites():
    for seed in range(300):
        tree = random_tree(random.Random(seed))
        node, leaves = flatten(tree)
        assert list(positions(node)) == list(range(len(leaves)))
        assert len(key_paths(node)) == len(leaves)
        assert difference(unflatten(node, leaves), tree) is None, seed
        assert difference(rebuild(tree, leaves), tree) is None, seed


def test_leaves_have_the_order_of_the_containers(url):
    tree = {"b": 1, "a": [2, {"d": 3, "c": 4}]}
    node, leaves = flatten(tree)
    assert leaves == [1, 2, 3, 4]
    assert [text(path) for path in key_paths(node)] == ["b", "a/0", "a/1/d", "a/1/c"]
    mp.save(url, tree)
    assert [leaf.path for leaf in mp.open(url).index().leaves] == ["b", "a/0", "a/1/d", "a/1/c"]


def test_is_leaf_stops_the_walk():
    node, leaves = flatten({"a": (1, 2), "b": None}, is_leaf=lambda x: isinstance(x, tuple) or x is None)
    assert leaves == [(1, 2), None]
    assert rebuild({"a": (1, 2), "b": None}, [3, 4], is_leaf=lambda x: isinstance(x, tuple) or x is None) == {"a": 3, "b": 4}


def test_a_big_tree_of_small_leaves_comes_back(url):
    tree = {f"layer_{i}": {"w": np.full(2, i), "n": i} for i in range(1500)}
    mp.save(url, tree)
    same(mp.load(url), tree)
    assert len(mp.open(url).index().leaves) == 3000
