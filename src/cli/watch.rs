//! `milepost watch`: new steps as they come, for people, evaluators and scripts.

use super::{context::Context, ls, size};
use milepost::{Error, ErrorKind, NewStep, Result, Run, WatchOptions};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};
use std::{
    io::stderr,
    process::{Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::sleep,
    time::{Duration, Instant},
};

/// No signal waits longer than this to be heard.
const NAP: Duration = Duration::from_millis(50);

/// Print each new step of a run as it is committed: a line as of `ls`, with --json an object a line.
///
/// Always the newest: of several that were committed since the last look, only the newest is shown. The newest of the
/// steps that are there already comes first, unless --above leaves it out. A run that is not there yet is waited
/// for. Nothing is written, but for the mark of --lease.
///
/// Ends after --timeout without a new step, after the first step with --once, and on Ctrl-C or SIGTERM (a second one
/// ends it at once). Exit code 0 where a step came and every --exec succeeded, else 1.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The path or URL of the run.
    run: String,
    /// Show only steps above this one.
    #[arg(long, value_name = "STEP")]
    above: Option<u64>,
    /// How long to wait for the next step: 90s, 15m, 2h, 1d [default: for ever].
    #[arg(long, value_name = "DURATION", value_parser = size::duration)]
    timeout: Option<Duration>,
    /// How often the run is listed.
    #[arg(long, value_name = "DURATION", value_parser = interval, default_value = "1s")]
    interval: Duration,
    /// End after the first step.
    #[arg(long)]
    once: bool,
    /// Keep the step from being deleted while --exec runs, or else until the next one comes.
    #[arg(long)]
    lease: bool,
    /// Run this by `sh -c` for each step, with `$MILEPOST_CKPT`, its URL, and `$MILEPOST_STEP`.
    ///
    /// With --json, its standard output goes to standard error.
    #[arg(long, value_name = "COMMAND")]
    exec: Option<String>,
}

fn interval(text: &str) -> Result<Duration, String> {
    match size::duration(text)? {
        Duration::ZERO => {
            Err("the run cannot be listed all the time: write 1s or 200ms".to_owned())
        }
        interval => Ok(interval),
    }
}

pub(crate) fn run(args: &Args, ctx: &Context) -> Result<ExitCode> {
    let signalled = on_signals()?;
    let mut run = None;
    let mut options = WatchOptions {
        above: args.above,
        timeout: Some(Duration::ZERO),
        interval: args.interval,
        lease: args.lease,
    };
    let deadline = || args.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut until = deadline();
    let (mut came, mut good) = (false, true);
    let mut held = None;
    while !signalled.load(Relaxed) && !ctx.is_closed() {
        let Some(new) = look(&mut run, args, &options, ctx)? else {
            if until.is_some_and(|until| until <= Instant::now()) {
                break;
            }
            rest(args.interval, until, &signalled);
            continue;
        };
        came = true;
        options.above = new.checkpoint.record().step.or(options.above);
        show(&new, ctx)?;
        if let Some(command) = &args.exec {
            good &= succeeds(command, &new, ctx)?;
        } else {
            // The one before is let go only now.
            held = Some(new);
        }
        if args.once {
            break;
        }
        until = deadline();
    }
    drop(held);
    Ok(if came && good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes the first Ctrl-C or SIGTERM a flag; the second one ends the process.
fn on_signals() -> Result<Arc<AtomicBool>> {
    let signalled = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&signalled))
            .and_then(|_| flag::register(signal, Arc::clone(&signalled)))
            .map_err(|e| Error::new(ErrorKind::Internal, "no signal handler").because(e))?;
    }
    Ok(signalled)
}

/// Looks once for the newest step that is new.
fn look(
    run: &mut Option<Run>,
    args: &Args,
    options: &WatchOptions,
    ctx: &Context,
) -> Result<Option<NewStep>> {
    if run.is_none() {
        match ctx.run(&args.run) {
            Ok(found) => *run = Some(found),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    run.as_ref().map_or(Ok(None), |run| run.wait_for_step(options))
}

/// Sleeps until it is time to look again, or a signal comes.
fn rest(interval: Duration, until: Option<Instant>, signalled: &AtomicBool) {
    let next = Instant::now().checked_add(interval);
    let end = [next, until].into_iter().flatten().min();
    while !signalled.load(Relaxed) {
        let left = end.map_or(NAP, |end| end.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return;
        }
        sleep(left.min(NAP));
    }
}

fn show(new: &NewStep, ctx: &Context) -> Result<()> {
    if ctx.json() {
        ctx.print_json(&ls::to_json(&ls::entry(new.checkpoint.clone()), None))?;
    } else {
        ctx.line(format_args!("{}", ls::line(&new.checkpoint, "")))?;
    }
    ctx.flush()
}

/// Runs the user's command; tells whether it succeeded.
fn succeeds(command: &str, new: &NewStep, ctx: &Context) -> Result<bool> {
    let step = new.checkpoint.record().step.map(|step| step.to_string());
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).stdin(Stdio::null());
    shell.env("MILEPOST_CKPT", new.checkpoint.place().to_string());
    shell.env("MILEPOST_STEP", step.as_deref().unwrap_or_default());
    if ctx.json() {
        shell.stdout(stderr());
    }
    let status = shell
        .status()
        .map_err(|e| Error::new(ErrorKind::Unavailable, "`sh` cannot be run").because(e))?;
    if !status.success() {
        ctx.note(format_args!("step {}: {status}: {command}", step.unwrap_or_default()));
    }
    Ok(status.success())
}
