"""The house's laws for the Python sources: short files, short functions, words in the docstrings."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[3] / "python" / "milepost"
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
LINE_CHARACTERS_MAX = 124

# Names that say nothing; users of Orbax and Flax import these.
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "core", "types"}
THEIR_NAMES = {"orbax/utils.py", "orbax/experimental/model_surgery/transformations/types.py"}

SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
NAMES = [str(path.relative_to(PACKAGE)) for path in SOURCES]


def functions(tree):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def code_lines(node):
    """The lines of a function without its docstring: what is to be read in one go."""
    lines = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        lines -= first.end_lineno - first.lineno + 1
    return lines


def undocumented(tree, is_public):
    """Functions and classes, in a public module methods too, without a docstring; a subclass has its base's."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found, open_nodes = [], [(tree, "")]
    while open_nodes:
        node, prefix = open_nodes.pop()
        for child in node.body:
            if not isinstance(child, kinds) or child.name.startswith("_"):
                continue
            if ast.get_docstring(child) is None and not is_accessor(child):
                found.append(f"{prefix}{child.name}")
            if isinstance(child, ast.ClassDef) and not child.bases and is_public:
                open_nodes.append((child, f"{prefix}{child.name}."))
    return found


def is_accessor(node):
    """Setters and overloads say nothing that their getter or implementation does not."""
    names = {ast.unparse(d).rpartition(".")[2] for d in node.decorator_list}
    return bool(names & {"setter", "overload"})


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_files_and_functions_are_short_and_documented(path):
    text = path.read_text()
    lines = text.splitlines()
    assert len(lines) <= FILE_LINES_MAX, f"{len(lines)} lines: divide it by its nouns"
    wide = [n for n, line in enumerate(lines, 1) if len(line) > LINE_CHARACTERS_MAX]
    assert not wide, f"lines over {LINE_CHARACTERS_MAX} characters: {wide}"
    tree = ast.parse(text)
    long = {f.name: code_lines(f) for f in functions(tree) if code_lines(f) > FUNCTION_LINES_MAX}
    assert not long, f"functions over {FUNCTION_LINES_MAX} lines: {long}"
    assert ast.get_docstring(tree) is not None, "a module says what it is for"
    is_public = not any(part.startswith("_") for part in path.relative_to(PACKAGE).parts[:-1])
    is_public = is_public and not path.stem.startswith("_")
    missing = undocumented(tree, is_public)
    assert not missing, f"without a docstring: {missing}"


def test_names_of_modules_say_something():
    empty = [name for name in NAMES if Path(name).stem in EMPTY_NAMES and name not in THEIR_NAMES]
    assert not empty


def test_nothing_imports_by_a_name_that_a_checkpoint_gives():
    """`importlib` and `__import__` take fixed names only, or are where modules are aliased or loaded late by a list."""
    aliasing = {"orbax/_aliases.py", "orbax/__main__.py", "orbax/__init__.py", "flax/__init__.py"}
    found = []
    for path, name in zip(SOURCES, NAMES, strict=True):
        if name in aliasing:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("import_module", "__import__")
            ):
                if not (node.args and isinstance(node.args[0], ast.Constant)):
                    found.append(f"{name}:{node.lineno}")
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("pickle."):
                found.append(f"{name}:{node.lineno}: pickle")
    assert not found
