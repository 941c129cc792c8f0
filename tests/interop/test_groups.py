"""A whole step as others see it: a group for zarr-python and xarray, arrays for TensorStore, no warning anywhere."""

import json

import ml_dtypes
import numpy as np
import pytest
import xarray
import zarr
from safetensors.numpy import save_file

from cases import raw_bytes
from peers import TensorStore

pytestmark = pytest.mark.filterwarnings("error")

CORE_TENSORS = {
    "params.dense.kernel": np.arange(35, dtype="<f4").reshape(5, 7),
    "params.dense.bias": np.linspace(-1, 1, 7, dtype="<f2"),
    "params.layers.0.scale": np.array(3.5),
    "params.layers.1.scale": np.array(-2.5),
    "opt.count": np.array([2**40], dtype="<i8"),
    "opt.mask": np.array([[True, False], [False, True]]),
    "opt.bytes": np.arange(256, dtype="u1"),
    "opt.empty": np.zeros((0, 4), dtype="<u2"),
}
BF16 = {"params.dense.kernel_bf16": np.arange(-6, 6, dtype=ml_dtypes.bfloat16).reshape(3, 4)}


def split(name: str) -> str:
    return name.replace(".", "/")


def imported(milepost, folder, tensors, *options):
    """Imports tensors as step 1 of a run; returns the step's directory."""
    source = folder / "source.safetensors"
    save_file(tensors, source)
    milepost("import", source, folder / "run", "--step", "1", "--split", ".", *options)
    steps = [p for p in (folder / "run").iterdir() if not p.name.startswith(".") and p.is_dir()]
    assert len(steps) == 1, steps
    return steps[0]


@pytest.fixture
def core_step(milepost, tmp_path):
    return imported(milepost, tmp_path, CORE_TENSORS)


@pytest.fixture
def mixed_step(milepost, tmp_path):
    return imported(milepost, tmp_path, CORE_TENSORS | BF16)


def assert_holds(group, tensors):
    for name, array in tensors.items():
        read = np.asarray(group[split(name)][...])
        assert read.shape == array.shape, name
        assert raw_bytes(read) == raw_bytes(array), name


@pytest.mark.parametrize("use_consolidated", [None, False], ids=["as-found", "not-consolidated"])
def test_zarr_python_opens_a_step_as_a_group(core_step, use_consolidated):
    step = zarr.open_group(str(core_step), mode="r", use_consolidated=use_consolidated)
    assert "milepost" in step.attrs
    assert_holds(step["state"], CORE_TENSORS)
    item = zarr.open_group(str(core_step / "state"), mode="r", use_consolidated=use_consolidated)
    assert_holds(item, CORE_TENSORS)
    assert sorted(item.group_keys()) == ["opt", "params"]
    names = {key for key, node in item.members(max_depth=None) if isinstance(node, zarr.Array)}
    assert names == {split(name) for name in CORE_TENSORS}


def test_an_item_of_core_types_is_consolidated(core_step):
    item = zarr.open_group(str(core_step / "state"), mode="r", use_consolidated=True)
    assert_holds(item, CORE_TENSORS)


def test_zarr_python_lists_a_run_and_all_its_steps(milepost, core_step, tmp_path):
    source = tmp_path / "source.safetensors"
    milepost("import", source, tmp_path / "run", "--step", "2", "--split", ".")
    run = zarr.open_group(str(core_step.parent), mode="r")
    assert len([key for key in run.group_keys() if not key.startswith(".")]) == 2


def test_xarray_opens_every_group_of_a_step(core_step):
    for group, names in {
        "params/dense": ["kernel", "bias"],
        "params/layers/0": ["scale"],
        "opt": ["count", "mask", "bytes", "empty"],
    }.items():
        path = str(core_step / "state" / group)
        with xarray.open_zarr(path, consolidated=False, chunks=None) as dataset:
            assert sorted(dataset.data_vars) == sorted(names)
            for name in names:
                array = CORE_TENSORS[f"{group.replace('/', '.')}.{name}"]
                assert raw_bytes(dataset[name].values) == raw_bytes(array)


def test_xarray_opens_an_item_as_a_tree(core_step):
    with xarray.open_datatree(str(core_step / "state"), engine="zarr", chunks=None) as tree:
        kernel = tree["params/dense/kernel"].values
    assert raw_bytes(kernel) == raw_bytes(CORE_TENSORS["params.dense.kernel"])


@pytest.mark.parametrize("use_consolidated", [None, False], ids=["as-found", "not-consolidated"])
def test_a_step_with_bfloat16_opens_in_stock_zarr_python(mixed_step, use_consolidated):
    step = zarr.open_group(str(mixed_step), mode="r", use_consolidated=use_consolidated)
    assert_holds(step["state"], CORE_TENSORS)
    with pytest.raises(ValueError, match="bfloat16"):
        step["state/params/dense/kernel_bf16"]


def test_tensorstore_reads_the_bfloat16_leaf(mixed_step):
    read = TensorStore.read(mixed_step / "state/params/dense/kernel_bf16")
    assert raw_bytes(read) == raw_bytes(BF16["params.dense.kernel_bf16"])


def test_a_portable_step_is_whole_in_stock_zarr_python(milepost, tmp_path):
    step = imported(milepost, tmp_path, CORE_TENSORS | BF16, "--portable")
    for use_consolidated in (None, False, True):
        item = zarr.open_group(str(step / "state"), mode="r", use_consolidated=use_consolidated)
        assert_holds(item, CORE_TENSORS | BF16)
        assert item["params/dense/kernel_bf16"].dtype == np.dtype("<u2")
    with xarray.open_zarr(str(step / "state/params/dense"), consolidated=False, chunks=None) as dense:
        assert "kernel_bf16" in dense
    milepost("cat", step, "params/dense/kernel_bf16", "--out", tmp_path / "leaf.npy")
    leaf = np.load(tmp_path / "leaf.npy")
    assert raw_bytes(leaf) == raw_bytes(BF16["params.dense.kernel_bf16"])


def test_every_document_keeps_the_interop_profile(mixed_step):
    documents = sorted(mixed_step.rglob("zarr.json"))
    assert len(documents) > len(CORE_TENSORS)
    for path in documents:
        node = json.loads(path.read_text())
        assert node["zarr_format"] == 3, path
        assert "_zarrs" not in node["attributes"], path
        known = {"zarr_format", "node_type", "attributes"}
        if node["node_type"] == "group":
            assert set(node) <= known | {"consolidated_metadata"}, path
            continue
        known |= {"shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs"}
        assert set(node) <= known | {"dimension_names", "storage_transformers"}, path
        names = node["dimension_names"]
        assert len(names) == len(set(names)) == len(node["shape"]), path
        assert node["chunk_key_encoding"]["configuration"]["separator"] == ".", path
        assert all(isinstance(codec, dict) for codec in node["codecs"]), path
