"""milepost.orbax and milepost.flax in several processes, as guides for several hosts use them."""

from __future__ import annotations

import milepost as mp
import numpy as np
from member import check, values

ORBAX = """
    from member import *
    start_jax()
    import jax
    import numpy as np
    import milepost.orbax.checkpoint as ocp

    mesh = mesh(2, 2)
    options = ocp.CheckpointManagerOptions(max_to_keep=2, save_interval_steps=2)
    with ocp.CheckpointManager("run", options=options) as manager:
        for step in range(7):
            saved = manager.save(step, args=ocp.args.Composite(
                state=ocp.args.StandardSave(state(mesh, step)), data=ocp.args.JsonSave({"at": step})))
            assert saved == (step % 2 == 0), step
        manager.wait_until_finished()
        manager.reload()
        say(manager.latest_step())
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state(mesh))
        restored = manager.restore(6, args=ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()))
        check(restored.state, 6)
        assert restored.data == {"at": 6}
    policy = ocp.checkpoint_managers.save_decision_policy
    timed = ocp.CheckpointManagerOptions(save_decision_policy=policy.ShouldSaveFnPolicy(
        lambda step, latest: INDEX == 0 and step % 3 == 0))
    with ocp.CheckpointManager("decided", options=timed) as manager:
        say([manager.save(step, args=ocp.args.StandardSave({"x": values()["bias"]})) for step in range(4)])

    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(os.path.abspath("alone"), state(mesh, 1))
    checkpointer.wait_until_finished()
    check(checkpointer.restore(os.path.abspath("alone"), abstract), 1)
    checkpointer.save(os.path.abspath("alone"), state(mesh, 2), force=True)
    checkpointer.wait_until_finished()
    check(checkpointer.restore(os.path.abspath("alone"), abstract), 2)

    mine = ocp.Checkpointer(ocp.StandardCheckpointHandler(), multiprocessing_options=ocp.options.MultiprocessingOptions(
        primary_host=None))
    mine.save(os.path.abspath(f"mine-{INDEX}"), args=ocp.args.StandardSave({"x": np.full(3, INDEX)}))
    say("end")
"""


def test_orbax_managers_and_checkpointers_save_together(job, tmp_path):
    said = job(ORBAX, 2, 2).end()
    assert said == [[6, [True, False, False, True], "end"]] * 2
    with mp.CheckpointManager(tmp_path / "run", read_only=True) as run:
        assert run.steps() == [4, 6]
        check(run.restore(6, item="state"), 6)
    check(mp.load(tmp_path / "alone"), 2)
    for index in range(2):
        assert (mp.load(tmp_path / f"mine-{index}")["x"] == index).all()


V1 = """
    from member import *
    start_jax()
    import jax
    from milepost.orbax import v1 as ocp

    mesh = mesh(2, 2)
    ocp.save("alone", state(mesh, 5))
    check(ocp.load("alone", state(mesh)), 5)
    with ocp.training.Checkpointer("run") as checkpointer:
        for step in (1, 2):
            assert checkpointer.save(step, state(mesh, step), force=True)
        check(checkpointer.load(2, state(mesh)), 2)
    say("end")
"""


def test_the_functions_of_orbax_v1_save_together(job, tmp_path):
    assert job(V1, 2, 2).end() == [["end"]] * 2
    check(mp.load(tmp_path / "alone"), 5)
    check(mp.load(tmp_path / "run"), 2)


FLAX = """
    from member import *
    start_jax()
    import jax
    from milepost.flax import checkpoints

    mesh = mesh(2, 2)
    manager = checkpoints.GlobalAsyncCheckpointManager(timeout_secs=60) if hasattr(
        checkpoints, "GlobalAsyncCheckpointManager") else __import__(
        "milepost.flax", fromlist=["x"]).GlobalAsyncCheckpointManager(timeout_secs=60)
    try:
        checkpoints.save_checkpoint("flax", state(mesh, 1), 1)
    except Exception as error:
        say(type(error).__name__)
    for step in (1, 2):
        checkpoints.save_checkpoint_multiprocess("flax", state(mesh, step), step, keep=1, gda_manager=manager)
    check(checkpoints.restore_checkpoint("flax", state(mesh), gda_manager=manager), 2)
    say("end")
"""


def test_flax_saves_a_global_state(job, tmp_path):
    assert job(FLAX, 2, 2).end() == [["MPACheckpointingRequiredError", "end"]] * 2
    assert [path.name for path in (tmp_path / "flax").iterdir() if path.name != ".milepost"] == ["checkpoint_2"]
    loaded = mp.load(tmp_path / "flax" / "checkpoint_2")
    assert (np.asarray(loaded["kernel"]) == values(2)["kernel"]).all()


FILES = """
    from member import *
    start_jax()
    import json
    import milepost.orbax.checkpoint as ocp

    class Iterators(ocp.CheckpointHandler):
        def save(self, directory, args):
            (directory / f"process_{INDEX}-of-{COUNT}.json").write_text(json.dumps({"at": INDEX * 10}))
            (directory / "shared.json").write_text(json.dumps(INDEX))

        def restore(self, directory, args=None):
            own = json.loads((directory / f"process_{INDEX}-of-{COUNT}.json").read_text())
            return [own, json.loads((directory / "shared.json").read_text())]

    @ocp.args.register_with_handler(Iterators, for_save=True)
    class Save(ocp.args.CheckpointArgs):
        pass

    @ocp.args.register_with_handler(Iterators, for_restore=True)
    class Restore(ocp.args.CheckpointArgs):
        pass

    mesh = mesh(2, 1)
    with ocp.CheckpointManager("run") as manager:
        for step in (1, 2):
            manager.save(step, args=ocp.args.Composite(
                state=ocp.args.StandardSave({"x": spread(values()["kernel"], mesh, "data")}), data=Save()))
        manager.wait_until_finished()
        say(manager.restore(2, args=ocp.args.Composite(data=Restore())).data)
"""


def test_every_process_gets_its_own_files_of_a_custom_handler_back(job):
    assert job(FILES, 2, 1).end() == [[[{"at": 0}, 0]], [[{"at": 10}, 0]]]
