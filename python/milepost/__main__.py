"""`python -m milepost convert SRC RUN`: brings an Orbax, Flax or safetensors run over."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0 done, 1 an error that is printed."""
    parser = argparse.ArgumentParser(prog="python -m milepost", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _convert_arguments(commands.add_parser("convert", help="bring a run over to Milepost"))
    given = parser.parse_args(arguments)
    from ._errors import MilepostError

    try:
        return _convert(given)
    except (MilepostError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", help="a run, or one checkpoint; it is only read")
    parser.add_argument("run", help="the Milepost run; it is created")
    parser.add_argument(
        "--steps", type=_numbers, help="only these: 100,200,300-305", metavar="LIST"
    )
    parser.add_argument("--prefix", help="only names that are PREFIX and a number")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace steps that RUN has already"
    )
    parser.add_argument(
        "--compression", default=None, help="none, zstd, zstd:LEVEL, gzip:LEVEL, blosc:…"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be brought over, write nothing"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document a step on stdout")
    parser.add_argument("--quiet", action="store_true", help="no line a step")


def _numbers(text: str) -> list[tuple[int, int]]:
    """`1,5-9` as ranges, both ends included."""
    ranges = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        try:
            ranges.append((int(first), int(last or first)))
        except ValueError:
            raise argparse.ArgumentTypeError(f"not a step or a range of steps: `{part}`") from None
    return ranges


def _convert(given: argparse.Namespace) -> int:
    from . import _foreign

    steps = _chosen(given) if given.steps is not None else None
    if given.dry_run:
        return _dry_run(given, steps)
    storage = {} if given.compression is None else {"compression": given.compression}

    def tell(progress: Any) -> None:
        if given.json:
            saved = progress.saved
            print(
                json.dumps(
                    {
                        "step": progress.step,
                        "source": progress.source.path,
                        "kind": progress.source.kind,
                        "url": None if saved is None else saved.url,
                        "data_bytes": None if saved is None else saved.data_bytes,
                    }
                ),
                flush=True,
            )
        elif not given.quiet:
            print(progress, file=sys.stderr, flush=True)

    _foreign.convert(
        given.src,
        given.run,
        steps=steps,
        prefix=given.prefix,
        overwrite=given.overwrite,
        progress=tell,
        **storage,
    )
    return 0


def _chosen(given: argparse.Namespace) -> list[int | float]:
    """The steps that the ranges name; a single one must be there, a range takes what there is."""
    from . import _foreign

    have = [step.step for step in _foreign.steps(given.src, prefix=given.prefix)]
    chosen: list[int | float] = []
    for first, last in given.steps:
        inside = [first] if first == last else [step for step in have if first <= step <= last]
        chosen.extend(step for step in inside if step not in chosen)
    return chosen


def _dry_run(given: argparse.Namespace, steps: list[int | float] | None) -> int:
    from . import _foreign

    for step in _foreign.steps(given.src, prefix=given.prefix):
        if steps is not None and step.step not in steps:
            continue
        items = {name or "state": item.kind for name, item in step.checkpoint().items.items()}
        if given.json:
            print(json.dumps({"step": step.step, "source": step.path, "items": items}))
        else:
            listed = ", ".join(f"{name} ({kind})" for name, kind in items.items())
            print(f"step {step.step}: {step.kind}, {listed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
