"""Processes of `jax.distributed` save one step together; any other job restores it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import jax
import milepost as mp
import numpy as np
import pytest
import tensorstore as ts
import zarr
from member import check, mesh, state, target, values

SAVE = """
    from member import *
    start_jax()
    import milepost as mp
    from milepost import Together

    mesh = mesh(*{mesh})
    run = mp.CheckpointManager("run", max_to_keep=2)
    for step in (1, 2, 3):
        saved = run.save(step, state(mesh, step), metrics={{"loss": 1 / step}}, metadata={{"of": INDEX}}).result()
        assert saved.step == step
    run.wait()
    say(["steps", run.steps()])
    check(run.restore(3, state(mesh)), 3)
    saved = mp.save("alone", state(mesh, 7), compression="zstd")
    say(["alone", saved.url])
    check(mp.load("alone", state(mesh)), 7)
    run.close()
"""

LOAD = """
    from member import *
    start_jax()
    import milepost as mp

    wanted = target(mesh(*{mesh}), {specs})
    check(mp.load("run", wanted, step=2), 2)
    check(mp.load("run", wanted), 3)
    check(mp.load("alone", wanted), 7)
    say("same")
"""


@pytest.mark.parametrize(
    ("processes", "devices", "layout", "others"),
    [
        (2, 4, (4, 2), [(4, 2, (2, 4), {"kernel": (None, "model"), "bias": ("data",)})]),
        (4, 2, (2, 4), [(2, 1, (1, 2), {"moments": ("model",), "embedding": (None, "model")})]),
    ],
)
def test_what_a_job_saved_any_other_restores(job, tmp_path, monkeypatch, processes, devices, layout, others):
    first, *others_said = job(SAVE.format(mesh=layout), processes, devices).end()
    assert first[0] == ["steps", [2, 3]]
    assert all(said[0] == ["steps", [1, 2, 3]] for said in others_said)
    for count, each, axes, specs in others:
        ended = job(LOAD.format(mesh=axes, specs=specs), count, each).end()
        assert ended == [["same"]] * count
    monkeypatch.chdir(tmp_path)
    # One process, no mesh at all; the metadata is that of process 0.
    check(mp.load("run"), 3)
    assert mp.open("run").metadata == {"of": 0} and mp.open("run").metrics == {"loss": 1 / 3}
    _read_by_others(tmp_path / "run" / "3" / "state")
    _verified("run", "alone")
    assert not _leftovers(tmp_path)


def _read_by_others(item) -> None:
    given = values(3)
    group = zarr.open_group(item, mode="r")
    for name in ("kernel", "bias"):
        assert (group[name][...] == given[name]).all()
        opened = ts.open({"driver": "zarr3", "kvstore": f"file://{item}/{name}/"}).result()
        assert (opened.read().result() == given[name]).all()


def _verified(*urls: str) -> None:
    for url in urls:
        ran = subprocess.run([os.environ["MILEPOST_BIN"], "verify", url], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def _leftovers(folder) -> list[str]:
    """What saves that have ended have left below `.milepost`, beside the document that says what that is."""
    left = [path for path in folder.rglob(".milepost/**/*") if path.is_file() and path.name != "zarr.json"]
    return [str(path.relative_to(folder)) for path in left]
