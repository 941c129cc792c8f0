"""A whole run is brought over: bit-exact, resumable, the source untouched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import flax
import jax
import jax.numpy as jnp
import milepost as mp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.training import checkpoints
from foreign_runs import as_read, contents, manager_run, plain, same, tree
from milepost import _foreign
from safetensors.numpy import save_file


def numbers(run) -> list[int]:
    with mp.CheckpointManager(run, read_only=True) as manager:
        return manager.steps()


@pytest.mark.parametrize(
    "options", [{}, {"step_prefix": "test", "step_format_fixed_length": 6}, {"step_prefix": "a.b"}]
)
def test_a_run_comes_over_bit_exactly_with_names_metrics_and_metadata(tmp_path, options):
    src = manager_run(tmp_path / "src", [1, 20, 300], **options)
    before = contents(src)
    saved = mp.convert(src, tmp_path / "run")
    assert contents(src) == before, "the source was written to"
    assert [s.step for s in saved] == [1, 20, 300]
    names = sorted(step.path.rpartition("/")[2] for step in _foreign.steps(src))
    assert sorted(s.url.rpartition("/")[2] for s in saved) == names
    for result in saved:
        checkpoint = mp.open(result.url)
        assert list(checkpoint.items) == ["default"]
        assert same(checkpoint.load(), as_read(tree(result.step)))
        assert checkpoint.metrics == {"acc": result.step / 10}
        assert checkpoint.metadata == {"step": result.step}
        assert checkpoint.items["default"].metadata["custom_metadata"] == {"leafy": result.step}
        checkpoint.verify()
    with mp.CheckpointManager(tmp_path / "run") as manager:
        assert manager.metadata == {"lr": 0.1}
        assert manager.steps() == [1, 20, 300]


@pytest.mark.parametrize("ocdbt", [True, False])
@pytest.mark.parametrize("zarr3", [True, False])
def test_a_checkpoint_of_its_own_becomes_a_step(tmp_path, ocdbt, zarr3):
    path = plain(tmp_path / "ckpt_40", tree(2), ocdbt=ocdbt, zarr3=zarr3)
    (saved,) = mp.convert(path, tmp_path / "run")
    assert saved.step == 40
    assert same(mp.load(tmp_path / "run"), as_read(tree(2)))


def test_items_of_every_handler_come_over_and_ours_restores_them(tmp_path):
    args = ocp.args
    state = np.random.get_state()
    with ocp.CheckpointManager(tmp_path / "src") as manager:
        manager.save(
            1,
            args=args.Composite(
                state=args.PyTreeSave(tree()),
                extra=args.JsonSave({"x": [1, None, "é", float("nan")]}),
                one=args.ArraySave(jnp.arange(4, dtype=jnp.bfloat16)),
                key=args.JaxRandomKeySave(jax.random.key(1)),
                numpy_key=args.NumpyRandomKeySave(state),
            ),
        )
    mp.convert(tmp_path / "src", tmp_path / "run")
    ours = mp.open(tmp_path / "run")
    assert {name: item.kind for name, item in ours.items.items()} == {
        "state": "tree",
        "extra": "json",
        "one": "array",
        "key": "tree",
        "numpy_key": "tree",
    }
    assert same(ours.load(item="state"), as_read(tree()))
    assert str(ours.json("extra")) == str({"x": [1, None, "é", float("nan")]})
    assert same(ours.array("one")[...], np.arange(4).astype(jnp.bfloat16))
    assert same(ours.load(item="key"), jax.random.key(1))
    assert same(ours.load(item="numpy_key"), state)


def test_files_of_a_custom_handler_come_over_as_they_are(tmp_path):
    class Handler(ocp.CheckpointHandler):
        def save(self, directory, item):
            (directory / "mine.txt").write_text(item)

        def restore(self, directory, item=None):
            return (directory / "mine.txt").read_text()

    with ocp.CheckpointManager(tmp_path / "src", {"own": ocp.Checkpointer(Handler())}) as manager:
        manager.save(1, {"own": "hello"})
    mp.convert(tmp_path / "src", tmp_path / "run")
    ours = mp.open(tmp_path / "run")
    assert ours.items["own"].kind == "opaque"
    assert "Handler" in ours.items["own"].handler
    ours.extract("own", tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "hello"


def test_layouts_of_v1_come_over(tmp_path):
    ocp.v1.save_checkpointables(tmp_path / "src" / "3", {"a": {"w": jnp.ones(3)}, "b": {"n": 1}})
    mp.convert(tmp_path / "src", tmp_path / "run")
    assert same(mp.load(tmp_path / "run", item="a"), {"w": np.ones(3, np.float32)})
    assert mp.load(tmp_path / "run", item="b") == {"n": 1}


def test_metrics_that_are_no_numbers_are_kept_for_milepost_orbax(tmp_path):
    options = ocp.CheckpointManagerOptions(best_fn=lambda m: m["loss"])
    metrics = {"loss": 0.5, "epoch": 3, "eval": {"bleu": [1, "x"]}}
    with ocp.CheckpointManager(tmp_path / "src", options=options) as manager:
        manager.save(1, args=ocp.args.StandardSave({"w": jnp.ones(2)}), metrics=metrics)
    mp.convert(tmp_path / "src", tmp_path / "run")
    ours = mp.open(tmp_path / "run")
    assert ours.metrics == {"loss": 0.5, "epoch": 3.0, "eval/bleu/0": 1.0}
    assert ours.metadata == {"milepost.orbax": {"metrics": metrics}}


@pytest.fixture
def msgpack():
    flax.config.update("flax_use_orbax_checkpointing", False)
    yield
    flax.config.update("flax_use_orbax_checkpointing", True)


def test_a_flax_run_comes_over_and_fractions_get_the_numbers_that_are_said(tmp_path, msgpack):
    value = {"w": np.arange(6.0), "l": [np.ones(2), 3], "n": None, "s": np.float32(2)}
    for step in (0.5, 2, 10):
        checkpoints.save_checkpoint(tmp_path / "src", value, step, keep=9)
    with pytest.raises(mp.Invalid, match=r"whole number.*\n.*steps=\{0.5: 1"):
        mp.convert(tmp_path / "src", tmp_path / "run")
    assert not (tmp_path / "run").exists(), "nothing is written before the plan is right"
    saved = mp.convert(tmp_path / "src", tmp_path / "run", steps={0.5: 1, 2: 2, 10: 10})
    assert [s.url.rpartition("/")[2] for s in saved] == [f"checkpoint_{n}" for n in (1, 2, 10)]
    got = mp.load(tmp_path / "run", step=1)
    assert same(got["w"], value["w"])
    assert same(got["l"]["0"], np.ones(2))
    assert mp.convert(tmp_path / "src", tmp_path / "run", steps={0.5: 1, 2: 2, 10: 10}) == []


def test_safetensors_come_over_with_their_metadata(tmp_path):
    (tmp_path / "src").mkdir()
    for step in (5, 6):
        save_file({"h.w": np.full(3, step)}, tmp_path / "src" / f"model-{step}.safetensors",
                  metadata={"format": "pt"})
    mp.convert(tmp_path / "src", tmp_path / "run")
    assert numbers(tmp_path / "run") == [5, 6]
    ours = mp.open(tmp_path / "run")
    assert same(ours.load(), {"h.w": np.full(3, 6)})
    assert ours.items["state"].metadata == {"format": "pt"}


def test_doing_it_twice_writes_nothing_and_goes_on_where_it_stopped(tmp_path):
    src = manager_run(tmp_path / "src", [1, 2, 3])
    mp.convert(src, tmp_path / "run", steps=[1, 3])
    before = contents(tmp_path / "run")
    told = []
    saved = mp.convert(src, tmp_path / "run", progress=told.append)
    assert [s.step for s in saved] == [2]
    assert [(p.step, p.done, p.total, p.saved is None) for p in told] == [
        (1, 1, 3, True),
        (2, 2, 3, False),
        (3, 3, 3, True),
    ]
    after = contents(tmp_path / "run")
    assert {name: after[name] for name in before} == before


def test_a_failure_keeps_what_is_there_and_the_next_one_goes_on(tmp_path):
    src = manager_run(tmp_path / "src", [1, 2, 3])
    document = src / "2" / "default" / "_METADATA"
    text = document.read_text()
    document.write_text(text[:50])
    with pytest.raises(Exception):
        mp.convert(src, tmp_path / "run")
    assert numbers(tmp_path / "run") == [1]
    document.write_text(text)
    assert [s.step for s in mp.convert(src, tmp_path / "run")] == [2, 3]


@pytest.mark.parametrize("change", ["shape", "leaf", "item"])
def test_a_step_with_other_content_is_an_error_until_it_may_be_replaced(tmp_path, change):
    src = manager_run(tmp_path / "src", [1])
    value = as_read(tree(1))
    if change == "shape":
        value["layer0"]["b"] = np.zeros(6)
    elif change == "leaf":
        value["more"] = 1
    item = "other" if change == "item" else "default"
    with mp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, items={item: mp.Tree(value)}).result()
    with pytest.raises(mp.StepAlreadyExists, match="another step 1.*\n.*--overwrite"):
        mp.convert(src, tmp_path / "run")
    mp.convert(src, tmp_path / "run", overwrite=True)
    assert same(mp.load(tmp_path / "run"), as_read(tree(1)))


def test_a_run_is_not_brought_over_into_itself(tmp_path):
    src = manager_run(tmp_path / "src", [1])
    for run in (src, src / "new", tmp_path):
        with pytest.raises(mp.Invalid, match="not into itself"):
            mp.convert(src, run)
    mp.convert(src, tmp_path / "src2")


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(mp.NotFound, match="no Orbax, Flax or safetensors"):
        mp.convert(tmp_path, tmp_path.parent / "run")
    src = manager_run(tmp_path / "src", [1, 2])
    with pytest.raises(mp.NotFound, match=r"no such step.*7.*\n.*1, 2"):
        mp.convert(src, tmp_path / "run", steps=[1, 7])


def test_storage_options_reach_the_new_run(tmp_path):
    with ocp.CheckpointManager(tmp_path / "src") as manager:
        manager.save(1, args=ocp.args.StandardSave({"w": jnp.zeros(1 << 16)}))
    (saved,) = mp.convert(tmp_path / "src", tmp_path / "run", compression="zstd")
    assert saved.stored_bytes < saved.data_bytes / 4
    with pytest.raises(Exception, match="comprezzion"):
        mp.convert(tmp_path / "src", tmp_path / "run2", comprezzion="zstd")


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "milepost", *map(str, arguments)],
        capture_output=True,
        text=True,
        **options,
    )


def test_the_command_converts_and_tells_what_it_does(tmp_path):
    src = manager_run(tmp_path / "src", [1, 2, 30, 31])
    dry = command("convert", src, tmp_path / "run", "--dry-run", "--steps", "2-30")
    assert dry.stdout.splitlines() == [
        "step 2: orbax, default (tree), metrics (metrics)",
        "step 30: orbax, default (tree), metrics (metrics)",
    ]
    assert not (tmp_path / "run").exists()
    done = command("convert", src, tmp_path / "run", "--steps", "1,30-99", "--compression", "zstd")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "step 31: orbax" in done.stderr
    assert "(3/3)" in done.stderr
    assert numbers(tmp_path / "run") == [1, 30, 31]
    rest = command("convert", src, tmp_path / "run", "--json", "--quiet")
    told = [json.loads(line) for line in rest.stdout.splitlines()]
    assert [t["step"] for t in told] == [1, 2, 30, 31]
    assert [t["url"] is None for t in told] == [True, False, True, True]
    assert same(mp.load(tmp_path / "run", step=2), as_read(tree(2)))


def test_errors_of_the_command_are_one_line_and_a_hint(tmp_path):
    failed = command("convert", tmp_path / "nothing", tmp_path / "run")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: no Orbax, Flax or safetensors checkpoint is there")
    assert "Traceback" not in failed.stderr
    assert command("convert", tmp_path, tmp_path / "run", "--steps", "a").returncode == 2
    src = manager_run(tmp_path / "src", [1])
    failed = command("convert", src, src)
    assert "hint: name a new directory" in failed.stderr


def test_one_step_is_in_memory_at_a_time(tmp_path, monkeypatch):
    import weakref

    from milepost._foreign import counterpart

    alive, most = [], []

    def recorded(*arguments, **options):
        most.append(sum(ref() is not None for ref in alive))
        value = _foreign.restore(*arguments, **options)
        alive.append(weakref.ref(value["layer0"]["w"]))
        return value

    monkeypatch.setattr(counterpart, "restore", recorded)
    mp.convert(manager_run(tmp_path / "src", [1, 2, 3, 4]), tmp_path / "run")
    assert most == [0, 0, 0, 0]


def test_how_arrays_were_sharded_comes_over_as_milepost_orbax_records_it(tmp_path):
    script = """
        import sys, jax, numpy as np
        import orbax.checkpoint as real
        import milepost as mp
        import milepost.orbax.checkpoint as ocp
        P, N = jax.sharding.PartitionSpec, jax.sharding.NamedSharding
        mesh = jax.make_mesh((2, 4), ("x", "y"))
        put = lambda *spec: jax.device_put(jax.numpy.ones((8, 8)), N(mesh, P(*spec)))
        value = {"z": put("x", "y"), "a": [put(("x", "y")), put(None, "x"), put("x", "y")],
                 "one": jax.numpy.ones(3), "np": np.ones(2), "n": 1, "b": put()}
        src, run, own = (f"{sys.argv[1]}/{name}" for name in ("src", "run", "own"))
        for library, root in ((real, src), (ocp, own)):
            with library.CheckpointManager(root) as manager:
                manager.save(1, args=library.args.PyTreeSave(value))
        mp.convert(src, run)
        with ocp.CheckpointManager(run) as manager:
            got = manager.restore(1, args=ocp.args.PyTreeRestore())
        with real.CheckpointManager(src) as manager:
            expected = manager.restore(1, args=real.args.PyTreeRestore())
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            x, y = (getattr(v, "sharding", None) for v in (a, b))
            assert (x is None and y is None) or x.is_equivalent_to(y, a.ndim), (x, y)
            if isinstance(x, N):
                assert x.mesh.axis_types == y.mesh.axis_types, (x, y)
        kinds = [mp.open(root, 1).items["default"].metadata["shardings"]["kinds"] for root in (run, own)]
        key = lambda kind: str(kind)
        assert sorted(kinds[0], key=key) == sorted(kinds[1], key=key), kinds
        assert len(kinds[0]) == 4
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path],
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
