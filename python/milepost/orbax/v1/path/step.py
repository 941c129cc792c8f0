"""How steps of a run are named, for `training.Checkpointer`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from milepost.orbax.path import step as v0_step

MetadataT = TypeVar("MetadataT", covariant=True)


class NameFormat(Protocol, Generic[MetadataT]):
    """Names steps and finds them by their names; only committed steps are found.

    A `Checkpointer` follows a format of your own if it gives a prefix and the number, padded with
    zeros or not; it refuses others (`Unsupported`), since no other program could find the steps.
    """

    def build_name(self, step: int) -> str:
        """Returns the name of a step."""
        ...

    def find_all(self, base_path: Any) -> Iterator[MetadataT]:
        """Yields the metadata of all steps below a directory."""
        ...

    def find_step(self, base_path: Any, step: int) -> MetadataT:
        """Returns the metadata of a step below a directory.

        Raises:
          ValueError: The step is not there.
        """
        ...


@dataclasses.dataclass(frozen=True)
class _NameFormat(NameFormat[Any]):
    """A v0 format that finds v1's metadata."""

    v0: Any

    def build_name(self, step: int) -> str:
        return self.v0.build_name(step)

    def find_all(self, base_path: Any) -> Iterator[Any]:
        for found in self.v0.find_all(base_path):
            yield _metadata(found)

    def find_step(self, base_path: Any, step: int) -> Any:
        return _metadata(self.v0.find_step(base_path, step))


def _metadata(found: Any) -> Any:
    from milepost.orbax.v1.training.metadata import CheckpointMetadata

    return CheckpointMetadata(
        found.step,
        found.path,
        metadata=None,
        init_timestamp_nsecs=found.init_timestamp_nsecs,
        commit_timestamp_nsecs=found.commit_timestamp_nsecs,
    )


def standard_name_format(
    *,
    step_prefix: str | None = None,
    step_format_fixed_length: int | None = None,
    single_host_load_and_broadcast: bool = False,
) -> NameFormat[Any]:
    """Returns the format of names like `23`, `0023`, `step_23` and `step_0023`.

    Args:
      step_prefix: Put before the number, with `_` between.
      step_format_fixed_length: Digits that the number is padded to with zeros.
      single_host_load_and_broadcast: One process lists for all; a single process for itself.
    """
    return _NameFormat(
        v0_step.standard_name_format(
            step_prefix=step_prefix,
            step_format_fixed_length=step_format_fixed_length,
            single_host_load_and_broadcast=single_host_load_and_broadcast,
        )
    )


def composite_name_format(
    write_name_format: NameFormat[Any], read_name_formats: Sequence[NameFormat[Any]]
) -> NameFormat[Any]:
    """Returns a format that names new steps by one format and finds those of several.

    Args:
      write_name_format: For new steps; one of `read_name_formats`.
      read_name_formats: The first that matches a step counts.

    Raises:
      ValueError: `write_name_format` is not among them.
    """
    read = [to_v0(name_format) for name_format in read_name_formats]
    return _NameFormat(v0_step.composite_name_format(to_v0(write_name_format), read))


def to_v0(name_format: Any) -> Any:
    """Returns a format as `milepost.orbax.path.step` knows it."""
    return name_format.v0 if isinstance(name_format, _NameFormat) else name_format


__all__ = ["NameFormat", "composite_name_format", "standard_name_format"]
