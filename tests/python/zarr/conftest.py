"""Runs Python beside an installed Milepost, or as if it had never been installed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[3] / "python"


def entry_points() -> dict[str, dict[str, str]]:
    """What the package declares."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    return project["entry-points"]


@pytest.fixture
def run(tmp_path):
    """`run(code, plugin=True)`: the output of a fresh interpreter.

    The entry points are the source tree's own, whether or not the package is installed here: its distribution
    information is put into a directory on the path, or else every installed one is hidden.
    """

    def go(code: str, plugin: bool = True) -> str:
        site = tmp_path / "site"
        info = site / "milepost_under_test-0.0.0.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: milepost-under-test\nVersion: 0.0.0\n")
        lines = []
        for group, members in entry_points().items():
            lines.append(f"[{group}]")
            lines += [f"{name} = {target}" for name, target in members.items()]
        (info / "entry_points.txt").write_text("\n".join(lines) if plugin else "")
        hide = """
            import importlib.metadata as metadata
            every = metadata.distributions
            metadata.distributions = lambda **k: (d for d in every(**k) if not d.name.startswith("milepost"))
        """
        code = ("" if plugin else textwrap.dedent(hide)) + textwrap.dedent(code)
        path = [str(site)]
        path += [str(Path(p).resolve()) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, timeout=120, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return go
