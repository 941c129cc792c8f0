"""Handlers of the user's: with and without registered args, asynchronous, in a registry."""

from __future__ import annotations

import asyncio
import os
import tempfile

import jax.numpy as jnp
import numpy as np
import pytest
from handlers_of_users import Vocabulary, asynchronous, delegating, legacy, registered

import milepost as mp

WORDS = Vocabulary(["one", "two"])


def test_a_handler_with_registered_args(ocp, tmp_path):
    handler, save, restore = registered(ocp)
    with ocp.Checkpointer(handler()) as checkpointer:
        checkpointer.save(tmp_path / "a", args=save(WORDS))
        assert checkpointer.restore(tmp_path / "a", args=restore()) == WORDS
        upper = checkpointer.restore(tmp_path / "a", args=restore(upper=True))
        assert upper.words == ["ONE", "TWO"]
        assert checkpointer.metadata(tmp_path / "a").item_metadata == {"words": 2}
    assert handler.closed == 1


def test_an_asynchronous_handler(ocp, tmp_path):
    handler, save, restore = asynchronous(ocp)
    with ocp.AsyncCheckpointer(handler()) as checkpointer:
        checkpointer.save(tmp_path / "a", args=save(WORDS))
        checkpointer.wait_until_finished()
        assert checkpointer.restore(tmp_path / "a", args=restore()) == WORDS
    assert handler.finalized >= 1


def test_an_asynchronous_handler_inside_a_running_loop(ours, tmp_path):
    handler, save, restore = asynchronous(ours)

    async def notebook():
        with ours.AsyncCheckpointer(handler()) as checkpointer:
            checkpointer.save(tmp_path / "a", args=save(WORDS))
            return checkpointer.restore(tmp_path / "a", args=restore())

    assert asyncio.run(notebook()) == WORDS


def test_a_handler_without_registered_args(ocp, tmp_path):
    handler = legacy(ocp)
    with ocp.Checkpointer(handler()) as checkpointer:
        checkpointer.save(tmp_path / "a", np.arange(3), scale=2)
        assert checkpointer.restore(tmp_path / "a").tolist() == [0, 2, 4]
        checkpointer.save(tmp_path / "b", item=np.arange(2))
        assert checkpointer.restore(tmp_path / "b", item=None).tolist() == [0, 1]


def test_any_object_with_save_and_restore_is_a_handler(ours, tmp_path):
    class Plain:
        def save(self, directory, item):
            (directory / "x").write_text(item)

        def restore(self, directory, item=None):
            return (directory / "x").read_text()

    with ours.AsyncCheckpointer(Plain()) as checkpointer:
        checkpointer.save(tmp_path / "a", "text")
        assert checkpointer.restore(tmp_path / "a") == "text"


def test_a_handler_built_on_built_in_handlers(ocp, tmp_path):
    handler, args = delegating(ocp)
    params = {"w": jnp.arange(3.0), "n": 1}
    with ocp.Checkpointer(handler()) as checkpointer:
        checkpointer.save(tmp_path / "a", args=args(params, {"layers": 2}))
        restored, config = checkpointer.restore(tmp_path / "a", args=args())
    assert restored["w"].tolist() == [0, 1, 2] and restored["n"] == 1
    assert config == {"layers": 2}


def test_custom_and_built_in_items_in_one_composite(ocp, tmp_path):
    handler, save, restore = registered(ocp)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            tmp_path / "a",
            args=ocp.args.Composite(words=save(WORDS), state=ocp.args.StandardSave({"a": 1})),
        )
        restored = checkpointer.restore(
            tmp_path / "a",
            args=ocp.args.Composite(words=restore(), state=ocp.args.StandardRestore()),
        )
    assert restored.words == WORDS and restored.state == {"a": 1}


def test_a_handler_registry_in_a_composite(ocp, tmp_path):
    handler, save, restore = registered(ocp)
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add("words", save, handler())
    registry.add("words", restore, handler())
    registry.add(None, ocp.args.JsonSave)
    registry.add(None, ocp.args.JsonRestore)
    composite = ocp.CompositeCheckpointHandler(handler_registry=registry)
    with ocp.Checkpointer(composite) as checkpointer:
        checkpointer.save(
            tmp_path / "a",
            args=ocp.args.Composite(words=save(WORDS), extra=ocp.args.JsonSave([1])),
        )
        restored = checkpointer.restore(
            tmp_path / "a", args=ocp.args.Composite(words=restore(), extra=ocp.args.JsonRestore())
        )
    assert restored.words == WORDS and restored.extra == [1]


def test_a_fresh_composite_finds_the_handler_of_a_custom_item_by_its_name(ours, tmp_path):
    handler, save, _ = registered(ours)
    with ours.Checkpointer(ours.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "a", args=ours.args.Composite(words=save(WORDS)))
    with ours.Checkpointer(ours.CompositeCheckpointHandler(words=handler())) as checkpointer:
        assert checkpointer.restore(tmp_path / "a").words == WORDS
        assert checkpointer.metadata(tmp_path / "a").item_metadata.words == {"words": 2}
    info = mp.open(str(tmp_path / "a")).items["words"]
    assert info.kind == "opaque" and info.handler.endswith("VocabularyHandler")


def test_an_unknown_handler_is_named_and_no_module_is_imported(ours, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "x").write_text("y")
    item = mp.Files(tmp_path / "files", handler="antigravity.Handler")
    mp.save(str(tmp_path / "a"), items={"words": item})
    import sys

    with ours.Checkpointer(ours.CompositeCheckpointHandler()) as checkpointer:
        with pytest.raises(ValueError, match="antigravity.Handler"):
            checkpointer.restore(tmp_path / "a")
    assert "antigravity" not in sys.modules


def test_a_handler_that_fails_leaves_nothing(ours, tmp_path, monkeypatch):
    class Failing(ours.CheckpointHandler):
        def save(self, directory, item):
            (directory / "half").write_text("x")
            raise RuntimeError("no more words")

        def restore(self, directory):
            raise RuntimeError("never")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    with ours.Checkpointer(Failing()) as checkpointer:
        with pytest.raises(RuntimeError, match="no more words"):
            checkpointer.save(tmp_path / "a", 1)
    assert os.listdir(tmp_path) == ["scratch"] and os.listdir(tmp_path / "scratch") == []


def test_scratch_directories_are_gone_after_save_and_restore(ours, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    handler, save, restore = registered(ours)
    with ours.AsyncCheckpointer(handler()) as checkpointer:
        checkpointer.save(tmp_path / "a", args=save(WORDS))
        checkpointer.restore(tmp_path / "a", args=restore())
        checkpointer.metadata(tmp_path / "a")
    assert os.listdir(tmp_path / "scratch") == []


def test_a_built_in_handler_alone_writes_a_whole_checkpoint(ours, tmp_path):
    """Orbax: without a Checkpointer the directory cannot be read (issue 924)."""
    handler = ours.PyTreeCheckpointHandler()
    handler.save(tmp_path / "a", args=ours.args.PyTreeSave({"a": 1}))
    assert ours.PyTreeCheckpointer().restore(tmp_path / "a") == {"a": 1}
    assert handler.restore(tmp_path / "a") == {"a": 1}
    assert handler.metadata(tmp_path / "a").tree["a"].shape == ()


def test_two_built_in_handlers_may_share_a_directory(ours, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").write_text("x")
    tree, config = ours.PyTreeCheckpointHandler(), ours.JsonCheckpointHandler()
    tree.save(tmp_path / "a", args=ours.args.PyTreeSave({"a": 1}))
    config.save(tmp_path / "a", args=ours.args.JsonSave([2]))
    assert tree.restore(tmp_path / "a") == {"a": 1} and config.restore(tmp_path / "a") == [2]


def test_a_subclass_that_overrides_save_is_called(ours, tmp_path):
    class Doubling(ours.PyTreeCheckpointHandler):
        def save(self, directory, *args, **kwargs):
            (directory / "note").write_text("mine")
            super().save(directory, *args, **kwargs)

    with ours.Checkpointer(Doubling()) as checkpointer:
        checkpointer.save(tmp_path / "a", args=ours.args.PyTreeSave({"a": 1}))
        assert checkpointer.restore(tmp_path / "a") == {"a": 1}
    assert mp.open(str(tmp_path / "a")).items["default"].kind == "opaque"


def test_a_subclass_that_overrides_nothing_is_native(ours, tmp_path):
    class Mine(ours.StandardCheckpointHandler):
        pass

    with ours.Checkpointer(Mine()) as checkpointer:
        checkpointer.save(tmp_path / "a", args=ours.args.StandardSave({"a": 1}))
        assert checkpointer.restore(tmp_path / "a") == {"a": 1}
    assert mp.open(str(tmp_path / "a")).items["default"].kind == "tree"


def test_a_protocol_buffer_is_an_item(ocp, tmp_path):
    struct = pytest.importorskip("google.protobuf.struct_pb2")
    message = struct.Struct()
    message["a"] = 1.5
    message["b"] = "text"
    with ocp.Checkpointer(ocp.ProtoCheckpointHandler(filename="x.pbtxt")) as checkpointer:
        checkpointer.save(tmp_path / "a", args=ocp.args.ProtoSave(message))
        restored = checkpointer.restore(tmp_path / "a", args=ocp.args.ProtoRestore(struct.Struct))
    assert restored == message


def test_an_item_of_another_kind_is_a_value_error(ours, tmp_path):
    with ours.Checkpointer(ours.JsonCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "a", args=ours.args.JsonSave([1]))
    with pytest.raises(ValueError, match="is a json"):
        ours.PyTreeCheckpointer().restore(tmp_path / "a")
    handler, _, restore = registered(ours)
    with pytest.raises(ValueError, match="is a json"):
        ours.Checkpointer(handler()).restore(tmp_path / "a", args=restore())


def test_a_typestr_is_what_the_checkpoint_remembers(ours, tmp_path):
    assert ours.StandardCheckpointHandler.typestr() == "milepost.orbax.StandardCheckpointHandler"
    ours.PyTreeCheckpointer().save(tmp_path / "a", {"a": 1})
    info = mp.open(str(tmp_path / "a")).items["default"]
    assert info.handler == "milepost.orbax.PyTreeCheckpointHandler"


def test_the_older_constructor_of_a_composite_refuses_both_ways_at_once(ours):
    with pytest.raises(ValueError):
        ours.CompositeCheckpointHandler(
            handler_registry=ours.handlers.DefaultCheckpointHandlerRegistry(),
            state=ours.StandardCheckpointHandler(),
        )


def test_args_of_the_installed_orbax_mean_ours(ours, theirs, tmp_path):
    """A library that was imported before, as Flax, makes args of the real one."""
    tree = {"a": jnp.ones(2), "n": 1}
    for name in ("PyTree", "Standard"):
        with ours.Checkpointer(getattr(ours, f"{name}CheckpointHandler")()) as checkpointer:
            checkpointer.save(tmp_path / name, args=getattr(theirs.args, f"{name}Save")(tree))
            args = getattr(theirs.args, f"{name}Restore")(tree)
            assert checkpointer.restore(tmp_path / name, args=args)["a"].tolist() == [1, 1]
    save_args = {"a": theirs.SaveArgs(dtype=np.dtype(np.float16)), "n": theirs.SaveArgs()}
    restore_args = {"a": theirs.RestoreArgs(restore_type=np.ndarray), "n": theirs.RestoreArgs()}
    checkpointer = ours.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "c", tree, save_args=save_args)
    restored = checkpointer.restore(tmp_path / "c", restore_args=restore_args)
    assert isinstance(restored["a"], np.ndarray) and restored["a"].dtype == np.float16
    with ours.Checkpointer(ours.CompositeCheckpointHandler()) as checkpointer:
        args = theirs.args.Composite(x=theirs.args.StandardSave(tree), y=theirs.args.JsonSave([1]))
        checkpointer.save(tmp_path / "d", args=args)
        assert checkpointer.restore(tmp_path / "d").y == [1]
    kinds = {name: info.kind for name, info in mp.open(str(tmp_path / "d")).items.items()}
    assert kinds == {"x": "tree", "y": "json"}


def test_handlers_registered_with_the_installed_orbax_are_found(ours, theirs, tmp_path):
    """As those of grain's data iterators are."""
    _, save, restore = registered(theirs)
    with ours.Checkpointer(ours.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "a", args=ours.args.Composite(words=save(WORDS)))
        restored = checkpointer.restore(
            tmp_path / "a", args=ours.args.Composite(words=restore(upper=True))
        )
    assert restored.words.words == ["ONE", "TWO"]
