"""Views of leaves: indexing reads what NumPy's indexing would give, and only the chunks that it needs."""

from __future__ import annotations

import pathlib
import random

import ml_dtypes
import numpy as np
import pytest
from conftest import same

import milepost as mp

ARRAYS = {
    "line": np.arange(50, dtype=np.int32),
    "plane": np.arange(7 * 11, dtype=np.float64).reshape(7, 11),
    "cube": np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7),
    "half": np.arange(12).reshape(3, 4).astype(ml_dtypes.bfloat16),
    "flat": np.zeros((3, 0, 4)),
    "point": np.array(7.5),
    "ones": np.ones((1, 1, 5), np.uint8),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    url = tmp_path_factory.mktemp("views") / "c"
    mp.save(url, {**ARRAYS, "text": "tëxt", "n": 3, "raw": b"ab"}, chunk_bytes=64)
    return mp.open(url)


def compare(view, array, selection):
    """The same part or the same kind of refusal."""
    try:
        expected = array[selection]
    except IndexError:
        with pytest.raises(IndexError):
            view[selection]
        return
    found = view[selection]
    assert np.shape(found) == np.shape(expected), (selection, np.shape(found), np.shape(expected))
    same(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("name", ARRAYS)
def test_a_view_looks_like_an_array(checkpoint, name):
    view, array = checkpoint[name], ARRAYS[name]
    assert (view.shape, view.dtype, view.ndim, view.size, view.nbytes) == (
        array.shape,
        array.dtype,
        array.ndim,
        array.size,
        array.nbytes,
    )
    assert view.path == name and name in repr(view) and str(array.dtype) in repr(view)
    same(np.asarray(view), array)
    same(np.array(view, copy=True), array)
    same(np.asarray(view, np.float32), array.astype(np.float32))
    same(view.value(), array)
    if array.ndim:
        assert len(view) == len(array)
    else:
        with pytest.raises(TypeError):
            len(view)
    with pytest.raises(ValueError, match="copy"):
        np.array(view, copy=False)


FIXED = [
    (),
    ...,
    None,
    (None, ..., None),
    0,
    -1,
    slice(None),
    slice(2, 5),
    slice(None, None, -1),
    slice(-3, None),
    slice(5, 2),
    slice(100, 200),
    slice(4, None, -2),
    slice(1, None, 1000),
    (slice(None), 1),
    (..., 1),
    (..., slice(1, 3)),
    (0, ..., 0),
    [0, 2],
    [-1, 0, 0],
    [],
    np.array([[0, 1], [2, 0]]),
    (slice(None), [1, 0]),
    ([0, 1], [1, 2]),
    ([0, 1], slice(None), [1, 2]),
    (0, slice(None), [1, 2]),
    ([[0], [1]], [1, 2]),
    np.int64(1),
    np.array(1),
    True,
    False,
    np.True_,
    (True, 0),
    (None, [0, 1], None, 0),
    100,
    -100,
    [100],
    (0, 0, 0, 0),
    (..., ...),
    1.5,
    "a",
    [0.5],
    [True, False],
    slice(None, None, 0),
]


@pytest.mark.parametrize("name", ARRAYS)
def test_indexing_is_that_of_numpy(checkpoint, name):
    view, array = checkpoint[name], ARRAYS[name]
    for selection in FIXED:
        if isinstance(selection, slice) and selection.step == 0:
            if array.ndim:
                with pytest.raises(ValueError):
                    view[selection]
            continue
        compare(view, array, selection)


@pytest.mark.parametrize("name", ["line", "plane", "cube"])
def test_masks_are_those_of_numpy(checkpoint, name):
    view, array = checkpoint[name], ARRAYS[name]
    random_ = np.random.default_rng(5)
    for _ in range(20):
        compare(view, array, random_.random(array.shape) < 0.2)
        compare(view, array, random_.random(array.shape[0]) < 0.4)
        compare(view, array, list(map(bool, random_.random(array.shape[0]) < 0.4)))
        if array.ndim > 1:
            compare(view, array, (slice(None), random_.random(array.shape[1]) < 0.4))
            compare(view, array, (random_.random(array.shape[:2]) < 0.3))
            compare(view, array, (random_.random(array.shape[:2]) < 0.3, ..., None))
    compare(view, array, np.zeros(array.shape, bool))
    compare(view, array, np.ones(array.shape[0] + 1, bool))


def random_part(random: random.Random, length: int):
    kind = random.randrange(10)
    if kind < 5:
        ends = [random.choice([None, random.randrange(-length - 2, length + 3)]) for _ in range(2)]
        return slice(*ends, random.choice([None, None, 1, 2, 3, -1, -2, 7, -7]))
    if kind < 7:
        return random.randrange(-length, length) if length else 0
    if kind == 7 and length:
        return [random.randrange(-length, length) for _ in range(3)]
    return random.choice([None, ..., slice(None)])


def test_random_indices_are_those_of_numpy(checkpoint):
    for seed in range(1500):
        random_ = random.Random(seed)
        name = random_.choice(list(ARRAYS))
        array = ARRAYS[name]
        lengths = list(array.shape)[: random_.randrange(array.ndim + 1)]
        parts = [random_part(random_, length) for length in lengths]
        used = [i for i, part in enumerate(parts) if part is ...]
        for extra in used[1:]:
            parts[extra] = slice(None)
        try:
            compare(checkpoint[name], array, tuple(parts))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {name}{list(array.shape)}[{parts}]: {error}") from error


def test_results_may_be_written_to(checkpoint):
    part = checkpoint["plane"][2:4]
    part[:] = 0
    same(checkpoint["plane"][2:4], ARRAYS["plane"][2:4])


def test_only_the_chunks_of_a_part_are_read(url):
    array = np.arange(64.0).reshape(16, 4)
    mp.save(url, {"w": array}, chunk_bytes=4 * 4 * 8, shard_bytes=4 * 4 * 8)
    chunks = sorted(pathlib.Path(url, "state/w").glob("c.*"))
    assert len(chunks) == 4
    for chunk in (chunks[0], chunks[2], chunks[3]):
        chunk.unlink()
    view = mp.open(url)["w"]
    for selection in (slice(4, 8), 5, (6, 3), [4, 7], (slice(7, 3, -1), 1), slice(0, 0), slice(20, None)):
        same(np.asarray(view[selection]), np.asarray(array[selection]))
    for selection in (slice(3, 5), 8, ..., [4, 8]):
        with pytest.raises(mp.Corrupt):
            view[selection]


def test_scalars_and_text_are_views_too(checkpoint):
    assert checkpoint["n"].value() == 3 and checkpoint["n"].kind == "int" and checkpoint["n"][()] == 3
    assert checkpoint["text"].value() == "tëxt" and checkpoint["text"].kind == "str"
    assert checkpoint["raw"].value() == b"ab"


def test_a_view_works_in_arithmetic_and_in_jax(checkpoint):
    import jax.numpy as jnp

    same(np.add(checkpoint["plane"], 1), ARRAYS["plane"] + 1)
    same(np.asarray(jnp.asarray(np.asarray(checkpoint["line"]))), ARRAYS["line"])
    assert float(np.sum(checkpoint["plane"])) == ARRAYS["plane"].sum()
    assert list(checkpoint["line"])[:3] == [0, 1, 2]


def test_a_leaf_is_opened_without_the_index(url):
    mp.save(url, {"a": {"b": np.arange(3)}})
    (pathlib.Path(url) / "_milepost/state/c.0").unlink()
    same(mp.open(url)["a/b"][1:], np.arange(3)[1:])
