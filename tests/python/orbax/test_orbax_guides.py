"""What guides write and Orbax refuses, or has no word for: what it evidently means is done."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees_of_orbax import kinds

import milepost as mp


def save(ocp, path, tree, **options):
    ocp.PyTreeCheckpointer().save(path, tree, **options)
    return path


def test_a_relative_path_is_below_the_current_directory(ours, theirs, tmp_path, monkeypatch):
    """Orbax: `Checkpoint path should be absolute`."""
    monkeypatch.chdir(tmp_path)
    save(ours, "relative", {"a": 1})
    assert ours.PyTreeCheckpointer().restore(tmp_path / "relative") == {"a": 1}
    assert ours.PyTreeCheckpointer().restore("relative") == {"a": 1}
    with pytest.raises(ValueError, match="absolute"):
        save(theirs, "theirs", {"a": 1})


def test_standard_save_takes_metadata(ours, theirs, tmp_path):
    """Orbax: TypeError, unexpected keyword argument."""
    with pytest.raises(TypeError):
        theirs.args.StandardSave({"a": 1}, metadata={"step": 1})
    with ours.Checkpointer(ours.StandardCheckpointHandler()) as checkpointer:
        args = ours.args.StandardSave({"a": 1}, metadata={"step": 1})
        checkpointer.save(tmp_path / "a", args=args)
        found = checkpointer.metadata(tmp_path / "a").item_metadata
    assert found.custom_metadata == {"step": 1}
    with pytest.raises(ValueError):
        ours.args.StandardSave({"a": 1}, custom_metadata={"a": 1}, metadata={"b": 1})


def test_an_args_object_in_the_slot_of_save_args(ours, tmp_path):
    """Seed 000: `save(path, tree, save_args=StandardSave(metadata={…}))`; Orbax fails."""
    checkpointer = ours.PyTreeCheckpointer()
    args = ours.args.StandardSave(metadata={"loss": 0.5})
    checkpointer.save(tmp_path / "a", {"a": 1}, save_args=args)
    assert checkpointer.metadata(tmp_path / "a").item_metadata.custom_metadata == {"loss": 0.5}
    checkpointer.save(tmp_path / "b", {"a": 1}, args=args)
    assert checkpointer.restore(tmp_path / "b") == {"a": 1}


def test_an_args_object_in_the_slot_of_restore_args_restores_its_subset(ours, tmp_path):
    """Seed 000: `restore(path, restore_args=StandardRestore(item=subset))`."""
    checkpointer = ours.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "a", {"model": {"w": jnp.ones(3)}, "opt": {"m": jnp.ones(3)}})
    subset = {"model": {"w": jax.ShapeDtypeStruct((3,), jnp.bfloat16)}}
    restored = checkpointer.restore(
        tmp_path / "a", restore_args=ours.args.StandardRestore(item=subset)
    )
    assert kinds(restored) == kinds({"model": {"w": jnp.ones(3, jnp.bfloat16)}})
    wrong = {"model": {"w": jax.ShapeDtypeStruct((4,), jnp.float32)}}
    with pytest.raises(ValueError, match="model/w"):
        checkpointer.restore(tmp_path / "a", restore_args=ours.args.StandardRestore(item=wrong))


@pytest.mark.parametrize("handler", ["PyTreeCheckpointHandler", "StandardCheckpointHandler"])
def test_either_tree_handler_takes_the_args_of_both(ours, tmp_path, handler):
    """Orbax: `Item "default" and args … does not match with any registered handler!`"""
    tree = {"a": jnp.ones(2)}
    with ours.AsyncCheckpointer(getattr(ours, handler)()) as checkpointer:
        for name in ("Standard", "PyTree"):
            save_args = getattr(ours.args, f"{name}Save")(tree)
            checkpointer.save(tmp_path / name, args=save_args)
            for restore in ("Standard", "PyTree"):
                args = getattr(ours.args, f"{restore}Restore")(tree)
                restored = checkpointer.restore(tmp_path / name, args=args)
                assert kinds(restored) == kinds(tree)


def test_other_args_than_the_handlers_are_refused(ours, tmp_path):
    with ours.Checkpointer(ours.StandardCheckpointHandler()) as checkpointer:
        with pytest.raises(ValueError, match="JsonSaveArgs"):
            checkpointer.save(tmp_path / "a", args=ours.args.JsonSave({"a": 1}))
    assert not (tmp_path / "a").exists() and not os.listdir(tmp_path)


def test_a_composite_item_that_is_none_is_not_saved(ours, tmp_path):
    """Orbax: an error."""
    with ours.Checkpointer(ours.CompositeCheckpointHandler()) as checkpointer:
        args = ours.args.Composite(state=ours.args.StandardSave({"a": 1}), extra=None)
        checkpointer.save(tmp_path / "a", args=args)
        assert dict(checkpointer.restore(tmp_path / "a")) == {"state": {"a": 1}}


def test_an_item_is_not_locked_to_the_args_that_saved_it_first(ours, tmp_path):
    """Orbax: the first args class of an item name is the only one from then on."""
    with ours.Checkpointer(ours.CompositeCheckpointHandler()) as checkpointer:
        first = ours.args.Composite(x=ours.args.StandardSave({"a": 1}))
        second = ours.args.Composite(x=ours.args.JsonSave({"b": 2}))
        checkpointer.save(tmp_path / "1", args=first)
        checkpointer.save(tmp_path / "2", args=second)
        assert checkpointer.restore(tmp_path / "1").x == {"a": 1}
        assert checkpointer.restore(tmp_path / "2").x == {"b": 2}


def test_a_composite_item_that_is_not_args_says_what_to_do(ours, tmp_path):
    with ours.Checkpointer(ours.CompositeCheckpointHandler()) as checkpointer:
        with pytest.raises(ValueError, match="StandardSave"):
            checkpointer.save(tmp_path / "a", args=ours.args.Composite(state={"a": 1}))


@pytest.mark.parametrize("place", ["handler", "checkpointer", "pytree", "standard", "async"])
def test_compression_is_chosen_by_name(ours, tmp_path, place):
    """Orbax: TypeError; it compresses with zstd, or with `use_compression=False` not."""
    tree = {"x": np.zeros(1 << 16)}
    plain = ours.PyTreeCheckpointHandler
    made = {
        "handler": lambda **c: ours.Checkpointer(plain(**c)),
        "checkpointer": lambda **c: ours.Checkpointer(plain(), **c),
        "pytree": ours.PyTreeCheckpointer,
        "standard": ours.StandardCheckpointer,
        "async": lambda **c: ours.AsyncCheckpointer(plain(), **c),
    }[place]
    for compression, small in ((None, False), ("none", False), ("zstd", True), ("zstd:7", True)):
        with made(compression=compression) as checkpointer:
            path = tmp_path / str(compression).replace(":", "-")
            checkpointer.save(path, tree)
        assert (_bytes(path) < 10_000) == small
        assert ours.PyTreeCheckpointer().restore(path)["x"].sum() == 0
    with pytest.raises(ValueError), made(compression="snappy") as checkpointer:
        checkpointer.save(tmp_path / "bad", tree)


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_use_compression_is_zstd_only_where_it_is_asked_for(ours, tmp_path):
    """Orbax's default is True; ours is none, as parameters hardly shrink."""
    tree = {"x": np.zeros(1 << 16)}
    sizes = {}
    for flag in (None, False, True):
        ours.PyTreeCheckpointer(use_compression=flag).save(tmp_path / str(flag), tree)
        sizes[flag] = _bytes(tmp_path / str(flag))
    assert sizes[True] < 10_000 < sizes[None]
    assert sizes[None] == pytest.approx(sizes[False], rel=0.1)
    with pytest.raises(ValueError):
        ours.PyTreeCheckpointHandler(use_compression=False, compression="zstd")


@pytest.mark.parametrize(
    "options",
    [
        {"aggregate_filename": "x"},
        {"array_metadata_validator": object()},
        {"save_concurrent_gb": 0},
        {"restore_concurrent_gb": -1},
    ],
    ids=str,
)
def test_options_without_a_meaning_are_refused(ours, options):
    with pytest.raises(ValueError):
        ours.PyTreeCheckpointHandler(**options)


def test_parts_of_orbax_that_cannot_be_replaced_are_refused(ours):
    handler = ours.PyTreeCheckpointHandler()
    with pytest.raises(ValueError):
        ours.Checkpointer(handler, checkpoint_metadata_store=object())
    with pytest.raises(ValueError):
        ours.Checkpointer(handler, temporary_path_class=object)


def test_an_items_own_path_is_understood(ours, tmp_path):
    """Orbax has a directory an item: its users name `<step>/default` or `<step>/state`."""
    with ours.Checkpointer(ours.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            tmp_path / "a",
            args=ours.args.Composite(
                state=ours.args.StandardSave({"a": 1}), extra=ours.args.JsonSave([1])
            ),
        )
    assert ours.PyTreeCheckpointer().restore(tmp_path / "a" / "state") == {"a": 1}
    assert ours.Checkpointer(ours.JsonCheckpointHandler()).restore(tmp_path / "a" / "extra") == [1]
    with pytest.raises(ValueError, match="extra, state"):
        ours.PyTreeCheckpointer().restore(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        ours.PyTreeCheckpointer().restore(tmp_path / "a" / "none")


def test_force_saves_at_foreground_priority(ours, tmp_path, monkeypatch):
    """Seed 000 says that `force=True` is a higher priority; in Orbax it is not."""
    asked = []
    save_async = mp.save_async
    monkeypatch.setattr(
        mp, "save_async", lambda *a, **k: asked.append(k["priority"]) or save_async(*a, **k)
    )
    with ours.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", {"x": 1})
        checkpointer.save(tmp_path / "a", {"x": 2}, force=True)
        assert checkpointer.restore(tmp_path / "a") == {"x": 2}
    assert asked == ["background", "foreground"]


def test_a_run_is_restored_at_its_newest_step(ours, tmp_path):
    """Orbax: a manager's root is no checkpoint."""
    with ours.CheckpointManager(tmp_path / "run") as manager:
        for step in (1, 2):
            manager.save(step, args=ours.args.StandardSave({"n": step}))
    assert ours.PyTreeCheckpointer().restore(tmp_path / "run") == {"n": 2}
    assert ours.PyTreeCheckpointer().restore(tmp_path / "run" / "1") == {"n": 1}
