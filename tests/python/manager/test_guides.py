"""What the popular guides write, with `milepost.orbax` for `orbax`."""

from __future__ import annotations

import datetime

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import milepost.orbax.checkpoint as ocp
from milepost.orbax import _manager_setup
from milepost.orbax.checkpoint.checkpoint_managers import preservation_policy, save_decision_policy


@pytest.fixture
def state():
    return {
        "params": {"dense": {"kernel": jnp.arange(12.0).reshape(3, 4), "bias": jnp.zeros(4)}},
        "opt_state": (jnp.ones(3), {"count": jnp.int32(3)}),
        "step": 7,
    }


def test_a_manager_over_a_checkpointer_with_every_classic_option(run, state):
    options = ocp.CheckpointManagerOptions(
        max_to_keep=3,
        keep_time_interval=3600,
        keep_period=5,
        create=True,
        save_interval_steps=1,
        write_tree_metadata=False,
        compression="zstd",
    )
    manager = ocp.CheckpointManager(run, ocp.PyTreeCheckpointer(), options)
    for step in range(12):
        manager.save(step, args=ocp.args.StandardSave(state), metrics={"loss": 1 / (step + 1)})
    manager.wait_until_finished()
    assert manager.all_steps() == [0, 5, 9, 10, 11]
    restored = manager.restore(manager.latest_step())
    assert np.array_equal(restored["params"]["dense"]["kernel"], np.arange(12.0).reshape(3, 4))
    assert restored["step"] == 7 and manager.metrics(9) == {"loss": 0.1}


def test_the_best_checkpoint_by_accuracy(run, state):
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, best_fn=lambda metrics: metrics["accuracy"], best_mode="max"
    )
    with ocp.CheckpointManager(run, options=options) as manager:
        for step, accuracy in enumerate([0.1, 0.9, 0.3, 0.8, 0.2]):
            manager.save(
                step, args=ocp.args.StandardSave(state), metrics={"accuracy": accuracy}
            )
        manager.wait_until_finished()
        assert manager.best_step() == 1 and manager.all_steps() == [1, 3, 4]
        assert manager.restore(manager.best_step())["step"] == 7


def test_an_async_checkpointer_gives_the_manager_its_timeout(run, state):
    checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), timeout_secs=300)
    manager = ocp.CheckpointManager(run, checkpointer, ocp.CheckpointManagerOptions(max_to_keep=1))
    assert manager.save(1, args=ocp.args.PyTreeSave(state))
    manager.wait_until_finished()
    given = _manager_setup.Given(checkpointer)
    assert _manager_setup.async_options(given, ocp.CheckpointManagerOptions()).timeout_secs == 300


def train(run, until, state, crash_at=None):
    """The production loop: restore if there is something, else begin; save; end cleanly."""
    with ocp.CheckpointManager(run, options=ocp.CheckpointManagerOptions(max_to_keep=2)) as manager:
        begin = 0
        if manager.latest_step() is not None:
            state = manager.restore(
                manager.latest_step(), args=ocp.args.StandardRestore(state)
            )
            begin = manager.latest_step() + 1
        for step in range(begin, until):
            if step == crash_at:
                raise KeyboardInterrupt
            state = {**state, "step": state["step"] + 1, "w": state["w"] + 1}
            manager.save(step, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
    return begin, state


def test_a_run_that_was_interrupted_resumes_where_it_was(run):
    fresh = {"w": jnp.zeros(4), "step": 0}
    with pytest.raises(KeyboardInterrupt):
        train(run, 10, fresh, crash_at=4)
    begin, state = train(run, 10, fresh)
    assert begin == 4 and state["step"] == 10 and float(state["w"][0]) == 10
    assert train(run, 10, fresh)[0] == 10


def test_a_backup_when_the_run_cannot_be_written(run, tmp_path, state):
    manager = ocp.CheckpointManager(run)
    (run / "3").write_text("in the way")
    backup = tmp_path / "backup"
    for attempt in range(3):
        try:
            manager.save(3, args=ocp.args.StandardSave(state), force=True)
            manager.wait_until_finished()
            break
        except Exception:
            if attempt == 2:
                manager.save(f"{backup}/3", args=ocp.args.StandardSave(state))
                manager.wait_until_finished()
    assert ocp.CheckpointManager(backup).restore(3)["step"] == 7


def test_a_dict_of_items_is_a_composite(run, state):
    manager = ocp.CheckpointManager(run)
    params, config = ocp.args.StandardSave(state["params"]), ocp.args.JsonSave({"lr": 1})
    items = {"params": params, "config": config}
    manager.save(0, args=ocp.args.Composite(**items))
    restored = manager.restore(0)
    assert set(restored["params"]) == {"dense"} and restored["config"] == {"lr": 1}


def test_policies_instead_of_options(run, state):
    options = ocp.CheckpointManagerOptions(
        save_decision_policy=save_decision_policy.AnySavePolicy(
            [
                save_decision_policy.FixedIntervalPolicy(4),
                save_decision_policy.SpecificStepsPolicy([6]),
                save_decision_policy.InitialSavePolicy(),
            ]
        ),
        preservation_policy=preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(1),
                preservation_policy.EveryNSteps(8),
                preservation_policy.LatestDuration(datetime.timedelta(seconds=0)),
            ]
        ),
    )
    with ocp.CheckpointManager(run, options=options) as manager:
        saved = [s for s in range(1, 14) if manager.save(s, args=ocp.args.JsonSave({"s": s}))]
        manager.wait_until_finished()
        assert saved == [1, 4, 6, 8, 12] and manager.all_steps() == [8, 12]


def test_restored_arrays_have_the_sharding_of_the_target(run):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    manager = ocp.CheckpointManager(run)
    manager.save(0, args=ocp.args.StandardSave({"w": jnp.arange(8.0)}))
    target = {"w": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)}
    restored = manager.restore(0, args=ocp.args.StandardRestore(target))
    assert restored["w"].sharding == sharding
    wanted = ocp.checkpoint_utils.construct_restore_args(target)
    again = ocp.CheckpointManager(run).restore(
        0, args=ocp.args.PyTreeRestore(target, restore_args=wanted)
    )
    assert again["w"].sharding == sharding


def test_nnx_state_is_saved_at_the_optimizer_s_own_step_and_comes_back(run):
    nnx = pytest.importorskip("flax.nnx")
    optax = pytest.importorskip("optax")
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    with ocp.CheckpointManager(run) as manager:
        _, state = nnx.split(model)
        assert manager.save(optimizer.step.value, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
        assert manager.all_steps() == [0]
        abstract = nnx.eval_shape(lambda: nnx.split(nnx.Linear(2, 3, rngs=nnx.Rngs(1)))[1])
        restored = manager.restore(0, args=ocp.args.StandardRestore(abstract))
    assert isinstance(restored, nnx.State)
    graph, _ = nnx.split(model)
    again = nnx.merge(graph, restored)
    assert np.array_equal(again.kernel.value, model.kernel.value)


def test_an_evaluator_follows_the_trainer(run, state):
    with ocp.CheckpointManager(run) as trainer:
        for step in range(3):
            trainer.save(step, args=ocp.args.StandardSave(state))
        trainer.wait_until_finished()
    evaluator = ocp.CheckpointManager(run, options=ocp.CheckpointManagerOptions(read_only=True))
    for step in ocp.checkpoint_utils.checkpoints_iterator(run, timeout=0):
        assert evaluator.restore(step)["step"] == 7 and step == 2
