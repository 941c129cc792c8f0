"""Names of steps: Orbax's formats give the same names and find the same steps."""

from __future__ import annotations

import os
import random

import pytest

import milepost as mp
from milepost.orbax import args
from milepost.orbax.checkpoint_manager import CheckpointManager, CheckpointManagerOptions
from milepost.orbax.path import step as ours

orbax = pytest.importorskip("orbax.checkpoint")
theirs = orbax.path.step


def saved(run, steps, **options):
    with CheckpointManager(
        run, options=CheckpointManagerOptions(enable_async_checkpointing=False, **options)
    ) as manager:
        for step in steps:
            manager.save(step, args=args.JsonSave({"step": step}), force=True)
    return manager


FORMATS = [
    {},
    {"step_prefix": "step"},
    {"step_format_fixed_length": 4},
    {"step_prefix": "test", "step_format_fixed_length": 6},
    {"step_prefix": ""},
]


@pytest.mark.parametrize("options", FORMATS)
def test_names_are_orbax_s(run, options):
    rng = random.Random(3)
    mine, their = ours.standard_name_format(**options), theirs.standard_name_format(**options)
    for _ in range(200):
        step = rng.randrange(10 ** rng.randrange(1, 12))
        assert mine.build_name(step) == their.build_name(step)
        native, _ = ours.native_formats(mine)
        assert native.build_name(step) == mine.build_name(step)
    saved(run, [0, 7, 12345], **options)
    names = {entry for entry in os.listdir(run) if entry not in (".milepost", "zarr.json")}
    assert names == {their.build_name(step) for step in (0, 7, 12345)}
    found = list(mine.find_all(run))
    wanted = [(step, mine.build_name(step)) for step in (0, 7, 12345)]
    assert [(m.step, m.path.name) for m in found] == wanted
    assert mine.find_step(run, 7).path == run / mine.build_name(7)
    assert ours.checkpoint_steps(run) == [0, 7, 12345]
    with pytest.raises(ValueError, match="no committed step"):
        mine.find_step(run, 8)


def test_a_fixed_length_takes_padded_and_longer_numbers_only(run):
    saved(run, [2, 12345], step_format_fixed_length=4)
    os.rename(run / "0002", run / "2")
    reader = saved(run, [], step_format_fixed_length=4)
    assert reader.all_steps() == [12345]


def test_a_format_finds_its_own_names_only(run):
    saved(run, [1], step_prefix="a")
    plain = ours.standard_name_format()
    assert list(plain.find_all(run)) == []
    with pytest.raises(ValueError):
        plain.find_step(run, 1)


def test_several_formats_are_read_and_one_is_written(run):
    saved(run, [1], step_prefix="a")
    composite = ours.composite_name_format(
        ours.standard_name_format(step_prefix="a"),
        [ours.standard_name_format(step_prefix="a"), ours.standard_name_format()],
    )
    os.rename(run / "a_1", run / "1")
    manager = saved(run, [2], step_name_format=composite)
    assert manager.all_steps() == [1, 2] and (run / "a_2").is_dir()
    assert manager.restore(1) == {"step": 1}
    assert [m.step for m in composite.find_all(run)] == [2, 1]
    with pytest.raises(ValueError, match="write_name_format"):
        ours.composite_name_format(ours.standard_name_format(), [])


def test_a_format_of_the_caller_that_is_a_prefix_and_a_number_is_followed(run):
    class Epochs:
        def build_name(self, step):
            return f"epoch={step:03d}".replace("=", "-")

        def find_all(self, base_path):
            return iter(())

        def find_step(self, base_path, step):
            raise ValueError

    saved(run, [5], step_name_format=Epochs())
    assert (run / "epoch-005").is_dir()
    assert saved(run, [], step_name_format=Epochs()).all_steps() == [5]

    class Reversed(Epochs):
        def build_name(self, step):
            return str(step)[::-1]

    with pytest.raises(mp.Unsupported, match="prefix and its number"):
        saved(run / "other", [], step_name_format=Reversed())


def test_orbax_s_own_formats_are_followed(run):
    theirs_format = theirs.standard_name_format(step_prefix="ckpt", step_format_fixed_length=3)
    saved(run, [5], step_name_format=theirs_format)
    assert (run / "ckpt_005").is_dir()


def test_times_of_a_step_are_those_of_its_commit(run):
    saved(run, [5])
    found = ours.standard_name_format().find_step(run, 5)
    assert found.init_timestamp_nsecs <= found.commit_timestamp_nsecs
    assert found.commit_timestamp.timestamp() * 1e9 == pytest.approx(found.commit_timestamp_nsecs)
    assert ours.latest_step_metadata(run, ours.standard_name_format()).step == 5
    metadata = ours.step_metadata_of_checkpoint_path(run / "5", ours.standard_name_format())
    assert metadata.step == 5


def test_paths_are_built_as_orbax_builds_them(run):
    name_format = {"step_prefix": "x", "step_format_fixed_length": 3}
    assert ours.build_step_path(run, ours.standard_name_format(**name_format), 4) == run / "x_004"
    assert ours.get_save_directory(4, run, name="state", **name_format) == run / "x_004" / "state"
    unfinished = ("7.orbax-checkpoint-tmp", "s_7.orbax-checkpoint-tmp-1")
    for name in ("12", "step_0012", "a_b_7", *unfinished):
        assert ours.step_from_checkpoint_name(name) == theirs.step_from_checkpoint_name(name)
    with pytest.raises(ValueError):
        ours.step_from_checkpoint_name("latest")


def test_only_what_is_committed_is_finalized(run):
    saved(run, [5])
    (run / "6").mkdir()
    assert ours.is_path_finalized(run / "5") and not ours.is_path_finalized(run / "6")
    assert [m.step for m in ours.standard_name_format().find_all(run)] == [5]
    (run / "7.orbax-checkpoint-tmp").mkdir()
    assert ours.is_path_temporary(run / "7.orbax-checkpoint-tmp")
    [left] = ours.all_temporary_paths(run)
    assert left.get_final() == run / "7" and ours.tmp_checkpoints(run) == [left.get().name]
