"""`restore_checkpoint`: a row of the reference each (§1.4), against Flax over msgpack files."""

import collections
import logging
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, struct
from flax_trees import STATES, Labelled, Model, Pair, SmallModel, as_numpy, assert_same, trained

import milepost as mp
from milepost.flax import _content

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

STATE = {"a": np.array([1, 2, 3], np.int32), "b": {"c": np.ones(2)}}


def both(ours, oracle, tmp_path, state, call):
    """What both libraries give for a state: a value, or an error's class and message."""
    found = []
    for library in (ours, oracle):
        directory = tmp_path / library.__name__
        if not directory.exists():
            library.save_checkpoint(directory, state, 1)
        try:
            found.append(("value", call(library, directory)))
        except Exception as error:
            found.append((type(error), str(error)))
    return found


@pytest.mark.parametrize("name", STATES)
def test_without_a_target_it_is_the_state_dict_that_flax_gives(ours, oracle, tmp_path, name):
    mine, theirs = both(ours, oracle, tmp_path, STATES[name], lambda c, d: c.restore_checkpoint(d, None))
    assert mine[0] == "value", mine
    assert_same(mine, theirs)


@pytest.mark.parametrize("name", STATES)
def test_with_its_own_state_as_target_it_is_what_flax_gives(ours, oracle, tmp_path, name):
    state = STATES[name]
    mine, theirs = both(ours, oracle, tmp_path, state, lambda c, d: c.restore_checkpoint(d, state))
    assert mine[0] == "value", mine
    assert_same(as_numpy(mine), theirs)


#: name → (saved, target): what Flax gives for it, value or error, is given here.
PAIRS = {
    "missing field": (SmallModel(np.ones(1)), Model(np.ones(1), np.ones(1))),
    "missing field below": ({"model": SmallModel(np.ones(1))}, {"model": Model(1, 2)}),
    "unknown field": (Model(np.ones(1), np.ones(1)), SmallModel(np.ones(1))),
    "unknown field below": ({"model": Model(1, 2)}, {"model": SmallModel(1)}),
    "shorter list": ({"data": [1, 2]}, {"data": [1]}),
    "longer list": ({"data": [1]}, {"data": [1, 2]}),
    "tuple for a list": ({"data": [1, 2]}, {"data": (0, 0)}),
    "list at the root": ([1, 2, 3], [0, 0]),
    "extra key in the target": ({"a": 1}, {"a": 1, "zz": 2}),
    "extra key below": ({"m": {"a": 1}}, {"m": {"a": 1, "zz": 2}}),
    "extra key on disk": ({"a": 1, "zz": {"y": np.ones(3)}}, {"a": 0}),
    "extra key on disk, below": ({"m": {"a": 1, "zz": np.ones(3)}}, {"m": {"a": 0}}),
    "no keys": ({"a": 1}, {}),
    "a leaf where a subtree is stored": ({"m": {"a": 1, "b": [2]}}, {"m": 0}),
    "None where a subtree is stored": ({"m": {"a": 1}}, {"m": None}),
    "None where a leaf is stored": ({"m": np.ones(2)}, {"m": None}),
    "a leaf where None is stored": ({"m": None}, {"m": np.ones(2)}),
    "a subtree where a leaf is stored": ({"m": 5}, {"m": {"a": 1}}),
    "a subtree where None is stored": ({"m": None}, {"m": {"a": 1}}),
    "another shape": ({"w": np.ones((2, 3))}, {"w": np.zeros(7)}),
    "another data type": ({"w": np.ones(3, np.float64)}, {"w": jnp.zeros(3, jnp.bfloat16)}),
    "a scalar for an array": ({"w": np.ones(3)}, {"w": 0}),
    "an array for a scalar": ({"w": 5}, {"w": np.ones(3)}),
    "fields of a named tuple": (Pair(1, 2), collections.namedtuple("Other", "first third")(1, 2)),
    "a named tuple for a dict": ({"first": 1, "second": 2}, Pair(0, 0)),
    "a dict for a named tuple": (Pair(1, 2), {"first": 0}),
    "frozen for a dict": ({"a": {"b": 1}}, __import__("flax").core.freeze({"a": {"b": 0}})),
    "frozen with an extra key": ({"a": 1}, __import__("flax").core.freeze({"a": 1, "zz": 2})),
    "integer keys": ({1: 10, 2: 20}, {1: 0, 2: 0}),
    "static field stays": (Labelled({"w": 1}, "saved"), Labelled({"w": 0}, "target")),
    "train state": (trained(1.0), trained(3.0)),
    "parameters of a train state": (trained(1.0), {"params": trained(3.0).params}),
    "shapes of jax": ({"w": jnp.ones(3)}, {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}),
    "a dict where a text is stored": ("text", {"a": 1}),
    "a dict where nothing is stored": (None, {"a": 1}),
    "empty list": ({"a": []}, {"a": []}),
    "empty list for a list": ({"a": [1]}, {"a": []}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_target_that_differs_gives_what_flax_gives(ours, oracle, tmp_path, name):
    saved, target = PAIRS[name]
    mine, theirs = both(ours, oracle, tmp_path, saved, lambda c, d: c.restore_checkpoint(d, target))
    assert mine[0] == theirs[0], (mine, theirs)
    assert_same(as_numpy(mine[1]), theirs[1])


def test_an_array_as_target_takes_the_subtree_where_flax_asks_for_its_truth(ours, oracle, tmp_path):
    mine, theirs = both(
        ours, oracle, tmp_path, {"a": 1}, lambda c, d: c.restore_checkpoint(d, np.ones(3))
    )
    assert mine == ("value", {"a": 1})
    assert theirs[0] is ValueError and "truth value" in theirs[1]  # the difference, by name


def test_the_errors_say_what_the_reference_says(ours, tmp_path):
    def message(saved, target):
        ours.save_checkpoint(tmp_path, saved, 1, overwrite=True)
        with pytest.raises(ValueError) as raised:
            ours.restore_checkpoint(tmp_path, target)
        return str(raised.value)

    missing = message({"model": SmallModel(1)}, {"model": Model(1, 2)})
    assert missing == (
        "Missing field batch_stats in state dict while restoring an instance of Model, at path ./model"
    )
    unknown = message({"model": Model(1, 2)}, {"model": SmallModel(1)})
    assert unknown == (
        'Unknown field(s) "batch_stats" in state dict while restoring an instance of SmallModel'
        " at path ./model"
    )
    length = message({"data": [1]}, {"data": [1, 2]})
    assert length.endswith("do not match, got 2 and 1 at path ./data")
    keys = message({"a": 1}, {"a": 1, "zz": 2})
    assert "target dict contains keys {'zz'} which are not present in state dict at path ." in keys


# --- which checkpoint ---


def test_the_latest_by_default_and_a_step_by_name(either, tmp_path):
    for step in (9, 10, 11):
        either.save_checkpoint(tmp_path, {"step": step}, step, keep=5)
    assert either.restore_checkpoint(tmp_path, None) == {"step": 11}
    assert either.restore_checkpoint(str(tmp_path), None, step=9) == {"step": 9}
    assert either.latest_checkpoint(tmp_path) == str(tmp_path / "checkpoint_11")


def test_the_latest_of_steps_of_any_kind(either, tmp_path):
    for step in (-1.0, 0.001, 0.1, 1.0, 1e5):
        either.save_checkpoint(tmp_path, {"step": step}, step, keep=9)
    assert either.restore_checkpoint(tmp_path, None) == {"step": 1e5}
    assert either.available_steps(tmp_path, step_type=float) == [-1.0, 0.001, 0.1, 1.0, 1e5]
    with pytest.raises(ValueError):
        either.available_steps(tmp_path)


def test_the_directory_may_be_a_checkpoint_itself(either, tmp_path):
    path = either.save_checkpoint(tmp_path, {"x": 5}, 3, prefix="p_")
    assert either.restore_checkpoint(path, None) == {"x": 5}
    assert either.restore_checkpoint(path, {"x": 0}) == {"x": 5}


def test_a_step_that_is_not_there_is_a_value_error(either, tmp_path):
    either.save_checkpoint(tmp_path, {"x": 5}, 3)
    with pytest.raises(ValueError, match=f"Matching checkpoint not found: {tmp_path}/checkpoint_4"):
        either.restore_checkpoint(tmp_path, None, step=4)


@pytest.mark.parametrize("target", [None, {"x": 1}])
def test_no_directory_gives_the_target_unchanged(either, tmp_path, target):
    assert either.restore_checkpoint(tmp_path / "no", target) is target
    (tmp_path / "empty").mkdir()
    assert either.restore_checkpoint(tmp_path / "empty", target) is target
    assert either.latest_checkpoint(tmp_path / "no") is None
    assert either.available_steps(tmp_path / "no") == []


def test_another_prefix_gives_the_target_unchanged(either, tmp_path):
    target = {"x": 1}
    either.save_checkpoint(tmp_path, {"x": 5}, 3, prefix="p_")
    assert either.restore_checkpoint(tmp_path, target) is target


def test_another_prefix_is_told_with_what_is_there(ours, tmp_path, caplog):
    ours.save_checkpoint(tmp_path, {"x": 5}, 3, prefix="p_")
    with caplog.at_level(logging.WARNING, "milepost.flax"):
        ours.restore_checkpoint(tmp_path, {"x": 1})
    assert "p_3" in caplog.text and "'checkpoint_'" in caplog.text


def test_a_checkpoint_by_another_name_only_is_restored(either, tmp_path):
    either.save_checkpoint(tmp_path, {"x": 5}, "best")
    assert either.restore_checkpoint(tmp_path, None) == {"x": 5}


def test_names_of_unfinished_saves_are_not_restored(either, tmp_path):
    either.save_checkpoint(tmp_path, {"x": 5}, 3)
    (tmp_path / "checkpoint_tmp").write_bytes(b"half")
    (tmp_path / "checkpoint_4.orbax-checkpoint-tmp-123").mkdir()
    (tmp_path / "checkpoint_9_gda").mkdir()
    assert either.restore_checkpoint(tmp_path, None) == {"x": 5}
    assert either.available_steps(tmp_path) == [3]


# --- damage ---


def damage(path):
    """The record is gone from a checkpoint, as after a crash of a file system."""
    os.truncate(os.path.join(path, "zarr.json"), 10)


def test_a_damaged_latest_is_passed_over_with_a_warning(ours, tmp_path, caplog):
    for step in (1, 2):
        path = ours.save_checkpoint(tmp_path, {"step": step}, step, keep=2)
    damage(path)
    with caplog.at_level(logging.WARNING, "milepost.flax"):
        assert ours.restore_checkpoint(tmp_path, None) == {"step": 1}
    assert "checkpoint_2" in caplog.text
    assert ours.available_steps(tmp_path) == [1]


def test_a_record_with_a_flipped_byte_is_passed_over_too(ours, tmp_path):
    for step in (1, 2):
        path = ours.save_checkpoint(tmp_path, {"step": step}, step, keep=2)
    record = os.path.join(path, "zarr.json")
    text = open(record, "rb").read().replace(b'"committed_ms":1', b'"committed_ms":2')
    open(record, "wb").write(text)
    assert ours.restore_checkpoint(tmp_path, None) == {"step": 1}


def test_nothing_whole_is_an_error_and_never_a_new_beginning(ours, tmp_path):
    damage(ours.save_checkpoint(tmp_path, STATE, 1))
    for call in (ours.latest_checkpoint, lambda d: ours.restore_checkpoint(d, STATE)):
        with pytest.raises(mp.Corrupt, match="checkpoint_1"):
            call(tmp_path)
    with pytest.raises(mp.Corrupt):
        ours.restore_checkpoint(tmp_path, STATE, step=1)
    with pytest.raises(mp.Corrupt):
        ours.restore_checkpoint(tmp_path / "checkpoint_1", STATE)


def test_a_damaged_checkpoint_is_neither_counted_nor_deleted(ours, tmp_path):
    damage(ours.save_checkpoint(tmp_path, STATE, 5))
    ours.save_checkpoint(tmp_path, STATE, 2)
    ours.save_checkpoint(tmp_path, STATE, 3)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint_3", "checkpoint_5"]
    ours.save_checkpoint(tmp_path, {"step": 5}, 5, overwrite=True)
    assert ours.restore_checkpoint(tmp_path, None) == {"step": 5}


def test_a_flipped_byte_of_a_leaf_is_corrupt(ours, tmp_path):
    path = ours.save_checkpoint(tmp_path, {"w": np.ones(1000)}, 1)
    chunk = os.path.join(path, "state", "w", "c.0")
    with open(chunk, "r+b") as file:
        file.seek(100)
        file.write(b"\x55")
    with pytest.raises(mp.Corrupt, match="w"):
        ours.restore_checkpoint(tmp_path, None)


# --- how it is read ---


def test_only_what_the_target_takes_is_read(ours, tmp_path, monkeypatch):
    ours.save_checkpoint(tmp_path, {"params": {"w": np.ones(2), "v": np.ones(2)}, "opt": [np.ones(9)]}, 1)
    taken = []
    read = _content.read

    def spy(index, wants, **options):
        taken.extend(index.leaves[want.position].path for want in wants)
        return read(index, wants, **options)

    monkeypatch.setattr(_content, "read", spy)
    restored = ours.restore_checkpoint(tmp_path, {"params": {"w": 0}})
    assert_same(restored, {"params": {"w": np.ones(2)}})
    assert taken == ["params/w"]


def test_arrays_are_writable_and_their_own(ours, tmp_path):
    ours.save_checkpoint(tmp_path, {"a": np.ones(3), "b": np.ones(3)}, 1)
    state = ours.restore_checkpoint(tmp_path, None)
    state["a"] += 1
    assert state["b"].tolist() == [1, 1, 1]


def test_a_state_of_scalars_only_fits_the_record(ours, tmp_path):
    state = {str(n): np.float32(n) if n % 7 else n for n in range(5000)}
    ours.save_checkpoint(tmp_path, state, 1)
    assert_same(ours.restore_checkpoint(tmp_path, None), state)


def test_what_other_doors_of_milepost_wrote_is_restored(ours, tmp_path):
    tree = {"layers": [{"w": np.ones(2)}, {"w": np.zeros(2)}], "pair": (1, 2.5), "none": None}
    mp.save(tmp_path / "checkpoint_1", tree)
    found = ours.restore_checkpoint(tmp_path, None)
    assert_same(found, serialization.to_state_dict(tree))
    assert_same(ours.restore_checkpoint(tmp_path, tree), tree)


def test_several_items_are_a_dict_of_them(ours, tmp_path):
    items = {"model": mp.Tree({"w": np.ones(2)}), "note": mp.Json({"lr": 0.1}), "raw": mp.Bytes(b"x")}
    mp.save(tmp_path / "checkpoint_1", items=items)
    found = ours.restore_checkpoint(tmp_path, None)
    assert_same(found, {"model": {"w": np.ones(2)}, "note": {"lr": 0.1}, "raw": b"x"})
    assert_same(ours.restore_checkpoint(tmp_path, {"model": {"w": 0}}), {"model": {"w": np.ones(2)}})


def test_manual_migration_by_from_state_dict(either, tmp_path):
    @struct.dataclass
    class Old:
        params: dict
        batches: int

    either.save_checkpoint(tmp_path, Old({"w": np.ones(2)}, 7), 1)
    raw = either.restore_checkpoint(tmp_path, None)
    raw["batch_stats"] = raw.pop("batches")
    found = serialization.from_state_dict(Model(0, 0), raw)
    assert_same(found, Model({"w": np.ones(2)}, 7))


def test_convert_pre_linen_is_flaxs(ours, oracle):
    from flax.core import freeze

    old = {"Conv_0": {"w": 1}, "Dense_1": {"Dense_3": 2, "x": 1}, "Dense_12": 3, "y": {"a_5": 1}, "_7": 1}
    assert ours.convert_pre_linen(old) == oracle.convert_pre_linen(old)
    assert ours.convert_pre_linen(freeze(old)) == oracle.convert_pre_linen(freeze(old))
    assert ours.convert_pre_linen(5) == 5
