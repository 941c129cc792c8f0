"""Detection: by content, in every layout that the installed libraries write, and nothing else."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.training import checkpoints
from foreign_runs import manager_run, plain, tree
from milepost import ForeignFormat, _foreign
from safetensors.numpy import save_file


def listed(run: Path, **options) -> list:
    return [step.step for step in _foreign.steps(run, **options)]


@pytest.mark.parametrize("ocdbt", [True, False])
@pytest.mark.parametrize("zarr3", [True, False])
def test_a_tree_of_orbax_is_found_in_all_four_formats(tmp_path, ocdbt, zarr3):
    path = plain(tmp_path / "ckpt", tree(), ocdbt=ocdbt, zarr3=zarr3)
    found = _foreign.detect(path)
    assert (found.kind, found.path, list(found.items)) == ("orbax", str(path), [""])
    assert found.items[""].kind == "tree"
    assert _foreign.steps(path) == [], "a checkpoint is no run, whatever its parts are called"


@pytest.mark.parametrize("missing", ["_CHECKPOINT_METADATA", "commit_success.txt", "_METADATA"])
@pytest.mark.parametrize("ocdbt", [True, False])
def test_a_tree_is_found_without_one_of_its_documents(tmp_path, missing, ocdbt):
    path = plain(tmp_path / "ckpt", tree(), ocdbt=ocdbt, zarr3=False)
    (path / missing).unlink()
    if missing == "_METADATA" and not ocdbt:
        pytest.skip("Zarr arrays alone are nobody's checkpoint: Orbax cannot read them either")
    assert _foreign.detect(path).kind == "orbax"


def test_a_tree_document_that_is_cut_short_is_still_found(tmp_path):
    path = plain(tmp_path / "ckpt", tree(), ocdbt=False, zarr3=False)
    text = (path / "_METADATA").read_bytes()
    (path / "_METADATA").write_bytes(text[: len(text) // 2])
    assert _foreign.detect(path).kind == "orbax"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["0", "5", "12"]),
        ({"step_prefix": "test"}, ["test_0", "test_5", "test_12"]),
        ({"step_format_fixed_length": 6}, ["000000", "000005", "000012"]),
        ({"step_prefix": "t", "step_format_fixed_length": 3}, ["t_000", "t_005", "t_012"]),
        ({"enable_async_checkpointing": False}, ["0", "5", "12"]),
    ],
)
def test_steps_of_a_manager_are_listed_as_orbax_lists_them(tmp_path, options, names):
    run = manager_run(tmp_path / "run", [0, 5, 12], **options)
    settings = ocp.CheckpointManagerOptions(
        **{k: v for k, v in options.items() if not k.startswith("enable")}
    )
    with ocp.CheckpointManager(run, options=settings) as manager:
        assert listed(run) == sorted(manager.all_steps()) == [0, 5, 12]
    assert [Path(step.path).name for step in _foreign.steps(run)] == names


def test_metrics_and_metadata_of_all_levels_are_read(tmp_path):
    run = manager_run(tmp_path / "run", [3])
    found = _foreign.steps(run)[0].checkpoint()
    assert {name: item.kind for name, item in found.items.items()} == {
        "default": "tree",
        "metrics": "metrics",
    }
    assert found.metrics == {"acc": 0.3}
    assert found.metadata == {"step": 3}
    assert found.item_metadata == {"default": {"leafy": 3}}
    assert found.committed_ns > 1_700_000_000_000_000_000


def test_items_of_every_handler_are_told_apart(tmp_path):
    args = ocp.args
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(
            1,
            args=args.Composite(
                state=args.PyTreeSave(tree()),
                strict=args.StandardSave({"a": jnp.ones(2)}),
                extra=args.JsonSave({"x": 1}),
                one=args.ArraySave(jnp.ones(4)),
                key=args.JaxRandomKeySave(jax.random.key(1)),
                numpy_key=args.NumpyRandomKeySave(np.random.get_state()),
            ),
        )
    found = _foreign.detect(tmp_path / "run" / "1")
    assert {name: item.kind for name, item in found.items.items()} == {
        "state": "tree",
        "strict": "tree",
        "extra": "json",
        "one": "array",
        "key": "random_key",
        "numpy_key": "random_key",
    }


def test_an_item_of_a_custom_handler_is_files(tmp_path):
    class Handler(ocp.CheckpointHandler):
        def save(self, directory, item):
            (directory / "mine.txt").write_text(item)

        def restore(self, directory, item=None):
            return (directory / "mine.txt").read_text()

    with ocp.CheckpointManager(tmp_path / "run", {"own": ocp.Checkpointer(Handler())}) as manager:
        manager.save(1, {"own": "hello"})
    item = _foreign.detect(tmp_path / "run" / "1").items["own"]
    assert item.kind == "files"
    assert "Handler" in item.handler
    assert (Path(item.path) / "mine.txt").read_text() == "hello"


def test_layouts_of_v1_are_found(tmp_path):
    ocp.v1.save(tmp_path / "one", tree())
    ocp.v1.save_checkpointables(tmp_path / "several", {"a": {"w": jnp.ones(3)}, "b": {"n": 1}})
    assert list(_foreign.detect(tmp_path / "one").items) == ["state"]
    assert list(_foreign.detect(tmp_path / "several").items) == ["a", "b"]
    with ocp.v1.training.Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(4, {"w": jnp.ones(3)}, force=True)
    assert listed(tmp_path / "run") == [4]


def test_litter_and_unfinished_saves_are_no_steps(tmp_path):
    run = manager_run(tmp_path / "run", [1, 2])
    for name in (
        "3.orbax-checkpoint-tmp",
        "4.orbax-checkpoint-tmp-12",
        "5.orbax-checkpoint-tmp-1700000000",
    ):
        shutil.copytree(run / "2", run / name)
    inside = run / "6" / "default.orbax-checkpoint-tmp"
    shutil.copytree(run / "2" / "default", inside)
    (run / "7").mkdir()
    (run / "8").write_text("8\n")
    assert listed(run) == [1, 2]
    assert _foreign.detect(run / "3.orbax-checkpoint-tmp") is None


def test_a_step_whose_commit_file_never_came_is_no_step(tmp_path):
    # With AtomicityOptions(COMMIT_FILE) the final name is there from the start, without a commit time.
    run = manager_run(tmp_path / "run", [1, 2])
    document = json.loads((run / "2" / "_CHECKPOINT_METADATA").read_text())
    document["commit_timestamp_nsecs"] = None
    (run / "2" / "_CHECKPOINT_METADATA").write_text(json.dumps(document))
    assert listed(run) == [1, 2], "its commit file is there"
    (run / "2" / "commit_success.txt").unlink()
    assert listed(run) == [1]


def test_our_own_steps_are_not_foreign(tmp_path):
    step = tmp_path / "run" / "1"
    shutil.copytree(manager_run(tmp_path / "orbax", [1]) / "1", step)
    (step / "zarr.json").write_text(
        json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {"milepost": {}}})
    )
    assert _foreign.detect(step) is None
    assert listed(tmp_path / "run") == []


def test_files_that_only_look_alike_are_not_found(tmp_path):
    import io
    import pickle
    import zipfile

    array = io.BytesIO()
    np.save(array, np.ones(3))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a", "b")
    strangers = {
        "1": b"",
        "2": b"{}",
        "3": pickle.dumps({"a": 1}),
        "4": array.getvalue(),
        "5": packed.getvalue(),
        "6": b"\x89PNG\r\n\x1a\n" + bytes(64),
        "7": b"\x89HDF\r\n\x1a\n" + bytes(64),
        "8": bytes(64),
        "9": "é text".encode(),
        "10": b"\x93\x01\x02\x03",
        "11": struct.pack("<Q", 1 << 40) + b'{"a": 1}',
        "12": struct.pack("<Q", 8) + b"[1, 2,3]",
        "13": b"\xc7\x05\x01" + bytes(99),
    }
    for name, data in strangers.items():
        (tmp_path / f"checkpoint_{name}").write_bytes(data)
    assert listed(tmp_path) == []
    (tmp_path / "_METADATA").write_text('{"a": 1}')
    (tmp_path / "manifest.ocdbt").write_bytes(b"not one")
    assert _foreign.detect(tmp_path) is None


@pytest.fixture
def msgpack():
    flax.config.update("flax_use_orbax_checkpointing", False)
    yield
    flax.config.update("flax_use_orbax_checkpointing", True)


def test_msgpack_files_of_flax_are_found_with_any_prefix_and_step(tmp_path, msgpack):
    target = {"params": {"w": np.ones(3)}, "n": 1}
    for step in (-1.0, 0.1, 2, 1e5):
        checkpoints.save_checkpoint(tmp_path, target, step, keep=9)
    assert listed(tmp_path) == [-1.0, 0.1, 2, 100000.0]
    assert _foreign.steps(tmp_path)[2].kind == "flax"
    checkpoints.save_checkpoint(tmp_path / "b", target, 3, prefix="best-")
    assert [(s.step, s.prefix) for s in _foreign.steps(tmp_path / "b")] == [(3, "best-")]


@pytest.mark.parametrize(
    "target",
    [np.ones(3), np.float32(2), 1 + 2j, {}, {"": 1}, {"k" * 600: 1}, {"é" * 400: 1}]
    + [[1, 2], [*range(99)], {str(n): n for n in range(70000)}],
    ids=["array", "scalar", "complex", "empty", "key", "long", "wide", "list", "map16", "map32"],
)
def test_every_root_that_flax_writes_is_found(tmp_path, msgpack, target):
    path = checkpoints.save_checkpoint(tmp_path, target, 1)
    assert _foreign.detect(path).kind == "flax"


def test_directories_that_flax_writes_through_orbax_are_found(tmp_path):
    for step in (1, 2):
        checkpoints.save_checkpoint(tmp_path, {"w": jnp.ones(3)}, step, keep=5)
    assert [(s.step, s.kind, s.prefix) for s in _foreign.steps(tmp_path)] == [
        (1, "orbax", "checkpoint_"),
        (2, "orbax", "checkpoint_"),
    ]


def test_safetensors_are_found_as_files_directories_and_indexed_models(tmp_path):
    tensors = {"h.0.w": np.ones((2, 3), np.float32)}
    (tmp_path / "run" / "checkpoint-500").mkdir(parents=True)
    save_file(tensors, tmp_path / "run" / "checkpoint-500" / "model.safetensors")
    save_file(tensors, tmp_path / "run" / "model_20.safetensors")
    assert [(s.step, s.kind) for s in _foreign.steps(tmp_path / "run")] == [
        (20, "safetensors"),
        (500, "safetensors"),
    ]
    model = tmp_path / "model"
    model.mkdir()
    weights = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file({f"w{number}": np.ones(number)}, model / name)
        weights[f"w{number}"] = name
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    assert list(_foreign.detect(model).items) == [""]
    assert listed(model) == [], "a part of a model is no step"
    save_file(tensors, model / "optimizer.safetensors")
    assert sorted(_foreign.detect(model).items) == ["model", "optimizer"]


def test_two_names_of_one_step_are_an_error_that_a_prefix_settles(tmp_path, msgpack):
    for prefix in ("best_", "checkpoint_"):
        checkpoints.save_checkpoint(tmp_path, {"w": np.ones(3)}, 5, prefix=prefix)
    with pytest.raises(ForeignFormat, match="best_5.*checkpoint_5"):
        _foreign.steps(tmp_path)
    assert listed(tmp_path, prefix="best_") == [5]
    assert listed(tmp_path, prefix="other_") == []


def test_what_would_be_overwritten_is_refused_and_the_command_named(tmp_path):
    run = manager_run(tmp_path / "run with space", [1, 2])
    with pytest.raises(ForeignFormat, match=r"run of 2 step.*\n.*milepost convert '.*space' ") as e:
        _foreign.refuse(run)
    assert e.value.context["path"] == str(run)
    with pytest.raises(ForeignFormat, match="a checkpoint in orbax format"):
        _foreign.refuse(run / "2")
    _foreign.refuse(tmp_path / "nothing")
    _foreign.refuse(tmp_path)


def test_urls_and_relative_paths_are_the_same_places(tmp_path, monkeypatch):
    run = manager_run(tmp_path / "a run", [1])
    assert listed("file://" + str(run).replace(" ", "%20")) == [1]
    monkeypatch.chdir(tmp_path)
    assert listed("a run") == [1]
    assert _foreign.steps("a run")[0].path == str(run / "1")
    assert listed(tmp_path / "not there") == []
    assert _foreign.detect(tmp_path / "not there") is None
