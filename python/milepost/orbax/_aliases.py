"""The names under which `milepost.orbax` can be imported.

`milepost.orbax.checkpoint` is `milepost.orbax`, and every dotted submodule below it is the same
module object. `install()` does the same for `orbax.checkpoint`: libraries that import Orbax
themselves get ours. The real one stays reachable by `real_orbax()`.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
import types
from collections.abc import Sequence
from typing import Any

PACKAGE = __name__.rpartition(".")[0]
OWN = f"{PACKAGE}.checkpoint"
ORBAX = "orbax.checkpoint"

_lock = threading.RLock()
_real_modules: dict[str, types.ModuleType] = {}
_installed: list[bool] = []
_looking_for_real = threading.local()


class _AliasLoader(importlib.abc.Loader):
    """Gives the module of another name, and leaves it as it is."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.spec: Any = None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = importlib.import_module(self.target)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        # The import system has just put the alias' spec on it.
        module.__spec__ = self.spec


class _AliasFinder(importlib.abc.MetaPathFinder):
    """Finds ``<alias>.x.y`` as ``milepost.orbax.x.y``."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        below = _below(fullname)
        if below is None:
            return None
        name = f"{PACKAGE}.{below}"
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            return None
        return importlib.machinery.ModuleSpec(fullname, _AliasLoader(name), is_package=False)


def _below(fullname: str) -> str | None:
    """The part of an alias' name below the package; None of other names."""
    if fullname.startswith(f"{OWN}."):
        return fullname[len(OWN) + 1 :]
    ours = _installed and not getattr(_looking_for_real, "now", False)
    if ours and fullname.startswith(f"{ORBAX}."):
        return fullname[len(ORBAX) + 1 :]
    return None


_finder = _AliasFinder()


def alias_own_names() -> None:
    """Makes `milepost.orbax.checkpoint` the package itself. Safe to call again."""
    package = sys.modules[PACKAGE]
    sys.modules[OWN] = package
    package.checkpoint = package  # type: ignore[attr-defined]
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def install() -> None:
    """Makes `import orbax.checkpoint` give `milepost.orbax`, in this process, from now on.

    Call it before the libraries that import Orbax are imported: a module that has the real one
    keeps it. Does not need Orbax to be installed. Safe to call again.
    """
    with _lock:
        if _installed:
            return
        package = importlib.import_module(PACKAGE)
        _real_modules.update(_take_out())
        _put_in(package)
        _installed.append(True)


def uninstall() -> None:
    """Takes `install()` back."""
    with _lock:
        if not _installed:
            return
        _installed.clear()
        _take_out()
        sys.modules.update(_real_modules)
        orbax = sys.modules.get("orbax")
        if orbax is not None:
            vars(orbax).pop("checkpoint", None)
            if ORBAX in _real_modules:
                orbax.checkpoint = _real_modules[ORBAX]  # type: ignore[attr-defined]
        _real_modules.clear()


def is_installed() -> bool:
    """Whether `orbax.checkpoint` is ours."""
    return bool(_installed)


def real_orbax() -> Any | None:
    """The installed `orbax.checkpoint` itself, also after `install()`; None where there is none."""
    with _lock:
        if not _installed:
            return _import_real()
        if ORBAX in _real_modules:
            return _real_modules[ORBAX]
        ours = _take_out()
        _looking_for_real.now = True
        try:
            real = _import_real()
            _real_modules.update(_take_out())
        finally:
            _looking_for_real.now = False
            sys.modules.update(ours)
            _put_in(sys.modules[PACKAGE])
        return real


def _import_real() -> Any | None:
    try:
        return importlib.import_module(ORBAX)
    except ImportError:
        return None


def _take_out() -> dict[str, types.ModuleType]:
    """Removes `orbax.checkpoint` and all below it from `sys.modules`, and returns them."""
    names = [name for name in sys.modules if name == ORBAX or name.startswith(f"{ORBAX}.")]
    return {name: sys.modules.pop(name) for name in names}


def _put_in(package: types.ModuleType) -> None:
    orbax = sys.modules.get("orbax")
    if orbax is None:
        try:
            orbax = importlib.import_module("orbax")
        except ImportError:
            orbax = types.ModuleType("orbax")
            orbax.__path__ = []  # type: ignore[attr-defined]
            sys.modules["orbax"] = orbax
    orbax.checkpoint = package  # type: ignore[attr-defined]
    sys.modules[ORBAX] = package
