"""`training.Checkpointer`: the steps of a run."""

from __future__ import annotations

import datetime

import jax.numpy as jnp
import numpy as np
import pytest
from equality import assert_same
from points import Counter, Point, SlowPointHandler, with_handler

TREE = {"w": np.arange(3.0)}


def checkpointer(ocp, directory, **keywords):
    return ocp.training.Checkpointer(directory, **keywords)


def every(ocp, interval=1):
    return ocp.training.save_decision_policies.FixedIntervalPolicy(interval)


def steps(ckptr):
    return [one.step for one in ckptr.checkpoints]


def test_an_empty_run_has_no_latest(ocp, tmp_path):
    with checkpointer(ocp, tmp_path / "run") as ckptr:
        assert ckptr.latest is None and list(ckptr.checkpoints) == []
        with pytest.raises(ocp.training.errors.StepNotFoundError):
            ckptr.load()
    assert (tmp_path / "run").is_dir()


def test_a_step_is_saved_and_loaded(ocp, tmp_path):
    with checkpointer(ocp, tmp_path / "run") as ckptr:
        assert ckptr.save(0, TREE) is True
        assert_same(ckptr.load(), TREE)
        assert_same(ckptr.load(0, {"w": np.zeros(3, np.float32)}), {"w": np.arange(3, dtype="f4")})
        assert_same(ckptr.load(ckptr.latest), TREE)
    assert (tmp_path / "run" / "0" / "state").is_dir()


def test_a_new_checkpointer_finds_the_steps(ocp, tmp_path):
    with checkpointer(ocp, tmp_path / "run", save_decision_policy=every(ocp)) as ckptr:
        for step in (3, 10, 20):
            ckptr.save(step, {"w": np.full(2, step)})
    with checkpointer(ocp, tmp_path / "run") as ckptr:
        assert steps(ckptr) == [3, 10, 20]
        assert ckptr.latest.step == 20
        assert ckptr.load(10)["w"][0] == 10
        assert ckptr.latest.path.name == "20"
        age = datetime.datetime.now(datetime.timezone.utc) - ckptr.latest.time
        assert datetime.timedelta() <= age < datetime.timedelta(minutes=5)


def test_the_policy_decides(ocp, tmp_path):
    with checkpointer(ocp, tmp_path / "run", save_decision_policy=every(ocp, 2)) as ckptr:
        saved = [ckptr.save(step, TREE) for step in range(5)]
        assert saved == [True, False, True, False, True]
        assert ckptr.save_async(5, TREE) is None
        assert (ckptr.should_save(5), ckptr.should_save(6)) == (False, True)


def test_steps_below_the_newest_are_not_saved_but_by_force(ocp, tmp_path):
    with checkpointer(ocp, tmp_path / "run", save_decision_policy=every(ocp)) as ckptr:
        ckptr.save(5, TREE)
        assert ckptr.should_save(3) is False
        assert ckptr.save(3, TREE) is False
        assert ckptr.save(3, TREE, force=True) is True
        assert steps(ckptr) == [3, 5] and ckptr.latest.step == 5


def test_a_step_that_exists_is_an_error(ocp, tmp_path):
    with checkpointer(ocp, tmp_path / "run", save_decision_policy=every(ocp)) as ckptr:
        ckptr.save(5, TREE)
        for force in (False, True):
            with pytest.raises(ocp.training.errors.StepAlreadyExistsError, match="already exists"):
                ckptr.save(5, TREE, force=force)
        assert issubclass(ocp.training.errors.StepAlreadyExistsError, FileExistsError)


def test_overwrite_replaces_a_step(ocp, tmp_path):
    with checkpointer(ocp, tmp_path / "run", save_decision_policy=every(ocp)) as ckptr:
        ckptr.save(5, TREE)
        assert ckptr.save(5, {"w": np.ones(1)}, overwrite=True) is True
        assert_same(ckptr.load(5), {"w": np.ones(1)})
        assert ckptr.save(6, TREE, overwrite=True) is True
        assert steps(ckptr) == [5, 6]


def test_overwrite_of_an_older_step_replaces_it_unlike_orbax(ours, theirs, tmp_path):
    found = {}
    for ocp in (ours, theirs):
        with checkpointer(ocp, tmp_path / ocp.__name__, save_decision_policy=every(ocp)) as ckptr:
            ckptr.save(1, {"w": np.zeros(1)})
            ckptr.save(2, {"w": np.zeros(1)})
            ckptr.save(1, {"w": np.ones(1)}, overwrite=True)
            found[ocp] = steps(ckptr)
    assert found[ours] == [1, 2]
    assert found[theirs] == [2]  # deleted, then not saved: it is below the newest


def test_overwrite_that_the_policy_refuses_loses_nothing_unlike_orbax(ours, theirs, tmp_path):
    found = {}
    for ocp in (ours, theirs):
        place = tmp_path / ocp.__name__
        with checkpointer(ocp, place, save_decision_policy=every(ocp, 10)) as ckptr:
            ckptr.save(7, TREE, force=True)
            assert ckptr.save(7, {"w": np.ones(1)}, overwrite=True) is False
            found[ocp] = steps(ckptr)
    assert found[ours] == [7]
    assert found[theirs] == []


def test_a_missing_step_is_told_with_those_that_are_there(ocp, tmp_path):
    with checkpointer(ocp, tmp_path / "run") as ckptr:
        ckptr.save(5, TREE)
        with pytest.raises(ocp.training.errors.StepNotFoundError, match="99") as caught:
            ckptr.load(99)
        assert isinstance(caught.value, FileNotFoundError)
        if "milepost" in ocp.__name__:
            assert "steps that are there: 5" in str(caught.value)


def test_the_preservation_policy_keeps(ocp, tmp_path):
    policies = ocp.training.preservation_policies
    policy = policies.AnyPreservationPolicy([policies.LatestN(2), policies.EveryNSteps(4)])
    with checkpointer(
        ocp, tmp_path / "run", save_decision_policy=every(ocp), preservation_policy=policy
    ) as ckptr:
        for step in range(8):
            ckptr.save(step, TREE)
        ckptr.wait()
        assert steps(ckptr) == [0, 4, 6, 7]


def test_the_default_keeps_everything(ocp, tmp_path):
    with checkpointer(ocp, tmp_path / "run") as ckptr:
        for step in range(5):
            ckptr.save(step, TREE)
        assert steps(ckptr) == [0, 1, 2, 3, 4]


def test_best_steps_are_kept_by_their_metrics(ocp, tmp_path):
    policy = ocp.training.preservation_policies.BestN(
        get_metric_fn=lambda metrics: metrics["eval"]["loss"], reverse=True, n=2
    )
    place = tmp_path / "run"
    for part in ((5.0, 1.0), (3.0, 0.5, 4.0, 0.7)):  # the second part after a restart
        with checkpointer(
            ocp, place, save_decision_policy=every(ocp), preservation_policy=policy
        ) as ckptr:
            begin = 0 if ckptr.latest is None else ckptr.latest.step + 1
            for number, loss in enumerate(part):
                ckptr.save(begin + number, TREE, metrics={"eval": {"loss": loss}})
            ckptr.wait()
    with checkpointer(ocp, place) as ckptr:
        kept = {one.step: one.metrics["eval"]["loss"] for one in ckptr.checkpoints}
    assert kept == {3: 0.5, 5: 0.7}


def test_a_policy_of_the_callers_own_sees_steps_and_context(ocp, tmp_path):
    seen = []

    class Odd:
        def should_save(self, step, previous_steps, *, context):
            seen.append((step.step, [one.step for one in previous_steps]))
            assert context.is_saving_in_progress is False
            assert context.reached_preemption is False
            return step.step % 2 == 1

    class KeepTheFirst:
        def should_preserve(self, checkpoints, *, context):
            return [number == 0 or one.step > 3 for number, one in enumerate(checkpoints)]

    with checkpointer(
        ocp, tmp_path / "run", save_decision_policy=Odd(), preservation_policy=KeepTheFirst()
    ) as ckptr:
        for step in range(6):
            ckptr.save(step, TREE)
        ckptr.wait()
        assert steps(ckptr) == [1, 5]
    assert seen[0] == (0, []) and (3, [1]) in seen


def test_metrics_and_custom_metadata_belong_to_the_step(ocp, tmp_path):
    metrics = {"loss": 0.5, "epoch": 3, "note": "ok", "deep": {"list": [1, 2]}}
    with checkpointer(ocp, tmp_path / "run") as ckptr:
        ckptr.save(0, TREE, metrics=metrics, custom_metadata={"commit": "abc"})
        ckptr.save(1, TREE, force=True)
    with checkpointer(ocp, tmp_path / "run") as ckptr:
        assert ckptr.checkpoints[0].metrics == metrics
        assert ckptr.checkpoints[1].metrics is None
        metadata = ckptr.metadata(0)
        assert metadata.metrics == metrics and metadata.custom_metadata == {"commit": "abc"}
        assert metadata.step == 0 and metadata.metadata["w"].shape == (3,)
        assert metadata.init_timestamp_nsecs <= metadata.commit_timestamp_nsecs
        assert ckptr.metadata().step == 1


def test_custom_metadata_of_the_run_is_written_once(ocp, tmp_path):
    with checkpointer(ocp, tmp_path / "run", custom_metadata={"lr": 1}) as ckptr:
        assert ckptr.root_metadata().custom_metadata == {"lr": 1}
    with checkpointer(ocp, tmp_path / "run") as ckptr:
        root = ckptr.root_metadata()
        assert root.custom_metadata == {"lr": 1}
        assert str(root.directory) == str(ckptr.directory) == str(tmp_path / "run")
        assert "RootMetadata" in repr(root)


def test_async_saves_wait_for_each_other(ocp, tmp_path):
    with checkpointer(ocp, tmp_path / "run", save_decision_policy=every(ocp)) as ckptr:
        responses = []
        for step in range(4):
            host = np.full(1000, float(step))
            responses.append(ckptr.save_async(step, {"w": host, "d": jnp.full(3, step)}))
            host[:] = -1
        assert [one.result() for one in responses] == [True] * 4
        assert ckptr.is_saving_in_progress() is False
        assert [ckptr.load(step)["w"][5] for step in range(4)] == [0, 1, 2, 3]


def test_load_waits_for_the_save_in_flight(ours, tmp_path):
    with with_handler(ours, SlowPointHandler):
        ckptr = checkpointer(ours, tmp_path / "run")
    ckptr.save_checkpointables_async(0, {"p": Point(1, 2), "state": TREE})
    assert ckptr.is_saving_in_progress()
    assert list(ckptr.checkpoints) == []
    assert_same(ckptr.load(), TREE)
    ckptr.close()


def test_a_save_in_flight_is_not_listed_unlike_orbax(ours, theirs, tmp_path):
    listed = {}
    for ocp in (ours, theirs):
        with with_handler(ocp, SlowPointHandler):
            with checkpointer(ocp, tmp_path / ocp.__name__) as ckptr:
                ckptr.save_checkpointables_async(0, {"p": Point(1, 2)})
                listed[ocp] = steps(ckptr)
    assert listed[ours] == []
    assert listed[theirs] == [0]


def test_by_default_steps_are_skipped_while_a_save_is_in_flight(ocp, tmp_path):
    with with_handler(ocp, SlowPointHandler):
        with checkpointer(ocp, tmp_path / "run") as ckptr:
            first = ckptr.save_checkpointables_async(0, {"p": Point(1, 2)})
            assert ckptr.save_checkpointables_async(1, {"p": Point(1, 2)}) is None
            assert first.result() is True
            assert ckptr.save_checkpointables_async(2, {"p": Point(1, 2)}).result() is True
            assert steps(ckptr) == [0, 2]


def test_load_async_works_unlike_orbax(ours, theirs, tmp_path):
    for ocp in (ours, theirs):
        with checkpointer(ocp, tmp_path / ocp.__name__) as ckptr:
            ckptr.save_checkpointables(0, {"state": TREE, "extra": {"n": 1}})
            if ocp is theirs:
                with pytest.raises(NotImplementedError):
                    ckptr.load_async(0)
                with pytest.raises(NotImplementedError):
                    ckptr.load_checkpointables_async(0)
                continue
            assert_same(ckptr.load_async().result(), TREE)
            assert_same(ckptr.load_async(0, {"w": np.zeros(3)}).result(), TREE)
            response = ckptr.load_checkpointables_async(0, {"extra": None})
            assert response.result() == {"extra": {"n": 1}}


def test_items_of_a_step(ocp, tmp_path):
    counter = Counter(7)
    with checkpointer(ocp, tmp_path / "run") as ckptr:
        assert ckptr.save_checkpointables(0, {"model": TREE, "data": counter}) is True
        fresh = Counter()
        loaded = ckptr.load_checkpointables(0, {"model": None, "data": fresh})
        assert fresh.position == 7
        assert_same(loaded["model"], TREE)
        assert_same(ckptr.load(0, checkpointable_name="model"), TREE)
        assert set(ckptr.checkpointables_metadata(0).metadata) == {"model", "data"}
        with pytest.raises(KeyError, match="foo"):
            ckptr.load_checkpointables(0, {"foo": None})
        with pytest.raises(KeyError, match="state"):
            ckptr.load(0)


def test_a_differing_tree_names_the_leaf_unlike_orbax(ours, tmp_path):
    with checkpointer(ours, tmp_path / "run") as ckptr:
        ckptr.save(0, TREE)
        with pytest.raises(ValueError, match="w: the stored shape"):
            ckptr.load(0, {"w": np.zeros(9)})


def test_delete_removes_a_step(ocp, tmp_path):
    with checkpointer(ocp, tmp_path / "run") as ckptr:
        for step in range(3):
            ckptr.save(step, TREE)
        assert ckptr.delete(1) is True
        assert steps(ckptr) == [0, 2] and not (tmp_path / "run" / "1").exists()
        with pytest.raises(ocp.training.errors.StepNotFoundError):
            ckptr.delete(1)
        assert ckptr.delete(1, missing_ok=True) is False
        assert ckptr.delete_async(ckptr.latest).result() is True
        assert steps(ckptr) == [0]


def test_delete_removes_one_item(ocp, tmp_path):
    tree = {"t": (np.ones(2), [jnp.arange(3)]), "n": 3}
    with checkpointer(ocp, tmp_path / "run") as ckptr:
        ckptr.save_checkpointables(
            0, {"model": tree, "opt": {"m": np.ones(2)}}, metrics={"loss": 1.0},
            custom_metadata={"k": 1},
        )
        assert ckptr.delete(0, checkpointable_name="opt") is True
        loaded = ckptr.load_checkpointables(0)
        assert set(loaded) == {"model"}
        assert_same(ckptr.load(0, tree, checkpointable_name="model"), tree)
        assert ckptr.metadata(0).custom_metadata == {"k": 1}
        assert ckptr.latest.metrics == {"loss": 1.0}
        with pytest.raises(ValueError, match="final checkpointable"):
            ckptr.delete(0, checkpointable_name="model")
        with pytest.raises(FileNotFoundError):
            ckptr.delete(0, checkpointable_name="opt")
        assert ckptr.delete(0, checkpointable_name="opt", missing_ok=True) is False
        assert ckptr.delete(0) is True


@pytest.mark.parametrize("wrong", [{"checkpointable_name": "a/b"}, {"checkpointable_name": ""}])
def test_delete_refuses_wrong_names(ocp, tmp_path, wrong):
    with checkpointer(ocp, tmp_path / "run") as ckptr:
        ckptr.save(0, TREE)
        with pytest.raises(ValueError):
            ckptr.delete(0, **wrong)


def test_step_names(ocp, tmp_path):
    names = ocp.path.step.standard_name_format(step_prefix="step", step_format_fixed_length=6)
    assert names.build_name(12) == "step_000012"
    with checkpointer(ocp, tmp_path / "run", step_name_format=names) as ckptr:
        ckptr.save(12, TREE)
        assert ckptr.latest.path.name == "step_000012"
    assert (tmp_path / "run" / "step_000012").is_dir()
    assert [one.step for one in names.find_all(tmp_path / "run")] == [12]
    assert names.find_step(tmp_path / "run", 12).step == 12
    with pytest.raises(ValueError):
        names.find_step(tmp_path / "run", 13)


def test_composite_names_find_steps_of_several_formats(ocp, tmp_path):
    plain = ocp.path.step.standard_name_format()
    long = ocp.path.step.standard_name_format(step_prefix="step", step_format_fixed_length=4)
    with checkpointer(ocp, tmp_path / "run", step_name_format=plain) as ckptr:
        ckptr.save(1, TREE)
    both = ocp.path.step.composite_name_format(long, [long, plain])
    with checkpointer(ocp, tmp_path / "run", step_name_format=both) as ckptr:
        assert steps(ckptr) == [1]
        ckptr.save(2, TREE)
        assert steps(ckptr) == [1, 2]
        assert_same(ckptr.load(2), TREE)
    # A run of Milepost has one format for new steps, so that every program finds them.
    name = "2" if "milepost" in ocp.__name__ else "step_0002"
    assert (tmp_path / "run" / name).is_dir()
    with pytest.raises(ValueError, match="write_name_format"):
        ocp.path.step.composite_name_format(long, [plain])


def test_a_run_that_names_steps_otherwise_is_refused_unlike_orbax(ours, tmp_path):
    import milepost as mp

    long = ours.path.step.standard_name_format(step_prefix="step")
    with checkpointer(ours, tmp_path / "run", step_name_format=long) as ckptr:
        ckptr.save(1, TREE)
    with checkpointer(ours, tmp_path / "run") as ckptr:  # the run says how
        assert steps(ckptr) == [1]
    other = ours.path.step.standard_name_format(step_prefix="other")
    with pytest.raises(mp.Invalid, match="step_12"):
        checkpointer(ours, tmp_path / "run", step_name_format=other)


def test_names_that_only_one_program_knows_are_refused(ours, tmp_path):
    import milepost as mp

    class Strange:
        def build_name(self, step):
            return f"{step}-of-{step * 2}"

    with pytest.raises(mp.Unsupported, match="prefix"):
        checkpointer(ours, tmp_path / "run", step_name_format=Strange())


def test_reload_sees_what_others_did(ocp, tmp_path):
    with checkpointer(ocp, tmp_path / "run") as reader:
        with checkpointer(ocp, tmp_path / "run") as writer:
            writer.save(4, TREE)
        reader.reload()
        assert steps(reader) == [4]
        assert_same(reader.load(), TREE)


def test_numpy_integers_are_steps(ocp, tmp_path):
    with checkpointer(ocp, tmp_path / "run") as ckptr:
        assert ckptr.save(np.int64(3), TREE)
        assert steps(ckptr) == [3]


@pytest.mark.parametrize("step", [-1, "7", 1.5, None, True])
def test_steps_that_would_be_lost_are_refused_unlike_orbax(ours, tmp_path, step):
    with checkpointer(ours, tmp_path / "run") as ckptr:
        with pytest.raises((TypeError, ValueError), match="step must be"):
            ckptr.save(step, TREE, force=True)


def test_close_waits_for_the_last_save(ocp, tmp_path):
    with with_handler(ocp, SlowPointHandler):
        ckptr = checkpointer(ocp, tmp_path / "run")
        ckptr.save_checkpointables_async(0, {"p": Point(1, 2)})
        ckptr.close()
    with checkpointer(ocp, tmp_path / "run") as ckptr:
        assert steps(ckptr) == [0]


def test_a_failure_nobody_asked_for_is_raised_once_at_the_end(ours, tmp_path):
    from points import FailingHandler

    with with_handler(ours, FailingHandler):
        ckptr = checkpointer(ours, tmp_path / "run")
        ckptr.save_checkpointables_async(0, {"p": Point(1, 2)})
        with pytest.raises(OSError, match="disk is full"):
            ckptr.wait()
        ckptr.wait()
        assert list(ckptr.checkpoints) == [] and not ckptr.is_saving_in_progress()
        ckptr.close()


def test_a_failure_that_was_asked_for_is_not_raised_again(ours, tmp_path):
    from points import FailingHandler

    with with_handler(ours, FailingHandler):
        with checkpointer(ours, tmp_path / "run", save_decision_policy=every(ours)) as ckptr:
            response = ckptr.save_checkpointables_async(0, {"p": Point(1, 2)})
            with pytest.raises(OSError, match="disk is full"):
                response.result()
            assert ckptr.save(1, TREE) is True
            assert steps(ckptr) == [1]


def test_a_failed_step_can_be_saved_again(ours, tmp_path):
    from points import FailingHandler

    with checkpointer(ours, tmp_path / "run") as ckptr:
        with with_handler(ours, FailingHandler):
            with pytest.raises(OSError):
                ckptr.save_checkpointables(0, {"p": Point(1, 2)})
        assert ckptr.save(0, TREE) is True


def test_cancel_stops_the_save_in_flight(ours, tmp_path):
    import milepost as mp

    with checkpointer(ours, tmp_path / "run", save_decision_policy=every(ours)) as ckptr:
        ckptr.save(0, TREE)
        response = ckptr.save_async(1, {"w": np.zeros(1 << 25)})  # 256 MiB
        ckptr.cancel()
        try:
            response.result()
        except mp.Cancelled:
            assert steps(ckptr) == [0]
        else:  # it was faster
            assert steps(ckptr) == [0, 1]
        ckptr.cancel(0)
        assert 0 not in steps(ckptr)


def test_the_checkpointers_context_counts_where_none_is_active(ocp, tmp_path):
    ctx = ocp.Context()
    ctx.pytree.loading.partial_load = True
    with checkpointer(ocp, tmp_path / "run", context=ctx) as ckptr:
        ckptr.save(0, {"a": np.ones(1), "b": np.ones(2)})
        assert set(ckptr.load(0, {"a": np.ones(1)})) == {"a"}
        with ocp.Context():
            with pytest.raises((ValueError, KeyError)):
                ckptr.load(0, {"a": np.ones(1)})


def test_the_logger_hears_of_saves_and_loads(ocp, tmp_path):
    class Logger:
        def __init__(self):
            self.entries = []

        def log_entry(self, entry):
            self.entries.append(entry)

    logger = Logger()
    with checkpointer(ocp, tmp_path / "run", logger=logger) as ckptr:
        ckptr.save(4, TREE)
        ckptr.load(4)
    events = [(one["event_type"], one["step"]) for one in logger.entries if one.get("step") == 4]
    assert ("save", 4) in events and ("restore", 4) in events


def test_preemption_saves(ours, tmp_path):
    policies = ours.training.save_decision_policies
    with checkpointer(
        ours, tmp_path / "run", save_decision_policy=policies.PreemptionCheckpointingPolicy()
    ) as ckptr:
        assert ckptr.save(0, TREE) is False
        ckptr._steps.manager.preempt()
        assert ckptr.save(1, TREE) is True


def test_the_old_names_of_methods_work_and_warn(ocp, tmp_path):
    with checkpointer(ocp, tmp_path / "run") as ckptr:
        with pytest.warns(DeprecationWarning):
            assert ckptr.save_pytree(0, TREE) is True
        with pytest.warns(DeprecationWarning):
            assert ckptr.save_pytree_async(1, TREE).result() is True
        with pytest.warns(DeprecationWarning):
            assert_same(ckptr.load_pytree(0), TREE)
        with pytest.warns(DeprecationWarning):
            assert ckptr.pytree_metadata(0).step == 0


def test_a_save_that_has_ended_before_anybody_looks_is_told_all_the_same(ours):
    """A view of a response that was done already used to wait for ever."""
    from milepost.orbax.v1._operation import in_background

    def fail():
        raise OSError("full")

    for work, expected in ((lambda: None, True), (fail, OSError)):
        inner = in_background("save to x", work)
        inner.wait_until_done()
        outer = inner.mapped(lambda _: True)
        if expected is True:
            assert outer.result(timeout=5) is True
        else:
            with pytest.raises(expected):
                outer.result(timeout=5)
    broken = in_background("save to x", lambda: None).mapped(lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        broken.result(timeout=5)


def test_who_stops_waiting_for_a_save_does_not_take_its_outcome_away(ours, tmp_path):
    import asyncio
    import threading

    from milepost.orbax.v1._operation import in_background

    go = threading.Event()
    response = in_background("save to x", lambda: go.wait(30))

    async def give_up():
        await asyncio.wait_for(response, 0.01)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    go.set()
    assert response.result(timeout=30) is True


def test_what_is_not_kept_is_not_listed_when_a_save_returns(ocp, tmp_path):
    kept = ocp.training.preservation_policies.LatestN(2)
    with checkpointer(
        ocp, tmp_path / "run", save_decision_policy=every(ocp), preservation_policy=kept
    ) as ckptr:
        for step in range(6):
            ckptr.save(step, TREE)
            assert steps(ckptr) == list(range(max(0, step - 1), step + 1))
