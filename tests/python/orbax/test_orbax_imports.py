"""Import forms, `install()` and `python -m milepost.orbax`. Each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import milepost as mp
import pytest

PYTHON = Path(mp.__file__).parents[1]


def run(code: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    paths = [str(PYTHON), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code] if not arguments else [sys.executable, *arguments]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=120)


def ok(code: str) -> str:
    done = run(code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


FORMS = [
    "import milepost.orbax.checkpoint as ocp",
    "import milepost.orbax.checkpoint; ocp = milepost.orbax.checkpoint",
    "from milepost.orbax import checkpoint as ocp",
    "import milepost.orbax; ocp = milepost.orbax",
    "from milepost.orbax.checkpoint import AsyncCheckpointer, CheckpointManager\n"
    "from milepost.orbax.checkpoint import CheckpointManagerOptions\n"
    "import milepost.orbax as ocp",
    "from milepost.orbax.checkpoint.checkpoint_managers import preservation_policy as p\n"
    "from milepost.orbax.checkpoint.checkpoint_managers import save_decision_policy as s\n"
    "import milepost.orbax as ocp; managers = ocp.checkpoint_managers\n"
    "assert managers.preservation_policy is p and managers.save_decision_policy is s",
    "import milepost.orbax.checkpoint.checkpoint_managers as m\n"
    "import milepost.orbax as ocp; assert m is ocp.checkpoint_managers\n"
    "assert m.__spec__.name == m.__name__ == 'milepost.orbax.checkpoint_managers'",
    "import milepost.orbax.checkpoint.checkpoint_managers.preservation_policy as p\n"
    "import milepost.orbax.checkpoint_managers.preservation_policy as q\n"
    "import milepost.orbax as ocp; assert p is q\n"
    "assert p.__name__ == 'milepost.orbax.checkpoint_managers.preservation_policy'",
    "from milepost.orbax.checkpoint import args, handlers, type_handlers, checkpoint_utils\n"
    "from milepost.orbax.checkpoint import test_utils\n"
    "import milepost.orbax as ocp; assert args is ocp.args and handlers is ocp.handlers",
    "from milepost.orbax.checkpoint.args import StandardSave\nimport milepost.orbax as ocp\n"
    "assert StandardSave is ocp.args.StandardSave",
]


@pytest.mark.parametrize("form", FORMS)
def test_every_import_form_gives_the_one_module(form):
    ok(
        f"{form}\nimport sys, milepost.orbax\n"
        "assert ocp is milepost.orbax is sys.modules['milepost.orbax.checkpoint']\n"
        "assert ocp.checkpoint is ocp and ocp.__spec__.name == 'milepost.orbax'\n"
        "assert ocp.PyTreeCheckpointer and ocp.type_handlers.SaveArgs is ocp.SaveArgs\n"
        "assert ocp.handlers.DefaultCheckpointHandlerRegistry and ocp.tree and ocp.options"
    )


def test_importing_it_imports_neither_jax_nor_orbax():
    found = ok(
        "import sys, milepost.orbax\n"
        "print([m for m in ('jax', 'flax', 'orbax', 'orbax.checkpoint') if m in sys.modules])"
    )
    assert found == "[]"


@pytest.mark.parametrize("name", ["checkpoint.nothing", "checkpoint.checkpoint_managers.nothing"])
def test_a_module_that_is_not_there_is_a_module_not_found_error(name):
    done = run(f"import milepost.orbax.{name}")
    assert "ModuleNotFoundError" in done.stderr


def test_v1_and_experimental_are_attributes():
    ok(
        "import milepost.orbax.checkpoint as ocp\n"
        "assert callable(ocp.v1.save)\n"
        "from milepost.orbax.checkpoint.experimental import v1\n"
        "assert v1 is ocp.v1 or v1.save is ocp.v1.save"
    )


def test_install_puts_ours_in_place_of_orbax_and_the_real_one_stays_reachable():
    ok(
        "import milepost.orbax as ours\n"
        "ours.install(); ours.install()\n"
        "import orbax.checkpoint as ocp\n"
        "from orbax import checkpoint\n"
        "from orbax.checkpoint import CheckpointManager\n"
        "from orbax.checkpoint.checkpoint_managers import preservation_policy as p\n"
        "import orbax.checkpoint.checkpoint_managers.preservation_policy as q\n"
        "assert ocp is checkpoint is ours and CheckpointManager is ours.CheckpointManager\n"
        "assert p is q is ours.checkpoint_managers.preservation_policy\n"
        "real = ours.real_orbax()\n"
        "assert real is not ours and real.__name__ == 'orbax.checkpoint'\n"
        "assert real is ours.real_orbax()\n"
        "import orbax.checkpoint as again, sys\n"
        "assert again is ours and sys.modules['orbax.checkpoint'] is ours\n"
        "assert real.PyTreeCheckpointer.__module__.startswith('orbax.checkpoint')\n"
        "ours.uninstall()\n"
        "import orbax.checkpoint as back\n"
        "assert back is real\n"
    )


def test_real_orbax_works_after_install(tmp_path):
    ok(
        "import milepost.orbax as ours, numpy as np\n"
        "ours.install()\n"
        f"path = {str(tmp_path / 'old')!r}\n"
        "ours.real_orbax().PyTreeCheckpointer().save(path, {'a': np.ones(2)})\n"
        "import orbax.checkpoint as ocp\n"
        "assert ocp.PyTreeCheckpointer().restore(path)['a'].tolist() == [1, 1]\n"
    )


def test_install_after_the_real_one_was_imported():
    ok(
        "import orbax.checkpoint as real\n"
        "import milepost.orbax as ours\n"
        "ours.install()\n"
        "import orbax.checkpoint as ocp\n"
        "assert ocp is ours and ours.real_orbax() is real\n"
    )


def test_install_works_where_orbax_is_not_installed(tmp_path):
    ok(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'orbax' or name.startswith('orbax.'):\n"
        "            if not name.startswith('orbax.checkpoint'):\n"
        "                raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "import milepost.orbax as ours\n"
        "ours.install()\n"
        "import orbax.checkpoint as ocp\n"
        "assert ocp is ours\n"
        "import numpy as np\n"
        f"ocp.PyTreeCheckpointer().save({str(tmp_path / 'a')!r}, {{'a': 1}})\n"
    )


def test_flax_gets_ours_after_install(tmp_path):
    """`flax.training.checkpoints` imports Orbax itself; nothing of it is written then."""
    ok(
        "import milepost.orbax; milepost.orbax.install()\n"
        "import jax, jax.numpy as jnp, milepost as mp, pathlib\n"
        "from flax.training import checkpoints, orbax_utils\n"
        "from flax.training.train_state import TrainState\n"
        "import optax\n"
        "state = TrainState.create(apply_fn=None, params={'w': jnp.ones(3)}, tx=optax.adam(1e-3))\n"
        f"root = pathlib.Path({str(tmp_path)!r})\n"
        "checkpoints.save_checkpoint(root, state, step=3, overwrite=True)\n"
        "import orbax.checkpoint as ocp\n"
        "loaded = ocp.PyTreeCheckpointer().restore(root / 'checkpoint_3')\n"
        "assert loaded['params']['w'].tolist() == [1, 1, 1]\n"
        "args = orbax_utils.restore_args_from_target(state)\n"
        "path = root / 'checkpoint_3'\n"
        "again = ocp.PyTreeCheckpointer().restore(path, item=state, restore_args=args)\n"
        "assert type(again) is TrainState and again.params['w'].tolist() == [1, 1, 1]\n"
        "assert type(again.opt_state) is type(state.opt_state)\n"
        "mp.open(str(root / 'checkpoint_3'))\n"
    )


SCRIPT = """
import sys
import orbax.checkpoint as ocp
import helper_beside
assert __name__ == "__main__"
ocp.PyTreeCheckpointer().save(sys.argv[1], {"a": helper_beside.VALUE})
print(ocp.__name__, sys.argv[2:])
"""


def test_a_script_runs_with_ours_and_its_own_arguments(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "helper_beside.py").write_text("VALUE = 5\n")
    target = str(tmp_path / "out")
    script = str(tmp_path / "train.py")
    for mode in ([script], ["-m", "train"]):
        done = run("", "-m", "milepost.orbax", *mode, target, "--x", "-m", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "milepost.orbax ['--x', '-m']"
        assert (tmp_path / "out" / "zarr.json").exists()
        import shutil

        shutil.rmtree(target)


def test_the_command_says_how_it_is_used(tmp_path):
    done = run("", "-m", "milepost.orbax")
    assert done.returncode == 2 and "usage" in done.stderr
    done = run("", "-m", "milepost.orbax", "none.py", cwd=tmp_path)
    assert done.returncode == 2 and "none.py does not exist" in done.stderr
    done = run("", "-m", "milepost.orbax", "--help")
    assert done.returncode == 0 and "usage" in done.stdout


def test_a_script_that_fails_fails(tmp_path):
    (tmp_path / "bad.py").write_text("import sys; sys.exit(3)\n")
    assert run("", "-m", "milepost.orbax", str(tmp_path / "bad.py")).returncode == 3


PUBLIC = """
AbstractCheckpointManager ArrayCheckpointHandler ArrayRestoreArgs AsyncCheckpointHandler
AsyncCheckpointer
AsyncOptions BasePyTreeCheckpointHandler CheckpointHandler CheckpointHandlerRegistry
CheckpointManager
CheckpointManagerOptions Checkpointer CompositeCheckpointHandler CompositeOptions
DefaultCheckpointHandlerRegistry Future JaxRandomKeyCheckpointHandler JsonCheckpointHandler
NumpyRandomKeyCheckpointHandler PLACEHOLDER ProtoCheckpointHandler PyTreeCheckpointHandler
PyTreeCheckpointer RestoreArgs RestoreTransform SaveArgs StandardCheckpointHandler
StandardCheckpointer
Transform apply_transformations args checkpoint_managers checkpoint_utils checkpointers handlers
merge_trees
metadata multihost options path step test_utils transform_utils tree type_handlers utils v1 logging
__version__
"""


def test_orbax_has_no_public_name_that_ours_lacks_but_those_named_here(ours, theirs):
    missing = [name for name in PUBLIC.split() if not hasattr(ours, name)]
    assert missing == []
    # Parts of Orbax's own storage: there is nothing of the kind here.
    internal = set("aggregate_handlers msgpack_utils pathways serialization".split())
    modules = set("contextlib functools experimental version future".split())
    flat = {"abstract_checkpoint_manager", "checkpoint_manager", "checkpoint_args"}
    names = {name for name in vars(theirs) if not name.startswith("_")}
    here = {name for name in names if not hasattr(ours, name)}
    assert here - internal - modules - flat == set()


SUBMODULES = "args handlers checkpointers options tree type_handlers test_utils".split()


@pytest.mark.parametrize("module", SUBMODULES)
def test_public_names_of_submodules(ours, theirs, module):
    """Names that Orbax's guides use; what is left out is Orbax's own machinery."""
    machinery = {
        "merge_ocdbt_per_process_files", "check_input_arguments", "get_cast_tspec_deserialize",
        "get_cast_tspec_serialize", "get_json_tspec_read", "get_json_tspec_write", "get_ts_context",
    }
    real, mine = getattr(theirs, module), getattr(ours, module)
    if module == "test_utils":
        names = "erase_and_create_empty apply_function assert_tree_equal empty_directory is_leaf"
        wanted = {*names.split(), "create_sharded_array"}
    else:
        wanted = {
            name for name, value in vars(real).items()
            if not name.startswith("_") and (isinstance(value, type) or callable(value))
            and getattr(value, "__module__", "").startswith("orbax")
        }
    assert {name for name in wanted if not hasattr(mine, name)} - machinery == set()
