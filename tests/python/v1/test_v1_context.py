"""`Context` and its options."""

from __future__ import annotations

import os
import stat
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equality import assert_same
from points import Point, SlowPointHandler, with_handler

Struct = jax.ShapeDtypeStruct
TREE = {"w": np.arange(1000.0), "b": jnp.ones(3)}


def test_an_active_context_is_frozen(ocp):
    ctx = ocp.Context()
    ctx.pytree.loading.partial_load = True
    with ctx as entered:
        assert entered is ctx
        with pytest.raises(RuntimeError, match="active context"):
            ctx.pytree.loading.partial_load = False
        with pytest.raises(RuntimeError, match="Cannot mutate an active Context"):
            ctx.checkpoint_layout = "safetensors"
        with pytest.raises(RuntimeError):
            ctx.array.saving.storage_options.dtype = np.float32
    ctx.pytree.loading.partial_load = False
    assert ctx.pytree.loading.partial_load is False


def test_a_child_context_can_be_changed_and_leaves_its_parent_alone(ocp):
    parent = ocp.Context()
    parent.pytree.loading.partial_load = True
    with parent:
        child = ocp.Context(parent)
        child.array.saving.use_zarr3 = False
        child.pytree.loading.partial_load = False
        fresh = ocp.Context()
    assert parent.pytree.loading.partial_load and parent.array.saving.use_zarr3
    assert not fresh.pytree.loading.partial_load


def test_a_child_context_inherits(ocp):
    parent = ocp.Context()
    parent.memory.write_concurrent_bytes = 5
    parent.checkpoint_layout = "safetensors"
    child = ocp.Context(parent)
    assert child.memory.write_concurrent_bytes == 5
    assert child.checkpoint_layout is ocp.options.CheckpointLayout.SAFETENSORS


def test_contexts_nest(ocp, tmp_path):
    ocp.save(tmp_path / "c", {"a": np.ones(1), "b": np.ones(2)})
    outer, inner = ocp.Context(), ocp.Context()
    outer.pytree.loading.partial_load = True
    with outer:
        with inner:
            with pytest.raises(ValueError):
                ocp.load(tmp_path / "c", {"a": np.ones(1)})
        assert set(ocp.load(tmp_path / "c", {"a": np.ones(1)})) == {"a"}


def test_a_context_can_be_entered_again(ocp, tmp_path):
    ctx = ocp.Context()
    for name in ("one", "two"):
        with ctx:
            ocp.save(tmp_path / name, {"a": 1})
    with ctx, ctx:
        assert ocp.load(tmp_path / "one") == {"a": 1}


def test_threads_do_not_inherit_a_context(ocp, tmp_path):
    ocp.save(tmp_path / "c", {"a": np.ones(1), "b": np.ones(2)})
    errors = []

    def load():
        try:
            ocp.load(tmp_path / "c", {"a": np.ones(1)})
        except ValueError as error:
            errors.append(error)

    ctx = ocp.Context()
    ctx.pytree.loading.partial_load = True
    with ctx:
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
    assert len(errors) == 1


def test_a_context_of_one_thread_does_not_freeze_it_in_another(ours):
    ctx = ours.Context()

    def change():
        ctx.pytree.loading.partial_load = True

    with ctx:
        thread = threading.Thread(target=change)
        thread.start()
        thread.join()
    assert ctx.pytree.loading.partial_load


def test_option_objects_are_copied_in(ocp):
    options = ocp.options.ArrayOptions()
    ctx = ocp.Context(array_options=options)
    options.saving.use_compression = False
    assert ctx.array.saving.use_compression is not False
    with pytest.raises(TypeError):
        ocp.Context(nope=options)


def test_older_names_of_options_are_there(ocp):
    ctx = ocp.Context()
    for old, new in {
        "array_options": "array",
        "async_options": "asynchronous",
        "pytree_options": "pytree",
        "file_options": "file",
        "memory_options": "memory",
        "checkpointables_options": "checkpointables",
        "multiprocessing_options": "multiprocessing",
        "deletion_options": "deletion",
    }.items():
        assert getattr(ctx, old) is getattr(ctx, new)


def test_the_option_classes_have_the_members_of_orbax(ours, theirs):
    import dataclasses

    def members(cls, seen=()):
        found = set()
        for name in dir(cls):
            inner = getattr(cls, name)
            if isinstance(inner, type) and dataclasses.is_dataclass(inner) and inner not in seen:
                found |= {f"{name}.{one}" for one in members(inner, (*seen, inner))}
        return found | {field.name for field in dataclasses.fields(cls)}

    for name in (n for n in dir(theirs.options) if n.endswith("Options")):
        missing = members(getattr(theirs.options, name)) - members(getattr(ours.options, name))
        assert not missing, name


def test_every_public_name_of_orbax_is_there(ours, theirs):
    def public(module):
        return {n for n in dir(module) if not n.startswith("_") and n != "orbax"}

    assert public(theirs) - public(ours) == set()
    for name in ("arrays", "errors", "handlers", "multihost", "options", "partial", "training"):
        assert public(getattr(theirs, name)) - public(getattr(ours, name)) == set(), name
    assert public(theirs.tree) - public(ours.tree) == set()
    assert public(theirs.path) - public(ours.path) == set()
    for name in ("save_decision_policies", "preservation_policies", "errors", "pathways"):
        wanted = public(getattr(theirs.training, name))
        wanted -= {"Protocol", "Sequence", "typing", "types", "Any", "Dict", "NestedDict", "PyTree"}
        wanted -= {"save_decision_policy", "preservation_policy_lib"}
        assert wanted - public(getattr(ours.training, name)) == set(), name


def test_storage_options_dtype_casts_arrays(ocp, tmp_path):
    ctx = ocp.Context()
    ctx.array.saving.storage_options.dtype = jnp.bfloat16
    with ctx:
        ocp.save(tmp_path / "c", {"j": jnp.arange(3.0), "n": np.arange(3), "s": "x"})
    loaded = ocp.load(tmp_path / "c")
    assert loaded["j"].dtype == jnp.bfloat16 and loaded["n"].dtype == jnp.bfloat16
    assert loaded["s"] == "x"


def test_numbers_keep_their_type_under_a_storage_dtype_unlike_orbax(ours, theirs, tmp_path):
    found = {}
    for ocp in (ours, theirs):
        ctx = ocp.Context()
        ctx.array.saving.storage_options.dtype = jnp.bfloat16
        with ctx:
            ocp.save(tmp_path / ocp.__name__, {"step": 1001})
        found[ocp] = ocp.load(tmp_path / ocp.__name__)["step"]
    assert found[ours] == 1001
    assert found[theirs] == 1000.0


def test_scoped_storage_options_go_before_the_general_ones(ocp, tmp_path):
    asked = []

    def creator(key, value):
        asked.append((jax.tree_util.keystr(key), type(value)))
        if key[-1].key == "half":
            return ocp.options.ArrayOptions.Saving.StorageOptions(dtype=np.float16)
        return None

    ctx = ocp.Context()
    ctx.array.saving.storage_options.dtype = np.float32
    ctx.array.saving.scoped_storage_options_creator = creator
    with ctx:
        ocp.save(tmp_path / "c", {"p": {"half": np.arange(3.0), "other": np.arange(3.0)}})
    loaded = ocp.load(tmp_path / "c")["p"]
    assert (loaded["half"].dtype, loaded["other"].dtype) == (np.float16, np.float32)
    assert ("['p']['half']", np.ndarray) in asked


def test_scoped_storage_options_see_sequence_and_field_keys(ours, tmp_path):
    import collections

    Point = collections.namedtuple("Point", "x")
    keys = []
    ctx = ours.Context()
    ctx.array.saving.scoped_storage_options_creator = lambda key, value: keys.append(
        jax.tree_util.keystr(key)
    )
    with ctx:
        ours.save(tmp_path / "c", {"l": [np.ones(1)], "p": Point(np.ones(1)), 3: np.ones(1)})
    assert set(keys) == {"['l'][0]", "['p'].x", "[3]"}


def test_a_scoped_creator_that_returns_nonsense_is_a_type_error(ours, tmp_path):
    ctx = ours.Context()
    ctx.array.saving.scoped_storage_options_creator = lambda key, value: 5
    with ctx, pytest.raises(TypeError, match="leaf=`a`"):
        ours.save(tmp_path / "c", {"a": np.ones(1)})


def _chunks(place, leaf="w"):
    import milepost as mp

    index = mp.open(place).index("state")
    return next(one for one in index.leaves if one.path == leaf)


def test_chunk_byte_size_cuts_chunks(ours, tmp_path):
    ctx = ours.Context()
    ctx.array.saving.storage_options.chunk_byte_size = 800
    with ctx:
        ours.save(tmp_path / "c", {"w": np.arange(1000.0)})
    assert _chunks(tmp_path / "c").chunk_shape[0] * 8 <= 800
    assert ours.metadata(tmp_path / "c").metadata["w"].storage_metadata.chunk_shape[0] <= 100


def test_shard_axes_cut_along_these_axes(ours, tmp_path):
    ctx = ours.Context()
    ctx.array.saving.storage_options.chunk_byte_size = 64 * 8
    ctx.array.saving.storage_options.shard_axes = (1,)
    with ctx:
        ours.save(tmp_path / "c", {"w": np.ones((16, 64))})
    rows, columns = _chunks(tmp_path / "c").chunk_shape
    assert columns < 64 and rows * columns * 8 <= 64 * 8


def test_use_compression_compresses(ours, tmp_path):
    sizes = {}
    for on in (True, False, None):
        ctx = ours.Context()
        ctx.array.saving.use_compression = on
        with ctx:
            ours.save(tmp_path / str(on), {"w": np.zeros(10_000)})
        sizes[on] = _chunks(tmp_path / str(on)).stored_bytes
    assert sizes[True] < 10_000 < sizes[False] == sizes[None]


def test_a_target_data_file_size_bounds_stored_objects(ours, tmp_path):
    ctx = ours.Context()
    ctx.array.saving.ocdbt_target_data_file_size = 1 << 20
    ctx.array.saving.storage_options.chunk_byte_size = 1 << 18
    with ctx:
        ours.save(tmp_path / "c", {"w": np.zeros(1 << 19)})  # 4 MiB
    files = [p for p in (tmp_path / "c" / "state" / "w").rglob("c*") if p.is_file()]
    assert len(files) >= 4 and max(p.stat().st_size for p in files) < (1 << 20) + 65536


def test_padding_and_truncation(ours, theirs, tmp_path):
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for ocp in (ours, theirs):
        place = tmp_path / ocp.__name__
        ocp.save(place, {"a": jnp.arange(4.0)})
        ctx = ocp.Context()
        ctx.array.loading.enable_padding_and_truncation = True
        with ctx:
            longer = ocp.load(place, {"a": Struct((6,), "f4", sharding=one_device)})["a"]
            shorter = ocp.load(place, {"a": Struct((2,), "f4", sharding=one_device)})["a"]
            with pytest.raises(ValueError):
                ocp.load(place, {"a": Struct((2, 2), "f4", sharding=one_device)})
        np.testing.assert_array_equal(longer, [0, 1, 2, 3, 0, 0])
        np.testing.assert_array_equal(shorter, [0, 1])
        with pytest.raises(ValueError, match="enable_padding_and_truncation"):
            ocp.load(place, {"a": Struct((6,), "f4", sharding=one_device)})


def test_numpy_leaves_are_padded_and_truncated_too_unlike_orbax(ours, tmp_path):
    ours.save(tmp_path / "c", {"a": np.arange(4.0)})
    ctx = ours.Context()
    ctx.array.loading.enable_padding_and_truncation = True
    with ctx:
        assert_same(ours.load(tmp_path / "c", {"a": np.zeros(2)}), {"a": np.arange(2.0)})


def test_partial_load_reads_what_the_abstract_tree_names(ocp, tmp_path):
    ocp.save(tmp_path / "c", {"params": {"w": np.ones(2), "b": np.ones(1)}, "step": 3})
    ctx = ocp.Context()
    ctx.pytree.loading.partial_load = True
    with ctx:
        loaded = ocp.load(tmp_path / "c", {"params": {"w": np.zeros(2)}})
    assert_same(loaded, {"params": {"w": np.ones(2)}})


def test_partial_load_refuses_what_is_not_stored_unlike_orbax(ours, theirs, tmp_path):
    abstract = {"a": np.ones(1), "zz": np.full(2, 5.0)}
    for ocp in (ours, theirs):
        ocp.save(tmp_path / ocp.__name__, {"a": np.ones(1)})
    ctx = theirs.Context()
    ctx.pytree.loading.partial_load = True
    with ctx:  # the target itself, as if it had been stored
        assert theirs.load(tmp_path / theirs.__name__, abstract)["zz"] is abstract["zz"]
    ctx = ours.Context()
    ctx.pytree.loading.partial_load = True
    with ctx, pytest.raises(ValueError, match="zz: not in the checkpoint"):
        ours.load(tmp_path / ours.__name__, abstract)


def test_a_timeout_must_be_positive(ocp, tmp_path):
    ctx = ocp.Context()
    ctx.asynchronous.timeout_secs = 0
    # Orbax's v1 finds out while it saves.
    with ctx, pytest.raises((ValueError, TimeoutError)) as caught:
        ocp.save(tmp_path / "c", {"a": np.ones(1)})
    assert "milepost" not in ocp.__name__ or "must be positive" in str(caught.value)
    assert not (tmp_path / "c").exists()


def test_a_save_that_takes_too_long_times_out_and_is_not_visible(ours, tmp_path):
    ctx = with_handler(ours, SlowPointHandler)
    ctx.asynchronous.timeout_secs = 0.1
    with ctx:
        response = ours.save_checkpointables_async(tmp_path / "c", {"p": Point(1, 2)})
        with pytest.raises(TimeoutError):
            response.result()
    assert not (tmp_path / "c").exists()


def test_the_callback_is_called_after_the_commit(ours, tmp_path):
    seen = []
    ctx = ours.Context()
    ctx.asynchronous.post_finalization_callback = lambda: seen.append(ours.load(tmp_path / "c"))
    with ctx:
        ours.save_async(tmp_path / "c", {"a": 1}).result()
    assert seen == [{"a": 1}]


def test_an_error_in_the_callback_is_the_results(ocp, tmp_path):
    def fail():
        raise RuntimeError("no e-mail today")

    ctx = ours_ctx = ocp.Context()
    ours_ctx.asynchronous.post_finalization_callback = fail
    with ctx:
        response = ocp.save_async(tmp_path / "c", {"a": np.ones(1)})
        if "milepost" in ocp.__name__:
            with pytest.raises(RuntimeError, match="no e-mail today"):
                response.result()
        else:  # v1's free functions of Orbax never call it
            response.result()


def test_permissions_of_directories(ours, tmp_path):
    ctx = ours.Context()
    ctx.file.path_permission_mode = 0o750
    with ctx:
        ours.save(tmp_path / "c", {"a": {"b": np.ones(2)}})
    for directory, _, _ in os.walk(tmp_path / "c"):
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o750


def test_paths_are_of_the_path_class(ours, tmp_path):
    import pathlib

    class MyPath(pathlib.PosixPath):
        pass

    ctx = ours.Context()
    ctx.file.path_class = MyPath
    ours.save(tmp_path / "c", {"a": 1})
    with ctx:
        assert type(ours.metadata(tmp_path / "c").path) is MyPath
        with ours.training.Checkpointer(tmp_path / "run") as ckptr:
            assert type(ckptr.directory) is MyPath


def test_memory_limits_are_the_engines_budget(ours, tmp_path):
    from milepost.orbax.v1 import _budget

    ctx = ours.Context()
    ctx.memory.write_concurrent_bytes = 8 << 20
    ctx.memory.transfer_concurrent_bytes = 4 << 20
    ctx.memory.read_concurrent_bytes = 6 << 20
    tree = {f"w{n}": np.full(1 << 18, float(n)) for n in range(16)}  # 32 MiB
    with ctx:
        ours.save(tmp_path / "c", tree)
        loaded = ours.load(tmp_path / "c")
    assert_same(loaded, tree)
    save, load = _budget.for_save(ctx), _budget.for_load(ctx)
    assert (save.memory_bytes, load.memory_bytes) == (4 << 20, 6 << 20)
    assert 0 < save.high_water_bytes < 5 << 20  # one staging buffer may be a page more


def test_a_limit_must_be_positive(ours, tmp_path):
    ctx = ours.Context()
    ctx.memory.write_concurrent_bytes = 0
    with ctx, pytest.raises(ValueError, match="write_concurrent_bytes must be positive"):
        ours.save(tmp_path / "c", {"a": 1})


def test_handed_over_arrays_are_not_copied(ours, tmp_path, monkeypatch):
    import milepost as mp

    given = []
    real = mp.save_async
    monkeypatch.setattr(mp, "save_async", lambda *a, **k: given.append(k) or real(*a, **k))
    ctx = ours.Context()
    ctx.memory.deepcopy_host_arrays = False
    with ctx:
        ours.save_async(tmp_path / "c", {"a": np.ones(3)}).result()
    ours.save_async(tmp_path / "d", {"a": np.ones(3)}).result()
    # What returns when all is written need not copy.
    ours.save(tmp_path / "e", {"a": np.ones(3)})
    assert [one["handover"] for one in given] == [True, False, True]


def test_the_status_callback_hears_of_every_leaf(ours, tmp_path):
    class Callback:
        def __init__(self):
            self.events = []

        def on_transfer_end(self, keypath):
            self.events.append(("transfer", jax.tree_util.keystr(keypath)))

        def on_write_end(self, keypath):
            self.events.append(("write", jax.tree_util.keystr(keypath)))

    ctx = ours.Context()
    ctx.memory.serialization_status_callback = callback = Callback()
    with ctx:
        ours.save(tmp_path / "c", {"a": np.ones(1), "b": [np.ones(1)]})
    assert callback.events == [
        ("transfer", "['a']"),
        ("transfer", "['b'][0]"),
        ("write", "['a']"),
        ("write", "['b'][0]"),
    ]


class Profiler:
    """Says what the test wants it to have measured."""

    def __init__(self, peak_gib, total_gib=100.0):
        self.peak_usage_gib, self.total_memory_gib = peak_gib, total_gib
        self.calls = []

    def profiler_start(self):
        self.calls.append("start")

    def profiler_end(self):
        self.calls.append("end")

    def get_expected_surge_gib(self):
        return 0.0

    def get_prev_blocking_time_sec(self):
        return 0.0


@pytest.mark.parametrize("peaks", [(20.0, 50.0, 95.0, 99.0, 60.0), (0.0, 0.0, 120.0)])
def test_the_regulator_moves_as_orbaxs_does(ours, theirs, peaks):
    limits = {}
    for ocp in (ours, theirs):
        profiler = Profiler(0.0)
        profiler_for = profiler
        options = ocp.options.MemoryOptions.RegulatorOptions(
            max_memory_limit_gib=90.0, profiler=profiler_for, min_memory_limit_gib=10.0
        )
        found = []
        for number, peak in enumerate(peaks):
            profiler.peak_usage_gib = peak
            surge = 5 << 30 if number == 1 else None
            with options.regulator.regulate(expected_surge_bytes=surge):
                found.append(options.regulator.current_limit_bytes)
        limits[ocp] = found
        assert profiler.calls == ["start", "end"] * len(peaks)
    np.testing.assert_allclose(limits[ours], limits[theirs], rtol=1e-9)


def test_the_regulator_sets_the_budget_of_saves(ours, tmp_path):
    profiler = Profiler(1.0)
    ctx = ours.Context()
    ctx.memory.regulator_options = ours.options.MemoryOptions.RegulatorOptions(
        max_memory_limit_gib=0.5, min_memory_limit_gib=0.1, profiler=profiler
    )
    with ctx:
        ours.save(tmp_path / "c", {"a": np.ones(3)})
    assert profiler.calls == ["start", "end"]
    child = ours.Context(ctx)
    assert child.memory.regulator_options.regulator is ctx.memory.regulator_options.regulator


def test_regulators_refuse_what_cannot_be(ocp):
    make = ocp.options.MemoryOptions.RegulatorOptions
    with pytest.raises(ValueError):
        make(max_memory_limit_gib=0.0, profiler=Profiler(1.0))
    with pytest.raises(ValueError):
        make(max_memory_limit_gib=10.0, min_memory_limit_gib=9.0, profiler=Profiler(1.0))
    with pytest.raises(ValueError, match="profiler"):
        make(max_memory_limit_gib=90.0, profiler=None)


def test_a_sharding_that_was_not_recorded_is_not_restored(ours, tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    ctx = ours.Context()
    ctx.array.saving.enable_write_sharding_file = False
    with ctx:
        ours.save(tmp_path / "c", {"a": jax.device_put(np.arange(8.0), rows)})
    assert len(ours.load(tmp_path / "c")["a"].sharding.device_set) == 1


def test_a_process_that_is_not_active_gets_an_error(ours, tmp_path):
    ctx = ours.Context()
    ctx.multiprocessing.active_processes = {3}
    with ctx:
        with pytest.raises(ValueError, match="active_processes"):
            ours.save(tmp_path / "c", {"a": 1})
        with pytest.raises(ValueError, match="active_processes"):
            ours.load(tmp_path / "c")


def test_pathways_is_refused(ours, tmp_path):
    ctx = ours.Context()
    ctx.pathways.checkpointing_impl = object()
    with ctx, pytest.raises(NotImplementedError, match="Pathways"):
        ours.save(tmp_path / "c", {"a": 1})


def test_options_of_orbaxs_own_machinery_change_nothing(ours, tmp_path):
    ctx = ours.Context()
    saving = ctx.array.saving
    saving.use_ocdbt, saving.use_zarr3, saving.use_replica_parallel = False, False, True
    saving.enable_pinned_host_transfer, saving.enable_post_merge_validation = True, False
    ctx.array.loading.use_load_and_broadcast = True
    ctx.array.loading.raise_array_data_missing_error = False
    ctx.file.skip_sync_file_validations = True
    ctx.atomicity.mode = ours.options.AtomicityMode.COMMIT_FILE
    ctx.memory.is_prioritized_key_fn = lambda key: False
    with ctx:
        ours.save(tmp_path / "c", TREE)
        assert_same(ours.load(tmp_path / "c"), TREE)
        with pytest.raises(ValueError, match="already exists"):
            ours.save(tmp_path / "c", TREE)
