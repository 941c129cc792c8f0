"""Items and their handlers: given, registered, settled by the first use, remembered by the step."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from milepost.orbax import args, checkpoint_args, checkpointers, handlers
from milepost.orbax.checkpoint_manager import CheckpointManager, CheckpointManagerOptions

SYNC = {"enable_async_checkpointing": False}


def opened(run, *given, options=None, **named):
    options = CheckpointManagerOptions(**{**SYNC, **(options or {})})
    return CheckpointManager(run, *given, options=options, **named)


class NotesHandler(handlers.CheckpointHandler):
    """A handler of the caller's own, with args of its own."""

    def __init__(self):
        self.closed = False

    def save(self, directory, args):
        (directory / "notes.txt").write_text("\n".join(args.item))

    def restore(self, directory, args):
        notes = (directory / "notes.txt").read_text().split("\n")
        return notes[: args.first] if args is not None and args.first else notes

    def metadata(self, directory):
        return {"lines": len((directory / "notes.txt").read_text().split("\n"))}

    def close(self):
        self.closed = True


@checkpoint_args.register_with_handler(NotesHandler, for_save=True)
@dataclasses.dataclass
class NotesSave(checkpoint_args.CheckpointArgs):
    item: list[str]


@checkpoint_args.register_with_handler(NotesHandler, for_restore=True)
@dataclasses.dataclass
class NotesRestore(checkpoint_args.CheckpointArgs):
    first: int | None = None


class PlainHandler:
    """A handler without args, as before there were any."""

    def save(self, directory, item, upper=False):
        (directory / "value").write_text(json.dumps(item.upper() if upper else item))

    def restore(self, directory, item=None, lower=False):
        value = json.loads((directory / "value").read_text())
        return value.lower() if lower else value


# --- settled by the first use


def test_the_first_args_settle_the_handler_of_an_item(run, tree):
    manager = opened(run)
    manager.save(0, args=args.Composite(state=args.StandardSave(tree)))
    with pytest.raises(ValueError) as error:
        manager.save(1, args=args.Composite(state=args.JsonSave({"big": list(range(10_000))})))
    text = str(error.value)
    assert '"state"' in text and "JsonSaveArgs" in text and "StandardCheckpointHandler" in text
    assert len(text) < 400, "no value is printed"
    assert manager.all_steps() == [0] and not (run / "1").exists()
    assert manager.save(1, args=args.Composite(state=args.StandardSave(tree)))


def test_one_thing_has_one_handler_and_a_refused_save_leaves_nothing(run, tree):
    manager = opened(run)
    manager.save(2, args=args.PyTreeSave(tree))
    with pytest.raises(ValueError, match='"default" and args "JsonSaveArgs" do not fit'):
        manager.save(3, args=args.JsonSave({}))
    assert sorted(p.name for p in run.iterdir()) == [".milepost", "2", "zarr.json"]


def test_args_that_failed_settle_nothing(run, tree):
    manager = opened(run)
    with pytest.raises(Exception, match="object"):
        manager.save(0, args=args.JsonSave({"bad": object()}))
    assert manager.save(0, args=args.StandardSave(tree))


def test_standard_args_under_a_pytree_handler_are_what_they_evidently_mean(run, tree, same):
    manager = opened(run, checkpointers.PyTreeCheckpointer())
    assert manager.save(0, args=args.StandardSave(tree))
    assert same(manager.restore(0), tree)
    target = jax.tree.map(np.zeros_like, tree)
    assert same(manager.restore(0, args=args.StandardRestore(target)), tree)


# --- given


def test_names_that_are_given_are_the_only_ones(run, tree):
    manager = opened(run, item_names=("state", "extra"))
    with pytest.raises(ValueError, match='"other" is not one of.*extra.*state'):
        manager.save(0, args=args.Composite(other=args.StandardSave(tree)))
    assert manager.save(0, args=args.Composite(state=args.StandardSave(tree)))


def test_handlers_by_item_take_their_own_args(run, tree, same):
    manager = opened(
        run,
        item_handlers={
            "state": handlers.StandardCheckpointHandler(),
            "notes": NotesHandler(),
        },
    )
    manager.save(
        0, args=args.Composite(state=args.StandardSave(tree), notes=NotesSave(["a", "b", "c"]))
    )
    restored = manager.restore(0)
    assert same(restored.state, tree) and restored.notes == ["a", "b", "c"]
    some = manager.restore(0, args=args.Composite(notes=NotesRestore(first=2)))
    assert some.notes == ["a", "b"]
    with pytest.raises(ValueError, match="NotesSave"):
        manager.save(1, args=args.Composite(notes=args.JsonSave([])))
    assert manager.item_metadata(0).notes == {"lines": 3}


def test_one_handler_makes_the_manager_save_one_thing(run):
    manager = opened(run, item_handlers=NotesHandler())
    manager.save(0, args=NotesSave(["a"]))
    assert manager.restore(0) == ["a"]
    with pytest.raises(ValueError):
        manager.save(1, args=args.Composite(notes=NotesSave(["a"])))


def test_a_fresh_manager_restores_a_custom_item_without_being_told(run):
    opened(run).save(0, args=args.Composite(notes=NotesSave(["a", "b"])))
    assert opened(run).restore(0).notes == ["a", "b"]


def test_an_item_whose_handler_is_not_loaded_is_named(run, monkeypatch):
    opened(run).save(0, args=args.Composite(notes=NotesSave(["a"]), n=args.JsonSave(1)))
    from milepost.orbax import _bridge

    known = _bridge.default_handler_for
    is_loaded = lambda what: None if "Notes" in str(what) else known(what)  # noqa: E731
    monkeypatch.setattr(_bridge, "default_handler_for", is_loaded)
    fresh = opened(run)
    with pytest.raises(ValueError, match='"notes".*NotesHandler.*not loaded'):
        fresh.restore(0)
    assert fresh.restore(0, args=args.Composite(n=None)).n == 1


def test_handlers_are_closed_with_the_manager(run):
    handler = NotesHandler()
    opened(run, item_handlers={"notes": handler}).close()
    assert handler.closed


def test_arguments_that_exclude_each_other_are_refused(run):
    checkpointer = checkpointers.PyTreeCheckpointer()
    registry = handlers.DefaultCheckpointHandlerRegistry()
    for named in (
        {"checkpointers": checkpointer, "item_names": ("a",)},
        {"checkpointers": checkpointer, "item_handlers": {"a": NotesHandler()}},
        {"checkpointers": checkpointer, "handler_registry": registry},
        {"item_names": ("a",), "item_handlers": NotesHandler()},
        {"item_names": ("a",), "handler_registry": registry},
        {"item_handlers": {"a": NotesHandler()}, "handler_registry": registry},
    ):
        with pytest.raises(ValueError, match="mutually exclusive"):
            opened(run, **named)
    assert opened(run, item_names=("a",), item_handlers={"b": NotesHandler()})
    with pytest.raises(ValueError, match="Checkpointers"):
        opened(run, {"a": object()})


# --- registry


def test_a_registry_says_which_handler_takes_which_args(run, tree, same):
    registry = handlers.DefaultCheckpointHandlerRegistry()
    standard = handlers.StandardCheckpointHandler()
    registry.add("state", args.StandardSave, standard)
    registry.add("state", args.StandardRestore, standard)
    registry.add(None, NotesSave, NotesHandler())
    manager = opened(run, handler_registry=registry)
    manager.save(0, args=args.Composite(state=args.StandardSave(tree), log=NotesSave(["x"])))
    with pytest.raises(ValueError, match="settled"):
        manager.save(1, args=args.Composite(state=args.JsonSave({})))
    assert same(manager.restore(0).state, tree) and manager.restore(0).log == ["x"]


def test_one_root_may_mix_one_thing_and_items_by_manager(run, tree):
    opened(run).save(0, args=args.Composite(state=args.StandardSave(tree)))
    opened(run).save(1, args=args.PyTreeSave(tree))
    fresh = opened(run)
    assert set(fresh.restore(0)) == {"state"}
    assert set(opened(run).restore(1)) == set(tree)


# --- the oldest API


def test_a_checkpointer_in_second_place_is_the_oldest_api(run, tree, same):
    options = CheckpointManagerOptions(max_to_keep=2)
    manager = CheckpointManager(run, checkpointers.PyTreeCheckpointer(), options)
    for step in range(3):
        assert manager.save(step, {**tree, "step": step})
    manager.wait_until_finished()
    assert manager.all_steps() == [1, 2]
    assert same(manager.restore(2), {**tree, "step": 2})
    assert same(manager.restore(2, items=jax.tree.map(np.zeros_like, tree)), {**tree, "step": 2})


def test_save_and_restore_keywords_reach_the_args(run, tree):
    from milepost.orbax.type_handlers import RestoreArgs, SaveArgs

    manager = CheckpointManager(run, checkpointers.PyTreeCheckpointer())
    halves = jax.tree.map(lambda leaf: SaveArgs(dtype=np.dtype(np.float16)), tree)
    manager.save(0, tree, save_kwargs={"save_args": halves})
    manager.wait_until_finished()
    assert manager.restore(0)["params"]["w"].dtype == np.float16
    wide = jax.tree.map(lambda leaf: RestoreArgs(dtype=np.dtype(np.float64)), tree)
    restored = manager.restore(0, items=tree, restore_kwargs={"restore_args": wide})
    assert restored["params"]["w"].dtype == np.float64


def test_checkpointers_by_item_are_items(run, tree, same):
    several = {
        "params": checkpointers.AsyncCheckpointer(handlers.PyTreeCheckpointHandler()),
        "extra": checkpointers.Checkpointer(handlers.JsonCheckpointHandler()),
    }
    with CheckpointManager(run, several) as manager:
        manager.save(0, {"params": tree, "extra": {"a": 1}})
        manager.wait_until_finished()
        restored = manager.restore(0)
        assert same(restored["params"], tree) and restored["extra"] == {"a": 1}
        only = manager.restore(0, items={"params": None})
        assert set(only) == {"params"}


def test_a_sync_checkpointer_makes_a_sync_manager(run, tree):
    manager = CheckpointManager(run, checkpointers.PyTreeCheckpointer())
    manager.save(0, tree)
    assert manager.all_steps() == [0] and not manager.is_saving_in_progress()
    with pytest.raises(ValueError, match="primary_host"):
        from milepost.orbax.options import MultiprocessingOptions

        options = CheckpointManagerOptions(
            multiprocessing_options=MultiprocessingOptions(primary_host=None)
        )
        CheckpointManager(run, checkpointers.PyTreeCheckpointer(), options)


def test_a_handler_without_args_is_called_as_before_there_were_any(run):
    manager = CheckpointManager(run, checkpointers.Checkpointer(PlainHandler()))
    manager.save(0, "Text")
    manager.save(1, "Text", save_kwargs={"upper": True})
    assert manager.restore(0) == "Text" and manager.restore(1) == "TEXT"
    assert manager.restore(1, restore_kwargs={"lower": True}) == "text"


def test_a_tree_without_args_or_checkpointer_is_saved_as_a_tree(run, tree, same):
    manager = opened(run)
    assert manager.save(0, tree)
    assert same(manager.restore(0), tree)


# --- values


def test_jax_arrays_come_back_as_the_target_says(run):
    tree = {"w": jnp.arange(8.0), "n": 3}
    manager = opened(run)
    manager.save(0, args=args.StandardSave(tree))
    target = {"w": jax.ShapeDtypeStruct((8,), jnp.bfloat16), "n": 0}
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target["w"] = jax.ShapeDtypeStruct((8,), jnp.bfloat16, sharding=sharding)
    restored = manager.restore(0, args=args.StandardRestore(target))
    assert isinstance(restored["w"], jax.Array) and restored["w"].dtype == jnp.bfloat16
    assert isinstance(manager.restore(0)["w"], jax.Array) and restored["n"] == 3


def test_what_is_changed_after_an_async_save_is_saved_as_it_was(run):
    manager = CheckpointManager(run)
    array = np.zeros((1024, 1024))
    manager.save(0, args=args.StandardSave({"w": array}))
    array[:] = 1
    manager.wait_until_finished()
    assert not manager.restore(0)["w"].any()
