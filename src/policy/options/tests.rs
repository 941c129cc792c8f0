use super::*;
use crate::{
    error::ErrorKind,
    policy::{SaveContext, StepInfo},
};
use serde_json::Map;

fn kept(options: &ClassicOptions, losses: &[Option<f64>]) -> Vec<u64> {
    let info = |(step, loss): (u64, &Option<f64>)| StepInfo {
        step,
        committed_ms: step * 1_000,
        metrics: loss.map(|x| ("loss".to_owned(), x.into())).into_iter().collect::<Map<_, _>>(),
        ..StepInfo::default()
    };
    let steps: Vec<_> = (0..).zip(losses).map(info).collect();
    options.preservation().unwrap().plan(&steps).keep.into_iter().map(|(step, _)| step).collect()
}

fn saves(options: &ClassicOptions, context: SaveContext) -> bool {
    options.decision().unwrap().decide(&context).save
}

fn at(step: u64) -> SaveContext {
    SaveContext { step, steps: 1, ..SaveContext::default() }
}

#[test]
fn by_default_every_step_is_saved_and_kept() {
    let options = ClassicOptions::default();
    assert_eq!(kept(&options, &[None; 4]), [0, 1, 2, 3]);
    assert!((0..20).all(|step| saves(&options, at(step))));
    // Without max_to_keep all are kept, whatever else says what to keep besides.
    let options = ClassicOptions { keep_period: Some(2), best_fn: Some(loss()), ..options };
    assert_eq!(kept(&options, &[None; 4]), [0, 1, 2, 3]);
}

fn loss() -> Metric {
    Metric::Named("loss".to_owned())
}

#[test]
fn what_to_keep_is_the_union_of_the_options() {
    let options = ClassicOptions { max_to_keep: Some(2), ..ClassicOptions::default() };
    assert_eq!(kept(&options, &[None; 10]), [8, 9]);
    let period = ClassicOptions { keep_period: Some(5), ..options.clone() };
    assert_eq!(kept(&period, &[None; 10]), [0, 5, 8, 9]);
    let time = ClassicOptions { keep_time_interval: Some(Duration::from_secs(4)), ..period };
    assert_eq!(kept(&time, &[None; 10]), [0, 4, 5, 8, 9]);
    let none = ClassicOptions { max_to_keep: Some(0), ..options };
    assert_eq!(kept(&none, &[None; 10]), [9], "the newest alone");
}

#[test]
fn best_fn_makes_the_quota_count_the_best_and_the_newest_stays_anyway() {
    let options = ClassicOptions {
        max_to_keep: Some(2),
        best_fn: Some(loss()),
        best_mode: BestMode::Min,
        ..ClassicOptions::default()
    };
    let losses = [Some(1.0), None, Some(0.5), Some(2.0), Some(0.7), Some(3.0)];
    assert_eq!(kept(&options, &losses), [1, 2, 4, 5]);
    let drop = ClassicOptions { keep_checkpoints_without_metrics: false, ..options.clone() };
    assert_eq!(kept(&drop, &losses), [2, 4, 5]);
    let max = ClassicOptions { best_mode: BestMode::default(), ..drop };
    assert_eq!(kept(&max, &losses), [3, 5], "more is better unless it is said");
}

#[test]
fn a_step_is_saved_when_any_option_says_so() {
    let options = ClassicOptions {
        save_interval_steps: 10,
        save_on_steps: Some([7].into()),
        ..ClassicOptions::default()
    };
    let saved: Vec<_> = (0..=20).filter(|step| saves(&options, at(*step))).collect();
    assert_eq!(saved, [0, 7, 10, 20]);
    assert!(saves(&options, SaveContext { steps: 0, ..at(3) }), "the first");
    assert!(saves(&options, SaveContext { preempted: true, ..at(3) }));
}

#[test]
fn a_function_replaces_interval_steps_and_first_but_not_preemption() {
    let options = ClassicOptions {
        save_on_steps: Some([7].into()),
        should_save_fn: Some(SaveDecision::when(|context| context.step == 4)),
        ..ClassicOptions::default()
    };
    let saved: Vec<_> = (0..=20).filter(|step| saves(&options, at(*step))).collect();
    assert_eq!(saved, [4]);
    assert!(!saves(&options, SaveContext { steps: 0, ..at(3) }));
    assert!(saves(&options, SaveContext { preempted: true, ..at(3) }));
}

#[test]
fn zeros_are_refused() {
    let zero = |options: ClassicOptions| {
        let policy = options.preservation().map(|_| ());
        policy.and(options.decision().map(|_| ())).unwrap_err().kind()
    };
    let base = ClassicOptions::default;
    assert_eq!(zero(ClassicOptions { save_interval_steps: 0, ..base() }), ErrorKind::Invalid);
    assert_eq!(zero(ClassicOptions { keep_period: Some(0), ..base() }), ErrorKind::Invalid);
    let interval = Some(Duration::ZERO);
    assert_eq!(zero(ClassicOptions { keep_time_interval: interval, ..base() }), ErrorKind::Invalid);
}
