"""Saves at the end of a process, Ctrl-C, and many saves at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
from equality import assert_same

HERE = os.path.dirname(os.path.abspath(__file__))


def run(code, *arguments, **keywords):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, HERE])}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **keywords,
    )


def test_the_end_of_the_process_waits_for_a_save(ours, tmp_path):
    code = """
import sys, numpy as np, milepost.orbax.v1 as ocp
from points import Point, SlowPointHandler, with_handler
ocp.save_async(sys.argv[1], {"w": np.arange(1 << 20)})
with with_handler(ocp, SlowPointHandler):
    ocp.save_checkpointables_async(sys.argv[2], {"p": Point(1, 2), "state": {"w": np.ones(2)}})
"""
    process = run(code, tmp_path / "c", tmp_path / "d")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert_same(ours.load(tmp_path / "c"), {"w": np.arange(1 << 20)})
    assert_same(ours.load(tmp_path / "d"), {"w": np.ones(2)})


def test_ctrl_c_cancels_a_save_and_leaves_nothing(tmp_path):
    code = """
import sys, numpy as np, milepost.orbax.v1 as ocp
from points import Point, PointHandler, with_handler
import time
class Slow(PointHandler):
    async def save(self, directory, checkpointable):
        rest = await super().save(directory, checkpointable)
        async def write():
            import asyncio
            print("saving", flush=True)
            await asyncio.sleep(2)
            await rest
        return write()
with with_handler(ocp, Slow):
    try:
        ocp.save_checkpointables(sys.argv[1], {"p": Point(1, 2), "state": {"w": np.ones(1 << 20)}})
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""
    process = run(code, tmp_path / "c")
    assert process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert output == "interrupted\n" and process.returncode == 0, errors
    assert not (tmp_path / "c").exists()
    assert list(tmp_path.iterdir()) == []


def test_saves_to_several_places_go_on_at_once(ours, tmp_path):
    begun = time.monotonic()
    responses = [
        ours.save_async(tmp_path / str(n), {"w": np.full(1000, n)}) for n in range(20)
    ]
    for response in responses:
        response.result(timeout=60)
    assert time.monotonic() - begun < 60
    assert [ours.load(tmp_path / str(n))["w"][0] for n in range(20)] == list(range(20))


def test_two_saves_of_one_place_one_wins(ours, tmp_path):
    def outcome(start):
        try:
            return start()
        except ValueError as error:  # the winner was there before this one began
            return error

    def begin(n):
        return outcome(lambda: ours.save_async(tmp_path / "c", {"w": np.full(1 << 16, n)}))

    begun = [begin(n) for n in range(4)]
    errors = [one if isinstance(one, ValueError) else one.exception() for one in begun]
    winners = [n for n, error in enumerate(errors) if error is None]
    assert len(winners) == 1
    assert all(isinstance(error, ValueError) for error in errors if error is not None)
    assert ours.load(tmp_path / "c")["w"][0] == winners[0]


def test_no_scratch_files_are_left(ours, tmp_path, monkeypatch):
    import tempfile

    from points import FailingHandler, Point, PointHandler, with_handler

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with with_handler(ours, PointHandler):
        ours.save_checkpointables(tmp_path / "c", {"p": Point(1, 2), "state": {"w": np.ones(2)}})
        ours.load_checkpointables(tmp_path / "c")
        ours.checkpointables_metadata(tmp_path / "c")
        ours.delete(tmp_path / "c", checkpointable_name="state")
    with with_handler(ours, FailingHandler):
        try:
            ours.save_checkpointables(tmp_path / "d", {"p": Point(1, 2)})
        except OSError:
            pass
    assert list(scratch.iterdir()) == []
