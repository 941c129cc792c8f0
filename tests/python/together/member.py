"""What a process of a job needs: who it is, JAX among the others, a sharded state, something to say."""

from __future__ import annotations

import json
import os

# The test's own process is none of a job.
INDEX, COUNT, PORT, SAID = json.loads(os.environ.get("JOB", "[0, 1, 0, null]"))


def say(*words: object) -> None:
    with open(SAID, "a") as said:
        for word in words:
            said.write(json.dumps(word) + "\n")


def start_jax(**options: object) -> None:
    import jax

    jax.distributed.initialize(
        f"127.0.0.1:{PORT}", COUNT, INDEX, initialization_timeout=60, **options
    )


def leave() -> None:
    """Ends without the others: the barrier at JAX's end would wait for those that are gone."""
    os._exit(0)


def mesh(*shape: int, names: tuple[str, ...] = ("data", "model")):
    import jax
    import numpy as np

    return jax.sharding.Mesh(np.array(jax.devices()).reshape(shape), names[: len(shape)])


def spread(values, mesh, *spec):
    """A global array of values that every process knows."""
    import jax
    import numpy as np

    values = np.asarray(values)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def values(generation: int = 0) -> dict:
    """The state as NumPy has it."""
    import ml_dtypes
    import numpy as np

    return {
        "kernel": np.arange(64 * 48, dtype=np.float32).reshape(64, 48) + generation,
        "embedding": (np.arange(96 * 8).reshape(96, 8) % 251 + generation).astype(ml_dtypes.bfloat16),
        "bias": np.arange(48, dtype=np.float32) - generation,
        "moments": [np.arange(64 * 48, dtype=np.int32).reshape(64, 48) * 3 + generation],
        "scale": np.float32(0.5 + generation),
        "empty": np.zeros((0, 4), np.float32),
    }


def state(mesh, generation: int = 0) -> dict:
    """The same, sharded over a mesh of two axes: in rows, in blocks, in columns, whole."""
    given = values(generation)
    return {
        "kernel": spread(given["kernel"], mesh, "data", "model"),
        "embedding": spread(given["embedding"], mesh, "data"),
        "bias": spread(given["bias"], mesh),
        "moments": [spread(given["moments"][0], mesh, None, ("data", "model"))],
        "scale": spread(given["scale"], mesh),
        "empty": spread(given["empty"], mesh),
        "step": generation,
        "name": "job",
        "host": given["bias"] * 2,
    }


def check(restored: dict, generation: int = 0) -> None:
    """Compares every shard that this process has with the values, bit by bit."""
    import jax
    import numpy as np

    given = values(generation)
    pairs = [(restored[name], given[name]) for name in ("kernel", "embedding", "bias", "scale", "empty")]
    pairs.append((restored["moments"][0], given["moments"][0]))
    for array, wanted in pairs:
        if isinstance(array, jax.Array):
            assert array.shape == wanted.shape and array.dtype == wanted.dtype
            for shard in array.addressable_shards:
                assert np.asarray(shard.data).tobytes() == np.ascontiguousarray(wanted[shard.index]).tobytes()
        else:
            assert np.asarray(array).tobytes() == wanted.tobytes()
    assert restored["step"] == generation and restored["name"] == "job"
    assert (np.asarray(restored["host"]) == given["bias"] * 2).all()


def target(mesh, specs: dict) -> dict:
    """What to restore, in a layout of its own: a specification a leaf."""
    import jax

    def struct(value, *spec):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)

    given = values()
    wanted = {name: struct(given[name], *specs.get(name, ())) for name in given if name != "moments"}
    return {
        **wanted,
        "moments": [struct(given["moments"][0], *specs.get("moments", ()))],
        "step": 0,
        "name": "",
        "host": given["bias"],
    }
