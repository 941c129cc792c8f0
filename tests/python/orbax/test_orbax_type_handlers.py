"""Leaves of types of the user's own, saved by type handlers."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

import milepost as mp


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and self.cents == other.cents

    __hash__ = None


def money_handler(ocp):
    class Done:
        def result(self, timeout=None):
            return None

    class MoneyHandler(ocp.type_handlers.TypeHandler):
        def typestr(self):
            return "Money"

        async def metadata(self, infos):
            return [ocp.metadata.StringMetadata(name=i.name, directory=i.parent_dir) for i in infos]

        async def serialize(self, values, infos, args=None):
            for value, info in zip(values, infos):
                path = info.parent_dir
                path = getattr(path, "path", path) if not hasattr(path, "write_text") else path
                (path / f"{info.name}.money.json").write_text(json.dumps(value.cents))
            return [Done()]

        async def deserialize(self, infos, args=None):
            found = []
            for info in infos:
                text = (info.parent_dir / f"{info.name}.money.json").read_text()
                found.append(Money(json.loads(text)))
            return found

    return MoneyHandler()


@pytest.fixture
def registered(ocp):
    """The handler in the global registry of the module, and out of it again."""
    before = ocp.type_handlers
    ocp.type_handlers.register_type_handler(Money, money_handler(ocp), override=True)
    yield ocp
    entries = _entries(before)
    entries[:] = [entry for entry in entries if not _is_money(entry)]


def _entries(module):
    if hasattr(module, "global_registry"):
        return module.global_registry()._entries
    from orbax.checkpoint._src.serialization import type_handler_registry

    return type_handler_registry.GLOBAL_TYPE_HANDLER_REGISTRY._type_registry


def _is_money(entry):
    handlers = [part for part in entry if hasattr(part, "typestr") and not isinstance(part, type)]
    return any(handler.typestr() == "Money" for handler in handlers)


TREE = {"price": Money(100), "deep": {"tax": Money(19)}, "w": jnp.ones(3), "n": 2}


def test_leaves_of_a_registered_type_are_saved_and_restored(registered, tmp_path):
    ocp = registered
    checkpointer = ocp.PyTreeCheckpointer(use_ocdbt=False)
    checkpointer.save(tmp_path / "a", TREE)
    restored = checkpointer.restore(tmp_path / "a")
    assert restored["price"] == Money(100) and restored["deep"]["tax"] == Money(19)
    assert restored["w"].tolist() == [1, 1, 1] and restored["n"] == 2
    into = checkpointer.restore(tmp_path / "a", item={**TREE, "price": Money(0)})
    assert into["price"] == Money(100)


def test_the_registry_of_types(ocp):
    handlers = ocp.type_handlers
    assert handlers.has_type_handler(np.ndarray) and handlers.has_type_handler(int)
    assert isinstance(handlers.get_type_handler(type(jnp.ones(1))), handlers.ArrayHandler)
    assert isinstance(handlers.get_type_handler(str), handlers.StringHandler)
    with pytest.raises(ValueError, match="Unknown type"):
        handlers.get_type_handler(Money)
    with pytest.raises(ValueError, match="already registered"):
        handlers.register_type_handler(int, handlers.ScalarHandler())
    registry = handlers.create_type_handler_registry((int, handlers.ScalarHandler()))
    assert registry.has(int) and not registry.has(str)
    assert handlers.is_supported_empty_value({}) and not handlers.is_supported_empty_value({"a": 1})


def test_a_registry_of_the_handlers_own(ours, tmp_path):
    registry = ours.type_handlers.create_type_handler_registry((Money, money_handler(ours)))
    handler = ours.PyTreeCheckpointHandler(type_handler_registry=registry)
    with ours.AsyncCheckpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "a", args=ours.args.PyTreeSave(TREE))
        part = ours.args.PyTreeRestore(item={"deep": {"tax": Money(0)}}, partial_restore=True)
        assert checkpointer.restore(tmp_path / "a", args=part) == {"deep": {"tax": Money(19)}}
        skipped = checkpointer.restore(
            tmp_path / "a", args=ours.args.PyTreeRestore(item={**TREE, "price": ...})
        )
        assert skipped["price"] is ... and skipped["deep"]["tax"] == Money(19)
    with pytest.raises(ValueError, match="register_type_handler"):
        ours.PyTreeCheckpointer().restore(tmp_path / "a")
    # Every other leaf is a plain array to anybody.
    assert mp.open(str(tmp_path / "a"))["w"][0:2].tolist() == [1, 1]


def test_without_a_handler_the_leaf_is_named(ours, tmp_path):
    with pytest.raises(Exception, match="deep/tax|price"):
        ours.PyTreeCheckpointer().save(tmp_path / "a", TREE)


def test_handlers_of_built_in_types_are_configured_not_called(ours, tmp_path):
    import jax

    handlers = ours.type_handlers
    registry = handlers.create_type_handler_registry(
        (jax.Array, handlers.SingleReplicaArrayHandler(replica_axis_index=0)),
        (np.ndarray, handlers.NumpyHandler(deepcopy_host_arrays=False)),
    )
    handler = ours.PyTreeCheckpointHandler(type_handler_registry=registry)
    with ours.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "a", args=ours.args.PyTreeSave({"a": jnp.ones(2)}))
        args = {"a": handlers.SingleReplicaArrayRestoreArgs()}
        restored = checkpointer.restore(
            tmp_path / "a", args=ours.args.PyTreeRestore(restore_args=args)
        )
    assert restored["a"].tolist() == [1, 1]
    with pytest.raises(TypeError, match="no option"):
        handlers.ArrayHandler(unknown=1)


def test_standard_restore_takes_such_leaves_in_its_target(ours, tmp_path):
    registry = ours.type_handlers.global_registry()
    registry.add(Money, money_handler(ours), override=True)
    try:
        with ours.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "a", TREE)
            restored = checkpointer.restore(tmp_path / "a", {**TREE, "price": Money(0)})
        assert restored["price"] == Money(100) and restored["w"].tolist() == [1, 1, 1]
    finally:
        registry._entries[:] = [entry for entry in registry._entries if entry[0] is not Money]
