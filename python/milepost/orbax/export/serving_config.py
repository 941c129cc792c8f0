"""A serving configuration: a signature's name, its inputs, and what runs around the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..._errors import Invalid

Processor = Callable[..., Any]


@dataclasses.dataclass
class ServingConfig:
    """One serving signature of a `JaxModule`, by Orbax's names.

    In a Milepost checkpoint all processors are traced by JAX into the exported function, so they
    are functions of arrays. One that is a `tf.function` can only be part of a TF SavedModel.
    """

    signature_key: str | Sequence[str]
    """The signature's name, or several names of the same signature."""
    input_signature: Sequence[Any] | None = None
    """One entry an argument: trees of arrays, `jax.ShapeDtypeStruct` or `tf.TensorSpec`.

    A dimension of None is any size.
    """
    tf_preprocessor: Processor | None = None
    """Runs on the arguments; its result (a tuple: several) is the model's input."""
    tf_postprocessor: Processor | None = None
    """Runs after the model on its output."""
    preprocessors: Sequence[Any] = ()
    """Several that run one after the other instead of `tf_preprocessor`."""
    postprocessors: Sequence[Any] = ()
    """Several that run one after the other instead of `tf_postprocessor`."""
    data_processors: Sequence[Any] = ()
    """Orbax Model only."""
    extra_trackable_resources: Any = None
    """TF SavedModel only."""
    method_key: str | None = None
    """Which method of the `JaxModule`; None where it has one."""
    obm_export_options: Any = None
    """Orbax Model only."""
    preprocess_output_passthrough_enabled: bool = False
    """The preprocessor returns `(model input, extra)`; the postprocessor gets `(output, extra)`."""

    def __post_init__(self) -> None:
        if not self.signature_key:
            raise Invalid("a serving configuration has no `signature_key`")
        if self.tf_preprocessor is not None and self.preprocessors:
            raise self._both("tf_preprocessor", "preprocessors")
        if self.tf_postprocessor is not None and self.postprocessors:
            raise self._both("tf_postprocessor", "postprocessors")
        if self.data_processors and (self._before() or self._after()):
            raise self._both("data_processors", "pre- or postprocessors")

    def _both(self, first: str, second: str) -> Invalid:
        return Invalid(
            f"`{first}` and `{second}` are given at once",
            context={"signature": str(self.signature_key)},
            hint="give one of them",
        )

    def get_signature_keys(self) -> list[str]:
        """The names of the signature."""
        key = self.signature_key
        return [key] if isinstance(key, str) else [*key]

    def get_input_signature(self, required: bool = True) -> Any:
        """The inputs: as given, else the preprocessor's own `input_signature`.

        Raises:
            Invalid: there is neither, and one is `required`.
        """
        found = self.input_signature
        if found is None:
            found = getattr(self.tf_preprocessor, "input_signature", None)
        if found is None and required:
            raise Invalid(
                "a serving configuration has no `input_signature`",
                context={"signature": str(self.signature_key)},
                hint="say shapes and data types of the inputs, "
                "e.g. input_signature=[jax.ShapeDtypeStruct((8, 32), 'float32')]",
            )
        return found

    def get_infer_step(self, infer_step_fns: Processor | Mapping[str, Processor]) -> Processor:
        """The method that this configuration serves.

        Raises:
            Invalid: `method_key` names none, or is needed and missing.
        """
        if callable(infer_step_fns):
            return infer_step_fns
        return infer_step_fns[self.method(infer_step_fns)]

    def method(self, methods: Mapping[str, Any]) -> str:
        """The key of the method among those of a module."""
        context = {"signature": str(self.signature_key)}
        hint = f"methods: {', '.join(methods)}"
        if self.method_key is not None:
            if self.method_key not in methods:
                raise Invalid(f"no method `{self.method_key}`", context=context, hint=hint)
            return self.method_key
        if len(methods) != 1:
            raise Invalid("several methods, and no `method_key`", context=context, hint=hint)
        return next(iter(methods))

    def bind(
        self,
        infer_step_fns: Processor | Mapping[str, Processor],
        require_numpy: bool = True,
    ) -> dict[str, Processor]:
        """Each signature's function from arguments to output: processors and method in order.

        `require_numpy=False` is for methods that are TensorFlow functions, which a TF SavedModel
        alone can hold.
        """
        if not require_numpy:
            raise Invalid("`require_numpy=False` is for TensorFlow functions", hint="leave it out")
        step = self.get_infer_step(infer_step_fns)

        def serve(*inputs: Any) -> Any:
            return self.run(step, inputs)

        return dict.fromkeys(self.get_signature_keys(), serve)

    def run(self, step: Processor, inputs: tuple[Any, ...]) -> Any:
        """Arguments → preprocessors → method → postprocessors → output."""
        before, after = self._before(), self._after()
        extra: tuple[Any, ...] = ()
        for processor in before:
            made = processor(*inputs)
            inputs = made if isinstance(made, tuple) else (made,)
        if self.preprocess_output_passthrough_enabled:
            if not before or len(inputs) != 2:
                raise Invalid(
                    "with `preprocess_output_passthrough_enabled` the preprocessor returns two "
                    "values",
                    context={"signature": str(self.signature_key)},
                )
            inputs, extra = (inputs[0],), (inputs[1],)
        output = step(*inputs)
        for processor in after:
            output = processor(output, *extra)
        return output

    def _before(self) -> list[Processor]:
        return _functions([self.tf_preprocessor] if self.tf_preprocessor else self.preprocessors)

    def _after(self) -> list[Processor]:
        return _functions([self.tf_postprocessor] if self.tf_postprocessor else self.postprocessors)

    def processors(self) -> list[Processor]:
        """All processors, in the order in which they run."""
        return [*self._before(), *self._after()]


def _functions(processors: Sequence[Any]) -> list[Processor]:
    """Functions, as they are; Orbax's `DataProcessor`s are none.

    Raises:
        Invalid: one cannot be called.
    """
    for processor in processors:
        if not callable(processor):
            raise Invalid(
                f"a processor of type {type(processor).__name__} cannot be called",
                hint="give the function itself",
            )
    return list(processors)
