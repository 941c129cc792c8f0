"""How the steps of a run are named, and finding them by name.

A native run names its steps `<prefix><number>`, the number padded with zeros to a width. Orbax's
formats become that: `standard_name_format(step_prefix="step", step_format_fixed_length=6)` is the
prefix `step_` and the width 6. A format of the caller's own is asked for a few names; one that
never gives any other is followed, else it is refused: a run whose steps only one program can name
is lost to all others.

Only committed steps are found.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import milepost as mp

from .._run_path import is_local, join, name_of, path_of, url_of

MetadataT = TypeVar("MetadataT", bound="Metadata", covariant=True)

TMP_DIR_SUFFIX = ".orbax-checkpoint-tmp"
_TMP_SUFFIX = ".milepost-tmp-"
_PROBES = (0, 1, 9, 10, 12, 345, 6789, 99_999, 1_234_567, 10**12)


@dataclasses.dataclass(frozen=True)
class Metadata:
    """A step that was found.

    Attributes:
      step: its number.
      path: where it is.
    """

    step: int
    path: Any

    @property
    def init_timestamp_nsecs(self) -> int | None:
        """When its save began, in nanoseconds since 1970."""
        return _nanoseconds(self._opened().created)

    @property
    def commit_timestamp_nsecs(self) -> int | None:
        """When it was committed, in nanoseconds since 1970."""
        return _nanoseconds(self._opened().committed)

    @property
    def commit_timestamp(self) -> datetime.datetime:
        """When it was committed; UTC."""
        return self._opened().committed

    def _opened(self) -> mp.Checkpoint:
        return mp.open(str(self.path))


class NameFormat(Protocol, Generic[MetadataT]):
    """Names steps and finds them by their names."""

    def build_name(self, step: int) -> str:
        """Returns the name of a step."""
        ...

    def find_all(self, base_path: Any) -> Iterator[MetadataT]:
        """Returns the committed steps below a directory."""
        ...

    def find_step(self, base_path: Any, step: int) -> MetadataT:
        """Returns a committed step below a directory.

        Raises:
          ValueError: it is not there.
        """
        ...


@dataclasses.dataclass(frozen=True)
class StandardNameFormat(NameFormat[Metadata]):
    """`23`, with a length of 4 `0023`, with a prefix `step_23` and `step_0023`.

    Attributes:
      step_prefix: put before the number, with `_` between.
      step_format_fixed_length: digits that the number is padded to with zeros.
      single_host_load_and_broadcast: one process lists for all of them; a single process lists for
        itself.
    """

    step_prefix: str | None = None
    step_format_fixed_length: int | None = None
    single_host_load_and_broadcast: bool = False

    def build_name(self, step: int) -> str:
        """Returns the name of a step."""
        width = self.step_format_fixed_length or 0
        return f"{step_prefix_with_underscore(self.step_prefix)}{int(step):0{width}d}"

    def find_all(self, base_path: Any) -> Iterator[Metadata]:
        """Returns the committed steps below a directory, ascending."""
        root = url_of(base_path)
        for entry in _entries(root, self):
            if name_of(entry.url) == self.build_name(entry.step):
                yield Metadata(entry.step, path_of(entry.url))

    def find_step(self, base_path: Any, step: int) -> Metadata:
        """Returns a committed step below a directory; `ValueError` where it is not there."""
        url = join(url_of(base_path), self.build_name(step))
        if _is_committed(url):
            return Metadata(step, path_of(url))
        raise ValueError(
            f"no committed step of this name. name=`{self.build_name(step)}`, run=`{base_path}`"
        )


@dataclasses.dataclass(frozen=True)
class CompositeNameFormat(NameFormat[Metadata]):
    """One format that names new steps, and several whose names are found, the first that matches
    wins.

    Attributes:
      write_name_format: names new steps; one of `read_name_formats`.
      read_name_formats: those that are found.
    """

    write_name_format: NameFormat[Metadata]
    read_name_formats: Sequence[NameFormat[Metadata]]

    def __post_init__(self) -> None:
        if self.write_name_format not in self.read_name_formats:
            raise ValueError(
                "write_name_format must be one of read_name_formats, or what is saved is never "
                f"found. write_name_format=`{self.write_name_format}`"
            )

    @property
    def single_host_load_and_broadcast(self) -> bool:
        """Whether every format that is read has it."""
        return all(_broadcasts(name_format) for name_format in self.read_name_formats)

    def build_name(self, step: int) -> str:
        """Returns the name of a new step."""
        return self.write_name_format.build_name(step)

    def find_all(self, base_path: Any) -> Iterator[Metadata]:
        """Returns the committed steps of all formats."""
        found = set()
        for name_format in self.read_name_formats:
            for metadata in name_format.find_all(base_path):
                if str(metadata.path) not in found:
                    found.add(str(metadata.path))
                    yield metadata

    def find_step(self, base_path: Any, step: int) -> Metadata:
        """Returns a committed step in the first format that has it; `ValueError` where none has."""
        errors = []
        for name_format in self.read_name_formats:
            try:
                return name_format.find_step(base_path, step)
            except ValueError as error:
                errors.append(str(error))
        raise ValueError("\n".join(errors))


@dataclasses.dataclass(frozen=True)
class NativeFormat:
    """What a native run knows of names: `prefix`, and the `width` that numbers are padded to."""

    prefix: str
    width: int

    def build_name(self, step: int) -> str:
        """Returns the name of a step."""
        return f"{self.prefix}{step:0{self.width}d}"


def standard_name_format(
    *,
    step_prefix: str | None = None,
    step_format_fixed_length: int | None = None,
    single_host_load_and_broadcast: bool = False,
    temporary_path_cls: type | None = None,
    atomicity_options: Any | None = None,
) -> NameFormat[Metadata]:
    """Returns the format `[<prefix>_]<number>`; see `StandardNameFormat`.

    Raises:
      ValueError: `temporary_path_cls` is not None, or `atomicity_options` asks for a mode: what is
        committed is Milepost's business.
    """
    mode = getattr(atomicity_options, "mode", "auto")
    if temporary_path_cls is not None or mode != "auto":
        raise ValueError(
            "a name format does not say what is committed; leave temporary_path_cls and "
            "atomicity_options out"
        )
    return StandardNameFormat(step_prefix, step_format_fixed_length, single_host_load_and_broadcast)


def composite_name_format(
    write_name_format: NameFormat[Metadata], read_name_formats: Sequence[NameFormat[Metadata]]
) -> NameFormat[Metadata]:
    """Returns a format that writes one and reads several, in order of preference."""
    return CompositeNameFormat(write_name_format, tuple(read_name_formats))


def native_formats(name_format: NameFormat[Any]) -> tuple[NativeFormat, list[NativeFormat]]:
    """Returns how a native run names new steps, and what else it reads.

    Raises:
      Unsupported: the names are not a prefix and a number.
    """
    if isinstance(name_format, CompositeNameFormat):
        write = native_formats(name_format.write_name_format)[0]
        read = [native_formats(member)[0] for member in name_format.read_name_formats]
        return write, [member for member in read if member != write]
    return _native(name_format), []


def _native(name_format: NameFormat[Any]) -> NativeFormat:
    if isinstance(name_format, StandardNameFormat):
        prefix = step_prefix_with_underscore(name_format.step_prefix)
        return NativeFormat(prefix, name_format.step_format_fixed_length or 0)
    zero = str(name_format.build_name(0))
    digits = len(zero) - len(zero.rstrip("0"))
    native = NativeFormat(zero[: len(zero) - digits], 0 if digits == 1 else digits)
    for probe in _PROBES:
        name = str(name_format.build_name(probe))
        if name != native.build_name(probe):
            raise mp.Unsupported(
                "a step is named by a prefix and its number, padded with zeros if need be; "
                f"this format is another. step=`{probe}`, name=`{name}`, format=`{name_format}`; "
                "use standard_name_format"
            )
    return native


def build_step_path(base_path: Any, name_format: NameFormat[Any], step: int) -> Any:
    """Returns where a step is by its name."""
    return path_of(join(url_of(base_path), name_format.build_name(step)))


def build_step_metadatas(
    step_paths: Iterable[Any], build_metadata: Callable[[Any], MetadataT | None]
) -> Iterator[MetadataT]:
    """Yields what `build_metadata` makes of paths, without its Nones."""
    for path in step_paths:
        metadata = build_metadata(path)
        if metadata is not None:
            yield metadata


def step_prefix_with_underscore(step_prefix: str | None) -> str:
    """Returns the prefix with `_`; nothing for None."""
    return "" if step_prefix is None else f"{step_prefix}_"


def latest_step_metadata(root_path: Any, name_format: NameFormat[MetadataT]) -> MetadataT | None:
    """Returns the highest step, None where there is none."""
    return max(name_format.find_all(root_path), default=None, key=lambda metadata: metadata.step)


def step_metadata_of_checkpoint_path(checkpoint_path: Any, name_format: NameFormat[Any]) -> Any:
    """Returns the step at a path; `ValueError` where the format does not find it."""
    url = url_of(checkpoint_path)
    for metadata in name_format.find_all(url.rpartition("/")[0] or "/"):
        if name_of(str(metadata.path)) == name_of(url):
            return metadata
    raise ValueError(f"not a step by this format. path=`{checkpoint_path}`, format=`{name_format}`")


def find_step_path(
    base_path: Any,
    name_format: NameFormat[Any],
    *,
    step: int,
    include_uncommitted: bool = False,
) -> Any:
    """Returns where a step is; `ValueError` where it is not there.

    `include_uncommitted` finds nothing more: what is not committed has no name of a step yet.
    """
    del include_uncommitted
    return name_format.find_step(base_path, step).path


def maybe_find_step_metadata(
    base_path: Any, name_format: NameFormat[Any], *, step: int
) -> Any | None:
    """Returns a step, None where it is not there."""
    try:
        return name_format.find_step(base_path, step)
    except ValueError:
        return None


def get_save_directory(
    step: int,
    directory: Any,
    name: str | None = None,
    step_prefix: str | None = None,
    override_directory: Any | None = None,
    step_format_fixed_length: int | None = None,
    step_name_format: NameFormat[Any] | None = None,
) -> Any:
    """Returns where a step, or its item `name`, is saved."""
    if directory is None:
        raise ValueError("Directory cannot be None.")
    name_format = step_name_format or standard_name_format(
        step_prefix=step_prefix, step_format_fixed_length=step_format_fixed_length
    )
    if override_directory is not None:
        url = url_of(override_directory)
    else:
        url = join(url_of(directory), name_format.build_name(step))
    return path_of(url if name is None else join(url, name))


def step_from_checkpoint_name(name: str) -> int:
    """Returns the number of `12`, `step_12`, `step_0012`, also of an unfinished save."""
    match = re.fullmatch(r"(?:.+_)?(\d+)", name.split(TMP_DIR_SUFFIX)[0])
    if match is None:
        raise ValueError(f"Unrecognized name format: {name}.")
    return int(match[1])


def checkpoint_steps(checkpoint_dir: Any) -> list[int]:
    """Returns the committed steps of a run, ascending, in whichever format it has."""
    return [entry.step for entry in _entries(url_of(checkpoint_dir), None)]


def checkpoint_steps_paths(checkpoint_dir: Any) -> list[Any]:
    """Returns where the committed steps of a run are, ascending."""
    return [path_of(entry.url) for entry in _entries(url_of(checkpoint_dir), None)]


def any_checkpoint_step(checkpoint_dir: Any) -> int | None:
    """Returns a committed step of a run, None where there is none."""
    steps = checkpoint_steps(checkpoint_dir)
    return steps[-1] if steps else None


def is_path_finalized(path: Any, **_: Any) -> bool:
    """Tells whether a committed checkpoint is at a path."""
    return _is_committed(url_of(path))


def is_path_temporary(path: Any, **_: Any) -> bool:
    """Tells whether a path is what an unfinished save of Milepost or Orbax left."""
    name = name_of(url_of(path))
    return TMP_DIR_SUFFIX in name or _TMP_SUFFIX in name


is_checkpoint_finalized = is_path_finalized
is_tmp_checkpoint = is_path_temporary


@dataclasses.dataclass(frozen=True)
class TemporaryPath:
    """What an unfinished save left beside the steps."""

    path: Any

    def get(self) -> Any:
        """Returns where it is."""
        return self.path

    def get_final(self) -> Any:
        """Returns where the step would have been."""
        name = self.path.name.split(TMP_DIR_SUFFIX)[0].split(_TMP_SUFFIX)[0]
        return self.path.parent / name


def all_temporary_paths(checkpoint_dir: Any, **_: Any) -> list[TemporaryPath]:
    """Returns what unfinished saves left beside the steps of a local run.

    That is Orbax's: Milepost builds steps below `.milepost`, where nobody takes them for steps.
    """
    url = url_of(checkpoint_dir)
    if not is_local(url) or not path_of(url).is_dir():
        return []
    found = [child for child in path_of(url).iterdir() if is_path_temporary(child)]
    return [TemporaryPath(path) for path in sorted(found)]


def tmp_checkpoints(checkpoint_dir: Any) -> list[str]:
    """Returns the names of `all_temporary_paths`."""
    return [found.get().name for found in all_temporary_paths(checkpoint_dir)]


def is_standard_name_format(name_format: NameFormat[Any]) -> bool:
    """Tells whether it is a `StandardNameFormat`."""
    return isinstance(name_format, StandardNameFormat)


def single_host_load_and_broadcast_name_format(name_format: NameFormat[Any]) -> NameFormat[Any]:
    """Returns the format with `single_host_load_and_broadcast`; `ValueError` where it is not a
    standard one."""
    if not isinstance(name_format, StandardNameFormat):
        raise ValueError(f"only a standard name format broadcasts. format=`{name_format}`")
    return dataclasses.replace(name_format, single_host_load_and_broadcast=True)


def _broadcasts(name_format: Any) -> bool:
    return bool(getattr(name_format, "single_host_load_and_broadcast", False))


def _entries(url: str, name_format: StandardNameFormat | None) -> list[Any]:
    """Returns the committed steps of the run, found by its own format and this one."""
    keywords: dict[str, Any] = {}
    if name_format is not None:
        native = _native(name_format)
        keywords = {"step_prefix": native.prefix, "step_width": native.width}
    with mp.CheckpointManager(url, read_only=True, **keywords) as run:
        return [entry for entry in run.entries() if not entry.damaged]


def _is_committed(url: str) -> bool:
    try:
        return mp.open(url) is not None
    except (mp.NotFound, mp.Corrupt, mp.Unsupported):
        return False


def _nanoseconds(time: datetime.datetime | None) -> int | None:
    return None if time is None else round(time.timestamp() * 1000) * 1_000_000
