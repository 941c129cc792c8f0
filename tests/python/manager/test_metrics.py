"""Metrics: any JSON comes back as it was saved, and its numbers are where native policies find
them."""

from __future__ import annotations

import json
import math
import random

import jax.numpy as jnp
import numpy as np
import pytest

import milepost as mp
from milepost.orbax import _metrics, args
from milepost.orbax.checkpoint_manager import CheckpointManager, CheckpointManagerOptions


def opened(run, **options):
    return CheckpointManager(
        run, options=CheckpointManagerOptions(enable_async_checkpointing=False, **options)
    )


def save(manager, step, metrics):
    return manager.save(step, args=args.JsonSave({}), metrics=metrics)


def text(metrics):
    return json.dumps(metrics, sort_keys=True)


@pytest.mark.parametrize(
    "metrics",
    [
        {"loss": 0.5},
        {"eval": {"loss": 0.5, "top/5": 0.25, "~": 1.5}, "": {"": 2.5}},
        {"loss": 1, "done": True, "name": "a", "none": None, "list": [1, 2.5, {"x": 3}]},
        {"nan": math.nan, "inf": math.inf, "minus": -math.inf, "deep": {"nan": math.nan}},
        {"big": 2**64 - 1, "low": -(2**63), "small": 5e-324},
        {},
        {"empty": {}},
        {"a": {"b": 1.0}, "a/b": 2.0},
        [1.0, 2.0],
        0.75,
        3,
        "words",
    ],
)
def test_metrics_come_back_as_they_were_saved(run, metrics):
    save(opened(run), 1, metrics)
    got = opened(run).metrics(1)
    assert text(got) == text(metrics), "types too"
    shown = opened(run).metadata(1)
    assert text(shown.metrics) == text(metrics) and shown.custom_metadata == {}


def test_random_metrics_come_back_as_they_were_saved():
    rng = random.Random(12)

    def tree(depth):
        kind = rng.randrange(9 if depth else 5)
        if kind < 3:
            return rng.choice([0.5, -1.0, math.inf, 1e300])
        if kind < 5:
            return rng.choice([1, True, None, "x", 2**63])
        if kind < 8:
            names = rng.sample(["a", "b", "a/b", "~1", "", "0", "ü"], rng.randrange(0, 4))
            return {name: tree(depth - 1) for name in names}
        return [tree(depth - 1) for _ in range(rng.randrange(3))]

    for _ in range(3000):
        metrics = tree(3)
        plain = _metrics.plain(metrics)
        flat, rest = _metrics.recorded(plain)
        assert all(type(value) is float for value in flat.values())
        member = None if rest is None and metrics != {} else {"metrics": rest}
        if metrics is not None:
            assert text(_metrics.saved(flat, member)) == text(metrics)


def test_scalars_of_numpy_and_jax_are_numbers(run):
    given = {"a": np.float32(0.5), "b": np.int64(3), "c": jnp.float32(0.25), "d": np.array(1.5)}
    save(opened(run), 1, {**given, "t": (1, 2), 5: np.bool_(True)})
    wanted = {"a": 0.5, "b": 3, "c": 0.25, "d": 1.5, "t": [1, 2], "5": True}
    assert opened(run).metrics(1) == wanted


def test_an_integer_of_over_64_bits_is_a_float(run):
    save(opened(run), 1, {"big": 2**70, "small": -(2**64), "vast": 10**400})
    assert opened(run).metrics(1) == {"big": 2.0**70, "small": -(2.0**64), "vast": math.inf}


@pytest.mark.parametrize("wrong", [np.ones(3), object(), {1, 2}, b"x", 1j])
def test_what_json_cannot_hold_is_named_by_its_path(run, wrong):
    manager = opened(run)
    with pytest.raises(TypeError, match="path=`metrics/eval/x`"):
        save(manager, 1, {"eval": {"x": wrong}})
    assert manager.all_steps() == []


def test_numbers_are_in_the_record_for_native_policies(run):
    save(opened(run), 1, {"eval": {"loss": 0.5}, "epoch": 3, "tag": "a"})
    checkpoint = mp.open(str(run / "1"))
    assert checkpoint.metrics == {"eval/loss": 0.5, "epoch": 3.0}
    native = mp.CheckpointManager(str(run), best="eval/loss", read_only=True)
    assert native.best_step() == 1


def test_best_fn_gets_what_was_saved_over_a_restart(run):
    seen = []

    def best_fn(metrics):
        seen.append(metrics)
        return {"good": 1, "bad": 0}[metrics["grade"]]

    with opened(run, max_to_keep=1, best_fn=best_fn) as manager:
        save(manager, 1, {"grade": "good", "history": [1, 2]})
    with opened(run, max_to_keep=1, best_fn=best_fn) as manager:
        save(manager, 2, {"grade": "bad", "history": []})
        assert manager.all_steps() == [1, 2] and manager.best_step() == 1
    assert {"grade": "good", "history": [1, 2]} in seen


def test_steps_without_metrics_are_kept_uncounted_or_go(run):
    for keep, wanted in ((True, [0, 1, 3, 5]), (False, [1, 3, 5])):
        options = {"max_to_keep": 2, "best_fn": lambda m: m["x"]}
        with opened(run / str(keep), keep_checkpoints_without_metrics=keep, **options) as manager:
            for step, x in enumerate([None, 0.9, 0.1, 0.8, 0.2, 0.3]):
                save(manager, step, None if x is None else {"x": x})
            assert manager.all_steps() == wanted
            assert manager.best_step() == 1


def test_the_best_step_is_none_without_metrics_and_the_latest_without_a_rank(run):
    manager = opened(run)
    save(manager, 1, None)
    save(manager, 2, None)
    assert manager.best_step() == 2
    assert opened(run, best_fn=lambda metrics: 0).best_step() is None
