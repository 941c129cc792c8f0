"""Leaves: arrays of every data type and layout, numbers, text, bytes; and what is no leaf."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import same

import milepost as mp

CORE = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
CORE += ("float16", "float32", "float64", "complex64", "complex128")
EXTENSIONS = (
    "bfloat16",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn",
    "float6_e2m3fn",
    "float6_e3m2fn",
    "int2",
    "int4",
    "uint2",
    "uint4",
)


def array_of(name: str, shape=(3, 4)) -> np.ndarray:
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    values = np.arange(math.prod(shape)).reshape(shape) % 4 % 2
    return values.astype(np.float32).astype(dtype)


def both(url, tree):
    """The tree as it comes back without a target, and with itself as the target."""
    mp.save(url, tree)
    return mp.load(url), mp.load(url, tree)


@pytest.mark.parametrize("name", CORE + EXTENSIONS)
def test_an_array_of_any_data_type_comes_back(url, name):
    array = array_of(name)
    for back in both(url, {"a": array}):
        same(back, {"a": array})
    assert mp.open(url)["a"].dtype == array.dtype


@pytest.mark.parametrize("name", [n for n in CORE + EXTENSIONS if not n.endswith(("64", "128"))])
def test_a_jax_array_of_any_data_type_comes_back(url, name):
    value = array_of(name)
    try:
        array = jnp.asarray(value)
    except Exception as error:
        pytest.skip(f"JAX has no such arrays: {error}")
    mp.save(url, [array])
    same(mp.load(url), [value])
    (back,) = mp.load(url, [array])
    assert isinstance(back, jax.Array) and back.dtype == array.dtype
    same(np.asarray(back), value)


@pytest.mark.parametrize("name", EXTENSIONS)
def test_portable_stores_a_data_type_that_others_lack_and_gives_it_back(url, name):
    array = array_of(name)
    mp.save(url, {"a": array}, portable=True)
    same(mp.load(url), {"a": array})
    same(mp.load(url, {"a": array}), {"a": array})


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0, 2), (1,), (1, 1, 1), (2,) * 12], ids=str)
@pytest.mark.parametrize("name", ["float32", "bfloat16", "bool", "int4"])
def test_arrays_of_any_shape_come_back(url, shape, name):
    array = np.asarray(array_of(name, shape))
    for back in both(url, {"a": array}):
        same(back, {"a": array})


@pytest.mark.parametrize("name", ["float32", "float64", "bfloat16", "float8_e5m2", "float16"])
def test_not_a_number_and_infinities_keep_their_bits(url, name):
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    array = np.array([math.nan, -math.nan, math.inf, -math.inf, -0.0, 0.0], np.float32).astype(dtype)
    for back in both(url, array):
        same(back, array)


LAYOUTS = {
    "big endian": np.arange(6, dtype=">i4").reshape(2, 3),
    "big endian complex": np.arange(6, dtype=">c16"),
    "Fortran order": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "a stride": np.arange(20)[::3],
    "reversed": np.arange(5)[::-1],
    "a transposed view": np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
    "a broadcast": np.broadcast_to(np.float32(3), (4, 5)),
    "no alignment": np.frombuffer(b"x" + np.arange(4).tobytes(), np.int64, offset=1),
    "a field of records": np.zeros(3, [("a", "i1"), ("b", "f8")])["b"],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_arrays_in_any_layout_come_back_in_c_order(url, name):
    array = LAYOUTS[name]
    for back in both(url, {"a": array}):
        assert back["a"].flags.c_contiguous and back["a"].dtype.isnative
        same(back["a"], np.ascontiguousarray(array).astype(array.dtype.newbyteorder("=")))


def test_a_read_only_array_comes_back_writable(url):
    array = np.arange(5)
    array.flags.writeable = False
    mp.save(url, {"a": array})
    back = mp.load(url)
    same(back, {"a": array})
    assert back["a"].flags.writeable


def test_a_memmap_is_an_array(url, tmp_path):
    mapped = np.memmap(tmp_path / "map", np.float32, "w+", shape=(100, 3))
    mapped[:] = np.arange(300).reshape(100, 3)
    mp.save(url, {"m": mapped})
    back = mp.load(url)["m"]
    assert type(back) is np.ndarray
    same(back, np.asarray(mapped))
    read_only = np.memmap(tmp_path / "map", np.float32, "r", shape=(100, 3))
    mp.save(url, {"m": read_only}, overwrite=True)
    same(mp.load(url)["m"], np.asarray(mapped))


class TorchLike:
    """An object of another library that knows how to become an array."""

    def __init__(self, values):
        self._values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self._values if dtype is None else self._values.astype(dtype)


def test_an_object_with_an_array_method_is_saved_as_that_array(url):
    mp.save(url, {"t": TorchLike([[1.5, 2.5]])})
    same(mp.load(url), {"t": np.array([[1.5, 2.5]])})


def test_torch_tensors_are_arrays(url):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    mp.save(url, {"t": torch.arange(6).reshape(2, 3)})
    same(mp.load(url), {"t": np.arange(6).reshape(2, 3)})


SCALARS = [0, -1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, True, False, 0.0, -0.0, 1.5, math.pi, 5e-324]
SCALARS += [math.inf, -math.inf, math.nan, 1 + 2j, complex(math.nan, -math.inf), "", "text", "ünï\0cødé 😀", b"", b"\0\xff"]


@pytest.mark.parametrize("value", SCALARS, ids=repr)
def test_a_scalar_comes_back_as_it_was(url, value):
    for tree in ({"x": value}, [value], value):
        mp.save(url, tree, overwrite=True)
        for back in (mp.load(url), mp.load(url, tree)):
            if isinstance(value, complex):
                back = mp.load(url) if not isinstance(tree, complex) else {"x": back}
                back = back["x"] if isinstance(back, dict) else back[0]
                same([back.real, back.imag], [value.real, value.imag])
            else:
                same(back, tree)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 10**40])
def test_an_integer_of_more_than_64_bits_is_refused_with_its_path(url, value):
    with pytest.raises(mp.Invalid, match="64 bits.*leaf=a/b"):
        mp.save(url, {"a": {"b": value}})


@pytest.mark.parametrize("value", [bytearray(b"abc"), memoryview(b"abc")])
def test_other_bytes_come_back_as_bytes_or_as_the_target_has_them(url, value):
    mp.save(url, {"b": value})
    same(mp.load(url), {"b": b"abc"})
    back = mp.load(url, {"b": value})["b"]
    assert type(back) is type(value) and back == value


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int8, np.uint64, np.bool_, np.complex64, ml_dtypes.bfloat16])
def test_a_numpy_scalar_is_a_0d_array_or_as_the_target_has_it(url, kind):
    value = kind(1)
    mp.save(url, {"x": value})
    same(mp.load(url), {"x": np.asarray(value)})
    back = mp.load(url, {"x": value})["x"]
    assert type(back) is type(value) and back == value


@pytest.mark.parametrize(("value", "plain"), [(np.str_("tëxt"), "tëxt"), (np.bytes_(b"ab"), b"ab")])
def test_a_numpy_string_is_text(url, value, plain):
    mp.save(url, {"x": value})
    same(mp.load(url), {"x": plain})
    same(mp.load(url, {"x": value}), {"x": plain})


NO_LEAVES = {
    "a set": {1},
    "a function": len,
    "a class": int,
    "an ellipsis": ...,
    "an object": object(),
    "objects": np.array([1, None], object),
    "strings": np.array(["a", "b"]),
    "dates": np.array("2020-01-01", "M8[D]"),
    "records": np.zeros(2, [("a", "i4")]),
    "a masked array": np.ma.array([1, 2], mask=[0, 1]),
    "long doubles": np.zeros(2, np.longdouble),
}


@pytest.mark.parametrize("name", NO_LEAVES)
def test_what_is_no_leaf_is_refused_with_its_path_and_a_hint(url, name):
    if name == "long doubles" and np.dtype(np.longdouble).itemsize == 8:
        pytest.skip("a long double is a double here")
    with pytest.raises(mp.Invalid) as caught:
        mp.save(url, {"ok": 1, "layer": [0, {"bad": NO_LEAVES[name]}]})
    error = caught.value
    assert isinstance(error, ValueError)
    assert error.context["leaf"] == "layer/1/bad" and error.context["item"] == "state"
    assert error.context["type"] == type(NO_LEAVES[name]).__name__
    assert error.hint and error.hint in str(error)
    with pytest.raises(mp.NotFound):
        mp.open(url)


def test_what_is_no_leaf_is_refused_in_a_target_with_its_path(url):
    mp.save(url, {"ok": 1, "layer": [0, {"bad": np.zeros(2)}]})
    for name in ("a set", "a function", "objects", "strings", "dates", "records"):
        with pytest.raises(mp.Invalid) as caught:
            mp.load(url, {"ok": 1, "layer": [0, {"bad": NO_LEAVES[name]}]})
        assert caught.value.context["leaf"] == "layer/1/bad", name


def test_a_traced_or_deleted_array_is_refused(url):
    with pytest.raises(mp.Invalid, match="outside of jit"):
        jax.jit(lambda x: mp.save(url, {"x": x}))(jnp.ones(3))
    gone = jnp.ones(3)
    gone.delete()
    with pytest.raises(mp.Invalid, match=r"deleted or donated.*leaf=x"):
        mp.save(url, {"x": gone})


def test_raw_bytes_of_a_fixed_width_come_back(url):
    array = np.array([b"abc", b"\0\1\2"], "V3")
    mp.save(url, array)
    same(mp.load(url), array)


def test_the_same_array_twice_is_two_leaves(url):
    array = np.arange(3)
    mp.save(url, {"a": array, "b": array})
    back = mp.load(url)
    back["a"][0] = 9
    same(back["b"], array)


def test_held_and_borrowed_leaves_in_one_tree_keep_their_places(url):
    tree = {"j": jnp.zeros(3), "a": np.full(3, 1.0), "n": 7, "b": np.full(3, 2.0), "k": jnp.ones(3), "c": np.full(3, 3.0)}
    mp.save(url, tree)
    same(mp.load(url), {name: np.asarray(x) if name != "n" else x for name, x in tree.items()})


def test_leaf_options_cast_cut_and_compress_single_leaves(url):
    tree = {"w": np.zeros((64, 64), np.float32), "b": np.ones(4, np.float32), "n": 3}

    def choose(path, leaf):
        assert (path == "w") == (getattr(leaf, "ndim", 0) == 2)
        if path == "w":
            return mp.LeafOptions(dtype=ml_dtypes.bfloat16, chunk_shape=[16, 64], compression="zstd:3")
        return mp.LeafOptions(dtype=np.float16) if path == "n" else None

    mp.save(url, items={"state": mp.Tree(tree, choose)})
    leaves = {leaf.path: leaf for leaf in mp.open(url).index().leaves}
    assert leaves["w"].data_type == "bfloat16" and leaves["w"].chunk_shape == (16, 64)
    assert leaves["w"].stored_bytes < 64 * 64 * 2 and leaves["b"].data_type == "float32"
    same(mp.load(url)["n"], np.array(3, np.float16))


def test_leaf_options_for_all_leaves_and_axes_that_are_resharded(url):
    tree = {"w": np.zeros((64, 64), np.float32)}
    mp.save(url, items={"state": mp.Tree(tree, mp.LeafOptions(chunk_bytes=4096, reshard_axes=(1,)))})
    (leaf,) = mp.open(url).index().leaves
    assert leaf.chunk_shape[0] == 64 and leaf.chunk_shape[1] < 64
    same(mp.load(url), tree)


def test_leaf_options_of_no_sense_name_the_leaf(url):
    tree = {"w": np.zeros((4, 4))}
    for options, what in [
        (mp.LeafOptions(chunk_shape=[4]), "chunk"),
        (mp.LeafOptions(reshard_axes=[5]), "axis"),
        (mp.LeafOptions(compression="lzma"), "lzma"),
        (mp.LeafOptions(dtype="datetime64[s]"), "datetime64"),
    ]:
        with pytest.raises(mp.Invalid, match=what) as caught:
            mp.save(url, items={"state": mp.Tree(tree, options)})
        assert caught.value.context["leaf"] == "w", options
