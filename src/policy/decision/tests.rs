use super::*;
use crate::error::ErrorKind;

fn at(step: u64) -> SaveContext {
    SaveContext { step, latest: step.checked_sub(1), steps: 3, ..SaveContext::default() }
}

fn tenths(tenths: u64) -> Duration {
    Duration::from_millis(tenths * 100)
}

#[track_caller]
fn says(policy: &SaveDecision, context: &SaveContext, save: bool, reason: &str) {
    let decision = policy.decide(context);
    assert_eq!((decision.save, decision.reason.as_str()), (save, reason));
}

#[test]
fn an_interval_saves_absolute_multiples_and_not_distances() {
    let policy = SaveDecision::Interval(10);
    says(&policy, &at(30), true, "step 30 is a multiple of 10");
    says(&policy, &at(31), false, "step 31 is not a multiple of 10");
    says(
        &policy,
        &SaveContext { latest: Some(3), ..at(13) },
        false,
        "step 13 is not a multiple of 10",
    );
    assert!(policy.decide(&at(0)).save);
}

#[test]
fn steps_and_preemption_say_which_it_was() {
    let steps = SaveDecision::Steps(BTreeSet::from([1, 5]));
    says(&steps, &at(5), true, "step 5 is among the steps to save");
    says(&steps, &at(6), false, "step 6 is not among the steps to save");
    let preempted = SaveContext { preempted: true, ..at(6) };
    says(&SaveDecision::Preemption, &preempted, true, "preemption was signalled");
    says(&SaveDecision::Preemption, &at(6), false, "preemption was not signalled");
}

#[test]
fn every_seconds_counts_from_the_beginning_of_the_last_save() {
    let policy = SaveDecision::EverySeconds(Duration::from_secs(10));
    says(&policy, &at(1), true, "there was no save yet");
    let early = SaveContext { since_begun: Some(tenths(72)), in_flight: 1, ..at(1) };
    says(&policy, &early, false, "7.2 s since the last save, 10s wanted");
    let almost = SaveContext { since_begun: Some(Duration::from_micros(9_999_999)), ..at(1) };
    says(&policy, &almost, false, "9.9 s since the last save, 10s wanted");
    let due = SaveContext { since_begun: Some(tenths(100)), in_flight: 1, ..at(1) };
    says(&policy, &due, true, "10.0 s since the last save, 10s wanted");
}

#[test]
fn continuous_waits_for_the_save_in_flight_and_then_for_its_pause() {
    let policy = SaveDecision::Continuous { minimum: Duration::from_secs(1) };
    let busy = SaveContext { in_flight: 1, since_committed: Some(tenths(600)), ..at(4) };
    says(&policy, &busy, false, "saves in flight: 1");
    let pause =
        SaveContext { since_begun: Some(tenths(900)), since_committed: Some(tenths(9)), ..at(4) };
    says(&policy, &pause, false, "0.9 s since the last commit, 1s wanted");
    let free = SaveContext { since_committed: Some(tenths(10)), ..at(4) };
    assert!(policy.decide(&free).save);
    says(&policy, &at(4), true, "there was no commit yet");
}

#[test]
fn the_initial_save_is_made_once_even_while_it_is_in_flight() {
    let fresh = SaveContext { step: 7, ..SaveContext::default() };
    says(&SaveDecision::Initial, &fresh, true, "the run has 0 steps");
    let begun = SaveContext { in_flight: 1, ..fresh };
    says(&SaveDecision::Initial, &begun, false, "saves in flight: 1");
    says(&SaveDecision::Initial, &at(9), false, "the run has 3 steps");
}

#[test]
fn any_gives_the_first_yes_and_all_the_first_no() {
    let members = || vec![SaveDecision::Interval(2), SaveDecision::Interval(3)];
    let any = SaveDecision::Any(members());
    says(&any, &at(3), true, "step 3 is a multiple of 3");
    says(&any, &at(5), false, "step 5 is not a multiple of 2; step 5 is not a multiple of 3");
    let all = SaveDecision::All(members());
    says(&all, &at(4), false, "step 4 is not a multiple of 3");
    says(&all, &at(6), true, "step 6 is a multiple of 2; step 6 is a multiple of 3");
}

#[test]
fn the_callers_function_sees_the_context() {
    let policy = SaveDecision::when(|context| context.steps == 3 && context.step > 1);
    says(&policy, &at(2), true, "the caller's function does want it");
    says(&policy.clone(), &at(1), false, "the caller's function does not want it");
    assert_eq!(format!("{policy:?}"), "Custom(function)");
}

#[test]
fn a_step_that_is_not_above_the_newest_is_outdated_whatever_the_policy_says() {
    let context = |latest| SaveContext { latest, ..at(5) };
    assert_eq!(context(None).outdated(), None);
    assert_eq!(context(Some(4)).outdated(), None);
    assert_eq!(context(Some(5)).outdated(), Some(SkipReason::NotAbove(5)));
    let reason = context(Some(9)).outdated().unwrap();
    assert_eq!(reason.to_string(), "not above step 9, the newest");
    assert!(SaveDecision::Interval(5).decide(&context(Some(9))).save);
}

#[test]
fn what_cannot_have_been_meant_is_refused_however_deep() {
    for wrong in [
        SaveDecision::Interval(0),
        SaveDecision::Any(Vec::new()),
        SaveDecision::All(Vec::new()),
        SaveDecision::Any(vec![
            SaveDecision::Initial,
            SaveDecision::All(vec![SaveDecision::Interval(0)]),
        ]),
    ] {
        assert_eq!(wrong.validate().unwrap_err().kind(), ErrorKind::Invalid, "{wrong:?}");
        let _no_panic = wrong.decide(&at(1));
    }
    for right in
        [SaveDecision::Steps(BTreeSet::new()), SaveDecision::All(vec![SaveDecision::Interval(1)])]
    {
        right.validate().unwrap();
    }
}
