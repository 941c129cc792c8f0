"""Several items in one checkpoint, and the handlers that save them."""

from __future__ import annotations

import time

import jax.numpy as jnp
import numpy as np
import pytest
from equality import assert_same
from points import (
    Counter,
    FailingHandler,
    OtherPointHandler,
    Point,
    PointHandler,
    SlowPointHandler,
    with_handler,
)

MODEL = {"w": np.arange(3.0)}


def test_items_come_back_by_name(ocp, tmp_path):
    ocp.save_checkpointables(tmp_path / "c", {"model": MODEL, "extra": {"n": 1, "s": "x"}})
    loaded = ocp.load_checkpointables(tmp_path / "c")
    assert_same(loaded, {"model": MODEL, "extra": {"n": 1, "s": "x"}})


def test_a_subset_is_loaded(ocp, tmp_path):
    ocp.save_checkpointables(tmp_path / "c", {"model": MODEL, "extra": {"n": 1}})
    assert_same(ocp.load_checkpointables(tmp_path / "c", {"extra": None}), {"extra": {"n": 1}})
    abstract = {"model": {"w": np.zeros(3, np.float32)}}
    assert_same(
        ocp.load_checkpointables(tmp_path / "c", abstract),
        {"model": {"w": np.arange(3, dtype=np.float32)}},
    )


def test_save_checkpointables_async_captures_first(ocp, tmp_path):
    w = np.arange(3.0)
    response = ocp.save_checkpointables_async(tmp_path / "c", {"model": {"w": w}})
    w[:] = -1
    response.result()
    assert_same(ocp.load_checkpointables(tmp_path / "c")["model"], MODEL)


def test_load_checkpointables_async_works_unlike_orbax(ours, theirs, tmp_path):
    ours.save_checkpointables(tmp_path / "c", {"model": MODEL})
    assert_same(ours.load_checkpointables_async(tmp_path / "c").result(), {"model": MODEL})
    with pytest.raises(NotImplementedError):
        theirs.load_checkpointables_async(tmp_path / "c")


def test_an_unknown_item_is_a_key_error_that_lists_the_items(ocp, tmp_path):
    ocp.save_checkpointables(tmp_path / "c", {"model": MODEL})
    with pytest.raises(KeyError, match="model"):
        ocp.load_checkpointables(tmp_path / "c", {"foo": None})


@pytest.mark.parametrize("wrong", [{}, {"": MODEL}, {"metrics": MODEL}, {"AUTO": MODEL}, [MODEL]])
def test_wrong_dicts_of_checkpointables_are_value_errors(ocp, tmp_path, wrong):
    with pytest.raises(ValueError):
        ocp.save_checkpointables(tmp_path / "c", wrong)
    assert not (tmp_path / "c").exists()


def test_wrong_names_to_load_are_value_errors(ocp, tmp_path):
    ocp.save_checkpointables(tmp_path / "c", {"model": MODEL})
    for wrong in ({"": None}, {"metrics": None}, {"AUTO": None}):
        with pytest.raises(ValueError):
            ocp.load_checkpointables(tmp_path / "c", wrong)


def test_none_cannot_be_saved(ocp, tmp_path):
    with pytest.raises(ValueError, match="must not be None"):
        ocp.save_checkpointables(tmp_path / "c", {"model": None})


def test_checkpointables_metadata_describes_each_item(ocp, tmp_path):
    context = with_handler(ocp, PointHandler)
    with context:
        ocp.save_checkpointables(
            tmp_path / "c", {"model": MODEL, "p": Point(1, 2)}, custom_metadata={"k": [1]}
        )
        metadata = ocp.checkpointables_metadata(tmp_path / "c")
    assert set(metadata.metadata) == {"model", "p"}
    assert metadata.metadata["model"]["w"].shape == (3,)
    assert metadata.metadata["p"] is Point
    assert metadata.custom_metadata == {"k": [1]}


def test_a_custom_handler_saves_and_loads(ocp, tmp_path):
    with with_handler(ocp, PointHandler):
        ocp.save_checkpointables(tmp_path / "c", {"p": Point(1, 2), "model": MODEL})
        assert ocp.load_checkpointables(tmp_path / "c")["p"] == Point(1, 2)
        assert ocp.load_checkpointables(tmp_path / "c", {"p": Point}) == {"p": Point(1, 2)}


def test_without_its_handler_an_object_is_refused(ocp, tmp_path):
    with pytest.raises(KeyError, match="Could not identify a valid handler"):
        ocp.save_checkpointables(tmp_path / "c", {"p": Point(1, 2)})
    assert not (tmp_path / "c").exists()


def test_without_its_handler_the_other_items_still_load(ocp, tmp_path):
    with with_handler(ocp, PointHandler):
        ocp.save_checkpointables(tmp_path / "c", {"p": Point(1, 2), "model": MODEL})
    assert_same(ocp.load_checkpointables(tmp_path / "c", {"model": None}), {"model": MODEL})
    with pytest.raises(KeyError):
        ocp.load_checkpointables(tmp_path / "c", {"p": None})


def test_the_handler_registered_last_is_chosen(ours, theirs, tmp_path):
    for ocp in (ours, theirs):
        place = tmp_path / ocp.__name__
        with with_handler(ocp, PointHandler, OtherPointHandler):
            ocp.save_checkpointables(place, {"p": Point(1, 2)})
            assert ocp.load_checkpointables(place)["p"] == Point(1, 2)
        # What PointHandler alone would look for is not there.
        with with_handler(ocp, PointHandler):
            with pytest.raises((KeyError, FileNotFoundError)):
                ocp.load_checkpointables(place, {"p": Point})


def test_a_handler_for_a_name_goes_before_others(ours, tmp_path):
    with with_handler(ours, PointHandler, named=OtherPointHandler):
        ours.save_checkpointables(tmp_path / "c", {"p": Point(1, 2), "named": Point(3, 4)})
        loaded = ours.load_checkpointables(tmp_path / "c")
    assert loaded == {"p": Point(1, 2), "named": Point(3, 4)}
    with with_handler(ours, OtherPointHandler):
        assert ours.load_checkpointables(tmp_path / "c", {"named": Point})["named"] == Point(3, 4)


def test_the_global_registry_is_seen_by_every_context(ours, tmp_path):
    from milepost.orbax.v1.handlers import _registry

    ours.handlers.register_handler(PointHandler)
    try:
        ours.save_checkpointables(tmp_path / "c", {"p": Point(1, 2)})
        assert ours.load_checkpointables(tmp_path / "c") == {"p": Point(1, 2)}
        with pytest.raises(ValueError, match="already exists"):
            ours.handlers.register_handler(PointHandler)
    finally:
        entries = _registry._GLOBAL._entries
        entries[:] = [entry for entry in entries if entry[0] is not PointHandler]


def test_registries_refuse_what_is_wrong(ocp):
    registry = ocp.handlers.local_registry()
    assert registry.add(PointHandler) is registry
    with pytest.raises(ValueError, match="already exists"):
        registry.add(PointHandler)
    registry.add(PointHandler, checkpointable_name="p")
    with pytest.raises(ValueError, match="already exists"):
        registry.add(OtherPointHandler, checkpointable_name="p")
    with pytest.raises(ValueError, match="must be a type"):
        registry.add(PointHandler())
    assert registry.has("p") and not registry.has("q")
    assert registry.get("p") is PointHandler
    with pytest.raises(KeyError):
        registry.get("q")
    with pytest.raises(NotImplementedError, match="read-only"):
        ocp.Context().checkpointables.registry.add(PointHandler)


def test_registries_are_copied_with_their_order(ocp):
    registry = ocp.handlers.local_registry(include_global_registry=False)
    registry.add(PointHandler)
    registry.add(OtherPointHandler, checkpointable_name="x", secondary_typestrs=["a.b"])
    other = ocp.handlers.local_registry(registry, include_global_registry=False)
    assert list(other.get_all_entries()) == [(PointHandler, None), (OtherPointHandler, "x")]
    assert list(other.get_secondary_typestrs(OtherPointHandler)) == ["a.b"]
    everything = ocp.handlers.local_registry()
    assert everything.has("state") and everything.has("metrics")


def test_a_handler_that_needs_arguments_is_refused(ocp, tmp_path):
    class Needy(PointHandler):
        def __init__(self, something):
            pass

    with with_handler(ocp, Needy):
        with pytest.raises(ValueError, match="default-constructed"):
            ocp.save_checkpointables(tmp_path / "c", {"p": Point(1, 2)})


def test_the_second_part_of_a_handler_runs_in_the_background(ocp, tmp_path):
    with with_handler(ocp, SlowPointHandler):
        begun = time.monotonic()
        response = ocp.save_checkpointables_async(
            tmp_path / "c", {"p": Point(1, 2), "model": {"w": np.arange(3.0)}}
        )
        assert time.monotonic() - begun < 0.4
        response.result()
        assert ocp.load_checkpointables(tmp_path / "c")["p"] == Point(1, 2)


def test_trees_beside_a_slow_handler_are_captured_first(ocp, tmp_path):
    w, device = np.arange(3.0), jnp.arange(3.0)
    with with_handler(ocp, SlowPointHandler):
        response = ocp.save_checkpointables_async(
            tmp_path / "c", {"p": Point(1, 2), "model": {"w": w, "d": device}}
        )
        w[:] = -1
        device.delete()
        response.result()
        loaded = ocp.load_checkpointables(tmp_path / "c", {"model": None})["model"]
    assert_same(loaded["w"], np.arange(3.0))
    np.testing.assert_array_equal(loaded["d"], np.arange(3.0))


def test_a_handler_that_fails_leaves_nothing(ocp, tmp_path):
    with with_handler(ocp, FailingHandler):
        with pytest.raises(OSError, match="disk is full"):
            ocp.save_checkpointables(tmp_path / "c", {"p": Point(1, 2), "model": MODEL})
    assert not (tmp_path / "c").exists()


def test_an_object_that_saves_itself(ocp, tmp_path):
    ocp.save_checkpointables(tmp_path / "c", {"data": Counter(5), "model": MODEL})
    counter = Counter()
    loaded = ocp.load_checkpointables(tmp_path / "c", {"data": counter, "model": None})
    assert loaded["data"] is counter and counter.position == 5
    assert_same(loaded["model"], MODEL)
    assert isinstance(counter, ocp.StatefulCheckpointable)


def test_an_object_that_saves_itself_must_be_given_to_load(ocp, tmp_path):
    ocp.save_checkpointables(tmp_path / "c", {"data": Counter(5)})
    with pytest.raises(ValueError, match="must pass an instance"):
        ocp.load_checkpointables(tmp_path / "c")
    assert ocp.checkpointables_metadata(tmp_path / "c").metadata == {"data": None}


def test_json_by_name(ocp, tmp_path):
    config = {"lr": 0.1, "layers": [1, None, "x"], "deep": {"a": True}}
    with with_handler(ocp, config=ocp.handlers.JsonHandler):
        ocp.save_checkpointables(tmp_path / "c", {"config": config, "model": MODEL})
        assert ocp.load_checkpointables(tmp_path / "c")["config"] == config
    # Remembered: also without the registration.
    assert ocp.load_checkpointables(tmp_path / "c")["config"] == config
    assert_same(ocp.load(tmp_path / "c"), MODEL)


def test_json_keeps_what_it_was_when_saved_unlike_orbax(ours, theirs, tmp_path):
    kept = {}
    for ocp in (ours, theirs):
        config, place = {"a": [1]}, tmp_path / ocp.__name__
        with with_handler(ocp, SlowPointHandler, config=ocp.handlers.JsonHandler):
            items = {"p": Point(1, 2), "config": config}
            response = ocp.save_checkpointables_async(place, items)
            config["a"].append(2)
            response.result()
            kept[ocp] = ocp.load_checkpointables(place, {"config": None})["config"]
    assert kept[ours] == {"a": [1]}
    assert kept[theirs] == {"a": [1, 2]}


def test_a_handler_may_pass_its_directory_on_to_the_pytree_handler(ocp, tmp_path):
    class Boxed:
        def __init__(self, tree):
            self.tree = tree

    class BoxedHandler:
        async def save(self, directory, checkpointable):
            return await ocp.handlers.PyTreeHandler().save(directory, checkpointable.tree)

        async def load(self, directory, abstract_checkpointable=None):
            rest = await ocp.handlers.PyTreeHandler().load(directory)

            async def read():
                return Boxed(await rest)

            return read()

        async def metadata(self, directory):
            return await ocp.handlers.PyTreeHandler().metadata(directory)

        def is_handleable(self, checkpointable):
            return isinstance(checkpointable, Boxed)

        def is_abstract_handleable(self, abstract_checkpointable):
            return None

    with with_handler(ocp, BoxedHandler):
        ocp.save_checkpointables(tmp_path / "c", {"box": Boxed({"w": np.arange(3.0)})})
        assert_same(ocp.load_checkpointables(tmp_path / "c")["box"].tree, MODEL)
        assert ocp.checkpointables_metadata(tmp_path / "c").metadata["box"]["w"].shape == (3,)


def test_a_handler_for_the_name_of_a_tree_may_pass_it_on_too(ours, tmp_path):
    class Doubling:
        async def save(self, directory, checkpointable):
            raise NotImplementedError

        async def load(self, directory, abstract_checkpointable=None):
            rest = await ours.handlers.PyTreeHandler().load(directory)

            async def read():
                return {k: v * 2 for k, v in (await rest).items()}

            return read()

        def is_handleable(self, checkpointable):
            return False

        def is_abstract_handleable(self, abstract_checkpointable):
            return True

    ours.save_checkpointables(tmp_path / "c", {"model": MODEL})
    with with_handler(ours, model=Doubling):
        loaded = ours.load_checkpointables(tmp_path / "c")["model"]
    assert_same(loaded, {"w": np.arange(3.0) * 2})


def test_protocol_buffers_are_saved_as_text(ocp, tmp_path):
    wrappers = pytest.importorskip("google.protobuf.wrappers_pb2")
    message = wrappers.StringValue(value="hello")
    ocp.save_checkpointables(tmp_path / "c", {"proto": message, "model": MODEL})
    loaded = ocp.load_checkpointables(tmp_path / "c", {"proto": wrappers.StringValue})
    assert loaded["proto"] == message


def test_no_module_is_imported_because_a_checkpoint_names_it(ours, tmp_path):
    import sys

    with with_handler(ours, PointHandler):
        ours.save_checkpointables(tmp_path / "c", {"p": Point(1, 2), "model": MODEL})
    module = sys.modules.pop("points")
    try:
        with pytest.raises(KeyError, match="points.PointHandler"):
            ours.load_checkpointables(tmp_path / "c", {"p": None})
        assert "points" not in sys.modules
    finally:
        sys.modules["points"] = module


def test_auto_takes_state_first_then_the_first_tree_by_name(ocp, tmp_path):
    ocp.save_checkpointables(tmp_path / "c", {"a": {"x": 1}, "state": {"y": 2}, "z": {"w": 3}})
    assert ocp.load(tmp_path / "c") == {"y": 2}
    assert ocp.metadata(tmp_path / "c").metadata == {"y": 0}
    with with_handler(ocp, PointHandler, c=ocp.handlers.JsonHandler):
        items = {"b": Point(1, 2), "c": {"j": 1}, "e": {"x": 5}, "d": {"x": 4}}
        ocp.save_checkpointables(tmp_path / "d", items)
    assert ocp.load(tmp_path / "d") == {"x": 4}
