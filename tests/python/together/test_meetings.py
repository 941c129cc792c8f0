"""Meetings without JAX: through the store, by a launcher's functions, by its variables."""

from __future__ import annotations

import threading
import time

import milepost as mp
import numpy as np
import pytest
from milepost._together import _Coordination, _ranks

STORE = """
    from member import *
    import milepost as mp
    import numpy as np

    together = mp.Together.{how}
    assert (together.index, together.count) == (INDEX, COUNT)
    run = mp.CheckpointManager("run", together=together, max_to_keep=1)
    for step in (1, 2):
        run.save(step, {{"whole": np.arange(1000.0) * step, "step": step}}).result()
    run.wait()
    say(run.steps())
    run.close()
"""


@pytest.mark.parametrize(
    "how",
    [
        'store("run", INDEX, COUNT)',
        'store("run", INDEX, COUNT, session="job-1")',
        'environment("run", environ={"RANK": str(INDEX), "WORLD_SIZE": str(COUNT)})',
    ],
)
def test_processes_meet_through_the_store(job, tmp_path, how):
    first, *others = job(STORE.format(how=how), 3).end()
    # Process 0 deletes; the others learn of it when they list the run again.
    assert first == [[2]] and others == [[[1, 2]]] * 2
    loaded = mp.load(tmp_path / "run")
    assert (loaded["whole"] == np.arange(1000.0) * 2).all() and loaded["step"] == 2


class Launcher:
    """An all-gather among threads."""

    def __init__(self, count: int) -> None:
        self.count, self.rounds, self.changed = count, {}, threading.Condition()

    def member(self, index: int, **options) -> mp.Together:
        def all_gather(round: str, value: bytes, seconds: float) -> list[bytes]:
            with self.changed:
                values = self.rounds.setdefault(round, {})
                values[index] = value
                self.changed.notify_all()
                if not self.changed.wait_for(lambda: len(values) == self.count, seconds):
                    raise TimeoutError("somebody is missing")
                return [values[i] for i in range(self.count)]

        return mp.Together.launcher(index, self.count, all_gather, **options)


def _all(count: int, work) -> list:
    results = [None] * count

    def run(index: int) -> None:
        try:
            results[index] = work(index)
        except mp.MilepostError as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results


def test_a_launcher_gives_an_all_gather_and_that_is_enough(tmp_path):
    launcher = Launcher(3)
    members = [launcher.member(index) for index in range(3)]
    given = {"a": np.arange(10), "b": "text", "c": 1.5}
    saved = _all(3, lambda i: mp.save(tmp_path / "alone", given, together=members[i]))
    assert {one.record["writer"] for one in saved} == {saved[0].record["writer"]}
    loaded = mp.load(tmp_path / "alone")
    assert (loaded["a"] == given["a"]).all() and loaded["b"] == "text" and loaded["c"] == 1.5


def test_who_plans_another_save_is_told_and_nothing_is_saved(tmp_path):
    launcher = Launcher(2)
    members = [launcher.member(index) for index in range(2)]
    errors = _all(2, lambda i: mp.save(tmp_path / "alone", {"a": np.arange(10 + i)}, together=members[i]))
    assert all(isinstance(error, mp.Invalid) for error in errors), errors
    assert not (tmp_path / "alone").exists()


def test_who_saves_another_step_or_elsewhere_is_told_and_nothing_is_saved(tmp_path):
    launcher = Launcher(2)
    members = [launcher.member(index) for index in range(2)]
    given = {"a": np.arange(10)}
    errors = _all(2, lambda i: mp.save(tmp_path / f"alone-{i}", given, together=members[i]))
    assert all(isinstance(error, mp.Invalid) for error in errors), errors
    runs = [mp.CheckpointManager(tmp_path / "run", together=members[index]) for index in range(2)]
    errors = _all(2, lambda i: runs[i].save(3 + i, given).result())
    assert all(isinstance(error, mp.Invalid) for error in errors), errors
    assert _all(2, lambda i: runs[i].save(5, given).result().step) == [5, 5]
    _all(2, lambda i: runs[i].close())
    assert [path.name for path in tmp_path.iterdir()] == ["run"] and runs[0].steps() == [5]


def test_a_launcher_that_fails_or_is_late_is_an_error(tmp_path):
    def broken(round: str, value: bytes, seconds: float) -> list[bytes]:
        raise ConnectionError("the network is gone")

    with pytest.raises(mp.Unavailable, match="the network is gone"):
        mp.save(tmp_path / "a", {"x": 1}, together=mp.Together.launcher(0, 2, broken))
    alone = Launcher(2).member(0, deadline=0.2)
    with pytest.raises(mp.SaveTimeout, match="somebody is missing"):
        mp.save(tmp_path / "a", {"x": 1}, together=alone)
    short = mp.Together.launcher(0, 2, lambda *_: [b""])
    with pytest.raises(mp.MilepostError):
        mp.save(tmp_path / "a", {"x": 1}, together=short)
    assert not (tmp_path / "a").exists()


def test_the_first_process_works_for_all_and_its_failure_is_everybodys():
    launcher = Launcher(3)
    members = [launcher.member(index) for index in range(3)]

    def outcome(index: int, work) -> object:
        try:
            return members[index].first(work if index == 0 else lambda: "not asked")
        except BaseException as error:
            return error

    def fails(error):
        def work():
            raise error

        return work

    assert _all(3, lambda i: outcome(i, lambda: {"a": [1, None]})) == [{"a": [1, None]}] * 3
    for raised, told in (
        (FileNotFoundError("no such step"), mp.NotFound),
        (mp.ItemNotFound("no such item"), mp.ItemNotFound),
        (ZeroDivisionError("a policy divides"), mp.Invalid),
        (KeyboardInterrupt(), mp.Cancelled),
    ):
        first, *others = _all(3, lambda i: outcome(i, fails(raised)))
        assert first is raised
        assert all(type(other) is told and str(raised) in str(other) for other in others), others
    first, *others = _all(3, lambda i: outcome(i, lambda: object()))
    assert isinstance(first, TypeError) and all(isinstance(other, mp.Invalid) for other in others)
    # Nobody is behind: the next question is the same one for all.
    assert _all(3, lambda i: members[i].decide(lambda: i == 0)) == [True] * 3


def test_others_open_a_named_run_after_it_is_founded(tmp_path):
    launcher = Launcher(2)
    members = [launcher.member(index) for index in range(2)]

    def opened(index: int) -> mp.CheckpointManager:
        if index == 0:
            time.sleep(0.3)
        return mp.CheckpointManager(
            tmp_path / "run", step_prefix="step_", step_width=4, metadata={"of": index}, together=members[index]
        )

    runs = _all(2, opened)
    assert [run.metadata for run in runs] == [{"of": 0}] * 2
    saved = _all(2, lambda i: runs[i].save(7, {"a": np.arange(3)}).result().url)
    assert all(url.endswith("/step_0007") for url in saved), saved
    _all(2, lambda i: runs[i].close())


def test_one_process_alone_needs_nobody(tmp_path):
    def never(*_) -> list[bytes]:
        raise AssertionError("nobody is there")

    mp.save(tmp_path / "a", {"x": 1}, together=mp.Together.launcher(0, 1, never))
    mp.save(tmp_path / "b", {"x": 1}, together=False)
    with pytest.raises(mp.Invalid, match="jax.distributed"):
        mp.save(tmp_path / "c", {"x": 1}, together=True)
    with pytest.raises(TypeError, match="together is a str"):
        mp.save(tmp_path / "c", {"x": 1}, together="all")


def test_a_launchers_variables_say_who_this_is():
    assert _ranks({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}) == (3, 8)
    assert _ranks({"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "3", "SLURM_NTASKS": "8"}) == (0, 2)
    with pytest.raises(mp.Invalid, match="no numbers"):
        _ranks({"RANK": "x", "WORLD_SIZE": "2"})
    with pytest.raises(mp.Invalid, match="no launcher"):
        _ranks({"RANK": "1"})
    with pytest.raises(mp.Invalid, match="not below"):
        mp.Together.launcher(2, 2, lambda *_: [])


class Service:
    """JAX's key-value service, as its clients see it."""

    def __init__(self) -> None:
        self.values, self.changed, self.longest = {}, threading.Condition(), 0

    def key_value_set_bytes(self, key: str, value: bytes) -> None:
        with self.changed:
            assert key not in self.values, f"{key} is set twice"
            self.values[key] = value
            self.longest = max(self.longest, len(value))
            self.changed.notify_all()

    def blocking_key_value_get_bytes(self, key: str, milliseconds: int) -> bytes:
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, milliseconds / 1000):
                raise RuntimeError("DEADLINE_EXCEEDED: GetKeyValue() timed out")
            return self.values[key]

    def key_value_delete(self, prefix: str) -> None:
        with self.changed:
            for key in [key for key in self.values if key.startswith(prefix)]:
                del self.values[key]


def _coordination(service: Service, index: int, count: int) -> _Coordination:
    state = type("State", (), {"client": service, "process_id": index, "num_processes": count})
    return _Coordination("session", state=state)


def test_the_coordination_service_carries_long_values_and_forgets_old_ones():
    service = Service()
    ends = [_coordination(service, index, 3) for index in range(3)]
    long = [bytes([index]) * (index * 1_500_000) for index in range(3)]
    for number in range(4):
        gathered = _all(3, lambda i: ends[i].all_gather(f"{number}-a", long[i], 10.0))
        assert gathered == [long] * 3
        told = _all(3, lambda i: ends[i].broadcast(f"{number}-b", 0, b"hi" if i == 0 else None, 10.0))
        assert told == [b"hi"] * 3
    assert {key.split("/")[2] for key in service.values} == {"3-a", "3-b"}
    # What is asked beside a save takes nothing away that somebody has still to read, and the other way round.
    _all(3, lambda i: ends[i].all_gather("4-due", b"", 10.0))
    assert {key.split("/")[2] for key in service.values} == {"3-a", "3-b", "4-begin"}
    _all(3, lambda i: ends[i].all_gather("5-declare", b"", 10.0))
    assert {key.split("/")[2] for key in service.values} == {"4-begin", "5-begin"}
    assert service.longest <= (1 << 20) + 16


def test_the_coordination_service_says_who_is_missing():
    service = Service()
    ends = [_coordination(service, index, 3) for index in range(3)]

    def gather(index: int) -> str:
        with pytest.raises(TimeoutError, match="in time: 1"):
            ends[index].all_gather("0-a", b"", 0.3)
        return "told"

    assert _all(3, lambda i: gather(i) if i != 1 else None) == ["told", None, "told"]
