"""Fixtures of the interop tests: the engine's driver, its command line, and what makes a run replayable."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

import cases

ROOT = Path(__file__).resolve().parents[2]


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"replay with MILEPOST_SEED={cases.SEED} MILEPOST_CASES={cases.COUNT}")


def binary(variable: str, default: str) -> Path:
    """A program of ours; where the caller names none and it was never built, the test is skipped.

    `tests/run` names both, so that nothing is ever skipped there.
    """
    named = os.environ.get(variable)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    path = (ROOT / named) if named else target / "debug" / default
    if not path.exists():
        if named:
            pytest.fail(f"{variable}={named} does not exist")
        pytest.skip(f"{path} is not built")
    return path


class DriverError(Exception):
    """What the engine answered instead of doing it."""


class Driver:
    """`examples/interop.rs`: a process that saves and reads arrays, one JSON line a request."""

    def __init__(self, program: Path, log: Path):
        self.log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
            )

    def ask(self, **request) -> dict:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self._line()
        answer = json.loads(line)
        if not answer["ok"]:
            raise DriverError(answer["error"])
        return answer

    def _line(self) -> str:
        """One line, or a failure instead of a test that hangs."""
        timer = threading.Timer(120, self.process.kill)
        timer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            code = self.process.wait()
            pytest.fail(f"the driver ended with {code}: {self.log.read_text()[-2000:]}")
        return line

    def write(self, case: cases.Case, folder: Path, portable: bool = False) -> Path:
        """Saves a checkpoint that holds the case as leaf `x`; returns the directory of its array."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        raw = folder.with_name(folder.name + ".raw")
        raw.write_bytes(case.data())
        answer = self.ask(
            op="write",
            path=str(folder),
            key="x",
            dtype=case.dtype,
            shape=case.shape,
            chunk=case.chunk,
            shard=case.shard,
            codec=case.codec,
            transpose=case.transpose,
            data=str(raw),
            portable=portable,
        )
        return Path(answer["array"])

    def read(self, array: Path, out: Path) -> tuple[bytes, dict]:
        """Reads a whole array, of ours or foreign; returns its bytes and the driver's answer."""
        answer = self.ask(op="read", path=str(array), out=str(out))
        return out.read_bytes(), answer

    def close(self) -> None:
        with self.process:  # closes its pipes
            self.process.stdin.close()
            assert self.process.wait(timeout=60) == 0, self.log.read_text()[-2000:]


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """The engine behind a pipe."""
    program = binary("MILEPOST_INTEROP", "examples/interop")
    started = Driver(program, tmp_path_factory.mktemp("driver") / "stderr")
    yield started
    started.close()


@dataclass
class Ran:
    """What a command left."""

    code: int
    out: str
    err: str

    def json(self):
        return json.loads(self.out)


@pytest.fixture(scope="session")
def milepost():
    """Runs the command line: `milepost("verify", run)` fails the test unless the exit code is as expected."""
    program = binary("MILEPOST_BIN", "milepost")

    def run(*args, code: int = 0, cwd=None) -> Ran:
        done = subprocess.run(
            [program, *map(str, args)], capture_output=True, text=True, cwd=cwd, timeout=600
        )
        shown = " ".join(map(str, args))
        assert done.returncode == code, f"milepost {shown}: exit {done.returncode}\n{done.stderr}"
        return Ran(done.returncode, done.stdout, done.stderr)

    return run
