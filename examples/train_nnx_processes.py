"""The training run of `train_nnx.py` in several processes, each with its shards: they save every step together.

    python examples/train_nnx_processes.py RUN [--processes 2] [--steps 300] [--kill-at 120]

The weights and the optimizer's moments are divided over all devices of all processes, batches too. ``--kill-at`` kills the last
process without a word: the job ends, and no half-written step is ever seen. Start it again, with any number of processes:
it resumes from the newest step that is whole.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import milepost as mp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train_nnx import Classifier, spirals, train_step


def launch(options: argparse.Namespace) -> int:
    """Starts the processes, as a cluster's launcher would; where one dies, the job ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = "127.0.0.1:%d" % probe.getsockname()[1]
    processes = [
        subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--member", address, str(index)])
        for index in range(options.processes)
    ]
    while all(process.poll() is None for process in processes):
        time.sleep(0.1)
    failed = [process for process in processes if process.poll() not in (None, 0)]
    for process in processes:
        if failed:
            process.kill()
        process.wait()
    if failed:
        print(f"a process ended with {failed[0].returncode}: the job is over; start it again")
    return 1 if failed else 0


def over(mesh: Mesh, value: jax.Array) -> jax.Array:
    """The array that all processes have, divided over the devices by its first axis where that goes."""
    is_key = jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
    whole = np.asarray(jax.random.key_data(value) if is_key else value)
    divided = not is_key and whole.ndim > 0 and whole.shape[0] % mesh.size == 0
    sharding = NamedSharding(mesh, PartitionSpec("devices") if divided else PartitionSpec())
    spread = jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
    return jax.random.wrap_key_data(spread, impl=jax.random.key_impl(value)) if is_key else spread


def member(options: argparse.Namespace) -> None:
    """Trains as one of the processes."""
    address, index = options.member
    jax.distributed.initialize(address, options.processes, int(index))
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    model = Classifier(256, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(3e-3), wrt=nnx.Param)
    start = nnx.state((model, optimizer))
    nnx.update((model, optimizer), jax.tree.map(lambda value: over(mesh, value), start))

    with mp.CheckpointManager(options.run, max_to_keep=2, save_interval_steps=20, sweep_at_start=True) as manager:
        first = 0
        if (latest := manager.latest_step()) is not None:
            nnx.update((model, optimizer), manager.restore(target=nnx.state((model, optimizer))))
            first = latest + 1
            if jax.process_index() == 0:
                print(f"resumed after step {latest}; there are {manager.steps()}")
        loss = float("nan")
        for step in range(first, options.steps):
            loss = train_step(model, optimizer, *(over(mesh, part) for part in spirals(step)))
            # Every process asks for the same steps, and saves its own shards.
            if manager.should_save(step):
                manager.save(step, nnx.state((model, optimizer)), metrics={"loss": float(loss)})
            if step == options.kill_at and jax.process_index() == jax.process_count() - 1:
                os.kill(os.getpid(), signal.SIGKILL)
        manager.wait()
        if jax.process_index() == 0:
            print(f"loss {float(loss):.4f} after {options.steps} steps in {jax.process_count()} processes")
            print(f"steps {manager.steps()}")


def main() -> int:
    """Launches the job, or is one process of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--member", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.member is None:
        return launch(options)
    member(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
