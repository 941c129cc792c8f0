"""Checkpoints of Orbax and of the native API, through the drop-in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import milepost as mp


def save(ocp, path, tree, **options):
    ocp.PyTreeCheckpointer().save(path, tree, **options)
    return path


def test_a_step_saved_natively_restores_through_the_drop_in(ours, tmp_path):
    mp.save(str(tmp_path / "a"), {"w": np.arange(3.0), "t": (1, 2)})
    assert ours.PyTreeCheckpointer().restore(tmp_path / "a")["t"] == [1, 2]
    restored = ours.StandardCheckpointer().restore(
        tmp_path / "a", {"w": jnp.zeros(3), "t": (0, 0)}
    )
    assert isinstance(restored["w"], jax.Array) and restored["t"] == (1, 2)


def test_what_the_drop_in_saved_loads_natively(ours, tmp_path):
    save(ours, tmp_path / "a", {"w": jnp.arange(3.0), "t": (1, 2)})
    loaded = mp.load(str(tmp_path / "a"))
    assert loaded["t"] == (1, 2) and loaded["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("ocdbt", [True, False])
def test_an_orbax_checkpoint_at_the_path_is_read(ours, theirs, tmp_path, ocdbt):
    """A changed import line on an existing checkpoint: never None, never an overwrite."""
    tree = {"a": jnp.ones(3), "b": {"c": np.arange(4.0)}, "n": 3}
    theirs.PyTreeCheckpointer(use_ocdbt=ocdbt).save(tmp_path / "old", tree)
    restored = ours.PyTreeCheckpointer().restore(tmp_path / "old")
    assert jax.tree.map(np.asarray, restored)["b"]["c"].tolist() == [0, 1, 2, 3]
    target = {"a": jnp.zeros(3, jnp.bfloat16), "b": {"c": np.zeros(4)}, "n": 0}
    with ours.StandardCheckpointer() as checkpointer:
        into = checkpointer.restore(tmp_path / "old", target)
    assert into["a"].dtype == jnp.bfloat16 and into["n"] == 3
    with pytest.raises(ValueError, match="exists"):
        save(ours, tmp_path / "old", {"a": 1})
    described = ours.PyTreeCheckpointer().metadata(tmp_path / "old").item_metadata
    assert described.tree["a"].shape == (3,)


def test_a_composite_orbax_checkpoint_is_read(ours, theirs, tmp_path):
    with theirs.Checkpointer(theirs.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            tmp_path / "old",
            args=theirs.args.Composite(
                state=theirs.args.StandardSave({"a": np.ones(2)}),
                extra=theirs.args.JsonSave({"lr": 0.1}),
            ),
        )
    with ours.Checkpointer(ours.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(tmp_path / "old")
        assert restored.extra == {"lr": 0.1} and restored.state["a"].tolist() == [1, 1]
        one = checkpointer.restore(
            tmp_path / "old", args=ours.args.Composite(extra=ours.args.JsonRestore())
        )
        assert dict(one) == {"extra": {"lr": 0.1}}
