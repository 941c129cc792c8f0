"""The doors to the engine, which is written in Rust. The package's own modules use them; users use `milepost`.

Every call releases the interpreter lock while it waits and hears Ctrl-C. In a child of ``os.fork()`` what the parent made raises
`milepost.Forked`. Errors are those of `milepost._errors`.
"""

import builtins
from collections.abc import Callable, Sequence, Set
from os import PathLike
from typing import Any, Literal, final

from typing_extensions import Buffer

from ._structure import Key, Node

__version__: str

_Cast = Literal["same_kind", "unsafe"]
_Priority = Literal["restore", "foreground", "background", "upload"]
_Queue = Literal["wait", "skip", "replace_pending"]
_LeafKind = Literal["array", "int", "float", "bool", "complex", "str", "bytes", "prng_key"]
_ItemKind = Literal["tree", "array", "json", "bytes", "opaque"]
# First index and shape of a part of an array, in elements.
_Box = tuple[Sequence[int], Sequence[int]]
# A leaf's position in the index, the name of the data type to cast to, and the box of it: all of it where there is none.
_Request = tuple[int, str | None, _Box | None]
# What a target leaf asks for: kind, implementation of a PRNG key, data type, shape; None is as stored.
_Target = tuple[_LeafKind | None, str | None, str | None, Sequence[int] | None]
# Text path, keys, kind, implementation, data type, shape, chunk shape, shard shape, stored bytes.
_LeafRow = tuple[
    str,
    tuple[Key, ...],
    _LeafKind,
    str | None,
    str,
    tuple[int, ...],
    tuple[int, ...],
    tuple[int, ...] | None,
    int,
]
# The steps to keep, each with the reasons, and the steps to delete.
_Plan = tuple[list[tuple[int, list[str]]], list[int]]

@final
class Engine:
    """The threads, the byte budget and the buffers that all saves and restores of a process share.

    What is not named is the default; one engine is started by the first `Place` that names none.
    """

    def __new__(
        cls,
        *,
        memory_bytes: int | None = None,
        codec_threads: int | None = None,
        disk_threads: int | None = None,
    ) -> Engine: ...
    @property
    def memory_bytes(self) -> int:
        """The byte budget of staging copies, encoded output and requests in flight."""

    @property
    def high_water_bytes(self) -> int:
        """The most bytes of the budget that were ever in use at once."""

@final
class Place:
    """Where something is: a URL or path, opened with an engine. ``options`` are those of its store."""

    def __new__(
        cls, url: str, options: dict[str, str] | None = None, engine: Engine | None = None
    ) -> Place: ...
    @property
    def local_path(self) -> PathLike[str] | None:
        """The path on a local disk, None elsewhere."""

    def join(self, relative: str) -> Place:
        """The place below this one."""

    def is_of(self, engine: Engine) -> bool:
        """Whether it was opened with this engine."""

    def __str__(self) -> str: ...

@final
class Array(Buffer):
    """The elements of a restored leaf or of a box of it: little endian, C order; a writable buffer of bytes."""

    @property
    def data_type(self) -> str:
        """The data type's name in Zarr."""

    @property
    def shape(self) -> list[int]:
        """Elements an axis."""

    def __len__(self) -> int:
        """Its size in bytes."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class SaveOptions:
    """How the arrays of a checkpoint are stored and when the save counts as done; sizes in decoded bytes."""

    def __new__(
        cls,
        *,
        compression: str | None = None,
        chunk_bytes: int | None = None,
        shard_bytes: int | None = None,
        portable: bool = False,
        consolidate: Literal["auto", "never"] = "auto",
        durability: Literal["durable", "published"] = "durable",
        overwrite: bool = False,
    ) -> SaveOptions: ...

@final
class Leaf:
    """A leaf to save: an array over a buffer, or a scalar, text or bytes."""

    @staticmethod
    def array(buffer: Buffer, data_type: str, shape: Sequence[builtins.int], hold: builtins.bool) -> Leaf:
        """An array over a buffer of bytes; ``hold``: it is not written to any more, so it need not be copied."""

    @staticmethod
    def boxes(
        data_type: str,
        shape: Sequence[builtins.int],
        boxes: Sequence[tuple[Sequence[builtins.int], Sequence[builtins.int], Buffer]],
    ) -> Leaf:
        """An array in several blocks, each with its first index and its shape; all of them are held."""

    @staticmethod
    def provider(
        data_type: str,
        shape: Sequence[builtins.int],
        fill: Callable[[tuple[builtins.int, ...], tuple[builtins.int, ...]], Buffer],
    ) -> Leaf:
        """An array that ``fill(start, shape)`` gives in parts, as buffers; called from several threads."""

    @staticmethod
    def held_boxes(
        data_type: str,
        shape: Sequence[builtins.int],
        boxes: Sequence[tuple[Sequence[builtins.int], Sequence[builtins.int], Buffer]],
    ) -> Leaf:
        """The blocks that this process holds of an array which several save together, as ``boxes``; there may be none."""

    @staticmethod
    def held_provider(
        data_type: str,
        shape: Sequence[builtins.int],
        boxes: Sequence[tuple[Sequence[builtins.int], Sequence[builtins.int]]],
        fill: Callable[[tuple[builtins.int, ...], tuple[builtins.int, ...]], Buffer],
    ) -> Leaf:
        """As ``held_boxes``, given in parts by ``fill(start, shape)`` as those of ``provider`` are."""

    @staticmethod
    def int(value: builtins.int) -> Leaf:
        """An integer of at most 64 bits."""

    @staticmethod
    def float(value: builtins.float) -> Leaf:
        """A float."""

    @staticmethod
    def bool(value: builtins.bool) -> Leaf:
        """A boolean."""

    @staticmethod
    def complex(re: builtins.float, im: builtins.float) -> Leaf:
        """A complex number."""

    @staticmethod
    def text(value: str) -> Leaf:
        """Text."""

    @staticmethod
    def bytes(value: Buffer) -> Leaf:
        """Bytes; a ``bytes`` object is held, any other buffer copied now."""

    def with_layout(
        self,
        *,
        chunk_bytes: builtins.int | None = None,
        chunk_shape: Sequence[builtins.int] | None = None,
        reshard_axes: Sequence[builtins.int] | None = None,
        compression: str | None = None,
        implementation: str | None = None,
    ) -> Leaf:
        """The same leaf with what it asks for beyond the options of its save; ``implementation`` makes it PRNG keys."""

@final
class Item:
    """A named part of a checkpoint, to save."""

    @staticmethod
    def tree(structure: Node, leaves: Sequence[Leaf]) -> Item:
        """A pytree: a structure with leaf numbers, and the leaves."""

    @staticmethod
    def array(leaf: Leaf) -> Item:
        """A single array."""

    @staticmethod
    def json(value: Any) -> Item:
        """A JSON value."""

    @staticmethod
    def bytes(value: Buffer) -> Item:
        """Bytes."""

    @staticmethod
    def files(path: str | PathLike[str]) -> Item:
        """A file, or the files below a directory; they are read now."""

@final
class SaveHandle:
    """A save on its way."""

    @property
    def step(self) -> int | None:
        """The step, where it is one."""

    def done(self) -> bool:
        """Tells whether it has ended, well or badly."""

    def cancel(self) -> None:
        """Asks it to stop; how it ended, the outcome tells."""

    def progress(self) -> dict[str, Any]:
        """The counters as they stand: bytes, chunks, leaves; ``elapsed`` and ``eta`` in seconds."""

    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """Waits until it has ended, at most so many seconds, and returns what was saved: the fields of `milepost.Saved`."""

@final
class Checkpoint:
    """A committed checkpoint, open for reading."""

    @staticmethod
    def open(place: Place) -> Checkpoint:
        """Opens a checkpoint, or the newest step of a run."""

    @staticmethod
    def step(run: Place, step: int) -> Checkpoint:
        """Opens a step of a run."""

    @property
    def url(self) -> str:
        """Where it is."""

    def record(self) -> dict[str, Any]:
        """The commit record."""

    def default_item(self) -> str:
        """The name of the item that is meant where none is named."""

    def index(self, item: str) -> ItemIndex:
        """Reads the index of an item: one request."""

    def leaf(self, item: str, path: str) -> LeafHandle:
        """Opens a leaf by the text form of its key path, without the index."""

    def json(self, item: str) -> Any:
        """Restores a JSON item."""

    def bytes(self, item: str) -> builtins.bytes:
        """Restores a bytes item."""

    def files(self, item: str) -> list[tuple[str, int]]:
        """The files of an opaque item and their sizes in bytes."""

    def extract(self, item: str, directory: str | PathLike[str], overwrite: bool) -> None:
        """Restores the files of an opaque item into a directory."""

    def verify(self) -> dict[str, Any]:
        """Verifies every stored byte: ``good``, ``objects``, ``bytes``, ``findings``."""

@final
class ItemIndex:
    """The index of an item: its structure and leaves."""

    def structure(self) -> Node:
        """The containers as saved, with leaf numbers."""

    def leaves(self) -> list[_LeafRow]:
        """The leaves in order: the fields of `milepost.LeafInfo`."""

    def pair(
        self,
        structure: Node,
        targets: Sequence[_Target],
        *,
        missing: Literal["error", "skip"],
        unexpected: Literal["error", "ignore"],
        containers: Literal["same", "by_name"],
        cast: _Cast,
    ) -> list[tuple[int, int]]:
        """Pairs the leaves of a target with stored ones; raises `milepost.TreeMismatch` with all mismatches."""

    def select(self, patterns: Sequence[str]) -> Node:
        """The structure that holds the selected leaves, with their positions in the index."""

    def read(self, requests: Sequence[_Request], cast: _Cast) -> list[Array]:
        """Reads whole leaves and boxes of leaves as one plan."""

    def progress(self) -> dict[str, Any]:
        """The counters of what is read through this index."""

    def foreign_metadata(self) -> list[tuple[str, str]]:
        """What a foreign file carried in its header."""

@final
class LeafHandle:
    """One leaf, open for reading boxes of it."""

    @property
    def path(self) -> str:
        """The text form of its key path."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements an axis."""

    @property
    def kind(self) -> tuple[_LeafKind, str | None]:
        """What it was in the language of who saved it, and the implementation of a PRNG key."""

    @property
    def data_type(self) -> str | None:
        """The data type's name."""

    def read(self, start: Sequence[int], shape: Sequence[int]) -> Array:
        """Reads a box: only the chunks that hold an element of it."""

@final
class SaveDecision:
    """When to save; see `milepost.SaveDecision`."""

    @staticmethod
    def interval(n: int) -> SaveDecision: ...
    @staticmethod
    def steps(steps: Set[int]) -> SaveDecision: ...
    @staticmethod
    def every_seconds(interval: float) -> SaveDecision: ...
    @staticmethod
    def continuous(minimum: float) -> SaveDecision: ...
    @staticmethod
    def initial() -> SaveDecision: ...
    @staticmethod
    def preemption() -> SaveDecision: ...
    @staticmethod
    def any(members: Sequence[SaveDecision]) -> SaveDecision: ...
    @staticmethod
    def all(members: Sequence[SaveDecision]) -> SaveDecision: ...
    @staticmethod
    def when(function: Callable[[dict[str, Any]], Any]) -> SaveDecision:
        """Asks ``function(context)``; where it raises, the step is not saved and the exception comes out of ``save``."""

    def decide(
        self,
        step: int,
        *,
        latest: int | None = None,
        steps: int = 0,
        in_flight: int = 0,
        since_begun: float | None = None,
        since_committed: float | None = None,
        preempted: bool = False,
    ) -> tuple[bool, str]:
        """Decides about a step: whether to save it, and why."""

    def __repr__(self) -> str: ...

@final
class Preservation:
    """What to keep; see `milepost.Preservation`."""

    @staticmethod
    def everything() -> Preservation: ...
    @staticmethod
    def latest(n: int) -> Preservation: ...
    @staticmethod
    def best(
        metric: str | Callable[[dict[str, float]], float | None],
        mode: Literal["min", "max"] = "max",
        n: int | None = None,
        missing: Literal["keep", "drop"] = "keep",
    ) -> Preservation: ...
    @staticmethod
    def every_steps(n: int) -> Preservation: ...
    @staticmethod
    def every_steps_apart(n: int) -> Preservation: ...
    @staticmethod
    def every_steps_closest(n: int) -> Preservation: ...
    @staticmethod
    def every_seconds(interval: float) -> Preservation: ...
    @staticmethod
    def steps(steps: Set[int]) -> Preservation: ...
    @staticmethod
    def latest_duration(duration: float) -> Preservation: ...
    @staticmethod
    def any(members: Sequence[Preservation]) -> Preservation: ...
    @staticmethod
    def custom(function: Callable[[list[dict[str, Any]]], Any]) -> Preservation:
        """Keeps the steps that ``function(steps)`` returns; where it raises, all."""

    def plan(self, steps: Sequence[dict[str, Any]]) -> _Plan:
        """Plans what to keep, with reasons, and what to delete of steps given as dicts."""

    def __repr__(self) -> str: ...

@final
class Lease:
    """Keeps a step from being deleted, until it is dropped."""

@final
class Manager:
    """Saves, finds and keeps the steps of a run."""

    def __new__(
        cls,
        run: Place,
        options: SaveOptions,
        *,
        decision: SaveDecision | None = None,
        preservation: Preservation | None = None,
        queue: _Queue = "wait",
        max_in_flight: int = 1,
        timeout: float | None = None,
        retries: int = 0,
        backup: Place | None = None,
        trash: str | None = None,
        sweep_at_start: bool = False,
        read_only: bool = False,
        write_format: tuple[str, int] | None = None,
        read_formats: Sequence[tuple[str, int]] = ...,
        metadata: dict[str, Any] | None = None,
        log: str | PathLike[str] | None = None,
        together: Together | None = None,
    ) -> Manager: ...
    def save(
        self,
        step: int,
        payload: dict[str, Any],
        *,
        options: SaveOptions | None = None,
        force: bool = False,
        overwrite: bool = False,
        priority: _Priority = "background",
        queue: _Queue | None = None,
    ) -> tuple[SaveHandle | None, str | None]:
        """Saves a step where the policy says so: a handle, or why it was skipped."""

    def skip(self, step: int) -> str | None:
        """Why the policy does not want a step saved, which is told; None where it does."""

    def open(self, which: int | Literal["latest", "latest_good", "best"]) -> tuple[Checkpoint, list[tuple[int, str]]]:
        """Opens a step, after what is in flight has ended; and which newer ones were bad, and why."""

    def entries(self) -> list[dict[str, Any]]:
        """The steps as last listed, damaged ones too."""

    def steps(self) -> list[int]:
        """The numbers of the committed steps, in order."""

    def latest_step(self) -> int | None:
        """The newest committed step."""

    def best_step(self) -> int | None:
        """The best step by the metric of the preservation policy, the latest where it has none."""

    def should_save(self, step: int) -> tuple[bool, str]:
        """Whether the policy would save a step now, and why."""

    def plan(self) -> _Plan:
        """What the preservation policy would keep and delete now."""

    def reload(self) -> None:
        """Lists the run again."""

    def wait(self) -> None:
        """Waits until nothing is in flight and nothing is left to delete."""

    def close(self) -> None:
        """Waits, and refuses every later save."""

    def is_saving(self) -> bool:
        """Whether a save is in flight or pending."""

    def delete(self, step: int) -> None:
        """Deletes a step on purpose."""

    def pin(self, step: int, why: str) -> None:
        """Keeps a step from ever being deleted."""

    def unpin(self, step: int) -> bool:
        """Takes a pin back; tells whether there was one."""

    def pins(self) -> list[tuple[int, str, int]]:
        """The pins: step, reason, Unix milliseconds."""

    def lease(self, step: int) -> Lease:
        """Keeps a step from being deleted as long as the lease lives."""

    def wait_for_step(
        self, above: int | None = None, timeout: float | None = None, interval: float = 1.0
    ) -> tuple[int, Checkpoint] | None:
        """Waits for a step above one; None after the timeout. Seconds."""

    def on_event(self, callback: Callable[[dict[str, Any]], Any]) -> None:
        """Calls ``callback`` with every event as a dict, on the thread where it happens."""

    def stats(self) -> dict[str, Any]:
        """The totals since the manager was opened; times in seconds."""

    def preempt(self, on: bool) -> None:
        """Sets or clears the preemption flag."""

    def preempted(self) -> bool:
        """Whether preemption was signalled."""

    def metadata(self) -> dict[str, Any]:
        """The run's metadata."""

    def write_format(self) -> tuple[str, int]:
        """How new steps are named: prefix and width."""

def find(place: Place) -> tuple[Literal["checkpoint", "run", "foreign"], Checkpoint | None]:
    """Says what is at a place; and the checkpoint."""

def ending() -> None:
    """Says that this thread is about to end the interpreter: no other may come back to it."""

class Together:
    """One process's end of a rendezvous."""

    @staticmethod
    def launcher(
        index: int,
        count: int,
        all_gather: Callable[[str, bytes, float], list[bytes]],
        broadcast: Callable[[str, int, bytes | None, float], bytes] | None,
        deadline: float,
    ) -> Together:
        """Meets by functions of a launcher, which may wait and are called on threads of their own."""

    @staticmethod
    def store(run: Place, index: int, count: int, session: str | None, deadline: float) -> Together:
        """Meets through nothing but the store of a run; with a session that the launcher has named, or one that is made."""

    @property
    def index(self) -> int:
        """Which of the processes this is, from 0."""

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def deadline(self) -> float:
        """Seconds that they wait for each other."""

    def decide(self, own: bool | None) -> bool:
        """What process 0 gave; raises where it could not decide."""

    def gather(self, own: Sequence[int] | bytes | None) -> list[bytes]:
        """What everybody gave, by index; None says that this process failed, and all raise."""

    def within(self, deadline: float) -> Together:
        """The same meeting, with another deadline."""

    def decline(self, why: str, is_cancelled: bool) -> SaveHandle:
        """Tells the others that this process takes no part in the save that all make next, and why; in the background."""

def start(
    place: Place,
    payload: dict[str, Any],
    options: SaveOptions,
    priority: _Priority = "foreground",
    together: Together | None = None,
) -> SaveHandle:
    """Starts a save that stands alone; returns when the state is captured."""

def text(keys: Sequence[Key]) -> str:
    """The text form of a key path, as it is in the index and in errors."""

def import_safetensors(
    source: Place,
    target: Place,
    options: SaveOptions,
    *,
    step: int | None = None,
    item: str = ...,
    split: str | None = None,
    metadata: dict[str, Any] | None = None,
) -> SaveHandle:
    """Begins to import safetensors (a file, a directory with one, a model by its index) as a step of a run or a checkpoint."""

def export_safetensors(
    checkpoint: Checkpoint,
    target: Place,
    *,
    item: str | None = None,
    select: Sequence[str] | None = None,
    separator: str | None = None,
    shard_bytes: int | None = None,
    skip_unsupported: bool = False,
    overwrite: bool = False,
) -> list[tuple[str, int]]:
    """Exports an item as safetensors; returns the files with their sizes in bytes."""
