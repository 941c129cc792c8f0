"""A model to be exported: parameters, and functions of parameters and inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..._errors import Invalid, TreeMismatch
from ..._structure import flatten, key_paths, text
from .constants import DEFAULT_METHOD_KEY, ExportModelType

ApplyFn = Callable[..., Any]


class JaxModule:
    """Parameters and the functions that use them, by Orbax's names.

    `apply_fn(params, *inputs)` is one function, or several by method key.
    """

    def __init__(
        self,
        params: Any,
        apply_fn: ApplyFn | Mapping[str, ApplyFn],
        trainable: Any = None,
        input_polymorphic_shape: Any = None,
        input_polymorphic_shape_symbol_values: Any = None,
        jax2tf_kwargs: Mapping[str, Any] | None = None,
        jit_compile: bool | Mapping[str, bool] = True,
        pspecs: Any = None,
        allow_multi_axis_sharding_consolidation: bool | None = None,
        export_version: ExportModelType = ExportModelType.MILEPOST,
        jax2obm_kwargs: Mapping[str, Any] | None = None,
        jax2obm_options: Any = None,
        *,
        platforms: tuple[str, ...] | list[str] | None = None,
    ) -> None:
        """Takes a model; nothing is traced yet.

        Args:
            params: a tree of arrays.
            apply_fn: the function, or functions by key.
            trainable: a boolean, or a tree of such as `params`: where any is true, the exported
                function keeps its derivative, so that what is loaded can be differentiated.
            input_polymorphic_shape: JAX's specification of the inputs' sizes (`"b, ..."`), a tree
                of such; by method key where there are several functions. None: as the serving
                configuration's signature says.
            export_version: what `ExportManager.save` writes.
            platforms: for which the functions are compiled: `("cpu", "cuda", "tpu")`; None: the one
                in use.
            input_polymorphic_shape_symbol_values: an Orbax Model's; as are `jax2obm_kwargs`,
                `jax2obm_options`.
            jax2tf_kwargs: a TF SavedModel's; as are `pspecs`,
                `allow_multi_axis_sharding_consolidation`, and `jit_compile=False`: a Milepost
                export is always compiled.

        Raises:
            Invalid: an argument that the `export_version` cannot honour.
        """
        self._params = params
        self._is_single = not isinstance(apply_fn, Mapping)
        self._methods = {DEFAULT_METHOD_KEY: apply_fn} if self._is_single else dict(apply_fn)
        for key, method in self._methods.items():
            if not callable(method):
                kind = type(method).__name__
                raise Invalid(f"`apply_fn` is no function but {kind}", context={"method": key})
        self._polymorphic = input_polymorphic_shape
        self._trainable = trainable
        self._version = export_version
        self.platforms = None if platforms is None else tuple(platforms)
        #: What a TF SavedModel or an Orbax Model takes besides, as given.
        self.others = {
            "input_polymorphic_shape_symbol_values": input_polymorphic_shape_symbol_values,
            "jax2tf_kwargs": jax2tf_kwargs,
            "jit_compile": jit_compile,
            "pspecs": pspecs,
            "allow_multi_axis_sharding_consolidation": allow_multi_axis_sharding_consolidation,
            "jax2obm_kwargs": jax2obm_kwargs,
            "jax2obm_options": jax2obm_options,
        }
        self._check()

    def _check(self) -> None:
        if not isinstance(self._version, ExportModelType):
            raise Invalid(
                f"no such export version: {self._version!r}", hint="ExportModelType.MILEPOST"
            )
        if self._version is not ExportModelType.MILEPOST:
            if self.platforms is not None:
                raise Invalid("`platforms` is for ExportModelType.MILEPOST", hint="leave it out")
            return
        jit = self.others["jit_compile"]
        flags = jit.values() if isinstance(jit, Mapping) else [jit]
        given = [n for n, value in self.others.items() if n != "jit_compile" and value is not None]
        given += [] if all(flags) else ["jit_compile=False"]
        if given:
            raise Invalid(
                f"only a TF SavedModel or an Orbax Model can honour: {', '.join(given)}",
                hint="leave them out, or give export_version=ExportModelType.TF_SAVEDMODEL",
            )

    @property
    def apply_fn_map(self) -> dict[str, ApplyFn]:
        """The functions by method key."""
        return dict(self._methods)

    @property
    def model_params(self) -> Any:
        """The parameters."""
        return self._params

    @property
    def model_param_names(self) -> list[str]:
        """The key paths of the parameters, joined with `.` as Orbax does."""
        node, _ = flatten(self._params)
        return [text(keys).replace("/", ".") for keys in key_paths(node)]

    @property
    def export_version(self) -> ExportModelType:
        """What `ExportManager.save` writes."""
        return self._version

    @property
    def with_gradient(self) -> bool:
        """Whether the exported functions keep their derivative."""
        import jax

        return any(bool(flag) for flag in jax.tree.leaves(self._trainable))

    @property
    def trainable(self) -> Any:
        """As given."""
        return self._trainable

    @property
    def input_polymorphic_shape_map(self) -> dict[str, Any]:
        """The specification of the inputs' sizes by method key."""
        if self._is_single:
            return {DEFAULT_METHOD_KEY: self._polymorphic}
        if self._polymorphic is None:
            return dict.fromkeys(self._methods)
        given = self._polymorphic
        if not isinstance(given, Mapping) or set(given) - set(self._methods):
            raise Invalid(
                "`input_polymorphic_shape` is not by method key, as `apply_fn` is",
                hint=f"methods: {', '.join(self._methods)}",
            )
        return {key: given.get(key) for key in self._methods}

    @property
    def jax2tf_kwargs_map(self) -> dict[str, Any]:
        """Options of jax2tf by method key.

        Raises:
            TypeError: this is not for a TF SavedModel.
        """
        if self._version is not ExportModelType.TF_SAVEDMODEL:
            raise TypeError(f"jax2tf_kwargs_map is a TF SavedModel's, this is for {self._version}")
        given = self.others["jax2tf_kwargs"]
        return {DEFAULT_METHOD_KEY: given} if self._is_single else dict(given or {})

    @property
    def jax_methods(self) -> dict[str, Callable[..., Any]]:
        """The methods with the parameters bound, compiled by JAX; `update_variables` counts."""
        import jax

        def bound(method: ApplyFn) -> Callable[..., Any]:
            compiled = jax.jit(method)
            return lambda *inputs: compiled(self._params, *inputs)

        return {key: bound(method) for key, method in self._methods.items()}

    @property
    def methods(self) -> dict[str, Callable[..., Any]]:
        """As `jax_methods`: there is no TensorFlow between."""
        return self.jax_methods

    def update_variables(self, params: Any) -> None:
        """Takes other parameters of the same structure, shapes and data types.

        Raises:
            TreeMismatch: they differ.
        """
        import jax

        def shapes(tree: Any) -> dict[str, tuple[Any, Any]]:
            node, leaves = flatten(tree)
            avals = (jax.eval_shape(lambda leaf: leaf, leaf) for leaf in leaves)
            paths = (text(keys) for keys in key_paths(node))
            return {path: (aval.shape, aval.dtype) for path, aval in zip(paths, avals, strict=True)}

        old, new = shapes(self._params), shapes(params)
        found = [
            (path, f"was {_shown(old.get(path))}, is {_shown(new.get(path))}")
            for path in sorted(old.keys() | new.keys())
            if old.get(path) != new.get(path)
        ]
        if found or jax.tree.structure(params) != jax.tree.structure(self._params):
            raise TreeMismatch(
                "other parameters than the module has", mismatches=found or [("", "containers")]
            )
        self._params = params

    def obm_module_to_jax_exported_map(self, model_inputs: Any) -> dict[str, Any]:
        """Each method as `jax.export.Exported`, for inputs like `model_inputs`.

        Those are the tree of the one input, or a tuple of several.
        """
        import jax
        from jax import export

        inputs = model_inputs if isinstance(model_inputs, tuple) else (model_inputs,)
        return {
            key: export.export(jax.jit(method), platforms=self.platforms)(self._params, *inputs)
            for key, method in self._methods.items()
        }


def _shown(found: tuple[Any, Any] | None) -> str:
    return "not there" if found is None else f"{found[1]}{list(found[0])}"


def module_of(model: Any) -> JaxModule:
    """A `JaxModule` of what is evidently a model with its parameters.

    These are: a `JaxModule`, a `flax.nnx.Module`, a bound `flax.linen.Module`, a train state
    (`apply_fn` and `params`), and a function of inputs alone.

    Raises:
        Invalid: it is none of these; a linen module that is not bound has no parameters.
    """
    import sys

    if isinstance(model, JaxModule):
        return model
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(model, nnx.Module):
        graph, state = nnx.split(model)
        return JaxModule(state, lambda params, *inputs: nnx.merge(graph, params)(*inputs))
    linen = sys.modules.get("flax.linen")
    if linen is not None and isinstance(model, linen.Module):
        if model.scope is None:
            raise Invalid(
                "a linen module that is not bound has no parameters",
                hint="give model.bind(variables), or JaxModule(variables, model.apply)",
            )
        unbound, variables = model.unbind()
        return JaxModule(variables, lambda params, *inputs: unbound.apply(params, *inputs))
    if callable(getattr(model, "apply_fn", None)) and hasattr(model, "params"):
        apply = model.apply_fn
        return JaxModule(model.params, lambda params, *inputs: apply({"params": params}, *inputs))
    if callable(model):
        return JaxModule({}, lambda params, *inputs: model(*inputs))
    raise Invalid(
        f"no model: {type(model).__name__}",
        hint="give JaxModule(params, apply_fn), an nnx module, a bound linen module, or a train "
        "state",
    )
