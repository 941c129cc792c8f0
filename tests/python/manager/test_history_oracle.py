"""Random histories on Orbax's manager and ours: same options, same calls, same restarts; the same
steps are kept.

`MILEPOST_HISTORIES` sets how many (250), `MILEPOST_SEED` where they begin. What differs on purpose
is in `FAULTS`, by name; the histories are drawn so that these do not occur, or what is expected
says so.
"""

from __future__ import annotations

import datetime
import logging
import os
import random
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest

from milepost.orbax import args as our_args
from milepost.orbax import checkpoint_manager as ours
from milepost.orbax.checkpoint_managers import preservation_policy as our_keep
from milepost.orbax.checkpoint_managers import save_decision_policy as our_save

theirs = pytest.importorskip("orbax.checkpoint")
their_keep = theirs.checkpoint_managers.preservation_policy
their_save = theirs.checkpoint_managers.save_decision_policy

COUNT = int(os.environ.get("MILEPOST_HISTORIES", "250"))
SEED = int(os.environ.get("MILEPOST_SEED", "20261122"))

FAULTS = {
    "newest-deleted": (
        "by metric, and with max_to_keep=0, Orbax deletes the newest step; here it stays until a "
        "newer one is committed, and one without metrics as long as no more than max_to_keep are "
        "there"
    ),
    "append-order": (
        "a forced step below the newest is the last for Orbax's LatestN, which then deletes the "
        "newest; histories force no such step"
    ),
    "metrics-forgotten": (
        "BestN without best_fn stores no metrics in Orbax: after a restart it deletes the best; "
        "such histories set best_fn, too"
    ),
    "read-only-forced": "save(force=True) of a read-only manager writes in Orbax; here never",
}


@pytest.fixture(scope="module", autouse=True)
def differences():
    yield
    print(f"\n{COUNT} histories from seed {SEED}; differences on purpose:")
    for name, what in FAULTS.items():
        print(f"  {name}: {what}")


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        yield
        logging.disable(logging.NOTSET)


@pytest.fixture
def place():
    """Memory where there is some: a history is hundreds of small files."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="milepost-history-", dir=memory))
    yield path
    shutil.rmtree(path, ignore_errors=True)


class EveryThirdOfTheList:
    """A policy of the caller's own: both libraries ask it."""

    def should_preserve(self, checkpoints, *, context):
        return [i % 3 == 0 or i == len(checkpoints) - 1 for i in range(len(checkpoints))]


class TwoApart:
    """A policy of the caller's own: both libraries ask it."""

    def should_save(self, step, previous_steps, *, context):
        return not previous_steps or step.step - previous_steps[-1].step >= 2


def metric(metrics):
    return metrics["eval"]["x"]


def saving(rng, ranks):
    """When to save: the keywords, made for a module of policies.

    Where metrics rank, none that asks for the newest step: Orbax may have deleted it.
    """
    kind = rng.choice([0, 1, 4] if ranks else [0, 1, 2, 3, 4])
    n, picked = rng.randrange(1, 5), frozenset(rng.sample(range(40), 6))
    if kind == 0:
        return lambda module: {}
    if kind == 1:
        return lambda module: {"save_interval_steps": n, "save_on_steps": picked}
    if kind == 2:
        return lambda module: {
            "should_save_fn": lambda step, latest: latest is None or step >= latest + n
        }
    if kind == 3:
        return lambda module: {"save_decision_policy": TwoApart()}
    return lambda module: {
        "save_decision_policy": module.AnySavePolicy(
            [
                module.FixedIntervalPolicy(n),
                module.SpecificStepsPolicy(picked),
                module.InitialSavePolicy(),
                module.PreemptionCheckpointingPolicy(),
            ]
        )
    }


def keeping(rng):
    """What to keep: the keywords, made for a module of policies, and whether metrics rank."""
    n, period, kind = rng.randrange(1, 4), rng.randrange(1, 6), rng.randrange(8)
    best = {
        "best_fn": metric,
        "best_mode": rng.choice(["min", "max"]),
        "keep_checkpoints_without_metrics": rng.random() < 0.6,
    }
    if kind == 0:
        most = rng.choice([None, n])
        return (lambda module: {"max_to_keep": most}), False
    if kind == 1:
        return (lambda module: {"max_to_keep": n, "keep_period": period}), False
    if kind == 2:
        hour = datetime.timedelta(hours=1)
        return (lambda module: {"max_to_keep": n, "keep_time_interval": hour}), False
    if kind == 3:
        return (lambda module: {**best, "max_to_keep": n}), True
    if kind == 4:
        return (lambda module: {**best, "max_to_keep": n, "keep_period": period}), True
    if kind == 5:
        return (lambda module: {"preservation_policy": EveryThirdOfTheList()}), False
    if kind == 6:
        exact = rng.random() < 0.5
        return (
            lambda module: {
                "preservation_policy": module.AnyPreservationPolicy(
                    [
                        module.LatestN(n),
                        module.EveryNSteps(period, exact),
                        module.CustomSteps([3, 7]),
                    ]
                )
            }
        ), False
    return (
        lambda module: {
            "best_fn": metric,
            "preservation_policy": module.AnyPreservationPolicy(
                [module.BestN(get_metric_fn=metric, n=n), module.LatestN(1)]
            ),
        }
    ), True


class Pair:
    """Both managers over runs of their own."""

    def __init__(self, place, rng):
        self.place = place
        self.keep_options, self.ranks = keeping(rng)
        self.save_options = saving(rng, self.ranks)
        self.names = rng.choice(
            [{}, {}, {"step_prefix": "s"}, {"step_format_fixed_length": 4, "step_prefix": "step"}]
        )
        self.keywords = {
            "theirs": {**self.save_options(their_save), **self.keep_options(their_keep)},
            "ours": {**self.save_options(our_save), **self.keep_options(our_keep)},
        }
        self.is_async = rng.random() < 0.15
        self.saved = []
        self.open()

    def open(self):
        common = {"enable_async_checkpointing": self.is_async, **self.names}
        self.theirs = theirs.CheckpointManager(
            self.place / "theirs",
            options=theirs.CheckpointManagerOptions(**self.keywords["theirs"], **common),
        )
        self.ours = ours.CheckpointManager(
            self.place / "ours",
            options=ours.CheckpointManagerOptions(**self.keywords["ours"], **common),
        )

    def both(self, name, *given, **named):
        """Calls both and returns what came: a value, or the name of an error."""

        def call(manager):
            try:
                return getattr(manager, name)(*given, **named)
            except (ValueError, FileNotFoundError) as error:
                return "ValueError" if isinstance(error, ValueError) else "FileNotFoundError"

        return call(self.theirs), call(self.ours)

    def save(self, step, metrics, force):
        value = {"step": step}
        common = {"metrics": metrics, "force": force}
        asked = self.both("should_save", step)
        got = []
        for manager, args in ((self.theirs, theirs.args), (self.ours, our_args)):
            try:
                got.append(manager.save(step, args=args.JsonSave(value), **common))
            except ValueError as error:
                got.append(type(error).__name__.replace("Error", ""))
            manager.wait_until_finished()
        assert asked[0] == asked[1], (step, asked)
        assert got[0] == got[1], (step, got)
        if got[1] is True:
            self.saved.append(step)

    def check(self):
        kept, mine = sorted(map(int, self.theirs.all_steps())), list(self.ours.all_steps())
        newest = self.saved[-1:] if self.ranks else []
        wanted = {*kept, *newest}
        if not self.keywords["theirs"].get("keep_checkpoints_without_metrics", True):
            few = len(mine) <= self.keywords["theirs"]["max_to_keep"]
            wanted |= {step for step in mine if few and self.ours.metrics(step) is None}
        assert mine == sorted(wanted), (kept, mine, self.saved)
        self.ours.reload()
        assert list(self.ours.all_steps()) == mine
        if self.ranks:
            expected = [step for step in mine if self.ours.metrics(step) is not None]
            best = self.theirs.best_step()
            # The newest may be the only one that has metrics, and gone in Orbax.
            assert self.ours.best_step() == best or (best is None and expected == newest)
            for step in kept:
                assert self.ours.metrics(step) == self.theirs.metrics(step)
        else:
            assert self.ours.latest_step() == self.theirs.latest_step()
            assert self.ours.best_step() == self.theirs.best_step()
        on_disk = [p.name for p in (self.place / "theirs").iterdir() if p.name != "metadata"]
        mine_on_disk = {p.name for p in (self.place / "ours").iterdir()}
        assert set(on_disk) <= mine_on_disk

    def close(self):
        self.theirs.close()
        self.ours.close()


@pytest.mark.parametrize("part", range(10))
def test_the_same_steps_are_kept_as_by_orbax(part, place):
    for number in range(part * COUNT // 10, (part + 1) * COUNT // 10):
        rng = random.Random(SEED * 100_003 + number)
        where = place / str(number)
        where.mkdir()
        try:
            history(where, rng)
        except Exception as error:
            raise AssertionError(f"history {number} of seed {SEED}: {error!r}") from error
        finally:
            shutil.rmtree(where, ignore_errors=True)


def history(place, rng):
    pair = Pair(place, rng)
    step = rng.randrange(3)
    values = rng.sample(range(1000), 40)
    for _ in range(rng.randrange(4, 13)):
        if pair.ranks and pair.saved and not pair.theirs.all_steps():
            break  # Orbax has deleted all: to its policies the run is new.
        kind = rng.random()
        if kind < 0.72:
            has_metrics = pair.ranks and rng.random() < 0.85
            metrics = {"eval": {"x": values.pop() / 8}, "n": step} if has_metrics else None
            pair.save(step, metrics, force=rng.random() < 0.25)
            step += rng.choice([1, 1, 1, 2, 5])
        elif kind < 0.78 and pair.ours.all_steps() and not pair.ranks:
            # One that is there is never overwritten, one that is not above the newest never saved.
            pair.save(rng.choice(pair.ours.all_steps()), None, force=rng.random() < 0.5)
        elif kind < 0.84 and pair.saved and not pair.ranks:
            gone = rng.choice([*pair.ours.all_steps(), 777])
            their_end, our_end = pair.both("delete", gone)
            assert their_end == our_end
        elif kind < 0.90:
            pair.both("reload")
        else:
            pair.close()
            pair.open()
        pair.check()
    pair.close()


def test_the_named_faults_are_still_orbax_s(place):
    """Each shows in Orbax, and not here."""
    shown = set()

    def managers(name, **options):
        common = {"enable_async_checkpointing": False, **options}
        their_options = theirs.CheckpointManagerOptions(**common)
        our_options = ours.CheckpointManagerOptions(**common)
        return (
            theirs.CheckpointManager(place / f"{name}-theirs", options=their_options),
            ours.CheckpointManager(place / f"{name}-ours", options=our_options),
        )

    def save(pair, step, **given):
        pair[0].save(step, args=theirs.args.JsonSave({}), **given)
        pair[1].save(step, args=our_args.JsonSave({}), **given)

    pair = managers("empty", max_to_keep=0)
    save(pair, 1)
    assert pair[1].all_steps() == [1]
    shown |= {"newest-deleted"} if pair[0].all_steps() == [] else set()

    pair = managers("order", max_to_keep=1)
    save(pair, 3)
    save(pair, 2, force=True)
    assert pair[1].all_steps() == [3]
    shown |= {"append-order"} if list(pair[0].all_steps()) == [2] else set()

    bests = []
    for name, module in (("theirs", their_keep), ("ours", our_keep)):
        best = module.BestN(get_metric_fn=metric, n=1, keep_checkpoints_without_metrics=False)
        policy = module.AnyPreservationPolicy([best])
        for step, value in ((1, 9.0), (2, 5.0)):
            pair = managers("best", preservation_policy=policy)
            manager, args = (pair[0], theirs.args) if name == "theirs" else (pair[1], our_args)
            manager.save(step, args=args.JsonSave({}), metrics={"eval": {"x": value}})
        bests.append(1 in manager.all_steps())
    assert bests[1]
    shown |= {"metrics-forgotten"} if not bests[0] else set()

    pair = managers("empty", read_only=True)
    save(pair, 9, force=True)
    assert pair[1].all_steps() == [1]
    shown |= {"read-only-forced"} if 9 in pair[0].all_steps() else set()
    assert shown == set(FAULTS)
