"""Options that contradict each other, or that another one leaves without effect, are refused by name."""

from __future__ import annotations

import numpy as np
import pytest

import milepost as mp

EVERY = mp.SaveDecision.interval(2)
LATEST = mp.Preservation.latest(2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"decision": EVERY, "save_interval_steps": 2}, "save_interval_steps"),
        ({"decision": EVERY, "save_interval_steps": 1}, "save_interval_steps"),
        ({"decision": lambda context: True, "save_on_steps": [3]}, "save_on_steps"),
        ({"preservation": LATEST, "max_to_keep": 3}, "max_to_keep"),
        ({"preservation": LATEST, "keep_period": 3}, "keep_period"),
        ({"preservation": LATEST, "keep_time_interval": 60}, "keep_time_interval"),
        ({"preservation": LATEST, "best": "loss"}, "best"),
        ({"preservation": LATEST, "best_mode": "min"}, "best_mode"),
        ({"preservation": lambda steps: [], "keep_without_metrics": False}, "keep_without_metrics"),
        ({"best_mode": "min"}, "best_mode"),
        ({"best_mode": "max", "max_to_keep": 2}, "best_mode"),
        ({"keep_without_metrics": False, "max_to_keep": 2}, "keep_without_metrics"),
        ({"keep_without_metrics": False, "best": "loss"}, "keep_without_metrics"),
    ],
)
def test_an_option_without_effect_is_refused(run, tmp_path, options, named):
    with pytest.raises(mp.Invalid) as caught:
        mp.CheckpointManager(run, **options)
    assert caught.value.context["option"] == named and named in caught.value.message
    assert not list(tmp_path.iterdir()), "nothing is made before"


@pytest.mark.parametrize(
    "options",
    [
        {"best": "loss", "best_mode": "min", "max_to_keep": 2, "keep_without_metrics": False},
        {"best": "loss", "best_mode": "min"},
        {"save_interval_steps": 2, "save_on_steps": [3], "preservation": LATEST},
        {"decision": EVERY, "max_to_keep": 2},
    ],
)
def test_options_that_go_together_are_taken(run, options):
    mp.CheckpointManager(run, **options).close()


def test_the_best_by_default_is_the_highest_and_steps_without_metrics_stay(run):
    with mp.CheckpointManager(run, best="score", max_to_keep=1) as manager:
        for step, metrics in enumerate([{"score": 3.0}, {"score": 1.0}, None, {"score": 2.0}]):
            manager.save(step, {"w": step}, metrics=metrics)
            manager.wait()
        assert manager.best_step() == 0 and manager.steps() == [0, 2, 3]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"step_prefix": "other"}, "step_prefix"),
        ({"step_width": 4}, "step_width"),
        ({"step_prefix": "", "step_width": 6}, "step_prefix"),
    ],
)
def test_other_names_than_those_of_the_run_are_refused(run, asked, named):
    with mp.CheckpointManager(run, step_prefix="step_", step_width=6) as manager:
        manager.save(1, {"w": np.arange(3)})
    with pytest.raises(mp.Invalid, match="names its steps otherwise") as caught:
        mp.CheckpointManager(run, **asked)
    assert f"{named}=" in caught.value.message and caught.value.context["run"] == run
    with mp.CheckpointManager(run, read_only=True, **asked) as reader:
        assert reader.steps() == [1], "a reader reads names beside those of the run"


def test_the_runs_own_names_may_be_said_again(run):
    for step, options in enumerate([{"step_prefix": "s", "step_width": 3}, {"step_prefix": "s"}, {"step_width": 3}, {}]):
        with mp.CheckpointManager(run, **options) as manager:
            manager.save(step, {"w": step}).result()
            assert manager.entries()[-1].url.endswith(f"/s00{step}")


def test_a_leased_step_is_not_deleted_until_it_is_closed(run):
    with mp.CheckpointManager(run) as manager:
        for step in (1, 2):
            manager.save(step, {"w": np.arange(step)}).result()
        with manager.open(1, lease=True) as opened:
            with pytest.raises(mp.Conflict):
                manager.delete(1)
            assert opened.load()["w"].tolist() == [0]
        manager.delete(1)
        manager.open(2)
        manager.save(3, {"w": 1}).result()
        manager.delete(2)
        assert manager.steps() == [3]
