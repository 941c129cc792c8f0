"""The state that is saved: GPT-2 small with Adam's two moments and a step counter, in float32.

445 leaves, 1.49 GB: 148 parameters, `mu` and `nu` of the same shapes, `count`. `smoke` has the same tree with a
fraction of the width. Values look like weights (normal, σ 0.02), so compressors meet what they would in life;
each leaf has its own generator, so that any one can be checked without making the others.
"""

from __future__ import annotations

import numpy as np

SIZES = {"gpt2": {"width": 768, "vocabulary": 50_257}, "smoke": {"width": 96, "vocabulary": 5_003}}
LAYERS, POSITIONS = 12, 1_024
#: The parameter that is restored alone: 9.4 MB at full size.
ONE = "params/h_0/mlp/c_fc/kernel"


def parameters(size: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters."""
    d, vocabulary = SIZES[size]["width"], SIZES[size]["vocabulary"]
    out = {"wte/embedding": (vocabulary, d), "wpe/embedding": (POSITIONS, d)}
    for layer in range(LAYERS):
        h = f"h_{layer}"
        for norm in ("ln_1", "ln_2"):
            out |= {f"{h}/{norm}/scale": (d,), f"{h}/{norm}/bias": (d,)}
        for name, n, m in (
            ("attn/c_attn", d, 3 * d),
            ("attn/c_proj", d, d),
            ("mlp/c_fc", d, 4 * d),
            ("mlp/c_proj", 4 * d, d),
        ):
            out |= {f"{h}/{name}/kernel": (n, m), f"{h}/{name}/bias": (m,)}
    return out | {"ln_f/scale": (d,), "ln_f/bias": (d,)}


def leaves(size: str) -> dict[str, tuple[int, ...]]:
    """Key path and shape of every leaf, in tree order."""
    shapes = parameters(size)
    groups = ("params", "opt_state/mu", "opt_state/nu")
    return {f"{g}/{name}": s for g in groups for name, s in shapes.items()} | {"opt_state/count": ()}


def value(size: str, path: str) -> np.ndarray:
    """The value of one leaf."""
    names = leaves(size)
    if path == "opt_state/count":
        return np.array(1_200, dtype=np.int32)
    rng = np.random.default_rng([1, list(names).index(path)])
    array = rng.standard_normal(names[path], dtype=np.float32)
    array *= 0.02
    return array


def state(size: str) -> dict[str, np.ndarray]:
    """The whole state, flat."""
    return {path: value(size, path) for path in leaves(size)}


def state_bytes(size: str) -> int:
    """The size of the state's values in bytes."""
    return sum(4 * int(np.prod(shape, dtype=np.int64)) for shape in leaves(size).values())


def nest(flat: dict[str, np.ndarray]) -> dict:
    """The state as nested dicts, as a training loop holds it."""
    out: dict = {}
    for path, array in flat.items():
        *folders, name = path.split("/")
        node = out
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = array
    return out


def flatten(tree: dict, prefix: str = "") -> dict[str, np.ndarray]:
    """The inverse of [`nest`]."""
    out = {}
    for name, node in tree.items():
        path = f"{prefix}{name}"
        out |= flatten(node, path + "/") if isinstance(node, dict) else {path: node}
    return out
