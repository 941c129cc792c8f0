"""What processes must agree on behind Orbax's and Flax's API: one of them fails, is slow, or sees something else."""

from __future__ import annotations

import json

import milepost as mp
import numpy as np

# In every script: what came of a call, in seconds that are far from any deadline.
OUTCOME = """
    from member import *
    start_jax()
    import time
    import jax
    import numpy as np

    def outcome(work):
        began = time.monotonic()
        try:
            said = work()
        except (Exception, KeyboardInterrupt) as error:
            said = type(error).__name__
        assert time.monotonic() - began < 30, said
        return said

    def of_process(index, mine, others):
        return mine if INDEX == index else others
"""

ONE_FAILS = (
    OUTCOME
    + """
    import signal
    import threading
    import milepost.orbax.checkpoint as ocp
    from milepost.orbax.handlers.base import LegacyCall

    class Fragile(ocp.CheckpointHandler):
        def save(self, directory, item):
            if item == INDEX:
                raise OSError("this disk is full")
            (directory / "item").write_text(str(item))

        def restore(self, directory, item=None):
            return (directory / "item").read_text()

    def rank(metrics):
        if metrics["loss"] is None:
            raise ZeroDivisionError
        return metrics["loss"]

    tree = {"x": spread(values()["kernel"], mesh(2, 1), "data")}
    options = ocp.CheckpointManagerOptions(best_fn=rank, max_to_keep=9)
    handlers = {"state": ocp.StandardCheckpointHandler(), "own": Fragile()}
    manager = ocp.CheckpointManager("run", options=options, item_handlers=handlers)

    def save(step, own=None, loss=1.0, **more):
        items = {"state": ocp.args.StandardSave(tree)}
        if own is not None:
            items["own"] = LegacyCall((own,))
        args = ocp.args.Composite(**items)
        manager.save(step, **{"args": args, "metrics": {"loss": loss}, "force": True, **more})
        manager.wait_until_finished()
        return "saved"

    say(outcome(lambda: save(1, own=1)))                                # its handler
    say(outcome(lambda: save(1, loss=of_process(1, None, 1.0))))        # its best_fn
    say(outcome(lambda: save(1, **of_process(1, {"args": None}, {}))))  # its arguments
    say(outcome(lambda: save(1, custom_metadata=of_process(1, {"milepost.orbax": 1}, None))))
    say(outcome(lambda: save(of_process(1, 7, 1))))                     # its step
    # Ctrl-C, while it waits for the other one.
    time.sleep(1.0 if INDEX == 0 else 0.0)
    if INDEX == 1:
        threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
    say(outcome(lambda: save(1)))
    say(outcome(lambda: save(1, own=9)), manager.all_steps())
    say(outcome(lambda: manager.delete(3)))
    manager.delete(1)
    say(manager.all_steps(), outcome(lambda: save(1, own=9)))
    manager.save(2, args=ocp.args.Composite(state=ocp.args.StandardSave(tree)), force=True)
    say(manager.latest_step(), manager.best_step())
    manager.close()
"""
)


def test_one_process_fails_before_a_save_and_the_others_know_at_once(job, tmp_path):
    zero, one = job(ONE_FAILS, 2, 1).end()
    assert zero[:6] == ["Invalid"] * 5 + ["Cancelled"], zero
    assert one[:6] == ["OSError", "ZeroDivisionError", "ValueError", "ValueError", "Invalid", "KeyboardInterrupt"], one
    assert zero[6:] == one[6:] == ["saved", [1], "NotFound", [], "saved", 2, 1]
    with mp.CheckpointManager(tmp_path / "run", read_only=True) as run:
        assert run.steps() == [1, 2]


OLD_FAILURES = (
    OUTCOME
    + """
    import milepost.orbax.checkpoint as ocp

    failing = []

    def callback():
        if failing and INDEX == 1:
            raise RuntimeError("the callback of process 1")

    options = ocp.CheckpointManagerOptions(async_options=ocp.AsyncOptions(post_finalization_callback=callback))
    manager = ocp.CheckpointManager("run", options=options)
    checkpointer = ocp.AsyncCheckpointer(
        ocp.StandardCheckpointHandler(), async_options=ocp.AsyncOptions(post_finalization_callback=callback))

    def save(step):
        manager.save(step, args=ocp.args.StandardSave({"x": np.arange(3)}), force=True)
        return "begun"

    def alone(number):
        checkpointer.save(os.path.abspath(f"alone-{number}"), args=ocp.args.StandardSave({"x": np.arange(3)}))
        return "begun"

    for begin, saved, wait in (
        (save, lambda n: f"run/{n}", manager.wait_until_finished),
        (alone, lambda n: f"alone-{n}", checkpointer.wait_until_finished),
    ):
        failing.append(1)
        said = [outcome(lambda: begin(1))]
        while not os.path.exists(saved(1)):
            time.sleep(0.01)
        time.sleep(0.5)
        failing.clear()
        for number in (2, 3, 4):
            said.append(outcome(lambda: begin(number)))
        said.append(outcome(wait))
        say(*said, [n for n in (1, 2, 3, 4) if os.path.exists(saved(n))])
"""
)


def test_what_failed_in_one_process_before_is_told_once_and_costs_one_save(job):
    zero, one = job(OLD_FAILURES, 2, 1).end()
    ended = [None, [1, 3, 4]]
    assert zero == ["begun", "Cancelled", "begun", "begun", *ended] * 2
    assert one == ["begun", "RuntimeError", "begun", "begun", *ended] * 2


FIRST = (
    OUTCOME
    + """
    import milepost.orbax.checkpoint as ocp
    from milepost.orbax.handlers.base import LegacyCall

    class Alone(ocp.CheckpointHandler):
        def save(self, directory, item):
            (directory / "who").write_text(str(INDEX))

        def restore(self, directory, item=None):
            return (directory / "who").read_text()

    chmod, modes = os.chmod, []
    os.chmod = lambda path, mode: (modes.append(mode), chmod(path, mode))
    options = ocp.CheckpointManagerOptions(
        file_options=ocp.options.FileOptions(path_permission_mode=0o750), create=False, prevent_write_metrics=True,
        best_fn=lambda metrics: metrics["loss"], single_host_load_and_broadcast=True, max_to_keep=9)
    if INDEX == 0:
        os.mkdir("run")
        os.chmod("run", 0o755)
        modes.clear()
    manager = ocp.CheckpointManager("run", options=options, item_handlers={
        "own": Alone(), "state": ocp.StandardCheckpointHandler(), "notes": ocp.JsonCheckpointHandler()})
    for step in (1, 2):
        items = {
            "state": ocp.args.StandardSave({"x": np.arange(3), "seen": INDEX}, custom_metadata={"of": INDEX}),
            "notes": ocp.args.JsonSave({"of": INDEX, "more": "x" * 9 * INDEX}),
        }
        if INDEX == 0:
            items["own"] = LegacyCall(("first",))
        # Process 0 likes the first step best, process 1 the second.
        loss = abs(step - INDEX - 1) * -1.0
        manager.save(step, args=ocp.args.Composite(**items), metrics={"loss": loss}, custom_metadata={"of": INDEX})
    manager.wait_until_finished()
    say(modes, manager.best_step())
    for checkpointer in (ocp.PyTreeCheckpointer(), ocp.Checkpointer(ocp.JsonCheckpointHandler())):
        checkpointer.save(os.path.abspath(type(checkpointer.handler).__name__), {"of": np.arange(INDEX + 1).size})
    say(ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(os.path.abspath("JsonCheckpointHandler")))

    # A step that another job has saved: process 0 has not listed it, process 1 has not either.
    if INDEX == 1:
        import milepost as mp
        mp.CheckpointManager("run", together=False).save(
            5, items={"state": mp.Tree({"x": np.arange(3)})}).result()
        manager._native.reload()
    say(INDEX == 0 or manager.all_steps() == [1, 2, 5])
    manager._native.reload = lambda reload=manager._native.reload: reload() if INDEX == 1 else None
    manager.reload()
    say(manager.all_steps(), manager.latest_step())
    manager.restore(None, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
    say(os.path.basename(manager._open(None)[0].url))
    manager.close()
"""
)


def test_what_is_no_array_is_the_first_processs(job, tmp_path):
    zero, one = job(FIRST, 2, 1).end()
    modes, *zero = zero
    # The step's directory and those of its items; the other process leaves them as they are.
    assert len(modes) >= 6 and set(modes) == {0o750} and one.pop(0) == []
    assert zero == one == [1, {"of": 1}, True, [1, 2], 2, "2"]
    step = mp.open(tmp_path / "run", step=2)
    assert step.metadata["of"] == 0 and step.json("notes") == {"of": 0, "more": ""}
    assert step.items["state"].metadata["custom_metadata"] == {"of": 0}
    step.extract("own", tmp_path / "own")
    assert [path.read_text() for path in (tmp_path / "own").iterdir()] == ["0"]
    assert (tmp_path / "run" / "2").stat().st_mode & 0o777 == 0o750


V1 = (
    OUTCOME
    + """
    import asyncio
    import milepost as mp
    from milepost.orbax import v1 as ocp
    from milepost.orbax.v1.training import save_decision_policies as policies

    class Iterator:
        def __init__(self, at=0):
            self.at = at

        async def save(self, directory):
            if self.at == INDEX:
                raise OSError("this disk is full")

            async def write():
                await asyncio.sleep(0.2 * INDEX)
                path = await directory.await_creation()
                (path / f"process-{INDEX}").write_text(str(self.at))

            return write()

        async def load(self, directory):
            async def read():
                self.at = int((directory / f"process-{INDEX}").read_text())

            return read()

    tree = {"x": spread(values()["kernel"], mesh(2, 1), "data")}
    say(outcome(lambda: ocp.save_checkpointables("alone", {"state": tree, "data": Iterator(1)})))
    say(outcome(lambda: ocp.save("alone", tree if INDEX == 0 else {"x": object()})))
    say(outcome(lambda: ocp.save("alone", tree, custom_metadata=of_process(0, {}, 3))))
    ocp.save_checkpointables("alone", {"state": tree, "data": Iterator(10 + INDEX)})
    loaded = Iterator()
    ocp.load_checkpointables("alone", {"data": loaded})
    say(loaded.at - INDEX)

    # By a clock: the first process decides, for `should_save` too.
    timed = policies.ContinuousCheckpointingPolicy(minimum_interval_secs=None if INDEX == 0 else 3600)
    with ocp.training.Checkpointer("run", save_decision_policy=timed) as checkpointer:
        said = []
        for step in range(8):
            time.sleep(0.05)
            if checkpointer.should_save(step):
                items = {"state": tree, "data": Iterator(step + 10)}
                checkpointer.save_checkpointables_async(step, items, force=True)
                said.append(checkpointer.latest.step == step)
        say(all(said), len(said) > 1)
        response = checkpointer.save_checkpointables_async(9, {"state": tree, "data": Iterator(20)}, force=True)
        say(outcome(lambda: checkpointer.save(9, tree, force=True)))
        say(outcome(lambda: checkpointer.save(10, tree, force=True, metrics=of_process(1, {"x": object()}, {}))))
        say(outcome(lambda: checkpointer.save(10, tree, force=True)))
        say(outcome(lambda: checkpointer.delete(77)), checkpointer.delete(77, missing_ok=True))
        say(checkpointer.delete(9, checkpointable_name="data"), checkpointer.delete(10))
        say([one.step for one in checkpointer.checkpoints][-1], sorted(checkpointer.checkpointables_metadata(9).metadata))
    say(ocp.delete("alone", checkpointable_name="data"), os.path.exists("alone/data"))
    say(ocp.delete("alone"), os.path.exists("alone"))
    say(outcome(lambda: ocp.delete("alone")), ocp.delete("alone", missing_ok=True))
"""
)


def test_v1_decides_saves_and_deletes_together(job):
    zero, one = job(V1, 2, 1).end()
    assert zero[:3] == ["Invalid", "Invalid", "Invalid"] and one[:3] == ["OSError", "UnregisteredTypeError", "TypeError"]
    assert zero[3:6] == one[3:6] == [10, True, True]
    exists = "StepAlreadyExistsError"
    assert [said[6] for said in (zero, one)] == [exists, exists]
    assert zero[7] == "Invalid" and one[7] == "TypeError"
    assert zero[8:] == one[8:]
    assert one[8:] == [True, "StepNotFoundError", False, True, True, 9, ["state"], True, False, True, False, "NotFound", False]


EVALUATORS = (
    OUTCOME
    + """
    import threading
    import milepost as mp
    import milepost.orbax.checkpoint as ocp

    def save(step):
        with mp.CheckpointManager("run", together=False) as run:
            run.save(step, {"x": np.arange(3)}).result()

    scratch = ocp.test_utils.erase_and_create_empty(os.path.abspath("scratch"))
    (scratch / f"process-{INDEX}").write_text("")
    if INDEX == 0:
        save(1)
    ocp.multihost.sync_global_processes("saved")
    say(sorted(os.listdir("scratch")))
    from milepost.orbax import _watch
    _watch.TELLING_SECONDS = 0.2
    if INDEX == 1:  # looks when there is another one
        time.sleep(1.0)
    elif INDEX == 0:
        threading.Timer(0.5, save, (2,)).start()
    seen = []
    for step in ocp.checkpoint_utils.checkpoints_iterator(
            "run", seconds_to_sleep=0.05, timeout=2, timeout_fn=lambda: INDEX == 0):
        seen.append(step)
        ocp.multihost.sync_global_processes(f"seen {step}")
        if INDEX == 1 and step == 2:
            threading.Timer(0.6, save, (3,)).start()
    say(seen)
"""
)


def test_evaluators_get_the_same_steps(job):
    assert job(EVALUATORS, 2, 1).end() == [[["process-0", "process-1"], [1, 2, 3]]] * 2


LEAVING = """
    import milepost as mp
    import milepost.orbax.checkpoint as ocp
    from member import *
    start_jax()
    import numpy as np

    tree = {"x": spread(np.arange(8 << 20), mesh(2, 1), "data")}
    {save}
    say("leaving")
"""


def test_saves_in_the_background_end_before_jax_does(job, tmp_path):
    native = 'handle = mp.save_async("native", tree)'
    orbax = (
        "ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())"
        '.save(os.path.abspath("orbax"), args=ocp.args.StandardSave(tree))'
    )
    manager = 'manager = mp.CheckpointManager("manager"); manager.save(1, tree)'
    script = LEAVING.replace("{save}", f"{native}\n    {orbax}\n    {manager}")
    assert job(script, 2, 1).end() == [["leaving"]] * 2
    for name in ("native", "orbax", "manager"):
        loaded = mp.load(tmp_path / name)
        assert (np.asarray(loaded["x"]) == np.arange(8 << 20)).all()


FLAX = (
    OUTCOME
    + """
    import milepost.orbax.checkpoint as ocp
    from flax import serialization
    from milepost.flax import checkpoints

    state = lambda at: {"w": spread(values(at)["kernel"], mesh(2, 1), "data"), "at": at}
    checkpoints.save_checkpoint_multiprocess("flax", state(1), 1)  # as Flax with Orbax: no manager
    say(outcome(lambda: checkpoints.save_checkpoint_multiprocess(
        "flax", state(2) if INDEX == 0 else {"w": object()}, 2)))
    if INDEX == 0:
        with open("flax/checkpoint_3", "wb") as file:
            file.write(serialization.to_bytes({"at": 0}))
    ocp.multihost.sync_global_processes("theirs")
    checkpoints.save_checkpoint_multiprocess("flax", state(3), 3, keep=9, overwrite=True)
    say(checkpoints.restore_checkpoint("flax", None, step=3)["at"])
    asynchronous = checkpoints.AsyncManager()
    for step in (4, 5):
        checkpoints.save_checkpoint_multiprocess("flax", state(step), step, keep=1, async_manager=asynchronous)
    asynchronous.wait_previous_save()
    say(checkpoints.available_steps("flax"))
"""
)


def test_flax_saves_and_replaces_in_all_processes(job, tmp_path):
    said = job(FLAX, 2, 1).end()
    assert said == [["Invalid", 3, [5]]] * 2, said
    assert json.loads((tmp_path / "flax" / "checkpoint_5" / "zarr.json").read_text())


PRIMARY = (
    OUTCOME
    + """
    import milepost.orbax.checkpoint as ocp

    os.makedirs("run", exist_ok=True)
    both = ocp.options.MultiprocessingOptions(primary_host=1, active_processes={0, 1})
    options = ocp.CheckpointManagerOptions(multiprocessing_options=both, create=False, max_to_keep=1)
    save = ocp.args.StandardSave({"x": np.arange(3)})
    with ocp.CheckpointManager("run", options=options) as manager:
        for step in range(3):
            manager.save(step, args=save, custom_metadata={"of": INDEX})
        manager.wait_until_finished()
        say(manager.all_steps(), manager.metadata(2).custom_metadata)
        manager.delete(2)
        say(manager.all_steps(), outcome(lambda: manager.save(2, args=save, force=True)))
    first = ocp.options.MultiprocessingOptions(active_processes={0})
    alone = ocp.Checkpointer(ocp.StandardCheckpointHandler(), multiprocessing_options=first)
    say(outcome(lambda: alone.save(os.path.abspath("alone"), args=save)))
"""
)


def test_another_process_is_the_primary_one_and_one_that_is_not_active_does_not_save(job):
    zero, one = job(PRIMARY, 2, 1).end()
    assert zero.pop() is None and one.pop() == "Invalid"
    assert zero == one == [[2], {"of": 1}, [], True]
