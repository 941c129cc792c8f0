"""Every Python block of the guides runs, top to bottom, a file at a time.

The blocks of a file are one script: what a later block uses, an earlier one made. It runs in an empty directory, and a
failure names the line of the guide.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
GUIDES = [
    ROOT / "README.md",
    ROOT / "python" / "README.md",
    *sorted((ROOT / "python" / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^(```+)(\S*)[^\n]*\n(.*?)^\1 *$", re.MULTILINE | re.DOTALL)

#: Compiles a guide's script under the guide's own name, so that tracebacks point into it.
RUNNER = """
import pathlib, sys
name, script = sys.argv[1], pathlib.Path(sys.argv[2]).read_text()
import linecache
linecache.cache[name] = (len(script), None, script.splitlines(True), name)
exec(compile(script, name, "exec"), {"__name__": "__main__", "__file__": name})
"""


def script_of(text: str) -> str:
    """The Python blocks of a guide, each at its own line numbers; empty where there is none."""
    out: list[str] = []
    for block in FENCE.finditer(text):
        if block[2] == "python":
            line = text.count("\n", 0, block.start(3))
            out += [""] * (line - len(out))
            out += block[3].rstrip("\n").split("\n")
    return "\n".join(out) + "\n" if out else ""


def perform(guide: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a guide's script in an empty directory."""
    script, work = folder / "script.py", folder / "work"
    work.mkdir()
    script.write_text(script_of(guide.read_text()))
    paths = [str(Path(p).resolve()) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return subprocess.run(
        [sys.executable, "-c", RUNNER, str(guide), str(script)],
        cwd=work, capture_output=True, text=True, timeout=300,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip


@pytest.mark.parametrize(
    "guide",
    [g for g in GUIDES if g.exists() and script_of(g.read_text())],
    ids=lambda guide: str(guide.relative_to(ROOT)),
)
def test_every_python_block_of_a_guide_runs(guide, tmp_path):
    done = perform(guide, tmp_path)
    assert done.returncode == 0, f"{guide.relative_to(ROOT)}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_a_block_that_fails_is_found_by_its_line(tmp_path):
    guide = tmp_path / "guide.md"
    guide.write_text("# G\n\n```python\nx = 1\n```\n\n```sh\nfalse\n```\n\n````python\nassert x == 2\n````\n")
    done = perform(guide, tmp_path)
    assert done.returncode == 1
    assert "guide.md\", line 12" in done.stderr and "assert x == 2" in done.stderr


def test_every_block_of_a_guide_names_its_language():
    for guide in GUIDES[1:]:
        bare = [b[0] for b in FENCE.finditer(guide.read_text()) if not b[2]]
        assert not bare, f"{guide.relative_to(ROOT)}: a block without a language is executed by nobody: {bare[0]}"
