//! A real training, small: a perceptron of three layers learns a wavy surface with `AdamW`, in plain Rust.
//!
//! Deterministic: the batches come from a threefry key that is part of the state, so a training that is resumed
//! goes on as if it had never stopped.

/// Inputs and outputs of each dense layer.
pub(super) const LAYERS: [(usize, usize); 3] = [(2, 64), (64, 64), (64, 1)];
const BATCH: usize = 64;
pub(super) const LEARNING_RATE: f32 = 3e-3;
pub(super) const BETA_1: f32 = 0.9;
pub(super) const BETA_2: f32 = 0.999;
pub(super) const WEIGHT_DECAY: f32 = 1e-4;
const EPSILON: f32 = 1e-8;

/// A dense layer: the kernel is inputs × outputs, in C order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Dense {
    pub(super) kernel: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

/// What a checkpoint has to hold so that the training can go on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    pub(super) params: Vec<Dense>,
    pub(super) mu: Vec<Dense>,
    pub(super) nu: Vec<Dense>,
    pub(super) step: u64,
    pub(super) key: [u32; 2],
}

impl State {
    /// Starts a training.
    pub(super) fn new(seed: u32) -> Self {
        let mut numbers = Numbers::new([0, seed]);
        let zeros = |(rows, columns): (usize, usize)| Dense {
            kernel: vec![0.0; rows * columns],
            bias: vec![0.0; columns],
        };
        let mut params: Vec<_> = LAYERS.into_iter().map(zeros).collect();
        for (layer, (rows, columns)) in params.iter_mut().zip(LAYERS) {
            let limit = (6.0 / small(rows + columns)).sqrt();
            layer.kernel.fill_with(|| limit * numbers.next());
        }
        let zero: Vec<_> = LAYERS.into_iter().map(zeros).collect();
        Self { params, mu: zero.clone(), nu: zero, step: 0, key: threefry([0, seed], [1, 0]) }
    }

    /// Takes one step of `AdamW` on a fresh batch and returns the loss before it.
    #[expect(clippy::cast_precision_loss, reason = "the bias correction is 1 long before 2^24")]
    pub(super) fn train(&mut self) -> f32 {
        let mut numbers = Numbers::new(threefry(self.key, [0, 0]));
        self.key = threefry(self.key, [0, 1]);
        self.step += 1;
        let inputs: Vec<f32> = std::iter::repeat_with(|| numbers.next()).take(BATCH * 2).collect();
        let targets =
            inputs.as_chunks::<2>().0.iter().map(|[x, y]| (3.0 * x).sin() * (2.0 * y).cos());
        let (loss, gradients) = self.gradients(inputs.clone(), &targets.collect::<Vec<_>>());
        let corrected = |beta: f32| 1.0 - beta.powf(self.step as f32);
        let (first, second) = (corrected(BETA_1), corrected(BETA_2));
        for (layer, gradient) in gradients.iter().enumerate() {
            let (p, m, n) = (&mut self.params[layer], &mut self.mu[layer], &mut self.nu[layer]);
            let decay = WEIGHT_DECAY; // kernels only, as is usual
            adam(
                &mut p.kernel,
                &mut m.kernel,
                &mut n.kernel,
                &gradient.kernel,
                (first, second, decay),
            );
            adam(&mut p.bias, &mut m.bias, &mut n.bias, &gradient.bias, (first, second, 0.0));
        }
        loss
    }

    /// Returns the mean squared error and its gradients.
    fn gradients(&self, inputs: Vec<f32>, targets: &[f32]) -> (f32, Vec<Dense>) {
        let mut activations = vec![inputs];
        for (number, (layer, (rows, columns))) in self.params.iter().zip(LAYERS).enumerate() {
            let mut next = layer.forward(&activations[number], rows, columns);
            if number + 1 < LAYERS.len() {
                next = next.into_iter().map(f32::tanh).collect();
            }
            activations.push(next);
        }
        let outputs = &activations[LAYERS.len()];
        let errors: Vec<f32> = outputs.iter().zip(targets).map(|(y, t)| y - t).collect();
        let loss = errors.iter().map(|e| e * e).sum::<f32>() / small(BATCH);
        let mut delta: Vec<f32> = errors.iter().map(|e| 2.0 * e / small(BATCH)).collect();
        let mut gradients = Vec::new();
        for (number, (rows, columns)) in LAYERS.into_iter().enumerate().rev() {
            let (gradient, mut before) =
                self.params[number].backward(&activations[number], &delta, rows, columns);
            // The derivative of tanh; the inputs at the end have none to pass on.
            before.iter_mut().zip(&activations[number]).for_each(|(d, a)| *d *= 1.0 - a * a);
            delta = before;
            gradients.insert(0, gradient);
        }
        (loss, gradients)
    }
}

impl Dense {
    fn forward(&self, inputs: &[f32], rows: usize, columns: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(BATCH * columns);
        for input in inputs.chunks_exact(rows) {
            let mut sums = self.bias.clone();
            for (x, weights) in input.iter().zip(self.kernel.chunks_exact(columns)) {
                sums.iter_mut().zip(weights).for_each(|(sum, w)| *sum += x * w);
            }
            out.extend(sums);
        }
        out
    }

    /// Returns the gradient of the layer and that of its inputs.
    fn backward(
        &self,
        inputs: &[f32],
        delta: &[f32],
        rows: usize,
        columns: usize,
    ) -> (Self, Vec<f32>) {
        let mut gradient = Self { kernel: vec![0.0; rows * columns], bias: vec![0.0; columns] };
        let mut before = Vec::with_capacity(inputs.len());
        for (input, delta) in inputs.chunks_exact(rows).zip(delta.chunks_exact(columns)) {
            gradient.bias.iter_mut().zip(delta).for_each(|(b, d)| *b += d);
            let kernels = gradient.kernel.chunks_exact_mut(columns);
            for ((x, sums), weights) in
                input.iter().zip(kernels).zip(self.kernel.chunks_exact(columns))
            {
                sums.iter_mut().zip(delta).for_each(|(sum, d)| *sum += x * d);
                before.push(weights.iter().zip(delta).map(|(w, d)| w * d).sum());
            }
        }
        (gradient, before)
    }
}

fn adam(
    params: &mut [f32],
    mu: &mut [f32],
    nu: &mut [f32],
    gradient: &[f32],
    (first, second, decay): (f32, f32, f32),
) {
    for (((p, m), n), g) in params.iter_mut().zip(mu).zip(nu).zip(gradient) {
        *m = BETA_1 * *m + (1.0 - BETA_1) * g;
        *n = BETA_2 * *n + (1.0 - BETA_2) * g * g;
        *p -= LEARNING_RATE * (*m / first / ((*n / second).sqrt() + EPSILON) + decay * *p);
    }
}

/// Uniform numbers from -1 to 1 out of a key.
struct Numbers {
    key: [u32; 2],
    count: u32,
}

impl Numbers {
    fn new(key: [u32; 2]) -> Self {
        Self { key, count: 0 }
    }

    #[expect(clippy::cast_precision_loss, reason = "24 bits are exact")]
    fn next(&mut self) -> f32 {
        self.count += 1;
        let [bits, _] = threefry(self.key, [1, self.count]);
        (bits >> 8) as f32 / 8_388_608.0 - 1.0
    }
}

/// Threefry-2x32 with 20 rounds, the generator behind JAX's keys.
fn threefry(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
    let keys = [key[0], key[1], key[0] ^ key[1] ^ 0x1BD1_1BDA];
    let mut a = counter[0].wrapping_add(keys[0]);
    let mut b = counter[1].wrapping_add(keys[1]);
    for (round, number) in (0..5_usize).zip(1_u32..) {
        for rotation in ROTATIONS[round % 2] {
            a = a.wrapping_add(b);
            b = b.rotate_left(rotation) ^ a;
        }
        a = a.wrapping_add(keys[(round + 1) % 3]);
        b = b.wrapping_add(keys[(round + 2) % 3]).wrapping_add(number);
    }
    [a, b]
}

#[expect(clippy::cast_precision_loss, reason = "counts below 2^24 are exact")]
fn small(n: usize) -> f32 {
    n as f32
}
