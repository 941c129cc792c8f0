//! The train state as a tree of leaves, and back.

use super::train::{self, Dense, LAYERS, State};
use milepost::{Checkpoint, Error, ErrorKind, Item, Leaf, Result, Tree};
use serde_json::json;

/// Lays the state out as a training framework would: parameters, optimizer state, counters, key.
pub(super) fn tree(state: &State) -> Result<Item> {
    let step = i128::from(state.step);
    let opt_state = Tree::named_tuple(
        "ScaleByAdamState",
        [
            ("count", Tree::leaf(Leaf::int(step)?)),
            ("mu", layers(&state.mu)?),
            ("nu", layers(&state.nu)?),
        ],
    );
    let kernel = &state.params[1].kernel;
    let short: Vec<_> = kernel.iter().map(|x| half::bf16::from_f32(*x)).collect();
    let serving = Tree::leaf(Leaf::from_vec(short, &[LAYERS[1].0 as u64, LAYERS[1].1 as u64])?);
    Ok(Item::Tree(Tree::dict([
        ("params", layers(&state.params)?),
        ("opt_state", opt_state),
        ("step", Tree::leaf(Leaf::int(step)?)),
        ("rng", Tree::leaf(Leaf::from_vec(state.key.to_vec(), &[2])?.prng_key("threefry2x32"))),
        ("serving", Tree::dict([("dense_1", Tree::dict([("kernel", serving)]))])),
    ])))
}

fn layers(layers: &[Dense]) -> Result<Tree<Leaf>> {
    let named = layers.iter().zip(LAYERS).enumerate().map(|(number, (layer, (rows, columns)))| {
        let kernel = Leaf::from_vec(layer.kernel.clone(), &[rows as u64, columns as u64])?;
        let bias = Leaf::from_vec(layer.bias.clone(), &[columns as u64])?;
        let dense = Tree::dict([("kernel", Tree::leaf(kernel)), ("bias", Tree::leaf(bias))]);
        Ok((format!("dense_{number}"), dense))
    });
    Ok(Tree::dict(named.collect::<Result<Vec<_>>>()?))
}

/// Says how the state came about.
pub(super) fn config() -> Item {
    Item::Json(json!({
        "model": {"kind": "mlp", "layers": LAYERS, "activation": "tanh"},
        "optimizer": {"kind": "adamw", "learning_rate": train::LEARNING_RATE, "b1": train::BETA_1,
            "b2": train::BETA_2, "weight_decay": train::WEIGHT_DECAY},
        "task": "sin(3x) cos(2y)",
        "seed": 0,
    }))
}

/// Reads the state back, leaf by leaf.
pub(super) fn restore(checkpoint: &Checkpoint) -> Result<State> {
    let other = || Error::new(ErrorKind::Invalid, "the state has other shapes than the demo's");
    let leaf = |path: &str| checkpoint.leaf_blocking("state", path);
    let dense = |root: &str| -> Result<Vec<Dense>> {
        let one = |number: usize| {
            let floats = |name: &str| {
                leaf(&format!("{root}/dense_{number}/{name}"))?.read_blocking()?.to_vec::<f32>()
            };
            let dense = Dense { kernel: floats("kernel")?, bias: floats("bias")? };
            let (rows, columns) = LAYERS[number];
            let fits = dense.kernel.len() == rows * columns && dense.bias.len() == columns;
            fits.then_some(dense).ok_or_else(other)
        };
        (0..LAYERS.len()).map(one).collect()
    };
    let key = leaf("rng")?.read_blocking()?.to_vec::<u32>()?;
    let step = leaf("step")?.read_blocking()?.to_vec::<i64>()?;
    Ok(State {
        params: dense("params")?,
        mu: dense("opt_state/mu")?,
        nu: dense("opt_state/nu")?,
        step: step.first().copied().unwrap_or_default().unsigned_abs(),
        key: <[u32; 2]>::try_from(key).map_err(|_| other())?,
    })
}
