"""Policies: what they decide and plan, that they print, and that functions of the user are asked and heard."""

from __future__ import annotations

import math
import random

import pytest

import milepost as mp

Decide = mp.SaveDecision
Keep = mp.Preservation


def decided(policy, step=10, **context) -> bool:
    decision = policy.decide(mp.SaveContext(step, **context))
    assert decision.save == bool(decision) and isinstance(decision.reason, str) and decision.reason
    return decision.save


def test_an_interval_takes_its_multiples():
    assert [s for s in range(10) if decided(Decide.interval(3), s)] == [0, 3, 6, 9]
    assert all(decided(Decide.interval(1), s) for s in range(5))


def test_named_steps_are_taken():
    assert [s for s in range(10) if decided(Decide.steps([2, 5, 5]), s)] == [2, 5]
    assert not decided(Decide.steps([]), 0)


def test_seconds_since_the_last_save_count():
    policy = Decide.every_seconds(10)
    assert decided(policy) and decided(policy, since_begun=10.0) and not decided(policy, since_begun=9.9)


def test_continuous_saves_when_nothing_is_in_flight():
    policy = Decide.continuous(5)
    assert decided(policy, since_committed=5.0) and not decided(policy, since_committed=4.0)
    assert not decided(policy, since_committed=100.0, in_flight=1)
    assert decided(Decide.continuous())


def test_initial_and_preemption():
    assert decided(Decide.initial()) and not decided(Decide.initial(), latest=3, steps=1)
    assert not decided(Decide.preemption()) and decided(Decide.preemption(), preempted=True)


def test_any_and_all_combine():
    three, five = Decide.interval(3), Decide.interval(5)
    assert [s for s in range(16) if decided(Decide.any([three, five]), s)] == [0, 3, 5, 6, 9, 10, 12, 15]
    assert [s for s in range(31) if decided(Decide.all([three, five]), s)] == [0, 15, 30]
    nested = Decide.all([Decide.any([three, five]), Decide.when(lambda context: context.step % 2 == 0)])
    assert [s for s in range(13) if decided(nested, s)] == [0, 6, 10, 12]


def test_a_function_sees_the_whole_context():
    seen = []
    context = mp.SaveContext(7, latest=5, steps=2, in_flight=1, since_begun=1.5, since_committed=0.5, preempted=True)
    assert Decide.when(lambda c: seen.append(c) or True).decide(context)
    assert seen == [context]


def test_what_a_function_raises_comes_out():
    with pytest.raises(ZeroDivisionError):
        Decide.when(lambda c: 1 / 0).decide(mp.SaveContext(1))
    with pytest.raises(ZeroDivisionError):
        Decide.any([Decide.interval(100), Decide.when(lambda c: 1 / 0)]).decide(mp.SaveContext(1))
    with pytest.raises(KeyError):
        Keep.custom(lambda steps: {}["x"]).plan([mp.StepInfo(1)])
    with pytest.raises(KeyError):
        Keep.best(lambda metrics: metrics["gone"], n=1).plan([mp.StepInfo(1), mp.StepInfo(2)])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Decide.interval(0),
        lambda: Keep.every_steps(0),
        lambda: Keep.every_steps_apart(0),
        lambda: Keep.every_steps_closest(0),
        lambda: Keep.best("loss", mode="highest"),
        lambda: Keep.best("loss", missing="maybe"),
    ],
)
def test_a_policy_of_no_sense_is_refused(make):
    with pytest.raises(ValueError):
        make()


@pytest.mark.parametrize("make", [lambda: Decide.interval(-1), lambda: Keep.latest(-1), lambda: Decide.steps([-1])])
def test_negative_numbers_are_refused(make):
    with pytest.raises((ValueError, OverflowError)):
        make()


def infos(*steps, **metrics):
    return [mp.StepInfo(step, committed_ms=step * 1000, metrics={k: v[i] for k, v in metrics.items() if v[i] is not None}) for i, step in enumerate(steps)]


def kept(policy, steps) -> list[int]:
    plan = policy.plan(steps)
    assert sorted([step for step, _ in plan.keep] + plan.delete) == [info.step for info in steps]
    assert all(reasons for _, reasons in plan.keep)
    return sorted(step for step, _ in plan.keep)


def test_everything_and_latest():
    steps = infos(*range(6))
    assert kept(Keep.everything(), steps) == [0, 1, 2, 3, 4, 5]
    assert kept(Keep.latest(2), steps) == [4, 5]
    assert kept(Keep.latest(10), steps) == [0, 1, 2, 3, 4, 5]
    assert kept(Keep.latest(0), steps) == [5]  # the newest is never deleted


def test_best_counts_by_a_metric_or_a_function():
    steps = infos(1, 2, 3, 4, loss=[3.0, 1.0, 2.0, 4.0])
    assert kept(Keep.best("loss", "min", 2), steps) == [2, 3, 4]
    assert kept(Keep.best("loss", "max", 1), steps) == [4]
    assert kept(Keep.best(lambda metrics: -metrics["loss"], n=1), steps) == [2, 4]
    assert kept(Keep.best("loss", "min"), steps) == [1, 2, 3, 4]


def test_nan_is_worst_ties_go_to_the_later_and_missing_is_as_asked():
    steps = infos(1, 2, 3, 4, 5, loss=[math.nan, 1.0, 1.0, None, 9.0])
    assert kept(Keep.best("loss", "min", 1), steps) == [3, 4, 5]
    assert kept(Keep.best("loss", "min", 1, missing="drop"), steps) == [3, 5]
    assert kept(Keep.best("loss", "min", 4, missing="drop"), steps) == [1, 2, 3, 5]


def test_periods_of_steps():
    steps = infos(0, 3, 7, 10, 14, 20, 21)
    assert kept(Keep.every_steps(10), steps) == [0, 10, 20, 21]
    assert kept(Keep.every_steps_apart(6), steps) == [0, 7, 14, 20, 21]
    assert set(kept(Keep.every_steps_closest(10), steps)) >= {0, 10, 20, 21}


def test_periods_of_time():
    steps = infos(0, 3, 7, 10, 14, 20, 21)
    assert kept(Keep.every_seconds(6), steps) == [0, 7, 14, 20, 21]
    assert kept(Keep.latest_duration(7), steps) == [14, 20, 21]


def test_named_steps_pins_and_unions():
    steps = infos(1, 2, 3, 4, 5)
    assert kept(Keep.steps([2, 9]), steps) == [2, 5]
    assert kept(Keep.any([Keep.steps([2]), Keep.latest(2)]), steps) == [2, 4, 5]
    pinned = [mp.StepInfo(1, pinned=True), *infos(2, 3)]
    assert kept(Keep.latest(1), pinned) == [1, 3]


def test_a_damaged_step_is_never_deleted_nor_counted():
    steps = [*infos(1, 2, 3), mp.StepInfo(4, damaged=True)]
    plan = Keep.latest(1).plan(steps)
    assert [step for step, _ in plan.keep] == [3] and plan.delete == [1, 2]


def test_a_function_sees_the_steps_and_says_which_to_keep():
    seen = []
    steps = infos(1, 2, 3, loss=[0.5, math.nan, None])
    assert kept(Keep.custom(lambda given: seen.append(given) or [given[0].step]), steps) == [1, 3]
    assert [info.step for info in seen[0]] == [1, 2, 3] and seen[0][0].metrics == {"loss": 0.5}
    assert math.isnan(seen[0][1].metrics["loss"]) and seen[0][2].metrics == {}


def test_the_newest_is_kept_by_every_policy():
    for seed in range(200):
        random_ = random.Random(seed)
        steps = infos(*sorted(random_.sample(range(1000), random_.randrange(1, 30))))
        policy = random_.choice(
            [
                Keep.latest(random_.randrange(5)),
                Keep.every_steps(random_.randrange(1, 50)),
                Keep.every_steps_apart(random_.randrange(1, 50)),
                Keep.every_seconds(random_.random() * 100),
                Keep.latest_duration(random_.random() * 100),
                Keep.custom(lambda s: []),
                Keep.best("none", n=0, missing="drop"),
            ]
        )
        assert steps[-1].step in kept(policy, steps), (seed, policy)


def test_plans_print_a_line_a_step_and_change_nothing():
    plan = Keep.latest(1).plan(infos(1, 2))
    assert str(plan).splitlines()[0] == "delete 1: nothing keeps it" and str(plan).splitlines()[1].startswith("keep 2: ")


def test_policies_print_what_they_are():
    for policy, parts in [
        (Decide.any([Decide.interval(7), Decide.initial()]), ["SaveDecision", "7", "Initial"]),
        (Decide.when(lambda c: True), ["SaveDecision"]),
        (Keep.any([Keep.latest(3), Keep.best("loss", "min", 2)]), ["Preservation", "3", "loss", "Min"]),
    ]:
        assert all(part in repr(policy) for part in parts), repr(policy)
