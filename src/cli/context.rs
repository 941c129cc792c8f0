//! What every verb needs: the engine, places by URL, standard output, and progress bars.
//!
//! Standard output goes through one buffered writer. Where its reader is gone (`| head`), the rest is dropped
//! quietly and the verb ends as it would have, with the exit code it would have had.

use super::size;
use futures::executor::block_on;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use milepost::{Checkpoint, Engine, Error, ErrorKind, Found, Place, Progress, Result, Run, find};
use std::{
    cell::RefCell,
    fmt,
    io::{BufWriter, ErrorKind as IoErrorKind, IsTerminal, Stdout, Write, stderr, stdout},
    sync::Arc,
};

/// The options that every verb takes.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of every verb")]
pub(crate) struct Globals {
    /// Print JSON on standard output.
    #[arg(long, global = true)]
    json: bool,
    /// No progress bars and no notes on standard error.
    #[arg(long, short, global = true)]
    quiet: bool,
    /// The byte budget of staging and requests in flight [default: 1GiB or a quarter of the memory].
    #[arg(long, global = true, value_name = "SIZE", value_parser = size::parse)]
    budget: Option<u64>,
    /// An option of the remote store: `endpoint`, `region`, `access_key_id`, `allow_http`, … (repeatable).
    #[arg(long = "store-option", global = true, value_name = "KEY=VALUE", value_parser = pair)]
    store_options: Vec<(String, String)>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// What a verb works with.
#[derive(Debug)]
pub(crate) struct Context {
    globals: Globals,
    engine: Arc<Engine>,
    out: RefCell<Out>,
    /// The bar on screen; it is wiped before anything is printed.
    bar: RefCell<Option<ProgressBar>>,
}

#[derive(Debug)]
struct Out {
    writer: BufWriter<Stdout>,
    closed: bool,
}

impl Context {
    pub(crate) fn new(globals: Globals) -> Result<Self> {
        let mut builder = Engine::builder();
        if let Some(bytes) = globals.budget {
            builder = builder.budget_bytes(bytes);
        }
        let out = Out { writer: BufWriter::with_capacity(64 << 10, stdout()), closed: false };
        Ok(Self {
            globals,
            engine: builder.build()?,
            out: RefCell::new(out),
            bar: RefCell::default(),
        })
    }

    /// Returns the engine, built with `--budget`.
    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Tells whether standard output is to be JSON.
    pub(crate) fn json(&self) -> bool {
        self.globals.json
    }

    /// Opens a path or URL with the `--store-option`s; they are not for local paths.
    pub(crate) fn place(&self, url: &str) -> Result<Place> {
        self.place_through(&self.engine, url)
    }

    /// Opens a path or URL as [`Context::place`] does, by another engine.
    pub(crate) fn place_through(&self, engine: &Arc<Engine>, url: &str) -> Result<Place> {
        let local = !url.contains("://") || url.starts_with("file:") || url.starts_with("memory:");
        let options = if local { &[][..] } else { &self.globals.store_options };
        engine.place(url, options)
    }

    /// Finds what is at a path or URL: a checkpoint, a run, or foreign Zarr.
    pub(crate) fn find(&self, url: &str) -> Result<Found> {
        block_on(find(&self.engine, &self.place(url)?))
    }

    /// Finds the run at a path or URL; what else is there is an error that says so.
    pub(crate) fn run(&self, url: &str) -> Result<Run> {
        let wrong = |message, place| Error::new(ErrorKind::Invalid, message).with("place", place);
        match self.find(url)? {
            Found::Run(run) => Ok(run),
            Found::Checkpoint(checkpoint) => {
                let error = wrong("this is a checkpoint, not a run", checkpoint.place().clone());
                Err(error.hint("name the run, which is the directory above its steps"))
            }
            Found::Foreign(place) => Err(wrong("the place is Zarr, but no run of ours", place)),
        }
    }

    /// Opens a checkpoint, or the newest step of a run.
    pub(crate) fn checkpoint(&self, url: &str) -> Result<Checkpoint> {
        self.open(self.find(url)?)
    }

    /// Opens what was found as a checkpoint; foreign Zarr is an error that says so.
    pub(crate) fn open(&self, found: Found) -> Result<Checkpoint> {
        match found {
            Found::Checkpoint(checkpoint) => Ok(*checkpoint),
            Found::Run(run) => block_on(run.newest()),
            Found::Foreign(place) => Checkpoint::open_blocking(&self.engine, &place),
        }
    }

    /// Writes to standard output: `ctx.print(format_args!(…))`, line ends included.
    pub(crate) fn print(&self, text: fmt::Arguments<'_>) -> Result<()> {
        self.write(|w| w.write_fmt(text))
    }

    /// Writes one line to standard output.
    pub(crate) fn line(&self, text: fmt::Arguments<'_>) -> Result<()> {
        self.write(|w| w.write_fmt(text).and_then(|()| w.write_all(b"\n")))
    }

    /// Writes bytes as they are.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<()> {
        self.write(|w| w.write_all(bytes))
    }

    /// Writes a JSON value as one line.
    pub(crate) fn print_json(&self, value: &serde_json::Value) -> Result<()> {
        self.line(format_args!("{value}"))
    }

    /// Tells whether the reader of standard output is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.out.borrow().closed
    }

    /// Flushes standard output.
    pub(crate) fn flush(&self) -> Result<()> {
        self.write(Write::flush)
    }

    fn write(&self, f: impl FnOnce(&mut BufWriter<Stdout>) -> std::io::Result<()>) -> Result<()> {
        self.wipe();
        let mut out = self.out.borrow_mut();
        if out.closed {
            return Ok(());
        }
        match f(&mut out.writer) {
            Err(e) if e.kind() == IoErrorKind::BrokenPipe => {
                out.closed = true;
                Ok(())
            }
            Err(e) => {
                out.closed = true;
                let error = Error::new(ErrorKind::Unavailable, "standard output cannot be written");
                Err(error.because(e))
            }
            Ok(()) => Ok(()),
        }
    }

    fn wipe(&self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Says something on standard error, unless `--quiet`.
    pub(crate) fn note(&self, text: fmt::Arguments<'_>) {
        self.wipe();
        if !self.globals.quiet {
            drop(writeln!(stderr().lock(), "{text}"));
        }
    }

    /// Starts a progress: hand `bar.progress()` to the operation and keep the bar until it ends.
    ///
    /// It shows only where standard error is a terminal, and never with `--quiet`.
    pub(crate) fn progress(&self, verb: &'static str) -> Bar {
        if self.globals.quiet || !stderr().is_terminal() {
            return Bar { bar: None, progress: Progress::default() };
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
        let template =
            "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(verb);
        self.bar.replace(Some(bar.clone()));
        let shown = bar.clone();
        let progress = Progress::with_callback(move |snapshot| {
            shown.set_length(snapshot.bytes_total);
            shown.set_position(snapshot.bytes_done);
        });
        Bar { bar: Some(bar), progress }
    }
}

/// A progress and the bar that shows it; the bar is wiped when this is dropped.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: Option<ProgressBar>,
    progress: Progress,
}

impl Bar {
    /// Returns the progress that drives the bar.
    pub(crate) fn progress(&self) -> Progress {
        self.progress.clone()
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Prints an error, its causes and what the user can do, on standard error.
pub(crate) fn report(error: &Error) {
    let mut err = stderr().lock();
    let mut hint = error.hint_text();
    let mut causes = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        hint = hint.or_else(|| inner.downcast_ref::<Error>().and_then(Error::hint_text));
        causes.push(format!("caused by: {inner}\n"));
        cause = inner.source();
    }
    let hint = hint.map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
    // Nobody is left to tell where this fails.
    drop(write!(err, "error: {error}\n{hint}{}", causes.concat()));
}

/// Sends warnings (or what `MILEPOST_LOG` asks for) to standard error.
pub(crate) fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MILEPOST_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_target(false)
        .without_time()
        .init();
}
