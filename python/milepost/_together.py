"""How the processes of a job meet when they save one step together: by the launcher, or through nothing but the store.

What is right never depends on it: a commit is decided in the store. An answer that is late or lost costs a save.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Union

from . import _errors, _milepost
from ._errors import Invalid, MilepostError, Unsupported
from ._place import Engine, Url, local_path, place

DEADLINE_SECONDS = 600.0
"""How long the processes wait for each other, unless they are told otherwise."""
GRACE_SECONDS = 3.0
"""So much longer the others wait for what process 0 says at its deadline: who was missing."""
PIECE_BYTES = 1 << 20
"""A value of JAX's coordination service is no longer."""

AllGather = Callable[[str, bytes, float], list[bytes]]
Broadcast = Callable[[str, int, Union[bytes, None], float], bytes]


class Together:
    """One process's end of a meeting: which of how many processes it is, and how it talks to the others.

    Every process of the job makes its own, with the same kind and count, and makes the same saves in the same order.
    A save ends in an error, on every side, at most ``deadline`` seconds after somebody was missing.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @classmethod
    def jax(
        cls,
        session: str,
        deadline: float = DEADLINE_SECONDS,
        *,
        processes: Sequence[int] | None = None,
    ) -> Together:
        """Meets by the coordination service of ``jax.distributed``; ``session``: a name that the processes share and that
        no other meeting of the job has. ``processes``: JAX's numbers of those that meet, the one that deletes old steps
        first; default: all."""
        members = None if processes is None else tuple(processes)
        return cls(_Coordination(session, members).together(deadline))

    @classmethod
    def store(
        cls,
        run: Url,
        index: int,
        count: int,
        *,
        session: str | None = None,
        deadline: float = DEADLINE_SECONDS,
        engine: Engine | None = None,
    ) -> Together:
        """Meets through small objects below ``.milepost`` of a run: for launchers that offer nothing else.

        With a ``session``, a name that no job at this run ever had, nobody waits here; without one all processes meet now.
        A process that dies is missed at once on the same machine, elsewhere when its mark expires.
        """
        return cls(_milepost.Together.store(place(run, engine), index, count, session, deadline))

    @classmethod
    def environment(
        cls,
        run: Url,
        *,
        environ: Mapping[str, str] | None = None,
        deadline: float = DEADLINE_SECONDS,
        engine: Engine | None = None,
    ) -> Together:
        """Meets through the store of a run, as the process that the launcher's variables say: torchrun, Open MPI, SLURM,
        PMI."""
        index, count = _ranks(os.environ if environ is None else environ)
        return cls.store(run, index, count, deadline=deadline, engine=engine)

    @classmethod
    def launcher(
        cls,
        index: int,
        count: int,
        all_gather: AllGather,
        broadcast: Broadcast | None = None,
        *,
        deadline: float = DEADLINE_SECONDS,
    ) -> Together:
        """Meets by functions of a launcher: ``all_gather(round, value, seconds)`` returns everybody's values by index,
        ``broadcast(round, origin, value, seconds)`` the value that process ``origin`` gave, without waiting for the others
        (default: an all-gather). They are called on threads of their own, may wait so many seconds, and raise
        `TimeoutError` then; a round's name is never used again.
        """
        return cls(_milepost.Together.launcher(index, count, all_gather, broadcast, deadline))

    @classmethod
    def torch(cls, group: Any = None, *, deadline: float = DEADLINE_SECONDS) -> Together:
        """Meets by ``torch.distributed``: a process group that the CPU can use (gloo), of which nothing else makes use
        while a save is under way; make one with ``torch.distributed.new_group(backend="gloo")``."""
        import torch.distributed as dist

        index, count = dist.get_rank(group), dist.get_world_size(group)

        def all_gather(_: str, value: bytes, seconds: float) -> list[bytes]:
            values: list[Any] = [None] * count
            dist.all_gather_object(values, value, group=group)
            return values

        return cls.launcher(index, count, all_gather, deadline=deadline)

    @classmethod
    def mpi(cls, comm: Any = None, *, deadline: float = DEADLINE_SECONDS) -> Together:
        """Meets by mpi4py, in a duplicate of ``comm`` (default: the world); MPI must allow several threads
        (``MPI.THREAD_MULTIPLE``). A process that dies ends the job: MPI has no deadlines."""
        if comm is None:
            from mpi4py import MPI

            if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
                raise Unsupported("MPI was not initialised for several threads")
            comm = MPI.COMM_WORLD
        own = comm.Dup()
        return cls.launcher(
            own.Get_rank(), own.Get_size(), lambda _, value, __: own.allgather(value), deadline=deadline
        )

    @property
    def index(self) -> int:
        """Which of the processes this is, from 0; process 0 begins the saves and deletes old steps."""
        return self._inner.index

    @property
    def count(self) -> int:
        """How many processes there are."""
        return self._inner.count

    @property
    def deadline(self) -> float:
        """Seconds that the processes wait for each other."""
        return self._inner.deadline

    def decide(self, decision: Callable[[], bool]) -> bool:
        """What process 0 decides: for what clocks or functions could decide differently. All processes call it, in the same
        order as their saves; where process 0 fails, the others raise, too."""
        if self.index > 0:
            return self._inner.decide(False)
        try:
            own = bool(decision())
        except BaseException:
            with contextlib.suppress(MilepostError):
                self._inner.decide(None)
            raise
        return self._inner.decide(own)

    def first(self, work: Callable[[], Any], *, after_all: bool = False) -> Any:
        """What process 0's work returns, a JSON value, in every process. All call it, in the same order as their saves;
        where the work fails, all raise: the others an error of the same kind. ``after_all``: it begins when all have come.
        """
        if after_all:
            self.gather(lambda: b"")
        if self.index > 0:
            return _result(json.loads(self.gather(lambda: b"")[0]))
        try:
            value = work()
            said = json.dumps({"value": value}).encode()
        except BaseException as error:
            with contextlib.suppress(MilepostError):
                self._inner.gather(json.dumps(_failure(error)).encode())
            raise
        self._inner.gather(said)
        return value

    def gather(self, value: Callable[[], bytes], *, before_save: bool = False) -> list[bytes]:
        """Everybody's values, by index: at most 256 MiB in all. All processes call it, in the same order as their saves;
        where one fails, all raise. ``before_save``: a save follows, which is declined where Ctrl-C ends the wait here: the
        others, who have this process's value, go on to it."""
        try:
            own = value()
        except BaseException:
            with contextlib.suppress(MilepostError):
                self._inner.gather(None)
            raise
        try:
            return self._inner.gather(own)
        except MilepostError:
            raise
        except BaseException as error:
            if before_save:
                self._decline(error)
            raise

    def within(self, deadline: float) -> Together:
        """The same meeting, with another deadline, in seconds."""
        return Together(self._inner.within(deadline))

    def _decline(self, why: BaseException, is_old: bool = False) -> None:
        from ._save import SaveHandle, keep_until_done

        text = f"{type(why).__name__}: {why}"
        is_cancelled = is_old or not isinstance(why, Exception)
        handle = SaveHandle(self._inner.decline(text, is_cancelled))
        handle._told = True  # that it fails is all it is for
        keep_until_done(handle)

    def __repr__(self) -> str:
        return f"<Together: process {self.index} of {self.count}>"


# What an exception of Python means among ours.
_KINDS = {
    "FileNotFoundError": "NotFound",
    "FileExistsError": "AlreadyExists",
    "TimeoutError": "SaveTimeout",
    "OSError": "Unavailable",
    "KeyboardInterrupt": "Cancelled",
}


def _failure(error: BaseException) -> dict[str, Any]:
    return {"kinds": [cls.__name__ for cls in type(error).__mro__], "why": str(error) or repr(error)}


def _result(said: dict[str, Any]) -> Any:
    """What process 0 has returned, or raises what it has raised, as far as that has a counterpart here."""
    if "value" in said:
        return said["value"]
    for kind in said["kinds"]:
        cls = getattr(_errors, _KINDS.get(kind, kind), None)
        if isinstance(cls, type) and issubclass(cls, MilepostError) and cls is not MilepostError:
            break
    else:
        cls = Invalid
    raise cls(f"process 0 failed: {said['why']}")


# Index and count: torchrun, Open MPI, SLURM, MPICH and its kin.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("PMI_RANK", "PMI_SIZE"),
)


def _ranks(environ: Mapping[str, str]) -> tuple[int, int]:
    for index, count in _LAUNCHERS:
        if index in environ and count in environ:
            try:
                return int(environ[index]), int(environ[count])
            except ValueError as error:
                given = {index: environ[index], count: environ[count]}
                raise Invalid("a launcher's variables are no numbers", context=given) from error
    names = ", ".join(index for index, _ in _LAUNCHERS)
    raise Invalid("no launcher says which process this is", hint=f"one of {names} is looked for; or use Together.store")


class _Coordination:
    """An all-gather and a broadcast over the key-value service of ``jax.distributed``: process 0 collects."""

    def __init__(
        self, session: str, processes: tuple[int, ...] | None = None, state: Any = None
    ) -> None:
        if state is None:
            from jax._src import distributed

            state = distributed.global_state
        if state.client is None:
            raise Invalid("jax.distributed is not initialised", hint="call jax.distributed.initialize() first")
        members = range(int(state.num_processes)) if processes is None else processes
        if int(state.process_id) not in members:
            raise Invalid(
                "this process is none of those that save together",
                context={"process": str(state.process_id), "processes": ", ".join(map(str, members))},
            )
        self._client, self._session = state.client, session
        self._index, self._count = members.index(int(state.process_id)), len(members)
        # Of rounds that some may still be in: of saves, and of what is asked beside them.
        self._recent: dict[bool, list[str]] = {False: [], True: []}

    def together(self, deadline: float) -> Any:
        _stay_for_saves(os.getpid())
        return _milepost.Together.launcher(
            self._index, self._count, self.all_gather, self.broadcast, deadline
        )

    def all_gather(self, round: str, value: bytes, seconds: float) -> list[bytes]:
        until = time.monotonic() + seconds
        key = self._key(round)
        if self._index > 0:
            self._put(f"{key}/{self._index}", value)
            said = self._get(f"{key}/all", until + min(seconds / 4, GRACE_SECONDS))
            if said is None:
                raise TimeoutError(f"process 0 did not answer in round {round}")
            return _unpacked(said, round, self._index)
        values: list[bytes | None] = [value]
        values.extend(self._get(f"{key}/{index}", until) for index in range(1, self._count))
        said = _packed(values)
        self._put(f"{key}/all", said)
        gathered = _unpacked(said, round, 0)
        # Everybody has come here, so nobody is in a round before; but a save may go on beside this.
        recent = self._recent[_is_beside(round)]
        self._forget(recent)
        recent.append(key)
        return gathered

    def broadcast(self, round: str, origin: int, value: bytes | None, seconds: float) -> bytes:
        key = self._key(round)
        if origin == self._index:
            self._put(f"{key}/from", value or b"")
            self._recent[_is_beside(round)].append(key)
            return value or b""
        said = self._get(f"{key}/from", time.monotonic() + seconds)
        if said is None:
            raise TimeoutError(f"process {origin} said nothing in round {round}")
        return said

    def _key(self, round: str) -> str:
        turn, _, name = round.rpartition("-")
        # Whatever a turn begins with meets at one place: who declines a save is heard by who asks something before it.
        name = "begin" if name in _BEGINNINGS else name
        return f"milepost/{self._session}/{turn}-{name}"

    def _put(self, key: str, value: bytes) -> None:
        pieces = [value[at : at + PIECE_BYTES] for at in range(0, len(value), PIECE_BYTES)] or [b""]
        for number, piece in enumerate(pieces[1:], 1):
            self._client.key_value_set_bytes(f"{key}.{number}", piece)
        # The first is set last: who sees it can get the others.
        self._client.key_value_set_bytes(key, b"%d\n" % len(pieces) + pieces[0])

    def _get(self, key: str, until: float) -> bytes | None:
        """What somebody says until a time; None where nobody did."""
        first = self._wait_for(key, until)
        if first is None:
            return None
        count, _, piece = first.partition(b"\n")
        rest = [self._wait_for(f"{key}.{number}", until + GRACE_SECONDS) for number in range(1, int(count))]
        if any(more is None for more in rest):
            return None
        return b"".join([piece, *rest])

    def _wait_for(self, key: str, until: float) -> bytes | None:
        left = max(1, int((until - time.monotonic()) * 1000))
        try:
            return self._client.blocking_key_value_get_bytes(key, left)
        except Exception as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise

    def _forget(self, keys: list[str]) -> None:
        for key in keys:
            self._client.key_value_delete(f"{key}/")
        keys.clear()


_BESIDE = ("due", "decide", "gather")
_BEGINNINGS = (*_BESIDE, "declare")


def _is_beside(round: str) -> bool:
    """Whether a round is held on the caller's thread, while those of a save go on."""
    return round.rpartition("-")[2] in _BESIDE


def _packed(values: list[bytes | None]) -> bytes:
    """Everybody's values; of one that is missing, that it is."""
    head = json.dumps([None if value is None else len(value) for value in values])
    return b"".join([head.encode(), b"\n", *(value for value in values if value)])


def _unpacked(said: bytes, round: str, own: int) -> list[bytes]:
    head, _, rest = said.partition(b"\n")
    lengths = json.loads(head)
    missing = [index for index, length in enumerate(lengths) if length is None]
    if own in missing:
        raise TimeoutError(
            f"the others have not waited for this process in round {round}: it came too late, or they have made a call "
            "that it has not made"
        )
    if missing:
        names = ", ".join(map(str, missing))
        raise TimeoutError(f"processes did not come to round {round} in time: {names}")
    ends = list(itertools.accumulate(lengths))
    return [rest[end - length : end] for end, length in zip(ends, lengths, strict=True)]


_at_end: list[Callable[[], None]] = []


def before_jax_ends(wait: Callable[[], None]) -> Callable[[], None]:
    """Has a function called when the main thread has ended, while JAX's service still answers."""
    _at_end.append(wait)
    return wait


@functools.lru_cache(maxsize=None)
def _stay_for_saves(owner: int) -> None:
    # The interpreter waits for such a thread before it calls exit hooks, of which JAX's may come before ours.
    threading.Thread(target=_wait_for_saves, name="milepost-stay", daemon=False).start()


def _wait_for_saves() -> None:
    threading.main_thread().join()
    for wait in _at_end:
        wait()


def running_jax() -> Any:
    """The state of ``jax.distributed`` where several processes run; else None. JAX is not imported for it."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return None
    from jax._src import distributed

    state = distributed.global_state
    return state if state.client is not None and (state.num_processes or 1) > 1 else None


@functools.lru_cache(maxsize=None)
def _of_jax(session: str, processes: tuple[int, ...] | None, owner: int) -> Together:
    # One a place for the life of the process: its rounds are numbered.
    return Together.jax(session, processes=processes)


_making = threading.Lock()


def resolve(together: Together | bool | None, url: Url) -> Together | None:
    """With whom a save is made: what was given; where nothing was, the processes of ``jax.distributed``, if several.

    ``False`` means this process alone.
    """
    if together is False:
        return None
    if isinstance(together, Together):
        return together if together.count > 1 else None
    if together is True or together is None:
        if running_jax() is not None:
            return of_jax(url)
        if together is None:
            return None
        raise Invalid(
            "together=True, and jax.distributed has no other processes",
            hint="call jax.distributed.initialize() first, or give a milepost.Together",
        )
    raise TypeError(f"together is a {type(together).__name__}: give a milepost.Together, True, False or None")


def of_jax(url: Url, processes: tuple[int, ...] | None = None) -> Together:
    """The meeting of JAX's processes for the saves at a place; always the same one."""
    session = _session(url)
    if processes is not None:
        session += "@" + ",".join(map(str, processes))
    with _making:
        return _of_jax(session, processes, os.getpid())


def _session(url: Url) -> str:
    """The name of a place, the same in every process that writes it so."""
    path = local_path(url)
    return str(url) if path is None else os.path.abspath(path)


@contextlib.contextmanager
def declining(meeting: Together | None, *, is_old: bool = False) -> Iterator[None]:
    """Where this process cannot come to a save, the others are told why: they need not wait for it.

    ``is_old``: it tells of what failed before. The others' save is `Cancelled` then, which is no failure to tell in turn:
    else the processes would tell each other for ever.
    """
    try:
        yield
    except BaseException as error:
        if meeting is not None:
            meeting._decline(error, is_old)
        raise
