"""spec/reader.py, which knows the spec and nothing of ours, reads what the command line writes."""

import subprocess
import sys

import pytest

from conftest import ROOT
from test_groups import BF16, CORE_TENSORS, imported

READER = ROOT / "spec" / "reader.py"
OPTIONS = {
    "plain": [],
    "zstd": ["--codec", "zstd:3"],
    "gzip": ["--codec", "gzip:6"],
    "sharded": ["--chunk-bytes", "64", "--shard-bytes", "256"],
    "portable": ["--portable"],
}


def read_by_spec(path):
    if not READER.exists():
        pytest.skip("spec/reader.py is not there yet")
    done = subprocess.run([sys.executable, READER, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_specs_reader_reads_a_step(milepost, options, tmp_path):
    step = imported(milepost, tmp_path, CORE_TENSORS | BF16, *options)
    shown = read_by_spec(step)
    for name in CORE_TENSORS | BF16:
        assert name.replace(".", "/") in shown, name


def vectors():
    folder = ROOT / "spec" / "vectors"
    steps = sorted(folder.rglob("zarr.json")) if folder.exists() else []
    return [p.parent for p in steps if "_milepost" in {c.name for c in p.parent.iterdir()}]


@pytest.mark.parametrize("step", vectors(), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_specs_reader_reads_every_vector(step):
    assert read_by_spec(step)


def test_the_specs_reader_is_short_and_imports_nothing_of_ours():
    if not READER.exists():
        pytest.skip("spec/reader.py is not there yet")
    text = READER.read_text()
    assert len(text.splitlines()) <= 100
    imports = {
        name.split()[0].split(".")[0]
        for line in text.splitlines()
        if line.startswith(("import ", "from "))
        for name in line.split(maxsplit=1)[1].split(",")
    }
    stdlib = set(sys.stdlib_module_names)
    assert imports - stdlib <= {"numpy", "crc32c", "google_crc32c", "zstandard", "numcodecs", "ml_dtypes"}
