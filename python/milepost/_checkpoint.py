"""Open checkpoints: items, trees, leaves, and slices of leaves."""

from __future__ import annotations

import datetime
import functools
import os
from typing import Any, NamedTuple, Unpack

import numpy as np

from . import _milepost
from ._arrays import numpy_dtype
from ._errors import Corrupt, ForeignFormat, Invalid, NotFound, Unsupported
from ._leaf_view import LeafView
from ._place import Engine, Url, local_path, place
from ._restore import LoadOptions, load_node, load_tree
from ._structure import Branch, Node, key_text, text


class LeafInfo(NamedTuple):
    """What the index says of a leaf. ``data_type`` is its name in Zarr; sizes of shapes in elements."""

    path: str
    keys: tuple
    kind: str
    implementation: str | None
    data_type: str
    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    shard_shape: tuple[int, ...] | None
    stored_bytes: int

    @property
    def dtype(self) -> np.dtype:
        """The NumPy data type."""
        return numpy_dtype(self.data_type)

    def __repr__(self) -> str:
        if self.kind == "array":
            return f"{self.data_type}{list(self.shape)}"
        return self.kind if self.implementation is None else f"prng_key<{self.implementation}>"


class ItemInfo(NamedTuple):
    """What the record says of an item; sizes in bytes."""

    name: str
    kind: str
    leaves: int
    data_bytes: int
    stored_bytes: int
    handler: str | None
    metadata: Any


class ItemIndex:
    """The index of an item: its containers as saved, and its leaves."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @functools.cached_property
    def structure(self) -> Node:
        """The containers, with the numbers of the leaves."""
        return self._inner.structure()

    @functools.cached_property
    def leaves(self) -> list[LeafInfo]:
        """The leaves, in tree order."""
        return [LeafInfo(*leaf) for leaf in self._inner.leaves()]

    @functools.cached_property
    def by_path(self) -> dict[str, int]:
        """The number of each leaf by the text of its key path."""
        return {leaf.path: number for number, leaf in enumerate(self.leaves)}


class TreeView:
    """A part of an item's tree: index it with keys or key paths to come to its leaves."""

    def __init__(self, checkpoint: Checkpoint, item: str, node: Node, path: str) -> None:
        self._checkpoint, self._item, self._node, self.path = checkpoint, item, node, path

    def keys(self) -> list[str]:
        """The texts of the children's keys."""
        return [key_text(key) for key in self._node.keys] if isinstance(self._node, Branch) else []

    def __iter__(self):
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, key: Any) -> bool:
        return str(key) in self.keys()

    def __getitem__(self, key: Any) -> Any:
        below = str(key)
        if isinstance(self._node, Branch):
            # A key as it is comes before a path: a key may have slashes.
            below = next((text([k]) for k in self._node.keys if key_text(k) == below), below)
        path = f"{self.path}/{below}" if self.path else below
        return self._checkpoint.at(path, self._item)

    def load(self, *, exact: bool = True, progress: bool | None = None) -> Any:
        """Reads everything below, in its containers as saved; ``exact=False``: in dicts and lists."""
        return load_node(self._checkpoint.index(self._item), self._node, exact, progress)

    def _lines(self) -> list[str]:
        leaves = self._checkpoint.index(self._item).leaves
        return _tree_lines(self._node, leaves)

    def __repr__(self) -> str:
        return "\n".join([f"<TreeView {self._item}:{self.path or '(root)'}>", *self._lines()])

    def _repr_html_(self) -> str:
        import html

        return f"<pre>{html.escape(repr(self))}</pre>"


_LINES_MAX = 60


def _tree_lines(node: Node, leaves: list[LeafInfo], limit: int = _LINES_MAX) -> list[str]:
    """A tree as text, a line a node; what is beyond the limit is counted."""
    lines: list[str] = []
    left_out = 0

    def walk(node: Node, label: str, depth: int) -> None:
        nonlocal left_out
        if isinstance(node, Branch):
            what = node.kind if node.type_name is None else node.type_name.rpartition(".")[2]
            text = f"{what}({len(node.children)})"
        else:
            text = "None" if node is None else repr(leaves[node])
        if len(lines) >= limit:
            left_out += 1
        else:
            lines.append(f"{'  ' * depth}{label}{text}")
        if isinstance(node, Branch):
            for key, child in zip(node.keys, node.children, strict=True):
                walk(child, f"{key_text(key)}: ", depth + 1)

    walk(node, "", 1)
    if left_out:
        lines.append(f"  … and {left_out} more")
    return lines


def _size(count: float) -> str:
    """Bytes as people read them: ``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            break
        count /= 1000
    else:
        unit = "TB"
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def _moment(ms: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(ms / 1e3, datetime.timezone.utc)


class Checkpoint:
    """A committed checkpoint. Nothing but its record is read until it is asked for.

    It is what was at its place when it was opened: where another save replaces that, reads raise `Conflict`.
    ``checkpoint["params/h_0/kernel"]`` is one leaf, not read yet; a path of a container gives that part of the tree.
    """

    def __init__(self, inner: Any, lease: Any = None) -> None:
        self._inner = inner
        self._lease = lease

    @property
    def url(self) -> str:
        """Where it is."""
        return self._inner.url

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """The commit record."""
        return self._inner.record()

    @property
    def step(self) -> int | None:
        """The step, where it is one."""
        return self.record["step"]

    @property
    def metadata(self) -> dict[str, Any]:
        """What the user said of it when it was saved."""
        return self.record["metadata"]

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the step."""
        return self.record["metrics"]

    @property
    def created(self) -> datetime.datetime:
        """When the save began (UTC)."""
        return _moment(self.record["created_ms"])

    @property
    def committed(self) -> datetime.datetime:
        """When it was committed (UTC)."""
        return _moment(self.record["committed_ms"])

    @functools.cached_property
    def items(self) -> dict[str, ItemInfo]:
        """The items by name."""
        names = ItemInfo._fields
        return {i["name"]: ItemInfo(*(i[name] for name in names)) for i in self.record["items"]}

    def default_item(self) -> str:
        """The only item, else ``state``."""
        return self._inner.default_item()

    def index(self, item: str | None = None) -> ItemIndex:
        """The index of an item; read once."""
        name = self.default_item() if item is None else item
        if name not in self._indexes:
            self._indexes[name] = ItemIndex(self._inner.index(name))
        return self._indexes[name]

    @functools.cached_property
    def _indexes(self) -> dict[str, ItemIndex]:
        return {}

    def at(self, path: str, item: str | None = None) -> LeafView | TreeView:
        """The leaf at a key path, or the part of the tree below it."""
        name = self.default_item() if item is None else item
        try:
            return LeafView(self._inner.leaf(name, path))
        except (NotFound, Invalid) as error:
            node = _node_at(self.index(name), path)
            if node is _NOWHERE:
                raise error
            return TreeView(self, name, node, path)

    def __getitem__(self, path: str) -> LeafView | TreeView:
        if not isinstance(path, str):
            raise TypeError("a checkpoint is indexed by key paths: 'params/h_0/kernel'")
        return self.at(path)

    def tree(self, item: str | None = None) -> TreeView:
        """The tree of an item, to look at and to walk."""
        name = self.default_item() if item is None else item
        return TreeView(self, name, self.index(name).structure, "")

    def load(
        self,
        target: Any = None,
        select: str | list[str] | None = None,
        *,
        item: str | None = None,
        **options: Unpack[LoadOptions],
    ) -> Any:
        """Restores an item; as `milepost.load`."""
        unknown = sorted(set(options) - set(LoadOptions.__annotations__))
        if unknown:
            known = ", ".join(LoadOptions.__annotations__)
            raise TypeError(f"unknown option {unknown[0]!r}; options of a load are {known}")
        name = self.default_item() if item is None else item
        kind = self.items[name].kind if name in self.items else "tree"
        if kind == "json":
            asked = {"target": target, "select": select, **options}
            idle = [k for k, value in asked.items() if value is not None and k != "progress"]
            if idle:
                raise Invalid(f"a JSON item is loaded without {idle[0]}", context={"item": name})
            return self.json(name)
        if kind == "opaque":
            raise Invalid(
                "the item is files", context={"item": name}, hint="extract(item, directory) restores them"
            )
        return load_tree(self.index(name), target, select, **options)

    def json(self, item: str) -> Any:
        """The value of a JSON item."""
        return self._inner.json(item)

    def bytes(self, item: str) -> bytes:
        """The bytes of a bytes item."""
        return self._inner.bytes(item)

    def array(self, item: str) -> Any:
        """The array of an array item."""
        return LeafView(self._inner.leaf(item, "")).value()

    def files(self, item: str) -> list[tuple[str, int]]:
        """The files of an opaque item, with their sizes in bytes."""
        return self._inner.files(item)

    def extract(self, item: str, directory: str | os.PathLike, overwrite: bool = False) -> None:
        """Writes the files of an opaque item into a directory, which is made where it is not there."""
        self._inner.extract(item, os.fspath(directory), overwrite)

    def verify(self) -> dict[str, Any]:
        """Reads and checks every stored byte: ``good``, ``objects``, ``bytes``, ``findings``.

        Raises `Conflict` where the checkpoint was replaced, as any read.
        """
        return self._inner.verify()

    def export_safetensors(self, target: Url, **options: Any) -> list[tuple[str, int]]:
        """Writes an item as safetensors; returns the files with their sizes in bytes.

        Options: ``item``, ``select``, ``separator``, ``shard_bytes``, ``skip_unsupported``, ``overwrite``.
        """
        return _milepost.export_safetensors(self._inner, place(target), **options)

    def close(self) -> None:
        """Gives the lease back that keeps an evaluator's step from being deleted, where there is one."""
        self._lease = None

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _title(self) -> str:
        step = "" if self.step is None else f" step {self.step}"
        return f"<Checkpoint{step} at {self.url}, {self.committed:%Y-%m-%d %H:%M:%S} UTC>"

    def _lines(self) -> list[str]:
        lines = [f"  metrics: {self.metrics}"] if self.metrics else []
        for info in self.items.values():
            leaves = f", {info.leaves} leaves" if info.kind == "tree" else ""
            lines.append(f"  {info.name}: {info.kind}{leaves}, {_size(info.data_bytes)}")
        return lines

    def __repr__(self) -> str:
        return "\n".join([self._title(), *self._lines()])

    def _repr_html_(self) -> str:
        import html

        rows = "".join(
            f"<tr><td>{html.escape(i.name)}</td><td>{i.kind}</td><td>{i.leaves}</td>"
            f"<td>{_size(i.data_bytes)}</td></tr>"
            for i in self.items.values()
        )
        head = "<tr><th>item</th><th>kind</th><th>leaves</th><th>size</th></tr>"
        return f"<b>{html.escape(self._title())}</b><table>{head}{rows}</table>"


_NOWHERE = object()


def _node_at(index: ItemIndex, path: str) -> Any:
    """The node at a text path; `_NOWHERE` where there is none."""
    node: Any = index.structure
    for segment in path.split("/") if path else []:
        if not isinstance(node, Branch):
            return _NOWHERE
        found = [c for k, c in zip(node.keys, node.children, strict=True) if text([k]) == segment]
        if not found:
            return _NOWHERE
        node = found[0]
    return node


def open(url: Url, step: int | None = None, *, engine: Engine | None = None) -> Checkpoint:
    """Opens a checkpoint; of a run its newest step, or ``step``.

    Raises `NotFound` where nothing is there, `ForeignFormat` where it is another library's, `Corrupt`.
    """
    where = place(url, engine)
    try:
        if step is not None:
            return Checkpoint(_milepost.Checkpoint.step(where, int(step)))
        return Checkpoint(_milepost.Checkpoint.open(where))
    except NotFound as error:
        refuse_foreign(url, error)
        raise
    except Corrupt as error:  # a step of another library has no record, as a damaged one of ours
        refuse_foreign(error.context.get("checkpoint", url), error)
        raise


def refuse_foreign(url: Url, error: Exception) -> None:
    """Raises `ForeignFormat` where another library's checkpoints are at a place that has none of ours."""
    path = local_path(url)
    if path is None or not os.path.exists(path):
        return
    from . import _foreign

    if _foreign.detect(path) is not None or _foreign.steps(path):
        _foreign.refuse(path)


def load(
    url: Url,
    target: Any = None,
    select: str | list[str] | None = None,
    *,
    item: str | None = None,
    step: int | None = None,
    engine: Engine | None = None,
    **options: Unpack[LoadOptions],
) -> Any:
    """Restores a pytree.

    Args:
      url: a checkpoint, or a run: then its newest step, or ``step``.
      target: what is wanted: a pytree of arrays, `jax.ShapeDtypeStruct`, numbers, or ``...`` for a leaf as stored. A
        `jax.Array` or a struct with a sharding gives a `jax.Array` with it, read shard by shard; anything else NumPy.
        Its data types are a request: casts within a kind (float64 to float32) are made, others with
        ``cast="unsafe"``. Every mismatch of structure, shape and type is raised at once, before a byte is read.
      select: glob patterns of key paths, without a target: ``"params/**/kernel"``.
      item: which item; default the only one, else ``state``.
      exact: containers as saved (default); False: dicts and lists only.
      missing: ``"skip"`` keeps the target's own value where nothing is stored; a struct or ``...`` has none and is a
        mismatch. unexpected: ``"ignore"`` leaves out what
        the target does not have. containers: ``"by_name"`` lets lists, tuples and dicts meet.

    A restored `jax.Array` may use the memory that was read into (`jax.device_put` with ``may_alias``): nobody else has it.

    Raises: `TreeMismatch` (``.mismatches``), `NotFound`, `Corrupt`, `ForeignFormat`; `Conflict` where the checkpoint is
    replaced meanwhile.
    """
    try:
        checkpoint = open(url, step, engine=engine)
    except ForeignFormat as error:
        where = local_path(url)
        if where is None:
            raise
        return _load_foreign(where, step, target, item, error, foreign_options(select, options))
    return checkpoint.load(target, select, item=item, **options)


def foreign_options(select: Any, options: dict[str, Any]) -> dict[str, Any]:
    """What may be asked of another library's checkpoint: a cast. It is read without a progress bar."""
    asked = {**options, **({} if select is None else {"select": select})}
    idle = sorted(set(asked) - {"cast", "progress"})
    if idle:
        raise Unsupported(
            f"another library's checkpoint is loaded as a whole, without {idle[0]}",
            hint="convert it first: milepost.convert(src, run)",
        )
    return {"cast": options["cast"]} if "cast" in options else {}


def _load_foreign(
    path: str,
    step: int | None,
    target: Any,
    item: str | None,
    error: Exception,
    options: dict[str, Any],
) -> Any:
    """Reads another library's checkpoint in place; the newest step of a run, or ``step``."""
    from . import _foreign

    steps = _foreign.steps(path)
    if not steps:
        return _foreign.restore(path, target, item=item, **options)
    chosen = [s for s in steps if step is None or s.step == step]
    if not chosen:
        raise NotFound(f"no step {step}", context={"run": path}) from error
    return _foreign.restore(chosen[-1], target, item=item, **options)


async def load_async(url: Url, target: Any = None, select: Any = None, **options: Any) -> Any:
    """Restores a pytree without blocking the event loop; as `load`."""
    import asyncio

    return await asyncio.to_thread(load, url, target, select, **options)


__all__ = ["Checkpoint", "ItemIndex", "ItemInfo", "LeafInfo", "LeafView", "TreeView"]
