"""Serving export: saved with a model's Python, called without it."""

from __future__ import annotations

import collections
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import milepost as mp
import numpy as np
import pytest
from flax import linen, nnx
from milepost.orbax.export import (
    ExportManager,
    ExportModelType,
    JaxModule,
    ServingConfig,
    constants,
    load,
)

F32 = jnp.float32


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def linear(params, x):
    return {"y": x @ params["w"] + params["b"]}


PARAMS = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(4, np.float32)}


def exported(path, module, *configs, **options):
    ExportManager(module, configs).save(path, **options)
    return load(path)


def test_a_module_is_called_again_with_the_same_result(tmp_path):
    model = exported(
        tmp_path / "m",
        JaxModule(PARAMS, linear),
        ServingConfig("serving_default", input_signature=[shape(2, 3)]),
    )
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    expected = linear(PARAMS, x)["y"]
    np.testing.assert_allclose(model(x)["y"], expected, rtol=1e-6)
    np.testing.assert_array_equal(model.signatures["serving_default"](x)["y"], model(x)["y"])
    assert isinstance(model(x)["y"], jax.Array)


def test_another_process_calls_it_without_the_models_code(tmp_path):
    script = """
        import sys
        import numpy as np
        from milepost.orbax.export import load
        model = load(sys.argv[1])
        print(np.asarray(model(np.ones((5, 3), np.float32))["y"]).sum())
        assert not any(name.startswith(("flax", "optax", "orbax")) for name in sys.modules)
    """
    state = nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    module = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    graph, _ = nnx.split(module)
    apply = lambda params, x: {"y": nnx.merge(graph, params)(x)}  # noqa: E731
    ExportManager(
        JaxModule(state, apply), [ServingConfig("serving_default", [shape(None, 3)])]
    ).save(tmp_path / "m")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path / "m"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(float(module(jnp.ones((5, 3))).sum()), rel=1e-5)


def test_one_checkpoint_holds_parameters_functions_and_configuration(tmp_path):
    saved = ExportManager(
        JaxModule(PARAMS, linear), [ServingConfig(["a", "b"], [shape(None, 3)])]
    ).save(tmp_path / "m")
    assert saved.url == str(tmp_path / "m")
    checkpoint = mp.open(tmp_path / "m")
    assert {name: item.kind for name, item in checkpoint.items.items()} == {
        "params": "tree",
        "function_0": "bytes",
        "export": "json",
    }
    np.testing.assert_array_equal(checkpoint.load(item="params")["w"], PARAMS["w"])
    document = checkpoint.json("export")
    assert document["signatures"]["a"] == document["signatures"]["b"]
    assert document["signatures"]["a"]["inputs"] == [{"shape": ["batch", 3], "dtype": "float32"}]
    assert document["signatures"]["a"]["outputs"] == {
        "y": {"shape": ["batch", 4], "dtype": "float32"}
    }
    checkpoint.verify()


def test_the_short_form_takes_flax_models_and_one_configuration(tmp_path):
    config = ServingConfig("serving_default", [shape(2, 3)])
    x = jnp.ones((2, 3))
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(1))
    ExportManager(model, config).save(tmp_path / "nnx")
    np.testing.assert_allclose(load(tmp_path / "nnx")(x), model(x), rtol=1e-6)

    dense = linen.Dense(4)
    variables = dense.init(jax.random.key(0), x)
    ExportManager(dense.bind(variables), config).save(tmp_path / "linen")
    np.testing.assert_allclose(load(tmp_path / "linen")(x), dense.apply(variables, x), rtol=1e-6)

    import optax
    from flax.training.train_state import TrainState

    state = TrainState.create(apply_fn=dense.apply, params=variables["params"], tx=optax.sgd(0.1))
    ExportManager(state, config).save(tmp_path / "state")
    np.testing.assert_allclose(load(tmp_path / "state")(x), dense.apply(variables, x), rtol=1e-6)

    ExportManager(lambda x: x * 2, {"signature_key": "f", "input_signature": [shape(2)]}).save(
        tmp_path / "function"
    )
    np.testing.assert_array_equal(load(tmp_path / "function")(jnp.ones(2)), [2, 2])

    with pytest.raises(mp.Invalid, match="not bound"):
        ExportManager(dense, config)
    with pytest.raises(mp.Invalid, match="no model: int"):
        ExportManager(3, config)


def test_several_methods_and_signatures_find_their_functions(tmp_path):
    module = JaxModule(PARAMS, {"double": lambda p, x: x * 2, "linear": linear})
    model = exported(
        tmp_path / "m",
        module,
        ServingConfig("twice", [shape(2)], method_key="double"),
        ServingConfig(["lin", "alias"], [shape(1, 3)], method_key="linear"),
    )
    assert list(model.signatures) == ["twice", "lin", "alias"]
    np.testing.assert_array_equal(model["twice"](np.ones(2, np.float32)), [2, 2])
    x = np.ones((1, 3), np.float32)
    np.testing.assert_array_equal(model["lin"](x)["y"], model["alias"](x)["y"])
    assert model["lin"].exported is model["alias"].exported
    with pytest.raises(mp.Invalid, match="several signatures.*\n.*twice, lin, alias"):
        model(x)
    with pytest.raises(mp.Invalid, match="several methods"):
        ExportManager(module, ServingConfig("f", [shape(2)]))
    with pytest.raises(mp.Invalid, match="no method `other`.*\n.*double, linear"):
        ExportManager(module, ServingConfig("f", [shape(2)], method_key="other"))


@pytest.mark.parametrize("polymorphic", [None, "b, 3", "b, ..."])
def test_sizes_that_are_not_known_are_any(tmp_path, polymorphic):
    module = JaxModule(PARAMS, linear, input_polymorphic_shape=polymorphic)
    size = None if polymorphic is None else 1
    model = exported(tmp_path / "m", module, ServingConfig("f", [shape(size, 3)]))
    for rows in (1, 7):
        assert model(np.ones((rows, 3), np.float32))["y"].shape == (rows, 4)
    with pytest.raises(mp.Invalid, match="inputs are not the signature's"):
        model(np.ones((2, 5), np.float32))


def test_inputs_are_trees_and_leading_sizes_are_one_batch(tmp_path):
    def apply(params, inputs):
        return inputs["ids"].sum(1) + inputs["mask"][:, 0] * params

    signature = [{"ids": shape(None, None, dtype="int32"), "mask": shape(None, 2, dtype="int32")}]
    model = exported(tmp_path / "m", JaxModule(3, apply), ServingConfig("f", signature))
    assert model["f"].inputs == [
        {
            "ids": {"shape": ["batch", "d0_1"], "dtype": "int32"},
            "mask": {"shape": ["batch", 2], "dtype": "int32"},
        }
    ]
    ids, mask = np.ones((2, 5), np.int32), np.ones((2, 2), np.int32)
    np.testing.assert_array_equal(model({"ids": ids, "mask": mask}), [8, 8])
    np.testing.assert_array_equal(model(ids=ids, mask=mask), [8, 8])
    with pytest.raises(mp.Invalid):
        model({"ids": ids})


def test_a_polymorphic_shape_may_be_a_tree_and_by_method(tmp_path):
    def apply(params, inputs):
        return inputs["a"] + inputs["b"][0]

    module = JaxModule(
        {}, {"f": apply}, input_polymorphic_shape={"f": {"a": "n", "b": None}}
    )
    model = exported(tmp_path / "m", module, ServingConfig("f", [{"a": shape(1), "b": shape(2)}]))
    assert model({"a": np.ones(9, np.float32), "b": np.ones(2, np.float32)}).shape == (9,)
    with pytest.raises(mp.Invalid, match="not by method key"):
        ExportManager(
            JaxModule({}, {"f": apply}, input_polymorphic_shape="b"),
            ServingConfig("f", [shape(1)]),
        ).save(tmp_path / "n")
    with pytest.raises(mp.Invalid, match="polymorphic"):
        ExportManager(
            JaxModule({}, apply, input_polymorphic_shape={"zz": "n"}),
            ServingConfig("f", [{"a": shape(1), "b": shape(2)}]),
        ).save(tmp_path / "n")
    assert not (tmp_path / "n").exists()


def test_several_positional_inputs_are_passed_one_by_one(tmp_path):
    module = JaxModule({}, lambda p, a, b: a - b, input_polymorphic_shape=("n", "n"))
    model = exported(tmp_path / "m", module, ServingConfig("f", [shape(1), shape(1)]))
    np.testing.assert_array_equal(model(np.full(3, 5, F32), np.full(3, 2, F32)), [3, 3, 3])


def test_tensor_specs_of_tensorflow_are_understood_without_it(tmp_path):
    class TensorShape:
        def as_list(self):
            return [None, 3]

    class DType:
        as_numpy_dtype = np.float32

    spec = type("TensorSpec", (), {"shape": TensorShape(), "dtype": DType()})()
    model = exported(tmp_path / "m", JaxModule(PARAMS, linear), ServingConfig("f", [spec]))
    assert model(np.ones((6, 3), np.float32))["y"].shape == (6, 4)


def test_processors_are_part_of_the_function(tmp_path):
    config = ServingConfig(
        "f",
        [shape(2, 3)],
        tf_preprocessor=lambda x: x / 2,
        tf_postprocessor=lambda out: {"total": out["y"].sum()},
    )
    model = exported(tmp_path / "m", JaxModule(PARAMS, linear), config)
    x = np.ones((2, 3), np.float32)
    assert float(model(x)["total"]) == float(linear(PARAMS, x / 2)["y"].sum())
    manager = ExportManager(JaxModule(PARAMS, linear), config)
    assert float(manager.serving_signatures["f"](x)["total"]) == float(model(x)["total"])

    chain = ServingConfig("f", [shape(2)], preprocessors=[lambda x: x + 1, lambda x: (x, x)],
                          postprocessors=[lambda y: y * 10])
    model = exported(tmp_path / "chain", JaxModule({}, lambda p, a, b: a + b), chain)
    np.testing.assert_array_equal(model(np.zeros(2, np.float32)), [20, 20])

    extra = ServingConfig("f", [shape(2)], tf_preprocessor=lambda x: (x, x * 100),
                          tf_postprocessor=lambda y, e: y + e,
                          preprocess_output_passthrough_enabled=True)
    model = exported(tmp_path / "extra", JaxModule({}, lambda p, x: -x), extra)
    np.testing.assert_array_equal(model(np.ones(2, np.float32)), [99, 99])


def test_containers_of_the_models_own_become_plain_ones(tmp_path):
    Out = collections.namedtuple("Out", "mean rest")
    In = collections.namedtuple("In", "x")

    def apply(params, inputs):
        assert isinstance(inputs, In), "the method gets what its signature says"
        return Out(inputs.x.mean(), (inputs.x, [params["b"]]))

    model = exported(tmp_path / "m", JaxModule(PARAMS, apply), ServingConfig("f", [In(shape(3))]))
    got = model(In(np.arange(3, dtype=np.float32)))
    assert float(got["mean"]) == 1
    assert isinstance(got["rest"], tuple)
    assert float(model({"x": np.arange(3, dtype=np.float32)})["mean"]) == 1


def test_parameters_of_every_kind_reach_the_function_in_order(tmp_path):
    params = {
        "z": jnp.full(2, 1, jnp.bfloat16),
        "a": np.full(2, 2.0),
        "key": jax.random.key(3),
        "name": "relu",
        "none": None,
        "n": 4,
        "list": [np.int8(5), jnp.zeros((0, 3))],
    }

    def apply(p, x):
        assert p["name"] == "relu"
        assert p["none"] is None
        noise = jax.random.uniform(p["key"], (2,))
        return x * p["z"] + p["a"] * p["n"] + p["list"][0] + noise + p["list"][1].size

    model = exported(tmp_path / "m", JaxModule(params, apply), ServingConfig("f", [shape(2)]))
    x = np.ones(2, np.float32)
    np.testing.assert_allclose(model(x), jax.jit(lambda x: apply(params, x))(x), rtol=1e-6)
    assert model.params["name"] == "relu"


def test_what_is_trainable_can_be_differentiated(tmp_path):
    config = ServingConfig("f", [shape(2, 3)])
    x = jnp.ones((2, 3))
    for trainable in (True, {"w": True, "b": False}):
        path = tmp_path / str(type(trainable).__name__)
        model = exported(path, JaxModule(PARAMS, linear, trainable=trainable), config)
        grad = jax.grad(lambda x: model(x)["y"].sum())(x)
        np.testing.assert_allclose(grad, np.tile(PARAMS["w"].sum(1), (2, 1)))
    model = exported(tmp_path / "no", JaxModule(PARAMS, linear), config)
    with pytest.raises(Exception):
        jax.grad(lambda x: model(x)["y"].sum())(x)


def test_a_function_is_compiled_for_the_platforms_that_are_named(tmp_path):
    module = JaxModule(PARAMS, linear, platforms=("cpu", "cuda", "tpu"))
    model = exported(tmp_path / "m", module, ServingConfig("f", [shape(2, 3)]))
    assert model["f"].platforms == ("cpu", "cuda", "tpu")
    assert model(np.ones((2, 3), np.float32))["y"].shape == (2, 4)
    alien = JaxModule(PARAMS, linear, platforms=("tpu",))
    model = exported(tmp_path / "tpu", alien, ServingConfig("f", [shape(2, 3)]))
    with pytest.raises(mp.Invalid, match="(?i)platform"):
        model(np.ones((2, 3), np.float32))


def test_nothing_is_overwritten_unless_it_may_be(tmp_path):
    manager = ExportManager(JaxModule(PARAMS, linear), ServingConfig("f", [shape(2, 3)]))
    manager.save(tmp_path / "m")
    with pytest.raises(mp.AlreadyExists):
        manager.save(tmp_path / "m")
    manager.save(tmp_path / "m", overwrite=True, compression="zstd")
    assert manager.load(tmp_path / "m")(np.ones((2, 3), np.float32))["y"].shape == (2, 4)


def test_overrides_are_more_signatures_or_others(tmp_path):
    other = jax.export.export(jax.jit(lambda x: x + 1))(shape(2))
    manager = ExportManager(JaxModule(PARAMS, linear), ServingConfig("f", [shape(2, 3)]))
    manager.save(tmp_path / "more", signature_overrides={"plus": other})
    assert list(load(tmp_path / "more").signatures) == ["f", "plus"]
    manager.save(tmp_path / "instead", signature_overrides={"f": other})
    np.testing.assert_array_equal(load(tmp_path / "instead")["f"](np.ones(2, np.float32)), [2, 2])
    with pytest.raises(mp.Invalid, match="no jax.export.Exported but function"):
        manager.save(tmp_path / "no", signature_overrides={"f": lambda x: x})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: JaxModule({}, abs, pspecs={}), "pspecs"),
        (lambda: JaxModule({}, abs, jit_compile=False), "jit_compile=False"),
        (lambda: JaxModule({}, abs, jax2tf_kwargs={"a": 1}), "jax2tf_kwargs"),
        (lambda: JaxModule({}, abs, jax2obm_options=1), "jax2obm_options"),
        (lambda: JaxModule({}, 3), "no function but int"),
        (lambda: JaxModule({}, abs, export_version="x"), "no such export version"),
        (lambda: ServingConfig(""), "no `signature_key`"),
        (lambda: ServingConfig("f", tf_preprocessor=abs, preprocessors=[abs]), "at once"),
        (lambda: ServingConfig("f", tf_postprocessor=abs, postprocessors=[abs]), "at once"),
        (lambda: ServingConfig("f", data_processors=[1], preprocessors=[abs]), "at once"),
        (lambda: ExportManager(abs, []), "no serving configuration"),
        (lambda: ExportManager(abs, [ServingConfig("f"), ServingConfig(["g", "f"])]), "two.*f"),
        (lambda: ExportManager(abs, 3), "not int"),
        (lambda: ExportManager(abs, ServingConfig("f", data_processors=[1])), "data_processors"),
        (lambda: ExportManager(abs, ServingConfig("f", extra_trackable_resources=1)), "extra_"),
        (lambda: ExportManager(abs, ServingConfig("f", obm_export_options=1)), "obm_export_opt"),
        (lambda: ExportManager(abs, ServingConfig("f", preprocessors=[3])), "cannot be called"),
        (lambda: ExportManager(abs, ServingConfig("f")).save("x"), "no `input_signature`"),
        (lambda: ExportManager(abs, ServingConfig("f", ["x"])).save("x"), "no shape and data type"),
        (lambda: ExportManager(abs, ServingConfig("f", [shape(1)])).save("x", 1), "save_options"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(make, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(mp.Invalid, match=says):
        make()
    assert list(tmp_path.iterdir()) == []


def test_a_tf_function_is_refused_by_name():
    def preprocess(x):
        return x

    preprocess.get_concrete_function = None
    with pytest.raises(mp.Invalid, match=r"tf.function \(preprocess\)"):
        ExportManager(abs, ServingConfig("f", tf_preprocessor=preprocess))


def test_what_cannot_be_traced_says_which_signature(tmp_path):
    def apply(params, x):
        return float(x.sum())

    with pytest.raises(Exception) as error:
        ExportManager(JaxModule({}, apply), ServingConfig("f", [shape(2)])).save(tmp_path / "m")
    assert "signature `f`" in "".join(error.value.__notes__)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("version", [ExportModelType.TF_SAVEDMODEL, ExportModelType.ORBAX_MODEL])
def test_a_saved_model_says_what_it_needs(tmp_path, version):
    module = JaxModule(PARAMS, linear, export_version=version, trainable=True, jit_compile=False)
    manager = ExportManager(module, [ServingConfig("f", [shape(2, 3)])])
    with pytest.raises(mp.Unsupported, match="needs tensorflow, which is not installed") as error:
        manager.save(str(tmp_path / "m"))
    assert "pip install orbax-export tensorflow" in error.value.hint
    assert "leave out export_version" in error.value.hint


def test_with_tensorflow_orbax_export_gets_everything_as_it_was_given(tmp_path, monkeypatch):
    import dataclasses
    import types

    calls = []

    @dataclasses.dataclass
    class Config:
        signature_key: str
        input_signature: object = None
        tf_preprocessor: object = None

    class Module:
        def __init__(self, params, apply_fn, **given):
            calls.append((params, apply_fn, given))

    class Manager:
        def __init__(self, module, configs):
            self.configs = configs

        def save(self, *arguments):
            calls.append((self.configs, arguments))

    real = types.ModuleType("orbax.export")
    real.constants, real.JaxModule = constants, Module
    real.ServingConfig, real.ExportManager = Config, Manager
    monkeypatch.setitem(sys.modules, "tensorflow", types.ModuleType("tensorflow"))
    monkeypatch.setitem(sys.modules, "orbax.export", real)
    version = ExportModelType.TF_SAVEDMODEL
    module = JaxModule(PARAMS, linear, True, "b, ...", export_version=version, pspecs={"w": 1})
    config = ServingConfig("f", [shape(2, 3)], tf_preprocessor=abs)
    ExportManager(module, config).save("path", "options", {"o": 1})
    assert calls[0] == (
        PARAMS,
        linear,
        {
            "trainable": True,
            "input_polymorphic_shape": "b, ...",
            "export_version": version,
            "jit_compile": True,
            "pspecs": {"w": 1},
        },
    )
    assert calls[1] == ([Config("f", [shape(2, 3)], abs)], ("path", "options", {"o": 1}))
    strange = ServingConfig("f", [shape(2, 3)], method_key="jax_module_default_method")
    with pytest.raises(mp.Unsupported, match="does not know: method_key"):
        ExportManager(module, strange).save("path")


def test_without_flatbuffers_the_error_says_what_to_install(tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.startswith(("flatbuffers", "jax._src.export.ser"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    manager = ExportManager(JaxModule(PARAMS, linear), ServingConfig("f", [shape(2, 3)]))
    with pytest.raises(mp.Unsupported, match="flatbuffers") as error:
        manager.save(tmp_path / "m")
    assert error.value.hint == "pip install flatbuffers"


def test_a_checkpoint_that_is_no_export_says_so(tmp_path):
    mp.save(tmp_path / "m", {"a": np.ones(2)})
    with pytest.raises(mp.Unsupported, match="is no export"):
        load(tmp_path / "m")
    with pytest.raises(mp.NotFound):
        load(tmp_path / "nothing")
    manager = ExportManager(JaxModule(PARAMS, linear), ServingConfig("f", [shape(2, 3)]))
    manager.save(tmp_path / "new")
    document = mp.open(tmp_path / "new").json("export") | {"version": 9}
    mp.save(tmp_path / "newer", items={"export": mp.Json(document)})
    with pytest.raises(mp.Unsupported, match="version 9"):
        load(tmp_path / "newer")


def test_the_module_has_what_orbax_gives_it(tmp_path):
    module = JaxModule(PARAMS, linear)
    assert module.apply_fn_map == {"jax_module_default_method": linear}
    assert module.model_params is PARAMS
    assert module.model_param_names == ["w", "b"]
    assert module.with_gradient is False
    x = np.ones((2, 3), np.float32)
    bound = module.jax_methods["jax_module_default_method"]
    before = bound(x)["y"]
    module.update_variables({"w": PARAMS["w"] * 2, "b": PARAMS["b"] * 2})
    np.testing.assert_allclose(bound(x)["y"], before * 2)
    with pytest.raises(mp.TreeMismatch) as error:
        module.update_variables({"w": np.ones((3, 5), np.float32), "c": PARAMS["b"]})
    assert [m.path for m in error.value.mismatches] == ["b", "c", "w"]
    exported_map = module.obm_module_to_jax_exported_map(x)
    assert exported_map["jax_module_default_method"].call(PARAMS, x)["y"].shape == (2, 4)
    with pytest.raises(TypeError, match="SavedModel"):
        module.jax2tf_kwargs_map
    with pytest.raises(TypeError, match="SavedModel"):
        ExportManager(module, ServingConfig("f")).tf_module
