"""Milepost's Python package beside Orbax: Python against Python, interleaved, medians. See benches/README.md.

    python benches/python/bench.py --dir /data --kind numpy       durable save, cold restore
    python benches/python/bench.py --dir /data --kind jax --blocked
    python benches/python/bench.py --imports

Needs a release build of the package (`pip install ./python`), orbax-checkpoint and jax in this interpreter. Every
operation runs in a fresh process and a fresh directory; nothing is deleted until the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "peers"))
import bench as peers_bench
import state as states

PEERS = ("ceiling", "milepost", "orbax", "orbax-uncompressed")
RUST = "milepost-rust"


def source(root: Path) -> Path:
    """A checkpoint of the state, from which the engine without Python has it."""
    return root / "source" / "state"


def work(peer: str, operation: str, options, folder: Path) -> dict[str, float]:
    """One operation in a process of its own."""
    command = [sys.executable, HERE / "operation.py", peer, operation, options.kind, folder, options.state]
    if peer == RUST:
        folder.mkdir(exist_ok=True)
        state = [source(folder.parent)] if operation == "save" else []
        command = [options.rust, operation, *state, folder / "state"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{peer} {operation} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(peer: str, options, folder: Path) -> dict[str, float]:
    """The operations of one repetition, in seconds."""
    if options.blocked:
        found = work(peer, "blocked", options, folder)
        return {"blocked": found["seconds"], "until saved": found["until_saved"]}
    saved = work(peer, "save", options, folder)["seconds"]
    peers_bench.make_cold(folder, False)
    restored = work(peer, "restore", options, folder)["seconds"]
    return {"durable save": saved, "cold restore": restored}


def shown(results: dict[str, list[dict[str, float]]]) -> str:
    """Medians with their ranges, and how many times Milepost's each is."""
    operations = list(next(iter(results.values()))[0])
    lines = [f"| | {' | '.join(operations)} |", "|---|" + "---|" * len(operations)]
    base = {o: statistics.median(run[o] for run in results["milepost"]) for o in operations}
    for peer, runs in results.items():
        cells = []
        for operation in operations:
            values = sorted(run[operation] for run in runs)
            middle = statistics.median(values)
            unit, scale = ("ms", 1e3) if middle < 0.1 else ("s", 1)
            spread = f"{values[0] * scale:.3g}–{values[-1] * scale:.3g}"
            cells.append(f"{middle * scale:.3g} {unit} ({spread}), {middle / base[operation]:.2f} ×")
        lines.append(f"| {peer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def imports(repeat: int) -> None:
    """Seconds of `import milepost` beyond `import numpy`, in fresh processes, everything in the page cache."""

    def seconds(code: str) -> float:
        timed = f"import time; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
        return float(subprocess.check_output([sys.executable, "-c", timed], text=True))

    codes = {"numpy": "import numpy", "milepost": "import numpy, milepost"}
    found: dict[str, list[float]] = {name: [] for name in codes}
    for name in codes:
        seconds(codes[name])
    for _ in range(repeat):
        for name, code in codes.items():
            found[name].append(seconds(code))
    numpy, both = (statistics.median(found[name]) for name in codes)
    loaded = "import numpy, milepost, sys; print(*[m for m in ('jax', 'orbax', 'flax', 'tqdm', 'zarr') if m in sys.modules])"
    print(f"import numpy {numpy * 1e3:.1f} ms; with milepost {(both - numpy) * 1e3:.1f} ms more (medians of {repeat})")
    print("imported along:", subprocess.check_output([sys.executable, "-c", loaded], text=True).strip() or "none of them")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=("numpy", "jax"), default="numpy")
    parser.add_argument("--blocked", action="store_true", help="how long an asynchronous save keeps its caller")
    parser.add_argument("--imports", action="store_true", help="only the time of the import")
    parser.add_argument("--state", choices=states.SIZES, default="gpt2")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--dir", type=Path, default=Path("."), help="on the disk to measure")
    parser.add_argument("--rust", type=Path, help="target/release/examples/operation, to have Rust beside Python")
    parser.add_argument("--json", type=Path, help="every single measurement, too")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.imports:
        return imports(max(options.repeat, 15))
    peers = [peer for peer in PEERS if not (options.blocked and peer == "ceiling")]
    if options.rust and not options.blocked:
        peers.insert(1, RUST)
    need = int(1.1 * states.state_bytes(options.state) * (options.repeat * len(peers) + 1))
    free = shutil.disk_usage(options.dir).free
    if need > free:
        raise SystemExit(f"{need / 1e9:.0f} GB are needed below {options.dir}, {free / 1e9:.0f} GB are free")
    root = Path(tempfile.mkdtemp(prefix="bench-run-python-", dir=options.dir))
    results: dict[str, list[dict[str, float]]] = {peer: [] for peer in peers}
    try:
        if RUST in peers:
            work("milepost", "save", options, source(root).parent)
        for repetition in range(options.repeat):
            # Shuffled: nobody always comes after the same one.
            for peer in random.Random(repetition).sample(peers, len(peers)):
                result = measure(peer, options, root / f"{repetition}-{peer}")
                results[peer].append(result)
                text = ", ".join(f"{name} {seconds:.4f}" for name, seconds in result.items())
                print(f"{repetition + 1}/{options.repeat} {peer}: {text}", file=sys.stderr)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    total = states.state_bytes(options.state)
    print(
        f"`{options.state}` state of {options.kind} arrays: {total / 1e9:.3f} GB, {len(states.leaves(options.state))} "
        f"leaves, medians (ranges) of {options.repeat} interleaved runs, {os.cpu_count()} cores; a durable save ends "
        f"with syncfs; cold: its files dropped by syncfs and posix_fadvise(DONTNEED), libraries warm.\n"
    )
    print(shown(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
