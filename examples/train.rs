//! A training loop that never waits for its checkpoints, and goes on where it was killed.
//!
//! ```text
//! cargo run --release --example train            train, be killed in the middle, resume, tell what was kept
//! cargo run --release --example train -- RUN     train in RUN, or go on there
//! ```
//!
//! The model is a small one (two hidden layers, Adam, two spirals) and all of it is below. What concerns checkpoints
//! is in `train`: open the manager, restore the newest step if there is one, call `save` every step.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to its user")]
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "small numbers, and names as in the mathematics"
)]

use milepost::{
    BestMode, Borrowed, Checkpoint, Engine, Event, Item, Leaf, Manager, ManagerOptions, Metric,
    MissingMetric, Preservation, Queue, Result, SaveDecision, SaveRequest, Tree, Which,
};
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

const STEPS: u64 = 600;
const HIDDEN: usize = 192;
const BATCH: usize = 256;
const SIZES: [(usize, usize); 3] = [(2, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1)];

fn main() -> ExitCode {
    let done = match std::env::args().nth(1) {
        Some(run) => train(Path::new(&run)),
        None => train_twice(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Trains in a child process that is killed in the middle, then in another one to the end.
fn train_twice() -> Result<()> {
    let run = std::env::temp_dir().join(format!("milepost-train-{}", std::process::id()));
    let ended = run_children(&run);
    drop(std::fs::remove_dir_all(&run));
    ended.map_err(|e| milepost::Error::new(milepost::ErrorKind::Unavailable, e.to_string()))
}

fn run_children(run: &Path) -> std::io::Result<()> {
    let child = || -> std::io::Result<Child> {
        Command::new(std::env::current_exe()?).arg(run).stdout(Stdio::piped()).spawn()
    };
    let mut first = child()?;
    for line in BufReader::new(first.stdout.take().expect("piped")).lines() {
        let line = line?;
        println!("{line}");
        if line.starts_with("step 300") {
            println!("-- SIGKILL --");
            first.kill()?;
        }
    }
    first.wait()?;
    let mut second = child()?;
    for line in BufReader::new(second.stdout.take().expect("piped")).lines() {
        println!("{}", line?);
    }
    if second.wait()?.success() {
        return Ok(());
    }
    Err(std::io::Error::other("the resumed training failed"))
}

fn train(run: &Path) -> Result<()> {
    let engine = Engine::shared()?;
    let place = engine.place(&run.to_string_lossy(), &[])?;
    let loss_of = |n| Preservation::Best {
        metric: Metric::Named("loss".to_owned()),
        mode: BestMode::Min,
        n: Some(n),
        missing: MissingMetric::Drop,
    };
    let options = ManagerOptions {
        decision: SaveDecision::Interval(20),
        preservation: Preservation::Any(vec![
            Preservation::Latest(2),
            loss_of(2),
            Preservation::EverySteps(200),
        ]),
        queue: Queue::ReplacePending,
        sweep_at_start: true,
        ..ManagerOptions::default()
    };
    let manager = Manager::open(&engine, &place, options)?;
    manager.on_event(|event| {
        if let Event::Deleted { step } = event {
            println!("         step {step} was deleted");
        }
    });

    let mut model = Model::new();
    let mut next = 0;
    if let Some(latest) = manager.latest_step() {
        model = Model::restore(&manager.restore(Which::Latest)?.checkpoint)?;
        next = latest + 1;
        println!("resumed after step {latest}");
    }
    let started = Instant::now();
    for step in next..=STEPS {
        let loss = model.step(step);
        let mut borrowed = Borrowed::new();
        let state = model.state(&mut borrowed)?;
        let request = SaveRequest::new(step)
            .item("state", Item::Tree(state))
            .metric("loss", loss.into())
            .borrowing(borrowed);
        let outcome = manager.save(request)?;
        if outcome.handle().is_some() {
            println!("step {step:3}  loss {loss:.4}  saving in the background");
        }
    }
    let trained = started.elapsed();
    manager.wait()?;
    report(&manager, trained)
}

fn report(manager: &Manager, trained: Duration) -> Result<()> {
    println!("\nkept, and why:\n{}", manager.plan()?);
    let stats = manager.stats();
    let share = 100.0 * stats.blocked.as_secs_f64() / trained.as_secs_f64();
    println!(
        "{} saves, {:.1} MB; the loop ran {:.2} s and was blocked {:.4} s: {share:.3} % of its time",
        stats.saved,
        stats.bytes as f64 / 1e6,
        trained.as_secs_f64(),
        stats.blocked.as_secs_f64(),
    );
    let latest = manager.restore(Which::LatestGood)?;
    println!("step {:?} verifies", latest.checkpoint.record().step.unwrap_or_default());
    Ok(())
}

/// One parameter array with Adam's two moments.
#[derive(Clone)]
struct Parameter {
    shape: Vec<u64>,
    values: Vec<f32>,
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl Parameter {
    fn new(shape: &[usize], scale: f32, random: &mut Random) -> Self {
        let n = shape.iter().product();
        Self {
            shape: shape.iter().map(|n| *n as u64).collect(),
            values: (0..n).map(|_| random.normal() * scale).collect(),
            mean: vec![0.0; n],
            square: vec![0.0; n],
        }
    }

    fn adam(&mut self, gradient: &[f32], step: u64) {
        let t = step as i32 + 1;
        let (fix1, fix2) = (1.0 - 0.9_f32.powi(t), 1.0 - 0.999_f32.powi(t));
        let moments = self.mean.iter_mut().zip(&mut self.square);
        for ((value, (m, s)), g) in self.values.iter_mut().zip(moments).zip(gradient) {
            *m = 0.9 * *m + 0.1 * g;
            *s = 0.999 * *s + 0.001 * g * g;
            *value -= 3e-3 * (*m / fix1) / ((*s / fix2).sqrt() + 1e-8);
        }
    }

    fn tree<'a>(&'a self, borrowed: &mut Borrowed<'a>) -> Result<Tree<Leaf>> {
        Ok(Tree::dict([
            ("value", Tree::leaf(borrowed.leaf(&self.values, &self.shape)?)),
            ("mean", Tree::leaf(borrowed.leaf(&self.mean, &self.shape)?)),
            ("square", Tree::leaf(borrowed.leaf(&self.square, &self.shape)?)),
        ]))
    }
}

/// Two hidden layers that tell two spirals apart.
struct Model {
    weights: Vec<Parameter>,
    biases: Vec<Parameter>,
    random: Random,
}

impl Model {
    fn new() -> Self {
        let mut random = Random(1);
        let scale = |n: usize| (2.0 / n as f32).sqrt();
        let weights = SIZES.map(|(i, o)| Parameter::new(&[i, o], scale(i), &mut random)).into();
        let biases = SIZES.map(|(_, o)| Parameter::new(&[o], 0.0, &mut random)).into();
        Self { weights, biases, random }
    }

    /// Names everything that training goes on from; nothing is copied here.
    fn state<'a>(&'a self, borrowed: &mut Borrowed<'a>) -> Result<Tree<Leaf>> {
        let mut layers = Vec::new();
        for (weight, bias) in self.weights.iter().zip(&self.biases) {
            let layer = [("weight", weight.tree(borrowed)?), ("bias", bias.tree(borrowed)?)];
            layers.push(Tree::dict(layer));
        }
        let random = Tree::leaf(Leaf::int(self.random.0.cast_signed().into())?);
        Ok(Tree::dict([("layers", Tree::list(layers)), ("random", random)]))
    }

    fn restore(checkpoint: &Checkpoint) -> Result<Self> {
        let mut model = Self::new();
        let index = checkpoint.item_index_blocking("state")?;
        let read = |path: &str| {
            futures::executor::block_on(async { index.leaf(path).await?.read().await })
        };
        for (kind, parameters) in [("weight", &mut model.weights), ("bias", &mut model.biases)] {
            for (i, parameter) in parameters.iter_mut().enumerate() {
                parameter.values = read(&format!("layers/{i}/{kind}/value"))?.to_vec()?;
                parameter.mean = read(&format!("layers/{i}/{kind}/mean"))?.to_vec()?;
                parameter.square = read(&format!("layers/{i}/{kind}/square"))?.to_vec()?;
            }
        }
        model.random.0 = read("random")?.to_vec::<i64>()?[0].cast_unsigned();
        Ok(model)
    }

    /// Learns from one batch; returns its loss.
    fn step(&mut self, step: u64) -> f32 {
        let (inputs, labels) = self.random.spirals();
        let mut layers = vec![inputs];
        for (i, (weight, bias)) in self.weights.iter().zip(&self.biases).enumerate() {
            let mut out = forward(&layers[i], SIZES[i], &weight.values, &bias.values);
            if i + 1 < SIZES.len() {
                for x in &mut out {
                    *x = x.max(0.0);
                }
            }
            layers.push(out);
        }
        let logits = layers.pop().unwrap_or_default();
        let loss = |(z, y): (&f32, &f32)| z.max(0.0) - z * y + (-z.abs()).exp().ln_1p();
        let total: f32 = logits.iter().zip(&labels).map(loss).sum();
        let error = |(z, y): (&f32, &f32)| (1.0 / (1.0 + (-z).exp()) - y) / BATCH as f32;
        let mut gradient: Vec<f32> = logits.iter().zip(&labels).map(error).collect();
        for i in (0..SIZES.len()).rev() {
            let weight = self.weights[i].values.clone();
            let (of_weight, of_bias, of_input) = backward(&layers[i], SIZES[i], &weight, &gradient);
            self.weights[i].adam(&of_weight, step);
            self.biases[i].adam(&of_bias, step);
            gradient = of_input;
            for (g, x) in gradient.iter_mut().zip(&layers[i]) {
                *g = if *x > 0.0 { *g } else { 0.0 };
            }
        }
        total / BATCH as f32
    }
}

fn forward(input: &[f32], (i, o): (usize, usize), weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(BATCH * o);
    for row in input.chunks_exact(i) {
        let mut sums = bias.to_vec();
        for (x, weights) in row.iter().zip(weight.chunks_exact(o)) {
            sums.iter_mut().zip(weights).for_each(|(sum, w)| *sum += x * w);
        }
        out.extend(sums);
    }
    out
}

/// Returns the gradients of weight, bias and input.
fn backward(
    input: &[f32],
    (i, o): (usize, usize),
    weight: &[f32],
    gradient: &[f32],
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (mut of_weight, mut of_bias) = (vec![0.0; i * o], vec![0.0; o]);
    let mut of_input = Vec::with_capacity(BATCH * i);
    for (row, g) in input.chunks_exact(i).zip(gradient.chunks_exact(o)) {
        of_bias.iter_mut().zip(g).for_each(|(sum, g)| *sum += g);
        for ((x, sums), weights) in
            row.iter().zip(of_weight.chunks_exact_mut(o)).zip(weight.chunks_exact(o))
        {
            sums.iter_mut().zip(g).for_each(|(sum, g)| *sum += x * g);
            of_input.push(weights.iter().zip(g).map(|(w, g)| w * g).sum());
        }
    }
    (of_weight, of_bias, of_input)
}

/// A small generator whose whole state is one number, so that it is saved and restored.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 40) as f32 / (1_u64 << 24) as f32
    }

    fn normal(&mut self) -> f32 {
        let (u, v) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
    }

    /// Draws a batch of points on two spirals, and which one each is on.
    fn spirals(&mut self) -> (Vec<f32>, Vec<f32>) {
        let (mut points, mut labels) = (Vec::new(), Vec::new());
        for n in 0..BATCH {
            let t = 0.25 + 2.5 * self.uniform();
            let side = (n % 2) as f32;
            let angle = t * std::f32::consts::PI + side * std::f32::consts::PI;
            let noise = 0.05;
            points.push(t * angle.cos() / 2.0 + self.normal() * noise);
            points.push(t * angle.sin() / 2.0 + self.normal() * noise);
            labels.push(side);
        }
        (points, labels)
    }
}
