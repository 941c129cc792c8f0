"""Waiting for the steps that a training run saves, as an evaluator does.

Where several processes of JAX evaluate, all of them wait, the first one looks, and all get the same
step.

Orbax copies a step before it is evaluated, so that nobody deletes it meanwhile; here it is leased,
which costs nothing. A copy is made only where one is asked for by `snapshot_dir`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import milepost as mp

from . import multihost
from ._manager_foreign import ForeignSteps
from ._native_run import NativeRun
from ._run_path import is_local, join, name_of, path_of, url_of
from .path import step as step_names

_LOG = logging.getLogger(__name__)

SNAPSHOTS = "_SNAPSHOTS"
EVALUATION_SECONDS = 24 * 3600.0
"""So long processes that evaluate together wait for each other."""
TELLING_SECONDS = 60.0


def get_snapshot_dir_from_step_dir(step_dir: Any, snapshot_dir: Any | None = None) -> Any:
    """Returns where the copy of a step is that is made with this `snapshot_dir`."""
    url = url_of(step_dir)
    beside = join(url.rpartition("/")[0], SNAPSHOTS)
    return path_of(join(beside if snapshot_dir is None else url_of(snapshot_dir), name_of(url)))


@contextlib.contextmanager
def wait_for_new_checkpoint(
    checkpoint_dir: Any,
    *,
    until_step: int | None = None,
    seconds_to_sleep: float = 1,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
    step_prefix: str | None = None,
    step_format_fixed_length: int | None = None,
    step_name_format: step_names.NameFormat[Any] | None = None,
    snapshot_dir: Any | None = None,
    set_immutable: bool | None = None,
    ignore_snapshot_errors: bool | None = True,
) -> Iterator[int]:
    """Waits for a step, and keeps it from being deleted as long as the context lasts.

    Args:
      checkpoint_dir: the run; it may not be there yet.
      until_step: the newest step counts only from this number on; None: any.
      seconds_to_sleep: between two looks.
      timeout: seconds; None: for ever.
      timeout_fn: asked after the timeout, at each look; True: give up.
      step_prefix: steps are named `<prefix>_<number>`; the run itself knows, if Milepost made it.
      step_format_fixed_length: digits of the number.
      step_name_format: a format instead.
      snapshot_dir: a directory into which the step is copied besides, and removed from in the end.
        Local only.
      set_immutable: True makes the copy's files read-only. The step itself never changes.
      ignore_snapshot_errors: True: where the step cannot be leased (a run that is read-only here),
        it is given without a lease. False: an error.

    Yields:
      The step, -1 after the timeout.
    """
    watch = _Watch(
        url_of(checkpoint_dir),
        _name_format(step_name_format, step_prefix, step_format_fixed_length),
        strict=not ignore_snapshot_errors,
    )
    # JAX ends the others where one is gone, so they may wait long for one that still evaluates.
    session = f"{url_of(checkpoint_dir)}#watch"
    together = multihost.together(session, timeout=EVALUATION_SECONDS) or None
    with contextlib.ExitStack() as stack:
        stack.callback(watch.release)
        found = watch.wait(until_step, seconds_to_sleep, timeout, timeout_fn, together)
        if found != -1 and snapshot_dir is not None:
            copy = _snapshot(watch.found_url, snapshot_dir, set_immutable)
            if together is None:
                stack.enter_context(copy)
            else:
                together.first(lambda: stack.enter_context(copy))
        yield found


def checkpoints_iterator(
    checkpoint_dir: Any,
    *,
    min_interval_secs: float = 0,
    seconds_to_sleep: float = 1,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
    step_prefix: str | None = None,
    step_format_fixed_length: int | None = None,
    step_name_format: step_names.NameFormat[Any] | None = None,
    snapshot_dir: Any | None = None,
    set_immutable: bool | None = None,
    ignore_snapshot_errors: bool | None = True,
) -> Iterator[int]:
    """Yields new steps as they come, always the newest; each is kept from deletion until the next
    is asked for.

    Steps that were passed meanwhile are left out. `min_interval_secs` is the least time between two
    of them, `timeout` the longest wait for the next; after it the iterator ends, unless
    `timeout_fn` says False. The rest is as in `wait_for_new_checkpoint`.
    """
    if snapshot_dir is not None and multihost.is_committer(0):
        _clear(url_of(snapshot_dir))
    above: int | None = None
    while True:
        with wait_for_new_checkpoint(
            checkpoint_dir,
            until_step=None if above is None else above + 1,
            seconds_to_sleep=seconds_to_sleep,
            timeout=timeout,
            timeout_fn=timeout_fn,
            step_prefix=step_prefix,
            step_format_fixed_length=step_format_fixed_length,
            step_name_format=step_name_format,
            snapshot_dir=snapshot_dir,
            set_immutable=set_immutable,
            ignore_snapshot_errors=ignore_snapshot_errors,
        ) as step:
            if step == -1:
                return
            started = time.monotonic()
            above = step
            yield step
        left = started + min_interval_secs - time.monotonic()
        if left > 0:
            time.sleep(left)


class _Watch:
    """Looks for the newest step of a run, and holds the one it found."""

    def __init__(self, url: str, name_format: step_names.NameFormat[Any] | None, strict: bool):
        self._url = url
        self._strict = strict
        self._formats: dict[str, Any] = {}
        self._prefix: str | None = None
        if name_format is not None:
            write, read = step_names.native_formats(name_format)
            others = tuple((f.prefix, f.width) for f in read)
            self._formats = {
                "step_prefix": write.prefix,
                "step_width": write.width,
                "read_formats": others,
            }
            self._prefix = write.prefix
        self._run: NativeRun | None = None
        self._held: mp.Checkpoint | None = None
        self.found_url = ""

    def wait(
        self,
        until_step: int | None,
        seconds_to_sleep: float,
        timeout: float | None,
        timeout_fn: Callable[[], bool] | None,
        together: mp.Together | None,
    ) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        above = None if until_step is None or until_step <= 0 else until_step - 1

        def look(until: float) -> int | None:
            while True:
                step = self._look(above)
                if step is not None:
                    return step
                # As Orbax: what cannot end in time is not begun.
                if deadline is not None and time.monotonic() + seconds_to_sleep > deadline:
                    if timeout_fn is None or timeout_fn():
                        return -1
                if time.monotonic() + seconds_to_sleep > until:
                    return None
                time.sleep(seconds_to_sleep)

        if together is None:
            found = look(math.inf)
            assert found is not None
            return found
        return self._told(look, seconds_to_sleep, together)

    def _told(
        self, look: Callable[[float], int | None], pause: float, together: mp.Together
    ) -> int:
        """Waits for what the first process finds, however long that takes: now and then it says that
        it still looks."""
        while True:
            until = time.monotonic() + TELLING_SECONDS
            found = together.first(lambda: look(until))
            if found is None and together.index == 0:
                time.sleep(pause)
            if found is None:
                continue
            if found != -1:
                # The first one gives it free only once all have it.
                together.gather(lambda: self._hold(found) if together.index > 0 else b"")
            return int(found)

    def _hold(self, step: int) -> bytes:
        """Holds a step that another process has found, and holds; what it returns says nothing."""
        self._run = NativeRun(self._url, read_only=True, **self._formats)
        if not self._run.steps():
            theirs = ForeignSteps(self._url, self._prefix).get(step)
            if theirs is not None:
                self.found_url = theirs.path
                return b""
        try:
            self._held = self._run.open(step, lease=True)
        except (mp.MilepostError, OSError) as error:
            if self._strict:
                raise
            _LOG.warning("a step is read without a lease. run=%s: %s", self._url, error)
            self._held = self._run.open(step)
        self.found_url = self._held.url
        return b""

    def release(self) -> None:
        """Gives the step free."""
        self._held = None
        if self._run is not None:
            self._run.close()
            self._run = None

    def _look(self, above: int | None) -> int | None:
        # A run that is not there yet may come with names of its own: it is opened anew.
        if self._run is None or not self._run.steps():
            self.release()
            self._run = NativeRun(self._url, read_only=True, **self._formats)
        found = self._newest(above)
        if found is None and not self._run.steps():
            return self._foreign(above)
        if found is None:
            return None
        self._held, self.found_url = found, found.url
        return int(found.step)

    def _newest(self, above: int | None) -> mp.Checkpoint | None:
        assert self._run is not None
        try:
            return self._run.wait_for_step(above=above, timeout=0, lease=True)
        except (mp.MilepostError, OSError) as error:
            if self._strict:
                raise
            _LOG.warning("a step is read without a lease. run=%s: %s", self._url, error)
            return self._run.wait_for_step(above=above, timeout=0, lease=False)

    def _foreign(self, above: int | None) -> int | None:
        theirs = ForeignSteps(self._url, self._prefix)
        steps = theirs.steps()
        if not steps or (above is not None and steps[-1] <= above):
            return None
        self.found_url = theirs.get(steps[-1]).path
        return steps[-1]


def _name_format(
    name_format: step_names.NameFormat[Any] | None, prefix: str | None, length: int | None
) -> step_names.NameFormat[Any] | None:
    if name_format is None and (prefix is not None or length is not None):
        return step_names.standard_name_format(step_prefix=prefix, step_format_fixed_length=length)
    return name_format


@contextlib.contextmanager
def _snapshot(step_url: str, snapshot_dir: Any, set_immutable: bool | None) -> Iterator[None]:
    """Copies a leased step for as long as the context lasts."""
    copy = str(get_snapshot_dir_from_step_dir(step_url, snapshot_dir))
    if not is_local(step_url) or not is_local(copy):
        raise mp.Unsupported(
            "a snapshot is a copy on the local file system; leave snapshot_dir out: the step is "
            f"leased. step=`{step_url}`, snapshot_dir=`{snapshot_dir}`"
        )
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(step_url, copy)
    if set_immutable:
        for directory, _, files in os.walk(copy):
            for file in files:
                os.chmod(os.path.join(directory, file), 0o444)
    try:
        yield
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _clear(snapshot_dir: str) -> None:
    """Removes copies that an evaluator left which did not end well."""
    if is_local(snapshot_dir) and os.path.isdir(snapshot_dir):
        for name in os.listdir(snapshot_dir):
            if name[-1:].isdigit():
                shutil.rmtree(os.path.join(snapshot_dir, name), ignore_errors=True)
