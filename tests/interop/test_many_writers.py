"""Steps that several processes saved together, as zarr-python and TensorStore see them: no different from others."""

import subprocess

import numpy as np
import pytest
import zarr

from cases import raw_bytes
from conftest import binary
from peers import TensorStore

pytestmark = pytest.mark.filterwarnings("error")

DTYPES = {"float32": 4, "int16": 2, "uint8": 1, "uint64": 8, "bfloat16": 2, "complex64": 8}
#: Participants, shape, mesh, codec: even and uneven parts, replicas, parts that hold nothing.
MESHES = {
    "rows": (4, (64, 40), (4,), "none"),
    "grid": (4, (33, 17), (2, 2), "zstd:3"),
    "uneven": (3, (10, 7, 3), (3,), "gzip:6"),
    "replicated": (6, (12, 30), (1, 3), "blosc:lz4:5:shuffle"),
    "more-parts-than-rows": (8, (5, 9), (8,), "zstd:1"),
    "all-replicas": (2, (16, 16), (1,), "none"),
}


def expected(shape, itemsize: int, step: int) -> bytes:
    """Element e is the low bytes of (e + 1) * 0x9E3779B97F4A7C15 ^ step (src/cli/participate/state.rs)."""
    elements = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        values = (elements * np.uint64(0x9E3779B97F4A7C15)) ^ np.uint64(step)
    return values.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :itemsize].tobytes()


@pytest.fixture(scope="module", params=MESHES.values(), ids=MESHES)
def joint_step(request, tmp_path_factory):
    """A step that as many processes as the mesh says have saved, and its shape."""
    program = binary("MILEPOST_BIN", "milepost")
    count, shape, mesh, codec = request.param
    run = tmp_path_factory.mktemp("joint") / "run"
    options = [
        "--step=7",
        f"--count={count}",
        f"--shape={','.join(map(str, shape))}",
        f"--mesh={','.join(map(str, mesh))}",
        f"--dtype={','.join(DTYPES)}",
        f"--codec={codec}",
    ]
    processes = [
        subprocess.Popen([program, "participate", run, f"--index={index}", *options],
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for index in range(count)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * count, said
    assert sum("it committed" in text for text in said) == 1, said
    return run / "7", shape


@pytest.mark.parametrize("use_consolidated", [None, False], ids=["as-found", "not-consolidated"])
def test_zarr_python_opens_a_joint_step(joint_step, use_consolidated):
    step, shape = joint_step
    item = zarr.open_group(str(step), mode="r", use_consolidated=use_consolidated)["state"]
    for name, itemsize in DTYPES.items():
        if name == "bfloat16":
            continue  # stock zarr-python does not know it
        array = item[name]
        assert array.shape == shape
        assert raw_bytes(array[...]) == expected(shape, itemsize, 7), name
    assert int(item["step"][()]) == 7


def test_tensorstore_opens_every_leaf_of_a_joint_step(joint_step):
    step, shape = joint_step
    for name, itemsize in DTYPES.items():
        read = TensorStore.read(step / "state" / name)
        assert read.shape == shape
        assert raw_bytes(read) == expected(shape, itemsize, 7), name


def test_the_command_line_verifies_a_joint_step(joint_step, milepost):
    step, _ = joint_step
    milepost("verify", step)
