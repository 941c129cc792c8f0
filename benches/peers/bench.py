"""Milepost beside what people use today: one run, interleaved, medians. See benches/README.md; start it by `./run`.

Each repetition lets every peer save into a directory of its own, restore cold, restore warm and restore one
parameter cold, each in a fresh process; the order turns from repetition to repetition. Nothing is deleted until
the end: on an ext4 without a journal, creating files is several times slower for minutes after a bulk delete.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import state as states
from worker import PEERS, syncfs

HERE = Path(__file__).resolve().parent
OPERATIONS = ("save", "cold", "warm", "one")


def make_cold(folder: Path, everything: bool) -> None:
    """Takes the files below `folder` out of the page cache; `everything`: all files of the machine (root).

    Dropping everything also makes the peers' own libraries cold, and then measures how Python pages them in.
    """
    syncfs(folder)
    if everything:
        Path("/proc/sys/vm/drop_caches").write_text("1")
        return
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def make_warm(folder: Path) -> None:
    """Brings the files below `folder` into the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(8 << 20):
                    pass


def work(peer: str, operation: str, folder: Path, size: str, cache: str) -> dict:
    command = [sys.executable, HERE / "worker.py", peer, operation, folder, size]
    environment = {**os.environ, "MILEPOST_BENCH_CACHE": cache}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{peer} {operation} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(peer: str, folder: Path, size: str, everything: bool) -> dict[str, dict]:
    """All four operations of a Python peer."""
    out = {"save": work(peer, "save", folder, size, "cold")}
    make_cold(folder, everything)
    out["cold"] = work(peer, "restore", folder, size, "cold")
    make_warm(folder)
    out["warm"] = work(peer, "restore", folder, size, "warm")
    make_cold(folder, everything)
    out["one"] = work(peer, "one", folder, size, "cold")
    out["save"]["stored_bytes"] = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return out


def milepost(program: Path, *arguments) -> str:
    """The standard output of one of our programs."""
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"milepost failed:\n{done.stderr[-4000:]}")
    return done.stdout


def milepost_source(program: Path, folder: Path, size: str) -> Path:
    """The state as a checkpoint, from which a save has it."""
    work("safetensors", "save", folder, size, "cold")
    milepost(program, "import", "--standalone", "--split", "/", folder / "state.safetensors", folder / "checkpoint")
    return folder / "checkpoint"


def measure_milepost(program: Path, source: Path, folder: Path, everything: bool) -> dict[str, dict]:
    """The same four of the engine without Python, each in a process of its own too."""
    operation = program.parent / "examples" / "operation"
    saved = folder / "checkpoint"

    def timed(*arguments) -> dict:
        return json.loads(milepost(operation, *arguments))

    folder.mkdir()
    out = {"save": timed("save", source, saved)}
    make_cold(folder, everything)
    out["cold"] = timed("restore", saved)
    make_warm(folder)
    out["warm"] = timed("restore", saved)
    make_cold(folder, everything)
    out["one"] = timed("one", saved, states.ONE)
    return out


def table(results: dict[str, list[dict]], size: str) -> str:
    """Medians, and each as a part of the ceiling's rate."""

    def median(peer, operation, key="seconds"):
        return statistics.median(run[operation][key] for run in results[peer])

    lines = [
        "| | durable save | cold restore | warm restore | one parameter, cold | peak RSS of the save |",
        "|---|---|---|---|---|---|",
    ]
    for peer in results:
        cells = []
        for operation in OPERATIONS:
            seconds = median(peer, operation)
            shown = f"{seconds * 1e3:.0f} ms" if seconds < 0.1 else f"{seconds:.2f} s"
            if "ceiling" in results:
                shown += f" ({median('ceiling', operation) / seconds:.2f})"
            cells.append(shown)
        peak = median(peer, "save", "peak_bytes")
        cells.append(f"{peak / 1e9:.2f} GB")
        lines.append(f"| {peer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state", choices=states.SIZES, default="gpt2")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--peers", help="comma-separated; default: all that are installed")
    parser.add_argument("--dir", type=Path, default=Path("."), help="on the disk to measure")
    parser.add_argument("--milepost", type=Path, help="the release binary; examples/operation is beside it")
    parser.add_argument("--drop-caches", action="store_true", help="cold: the whole machine's cache (root)")
    parser.add_argument("--json", type=Path, help="every single measurement, too")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    peers = options.peers.split(",") if options.peers else list(PEERS)
    if options.milepost and not options.peers:
        peers.insert(0, "milepost")
    unknown = set(peers) - set(PEERS) - {"milepost"}
    if unknown:
        raise SystemExit(f"unknown peers {sorted(unknown)}; there are: milepost, {', '.join(PEERS)}")
    if "milepost" in peers and not options.milepost:
        raise SystemExit("name the release binary: --milepost target/release/milepost")
    need = int(1.1 * states.state_bytes(options.state) * (options.repeat * len(peers) + 2))
    free = shutil.disk_usage(options.dir).free
    if need > free:
        raise SystemExit(f"{need / 1e9:.0f} GB are needed below {options.dir}, {free / 1e9:.0f} GB are free")
    root = Path(tempfile.mkdtemp(prefix="bench-run-peers-", dir=options.dir))
    results: dict[str, list[dict]] = {peer: [] for peer in peers}
    try:
        source = milepost_source(options.milepost, root / "source", options.state) if "milepost" in peers else root
        for repetition in range(options.repeat):
            turn = repetition % len(peers)
            for peer in peers[turn:] + peers[:turn]:
                folder = root / f"{repetition}-{peer}"
                if peer == "milepost":
                    result = measure_milepost(options.milepost, source, folder, options.drop_caches)
                else:
                    result = measure(peer, folder, options.state, options.drop_caches)
                results[peer].append(result)
                shown = ", ".join(f"{o} {result[o]['seconds']:.3f}" for o in OPERATIONS)
                print(f"{repetition + 1}/{options.repeat} {peer}: {shown}", file=sys.stderr)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    total = states.state_bytes(options.state)
    how = "drop_caches" if options.drop_caches else "posix_fadvise(DONTNEED) on its files"
    print(
        f"`{options.state}` state: {total / 1e9:.3f} GB, {len(states.leaves(options.state))} leaves, "
        f"medians of {options.repeat} interleaved runs; {os.cpu_count()} cores; durable save ends with syncfs; "
        f"cold: after {how}; in brackets the part of the ceiling's rate.\n"
    )
    print(table(results, options.state))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
