use super::*;
use crate::error::ErrorKind;
use proptest::{prelude::*, sample::select};
use serde_json::json;

const MS: u64 = 1_000;

fn info(step: u64) -> StepInfo {
    StepInfo { step, committed_ms: step.saturating_mul(MS), ..StepInfo::default() }
}

fn infos(steps: impl IntoIterator<Item = u64>) -> Vec<StepInfo> {
    steps.into_iter().map(info).collect()
}

fn with_loss(step: u64, loss: f64) -> StepInfo {
    let metrics = Map::from_iter([("loss".to_owned(), tagged::float(loss))]);
    StepInfo { metrics, ..info(step) }
}

fn losses(losses: &[f64]) -> Vec<StepInfo> {
    (1..).zip(losses).map(|(step, loss)| with_loss(step, *loss)).collect()
}

fn best(mode: BestMode, n: usize, missing: MissingMetric) -> Preservation {
    Preservation::Best { metric: Metric::Named("loss".to_owned()), mode, n: Some(n), missing }
}

fn kept(policy: &Preservation, steps: &[StepInfo]) -> Vec<u64> {
    policy.plan(steps).keep.into_iter().map(|(step, _)| step).collect()
}

// The ways in which Orbax 0.12.8 loses steps (reference/orbax.md §0 item 4, §1.0), each with the better behaviour.

#[test]
fn orbax_loss_a_worse_step_never_displaces_the_best_after_a_restart() {
    // There BestN without best_fn never stored the metrics; here the policy sees those of the record.
    let policy = best(BestMode::Min, 1, MissingMetric::Drop);
    assert_eq!(kept(&policy, &losses(&[0.1, 0.2])), [1, 2]);
    assert_eq!(kept(&policy, &losses(&[0.1, 0.2, 0.3])), [1, 3]);
}

#[test]
fn orbax_loss_nan_ranks_worst_and_does_not_spoil_the_order() {
    let steps = losses(&[5.0, 1.0, f64::NAN, 0.5, 9.0]);
    let policy = best(BestMode::Min, 2, MissingMetric::Keep);
    // There: 4 and 5 were kept, and 2, the second best, dropped. 5 is kept as the newest here.
    assert_eq!(kept(&policy, &steps), [2, 4, 5]);
    assert_eq!(kept(&best(BestMode::Max, 2, MissingMetric::Keep), &steps), [1, 5]);
    assert_eq!(
        kept(&best(BestMode::Max, 1, MissingMetric::Keep), &losses(&[f64::NAN, -9.0, -10.0])),
        [2, 3]
    );
    assert_eq!(
        kept(
            &best(BestMode::Min, 1, MissingMetric::Keep),
            &losses(&[f64::NAN, f64::NAN, f64::NAN])
        ),
        [3]
    );
}

#[test]
fn orbax_loss_latest_counts_by_number_and_not_in_the_order_of_saving() {
    // There: 1 and 3 on disk, a forced save of 2, max_to_keep = 1: 3 was deleted.
    assert_eq!(kept(&Preservation::Latest(1), &infos([1, 3, 2])), [3]);
}

#[test]
fn orbax_loss_a_half_deleted_step_is_not_counted() {
    let mut steps = infos([1, 2, 3]);
    steps[1].damaged = true;
    let plan = Preservation::Latest(2).plan(&steps);
    assert!(plan.delete.is_empty());
    assert_eq!(kept(&Preservation::Latest(2), &steps), [1, 3]);
}

#[test]
fn orbax_loss_max_to_keep_of_zero_and_best_leave_the_newest() {
    assert_eq!(kept(&Preservation::Latest(0), &infos([1, 2, 3])), [3]);
    assert_eq!(kept(&best(BestMode::Min, 0, MissingMetric::Drop), &losses(&[1.0, 2.0])), [2]);
    assert_eq!(
        kept(&best(BestMode::Min, 1, MissingMetric::Drop), &losses(&[1.0, 2.0, 3.0])),
        [1, 3]
    );
}

#[test]
fn orbax_loss_a_metric_that_fails_for_one_step_poisons_no_other() {
    let mut steps = losses(&[3.0, 1.0, 2.0, 4.0]);
    steps[1].metrics = Map::new();
    let panics = Metric::function(|metrics| tagged::number(&metrics["loss"]));
    let named = Metric::Named("loss".to_owned());
    for metric in [panics, named] {
        let policy = |missing| Preservation::Best {
            metric: metric.clone(),
            mode: BestMode::Min,
            n: Some(1),
            missing,
        };
        assert_eq!(kept(&policy(MissingMetric::Keep), &steps), [2, 3, 4]);
        assert_eq!(kept(&policy(MissingMetric::Drop), &steps), [3, 4]);
    }
}

#[test]
fn ties_go_to_the_later_step_and_infinities_rank_as_numbers() {
    let ranked = |mode, values: &[f64]| -> Vec<u64> {
        let metric = Metric::Named("loss".to_owned());
        metric.rank(mode, &losses(values)).into_iter().map(|(step, _)| step).collect()
    };
    assert_eq!(ranked(BestMode::Min, &[1.0, 1.0, 0.0, -0.0]), [4, 3, 2, 1]);
    let wild = [f64::INFINITY, 0.0, f64::NAN, f64::NEG_INFINITY, f64::NAN];
    assert_eq!(ranked(BestMode::Min, &wild), [4, 2, 1, 5, 3]);
    assert_eq!(ranked(BestMode::Max, &wild), [1, 2, 4, 5, 3]);
}

#[test]
fn metrics_that_are_no_numbers_are_missing() {
    let mut steps = losses(&[1.0, 2.0, 3.0, 4.0]);
    for (step, odd) in steps.iter_mut().zip([json!("1"), json!(true), json!(null)]) {
        step.metrics["loss"] = odd;
    }
    assert_eq!(kept(&best(BestMode::Min, 1, MissingMetric::Drop), &steps), [4]);
    assert_eq!(kept(&best(BestMode::Min, 1, MissingMetric::Keep), &steps), [1, 2, 3, 4]);
}

#[test]
fn best_without_a_number_keeps_all_that_have_the_metric() {
    let mut steps = losses(&[1.0, f64::NAN, 3.0, 4.0]);
    steps[0].metrics.clear();
    let policy = Preservation::Best {
        metric: Metric::Named("loss".to_owned()),
        mode: BestMode::Min,
        n: None,
        missing: MissingMetric::Drop,
    };
    assert_eq!(kept(&policy, &steps), [2, 3, 4]);
}

#[test]
fn modulo_and_distance_are_two_things() {
    assert_eq!(kept(&Preservation::EverySteps(5), &infos([1, 5, 7, 10, 12])), [5, 10, 12]);
    assert_eq!(kept(&Preservation::EverySteps(5), &infos([0, 3, 4])), [0, 4]);
    assert_eq!(
        kept(&Preservation::EveryStepsApart(5), &infos([1, 5, 6, 10, 11, 13])),
        [1, 6, 11, 13]
    );
    // flax: keep = 2, keep_every_n_steps = 5; there step 0 is forgotten, here it is the first.
    let flax = Preservation::Any(vec![Preservation::Latest(2), Preservation::EveryStepsApart(5)]);
    assert_eq!(kept(&flax, &infos(1..=20)), [1, 6, 11, 16, 19, 20]);
    assert_eq!(kept(&flax, &infos(0..=20)), [0, 5, 10, 15, 19, 20]);
}

#[test]
fn the_closest_to_each_multiple_is_kept_as_in_orbax() {
    let policy = Preservation::EveryStepsClosest(3);
    assert_eq!(kept(&policy, &infos([0, 1, 2, 4])), [0, 4]);
    let steps = infos([0, 1, 2, 4, 5, 8, 9, 13, 14, 25]);
    assert_eq!(kept(&policy, &steps), [0, 4, 5, 9, 13, 14, 25]);
    assert_eq!(kept(&Preservation::EveryStepsClosest(2), &infos([1, 3, 4])), [1, 4]);
    assert_eq!(
        kept(&Preservation::EveryStepsClosest(u64::MAX), &infos([1, u64::MAX])),
        [1, u64::MAX]
    );
}

#[test]
fn every_seconds_keeps_the_first_and_survives_a_clock_that_jumps_back() {
    let policy = Preservation::EverySeconds(Duration::from_secs(10));
    assert_eq!(kept(&policy, &infos([5, 9, 15, 24, 25, 26])), [5, 15, 25, 26]);
    let at = |times: &[u64]| -> Vec<StepInfo> {
        let step = |(step, s): (u64, &u64)| StepInfo { committed_ms: s * MS, ..info(step) };
        (1..).zip(times).map(step).collect()
    };
    // An hour back after step 3: step 4 is kept at once, and the count goes on from there.
    assert_eq!(kept(&policy, &at(&[3_600, 3_605, 3_610, 10, 15, 20, 25])), [1, 3, 4, 6, 7]);
    // A moment in a far future does not stop the keeping when the clock is right again.
    assert_eq!(kept(&policy, &at(&[0, u64::MAX / MS, 10, 15, 20, 21])), [1, 2, 3, 5, 6]);
}

#[test]
fn the_latest_duration_counts_back_from_the_newest() {
    let policy = Preservation::LatestDuration(Duration::from_secs(10));
    assert_eq!(kept(&policy, &infos([5, 19, 20, 25, 30])), [20, 25, 30]);
    let mut steps = infos([5, 19, 20]);
    steps[2].committed_ms = 7 * MS;
    // The clock was set back before the newest: what it calls the future is kept.
    assert_eq!(kept(&policy, &steps), [5, 19, 20]);
}

#[test]
fn a_callers_policy_cannot_delete_the_newest_or_a_pinned_step() {
    let mut steps = infos([4, 1, 2, 3]);
    steps[1].pinned = true;
    assert_eq!(kept(&Preservation::custom(|_| BTreeSet::new()), &steps), [1, 4]);
    let policy = Preservation::custom(|steps| {
        assert_eq!(steps.iter().map(|s| s.step).collect::<Vec<_>>(), [1, 2, 3, 4]);
        BTreeSet::from([steps[1].step, 99])
    });
    assert_eq!(kept(&policy, &steps), [1, 2, 4]);
    let panics = Preservation::custom(|_| panic!("a bug of the caller"));
    assert!(panics.plan(&steps).delete.is_empty());
}

#[test]
fn a_plan_prints_a_line_a_step_and_why() {
    let mut steps = losses(&[0.5, 3.0, f64::NAN, 1.0]);
    steps[2].pinned = true;
    let policy = Preservation::Any(vec![
        Preservation::Latest(1),
        best(BestMode::Min, 1, MissingMetric::Keep),
        Preservation::Steps(BTreeSet::from([4, 7])),
    ]);
    let plan = policy.plan(&steps);
    assert_eq!(
        plan.to_string(),
        "keep 1: number 1 by metric, 0.5\n\
         delete 2: nothing keeps it\n\
         keep 3: pinned\n\
         keep 4: the newest, of the latest 1, asked for\n"
    );
}

#[test]
fn what_cannot_have_been_meant_is_refused_and_deletes_nothing() {
    for wrong in [
        Preservation::EverySteps(0),
        Preservation::EveryStepsApart(0),
        Preservation::EveryStepsClosest(0),
        Preservation::EverySeconds(Duration::ZERO),
        Preservation::Any(Vec::new()),
        Preservation::Any(vec![Preservation::Latest(1), Preservation::EverySteps(0)]),
    ] {
        assert_eq!(wrong.validate().unwrap_err().kind(), ErrorKind::Invalid, "{wrong:?}");
        assert!(wrong.plan(&infos([1, 2, 3])).delete.is_empty(), "{wrong:?}");
    }
    assert_eq!(Preservation::Latest(3).plan(&[]), Plan::default());
}

fn histories() -> impl Strategy<Value = Vec<StepInfo>> {
    let value =
        select(vec![None, Some(f64::NAN), Some(f64::INFINITY), Some(-1.0), Some(0.0), Some(2.5)]);
    let step = (0..60_u64, 0..100_u64, value, prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    let step = step.prop_map(|(step, s, loss, pinned, damaged)| {
        let metrics = loss.map(|x| ("loss".to_owned(), tagged::float(x))).into_iter().collect();
        StepInfo { step, committed_ms: s * MS, metrics, pinned, damaged }
    });
    prop::collection::vec(step, 0..24).prop_map(|mut steps| {
        let mut seen = BTreeSet::new();
        steps.retain(|s| seen.insert(s.step));
        steps
    })
}

/// Policies whose plan, made again of what was kept, deletes nothing more.
fn stable() -> impl Strategy<Value = Preservation> {
    let mode = select(vec![BestMode::Min, BestMode::Max]);
    let missing = select(vec![MissingMetric::Keep, MissingMetric::Drop]);
    let leaf = prop_oneof![
        Just(Preservation::All),
        (0..5_usize).prop_map(Preservation::Latest),
        (mode, 0..5_usize, missing).prop_map(|(mode, n, missing)| best(mode, n, missing)),
        (1..9_u64).prop_map(Preservation::EverySteps),
        (1..9_u64).prop_map(Preservation::EveryStepsClosest),
        prop::collection::btree_set(0..60_u64, 0..5).prop_map(Preservation::Steps),
        (0..50_u64).prop_map(|s| Preservation::LatestDuration(Duration::from_secs(s))),
    ];
    leaf
}

fn policies() -> impl Strategy<Value = Preservation> {
    let leaf = prop_oneof![
        4 => stable(),
        1 => (1..9_u64).prop_map(Preservation::EveryStepsApart),
        1 => (1..30_u64).prop_map(|s| Preservation::EverySeconds(Duration::from_secs(s))),
        1 => Just(Preservation::custom(|steps| steps.iter().map(|s| s.step).filter(|s| s % 3 == 1).collect())),
    ];
    leaf.prop_recursive(2, 6, 3, |inner| {
        prop::collection::vec(inner, 1..4).prop_map(Preservation::Any)
    })
}

proptest! {
    #[test]
    fn the_laws_hold_for_every_policy_and_history(policy in policies(), history in histories()) {
        let plan = policy.plan(&history);
        let keep: BTreeSet<u64> = plan.keep.iter().map(|(step, _)| *step).collect();
        let delete: BTreeSet<u64> = plan.delete.iter().copied().collect();
        let committed: BTreeSet<u64> = history.iter().filter(|s| !s.damaged).map(|s| s.step).collect();
        prop_assert!(keep.is_disjoint(&delete));
        prop_assert_eq!(&(&keep | &delete), &committed);
        prop_assert!(committed.last().is_none_or(|newest| keep.contains(newest)));
        for step in history.iter().filter(|s| s.pinned && !s.damaged) {
            prop_assert!(keep.contains(&step.step));
        }
        for (_, reasons) in &plan.keep {
            prop_assert!(!reasons.is_empty());
        }
        prop_assert_eq!(plan.to_string().lines().count(), committed.len());
    }

    #[test]
    fn the_order_of_the_steps_does_not_matter(
        policy in policies(),
        (history, shuffled) in histories().prop_flat_map(|h| (Just(h.clone()), Just(h).prop_shuffle())),
    ) {
        prop_assert_eq!(policy.plan(&history), policy.plan(&shuffled));
    }

    #[test]
    fn planning_again_on_what_was_kept_deletes_nothing(policy in stable(), history in histories()) {
        let plan = policy.plan(&history);
        let rest: Vec<_> = history.into_iter().filter(|s| !plan.delete.contains(&s.step)).collect();
        prop_assert_eq!(policy.plan(&rest).delete, Vec::<u64>::new());
    }

    /// Retention as it happens, a plan after each commit, keeps what one plan of the whole history keeps.
    #[test]
    fn a_distance_kept_step_by_step_is_never_taken_back(n in 1..9_u64, count in 1..40_u64) {
        let policy = Preservation::EveryStepsApart(n);
        let mut steps: Vec<StepInfo> = Vec::new();
        for step in 0..count {
            steps.push(info(step));
            let plan = policy.plan(&steps);
            steps.retain(|s| !plan.delete.contains(&s.step));
        }
        let left: Vec<u64> = steps.iter().map(|s| s.step).collect();
        prop_assert_eq!(left, kept(&policy, &infos(0..count)));
    }
}
