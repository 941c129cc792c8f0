"""The end of the process waits for saves in flight, and says which of them failed."""

from __future__ import annotations

import pytest

HEAD = """
import atexit, os, resource, sys, threading, time
import numpy as np
import milepost as mp
from slowness import SLOWLY, slow, visible

def no_space():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
"""

CHECK = """
import numpy as np
import milepost as mp
from slowness import slow
checkpoint = mp.open("{url}")
checkpoint.verify()
assert np.array_equal(checkpoint.load()["w"], slow({megabytes})["w"])
"""


def test_a_save_in_flight_is_waited_for_though_its_handle_was_dropped(run):
    run(HEAD + 'mp.save_async("ckpt", slow(2), **SLOWLY)\nassert not visible("ckpt")')
    run(CHECK.format(url="ckpt", megabytes=2))


def test_several_saves_in_flight_are_waited_for(run):
    run(HEAD + 'for n in range(4):\n    mp.save_async(f"ckpt-{n}", slow(1), **SLOWLY)')
    for n in range(4):
        run(CHECK.format(url=f"ckpt-{n}", megabytes=1))


def test_a_manager_that_nobody_closed_is_waited_for(run):
    run(HEAD + 'manager = mp.CheckpointManager("run", **SLOWLY)\nmanager.save(7, slow(2))')
    run(CHECK.format(url="run/7", megabytes=2))


def test_a_manager_of_which_only_the_save_is_left_is_waited_for(run):
    run(
        HEAD
        + """
def training():
    mp.CheckpointManager("run", **SLOWLY).save(7, slow(2))
training()
"""
    )
    run(CHECK.format(url="run/7", megabytes=2))


def test_queued_saves_are_waited_for(run):
    run(
        HEAD
        + """
manager = mp.CheckpointManager("run", queue="replace_pending", **SLOWLY)
manager.save(1, slow(2))
manager.save(2, slow(2))
"""
    )
    for step in (1, 2):
        run(CHECK.format(url=f"run/{step}", megabytes=2))


def test_the_exit_code_stays(run):
    run(HEAD + 'mp.save_async("ckpt", slow(2), **SLOWLY)\nsys.exit(3)', code_wanted=3)
    run(CHECK.format(url="ckpt", megabytes=2))


def test_an_exception_of_the_script_does_not_lose_the_save(start, run):
    child = start(HEAD + 'mp.save_async("ckpt", slow(2), **SLOWLY)\nraise ValueError("bad luck")')
    code, _ = child.end()
    assert code == 1 and "bad luck" in child.err and "milepost" not in child.err
    run(CHECK.format(url="ckpt", megabytes=2))


@pytest.mark.parametrize("how", ["async", "manager"])
def test_a_failure_that_nobody_asked_for_is_told_on_stderr(start, run, how):
    save = 'mp.save_async("ckpt", slow(2), **SLOWLY)'
    if how == "manager":
        save = 'manager = mp.CheckpointManager("run", **SLOWLY)\nmanager.save(7, slow(2))'
    child = start(HEAD + "no_space()\n" + save)
    code, _ = child.end()
    assert code == 0
    told = [line for line in child.err.splitlines() if line.startswith("milepost: ")]
    assert len(told) == 1 and "failed" in told[0] and "File too large" in child.err, child.err
    assert ("step=7" in told[0]) == (how == "manager")
    assert "Traceback" not in child.err
    run(HEAD + 'assert not visible("ckpt") and not visible("run/7")')


def test_a_failure_is_told_at_the_end_though_other_saves_came_after_it(start):
    child = start(
        HEAD
        + """
mp.save("there", {"w": 1})
for ckpt in ("there", "a", "b"):
    failed = mp.save_async(ckpt, {"w": 1})
    while not failed.done():
        time.sleep(0.01)
"""
    )
    code, _ = child.end()
    told = [line for line in child.err.splitlines() if line.startswith("milepost: ")]
    assert code == 0 and len(told) == 1 and "exists already" in told[0], child.err


@pytest.mark.parametrize(
    "ask",
    ["handle.result()", "handle.exception()", "manager.wait()", "manager.close()", 'manager.save(8, {"w": 1})'],
)
def test_a_failure_that_was_asked_for_is_not_told_again(run, ask):
    run(
        HEAD
        + f"""
manager = mp.CheckpointManager("run", **SLOWLY)
no_space()
handle = manager.save(7, slow(2))
while not handle.done():
    time.sleep(0.01)
try:
    failure = {ask}
except mp.MilepostError as error:
    failure = error
assert "File too large" in str(failure), failure
"""
    )


def test_a_save_that_its_caller_cancelled_is_not_told(run):
    run(HEAD + 'mp.save_async("ckpt", slow(), **SLOWLY).cancel()')


def test_a_hook_that_runs_after_ours_can_still_save(run):
    run(
        """
import atexit
def last_words():
    mp.save("ckpt", slow(1), **SLOWLY)
atexit.register(last_words)  # before milepost is imported: runs after its own
"""
        + HEAD
    )
    run(CHECK.format(url="ckpt", megabytes=1))


LATE = """
import atexit
atexit.register(lambda: last_words())  # before milepost is imported: runs after its own
"""


@pytest.mark.parametrize(
    "save",
    [
        'mp.save_async("run/7", slow(1), **SLOWLY)',
        'mp.CheckpointManager("run", **SLOWLY).save(7, slow(1))',
        'with mp.CheckpointManager("run", **SLOWLY) as manager: manager.save(7, slow(1)); manager.wait(5)',
        'mp.save_async("run/7", slow(1), **SLOWLY).add_done_callback(lambda handle: handle.result())',
    ],
)
def test_a_save_in_the_background_of_a_hook_that_runs_after_ours_is_waited_for(run, save):
    run(LATE + HEAD + f"def last_words():\n    {save}")
    run(CHECK.format(url="run/7", megabytes=1))


def test_a_save_of_a_late_hook_that_fails_raises(start):
    child = start(LATE + HEAD + 'def last_words():\n    no_space()\n    mp.save_async("ckpt", slow(2), **SLOWLY)')
    child.end()
    assert "File too large" in child.err, child.err


def test_a_manager_that_the_exit_has_closed_refuses_a_late_save(start, run):
    child = start(LATE + HEAD + 'manager = mp.CheckpointManager("run")\ndef last_words():\n    manager.save(7, slow(1))')
    child.end()
    assert "closed" in child.err and "milepost._errors" in child.err, child.err


def test_a_thread_that_still_saves_is_waited_for(run):
    run(HEAD + 'threading.Thread(target=mp.save, args=("ckpt", slow(2)), kwargs=SLOWLY).start()')
    run(CHECK.format(url="ckpt", megabytes=2))


@pytest.mark.parametrize("call", ['mp.save("ckpt", slow(1), overwrite=True)', 'mp.load("there")', "manager.wait()"])
def test_daemon_threads_within_a_call_do_not_crash_the_exit(run, call):
    run(
        HEAD
        + f"""
mp.save("there", slow(16))
manager = mp.CheckpointManager("run", **SLOWLY)
manager.save(1, slow(2))
def busy():
    while True:
        {call}
threads = [threading.Thread(target=busy, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
time.sleep(0.7)
""",
        err=None,
    )


def test_a_process_that_is_killed_leaves_nothing_visible(start, run):
    child = start(HEAD + 'mp.save_async("ckpt", slow(), **SLOWLY)\ntime.sleep(1)\nos._exit(5)')
    assert child.end()[0] == 5
    run(HEAD + 'assert not visible("ckpt")\nmp.save("ckpt", slow(1), **SLOWLY)')
    run(CHECK.format(url="ckpt", megabytes=1))


def test_objects_that_outlive_the_interpreter_are_no_trouble(run):
    run(
        HEAD
        + """
import builtins
mp.save("ckpt", {"w": np.arange(9), "p": {"q": 1}})
builtins.everything = [
    mp.open("ckpt"), mp.open("ckpt")["w"], mp.open("ckpt").index("state"), mp.load("ckpt"),
    mp.CheckpointManager("run"), mp.save_async("other", {"w": np.arange(9)}),
]
builtins.everything.append(builtins.everything)
"""
    )


def test_nothing_is_written_to_stderr_and_no_thread_is_left_where_all_is_well(run):
    out = run(
        HEAD
        + """
def counts():
    threads = len(os.listdir("/proc/self/task"))
    files = len(os.listdir("/proc/self/fd"))
    return threads, files
def round(n):
    mp.save(f"ckpt-{n}", slow(1))
    mp.load(f"ckpt-{n}")
    with mp.CheckpointManager(f"run-{n}") as manager:
        manager.save(1, {"w": np.arange(3)})
    mp.open(f"run-{n}/1")["w"][0:2]
for n in range(3):
    round(n)
before = counts()
for n in range(3, 33):
    round(n)
time.sleep(0.3)
print(*before, *counts())
"""
    )
    threads, files, threads_after, files_after = map(int, out.split())
    assert threads_after <= threads + 2 and files_after <= files + 2, out
