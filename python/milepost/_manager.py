"""The manager of a run: saves at the right steps, keeps the right ones, finds them again."""

from __future__ import annotations

import atexit
import contextlib
import functools
import math
import os
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Unpack

from . import _milepost
from ._checkpoint import Checkpoint, foreign_options
from ._classic import Classic, Seconds, decision_of, seconds
from ._errors import Conflict, Forked, Invalid, MilepostError, NotFound, SaveTimeout
from ._items import payload
from ._place import Engine, Url, local_path, place
from ._policy import Decision, Metric, Plan, Preservation, SaveDecision
from ._restore import LoadOptions
from ._save import (
    SaveHandle,
    Skipped,
    StorageOptions,
    capture_of,
    captured,
    save_options,
    wait_if_ended,
)
from ._together import Together, before_jax_ends, declining, resolve
from ._waiting import Waiting


class StepEntry(NamedTuple):
    """One step of a run; of a damaged one the error says what is wrong."""

    step: int
    url: str
    damaged: bool
    error: str | None
    committed_ms: int
    metrics: dict[str, float]
    metadata: dict[str, Any]


class Pin(NamedTuple):
    """A step that is never deleted."""

    step: int
    note: str
    since_ms: int


class CheckpointManager:
    """Saves, finds and keeps the steps of a run.

    Args:
      run: a path or URL; the first save creates it.
      max_to_keep, keep_period, keep_time_interval: the latest so many steps, the multiples of a number, one each so many
        seconds; what any of them names is kept, and the newest always.
        Without ``max_to_keep`` every step is kept.
      best, best_mode, keep_without_metrics: ``max_to_keep`` counts the best by a metric (a name or a function of the
        metrics; the mode is ``"max"``, the default, or ``"min"``) instead of the latest; steps without the metric are
        kept (default), or not.
      save_interval_steps, save_on_steps: which steps are saved, by default every one; the first and a preempted one are,
        too.
      decision, preservation: policies instead of these, not beside them.
      read_only: nothing is ever written, but for a lease that is asked for.
      queue: what happens to a save that is due while another is in flight: ``"wait"``, ``"skip"``, ``"replace_pending"``.
      timeout: seconds after which a save fails; retries: how often it is tried again where the store does not answer or is
        full; backup: another run that takes it at last.
      trash: a directory that deleted steps are moved to; sweep_at_start: leftovers of dead writers are removed.
      step_prefix, step_width, read_formats: the names of the steps of a new run, and further ones (prefix, width) that are
        read. A run that is there keeps its names: others are refused, or only read by a read-only manager.
      metadata: what is said of a new run; log: a file of JSON lines, one an event.
      together: the processes that save the steps together, as in `milepost.save`; all of them open a manager and make the
        same calls of `save`. Process 0 deletes, and founds the run before the others open it; ``timeout`` is how long they
        wait for each other.
      Further keywords as in `milepost.save`: compression, chunk_bytes, …
    """

    def __init__(
        self,
        run: Url,
        *,
        max_to_keep: int | None = None,
        keep_period: int | None = None,
        keep_time_interval: Seconds | None = None,
        best: Metric | None = None,
        best_mode: str | None = None,
        keep_without_metrics: bool | None = None,
        save_interval_steps: int | None = None,
        save_on_steps: Iterable[int] | None = None,
        decision: SaveDecision | Callable | None = None,
        preservation: Preservation | Callable | None = None,
        read_only: bool = False,
        queue: str = "wait",
        max_in_flight: int = 1,
        timeout: Seconds | None = None,
        retries: int = 0,
        backup: Url | None = None,
        trash: str | None = None,
        sweep_at_start: bool = False,
        step_prefix: str | None = None,
        step_width: int | None = None,
        read_formats: Sequence[tuple[str, int]] = (),
        metadata: Mapping[str, Any] | None = None,
        log: str | os.PathLike | None = None,
        together: Together | bool | None = None,
        engine: Engine | None = None,
        overwrite: bool = False,
        **storage: Unpack[StorageOptions],
    ) -> None:
        classic = Classic(
            max_to_keep, keep_period, keep_time_interval, best, best_mode, keep_without_metrics
        )
        preservation = classic.preservation() if preservation is None else classic.beside(preservation)
        named = step_prefix is not None or step_width is not None
        self._path = local_path(run)
        self._preservation = preservation
        self._together = None if read_only else resolve(together, run)
        make = functools.partial(
            _milepost.Manager,
            place(run, engine),
            save_options(storage),
            decision=decision_of(decision, save_interval_steps, save_on_steps, self._together)._inner,
            preservation=preservation._inner,
            queue=queue,
            max_in_flight=max_in_flight,
            timeout=seconds(timeout),
            retries=retries,
            backup=None if backup is None else place(backup, engine),
            trash=trash,
            sweep_at_start=sweep_at_start,
            read_only=read_only,
            write_format=(step_prefix or "", step_width or 0) if named else None,
            read_formats=[(prefix, int(width)) for prefix, width in read_formats],
            metadata=None if metadata is None else dict(metadata),
            log=None if log is None else os.fspath(log),
            together=None if self._together is None else self._together._inner,
        )
        self._inner = _opened(make, self._together if named or metadata is not None else None)
        if not read_only:
            self._check_names(run, step_prefix, step_width)
        self._read_only, self._overwrite = read_only, overwrite
        self._storage, self._closed = storage, False
        self._deleted: set[int] = set()  # by process 0, though this one may still list them
        self._foreign: list[Any] | None = None
        self._waiting: Waiting | None = None
        self._knew = True
        _managers.add(self)

    def save(
        self,
        step: int,
        tree: Any = ...,
        *,
        items: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        metadata: Mapping[str, Any] | None = None,
        item_metadata: Mapping[str, Any] | None = None,
        force: bool = False,
        overwrite: bool | None = None,
        priority: str = "background",
        queue: str | None = None,
        capture: str = "auto",
        handover: bool = False,
        **storage: Unpack[StorageOptions],
    ) -> SaveHandle | Skipped:
        """Saves a step in the background where the policy says so; returns when the state is captured.

        ``force`` skips the policy; ``overwrite`` replaces a step that is there, safely. The other arguments are as in
        `milepost.save`. A failure of an earlier save that nobody asked for is raised here, once.

        Raises: `StepAlreadyExists`, `ForeignFormat` where the run holds another library's steps and none of ours.
        """
        step = step_number(step)
        self._knew = self._is_signalled()
        overwrite = self._overwrite if overwrite is None else overwrite
        if not force and not overwrite:
            reason = self._inner.skip(step)
            if reason is not None:
                return Skipped(step, reason)
            force = True  # the policy was asked
        with declining(self._together):
            self._refuse_foreign()
            capturing = capture_of(capture, handover, self._together is not None)
            given = payload(
                tree,
                items,
                metadata=metadata,
                item_metadata=item_metadata,
                metrics=metrics,
                capture=capturing,
            )
            options = save_options({**self._storage, **storage}) if storage else None
        handle, reason = self._inner.save(
            step,
            given,
            options=options,
            force=force,
            overwrite=overwrite,
            priority=priority,
            queue=queue,
        )
        if handle is None:
            return Skipped(step, reason)
        self._deleted.discard(step)
        handle = SaveHandle(handle)
        handle._told = True  # the manager tells a failure that nobody asked for, once
        wait_if_ended(captured(handle, capturing))
        return handle

    async def save_async(self, step: int, tree: Any = ..., **options: Any) -> Any:
        """Saves a step and waits for it without blocking the event loop: `Saved`, or `Skipped`."""
        handle = self.save(step, tree, **options)
        return await handle if isinstance(handle, SaveHandle) else handle

    def open(self, step: int | str | None = "latest", *, lease: bool = False) -> Checkpoint:
        """Opens a step, after the saves in flight: a number, ``"latest"``, ``"latest_good"`` (every byte of it verifies)
        or ``"best"``. Newer steps that were passed over because they are damaged are told by a warning.

        With ``lease`` nobody deletes it, this manager neither, until the checkpoint is closed or dropped; that writes a
        small mark. Default: none, as who opens a step here is as a rule who deletes; a deleted one raises when it is read.
        """
        which = "latest" if step is None else step if isinstance(step, str) else step_number(step)
        checkpoint, bad = self._inner.open(which)
        for number, why in bad:
            warnings.warn(f"step {number} was passed over: {why}", stacklevel=2)
        opened = Checkpoint(checkpoint)
        if lease:
            opened._lease = self._inner.lease(opened.step)
        return opened

    def restore(
        self,
        step: int | str | None = "latest",
        target: Any = None,
        select: Any = None,
        *,
        item: str | None = None,
        **options: Unpack[LoadOptions],
    ) -> Any:
        """Restores an item of a step; which step as in `open`, the rest as in `milepost.load`."""
        foreign = self._foreign_step(step)
        if foreign is not None:
            from . import _foreign

            return _foreign.restore(foreign, target, item=item, **foreign_options(select, options))
        return self.open(step).load(target, select, item=item, **options)

    async def restore_async(self, *args: Any, **options: Any) -> Any:
        """Restores without blocking the event loop; as `restore`."""
        import asyncio

        return await asyncio.to_thread(self.restore, *args, **options)

    def _foreign_steps(self) -> list[Any]:
        """The steps of another library, as last listed, where the run has none of ours."""
        if self._path is None or self._inner.steps():
            return []
        if self._foreign is None:
            self._foreign = []
            if os.path.isdir(self._path):
                from . import _foreign

                self._foreign = _foreign.steps(self._path)
        return self._foreign

    def _foreign_step(self, step: int | str | None) -> Any:
        foreign = self._foreign_steps()
        if not foreign:
            return None
        if step is None or isinstance(step, str):
            return foreign[-1]
        found = [entry for entry in foreign if entry.step == step_number(step)]
        return found[0] if found else None

    def _refuse_foreign(self) -> None:
        if self._foreign_steps():
            from . import _foreign

            _foreign.refuse(self._path)

    def steps(self) -> list[int]:
        """The committed steps, in order; of a run that another library wrote and we did not, its steps.

        Where several processes save together, the others see what process 0 has deleted when they `reload`.
        """
        ours = [step for step in self._inner.steps() if step not in self._deleted]
        return ours if ours else [entry.step for entry in self._foreign_steps()]

    def entries(self) -> list[StepEntry]:
        """The steps with what their records say, damaged ones too."""
        entries = [StepEntry(**entry) for entry in self._inner.entries()]
        return [entry for entry in entries if entry.step not in self._deleted]

    def latest_step(self) -> int | None:
        """The newest committed step."""
        steps = self.steps()
        return steps[-1] if steps else None

    def best_step(self) -> int | None:
        """The best step by the metric that is kept by, the latest where there is none."""
        return self._inner.best_step() if self._inner.steps() else self.latest_step()

    def should_save(self, step: int) -> Decision:
        """Whether the policy would save a step now, and why."""
        self._knew = self._is_signalled()
        return Decision(*self._inner.should_save(step_number(step)))

    def plan(self) -> Plan:
        """What the policy would keep and delete now; nothing is deleted."""
        return Plan(*self._inner.plan())

    def reload(self) -> None:
        """Lists the run again: what other processes saved and deleted."""
        self._foreign = None
        self._inner.reload()
        self._deleted.intersection_update(self._inner.steps())

    def wait(self, timeout: Seconds | None = None) -> None:
        """Waits until nothing is in flight and nothing is left to delete; raises a failure that nobody asked for."""
        # A wait that ran out of time, or was interrupted, goes on and is joined again: the failure that it is told is
        # not lost.
        again = self._waiting is not None
        self._waiting = waiting = self._waiting or Waiting(self._inner.wait)
        begun = time.monotonic()
        if not waiting.ended(seconds(timeout)):
            raise SaveTimeout("the saves in flight have not ended yet", hint="wait again; they go on")
        self._waiting = None
        if waiting.failure is not None:
            raise waiting.failure
        if again:
            passed = time.monotonic() - begun
            self.wait(None if timeout is None else max(0.0, seconds(timeout) - passed))

    def close(self) -> None:
        """Waits as `wait` does; every later save is refused."""
        self._closed = True
        try:
            if self._waiting is not None:
                self.wait()
        finally:
            self._waiting = waiting = Waiting(self._inner.close)
            waiting.ended(None)
            self._waiting = None
        if waiting.failure is not None:
            raise waiting.failure

    def forget_deleted(self) -> None:
        """Lists no step any more that process 0 deletes by the policy, where this is another one."""
        if self._together is not None and self._together.index > 0:
            with contextlib.suppress(NotFound):  # no save has founded the run
                self._deleted.update(self.plan().delete)

    @property
    def together(self) -> Together | None:
        """With whom the steps are saved; None: by this process alone."""
        return self._together

    def delete(self, step: int) -> None:
        """Deletes a step; its bytes are freed in the background. Raises `Conflict` where it is pinned or being read.

        Where several processes save together, process 0 deletes; the others do not list the step any more.
        """
        step = step_number(step)
        if self._together is None or self._together.index == 0:
            self._inner.delete(step)
        elif step not in self.steps():
            raise NotFound("no such step", context={"step": str(step)})
        else:
            self._deleted.add(step)

    def _refuse_writing(self, what: str) -> None:
        if self._read_only:
            raise Invalid(f"a read-only manager writes no {what}", hint="open it without read_only")

    def pin(self, step: int, note: str = "") -> None:
        """Keeps a step from ever being deleted."""
        self._refuse_writing("pin")
        self._inner.pin(step_number(step), note)

    def unpin(self, step: int) -> bool:
        """Takes a pin back; False where there was none."""
        self._refuse_writing("unpin")
        return self._inner.unpin(step_number(step))

    def pins(self) -> list[Pin]:
        """The pinned steps."""
        return [Pin(*pin) for pin in self._inner.pins()]

    def is_saving(self) -> bool:
        """Whether a save is in flight or pending."""
        return self._inner.is_saving()

    def stats(self) -> dict[str, Any]:
        """Totals since the manager was opened: counts, seconds, bytes."""
        return self._inner.stats()

    def on_event(self, callback: Callable[[dict[str, Any]], Any]) -> None:
        """Calls back with every event as a dict, on the thread where it happens."""
        self._inner.on_event(callback)

    def preempt(self, on: bool = True) -> None:
        """Says that the process is about to be stopped: the next step is saved."""
        self._inner.preempt(on)

    @property
    def preempted(self) -> bool:
        """Whether preemption was signalled, and the last `save` or `should_save` knew of it: a loop that leaves on this
        after a save does not leave without the step. Asked again without one between, whether it was signalled."""
        knew, self._knew = self._knew, True
        return knew and self._is_signalled()

    def _is_signalled(self) -> bool:
        return self._inner.preempted()

    def watch_sigterm(self) -> None:
        """Sets the preemption flag on SIGTERM from now on; a handler that was there is called as before.

        The signal does not end the process any more: the loop has to. Only the main thread can ask for this.
        """
        before = signal.getsignal(signal.SIGTERM)
        flag = weakref.ref(self)

        def handle(number: int, frame: Any) -> None:
            manager = flag()
            if manager is not None:
                manager.preempt()
            if callable(before):
                before(number, frame)

        signal.signal(signal.SIGTERM, handle)

    def wait_for_step(
        self,
        above: int | None = None,
        timeout: Seconds | None = None,
        interval: Seconds = 1.0,
        lease: bool | None = None,
    ) -> Checkpoint | None:
        """Waits for a step above one and opens the newest; None after the timeout.

        With ``lease`` it is not deleted until the checkpoint is closed or dropped, which writes a small mark: the default,
        unless the manager is read-only.
        """
        lease = not self._read_only if lease is None else lease
        deadline = None if timeout is None else time.monotonic() + seconds(timeout)
        while True:
            # One look at a time: a wait in here would go on after Ctrl-C.
            found = self._inner.wait_for_step(above, 0.0, seconds(interval))
            if found is None:
                left = math.inf if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return None
                time.sleep(min(seconds(interval), left))
                continue
            step, checkpoint = found
            try:
                return Checkpoint(checkpoint, self._inner.lease(step) if lease else None)
            except (NotFound, Conflict):
                continue  # it was deleted meanwhile: the next newest

    def new_steps(
        self,
        above: int | None = None,
        timeout: Seconds | None = None,
        interval: Seconds = 1.0,
        lease: bool | None = None,
    ) -> Iterator[Checkpoint]:
        """The new steps as they come, always the newest, for an evaluator; ends after the timeout. As `wait_for_step`."""
        while (found := self.wait_for_step(above, timeout, interval, lease)) is not None:
            above = found.step
            yield found

    @property
    def metadata(self) -> dict[str, Any]:
        """What was said of the run when it was created."""
        return self._inner.metadata()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if not hasattr(self, "_closed") or self._closed:
            return
        if isinstance(threading.current_thread(), threading._DummyThread):
            # Collected in a callback on a thread of the engine, which must not wait for itself: the exit does.
            _dropped.append(self._inner)
        else:
            _close_unasked(self._inner)

    def _check_names(self, run: Url, prefix: str | None, width: int | None) -> None:
        """Refuses names of steps that are not those of a run which is there already."""
        has = dict(zip(("step_prefix", "step_width"), self._inner.write_format(), strict=True))
        asked = {"step_prefix": prefix, "step_width": width}
        odd = [name for name, value in asked.items() if value is not None and value != has[name]]
        if odd:
            self._inner.close()
            raise Invalid(
                f"the run names its steps otherwise: {odd[0]}={has[odd[0]]!r}, not {asked[odd[0]]!r}",
                context={"run": str(run)},
                hint="leave it out; read_formats=[(prefix, width)] reads steps of other names",
            )

    def __repr__(self) -> str:
        steps = self._inner.steps()
        shown = ", ".join(map(str, steps[-5:]))
        return f"<CheckpointManager: {len(steps)} steps{', … ' if len(steps) > 5 else ' '}{shown}>"


def _opened(make: Callable[[], Any], together: Together | None) -> Any:
    """Opens a run; one that the first of several processes founds with names or metadata, after that one."""
    if together is None:
        return make()
    made: list[Any] = []
    together.first(lambda: made.append(make()))
    return made[0] if made else make()


def step_number(step: Any) -> int:
    """A step as a number: Python's, NumPy's or a 0-d array's integer, not below 0."""
    number = step.item() if hasattr(step, "item") else step
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise Invalid("a step is an integer of at least 0", context={"step": repr(step)})
    return number


_managers: weakref.WeakSet[CheckpointManager] = weakref.WeakSet()


def _close_unasked(inner: Any) -> None:
    """Waits for a manager that its owner dropped; what nobody asked for is said on stderr."""
    _wait_unasked(inner.close)


def _wait_unasked(wait: Callable[[], None]) -> None:
    try:
        wait()
    except Forked:
        pass
    except Exception as error:
        print(f"milepost: a save failed and nobody asked: {error}", file=sys.stderr)


# Managers that were collected where they could not be waited for.
_dropped: list[Any] = []


def _close_at_exit() -> None:
    for inner in _dropped:
        _close_unasked(inner)
    for manager in list(_managers):
        if not manager._closed:
            manager._closed = True
            _close_unasked(manager._inner)


atexit.register(_close_at_exit)


@before_jax_ends
def _wait_for_joint_saves() -> None:
    for manager in list(_managers):
        if manager._together is not None and not manager._closed:
            _wait_unasked(manager._inner.wait)
