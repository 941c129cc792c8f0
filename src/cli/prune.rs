//! `milepost prune`: what no rule keeps goes.

use super::{
    context::Context,
    rm::{self, Outcome},
    size,
};
use futures::executor::block_on;
use milepost::{
    BestMode, Burial, Error, ErrorKind, Metric, MissingMetric, Plan, Preservation, Result, Run,
    StepInfo, StepState,
};
use serde_json::{Value, json};
use std::{process::ExitCode, time::Duration};

/// Remove the steps of a run that no rule keeps, without asking; --dry-run shows the plan.
///
/// A step stays where any rule keeps it; at least one rule has to be given. The newest step and pinned ones always
/// stay. Prints a line for each step, with what keeps it. Never removed: damaged steps, which count for no rule
/// (`milepost rm --damaged`), and steps that somebody reads under a lease, which are left for another time.
///
/// Exit code 1 where a step could not be removed for another reason than that it is in use.
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("rules").required(true).multiple(true),
    override_usage = "milepost prune [OPTIONS] <RUN> --keep-…"
)]
pub(crate) struct Args {
    /// The path or URL of the run.
    run: String,
    /// Keep the highest N steps.
    #[arg(long, value_name = "N", group = "rules")]
    keep_latest: Option<usize>,
    /// Keep the best N steps by --metric; those that lack it are kept besides.
    #[arg(long, value_name = "N", group = "rules", requires = "metric")]
    keep_best: Option<usize>,
    /// The metric that ranks steps; NaN is worst, of equals the later step is better.
    #[arg(long, value_name = "NAME", requires = "keep_best")]
    metric: Option<String>,
    /// Which way the metric is better.
    #[arg(long, value_name = "MODE", default_value = "max", requires = "keep_best")]
    mode: Mode,
    /// Do not keep steps for lacking the metric.
    #[arg(long, requires = "keep_best")]
    drop_missing: bool,
    /// Keep the multiples of K.
    #[arg(long, value_name = "K", group = "rules")]
    keep_every: Option<u64>,
    /// Keep the lowest step, then each that is at least K above the last one kept.
    #[arg(long, value_name = "K", group = "rules")]
    keep_every_apart: Option<u64>,
    /// Keep what was committed within this time before the newest step: 90s, 15m, 2h, 1d.
    #[arg(long, value_name = "DURATION", group = "rules", value_parser = size::duration)]
    keep_for: Option<Duration>,
    /// Keep these steps.
    #[arg(long, value_name = "STEP,…", group = "rules", value_delimiter = ',')]
    keep_steps: Vec<u64>,
    /// Only print the plan.
    #[arg(long, short = 'n')]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Mode {
    Min,
    Max,
}

pub(crate) fn run(args: &Args, ctx: &Context) -> Result<ExitCode> {
    let policy = policy(args);
    policy.validate()?;
    let run = ctx.run(&args.run)?;
    let steps = infos(&run)?;
    check_metric(&policy, &steps)?;
    let plan = policy.plan(&steps);
    let damaged: Vec<_> = steps.iter().filter(|s| s.damaged).map(|s| s.step).collect();
    if !ctx.json() {
        ctx.print(format_args!("{plan}"))?;
        for step in &damaged {
            ctx.line(format_args!("leave {step}: damaged, which no rule judges"))?;
        }
        ctx.flush()?;
    }
    let doomed = if args.dry_run { &[][..] } else { &plan.delete };
    let mut outcomes = Vec::new();
    for step in doomed {
        let outcome = match rm::remove(&run, *step, &Burial::Delete, false) {
            Outcome::Failed(error) if error.kind() == ErrorKind::Conflict => Outcome::InUse(error),
            // Another was faster.
            Outcome::Failed(error) if error.kind() == ErrorKind::NotFound => Outcome::Removed,
            outcome => outcome,
        };
        rm::tell(*step, &outcome, ctx)?;
        outcomes.push((*step, outcome));
    }
    if ctx.json() {
        ctx.print_json(&to_json(&run, args.dry_run, &plan, &damaged, &outcomes))?;
    }
    Ok(rm::exit_code(&outcomes))
}

fn policy(args: &Args) -> Preservation {
    let mode = match args.mode {
        Mode::Min => BestMode::Min,
        Mode::Max => BestMode::Max,
    };
    let missing = if args.drop_missing { MissingMetric::Drop } else { MissingMetric::Keep };
    let best = args.keep_best.zip(args.metric.clone()).map(|(n, name)| Preservation::Best {
        metric: Metric::Named(name),
        mode,
        n: Some(n),
        missing,
    });
    let listed = args.keep_steps.iter().copied().collect();
    let rules = [
        args.keep_latest.map(Preservation::Latest),
        best,
        args.keep_every.map(Preservation::EverySteps),
        args.keep_every_apart.map(Preservation::EveryStepsApart),
        args.keep_for.map(Preservation::LatestDuration),
        (!args.keep_steps.is_empty()).then_some(Preservation::Steps(listed)),
    ];
    Preservation::Any(rules.into_iter().flatten().collect())
}

fn infos(run: &Run) -> Result<Vec<StepInfo>> {
    let pins = block_on(run.pins())?;
    let info = |step, state| {
        let pinned = pins.iter().any(|pin| pin.step == step);
        match state {
            StepState::Damaged(_) => {
                StepInfo { step, pinned, damaged: true, ..StepInfo::default() }
            }
            StepState::Committed(checkpoint) => {
                let record = checkpoint.record();
                let (committed_ms, metrics) = (record.committed_ms, record.metrics.clone());
                StepInfo { step, pinned, committed_ms, metrics, damaged: false }
            }
        }
    };
    Ok(run.steps_blocking()?.into_iter().map(|entry| info(entry.step, entry.state)).collect())
}

/// Refuses a metric that no step has: its name is misspelt, and with it all would go.
fn check_metric(policy: &Preservation, steps: &[StepInfo]) -> Result<()> {
    let Some((metric @ Metric::Named(name), _)) = policy.metric() else { return Ok(()) };
    if steps.iter().all(|step| step.damaged) || steps.iter().any(|s| metric.of(s).is_some()) {
        return Ok(());
    }
    let mut names: Vec<_> = steps.iter().flat_map(|step| step.metrics.keys().cloned()).collect();
    names.sort_unstable();
    names.dedup();
    let has = if names.is_empty() { "no metrics".to_owned() } else { names.join(", ") };
    Err(Error::new(ErrorKind::Invalid, "no step has this metric as a number")
        .with("metric", name)
        .hint(format!("the steps have {has}")))
}

fn to_json(
    run: &Run,
    dry_run: bool,
    plan: &Plan,
    damaged: &[u64],
    outcomes: &[(u64, Outcome)],
) -> Value {
    let keep = plan.keep.iter().map(|(step, why)| json!({"step": step, "why": why}));
    json!({
        "run": run.place().to_string(),
        "dry_run": dry_run,
        "keep": keep.collect::<Vec<_>>(),
        "delete": plan.delete,
        "damaged": damaged,
        "steps": outcomes.iter().map(|(step, o)| rm::to_json(*step, o)).collect::<Vec<_>>(),
    })
}
