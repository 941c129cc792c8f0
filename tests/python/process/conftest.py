"""Processes of their own, with a time limit: what never ends is a failure here, not a hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
#: Far more than any script here needs; a deadlock meets it.
LIMIT = 90.0


class Child:
    """A Python process that runs a script in `folder`; everything it starts is in its process group."""

    def __init__(self, code: str, folder: Path, **environment: str) -> None:
        paths = [str(HERE), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        self._err = folder / f"stderr-{time.monotonic_ns()}"
        with self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-u", "-c", textwrap.dedent(code)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, text=True, cwd=folder,
                start_new_session=True,
                env={
                    **os.environ,
                    "JAX_PLATFORMS": "cpu",
                    "PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in paths),
                    **environment,
                },
            )  # fmt: skip
        self.printed: list[str] = []

    @property
    def err(self) -> str:
        return self._err.read_text()

    def line(self) -> str:
        """The next line that it prints."""
        line = self.process.stdout.readline()
        if not line:
            pytest.fail(f"it ended ({self.process.wait()}) after {self.printed}:\n{self.err[-4000:]}")
        self.printed.append(line.rstrip("\n"))
        return self.printed[-1]

    def until(self, wanted: str) -> None:
        """Reads lines up to one."""
        while self.line() != wanted:
            pass

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self, seconds: float = LIMIT) -> tuple[int, str]:
        """Its exit code and what it printed from here on; a failure where it does not end in time."""
        try:
            out, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.stacks()
            pytest.fail(f"it did not end in {seconds} s after {self.printed}:\n{self.err[-6000:]}")
        return self.process.returncode, out

    def stacks(self) -> None:
        """Writes the stacks of all threads to its stderr and ends it."""
        self.process.send_signal(signal.SIGABRT)
        time.sleep(0.5)

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.stdout.close()
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture
def start(tmp_path):
    """`start(code)` starts a script; it is ended with the test."""
    children: list[Child] = []
    watchdogs = []

    def go(code: str, **environment: str) -> Child:
        import threading

        child = Child(code, tmp_path, **environment)
        children.append(child)
        # A script that prints nothing more would block `line` for ever.
        watchdog = threading.Timer(LIMIT, child.stacks)
        watchdog.daemon = True
        watchdog.start()
        watchdogs.append(watchdog)
        return child

    yield go
    for watchdog in watchdogs:
        watchdog.cancel()
    for child in children:
        child.kill()


@pytest.fixture
def run(start):
    """`run(code)` runs a script to its end and returns what it printed; it has to end well and say nothing else."""

    def go(code: str, code_wanted: int = 0, err: str | None = "", **environment: str) -> str:
        child = start(code, **environment)
        code_found, out = child.end()
        assert code_found == code_wanted, f"exit {code_found}, printed {out!r}\n{child.err[-6000:]}"
        if err is not None:
            assert child.err == err
        return out

    return go
