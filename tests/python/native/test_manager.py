"""The manager: saving, finding, keeping; every method, and what it refuses."""

from __future__ import annotations

import datetime
import json
import math
import pathlib
import threading
import time
import warnings

import numpy as np
import pytest
from conftest import same

import milepost as mp


def filled(run, steps=range(5), **options):
    manager = mp.CheckpointManager(run, **options)
    for step in steps:
        manager.save(step, {"step": step}, metrics={"loss": abs(step - 2.0)})
    manager.wait()
    return manager


def test_steps_are_saved_found_and_restored(run):
    tree = {"w": np.arange(1000.0), "n": 3}
    with mp.CheckpointManager(run) as manager:
        assert manager.steps() == [] and manager.latest_step() is None and manager.best_step() is None
        handle = manager.save(5, tree, metrics={"loss": 0.5, "bad": math.nan}, metadata={"note": "x"})
        assert isinstance(handle, mp.SaveHandle) and handle.step == 5
        saved = handle.result()
        assert saved.step == 5 and saved.url == f"{run}/5"
        same(manager.restore(5), tree)
        same(manager.restore(), tree)
        same(manager.restore("latest", {"w": np.zeros(1000), "n": 0}), tree)
        same(manager.restore(5, select="n"), {"n": 3})
        (entry,) = manager.entries()
        assert (entry.step, entry.url, entry.damaged, entry.error) == (5, f"{run}/5", False, None)
        assert entry.metrics["loss"] == 0.5 and math.isnan(entry.metrics["bad"]) and entry.metadata == {"note": "x"}
        assert abs(entry.committed_ms / 1000 - time.time()) < 60
    same(mp.load(f"{run}/5"), tree)


def test_a_restore_waits_for_the_saves_in_flight(run):
    with mp.CheckpointManager(run) as manager:
        for step in range(3):
            manager.save(step, {"w": np.full(500_000, step)})
            assert manager.restore()["w"][0] == step
        assert manager.steps() == [0, 1, 2]


def test_another_manager_sees_the_steps_and_reloads(run):
    first, second = mp.CheckpointManager(run), mp.CheckpointManager(run, read_only=True)
    first.save(1, {"a": 1}).result()
    first.wait()
    assert second.steps() == [] or second.steps() == [1]
    second.reload()
    assert second.steps() == [1] and second.restore() == {"a": 1}
    first.close(), second.close()


@pytest.mark.parametrize("step", [np.int64(7), np.array(7), 7], ids=type)
def test_a_step_may_be_any_integer(run, step):
    import jax.numpy as jnp

    with mp.CheckpointManager(run) as manager:
        manager.save(step, {"a": 1}).result()
        assert manager.steps() == [7] and manager.open(jnp.int32(7)).step == 7


@pytest.mark.parametrize("step", [-1, 1.0, "1", True, None, np.float32(1), 2**64], ids=repr)
def test_what_is_no_step_is_refused(run, step):
    with mp.CheckpointManager(run) as manager, pytest.raises((mp.Invalid, OverflowError)):
        manager.save(step, {"a": 1})


def test_a_step_that_exists_is_refused_skipped_or_replaced(run):
    with mp.CheckpointManager(run) as manager:
        manager.save(1, {"a": 1}).result()
        outcome = None
        try:
            outcome = manager.save(1, {"a": 2})
        except mp.StepAlreadyExists as error:
            assert isinstance(error, ValueError) and error.context["step"] == "1"
        assert not outcome
        with pytest.raises(mp.StepAlreadyExists):
            manager.save(1, {"a": 2}, force=True)
        assert manager.restore(1) == {"a": 1}
        manager.save(1, {"a": 3}, overwrite=True).result()
        assert manager.restore(1) == {"a": 3}
    with mp.CheckpointManager(run, overwrite=True) as manager:
        manager.save(1, {"a": 4}).result()
        assert manager.restore(1) == {"a": 4}


def test_a_step_that_the_policy_does_not_want_is_skipped_with_the_reason(run):
    with mp.CheckpointManager(run, save_interval_steps=10, save_on_steps=[13]) as manager:
        assert manager.save(3, {"a": 3})  # the first
        skipped = manager.save(5, {"a": 5})
        assert isinstance(skipped, mp.Skipped) and not skipped and skipped.step == 5 and skipped.reason
        assert manager.save(10, {"a": 10}) and manager.save(13, {"a": 13}) and manager.save(14, {"a": 14}, force=True)
        manager.wait()
        assert manager.steps() == [3, 10, 13, 14]
        assert not manager.should_save(15) and manager.should_save(20)
        manager.preempt()
        assert not manager.preempted, "the last decision did not know"
        assert manager.preempted and manager.should_save(15) and manager.preempted


def test_a_skipped_save_does_not_look_at_the_tree(run):
    with mp.CheckpointManager(run, save_interval_steps=10) as manager:
        manager.save(0, {"a": 1})
        assert not manager.save(1, {"a": object()})


def test_a_decision_may_be_a_policy_or_a_function(run):
    with mp.CheckpointManager(run, decision=mp.SaveDecision.steps([2])) as manager:
        assert not manager.save(1, {"a": 1}) and manager.save(2, {"a": 2})
    with mp.CheckpointManager(run + "2", decision=lambda context: context.step > 5) as manager:
        assert not manager.save(5, {"a": 1}) and manager.save(6, {"a": 2})
    with mp.CheckpointManager(run + "3", decision=lambda context: 1 / 0) as manager, pytest.raises(ZeroDivisionError):
        manager.save(5, {"a": 1})


def test_the_latest_the_periods_and_the_times_are_kept(tmp_path):
    assert filled(tmp_path / "a", range(6), max_to_keep=2).steps() == [4, 5]
    assert filled(tmp_path / "b", range(6)).steps() == [0, 1, 2, 3, 4, 5]
    assert filled(tmp_path / "c", range(8), max_to_keep=1, keep_period=3).steps() == [0, 3, 6, 7]
    hour = datetime.timedelta(hours=1)
    assert filled(tmp_path / "d", range(4), max_to_keep=1, keep_time_interval=hour).steps() == [0, 3]
    assert filled(tmp_path / "e", range(4), max_to_keep=1, keep_time_interval=1e-6).steps() == [0, 1, 2, 3]
    with pytest.raises(mp.Invalid):
        mp.CheckpointManager(tmp_path / "f", keep_time_interval=0)


def test_the_best_are_kept_and_restored(tmp_path):
    manager = filled(tmp_path / "a", range(6), max_to_keep=2, best="loss", best_mode="min")
    assert set(manager.steps()) >= {2, 5} and manager.best_step() == 2
    assert manager.restore("best") == {"step": 2} and manager.open("best").step == 2
    manager = filled(tmp_path / "b", range(6), max_to_keep=1, best=lambda metrics: metrics["loss"])
    assert manager.steps() == [5] and manager.best_step() == 5
    manager = filled(tmp_path / "c", range(6), best="loss", best_mode="min")
    assert manager.steps() == [0, 1, 2, 3, 4, 5] and manager.best_step() == 2


def test_steps_without_the_metric_are_kept_or_not_as_asked(tmp_path):
    for keep in (True, False):
        run = tmp_path / str(keep)
        with mp.CheckpointManager(run, max_to_keep=1, best="loss", keep_without_metrics=keep) as manager:
            manager.save(0, {"a": 0}, metrics={"loss": 9.0})
            manager.save(1, {"a": 1})
            manager.save(2, {"a": 2}, metrics={"loss": 1.0})
            manager.wait()
            assert manager.steps() == ([0, 1, 2] if keep else [0, 2])


def test_a_preservation_may_be_a_policy_or_a_function_and_not_both_ways(tmp_path):
    assert filled(tmp_path / "a", preservation=mp.Preservation.steps([1])).steps() == [1, 4]
    assert filled(tmp_path / "b", preservation=lambda steps: [s.step for s in steps if s.step % 2 == 0]).steps() == [0, 2, 4]
    with pytest.raises(mp.Invalid):
        mp.CheckpointManager(tmp_path / "c", preservation=mp.Preservation.latest(1), max_to_keep=1)


def test_a_plan_says_what_would_be_deleted_and_deletes_nothing(run):
    filled(run).close()
    manager = mp.CheckpointManager(run, max_to_keep=2, read_only=True)
    plan = manager.plan()
    assert plan.delete == [0, 1, 2] and [step for step, _ in plan.keep] == [3, 4]
    assert manager.steps() == [0, 1, 2, 3, 4]


def test_read_only_writes_nothing(run):
    filled(run, range(2)).close()
    before = sorted(p for p in pathlib.Path(run).rglob("*"))
    with mp.CheckpointManager(run, read_only=True, max_to_keep=1) as manager:
        outcome = manager.save(9, {"a": 1})
        assert not outcome and "read" in outcome.reason
        assert not manager.save(9, {"a": 1}, force=True)
        for ask in (manager.delete, manager.pin, manager.unpin):
            with pytest.raises(mp.MilepostError):
                ask(0)
        assert manager.wait_for_step(timeout=1).load() == {"step": 1}
        assert manager.restore(0) == {"step": 0}
    assert sorted(p for p in pathlib.Path(run).rglob("*")) == before
    assert not mp.CheckpointManager(run + "-none", read_only=True).steps() and not pathlib.Path(run + "-none").exists()


def test_a_read_only_manager_leases_a_step_if_it_is_asked_to(run):
    writer = filled(run, range(2))
    with mp.CheckpointManager(run, read_only=True) as reader:
        with reader.wait_for_step(lease=True), pytest.raises(mp.Conflict):
            writer.delete(1)
        checkpoint = reader.wait_for_step()
        writer.delete(1)
        del checkpoint
    writer.close()


def test_a_deleted_step_is_gone_and_a_pinned_one_stays(run):
    manager = filled(run, max_to_keep=None)
    manager.pin(0, "the start")
    assert [(pin.step, pin.note) for pin in manager.pins()] == [(0, "the start")]
    with pytest.raises(mp.Conflict):
        manager.delete(0)
    manager.delete(1)
    manager.wait()
    assert manager.steps() == [0, 2, 3, 4] and not pathlib.Path(run, "1").exists()
    with pytest.raises(mp.NotFound):
        manager.restore(1)
    with pytest.raises(mp.NotFound):
        manager.delete(1)
    manager.close()
    manager = mp.CheckpointManager(run, max_to_keep=1)
    manager.save(5, {"step": 5})
    manager.wait()
    assert manager.steps() == [0, 5]
    assert manager.unpin(0) is True and manager.unpin(0) is False and manager.pins() == []
    manager.delete(0)
    manager.wait()
    assert manager.steps() == [5]
    manager.close()


def test_deleted_steps_may_be_moved_to_a_trash(run):
    manager = filled(run, max_to_keep=1, trash="bin")
    manager.close()
    moved = [p for p in pathlib.Path(run).rglob("*") if "bin" in p.parts[-2:][0] or p.parent.name == "bin"]
    assert mp.CheckpointManager(run).steps() == [4] and len({p.name for p in moved}) >= 4


def test_a_damaged_step_is_passed_over_with_a_warning(run):
    filled(run, range(3)).close()
    (pathlib.Path(run) / "2/zarr.json").write_text("{")
    manager = mp.CheckpointManager(run)
    assert manager.steps() == [0, 1] and manager.latest_step() == 1
    assert [(e.step, e.damaged, bool(e.error)) for e in manager.entries()] == [(0, False, False), (1, False, False), (2, True, True)]
    with pytest.warns(UserWarning, match="step 2"):
        assert manager.restore() == {"step": 1}
    with pytest.raises(mp.MilepostError):
        manager.restore(2)


def test_latest_good_passes_over_a_step_with_a_bad_byte(run):
    with mp.CheckpointManager(run) as manager:
        for step in range(3):
            manager.save(step, {"w": np.full(1000, step)})
        manager.wait()
        chunk = pathlib.Path(run) / "2/state/w/c.0"
        data = bytearray(chunk.read_bytes())
        data[100] ^= 1
        chunk.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert manager.open("latest").step == 2
        with pytest.warns(UserWarning, match="step 2"):
            assert manager.restore("latest_good")["w"][0] == 1
    with pytest.raises(ValueError, match="newest"):
        manager.open("newest")


def test_an_empty_run_has_nothing_to_restore(run):
    with mp.CheckpointManager(run) as manager:
        for step in ("latest", "latest_good", "best", None, 3):
            with pytest.raises(mp.NotFound):
                manager.restore(step)


def test_step_names_have_a_prefix_and_a_width(run):
    with mp.CheckpointManager(run, step_prefix="ckpt-", step_width=6) as manager:
        manager.save(12, {"a": 1}).result()
    assert (pathlib.Path(run) / "ckpt-000012/zarr.json").exists()
    assert mp.CheckpointManager(run).steps() == [12]  # the run remembers
    with mp.CheckpointManager(run + "2") as manager:
        manager.save(3, {"a": 1}).result()
    pathlib.Path(run + "2", "3").rename(pathlib.Path(run + "2", "old_0003"))
    assert mp.CheckpointManager(run + "2", read_formats=[("old_", 4)]).restore(3) == {"a": 1}


def test_a_run_has_metadata_of_its_own(run):
    with mp.CheckpointManager(run, metadata={"model": "gpt2", "nan": math.nan}) as manager:
        manager.save(1, {"a": 1}).result()
        assert manager.metadata["model"] == "gpt2" and math.isnan(manager.metadata["nan"])
    assert mp.CheckpointManager(run).metadata["model"] == "gpt2"


def test_events_are_told_and_logged(run, tmp_path):
    events = []
    with mp.CheckpointManager(run, max_to_keep=1, save_interval_steps=2, log=tmp_path / "log.jsonl") as manager:
        manager.on_event(events.append)
        for step in range(4):
            manager.save(step, {"step": step})
            manager.wait()
    told = [json.dumps(event) for event in events]
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert len(told) >= 5 and any("skipped" in line.lower() for line in told) and any("deleted" in line.lower() for line in told)
    assert len(lines) >= len(told) and all(isinstance(json.loads(line), dict) for line in lines)


def test_a_callback_that_raises_harms_nothing(run, capfd):
    with mp.CheckpointManager(run) as manager:
        manager.on_event(lambda event: 1 / 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hook, seen = threading.excepthook, []
            import sys

            plain, sys.unraisablehook = sys.unraisablehook, seen.append
            try:
                manager.save(1, {"a": 1}).result()
                manager.wait()
            finally:
                sys.unraisablehook = plain
                assert hook is threading.excepthook
        assert manager.steps() == [1] and seen and seen[0].exc_type is ZeroDivisionError


def test_stats_count(run):
    with mp.CheckpointManager(run, max_to_keep=1, save_interval_steps=2) as manager:
        for step in range(5):
            manager.save(step, {"w": np.zeros(1000)})
        manager.wait()
        stats = manager.stats()
    assert (stats["saved"], stats["skipped"], stats["failed"], stats["deleted"]) == (3, 2, 0, 2)
    assert stats["bytes"] >= 3 * 8000 and stats["saving_seconds"] > 0 and stats["blocked_seconds"] >= 0


def test_a_closed_manager_refuses_to_save_and_may_be_closed_again(run):
    manager = filled(run, [1])
    manager.close()
    manager.close()
    with pytest.raises(mp.MilepostError):
        manager.save(2, {"a": 1})
    assert manager.steps() == [1]


def test_steps_of_other_storage_options_may_be_mixed(run):
    with mp.CheckpointManager(run, compression="zstd", chunk_bytes=1 << 12) as manager:
        manager.save(1, {"w": np.zeros(10_000)}).result()
        manager.save(2, {"w": np.zeros(10_000)}, compression="none").result()
        sizes = [manager.open(step).items["state"].stored_bytes for step in (1, 2)]
        assert sizes[0] < 20_000 < 80_000 <= sizes[1]
        assert np.prod(manager.open(2).index().leaves[0].chunk_shape) * 8 <= 1 << 12
        with pytest.raises(TypeError, match="unknown option"):
            manager.save(3, {"w": 1}, compresion="zstd")


def test_items_are_saved_and_restored_by_name(run):
    with mp.CheckpointManager(run) as manager:
        manager.save(1, items={"params": {"a": 1}, "config": mp.Json({"b": 2})}, item_metadata={"params": "note"})
        assert manager.restore(1, item="params") == {"a": 1} and manager.restore(1, item="config") == {"b": 2}
        assert manager.open(1).items["params"].metadata == "note"


def test_a_lease_keeps_a_step_while_it_is_read(run):
    manager = filled(run, range(2))
    with manager.wait_for_step(timeout=10) as checkpoint:
        assert checkpoint.step == 1
        with pytest.raises(mp.Conflict):
            manager.delete(1)
        assert checkpoint.load() == {"step": 1}
    manager.delete(1)
    assert manager.steps() == [0]
    assert manager.wait_for_step(above=0, timeout=0.1, interval=0.02) is None
    assert manager.wait_for_step(above=-1 if False else None, timeout=1, lease=False).step == 0
    manager.close()


def test_new_steps_come_as_they_are_committed(run):
    seen = []
    writer = mp.CheckpointManager(run)

    def write():
        for step in range(4):
            writer.save(step, {"step": step}).result()
            time.sleep(0.15)

    thread = threading.Thread(target=write)
    thread.start()
    reader = mp.CheckpointManager(run, read_only=True)
    for checkpoint in reader.new_steps(timeout=2.0, interval=0.02, lease=False):
        seen.append(checkpoint.step)
        assert checkpoint.load() == {"step": checkpoint.step}
        if checkpoint.step == 3:
            break
    thread.join()
    writer.close()
    assert seen == sorted(set(seen)) and seen[-1] == 3 and len(seen) >= 2


def test_a_run_may_be_inside_a_checkpoint(run):
    mp.save(run, {"a": 1})
    with mp.CheckpointManager(run) as manager:
        manager.save(1, {"a": 2}).result()
        assert manager.restore(1) == {"a": 2}
    assert mp.load(run) == {"a": 1}
