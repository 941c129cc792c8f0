"""The example with several processes: killed, resumed with another number of them, the same loss."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "train_nnx_processes.py"


def _train(folder: Path, *options: str) -> tuple[int, str]:
    paths = [str(Path(p).resolve()) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *options], cwd=folder, capture_output=True, text=True, timeout=200,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def _loss(text: str) -> float:
    return float(re.search(r"^loss ([0-9.]+)", text, re.MULTILINE)[1])


def test_a_killed_job_goes_on_with_another_number_of_processes(tmp_path):
    code, said = _train(tmp_path, "run", "--steps", "60", "--kill-at", "45")
    assert code == 1 and "a process ended with" in said
    code, said = _train(tmp_path, "run", "--steps", "50", "--processes", "1")
    assert code == 0 and re.search(r"^resumed after step (20|40);", said, re.MULTILINE), said
    _, whole = _train(tmp_path, "whole", "--steps", "50", "--processes", "1")
    assert abs(_loss(said) - _loss(whole)) < 1e-3, (said, whole)
