"""Jobs of several real processes: each runs the same script, as a launcher would start it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
#: Far more than any job here needs; a deadlock meets it.
LIMIT = 120.0


class Job:
    """The processes of one job. What a script passes to `say` is what a test sees."""

    def __init__(self, folder: Path, script: str, processes: int, devices: int, **environment: str) -> None:
        self.folder, self.members = folder, []
        port = _free_port()
        paths = [str(HERE), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        for index in range(processes):
            said = folder / f"said-{time.monotonic_ns()}-{index}"
            with Path(f"{said}.err").open("w") as err:
                process = subprocess.Popen(
                    [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(script)],
                    stdin=subprocess.DEVNULL, stdout=err, stderr=err, cwd=folder,
                    env={
                        **os.environ,
                        "JAX_PLATFORMS": "cpu",
                        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                        "PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in paths),
                        "JOB": json.dumps([index, processes, port, str(said)]),
                        **environment,
                    },
                )  # fmt: skip
            self.members.append((process, said))

    def kill(self, index: int, number: int = signal.SIGKILL) -> None:
        self.members[index][0].send_signal(number)

    def said(self, index: int) -> list:
        """What a process has said so far."""
        said = self.members[index][1]
        return [json.loads(line) for line in said.read_text().splitlines()] if said.exists() else []

    def wait_for(self, index: int, word: object) -> None:
        """Waits until a process has said something."""
        end = time.monotonic() + LIMIT
        while word not in self.said(index):
            process = self.members[index][0]
            if time.monotonic() > end or process.poll() is not None:
                pytest.fail(f"process {index} never said {word!r}: {self.said(index)}\n{self.err(index)}")
            time.sleep(0.01)

    def err(self, index: int) -> str:
        return Path(f"{self.members[index][1]}.err").read_text()[-6000:]

    def end(self, killed: tuple[int, ...] = ()) -> list[list]:
        """Waits for all; all but those that were killed must have ended well. What each has said."""
        end = time.monotonic() + LIMIT
        for index, (process, _) in enumerate(self.members):
            try:
                code = process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                pytest.fail(f"process {index} hangs: {self.said(index)}\n{self.err(index)}")
            if index not in killed and code != 0:
                pytest.fail(f"process {index} ended with {code}: {self.said(index)}\n{self.err(index)}")
        return [self.said(index) for index in range(len(self.members))]

    def stop(self) -> None:
        for process, _ in self.members:
            if process.poll() is None:
                process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def job(tmp_path):
    """Starts jobs in the test's folder; none outlives the test."""
    jobs: list[Job] = []

    def start(script: str, processes: int, devices: int = 1, **environment: str) -> Job:
        jobs.append(Job(tmp_path, script, processes, devices, **environment))
        return jobs[-1]

    yield start
    for one in jobs:
        one.stop()
