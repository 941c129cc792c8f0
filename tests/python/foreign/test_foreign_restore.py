"""Restoring what others wrote: bit-exact, strict where it is said, and never written to."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import flax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.training import checkpoints
from foreign_runs import as_read, contents, manager_run, plain, same, tree
from milepost import Corrupt, ForeignFormat, ItemNotFound, TreeMismatch, Unsupported, _foreign
from safetensors.numpy import save_file


@pytest.mark.parametrize("ocdbt", [True, False])
@pytest.mark.parametrize("zarr3", [True, False])
def test_a_tree_comes_back_as_it_was_in_all_four_formats(tmp_path, ocdbt, zarr3):
    path = plain(tmp_path / "ckpt", tree(3), ocdbt=ocdbt, zarr3=zarr3)
    before = contents(path)
    assert same(_foreign.restore(path), as_read(tree(3)))
    assert contents(path) == before, "the source was written to"


def test_what_is_not_strict_is_what_orbax_itself_restores(tmp_path):
    run = manager_run(tmp_path / "run", [2])
    with ocp.CheckpointManager(run) as manager:
        expected = manager.restore(2, args=ocp.args.PyTreeRestore())
    got = _foreign.restore(_foreign.steps(run)[0], strict=False)
    assert same(got, expected)
    assert isinstance(got["layer0"]["w"], jax.Array)


def test_a_target_gives_containers_types_and_places(tmp_path):
    value = tree(1)
    path = plain(tmp_path / "ckpt", value, ocdbt=True, zarr3=False)
    target = {
        **value,
        "layer0": {"w": jax.ShapeDtypeStruct((4, 6), jnp.float32), "b": np.zeros(5, np.float32)},
        "half": np.zeros(7, np.float64),
        "list": [0.0, (np.zeros(3, np.int64),)],
    }
    got = _foreign.restore(path, target)
    assert isinstance(got["layer0"]["w"], jax.Array)
    assert same(np.asarray(got["layer0"]["w"]), np.asarray(value["layer0"]["w"]))
    assert same(got["layer0"]["b"], value["layer0"]["b"].astype(np.float32))
    assert same(got["half"], np.asarray(value["half"]).astype(np.float64))
    assert isinstance(got["list"][1], tuple)
    assert same(got["list"][1][0], np.arange(3) + 1)


def test_a_target_that_differs_names_every_difference_and_reads_nothing(tmp_path):
    path = plain(tmp_path / "ckpt", tree(), ocdbt=True, zarr3=False)
    target = tree()
    target["layer0"] = {"w": np.zeros((4, 5)), "c": 1}
    target["list"] = [0, (np.zeros(3, np.int32),)]
    target["name"] = 3
    with pytest.raises(TreeMismatch) as error:
        _foreign.restore(path, target)
    assert sorted(m.path for m in error.value.mismatches) == [
        "layer0/b",
        "layer0/c",
        "layer0/w",
        "list/0",
        "name",
    ]
    target = tree()
    target["list"] = [0, (np.zeros(3, np.int32),)]
    assert _foreign.restore(path, target, cast="unsafe")["list"][0] == 1


def test_optax_state_and_flax_modules_fit_their_targets(tmp_path):
    import optax
    from flax import nnx

    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    state = nnx.state(model)
    opt = optax.adam(1e-3).init({"w": jnp.ones(3)})
    path = plain(tmp_path / "ckpt", {"model": state, "opt": opt}, ocdbt=True, zarr3=False)
    zeros = jax.tree.map(jnp.zeros_like, {"model": state, "opt": opt})
    got = _foreign.restore(path, zeros)
    assert jax.tree.structure(got) == jax.tree.structure(zeros)
    assert all(
        same(a, b)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves({"model": state, "opt": opt}))
    )


class Ours:
    """Stands for `milepost.orbax.RestoreArgs`, which is no class of Orbax's."""

    class RestoreArgs:
        def __init__(self, **given):
            self.restore_type = None
            self.dtype = None
            self.__dict__.update(given)

    class ArrayRestoreArgs(RestoreArgs):
        pass


def test_restore_args_of_ours_reach_orbax_as_its_own(tmp_path):
    path = plain(tmp_path / "ckpt", {"a": jnp.arange(4.0), "b": 2}, ocdbt=True, zarr3=False)
    args = {
        "a": Ours.ArrayRestoreArgs(restore_type=jax.Array, dtype=jnp.bfloat16, global_shape=(6,),
                                   strict=False),
        "b": Ours.RestoreArgs(restore_type=int),
    }
    args["a"].sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    got = _foreign.restore(path, restore_args=args, strict=False)
    assert same(np.asarray(got["a"]), np.array([0, 1, 2, 3, 0, 0], ml_dtypes.bfloat16))
    assert got["b"] == 2


def test_options_of_pytree_restore_pass_through(tmp_path):
    path = plain(tmp_path / "ckpt", {"a": np.arange(4), "b": np.ones(2)}, ocdbt=True, zarr3=False)
    got = _foreign.restore(path, {"a": np.zeros(4, int)}, strict=False,
                           options={"partial_restore": True})
    assert same(got, {"a": np.arange(4)})
    got = _foreign.restore(path, {"c": np.zeros(2)}, strict=False,
                           options={"transforms": {"c": ocp.Transform(original_key="b")}})
    assert same(got, {"c": np.ones(2)})


def test_every_kind_of_item_is_restored_by_its_name(tmp_path):
    args = ocp.args
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, args=args.Composite(
            state=args.PyTreeSave({"w": np.arange(3)}),
            extra=args.JsonSave({"x": [1, float("inf")]}),
            one=args.ArraySave(jnp.arange(4)),
            key=args.JaxRandomKeySave(jax.random.key(5)),
            numpy_key=args.NumpyRandomKeySave(np.random.get_state()),
        ))
    step = _foreign.steps(tmp_path / "run")[0]
    assert same(_foreign.restore(step), {"w": np.arange(3)}), "the usual item where none is named"
    assert _foreign.restore(step, item="extra") == {"x": [1, float("inf")]}
    assert same(_foreign.restore(step, item="one"), np.arange(4, dtype=np.int32))
    assert same(_foreign.restore(step, item="key"), jax.random.key(5))
    assert same(_foreign.restore(step, item="numpy_key")[1], np.random.get_state()[1])
    with pytest.raises(ItemNotFound, match="no such item.*\n.*`extra`, `key`, `numpy_key`, `one`"):
        _foreign.restore(step, item="other")


def test_a_tree_is_read_where_its_devices_are_not(tmp_path):
    script = """
        import sys, jax, orbax.checkpoint as ocp
        mesh = jax.sharding.Mesh(jax.devices(), "x")
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
        value = jax.device_put(jax.numpy.arange(16.0), sharding)
        with ocp.CheckpointManager(sys.argv[1]) as manager:
            manager.save(1, args=ocp.args.StandardSave({"w": value}))
    """
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), tmp_path / "run"], check=True,
                   env=environment, capture_output=True)
    step = _foreign.steps(tmp_path / "run")[0]
    for strict in (True, False):
        got = _foreign.restore(step, strict=strict)
        assert same(np.asarray(got["w"]), np.arange(16, dtype=np.float32))


@pytest.fixture
def msgpack():
    flax.config.update("flax_use_orbax_checkpointing", False)
    yield
    flax.config.update("flax_use_orbax_checkpointing", True)


def test_msgpack_files_are_restored_raw_strictly_and_as_flax_does(tmp_path, msgpack):
    value = {"w": np.arange(6.0).reshape(2, 3), "l": [jnp.ones(2), 3], "n": None, "c": 1 + 2j}
    checkpoints.save_checkpoint(tmp_path, value, 7)
    step = _foreign.steps(tmp_path)[0]
    raw = _foreign.restore(step)
    assert same(raw["w"], value["w"])
    assert list(raw["l"]) == ["0", "1"]
    got = _foreign.restore(step, value)
    assert isinstance(got["l"][0], jax.Array)
    assert same(got["w"], value["w"])
    assert got["l"][1] == 3
    with pytest.raises(TreeMismatch) as error:
        _foreign.restore(step, {**value, "w": np.zeros(3)})
    assert [m.path for m in error.value.mismatches] == ["w"]
    loose = _foreign.restore(step, {**value, "w": np.zeros(3)}, strict=False)
    assert loose["w"].shape == (2, 3), "flax does not look at shapes"


def test_safetensors_are_restored_bit_exactly(tmp_path):
    rng = np.random.default_rng(0)
    kinds = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
             "float16", "float32", "float64", "complex64"]
    tensors = {kind: rng.integers(0, 2, (2, 3)).astype(kind) for kind in kinds}
    tensors |= {name: rng.normal(size=5).astype(getattr(ml_dtypes, name))
                for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")}
    tensors |= {"scalar": np.array(3, np.float32), "none": np.zeros((0, 4), np.int16)}
    save_file(tensors, tmp_path / "model.safetensors")
    got = _foreign.restore(tmp_path / "model.safetensors")
    assert got.keys() == tensors.keys()
    assert all(same(got[name], tensors[name]) for name in tensors)
    assert all(value.flags.writeable for value in got.values())


def test_dotted_names_fit_a_nested_target(tmp_path):
    save_file({"h.0.w": np.ones(2), "h.0.b": np.zeros(3)}, tmp_path / "m.safetensors")
    target = {"h": [{"w": np.zeros(2), "b": jnp.ones(3)}]}
    got = _foreign.restore(tmp_path / "m.safetensors", target)
    assert same(got["h"][0]["w"], np.ones(2))
    assert isinstance(got["h"][0]["b"], jax.Array)


def test_a_safetensors_file_that_ends_within_a_tensor_is_an_error(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": np.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(Exception, match=r"ends within a tensor.*a|tensor.*ends"):
        _foreign.restore(path)


def test_restore_args_are_refused_where_they_say_nothing(tmp_path):
    save_file({"a": np.ones(1)}, tmp_path / "m.safetensors")
    with pytest.raises(ForeignFormat, match="say nothing about"):
        _foreign.restore(tmp_path, restore_args={"a": Ours.RestoreArgs()})


def test_without_orbax_the_error_names_the_command_and_steps_are_listed(tmp_path, monkeypatch):
    run = manager_run(tmp_path / "run", [1, 2])
    for name in [name for name in sys.modules if name == "orbax" or name.startswith("orbax.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "orbax", None)
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    assert [step.step for step in _foreign.steps(run)] == [1, 2]
    with pytest.raises(ForeignFormat, match=rf"python -m milepost convert {run}") as error:
        _foreign.restore(_foreign.steps(run)[-1])
    assert "pip install orbax-checkpoint" in error.value.hint


def test_a_path_with_no_checkpoint_says_so(tmp_path):
    with pytest.raises(ForeignFormat, match="no checkpoint in Orbax"):
        _foreign.restore(tmp_path)
    run = manager_run(tmp_path / "run", [1])
    with pytest.raises(ForeignFormat, match="not the run"):
        _foreign.restore(run)


def test_damage_is_told_with_item_and_path(tmp_path):
    run = manager_run(tmp_path / "run", [1])
    for data in (run / "1" / "default").rglob("d/*"):
        data.write_bytes(data.read_bytes()[:10])
    with pytest.raises(Exception) as error:
        _foreign.restore(_foreign.steps(run)[0])
    assert "default" in "".join(error.value.__notes__)


def test_placeholders_are_read_as_stored_or_left_out(tmp_path):
    value = tree(4)
    path = plain(tmp_path / "ckpt", value, ocdbt=True, zarr3=False)
    target = {
        **value,
        "layer0": {"w": ..., "b": np.zeros(5)},
        "list": [..., (...,)],
        "name": ...,
        "key": ...,
    }
    got = _foreign.restore(path, target)
    assert same(got["layer0"]["w"], np.asarray(value["layer0"]["w"]))
    assert same(got["list"], [1.5, (np.arange(3, dtype=np.int32) + 4,)])
    assert got["name"] == "text é"
    assert same(got["key"], value["key"])
    left = _foreign.restore(path, target, placeholders="skip")
    assert left["layer0"]["w"] is ...
    assert left["list"] == [..., (...,)]
    assert same(left["layer0"]["b"], value["layer0"]["b"])

    save_file({"a": np.ones(2), "b": np.zeros(3)}, tmp_path / "m.safetensors")
    target = {"a": ..., "b": np.zeros(3)}
    assert same(_foreign.restore(tmp_path / "m.safetensors", target)["a"], np.ones(2))
    left = _foreign.restore(tmp_path / "m.safetensors", target, placeholders="skip")
    assert left["a"] is ...


def damaged(header: bytes, data: bytes = bytes(8)) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":',
        b'{"a":1}',
        b'{"a":{"dtype":"F32","shape":[2]}}',
        b'{"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":["2"],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}',
        b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,18446744073709551616]}}',
        b'{"__metadata__":3,"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    ],
)
def test_a_damaged_header_is_corrupt_and_reserves_nothing(tmp_path, header):
    (tmp_path / "m.safetensors").write_bytes(damaged(header))
    with pytest.raises(Corrupt):
        _foreign.restore(tmp_path / "m.safetensors")


def test_a_data_type_that_numpy_lacks_is_named(tmp_path):
    header = b'{"a":{"dtype":"F6_E2M3","shape":[2],"data_offsets":[0,8]}}'
    (tmp_path / "m.safetensors").write_bytes(damaged(header))
    with pytest.raises(Unsupported, match="tensor=a, dtype=F6_E2M3"):
        _foreign.restore(tmp_path / "m.safetensors")


def test_looking_never_fails_wherever_a_file_is_cut(tmp_path, msgpack):
    save_file({"a": np.ones(3)}, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    flax_file = checkpoints.save_checkpoint(tmp_path, {"w": np.ones(3), "n": [1, "x"]}, 1)
    with open(flax_file, "rb") as file:
        whole_flax = file.read()
    place = tmp_path / "cut_7"
    for data in (whole, whole_flax):
        for end in range(len(data)):
            place.write_bytes(data[:end])
            _foreign.detect(place)
            assert len(_foreign.steps(tmp_path)) <= 2
    run = manager_run(tmp_path / "run", [1])
    for name in ("_CHECKPOINT_METADATA", "default/_METADATA", "metrics/metrics"):
        file = run / "1" / name
        text = file.read_bytes()
        for end in range(0, len(text), 7):
            file.write_bytes(text[:end])
            assert [s.step for s in _foreign.steps(run)] == [1], "it is damaged, not gone"
        file.write_bytes(text)
