"""A loaded export: signatures that are called, with the parameters they were saved with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..._errors import Invalid, ItemNotFound, Unsupported
from .export_manager import CONFIG, FORMAT, PARAMS, VERSION
from .signature import plain


class ServingFunction:
    """One signature: inputs in, outputs out, as JAX arrays in dicts, lists and tuples."""

    def __init__(
        self, key: str, entry: Mapping[str, Any], exported: Any, model: ExportedModel
    ) -> None:
        self.key = key
        """The signature's name."""
        self.inputs: Any = entry["inputs"]
        """Shapes and data types, one entry an argument; a size that is a text is a symbol."""
        self.outputs: Any = entry["outputs"]
        """Shapes and data types of the outputs."""
        self.platforms: tuple[str, ...] = tuple(exported.platforms)
        """What the function is compiled for."""
        self.exported = exported
        """The `jax.export.Exported`."""
        self._takes_params = bool(entry["takes_params"])
        self._model = model

    def __repr__(self) -> str:
        return f"<ServingFunction {self.key}: {self.inputs} → {self.outputs}>"

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Calls the function; named inputs are the members of the one argument that is a dict.

        Raises:
            Invalid: shapes, data types or containers are not the signature's.
        """
        if named:
            if inputs:
                raise Invalid("inputs by position and by name", context={"signature": self.key})
            inputs = (named,)
        given = tuple(plain(entry) for entry in inputs)
        if self._takes_params:
            return self._checked(self._model.leaves, given)
        return self._checked(*inputs)

    def _checked(self, *arguments: Any) -> Any:
        try:
            return self.exported.call(*arguments)
        except ValueError as error:
            raise Invalid(
                f"the inputs are not the signature's: {str(error).strip()}",
                context={"signature": self.key},
                hint=f"inputs: {self.inputs}",
            ) from error


class ExportedModel:
    """An export that was loaded: `model.signatures["serving_default"](inputs)`, or `model(inputs)`.

    Nothing of the model's Python is needed. Parameters are read when the first function is called.
    """

    def __init__(self, checkpoint: Any, device: Any = None) -> None:
        self._checkpoint = checkpoint
        self._device = device
        self._leaves: list[Any] | None = None
        self.config: dict[str, Any] = _document(checkpoint)
        """The document of the export: signatures, versions."""
        functions: dict[str, Any] = {}
        self._shapes: list[Any] = []
        self.signatures: dict[str, ServingFunction] = {}
        for key in self.config["keys"]:
            entry = self.config["signatures"][key]
            name = entry["function"]
            if name not in functions:
                functions[name] = _deserialized(checkpoint.bytes(name))
            exported = functions[name]
            self.signatures[key] = ServingFunction(key, entry, exported, self)
            if entry["takes_params"]:
                self._shapes = _parameters(exported)

    def __repr__(self) -> str:
        return f"<ExportedModel {self._checkpoint.url}: {', '.join(self.signatures)}>"

    @property
    def params(self) -> Any:
        """The parameters as NumPy arrays, in their containers where those types are loaded."""
        return self._checkpoint.load(item=PARAMS)

    @property
    def leaves(self) -> list[Any]:
        """The parameters' arrays in the order the functions take them, on the device."""
        if self._leaves is None:
            self._leaves = _arrays(self._checkpoint, self._shapes, self._device)
        return self._leaves

    def __getitem__(self, key: str) -> ServingFunction:
        return self.signatures[key]

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Calls the signature `serving_default`, or the only one.

        Raises:
            Invalid: there are several, none of them the default.
        """
        functions: Mapping[str, Callable[..., Any]] = self.signatures
        if "serving_default" in functions:
            return functions["serving_default"](*inputs, **named)
        distinct = {entry["function"] for entry in self.config["signatures"].values()}
        if len(distinct) != 1:
            raise Invalid(
                "several signatures, and none is `serving_default`",
                hint=f"choose one: model.signatures[…] of {', '.join(functions)}",
            )
        return next(iter(functions.values()))(*inputs, **named)


def load(path: Any, *, device: Any = None) -> ExportedModel:
    """Loads an export of `ExportManager.save`.

    Args:
        path: its path or URL.
        device: a `jax.Device` for the parameters; None: JAX's default.

    Raises:
        NotFound: nothing is there.
        Unsupported: it is a checkpoint but no export, or one of a newer version; or a package is
            missing.
    """
    from ... import open

    return ExportedModel(open(path), device)


def _document(checkpoint: Any) -> dict[str, Any]:
    try:
        document = checkpoint.json(CONFIG)
    except ItemNotFound:
        document = None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise Unsupported(
            "the checkpoint is no export",
            context={"checkpoint": str(checkpoint.url)},
            hint="milepost.load restores its items; ExportManager.save writes exports",
        )
    if document.get("version") != VERSION:
        raise Unsupported(
            f"the export has version {document.get('version')}, this reads {VERSION}",
            context={"checkpoint": str(checkpoint.url)},
            hint="upgrade milepost",
        )
    return document


def _deserialized(data: bytes) -> Any:
    from jax import export

    try:
        return export.deserialize(bytearray(data))
    except ImportError as cause:
        raise Unsupported(str(cause), hint="pip install flatbuffers") from cause


def _parameters(exported: Any) -> list[Any]:
    """Shapes and data types of the parameters that a function takes."""
    import jax

    (parameters, _), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    return list(parameters)


def _arrays(checkpoint: Any, shapes: list[Any], device: Any) -> list[Any]:
    """All leaves of the parameters but text and bytes, which are part of the functions.

    Data types are those that were traced: JAX without 64 bits traces float64 as float32.
    """
    import jax
    import numpy as np

    from ..._restore import Want, read

    index = checkpoint.index(PARAMS)
    numbers = [n for n, leaf in enumerate(index.leaves) if leaf.kind not in ("str", "bytes")]
    values = read(index, [Want(number) for number in numbers])
    return [
        value
        if str(shape.dtype).startswith("key<")
        else jax.device_put(np.asarray(value, shape.dtype), device)
        for value, shape in zip(values, shapes, strict=True)
    ]
