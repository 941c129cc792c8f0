"""Where Milepost differs from Orbax on purpose. Each test says both sides: the docs' table."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees_of_orbax import Pair, kinds

import milepost as mp


def save(ocp, path, tree, **options):
    ocp.PyTreeCheckpointer().save(path, tree, **options)
    return path


def test_keys_with_dots_and_slashes_stay_apart(ours, theirs, tmp_path):
    """Orbax joins keys with dots and gives the bytes of one leaf for both."""
    one, two, three, four = (np.array([float(n)]) for n in range(1, 5))
    tree = {"a.b": one, "a": {"b": two}, "c/d": three, "": four}
    restored = ours.PyTreeCheckpointer().restore(save(ours, tmp_path / "ours", tree))
    assert {key: np.ravel(jax.tree.leaves(value))[0] for key, value in restored.items()} == {
        "a.b": 1.0,
        "a": 2.0,
        "c/d": 3.0,
        "": 4.0,
    }
    colliding = {"a.b": np.array([1.0]), "a": {"b": np.array([2.0])}}
    lost = theirs.PyTreeCheckpointer().restore(save(theirs, tmp_path / "theirs", colliding))
    assert lost["a.b"] == lost["a"]["b"]


@pytest.mark.parametrize(
    "leaf",
    [
        np.zeros((0, 3)),
        jnp.zeros((2, 0)),
        b"bytes",
        1 + 2j,
        np.array(3, np.uint8),
    ],
    ids=str,
)
def test_leaves_that_orbax_cannot_save_are_saved(ours, tmp_path, leaf):
    """Orbax: `Cannot save arrays with zero size`, `Unsupported data type: "bytes5"`."""
    restored = ours.PyTreeCheckpointer().restore(save(ours, tmp_path / "a", {"x": leaf, "y": 1}))
    assert type(restored["x"]) is type(leaf) or isinstance(restored["x"], jax.Array)
    np.testing.assert_array_equal(np.asarray(restored["x"]), np.asarray(leaf))
    if hasattr(leaf, "shape"):
        assert restored["x"].shape == leaf.shape and restored["x"].dtype == leaf.dtype


def test_orbax_refuses_them(theirs, tmp_path):
    for number, leaf in enumerate([np.zeros((0, 3)), b"bytes", 1 + 2j]):
        with pytest.raises(Exception, match="zero size|Unsupported|lookup failed"):
            save(theirs, tmp_path / str(number), {"x": leaf, "y": 1})


@pytest.mark.parametrize("tree", [{}, [], None, {"a": {}, "b": [None]}], ids=repr)
def test_an_empty_tree_is_saved(ours, tmp_path, tree):
    """Orbax: `Found empty item.`"""
    assert ours.PyTreeCheckpointer().restore(save(ours, tmp_path / "a", tree)) == tree


@pytest.mark.parametrize("leaf", [5, 2.5, "text", np.arange(3)], ids=repr)
def test_standard_save_takes_text_and_bare_leaves(ours, tmp_path, leaf):
    """Orbax's StandardSave refuses text, and a bare array or number as the root."""
    with ours.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", leaf)
        np.testing.assert_array_equal(checkpointer.restore(tmp_path / "a"), leaf)
        np.testing.assert_array_equal(checkpointer.restore(tmp_path / "a", leaf), leaf)


def test_exact_gives_the_saved_containers_and_keys(ours, tmp_path):
    """Orbax has lists for tuples, dicts for named tuples, text for integer keys."""
    tree = {"pair": Pair(1, (2, 3)), "keys": {1: 2}, "empty": (), "scalar": np.float32(1.5)}
    save(ours, tmp_path / "a", tree)
    for handler, args in [
        (ours.PyTreeCheckpointHandler(), ours.args.PyTreeRestore(exact=True)),
        (ours.StandardCheckpointHandler(), ours.args.StandardRestore(exact=True)),
    ]:
        restored = ours.Checkpointer(handler).restore(tmp_path / "a", args=args)
        assert restored == tree
        assert type(restored["pair"]) is Pair and type(restored["pair"].y) is tuple
        assert type(restored["scalar"]) is np.float32


def test_an_existing_path_names_force(ours, tmp_path):
    """Orbax names no way out."""
    save(ours, tmp_path / "a", {"a": 1})
    with pytest.raises(ValueError, match="force=True") as caught:
        save(ours, tmp_path / "a", {"a": 1})
    assert isinstance(caught.value, FileExistsError)
    with pytest.raises(ValueError, match="force=True"):
        ours.StandardCheckpointer().save(tmp_path / "a", {"a": 1})


def test_force_keeps_the_old_checkpoint_until_the_new_one_is_whole(ours, theirs, tmp_path):
    """Orbax deletes the old one first: a save that fails leaves nothing."""
    bad = {"a": object()}
    for ocp, kept in ((ours, True), (theirs, False)):
        path = tmp_path / ocp.__name__
        save(ocp, path, {"a": 1})
        with pytest.raises(Exception):  # noqa: B017
            save(ocp, path, bad, force=True)
        assert path.exists() == kept
    assert ours.PyTreeCheckpointer().restore(tmp_path / ours.__name__) == {"a": 1}


def test_an_empty_directory_is_replaced_with_force(ours, tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="exists"):
        save(ours, tmp_path / "a", {"a": 1})
    save(ours, tmp_path / "a", {"a": 1}, force=True)


def test_force_never_replaces_what_is_no_checkpoint_of_ours(ours, theirs, tmp_path):
    """Orbax removes whatever is there."""
    save(theirs, tmp_path / "orbax", {"a": 1})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text").write_text("mine")
    for name in ("orbax", "notes"):
        with pytest.raises(mp.MilepostError):
            save(ours, tmp_path / name, {"a": 2}, force=True)
    assert theirs.PyTreeCheckpointer().restore(tmp_path / "orbax") == {"a": 1}
    assert (tmp_path / "notes" / "text").read_text() == "mine"


def test_every_mismatch_is_named_at_once_by_its_path(ours, theirs, tmp_path):
    """Orbax stops at the first kind of mismatch, and a shape mismatch has no path."""
    tree = {"model": {"w": jnp.ones(3), "b": np.ones(2)}, "opt": {"m": jnp.ones(3)}, "n": 1}
    target = {"model": {"w": jnp.ones(4), "b": np.ones((2, 1)), "x": 1}, "n": np.ones(2)}
    with ours.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", tree)
        with pytest.raises(mp.TreeMismatch) as caught:
            checkpointer.restore(tmp_path / "a", target)
    assert isinstance(caught.value, ValueError)
    paths = {one.path for one in caught.value.mismatches}
    assert paths == {"model/w", "model/b", "model/x", "opt", "n"}
    for path in paths:
        assert path in str(caught.value)
    assert "[3]" in str(caught.value) and "[4]" in str(caught.value)
    with theirs.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "b", {"x": jnp.ones(3)})
        checkpointer.wait_until_finished()
        with pytest.raises(ValueError) as caught_there:
            checkpointer.restore(tmp_path / "b", {"x": jnp.ones(4)})
    assert "x" not in str(caught_there.value).split()


def test_a_numpy_target_of_another_shape_is_an_error(ours, theirs, tmp_path):
    """Orbax gives the stored shape silently."""
    for ocp in (ours, theirs):
        checkpointer = ocp.StandardCheckpointer()
        checkpointer.save(tmp_path / ocp.__name__, {"a": np.ones(3)})
        checkpointer.wait_until_finished()
    there = theirs.StandardCheckpointer().restore(tmp_path / theirs.__name__, {"a": np.ones(5)})
    assert there["a"].shape == (3,)
    with pytest.raises(ValueError, match="a: the stored shape"):
        ours.StandardCheckpointer().restore(tmp_path / ours.__name__, {"a": np.ones(5)})


def test_strict_false_fits_numpy_targets_too(ours, tmp_path):
    """Orbax's `strict=False` gives NumPy targets the stored shape."""
    with ours.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", {"a": np.ones((2, 3))})
        restored = checkpointer.restore(tmp_path / "a", {"a": np.ones((3, 1))}, strict=False)
        assert restored["a"].tolist() == [[1], [1], [0]]
        with pytest.raises(ValueError, match="rank"):
            checkpointer.restore(tmp_path / "a", {"a": np.ones(3)}, strict=False)


def test_a_none_in_a_standard_target_never_drops_an_array(ours, theirs, tmp_path):
    """Orbax's StandardRestore gives None for a stored array whose target is None."""
    for ocp in (ours, theirs):
        checkpointer = ocp.StandardCheckpointer()
        checkpointer.save(tmp_path / ocp.__name__, {"a": np.ones(3), "b": 1})
        checkpointer.wait_until_finished()
    target = {"a": None, "b": 0}
    assert theirs.StandardCheckpointer().restore(tmp_path / theirs.__name__, target)["a"] is None
    with pytest.raises(ValueError, match="a: the target has None"):
        ours.StandardCheckpointer().restore(tmp_path / ours.__name__, target)


def test_a_partial_restore_of_an_absent_key_is_an_error_that_names_it(ours, theirs, tmp_path):
    """Orbax gives the target's own leaf back as if it had been restored."""
    target = {"a": 0, "q": jax.ShapeDtypeStruct((3,), jnp.float32)}
    for ocp in (ours, theirs):
        checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        checkpointer.save(tmp_path / ocp.__name__, args=ocp.args.PyTreeSave({"a": 1, "b": 2}))
        args = ocp.args.PyTreeRestore(item=target, partial_restore=True)
        if ocp is theirs:
            restored = checkpointer.restore(tmp_path / ocp.__name__, args=args)
            assert isinstance(restored["q"], jax.ShapeDtypeStruct)
        else:
            with pytest.raises(ValueError, match="q: not in the checkpoint"):
                checkpointer.restore(tmp_path / ocp.__name__, args=args)


def test_a_placeholder_may_stand_for_a_subtree_and_under_standard_restore(ours, tmp_path):
    """Orbax: only for leaves, and only under PyTreeRestore."""
    tree = {"params": {"w": np.ones(2)}, "opt": {"m": np.ones(3), "v": np.ones(3)}}
    with ours.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", tree)
        restored = checkpointer.restore(tmp_path / "a", {**tree, "opt": ...})
        assert restored["opt"] is ... and restored["params"]["w"].tolist() == [1, 1]


def test_restore_args_of_a_scalar_target_name_the_path(ours, tmp_path):
    """Orbax: `Restored result is not a scalar.`"""
    save(ours, tmp_path / "a", {"x": {"y": np.ones(3)}})
    with pytest.raises(ValueError, match="x/y"):
        ours.PyTreeCheckpointer().restore(
            tmp_path / "a", restore_args={"x": {"y": ours.RestoreArgs(restore_type=int)}}
        )


def test_a_jax_array_needs_no_sharding(ours, tmp_path):
    """Orbax: `Sharding of jax.Array cannot be None` (issue 381), or warns that it reads a file."""
    save(ours, tmp_path / "a", {"x": np.ones(3, np.float32), "n": 3})
    restored = ours.PyTreeCheckpointer().restore(
        tmp_path / "a", restore_args={"x": ours.ArrayRestoreArgs(), "n": ours.ArrayRestoreArgs()}
    )
    assert isinstance(restored["x"], jax.Array) and isinstance(restored["n"], jax.Array)


def test_one_restore_args_is_for_all_leaves(ours, tmp_path):
    """Orbax wants a tree of them."""
    save(ours, tmp_path / "a", {"x": jnp.ones(3), "y": [jnp.ones(2)]})
    args = ours.RestoreArgs(restore_type=np.ndarray, dtype=np.int8)
    restored = ours.PyTreeCheckpointer().restore(tmp_path / "a", restore_args=args)
    assert kinds(restored) == kinds({"x": np.ones(3, np.int8), "y": [np.ones(2, np.int8)]})


def test_a_missing_path_says_what_is_near(ours, tmp_path):
    save(ours, tmp_path / "here", {"a": 1})
    with pytest.raises(FileNotFoundError, match="here"):
        ours.PyTreeCheckpointer().restore(tmp_path / "there")


def test_aggregate_is_refused_by_standard_save_as_in_orbax(ours, theirs, tmp_path):
    for ocp in (ours, theirs):
        args = ocp.args.StandardSave({"a": 1}, save_args={"a": ocp.SaveArgs(aggregate=True)})
        with pytest.raises(ValueError, match="aggregate"):
            ocp.Checkpointer(ocp.StandardCheckpointHandler()).save(tmp_path / "x", args=args)


def test_a_tree_of_save_args_must_fit_and_may_have_none(ours, tmp_path):
    """Orbax: a JAX tree-prefix error without the leaf's path."""
    tree = {"a": np.ones(2), "b": {"c": np.ones(2)}}
    half = ours.SaveArgs(dtype=np.float16)
    save(ours, tmp_path / "1", tree, save_args={"a": half, "b": {"c": None}})
    restored = ours.PyTreeCheckpointer().restore(tmp_path / "1")
    assert restored["a"].dtype == np.float16 and restored["b"]["c"].dtype == np.float64
    save(ours, tmp_path / "2", tree, save_args=half)
    assert ours.PyTreeCheckpointer().restore(tmp_path / "2")["b"]["c"].dtype == np.float16
    with pytest.raises(ValueError, match="b/c"):
        save(ours, tmp_path / "3", tree, save_args={"a": half})
    with pytest.raises(ValueError, match="x: save_args names a leaf"):
        save(ours, tmp_path / "4", {"a": np.ones(2)}, save_args={"a": half, "x": half})


def test_a_dtype_may_be_a_jax_scalar_type(ours, tmp_path):
    """Orbax crashes where `jnp.bfloat16` is given together with `chunk_byte_size`."""
    args = {"a": ours.SaveArgs(dtype=jnp.bfloat16, chunk_byte_size=16), "n": ours.SaveArgs()}
    save(ours, tmp_path / "a", {"a": jnp.ones(64), "n": 3}, save_args=args)
    restored = ours.PyTreeCheckpointer().restore(tmp_path / "a")
    assert restored["a"].dtype == jnp.bfloat16 and restored["n"] == 3
    described = ours.PyTreeCheckpointer().metadata(tmp_path / "a").item_metadata
    chunk = described["a"].storage.chunk_shape
    assert np.prod(chunk) * 2 <= 16


def test_shard_axes_are_cut_first(ours, tmp_path):
    tree = {"a": np.zeros((64, 64))}
    args = {"a": ours.SaveArgs(shard_axes=(1,), chunk_byte_size=4096)}
    save(ours, tmp_path / "a", tree, save_args=args)
    described = ours.PyTreeCheckpointer().metadata(tmp_path / "a").item_metadata
    chunk = described["a"].storage.chunk_shape
    assert chunk[0] == 64 and chunk[1] < 64


def test_a_scalar_with_a_dtype_stays_a_scalar(ocp_pair, tmp_path):
    ours, theirs = ocp_pair
    found = []
    for ocp in (ours, theirs):
        dtypes = {"n": np.float32, "x": np.int8}
        args = {name: ocp.SaveArgs(dtype=np.dtype(kind)) for name, kind in dtypes.items()}
        path = save(ocp, tmp_path / ocp.__name__, {"n": 3, "x": 2.75}, save_args=args)
        found.append(ocp.PyTreeCheckpointer().restore(path))
    assert found[0] == found[1] == {"n": 3.0, "x": 2}


@pytest.fixture
def ocp_pair(ours, theirs):
    return ours, theirs


def test_a_dict_may_have_names_and_numbers_as_keys(ours, theirs, tmp_path):
    """Orbax: `Comparator raised exception while sorting pytree dictionary keys.`"""
    tree = {1: jnp.ones(2), "a": {2: 3}}
    with pytest.raises(Exception, match="sorting pytree dictionary keys"):
        save(theirs, tmp_path / "theirs", tree)
    save(ours, tmp_path / "ours", tree)
    args = ours.args.PyTreeRestore(exact=True)
    checkpointer = ours.Checkpointer(ours.PyTreeCheckpointHandler())
    restored = checkpointer.restore(tmp_path / "ours", args=args)
    assert set(restored) == {1, "a"} and restored["a"] == {2: 3}
    into = ours.StandardCheckpointer().restore(tmp_path / "ours", tree)
    assert into[1].tolist() == [1, 1]


def test_a_directory_that_is_no_checkpoint_says_what_it_has(ours, tmp_path):
    """Orbax: `No structure could be identified for the checkpoint`."""
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError, match="is empty"):
        ours.PyTreeCheckpointer().restore(tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match="notes.txt"):
        ours.PyTreeCheckpointer().restore(tmp_path / "a")


def test_a_flipped_byte_is_an_error(ours, theirs, tmp_path):
    """Orbax gives it back as good data."""
    save(ours, tmp_path / "a", {"x": np.zeros(10_000)})
    files = [file for file in (tmp_path / "a").rglob("*") if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(mp.Corrupt, match="x"):
        ours.PyTreeCheckpointer().restore(tmp_path / "a")


def test_a_key_longer_than_a_file_name_is_saved(ours, tmp_path):
    """Orbax without OCDBT: `File name too long`."""
    tree = {"k" * 300: np.ones(2), "\u00e9/.. ": 1}
    assert set(ours.PyTreeCheckpointer().restore(save(ours, tmp_path / "a", tree))) == set(tree)


def test_a_traced_array_is_refused_by_its_path(ours, tmp_path):
    def traced(x):
        ours.PyTreeCheckpointer().save(tmp_path / "a", {"p": {"x": x}})
        return x

    with pytest.raises(ValueError, match="leaf=p/x"):
        jax.jit(traced)(jnp.ones(2))
