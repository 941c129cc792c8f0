"""zarr-python finds the data types by itself, and is otherwise what it was."""

from __future__ import annotations

import json
from importlib import import_module

import ml_dtypes
import numpy as np
import pytest
import tensorstore
from conftest import entry_points

from milepost import zarr_dtypes

#: The types that TensorStore writes; it knows no others of ours.
TENSORSTORE = [
    "int2", "int4", "float4_e2m1fn", "float8_e3m4", "float8_e4m3b11fnuz", "float8_e4m3fn",
    "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "bfloat16", "float32",
]  # fmt: skip


def values(name: str) -> np.ndarray:
    """Eleven by seven elements with many codes of the type, NaNs excluded."""
    kind = np.dtype(name) if name == "float32" else np.dtype(getattr(ml_dtypes, name))
    numbers = np.random.default_rng(1).choice([-2, -1, 0, 0.5, 1, 1.5], (11, 7))
    return np.abs(numbers).astype(kind) if name == "float8_e8m0fnu" else numbers.astype(kind)


def write(folder, name: str, **metadata) -> np.ndarray:
    """An array of TensorStore's; returns its values."""
    data = values(name)
    grid = {"name": "regular", "configuration": {"chunk_shape": [4, 7]}}
    spec = {
        "driver": "zarr3",
        "kvstore": f"file://{folder}/",
        "metadata": {"data_type": name, "shape": data.shape, "chunk_grid": grid, **metadata},
    }
    tensorstore.open(spec, create=True).result()[...] = data
    return data


def write_group(folder) -> None:
    """A group of one array for each type, beside each the same bytes as .npy."""
    (folder / "oracle").mkdir(parents=True)
    for name in TENSORSTORE:
        np.save(folder / "oracle" / name, write(folder / "group" / name, name).view(f"V{values(name).itemsize}"))
    document = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    (folder / "group" / "zarr.json").write_text(json.dumps(document))


READ = """
    import sys, numpy as np, zarr
    assert "ml_dtypes" not in sys.modules
    group = zarr.open({url!r}, mode="r")
    for name in {names!r}:
        want = np.load({oracle!r} + "/" + name + ".npy").ravel()
        array = group[name]
        assert array.dtype.name == name, array.dtype
        got = array[...]
        assert got.tobytes() == want.tobytes(), name
        assert array[3:5, 1:].tobytes() == want.reshape(11, 7)[3:5, 1:].tobytes(), name
    print("read", len({names!r}))
"""


def test_a_group_of_every_type_is_read_without_importing_milepost(tmp_path, run):
    write_group(tmp_path)
    code = READ.format(url=str(tmp_path / "group"), names=TENSORSTORE, oracle=str(tmp_path / "oracle"))
    assert run(code) == f"read {len(TENSORSTORE)}\n"


def test_a_group_with_consolidated_metadata_is_read(tmp_path, run):
    write_group(tmp_path)
    root = tmp_path / "group" / "zarr.json"
    members = {n: json.loads((tmp_path / "group" / n / "zarr.json").read_text()) for n in TENSORSTORE}
    for member in members.values():
        member["attributes"] = {}
    document = json.loads(root.read_text())
    document["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": members}
    root.write_text(json.dumps(document))
    code = READ.format(url=str(tmp_path / "group"), names=TENSORSTORE, oracle=str(tmp_path / "oracle"))
    assert run(code) == f"read {len(TENSORSTORE)}\n"


def test_an_array_opened_alone_is_read_after_the_import(tmp_path, run):
    want = write(tmp_path / "a", "bfloat16")
    out = run(f"""
        import milepost.zarr_dtypes, zarr
        print(zarr.open_array({str(tmp_path / "a")!r}, mode="r")[...].astype(float).tolist())
    """)
    assert json.loads(out) == want.astype(float).tolist()


def test_what_zarr_python_writes_in_our_types_tensorstore_reads(tmp_path, run):
    out = run(f"""
        import ml_dtypes, numpy as np, zarr
        group = zarr.open_group({str(tmp_path / "g")!r}, mode="w")
        for name in {TENSORSTORE!r}:
            low = 0 if name.startswith("int") else 0.5
            data = np.where(np.arange(30).reshape(6, 5) % 2, 1, low).astype(name)
            array = group.create_array(name, data=data, chunks=(4, 5), shards=None)
            assert np.array_equal(array[...].astype("f4"), data.astype("f4")), name
            assert (zarr.open_group({str(tmp_path / "g")!r})[name][...] == data).all(), name
    """)
    assert out == ""
    for name in TENSORSTORE:
        want = np.where(np.arange(30).reshape(6, 5) % 2, 1, 0 if name.startswith("int") else 0.5)
        spec = {"driver": "zarr3", "kvstore": f"file://{tmp_path}/g/{name}/"}
        got = tensorstore.open(spec).result().read().result()
        assert np.array_equal(got.astype("float32"), want), name


def test_missing_chunks_are_the_fill_value(tmp_path, run):
    write(tmp_path / "group" / "a", "bfloat16", fill_value="NaN")
    write(tmp_path / "group" / "b", "float8_e4m3fn", fill_value="0x7e")
    for name in "ab":
        for chunk in (tmp_path / "group" / name / "c" / "1").iterdir():
            chunk.unlink()
    (tmp_path / "group" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    out = run(f"""
        import zarr
        group = zarr.open({str(tmp_path / "group")!r}, mode="r")
        print(group["a"][4:8].astype(float).tolist()[0], group["b"][4:8].astype(float).tolist()[0])
    """)
    assert out == f"{[float('nan')] * 7} {[448.0] * 7}\n"


def test_raw_bytes_are_read(tmp_path, run):
    tensorstore_free = {
        "zarr_format": 3, "node_type": "array", "data_type": "r24", "shape": [4], "fill_value": [1, 2, 3],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "bytes"}], "attributes": {},
    }  # fmt: skip
    array = tmp_path / "group" / "a"
    (array / "c").mkdir(parents=True)
    (array / "zarr.json").write_text(json.dumps(tensorstore_free))
    (array / "c" / "0").write_bytes(b"abcdef")
    (tmp_path / "group" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    out = run(f"""
        import zarr
        print([bytes(x) for x in zarr.open({str(tmp_path / "group")!r}, mode="r")["a"][...]])
    """)
    assert out == "[b'abc', b'def', b'\\x01\\x02\\x03', b'\\x01\\x02\\x03']\n"


def test_without_the_plugin_zarr_python_refuses_as_it_always_did(tmp_path, run):
    write_group(tmp_path)
    out = run(
        f"""
        import sys, zarr
        group = zarr.open({str(tmp_path / "group")!r}, mode="r")
        assert group["float32"][...].shape == (11, 7)
        try:
            group["bfloat16"]
        except ValueError as error:
            print(type(error).__name__)
        assert "milepost" not in sys.modules
        """,
        plugin=False,
    )
    assert out == "ValueError\n"


STOCK = """
    import json, numpy as np, sys, tempfile, zarr
    from zarr.dtype import data_type_registry, parse_dtype
    from zarr.registry import get_buffer_class, get_ndbuffer_class, get_pipeline_class
    group = zarr.open_group(tempfile.mkdtemp(), mode="w")
    seen = {"warnings": []}
    names = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", "V3", "S4", "U4",
             "M8[s]", "m8[s]", [("a", "i4")]]
    for name in names:
        seen[str(name)] = repr(parse_dtype(np.dtype(name), zarr_format=3))
    for name in ["bool", "int8", "float16", "complex64", "string", "str"]:
        seen[name] = repr(parse_dtype(name, zarr_format=3))
    array = group.create_array("a", shape=(4,), dtype="f4")
    array[:] = 1
    seen["document"] = array.metadata.to_dict()
    seen["classes"] = [str(get()) for get in (get_buffer_class, get_ndbuffer_class, get_pipeline_class)]
    seen["bad"] = []
    for bad in ("float9", "nonsense"):
        try:
            parse_dtype(bad, zarr_format=3)
        except Exception as error:
            seen["bad"].append(repr(error))
    print(json.dumps(seen, default=str))
    assert ("bfloat16" in data_type_registry.contents) == PLUGIN
"""


def test_every_other_type_and_every_default_stays_what_it_was(run):
    with_plugin = run(STOCK.replace("PLUGIN", "True"))
    assert json.loads(with_plugin) == json.loads(run(STOCK.replace("PLUGIN", "False"), plugin=False))


def test_every_class_has_an_entry_point_and_every_entry_point_a_class():
    declared = {}
    for name, target in entry_points()["zarr.data_type"].items():
        module, _, attribute = target.partition(":")
        declared[name] = getattr(import_module(module), attribute)
    assert set(declared.values()) == set(zarr_dtypes.DATA_TYPES)
    assert all(c._zarr_v3_name == name for name, c in declared.items() if c is not zarr_dtypes.Raw)


def test_a_name_that_somebody_registered_before_stays_theirs(run):
    run("""
        from zarr.dtype import Float32, data_type_registry
        data_type_registry.register("bfloat16", Float32)
        import milepost.zarr_dtypes
        assert data_type_registry.contents["bfloat16"] is Float32
        assert data_type_registry.contents["int4"] is milepost.zarr_dtypes.Int4
    """)


@pytest.mark.parametrize("name", ["int4", "uint2", "bfloat16", "float6_e3m2fn"])
def test_the_numpy_type_is_matched(run, name):
    assert run(f"""
        import ml_dtypes, numpy as np, zarr, tempfile
        from zarr.dtype import parse_dtype
        zarr.open_group(tempfile.mkdtemp(), mode="w")
        print(parse_dtype(np.dtype({name!r}), zarr_format=3).to_json(zarr_format=3))
    """) == f"{name}\n"
