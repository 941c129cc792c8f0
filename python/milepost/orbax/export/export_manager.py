"""Exports a model as one checkpoint: parameters, StableHLO, serving configuration.

```text
  <path>/params       tree    the parameters, as any checkpoint's: readable alone
  <path>/function_0   bytes   jax.export's (parameters, inputs) → outputs; one a configuration
  <path>/export       json    signatures: function, inputs, outputs, platforms; versions
```

A function takes the parameters as a flat list in the order of the item's index, so that nothing of
the model's Python is needed to call it: no module, no container type.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..._errors import Invalid, Unsupported
from ..._structure import flatten, rebuild
from .constants import ExportModelType
from .jax_module import JaxModule, module_of
from .serving_config import ServingConfig
from .signature import arguments, described, plain

if TYPE_CHECKING:
    from ... import Saved
    from .exported_model import ExportedModel

FORMAT = "milepost.export"
VERSION = 1
PARAMS, CONFIG, FUNCTION = "params", "export", "function_"


class ExportManager:
    """Exports a model with its serving signatures, by Orbax's names.

    Both forms: `ExportManager(JaxModule(params, apply_fn), [ServingConfig(…), …])`, and
    `ExportManager(model, serving_config)` with a model of Flax's and one configuration.
    """

    def __init__(
        self,
        module: Any,
        serving_configs: ServingConfig | Mapping[str, Any] | Sequence[ServingConfig],
    ) -> None:
        """Takes a model and what it shall serve; nothing is traced yet.

        Args:
            module: a `JaxModule`, or what `module_of` makes one of.
            serving_configs: one or several; a mapping is one, by the names of its fields.

        Raises:
            Invalid: no configuration, two of the same key, an unknown method, or a field that only
                a TF SavedModel can honour.
        """
        self._module = module_of(module)
        self._configs = _configs(serving_configs)
        keys = [key for config in self._configs for key in config.get_signature_keys()]
        double = {key for key in keys if keys.count(key) > 1}
        if not keys or double:
            raise Invalid(
                f"two configurations of one signature: {', '.join(sorted(double))}"
                if double
                else "no serving configuration"
            )
        for config in self._configs:
            config.method(self._module.apply_fn_map)
            if self._module.export_version is ExportModelType.MILEPOST:
                _refuse_tensorflow(config)

    @property
    def serving_signatures(self) -> dict[str, Callable[..., Any]]:
        """Each signature's function of inputs, as it is served: processors, method, parameters."""
        bound = self._module.jax_methods
        found: dict[str, Callable[..., Any]] = {}
        for config in self._configs:
            found.update(config.bind(bound))
        return found

    @property
    def tf_module(self) -> Any:
        """Orbax's `tf.Module`.

        Raises:
            TypeError: there is none where no TF SavedModel is written.
            Unsupported: `orbax.export` or TensorFlow is not installed.
        """
        if self._module.export_version is not ExportModelType.TF_SAVEDMODEL:
            version = self._module.export_version
            raise TypeError(f"tf_module is a TF SavedModel's, this is {version}")
        from . import saved_model

        return saved_model.manager(self._module, self._configs).tf_module

    def save(
        self,
        model_path: Any,
        save_options: Any = None,
        signature_overrides: Mapping[str, Any] | None = None,
        *,
        overwrite: bool = False,
        **storage: Any,
    ) -> Saved | None:
        """Traces the signatures and writes the export.

        Args:
            model_path: a path or URL; nothing may be there but with `overwrite`.
            save_options: a TF SavedModel's.
            signature_overrides: other or more signatures as `jax.export.Exported`, functions of
                inputs alone; of a TF SavedModel what TensorFlow takes.
            overwrite: replaces a checkpoint that is there, safely.
            storage: storage options as of `milepost.save`.

        Returns:
            What was saved; None for a TF SavedModel or an Orbax Model.

        Raises:
            Invalid: a function cannot be traced for its inputs.
            AlreadyExists: something is there.
            Unsupported: a package is missing.
        """
        if self._module.export_version is not ExportModelType.MILEPOST:
            from . import saved_model

            if overwrite or storage:
                raise Invalid("`overwrite` and storage options are for ExportModelType.MILEPOST")
            manager = saved_model.manager(self._module, self._configs)
            manager.save(model_path, save_options, signature_overrides)
            return None
        if save_options is not None:
            raise Invalid("`save_options` are a TF SavedModel's", hint="leave them out")
        from ... import Bytes, Json, Tree, save

        functions, document = self._traced(signature_overrides or {})
        items = {PARAMS: Tree(self._module.model_params), CONFIG: Json(document)}
        items |= {f"{FUNCTION}{n}": Bytes(data) for n, data in enumerate(functions)}
        return save(model_path, items=items, overwrite=overwrite, **storage)

    def load(self, model_path: Any, **options: Any) -> ExportedModel:
        """Loads an export, this manager's or another's; see `milepost.orbax.export.load`."""
        if self._module.export_version is not ExportModelType.MILEPOST:
            from . import saved_model

            return saved_model.manager(self._module, self._configs).load(model_path, **options)
        from .exported_model import load

        return load(model_path, **options)

    def _traced(self, overrides: Mapping[str, Any]) -> tuple[list[bytes], dict[str, Any]]:
        """The functions as bytes, and the document that says what they are."""
        import jax
        import jaxlib

        functions: list[bytes] = []
        signatures: dict[str, Any] = {}
        for config in self._configs:
            keys = [key for key in config.get_signature_keys() if key not in overrides]
            if not keys:
                continue
            exported, inputs, outputs = self._exported(config)
            functions.append(serialized(exported, self._module.with_gradient))
            entry = _entry(len(functions) - 1, exported, inputs, outputs, config.method_key)
            signatures |= dict.fromkeys(keys, entry)
        for key, exported in overrides.items():
            functions.append(serialized(_override(key, exported), self._module.with_gradient))
            signatures[key] = _entry(len(functions) - 1, exported, *_of_exported(exported), None)
            signatures[key]["takes_params"] = False
        return functions, {
            "format": FORMAT,
            "version": VERSION,
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "with_gradient": self._module.with_gradient,
            "keys": list(signatures),
            "signatures": signatures,
        }

    def _exported(self, config: ServingConfig) -> tuple[Any, Any, Any]:
        """`jax.export.Exported` of one configuration, and its inputs and outputs."""
        import jax
        from jax import export

        key = config.method(self._module.apply_fn_map)
        method = self._module.apply_fn_map[key]
        where = ", ".join(config.get_signature_keys())
        polymorphic = self._module.input_polymorphic_shape_map[key]
        inputs = arguments(config.get_input_signature(), polymorphic, where)
        params = self._module.model_params
        _, leaves = flatten(params)
        arrays = [leaf for leaf in leaves if not isinstance(leaf, (str, bytes))]

        def function(flat: list[Any], given: tuple[Any, ...]) -> Any:
            rest = iter(flat)
            whole = [leaf if isinstance(leaf, (str, bytes)) else next(rest) for leaf in leaves]
            used = _restructured(given, inputs)
            return plain(config.run(lambda *a: method(rebuild(params, whole), *a), used))

        shapes = [jax.ShapeDtypeStruct(jax.numpy.shape(leaf), _dtype(leaf)) for leaf in arrays]
        try:
            exported = export.export(jax.jit(function), platforms=self._module.platforms)(
                shapes, plain(inputs)
            )
        except Exception as error:
            error.add_note(
                f"while tracing signature `{where}`: the method and its processors are functions "
                "that JAX traces; what needs TensorFlow can only be in a TF SavedModel, and sizes "
                "that are compared may have to be fixed in `input_signature` or named in "
                "`input_polymorphic_shape`"
            )
            raise
        outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
        return exported, plain(inputs), outputs


def _dtype(leaf: Any) -> Any:
    import jax

    return leaf.dtype if hasattr(leaf, "dtype") else jax.dtypes.result_type(leaf)


def _restructured(given: tuple[Any, ...], inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Plain containers as those of the signature, for a method that asks for their type."""
    _, leaves = flatten(given)
    return rebuild(inputs, leaves)


def _entry(
    number: int, exported: Any, inputs: Any, outputs: Any, method: str | None
) -> dict[str, Any]:
    return {
        "function": f"{FUNCTION}{number}",
        "method": method,
        "takes_params": True,
        "inputs": described(inputs),
        "outputs": described(outputs),
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
    }


def _of_exported(exported: Any) -> tuple[Any, Any]:
    import jax

    args, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    return args, jax.tree.unflatten(exported.out_tree, exported.out_avals)


def _override(key: str, exported: Any) -> Any:
    from jax import export

    if not isinstance(exported, export.Exported):
        raise Invalid(
            f"a signature override is no jax.export.Exported but {type(exported).__name__}",
            context={"signature": key},
            hint="export it first: jax.export.export(jax.jit(f))(*inputs)",
        )
    return exported


def serialized(exported: Any, with_gradient: bool) -> bytes:
    """The bytes of an exported function.

    Raises:
        Unsupported: `flatbuffers`, which JAX needs for it, is not installed.
    """
    try:
        return bytes(exported.serialize(vjp_order=1 if with_gradient else 0))
    except ImportError as cause:
        raise Unsupported(str(cause), hint="pip install flatbuffers") from cause


def _configs(given: Any) -> list[ServingConfig]:
    if isinstance(given, ServingConfig):
        return [given]
    if isinstance(given, Mapping):
        return [ServingConfig(**given)]
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise Invalid(
            f"a serving configuration is a ServingConfig, not {type(given).__name__}",
            hint='ServingConfig("serving_default", input_signature=[…])',
        )
    return [c if isinstance(c, ServingConfig) else ServingConfig(**c) for c in given]


def _refuse_tensorflow(config: ServingConfig) -> None:
    """Refuses what StableHLO cannot hold."""
    fields = [
        name
        for name in ("data_processors", "extra_trackable_resources", "obm_export_options")
        if getattr(config, name)
    ]
    fields += [
        f"a tf.function ({getattr(processor, '__name__', 'processor')})"
        for processor in config.processors()
        if hasattr(processor, "get_concrete_function")
    ]
    if fields:
        raise Invalid(
            f"only a TF SavedModel or an Orbax Model can hold: {', '.join(fields)}",
            context={"signature": ", ".join(config.get_signature_keys())},
            hint="write processors as functions that JAX traces, or give the JaxModule "
            "export_version=ExportModelType.TF_SAVEDMODEL",
        )
