"""The same saves through Flax and through Milepost keep the same checkpoints, on random histories."""

import os
import random

import numpy as np
import pytest
from flax import errors
from flax.training import checkpoints as theirs

import milepost as mp
from milepost.flax import _entry
from milepost.flax import checkpoints as ours
from milepost.flax._retention import Retention

HISTORIES = 240
STATE = {"w": np.zeros(1, np.int8)}


def steps_of(chance: random.Random):
    """Steps as users have them: counted, fractional, negative, in any order, large."""
    kind = chance.choice(["rising", "rising", "any", "fractions", "signed", "large"])
    step = chance.randint(0, 5)
    for _ in range(chance.randint(3, 14)):
        if kind == "rising":
            step += chance.choice([1, 1, 2, 5])
            yield step
        elif kind == "any":
            yield chance.randint(0, 12)
        elif kind == "fractions":
            yield chance.choice([0.5, 0.25, 1.0, 2.5, 1e-3, 0.1, 1e5, 3.0])
        elif kind == "signed":
            yield chance.choice([-2, -1, -1.5, 0, 0.001, 1, 2.0, 7])
        else:
            step += chance.choice([1000, 10**9, 1])
            yield step


def outcome(library, directory, step, options):
    try:
        path = library.save_checkpoint(directory, STATE, step, **options)
        return os.path.relpath(path, directory)
    except errors.InvalidCheckpointError as error:
        return str(error).replace(str(directory), "DIR")


def seen(library, directory, prefix):
    names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    latest = library.latest_checkpoint(directory, prefix)
    steps = library.available_steps(directory, prefix, float)
    return names, latest and os.path.basename(latest), steps


@pytest.fixture
def without_syncs(monkeypatch):
    """Thousands of saves, of which none needs to survive the machine."""
    save = mp.save_async
    monkeypatch.setattr(mp, "save_async", lambda *a, **k: save(*a, durability="published", **k))
    monkeypatch.setattr(_entry, "_sync", lambda directory: None)


@pytest.mark.usefixtures("without_syncs")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("part", range(8))
def test_a_random_history_keeps_the_same_checkpoints(tmp_path, part):
    seed = int(os.environ.get("MILEPOST_SEED", "1000"))
    for number in range(HISTORIES // 8):
        chance = random.Random(f"{seed}/{part}/{number}")
        directories = (tmp_path / f"ours{number}", tmp_path / f"theirs{number}")
        prefix = chance.choice(["checkpoint_", "test_", "ckpt", "v2_", "a.b_"])
        history = []
        every = {
            "keep": chance.choice([0, 1, 1, 2, 3, 100, float("inf")]),
            "keep_every_n_steps": chance.choice([None, None, 0, 1, 2, 3, 5, 2.5, 500]),
        }
        for step in steps_of(chance):
            options = {"prefix": prefix, "overwrite": chance.random() < 0.4, **every}
            history.append((step, options))
            told = f"MILEPOST_SEED={seed}, part {part}, history {number}: {history}"
            assert outcome(ours, directories[0], step, options) == outcome(
                theirs, directories[1], step, options
            ), told
            assert seen(ours, directories[0], prefix) == seen(theirs, directories[1], prefix), told


def test_keep_every_n_steps_counts_from_what_was_kept():
    plan, kept = Retention(keep=2, keep_every=5), []
    for step in range(21):
        kept.append((str(step), step))
        gone = plan.older(kept)
        kept = [(name, number) for name, number in kept if name not in gone]
    assert [number for _, number in kept] == [1, 6, 11, 16, 19, 20]


def test_step_0_is_never_kept_by_distance():
    assert Retention(keep=1, keep_every=1).older([("0", 0), ("1", 1), ("2", 2)]) == ["0"]


def test_keep_0_keeps_all():
    assert Retention(keep=0).older([("1", 1), ("2", 2)]) == []


@pytest.mark.parametrize("keep", [-1, 1.5, None, "3"])
def test_a_keep_that_is_no_number_of_checkpoints_is_refused_before_anything_is_written(tmp_path, keep):
    with pytest.raises((ValueError, TypeError)):
        ours.save_checkpoint(tmp_path / "run", STATE, 1, keep=keep)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("signed", [True, False])
def test_natural_sort_is_flaxs(signed):
    seed = int(os.environ.get("MILEPOST_SEED", "5"))
    chance = random.Random(seed)
    pieces = ["ckpt", "_", "-", "+", ".", "e", "1", "10", "2", "0.1", "1e5", "-0.2", "007", "x", " "]
    for _ in range(500):
        names = ["".join(chance.choices(pieces, k=chance.randint(1, 6))) for _ in range(8)]
        assert ours.natural_sort(names, signed) == theirs.natural_sort(names, signed), names
    assert ours.natural_sort(["file_1", "file_10", "file_2"]) == ["file_1", "file_2", "file_10"]
    listed = ["ckpt_1e5", "ckpt_-1.0", "ckpt_1.0"]
    assert ours.natural_sort(listed) == ["ckpt_-1.0", "ckpt_1.0", "ckpt_1e5"]


@pytest.mark.parametrize("path", ["./a//b/", "gs://bucket//x/../y", "a/./b", "", "/", "S3://b/c"])
def test_safe_normpath_is_flaxs(path):
    assert ours.safe_normpath(path) == theirs.safe_normpath(path)
