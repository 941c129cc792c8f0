"""The package as it is installed: what it declares and what an import costs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import milepost
from milepost import _milepost

PACKAGE = Path(milepost.__file__).parent


def fresh(code: str) -> str:
    """What a fresh interpreter prints."""
    paths = [str(Path(p).resolve()) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.check_output([sys.executable, "-c", code], text=True, env=environment, timeout=120)


def test_importing_it_imports_no_optional_library():
    heavy = {"jax", "jaxlib", "flax", "orbax", "optax", "tensorstore", "zarr", "tqdm", "msgpack"}
    code = "import numpy, sys; before = set(sys.modules); import milepost; print(*sorted(set(sys.modules) - before))"
    loaded = {name.partition(".")[0] for name in fresh(code).split()}
    assert not loaded & heavy, loaded & heavy


def test_the_data_types_for_zarr_need_no_other_module_of_ours_beyond_the_package_itself():
    code = "import milepost, sys; b = set(sys.modules); import milepost.zarr_dtypes; print(*sorted(set(sys.modules) - b))"
    assert [name for name in fresh(code).split() if name.startswith("milepost")] == ["milepost.zarr_dtypes"]


def test_it_says_that_it_is_typed_and_which_version_it_is():
    assert (PACKAGE / "py.typed").exists() and (PACKAGE / "_milepost.pyi").exists()
    assert milepost.__version__ == _milepost.__version__


def test_every_public_name_is_there():
    for name in milepost.__all__:
        assert getattr(milepost, name).__doc__, name
    for name, value in vars(milepost).items():
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations":
            assert name in milepost.__all__, name


def installed() -> importlib.metadata.Distribution | None:
    """The distribution that this package was installed as, None where it runs from the source tree."""
    for found in importlib.metadata.distributions(name="milepost"):
        if (Path(found.locate_file("milepost")) / "__init__.py").resolve() == (PACKAGE / "__init__.py").resolve():
            return found
    return None


@pytest.mark.skipif(installed() is None, reason="runs from the source tree")
def test_the_distribution_says_what_it_needs():
    found = installed()
    assert found.version == milepost.__version__
    needed = [line for line in found.requires or [] if "extra ==" not in line]
    assert {line.split(">")[0].strip().replace("-", "_") for line in needed} == {"numpy", "ml_dtypes"}
    extras = set(found.metadata.get_all("Provides-Extra"))
    assert extras >= {"jax", "flax", "orbax", "msgpack", "tqdm"}
    files = [str(file) for file in found.files or []]
    assert "milepost/_milepost.abi3.so" in files and "milepost/_milepost.pyi" in files
    strange = [f for f in files if not f.startswith("milepost") and "dist-info" not in f]
    assert not strange, strange
    groups = {entry.group for entry in found.entry_points}
    assert {"zarr.data_type", "zarr.buffer"} <= groups


def test_the_extension_of_a_wheel_is_stable_and_alone():
    spec = importlib.util.find_spec("milepost._milepost")
    assert spec.origin.endswith("_milepost.abi3.so")
    needed = subprocess.run(["ldd", spec.origin], capture_output=True, text=True).stdout
    libraries = {line.split()[0].partition(".so")[0] for line in needed.splitlines() if "=>" in line}
    assert libraries <= {"libc", "libgcc_s", "libstdc++", "libm", "libpthread", "libdl", "librt"}, libraries


ROOT = Path(__file__).resolve().parents[3]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


@pytest.mark.skipif(
    not (TARGET / "debug" / "lib_milepost.so").exists() or importlib.util.find_spec("maturin") is None,
    reason="nothing is built yet: it would take minutes",
)
def test_pip_installs_it_from_its_directory(tmp_path):
    """In a clean environment; what has to be there before (maturin, NumPy) is lent by this one."""
    import numpy

    installed, lent = Path(numpy.__file__).parents[1], tmp_path / "lent"
    lent.mkdir()
    for each in [found for name in ("numpy*", "ml_dtypes*", "maturin*") for found in installed.glob(name)]:
        (lent / each.name).symlink_to(each)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(lent),
        "CARGO_TARGET_DIR": str(TARGET),
        "MATURIN_PEP517_ARGS": "--profile dev",
    }
    pip = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", ROOT / "python"]
    done = subprocess.run(pip, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    code = (
        "import milepost as mp, numpy as np; mp.save('c', {'w': np.arange(3)}); "
        "print(mp.__file__, mp.load('c')['w'].sum())"
    )
    said = subprocess.check_output([python, "-c", code], env=environment, cwd=tmp_path, text=True)
    file, total = said.split()
    assert Path(file).is_relative_to(tmp_path / "venv") and total == "3"
