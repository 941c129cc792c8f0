"""A small Flax NNX training run that can be stopped at any time and goes on where it was.

    python examples/train_nnx.py RUN [--steps 300] [--kill-at 120]

It learns to classify points of two spirals with an MLP and AdamW. Every 20 steps it is saved in the background, with the loss;
the two newest steps and the best one are kept. ``--kill-at`` ends the process without a word, as a preempted machine
does: start it again and it resumes from the newest step that is whole, with the same data order.
"""

import argparse
import os
import signal
import time

import jax
import jax.numpy as jnp
import milepost as mp
import optax
from flax import nnx


class Classifier(nnx.Module):
    """Two hidden layers with dropout."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(2, width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.last = nnx.Linear(width, 2, rngs=rngs)
        self.dropout = nnx.Dropout(0.05, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.gelu(self.first(x))
        x = self.dropout(nnx.gelu(self.second(x)))
        return self.last(x)


def spirals(step: int, count: int = 256) -> tuple[jax.Array, jax.Array]:
    """The batch of a step: the same for every run."""
    key = jax.random.key(step)
    label = jax.random.bernoulli(key, shape=(count,)).astype(jnp.int32)
    angle = jax.random.uniform(jax.random.fold_in(key, 1), (count,), maxval=3 * jnp.pi)
    turn = angle + label * jnp.pi
    noise = 0.05 * jax.random.normal(jax.random.fold_in(key, 2), (count, 2))
    points = jnp.stack([jnp.cos(turn), jnp.sin(turn)], axis=1) * angle[:, None] / 10 + noise
    return points, label


@nnx.jit
def train_step(model: Classifier, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> jax.Array:
    """One step of AdamW; returns the loss."""

    def loss_of(model: Classifier) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


def main() -> None:
    """Trains, or goes on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kill-at", type=int)
    options = parser.parse_args()

    model = Classifier(256, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(3e-3), wrt=nnx.Param)
    preservation = mp.Preservation.any(
        [mp.Preservation.latest(2), mp.Preservation.best("loss", mode="min", n=1)]
    )
    with mp.CheckpointManager(
        options.run, preservation=preservation, save_interval_steps=20, sweep_at_start=True
    ) as manager:
        first = 0
        if (latest := manager.latest_step()) is not None:
            # The state of this fresh model and optimizer is the target: same containers, shapes and shardings.
            nnx.update((model, optimizer), manager.restore(target=nnx.state((model, optimizer))))
            first = latest + 1
            print(f"resumed after step {latest}; there are {manager.steps()}")

        started = time.perf_counter()
        loss = float("nan")
        for step in range(first, options.steps):
            loss = train_step(model, optimizer, *spirals(step))
            if manager.should_save(step):
                manager.save(step, nnx.state((model, optimizer)), metrics={"loss": float(loss)})
            if step == options.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        manager.wait()
        took = time.perf_counter() - started
        blocked = manager.stats()["blocked_seconds"]
        print(f"loss {float(loss):.4f} after {options.steps} steps")
        print(f"blocked {blocked:.4f} s of {took:.2f} s ({blocked / max(took, 1e-9):.2%})")
        print(manager.plan())


if __name__ == "__main__":
    main()
