"""Partial saves, and deletion of checkpoints that stand alone."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from equality import assert_same


def test_parts_become_one_checkpoint(ocp, tmp_path):
    first, second = {"a": np.arange(3), "n": {"x": 1}}, {"b": jnp.arange(2), "n": {"y": 2.5}}
    ocp.partial.save(tmp_path / "c", first, custom_metadata={"k": 1, "l": 1})
    ocp.partial.save(tmp_path / "c", second, custom_metadata={"l": 2})
    ocp.partial.save_async(tmp_path / "c", {"s": "text"}).result()
    assert not (tmp_path / "c").exists()
    with pytest.raises(ocp.errors.InvalidLayoutError):
        ocp.load(tmp_path / "c")
    ocp.partial.finalize(tmp_path / "c")
    assert_same(
        ocp.load(tmp_path / "c"),
        {"a": np.arange(3), "b": jnp.arange(2), "n": {"x": 1, "y": 2.5}, "s": "text"},
    )
    assert ocp.metadata(tmp_path / "c").custom_metadata == {"k": 1, "l": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_leaf_is_saved_once(ocp, tmp_path):
    ocp.partial.save(tmp_path / "c", {"a": np.ones(1), "n": {"x": np.ones(1)}})
    for again in ({"a": np.zeros(1)}, {"n": {"x": np.zeros(1)}}):
        with pytest.raises(Exception, match="(?i)replac"):
            ocp.partial.save(tmp_path / "c", again)
    ocp.partial.save(tmp_path / "c", {"b": np.ones(1)})
    ocp.partial.finalize(tmp_path / "c")
    assert_same(
        ocp.load(tmp_path / "c"), {"a": np.ones(1), "b": np.ones(1), "n": {"x": np.ones(1)}}
    )


def test_all_replacements_are_named(ours, tmp_path):
    ours.partial.save(tmp_path / "c", {"a": 1, "n": {"x": 1}})
    with pytest.raises(ours.errors.PartialSaveReplacementError) as caught:
        ours.partial.save(tmp_path / "c", {"a": 2, "n": {"x": 2, "y": 3}})
    assert caught.value.paths == ("a", "n/x")
    assert isinstance(caught.value, ValueError)


def test_lists_are_of_one_part(ours, tmp_path):
    ours.partial.save(tmp_path / "c", {"l": [1, 2], "t": (1,)})
    with pytest.raises(ours.errors.PartialSaveReplacementError, match="l"):
        ours.partial.save(tmp_path / "c", {"l": [3]})
    ours.partial.finalize(tmp_path / "c")
    assert_same(ours.load(tmp_path / "c", {"l": [0, 0], "t": (0,)}), {"l": [1, 2], "t": (1,)})


def test_async_parts_are_saved_in_their_order_unlike_orbax(ours, tmp_path):
    # Orbax says that a later call waits for an earlier one; two at once fail there (ENOTEMPTY).
    tree = {f"w{n}": np.full(10, n) for n in range(5)}
    responses = [ours.partial.save_async(tmp_path / "c", {k: v}) for k, v in tree.items()]
    for response in responses:
        response.result()
    ours.partial.finalize(tmp_path / "c")
    assert_same(ours.load(tmp_path / "c"), tree)


def test_finalize_waits_for_parts_on_their_way(ours, tmp_path):
    host = np.full(100_000, 1.0)
    ours.partial.save_async(tmp_path / "c", {"a": host})
    host[:] = -1
    ours.partial.finalize(tmp_path / "c")
    assert ours.load(tmp_path / "c")["a"][7] == 1.0


def test_a_failed_part_leaves_the_others(ours, tmp_path):
    ours.partial.save(tmp_path / "c", {"a": 1})
    with pytest.raises(ValueError, match="Unsupported leaf"):
        ours.partial.save(tmp_path / "c", {"b": object()})
    ours.partial.finalize(tmp_path / "c")
    assert ours.load(tmp_path / "c") == {"a": 1}


def test_finished_and_missing_checkpoints_are_errors(ocp, tmp_path):
    with pytest.raises(FileNotFoundError):
        ocp.partial.finalize(tmp_path / "c")
    ocp.save(tmp_path / "c", {"a": 1})
    with pytest.raises(FileExistsError):
        ocp.partial.save(tmp_path / "c", {"b": 1})
    with pytest.raises(FileExistsError):
        ocp.partial.finalize(tmp_path / "c")


def test_an_unfinished_partial_save_is_named_in_the_error(ours, tmp_path):
    ours.partial.save(tmp_path / "c", {"a": 1})
    with pytest.raises(ours.errors.InvalidLayoutError, match="partial.finalize"):
        ours.load(tmp_path / "c")
    ours.partial.finalize(f"{tmp_path / 'c'}.partial_save")
    assert ours.load(tmp_path / "c") == {"a": 1}


def test_delete_removes_a_checkpoint(ocp, tmp_path):
    ocp.save(tmp_path / "c", {"a": np.ones(2)})
    assert ocp.delete(tmp_path / "c") is True
    assert not (tmp_path / "c").exists() and list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        ocp.delete(tmp_path / "c")
    assert ocp.delete(tmp_path / "c", missing_ok=True) is False
    ocp.save(tmp_path / "c", {"a": np.ones(2)})
    assert ocp.delete_async(tmp_path / "c").result() is True


def test_delete_takes_single_checkpoints_only(ocp, tmp_path):
    ocp.save(tmp_path / "c", {"a": np.ones(2)})
    with ocp.training.Checkpointer(tmp_path / "run") as ckptr:
        ckptr.save(0, {"a": np.ones(2)})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    for wrong in ("run", "c/state", "other"):
        with pytest.raises(ocp.errors.InvalidLayoutError):
            ocp.delete(tmp_path / wrong)
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"
    assert_same(ocp.load(tmp_path / "run" / "0"), {"a": np.ones(2)})


def test_delete_removes_one_item(ocp, tmp_path):
    ocp.save_checkpointables(
        tmp_path / "c",
        {"model": {"w": np.ones(2)}, "opt": {"m": np.ones(3)}},
        custom_metadata={"k": 1},
    )
    assert ocp.delete(tmp_path / "c", checkpointable_name="opt") is True
    assert_same(ocp.load_checkpointables(tmp_path / "c"), {"model": {"w": np.ones(2)}})
    assert ocp.metadata(tmp_path / "c").custom_metadata == {"k": 1}
    with pytest.raises(FileNotFoundError):
        ocp.delete(tmp_path / "c", checkpointable_name="opt")
    with pytest.raises(ValueError, match="final"):
        ocp.delete(tmp_path / "c", checkpointable_name="model")


def test_deleting_an_item_keeps_what_the_others_are(ours, tmp_path):
    import collections

    from points import Point, PointHandler, with_handler

    Pair = collections.namedtuple("Pair", "left right")
    tree = {"p": Pair(jnp.ones(2), (np.zeros(1), None)), 3: b"x", "e": {}, "c": 1j}
    with with_handler(ours, PointHandler, config=ours.handlers.JsonHandler):
        items = {"tree": tree, "p": Point(1, 2), "config": {"a": [1.5, None]}}
        items["gone"] = {"w": np.ones(1)}
        ours.save_checkpointables(tmp_path / "c", items)
        ours.delete(tmp_path / "c", checkpointable_name="gone")
        loaded = ours.load_checkpointables(tmp_path / "c")
        assert loaded["p"] == Point(1, 2) and loaded["config"] == {"a": [1.5, None]}
        exact = ours.load(tmp_path / "c", tree, checkpointable_name="tree")
    assert isinstance(exact["p"], Pair)
    assert_same(exact, tree)


@pytest.mark.parametrize("name", ["", ".", "a/b", "metrics"])
def test_names_that_no_item_has_are_refused(ocp, tmp_path, name):
    ocp.save(tmp_path / "c", {"a": np.ones(2)})
    with pytest.raises(ValueError):
        ocp.delete(tmp_path / "c", checkpointable_name=name)


def test_deleted_checkpoints_are_moved_where_the_context_says(ours, tmp_path):
    ctx = ours.Context()
    ctx.deletion.gcs_deletion_options.todelete_full_path = "trash"
    ours.save(tmp_path / "c", {"a": 1})
    with ctx:
        assert ours.delete(tmp_path / "c") is True
    (moved,) = (tmp_path / "trash").iterdir()
    assert ours.load(moved) == {"a": 1}


def test_parts_keep_types_and_shardings(ours, tmp_path):
    import jax

    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    both = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    value = np.arange(32.0, dtype="f4").reshape(8, 4)
    ours.partial.save(tmp_path / "c", {"n": {"z": np.ones(1)}, "r": jax.device_put(value, rows)})
    part = {"a": jax.device_put(value, both), "h": np.ones(2), "s": np.float32(2)}
    ours.partial.save(tmp_path / "c", part)
    ours.partial.save(tmp_path / "c", {"n": {"y": jax.device_put(value, rows), "k": 3}})
    ours.partial.finalize(tmp_path / "c")
    loaded = ours.load(tmp_path / "c")
    assert loaded["r"].sharding == rows and loaded["n"]["y"].sharding == rows
    assert loaded["a"].sharding == both and isinstance(loaded["h"], np.ndarray)
    assert isinstance(loaded["n"]["z"], np.ndarray) and isinstance(loaded["s"], np.float32)
    assert loaded["n"]["k"] == 3
