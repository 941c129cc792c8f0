"""The stubs of the extension say what it has: every name, every signature, both ways."""

from __future__ import annotations

import ast
import inspect
import pathlib

import pytest

import milepost as mp
from milepost import _milepost

STUB = pathlib.Path(mp.__file__).with_name("_milepost.pyi")
TREE = ast.parse(STUB.read_text())
CLASSES = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef)}
FUNCTIONS = {node.name: node for node in TREE.body if isinstance(node, ast.FunctionDef)}
# What Python gives every extension type, or what stubs say in another way.
OWN_DUNDERS = {"__len__", "__str__", "__repr__"}


def arguments(node: ast.FunctionDef) -> list[tuple[str, bool, object]]:
    """Names, whether by keyword only, and defaults; without self and cls."""
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [inspect.Parameter.empty] * (len(positional) - len(given.defaults)) + [value(d) for d in given.defaults]
    found = [(a.arg, False, d) for a, d in zip(positional, defaults, strict=True)]
    found += [
        (a.arg, True, inspect.Parameter.empty if d is None else value(d))
        for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    return [entry for entry in found if entry[0] not in ("self", "cls")]


def value(node: ast.expr) -> object:
    return ast.literal_eval(node)


def real_arguments(thing) -> list[tuple[str, bool, object]]:
    parameters = inspect.signature(thing).parameters.values()
    return [(p.name, p.kind is p.KEYWORD_ONLY, p.default) for p in parameters if p.name != "self"]


def members(cls: type) -> dict[str, object]:
    return {n: m for n, m in vars(cls).items() if not n.startswith("__") or n in OWN_DUNDERS}


def test_the_names_of_the_module_are_those_of_the_stub():
    real = {name for name in dir(_milepost) if not name.startswith("__")}
    assert real == {*CLASSES, *FUNCTIONS}
    assert isinstance(_milepost.__version__, str)
    assert any(isinstance(n, ast.AnnAssign) and n.target.id == "__version__" for n in TREE.body)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_arguments_of_the_stub(name):
    assert arguments(FUNCTIONS[name]) == real_arguments(getattr(_milepost, name))


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_the_members_and_signatures_of_the_stub(name):
    real = members(getattr(_milepost, name))
    stub = {n.name: n for n in CLASSES[name].body if isinstance(n, ast.FunctionDef)}
    constructor = stub.pop("__new__", None)
    stub.pop("__buffer__", None)
    assert real.keys() == stub.keys()
    for member, node in stub.items():
        marks = {d.id for d in node.decorator_list if isinstance(d, ast.Name)}
        thing = real[member]
        assert ("staticmethod" in marks) == isinstance(thing, staticmethod), member
        assert ("property" in marks) == inspect.isgetsetdescriptor(thing), member
        if "property" not in marks and member not in OWN_DUNDERS:
            assert arguments(node) == real_arguments(thing), member
    if constructor is None:
        with pytest.raises(TypeError):
            getattr(_milepost, name)()
    else:
        assert arguments(constructor) == real_arguments(getattr(_milepost, name))


@pytest.mark.parametrize("name", [*CLASSES, *FUNCTIONS])
def test_everything_is_annotated(name):
    nodes = [n for n in ast.walk({**CLASSES, **FUNCTIONS}[name]) if isinstance(n, ast.FunctionDef)]
    for node in nodes:
        assert node.returns is not None, node.name
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        assert all(a.annotation is not None or a.arg in ("self", "cls") for a in given), node.name


@pytest.mark.parametrize("name", mp.__all__)
def test_everything_public_has_a_docstring_and_type_hints(name):
    thing = getattr(mp, name)
    assert inspect.getdoc(thing), name
    if inspect.isfunction(thing):
        hints = thing.__annotations__
        parameters = inspect.signature(thing).parameters
        assert {*parameters, "return"} <= set(hints), name
    elif inspect.isclass(thing) and thing.__module__.startswith("milepost") and thing.__module__ != "milepost._milepost":
        for member, method in vars(thing).items():
            if not member.startswith("_") and inspect.isfunction(method):
                assert method.__doc__, f"{name}.{member}"
                missing = set(inspect.signature(method).parameters) - {"self"} - set(method.__annotations__)
                assert not missing and "return" in method.__annotations__, f"{name}.{member}: {missing}"


def test_the_package_says_that_it_is_typed():
    assert STUB.with_name("py.typed").exists()
    assert sorted(mp.__all__) == mp.__all__ and all(hasattr(mp, name) for name in mp.__all__)
