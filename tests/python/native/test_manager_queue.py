"""The manager under load and in trouble: its queue, timeouts, retries, a backup, sweeping."""

from __future__ import annotations

import pathlib
import threading
import time

import numpy as np
import pytest

import milepost as mp


class Gate:
    """An array that gives its bytes when it is let to, or fails so many times before."""

    def __init__(self, failures=0, seconds=0.0):
        self.open, self.asked = threading.Event(), threading.Event()
        self.failures, self.seconds = failures, seconds

    def part(self, start, shape):
        self.asked.set()
        assert self.open.wait(60)
        time.sleep(self.seconds)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("no data yet")
        return np.ones(shape, np.uint8)


@pytest.fixture(autouse=True)
def gates(monkeypatch):
    from milepost import _arrays, _milepost

    plain, made = _arrays._leaf, []

    def leaf(value, *rest):
        if isinstance(value, Gate):
            made.append(value)
            return _milepost.Leaf.provider("uint8", [4], value.part)
        return plain(value, *rest)

    monkeypatch.setattr(_arrays, "_leaf", leaf)
    yield
    for gate in made:
        gate.open.set()


def test_a_save_that_is_due_waits_for_the_one_in_flight(run):
    with mp.CheckpointManager(run) as manager:
        gate = Gate()
        manager.save(1, {"a": gate})
        assert gate.asked.wait(30) and manager.is_saving()
        threading.Timer(0.4, gate.open.set).start()
        begun = time.monotonic()
        manager.save(2, {"a": 2})
        assert time.monotonic() - begun >= 0.3
        manager.wait()
        assert manager.steps() == [1, 2] and not manager.is_saving()


def test_a_save_that_is_due_is_skipped_while_one_is_in_flight(run):
    with mp.CheckpointManager(run, queue="skip") as manager:
        gate = Gate()
        manager.save(1, {"a": gate})
        assert gate.asked.wait(30)
        skipped = manager.save(2, {"a": 2})
        assert not skipped and skipped.step == 2 and skipped.reason
        gate.open.set()
        manager.wait()
        assert manager.steps() == [1]
        manager.save(3, {"a": 3}).result()
        assert manager.steps() == [1, 3]


def test_a_pending_save_is_replaced_by_a_later_one(run):
    with mp.CheckpointManager(run, queue="replace_pending") as manager:
        gate = Gate()
        first = manager.save(1, {"a": gate})
        assert gate.asked.wait(30)
        second, third = manager.save(2, {"a": 2}), manager.save(3, {"a": 3})
        gate.open.set()
        manager.wait()
        assert first.exception() is None and third.exception() is None
        assert isinstance(second.exception(), mp.Cancelled)
        assert manager.steps() == [1, 3]


def test_the_queue_may_be_said_of_one_save(run):
    with mp.CheckpointManager(run) as manager:
        gate = Gate()
        manager.save(1, {"a": gate})
        assert gate.asked.wait(30)
        assert not manager.save(2, {"a": 2}, queue="skip")
        gate.open.set()


def test_several_saves_may_be_in_flight(run):
    with mp.CheckpointManager(run, max_in_flight=3) as manager:
        gates = [Gate() for _ in range(3)]
        begun = time.monotonic()
        for step, gate in enumerate(gates):
            manager.save(step, {"a": gate})
        # All three are under way, none has its bytes: with one in flight the second call would have waited.
        assert time.monotonic() - begun < 10 and manager.is_saving() and manager.steps() == []
        for gate in gates:
            gate.open.set()
        manager.wait()
        assert manager.steps() == [0, 1, 2]


@pytest.mark.parametrize("options", [{"queue": "later"}, {"max_in_flight": 0}], ids=str)
def test_a_queue_of_no_sense_is_refused(run, options):
    with pytest.raises(ValueError):
        mp.CheckpointManager(run, **options)


def test_a_failure_is_raised_by_the_next_save_or_wait_once(run):
    with mp.CheckpointManager(run) as manager:
        gate = Gate(failures=1)
        gate.open.set()
        manager.save(1, {"a": gate})
        with pytest.raises(mp.MilepostError, match="no data yet"):
            manager.wait()
        manager.wait()
        manager.save(2, {"a": 2}).result()
        gate = Gate(failures=1)
        gate.open.set()
        manager.save(3, {"a": gate})
        while manager.is_saving():
            time.sleep(0.01)
        with pytest.raises(mp.MilepostError, match="no data yet"):
            manager.save(4, {"a": 4})
        manager.save(5, {"a": 5}).result()
        assert manager.steps()[-1] == 5 and manager.stats()["failed"] == 2


def test_a_failure_that_was_asked_for_is_not_raised_again(run):
    with mp.CheckpointManager(run) as manager:
        gate = Gate(failures=1)
        gate.open.set()
        handle = manager.save(1, {"a": gate})
        assert handle.exception() is not None
        manager.wait()
        manager.save(2, {"a": 2}).result()


def test_a_save_that_takes_too_long_fails_with_a_timeout(run):
    with mp.CheckpointManager(run, timeout=0.3) as manager:
        gate = Gate()
        handle = manager.save(1, {"a": gate})
        threading.Timer(1.0, gate.open.set).start()
        error = handle.exception(30)
        assert isinstance(error, mp.SaveTimeout) and isinstance(error, TimeoutError)
        assert handle.done() and isinstance(handle.exception(0), mp.SaveTimeout)
        assert manager.save(2, {"a": 2}).result().step == 2


def test_a_wait_that_runs_out_of_time_lets_the_save_go_on_and_loses_no_failure(run):
    with mp.CheckpointManager(run) as manager:
        gate = Gate(failures=1)
        manager.save(1, {"a": gate})
        for _ in range(2):
            with pytest.raises(mp.SaveTimeout):
                manager.wait(timeout=0.1)
        gate.open.set()
        time.sleep(0.5)
        with pytest.raises(mp.MilepostError, match="no data yet"):
            manager.wait(timeout=30)
        manager.wait(timeout=30)
        manager.save(2, {"a": 2})
        manager.wait(timeout=30)
        assert manager.steps() == [2]


def test_a_backup_takes_a_step_that_the_run_could_not(run, tmp_path):
    backup = tmp_path / "backup"
    with mp.CheckpointManager(run, backup=backup, timeout=1.0, retries=0) as manager:
        gate = Gate()
        handle = manager.save(1, {"a": gate})
        threading.Timer(1.5, gate.open.set).start()
        url = handle.result(60).url
        assert url.startswith(str(backup))
        assert mp.load(url)["a"].tolist() == [1] * 4


def test_what_trying_again_does_not_help_is_not_tried_again(run):
    with mp.CheckpointManager(run, timeout=0.3, retries=5) as manager:
        gate = Gate()
        handle = manager.save(1, {"a": gate})
        assert isinstance(handle.exception(30), mp.SaveTimeout)
        gate.open.set()
        gate = Gate(failures=1)
        gate.open.set()
        assert "no data yet" in str(manager.save(2, {"a": gate}).exception(30))
        assert manager.stats()["retries"] == 0 and manager.steps() == []


def test_leftovers_of_a_dead_writer_are_swept_at_the_start_if_asked(run, program):
    program(
        f"""
        import os, threading, time, numpy as np, milepost as mp
        from milepost import _arrays, _milepost
        class Slow: pass
        plain = _arrays._leaf
        asked = threading.Event()
        def part(start, shape):
            asked.set(); time.sleep(60)
        _arrays._leaf = lambda v, *r: _milepost.Leaf.provider("uint8", [4], part) if isinstance(v, Slow) else plain(v, *r)
        manager = mp.CheckpointManager({run!r})
        manager.save(0, {{"a": 0}}).result()
        manager.save(1, {{"b": np.zeros(1000), "a": Slow()}})
        asked.wait(30); time.sleep(0.2)
        os._exit(0)
        """
    )

    def leftovers():
        return list(pathlib.Path(run, ".milepost", "tmp").glob("*"))

    assert leftovers()
    manager = mp.CheckpointManager(run)
    assert manager.steps() == [0] and leftovers()
    manager.close()
    with mp.CheckpointManager(run, sweep_at_start=True) as manager:
        assert manager.steps() == [0]
        manager.save(1, {"a": 1}).result()
    assert manager.steps() == [0, 1] and not leftovers()


def test_saves_from_several_threads_each_end(run):
    with mp.CheckpointManager(run) as manager:
        errors = []

        def save(step):
            try:
                manager.save(step, {"step": step}, force=True).result()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=save, args=(step,)) for step in range(12)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert not errors and manager.steps() == list(range(12))
