"""One process of a job dies, fails or stays away: an error everywhere in bounded time, and no commit."""

from __future__ import annotations

import milepost as mp
import pytest
from member import check

KILLED = """
    from member import *
    start_jax()
    import time
    import milepost as mp

    mesh, victim = mesh(2, 2), {victim}
    run = mp.CheckpointManager("run", together=mp.Together.jax("run", deadline=6))
    first = 1 + (run.latest_step() or 0)
    run.save(first, state(mesh, first)).result()
    say("saved")
    if INDEX == victim:
        say("here")
        time.sleep(600)
    try:
        run.save(first + 1, state(mesh, first + 1)).result()
        say("saved")
    except mp.MilepostError as error:
        run.reload()
        say("failed", run.steps())
    leave()
"""


@pytest.mark.parametrize("victim", [0, 1])
def test_one_process_is_killed_in_the_middle(job, tmp_path, victim):
    one = job(KILLED.format(victim=victim), 2, 2)
    one.wait_for(victim, "here")
    one.wait_for(1 - victim, "saved")
    one.kill(victim)
    if victim == 1:
        assert one.end(killed=(1,))[0] == ["saved", "failed", [1]]
    else:
        # JAX itself ends the others when the process with its service is gone, before our deadline or after it.
        assert one.end(killed=(0, 1))[1][:2] in (["saved"], ["saved", "failed"])
    assert mp.CheckpointManager(tmp_path / "run", read_only=True).steps() == [1]
    check(mp.load(tmp_path / "run"), 1)
    assert job(KILLED.format(victim=9), 2, 2).end() == [["saved", "saved"]] * 2
    assert mp.CheckpointManager(tmp_path / "run", read_only=True).steps() == [1, 2, 3]
    check(mp.load(tmp_path / "run"), 3)


FAILS = """
    from member import *
    start_jax()
    import time
    import milepost as mp

    mesh = mesh(2, 1)
    run = mp.CheckpointManager("run")
    began = time.monotonic()
    try:
        given = state(mesh, 1)
        if INDEX == 1:
            given["host"] = object()
        run.save(1, given).result()
        say("saved")
    except mp.MilepostError as error:
        say(type(error).__name__)
        assert time.monotonic() - began < 60
    run.save(2, state(mesh, 2)).result()
    say(run.steps())
    run.close()
"""


def test_one_process_that_cannot_save_tells_the_others_and_the_next_save_works(job):
    said = job(FAILS, 2, 1).end()
    assert said == [["Invalid", [2]], ["Invalid", [2]]]


AWAY = """
    from member import *
    start_jax()
    import milepost as mp

    mesh = mesh(2, 1)  # JAX waits for every process here
    if INDEX == 0:
        try:
            mp.save("alone", state(mesh), together=mp.Together.jax("alone", deadline=2))
        except mp.MilepostError as error:
            say(type(error).__name__, str(error))
        mp.save("mine", {"w": values()["bias"]}, together=False)
        say("alone")
"""


def test_who_stays_away_is_named(job, tmp_path):
    said, _ = job(AWAY, 2, 1).end()
    assert said[0] == "SaveTimeout" and "1" in said[1] and said[2] == "alone"
    assert not (tmp_path / "alone").exists() and (tmp_path / "mine").exists()
