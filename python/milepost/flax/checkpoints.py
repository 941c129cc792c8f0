"""`flax.training.checkpoints` over Milepost: the same calls, the same files kept, each checkpoint
plain Zarr v3.

```text
  <ckpt_dir>/<prefix><step>/     a checkpoint that stands alone: mp.open and zarr.open read it
```

A save writes beside the final name, commits by one rename, and only then deletes what `overwrite`
and `keep` say. What Flax wrote before is read where it is: msgpack files, Orbax directories. Such
files count as steps: they are restored, stand in the way of an outdated save, and are replaced by
`overwrite=True`; `keep` does not delete them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from flax import errors

import milepost as mp

from .. import _foreign
from .._errors import SaveTimeout
from .._together import declining, resolve
from ..orbax.multihost import process_index
from .._save import cancel_and_wait
from . import _content, _distributed, _entry, _names, _orbax, _state
from ._directory import Directory, local
from ._entry import LOG
from ._names import natural_sort, safe_normpath
from ._retention import Retention
from .async_manager import AsyncManager, GlobalAsyncCheckpointManager

__all__ = [
    "AsyncManager",
    "GlobalAsyncCheckpointManager",
    "available_steps",
    "convert_pre_linen",
    "latest_checkpoint",
    "natural_sort",
    "restore_checkpoint",
    "safe_normpath",
    "save_checkpoint",
    "save_checkpoint_multiprocess",
]


def save_checkpoint(
    ckpt_dir: str | os.PathLike[str],
    target: Any,
    step: int | float,
    prefix: str = "checkpoint_",
    keep: int = 1,
    overwrite: bool = False,
    keep_every_n_steps: int | None = None,
    async_manager: AsyncManager | None = None,
    orbax_checkpointer: Any = None,
) -> str:
    """Saves the state dict of `target` as the checkpoint `<ckpt_dir>/<prefix><step>`, from one
    process.

    Args:
        ckpt_dir: a local directory, created where it is not there.
        target: any state: a `TrainState`, a pytree, a single array.
        step: a number of any kind, also fractional or negative.
        prefix: what names of checkpoints begin with.
        keep: so many of the last checkpoints stay, 0: all. Older ones are deleted once this one is
            committed.
        overwrite: a checkpoint of this step is replaced, and later ones deleted, once this one is
            committed.
        keep_every_n_steps: beside the last ones, each stays that is so far from the one kept before
            it.
        async_manager: the call returns when the state is captured; `wait_previous_save()` waits for
            the commit. What is immutable is not copied.
        orbax_checkpointer: writes the checkpoint instead, by its `save(path, target,
            force=overwrite)`.

    Returns:
        The path of the checkpoint.

    Raises:
        flax.errors.InvalidCheckpointError: there is one of this or a later step, and `overwrite` is
            not set.
        flax.errors.MPACheckpointingRequiredError: an array has shards in other processes.
        Invalid: something that is no checkpoint is in the way, or a leaf cannot be saved; it names
            the leaf.
    """
    return _save(
        _Save(ckpt_dir, target, step, prefix, Retention(keep, overwrite, keep_every_n_steps), False),
        async_manager,
        orbax_checkpointer,
        None,
    )


def save_checkpoint_multiprocess(
    ckpt_dir: str | os.PathLike[str],
    target: Any,
    step: int | float,
    prefix: str = "checkpoint_",
    keep: int = 1,
    overwrite: bool = False,
    keep_every_n_steps: int | None = None,
    async_manager: AsyncManager | None = None,
    gda_manager: Any = None,
    orbax_checkpointer: Any = None,
) -> str:
    """Saves as `save_checkpoint`, together with all processes of JAX: each writes its own shards.

    Args:
        gda_manager: a `GlobalAsyncCheckpointManager`, ours or JAX's. It is waited for; a save that
            takes longer than the `timeout_secs` of ours is cancelled. Flax's msgpack files need one
            for arrays that have shards in other processes; checkpoints of ours do not.

    Raises:
        SaveTimeout: it took longer than `timeout_secs`; nothing is visible.
    """
    if gda_manager is not None:
        gda_manager.wait_until_finished()
    return _save(
        _Save(ckpt_dir, target, step, prefix, Retention(keep, overwrite, keep_every_n_steps), None),
        async_manager,
        orbax_checkpointer,
        gda_manager,
        is_multiprocess=True,
    )


class _Save:
    """A save that was asked for: what, where, and what stays."""

    def __init__(
        self,
        ckpt_dir: Any,
        target: Any,
        step: Any,
        prefix: str,
        retention: Retention,
        together: bool | None,
    ) -> None:
        self.directory = Directory(ckpt_dir, prefix)
        self.target, self.step, self.retention = target, step, retention
        self.text = self.directory.text_of(step)
        self.path = self.directory.path_of(step)
        # `together` is None: with all processes of JAX, False: alone.
        self.meeting = resolve(together, self.path)

    def check(self) -> None:
        """Passes where it may be saved, by Flax's rule."""
        if not self.retention.overwrite:
            if self.directory.is_outdated(self.path):
                raise errors.InvalidCheckpointError(self.text, self.step)
        else:
            _entry.may_be_replaced(self.path)

    def clean(self) -> None:
        """Deletes what is superfluous now that it is committed."""
        self.directory.clean(self.path, self.retention)

    def start(self) -> tuple[mp.SaveHandle, str | None]:
        """Begins the save; where another library's checkpoint is to be replaced, under another
        name.
        """
        is_shared = self.meeting is not None
        with declining(self.meeting):
            items, said = _content.items_of(_state.to_state_dict(self.target))
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            kind = _entry.kind_of(self.path)
        beside = _entry.temporary(self.path, shared=is_shared) if kind == "foreign" else None
        handle = mp.save_async(
            beside or self.path,
            items=items,
            item_metadata=said,
            overwrite=is_shared if beside is not None else self.retention.overwrite,
            priority="foreground",
            together=self.meeting or False,
        )
        return handle, beside

    def finish(self, handle: mp.SaveHandle, beside: str | None, timeout: float | None) -> None:
        """Waits for the commit, then cleans; of several processes one cleans, once all know of the
        commit, and all wait until it has.
        """

        def follow() -> None:
            LOG.info("saved the checkpoint %s", self.path)
            if beside is not None:
                _entry.replace(beside, self.path)
            self.clean()

        try:
            handle.result(timeout)
        except SaveTimeout:
            handle.cancel()
            if handle.exception() is not None:
                raise
        follow() if self.meeting is None else self.meeting.first(follow, after_all=True)


def _save(
    save: _Save,
    async_manager: AsyncManager | None,
    orbax_checkpointer: Any,
    gda_manager: Any,
    *,
    is_multiprocess: bool = False,
) -> str:
    if async_manager is not None:
        _end_previous(async_manager.wait_previous_save, save.meeting)
    if orbax_checkpointer is not None:
        meeting = _orbax.meeting(orbax_checkpointer, save.path)
        _end_previous(lambda: _orbax.wait(orbax_checkpointer), meeting)
        with declining(meeting):
            save.check()
        overwrite = save.retention.overwrite
        clean = save.clean if process_index() == 0 else lambda: None
        _orbax.save(orbax_checkpointer, save.path, save.target, overwrite, clean)
        return save.text
    with declining(save.meeting):
        _check_processes(save, is_multiprocess)
        save.check()
    handle, beside = save.start()
    timeout = getattr(gda_manager, "timeout_secs", None)
    if async_manager is not None:
        async_manager.save_async(lambda: save.finish(handle, beside, timeout))
        return save.text
    try:
        save.finish(handle, beside, timeout)
    except KeyboardInterrupt:
        cancel_and_wait(handle)
        raise
    return save.text


def _end_previous(wait: Callable[[], None], meeting: mp.Together | None) -> None:
    """Waits for the save before; what it failed with is told here, and the other processes of this
    save need not wait.
    """
    with declining(meeting, is_old=True):
        try:
            wait()
        except mp.Cancelled as error:
            if meeting is None:
                raise
            LOG.warning("another process has cancelled the save before, and says why: %s", error)


def _check_processes(save: _Save, is_multiprocess: bool) -> None:
    """Passes where all of the target is saved, by this process or by several.

    Raises:
        MPACheckpointingRequiredError: an array is not all here, and others do not save, too.
    """
    import jax

    leaves = jax.tree_util.tree_leaves(_state.to_state_dict(save.target))
    here = all(leaf.is_fully_addressable for leaf in leaves if isinstance(leaf, jax.Array))
    if not here and not is_multiprocess:
        raise errors.MPACheckpointingRequiredError(save.text, save.step)


def restore_checkpoint(
    ckpt_dir: str | os.PathLike[str],
    target: Any,
    step: int | float | None = None,
    prefix: str = "checkpoint_",
    parallel: bool = True,
    gda_manager: Any = None,
    allow_partial_mpa_restoration: bool = False,
    orbax_checkpointer: Any = None,
    orbax_transforms: dict[str, Any] | None = None,
) -> Any:
    """Restores the latest checkpoint, or one step, into `target`.

    Args:
        ckpt_dir: a directory of checkpoints, or the path of one.
        target: what to restore into, by Flax's rules: shapes and data types of its leaves are not
            compared, what is stored wins. Where the target has a JAX array (or a
            `jax.ShapeDtypeStruct` with a sharding), one comes back, with the target's sharding;
            elsewhere NumPy arrays and numbers as they were saved. None: the state dict.
        step: which; None: the latest.
        parallel: whether a msgpack file of Flax's is read by several threads. Other checkpoints
            always are.
        gda_manager: needed where a msgpack file has arrays that several processes wrote.
        allow_partial_mpa_restoration: such arrays that the target does not have are left out.
        orbax_checkpointer: reads a checkpoint that is no msgpack file instead, by its `restore`.
        orbax_transforms: transformations for its handler; without a checkpointer, for Orbax's
            default one.

    Returns:
        The target with what was stored; `target` itself where there is no checkpoint and no step is
        named.

    Raises:
        ValueError: the step is not there; or the target has other fields, list lengths or keys than
            the checkpoint.
        Corrupt: no checkpoint there is whole.
        ForeignFormat: another library's checkpoint is there, and that library is not installed.
    """
    if orbax_checkpointer is not None:
        _orbax.wait(orbax_checkpointer)
    path = _chosen(ckpt_dir, step, prefix)
    if path is None:
        return target
    kind = _entry.kind_of(local(path))
    LOG.info("restoring the checkpoint %s (%s)", path, kind)
    if kind == "foreign" and os.path.isfile(local(path)) and not _is_safetensors(local(path)):
        state = _content.read_legacy(local(path), parallel)
        state = _distributed.restore(
            state, target, local(path), step, gda_manager, allow_partial_mpa_restoration
        )
        state = _content.place(state, target)
    elif orbax_checkpointer is not None or orbax_transforms is not None:
        restored = _orbax.restore(orbax_checkpointer, local(path), target, orbax_transforms)
        state = _state.to_state_dict(restored)
    elif kind == "foreign":
        state = _content.read_foreign(local(path), target)
    else:
        state = _content.read_ours(local(path), target)
    return state if target is None else _state.from_state_dict(target, state)


def _chosen(ckpt_dir: str | os.PathLike[str], step: Any, prefix: str) -> str | None:
    """The path of the checkpoint that is meant; None where there is none and that is no error."""
    directory = Directory(ckpt_dir, prefix)
    if step is not None:
        path = directory.text_of(step)
        if not os.path.exists(local(path)):
            raise ValueError(f"Matching checkpoint not found: {path}")
        return path
    own = local(directory.text)
    kind = _entry.kind_of(own)
    if kind in ("milepost", "damaged") or (kind == "foreign" and _is_checkpoint(own)):
        return directory.text
    if kind == "nothing":
        LOG.info("no checkpoint directory is there: %s", directory.text)
        return None
    latest = directory.latest()
    if latest is not None:
        return latest.path
    if others := directory.others_text():
        LOG.warning(
            "nothing is restored, for no checkpoint in %s begins with %r; there are: %s",
            directory.text,
            prefix,
            others,
        )
    return None


def _is_checkpoint(path: str) -> bool:
    """Whether a place of another library is one checkpoint, and no directory that holds some.

    A `model.safetensors`, or a tree of Orbax under any name, may lie beside the checkpoints.
    """
    found = _foreign.detect(path)
    if found is None or os.path.isfile(path):
        return os.path.isfile(path)
    is_step = os.path.exists(os.path.join(path, "_CHECKPOINT_METADATA"))
    return found.kind == "orbax" and ("" in found.items or is_step)


def _is_safetensors(path: str) -> bool:
    found = _foreign.detect(path)
    return found is not None and found.kind == "safetensors"


def latest_checkpoint(
    ckpt_dir: str | os.PathLike[str], prefix: str = "checkpoint_"
) -> str | None:
    """The path of the latest whole checkpoint, None where there is none.

    Raises:
        Corrupt: there are some, and none is whole.
    """
    directory = Directory(ckpt_dir, prefix)
    latest = directory.latest()
    if latest is None:
        return None
    return os.path.join(os.path.dirname(directory.text_of("")), latest.name)


def available_steps(
    ckpt_dir: str | os.PathLike[str], prefix: str = "checkpoint_", step_type: type = int
) -> list[int | float]:
    """The steps of the checkpoints there, ascending, as `step_type`.

    Raises:
        ValueError: a step is not written as a `step_type`.
    """
    entries = Directory(ckpt_dir, prefix).entries()
    return [step_type(e.rest) for e in entries if e.kind in ("milepost", "foreign")]


def convert_pre_linen(params: Any) -> Any:
    """Numbers the submodules of a parameter tree from before Linen by class: `Dense_1` beside
    `Conv_0` is `Dense_0`.
    """
    from flax import core

    if not isinstance(params, dict | core.FrozenDict):
        return params
    renamed: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for name in natural_sort(params):
        stem, mark, digits = name.rpartition("_")
        new = name
        if mark and digits.isdecimal():
            new = f"{stem}_{counts.get(stem, 0)}"
            counts[stem] = counts.get(stem, 0) + 1
        renamed[new] = convert_pre_linen(params[name])
    return core.freeze(renamed) if isinstance(params, core.FrozenDict) else renamed
