"""After `os.fork()` the child has an engine of its own, and what it inherited fails with `Forked`."""

from __future__ import annotations

HEAD = """
import gc, multiprocessing, os, sys, threading, time
import numpy as np
import milepost as mp
from slowness import SLOWLY, slow, visible

def child(work, seconds=30):
    \"\"\"Runs `work` in a child of a fork; its failure, or that it does not end, is ours.\"\"\"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(code)
    reap(pid, seconds)

def reap(pid, seconds=30):
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            assert status == 0, os.waitstatus_to_exitcode(status)
            return
        if time.monotonic() > deadline:
            os.kill(pid, 6)
            raise AssertionError("the child hangs")
        time.sleep(0.01)

def forked(call):
    try:
        call()
    except mp.Forked as error:
        assert isinstance(error, RuntimeError)
        return
    raise AssertionError("not Forked")

def own(name="own"):
    \"\"\"A child can do by itself whatever the parent can.\"\"\"
    data = np.arange(50_000)
    mp.save(name, {"w": data, "b": 1.5}, chunk_bytes=1 << 14, compression="zstd", overwrite=True)
    assert np.array_equal(mp.load(name)["w"], data)
    assert mp.open(name)["w"][7:9].tolist() == [7, 8]
    with mp.CheckpointManager(name + "-run") as manager:
        manager.save(1, {"w": data}, force=True, overwrite=True)
        assert mp.save_async(name + "-2", {"w": data}, overwrite=True).result()
"""


def test_a_child_gets_a_fresh_engine_and_the_parent_goes_on(run):
    run(HEAD + 'mp.save("first", {"w": np.arange(3)})\nchild(own)\nown("parent")\nchild(lambda: own("again"))')


def test_a_fork_before_the_first_use_is_like_any(run):
    run(HEAD + "child(own)\nown('parent')")


def test_a_child_of_a_child_gets_a_fresh_engine(run):
    run(
        HEAD
        + """
own("one")
def work():
    own("two")
    child(lambda: own("three"))
    own("two")
child(work)
own("one")
"""
    )


INHERITED = [
    "handle.result()", "handle.done()", "handle.cancel()", "handle.exception()", "handle.progress()",
    "manager.save(9, {'w': 1})", "manager.steps()", "manager.restore()", "manager.latest_step()", "manager.wait()",
    "manager.close()", "manager.delete(1)", "manager.pin(1)", "manager.stats()", "manager.is_saving()",
    "manager.wait_for_step(above=0, timeout=1)", "manager.reload()", "manager.preempt()",
    "checkpoint.load()", "checkpoint['w']", "checkpoint.verify()", "checkpoint.index('state').leaves",
    "leaf[0:2]", "leaf.value()", "np.asarray(leaf)", "engine.memory_bytes",
]  # fmt: skip


def test_what_was_inherited_fails_with_forked(run):
    run(
        HEAD
        + f"""
mp.save("ckpt", {{"w": np.arange(9)}})
checkpoint = mp.open("ckpt")
leaf = checkpoint["w"]
manager = mp.CheckpointManager("run", **SLOWLY)
manager.save(1, {{"w": np.arange(9)}}).result()
handle = mp.save_async("slow", slow(2), **SLOWLY)
from milepost import _milepost
engine = _milepost.Engine()
for call in {INHERITED!r}:
    print(call)
    child(lambda: forked(lambda: eval(call)))
handle.result()
assert manager.steps() == [1] and checkpoint.load()["w"].tolist() == list(range(9)) and leaf[1] == 1
"""
    )


def test_values_that_were_restored_before_are_the_childs_too(run):
    run(
        HEAD
        + """
mp.save("ckpt", {"w": np.arange(100_000), "n": 3})
tree = mp.load("ckpt")
def work():
    assert tree["w"].sum() == 4999950000 and tree["n"] == 3
    tree["w"][:] = 0
child(work)
assert tree["w"].sum() == 4999950000
tree = None
gc.collect()
"""
    )


def test_a_fork_while_a_save_is_in_flight(run):
    run(
        HEAD
        + """
handle = mp.save_async("ckpt", slow(4), **SLOWLY)
def work():
    forked(handle.result)
    own()
    assert not visible("ckpt")
child(work)
assert not handle.done()
handle.result()
mp.open("ckpt").verify()
assert np.array_equal(mp.load("ckpt")["w"], slow(4)["w"])
"""
    )


def test_a_child_that_ends_by_itself_neither_waits_nor_tells_nor_cancels(run):
    run(
        HEAD
        + """
manager = mp.CheckpointManager("run", **SLOWLY)
handles = [mp.save_async("ckpt", slow(3), **SLOWLY), manager.save(1, slow(3))]
begun = time.monotonic()
pid = os.fork()
if pid == 0:
    sys.exit(0)
reap(pid)
assert not handles[0].done(), time.monotonic() - begun
for handle in handles:
    handle.result()
assert manager.steps() == [1]
mp.open("ckpt").verify()
"""
    )


def test_a_save_of_the_child_is_waited_for_at_its_end(run):
    run(
        HEAD
        + """
mp.save("first", slow(1))
pid = os.fork()
if pid == 0:
    mp.save_async("ckpt", slow(2), **SLOWLY)
    sys.exit(0)
reap(pid)
assert np.array_equal(mp.load("ckpt")["w"], slow(2)["w"])
"""
    )


def test_what_a_child_throws_away_is_of_no_harm_to_the_parent(run):
    run(
        HEAD
        + """
manager = mp.CheckpointManager("run", **SLOWLY)
mp.save("ckpt", {"w": np.arange(9)})
things = [mp.open("ckpt"), mp.open("ckpt")["w"], mp.load("ckpt"), mp.save_async("slow", slow(2), **SLOWLY)]
lease = manager.save(1, {"w": np.arange(9)}).result()
things.append(manager.wait_for_step(above=0))
first = manager.save(2, slow(2))
def work():
    global manager, things, first
    manager = first = None
    things.clear()
    gc.collect()
    own()
child(work)
first.result()
things[3].result()
assert manager.steps() == [1, 2] and things[1][3] == 3 and things[4].load()["w"][1] == 1
manager.save(3, {"w": np.arange(9)})
manager.close()
assert visible("slow") and visible("run/3")
"""
    )


def test_workers_of_a_pool_load_and_save_while_the_parent_saves(run):
    run(
        HEAD
        + """
mp.save("data", {"w": np.arange(100_000)}, chunk_bytes=1 << 14)
handle = mp.save_async("ckpt", slow(4), **SLOWLY)
def work(n):
    total = int(mp.load("data")["w"].sum())
    mp.save(f"part-{n}", {"w": np.full(1000, n)})
    return total
with multiprocessing.get_context("fork").Pool(3) as pool:
    assert pool.map_async(work, range(12)).get(60) == [4999950000] * 12
handle.result()
assert [int(mp.load(f"part-{n}")["w"][0]) for n in range(12)] == list(range(12))
"""
    )


def test_spawned_workers_save_too(run, tmp_path):
    (tmp_path / "worker.py").write_text(
        "import milepost as mp, numpy as np\n"
        "def work(n):\n    mp.save(f'part-{n}', {'w': np.full(10, n)})\n    return int(mp.load(f'part-{n}')['w'][0])\n"
    )
    (tmp_path / "main.py").write_text(
        "import multiprocessing, worker\nimport milepost as mp, numpy as np\n"
        "if __name__ == '__main__':\n"
        "    handle = mp.save_async('ckpt', {'w': np.arange(9)})\n"
        "    with multiprocessing.get_context('spawn').Pool(2) as pool:\n"
        "        assert pool.map_async(worker.work, range(4)).get(60) == [0, 1, 2, 3]\n"
        "    handle.result()\n"
    )
    run("import runpy\nrunpy.run_path('main.py', run_name='__main__')", PYTHONPATH=_with(tmp_path))


def _with(folder) -> str:
    import os

    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def test_forks_at_any_moment_of_busy_threads_never_deadlock(run):
    run(
        HEAD
        + """
stop = threading.Event()
failures = []
def busy(n):
    try:
        manager = mp.CheckpointManager(f"run-{n}", max_to_keep=2)
        step = 0
        while not stop.is_set():
            step += 1
            manager.save(step, {"w": np.arange(20_000)})
            mp.save(f"ckpt-{n}", {"w": np.arange(20_000)}, overwrite=True, compression="zstd")
            mp.load(f"ckpt-{n}")
        manager.close()
    except BaseException as error:
        failures.append(error)
threads = [threading.Thread(target=busy, args=(n,)) for n in range(4)]
for thread in threads:
    thread.start()
time.sleep(0.3)
try:
    for n in range(120):
        child(lambda: own(f"child-{n % 3}"), 20)
finally:
    stop.set()
    for thread in threads:
        thread.join()
assert not failures, failures
for n in range(4):
    mp.open(f"ckpt-{n}").verify()
"""
    )


def test_a_fork_within_a_callback_of_ours(run):
    run(
        HEAD
        + """
done = threading.Event()
failures = []
def callback(handle):
    try:
        child(own)
    except BaseException as error:
        failures.append(error)
    done.set()
handle = mp.save_async("ckpt", {"w": np.arange(9)})
handle.add_done_callback(callback)
handle.result()
assert done.wait(40) and not failures, failures
"""
    )


def test_a_fork_while_another_thread_takes_and_gives_back_leases(run):
    run(
        HEAD
        + """
manager = mp.CheckpointManager("run")
for step in range(3):
    manager.save(step, {"w": np.arange(9)}).result()
held = manager.open(0, lease=True)
stop = threading.Event()

def lease():
    while not stop.is_set():
        for step in (1, 2):
            with manager.open(step, lease=True):
                pass

threads = [threading.Thread(target=lease) for _ in range(3)]
for thread in threads:
    thread.start()

def childs():
    own("own")
    with mp.CheckpointManager("own-run", max_to_keep=1) as mine:
        with mine.open(lease=True) as opened:
            assert opened.load()["w"].shape == (50_000,)
            mine.save(2, {"w": 1}).result()
            mine.wait()
            assert mine.steps() == [1, 2], "it is leased here"
        mine.save(3, {"w": 1}).result()
        mine.wait()
        assert mine.steps() == [3]
    try:
        mp.CheckpointManager("run").delete(0)
        raise AssertionError("the parent reads it")
    except mp.Conflict:
        pass
    gc.collect()

try:
    for _ in range(12):
        child(childs)
        os.system("rm -rf own own-2 own-run")
finally:
    stop.set()
    for thread in threads:
        thread.join()
try:
    manager.delete(0)
    raise AssertionError("the lease is lost")
except mp.Conflict:
    pass
held.close()
manager.delete(0)
manager.close()
"""
    )
