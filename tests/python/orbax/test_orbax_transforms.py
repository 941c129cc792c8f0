"""Transformations: of trees, and at restore. Those that Orbax runs are run on both."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ORIGINAL = {
    "a": 1,
    "b": {"c": 5, "d": [0, 1, 2, 3]},
    "f": 2,
    "b1": {"c": 2},
    "b2": {"c": 3},
}


def test_rename_copy_combine_and_regular_expressions(ocp):
    transforms = {
        "a1": ocp.Transform(original_key="a"),
        "a2": ocp.Transform(multi_value_fn=lambda key, tree: tree["a"]),
        "b": {"c": ocp.Transform(multi_value_fn=lambda key, tree: tree["b"]["c"] * 2)},
        "c1": ocp.Transform(original_key="b/c"),
        "c2": ocp.Transform(original_key="b/c", value_fn=lambda value: value + 1),
        "x": ocp.Transform(multi_value_fn=lambda key, tree: tree["b"]["d"][0]),
        "z": ocp.Transform(multi_value_fn=lambda key, tree: tree["a"] * 2 + sum(tree["b"]["d"])),
        r"x(\d.*)": ocp.Transform(original_key=r"b\1"),
        "kept": ocp.Transform(use_fallback=True),
    }
    new = {
        "a1": ..., "a2": ..., "b": {"c": ...}, "c1": ..., "c2": ..., "x": ..., "z": ...,
        "f": ..., "g": 5, "x1": {"c": ...}, "x2": {"c": ...}, "kept": 9,
    }  # fmt: skip
    assert ocp.apply_transformations(ORIGINAL, transforms, new) == {
        "a1": 1, "a2": 1, "b": {"c": 10}, "c1": 5, "c2": 6, "x": 0, "z": 8,
        "f": 2, "g": 5, "x1": {"c": 2}, "x2": {"c": 3}, "kept": 9,
    }  # fmt: skip


def test_default_to_new_takes_only_what_is_transformed(ocp):
    transforms = {"r": ocp.Transform(original_key="a"), "f": ocp.Transform(use_fallback=True)}
    new = {"r": 0, "f": 0, "b1": {"c": 7}}
    assert ocp.apply_transformations(ORIGINAL, transforms, new, default_to_original=False) == {
        "r": 1,
        "f": 2,
        "b1": {"c": 7},
    }


def test_a_key_that_is_not_there_is_a_value_error(ocp):
    with pytest.raises(ValueError, match="not found in origin tree"):
        ocp.apply_transformations({"a": 1}, {"b": ocp.Transform(original_key="x")}, {"b": 0})
    with pytest.raises(ValueError, match="not found in origin tree"):
        ocp.apply_transformations(
            {"a": 1}, {"b": ocp.Transform(use_fallback=True)}, {"b": 0}, default_to_original=False
        )


def test_two_ways_at_once_are_refused(ocp):
    with pytest.raises((ValueError, AssertionError)):
        ocp.Transform(original_key="a", use_fallback=True)
    with pytest.raises((ValueError, AssertionError)):
        ocp.Transform(value_fn=abs, multi_value_fn=lambda key, tree: 0)


def test_merge_and_intersect(ocp):
    merged = ocp.merge_trees({"a": 1, "b": {"c": 2}}, {"b": {"c": 3, "d": 4}})
    assert merged == {"a": 1, "b": {"c": 3, "d": 4}}
    common = ocp.transform_utils.intersect_trees({"a": 1, "b": 2}, {"b": 3, "c": 4})
    assert common == {"b": 3}


SAVED = {"enc": {"w": np.arange(4.0), "b": np.ones(2)}, "old": np.full(3, 7.0), "step": 4}


def restore(ocp, tmp_path, item, transforms, **options):
    path = tmp_path / "a"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        if not path.exists():
            checkpointer.save(path, args=ocp.args.PyTreeSave(SAVED))
        args = jax.tree.map(lambda _: ocp.RestoreArgs(), item)
        options = {"restore_args": args, **options}
        return checkpointer.restore(
            path, args=ocp.args.PyTreeRestore(item=item, transforms=transforms, **options)
        )


def test_a_restore_renames_drops_and_adds(ocp, tmp_path):
    item = {"encoder": {"w": 0, "b": 0}, "new": 9, "step": 0}
    transforms = {r"encoder/(.*)": ocp.Transform(original_key=r"enc/\1")}
    restored = restore(ocp, tmp_path, item, transforms)
    assert restored["encoder"]["w"].tolist() == [0, 1, 2, 3]
    assert restored["new"] == 9 and restored["step"] == 4 and "old" not in restored


def test_empty_transforms_take_what_both_have(ocp, tmp_path):
    restored = restore(ocp, tmp_path, {"step": 0, "new": 9}, {})
    assert restored == {"step": 4, "new": 9}
    assert restore(ocp, tmp_path, {"step": 0}, {}, transforms_default_to_original=False) == {
        "step": 0
    }


def test_a_value_fn_and_fallbacks_at_restore(ocp, tmp_path):
    item = {"old": 0, "step": 5}
    transforms = {
        "old": ocp.Transform(value_fn=lambda value: value * 2),
        "step": ocp.Transform(use_fallback=True),
    }
    restored = restore(ocp, tmp_path, item, transforms)
    assert restored["old"].tolist() == [14, 14, 14] and restored["step"] == 5


def test_a_function_of_many_leaves_reads_those_it_names(ocp, tmp_path):
    def combine(key, tree, args):
        assert key == "both"
        return np.concatenate([tree["enc"]["w"], tree["old"]])

    transforms = {
        "both": ocp.RestoreTransform(
            multi_value_fn=combine,
            multi_value_fn_input_args={
                "enc/w": ocp.RestoreArgs(restore_type=np.ndarray),
                "old": ocp.RestoreArgs(restore_type=np.ndarray),
            },
        )
    }
    restored = restore(ocp, tmp_path, {"both": 0}, transforms)
    assert restored["both"].tolist() == [0, 1, 2, 3, 7, 7, 7]


def test_transforms_need_an_item(ocp, tmp_path):
    with pytest.raises(ValueError, match="must provide `item`"):
        restore(ocp, tmp_path, None, {}, restore_args=None)


def test_restore_args_are_not_needed(ours, tmp_path):
    """Orbax: `must provide restore_args matching structure of expected result`."""
    item = {"renamed": 0, "new": jnp.ones(2)}
    transforms = {"renamed": ours.Transform(original_key="enc/b")}
    restored = restore(ours, tmp_path, item, transforms, restore_args=None)
    assert restored["renamed"].tolist() == [1, 1] and restored["new"].tolist() == [1, 1]


def test_a_function_of_many_without_named_inputs_gets_them_all(ours, tmp_path):
    """Orbax: `multi_value_fn_input_args were not [specified]`."""
    add = lambda key, tree: tree["step"] + tree["old"][0]  # noqa: E731
    transforms = {"n": ours.Transform(multi_value_fn=add)}
    assert restore(ours, tmp_path, {"n": 0}, transforms)["n"] == 11


def test_transforms_apply_dtype_and_sharding_of_restore_args(ours, tmp_path):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    restored = restore(
        ours,
        tmp_path,
        {"x": 0},
        {"x": ours.Transform(original_key="enc/w")},
        restore_args={"x": ours.ArrayRestoreArgs(sharding=sharding, dtype=jnp.bfloat16)},
    )
    assert restored["x"].dtype == jnp.bfloat16 and restored["x"].sharding == sharding


def test_a_legacy_transform_function_maps_names(ours, tmp_path):
    def rename(item, structure, infos):
        return item, {"w": infos["enc"]["w"], "n": 3}

    restored = restore(ours, tmp_path, {"w": 0, "n": 0}, None, legacy_transform_fn=rename)
    assert restored["w"].tolist() == [0, 1, 2, 3] and restored["n"] == 3


def test_keys_of_stored_leaves_that_match_no_pattern_are_named(ours, tmp_path):
    transforms = {
        "n": ours.RestoreTransform(
            multi_value_fn=lambda key, tree, args: 0,
            multi_value_fn_input_args={"nothing": ours.RestoreArgs()},
        )
    }
    with pytest.raises(ValueError, match="nothing"):
        restore(ours, tmp_path, {"n": 0}, transforms)
